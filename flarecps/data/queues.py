"""TorchIO queues fed by addresses, and the loaders that follow the epoch."""

from __future__ import annotations

import errno
import math
import multiprocessing.connection
import signal
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import torch
import torchio as tio
from torch.utils.data import DataLoader, Sampler

from flarecps.data.draws import Draw, DrawSequence
from flarecps.data.subjects import Failure, PatchSubjects, batch_of
from flarecps.data.worker_deaths import NO_ANSWER, Whereabouts, no_shared_memory
from flarecps.errors import WorkerError
from flarecps.processes import kill, obey_only_the_parent
from flarecps.typing import Triple

_BATCHES_AHEAD = 2  # that the workers of a stream prepare
_STOPS = (signal.SIGTERM, signal.SIGUSR1)
LOOKS_S = 5  # seconds after which a queue that waits looks whether its workers still live
ANSWER_WITHIN_S = 300  # for one patch, from whatever disk; a worker that takes longer will never answer
_FOR_EVER = 2**62  # TorchIO asks a sampler for its length; this one has no end


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


class AddressSampler(Sampler[Draw]):
    """A rank's addresses from one global batch on, without end, so that workers live for the whole training."""

    def __init__(self, sequence: DrawSequence, epoch: int, iteration: int) -> None:
        self.sequence, self.epoch, self.iteration = sequence, epoch, iteration

    def __iter__(self) -> Iterator[Draw]:
        return self.sequence.starting_at(self.epoch, self.iteration)

    def __len__(self) -> int:
        return _FOR_EVER


class WholePatch(tio.data.PatchSampler):
    """The patch sampler for subjects that are patches already: it would run in the training process."""

    def __call__(self, subject: tio.Subject, num_patches: int | None = None) -> Generator[tio.Subject, None, None]:
        """The subject, once."""
        yield subject


class PatchQueue(tio.Queue):
    """A TorchIO queue of one patch per address, in the order of the addresses, no more than a batch long."""

    def __init__(self, subjects: PatchSubjects, addresses: AddressSampler, patch: Triple, workers: int) -> None:
        super().__init__(
            subjects,
            max_length=addresses.sequence.share,
            samples_per_volume=1,
            sampler=WholePatch(patch),
            subject_sampler=addresses,
            num_workers=workers,
            shuffle_subjects=False,
            shuffle_patches=False,
            start_background=False,
        )
        self.patches_wanted = 0  # until the epoch ends; set when it begins
        self._workers: set[BaseProcess] = set()
        self.close: Callable[[], object] = lambda: None  # ends the workers, once there are some

    @property
    def iterations_per_epoch(self) -> int:
        """Patches until the epoch ends (TorchIO's own count would walk through all addresses)."""
        return self.patches_wanted

    def _get_next_subject(self) -> tio.Subject:
        since, subject = time.monotonic(), None
        while subject is None:
            try:
                subject = super()._get_next_subject()
            except RuntimeError as error:
                if "timed out" not in str(error):
                    raise
                if time.monotonic() - since > ANSWER_WITHIN_S:
                    raise RuntimeError(f"{NO_ANSWER} {ANSWER_WITHIN_S} s") from None
            except (OSError, EOFError) as error:  # a patch's memory is fetched from the worker, which may be gone
                gone = multiprocessing.connection.wait([one.sentinel for one in self._workers], timeout=1)
                dead = ", ".join(str(one.pid) for one in self._workers if one.sentinel in gone)
                if not dead:
                    raise
                raise RuntimeError(f"DataLoader worker (pid(s) {dead}) has ended") from error
        if isinstance(subject, Failure):
            raise subject.error
        return subject

    def _get_subjects_iterable(self) -> Iterator[tio.Subject]:
        """As TorchIO's, but prefetching by the batch and with a generator of its own: the global one is untouched."""
        ahead = math.ceil(_BATCHES_AHEAD * self.max_length / self.num_workers) if self.num_workers else None
        loader = DataLoader(
            self.subjects_dataset,
            sampler=self.subject_sampler,
            batch_size=None,
            collate_fn=_in_shared_memory if self.num_workers else _as_it_is,
            num_workers=self.num_workers,
            prefetch_factor=ahead,
            worker_init_fn=partial(_leave_to_the_training, [one for one in _STOPS if callable(signal.getsignal(one))]),
            timeout=LOOKS_S if self.num_workers else 0,
            generator=torch.Generator().manual_seed(0),
        )
        self._num_sampled_subjects = 0
        others = set(multiprocessing.active_children())
        try:
            patches = iter(loader)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise WorkerError(no_shared_memory("start its data workers", error)) from error
        # also before multiprocessing joins them at the interpreter's end, where a traceback has kept this queue alive
        self._workers = set(multiprocessing.active_children()) - others
        self.close = Finalize(self, kill, args=(self._workers,), exitpriority=0)
        return patches


