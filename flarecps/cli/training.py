"""``flarecps fit | validate | test | predict``: Lightning's own subcommands over a config file."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from flarecps.checkpoint import load_plain
from flarecps.cli import next_command
from flarecps.cli.former_keys import current_words
from flarecps.cli.library_settings import set_up_libraries
from flarecps.cli.main import LIGHTNING_COMMANDS, USER_MISTAKE
from flarecps.cli.training_decisions import instead_of_the_plan, with_defaults
from flarecps.cli.training_options import DRY_RUN, OWN_OPTIONS, asks_for_help, taken, with_found_configs
from flarecps.data.datamodule import ScanDataModule
from flarecps.errors import CheckpointError, ConfigError, TrainingError, WorkerError, visible
from flarecps.locks import folder_lock
from flarecps.method_config import CROSS_PSEUDO
from flarecps.planning.memory import SIBLINGS
from flarecps.planning.plan import plan_to_json
from flarecps.training.callbacks.dry_run import STEPS_WITH_PSEUDO_LABELS, DryRun
from flarecps.training.callbacks.progress import Throughput, TrainingProgress
from flarecps.training.callbacks.rank_watch import RankWatch
from flarecps.training.callbacks.ranks_in_sync import RanksInSync
from flarecps.training.callbacks.record import RunRecord
from flarecps.training.callbacks.requeue import REQUEUE_ALLOWED, Requeue, StoppedBySignal, requeue_job
from flarecps.training.callbacks.segmentation import SegmentationWriter
from flarecps.training.callbacks.validation_results import PatchValidation, ValidationOverlays, ValidationTable
from flarecps.training.checkpoint_files import (
    BEST,
    FOLDER,
    LAST,
    WholeCheckpoints,
    candidates,
    checkpoint_callbacks,
    load_start_weights,
    newest_whole,
    remove_leftovers,
)
from flarecps.training.dashboards import DashboardSession, WandbDashboard, finish_dashboards, loggers_of
from flarecps.training.defaults import PAPERS_EPOCHS, epochs_of
from flarecps.training.launching import check_processes, cluster_environment, under_slurm
from flarecps.training.module import SegmentationModule
from flarecps.training.ranks import leave_group, warn
from flarecps.training.stop_signals import ENDED_BY_SIGNAL, StopRequest, leave_in_peace
from flarecps.verbosity import is_quiet

TRAINER_DEFAULTS = {
    "default_root_dir": "runs/unnamed",
    "enable_model_summary": False,  # of modules; 'started_with' and 'flarecps summary' say what a model is
    "num_sanity_val_steps": 0,  # a whole-scan validation of random weights says nothing
    "use_distributed_sampler": False,  # every draw has an address; an injected sampler would repeat them
    "log_every_n_steps": 1,
}


FAILED = 1  # exit code: some scans could not be segmented, or a job could not be requeued
LONGEST_COMPLAINT = 600  # characters of the parser's, which may list every type that a value might have had
FINISH_WITHIN_S = 10.0  # a server that does not answer must not cost the requeue

LOCK = "training.lock"  # in the run's folder: one training at a time
AUTO = "auto"  # --ckpt_path: resume if the run has checkpoints, else begin
# How long a process waits for the others (strategy ddp): longer than one validation scan or checkpoint takes, and not
# torch's 30 minutes, in which a job that waits for a lost node burns 8 GPUs. A config's DDPStrategy may set another.
LONGEST_WAIT = timedelta(minutes=10)


class _RunConfig(SaveConfigCallback):
    """Writes the whole resolved configuration to ``RUN/config.yaml`` when training starts."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.is_global_zero and stage == "fit" and not self.config.get("dry_run"):
            run = Path(trainer.default_root_dir)
            run.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, run / "config.yaml", skip_none=False, overwrite=True, multifile=False)


