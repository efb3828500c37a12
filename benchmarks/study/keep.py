"""What is kept of a study whose judges are no folds: scores, curves and a record of every training.

    python benchmarks/study/keep.py OUT RESULTS

OUT is the folder of ``flarecps study``. RESULTS/runs/LABELS/ARM/seed_N/ gets scores_SIBLING.csv of every cell that is
scored (scores_SIBLING_WAY.csv after post-processing), metrics.csv and run.json (command, commit, machine, time) of
every training that is done. What stands there is not written again, so this may be repeated while a study runs. A cell
that was scored otherwise before, by another training of its seed, keeps what it has: other scores and records of this
one would not belong to it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from flarecps.atomic import write_json
from flarecps.experiments.runner import processor_name
from flarecps.experiments.stages import training_is_finished

ROOT = Path(__file__).resolve().parents[2]
CELLS = "*/*/fold_0/seed_*"  # labels, arm, fold, seed


def keep(out: Path, results: Path) -> int:
    """Copy what is done and not kept yet; the number of new records."""
    new, others = 0, set[Path]()  # folders that hold another training
    tables = sorted(out.glob(f"scores/*/{CELLS}/*/scores.csv"), key=lambda one: (one.parts[-7] != "none", one))
    for table in tables:  # those as they are first: the others belong to them
        way, sibling = table.relative_to(out / "scores").parts[0], table.parent.name
        folder = _folder(table.parents[1], results)
        kept = folder / f"scores_{sibling if way == 'none' else f'{sibling}_{way}'}.csv"
        if way == "none" and kept.is_file() and kept.read_bytes() != table.read_bytes():
            others.add(folder)
            print(f"not kept: {table}: {folder.name} of {folder.parent.name} was scored otherwise by another training")
        elif folder not in others and not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(table, kept)
    for run in sorted(out.glob(f"runs/{CELLS}")):
        kept = _folder(run, results)
        if kept.is_dir() and kept not in others and training_is_finished(run) and not (kept / "run.json").is_file():
            shutil.copyfile(run / "csv" / "metrics.csv", kept / "metrics.csv")
            write_json(kept / "run.json", record(run, out))  # last: it says "done"
            new += 1
    return new


def record(run: Path, out: Path) -> dict[str, Any]:
    """Command, versions, machine and cost of a finished training.

    The time is None where a session's is not known, as of one that a SLURM job ran: the study has no record of it.
    """
    labels, arm, _, seed = run.parts[-4:]
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    stage = out / "stages" / f"train_{labels}.{arm}.fold_0.{seed}.json"
    trained = {"command": environment["command"], "starts": []}
    if stage.is_file():
        trained = json.loads(stage.read_text(encoding="utf-8"))
    sessions = environment["sessions"]  # one that was killed was of unknown length
    counted = all(one["finished"] for one in sessions) and len(trained["starts"]) >= len(sessions)
    machine = environment["machine"]
    gpus = ", ".join(map(str, machine["gpus"])) or "no GPU"
    return {
        "arm": arm,
        "labels": labels,
        "seed": int(seed.removeprefix("seed_")),
        "command": trained["command"].replace(str(out), "OUT").replace(f"{ROOT}/", "./"),
        "git": environment["git"],
        "versions": environment["versions"],
        "processor": f"{processor_name()}, {gpus}",
        "threads": machine["threads"],
        "sessions": len(sessions),
        "training_cpu_minutes": round(trained["cpu_s"] / 60, 1) if counted else None,
        "finished": environment["finished"],
    }


def _folder(cell: Path, results: Path) -> Path:
    labels, arm, _, seed = cell.parts[-4:]
    return results / "runs" / labels / arm / seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    print(f"{keep(options.out.resolve(), options.results)} new trainings kept")


if __name__ == "__main__":
    main()
