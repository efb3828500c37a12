"""Large scans and small networks, for what depends on sizes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from flarecps.planning.plan import Intensity, Plan, Topology
from flarecps.typing import SpacingMm, Triple
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

CLASSES = 14
AIR_HU = -1000


def write_scan(path: str | Path, shape: Triple, spacing_mm: SpacingMm, floating: bool = False) -> None:
    """A NIfTI of a body-sized ellipse with blobs and noise in air."""
    rng = np.random.default_rng(0)
    rows, columns = np.ogrid[-1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    body = (rows / 0.7) ** 2 + (columns / 0.85) ** 2 < 1
    voxels = np.full(shape, AIR_HU, np.float32 if floating else np.int16)
    for number, section in enumerate(voxels):
        phase = 2 * np.pi * number / 60
        blobs = 60 * np.sin(9 * rows + phase) * np.cos(7 * columns - phase)
        section[body] = (40 + blobs + rng.normal(0, 15, body.shape))[body]
    write_volume(path, voxels, Space.canonical(shape, spacing_mm))


class Bands(torch.nn.Module):
    """Thirteen bands of smoothed intensity as thirteen structures: segments in smooth regions, as real networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv3d(1, 8, 3, padding=1)
        self.smooth = torch.nn.AvgPool3d(5, stride=1, padding=2)
        self.register_buffer("middles", torch.linspace(-1.2, 1.2, CLASSES - 1).reshape(1, -1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.features(x)  # eight feature maps, as a network's first stage has; their values are not used
        smooth = self.smooth(x)
        structures = 4 - 20 * (smooth - self.middles).abs()
        return torch.cat([torch.zeros_like(smooth), structures], dim=1)


def small_model(spacing_mm: SpacingMm, patch: Triple = (32, 96, 96)) -> tuple[Plan, Bands]:
    """A plan for 14 classes at ``spacing_mm`` and a network of next to no arithmetic."""
    plan = Plan(
        dataset="synthetic",
        dimensions=3,
        labels={"background": 0} | {f"structure {label}": label for label in range(1, CLASSES)},
        left_right_pairs=(),
        channels=("CT",),
        spacing_mm=spacing_mm,
        axis_order=(0, 1, 2),
        median_shape_voxels=(100, 300, 300),
        patch_voxels=patch,
        topology=Topology((8, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3))),
        global_batch={"labelled": 2, "unlabelled": 2},
        batch_dice=True,
        intensity=Intensity("ct", low=-160, high=240, mean=40, sd=60),
        fingerprint={},
        memory_gb=1.0,
    )
    torch.manual_seed(0)
    return plan, Bands().eval()
