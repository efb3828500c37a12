"""``flarecps demo``: what was done stands when it is given again, folders of others are not used, terms are equal."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml
from small_model import write_scan
from stores import CONFIGS

from flarecps.atomic import write_json
from flarecps.cli import demo, demo_real
from flarecps.cli.console import Console
from flarecps.cli.main import main
from flarecps.datasets.catalogue import read_catalogue
from flarecps.datasets.phantom import LARGE_ORGANS, write_phantom
from flarecps.evaluation.score_table import Scores
from flarecps.experiments import runner
from flarecps.losses import LinearRamp
from flarecps.methods import CrossPseudoSupervision
from flarecps.metric_names import EPOCH, PATCHES_PER_SECOND
from flarecps.volumes.io import read_labels

Calls = list[list[str]]


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], Calls]:
    """Commands are pretended, each leaves its output; given a number, that one is interrupted."""

    def start(interrupted: int | None = None) -> Calls:
        calls: Calls = []

        def pretend(own: list[str], _: int) -> int:
            calls.append(own)
            outputs = {
                "phantom": lambda: Path(own[1]) / "dataset.json",
                "fit": lambda: Path(own[own.index("--trainer.default_root_dir") + 1]) / "checkpoints" / "last.ckpt",
                "segment": lambda: Path(own[3]) / "any.nii.gz",
                "score": lambda: Path(own[-1]) / "scores.csv",
                "inspect": lambda: Path(own[1]) / "dataset.json",
            }
            path = outputs.get(own[0], lambda: Path(own[own.index("--out") + 1]))()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if own[0] == "fit" and path.parts[-3] == "pace":
                table = path.parents[1] / "csv" / "metrics.csv"
                table.parent.mkdir()
                table.write_text(f"{EPOCH},{PATCHES_PER_SECOND}\n1,1.0\n2,20.0\n")
            if len(calls) == interrupted:
                raise KeyboardInterrupt
            return 0

        monkeypatch.setattr(runner, "run_flarecps", pretend)
        monkeypatch.setattr(demo, "_show_scores", lambda *_, **__: None)
        monkeypatch.setattr(demo, "_write_figure", lambda *_: None)
        return calls

    return start


def test_an_interrupted_demo_goes_on(
    tmp_path: Path, pretended: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    """The training is interrupted once it has a checkpoint."""
    out = tmp_path / "out"
    calls = pretended(5)
    assert main(["demo", "--out", str(out)]) == 130
    assert "the same command again goes on" in capsys.readouterr().err
    assert [words[0] for words in calls] == ["phantom", "inspect", "plan", "preprocess", "fit"]
    calls = pretended()
    assert main(["demo", "--out", str(out)]) == 0
    assert [words[0] for words in calls] == ["fit", "fit", "segment", "segment", "score", "score", "report"]
    assert calls[0][-2:] == ["--ckpt_path", "auto"]
    assert "--ckpt_path" not in calls[1]
    calls.clear()
    assert main(["demo", "--out", str(out)]) == 0
    assert not calls


@pytest.mark.parametrize("real", [False, True])
def test_a_folder_of_something_else_is_refused(real: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").touch()
    assert main(["demo", "--out", str(tmp_path), *(["--real", str(tmp_path)] if real else [])]) == 2
    assert "not empty, and no demo's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("epochs", [3, 7, demo.CPS_EPOCHS, 100])
def test_the_control_computes_as_much(epochs: int) -> None:
    """By the method's own count of its steps, with the batch and the ramp that the config and the demo give it."""
    config = yaml.safe_load((CONFIGS / "demo_3d.yaml").read_text())
    ramp = config["model"]["method"]["init_args"]["ramp"]
    if epochs == demo.CPS_EPOCHS:
        assert (config["trainer"]["max_epochs"], ramp["start"]) == (epochs, demo.lambda_start(epochs))
    patches = config["data"]["global_batch"]
    method = CrossPseudoSupervision(ramp=LinearRamp(**ramp | {"start": demo.lambda_start(epochs)}))
    cost = sum(method.step_cost(patches, epoch) for epoch in range(epochs)) / patches["labelled"]
    assert cost == demo.equal_compute(epochs)


