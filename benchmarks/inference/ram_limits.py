"""Is ``--max-ram`` kept? What ``flarecps segment`` estimates and reports, and what the kernel counts, by limit.

    python benchmarks/inference/ram_limits.py OUT [--limits 700M 1G 4G] [--patch 64 96 96]

Every scan is done in a process of its own, packed and not, alone and with all that may be made beside the labels
(``--probabilities --preview --statistics``). The peak is the process's VmHWM: all libraries, from its start to its end.
OUT/ram_limits.md holds the table; a scan that is refused says so.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

SIZES = {  # slices, rows, columns; spacing in mm
    "small": ((60, 160, 160), (3.0, 2.0, 2.0)),
    "abdomen": ((100, 400, 400), (2.5, 0.9, 0.9)),
    "long": ((300, 400, 400), (1.5, 0.9, 0.9)),
}
EVERYTHING = ("--probabilities", "--preview", "--statistics")
PREPARE = """
import sys, torch
sys.path.insert(0, {here!r})
from dataclasses import replace
from synthetic import small_model, write_scan
from flarecps.checkpoint import ENTRY, model_entry
from flarecps.networks.unet import PlainUNet
plan, _ = small_model((2.5, 1.6, 1.6), {patch!r})
plan = replace(plan, topology=replace(plan.topology, features=(8, 16)))
network = PlainUNet(1, plan.class_count, (8, 16), plan.topology.strides, plan.topology.kernels)
state = {{f"siblings.0.{{key}}": value for key, value in network.state_dict().items()}}
torch.save({{"state_dict": state, ENTRY: model_entry(plan, torch.nn.ModuleList([network]), 0)}}, {checkpoint!r})
for path, shape, spacing in {scans!r}:
    write_scan(path, shape, spacing)
"""
RUN = """
import sys
from flarecps.cli.main import main
code = main(sys.argv[1:])
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
sys.exit(code)
"""
SIZE = r"(\d+(?:\.\d+)?) (MB|GB)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limits", nargs="+", default=["600M", "700M", "1G", "4G"])
    parser.add_argument("--patch", nargs=3, type=int, default=[32, 64, 64])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.out / "model.ckpt"
    scans = {name: options.out / f"{name}.nii.gz" for name in options.sizes}
    words = PREPARE.format(
        here=str(Path(__file__).resolve().parent),
        patch=tuple(options.patch),
        checkpoint=str(checkpoint),
        scans=[(str(path), *SIZES[name]) for name, path in scans.items()],
    )
    subprocess.run([sys.executable, "-c", words], check=True)
    lines = [
        "| scan | beside labels | limit | estimated, MB | reported, MB | kernel's peak, MB | estimated / peak | s |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    print("\n".join(lines), flush=True)
    for name, path in scans.items():
        for extras in ((), EVERYTHING):
            for limit in options.limits:
                lines.append(row(name, checkpoint, path, options.out / "results", extras, limit))
                print(lines[-1], flush=True)
    (options.out / "ram_limits.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def row(name: str, checkpoint: Path, scan: Path, out: Path, extras: tuple[str, ...], limit: str) -> str:
    """One line of the table: one process."""
    command = ["segment", str(checkpoint), str(scan), str(out), "--device", "cpu", "--max-ram", limit, "--overwrite"]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", RUN, *command, *extras], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    seconds = time.monotonic() - began
    said = done.stdout + done.stderr
    peak = int(re.findall(r"VmHWM:\s*(\d+)", said)[0]) / 1024
    estimated, reported = (megabytes(pattern, said) for pattern in (f"estimated RAM {SIZE}", f"highest RAM was {SIZE}"))
    beside = "everything" if extras else "nothing"
    if reported is None or estimated is None:
        refused = "refused" if "does not fit its budget" in said else "failed"
        return f"| {name} | {beside} | {limit} | {refused} | – | {peak:.0f} | – | {seconds:.0f} |"
    return (
        f"| {name} | {beside} | {limit} | {estimated:.0f} | {reported:.0f} | {peak:.0f} | {estimated / peak:.2f} "
        f"| {seconds:.0f} |"
    )


def megabytes(pattern: str, said: str) -> float | None:
    """The first size in words that follows ``pattern``."""
    found = re.search(pattern, said)
    return None if found is None else float(found[1]) * (1024 if found[2] == "GB" else 1)


if __name__ == "__main__":
    main()
