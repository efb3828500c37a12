"""``flarecps predict``: the trainer's processes share the scans and write their labels, as ``segment`` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps.batch_processing import Outcome
from flarecps.errors import ConfigError
from flarecps.inference.folders import (
    OutputOptions,
    SegmentationResult,
    describe_results,
    requests_for,
    segment_requests,
)
from flarecps.inference.segmenter import Segmenter
from flarecps.training.module import segmentation_module

FOLDER = "segmentations"


class SegmentationWriter(Callback):
    """Writes ``RUN/segmentations/X.nii.gz`` for every scan that ``predict`` is given, on the scan's own grid.

    It is ``segment``'s own code with its default settings and sibling 1: the labels are the same. A process takes every
    Nth scan. ``outcomes`` are this process's, ``failed`` counts those of all.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self.outcomes: list[Outcome[SegmentationResult]] = []
        self.failed = 0
        self._running: Iterator[Outcome[SegmentationResult]] = iter(())

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = segmentation_module(pl_module)
        data = trainer.datamodule  # type: ignore[attr-defined]  # set by the command line
        requests = requests_for(Path(data.predict_input), self.folder, len(module.plan.channels))
        wrong: ConfigError | None = None
        if trainer.is_global_zero:
            try:
                describe_results(self.folder, module.plan, overwrite=False)
            except ConfigError as error:
                wrong = error
        if trainer.strategy.reduce(torch.tensor(int(wrong is not None), device=module.device), reduce_op="sum"):
            raise wrong or ConfigError(f"{self.folder}: can't be written; the first process says why")
        segmenter = Segmenter(module.plan, module.finest_networks()[:1], device=module.device)
        own = requests[trainer.global_rank :: trainer.world_size]
        self._running = segment_requests(segmenter, own, OutputOptions())

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """One more scan is done; the loader's share is as long as this process's, or longer with several channels."""
        self.outcomes += [outcome for outcome in [next(self._running, None)] if outcome is not None]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.outcomes += list(self._running)
        own = torch.tensor(sum(outcome.failed for outcome in self.outcomes), device=pl_module.device)
        self.failed = int(trainer.strategy.reduce(own, reduce_op="sum"))
