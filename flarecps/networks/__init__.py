"""The networks: pure tensors in, logits out; no paths, millimetres or training loop."""

from flarecps.networks.execution import compile_in_place, lay_out
from flarecps.networks.initialisation import he_normal_
from flarecps.networks.nnunet_names import nnunet_v2_names
from flarecps.networks.residual import ResidualEncoderUNet
from flarecps.networks.unet import PlainUNet

NETWORKS = {network.__name__: network for network in (PlainUNet, ResidualEncoderUNet)}  # what a checkpoint may name

__all__ = [
    "NETWORKS",
    "PlainUNet",
    "ResidualEncoderUNet",
    "compile_in_place",
    "he_normal_",
    "lay_out",
    "nnunet_v2_names",
]
