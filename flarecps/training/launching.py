"""How the processes of a training are started: by SLURM's ``srun``, by ``torchrun``, by hand, or by Lightning itself.

Lightning believes the environment's variables about it wherever they are set: also in the shell of a job, or where
another program has left them.
"""

from __future__ import annotations

import os

import torch.distributed as dist
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from flarecps.errors import ConfigError

STEPS = 2**32 - 16  # of a job; SLURM's greater numbers are a batch script's, and an interactive shell's
SRUN = "start it by 'srun', with one task per process (--ntasks-per-node, as in slurm/fit.sbatch)"


def under_slurm() -> bool:
    """Whether this process is at work for a SLURM job, which may be requeued (an interactive shell of one is not)."""
    return {"SLURM_NTASKS", "SLURM_PROCID"} <= os.environ.keys() and SLURMEnvironment.job_id() is not None


def started_by_srun() -> bool:
    """Whether this process is one of as many as the job has tasks: that of a batch script, for example, is alone."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return under_slurm() and step.isdecimal() and int(step) < STEPS


def cluster_environment() -> ClusterEnvironment | None:
    """What tells a process of a SLURM job its rank; None where Lightning finds it by itself.

    Where ``srun`` has started no processes, Lightning does, as without SLURM. Where it has, requeueing is left to
    ``Requeue``: Lightning's own saves wherever the signal interrupts, between two optimisers' steps as well.
    """
    if "SLURM_NTASKS" not in os.environ or dist.is_torchelastic_launched():
        return None
    if not started_by_srun():
        return LightningEnvironment()
    try:
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:  # of options of the job
        raise ConfigError(f"SLURM: {error}") from None


def check_processes(environment: ClusterEnvironment, processes: int, nodes: int) -> None:
    """Raise ConfigError where other processes are at work than a trainer counts, and would be waited for, or train on a
    part of each batch. What the environment says to a process that is alone, or starts the others, counts no more.
    """
    wanted = f"trainer.devices × trainer.num_nodes is {processes}"
    if isinstance(environment, SLURMEnvironment):
        if (started := environment.world_size()) != processes:
            raise ConfigError(f"{wanted}, but SLURM has started {started} of the training's processes; {SRUN}")
        try:
            if processes > 1:  # 'srun -n1' in a larger job is right
                environment.validate_settings(processes // nodes, nodes)
        except ValueError as error:  # which Lightning raises when it begins to train
            raise ConfigError(f"SLURM: {error}") from None
    elif isinstance(environment, LightningEnvironment) and processes > 1:
        if nodes > 1 and "NODE_RANK" not in os.environ:
            raise ConfigError(
                f"{wanted}, and nothing says which of its nodes this is; in a SLURM job {SRUN}, elsewhere by 'torchrun'"
            )
        if not environment.creates_processes_externally and nodes == 1:
            os.environ.pop("MASTER_PORT", None)  # any free one
            os.environ["MASTER_ADDR"] = "127.0.0.1"
        elif "MASTER_PORT" not in os.environ:
            raise ConfigError(
                "LOCAL_RANK says that this is one of several processes, but no MASTER_PORT says where they meet; "
                "set it for each (torchrun does), or unset LOCAL_RANK"
            )
    if processes == 1:
        rank_zero_only.rank = 0  # type: ignore[attr-defined]  # else RANK's, and it would write nothing and say nothing
