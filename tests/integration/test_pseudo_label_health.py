"""A class that dies in the pseudo-labels is seen, holds λ if it is to, and lets it go when it is back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from tiny_training import batches, tiny_plan, trained

from flarecps import metric_names
from flarecps.losses import LinearRamp
from flarecps.methods import CrossPseudoSupervision
from flarecps.training.health import PseudoLabelHealth, pseudo_label_counts
from flarecps.training.module import SegmentationModule

GONE = (1, 2)  # epochs in which sibling 2 finds no spleen
SPLEEN = 2


class Blind(CrossPseudoSupervision):
    """Whose sibling 2 calls nothing spleen in some epochs of two steps."""

    steps = 0

    def outputs(self, *arguments: Any, **settings: Any) -> list[list[torch.Tensor]]:
        found = super().outputs(*arguments, **settings)
        epoch, self.steps = self.steps // 2, self.steps + 1
        if epoch in GONE:
            offset = torch.zeros(1, 3, 1, 1, dtype=found[1][0].dtype)
            offset[:, SPLEEN] = -1e3
            found[1] = [scale + offset for scale in found[1]]
        return found


def rows(folder: Path) -> list[dict[str, float]]:
    import csv

    with (folder / "csv" / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("on_collapse", "steps_of_lambda"),
    [("warn", [0, 1, 2, 3, 4, 5]), ("hold", [0, 1, 1, 1, 2, 3])],
)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_vanished_class_is_noticed_and_holds_lambda(
    on_collapse: Any, steps_of_lambda: list[int], ranks: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = SegmentationModule(
        tiny_plan(2),
        Blind(ramp=LinearRamp(final=0.5, length=10)),
        optimizer=lambda p: torch.optim.SGD(p, lr=1e-6),
        on_collapse=on_collapse,
    )
    with caplog.at_level(logging.WARNING, logger="flarecps.training"):
        logger = CSVLogger(tmp_path, name=None, version="csv")
        trained(module, batches(2), tmp_path, epochs=6, ranks=ranks, logger=logger, log_every_n_steps=1)
    table = rows(tmp_path)
    assert [row[metric_names.LAMBDA] for row in table] == pytest.approx([0.05 * step for step in steps_of_lambda])
    assert metric_names.HEALTH_VANISHED not in table[0], "λ was 0: no unlabelled patch was computed"
    assert [row[metric_names.HEALTH_VANISHED] for row in table[1:]] == [1, 1, 0, 0, 0]
    held = {"warn": [0] * 5, "hold": [1, 2, 2, 2, 2]}[on_collapse]
    assert [row[metric_names.HEALTH_HELD] for row in table[1:]] == held
    ratios = [row[metric_names.health_volume(2, "spleen")] for row in table[1:]]
    assert ratios[:2] == [0, 0]
    assert min(ratios[2:]) > 0.1
    assert min(row[metric_names.health_volume(1, "spleen")] for row in table[1:]) > 0.1
    if ranks == 1:  # another process's log is its own
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == 1, "said once, not in every epoch"
        assert "epoch 1: pseudo-labels of unlabelled patches hold (almost) no spleen" in messages[0]
        assert ("λ is held until they recover" in messages[0]) == (on_collapse == "hold")


@pytest.mark.parametrize("shape", [(2, 4, 6, 5, 7), (3, 4, 9, 8)])
def test_health_is_what_counting_voxels_gives(shape: tuple[int, ...]) -> None:
    """Two batches against numpy, over a class that neither predicts (3) and one that only sibling 1 predicts (2)."""
    generator = torch.Generator().manual_seed(0)
    health = PseudoLabelHealth(4)
    seen = []
    for _ in range(2):
        logits = [torch.randn(shape, generator=generator) for _ in range(2)]
        for one in logits:
            one[:, 3] -= 100
        logits[1][:, 2] -= 100
        counts = pseudo_label_counts(logits)
        assert counts is not None
        health.update(counts)
        seen.append(logits)
    found = {name: value.numpy() for name, value in health.compute().items()}
    labels = [np.concatenate([batch[i].numpy().argmax(1).ravel() for batch in seen]) for i in range(2)]
    for label in range(4):
        masks = [one == label for one in labels]
        np.testing.assert_allclose(found["shares"][:, label], [mask.mean() for mask in masks])
        size = masks[0].sum() + masks[1].sum()
        dice = 2 * (masks[0] & masks[1]).sum() / size if size else np.nan
        np.testing.assert_allclose(found["agreement"][label], dice)
    thin = (slice(None), slice(None), *[slice(None, None, 2)] * (len(shape) - 2))
    entropies: list[list[float]] = [[] for _ in range(4)]
    for batch in seen:
        for one in batch:
            flat = np.moveaxis(one[thin].double().numpy(), 1, -1).reshape(-1, 4)
            p = np.exp(flat) / np.exp(flat).sum(1, keepdims=True)
            entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(1) / np.log(4)
            for label, value in zip(flat.argmax(1), entropy, strict=True):
                entropies[label].append(value)
    wanted = [np.mean(values) if values else np.nan for values in entropies]
    np.testing.assert_allclose(found["entropy"], wanted, rtol=1e-5)
