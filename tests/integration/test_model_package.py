"""``flarecps package``: the folder segments wherever it lies, holds no more than that takes, and invents nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from small_model import LABELS, small_plan, write_model, write_scan
from stores import TinyStores, fit

import flarecps
from flarecps import Segmenter, read_volume
from flarecps.cli.main import main
from flarecps.inference.postprocessing import Rules, write_rules
from flarecps.volumes.io import read_labels


def command_of(card: Path) -> list[str]:
    """The words of the card's one shell line."""
    return card.read_text(encoding="utf-8").split("```sh\n")[1].split("\n```")[0].split()


@pytest.fixture(scope="module")
def run(tiny_stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit("phantom_3d.yaml", tiny_stores, tmp_path_factory.mktemp("training") / "run", epochs=1)


def test_a_packaged_run_segments_elsewhere_as_the_checkpoint_does(
    run: Path, tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run is gone, the folder has moved, and the card's own line is typed there."""
    work = tmp_path / "work"
    shutil.copytree(run, work / "run")
    checkpoint = work / "run" / "checkpoints" / "last.ckpt"
    scan = sorted((tiny_stores.dataset / "imagesTs").iterdir())[0]
    expected = Segmenter.load(checkpoint)(read_volume(scan))
    assert expected.any()
    assert main(["package", str(checkpoint), str(work / "package"), "--licence", "CC BY 4.0"]) == 0
    assert "--scores, --data-source, --intended-use would say it" in capsys.readouterr().out
    moved = tmp_path / "another machine" / "model"
    moved.parent.mkdir()
    shutil.move(work / "package", moved)
    shutil.rmtree(work)
    (tmp_path / "scans").mkdir()
    shutil.copy(scan, tmp_path / "scans")

    subprocess.run(["sha256sum", "--check", "--strict", "checksums.sha256"], cwd=moved, check=True)
    program, *words = command_of(moved / "README.md")
    assert program == "flarecps"
    words = [{"SCANS": str(tmp_path / "scans"), "LABELS": str(tmp_path / "labels")}.get(word, word) for word in words]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(flarecps.__file__).parents[1])}
    subprocess.run([sys.executable, "-m", "flarecps", *words], cwd=moved, env=environment, check=True)
    (labels,) = (tmp_path / "labels").glob("*.nii.gz")
    assert np.array_equal(read_labels(labels).array[0], expected)
    assert np.array_equal(Segmenter.load(moved / "model.ckpt")(read_volume(scan)), expected)


