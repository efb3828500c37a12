"""`flarecps efficiency` around processes of known behaviour: is every figure right within 5 %?

    python benchmarks/efficiency/known.py [--out DIR]

What is expected comes from the task (seconds slept, bytes held, processor time burnt) and from what the processes note
of themselves, not from the meters. Figures of the whole machine and FLARE's areas (sum × 0.1) are right only where
nothing else runs: how busy others were is measured before every task, and these figures are judged only where it was
less than 5 % of the processor. Prints a Markdown table; exit code 1 when a judged figure is off by more than 5 %.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

WITHIN = 0.05
QUIET_PERCENT = 5.0
CORES = os.cpu_count() or 1
GB_MB = 1e9 / 2**20

BUSY = """
import json, multiprocessing, resource, sys, time
def burn(seconds):
    while time.process_time() < seconds:
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
    judged: bool = True

    @property
    def off(self) -> float:
        """By what share the measured one is off."""
        return self.measured / self.expected - 1


def others_percent(seconds: float = 2.0) -> float:
    """How much of the processor others use now."""
    psutil.cpu_times_percent()
    time.sleep(seconds)
    times = psutil.cpu_times_percent()
    return 100 - times.idle - getattr(times, "iowait", 0.0)


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

    task, quiet = "sleep 1", others_percent() < QUIET_PERCENT
    row = measured(out, "sleep", "sleep", "1")
    yield Check(task, "Time (s)", 1.0, row["Time"])
    yield Check(task, "AUC_RAM_Time / RAM (s)", 1.0, row["AUC_RAM_Time"] / row["RAM"], quiet)
    yield Check(task, "machine, area of RAM / most RAM (s)", 1.0, row["host_ram_mb_s"] / row["host_ram_mb_max"])

    task, quiet = f"{CORES} cores busy until each has burnt 4 s", others_percent() < QUIET_PERCENT
    row = measured(out, "busy", python, "-S", scripts["busy"], str(CORES), "4", str(note))
    said = json.loads(note.read_text())
    yield Check(task, "CPU_Utilization (%)", 100.0, row["CPU_Utilization"])
    yield Check(task, "tree, processor time (s)", 4.0 * CORES, row["tree_cpu_s"])
    yield Check(task, "tree, processor time (s), as it says", said["cpu_s"], row["tree_cpu_s"])
    yield Check(task, "tree, area of CPU (% s)", 400.0, row["tree_cpu_percent_s"])
    yield Check(task, "Time (s)", 4.0, row["Time"], quiet)
    yield Check(task, "AUC_CPU_Time (% s)", 400.0, row["AUC_CPU_Time"], quiet)
    yield Check(task, "machine, area of CPU (% s)", 400.0, row["host_cpu_percent_s"], quiet)

    task, quiet = "1 GB held for 3 s", others_percent() < QUIET_PERCENT
    row = measured(out, "hold", python, "-S", scripts["hold"], "1000000000", "3", str(note))
    said = json.loads(note.read_text())
    yield Check(task, "tree, most RAM (MB)", GB_MB, row["tree_ram_mb_max"])
    yield Check(task, "tree, most RAM (MB), as it says", said["ram_mb"], row["tree_ram_mb_max"])
    yield Check(task, "tree, area of RAM (MB s), as it says", said["area_mb_s"], row["tree_ram_mb_s"])
    yield Check(task, "machine, RAM above the start (MB)", GB_MB, row["host_ram_rise_mb"], quiet)

    task, quiet = "1 GB held for 3 s by a child process", others_percent() < QUIET_PERCENT
    row = measured(out, "child", python, "-S", scripts["child"], "-S", scripts["hold"], "1000000000", "3", str(note))
    yield Check(task, "tree, most RAM (MB)", GB_MB, row["tree_ram_mb_max"])
    yield Check(task, "machine, RAM above the start (MB)", GB_MB, row["host_ram_rise_mb"], quiet)

    task, quiet = "a child process burns 4 s on 1 core", others_percent() < QUIET_PERCENT
    row = measured(out, "one", python, "-S", scripts["child"], "-S", scripts["busy"], "1", "4", str(note))
    said = json.loads(note.read_text())
    yield Check(task, "tree, processor time (s)", 4.0, row["tree_cpu_s"])
    yield Check(task, "tree, processor time (s), as it says", said["cpu_s"], row["tree_cpu_s"])
    yield Check(task, "tree, area of CPU (% s)", 400.0 / CORES, row["tree_cpu_percent_s"])
    yield Check(task, "Time (s)", 4.0, row["Time"], quiet)


def main() -> int:
    """Print the table; 1 when something is off by more than 5 %."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder that keeps the measurements")
    given = parser.parse_args()
    print(f"{CORES} cores, of which others used {others_percent():.0f} % before the first task\n")
    with tempfile.TemporaryDirectory() as scratch:
        out = given.out or Path(scratch)
        out.mkdir(parents=True, exist_ok=True)
        found = list(checks(out))
    print("| process | figure | expected | measured | off |\n|---|---|--:|--:|--:|")
    for one in found:
        off = f"{100 * one.off:+.1f} %" + ("" if one.judged else " (others ran)")
        print(f"| {one.task} | {one.figure} | {one.expected:.2f} | {one.measured:.2f} | {off} |")
    judged = [one for one in found if one.judged]
    worst = max(judged, key=lambda one: abs(one.off))
    print(
        f"\n{len(judged)} of {len(found)} figures judged; most: {100 * worst.off:+.1f} % ({worst.task}: {worst.figure})"
    )
    return int(abs(worst.off) > WITHIN)


if __name__ == "__main__":
    sys.exit(main())
