"""The losses: pure tensor arithmetic; no paths, millimetres or training loop."""

from flarecps.losses.cross_pseudo import cross_pseudo_losses
from flarecps.losses.deep_supervision import DeepSupervision, downsampled_labels, scale_weights
from flarecps.losses.dice import DiceCrossEntropy, dice_cross_entropy, soft_dice
from flarecps.losses.ramps import LinearRamp

__all__ = [
    "DeepSupervision",
    "DiceCrossEntropy",
    "LinearRamp",
    "cross_pseudo_losses",
    "dice_cross_entropy",
    "downsampled_labels",
    "scale_weights",
    "soft_dice",
]
