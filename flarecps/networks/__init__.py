"""The networks: pure tensors in, logits out; no paths, millimetres or training loop."""

from flarecps.networks.blocks import he_normal_
from flarecps.networks.contract import (
    NETWORKS,
    SegmentationNetwork,
    check_contract,
    class_tensors,
    network_name,
    rebuilt,
)
from flarecps.networks.execution import compile_in_place, keeps_layout, pad_image_channels, set_memory_format
from flarecps.networks.residual import ResidualEncoderUNet
from flarecps.networks.unet import PlainUNet

__all__ = [
    "NETWORKS",
    "PlainUNet",
    "ResidualEncoderUNet",
    "SegmentationNetwork",
    "check_contract",
    "class_tensors",
    "compile_in_place",
    "he_normal_",
    "keeps_layout",
    "network_name",
    "pad_image_channels",
    "rebuilt",
    "set_memory_format",
]
