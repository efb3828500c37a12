"""What a training is where nobody said: the rules of docs/training.md, one by one."""

from __future__ import annotations

from typing import Any

import pytest

from flarecps.method_config import CROSS_PSEUDO, DICE_CROSS_ENTROPY, SUPERVISED
from flarecps.training.defaults import Machine, default_settings, epochs_of, in_words

SMOOTH = {"pseudo_label_loss": {"class_path": DICE_CROSS_ENTROPY, "init_args": {"smooth": 100}}}
CPU, CARD, OLD_CARD = Machine(2, False, False), Machine(32, True, True), Machine(8, True, False)


def found(given: dict[str, Any], machine: Machine = CPU, unlabelled: int = 3, config: bool = False) -> dict[str, Any]:
    return default_settings({"data.store": "stores/abdomen", **given}, config, unlabelled, machine)


def test_a_store_is_enough_on_a_cpu() -> None:
    assert found({}) == {
        "trainer.default_root_dir": "runs/abdomen",
        "trainer.precision": "32-true",
        "trainer.devices": 1,
        "trainer.max_epochs": 100,
        "data.workers": 0,
        "data.iterations_per_epoch": 50,
        "model.method": {"class_path": CROSS_PSEUDO, "init_args": {**SMOOTH, "ramp": {"start": 33, "length": 33}}},
        "model.scheduler": {
            "class_path": "torch.optim.lr_scheduler.PolynomialLR",
            "init_args": {"total_iters": 100, "power": 0.9},
        },
    }


def test_on_a_gpu_it_is_the_papers_length_ramp_and_plateau() -> None:
    settings = found({}, CARD)
    assert (settings["trainer.max_epochs"], settings["data.iterations_per_epoch"]) == (1000, 250)
    assert settings["model.method"] == {"class_path": CROSS_PSEUDO, "init_args": SMOOTH}
    assert "model.scheduler" not in settings
    assert (settings["trainer.precision"], settings["data.workers"]) == ("bf16-mixed", 12)
    older = found({}, OLD_CARD)
    assert (older["trainer.precision"], older["data.workers"]) == ("32-true", 8), "no more workers than cores"


@pytest.mark.parametrize(
    ("given", "unlabelled", "class_path"),
    [
        ({}, 1, CROSS_PSEUDO),
        ({}, 0, SUPERVISED),
        ({"data.unlabelled": "false"}, 1, SUPERVISED),
        ({"data.unlabelled": False}, 1, SUPERVISED),
        ({"data.unlabelled": True}, 1, CROSS_PSEUDO),
    ],
)
def test_the_method_depends_on_the_split(given: dict[str, Any], unlabelled: int, class_path: str) -> None:
    for config in (False, True):
        settings = found(given, unlabelled=unlabelled, config=config)
        assert settings["model.method"]["class_path"] == class_path
        assert (
            settings.get("data.unlabelled", given.get("data.unlabelled", True)) != (class_path == SUPERVISED) or given
        )


def test_a_ramp_is_never_a_jump() -> None:
    """A length of 0 would be the full λ at once."""
    for epochs in (1, 2, 3):
        ramp = found({"trainer.max_epochs": epochs})["model.method"]["init_args"]["ramp"]
        assert ramp == {"start": 1, "length": 1}


def test_a_method_that_is_named_stays() -> None:
    for given in ({"model.method": "Supervised"}, {"model.method": {"class_path": SUPERVISED}}):
        settings = found(given)
        assert "model.method" not in settings
        assert settings["data.unlabelled"] is False, "nobody reads them"
    assert "data.unlabelled" not in found({"model.method": "my_lab.MeanTeacher"}, unlabelled=0)


@pytest.mark.parametrize("name", ["loss", "loss.init_args.batch_dice", "pseudo_label_loss"])
def test_beside_a_loss_lcps_is_its_own_or_the_papers(name: str) -> None:
    method = found({f"model.method.init_args.{name}": "x"})["model.method"]
    assert method == {"class_path": CROSS_PSEUDO, "init_args": {"ramp": {"start": 33, "length": 33}}}


def test_beside_a_config_how_to_learn_is_the_configs() -> None:
    settings = found({"trainer.max_epochs": 40}, config=True)
    assert set(settings) == {"trainer.default_root_dir", "trainer.precision", "data.workers", "model.method"}
    assert settings["model.method"] == {"class_path": CROSS_PSEUDO}


def test_what_is_given_is_never_decided() -> None:
    everything = found({})
    assert found(dict.fromkeys(everything, "x") | {"trainer.max_epochs": "7"}) == {}
    assert "trainer.precision" not in found({"trainer.precision": None}), "null is an answer, too: Lightning's own"


@pytest.mark.parametrize(
    ("given", "epochs"),
    [
        ({"trainer.max_epochs": "30"}, 30),
        ({"trainer.max_epochs": -1}, None),
        ({"trainer.max_steps": "100", "data.iterations_per_epoch": 20}, 3),
        ({"trainer.max_epochs": -1, "trainer.max_steps": 81, "data.iterations_per_epoch": 20}, 3),
        ({"trainer.max_steps": -1}, None),
        ({}, None),
    ],
)
def test_epochs_of_what_is_given(given: dict[str, Any], epochs: int | None) -> None:
    """Two optimisers share Lightning's max_steps."""
    assert epochs_of(given, siblings=2) == epochs


def test_an_end_by_steps_or_time_needs_no_epochs() -> None:
    for unit, value in (("steps", "400"), ("time", "00:01:00:00")):
        assert "trainer.max_epochs" not in found({f"trainer.max_{unit}": value})
    assert found({"trainer.max_steps": "400"})["model.scheduler"]["init_args"]["total_iters"] == 4  # of 50 steps each
    assert "model.scheduler" not in found({"trainer.max_time": "00:01:00:00"})


def test_it_is_said_in_words() -> None:
    settings = found({})
    assert in_words(settings, {"data.store": "s"}, 3, CPU) == [
        "method CrossPseudoSupervision (3 unlabelled cases)",
        "train its control, too (--model.method Supervised): as many hours of it may do better",
        "100 epochs of 50 steps (--trainer.max_epochs N changes it)",
        "the plan's network is slow without a GPU: see --dry-run; --config cpu_3d trains a small one",
        "precision 32-true, workers 0 (2 cores, no GPU)",
        "run folder runs/abdomen",
    ]
    assert in_words({}, {}, 3, CPU) == []
