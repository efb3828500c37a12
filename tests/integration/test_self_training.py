"""Self-training from end to end on the tiny phantom: teachers label, a person strikes out, a student trains, rounds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stores import TinyStores, fit

from flarecps.cli.main import main
from flarecps.preprocessing.pseudo_labels import read_all

BATCH = "{labelled: 2, pseudo_labelled: 2}"
STUDENT = ["--model.method", "flarecps.methods.SelfTraining", "--data.global_batch", BATCH]


@pytest.fixture(scope="module")
def teachers(tiny_stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two controls of other seeds."""
    folder = tmp_path_factory.mktemp("teachers")
    runs = [
        fit("phantom_3d_supervised.yaml", tiny_stores, folder / str(seed), "--model.initial_seed", seed, epochs=1)
        for seed in range(2)
    ]
    return [run / "checkpoints" / "last.ckpt" for run in runs]


@pytest.fixture(scope="module")
def labelled(tiny_stores: TinyStores, teachers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pseudo") / "labels"
    assert main(["pseudo-label", *map(str, teachers), str(tiny_stores.three), str(folder), "--no-progress"]) == 0
    return folder


def test_a_student_learns_from_its_teachers_labels(tiny_stores: TinyStores, labelled: Path, tmp_path: Path) -> None:
    words = [*STUDENT, "--data.pseudo_labels", labelled]
    fit("phantom_3d_supervised.yaml", tiny_stores, tmp_path / "whole", *words)
    fit("phantom_3d_supervised.yaml", tiny_stores, tmp_path / "parts", *words, "--data.workers", 2, epochs=1)
    fit("phantom_3d_supervised.yaml", tiny_stores, tmp_path / "parts", *words, "--ckpt_path", "last")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, parts[name]), name
    again = str(tmp_path / "again")
    student = str(tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert main(["pseudo-label", student, str(tiny_stores.three), again, "--no-progress"]) == 0
    assert all(one.mean_quality is None for one in read_all(Path(again)))
