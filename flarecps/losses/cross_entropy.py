"""Cross-entropy where a class may not have been annotated."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def merge_unannotated(
    logits: Float[Tensor, "batch klass *spatial"], annotated: Bool[Tensor, "batch klass"]
) -> Float[Tensor, "batch klass *spatial"]:
    """Logits whose softmax adds the probability of every class that was not annotated to background's.

    softmax(result)₀ = p₀ + Σ p_c over the classes c without annotation, softmax(result)_c = 0 for those, and the others
    keep theirs: where an organ was never looked for, a voxel that is called that organ is not wrong to be unlabelled.
    """
    extra = (1,) * (logits.ndim - 2)
    joined = ~annotated
    joined[:, 0] = True  # background itself takes part
    absent = joined.view(*joined.shape, *extra)
    background = torch.logsumexp(logits.masked_fill(~absent, -torch.inf), dim=1, keepdim=True)
    foreground = logits[:, 1:].masked_fill(absent[:, 1:], -torch.inf)
    return torch.cat([background, foreground], dim=1)
