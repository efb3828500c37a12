"""Everything that has to be known of this program on a card, in one command of at most eight minutes.

    python benchmarks/gpu/run.py WORK
    python benchmarks/gpu/run.py WORK --cpu-rehearsal --results WORK/results      # every part, tiny, on a CPU

Numbers first: the fast road against the plain one and double precision. Then times: the step, a real training, whole
scans. What matters most comes first, and each part is a process of its own with a limit of its own, so a run that is
cut short, or a part that fails, leaves the rest. The same command again does what is missing (--again begins anew).
Scans are made meanwhile (`flarecps phantom --size full`). Beside nnU-Net's step where FLARECPS_PEER_PYTHON names its
environment. Nothing is fetched from a network.

WORK holds scans, logs and a JSON file for each part; the report goes to RESULTS/CARD/DATE.md and .json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import agreement
import bench as benches
import links
import program
import steps
import words

from flarecps import atomic
from flarecps.evaluation.resource_usage import GpuMeter, open_gpu
from flarecps.processes import usable_cores

LOOKS_S = 0.05
REHEARSED = 5  # times a part's limit, on a CPU that others use too
LEAST_S = 10.0  # a part that would have less is left for the next run
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    """What is measured in one process: a function of the bench, and the most seconds it may take."""

    name: str
    limit_s: float
    measure: Callable[[benches.Bench], dict[str, Any]]
    needs_scans: bool = False


def all_parts(bench: benches.Bench) -> list[Part]:
    """What there is to measure, what matters most first."""

    def step(name: str, *switches: str, network: str = "PlainUNet", dimensions: int = 3) -> Part:
        return Part(name, 75, lambda of: steps.step(of, switches, network, dimensions))

    found = [
        Part("machine", 40, benches.machine),
        Part("numbers", 75, agreement.numbers),
        step("step fast", "fast"),
        step("step plain"),
        Part("shares fast", 60, lambda of: steps.shares(of, ["fast"])),
        step("step fast, in turn", "fast", "in_turn"),
    ]
    if bench.peer:
        found += [Part("step nnU-Net", 75, steps.peer_step)]
    found += [
        Part("fit", 100, program.fit, needs_scans=True),
        Part("segment flare22", 60, lambda of: program.segment(of, "--budget", "flare22"), needs_scans=True),
        Part("segment", 60, program.segment, needs_scans=True),
        Part("validate", 60, program.validate, needs_scans=True),
        Part("cards", 90, links.cards),
    ]
    if bench.peer:
        found += [Part("step nnU-Net, compiled", 90, lambda of: steps.peer_step(of, "--compile"))]
    return [
        *found,
        Part("segment, mirrored", 75, lambda of: program.segment(of, "--mirror"), needs_scans=True),
        Part("shares plain", 60, lambda of: steps.shares(of, [])),
        step("step fast, padded", "fast", "padded"),
        Part("fit, all cards", 100, program.fit_on_all, needs_scans=True),
        step("step fast, 2D", "fast", dimensions=2),
        step("step plain, 2D", dimensions=2),
        step("step fast, residual", "fast", network="ResidualEncoderUNet"),
        step("step plain, residual", network="ResidualEncoderUNet"),
        step("step fast, compiled", "fast", "compile"),
    ]


def main() -> int:
    """Measure what is missing, in order, for as long as there is time; 1 if a part failed, or numbers do not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for scans, logs and each part's figures")
    parser.add_argument("--results", type=Path, default=HERE.parent / "results" / "gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts of this call together")
    parser.add_argument("--only", nargs="+", help="parts by name")
    parser.add_argument("--again", action="store_true", help="measure anew; scans that are there are kept")
    parser.add_argument("--cpu-rehearsal", action="store_true", help="tiny sizes on a CPU: does every part run?")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    device = "cpu" if options.cpu_rehearsal else "cuda"
    bench = benches.Bench(options.work.resolve(), device, os.environ.get("FLARECPS_PEER_PYTHON"))
    kept = bench.work / ("parts_rehearsed" if options.cpu_rehearsal else "parts")
    if options.again:
        shutil.rmtree(kept, ignore_errors=True)
    for folder in (kept, bench.work / "logs"):
        folder.mkdir(parents=True, exist_ok=True)
    names = [part.name for part in all_parts(bench)]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"no part {', '.join(sorted(unknown))}; expected one of: {', '.join(names)}")
    wanted = [part for part in all_parts(bench) if not options.only or part.name in options.only]
    with ExitStack() as held:
        measure(bench, wanted, kept, options.results, ends, held)
    text = write_report(kept, options.results, names)
    print("\n" + text)
    measured = [
        json.loads((kept / f"{part.name}.json").read_text()) for part in wanted if done(kept / f"{part.name}.json")
    ]
    agree = all(one["result"].get("agree", True) for one in measured)
    return 0 if agree and len(measured) == len(wanted) else 1


