"""The Dice coefficient of counts, which losses, scores, health and post-processing share."""

from __future__ import annotations

from typing import Any


def dice_coefficient(shared: Any, total: Any, smooth: float = 0) -> Any:
    """Dice = (2·shared + s) / (total + s), 0 to 1, where ``total`` is |A| + |B| and ``shared`` is |A ∩ B|.

    Counts may be numbers, or arrays or tensors of one shape, whose kind and precision the result keeps (whole numbers
    divide as that library does it). Where both sets are empty and s is 0 the result is NaN; who has another rule for
    that case decides it beside the call. ``smooth`` is s, nnU-Net's 1e-5 in its loss (Isensee et al. 2021), else 0.

    >>> dice_coefficient(2, 8), dice_coefficient(0, 0)
    (0.5, nan)
    """
    if isinstance(total, int | float) and not total + smooth:
        return float("nan")
    return (2 * shared + smooth) / (total + smooth)
