"""What can't be read just now, as with too many open files, is not damaged: nobody copies it, and nothing is lost."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_model import write_model, write_scan
from stores import TinyStores
from test_decoders_apart import series

from flarecps.cli.main import main
from flarecps.data import patch_stream
from flarecps.errors import FlarecpsError, WorkerError, refusal
from flarecps.planning.plan import read_plan
from flarecps.preprocessing import checksums
from flarecps.preprocessing.store import open_array
from flarecps.torch_files import check_whole
from flarecps.training.checkpoint_files import newest_whole
from flarecps.volumes.io import read_volume, write_volume

resource = pytest.importorskip("resource")
CURE = "raise the limit of open files (ulimit -n)"


@contextmanager
def no_more_files() -> Iterator[None]:
    """No file can be opened: a real error of the system."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(64)]  # up to the limit there is no gap
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(spare) + 1, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for one in spare:
            os.close(one)


def told(read: Callable[[Path], object], path: Path) -> str:
    """What a command says of it."""
    read(path)  # with all that is imported for it
    checksums._checked.clear()
    with no_more_files(), pytest.raises((FlarecpsError, OSError)) as found:
        read(path)
    return refusal(found.value) or str(found.value)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "slices"])
def test_no_scan_is_blamed(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "slices":
        series(path)
    else:
        scan = read_volume(write_scan(tmp_path / "scan.nii.gz"))
        write_volume(path, scan.array[0], scan.space)
    said = told(read_volume, path)
    assert str(path) in said
    assert CURE in said
    assert "damaged" not in said


def test_nothing_else_that_is_read_is_blamed(tiny_stores: TinyStores, tmp_path: Path) -> None:
    case = next((tiny_stores.three / "cases").iterdir())
    model = write_model(tmp_path / "checkpoints" / "last.ckpt")
    plan = tiny_stores.three / "plan.json"
    for read, path in ((read_plan, plan), (check_whole, model), (open_array, case / "image.b2nd")):
        said = told(read, path)
        assert str(path.parent) in said
        assert CURE in said
        assert "damaged" not in said


def test_no_earlier_checkpoint_is_taken_instead(tmp_path: Path) -> None:
    for name in ("last", "best"):
        write_model(tmp_path / f"{name}.ckpt")
    skipped: list[str] = []
    with no_more_files(), pytest.raises(OSError, match="Too many open files"):
        newest_whole(tmp_path, skipped.append)
    assert not skipped


def test_verifying_a_store_takes_nothing_out(
    tiny_stores: TinyStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    store = tiny_stores.three
    before = sorted(store.rglob("*"))
    monkeypatch.setattr("flarecps.preprocessing.store_writing.sha256", refused)
    words = ["preprocess", tiny_stores.dataset, store / "plan.json", "--out", store, "--verify", "--workers", "1"]
    assert main([*map(str, words), "--no-progress"]) == 1
    assert "Permission denied; check its permissions" in capsys.readouterr().err
    assert sorted(store.rglob("*")) == before


@pytest.mark.parametrize("error", [OSError(24, "Too many open files", "/store/a"), MemoryError(), WorkerError("lost")])
def test_what_a_data_worker_is_refused_arrives_as_it_is(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised there, PyTorch would wrap it in a traceback's text, and nobody would know its kind."""

    def make(self: patch_stream.PatchBatches, draws: object, worker: int | None = None) -> Any:
        raise error

    monkeypatch.setattr(patch_stream, "get_worker_info", lambda: SimpleNamespace(id=0))
    monkeypatch.setattr(patch_stream.PatchBatches, "make", make)
    batches = object.__new__(patch_stream.PatchBatches)
    batches.sequence = SimpleNamespace(share=1, starting_at=lambda *address: iter([None]))  # type: ignore[assignment]
    found = batches[0, 0]
    assert isinstance(found, patch_stream.Failure)
    assert found.error is error
    assert str(pickle.loads(pickle.dumps(found)).error) == str(error)
