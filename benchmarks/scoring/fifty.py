"""Fifty real cases scored with two workers, killed on the way, started again: the result must be the same.

    python benchmarks/scoring/fifty.py LABELS_FOLDER OUT [--cases 50] [--kill-after 0.4] [--protocol strict]

Predictions are the references, bent (``deform.py``; made once, kept under OUT/predictions). The command runs once
undisturbed; then into another folder, its whole process group killed with SIGKILL as soon as the given share of cases
is done, and started again. Both results must be equal byte by byte; otherwise exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from deform import deformed

from flarecps.batch_processing import process_cases
from flarecps.volumes.io import read_labels, scan_name, write_labels


def main() -> None:
    """Make the predictions, score twice, compare, write OUT/fifty.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--kill-after", type=float, default=0.4, help="share of the cases done by then")
    parser.add_argument("--protocol", choices=("official", "strict"), default="strict")
    options = parser.parse_args()
    predictions, chosen = options.out / "predictions", options.out / "references"
    for folder in (predictions, chosen):
        folder.mkdir(parents=True, exist_ok=True)
    for link in chosen.iterdir():
        link.unlink()
    references = sorted(options.labels.glob("*.nii.gz"))[: options.cases]
    for path in references:
        (chosen / path.name).symlink_to(path.resolve())
    jobs = [(scan_name(path), (path, predictions / path.name, seed)) for seed, path in enumerate(references)]
    failed = [one.error for one in process_cases(predict, jobs, 2, title="Bending the references") if one.failed]
    if failed:
        sys.exit(failed[0])
    for name in ("undisturbed", "killed"):
        shutil.rmtree(options.out / name, ignore_errors=True)

    started = time.perf_counter()
    before = os.times()
    start(options, "undisturbed").communicate()
    after = os.times()
    whole_s = time.perf_counter() - started

    running = start(options, "killed")
    kept = options.out / "killed" / "cases"
    while running.poll() is None and count(kept) < options.kill_after * len(references):
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    at_kill = count(kept)
    print(f"killed with {at_kill} of {len(references)} cases done", flush=True)
    started = time.perf_counter()
    start(options, "killed").communicate()
    rest_s = time.perf_counter() - started

    files = ("scores.csv", "scores.json", "scores.md")
    same = {name: (options.out / "undisturbed" / name).read_bytes() == (options.out / "killed" / name).read_bytes()
            for name in files}  # fmt: skip
    result = {
        "cases": len(references),
        "protocol": options.protocol,
        "workers": 2,
        "undisturbed_s": round(whole_s, 1),
        "undisturbed_s_per_case": round(whole_s / len(references), 2),
        "undisturbed_cpu_s_per_case": round(
            (after.children_user + after.children_system - before.children_user - before.children_system)
            / len(references),
            2,
        ),
        "done_when_killed": at_kill,
        "rest_s": round(rest_s, 1),
        "largest_process_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
        "same_bytes": same,
        "warnings": sum(bool(case["warnings"]) for case in read(options.out / "killed")["cases"].values()),
        "mean": read(options.out / "killed")["mean"],
    }
    (options.out / "fifty.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    if not all(same.values()) or not 0 < at_kill < len(references):
        sys.exit("not the same result, or not killed on the way")


def predict(job: tuple[Path, Path, int]) -> None:
    """Write one bent reference, unless it is there."""
    reference, prediction, seed = job
    if not prediction.exists():
        volume = read_labels(reference)
        labels = deformed(volume.array[0], volume.space.spacing_mm, seed, sd_mm=1.0 + seed % 5)
        write_labels(prediction, labels, volume.source)


def start(options: argparse.Namespace, name: str) -> subprocess.Popen:
    """The command, in a process group of its own."""
    command = [sys.executable, "-m", "flarecps", "score", options.out / "predictions", options.out / "references"]
    command += ["--out", options.out / name, "--protocol", options.protocol, "--workers", "2"]
    return subprocess.Popen(list(map(str, command)), start_new_session=True)


def read(folder: Path) -> dict:
    """The scores of one run."""
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def count(kept: Path) -> int:
    """Cases whose scores are there."""
    return len([path for path in kept.glob("*.json") if not path.name.startswith(".")]) if kept.is_dir() else 0


if __name__ == "__main__":
    main()
