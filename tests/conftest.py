"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The developers' folder of real scans: not part of the product, so tests that need it skip without it."""
    folder = Path(os.environ.get("FLARECPS_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real scans are not at hand (set FLARECPS_DATA to their folder)")
    return folder
