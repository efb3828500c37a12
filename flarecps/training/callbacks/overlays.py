"""What the siblings make of a few validation cases, as pictures through time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps import metric_names
from flarecps.anatomy import organs_of
from flarecps.planning.plan import Plan
from flarecps.planning.spacing import in_canonical_order
from flarecps.training.callbacks.milestones import at_milestone
from flarecps.training.dashboards.wandb_run import WandbDashboard
from flarecps.training.module import segmentation_module

FOLDER = "overlays"
DOTS_PER_INCH = 80


class ValidationOverlays(Callback):
    """Writes ``RUN/overlays/CASE/epoch_0012.jpg`` at about 20 validations, and shows them on the dashboard.

    The cases are the first ``cases`` that rank 0 validates, always the same; their labels are those that were just
    scored, so nothing is computed twice. The slices are chosen by the reference, so they stay the same as well.
    """

    def __init__(self, run: Path, cases: int, dashboard: WandbDashboard | None = None) -> None:
        self.folder = run / FOLDER
        self.cases = cases
        self.dashboard = dashboard

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A training that starts anew in this folder leaves no picture of the older one."""
        if trainer.is_global_zero and trainer.ckpt_path is None:
            for old in self.folder.glob("*/epoch_*.jpg"):
                old.unlink()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        wanted = trainer.is_global_zero and batch_idx < self.cases and not trainer.sanity_checking
        if not wanted or outputs is None or not at_milestone(trainer):
            return
        from flarecps.reporting.pictures import write_jpeg  # draws: only where pictures are wanted

        module = segmentation_module(pl_module)
        epoch, case = trainer.current_epoch + 1, str(batch["case"])
        path = self.folder / case / f"epoch_{epoch:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jpeg(path, case_figure(batch, outputs, module.plan), DOTS_PER_INCH)
        if self.dashboard is not None:
            self.dashboard.add_picture(epoch, metric_names.overlay(case), path, f"{case}, after epoch {epoch}")


def case_figure(case: dict[str, Any], outputs: dict[str, Any], plan: Plan) -> Any:
    """The overlay figure of a case on the network's grid: scan, reference and each sibling, with their mean DSC.

    ``case``: from ``ScanDataModule.read_whole_case``; ``outputs``: from the module's ``validation_step``.
    """
    from flarecps.reporting.overlays import ABDOMINAL_WINDOW_HU, overlay_figure, window_of

    canonical = [plan.axis_order.index(axis) for axis in range(3)]

    def array(tensor: Any) -> np.ndarray:
        return tensor.detach().cpu().numpy().transpose(canonical)

    image = array(case["image"][0].float())
    window = window_of(image)
    if plan.intensity.scheme == "ct":
        image, window = image * plan.intensity.sd + plan.intensity.mean, ABDOMINAL_WINDOW_HU
    sources = [source for source in outputs["predicted"] if source != "average"]
    called = (
        {source: source.replace("_", " ") for source in sources} if len(sources) > 1 else {sources[0]: "prediction"}
    )
    shown = {name: array(outputs["predicted"][source]) for source, name in called.items()}
    dsc = {
        name: _mean([value for (of, _), value in outputs["dsc"].items() if of == source])
        for source, name in called.items()
    }
    spacing = in_canonical_order(tuple(case["spacing_mm"]), plan.axis_order)
    organs = organs_of(plan.labels)
    reference = array(case["labels"])
    return overlay_figure(image, reference, shown, spacing, organs, window_hu=window, mean_dsc=dsc, steady=True)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
