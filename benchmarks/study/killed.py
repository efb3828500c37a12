"""From the small phantom's raw folder to the recommended model, killed three times, beside an undisturbed study.

    python benchmarks/study/killed.py OUT [--protocol phantom_small]

Each study is killed (SIGKILL) after a third and two thirds of its trainings and once while it segments, and goes on by
the same command. Prints both times and whether tables, rules and verdict are equal; exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from flarecps.durations import duration_in_words

FLARECPS = (sys.executable, "-m", "flarecps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--protocol", default="phantom_small")
    options = parser.parse_args()
    data, whole, broken = (options.out / name for name in ("phantom", "whole", "broken"))
    if not (data / "dataset.json").is_file():
        words = ("phantom", str(data), "--labelled", "12", "--unlabelled", "24", "--test", "2")
        subprocess.run([*FLARECPS, *words], check=True)
    command = [*FLARECPS, "study", str(data), "--protocol", options.protocol, "--out"]
    began = time.monotonic()
    subprocess.run([*command, str(whole)], check=True)
    print(f"undisturbed: {duration_in_words(time.monotonic() - began)}", flush=True)
    began = time.monotonic()
    trainings = len(list((whole / "stages").glob("train_*.json")))
    for kind, number in (("train", trainings // 3), ("train", 2 * trainings // 3), ("segment", 3)):
        kill_in([*command, str(broken)], broken / "stages", kind, number)
    subprocess.run([*command, str(broken)], check=True)
    print(f"killed three times: {duration_in_words(time.monotonic() - began)}")
    ours, theirs = kept(whole), kept(broken)
    differing = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    print(f"{len(ours)} files compared, {len(differing)} differ {differing[:5]}")
    return int(bool(differing))


def kill_in(command: list[str], records: Path, kind: str, number: int) -> None:
    """Start the study and kill it, and what it started, while the ``number``-th stage of a kind is at work."""
    running = subprocess.Popen(command, start_new_session=True)
    while running.poll() is None:
        stages = [json.loads(path.read_text()) for path in records.glob(f"{kind}_*.json")]
        if len(stages) >= number and any(one["state"] == "started" for one in stages):
            time.sleep(10)  # in the middle of it
            os.killpg(running.pid, signal.SIGKILL)
            print(f"killed in {kind} {number}", flush=True)
        time.sleep(0.5)


def kept(out: Path) -> dict[str, str]:
    """Tables, rules and what the verdict says, by name; without what it took."""
    paths = [path for folder in ("results", "rules", "model") for path in (out / folder).rglob("*") if path.is_file()]
    found = {str(path.relative_to(out)): path.read_text().replace(str(out), "OUT")
             for path in paths if path.name != "standings.csv"}  # fmt: skip
    content = json.loads((out / "verdict.json").read_text())
    return found | {"verdict": json.dumps([content["recommended"], content["sentences"]])}


if __name__ == "__main__":
    sys.exit(main())
