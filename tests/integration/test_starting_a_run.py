"""Starting from another training's weights, and looking before leaping: fit --init and fit --dry-run."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from stores import TinyStores, fit, fit_words
from tiny_training import module_of, tiny_plan

from flarecps.checkpoint import ENTRY, load_plain, model_entry, read_checkpoint
from flarecps.cli.main import main
from flarecps.durations import clock
from flarecps.errors import CheckpointError
from flarecps.methods import Supervised
from flarecps.planning.plan import plan_from_json
from flarecps.training.callbacks.dry_run import TimedStep, seconds_to_the_end
from flarecps.training.checkpoint_files import load_start_weights
from flarecps.training.defaults import DRY_RUN_FILE
from flarecps.training.module import SegmentationModule

SMALL = ["--data.global_batch", "{labelled: 2, unlabelled: 2}"]
STANDING = [*SMALL, "--model.optimizer.init_args.lr", 0]  # weights stay what they were at the start


def saved(module: SegmentationModule, path: Path) -> Path:
    entry = model_entry(module.plan, module.siblings, 1)
    torch.save({ENTRY: entry, "state_dict": module.state_dict()}, path)
    return path


def states(module: SegmentationModule) -> list[dict[str, torch.Tensor]]:
    return [{name: value.clone() for name, value in sibling.state_dict().items()} for sibling in module.siblings]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], without: str = "-") -> bool:
    return all(torch.equal(one[name], other[name]) for name in one if not name.startswith(without))


def test_siblings_start_from_siblings(tmp_path: Path) -> None:
    there, here = module_of(3, initial_seed=10), module_of(3)
    words = load_start_weights(saved(there, tmp_path / "a.ckpt"), here.plan, here.siblings)
    assert all(equal(ours, theirs) for ours, theirs in zip(states(here), states(there), strict=True))
    assert "sibling 1 and sibling 2" in words


def test_a_control_becomes_sibling_1_and_sibling_2_stays_another(tmp_path: Path) -> None:
    there, here = module_of(3, method=Supervised(), initial_seed=10), module_of(3)
    before = states(here)
    words = load_start_weights(saved(there, tmp_path / "a.ckpt"), here.plan, here.siblings)
    first, second = states(here)
    assert equal(first, states(there)[0])
    assert equal(second, before[1])
    assert "sibling 2 starts from random weights" in words
    control = module_of(3, method=Supervised())
    load_start_weights(saved(here, tmp_path / "b.ckpt"), control.plan, control.siblings)
    assert equal(states(control)[0], first)


def test_heads_start_anew_where_labels_differ(tmp_path: Path) -> None:
    plan = tiny_plan(3) | {"labels": {"background": 0, "liver": 1, "spleen": 2, "kidney": 3}}
    there, here = SegmentationModule(plan, initial_seed=10), module_of(3)
    before = states(here)
    words = load_start_weights(saved(there, tmp_path / "a.ckpt"), here.plan, here.siblings)
    for ours, theirs, mine in zip(states(here), states(there), before, strict=True):
        assert equal(ours, theirs, without="heads.")
        heads = [name for name in ours if name.startswith("heads.")]
        assert heads
        assert all(torch.equal(ours[name], mine[name]) for name in heads)
    assert "heads start from random weights" in words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ["CT", "PET"], "intensity": {"scheme": "zscore", "source": "global"}}, "its channels is"),
        ({"topology": None}, "its features is"),
    ],
)
def test_another_architecture_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    plan = tiny_plan(3)
    if "topology" in changes:
        changes = {"topology": plan["topology"] | {"features": [3, 4, 5, 8]}}
    there, here = SegmentationModule(plan | changes), module_of(3)
    before = states(here)
    with pytest.raises(CheckpointError, match=message):
        load_start_weights(saved(there, tmp_path / "a.ckpt"), plan_from_json(tiny_plan(3)), here.siblings)
    assert all(equal(ours, mine) for ours, mine in zip(states(here), before, strict=True))


def test_fit_starts_from_a_checkpoint_and_resumes_its_own(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """With a learning rate of 0 a run ends with the weights it began with: those of the run it was given."""
    first = fit("phantom_3d.yaml", tiny_stores, tmp_path / "first", *SMALL, epochs=1)
    origin = first / "checkpoints" / "last.ckpt"
    second = fit("phantom_3d.yaml", tiny_stores, tmp_path / "second", *STANDING, "--init", origin, epochs=1)
    ours, theirs = (load_plain(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (second, first))
    siblings = [name for name in theirs if name.startswith("siblings.")]
    assert siblings
    assert all(torch.equal(ours[name], theirs[name]) for name in siblings)
    origin.unlink()  # a resumed run has its own weights and does not ask for it
    fit("phantom_3d.yaml", tiny_stores, second, *STANDING, "--init", origin, "--ckpt_path", "last", epochs=2)
    assert read_checkpoint(second / "checkpoints" / "last.ckpt").epoch == 2


def test_a_missing_start_is_said_so(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run", "--init", "nowhere.ckpt")
    assert main(words) == 2
    assert "nowhere.ckpt: no such checkpoint" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("config", ["phantom_3d.yaml", "phantom_3d_supervised.yaml"])
def test_a_dry_run_tells_and_writes_nothing(
    config: str,
    tiny_stores: TinyStores,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(DRY_RUN_FILE, str(tmp_path / "told.json"))
    words = fit_words(config, tiny_stores, tmp_path / "run", *SMALL, "--dry-run", "--data.workers", 2, epochs=40)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert clock(json.loads((tmp_path / "told.json").read_text())["training_s"]) in shown
    assert ("a step with pseudo-labels" in shown) == (config == "phantom_3d.yaml")
    for row in (
        "of which waiting for data",
        "memory of a step, estimated",
        "peak memory of the process",
        f"{4 if config == 'phantom_3d.yaml' else 2} batches ahead, shared memory",
        "40 epochs of 2 steps",
        "nothing was written",
    ):
        assert row in shown
    assert not (tmp_path / "run").exists()


def test_a_dry_run_leaves_an_existing_run_alone(tiny_stores: TinyStores, tmp_path: Path) -> None:
    run = fit("phantom_3d.yaml", tiny_stores, tmp_path / "run", *SMALL, epochs=1)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    assert main(fit_words("phantom_3d.yaml", tiny_stores, run, *SMALL, "--dry-run", "--overwrite", "true")) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_time_to_the_end_counts_epochs_without_pseudo_labels_apart() -> None:
    """4 epochs of 10 steps at 1 s (λ = 0) and 6 at 3 s."""
    steps = [TimedStep(1.0, 2.0, True), TimedStep(0.0, 3.0, True), TimedStep(0.5, 0.5, False)]
    left_s = seconds_to_the_end(steps, lambda epoch: max(0, epoch - 3), epochs=10, iterations=10)
    assert left_s == pytest.approx(4 * 10 * 1 + 6 * 10 * 3)


def test_a_store_is_enough(
    tiny_stores: TinyStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Method, network, patch and batch are the plan's and the split's; what was decided and written is said."""
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--data.store", str(tiny_stores.three), "--trainer.accelerator", "cpu"]
    assert main([*words, "--trainer.max_epochs", "2", "--data.iterations_per_epoch", "2"]) == 0
    said = capfd.readouterr()
    assert [line.removeprefix("flarecps: ").split(" (")[0] for line in said.err.splitlines()] == [
        "method CrossPseudoSupervision",
        "train its control, too",
        "precision 32-true, workers 0",
        "run folder runs/three",
        "2 × PlainUNet, 1.36 M parameters each",
    ]
    lines = said.out.splitlines()
    assert [line.split(" ")[0] for line in lines] == ["epoch", "epoch", "written:", "next:"]
    assert lines[-1] == "next: flarecps segment runs/three/checkpoints/last.ckpt SCANS runs/three/segmentations"
    model = read_checkpoint(Path("runs/three/checkpoints/last.ckpt"))
    assert (len(model.siblings), model.epoch) == (2, 2)
    assert model.plan.patch_voxels == (16, 16, 16)


