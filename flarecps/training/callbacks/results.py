"""The DSC of every validation case and organ, as a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps import atomic, metric_names
from flarecps.training.callbacks.milestones import at_milestone
from flarecps.training.dashboards.wandb_run import WandbDashboard
from flarecps.training.module import segmentation_module
from flarecps.training.ranks import of_all_ranks

FILE = "validation.csv"


class ValidationTable(Callback):
    """Writes ``RUN/validation.csv`` at every validation, of its cases alone, and shows it at about 20 of them.

    Columns: epoch (completed epochs), case, organ, then the DSC of sibling_1, sibling_2 and average; empty where the
    organ is neither there nor predicted, or nobody drew it.
    """

    def __init__(self, run: Path, dashboard: WandbDashboard | None = None) -> None:
        self.path = run / FILE
        self.dashboard = dashboard
        self._own: dict[str, dict[tuple[str, str], float]] = {}  # of this process, by case

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._own = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is not None:
            self._own[str(batch["case"])] = outputs["dsc"]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        cases: dict[str, dict[tuple[str, str], float]] = {}
        for share in of_all_ranks(self._own):
            cases |= share
        if not trainer.is_global_zero:
            return
        module = segmentation_module(pl_module)
        epoch, sources = trainer.current_epoch + 1, module.organ_scores.sources
        organs = [organ.name for organ in module.organ_scores.organs]
        header = ["epoch", "case", "organ", *sources]
        rows: list[list[Any]] = [
            [epoch, case, organ, *(dsc.get((source, organ)) for source in sources)]
            for case, dsc in sorted(cases.items())
            for organ in organs
        ]
        with atomic.atomic_path(self.path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
        if self.dashboard is not None and at_milestone(trainer):
            self.dashboard.add_table(epoch, metric_names.CASES, header, rows)
