"""What tests share: where the parity fixtures and the small real data sets lie."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of parity fixtures and small real data sets that lies beside the repository (or in VLM_PARETO_SHARED)."""
    folder = Path(os.environ.get("VLM_PARETO_SHARED", Path(__file__).parent.parent.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"the parity fixtures and data sets are not here: {folder}")
    return folder
