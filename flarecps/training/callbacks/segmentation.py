"""``flarecps predict``: the trainer's processes share the scans and write their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps import atomic
from flarecps.inference.segmenter import Segmenter
from flarecps.volumes.io import read_volume, scan_name, write_labels

FOLDER = "segmentations"


class SegmentationWriter(Callback):
    """Writes ``RUN/segmentations/X.nii.gz`` for every scan that ``predict`` is given, on the scan's own grid."""

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER
        self._segmenter: Segmenter | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: Any = pl_module
        self.folder.mkdir(parents=True, exist_ok=True)
        self._segmenter = Segmenter(module.plan, module.finest_networks()[:1], device=module.device)
        if trainer.is_global_zero:
            atomic.write_json(self.folder / "dataset.json", {"labels": module.plan.labels, "file_ending": ".nii.gz"})

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert self._segmenter is not None
        volume = read_volume(outputs)
        result = self.folder / f"{scan_name(outputs).removesuffix('_0000')}.nii.gz"
        write_labels(result, self._segmenter(volume), volume.source)
