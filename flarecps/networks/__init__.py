"""The networks: pure tensors in, logits out; no paths, millimetres or training loop."""

from flarecps.networks.initialisation import he_normal_
from flarecps.networks.unet import PlainUNet

NETWORKS = {network.__name__: network for network in (PlainUNet,)}  # what a checkpoint may name

__all__ = ["NETWORKS", "PlainUNet", "he_normal_"]
