"""A study as a chain of SLURM jobs: stores, arrays of trainings, labels of teachers between them, and the judging."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from itertools import takewhile
from pathlib import Path

from flarecps.atomic import write_text
from flarecps.errors import ConfigError
from flarecps.experiments.runner import FIT_SCRIPT, submitted_job
from flarecps.experiments.stages import Stage

COMMAND_SCRIPT = FIT_SCRIPT.with_name("command.sbatch")
_ARRAY = """#!/bin/bash
# One training of a study as a task of an array: sbatch --array=1-{count} {name}
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
exec bash {folder}/"$SLURM_ARRAY_TASK_ID".sh
"""


@dataclass(frozen=True)
class ClusterJob:
    """One link of the chain: what ``sbatch`` is given, each waiting for the one before it."""

    name: str
    words: tuple[str, ...]


def write_chain(
    folder: Path, again: Sequence[str], before: Sequence[Stage], judged: Sequence[Stage]
) -> list[ClusterJob]:
    """The scripts of a study in ``folder`` (OUT/slurm), and its jobs in order.

    ``again`` are the words of ``flarecps`` that go on with the study; ``before`` and ``judged`` its stages that are not
    done. ConfigError without the job scripts that come with flarecps.
    """
    for script in (FIT_SCRIPT, COMMAND_SCRIPT):
        if not script.is_file():
            raise ConfigError(f"{script}: no such file; it comes with flarecps: install it again")
    folder.mkdir(parents=True, exist_ok=True)
    command = ("--gres=gpu:1", "--time=24:00:00", f"--output={folder}/%x-%j.out", str(COMMAND_SCRIPT), *again)
    jobs = [ClusterJob("prepare", (*command, "--stages", *(escape(one.name) for one in before)))] if before else []
    waiting = [one for one in judged if one.gpus or one.words[:1] == ("pseudo-label",)]
    known, generation = {one.name for one in waiting}, 0
    while waiting:
        ready = [one for one in waiting if not known.intersection(one.after)]
        trainings, labels = [one for one in ready if one.gpus], [one for one in ready if not one.gpus]
        if trainings:
            jobs.append(_array(folder, f"trainings_{generation}", trainings))
        if labels:
            jobs.append(
                ClusterJob(f"labels_{generation}", (*command, "--stages", *(escape(one.name) for one in labels)))
            )
        known -= {one.name for one in ready}
        waiting, generation = [one for one in waiting if one.name in known], generation + 1
    return [*jobs, ClusterJob("judge", command)]


def _array(folder: Path, name: str, trainings: Sequence[Stage]) -> ClusterJob:
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(trainings, start=1):
        line = shlex.join([str(FIT_SCRIPT), *stage.words[1:]])
        write_text(place / f"{number}.sh", f"# {stage.name}\nexec bash {line}\n")
    script = folder / f"{name}.sbatch"
    text = _ARRAY.format(count=len(trainings), name=script.name, folder=shlex.quote(str(place)))
    write_text(script, text)
    return ClusterJob(name, (f"--array=1-{len(trainings)}", f"--output={folder}/%x-%A_%a.out", str(script)))


def submit_chain(jobs: Sequence[ClusterJob], options: Sequence[str]) -> list[str]:
    """Submit the jobs, each after the one before it; a line for each. ConfigError when sbatch refuses."""
    said, last = [], ""
    for job in jobs:
        own = list(takewhile(lambda word: word.startswith("--"), job.words))
        wait = [f"--dependency=afterok:{last}", "--kill-on-invalid-dep=yes"] if last else []
        names = ["sbatch", "--parsable", f"--job-name=flarecps-{job.name}"]
        words = [*names, *wait, *own, *options, *job.words[len(own) :]]
        last = submitted_job(words)
        said.append(f"{job.name}: job {last}")
    return said
