"""The job scripts without a cluster: their syntax, and the commands that the pipeline would give."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from stores import REPOSITORY

FOLDER = REPOSITORY / "slurm"
SCRIPTS = sorted(path for path in FOLDER.iterdir() if path.suffix in (".sbatch", ".sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)


def test_a_dry_run_of_the_pipeline_prints_the_chain(tmp_path: Path) -> None:
    dataset = tmp_path / "a data set"
    (dataset / "labelsTs").mkdir(parents=True)
    words = [FOLDER / "pipeline.sh", "--dry-run", "--preprocess-shards", "4", dataset, tmp_path / "work", "c.yaml"]
    environment = os.environ | {"FIT_OPTIONS": "--nodes=2 --time=02:00:00"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    jobs = [shlex.split(line) for line in done.stdout.splitlines()]
    waits = [[word for word in job if word.startswith("--dependency=")] for job in jobs]
    names = ["plan", "preprocess", "fit", "segment", "score"]
    assert waits == [[], *([f"--dependency=afterok:<{name}>"] for name in names[:-1])]
    assert "--array=1-4" in jobs[1]
    assert {"--nodes=2", "--time=02:00:00", "c.yaml"} <= set(jobs[2])
    assert str(dataset / "imagesTs") in jobs[3], "a space in a name does no harm"
    assert not (tmp_path / "work").exists()


def test_a_pipeline_without_its_words_says_what_it_wants() -> None:
    done = subprocess.run([FOLDER / "pipeline.sh", "dataset"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "DATASET WORK CONFIG.yaml" in done.stderr


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        ({}, "submit as a job array"),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "3"}, "FLARECPS_SHARDS=N"),
    ],
)
@pytest.mark.parametrize("script", ["preprocess", "segment"])
def test_a_task_that_cannot_know_its_share_refuses(script: str, array: dict[str, str], complaint: str) -> None:
    """A task run again alone would otherwise take all cases for its share."""
    environment = os.environ | array | {"SLURM_ARRAY_TASK_COUNT": "1", "FLARECPS": "echo"}
    words = ["bash", FOLDER / f"{script}.sbatch", "a", "b", "c"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert complaint in done.stderr
    assert done.stdout == ""
