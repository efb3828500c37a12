"""Inference on a real card: the CPU's labels, half sums, and budgets that the driver confirms. Skipped without one."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import small_plan, write_model

from flarecps.inference.device_export import device_labels
from flarecps.inference.export import scan_labels
from flarecps.inference.resources.budget import Budget
from flarecps.inference.segmenter import Segmenter
from flarecps.preprocessing.case import GridMapping
from flarecps.volumes.io import Volume, read_volume, write_volume
from flarecps.volumes.space import Space

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA card on this machine"),
]
MB = 2**20
PATCH = (64, 96, 96)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    """Smooth blobs, 90×160×150 at 1.5×1.1×1.1 mm."""
    axes = np.meshgrid(*(np.linspace(0, 6, edge) for edge in (90, 160, 150)), indexing="ij")
    voxels = (150 * np.sin(axes[0]) * np.cos(axes[1]) * np.sin(axes[2] + 1)).astype(np.int16)
    write_volume(tmp_path / "scan.nii.gz", voxels, Space.canonical(voxels.shape, (1.5, 1.1, 1.1)))
    return read_volume(tmp_path / "scan.nii.gz")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.ckpt", plan=small_plan((2.0, 1.5, 1.5), patch_voxels=PATCH))


def scores_of(shape: tuple[int, int, int], classes: int = 14) -> torch.Tensor:
    noise = torch.randn(classes, *(edge // 4 + 1 for edge in shape), generator=torch.Generator().manual_seed(0))
    return (6 * torch.nn.functional.interpolate(noise[None], shape, mode="trilinear")[0]).softmax(0)


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_the_way_back_on_the_card_is_the_cpus(kind: torch.dtype) -> None:
    network, scan = (40, 90, 110), (101, 170, 240)
    way = GridMapping(scan, (1.0,) * 3, (1, 2, 3), (100, 168, 236), (0, 1, 2), network, (1.0,) * 3)
    scores = scores_of(network).to(kind)
    expected = scan_labels([scores], way)
    for _ in range(3):  # planes that land late, or memory that is used again too soon, would show
        slabs = (part.cuda() for part in scores.split(7, dim=1))
        found = device_labels(slabs, way, torch.device("cuda", torch.cuda.current_device()))
        assert np.count_nonzero(found != expected) <= 1e-5 * expected.size


def test_probabilities_are_the_cpus_to_half_precision(checkpoint: Path, volume: Volume) -> None:
    found, _ = Segmenter.load(checkpoint, device="cuda").probabilities(volume)
    expected, _ = Segmenter.load(checkpoint, device="cpu").probabilities(volume)
    assert (found - expected).abs().max() < 0.03
    assert (found - expected).abs().mean() < 1e-3


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:0"])
@pytest.mark.parametrize("mirror_axes", [(), "all"])
def test_a_limit_holds_as_the_driver_counts_and_is_lifted(
    checkpoint: Path, volume: Volume, name: str, mirror_axes: tuple[int, ...] | str
) -> None:
    pynvml = pytest.importorskip("pynvml", reason="the driver's count needs nvidia-ml-py")
    pynvml.nvmlInit()
    card = pynvml.nvmlDeviceGetHandleByIndex(0)
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.002):
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
            mine = [one.usedGpuMemory or 0 for one in running if one.pid == os.getpid()]
            peak = max(peak, *mine, 0)

    unlimited = Segmenter.load(checkpoint, device="cuda", mirror_axes=mirror_axes)(volume)
    limit = Budget(vram_bytes=2048 * MB)
    segmenter = Segmenter.load(checkpoint, device=name, mirror_axes=mirror_axes, budget=limit)
    torch.cuda.empty_cache()
    watching = threading.Thread(target=watch)
    watching.start()
    try:
        found = segmenter(volume)
    finally:
        over.set()
        watching.join()
    assert np.count_nonzero(found != unlimited) <= 1e-3 * found.size
    assert torch.cuda.get_per_process_memory_fraction(0) == 1.0
    if peak == 0:
        pytest.skip("the driver does not tell this process's memory (in a container it sees other process ids)")
    assert peak <= 2048 * MB


def test_a_limit_below_one_window_goes_down_to_the_cpu(checkpoint: Path, volume: Volume) -> None:
    expected = Segmenter.load(checkpoint, device="cpu")(volume)
    said: list[str] = []
    segmenter = Segmenter.load(checkpoint, device="cuda", budget=Budget(vram_bytes=452 * MB), say=said.append)
    np.testing.assert_array_equal(segmenter(volume), expected)
    assert "1 window at a time on cpu" in said[0]
    assert torch.cuda.get_per_process_memory_fraction(0) == 1.0