def test_a_dry_run_without_an_end_says_so(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, row in (
        (["--trainer.max_epochs", "-1"], "not known"),
        (["--trainer.max_epochs", "-1", "--trainer.max_steps", "7"], "3 steps (trainer.max_steps"),
    ):
        words = fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run", *SMALL, "--dry-run", *more)
        assert main(words) == 0
        said = capsys.readouterr()
        assert row in " ".join(said.out.replace("│", " ").split())
        assert "-1" not in said.out


def test_what_a_config_says_instead_of_the_plan_is_told(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topology = "{features: [4, 8], strides: [[1, 1, 1], [2, 2, 2]], kernels: [[3, 3, 3], [3, 3, 3]]}"
    more = [*SMALL, "--data.patch_voxels", "[10,14,14]", "--model.topology", topology, "--dry-run"]
    assert main(fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run", *more)) == 0
    told = capsys.readouterr().err
    assert "patch 10×14×14 instead of the plan's 16×16×16" in told
    assert "network's features 4-8 instead of the plan's" in told
    assert "labelled patches instead" not in told, "the plan's batch is 2 + 2, too"


def test_a_training_says_that_its_scans_have_changed(
    tiny_stores: TinyStores, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = shutil.copytree(tiny_stores.three, tmp_path / "store")
    noted = store / "sources" / "labelled_001.json"
    files = json.loads(noted.read_text())
    corrected = tmp_path / "corrected.nii.gz"
    corrected.write_bytes(Path(files[-1][0]).read_bytes() + b"more")
    files[-1][0] = str(corrected)
    noted.write_text(json.dumps(files))
    with caplog.at_level(logging.WARNING, logger="flarecps.training"):
        fit("phantom_3d.yaml", tiny_stores, tmp_path / "run", "--data.store", store, epochs=1)
    said = [one.getMessage() for one in caplog.records if "changed after they were preprocessed" in one.getMessage()]
    assert len(said) == 1
    assert "labels of 1 case changed after they were preprocessed (labelled_001)" in said[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_case_ends_a_training_in_one_line(
    tiny_stores: TinyStores, tmp_path: Path, capfd: pytest.CaptureFixture[str], workers: int
) -> None:
    store = shutil.copytree(tiny_stores.three, tmp_path / "store")
    image = store / "cases" / "unlabelled_001" / "image.b2nd"
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    words = ["--data.store", store, "--data.workers", workers, "--data.max_unlabelled", 1]
    assert main(fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run", *words)) == 2
    message = capfd.readouterr().err
    assert f"flarecps fit: {image}: missing or damaged" in message
    assert "Traceback" not in message