def test_only_what_inference_needs_is_in_it(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "last.ckpt"
    out = tmp_path / "package"
    assert main(["package", str(checkpoint), str(out)]) == 0
    content, whole = (torch.load(path, weights_only=True) for path in (out / "model.ckpt", checkpoint))
    assert set(content) == {"state_dict", "flarecps"}
    assert "optimizer_states" in whole
    assert content["state_dict"].keys() == {key for key in whole["state_dict"] if key.startswith("siblings.")}
    assert (out / "model.ckpt").stat().st_size < 0.7 * checkpoint.stat().st_size
    config = (run / "config.yaml").read_text()
    assert str(run) in config
    for path in out.iterdir():
        assert str(run.parent).encode() not in path.read_bytes(), path.name


def test_the_card_says_what_the_run_knows(run: Path, tmp_path: Path) -> None:
    words = ["--data-source", "a phantom", "--intended-use", "tests [x](y) <b>", "--licence", "none at all"]
    assert main(["package", str(run / "checkpoints" / "last.ckpt"), str(tmp_path / "out"), *words]) == 0
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    plan = json.loads((run / "plan.json").read_text())
    for said in (
        *(f"{label}" for label in plan["labels"] if label != "background"),
        "planned on 5 labelled and 3 unlabelled scans",
        "**Epochs.** 1 of 1",
        "**Steps per epoch.** 2",
        "cross-pseudo supervision, two siblings",
        "torch.optim.SGD(lr=",
        "**Began from.** random weights",
        "## Scores\n\nNot stated.",
        "None comes with these networks.",
        "a phantom",
        "none at all",
        "tests [x]&#40;y) &lt;b>",
    ):
        assert said in card, said


def test_a_checkpoint_without_its_run_is_not_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor by a run of another plan that it was copied into."""
    other = tmp_path / "run" / "checkpoints" / "foreign.ckpt"
    write_model(other, plan=small_plan())
    (tmp_path / "run" / "config.yaml").write_text("seed_everything: 77\ntrainer: {max_epochs: 999}\n")
    (tmp_path / "run" / "plan.json").write_text("{}")
    for path, out in ((other, "one"), (write_model(tmp_path / "alone.ckpt"), "two")):
        assert main(["package", str(path), str(tmp_path / out)]) == 0
        assert "not in the RUN/checkpoints of its training" in capsys.readouterr().err
        card = (tmp_path / out / "README.md").read_text(encoding="utf-8")
        assert "77" not in card
        assert "999" not in card
        for subject in ("Method", "Seed", "Began from", "Optimiser", "Graphics cards", "Time", "Versions"):
            assert f"- **{subject}.** not stated" in card
        for heading in ("Intended use", "Licence", "Scores"):
            assert f"## {heading}\n\nNot stated." in card
        assert "number of scans not stated" in card


def test_folds_scores_and_rules_come_along(tmp_path: Path) -> None:
    """Two folds are averaged; the rules' line is typed; no scan that anyone trained or validated on is named."""
    folds = [write_model(tmp_path / f"fold_{seed}" / "a.ckpt", seed=seed) for seed in (5, 6)]
    rules = Rules(LABELS, largest=(1,), evidence={"scans": ["Mrs Miller"], "mean_dsc_after": {"liver": 0.5}})
    write_rules(folds[0].parent / "postprocessing.json", rules)
    scores = tmp_path / "scores" / "scores.csv"
    scores.parent.mkdir()
    scores.write_text("Name,Liver_DSC,Spleen_DSC,Liver_NSD,Spleen_NSD\nMr Smith,0.8,0.5,0.7,0.4\nx,0.6,0.5,0.7,\n")
    out = tmp_path / "out"
    assert main(["package", *map(str, folds), str(out), "--scores", str(scores.parent)]) == 0
    names = ["README.md", "checksums.sha256", "model_1.ckpt", "model_2.ckpt", "postprocessing.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    card = (out / "README.md").read_text(encoding="utf-8")
    assert command_of(out / "README.md")[2:] == [
        "model_1.ckpt",
        "model_2.ckpt",
        "SCANS",
        "LABELS",
        "--postprocess",
        "auto",
    ]
    assert "0.7000 ± 0.1414" in card
    assert "2 cases (protocol not stated)" in card
    assert "largest component of liver" in card
    assert not any(name in path.read_text() for name in ("Miller", "Smith") for path in out.glob("*[!t]"))

    scan = write_scan(tmp_path / "scans" / "scan.nii.gz")
    paths = [str(out / name) for name in names[2:4]]
    assert main(["segment", *paths, str(scan.parent), str(tmp_path / "labels"), "--postprocess", "auto"]) == 0
    expected = rules(Segmenter.load(folds)(read_volume(scan)))
    assert np.array_equal(read_labels(tmp_path / "labels" / "scan.nii.gz").array[0], expected)
    assert nibabel.load(tmp_path / "labels" / "scan.nii.gz").shape == (24, 24, 24)


def test_nothing_is_overwritten_nor_left_half_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_model(tmp_path / "a.ckpt")
    (tmp_path / "there").mkdir()
    (tmp_path / "kept").write_text("kept")
    wrong = tmp_path / "scores.csv"
    wrong.write_text("Name,Brain_DSC,Brain_NSD\nx,1,1\n")
    other = write_model(tmp_path / "other.ckpt", plan=small_plan(spacing_mm=(1.0, 3.0, 3.0)))
    for words, said in (
        ([model, tmp_path / "there"], "exists already"),
        ([model, tmp_path / "kept"], "is a file"),
        ([model, tmp_path / "model.zip"], "expected that of a folder"),
        ([tmp_path / "none.ckpt", tmp_path / "out"], "no such checkpoint"),
        ([model, other, tmp_path / "out"], "only networks trained by one plan"),
        ([model, tmp_path / "out", "--scores", wrong], "scores of Brain, which these networks don't segment"),
        ([model, tmp_path / "out", "--scores", tmp_path / "none"], "no such file"),
    ):
        assert main(["package", *map(str, words)]) == 2, said
        assert said in capsys.readouterr().err
    assert (tmp_path / "kept").read_text() == "kept"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flarecps.interop.model_package.write_text", full)
    assert main(["package", str(model), str(tmp_path / "out")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".partial-*"))
