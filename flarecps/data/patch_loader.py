"""The way of batches to the step: workers make them some steps ahead, and the next is copied while a step runs."""

from __future__ import annotations

import errno
import multiprocessing.connection
import multiprocessing.queues
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from flarecps.data.patch_stream import Batch, BatchAddress, Failure, PatchBatches
from flarecps.data.worker_trace import NO_ANSWER, WorkerTrace, dead_worker, deaths_left_alone, no_shared_memory
from flarecps.errors import WorkerError
from flarecps.processes import (
    blocked,
    hung_up,
    kill,
    known_signals,
    make_folder_for_sockets,
    obey_only_the_parent,
    raise_limit_of_open_files,
)

BATCHES_AHEAD = 2  # that a stream's workers have ready at least; with more workers than that, one of each
LOOKS_S = 5  # seconds after which a loader that waits looks whether its workers still live
ANSWER_WITHIN_S = 300  # for one batch, from whatever disk; a worker that takes longer will never answer
_STOPS = known_signals("SIGTERM", "SIGUSR1", "SIGHUP")


class EpochClock:
    """The epoch that is being trained: the trainer's once ``follow`` names it, else the one that was ``set``."""

    def __init__(self) -> None:
        self._source: Callable[[], int] = lambda: 0

    def follow(self, source: Callable[[], int]) -> None:
        """From now on ``source`` says the epoch."""
        self._source = source

    def set(self, epoch: int) -> None:
        """Stand still at ``epoch``."""
        self._source = lambda: epoch

    @property
    def epoch(self) -> int:
        """The epoch now, from 0."""
        return self._source()


class _EpochSampler(Sampler[BatchAddress]):
    """The addresses of an epoch's batches, from ``first`` on."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations
        self.epoch = self.first = 0

    def __iter__(self) -> Iterator[BatchAddress]:
        return ((self.epoch, iteration) for iteration in range(self.first, self.iterations))

    def __len__(self) -> int:
        return self.iterations - self.first


class PatchLoader:
    """Batches of one stream, exactly ``sequence.iterations`` an epoch; see ``batch_of`` for what a batch holds.

    Every iteration asks the clock for the epoch when its first batch is taken. The workers live on from one epoch into
    the next; only after a jump (a resumed run, an epoch cut short) there are new ones. ``state_dict`` says how far the
    epoch has come, so that a run resumed within an epoch goes on with the next batch. Batches are copied to ``device``
    ahead of the step.
    """

    def __init__(
        self, batches: PatchBatches, clock: EpochClock, workers: int, device: torch.device | None = None
    ) -> None:
        self.batches = batches
        self.clock = clock
        self.workers = workers
        self.device = device or torch.device("cpu")
        self.close: Callable[[], object] = lambda: None  # ends the workers, once there are some
        self._loader: DataLoader[Batch | Failure] | None = None
        self._sampler = _EpochSampler(batches.sequence.iterations)
        self._processes: set[BaseProcess] = set()
        self._threads: set[threading.Thread] = set()  # that hand on what workers made, and pin it
        self._position = (0, 0)  # epoch and iteration that come next
        self._resumed_at: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self._sampler.iterations

    @property
    def _each_ahead(self) -> int:
        """Batches that each worker makes ahead."""
        return -(-BATCHES_AHEAD // self.workers) if self.workers else 0

    @property
    def batches_ahead(self) -> int:
        """Batches that are made before they are asked for, in shared memory (for a GPU pinned); 0 without workers."""
        return self._each_ahead * self.workers

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.clock.epoch, 0
        if self._resumed_at is not None and self._resumed_at[0] == epoch:
            first = self._resumed_at[1]
        self._resumed_at = None
        batches = copied_ahead(self._received(self._begun(epoch, first)), self.device)
        for iteration, batch in enumerate(batches, start=first):
            is_last = iteration + 1 == self._sampler.iterations
            self._position = (epoch + 1, 0) if is_last else (epoch, iteration + 1)
            yield batch

    def _begun(self, epoch: int, iteration: int) -> Iterator[Batch | Failure]:
        """What the loader gives from this batch to the epoch's end; by the present workers, unless there was a jump or
        they do not answer."""
        if self._loader is not None and self._position != (epoch, iteration):
            self.end_workers()
        self._sampler.epoch, self._sampler.first = epoch, iteration
        self._position = (epoch, iteration)
        if self._loader is not None:
            try:
                return iter(self._loader)
            except RuntimeError as error:  # a worker was asked whether it is there, and did not say so in time
                if "timed out" not in str(error):
                    raise
                self.end_workers()
        self.batches.trace = WorkerTrace(self.workers)
        if self.workers:
            raise_limit_of_open_files()
            make_folder_for_sockets()
        left_to_the_training = [one for one in _STOPS if callable(signal.getsignal(one))]
        self._loader = DataLoader(
            self.batches,
            sampler=self._sampler,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=self._each_ahead or None,
            worker_init_fn=partial(_begin_worker, left_to_the_training, self.batches.trace),
            timeout=LOOKS_S if self.workers else 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(0),
        )
        others, other_threads = set(multiprocessing.active_children()), set(threading.enumerate())
        try:
            with deaths_left_alone(), blocked(left_to_the_training):
                begun = iter(self._loader)
        except OSError as error:
            for frame, _ in traceback.walk_tb(error.__traceback__):
                if isinstance(half := frame.f_locals.get("self"), _MultiProcessingDataLoaderIter):
                    half._shutdown = True  # or its end raises another error
            kill(set(multiprocessing.active_children()) - others)
            if error.errno != errno.ENOSPC:
                raise
            raise WorkerError(no_shared_memory("start its data workers", error)) from error
        self._threads = set(threading.enumerate()) - other_threads
        # also before multiprocessing joins them at the interpreter's end, where a traceback has kept this loader alive
        self._processes = set(multiprocessing.active_children()) - others
        self.close = Finalize(self, kill, args=(self._processes,), exitpriority=0)
        return begun

    def _received(self, batches: Iterator[Batch | Failure]) -> Iterator[Batch]:
        """The batches as they come. Raises what went wrong in a worker, and RuntimeError where one does not answer."""
        since = time.monotonic()
        while True:
            if dead := [one for one in self._processes if not one.is_alive()]:
                raise dead_worker(dead[0])
            try:
                with _killed_after(ANSWER_WITHIN_S + LOOKS_S, self._processes):
                    batch = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                waited_s = time.monotonic() - since
                # the thread that pins ends by an error of a batch's memory, and tells nobody
                if waited_s > ANSWER_WITHIN_S or not all(one.is_alive() for one in self._threads):
                    raise RuntimeError(f"{NO_ANSWER} {min(waited_s, ANSWER_WITHIN_S):.0f} s") from None
                continue
            except (OSError, EOFError):  # a batch's memory is fetched from the worker, which may be gone
                gone = multiprocessing.connection.wait([one.sentinel for one in self._processes], timeout=1)
                if not gone:
                    raise
                for one in self._processes:
                    one.join(1 if one.sentinel in gone else 0)
                continue
            if isinstance(batch, Failure):
                raise batch.error
            yield batch
            since = time.monotonic()

    def state_dict(self) -> dict[str, int]:
        """Epoch and iteration of the next batch (plain numbers; Lightning puts them into its checkpoints)."""
        return {"epoch": self._position[0], "iteration": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, if that is within the epoch the clock then shows."""
        self._resumed_at = (state["epoch"], state["iteration"])

    def end_workers(self) -> None:
        """Kill the workers; the next epoch starts others."""
        self.close()
        if isinstance(iterator := getattr(self._loader, "_iterator", None), _MultiProcessingDataLoaderIter):
            # of the workers' own event a killed one may hold the lock
            iterator._workers_done_event = threading.Event()  # type: ignore[assignment]
        self._loader = None


