"""What a method promises the module that trains with it, and the words of configs from before there were methods."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mean_teacher import MeanTeacher
from tiny_training import EDGE, batches, crossed, module_of, tiny_plan

from flarecps.cli.former_keys import current_words
from flarecps.errors import ConfigError
from flarecps.losses import DiceCrossEntropy, LinearRamp, dice_cross_entropy, downsampled_labels, scale_weights
from flarecps.method_config import CROSS_PSEUDO, SUPERVISED, method_name, method_of, with_method
from flarecps.methods import CrossPseudoSupervision, Supervised
from flarecps.planning.memory import Learners, MemoryModel
from flarecps.training.module import SegmentationModule


def test_a_loss_that_is_handed_in_stays_as_it_is() -> None:
    """Its batch_dice is open; two plans that decide differently each find it so."""
    loss = DiceCrossEntropy()
    for batch_dice in (True, False):
        module = SegmentationModule(tiny_plan(2, batch_dice), CrossPseudoSupervision(loss, pseudo_label_loss=loss))
        assert module.method.loss.loss.batch_dice is batch_dice
        assert module.method.pseudo_label_loss.loss.batch_dice is batch_dice
        assert loss.batch_dice is None
    decided = DiceCrossEntropy(batch_dice=False)
    assert SegmentationModule(tiny_plan(2), Supervised(decided)).method.loss.loss is decided


def entropy(logits: torch.Tensor, labels: torch.Tensor, annotated: Any = None, trusted: Any = None) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, labels.long())


def test_pseudo_labels_may_have_a_loss_of_their_own() -> None:
    """Lsup is Dice + cross-entropy, Lcps cross-entropy alone, against both written out."""
    (batch,) = batches(3, count=1)
    method = crossed(pseudo_label_loss=entropy)
    module = module_of(3, method=method).double()
    found = method.step(module.siblings, batch, epoch=0)
    images = torch.cat([batch["labelled"]["image"], batch["unlabelled"]["image"]])
    outputs = [sibling(images) for sibling in module.siblings]
    truth = batch["labelled"]["labels"][:, 0]
    for me, other in ((0, 1), (1, 0)):
        lsup, lcps = 0.0, 0.0
        for weight, mine, theirs in zip(scale_weights(len(outputs[0])), outputs[me], outputs[other], strict=True):
            lsup += weight * dice_cross_entropy(mine[:2], downsampled_labels(truth, mine.shape[2:])).item()
            for part in (slice(0, 2), slice(2, 4)):
                lcps += weight * entropy(mine[part], theirs[part].argmax(1)).item()
        assert found.supervised[me].item() == pytest.approx(lsup, abs=1e-6)
        assert found.unsupervised[me].item() == pytest.approx(lcps, abs=1e-6)
    total = sum(loss.item() for loss in found.supervised) + method.weight(0) * sum(map(float, found.unsupervised))
    assert found.total.item() == pytest.approx(total)
    assert [len(one) for one in found.unlabelled] == [2, 2]


@pytest.mark.parametrize("method", [Supervised(), CrossPseudoSupervision(ramp=LinearRamp(final=0.0))])
def test_without_lambda_no_unlabelled_patch_is_computed(method: Any) -> None:
    (batch,) = batches(2, count=1)
    batch["unlabelled"]["image"] *= torch.nan
    module = module_of(2, method=method).double()
    losses = method.step(module.siblings, batch, epoch=0)
    assert losses.total.isfinite()
    assert all(len(one) == 0 for one in losses.unlabelled)
    assert [float(loss) for loss in losses.unsupervised] == [0.0] * method.sibling_count


def test_the_memory_of_a_step_is_what_the_method_declares() -> None:
    """In networks' worth, and of the patches that it reads."""
    plan = tiny_plan(3)
    for method, learners, patches in (
        (Supervised(), Learners(1), 2),
        (CrossPseudoSupervision(), Learners(), 4),
        (MeanTeacher(), Learners(1, beside=0.2), 4),
    ):
        planned = SegmentationModule({**plan, "patch_voxels": [64] * 3}, method).plan
        memory = MemoryModel(0.0, 3, 3, learners, streams=1)
        assert planned.memory_gb == round(memory.step_gb((64,) * 3, planned.topology, patches), 2)
        assert planned.memory_gb > 0
    assert EDGE == 8


def test_a_missing_stream_is_named() -> None:
    (batch,) = batches(2, count=1)
    with pytest.raises(ConfigError, match="reads unlabelled patches"):
        module_of(2).training_step({"labelled": batch["labelled"]}, 0)


