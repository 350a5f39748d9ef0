"""What tests share: where the parity fixtures and the small real data sets lie."""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import nursery
import pytest
import tiny as tiny_


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the group that one test process runs alone: were it last, the other process would wait minutes."""
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


@pytest.fixture(scope="session", autouse=True)
def locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Device locks of this test process alone: several run beside each other, and none times anything real."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_PARETO_LOCKS", str(tmp_path_factory.mktemp("locks")))
        nursery.be_impatient()
        yield


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for tests that do not look into it: a suite is built once for all of them."""
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of parity fixtures and small real data sets beside the repository (or in VLM_PARETO_SHARED)."""
    folder = Path(os.environ.get("VLM_PARETO_SHARED", Path(__file__).parent.parent.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the parity fixtures and data sets are not here: {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module `tests/tiny.py`, which makes tiny checkpoints."""
    return tiny_


class TinyFastVlm(NamedTuple):
    """A tiny FastVLM on disk: for `--weights` and `--model`."""

    weights: Path
    card: Path


@pytest.fixture(scope="session")
def tiny_fastvlm(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> TinyFastVlm:
    """A tiny checkpoint in Apple's layout with a tokenizer of its own, and its card: answers come in milliseconds."""
    return TinyFastVlm(*tiny.write_fastvlm(tmp_path_factory.mktemp("tiny")))