def test_large_organs_are_the_same_scans_with_fewer_labels(tmp_path: Path) -> None:
    for organs in ("all", "large"):
        write_phantom(tmp_path / organs, 1, 0, 0, seed=4, progress=False, organs=organs)
    of_all, of_large = (read_catalogue(tmp_path / organs) for organs in ("all", "large"))
    assert of_all.cases[0].images[0].read_bytes() == of_large.cases[0].images[0].read_bytes()
    assert list(of_large.labels) == ["background", *LARGE_ORGANS]
    assert of_large.left_right_pairs == ((of_large.labels["right kidney"], of_large.labels["left kidney"]),)
    every, large = (read_labels(one.cases[0].labels).array for one in (of_all, of_large))
    for name, label in of_large.labels.items():
        if label:
            assert np.array_equal(large == label, every == of_all.labels[name])
            assert (large == label).any()
    assert set(np.unique(large)) == set(of_large.labels.values())


# -- on one's own scans


def own_scans(root: Path, labelled: int, unlabelled: int = 0, test: int = 0, edge: int = 24) -> Path:
    """nnU-Net's layout; a cube of 3 mm each, whose labels are a block of liver."""
    for folder, count, with_labels in (("Tr", labelled, True), ("Un", unlabelled, False), ("Ts", test, True)):
        for number in range(count):
            image = write_scan(root / f"images{folder}" / f"{folder}{number:02d}_0000.nii.gz", number, edge)
            if with_labels:
                labels = np.zeros((edge,) * 3, np.uint8)
                labels[4:12, 4:12, 4:12] = 1
                path = root / f"labels{folder}" / f"{folder}{number:02d}.nii.gz"
                path.parent.mkdir(exist_ok=True)
                nibabel.save(nibabel.Nifti1Image(labels, nibabel.load(image).affine), path)
    write_json(root / "dataset.json", {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}})
    return root


