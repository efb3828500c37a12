"""A patch's road from the case store to the device, from top to bottom.

An address (`draws.Draw`) becomes a TorchIO subject that reads its region of the store when it is loaded; the subjects
of a batch go through a TorchIO queue, in whatever process makes the batch; a PyTorch loader has workers make batches
some steps ahead; the next one is on its way to the GPU while a step runs. No generator's state is kept anywhere: the
address decides everything, so any number of workers or ranks, and a resumed run, give the same batches.
"""

from __future__ import annotations

import errno
import math
import multiprocessing.connection
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torchio as tio
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from flarecps.data.augmentation import PatchAugmentation
from flarecps.data.draws import Draw, DrawSequence, choose_case, choose_lower, is_forced_foreground
from flarecps.data.worker_trace import NO_ANSWER, WorkerTrace, dead_worker, deaths_left_alone, no_shared_memory
from flarecps.errors import FlarecpsError, WorkerError
from flarecps.preprocessing.store import CaseStore
from flarecps.processes import blocked, kill, known_signals, obey_only_the_parent
from flarecps.typing import Triple

BATCHES_AHEAD = 2  # that a stream's workers have ready at least; with more workers than that, one of each
LOOKS_S = 5  # seconds after which a loader that waits looks whether its workers still live
ANSWER_WITHIN_S = 300  # for one batch, from whatever disk; a worker that takes longer will never answer
_STOPS = known_signals("SIGTERM", "SIGUSR1")

Batch: TypeAlias = dict[str, Any]
BatchAddress: TypeAlias = tuple[int, int]  # epoch, iteration


# -- subjects


@dataclass(frozen=True)
class StreamSettings:
    """Which cases a stream draws from, and how.

    ``annotated``: label ids by case, where a split says more than the store. ``augmentation`` None: plain patches.
    ``weights``: how often each of ``names`` is drawn, relative to the others; None: all equally often.
    """

    names: tuple[str, ...]
    patch_voxels: tuple[int, ...]
    batch: int  # of all ranks
    foreground_share: float
    augmentation: PatchAugmentation | None
    annotated: Mapping[str, Sequence[int]]
    weights: tuple[float, ...] | None = None


class _RegionReader:
    """Reads a region of a case when TorchIO loads its images: image and labels in one go, once."""

    def __init__(self, read: Callable[[], tuple[np.ndarray, np.ndarray | None]]) -> None:
        self._read = read
        self._labels: np.ndarray | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _RegionReader:
        return self  # TorchIO's data sets copy their subjects; there is but one region to read

    def image(self, path: Any) -> tuple[torch.Tensor, np.ndarray]:
        """The image (C, S, H, W), float32, and no affine: a patch lies in the network's grid."""
        image, self._labels = self._read()
        return torch.from_numpy(image), np.eye(4)

    def labels(self, path: Any) -> tuple[torch.Tensor, np.ndarray]:
        """The labels (1, S, H, W), uint8; to be asked for after the image."""
        assert self._labels is not None
        labels, self._labels = self._labels, None
        return torch.from_numpy(labels)[None], np.eye(4)


class _WholePatch(tio.data.PatchSampler):
    """The patch sampler for subjects that are patches already."""

    def __call__(self, subject: tio.Subject, num_patches: int | None = None) -> Generator[tio.Subject, None, None]:
        """The subject, once."""
        yield subject


# -- batches


@dataclass(frozen=True)
class _Failure:
    """What a worker hands over instead of a batch: an error raised there would arrive wrapped in a traceback's text."""

    error: FlarecpsError


