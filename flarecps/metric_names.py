"""How logged quantities are called: the module writes these names, reports and dashboards read them.

What stands before the first slash is a group of charts on a dashboard: losses and λ (``train``), learning rates, DSC of
whole scans (``validation``) and of patches, pseudo-label health, throughput.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

EPOCH, STEPS = "epoch", "steps"  # columns of metrics.csv: completed epochs, and optimiser steps by then
STEP = "step"  # instead of ``steps`` in older tables, whose epochs count from 0
MOST_EPOCHS = 10**9  # a number beyond is none
LOSS_TOTAL = "train/loss"
LAMBDA = "train/lambda"
PATCHES_PER_SECOND = "throughput/patches_per_s"
DATA_WAIT = "throughput/data_wait_share"
GPU_MEMORY = "throughput/gpu_memory_gb"  # the most that tensors took in an epoch, on the fullest GPU
HEALTH_VANISHED = "health/vanished_classes"  # how many of them
HEALTH_HELD = "health/lambda_held_epochs"  # for how many epochs λ was kept from rising
CASES = "results/validation_cases"  # a table: DSC by case and organ
# How metrics of every organ of one sibling begin: a dashboard shows the average's and what both agree on.
DETAILS = ("validation/dsc/sibling_", "validation_patches/dsc/sibling_", "health/volume_ratio/", "health/entropy/")
DSC_MEAN = "validation/dsc/mean"  # of the average of the siblings, over cases, then organs


def completed_epochs(row: Mapping[str, str]) -> int | None:
    """How many epochs were completed when a row of ``metrics.csv``, new or old, was logged; None if it doesn't say.

    >>> completed_epochs({"epoch": "1", "steps": "50"}), completed_epochs({"epoch": "0", "step": "49"})
    (1, 1)
    """
    try:
        epoch = float(row.get(EPOCH) or math.nan)
    except ValueError:
        return None
    return int(epoch) + (STEP in row) if abs(epoch) <= MOST_EPOCHS else None


def supervised_loss(sibling: int) -> str:
    """Lsup of one sibling (1 or 2), mean over an epoch."""
    return f"train/loss_sup/sibling_{sibling}"


def cross_pseudo_loss(sibling: int) -> str:
    """Lcps of one sibling (1 or 2), before λ, mean over an epoch."""
    return f"train/loss_cps/sibling_{sibling}"


def learning_rate(sibling: int) -> str:
    """Learning rate of one sibling's optimiser."""
    return f"learning_rate/sibling_{sibling}"


def dsc_mean(stage: str = "validation") -> str:
    """Mean DSC over organs; ``stage`` is ``validation`` or ``test``."""
    return f"{stage}/dsc/mean"


def dsc(source: str, organ: str, stage: str = "validation") -> str:
    """DSC of an organ; ``source`` is ``sibling_1``, ``sibling_2`` or ``average``."""
    return f"{stage}/dsc/{source}/{organ.replace(' ', '_')}"


def patch_loss(sibling: int) -> str:
    """Loss of one sibling on the validation patches, as if they were one batch."""
    return f"validation_patches/loss/sibling_{sibling}"


def patch_dsc(sibling: int, organ: str) -> str:
    """DSC of an organ over the voxels of all validation patches together."""
    return f"validation_patches/dsc/sibling_{sibling}/{organ.replace(' ', '_')}"


def patch_dsc_mean(sibling: int) -> str:
    """Mean of ``patch_dsc`` over organs."""
    return f"validation_patches/dsc/sibling_{sibling}/mean"


def health_agreement(organ: str) -> str:
    """Dice between the siblings' labels of unlabelled patches."""
    return f"health/agreement/{organ.replace(' ', '_')}"


def health_volume(sibling: int, organ: str) -> str:
    """Share of an organ in one sibling's labels of unlabelled patches, divided by its share in the labelled scans."""
    return f"health/volume_ratio/sibling_{sibling}/{organ.replace(' ', '_')}"


def health_entropy(organ: str) -> str:
    """Mean entropy (0 certain, 1 none the wiser) of unlabelled voxels that a sibling calls this organ."""
    return f"health/entropy/{organ.replace(' ', '_')}"


def overlay(case: str) -> str:
    """The picture of a validation case, with what each sibling makes of it."""
    return f"overlays/{case}"
