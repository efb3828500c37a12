"""Small scans and an untrained model: what the tests of folders and faults share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch

from flarecps.checkpoint import model_entry
from flarecps.networks.unet import PlainUNet
from flarecps.planning.plan import Intensity, Plan, Topology

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def small_plan(spacing_mm: tuple[float, float, float] = (3.0, 3.0, 3.0), **changes: object) -> Plan:
    entries: dict = {
        "dataset": "small",
        "dimensions": 3,
        "labels": LABELS,
        "left_right_pairs": (),
        "channels": ("CT",),
        "spacing_mm": spacing_mm,
        "axis_order": (0, 1, 2),
        "median_shape_voxels": (24, 24, 24),
        "patch_voxels": (16, 16, 16),
        "topology": Topology((4, 8), ((1,) * 3, (2,) * 3), ((3,) * 3,) * 2),
        "global_batch": {"labelled": 2, "unlabelled": 2},
        "batch_dice": False,
        "intensity": Intensity("ct", low=-200, high=200, mean=0, sd=50),
        "fingerprint": {},
        "memory_gb": 1.0,
    }
    return Plan(**(entries | changes))


def write_model(
    path: Path,
    siblings: int = 2,
    plan: Plan | None = None,
    seed: int = 5,
    build: Callable[[int, int], torch.nn.Module] | None = None,
) -> Path:
    """A checkpoint as training writes it, of small untrained networks: their labels are noise, the same every time."""
    plan = plan or small_plan()
    torch.manual_seed(seed)
    shape = plan.topology.features, plan.topology.strides, plan.topology.kernels
    build = build or (lambda channels, classes: PlainUNet(channels, classes, *shape))
    networks = torch.nn.ModuleList(build(1, plan.class_count) for _ in range(siblings))
    for network in networks:
        for name, weight in network.named_parameters():
            if "bias" not in name:
                weight.data *= 3  # labels that change from place to place
    state = {f"siblings.{key}": value for key, value in networks.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "flarecps": model_entry(plan, networks, 1)}, path)
    return path


def write_scan(path: Path, seed: int = 0, edge: int = 24, spacing_mm: float = 3.0) -> Path:
    """A cube of smooth noise, int16."""
    noise = np.random.default_rng(seed).normal(size=(edge, edge, edge))
    for axis in range(3):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, 2, axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.round(noise / noise.std() * 60).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-spacing_mm, -spacing_mm, spacing_mm, 1.0])), path)
    return path