def test_the_whole_road_on_own_scans(
    tmp_path: Path, pretended: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = own_scans(tmp_path / "own", 9, 4), tmp_path / "out"
    calls = pretended(5)  # in CPS's training
    command = ["demo", "--real", str(source), "--minutes", "10", "--out", str(out)]
    assert main(command) == 130
    assert [words[0] for words in calls] == ["inspect", "plan", "preprocess", "fit", "fit"]
    calls = pretended()
    assert main(command) == 0
    assert [words[0] for words in calls] == ["fit", "fit", "segment", "segment", "score", "score", "report"]
    assert calls[0][-2:] == ["--ckpt_path", "auto"]
    epochs = [int(words[words.index("--trainer.max_epochs") + 1]) for words in calls[:2]]
    assert epochs == [41, demo.equal_compute(41)]  # of 20 patches/s and 5 minutes each
    seconds = epochs[1] * demo_real.STEPS * demo_real.LABELLED_PATCHES / 20.0
    assert 0.7 * 300 < seconds < 300
    found = read_catalogue(out / "data")
    assert (len(found.labelled), len(found.unlabelled), len(found.test)) == (7, 4, 2)
    assert not {case.name for case in found.test} & {case.name for case in found.labelled}
    assert all(case.images[0].is_symlink() and case.labels for case in found.test)
    said = capsys.readouterr().out
    assert "7 of 9 labelled scans and 4 of 4 unlabelled ones to learn from, 2 labelled scans held out" in " ".join(
        said.split()
    )
    assert "a training of hours" in " ".join(said.split())
    calls.clear()
    assert main(command) == 0
    assert not calls


def test_without_unlabelled_scans_the_control_is_alone(tmp_path: Path, pretended: Callable[..., Calls]) -> None:
    calls = pretended()
    assert main(["demo", "--real", str(own_scans(tmp_path / "own", 3)), "--out", str(tmp_path / "out")]) == 0
    assert [words[0] for words in calls] == [
        "inspect",
        "plan",
        "preprocess",
        "fit",
        "fit",
        "segment",
        "score",
        "report",
    ]


def test_damaged_paces_other_scans_and_two_at_once_are_told(
    tmp_path: Path, pretended: Callable[..., Calls], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = own_scans(tmp_path / "own", 4, 2), tmp_path / "o [/x], é"
    command = ["demo", "--out", str(out), "--real"]
    pretended()
    assert main([*command, str(source)]) == 0
    paces = out / "pace" / "csv" / "metrics.csv"
    for damaged in ("", *(f"{EPOCH},{PATCHES_PER_SECOND}\n1,{speed}\n" for speed in ("nan", "-5", "0", "x"))):
        capsys.readouterr()
        paces.write_text(damaged)
        assert main([*command, str(source)]) == 2
        error = capsys.readouterr().err
        assert f"{paces}: tells no speed; remove {out / 'pace'}, and" in error
        assert error.count("\n") == 1
    shutil.rmtree(out / "pace")
    (out / "stages" / "data.json").write_text('{"state": 3}')
    assert main([*command, str(source)]) == 0
    other = shutil.copytree(source, tmp_path / "other")
    for words, message in (
        ([*command, str(other)], "dataset.json: made from other data; it is not overwritten"),
        (command[:-1], "holds a demo on own scans"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    with runner.run_lock(out / "stages"):
        assert main([*command, str(source)]) == 2
    assert "a run is at work here (process" in capsys.readouterr().err


def test_structures_are_shown_whatever_they_are_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = own_scans(tmp_path / "own", 3)
    write_json(data / "dataset.json", {"labels": {"background": 0, "[/x] [red]": 1}, "channel_names": {"0": "CT"}})
    for method in demo.NAMES:
        scores = tmp_path / "runs" / method / "scores"
        scores.mkdir(parents=True)
        (scores / "scores.csv").write_text("Name,[/x]_[red]_DSC,[/x]_[red]_NSD\nTr00.nii.gz,0.5,0.5\n")
    demo._show_scores(tmp_path, data, list(demo.NAMES), "after [/y]", Console(), with_oracles=False)
    shown = capsys.readouterr().out
    assert "[/x] [red]" in shown
    assert "after [/y]" in shown


def test_a_labelled_test_set_is_used(tmp_path: Path) -> None:
    labelled, _, test = demo_real.chosen_cases(read_catalogue(own_scans(tmp_path, 2, 0, 9)))
    assert [case.name for case in labelled] == ["Tr00", "Tr01"]
    assert len(test) == demo_real.MOST["test"]
    assert all(case.name.startswith("Ts") for case in test)


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = str(own_scans(tmp_path / "own", 2))
    for words, message in (
        (["--real", source], "2 labelled scans"),
        (["--real", source, "--minutes", "0"], "--minutes 0"),
        (["--real", str(tmp_path / "none")], "no such folder"),
        (["--real", source, "--out", f"{source}/demo"], "lies in the data's folder"),
    ):
        assert main(["demo", "--out", str(tmp_path / "out"), *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert not (Path(source) / "demo").exists()


@pytest.mark.parametrize(
    ("shape", "spacing_mm"), [((24, 24, 24), 3.0), ((300, 512, 512), 0.8), ((10, 40, 600), 1.0), ((500, 300, 200), 0.5)]
)
def test_the_grid_is_bounded_and_never_finer_than_the_scans(
    shape: tuple[int, int, int], spacing_mm: float, tmp_path: Path
) -> None:
    source = own_scans(tmp_path, 1)
    (case,) = read_catalogue(source).labelled
    voxels = np.broadcast_to(np.int16(0), shape[::-1])
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])), case.images[0])
    spacing, resampled = demo_real.bounded_grid([case])
    assert math.prod(resampled) <= 1.02 * demo_real.MOST_VOXELS
    assert min(spacing) >= spacing_mm
    assert np.allclose(np.multiply(resampled, spacing), np.multiply(shape, spacing_mm), atol=max(spacing))
    if math.prod(shape) <= demo_real.MOST_VOXELS:
        assert resampled == shape
    patch = demo_real.patch_of(spacing, resampled)
    assert all(edge % 8 == 0 and 0 < edge <= 32 for edge in patch)
    assert all(edge < size + 8 for edge, size in zip(patch, resampled, strict=True))


# -- what is said of a difference


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([0.02, 0.03, 0.02, 0.04, 0.03, 0.02], "CPS is ahead"),
        ([-0.02, -0.03, -0.02, -0.04, -0.03, -0.02], "the control is ahead"),
        ([0.02, -0.03, 0.02, -0.04, 0.03, -0.02], "neither is ahead by more than chance"),
        ([0.02, 0.03], "neither is ahead by more than chance"),
        ([0.02], "neither is ahead by more than chance"),
    ],
)
def test_a_difference_in_words(changes: list[float], verdict: str) -> None:
    cases = tuple(map(str, range(len(changes))))
    control = Scores(cases, ("Liver",), dict.fromkeys(("dsc", "nsd"), np.full((len(changes), 1), 0.8)))
    cps = replace(control, values=dict.fromkeys(("dsc", "nsd"), 0.8 + np.array(changes)[:, None]))
    said = demo.comparison_in_words(control, cps, "at equal compute")
    assert f"n = {len(changes)}: {verdict}." in said
    assert ("interval" in said) == (len(changes) > 1)
    assert f"{np.mean(changes):+.4f}" in said
