"""A data set's Parquet files from the Hub, or from its cache: only those of the split, only as many as are needed.

`datasets` knows which files a configuration and split consist of; the Hub's own client fetches them, resumes what was
broken off, and keeps them where every other program looks for them.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.files import FULL, hub_folder, hub_revision

Wanted = Sequence[tuple[str | None, str, int | None]]
"""(configuration, split, number of rows needed or None for all)."""


def fetch(repo: str, wanted: Wanted, count_rows: Callable[[Path], int]) -> tuple[str, list[Path]]:
    """Return the revision and the local paths of the files, fetched where they are not here yet. Raises `DataError`.

    The revision is the cache's `refs/main` where there is one: what was fetched for another suite of the repository,
    or by another program, is what this suite, too, is read from. Without one it is the Hub's, and becomes `refs/main`.
    """
    import datasets
    import huggingface_hub

    try:
        revision = hub_revision(repo) or str(huggingface_hub.HfApi().dataset_info(repo, timeout=10).sha)
        files: list[Path] = []
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
    """Return the revision and the paths of the files in the Hub's cache, where whole splits of them are there.

    `refs/main` decides between revisions; without one, a single revision is taken, and several are refused.
    """
    folder = hub_folder(repo) / "snapshots"
    revision = hub_revision(repo)
    there = sorted(path.name for path in folder.glob("*") if path.is_dir())
    if not there:
        raise DataError(f"{repo} is not in the Hub's cache ({hub_folder(repo).parent})")
    if not revision and len(there) > 1:
        raise DataError(
            f"the Hub's cache has {len(there)} revisions of {repo} ({', '.join(name[:12] for name in there)}) and no "
            "refs/main that says which; next: fetch it again with the Hub's client"
        )
    revision = revision or there[0]
    files: list[Path] = []
    for config, split, _ in wanted:
        of = _shards(folder / revision, config, split)
        match = of and re.search(r"-of-(\d+)", of[0].name)
        if not match or len(of) != int(match[1]):
            what = f"{len(of)} of {int(match[1])} files" if match else "no files"
            raise DataError(f"the Hub's cache has {what} of {repo}, split {split}, at revision {revision[:12]}")
        files += of
    return revision, files


def _shards(snapshot: Path, config: str | None, split: str) -> list[Path]:
    """Return the files named `<config>/<split>-00000-of-00001*.parquet`, as the Hub names what is pushed to it."""
    named = sorted(snapshot.rglob(f"{split}-*-of-*.parquet"))
    return [path for path in named if config is None or config in path.relative_to(snapshot).parts[:-1]]


def _download(repo: str, name: str, revision: str) -> Path:
    """Fetch one file of `revision`; the first one of a repository writes `refs/main`, which later suites go by."""
    import huggingface_hub

    if not hub_revision(repo):
        huggingface_hub.hf_hub_download(repo, name, repo_type="dataset")
        if hub_revision(repo) != revision:
            raise DataError(f"{repo} has changed while it was fetched; next: run again")
    return Path(huggingface_hub.hf_hub_download(repo, name, repo_type="dataset", revision=revision))


def _told(repo: str, error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return f"{repo} could not be fetched from the Hub: {type(error).__name__}: {first}; next: run again, or give --data"
