"""What the environment says of a training's processes: believed where it can be true, ignored or refused elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from stores import TinyStores, fit_words

from flarecps.cli.main import main
from flarecps.cli.training_options import PROCESS_NUMBERS
from flarecps.errors import ConfigError
from flarecps.training.launching import check_processes, cluster_environment, started_by_srun, under_slurm

JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "fit", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
BATCH = {**JOB, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
TASK = {**BATCH, "SLURM_STEP_ID": "0"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets these variables, and no other that says what processes there are."""
    for name in [*os.environ]:
        if name in (*PROCESS_NUMBERS, "MASTER_ADDR") or name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(rank_zero_only, "rank", 0)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def check(processes: int, nodes: int = 1) -> Any:
    """Raises what a trainer of so many processes would; the environment by which they meet."""
    found = cluster_environment() or LightningEnvironment()
    check_processes(found, processes, nodes)
    return found


@pytest.mark.parametrize(
    ("variables", "kind", "in_a_job"),
    [
        ({}, None, False),
        (TASK, SLURMEnvironment, True),
        (BATCH, LightningEnvironment, True),  # without srun
        (BATCH | {"SLURM_STEP_ID": str(0xFFFFFFFB)}, LightningEnvironment, True),
        (JOB, LightningEnvironment, False),  # salloc's shell
        (TASK | {"SLURM_JOB_NAME": "interactive"}, LightningEnvironment, False),
    ],
)
def test_srun_deals_out_ranks_and_nothing_else_of_slurms(
    variables: dict[str, str], kind: Any, in_a_job: bool, environment: Any
) -> None:
    environment(**variables)
    found = cluster_environment()
    assert (None if found is None else type(found), under_slurm()) == (kind, in_a_job)
    assert started_by_srun() == (kind is SLURMEnvironment)


def test_what_slurm_was_asked_and_lightning_can_not_is_one_line(environment: Any) -> None:
    environment(**{name: value for name, value in TASK.items() if name != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(ConfigError, match=r"ntasks-per-node"):
        cluster_environment()


@pytest.mark.parametrize(
    ("variables", "processes", "nodes", "told"),
    [
        (TASK, 2, 1, None),
        (TASK, 4, 1, r"num_nodes is 4, but SLURM has started 2 .*; start it by 'srun'"),
        (TASK, 1, 1, "num_nodes is 1, but SLURM has started 2"),  # each would train alone, in one folder
        (TASK | {"SLURM_NTASKS_PER_NODE": "4"}, 2, 1, "--ntasks-per-node=4` does not match"),
        (TASK | {"SLURM_NTASKS": "1"}, 1, 1, None),  # srun -n1, in a larger job
        (BATCH, 2, 1, None),  # Lightning starts them
        (BATCH, 4, 2, r"which of its nodes this is; in a SLURM job start it by 'srun'"),
        ({"NODE_RANK": "0", "MASTER_PORT": "29500"}, 4, 2, None),
        ({"LOCAL_RANK": "1"}, 2, 1, r"no MASTER_PORT .* unset LOCAL_RANK"),
        ({"LOCAL_RANK": "1", "MASTER_PORT": "29500"}, 2, 1, None),
        ({"LOCAL_RANK": "1"}, 1, 1, None),
    ],
)
def test_nobody_is_waited_for_who_is_not_there(
    variables: dict[str, str], processes: int, nodes: int, told: str | None, environment: Any
) -> None:
    environment(**variables)
    if told is None:
        check(processes, nodes)
    else:
        with pytest.raises(ConfigError, match=told):
            check(processes, nodes)


def test_ranks_that_are_started_here_meet_here(environment: Any) -> None:
    """Whatever another training's shell has left."""
    environment(MASTER_ADDR="node-that-is-gone", MASTER_PORT="1", WORLD_SIZE="8", RANK="3")
    meeting = check(2)
    assert meeting.main_address == "127.0.0.1"
    assert meeting.main_port > 1


@pytest.mark.parametrize("name", PROCESS_NUMBERS)
def test_numbers_that_are_none_are_named(name: str, environment: Any, capsys: pytest.CaptureFixture[str]) -> None:
    environment(**{name: "x"})
    assert main(["fit", "--help"]) == 2
    said = capsys.readouterr().err
    assert f"the environment's {name} is 'x': expected a whole number; unset it" in said
    assert said.count("\n") == 1


def test_a_rank_that_is_left_over_silences_no_training(
    tiny_stores: TinyStores, tmp_path: Path, environment: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    environment(RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", MASTER_ADDR="node9", MASTER_PORT="29500")
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as Lightning reads it while it is imported
    assert main(fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run", "--data.fold", 0, epochs=1)) == 0
    assert (tmp_path / "run" / "csv" / "metrics.csv").is_file()
    assert "written: " in capsys.readouterr().out


def test_a_training_is_refused_before_it_waits(
    tiny_stores: TinyStores, tmp_path: Path, environment: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    environment(**TASK)
    assert main(fit_words("phantom_3d.yaml", tiny_stores, tmp_path / "run")) == 2
    assert "num_nodes is 1, but SLURM has started 2" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
