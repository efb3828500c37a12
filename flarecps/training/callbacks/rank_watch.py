"""Ranks that end together, wherever they are: also where they do not talk to each other."""

from __future__ import annotations

import os
import threading
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from flarecps.processes import end_at_once
from flarecps.training import stop_signals
from flarecps.training.callbacks.requeue import StoppedBySignal

LOOKS_S = 0.5
HEARS_WITHIN_S = 8.0  # in which rank 0 hears by itself that another has gone, in the next all-reduce
FAILED = 2  # exit code, as of other errors
LIGHTNINGS = "child-process-observer"  # a thread's name


class RankWatch(Callback):
    """Ends rank 0 when a rank that it has started failed and it does not hear of it, as in a scan's validation.

    Lightning's own observer kills rank 0 within 5 s, without a word, also while it saves or closes what it has open.
    It is put off duty, and so are Lightning's handlers of SIGTERM, which talk to the other ranks from anywhere.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self._over = threading.Event()

    def begin(self, trainer: Trainer) -> None:
        """Watch the ranks that ``trainer`` is going to start, until it ends or an exception ends it.

        Raises StoppedBySignal when ``fit`` was asked to stop already and no other rank waits for this one.
        """
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None
        launcher: Any = trainer.strategy.launcher
        starts_ranks = hasattr(launcher, "procs") and not launcher.cluster_environment.creates_processes_externally
        if (starts_ranks or trainer.world_size == 1) and self.command == "fit" and (asked := stop_signals.received()):
            raise StoppedBySignal(asked, "before the training began", None)
        if starts_ranks:
            os.environ[stop_signals.STARTER] = str(os.getpid())
            threading.Thread(target=self._watch, args=(launcher,), daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._over.set()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._over.set()
        if isinstance(exception, KeyboardInterrupt):
            stop_signals.handle_interrupts()

    def _watch(self, launcher: Any) -> None:
        while not self._over.wait(LOOKS_S):
            for one in threading.enumerate():
                if one.name == LIGHTNINGS:
                    one._child_processes = []  # type: ignore[attr-defined]  # it ends when all of these have
            failed = [(rank, one) for rank, one in enumerate(launcher.procs, start=1) if one.poll()]
            if failed and not self._over.wait(HEARS_WITHIN_S):
                rank, process = failed[0]
                end_at_once(
                    stop_signals.exit_code(FAILED),
                    f"flarecps {self.command}: rank {rank} (process {process.pid}) has ended with exit code "
                    f"{process.returncode}, and with it this training; its own message, above, says why",
                )
