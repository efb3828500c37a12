"""The step's memory-bound parts as single operations, and the road by which each is computed.

``using`` says for a stretch of the program which road the networks' norms and the losses take:

* ``plain``: PyTorch's own operations, as everywhere outside of ``using``; the reference.
* ``composite``: norm and activation as one autograd function of PyTorch's operations, which ``torch.compile`` fuses and
  which keeps channels innermost in memory.
* ``triton``: kernels written by hand, for tensors with channels innermost; inside of ``torch.compile`` the composite.

Whatever a road does not cover (double precision, another layout, more than 256 classes) is computed by the plain one.
"""

from flarecps.kernels.norm import instance_norm_leaky_relu
from flarecps.kernels.roads import Kernels, Road, chosen_road, current_road, no_triton, triton_takes, using

__all__ = [
    "Kernels",
    "Road",
    "chosen_road",
    "current_road",
    "instance_norm_leaky_relu",
    "no_triton",
    "triton_takes",
    "using",
]
