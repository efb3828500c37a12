"""CT values as whole Hounsfield units in 16 bits: the same rule for fingerprint, store and inference."""

from __future__ import annotations

import numpy as np

from flarecps.typing import HuArray, ScanArray

FILL_HU = -1024  # air's end of the scale; scanners write -2000, -3024, ... outside their field of view
INT16_MAX = 32767


def to_hu(image: ScanArray) -> HuArray:
    """``image`` (any shape) rounded to whole HU as int16: fill below -1024 becomes -1024, the top is clamped.

    >>> to_hu(np.array([-3024.0, 39.6, 1e6])).tolist()
    [-1024, 40, 32767]
    """
    if not np.issubdtype(image.dtype, np.integer):
        return np.clip(np.rint(image), FILL_HU, INT16_MAX).astype(np.int16)
    bounds = np.iinfo(image.dtype)  # NumPy refuses limits that the type can't hold
    return np.clip(image, max(FILL_HU, int(bounds.min)), min(INT16_MAX, int(bounds.max))).astype(np.int16, copy=False)