class PatchLoader:
    """Batches of one stream, exactly ``sequence.iterations`` an epoch; see ``batch_of`` for what a batch holds.

    Every iteration asks the clock for the epoch when its first batch is taken. The queue behind it runs on from one
    epoch into the next; only after a jump (a resumed run, an epoch cut short) it is built anew. ``state_dict`` says
    how far the epoch has come, so that a run resumed within an epoch goes on with the next batch.
    """

    def __init__(self, subjects: PatchSubjects, sequence: DrawSequence, clock: EpochClock, workers: int) -> None:
        self.subjects = subjects
        self.sequence = sequence
        self.clock = clock
        self.workers = workers
        self._queue: PatchQueue | None = None
        self._position = (0, 0)  # epoch and iteration that the queue gives next
        self._resumed_at: tuple[int, int] | None = None

    def __len__(self) -> int:
        return self.sequence.iterations

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, first = self.clock.epoch, 0
        if self._resumed_at is not None and self._resumed_at[0] == epoch:
            first = self._resumed_at[1]
        self._resumed_at = None
        queue = self._queue_at(epoch, first)
        queue.patches_wanted = (self.sequence.iterations - first) * self.sequence.share
        batches = tio.SubjectsLoader(
            queue,
            batch_size=self.sequence.share,
            num_workers=0,
            collate_fn=partial(batch_of, dimensions=len(self.subjects.settings.patch_voxels)),
            generator=torch.Generator().manual_seed(0),
        )
        for iteration, batch in enumerate(batches, start=first):
            is_last = iteration + 1 == self.sequence.iterations
            self._position = (epoch + 1, 0) if is_last else (epoch, iteration + 1)
            yield batch

    def _queue_at(self, epoch: int, iteration: int) -> PatchQueue:
        """The queue whose next patch opens this batch: the present one, or a new one after a jump."""
        if self._queue is None or self._position != (epoch, iteration):
            self.close()
            self.subjects.whereabouts = Whereabouts(self.workers)
            addresses = AddressSampler(self.sequence, epoch, iteration)
            self._queue = PatchQueue(self.subjects, addresses, self.subjects.patch, self.workers)
            self._position = (epoch, iteration)
        return self._queue

    def state_dict(self) -> dict[str, int]:
        """Epoch and iteration of the next batch (plain numbers; Lightning puts them into its checkpoints)."""
        return {"epoch": self._position[0], "iteration": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there, if that is within the epoch the clock then shows."""
        self._resumed_at = (state["epoch"], state["iteration"])

    def close(self) -> None:
        """End the workers."""
        if self._queue is not None:
            self._queue.close()
        self._queue = None


class OneByOne:
    """A loader that gives ``read(name)`` for each name: whole cases, or paths. Ranks may have unequally many."""

    def __init__(self, names: list[str], read: Callable[[str], Any]) -> None:
        self.names = names
        self.read = read

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[Any]:
        return map(self.read, self.names)


def _leave_to_the_training(signals: list[signal.Signals], worker: int) -> None:
    """In a new worker: leave the signals that the training process handles to it. SLURM sends them to all processes of
    a job; were the workers to die of them, the training could not finish the step it is to stop after."""
    obey_only_the_parent(signals)


def _in_shared_memory(subject: Any) -> Any:
    """The subject with its images where the training process can read them.

    PyTorch would move them in a thread of the worker, whose errors reach nobody: the patch would never come.
    """
    if isinstance(subject, Failure):
        return subject
    try:
        for tensor in (*(one.data for one in subject.get_images(intensity_only=False)), *subject.values()):
            if isinstance(tensor, torch.Tensor):
                tensor.share_memory_()
    except RuntimeError as error:
        return Failure(WorkerError(no_shared_memory(f"hand over a patch of case '{subject['case']}'", error)))
    return subject


def _as_it_is(subject: Any) -> Any:
    return subject
