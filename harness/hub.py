"""The one place that asks the Hub: weights, a data set's files, a repository's history; and the rule of when not to.

The Hub's own client fetches, resumes what was broken off, and keeps files where every other program looks for them.
Which files a configuration and split of a data set consist of, `datasets` knows; whoever wants them asks it.
"""

import os
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

from harness.errors import DataError
from harness.files import FULL, hub_folder, hub_revision

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HARNESS_OFFLINE")
"""Any of these set to 1, on, yes or true means what `--offline` means: nothing is asked, only caches are read."""

PROBE_SECONDS = 4.0
"""How long the first, small question may take: the downloader itself retries for minutes where there is no network."""

Wanted = Sequence[tuple[str | None, str, int | None]]
"""(configuration, split, number of rows needed or None for all)."""


def is_offline(asked: bool = False) -> bool:
    """Return whether the Hub must not be asked: by `--offline`, or by the environment."""
    return asked or any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)


def cached_model(repo: str, revision: str | None, files: Sequence[str]) -> Path | None:
    """Return the folder of a model's repository in the Hub's cache, or None; asks nothing."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files), local_files_only=True))
    except Exception:  # noqa: BLE001 - not in the cache; the library's exceptions differ between its versions
        return None


def fetch_model(
    repo: str, revision: str | None, files: Sequence[str], offline: bool = False
) -> tuple[Path | None, str]:
    """Return the folder with a model's files, downloaded where they are not here yet, or None and why."""
    missing = f"{repo} is not (or not all) in the Hub cache"
    if is_offline(offline):
        return None, f"{missing} (offline mode: the Hub was not contacted)"
    from huggingface_hub import HfApi, snapshot_download

    try:
        HfApi().model_info(repo, revision=revision, timeout=PROBE_SECONDS)
    except Exception as error:  # noqa: BLE001 - unreachable, gated or gone, in the library's many ways of saying so
        return None, f"{missing} and the Hub cannot be reached or does not give it ({type(error).__name__})"
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files))), ""
    except Exception as error:  # noqa: BLE001 - as above, and a full disk
        first = next(iter(str(error).strip().splitlines()), "")
        return None, f"{missing} and its download failed ({type(error).__name__}: {first})"


def commits(repo: str, revision: str | None = None) -> list[tuple[datetime, str]]:
    """Return the commits of a model's repository, oldest first: (when, id). Raises `DataError`."""
    if is_offline():
        raise DataError(f"--repo {repo}: offline mode: the Hub was not contacted; next: unset {' and '.join(OFFLINE)}")
    from huggingface_hub import HfApi

    try:
        found = HfApi().list_repo_commits(repo, revision=revision)
    except Exception as error:
        raise DataError(
            f"--repo {repo}: its revisions cannot be listed ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "next: check the name and the network, or give a folder"
        ) from error
    return [(one.created_at, str(one.commit_id)) for one in sorted(found, key=lambda one: one.created_at)]


def fetch(
    repo: str,
    wanted: Wanted,
    addresses: Callable[[str | None, str, str], Sequence[str]],
    count_rows: Callable[[Path], int],
) -> tuple[str, list[Path]]:
    """Return a data set's revision and the local paths of the files, fetched where they are not here yet.

    `addresses` says of (configuration, split, revision) which files it consists of; only as many as are needed are
    fetched. The revision is the cache's `refs/main` where there is one: what was fetched for another suite of the
    repository, or by another program, is what this suite, too, is read from. Without one it is the Hub's, and becomes
    `refs/main`. Raises `DataError`.
    """
    import huggingface_hub

    try:
        revision = hub_revision(repo) or str(huggingface_hub.HfApi().dataset_info(repo, timeout=10).sha)
        files: list[Path] = []
        for config, split, rows in wanted:
            have = 0
            for address in addresses(config, split, revision):
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
