"""Training patches by their address: subjects, and the batches of one stream.

An address (`draws.Draw`) becomes a TorchIO subject that reads its region of the store when it is loaded; the subjects
of a batch go through a TorchIO queue, in whatever process makes the batch. No generator's state is kept anywhere: the
address decides everything, so any number of workers or ranks, and a resumed run, give the same batches.
`patch_loader` has workers make them some steps ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torchio as tio
from torch.utils.data import Dataset, get_worker_info

from flarecps.data.augmentation import PatchAugmentation
from flarecps.data.draws import Draw, DrawSequence, choose_case, choose_lower, is_forced_foreground
from flarecps.data.worker_trace import WorkerTrace, no_shared_memory
from flarecps.errors import FlarecpsError, WorkerError, refusal
from flarecps.preprocessing.store import CaseStore
from flarecps.typing import Triple

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
class Failure:
    """What a worker hands over instead of a batch: an error raised there would arrive wrapped in a traceback's text."""

    error: FlarecpsError | OSError | MemoryError


class PatchBatches(Dataset[Batch | Failure]):
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

    def __getitem__(self, address: BatchAddress) -> Batch | Failure:
        """The batch at this address; in a worker, a ``Failure`` when it can't be made, else in shared memory."""
        draws = list(islice(self.sequence.starting_at(*address), self.sequence.share))
        worker = get_worker_info()
        if worker is None:
            return self.make(draws)
        try:
            return _in_shared_memory(self.make(draws, worker.id))
        except (FlarecpsError, OSError, MemoryError) as error:
            return Failure(error)

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
    batch: Batch = {}
    for key in ("image", "labels"):
        if key in first:
            stacked = torch.stack([subject.get_image(key).data for subject in subjects])
            batch[key] = stacked if dimensions == 3 else stacked.squeeze(2)  # (B, C, 1, H, W)
    if "annotated" in first:
        batch["annotated"] = torch.stack([cast(torch.Tensor, subject["annotated"]) for subject in subjects])
    batch["case"] = [subject["case"] for subject in subjects]
    batch["index"] = torch.tensor([subject.index for subject in subjects], dtype=torch.int64)
    batch["location"] = torch.tensor([subject["location"] for subject in subjects], dtype=torch.int64)
    return batch


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
    except OSError as error:  # too few open files, for example
        reason = refusal(error) or error
        raise WorkerError(f"a patch of case '{batch['case'][0]}' can't be handed over: {reason}") from error
    return batch