def measure(bench: benches.Bench, wanted: list[Part], kept: Path, results: Path, ends: float, held: ExitStack) -> None:
    """Each part that is missing, until ``ends``; the report after each. What still runs then is ended by ``held``."""
    meter = None if bench.tiny else open_gpu(None)
    logs, scans = bench.work / "logs", None
    if any(part.needs_scans and not done(kept / f"{part.name}.json") for part in wanted):
        scans = Child(lambda: program.scans(bench), kept / "scans.json", logs / "scans.log")
        held.callback(scans.end)
    for part in wanted:
        file = kept / f"{part.name}.json"
        if done(file):
            print(f"{part.name}: kept", flush=True)
            continue
        if part.needs_scans and scans is not None:
            scans.wait(ends)
        left = ends - time.monotonic()
        if left < LEAST_S or (part.needs_scans and not done(kept / "scans.json")):
            print(f"{part.name}: left out, {'no time' if left < LEAST_S else 'there are no scans'}", flush=True)
            continue
        child = Child(lambda part=part: part.measure(bench), file, logs / f"{part.name}.log", meter)
        held.callback(child.end)
        child.wait(time.monotonic() + min(part.limit_s * (REHEARSED if bench.tiny else 1), left))
        found = json.loads(file.read_text())
        print(f"{part.name}: {found['seconds']:.0f} s{'' if found['ok'] else ', failed: ' + found['why']}", flush=True)
        write_report(kept, results, [one.name for one in all_parts(bench)])


def done(file: Path) -> bool:
    """Whether this part has been measured."""
    return file.is_file() and json.loads(file.read_text())["ok"]


class Child:
    """A function in a forked process, in a group of its own; what it returns is written to ``file``.

    Libraries are imported already; of CUDA nothing may be begun in this process. The card's memory is read meanwhile.
    """

    def __init__(
        self, work: Callable[[], dict[str, Any]], file: Path, log: Path, meter: GpuMeter | None = None
    ) -> None:
        self.file, self.log, self.meter = file, log, meter
        self.began = time.monotonic()
        self.before_mb = meter.read(frozenset())[0] if meter else 0.0
        self.peak_mb = 0.0
        self.process = 0
        if done(file):
            return
        file.unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        self.process = os.fork()
        if not self.process:
            self._run(work)
        with suppress(OSError):  # so that all that it starts can be ended with it, whoever comes first to say so
            os.setpgid(self.process, self.process)

    def _run(self, work: Callable[[], dict[str, Any]]) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            with open(self.log, "w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            self._write(ok=True, result=work())
            code = 0
        except BaseException as error:
            traceback.print_exc()
            self._write(ok=False, why=" ".join(f"{type(error).__name__}: {error}".split())[:300])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _write(self, **content: Any) -> None:
        atomic.write_json(self.file, {"seconds": time.monotonic() - self.began, "result": {}, **content})

    def wait(self, until: float) -> None:
        """Until it has ended, or is ended at ``until``."""
        while self.process:
            pid, status, usage = os.wait4(self.process, os.WNOHANG)
            if pid:
                self.process = 0
                self._ended(status, usage)
                return
            if self.meter is not None:
                self.peak_mb = max(self.peak_mb, self.meter.read(frozenset())[0] - self.before_mb)
            if time.monotonic() > until:
                self.end()
                self._write(ok=False, why=f"not done within {time.monotonic() - self.began:.0f} s; see {self.log}")
                return
            time.sleep(LOOKS_S)

    def end(self) -> None:
        """End it and all that it started, if it still runs."""
        if self.process:
            os.killpg(self.process, signal.SIGKILL)
            os.wait4(self.process, 0)
            self.process = 0

    def _ended(self, status: int, usage: resource.struct_rusage) -> None:
        if not self.file.is_file():
            self._write(ok=False, why=f"ended by {status}; see {self.log}")
        found = json.loads(self.file.read_text())
        found |= {"cpu_s": usage.ru_utime + usage.ru_stime, "driver_peak_mb": self.peak_mb if self.meter else None}
        atomic.write_json(self.file, found)


def write_report(kept: Path, results: Path, order: list[str]) -> str:
    """Write RESULTS/CARD/DATE.json and .md of the parts that there are; the latter's text."""
    files = {name: kept / f"{name}.json" for name in order}
    found = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    machine = found.get("machine", {}).get("result") or {"card": "unknown card", "cores": usable_cores()}
    folder = results / "_".join("".join(c if c.isalnum() else " " for c in machine["card"]).split())
    folder.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    text = words.report(found, machine, date, [name for name in order if name not in found])
    atomic.write_json(folder / f"{date}.json", {"date": date, "machine": machine, "parts": found})
    atomic.write_text(folder / f"{date}.md", text)
    return text


if __name__ == "__main__":
    sys.exit(main())
