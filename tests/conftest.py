"""Fixtures for all tests."""

import os
from pathlib import Path
from types import ModuleType

# before matplotlib is imported: there may be no screen
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
from notebook_tools import DATASET, ROOT, definitions


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def nb() -> ModuleType:
    """Return the notebook's definitions."""
    return definitions()


@pytest.fixture(scope="session")
def dataset() -> Path:
    """Return the course dataset, one folder a composer."""
    if not DATASET.is_dir():
        pytest.skip("the course dataset is not here; COURSE_DATASET may name its folder")
    return DATASET