class PatchBatches(Dataset[Batch | _Failure]):
    """A rank's batches of one stream by their address: ``batches[epoch, iteration]``, made in whatever process asks.

    A batch is what ``batch_of`` makes of its subjects. The unlabelled stream never opens a label file.
    """

    def __init__(
        self, store: CaseStore, settings: StreamSettings, patch: Triple, is_labelled: bool, sequence: DrawSequence
    ) -> None:
        self.store = store
        self.settings = settings
        self.patch = patch
        self.is_labelled = is_labelled
        self.sequence = sequence
        self.trace: WorkerTrace | None = None  # where workers note what they read

    def __getitem__(self, address: BatchAddress) -> Batch | _Failure:
        """The batch at this address; in a worker, a ``_Failure`` when it can't be made, else in shared memory."""
        draws = list(islice(self.sequence.starting_at(*address), self.sequence.share))
        worker = get_worker_info()
        if worker is None:
            return self.make(draws)
        try:
            return _in_shared_memory(self.make(draws, worker.id))
        except FlarecpsError as error:
            return _Failure(error)

    @property
    def batch_bytes(self) -> int:
        """The memory of one batch: images in single precision, labels of 8 bits."""
        voxels = self.sequence.share * math.prod(self.patch)
        return voxels * (4 * len(self.store.plan.channels) + self.is_labelled)

    def make(self, draws: Sequence[Draw], worker: int | None = None) -> Batch:
        """The batch of these patches, in this order; ``worker`` (its number) notes what it is about to read."""
        subjects = tio.SubjectsDataset([self.subject_at(draw, worker) for draw in draws], transform=self._augmented)
        queue = tio.Queue(
            subjects,
            max_length=len(draws),
            samples_per_volume=1,
            sampler=_WholePatch(self.patch),
            shuffle_subjects=False,
            shuffle_patches=False,
            start_background=False,
        )
        collate = partial(batch_of, dimensions=len(self.settings.patch_voxels))
        with torch.random.fork_rng(devices=[]):  # TorchIO's loaders draw a number that nobody uses
            (batch,) = tio.SubjectsLoader(queue, collate_fn=collate, batch_size=len(draws))
        return batch

    def subject_at(self, draw: Draw, worker: int | None = None) -> tio.Subject:
        """The patch at this address, not loaded yet.

        It has ``image`` (C, S, H, W) float32, ``case``, ``index`` and ``location``, the patch's first voxel
        in the stored scan (before it is augmented); in streams with labels also ``labels`` (1, S, H, W) uint8
        and ``annotated`` (classes,) bool; and its own ``generator`` and ``pose`` for the augmentation. Until
        then its images are the region that the pose looks at.
        """
        generator = draw.generator()
        name = choose_case(generator, self.settings.names, self.settings.weights)
        record = self.store.record(name)
        forced = self.is_labelled and is_forced_foreground(
            draw.index, self.settings.batch, self.settings.foreground_share
        )
        location = choose_lower(generator, record.shape, self.patch, record.samples if forced else None)
        pose = self.settings.augmentation.draw_pose(generator) if self.settings.augmentation else None
        offset, shape = ((0, 0, 0), self.patch) if pose is None else pose.reach(self.patch)
        lower = (location[0] + offset[0], location[1] + offset[1], location[2] + offset[2])

        def read() -> tuple[np.ndarray, np.ndarray | None]:
            if worker is not None and self.trace is not None:
                self.trace.note(worker, name, draw)
            return self.store.read_patch(name, lower, shape, labels=self.is_labelled)

        reader = _RegionReader(read)
        content: dict[str, Any] = {"image": tio.ScalarImage(record.folder, reader=reader.image)}
        if self.is_labelled:
            listed = self.settings.annotated.get(name, record.annotated)
            content["labels"] = tio.LabelMap(record.folder, reader=reader.labels)
            content["annotated"] = annotated_classes(listed, self.store.plan.class_count)
        return tio.Subject(content, case=name, index=draw.index, location=location, generator=generator, pose=pose)

    def _augmented(self, subject: tio.Subject) -> tio.Subject:
        if self.settings.augmentation is not None:
            subject = self.settings.augmentation(subject)
        del subject["generator"], subject["pose"]
        return subject


