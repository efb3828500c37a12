"""Stages as SLURM jobs: a training handed to ``slurm/fit.sbatch``, and what the queue knows of it."""

from __future__ import annotations

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flarecps.errors import ConfigError
from flarecps.experiments.stages import Stage, StageRecords

FIT_SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "fit.sbatch"


@dataclass(frozen=True)
class SlurmJobs:
    """Submits trainings; the user's ``options`` of sbatch come last and win."""

    options: str = ""

    def words(self, stage: Stage) -> list[str]:
        """``sbatch [options] slurm/fit.sbatch --config C.yaml [overrides...]``; ConfigError without the script."""
        if not FIT_SCRIPT.is_file():
            raise ConfigError(
                f"{FIT_SCRIPT}: no such file; --submit needs a checkout of flarecps, not only the package"
            )
        own = [f"--job-name=flarecps-{stage.name}", f"--ntasks-per-node={stage.gpus}", f"--gres=gpu:{stage.gpus}"]
        return ["sbatch", "--parsable", *own, *shlex.split(self.options), str(FIT_SCRIPT), *stage.words[1:]]

    def command(self, stage: Stage) -> str:
        """``words`` as a line to read."""
        return shlex.join(self.words(stage))

    def submit(self, stage: Stage, records: StageRecords) -> str:
        """Submit the stage and keep the job's number; what to say of it. Raises ConfigError when sbatch fails."""
        records.clear_stale(stage)
        try:
            done = subprocess.run(self.words(stage), check=False, capture_output=True, text=True)
        except FileNotFoundError:
            raise ConfigError("sbatch: not found; --submit works where SLURM's commands are at hand") from None
        if done.returncode:
            raise ConfigError(f"sbatch ended with exit code {done.returncode}: {done.stderr.strip()}")
        job = done.stdout.strip().split(";")[0]
        before = records.read(stage).get("starts", [])
        records.write(stage, "submitted", job=job, starts=[*before, f"job {job}"])
        return f"submitted as job {job}; call again when it has ended"


def queue_state(job: str) -> str:
    """What to say of a job that waits or runs; empty when the queue does not know it any more."""
    words = ["squeue", "--noheader", "--format=%T", f"--jobs={job}"]
    try:
        done = subprocess.run(words, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return f"job {job} was submitted; squeue is not at hand here to ask for it"
    state = done.stdout.strip().lower()
    return f"job {job} is {state}" if state else ""
