"""Methods, losses and ramps of a user's own, and configs of earlier runs, through the real command line."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mean_teacher import MeanTeacher, TrustedClasses
from runs import assert_identical, assert_same_training, table
from stores import CONFIGS, TinyStores, fit, fit_words
from tiny_training import CLIP, DECAY, LAMBDA, LR, MOMENTUM, batches, module_of, tiny_plan, trained

from flarecps.checkpoint import load_plain, read_checkpoint
from flarecps.cli.main import main
from flarecps.losses import LinearRamp
from flarecps.training.module import SegmentationModule

TEACHER = {"class_path": "mean_teacher.MeanTeacher", "init_args": {"noise": 0.2, "loss": "mean_teacher.Squared"}}
SMALL = ["--data.global_batch", "{labelled: 2, unlabelled: 2}"]


def config(folder: Path, name: str, method: dict[str, Any]) -> Path:
    """A config of ours with another method, by its class's path."""
    content = yaml.safe_load((CONFIGS / name).read_text())
    content["model"]["method"] = method
    path = folder / name
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_teacher_is_the_average_of_what_its_pupil_was(tmp_path: Path) -> None:
    """Over four steps, from the pupil's weights after each."""
    method = MeanTeacher(decay=0.7, ramp=LinearRamp(final=0.5, length=0))
    module = module_of(3, method=method).double()
    seen = [copy.deepcopy(module.siblings[0])]
    after_step = method.after_step

    def remember(siblings: Any) -> None:
        after_step(siblings)
        seen.append(copy.deepcopy(siblings[0]))

    method.after_step = remember  # type: ignore[method-assign]
    trained(module, batches(3, count=4), tmp_path)
    assert len(seen) == 5
    for number, teacher in enumerate(method.teacher.parameters()):
        past = [list(pupil.parameters())[number] for pupil in seen]
        expected = past[0]
        for weights in past[1:]:
            expected = 0.7 * expected + 0.3 * weights
        torch.testing.assert_close(teacher, expected, rtol=1e-10, atol=1e-12)
        assert not teacher.requires_grad


DECAY_OF_TEACHER, NOISE = 0.7, 0.2


