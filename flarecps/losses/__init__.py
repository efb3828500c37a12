"""The losses: pure tensor arithmetic; no paths, millimetres or training loop."""

from flarecps.losses.class_sums import class_sums
from flarecps.losses.deep_supervision import DeepSupervision, Loss, downsampled_labels, scale_weights
from flarecps.losses.dice import (
    CrossEntropy,
    DiceCrossEntropy,
    WeightedDiceCrossEntropy,
    cross_entropy,
    dice_cross_entropy,
    soft_dice,
)
from flarecps.losses.filters import PatchAgreement, PseudoLabelFilter, VoxelConfidence, label_dice, patch_agreement
from flarecps.losses.ramps import LinearRamp, Ramp

__all__ = [
    "CrossEntropy",
    "DeepSupervision",
    "DiceCrossEntropy",
    "LinearRamp",
    "Loss",
    "PatchAgreement",
    "PseudoLabelFilter",
    "Ramp",
    "VoxelConfidence",
    "WeightedDiceCrossEntropy",
    "class_sums",
    "cross_entropy",
    "dice_cross_entropy",
    "downsampled_labels",
    "label_dice",
    "patch_agreement",
    "scale_weights",
    "soft_dice",
]