def test_a_network_for_inference_that_no_checkpoint_would_hold_is_refused() -> None:
    class Foreign(Supervised):
        def inference_networks(self, siblings: Any) -> list[Any]:
            return [copy.deepcopy(siblings[0])]

    with pytest.raises(ConfigError, match=r"Foreign\.inference_networks"):
        module_of(2, method=Foreign())


# -- configs and command lines from before there were methods

LOSS = {"class_path": "flarecps.losses.DiceCrossEntropy", "init_args": {"batch_dice": True}}
RAMP = {"final": 0.5, "length": 3, "start": 1}
FORMER = {"clip_norm": 12.0, "loss": LOSS, "ramp": RAMP, "cross_pseudo_supervision": True}


def test_former_keys_become_the_method() -> None:
    found = with_method(FORMER)
    assert found == {
        "clip_norm": 12.0,
        "method": {"class_path": CROSS_PSEUDO, "init_args": {"loss": LOSS, "ramp": RAMP}},
    }
    control = with_method(FORMER | {"cross_pseudo_supervision": False})
    assert control["method"] == {"class_path": SUPERVISED, "init_args": {"loss": LOSS}}
    assert with_method(found) == found


def test_a_run_tells_its_method_whichever_program_wrote_its_config() -> None:
    old = {"model": {**FORMER, "one_mean": False, "cps_on_labelled": True, "pseudo_labels": None}}
    arguments = {"loss": LOSS, "ramp": RAMP, "one_mean": False, "cps_on_labelled": True, "pseudo_labels": None}
    new = {"model": {"method": {"class_path": CROSS_PSEUDO, "init_args": {**arguments, "pseudo_label_loss": None}}}}
    assert method_of(old) == method_of(new)
    assert method_name(old) == method_name(new) == "cross-pseudo supervision, two siblings"
    assert method_name({"model": {"method": {"class_path": "mean_teacher.MeanTeacher"}}}) == "MeanTeacher"
    assert method_of({}) is method_of({"model": {"clip_norm": 1.0}}) is None
    assert method_name({"trainer": {}}) == ""


def written(folder: Path, model: dict[str, Any]) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"max_epochs": 4}, "data": {"store": "${a.b}"}, "model": model}))
    return str(path)


def test_a_former_config_is_handed_on_as_text_and_words_are_renamed(tmp_path: Path) -> None:
    path = written(tmp_path, FORMER)
    words, said = current_words(
        ["fit", "--config", path, "--data.workers", "2", "--model.ramp.start", "0", "--dry-run",
         "--model.loss.init_args.batch_dice=false"]
    )  # fmt: skip
    assert words[0] == "fit"
    assert yaml.safe_load(words[1].removeprefix("--config=")) == {
        "trainer": {"max_epochs": 4}, "data": {"store": "${a.b}"}, "model": with_method(FORMER),
    }  # fmt: skip
    assert words[2:] == [
        "--data.workers", "2", "--model.method.init_args.ramp.start=0", "--dry-run",
        "--model.method.init_args.loss.init_args.batch_dice=false",
    ]  # fmt: skip
    assert len(said) == 3
    assert all(path in one or "--model." in one for one in said)
    assert yaml.safe_load(Path(path).read_text())["model"] == FORMER, "the file stays as it is"


@pytest.mark.parametrize("last", ["config", "word"])
def test_of_two_places_that_name_the_method_the_last_counts(last: str, tmp_path: Path) -> None:
    """The supervised control has no ramp, and is not given one."""
    words = ["fit", "--config", written(tmp_path, FORMER | {"cross_pseudo_supervision": last == "word"})]
    words += ["--model.ramp.start", "0"]
    if last == "word":
        words += ["--model.cross_pseudo_supervision", "false"]
    found, said = current_words(words)
    assert f"--model.ramp.start has no effect with {SUPERVISED} and is left out; drop it" in said
    method = yaml.safe_load(found[1].removeprefix("--config="))["model"]["method"]
    assert method == {"class_path": SUPERVISED, "init_args": {"loss": LOSS}}
    assert not any("ramp" in word for word in found)


def test_words_without_former_keys_stay_bit_by_bit(tmp_path: Path) -> None:
    path = written(tmp_path, with_method(FORMER))
    words = [
        "fit",
        "--config",
        path,
        "-c",
        "absent.yaml",
        "--model.method.init_args.ramp.start",
        "0",
        "--model.clip_norm=1",
    ]
    assert current_words(words) == (words, [])
