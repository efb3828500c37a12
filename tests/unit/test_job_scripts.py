"""The job scripts without a cluster: their syntax, and the commands that the pipeline would give."""

from __future__ import annotations

import os
import re
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


def test_a_chain_waits_for_what_is_not_done_and_the_pipeline_for_whichever_is(tmp_path: Path) -> None:
    words = [FOLDER / "pipeline.sh", "--dry-run", "--fit-jobs", "3", "data", tmp_path / "work", "c.yaml"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    jobs = [shlex.split(line) for line in done.stdout.splitlines()]
    waits = [word.partition("=")[2] for job in jobs for word in job if word.startswith("--dependency=")]
    before = "afterok:<preprocess>"
    assert waits[1:] == [before, f"{before},afternotok:<1>", f"{before},afternotok:<1>:<2>", "afterok:<fit>"]
    assert all("--no-requeue" in job for job in jobs[2:5])
    for words in (["0", "a"], ["a", "b"], ["3"], ["--what", "3", "a"]):
        refused = subprocess.run([FOLDER / "chain.sh", *words], capture_output=True, text=True, check=False)
        assert refused.returncode == 2
        assert "fit.sbatch" in refused.stderr


SET_UP = re.compile(r"# The site's set-up.*?read -r -a flarecps [^\n]*\n", re.DOTALL)


def test_every_job_is_set_up_in_the_same_way(tmp_path: Path) -> None:
    """``sbatch`` copies a script alone, so each holds the same lines: a file is sourced, and must succeed."""
    (lines,) = {SET_UP.search(path.read_text())[0] for path in SCRIPTS if path.suffix == ".sbatch"}  # type: ignore[index]
    assert "FLARECPS_SETUP" in lines
    script, setup = FOLDER / "command.sbatch", tmp_path / "flarecps-setup.sh"
    setup.write_text('echo "$UNBOUND"; false; FLARECPS="echo a-command"\n')  # as modules and conda do
    other = tmp_path / "other.sh"
    other.write_text("false\n")
    for named, code, said in (
        (None, 0, "a-command plan DATA"),
        ("other.sh", 2, "other.sh: its last command ended with 1"),
        (str(setup), 0, "a-command plan DATA"),
        ("none.sh", 2, "none.sh is no file"),
    ):
        environment = {"PATH": os.environ["PATH"]} | ({"FLARECPS_SETUP": named} if named else {})
        words = ["bash", script, "plan", "DATA"]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert said in done.stdout + done.stderr


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
