"""Training from the command line: what a run folder holds, what is refused, and what follows a training."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from stores import TinyStores, fit, fit_words

from flarecps import metric_names
from flarecps.checkpoint import load_plain, read_checkpoint
from flarecps.cli.main import main
from flarecps.planning.plan import read_plan
from flarecps.preprocessing.store import CaseStore

MISTAKE = 2
AT_ONCE = ("--model.method.init_args.ramp", "{start: 0, length: 0}")  # pseudo-labels from the first step on
VALIDATED = ("--data.fold", 0, "--trainer.check_val_every_n_epoch", 1)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "csv" / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors; counters of the training's watchers are no tensors."""
    state = load_plain(run / "checkpoints" / "last.ckpt")["state_dict"]
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


@pytest.fixture(scope="module")
def run(tiny_stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of CPS with a validation case, under the default loggers."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE")
        patch.setenv("WANDB_API_KEY", "")
        return fit("phantom_3d.yaml", tiny_stores, folder, *AT_ONCE, *VALIDATED)


def test_a_run_folder_tells_what_the_run_was(run: Path, tiny_stores: TinyStores) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["store"] == str(tiny_stores.three)
    assert config["trainer"]["max_epochs"] == 2
    plan = read_plan(run / "plan.json")
    assert plan.patch_voxels == (16, 16, 16)
    assert plan.intensity == CaseStore(tiny_stores.three).plan.intensity
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["completed_epochs"] == 2
    assert environment["command"].startswith("flarecps fit --config ")
    assert environment["finished"] >= environment["started"]


def test_one_seed_decides_draws_and_weights_unless_they_have_their_own(tiny_stores: TinyStores, tmp_path: Path) -> None:
    seed, own = ("--seed_everything", 3), ("--data.seed", 0, "--model.initial_seed", 0)
    first, third, mixed = (
        fit("phantom_3d_supervised.yaml", tiny_stores, tmp_path / name, *words)
        for name, words in (("first", ()), ("third", seed), ("mixed", (*seed, *own)))
    )
    configs = [yaml.safe_load((run / "config.yaml").read_text()) for run in (first, third, mixed)]
    assert [(one["data"]["seed"], one["model"]["initial_seed"]) for one in configs] == [(0, 0), (3, 6), (0, 0)]
    losses = [[row[metric_names.LOSS_TOTAL] for row in rows(run)] for run in (first, third, mixed)]
    assert losses[0] == losses[2] != losses[1]
    assert not torch.equal(*(next(iter(weights(run).values())) for run in (first, third)))


def test_metrics_have_the_names_that_reports_read(run: Path) -> None:
    training = [row for row in rows(run) if row[metric_names.LOSS_TOTAL]]
    assert [int(row["epoch"]) for row in training] == [1, 2]
    for row in training:
        supervised = sum(float(row[metric_names.supervised_loss(number)]) for number in (1, 2))
        crossed = sum(float(row[metric_names.cross_pseudo_loss(number)]) for number in (1, 2))
        assert float(row[metric_names.LAMBDA]) == 0.5
        assert float(row[metric_names.LOSS_TOTAL]) == pytest.approx(supervised + 0.5 * crossed, rel=1e-5)
        assert float(row[metric_names.learning_rate(1)]) == float(row[metric_names.learning_rate(2)]) > 0
    validation = [row for row in rows(run) if row[metric_names.DSC_MEAN]]
    assert [int(row["epoch"]) for row in validation] == [1, 2]
    for source in ("sibling_1", "sibling_2", "average"):
        scores = [float(row[metric_names.dsc(source, "liver")]) for row in validation]
        assert all(0 <= score <= 1 for score in scores)


def test_checkpoints_hold_the_last_and_the_best_epoch(run: Path) -> None:
    kept = ["best.ckpt", "last.ckpt", "previous.ckpt"]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == kept
    last, best, previous = (
        read_checkpoint(run / "checkpoints" / f"{name}.ckpt") for name in ("last", "best", "previous")
    )
    assert last.epoch == 2
    assert previous.epoch == 1
    means = [float(row[metric_names.DSC_MEAN]) for row in rows(run) if row[metric_names.DSC_MEAN]]
    assert best.epoch == 1 + int(np.argmax(means))
    siblings = [list(sibling.parameters()) for sibling in last.siblings]
    assert any((a != b).any() for a, b in zip(*siblings, strict=True)), "siblings are drawn independently"


def test_the_default_loggers_need_no_account(run: Path) -> None:
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert list(offline.glob("run-*.wandb"))