def losses_by_formula(
    pupil: torch.nn.Module, teacher: torch.nn.Module, batch: dict[str, Any], number: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lsup and the distance to the teacher in the ``number``-th step, of three scales of 8, 4 and 2 voxels.

    Lsup = ⅔ L(8) + ⅓ L(4), L = cross-entropy − mean soft Dice of the two structures over the batch; the distance is
    the mean over voxels and classes of the squared difference of the probabilities.
    """
    labelled, unlabelled = batch["labelled"]["image"], batch["unlabelled"]["image"]
    clean = torch.cat([labelled, unlabelled])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float32)
    logits = pupil(clean + NOISE * noise.double())
    labels = batch["labelled"]["labels"][:, 0].long()
    supervised = torch.zeros((), dtype=torch.float64)
    for weight, scale, target in ((2 / 3, logits[0], labels), (1 / 3, logits[1], labels[:, 1::2, 1::2, 1::2])):
        exponentials = scale[:2].exp()
        p = exponentials / exponentials.sum(1, keepdim=True)
        entropy, dice = torch.zeros_like(target, dtype=torch.float64), []
        for label in range(3):
            y = (target == label).double()
            entropy = entropy - y * p[:, label].log()
            dice.append((2 * (p[:, label] * y).sum() + 1e-5) / (p[:, label].sum() + y.sum() + 1e-5))
        supervised = supervised + weight * (entropy.mean() - (dice[1] + dice[2]) / 2)
    ours, theirs = logits[0][2:].exp(), teacher(unlabelled)[0].detach().exp()
    difference = ours / ours.sum(1, keepdim=True) - theirs / theirs.sum(1, keepdim=True)
    return supervised, (difference**2).sum() / difference.numel()


def test_a_step_is_the_formula() -> None:
    """In float64, with a teacher that is not the pupil."""
    (batch,) = batches(3, count=1)
    method = MeanTeacher(decay=DECAY_OF_TEACHER, noise=NOISE, ramp=LinearRamp(final=LAMBDA, length=0))
    module = module_of(3, method=method).double()
    with torch.no_grad():
        for weights in method.teacher.parameters():
            weights.add_(0.1 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(3)))
    found = method.step(module.siblings, batch, epoch=0)
    supervised, distance = losses_by_formula(module.siblings[0], method.teacher, batch, 0)
    assert distance > 1e-4
    assert found.supervised[0].item() == pytest.approx(supervised.item(), rel=1e-10)
    assert found.unsupervised[0].item() == pytest.approx(distance.item(), rel=1e-10)
    assert found.total.item() == pytest.approx((supervised + LAMBDA * distance).item(), rel=1e-10)


def test_pupil_and_teacher_after_two_steps_are_the_formula(tmp_path: Path) -> None:
    """Clipping, decay, Nesterov's momentum and the EMA by hand: the teacher is d² w₀ + d(1 − d) w₁ + (1 − d) w₂."""
    data = batches(3, count=2)
    method = MeanTeacher(decay=DECAY_OF_TEACHER, noise=NOISE, ramp=LinearRamp(final=LAMBDA, length=0))
    module = module_of(3, method=method).double()
    pupil, teacher = (copy.deepcopy(module.siblings[0]) for _ in range(2))
    parameters = list(pupil.parameters())
    weights = [[one.detach().clone() for one in parameters]]
    velocity = [torch.zeros_like(one) for one in parameters]
    for number, batch in enumerate(data):
        supervised, distance = losses_by_formula(pupil, teacher, batch, number)
        gradients = torch.autograd.grad(supervised + LAMBDA * distance, parameters, allow_unused=True)
        given = [torch.zeros_like(w) if g is None else g for w, g in zip(parameters, gradients, strict=True)]
        norm = torch.cat([one.flatten() for one in given]).norm()
        assert norm > CLIP, "the gradient is clipped"
        for place, (one, gradient) in enumerate(zip(parameters, given, strict=True)):
            slope = gradient * CLIP / (norm + 1e-6) + DECAY * one.detach()
            velocity[place] = MOMENTUM * velocity[place] + slope
            one.data -= LR * (slope + MOMENTUM * velocity[place])
        weights.append([one.detach().clone() for one in parameters])
        for mine, theirs in zip(teacher.parameters(), parameters, strict=True):
            mine.data = DECAY_OF_TEACHER * mine.data + (1 - DECAY_OF_TEACHER) * theirs.data
    trained(module, data, tmp_path)
    d = DECAY_OF_TEACHER
    for place, (mine, theirs) in enumerate(
        zip(module.siblings[0].parameters(), method.teacher.parameters(), strict=True)
    ):
        first, second, third = (one[place] for one in weights)
        torch.testing.assert_close(mine.detach(), third, rtol=1e-9, atol=1e-12)
        expected = d**2 * first + d * (1 - d) * second + (1 - d) * third
        torch.testing.assert_close(theirs, expected, rtol=1e-9, atol=1e-12)


def test_two_ranks_have_the_teacher_of_one(tmp_path: Path) -> None:
    """Noise is off, since each rank would draw its own."""
    data = batches(2, count=3, patches=4)
    one, several = (
        SegmentationModule(tiny_plan(2), MeanTeacher(noise=0.0, ramp=LinearRamp(length=0))).double() for _ in range(2)
    )
    trained(one, data, tmp_path)
    trained(several, data, tmp_path, ranks=2)
    for ours, theirs in zip(several.method.parameters(), one.method.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_a_users_method_trains_resumes_bit_for_bit_and_segments_with_its_teacher(
    tiny_stores: TinyStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config(tmp_path, "phantom_3d.yaml", TEACHER)
    through = fit(path, tiny_stores, tmp_path / "through", *SMALL, epochs=4)
    halves = fit(path, tiny_stores, tmp_path / "halves", *SMALL, epochs=2)
    fit(path, tiny_stores, halves, *SMALL, "--ckpt_path", "last", epochs=4)
    assert_same_training(halves, through)
    last = halves / "checkpoints" / "last.ckpt"
    content = load_plain(last)
    assert content["state_dict"]["method._extra_state"] == 8
    assert content["flarecps"]["inference_networks"] == ["method.teacher."]
    (network,) = read_checkpoint(last).siblings
    state = {name: content["state_dict"][f"method.teacher.{name}"] for name in network.network.state_dict()}
    assert_identical(dict(network.network.state_dict()), state, "the teacher")
    pupil = content["state_dict"]["siblings.0.heads.0.weight"]
    assert not torch.equal(pupil, content["state_dict"]["method.teacher.heads.0.weight"])
    assert (
        main(["segment", str(last), str(tiny_stores.dataset / "imagesTs"), str(tmp_path / "out"), "--device", "cpu"])
        == 0
    )
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2
    assert main([*fit_words(path, tiny_stores, tmp_path / "dry", *SMALL, "--dry-run", epochs=4)]) == 0


def test_another_methods_state_is_refused(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit(config(tmp_path, "phantom_3d.yaml", TEACHER), tiny_stores, tmp_path / "run", *SMALL, epochs=1)
    words = fit_words("phantom_3d_supervised.yaml", tiny_stores, run, *SMALL, "--ckpt_path", "last", epochs=2)
    assert main(words) == 2
    assert "state of another method than Supervised" in capsys.readouterr().err.splitlines()[-1]


FILTER = "mean_teacher.TrustedClasses"
FROM_THE_FIRST_STEP = ["--model.method.init_args.ramp", "{final: 0.5, length: 0, start: 0}"]


def test_a_filter_of_a_users_own_decides_what_pseudo_labels_teach(
    tiny_stores: TinyStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All classes trusted are as none filtered; half of them teach something else, and none of them nothing."""
    asked: list[list[tuple[int, ...]]] = []
    trusted = TrustedClasses.trusted

    def noted(self: TrustedClasses, teacher: Any, teacher_labels: Any, student_labels: Any) -> list[torch.Tensor]:
        assert [one.shape for one in teacher_labels] == [one.shape for one in student_labels]
        assert [one.shape for one in teacher_labels] == [(len(one), *one.shape[2:]) for one in teacher]
        asked.append([tuple(one.shape) for one in teacher_labels])
        return trusted(self, teacher, teacher_labels, student_labels)

    monkeypatch.setattr(TrustedClasses, "trusted", noted)
    small = [*SMALL, *FROM_THE_FIRST_STEP, "--model.topology.features", "[4, 8, 8, 8]"]
    runs = {"null": fit("phantom_3d.yaml", tiny_stores, tmp_path / "null", *small)}
    assert not asked
    for name, labels in {"all": list(range(14)), "half": list(range(7)), "none": []}.items():
        runs[name] = fit("phantom_3d.yaml", tiny_stores, tmp_path / name, *small, *trusting(labels))
        assert len(asked) == 2 * 2 * 2, "epochs × steps × siblings"
        assert asked.pop()[:2] == [(4, 16, 16, 16), (4, 8, 8, 8)]
        asked.clear()
    content = {name: load_plain(run / "checkpoints" / "last.ckpt") for name, run in runs.items()}
    weights = {name: torch.cat([one.flatten() for one in siblings(held)]) for name, held in content.items()}
    torch.testing.assert_close(weights["all"], weights["null"], rtol=1e-4, atol=1e-5)
    assert (weights["half"] - weights["null"]).abs().max() > 1e-3
    crossed = {name: [float(row["train/loss_cps/sibling_1"]) for row in table(run)] for name, run in runs.items()}
    assert crossed["none"] == [0.0, 0.0]
    assert crossed["all"] == pytest.approx(crossed["null"], rel=1e-5)
    assert crossed["half"][0] != pytest.approx(crossed["null"][0], rel=2e-3)

    # a checkpoint holds nothing of the filter and needs none to segment; its training is resumed by its config
    last = runs["half"] / "checkpoints" / "last.ckpt"
    assert content["half"]["state_dict"].keys() == content["null"]["state_dict"].keys()
    assert b"mean_teacher" not in last.read_bytes()
    words = ["segment", last, tiny_stores.dataset / "imagesTs", tmp_path / "out", "--device", "cpu"]
    assert main([str(word) for word in words]) == 0
    saved = yaml.safe_load((runs["half"] / "config.yaml").read_text())["model"]["method"]["init_args"]
    assert saved["pseudo_labels"] == {"class_path": FILTER, "init_args": {"labels": list(range(7))}}
    words = ["fit", "--config", runs["half"] / "config.yaml", "--trainer.max_epochs", 3, "--ckpt_path", "last"]
    assert main([str(word) for word in words]) == 0
    half = trusting(list(range(7)))
    assert_same_training(
        runs["half"], fit("phantom_3d.yaml", tiny_stores, tmp_path / "through", *small, *half, epochs=3)
    )


def trusting(labels: list[int]) -> list[str]:
    """Options of ``fit`` for the filter of these labels."""
    return [
        "--model.method.init_args.pseudo_labels",
        json.dumps({"class_path": FILTER, "init_args": {"labels": labels}}),
    ]


def siblings(content: dict[str, Any]) -> list[torch.Tensor]:
    """The weights of a checkpoint's siblings."""
    return [value for name, value in content["state_dict"].items() if name.startswith("siblings.")]


def test_losses_and_ramps_of_a_users_own(tiny_stores: TinyStores, tmp_path: Path) -> None:
    """By class_path, from a module on PYTHONPATH, in a process of its own."""
    import subprocess
    import sys

    (tmp_path / "my_lab.py").write_text((Path(__file__).parent.parent / "mean_teacher.py").read_text())
    method = {
        "class_path": "flarecps.methods.CrossPseudoSupervision",
        "init_args": {
            "ramp": {"class_path": "my_lab.Steps", "init_args": {"top": 0.25}},
            "pseudo_label_loss": {"class_path": "my_lab.Squared", "init_args": {"power": 1.5}},
        },
    }
    path = config(tmp_path, "phantom_3d.yaml", method)
    words = fit_words(path, tiny_stores, tmp_path / "run", *SMALL)
    search = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "flarecps", *words],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["method"]["init_args"]
    assert saved["ramp"]["class_path"] == "my_lab.Steps"
    assert saved["pseudo_label_loss"] == {"class_path": "my_lab.Squared", "init_args": {"power": 1.5}}
    rows = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/lambda")
    assert [row.split(",")[column] for row in rows[1:] if row.split(",")[column]] == ["0.0", "0.25"]


def estimate(shown: str) -> float:
    """GB of a step, of what ``fit --dry-run`` or ``summary`` printed."""
    (row,) = (line for line in shown.splitlines() if "memory of a step, estimated" in line)
    return float(row.replace("│", " ").replace("GB", "").split()[-1])


def test_a_network_more_takes_its_memory(
    tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``extra_networks`` declares it; in the dry run, and in the summary of the config and of its checkpoint."""
    monkeypatch.setenv("COLUMNS", "200")
    found: dict[str, list[float]] = {}
    for name in ("flarecps.methods.Supervised", "mean_teacher.WithAnotherNetwork"):
        path = config(tmp_path, "phantom_3d_supervised.yaml", {"class_path": name})
        settings = yaml.safe_load(path.read_text())
        settings["data"] |= {"store": str(tiny_stores.three), "patch_voxels": [16, 32, 32]}
        settings["data"] |= {"global_batch": {"labelled": 8}}
        path.write_text(yaml.safe_dump(settings))
        words = fit_words(path, tiny_stores, tmp_path / name, "--data.patch_voxels", "[16,32,32]")
        run = fit(path, tiny_stores, tmp_path / name, "--data.patch_voxels", "[16,32,32]", epochs=1)
        capsys.readouterr()
        found[name] = []
        for each in (
            [*words, "--dry-run"],
            ["summary", "--config", str(path)],
            ["summary", str(run / "checkpoints" / "last.ckpt")],
        ):
            assert main(each) == 0
            found[name].append(estimate(capsys.readouterr().out))
        assert found[name] == [found[name][0]] * 3
    control, more = found.values()
    assert control[0] > 0.04
    assert 1.3 * control[0] < more[0] < 2 * control[0]  # what a loss is differentiated by is there once


@pytest.mark.parametrize("name", ["phantom_3d.yaml", "phantom_3d_supervised.yaml"])
def test_a_config_with_former_keys_is_the_same_training(
    name: str, tiny_stores: TinyStores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An earlier run's config.yaml and options give the same weights, and are told in one line what to write now."""
    content = yaml.safe_load((CONFIGS / name).read_text())
    method = content["model"].pop("method")
    crossed = not name.endswith("_supervised.yaml")
    ramp = {"final": 0.5, "length": 2, "start": 5}
    content["model"] |= {**method["init_args"], "ramp": ramp, "cross_pseudo_supervision": crossed, "one_mean": False}
    path = tmp_path / name
    path.write_text(yaml.safe_dump(content))
    old = fit(path, tiny_stores, tmp_path / "old", *SMALL, "--model.ramp.start", 0, "--model.pseudo_labels", "null")
    told = [line for line in capsys.readouterr().err.splitlines() if "model.method" in line]
    assert len(told) == 1
    assert str(path) in told[0]
    new_words = ["--model.method.init_args.ramp", "{length: 2, start: 0}"] if crossed else []
    new = fit(CONFIGS / name, tiny_stores, tmp_path / "new", *SMALL, *new_words)
    assert "model.method" not in capsys.readouterr().err
    ours, theirs = (load_plain(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (old, new))
    assert_identical(ours, theirs, "state_dict")
    assert "method" in yaml.safe_load((old / "config.yaml").read_text())["model"]
