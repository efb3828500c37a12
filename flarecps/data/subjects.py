"""One stream of training patches as a TorchIO data set whose index is an address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchio as tio
from torch.utils.data import get_worker_info

from flarecps.data.augmentation import PatchAugmentation
from flarecps.data.draws import Draw, choose_case, choose_lower, is_forced_foreground
from flarecps.data.worker_deaths import Whereabouts
from flarecps.errors import FlarecpsError
from flarecps.preprocessing.store import CaseStore
from flarecps.typing import Triple


@dataclass(frozen=True)
class StreamSettings:
    """Which cases a stream draws from, and how.

    ``annotated``: label ids by case, where a split says more than the store. ``augmentation`` None: plain patches.
    """

    names: tuple[str, ...]
    patch_voxels: tuple[int, ...]
    batch: int  # of all ranks
    foreground_share: float
    augmentation: PatchAugmentation | None
    annotated: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Failure:
    """What a worker hands over instead of a patch: an error raised there would arrive wrapped in a traceback's text."""

    error: FlarecpsError


class PatchSubjects(tio.SubjectsDataset):
    """Training patches by their address: ``subjects[draw]`` reads, cuts and augments one, in whatever process asks.

    A subject has ``image`` (C, S, H, W) float32, ``case``, ``index`` and ``location``, the patch's first voxel in the
    stored scan (before it is augmented); in the labelled stream also ``labels`` (1, S, H, W) uint8 and ``annotated``
    (classes,) bool. The unlabelled stream never opens a label file. TorchIO's own data set would hold whole scans and
    a transform for them: neither is wanted, so its constructor is not used.
    """

    def __init__(self, store: CaseStore, settings: StreamSettings, patch: Triple, is_labelled: bool) -> None:
        self.store = store
        self.settings = settings
        self.patch = patch
        self.is_labelled = is_labelled
        self.whereabouts: Whereabouts | None = None  # where workers note what they read
        self._annotated: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        """The number of scans."""
        return len(self.settings.names)

    def dry_iter(self) -> Sequence[tio.Subject]:
        """Nothing: there are no subjects before an address is given."""
        return []

    def __getitem__(self, draw: Draw) -> tio.Subject | Failure:  # type: ignore[override]
        """The patch at this address; in a worker, a ``Failure`` when it can't be read."""
        worker = get_worker_info()
        try:
            return self.patch_at(draw, None if worker is None else worker.id)
        except FlarecpsError as error:
            if worker is None:
                raise
            return Failure(error)

    def patch_at(self, draw: Draw, worker: int | None = None) -> tio.Subject:
        """The patch at this address; ``worker`` (its number) first notes what it is about to read."""
        generator = draw.generator()
        name = choose_case(generator, self.settings.names)
        if worker is not None and self.whereabouts is not None:
            self.whereabouts.note(worker, name, draw)
        record = self.store.record(name)
        forced = self.is_labelled and is_forced_foreground(
            draw.index, self.settings.batch, self.settings.foreground_share
        )
        lower = choose_lower(generator, record.shape, self.patch, record.samples if forced else None)
        location = lower
        augmentation = self.settings.augmentation
        pose = augmentation.draw_pose(generator) if augmentation else None
        shape = self.patch
        if pose is not None:
            offset, shape = pose.reach(self.patch)
            lower = (lower[0] + offset[0], lower[1] + offset[1], lower[2] + offset[2])
        image, labels = self.store.read_patch(name, lower, shape, labels=self.is_labelled)
        content: dict[str, Any] = {"image": tio.ScalarImage(tensor=torch.from_numpy(image))}
        if labels is not None:
            content["labels"] = tio.LabelMap(tensor=torch.from_numpy(labels)[None])
            content["annotated"] = self._annotated_classes(name)
        subject = tio.Subject(content, case=name, index=draw.index, location=location)
        if augmentation is not None:
            subject["generator"], subject["pose"] = generator, pose
            subject = augmentation(subject)
            del subject["generator"], subject["pose"]
        return subject

    def _annotated_classes(self, name: str) -> torch.Tensor:
        if name not in self._annotated:
            listed = self.settings.annotated.get(name, self.store.record(name).annotated)
            self._annotated[name] = annotated_classes(listed, self.store.plan.class_count)
        return self._annotated[name]


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


def batch_of(subjects: Sequence[tio.Subject], dimensions: int) -> dict[str, Any]:
    """One batch: ``image`` (B, C, *patch) float32, ``case`` (list of names), ``index`` (B,) and ``location`` (B, 3)
    int64; where the subjects have labels also ``labels`` (B, 1, *patch) uint8 and ``annotated`` (B, classes) bool. A 2D
    patch has two axes, and three numbers of location.
    """
    first = subjects[0]
    batch: dict[str, Any] = {
        key: _flat(torch.stack([subject.get_image(key).data for subject in subjects]), dimensions)
        for key in ("image", "labels")
        if key in first
    }
    if "annotated" in first:
        batch["annotated"] = torch.stack([subject.annotated for subject in subjects])
    batch["case"] = [subject["case"] for subject in subjects]
    batch["index"] = torch.tensor([subject.index for subject in subjects], dtype=torch.int64)
    batch["location"] = torch.tensor([subject["location"] for subject in subjects], dtype=torch.int64)
    return batch


def _flat(stacked: torch.Tensor, dimensions: int) -> torch.Tensor:
    """(B, C, 1, H, W) as (B, C, H, W) in 2D."""
    return stacked if dimensions == 3 else stacked.squeeze(2)
