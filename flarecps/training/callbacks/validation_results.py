"""What validation leaves behind: of whole scans a table of the DSC of every case and organ, and pictures of a few cases
through time; of patches each sibling's loss and DSC after every epoch, for the price of a few steps.

The table is written at every validation. What is larger is made at about ``MOST`` of them, its milestones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import Metric

from flarecps import atomic, metric_names
from flarecps.anatomy import organs_of
from flarecps.case_names import file_name
from flarecps.dice import dice_coefficient
from flarecps.losses import class_sums
from flarecps.losses.class_sums import joined_classes
from flarecps.losses.dice import SMOOTH
from flarecps.planning.plan import Plan
from flarecps.planning.spacing import in_canonical_order
from flarecps.text_files import csv_text
from flarecps.training.dashboards.wandb_run import WandbDashboard
from flarecps.training.module import segmentation_module
from flarecps.training.ranks import gather_from_ranks
from flarecps.training.side_files import side_file

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
        with side_file(self.path):
            atomic.write_text(self.path, csv_text([header, *rows]))
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
            with side_file(self.folder):
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
        path = self.folder / file_name(case) / f"epoch_{epoch:04d}.jpg"
        with side_file(self.folder):
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


# -- patches


class PatchScores(Metric):
    """Loss and DSC of every sibling over all patches since the last reset, as if they were one batch.

    Sums are kept, so the result does not depend on how many ranks share the patches, or how unequally. Where a class is
    not annotated it is background's in the loss, and its voxels count for no DSC.
    """

    full_state_update = False
    entropy: Tensor  # (siblings,) Σ −log p
    voxels: Tensor
    soft: Tensor  # (siblings, 2, classes): overlap, and predicted + present, of probabilities
    hard: Tensor  # the same of labels
    annotated: Tensor  # (classes,) patches in which a class is

    def __init__(self, labels: dict[str, int], classes: int, siblings: int) -> None:
        super().__init__()
        self.organs = organs_of(labels)
        self.classes = classes
        shapes = {"entropy": (siblings,), "voxels": (), "annotated": (classes,)}
        shapes |= dict.fromkeys(("soft", "hard"), (siblings, 2, classes))
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    @torch.no_grad()
    def update(self, logits: Iterable[Tensor], labels: Tensor, annotated: Tensor) -> None:
        """Count a patch (or several): each sibling's logits (B, C, *patch), labels (B, *patch), annotated (B, C)."""
        joined = None if bool(annotated.all()) else joined_classes(annotated)
        counted = annotated.double()
        for row, one in enumerate(logits):
            sums = class_sums(one, labels, joined)
            self.entropy[row] += sums.entropy.sum()
            self.soft[row] += torch.stack([sums.overlap * counted, (sums.predicted + sums.present) * counted]).sum(1)
            for patch, truth, known in zip(one.argmax(1), labels.long(), counted, strict=True):
                found = torch.bincount(patch.flatten(), minlength=self.classes)
                there = torch.bincount(truth.flatten(), minlength=self.classes)
                both = torch.bincount(truth[patch == truth], minlength=self.classes)
                self.hard[row] += torch.stack([both, found + there]) * known
        self.voxels += labels.numel()
        self.annotated += annotated.sum(0)

    def compute(self) -> dict[str, float]:
        """Loss, DSC by organ and their mean, by logged name; an organ that is nowhere is left out."""
        known = self.annotated > 0
        known[0] = False
        named: dict[str, float] = {}
        for row in range(len(self.entropy)):
            overlap, volume = self.soft[row][:, known]
            dice = dice_coefficient(overlap, volume, SMOOTH).mean() if known.any() else torch.zeros(())
            named[metric_names.patch_loss(row + 1)] = float(self.entropy[row] / self.voxels - dice)
            dsc = {
                organ.name: float(dice_coefficient(*self.hard[row, :, organ.id]))
                for organ in self.organs
                if self.hard[row, 1, organ.id] > 0
            }
            named |= {metric_names.patch_dsc(row + 1, name): value for name, value in dsc.items()}
            if dsc:
                named[metric_names.patch_dsc_mean(row + 1)] = sum(dsc.values()) / len(dsc)
        return named


class PatchValidation(Callback):
    """Logs each sibling's loss and DSC on the data's validation patches, which every epoch sees alike."""

    def __init__(self) -> None:
        self._scores: PatchScores | None = None

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module = segmentation_module(pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it when there is one
        if not data.validation_names or not data.validation_patches:
            return
        if self._scores is None:
            self._scores = PatchScores(module.plan.labels, module.plan.class_count, len(module.inference_networks))
        scores = self._scores.to(module.device)
        training = module.training
        networks = module.finest_networks()  # in evaluation mode
        with trainer.precision_plugin.forward_context():
            for patch in data.read_validation_patches():
                image, labels, annotated = (patch[name].to(module.device) for name in ("image", "labels", "annotated"))
                scores.update([network(image) for network in networks], labels[:, 0], annotated)
        module.train(training)
        module.log_dict(scores.compute())  # equal on all ranks
        scores.reset()
