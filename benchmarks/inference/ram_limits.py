"""Is ``--max-ram`` kept? What ``flarecps segment`` estimates and reports, and what the kernel counts, near the limit.

    python benchmarks/inference/ram_limits.py OUT [--patch 64 96 96] [--sizes small large]

Every scan is done in a process of its own: with labels alone, with probabilities, and with everything that may be made
beside them (``--probabilities --preview --statistics --postprocess``). First without a limit that matters, then at the
least limit that this estimate is accepted under, then between both the estimate and that: there something is traded, or
the scan is refused. The peak is the process's VmHWM: all libraries, from its start to its end. At the end a file of few
MB that says to hold 4 GB, under 1 GB: refused by its header. OUT/ram_limits.md holds the table.
"""

from __future__ import annotations

import argparse
import gzip
import math
import os
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from flarecps.inference.resources.planner import MARGIN
from flarecps.reporting.tables import markdown_table

SIZES = {  # slices, rows, columns; spacing in mm
    "small": ((60, 160, 160), (3.0, 2.0, 2.0)),
    "medium": ((100, 256, 256), (2.5, 1.4, 1.4)),
    "large": ((280, 512, 512), (1.0, 0.6, 0.6)),
}
BESIDE = {
    "labels alone": (),
    "probabilities": ("--probabilities",),
    "everything": ("--probabilities", "--preview", "--statistics", "--postprocess", "{out}/rules.json"),
}
FREE = 64 * 1024  # MB, as a limit that nothing is traded for
PREPARE = """
import sys, torch
sys.path.insert(0, {here!r})
from dataclasses import replace
from synthetic import small_model, write_scan
from flarecps.inference.postprocessing import Rules, write_rules
from flarecps.checkpoint import ENTRY, model_entry
from flarecps.networks.unet import PlainUNet
plan, _ = small_model((2.5, 1.6, 1.6), {patch!r})
plan = replace(plan, topology=replace(plan.topology, features=(8, 16)))
network = PlainUNet(1, plan.class_count, (8, 16), plan.topology.strides, plan.topology.kernels)
state = {{f"siblings.0.{{key}}": value for key, value in network.state_dict().items()}}
torch.save({{"state_dict": state, ENTRY: model_entry(plan, torch.nn.ModuleList([network]), 0)}}, {checkpoint!r})
write_rules({rules!r}, Rules(plan.labels, largest=(1, 2, 3), filled=(1,)))
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
COLUMNS = ("scan", "beside labels", "limit, MB", "estimated", "reported", "kernel's peak", "estimated / peak", "s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--patch", nargs=3, type=int, default=[32, 64, 64])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--beside", nargs="+", default=list(BESIDE), choices=BESIDE)
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    words = PREPARE.format(
        here=str(Path(__file__).resolve().parent),
        patch=tuple(options.patch),
        checkpoint=str(out / "model.ckpt"),
        rules=str(out / "rules.json"),
        scans=[(str(out / f"{name}.nii.gz"), *SIZES[name]) for name in options.sizes],
    )
    subprocess.run([sys.executable, "-c", words], check=True)
    write_bomb(out / "bomb.nii.gz")
    rows: list[list[str]] = []
    for name in options.sizes:
        for beside in options.beside:
            free = run(out, name, beside, FREE)
            least = math.ceil(free.estimated * MARGIN) + 1
            between = round((1 + MARGIN) / 2 * free.estimated)
            rows += [row(name, beside, limit, run(out, name, beside, limit)) for limit in (least, between)]
            print(*("| " + " | ".join(one) + " |" for one in rows[-2:]), sep="\n", flush=True)
    rows.append(row("4 GB in 4 MB", "labels alone", 1024, run(out, "bomb", "labels alone", 1024)))
    table = markdown_table(COLUMNS, rows)
    print(table)
    (out / "ram_limits.md").write_text(table + "\n", encoding="utf-8")


class Measured(NamedTuple):
    """One process, in MB of 2**20 bytes; 0 what it did not tell, as when it refused the scan."""

    estimated: float
    reported: float
    peak: float
    seconds: float
    said: str


def run(out: Path, name: str, beside: str, limit_mb: int) -> Measured:
    """``flarecps segment`` of one scan in a process of its own."""
    options = [word.format(out=out) for word in BESIDE[beside]]
    command = ["segment", "model.ckpt", f"{name}.nii.gz", "results", "--device", "cpu", "--max-ram", f"{limit_mb}M"]
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", RUN, *command, "--overwrite", *options], capture_output=True,
                          cwd=out, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    said = done.stdout + done.stderr
    estimated, reported = (megabytes(pattern, said) for pattern in (f"estimated RAM {SIZE}", f"highest RAM was {SIZE}"))
    peak = int(re.findall(r"VmHWM:\s*(\d+)", said)[0]) / 1024
    return Measured(estimated, reported, peak, time.monotonic() - began, said)


def row(name: str, beside: str, limit_mb: int, found: Measured) -> list[str]:
    """One line of the table."""
    if not found.reported:
        said = "refused" if "does not fit its budget" in found.said else f"failed: {found.said[-200:]}"
        return [name, beside, str(limit_mb), said, "–", f"{found.peak:.0f}", "–", f"{found.seconds:.0f}"]
    sizes = [f"{one:.0f}" for one in (limit_mb, found.estimated, found.reported, found.peak)]
    return [name, beside, *sizes, f"{found.estimated / found.peak:.2f}", f"{found.seconds:.0f}"]


def write_bomb(path: Path) -> None:
    """A NIfTI of 2000 million zeros of two bytes each, in 4 MB."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 1000, 1000, 2000, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)  # int16
    struct.pack_into("<8f", header, 76, 1, 0.5, 0.5, 0.5, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<2h", header, 252, 0, 1)
    struct.pack_into("<12f", header, 280, 0.5, 0, 0, 0, 0, 0.5, 0, 0, 0, 0, 0.5, 0)
    header[344:348] = b"n+1\0"
    block = bytes(2**20)
    with gzip.open(path, "wb", compresslevel=9) as file:
        file.write(bytes(header))
        for _ in range(4 * 10**9 // len(block) + 1):
            file.write(block)


def megabytes(pattern: str, said: str) -> float:
    """The first size in words that follows ``pattern``; 0 without one."""
    found = re.search(pattern, said)
    return 0.0 if found is None else float(found[1]) * (1024 if found[2] == "GB" else 1)


if __name__ == "__main__":
    main()
