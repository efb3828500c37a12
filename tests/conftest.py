"""Fixtures shared by all tests."""

from __future__ import annotations

import locale
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pretended_card import PretendedCard
    from stores import TinyStores

    from flarecps.volumes.io import Volume

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Ctrl-C and hanging up work in tests and what they start, also behind a script's ``&`` or ``nohup``."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The developers' folder of real scans: not part of the product, so tests that need it skip without it."""
    folder = Path(os.environ.get("FLARECPS_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real scans are not at hand (set FLARECPS_DATA to their folder)")
    return folder


@pytest.fixture(scope="session")
def tiny_stores(tmp_path_factory: pytest.TempPathFactory) -> TinyStores:
    """A tiny phantom as 3D and 2D case stores."""
    from stores import write_stores  # imports half of the package: only for those who ask

    return write_stores(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> PretendedCard:
    """The second of two pretended cards of 16 GB; tensors lie on it within ``with card``."""
    from pretended_card import PretendedCard

    card = PretendedCard(16 * 2**30)
    card.install(monkeypatch)
    return card


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """A small turned scan, read from ``tmp_path/scan.nii.gz``."""
    import SimpleITK as sitk
    from test_segmenter import scan, turned

    from flarecps.volumes.io import read_volume

    sitk.WriteImage(scan((47, 50, 40), (2.3, 2.1, 2.8), turned(1, 2, 3)), str(tmp_path / "scan.nii.gz"))
    return read_volume(tmp_path / "scan.nii.gz")


@pytest.fixture(scope="session", autouse=True)
def _no_wandb() -> Iterator[None]:
    """Trainings in tests start no wandb process, unless a test takes WANDB_MODE away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="session", autouse=True)
def _defects_are_raised() -> Iterator[None]:
    """A defect keeps its traceback in tests, unless a test takes FLARECPS_TRACEBACK away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLARECPS_TRACEBACK", "1")
        yield


@pytest.fixture(autouse=True)
def _locale_stays() -> Iterator[None]:
    """GDCM's DICOM writer, which some tests use, leaves the process in the "C" locale, where text is ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)
