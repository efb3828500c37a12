"""`flarecps efficiency` around processes of known behaviour: is every figure right within 5 %?

    python benchmarks/efficiency/known.py [--out DIR]

To be run on a machine that does nothing else. What is expected comes from the task (seconds slept, bytes held, cores
kept busy) and from what the processes note of themselves, not from the meters. Prints a Markdown table; exit code 1
when a figure is off by more than 5 %.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WITHIN = 0.05
CORES = os.cpu_count() or 1
GB_MB = 1e9 / 2**20

BUSY = """
import json, multiprocessing, resource, sys, time
def burn(seconds):
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass
if __name__ == "__main__":
    cores, seconds, note = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    others = [multiprocessing.Process(target=burn, args=(seconds,)) for _ in range(cores - 1)]
    for other in others:
        other.start()
    burn(seconds)
    for other in others:
        other.join()
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    json.dump({"cpu_s": sum(one.ru_utime + one.ru_stime for one in used)}, open(note, "w"))
"""
HOLD = """
import json, sys, time
def rss_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
before, began = rss_mb(), time.perf_counter()
held = bytearray(int(sys.argv[1]))
held[::4096] = b"x" * len(held[::4096])
there = time.perf_counter()
size = rss_mb()
time.sleep(float(sys.argv[2]))
# the rise counts half: it is about even
area = size * (time.perf_counter() - there) + (before + size) / 2 * (there - began)
json.dump({"ram_mb": size, "area_mb_s": area}, open(sys.argv[3], "w"))
"""
CHILD = """
import subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=True)
"""


@dataclass(frozen=True)
class Check:
    """One figure: what it should be and what was measured."""

    task: str
    figure: str
    expected: float
    measured: float

    @property
    def off(self) -> float:
        """By what share the measured one is off."""
        return self.measured / self.expected - 1


def measured(out: Path, name: str, *command: str) -> dict[str, float]:
    """The row of `flarecps efficiency -- COMMAND` in efficiency_all.csv."""
    subprocess.run(
        [sys.executable, "-m", "flarecps", "efficiency", "--out", str(out), "--name", name, "--", *command], check=True
    )
    with (out / "efficiency_all.csv").open() as stream:
        row = next(row for row in csv.DictReader(stream) if row["Name"] == name)
    return {key: float(value) for key, value in row.items() if key != "Name" and value}


def checks(out: Path) -> Iterator[Check]:
    """Run the tasks one after the other."""
    python, note = sys.executable, out / "note.json"
    scripts = {}
    for name, code in (("busy", BUSY), ("hold", HOLD), ("child", CHILD)):
        scripts[name] = str(out / f"{name}.py")
        Path(scripts[name]).write_text(code)

    task = "sleep 1"
    row = measured(out, "sleep", "sleep", "1")
    yield Check(task, "Time (s)", 1.0, row["Time"])
    yield Check(task, "sum × 0.1 of a constant RAM / RAM (s)", 1.0, row["AUC_RAM_Time"] / row["RAM"])

    task = f"{CORES} cores busy for 4 s"
    row = measured(out, "busy", python, "-S", scripts["busy"], str(CORES), "4", str(note))
    said = json.loads(note.read_text())
    yield Check(task, "Time (s)", 4.0, row["Time"])
    yield Check(task, "CPU_Utilization (%)", 100.0, row["CPU_Utilization"])
    yield Check(task, "AUC_CPU_Time (% s)", 400.0, row["AUC_CPU_Time"])
    yield Check(task, "machine, area of CPU (% s)", 400.0, row["host_cpu_percent_s"])
    yield Check(task, "tree, processor time (s), as it says", said["cpu_s"], row["tree_cpu_s"])
    yield Check(task, "tree, area of CPU (% s)", 400.0, row["tree_cpu_percent_s"])

    task = "1 GB held for 3 s"
    row = measured(out, "hold", python, "-S", scripts["hold"], "1000000000", "3", str(note))
    said = json.loads(note.read_text())
    yield Check(task, "tree, most RAM (MB), as it says", said["ram_mb"], row["tree_ram_mb_max"])
    yield Check(task, "tree, most RAM (MB), as the task says", GB_MB, row["tree_ram_mb_max"])
    yield Check(task, "machine, RAM above the start (MB)", GB_MB, row["host_ram_rise_mb"])
    yield Check(task, "tree, area of RAM (MB s), as it says", said["area_mb_s"], row["tree_ram_mb_s"])

    task = "1 GB held for 3 s by a child process"
    row = measured(out, "child", python, "-S", scripts["child"], "-S", scripts["hold"], "1000000000", "3", str(note))
    yield Check(task, "tree, most RAM (MB), as the task says", GB_MB, row["tree_ram_mb_max"])
    yield Check(task, "machine, RAM above the start (MB)", GB_MB, row["host_ram_rise_mb"])

    task = "1 core busy for 4 s in a child process"
    row = measured(out, "one", python, "-S", scripts["child"], "-S", scripts["busy"], "1", "4", str(note))
    said = json.loads(note.read_text())
    yield Check(task, "Time (s)", 4.0, row["Time"])
    yield Check(task, "tree, processor time (s), as it says", said["cpu_s"], row["tree_cpu_s"])
    yield Check(task, "tree, area of CPU (% s)", 400.0 / CORES, row["tree_cpu_percent_s"])


def main() -> int:
    """Print the table; 1 when something is off by more than 5 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder that keeps the measurements")
    given = parser.parse_args()
    print(f"load before: {os.getloadavg()[0]:.2f}, cores: {CORES}\n")
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        found = list(checks(out))
    print("| process | figure | expected | measured | off |\n|---|---|--:|--:|--:|")
    for one in found:
        print(f"| {one.task} | {one.figure} | {one.expected:.2f} | {one.measured:.2f} | {100 * one.off:+.1f} % |")
    worst = max(found, key=lambda one: abs(one.off))
    print(f"\nmost: {100 * worst.off:+.1f} % ({worst.task}: {worst.figure})")
    return int(abs(worst.off) > WITHIN)


if __name__ == "__main__":
    sys.exit(main())
