"""A data set's Parquet files from the Hub, or from its cache: only those of the split, only as many as are needed.

`datasets` knows which files a configuration and split consist of; the Hub's own client fetches them, resumes what was
broken off, and keeps them where every other program looks for them.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.files import FULL

Wanted = Sequence[tuple[str | None, str, int | None]]
"""(configuration, split, number of rows needed or None for all)."""


def fetch(repo: str, wanted: Wanted, count_rows: Callable[[Path], int]) -> tuple[str, list[Path]]:
    """Return the revision and the local paths of the files, fetched where they are not here yet. Raises `DataError`."""
    import datasets
    import huggingface_hub

    try:
        revision = str(huggingface_hub.HfApi().dataset_info(repo, timeout=10).sha)
        files = []
        for config, split, rows in wanted:
            builder: Any = datasets.load_dataset_builder(repo, config, revision=revision)
            have = 0
            for address in builder.config.data_files[split]:
                match = re.fullmatch(r"hf://datasets/[^@]+@[^/]+/(.+\.parquet)", str(address))
                if not match:
                    raise DataError(f"{repo}: {address} is not Parquet; next: convert it and give --data PATH")
                files.append(_download(repo, match[1], revision))
                have += count_rows(files[-1])
                if rows is not None and have > rows:  # one more than needed: the builder sees that there is more
                    break
    except DataError:
        raise
    except Exception as error:  # the libraries' exceptions differ between versions; some of them are OSErrors
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise DataError(_told(repo, error)) from error
    return revision, files


def cached(repo: str, wanted: Wanted) -> tuple[str, list[Path]]:
    """Return the revision and the paths of the files in the Hub's cache, where whole splits of them are there."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "snapshots"
    reason = f"{repo} is not in the Hub's cache ({constants.HF_HUB_CACHE})"
    for snapshot in sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True):
        files: list[Path] = []
        for config, split, _ in wanted:
            of = _shards(snapshot, config, split)
            match = of and re.search(r"-of-(\d+)", of[0].name)
            if not match or len(of) != int(match[1]):
                what = f"{len(of)} of {int(match[1])} files" if match else "no files"
                reason = f"the Hub's cache has {what} of {repo}, split {split}"
                break
            files += of
        else:
            return snapshot.name, files
    raise DataError(reason)


def _shards(snapshot: Path, config: str | None, split: str) -> list[Path]:
    """Return the files named `<config>/<split>-00000-of-00001*.parquet`, as the Hub names what is pushed to it."""
    named = sorted(snapshot.rglob(f"{split}-*-of-*.parquet"))
    return [path for path in named if config is None or config in path.relative_to(snapshot).parts[:-1]]


def _download(repo: str, name: str, revision: str) -> Path:
    import huggingface_hub

    return Path(huggingface_hub.hf_hub_download(repo, name, repo_type="dataset", revision=revision))


def _told(repo: str, error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{repo} could not be fetched from the Hub: {type(error).__name__}: {first}; next: run again, or give --data"
