"""A 512×512×1000 scan with 14 classes through ``flarecps segment --max-ram 8G``, as a user runs it.

    python benchmarks/inference/large_scan.py OUT [--slices 1000] [--max-ram 8G] [--device cuda --max-vram 2048M]

The network is a small U-Net with random weights, the worst case of the way back: its labels change from voxel to voxel,
so that nearly every voxel is interpolated. OUT/large_scan.json holds time, the highest resident memory of the process
(as the kernel counted it) and what the command said.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

SPACING_MM, NETWORK_MM, PATCH = (1.0, 0.8, 0.8), (1.5, 1.5, 1.5), (64, 128, 128)

PREPARE = """
import sys, torch
sys.path.insert(0, {here!r})
from dataclasses import replace
from synthetic import small_model, write_scan
from flarecps.checkpoint import ENTRY, model_entry
from flarecps.networks.unet import PlainUNet
plan, _ = small_model({network_mm!r}, {patch!r})
topology = replace(plan.topology, features=(4, 8))
plan = replace(plan, topology=topology)
network = PlainUNet(1, plan.class_count, topology.features, topology.strides, topology.kernels)
state = {{f"siblings.0.{{key}}": value for key, value in network.state_dict().items()}}
torch.save({{"state_dict": state, ENTRY: model_entry(plan, torch.nn.ModuleList([network]), 0)}}, {checkpoint!r})
write_scan({scan!r}, {shape!r}, {spacing_mm!r})
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--max-ram", default="8G")
    parser.add_argument("--max-vram", help="such as 2048M, with --device cuda")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    scan, checkpoint, result = (options.out / name for name in ("scan.nii", "tiny.ckpt", "labels.nii.gz"))
    shape = (options.slices, 512, 512)
    words = PREPARE.format(here=str(Path(__file__).resolve().parent), network_mm=NETWORK_MM, patch=PATCH, shape=shape,
                           checkpoint=str(checkpoint), scan=str(scan), spacing_mm=SPACING_MM)  # fmt: skip
    subprocess.run([sys.executable, "-c", words], check=True)
    made_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    command = [
        "segment",
        str(checkpoint),
        str(scan),
        str(result),
        "--max-ram",
        options.max_ram,
        "--device",
        options.device,
    ]
    command += ["--max-vram", options.max_vram] if options.max_vram else []
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "flarecps", *command, "--overwrite"], check=True, text=True,
                          capture_output=True)  # fmt: skip
    seconds = time.monotonic() - began
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    if peak_bytes <= made_bytes:
        sys.exit("making the scan took more memory than segmenting it: its peak can't be told apart")
    said = [line for line in (done.stderr + done.stdout).splitlines() if "window" not in line or "estimated" in line]
    answer = {
        "scan_voxels": shape,
        "classes": 14,
        "patch_voxels": PATCH,
        "network_spacing_mm": NETWORK_MM,
        "max_ram": options.max_ram,
        "peak_gb": peak_bytes / 2**30,
        "seconds": seconds,
        "said": said,
    }
    (options.out / "large_scan.json").write_text(json.dumps(answer, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(answer, indent=1, ensure_ascii=False))
    scan.unlink()


if __name__ == "__main__":
    main()
