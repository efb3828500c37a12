"""One CT, one trained network, two programs: flarecps and nnU-Net v2's own predictor, alternately, one thread each.

    FLARECPS_PEER_PYTHON=.peers/bin/python python benchmarks/inference/compare_nnunet.py CT CHECKPOINT OUT \\
        [--reference LABELS] [--classes 14] [--step 0.5] [--mirror] [--rounds 1]

CHECKPOINT comes from liver_model.sh. Both load the same weights, use the same windows and average logits; flarecps in
single precision, nnU-Net in half. "Everything but the network" is the wall time from the scan's file to the label file
less the time inside the network's forward pass; peak memory is above what each process took after its imports.
OUT/compare_nnunet.json and .md are written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from measure import THREADS

from flarecps.dice import dice_coefficient
from flarecps.volumes.io import read_labels

HERE = Path(__file__).resolve().parent
LARGE = 1000  # voxels; smaller structures are not judged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--reference", type=Path, help="the structures' true labels, for the DSC of both")
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--step", type=float, default=0.5)
    parser.add_argument("--mirror", action="store_true")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    peer = os.environ.get("FLARECPS_PEER_PYTHON")
    if not peer:
        sys.exit("FLARECPS_PEER_PYTHON is not set: `make peers` installs nnU-Net and prints the line that sets it")
    options.out.mkdir(parents=True, exist_ok=True)
    model = options.out / "model"
    words = [options.checkpoint, model, "--classes", options.classes]
    run(sys.executable, "nnunet_model.py", *words)
    runs: dict[str, list[dict[str, Any]]] = {"flarecps": [], "nnunetv2": []}
    for _ in range(options.rounds):
        for side, python, script in (("flarecps", sys.executable, "ours.py"), ("nnunetv2", peer, "peer.py")):
            result = options.out / f"{side}.nii.gz"
            said = run(python, script, model, options.scan, result, options.step, int(options.mirror))
            runs[side].append(json.loads(said.splitlines()[-1]))
            print(side, json.dumps(runs[side][-1]), flush=True)
    answer = agreement(options.out / "flarecps.nii.gz", options.out / "nnunetv2.nii.gz", options.reference)
    answer |= {
        "step": options.step,
        "mirror": options.mirror,
        "classes": options.classes,
        "other_seconds_ratio": ratio(runs, "other_seconds"),
        "peak_memory_share": 1 / ratio(runs, "peak_above_imports_bytes"),
        "runs": runs,
    }
    (options.out / "compare_nnunet.json").write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    (options.out / "compare_nnunet.md").write_text(table(runs, answer), encoding="utf-8")
    print(table(runs, answer))


def run(python: str | Path, script: str, *words: object) -> str:
    """What a script beside this one prints, in one thread."""
    environment = os.environ | dict.fromkeys(THREADS, "1")
    command = [str(python), str(HERE / script), *map(str, words)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def agreement(ours_path: Path, theirs_path: Path, reference_path: Path | None) -> dict[str, Any]:
    """Dice between both per structure above 1000 voxels, and the disagreeing share of the union of foregrounds."""
    ours, theirs = read_labels(ours_path).array[0], read_labels(theirs_path).array[0]
    dice = {}
    for label in sorted(set(np.unique(ours)) | set(np.unique(theirs))):
        one, other = ours == label, theirs == label
        if label and max(one.sum(), other.sum()) > LARGE:
            dice[int(label)] = dice_of(one, other)
    union = np.count_nonzero((ours > 0) | (theirs > 0))
    answer: dict[str, Any] = {"dice": dice, "disagreeing_share": float(np.count_nonzero(ours != theirs) / union)}
    if reference_path is not None:
        reference = read_labels(reference_path).array[0]
        for side, labels in (("flarecps", ours), ("nnunetv2", theirs)):
            answer[f"dsc_{side}"] = {label: dice_of(labels == label, reference == label) for label in dice}
    return answer


def dice_of(one: np.ndarray, other: np.ndarray) -> float:
    return float(dice_coefficient(np.count_nonzero(one & other), np.count_nonzero(one) + np.count_nonzero(other)))


def ratio(runs: dict[str, list[dict[str, Any]]], key: str) -> float:
    """The peer's median over ours."""
    return statistics.median(one[key] for one in runs["nnunetv2"]) / statistics.median(
        one[key] for one in runs["flarecps"]
    )


def table(runs: dict[str, list[dict[str, Any]]], answer: dict[str, Any]) -> str:
    lines = ["| | network, s | everything else, s | peak memory above imports, MB |", "|---|--:|--:|--:|"]
    for side, found in runs.items():
        network, other, peak = (
            statistics.median(one[key] for one in found)
            for key in ("network_seconds", "other_seconds", "peak_above_imports_bytes")
        )
        lines.append(f"| {side} | {network:.1f} | {other:.2f} | {peak / 2**20:.0f} |")
    lines += [
        "",
        f"everything else: {answer['other_seconds_ratio']:.1f} times less; memory: {answer['peak_memory_share']:.2f} "
        "of nnU-Net's",
        f"Dice between both: {', '.join(f'{label}: {value:.5f}' for label, value in answer['dice'].items())}; "
        f"disagreement {answer['disagreeing_share']:.4%} of the union",
    ]
    for side in runs:
        if f"dsc_{side}" in answer:
            lines.append(f"DSC of {side}: {', '.join(f'{value:.4f}' for value in answer[f'dsc_{side}'].values())}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