def test_a_run_is_not_overwritten_unasked(
    run: Path, tiny_stores: TinyStores, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(fit_words("phantom_3d.yaml", tiny_stores, run)) == MISTAKE
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(run) in error
    assert "--ckpt_path last" in error
    assert "--overwrite true" in error
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_overwriting_leaves_nothing_of_the_older_run(
    tiny_stores: TinyStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No best.ckpt of the older run where the new one has no validation cases, none of its rows, a wandb run anew."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = fit("phantom_2d.yaml", tiny_stores, tmp_path / "run", *VALIDATED)
    older = set((folder / "wandb").glob("offline-run-*"))
    fit("phantom_2d.yaml", tiny_stores, folder, "--overwrite", "true", epochs=1)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]
    assert read_checkpoint(folder / "checkpoints" / "last.ckpt").epoch == 1
    assert [row["epoch"] for row in rows(folder)] == ["1"]
    assert len(set((folder / "wandb").glob("offline-run-*")) - older) == len(older) == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--ckpt_path", "last"], "no such checkpoint"),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["--data.patch_voxels", "[12,16,16]"], "expected axis 0 to be a multiple of 8"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    words: list[str],
    complaint: str,
    tiny_stores: TinyStores,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run", *words)) == MISTAKE
    error = capsys.readouterr().err
    assert complaint in error.splitlines()[-1]
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_patch_and_topology_of_a_config_need_not_fit_the_stores_own(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """A patch that the plan's strides do not divide, with strides that do."""
    strides = CaseStore(tiny_stores.three).plan.topology.total_stride
    assert max(strides) > 2
    topology = "{features: [4, 8], strides: [[1, 1, 1], [2, 2, 2]], kernels: [[3, 3, 3], [3, 3, 3]]}"
    more = ["--data.patch_voxels", "[10,14,14]", "--model.topology", topology]
    run = fit("phantom_3d.yaml", tiny_stores, tmp_path / "run", *more, epochs=1)
    assert read_plan(run / "plan.json").patch_voxels == (10, 14, 14)


# -- after the training


def after(command: str, run: Path, *more: object) -> int:
    """The exit code of validate, test or predict with the run's own config."""
    words = [command, "--config", run / "config.yaml", "--trainer.default_root_dir", run, *more]
    return main([str(word) for word in words])


def test_validate_finds_the_scores_of_the_training(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert after("validate", run, "--ckpt_path", "last") == 0
    shown = capsys.readouterr().out
    assert metric_names.DSC_MEAN in shown
    logged = [row[metric_names.DSC_MEAN] for row in rows(run) if row[metric_names.DSC_MEAN]][-1]
    assert f"{float(logged):.4f}"[:6] in shown


def test_test_scores_the_test_cases(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert after("test", run, "--ckpt_path", run / "checkpoints" / "best.ckpt") == 0
    assert metric_names.dsc_mean("test") in capsys.readouterr().out


def test_predict_writes_labels_on_each_scans_grid(run: Path, tiny_stores: TinyStores) -> None:
    scans = sorted((tiny_stores.dataset / "imagesTs").glob("*.nii.gz"))
    assert after("predict", run, "--ckpt_path", "last", "--data.predict_input", scans[0].parent) == 0
    for path in scans:
        scan = nib.load(path)
        labels = nib.load(run / "segmentations" / path.name.replace("_0000", ""))
        assert labels.shape == scan.shape
        np.testing.assert_allclose(labels.affine, scan.affine, atol=1e-3)
        assert set(np.unique(np.asarray(labels.dataobj))) <= set(range(14))
    described = json.loads((run / "segmentations" / "dataset.json").read_text())
    assert described["labels"]["liver"] == 1


@pytest.mark.parametrize(
    ("command", "words", "complaint"),
    [
        ("validate", [], "needs a checkpoint"),
        ("validate", ["--ckpt_path", "last", "--data.fold", "all"], "no validation cases"),
        ("validate", ["--ckpt_path", "last", "--model.method", "Supervised"], "siblings is 2"),
        ("test", ["--ckpt_path", "last", "--model.topology.features", "[4, 8, 16, 32]"], "network is"),
        ("predict", ["--ckpt_path", "last"], "predict_input"),
        ("predict", ["--ckpt_path", "last", "--data.predict_input", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    command: str, words: list[str], complaint: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert after(command, run, *words) == MISTAKE
    error = capsys.readouterr().err
    assert complaint in error.splitlines()[-1]
    assert "Traceback" not in error


# -- the same training, however it is computed


def test_workers_change_no_bit(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """Four steps with patches read by two processes, and by none."""
    runs = [
        fit("phantom_3d.yaml", tiny_stores, tmp_path / str(workers), *AT_ONCE, "--data.workers", workers)
        for workers in (0, 2)
    ]
    none, two = map(weights, runs)
    assert none.keys() == two.keys()
    assert all(torch.equal(none[name], two[name]) for name in none)


def test_two_processes_train_as_one_does(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """Half of each batch on each of two processes, of which one has no validation case, against all on one.

    In double precision, so that only a wrong sum could tell them apart, and with Dice over the batch, the harder case
    (``test_losses_ranks`` has the others).
    """
    more = [*AT_ONCE, *VALIDATED, "--data.iterations_per_epoch", 3, "--trainer.precision", "64-true"]
    more += ["--model.method.init_args.loss.init_args.batch_dice", "true"]
    more += ["--data.global_batch", "{labelled: 2, unlabelled: 2}"]
    ranks = ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    words = fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "two", *more, *ranks, epochs=1)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "flarecps", *words], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["world_size"] == 2
    one = fit("phantom_3d.yaml", tiny_stores, tmp_path / "one", *more, epochs=1)
    whole, halves = weights(one), weights(tmp_path / "two")
    assert whole.keys() == halves.keys()
    for name, value in whole.items():
        exact = 1e-9 if name.startswith("siblings.") else 1e-5  # means of losses are kept in single precision
        torch.testing.assert_close(halves[name], value, rtol=exact, atol=exact)
    for ours, theirs in zip(rows(tmp_path / "two"), rows(one), strict=True):
        found, expected = (
            {name: float(row[name]) for name in row if row[name] and not name.startswith("throughput/")}
            for row in (ours, theirs)
        )
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert read_checkpoint(tmp_path / "two" / "checkpoints" / "best.ckpt").epoch == 1
