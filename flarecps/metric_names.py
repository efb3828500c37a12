"""How logged quantities are called: the module writes these names, reports and dashboards read them."""

from __future__ import annotations

LOSS_TOTAL = "train/loss"
LAMBDA = "train/lambda"
PATCHES_PER_SECOND = "throughput/patches_per_s"
DATA_WAIT = "throughput/data_wait_share"
DSC_MEAN = "validation/dsc/mean"  # of the average of the siblings, over cases, then organs


def supervised_loss(sibling: int) -> str:
    """Lsup of one sibling (1 or 2), mean over an epoch."""
    return f"train/loss_sup/sibling_{sibling}"


def cross_pseudo_loss(sibling: int) -> str:
    """Lcps of one sibling (1 or 2), before λ, mean over an epoch."""
    return f"train/loss_cps/sibling_{sibling}"


def learning_rate(sibling: int) -> str:
    """Learning rate of one sibling's optimiser."""
    return f"train/learning_rate/sibling_{sibling}"


def dsc_mean(stage: str = "validation") -> str:
    """Mean DSC over organs; ``stage`` is ``validation`` or ``test``."""
    return f"{stage}/dsc/mean"


def dsc(source: str, organ: str, stage: str = "validation") -> str:
    """DSC of an organ; ``source`` is ``sibling_1``, ``sibling_2`` or ``average``."""
    return f"{stage}/dsc/{source}/{organ.replace(' ', '_')}"
