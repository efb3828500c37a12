"""Disks that are full or read-only: one line that names file and cure, nothing half written, no training lost."""

from __future__ import annotations

import csv
import errno
import logging
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import full_disk
from small_model import write_model, write_scan
from stores import TinyStores, fit, fit_words

from flarecps import atomic
from flarecps.cli.main import main
from flarecps.errors import FlarecpsError, WriteError
from flarecps.torch_files import save
from flarecps.training import checkpoint_files
from flarecps.training.dashboards.metrics_table import MetricsTable
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space


def files_in(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_a_file_that_does_not_fit_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic.write_text(path, "before")
    with full_disk(), pytest.raises(WriteError, match=r"a\.json: can't be written \(File too large\); free some, or"):
        atomic.write_text(path, "x" * 100)
    assert path.read_text() == "before"
    assert files_in(tmp_path) == {path}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_whatever_the_reason_the_file_is_named(tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"

    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)  # a read-only disk removes nothing, either
    with pytest.raises(FlarecpsError, match=rf"^{path}: can't be written \({os.strerror(number)}\)") as found:
        atomic.write_text(path, "x")
    assert isinstance(found.value, OSError)
    assert found.value.errno == number


def test_an_error_of_another_file_stays_its_own(tmp_path: Path) -> None:
    def read_another() -> None:
        with atomic.atomic_path(tmp_path / "a"):
            (tmp_path / "missing").read_text()

    with pytest.raises(FileNotFoundError, match="missing"):
        read_another()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.seg.nrrd", "a.mha"])
@pytest.mark.parametrize("room", [60, 100_000])
def test_images_that_do_not_fit_say_why_whoever_writes_them(tmp_path: Path, name: str, room: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 64)).astype(np.uint8)
    with full_disk(room), pytest.raises(WriteError, match=rf"/{name}: can't be written \(File too large\); free some"):
        write_volume(tmp_path / name, noise, Space.canonical(noise.shape, (1.0, 1.0, 1.0)))
    assert not files_in(tmp_path)


def test_pytorchs_errors_say_why(tmp_path: Path) -> None:
    for room in (60, 4096, 100_000):
        with full_disk(room), pytest.raises(OSError, match="File too large"):
            save({"weights": torch.zeros(100_000)}, tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("phantom OUT --labelled 1 --unlabelled 1 --test 1 --workers 1", "phantom.json"),
        ("inspect DATA --json OUT --workers 1 --no-progress", "out"),
        ("inspect DATA --html OUT --workers 1 --no-progress", "out"),
        ("inspect DATA --annotated OUT --workers 1 --no-progress", "out"),
        ("plan DATA --out OUT.json --workers 1 --no-progress", "out.json"),
        ("plan DATA --out OUT.json --fingerprints FOLDER --workers 1 --no-progress", "labelled_001.json"),
        ("preprocess DATA STORE/plan.json --out OUT --workers 1 --no-progress", "out"),
        ("segment MODEL SCAN OUT", "out"),
        ("export MODEL OUT --to nnunet", "out"),
        ("import NNUNET OUT.ckpt --from nnunet", "out.ckpt"),
    ],
)
def test_every_command_ends_in_one_line(
    words: str, named: str, tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model.ckpt")
    places = {
        "OUT": tmp_path / "out", "OUT.ckpt": tmp_path / "out.ckpt", "OUT.json": tmp_path / "out.json",
        "FOLDER": tmp_path / "folder", "MODEL": model,
        "DATA": tiny_stores.dataset, "STORE/plan.json": tiny_stores.three / "plan.json",
        "SCAN": write_scan(tmp_path / "scan.nii.gz"), "NNUNET": tmp_path / "nnunet",
    }  # fmt: skip
    if "NNUNET" in words:
        assert main(["export", str(model), str(tmp_path / "nnunet"), "--to", "nnunet"]) == 0
    capsys.readouterr()
    before = files_in(tmp_path)
    with full_disk():
        code = main([str(places.get(word, word)) for word in words.split()])
    message = capsys.readouterr().err
    assert code in (1, 2), message
    said = [line for line in message.splitlines() if "File too large" in line]
    assert len(said) == 1, message
    assert named in said[0]
    assert ".partial" not in said[0]
    assert "Traceback" not in message
    assert files_in(tmp_path) == before


# -- in a training


def test_what_can_not_be_written_beside_the_checkpoints_ends_no_training(
    tiny_stores: TinyStores, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Something else has the names of its pictures, tables and record."""
    run = tmp_path / "run"
    for name in ("validation.csv", "environment.json"):
        (run / name).mkdir(parents=True)
    (run / "overlays").write_text("in the way")
    with caplog.at_level(logging.WARNING, logger="flarecps.training"):
        fit("phantom_3d.yaml", tiny_stores, run, "--data.fold", 0, "--trainer.check_val_every_n_epoch", 1)
    assert (run / "checkpoints" / "last.ckpt").is_file()
    message = caplog.text
    for name in ("validation.csv", "environment.json", "overlays"):
        assert message.count(f"{name}: can't be written") == 1, name
    assert "the training goes on without it" in message


def test_a_checkpoint_that_does_not_fit_is_one_line_and_the_last_stays(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    written = []

    def full_after_the_first_epoch(content: Any, path: Path) -> None:
        with full_disk(4096 if written else resource.RLIM_INFINITY):
            save(content, path)
        written.append(path)

    monkeypatch.setattr(checkpoint_files, "save", full_after_the_first_epoch)
    assert main(fit_words("phantom_3d.yaml", tiny_stores, run)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "last.ckpt" in line]
    assert len(said) == 1
    assert "last.ckpt: can't be written (File too large); free some" in said[0]
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert checkpoint_files.progress_of(run / "checkpoints" / "last.ckpt")[0] == 1


def test_the_table_of_figures_grows_by_whole_rows_alone(tmp_path: Path) -> None:
    table = MetricsTable(save_dir=tmp_path, name=None, version="csv")
    path = tmp_path / "csv" / "metrics.csv"

    def rows() -> list[dict[str, str]]:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    table.log_metrics({"epoch": 0, "loss": 1.0}, step=1)
    with full_disk(3):
        table.save()
    assert not path.exists()
    table.save()
    assert [row["loss"] for row in rows()] == ["1.0"]
    before = path.read_text()
    table.log_metrics({"epoch": 1, "loss": 2.0}, step=2)
    with full_disk(len(before) + 3):
        table.save()
    assert path.read_text() == before
    table.log_metrics({"epoch": 2, "loss": 3.0, "dsc": 0.5}, step=3)  # a new column: the table is written anew
    with full_disk(10):
        table.save()
    assert path.read_text() == before
    table.save()
    assert [(row["loss"], row["dsc"]) for row in rows()] == [("1.0", ""), ("2.0", ""), ("3.0", "0.5")]
