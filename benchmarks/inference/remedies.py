"""What quicker ways to segment cost in DSC: windows without body left out, coarse to fine, modes, enforced spacing.

    python benchmarks/inference/remedies.py CHECKPOINT DATASET OUT [--cases N]

DATASET holds imagesTs and labelsTs. Every way segments the same test scans with the same network; seconds are the
process's own CPU time, so that other work on the machine matters little. OUT/remedies.json and .md are written.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flarecps.dice import dice_coefficient
from flarecps.inference.segmenter import Segmenter
from flarecps.volumes.io import read_labels, read_volume, scan_name

WAYS: dict[str, dict[str, Any]] = {
    "as set (step 0.7)": {},
    "windows without body left out": {"skip_air": True},
    "coarse to fine": {"coarse_to_fine": True},
    "coarse to fine, body only": {"coarse_to_fine": True, "skip_air": True},
    "step 1.0": {"step": 1.0},
    "fast mode": {"mode": "fast"},
    "fastest mode": {"mode": "fastest"},
    "sums of logits": {"accumulate": "logits"},
    "enforced spacing": {"enforce_spacing": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int)
    options = parser.parse_args()
    torch.set_num_threads(1)
    references = sorted((options.dataset / "labelsTs").glob("*.nii.gz"))[: options.cases]
    cases = [
        (read_volume(path.parent.parent / "imagesTs" / f"{scan_name(path)}_0000.nii.gz"), read_labels(path).array[0])
        for path in references
    ]
    rows = []
    for name, settings in WAYS.items():
        rows.append({"way": name, **measured(options.checkpoint, cases, settings)})
        print(json.dumps(rows[-1]), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    answer = {"dataset": options.dataset.name, "cases": len(cases), "ways": rows}
    (options.out / "remedies.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    lines = ["| way | mean DSC | change | windows run | CPU s a scan |", "|---|--:|--:|--:|--:|"]
    lines += [
        f"| {row['way']} | {row['dsc']:.4f} | {row['dsc'] - rows[0]['dsc']:+.4f} | {row['windows']:.1f} "
        f"| {row['seconds']:.2f} |"
        for row in rows
    ]
    (options.out / "remedies.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def measured(checkpoint: Path, cases: list[tuple[Any, np.ndarray]], settings: dict[str, Any]) -> dict[str, float]:
    """Mean DSC over structures and cases that have them, windows through the network and CPU seconds per scan."""
    segmenter = Segmenter.load(checkpoint, device="cpu", **settings)
    windows = 0

    def count(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal windows
        windows += len(inputs[0])

    for network in segmenter.networks:
        network.register_forward_pre_hook(count)  # type: ignore[union-attr]  # networks of a checkpoint are modules
    began = time.process_time()
    found = [segmenter(volume) for volume, _ in cases]
    seconds = time.process_time() - began
    scores = []
    for labels, (_, reference) in zip(found, cases, strict=True):
        for label in range(1, segmenter.plan.class_count):
            ours, theirs = labels == label, reference == label
            if theirs.any():
                scores.append(dice_coefficient(np.count_nonzero(ours & theirs), ours.sum() + theirs.sum()))
    return {"dsc": float(np.mean(scores)), "windows": windows / len(cases), "seconds": seconds / len(cases)}


if __name__ == "__main__":
    main()
