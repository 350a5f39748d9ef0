"""A data set's Parquet files from the Hub, or from its cache: only those of the split, only as many as are needed.

`datasets` knows which files a configuration and split consist of; the Hub's own client fetches them, resumes what was
broken off, and keeps them where every other program looks for them.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError

Wanted = Sequence[tuple[str | None, str, int | None]]
"""(configuration, split, number of rows needed or None for all)."""


def fetch(repo: str, wanted: Wanted, offline: bool, count_rows: Callable[[Path], int]) -> tuple[str, list[Path]]:
    """Return the revision and the local paths of the files; raises `DataError` where they cannot be had."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported
    import datasets
    import huggingface_hub

    try:
        if offline:
            folder = Path(huggingface_hub.snapshot_download(repo, repo_type="dataset", local_files_only=True))
            revision, origin = folder.name, str(folder)
        else:
            revision = str(huggingface_hub.HfApi().dataset_info(repo, timeout=10).sha)
            origin = repo
        files = []
        for config, split, rows in wanted:
            named = {} if offline else {"revision": revision}
            builder: Any = datasets.load_dataset_builder(origin, config, **named)
            have = 0
            for address in _whole(builder.config.data_files[split], repo):
                if not str(address).endswith(".parquet"):
                    raise DataError(f"{repo}: {address} is not Parquet; next: convert it and give --data PATH")
                path = _local(repo, revision, str(address))
                files.append(path)
                have += count_rows(path)
                if rows is not None and have > rows:  # more than needed: the builder sees that it is not the end
                    break
    except DataError:
        raise
    except Exception as error:  # the libraries' exceptions differ between versions
        raise DataError(
            f"{repo} could not be fetched from the Hub{' cache' if offline else ''}: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}; next: run again, or give --data PATH"
        ) from error
    return revision, files


def _whole(addresses: Sequence[object], repo: str) -> list[str]:
    """Refuse a set of shards that is not whole (`x-00002-of-00006` missing): a part of a cache is not the data set."""
    names = sorted(map(str, addresses))
    for name in names:
        match = re.search(r"-(\d{5})-of-(\d{5})", name)
        if match and len([other for other in names if f"-of-{match[2]}" in other]) < int(match[2]):
            raise DataError(f"{repo}: only {len(names)} of {int(match[2])} files are in the cache")
    return [str(address) for address in addresses]


def _local(repo: str, revision: str, address: str) -> Path:
    """Return the path of a file that is here, or fetch it (with the Hub client's own progress bar on stderr)."""
    import huggingface_hub

    match = re.fullmatch(r"hf://datasets/[^@]+@[^/]+/(.+)", address)
    if not match:
        return Path(address)
    return Path(huggingface_hub.hf_hub_download(repo, match[1], repo_type="dataset", revision=revision))
