"""What a training must ask of SLURM: whether it runs there, and to be started again."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from lightning.pytorch.plugins.environments import SLURMEnvironment

REQUEUE_FILE = "FLARECPS_REQUEUE_FILE"  # environment variable: where a container leaves word for the job script
ANSWER_WITHIN_S = 30


def under_slurm() -> bool:
    """Whether this process is a task of a SLURM job (an interactive shell of one is not)."""
    return "SLURM_NTASKS" in os.environ and SLURMEnvironment.job_id() is not None


def job_name(environment: Mapping[str, str]) -> str:
    """How ``scontrol`` calls the present job: its number, and in an array the task's as well.

    The last task of an array has the array's own number, by which all of its tasks would be requeued.

    >>> job_name({"SLURM_JOB_ID": "12"})
    '12'
    >>> job_name({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"})
    '12_3'
    """
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def requeue() -> str | None:
    """Ask SLURM to start this job again; None, or in one line why it could not be asked.

    Where ``scontrol`` is missing or fails, as in most containers, and the job script has named a file in
    ``FLARECPS_REQUEUE_FILE``, that file is made, and the job script asks.
    """
    complaint = _ask_scontrol(job_name(os.environ))
    file = os.environ.get(REQUEUE_FILE)
    if complaint is None or not file:
        return complaint
    Path(file).touch()
    return None


def _ask_scontrol(job: str) -> str | None:
    program = shutil.which("scontrol")
    if program is None:
        return "there is no scontrol here"
    try:
        done = subprocess.run(
            [program, "requeue", job], capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"scontrol requeue {job}: {error}"
    return None if done.returncode == 0 else f"scontrol requeue {job}: {' '.join(done.stderr.split())}"
