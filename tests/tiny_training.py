"""A training of a few steps on random patches, in this process or on two: what tests of the training step share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

from flarecps.losses import LinearRamp
from flarecps.methods import CrossPseudoSupervision
from flarecps.planning.plan import Intensity, Plan, Topology, plan_to_json
from flarecps.training.module import SegmentationModule

Batch = dict[str, dict[str, Any]]
EDGE = 8  # voxels
LAMBDA = 0.3
LR, MOMENTUM, DECAY, CLIP = 0.05, 0.9, 1e-3, 0.5
KNOWN = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)  # annotated classes of patches


def tiny_plan(dimensions: int, batch_dice: bool = True) -> dict[str, Any]:
    """A plan for patches of 8 voxels an axis, a network with three decoder levels, and two structures."""
    ones, twos, threes = (1,) * dimensions, (2,) * dimensions, (3,) * dimensions
    shares = {"liver": 0.3, "spleen": 0.3}
    return plan_to_json(
        Plan(
            dataset="tiny",
            dimensions=dimensions,
            labels={"background": 0, "liver": 1, "spleen": 2},
            left_right_pairs=(),
            channels=("CT",),
            spacing_mm=(1.0, 1.0, 1.0),
            axis_order=(0, 1, 2),
            median_shape_voxels=(EDGE, EDGE, EDGE),
            patch_voxels=(EDGE,) * dimensions,
            topology=Topology((3, 4, 5, 6), (ones, twos, twos, ones), (threes,) * 4),
            global_batch={"labelled": 2, "unlabelled": 2},
            batch_dice=batch_dice,
            intensity=Intensity("ct", -100, 100, 0, 50, "global"),
            fingerprint={"structures": {name: {"share_of_labelled_voxels": share} for name, share in shares.items()}},
            memory_gb=0.0,
        )
    )


def module_of(dimensions: int, batch_dice: bool = True, **settings: Any) -> SegmentationModule:
    """A module whose optimiser, method and clipping are this file's, unless given."""
    given: dict[str, Any] = {
        "method": crossed(),
        "optimizer": lambda p: torch.optim.SGD(p, lr=LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY),
        "clip_norm": CLIP,
    }
    return SegmentationModule(tiny_plan(dimensions, batch_dice), **(given | settings))


def crossed(**settings: Any) -> CrossPseudoSupervision:
    """Cross pseudo supervision from the first step on, with this file's λ."""
    return CrossPseudoSupervision(**({"ramp": LinearRamp(final=LAMBDA, length=0)} | settings))


def batches(dimensions: int, count: int = 2, patches: int = 2, partial: bool = False) -> list[Batch]:
    """``count`` batches of so many labelled and unlabelled patches of noise, always the same, with their addresses.

    With ``partial`` some classes are not annotated (``KNOWN``), in every other patch, and do not occur there.
    """
    generator = torch.Generator().manual_seed(7)
    shape = (patches, 1) + (EDGE,) * dimensions
    found = []
    for number in range(count):
        batch: Batch = {}
        for stream in ("labelled", "unlabelled"):
            index = torch.arange(patches) + patches * number
            batch[stream] = {
                "image": torch.randn(shape, generator=generator, dtype=torch.float64),
                "case": [f"{stream}_{one}" for one in index.tolist()],
                "index": index,
                "location": index[:, None].repeat(1, 3),
            }
        labels = torch.randint(0, 3, shape, generator=generator).to(torch.uint8)
        known = (
            KNOWN[(torch.arange(patches) + patches * number) % len(KNOWN)] if partial else torch.ones(patches, 3) > 0
        )
        for one, row in zip(labels, known, strict=True):
            one[~row[one.long()]] = 0
        batch["labelled"] |= {"labels": labels, "annotated": known}
        found.append(batch)
    return found


class TinyData(LightningDataModule):
    """Batches as they are; of several ranks each takes every so-manyth patch."""

    def __init__(self, data: list[Batch]) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> CombinedLoader:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        loaders = {
            stream: DataLoader(
                [{name: value[rank::ranks] for name, value in batch[stream].items()} for batch in self.data],
                batch_size=None,
            )
            for stream in self.data[0]
        }
        return CombinedLoader(loaders, "min_size")


def trained(
    module: SegmentationModule, data: list[Batch], folder: Path, epochs: int = 1, ranks: int = 1, **settings: Any
) -> Trainer:
    """The trainer after ``epochs`` of all batches, on ``ranks`` forked processes; the module has the weights."""
    several = {"strategy": "ddp_fork", "devices": ranks} if ranks > 1 else {}
    given: dict[str, Any] = {
        "max_epochs": epochs,
        "precision": "64-true",
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": folder,
        **several,
        **settings,
    }
    trainer = Trainer(**given)
    trainer.fit(module, TinyData(data))
    return trainer
