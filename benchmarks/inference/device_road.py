"""How often do labels differ: the GPU's road against the CPU's, half against single precision, both against float64?

    python benchmarks/inference/device_road.py OUT.json [SCAN ...] [--checkpoint CKPT] [--device cuda]

Without a checkpoint a stand-in for 14 classes (bands of smoothed intensity) gives the scores, and without a scan a
synthetic one (120×512×512) is made. On ``--device cpu``, the default, the GPU's road computes on CPU tensors: its
numbers are proven, not its speed. With a GPU, both roads' seconds are told, too. The reference interpolates the
single-precision means of windows in float64 with the matrices of preprocessing (SciPy's), all classes everywhere.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from synthetic import small_model, write_scan
from torch import Tensor

from flarecps.inference.device_export import device_labels
from flarecps.inference.export import scan_labels
from flarecps.inference.segmenter import Segmenter
from flarecps.preprocessing.case import GridMapping, Prepared
from flarecps.typing import LabelArray
from flarecps.volumes.io import read_volume
from flarecps.volumes.resampling import axis_operator

UNSURE = 1e-3  # a lead of the first class over the second that half precision may turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("scans", type=Path, nargs="*")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.checkpoint is not None:
        segmenter = Segmenter.load(options.checkpoint, device=options.device)
    else:
        plan, network = small_model((2.5, 1.6, 1.6))
        segmenter = Segmenter(plan, [network], device=options.device)
    with tempfile.TemporaryDirectory() as folder:
        if not options.scans:
            options.scans = [Path(folder) / "synthetic.nii.gz"]
            write_scan(options.scans[0], (120, 512, 512), (1.5, 0.8, 0.8))
        rows = [measured(segmenter, scan) for scan in options.scans]
    options.out.write_text(json.dumps({"device": options.device, "scans": rows}, indent=1) + "\n")
    for row in rows:
        print(row)


def measured(segmenter: Segmenter, scan: Path) -> dict[str, object]:
    """Shares of all voxels of the scan at which two ways of labelling it differ."""
    prepared = segmenter.prepare(read_volume(scan))
    way, device = prepared.grid_mapping, segmenter.device
    labels, seconds = {}, {}
    for sums in ("single", "half"):
        began = time.monotonic()
        labels["gpu", sums] = device_labels(slabs(segmenter, prepared, sums == "half"), way, device)
        seconds[f"gpu road, {sums} sums"] = round(time.monotonic() - began, 2)
    began = time.monotonic()
    labels["cpu", "single"] = scan_labels(slabs(segmenter, prepared, False), way)
    seconds["cpu road, single sums"] = round(time.monotonic() - began, 2)
    exact, lead = in_double_precision(slabs(segmenter, prepared, False), way)
    first, half = labels["cpu", "single"], labels["gpu", "half"]

    def share(one: LabelArray, other: LabelArray) -> float:
        return float(f"{np.count_nonzero(one != other) / one.size:.2e}")

    return {
        "scan": scan.name,
        "shape": first.shape,
        "classes": segmenter.plan.class_count,
        "structures_share": float(f"{np.count_nonzero(first) / first.size:.2e}"),
        "gpu_road_differs_from_cpu_road": share(labels["gpu", "single"], first),
        "cpu_road_differs_from_float64": share(first, exact),
        "gpu_road_differs_from_float64": share(labels["gpu", "single"], exact),
        "half_sums_differ_from_single": share(half, labels["gpu", "single"]),
        "largest_lead_turned_by_half_sums": float(lead[half != labels["gpu", "single"]].max(initial=0)),
        "leads_below_0.001": float(f"{np.count_nonzero(lead < UNSURE) / lead.size:.2e}"),
        "seconds": seconds if device.type != "cpu" else None,
    }


def slabs(segmenter: Segmenter, prepared: Prepared, half: bool) -> Iterator[Tensor]:
    """Scores with the sums in this precision, whatever the device."""
    work = segmenter.resources.wanted()
    work = replace(work, placement=replace(work.placement, half_sums=half))
    segmenter.resources.wanted = lambda: work  # type: ignore[method-assign]
    return segmenter.slabs(prepared, "")


def in_double_precision(scores: Iterator[Tensor], way: GridMapping) -> tuple[LabelArray, np.ndarray]:
    """Labels, and the lead of the first class over the second, on the scan's grid; no axis may be resampled apart."""
    network = torch.cat([slab.cpu().clone() for slab in scores], 1)
    labels, lead = np.zeros(way.scan_shape, np.uint8), np.ones(way.scan_shape, np.float32)
    box, order = way.box.slices, way.axis_order
    views = [one[box].transpose(order) for one in (labels, lead)]
    slices, rows, columns = (
        torch.from_numpy(np.eye(n) if n == out else axis_operator(n, out, 1).copy())
        for n, out in zip(way.network_shape, views[0].shape, strict=True)
    )
    for number, weights in enumerate(slices):
        used = torch.nonzero(weights).ravel()
        plane = torch.einsum("z,kzyx->kyx", weights[used], network[:, used].double())
        best = (rows @ plane @ columns.T).topk(2, dim=0)
        views[0][number], views[1][number] = best.indices[0].numpy(), (best.values[0] - best.values[1]).numpy()
    return labels, lead


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
