"""The planner's estimate of a step's memory, against all tensors of such steps counted, and what cards showed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from gpu_scripts import script

from flarecps.methods import CrossPseudoSupervision, Losses
from flarecps.networks import blocks
from flarecps.planning.memory import Learners, MemoryModel, parameter_count

PAIR, IN_TURN, ALONE = Learners(), Learners(in_turn=True), Learners(1)
PAPER = (112, 160, 128)


@pytest.mark.parametrize(
    ("patch", "stages", "batch", "widths", "learners", "half"),
    [
        ((32, 48, 32), 3, 2, (16, 32, 64), PAIR, True),
        ((32, 48, 32), 3, 2, (16, 32, 64), IN_TURN, False),
        ((96, 128), 4, 5, (32, 64, 128, 256), IN_TURN, True),
        ((96, 128), 4, 5, (32, 64, 128, 256), ALONE, True),
        ((28, 40, 32), 3, 3, (8, 12, 24), PAIR, True),  # fewer features than classes
    ],
)
def test_the_rule_is_near_what_is_counted(patch, stages, batch, widths, learners, half, monkeypatch) -> None:
    step = script("memory", monkeypatch).Step("", patch, stages, batch, learners, half, widths=widths)
    assert step.ruled_gb() == pytest.approx(step.counted_gb(), rel=0.08)


def test_counting_gives_what_cards_showed_of_the_step_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """19.6 GB: the allocator's peak on an H100 under Lightning, and on an H200 in a bare loop, in bf16.

    Then a step kept its logits, and activations in place of a view copied gradients; since then it takes less.
    """
    memory = script("memory", monkeypatch)
    (paper,) = (step for step in memory.STEPS if step.name == "the paper's")
    kept: list[Losses] = []
    of_method = CrossPseudoSupervision.step

    def keeping(*given: Any) -> Losses:
        kept.clear()
        kept.append(of_method(*given))
        return kept[0]

    monkeypatch.setattr(blocks, "_unviewed", lambda y: y)
    monkeypatch.setattr(CrossPseudoSupervision, "step", keeping)
    counted_gb = paper.counted_gb()
    assert counted_gb == pytest.approx(memory.FIRST_CARD["counted_gb"], rel=0.001)
    assert counted_gb == pytest.approx(memory.FIRST_CARD["measured_gb"], rel=0.01)
    assert paper.ruled_gb() < 0.94 * counted_gb


def test_one_after_the_other_the_papers_siblings_fit_11_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    (_, in_turn, *_) = script("memory", monkeypatch).STEPS
    assert in_turn.learners == IN_TURN
    assert in_turn.patch == PAPER
    assert in_turn.ruled_gb() < 11


def test_a_residual_encoder_takes_more_by_its_feature_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    step = script("memory", monkeypatch).Step("", (32, 48, 32), 3, 2, half=False, widths=(16, 32, 64))
    residual = replace(step, network="ResidualEncoderUNet")
    assert residual.ruled_gb() == pytest.approx(residual.counted_gb(), rel=0.06)
    assert residual.counted_gb() > 1.1 * step.counted_gb()


def test_parameters_are_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    step = script("memory", monkeypatch).Step("", (32, 32, 16), 4, widths=(8, 16, 32, 40))
    matrices = sum(weights.numel() for weights in step.built().parameters() if weights.ndim > 1)
    assert parameter_count(step.topology, 14) == matrices


def test_what_is_said_to_fit_a_card_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = script("memory", monkeypatch)
    topology = memory.Step("", PAPER).topology
    for card in (8, 24, 80):
        for learners in (PAIR, IN_TURN):
            found = memory.fitting(card, learners)
            model = MemoryModel(found["plan_gpu_memory"], 3, 14, learners)
            whole = int(found["patches"])
            assert not whole or model.step_gb(PAPER, topology, whole) <= found["most_gb"] < card * 1.0737
            assert model.step_gb(PAPER, topology, whole + 1) > found["most_gb"]
            assert model.elements / 520_522_240 * 2 == pytest.approx(found["patches"])
