"""What validation leaves behind: a table of the DSC of every case and organ, and pictures of a few cases through time.

The table is written at every validation. What is larger is made at about ``MOST`` of them, its milestones.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps import atomic, metric_names
from flarecps.anatomy import organs_of
from flarecps.planning.plan import Plan
from flarecps.planning.spacing import in_canonical_order
from flarecps.training.dashboards.wandb_run import WandbDashboard
from flarecps.training.module import segmentation_module
from flarecps.training.ranks import gather_from_ranks

TABLE = "validation.csv"
OVERLAYS = "overlays"
DOTS_PER_INCH = 80
MOST = 20  # times in a training, and at its last validation


def is_milestone(epoch: int, epochs: int, every: int = 1) -> bool:
    """Whether the validation after ``epoch`` of ``epochs`` is one of about ``MOST``, with one each ``every`` epochs.

    They lie evenly, at the same epochs however often the training is resumed; the last validation is one of them.

    >>> [epoch for epoch in range(1, 101) if is_milestone(epoch, 100)][:4]
    [5, 10, 15, 20]
    >>> [epoch for epoch in range(3, 10, 3) if is_milestone(epoch, 10, every=3)]
    [3, 6, 9]
    """
    stride = -(-epochs // MOST)
    return epoch // stride > (epoch - every) // stride or epoch + every > epochs


def _at_milestone(trainer: Trainer) -> bool:
    """Whether the present validation of a training is a milestone."""
    every = trainer.check_val_every_n_epoch or 1
    return is_milestone(trainer.current_epoch + 1, trainer.max_epochs or 1, every)


class ValidationTable(Callback):
    """Writes ``RUN/validation.csv`` at every validation, of its cases alone, and shows it at about 20 of them.

    Columns: epoch (completed epochs), case, organ, then the DSC of sibling_1, sibling_2 and average; empty where the
    organ is neither there nor predicted, or nobody drew it.
    """

    def __init__(self, run: Path, dashboard: WandbDashboard | None = None) -> None:
        self.path = run / TABLE
        self.dashboard = dashboard
        self._own: dict[str, dict[tuple[str, str], float]] = {}  # of this process, by case

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._own = {}

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        if outputs is not None:
            self._own[str(batch["case"])] = outputs["dsc"]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        cases: dict[str, dict[tuple[str, str], float]] = {}
        for share in gather_from_ranks(self._own):
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
        if self.dashboard is not None and _at_milestone(trainer):
            self.dashboard.add_table(epoch, metric_names.CASES, header, rows)


class ValidationOverlays(Callback):
    """Writes ``RUN/overlays/CASE/epoch_0012.jpg`` at about 20 validations, and shows them on the dashboard.

    The cases are the first ``cases`` that rank 0 validates, always the same; their labels are those that were just
    scored, so nothing is computed twice. The slices are chosen by the reference, so they stay the same as well.
    """

    def __init__(self, run: Path, cases: int, dashboard: WandbDashboard | None = None) -> None:
        self.folder = run / OVERLAYS
        self.cases = cases
        self.dashboard = dashboard

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that starts anew in this folder leaves no picture of the older one."""
        if trainer.is_global_zero and trainer.ckpt_path is None:
            for old in self.folder.glob("*/epoch_*.jpg"):
                old.unlink()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any, **__: Any
    ) -> None:
        wanted = trainer.is_global_zero and batch_idx < self.cases and not trainer.sanity_checking
        if not wanted or outputs is None or not _at_milestone(trainer):
            return
        from flarecps.reporting.plotting import jpeg_bytes  # draws: only where pictures are wanted

        module = segmentation_module(pl_module)
        epoch, case = trainer.current_epoch + 1, str(batch["case"])
        path = self.folder / case / f"epoch_{epoch:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.atomic_path(path) as partial:
            partial.write_bytes(jpeg_bytes(_case_figure(batch, outputs, module.plan), DOTS_PER_INCH))
        if self.dashboard is not None:
            self.dashboard.add_picture(epoch, metric_names.overlay(case), path, f"{case}, after epoch {epoch}")


def _case_figure(case: dict[str, Any], outputs: dict[str, Any], plan: Plan) -> Any:
    """The overlay figure of a case on the network's grid: scan, reference and each sibling, with their mean DSC.

    ``case``: from ``ScanDataModule.read_whole_case``; ``outputs``: from the module's ``validation_step``.
    """
    from flarecps.reporting.overlays import display_window, overlay_figure

    canonical = [plan.axis_order.index(axis) for axis in range(3)]

    def array(tensor: Any) -> np.ndarray:
        return tensor.detach().cpu().numpy().transpose(canonical)

    image = array(case["image"][0].float())
    is_ct = plan.intensity.scheme == "ct"
    if is_ct:
        image = image * plan.intensity.sd + plan.intensity.mean
    sources = [source for source in outputs["predicted"] if source != "average"]
    names = {source: source.replace("_", " ") if len(sources) > 1 else "prediction" for source in sources}
    predictions = {name: array(outputs["predicted"][source]) for source, name in names.items()}
    scores = {name: [dsc for (of, _), dsc in outputs["dsc"].items() if of == source] for source, name in names.items()}
    return overlay_figure(
        image,
        array(case["labels"]),
        predictions,
        in_canonical_order(tuple(case["spacing_mm"]), plan.axis_order),
        organs_of(plan.labels),
        window_hu=display_window(image, is_ct),
        mean_dsc={name: float(np.mean(values)) if values else float("nan") for name, values in scores.items()},
        steady=True,
    )