def annotated_classes(listed: Sequence[int] | None, class_count: int) -> torch.Tensor:
    """For every class whether it is annotated, (classes,) bool, by the label ids ``listed`` (None: all).

    Background always is.

    >>> annotated_classes([2], 4).tolist()
    [True, False, True, False]
    """
    classes = np.ones(class_count, dtype=bool)
    if listed is not None:
        classes[1:] = np.isin(np.arange(1, class_count), list(listed))
    return torch.from_numpy(classes)


def batch_of(subjects: Sequence[tio.Subject], dimensions: int) -> Batch:
    """One batch: ``image`` (B, C, *patch) float32, ``case`` (list of names), ``index`` (B,) and ``location`` (B, 3)
    int64; where the subjects have labels also ``labels`` (B, 1, *patch) uint8 and ``annotated`` (B, classes) bool. A 2D
    patch has two axes, and three numbers of location.
    """
    first = subjects[0]
    batch: Batch = {
        key: _flat(torch.stack([subject.get_image(key).data for subject in subjects]), dimensions)
        for key in ("image", "labels")
        if key in first
    }
    if "annotated" in first:
        batch["annotated"] = torch.stack([cast(torch.Tensor, subject["annotated"]) for subject in subjects])
    batch["case"] = [subject["case"] for subject in subjects]
    batch["index"] = torch.tensor([subject.index for subject in subjects], dtype=torch.int64)
    batch["location"] = torch.tensor([subject["location"] for subject in subjects], dtype=torch.int64)
    return batch


def _flat(stacked: torch.Tensor, dimensions: int) -> torch.Tensor:
    """(B, C, 1, H, W) as (B, C, H, W) in 2D."""
    return stacked if dimensions == 3 else stacked.squeeze(2)


def _in_shared_memory(batch: Batch) -> Batch:
    """The batch where the training process can read it.

    PyTorch would move it in a thread of the worker, whose errors reach nobody: the batch would never come.
    """
    try:
        for value in batch.values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()
    except RuntimeError as error:
        raise WorkerError(no_shared_memory(f"hand over a patch of case '{batch['case'][0]}'", error)) from error
    return batch


# -- the loader


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
        self._loader: DataLoader[Batch | _Failure] | None = None
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

    def _begun(self, epoch: int, iteration: int) -> Iterator[Batch | _Failure]:
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
        left_to_the_training = [one for one in _STOPS if callable(signal.getsignal(one))]
        self._loader = DataLoader(
            self.batches,
            sampler=self._sampler,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            prefetch_factor=self._each_ahead or None,
            worker_init_fn=partial(_leave_to_the_training, left_to_the_training),
            timeout=LOOKS_S if self.workers else 0,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(0),
        )
        others, other_threads = set(multiprocessing.active_children()), set(threading.enumerate())
        try:
            with deaths_left_alone(), blocked(left_to_the_training):
                begun = iter(self._loader)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise WorkerError(no_shared_memory("start its data workers", error)) from error
        self._threads = set(threading.enumerate()) - other_threads
        # also before multiprocessing joins them at the interpreter's end, where a traceback has kept this loader alive
        self._processes = set(multiprocessing.active_children()) - others
        self.close = Finalize(self, kill, args=(self._processes,), exitpriority=0)
        return begun

    def _received(self, batches: Iterator[Batch | _Failure]) -> Iterator[Batch]:
        """The batches as they come. Raises what went wrong in a worker, and RuntimeError where one does not answer."""
        since = time.monotonic()
        while True:
            if dead := [one for one in self._processes if not one.is_alive()]:
                raise dead_worker(dead[0])
            try:
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
            if isinstance(batch, _Failure):
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
        self._loader = None


def _leave_to_the_training(signals: list[signal.Signals], worker: int) -> None:
    """In a new worker: leave the signals that the training process handles to it. SLURM sends them to all processes of
    a job; were the workers to die of them, the training could not finish the step it is to stop after."""
    obey_only_the_parent(signals)


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