class _Parser(LightningArgumentParser):
    """Lightning's parser; options are matched whole, and a complaint is one line."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        words = " ".join(message.split())
        raise ConfigError(f"{words[:LONGEST_COMPLAINT]}{' …' if len(words) > LONGEST_COMPLAINT else ''}") from ex


class TrainingCLI(LightningCLI):
    """Lightning's command line with this project's run folder, loggers, checkpoints and progress."""

    def __init__(self, words: list[str], held: ExitStack | None = None, **settings: Any) -> None:
        """``held`` keeps the lock on the run's folder, and lets it go at its end."""
        self.words, self.held = words, held
        words, former = current_words(with_found_configs(words))
        decided: list[str] = []
        if words[0] in LIGHTNING_COMMANDS and not asks_for_help(words):
            words, decided = with_defaults(words)
        for line in (["; ".join(former)] if former else []) + decided:
            say(line)
        super().__init__(
            SegmentationModule,
            ScanDataModule,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=_Parser,
            parser_kwargs={"parser_mode": "omegaconf+"},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=words,
            **settings,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.set_defaults({"model.method": {"class_path": CROSS_PSEUDO}})
        parser.link_arguments("data", "model.plan", compute_fn=_plan_of, apply_on="instantiate")
        for name, option in OWN_OPTIONS.items():
            parser.add_argument(f"--{name}", type=option.kind, default=option.default, help=f"fit: {option.help}")
        parser.add_argument("--dry-run", action="store_true", help=f"fit: {DRY_RUN}")

    @property
    def run_folder(self) -> Path:
        """Where everything of this run goes: ``trainer.default_root_dir``."""
        return Path(self._get(self.config, "trainer.default_root_dir"))

    def before_instantiate_classes(self) -> None:
        if self.subcommand is not None:
            self._share_seed()
            self._find_checkpoint()

    def before_fit(self) -> None:
        """Load start weights; with ``overwrite``, let the older run's checkpoints go: its best is not this run's."""
        resumed = self._get(self.config, "ckpt_path") is not None
        start = self._get(self.config, "init")
        into = self._get(self.config, "init_siblings")
        if into is not None and start is None:
            raise ConfigError("init_siblings says who starts from the weights of --init; name a checkpoint there, too")
        if start is not None and not resumed:  # a resumed run has its own weights, whatever it once started from
            rank_zero_info(visible(load_start_weights(start, self.model.plan, self.model.siblings, into)))
            self.model.start_method()
        for line in instead_of_the_plan(self.datamodule, self.model):
            say(line)
        if not self.is_dry_run and self.trainer.is_global_zero:  # on whose behalf the other ranks write nothing there
            self._take_folder(resumed)

    def _take_folder(self, resumed: bool) -> None:
        """Keep other trainings out of the run's folder, and clear it of what killed ones left there."""
        run, overwrites = self.run_folder, self._get(self.config, "overwrite")
        if self.held is not None:
            cure = "wait for it, end it, or name another --trainer.default_root_dir"
            self.held.enter_context(folder_lock(run / LOCK, "another training", cure))
        if not resumed and not overwrites and candidates(run / FOLDER):  # of a training that ended in between
            raise taken(run)
        remove_leftovers(run / FOLDER, own=overwrites and not resumed)

    def before_validate(self) -> None:
        if not self.datamodule.validation_names:
            raise ConfigError("no validation cases: choose data.fold 0 to 4, or a data.split that names some")

    def before_test(self) -> None:
        data: ScanDataModule = self.datamodule
        if not any(data.store.record(name).has_labels for name in data.test_names):
            raise ConfigError(f"{data.store.path}: no test case with labels in this split")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        given = self._get(self.config_init, "trainer")
        if self.is_dry_run:
            return self._dry_trainer(given)
        run = self.run_folder
        kwargs["plugins"] = _plugins(given["plugins"])
        shows_progress = given["enable_progress_bar"] is not False and not is_quiet()
        callbacks: list[Any] = [TrainingProgress()] if shows_progress else []
        kwargs["enable_progress_bar"] = shows_progress
        if self.subcommand == "fit":
            if given["strategy"] == "ddp":
                kwargs["strategy"] = DDPStrategy(timeout=LONGEST_WAIT)
            kwargs["logger"] = loggers_of(given["logger"], run)
            dashboard = next((one for one in kwargs["logger"] if isinstance(one, WandbDashboard)), None)
            with_best = bool(self.datamodule.validation_names)
            callbacks = [
                PatchValidation(),
                RanksInSync(),
                Throughput(),
                *checkpoint_callbacks(run, with_best, given["check_val_every_n_epoch"] or 1),
                RunRecord(run, ["flarecps", *self.words]),
                DashboardSession(run, dashboard),
                ValidationOverlays(run, self._get(self.config_init, "pictures"), dashboard),
                ValidationTable(run, dashboard),
                *callbacks,
                Requeue(run),  # after what counts steps
            ]
        elif given["logger"] is None:
            kwargs.setdefault("logger", False)
        if self.subcommand == "predict":
            callbacks.insert(0, SegmentationWriter(run))
        return self._instantiate_trainer({**given, **kwargs}, callbacks)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        if self.subcommand is None:
            return super()._instantiate_trainer(config, callbacks)
        watch = RankWatch(self.subcommand)
        trainer = super()._instantiate_trainer(config, [watch, *callbacks])
        environment = trainer._accelerator_connector.cluster_environment  # which has no public name
        check_processes(environment, trainer.world_size, trainer.num_nodes)
        watch.begin(trainer)
        return trainer

    @property
    def is_dry_run(self) -> bool:
        """Whether ``fit`` is to take a few steps and write nothing."""
        return self.subcommand == "fit" and bool(self._get(self.config, "dry_run"))

    def _dry_trainer(self, given: Any) -> Trainer:
        """A trainer for a few steps without validation, checkpoints and loggers."""
        iterations = self.datamodule.iterations_per_epoch
        steps = len(STEPS_WITH_PSEUDO_LABELS)
        end = {f"trainer.max_{unit}": given[f"max_{unit}"] for unit in ("epochs", "steps")}
        epochs = epochs_of({**end, "data.iterations_per_epoch": iterations}, len(self.model.siblings))
        if epochs is None and given["max_epochs"] is None and given["max_time"] is None:
            epochs = PAPERS_EPOCHS  # Lightning's own, where a config says null
        few = {
            "max_epochs": -(-steps // iterations),
            "max_steps": -1,
            "max_time": None,
            "limit_train_batches": min(steps, iterations),
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "plugins": _plugins(given["plugins"]),
        }
        most = given["max_steps"] // len(self.model.siblings) if given["max_steps"] >= 0 else None
        return self._instantiate_trainer({**given, **few}, [DryRun(epochs, iterations, most)])

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let a checkpoint's hyperparameters override config and command line."""

    def _share_seed(self) -> None:
        """One seed for a run: draws and weights take theirs from ``seed_everything`` where none is given."""
        config = self.config[self.subcommand]
        seed = int(self._get(self.config, "seed_everything") or 0)  # false: Lightning's own generators stay unseeded
        if config["data"]["seed"] is None:
            config["data"]["seed"] = seed
        if config["model"]["initial_seed"] is None:
            config["model"]["initial_seed"] = SIBLINGS * seed

    def _find_checkpoint(self) -> None:
        """``ckpt_path: last`` or ``best`` means this run's own; a run with checkpoints is never overwritten unasked."""
        given = self._get(self.config, "ckpt_path")
        if self.is_dry_run:
            self.config[self.subcommand]["ckpt_path"] = None
            return
        folder = self.run_folder / FOLDER
        if self.subcommand == "fit" and given in (LAST, AUTO):
            given = self._resumed(folder, given)
        elif given is not None:
            given = self._named(folder, given)
        elif self.subcommand != "fit":
            raise ConfigError(
                f"{self.subcommand} needs a checkpoint: --ckpt_path last or best (of {folder}), or a file's path"
            )
        elif candidates(folder) and not self._get(self.config, "overwrite"):
            raise taken(folder.parent)
        self.config[self.subcommand]["ckpt_path"] = None if given is None else str(given)

    def _named(self, folder: Path, given: str) -> Path:
        """The file that ``given`` means: ``last`` or ``best`` of ``folder``, else a path.

        Raises ``CheckpointError`` for one that is not there, is damaged, or that no training wrote.
        """
        path = folder / f"{given}.ckpt" if given in (LAST, BEST) else Path(given)
        if given in (LAST, BEST) and not path.is_file():
            cure = "leave ckpt_path out to start anew" if self.subcommand == "fit" else "name another --ckpt_path"
            raise CheckpointError(f"{path}: this run has no such checkpoint; {cure}")
        if "optimizer_states" not in load_plain(path):
            raise CheckpointError(
                f"{path}: holds weights of another program (flarecps import) and no training to go on with; start "
                f"from it with --init {path}, or use it with 'flarecps segment'"
            )
        return path

    def _resumed(self, folder: Path, given: str) -> Path | None:
        """What ``fit`` resumes from: the newest whole checkpoint of ``folder``; None where ``auto`` finds none."""
        if given == AUTO and self._get(self.config, "overwrite"):
            raise ConfigError(
                f"{folder.parent}: --ckpt_path auto would resume what --overwrite true starts anew; give one of them"
            )
        if given == AUTO and not candidates(folder):
            return None
        found = newest_whole(folder, skipped=warn)
        rank_zero_info(visible(f"resume from {found}"))
        return found


def _plugins(given: Any) -> list[Any]:
    """The config's plugins, and what it leaves out: what tells a process its rank, and ``WholeCheckpoints``."""
    plugins = list(given) if isinstance(given, list) else [] if given is None else [given]
    if not any(isinstance(one, ClusterEnvironment) for one in plugins) and (found := cluster_environment()):
        plugins.append(found)
    return plugins if any(isinstance(one, CheckpointIO) for one in plugins) else [*plugins, WholeCheckpoints()]


def say(line: str) -> None:
    """Print a line on standard error, in one process of a training, unless it is to be quiet."""
    if not is_quiet() and not rank_zero_only.rank:  # type: ignore[attr-defined]  # Lightning sets it
        print(visible(f"flarecps: {line}"), file=sys.stderr, flush=True)


def _plan_of(data: ScanDataModule) -> dict[str, Any]:
    """The store's plan with what the config says instead of it: the plan this run trains by."""
    return plan_to_json(replace(data.plan, patch_voxels=data.patch_voxels, global_batch=data.global_batch))


def lightning_command(arguments: list[str]) -> int:
    """Run one of Lightning's subcommands; ``arguments`` begin with its name."""
    with ExitStack() as held:
        return _lightning_command(arguments, held)


def _lightning_command(arguments: list[str], held: ExitStack) -> int:
    set_up_libraries()
    arguments = ["--help" if word == "--help-all" else word for word in arguments]
    stopped: StoppedBySignal | None = None
    try:
        cli = TrainingCLI(arguments, held, save_config_callback=_RunConfig)
    except StoppedBySignal as stop:
        stopped = stop
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning ends with 1 after Ctrl-C
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo has no error of its own
            raise
        raise WorkerError(
            "another process of this training has ended, and this one with it; its own message, above or in its own "
            f"log, says why ({' '.join(str(error).split())})"
        ) from error
    except TrainingError:
        if rank_zero_only.rank:  # type: ignore[attr-defined]  # Lightning sets it; rank 0 says the same
            return USER_MISTAKE
        raise
    finally:
        finish_dashboards(FINISH_WITHIN_S)  # only of what has not come to its end
    leave_group()
    if stopped is not None:
        return _leave(stopped)
    trainer: Any = cli.trainer
    if arguments[0] == "fit" and not cli.is_dry_run:
        _say_written(cli.run_folder, trainer.loggers)
    return max((_said(one) for one in trainer.callbacks if isinstance(one, SegmentationWriter)), default=0)


def _say_written(run: Path, loggers: list[Any]) -> None:
    """The end of a training: what it wrote, and the next commands."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # Lightning sets it
        return
    best, last = (run / FOLDER / f"{name}.ckpt" for name in (BEST, LAST))
    also = f" (and {best.name}, by validation)" if best.is_file() else ""
    print(visible(f"written: {last}{also}"))
    print(visible(next_command("segment", last, "SCANS", run / "segmentations")))
    for project in (one.online_project for one in loggers if isinstance(one, WandbDashboard) and one.online_project):
        print(visible(f"once per wandb project, {next_command('dashboard', project, '--like', run)}"))


def _leave(stopped: StoppedBySignal) -> int:
    """End a training that was asked to stop: have the job requeued, if that was asked of a job; the exit code.

    0 after a requeue (the job has done its part), else 128 + the signal's number (the training is not done). Where no
    job may be requeued that is rank 0's code alone: for another's ``srun`` would kill rank 0, which has more to do.
    """
    asked = stopped.request == StopRequest.REQUEUE and under_slurm()
    requeued = asked and os.environ.get(REQUEUE_ALLOWED) != "no"
    others = rank_zero_only.rank  # type: ignore[attr-defined]  # Lightning sets it
    code = 0 if requeued or (asked and others) else ENDED_BY_SIGNAL + stopped.request.signal
    if others:
        leave_in_peace()
        return code
    complaint = requeue_job() if requeued else None
    then = "go on with --ckpt_path auto"
    if requeued:
        then = f"the job could not be requeued ({complaint}); submit it again" if complaint else "the job is requeued"
    print(visible(f"flarecps fit: {stopped}; {then}"), file=sys.stderr, flush=True)
    return FAILED if complaint else code


def _said(predicted: SegmentationWriter) -> int:
    """Say what became of this process's scans; the exit code is 1 when any process's scan failed."""
    for outcome in predicted.outcomes:
        for remark in outcome.value.warnings if outcome.value is not None else [outcome.error]:
            print(visible(f"{outcome.name}: {remark}"), file=sys.stderr)
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # Lightning sets it; rank 0 says the rest
        return 0
    failed = f"; {predicted.failed} could not be segmented" if predicted.failed else ""
    print(visible(f"labels are in {predicted.folder}{failed}"))
    return FAILED if predicted.failed else 0
