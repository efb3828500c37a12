"""Stopping at a step's boundary when a signal asks for it, with a checkpoint that resumes exactly there.

And what SLURM is asked: whether the training runs there, and to start it again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchmetrics import Metric

from flarecps.losses.ranks import rank_count
from flarecps.training import stop_signals
from flarecps.training.checkpoint_files import FOLDER, REQUEUE
from flarecps.training.module import segmentation_module
from flarecps.training.ranks import gather_from_ranks
from flarecps.training.stop_signals import StopRequest

RUNNING = "flarecps_running_metrics"  # entry of a checkpoint that was written within an epoch
UPDATES = "updates"  # beside the names of a metric's states
REQUEUE_FILE = "FLARECPS_REQUEUE_FILE"  # environment variable: where a container leaves word for the job script
REQUEUE_ALLOWED = "FLARECPS_REQUEUE"  # environment variable: "no" where the job may not be requeued
ANSWER_WITHIN_S = 30


class StoppedBySignal(BaseException):
    """The training has stopped on all ranks, as a signal asked; ``saved`` is what it resumes from, if not ``last``.

    No ``Exception``: nothing went wrong, and nobody should handle it as if it had.
    """

    def __init__(self, request: StopRequest, where: str, saved: Path | None) -> None:
        super().__init__(f"stopped {where}" + (f"; saved {saved}" if saved else ""))
        self.request = request


class Requeue(Callback):
    """Looks after every step whether any rank was asked to stop; if so, all save together and stop.

    One small all-reduce a step makes the ranks agree, so that it does not matter when the signal reached which. Within
    an epoch, and within its validation (which is then done again), the state goes to ``RUN/checkpoints/requeue.ckpt``,
    with what the epoch's means have counted so far. After an epoch's last step the epoch is finished first, and
    ``last.ckpt`` holds everything. The file is removed once it is superseded.

    Must come after the callbacks that count steps.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / FOLDER / f"{REQUEUE}.ckpt"
        self._saving = False

    # -- where a training may stop

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's SIGTERM handler talks to the other ranks from wherever it interrupts
        stop_signals.reinstall_handlers(with_interrupts=trainer.state.fn == TrainerFn.FITTING)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        request = self._agreed(pl_module)
        self._remove(trainer)  # this epoch begins after whatever it holds
        if request:
            raise StoppedBySignal(request, f"before epoch {trainer.current_epoch}", None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        request = self._agreed(pl_module)
        if request and not trainer.is_last_batch:
            self._stop(request, f"in epoch {trainer.current_epoch} after step {batch_idx + 1}", trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if request := self._agreed(pl_module):
            # Lightning resumes an evaluation that was begun and not ended: let it be one with no scan done yet
            progress: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            progress.reset()
            progress.total.ready = progress.total.started = 1
            self._stop(request, f"in the validation of epoch {trainer.current_epoch}", trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove(trainer)

    # -- the stop

    def _stop(self, request: StopRequest, where: str, trainer: Trainer) -> None:
        self._saving = True
        trainer.save_checkpoint(self.path)  # ends with a barrier: the file is there for all
        raise StoppedBySignal(request, where, self.path)

    def _agreed(self, pl_module: LightningModule) -> StopRequest:
        """The most that any rank was asked to do; all ranks must ask, and all get the same answer."""
        request = stop_signals.received()
        if rank_count() == 1:
            return request
        greatest = torch.tensor(int(request), dtype=torch.int32, device=pl_module.device)
        dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
        return StopRequest(int(greatest))

    def _remove(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            self.path.unlink(missing_ok=True)

    # -- what the epoch has counted so far

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._saving:  # what each process has counted, by metric, in the order of the ranks; as plain values
            checkpoint[RUNNING] = gather_from_ranks(
                {
                    name: {UPDATES: metric.update_count}
                    | {
                        key: value.detach().cpu().clone()
                        for key, value in metric.metric_state.items()
                        if isinstance(value, Tensor)
                    }
                    for name, metric in segmentation_module(pl_module).running_metrics().items()
                }
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if RUNNING in checkpoint:
            metrics = segmentation_module(pl_module).running_metrics()
            _load_metric_states(metrics, checkpoint[RUNNING], trainer.global_rank, trainer.world_size)


def _load_metric_states(metrics: Mapping[str, Metric], by_rank: list[dict[str, Any]], rank: int, ranks: int) -> None:
    """Let this process's metrics go on from what the metrics of every process had counted, ``by_rank``.

    As many processes as then: each goes on from its own counts, so that sums are rounded as if nothing had happened.
    Another number of processes: rank 0 takes all counts, the others none, which is the same up to rounding. Only for
    metrics whose states are sums.
    """
    if len(by_rank) == ranks:
        by_rank = [by_rank[rank]]
    elif rank > 0:
        return
    for name, metric in metrics.items():
        states = [one[name] for one in by_rank if name in one]
        if not states:
            continue
        for key, initial in metric.metric_state.items():
            if isinstance(initial, Tensor):
                setattr(metric, key, sum(state[key] for state in states).to(initial.device, initial.dtype))
        metric._update_count = sum(state[UPDATES] for state in states)  # torchmetrics gives it no setter


# -- SLURM


def _job_name(environment: Mapping[str, str]) -> str:
    """How ``scontrol`` calls the present job: its number, and in an array the task's as well.

    The last task of an array has the array's own number, by which all of its tasks would be requeued.

    >>> _job_name({"SLURM_JOB_ID": "12"})
    '12'
    >>> _job_name({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"})
    '12_3'
    """
    array = environment.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]


def requeue_job() -> str | None:
    """Ask SLURM to start this job again; None, or in one line why it could not be asked.

    Where ``scontrol`` is missing or fails, as in most containers, and the job script has named a file in
    ``FLARECPS_REQUEUE_FILE``, that file is made, and the job script asks.
    """
    complaint = _ask_scontrol(_job_name(os.environ))
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
