"""Probabilities where a class may not have been annotated."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def joined_classes(annotated: Bool[Tensor, "batch klass"]) -> Bool[Tensor, "batch klass"]:
    """The classes whose probability stands for background in each sample: those not annotated, and background."""
    joined = ~annotated
    joined[:, 0] = True
    return joined


def merge_unannotated(
    log_probabilities: Float[Tensor, "batch klass *spatial"], joined: Bool[Tensor, "batch klass"]
) -> Float[Tensor, "batch klass *spatial"]:
    """Log-probabilities after the ``joined`` classes' have become background's.

    exp(result)₀ = p₀ + Σ p_c over the classes c without annotation, exp(result)_c = 0 for those, and the others
    keep theirs: where an organ was never looked for, a voxel that is called that organ is not wrong to be unlabelled.
    """
    absent = joined.view(*joined.shape, *(1,) * (log_probabilities.ndim - 2))
    background = torch.logsumexp(log_probabilities.masked_fill(~absent, -torch.inf), dim=1)
    merged = log_probabilities.masked_fill(absent, -torch.inf)
    merged[:, 0] = background
    return merged
