"""2,050 small synthetic scans planned and preprocessed: memory over time, and a run killed in the middle.

    python benchmarks/preprocessing/scale.py OUT [--labelled 50] [--unlabelled 2000] [--workers 2]

Runs `flarecps plan` and `flarecps preprocess` as users do. While they run, the RAM of the parent and of its workers is
sampled. Then a second store is made: its process group is killed (kill -9) when half of the cases are there, and the
same command is given again; both stores must be equal, file by file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SAMPLE_SECONDS = 0.5
WORKER_MB = 120  # a worker with its libraries loaded holds more; multiprocessing's own helper process, less


def main() -> None:
    """Make the data, run, kill, run again, compare; write OUT/scale.json; exit 1 when the stores differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--labelled", type=int, default=50)
    parser.add_argument("--unlabelled", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    data, plan = options.out / "data", options.out / "plan.json"
    write_data(data, options.labelled, options.unlabelled)
    total = options.labelled + options.unlabelled
    words = ["--workers", str(options.workers)]
    planning = run(["plan", str(data), "--out", str(plan), *words])
    command = ["preprocess", str(data), str(plan), *words]
    whole = run([*command, "--out", str(options.out / "undisturbed")])
    killed = run([*command, "--out", str(options.out / "killed")], kill_at=total // 2)
    left = len(list((options.out / "killed" / "cases").glob(".partial-*")))
    again = run([*command, "--out", str(options.out / "killed")])
    one, other = digests(options.out / "undisturbed"), digests(options.out / "killed")
    result = {
        "cases": total,
        "plan": planning,
        "preprocess": whole,
        "killed_after_cases": killed["finished_cases"],
        "partial_folders_left_by_the_kill": left,
        "continued": again,
        "files": len(one),
        "files_that_differ": sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name)),
        "digest": hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest(),
    }
    (options.out / "scale.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    show(result)
    sys.exit(1 if result["files_that_differ"] or len(one) < total else 0)


def write_data(folder: Path, labelled: int, unlabelled: int) -> None:
    """Scans of varied size with a block of one organ, in nnU-Net v2's raw layout with ``imagesUn``."""
    if (folder / "dataset.json").exists():
        return
    for number in range(labelled + unlabelled):
        generator = np.random.default_rng(number)
        shape = tuple(int(edge) for edge in generator.integers((20, 40, 40), (30, 56, 56)))
        kind = "Tr" if number < labelled else "Un"
        space = Space.canonical(shape, (5.0, 2.0 + 0.1 * (number % 5), 2.0 + 0.1 * (number % 5)))
        image = generator.normal(0, 40, shape).astype(np.int16)
        labels = np.zeros(shape, np.uint8)
        labels[5:12, 8:24, 10:30] = 1
        image[labels == 1] += 100
        write_volume(folder / f"images{kind}" / f"case_{number:04d}_0000.nii.gz", image, space)
        if kind == "Tr":
            write_volume(folder / "labelsTr" / f"case_{number:04d}.nii.gz", labels, space)
    content = {
        "name": "Many",
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "organ": 1},
        "numTraining": labelled,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def run(words: list[str], kill_at: int | None = None) -> dict:
    """Seconds and RAM of one command: MB of the parent and its largest worker; killed at that many cases."""
    cases = Path(words[words.index("--out") + 1]) / "cases"
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "flarecps", *words], start_new_session=True, stdout=subprocess.DEVNULL
    )
    parent, samples = psutil.Process(process.pid), []
    while process.poll() is None:
        time.sleep(SAMPLE_SECONDS if kill_at is None else 0.05)
        samples.append((time.perf_counter() - started, *rss_mb(parent)))
        if kill_at is not None and finished(cases) >= kill_at:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if kill_at is None and process.returncode != 0:
        sys.exit(f"flarecps {' '.join(words)}: exit code {process.returncode}")
    seconds = time.perf_counter() - started
    samples = [row for row in samples if row[2] > WORKER_MB]  # without start-up and shut-down
    every, settled = max(1, len(samples) // 20), samples[len(samples) // 5 :]
    return {
        "seconds": round(seconds, 1),
        "finished_cases": finished(cases),
        "parent_mb_first_last_peak": [round(value) for value in first_last_peak([row[1] for row in settled])],
        "worker_mb_first_last_peak": [round(value) for value in first_last_peak([row[2] for row in settled])],
        "samples_s_parent_mb_worker_mb": [[round(value, 1) for value in row] for row in samples[::every]],
    }


def first_last_peak(values: list[float]) -> tuple[float, float, float]:
    """Medians of the first and last tenth of the samples (the first fifth left out before), and the largest."""
    if not values:
        return 0.0, 0.0, 0.0
    tenth = max(1, len(values) // 10)
    return float(np.median(values[:tenth])), float(np.median(values[-tenth:])), max(values)


def rss_mb(parent: psutil.Process) -> tuple[float, float]:
    """RAM of the parent, and of the largest of its children; 0 for what is gone."""

    def of(process: psutil.Process) -> float:
        try:
            return process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            return 0.0

    try:
        children = parent.children()
    except psutil.NoSuchProcess:
        children = []
    return of(parent), max(map(of, children), default=0.0)


def finished(cases: Path) -> int:
    """How many finished cases a store holds."""
    return sum(not name.startswith(".") for name in os.listdir(cases)) if cases.is_dir() else 0


def digests(store: Path) -> dict[str, str]:
    """SHA-256 of every file of a store, by its name in it."""
    files = sorted(path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def show(result: dict) -> None:
    """What happened, as a Markdown table."""
    print("\n| command | cases | s | parent, MB: start → end (peak) | largest worker, MB: start → end (peak) |")
    print("|---|--:|--:|--:|--:|")
    for name in ("plan", "preprocess", "continued"):
        of = result[name]
        parent, worker = of["parent_mb_first_last_peak"], of["worker_mb_first_last_peak"]
        print(
            f"| {name} | {result['cases']} | {of['seconds']} | {parent[0]} → {parent[1]} ({parent[2]}) | "
            f"{worker[0]} → {worker[1]} ({worker[2]}) |"
        )
    print(
        f"\nkilled after {result['killed_after_cases']} cases, which left "
        f"{result['partial_folders_left_by_the_kill']} partial folders; after continuing, "
        f"{len(result['files_that_differ'])} of {result['files']} files differ from the undisturbed store"
    )


if __name__ == "__main__":
    main()