@contextmanager
def _killed_after(seconds: float, processes: Collection[BaseProcess]) -> Iterator[None]:
    """Kill the workers when the block takes longer, and raise RuntimeError.

    A stopped worker may have promised a batch: the training asks it for the memory, and waits without a limit.
    """
    ran_out = threading.Event()

    def end() -> None:
        ran_out.set()
        for one in processes:
            one.kill()

    watch = threading.Timer(seconds, end)
    watch.daemon = True
    if processes:
        watch.start()
    try:
        yield
    except Exception as error:
        if ran_out.is_set():
            raise RuntimeError(f"{NO_ANSWER} {ANSWER_WITHIN_S:.0f} s") from error
        raise
    finally:
        watch.cancel()


def _begin_worker(signals: list[signal.Signals], trace: WorkerTrace, worker: int) -> None:
    """In a new worker: leave the signals that the training handles to it, and end when a batch can't be handed over.

    SLURM sends the signals to all processes of a job; were the workers to die of them, the training could not finish
    the step it is to stop after.
    """
    obey_only_the_parent(signals)

    def undelivered(error: BaseException, _: object = None) -> None:
        """In the threads that hand over, which would print the error and go on: nobody would miss the batch."""
        trace.note_undelivered(worker, error)
        os._exit(1)

    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(undelivered)  # type: ignore[attr-defined]
    sys.excepthook = lambda kind, error, _: None if hung_up(error) else undelivered(error)


def _as_it_is(batch: Any) -> Any:
    return batch


# -- to the device


def copied_ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches on ``device``; on a GPU each is copied, on a stream of its own, while the step before it runs.

    From pinned memory. The step's stream waits for the copy, and the copy's memory for the step. Nothing on a CPU.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def ready(batch: Batch, event: Any) -> Batch:
        current = torch.cuda.current_stream(device)
        current.wait_event(event)
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.record_stream(current)
        return batch

    coming: tuple[Batch, Any] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copy = {
                key: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
                for key, value in batch.items()
            }
            following = (copy, stream.record_event())
        if coming is not None:
            yield ready(*coming)
        coming = following
    if coming is not None:
        yield ready(*coming)


# -- whole cases


class CaseLoader:
    """A loader that gives ``read(name)`` for each name: whole cases, or paths. Ranks may have unequally many."""

    def __init__(self, names: list[str], read: Callable[[str], Any]) -> None:
        self.names = names
        self.read = read

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Any]:
        return map(self.read, self.names)
