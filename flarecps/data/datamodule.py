"""The data of a training: patches of up to three kinds side by side, whole scans for validation and test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torchio as tio
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader

from flarecps.data.augmentation import NO_AUGMENTATION, AugmentationSettings, patch_augmentation
from flarecps.data.draws import Draw, DrawSequence, Stream, check_ranks
from flarecps.data.patch_loader import CaseLoader, EpochClock, PatchLoader
from flarecps.data.patch_stream import PatchBatches, StreamSettings, annotated_classes
from flarecps.data.worker_trace import diagnosis
from flarecps.datasets.splits import Split, choose_split, read_splits
from flarecps.datasets.splits import fold as fold_of
from flarecps.errors import ConfigError, DatasetError, StoreError
from flarecps.planning.plan import Plan, volume_patch
from flarecps.preprocessing.pseudo_labels import PseudoLabelledStore
from flarecps.preprocessing.store import CaseStore
from flarecps.volumes.dicom import stacks_at
from flarecps.volumes.discovery import find_scans
from flarecps.volumes.links import place_of


class ScanDataModule(LightningDataModule):
    """Patches and scans of a case store, the same sequence of batches for any number of workers and processes.

    Set the trainer's ``use_distributed_sampler: false``; what a process takes is decided here.

    Args:
        store: the case store, a folder written by `flarecps preprocess`.
        split: name of a split in the store's splits.json; may be left out if there is only one, or one called
            "default".
        fold: 0 to 4 holds out one fifth of the labelled cases for validation; "all" trains on all of them. Ignored if
            the split names validation cases.
        patch_voxels: patch size, (slice, row, column) or in 2D (row, column); by default the plan's.
        global_batch: patches per step over all processes, {labelled: n, unlabelled: n, pseudo_labelled: n}; by default
            the plan's. Pseudo-labelled ones are as many as unlabelled ones where their number is left out.
        iterations_per_epoch: steps in an epoch.
        foreground_share: share of labelled (and of pseudo-labelled) patches centred on a labelled structure: the last
            patches of every global batch, from the round(batch × (1 - share))-th on.
        augmentation: true for nnU-Net's default set, false for none, or its settings.
        transforms: further TorchIO transforms of training patches, yours or TorchIO's, in this order after all others;
            they must keep a patch's size.
        mirror_axes: the patch's axes that are mirrored, 0 slice, 1 row, 2 column, in 2D 0 row, 1 column; by default
            all. In axial scans columns run from left to right.
        swap_left_right: exchange paired labels (right and left kidney) when the left-right axis is mirrored.
        workers: processes that read and augment patches, shared by the kinds of patches (at least one each); 0 does it
            in the training process.
        seed: every draw depends on it. None: that of ``seed_everything`` (from Python: 0).
        unlabelled: false reads no unlabelled patches.
        max_unlabelled: use only the first so many unlabelled cases.
        pseudo_labels: a folder written by `flarecps pseudo-label` for this store: patches of the split's unlabelled
            cases are read with the labels in it, as a further kind.
        min_quality: an organ whose quality in a scan's pseudo-labels is lower is left out there, as one that was struck
            out: it gives no loss.
        quality_weights: draw scans as often as their pseudo-labels are good: in proportion to the mean quality of their
            organs that are left; false: equally often.
        validation_patches: so many patches of the validation cases, always the same, are scored after every epoch.
        predict_input: a scan or a folder of scans for `predict`.
    """

    def __init__(
        self,
        store: str,
        split: str | None = None,
        fold: int | Literal["all"] = "all",
        patch_voxels: list[int] | None = None,
        global_batch: dict[str, int] | None = None,
        iterations_per_epoch: int = 250,
        foreground_share: float = 0.33,
        augmentation: AugmentationSettings | bool = True,
        transforms: list[tio.Transform] | None = None,
        mirror_axes: list[int] | None = None,
        swap_left_right: bool = False,
        workers: int = 0,
        seed: int | None = None,
        unlabelled: bool = True,
        max_unlabelled: int | None = None,
        pseudo_labels: str | None = None,
        min_quality: float = 0.0,
        quality_weights: bool = True,
        validation_patches: int = 16,
        predict_input: str | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # more ranks than validation cases
        self.store = CaseStore(store)
        self.plan: Plan = self.store.plan
        self.patch_voxels = _checked_patch(patch_voxels, self.plan)
        self.global_batch = _checked_batch(
            global_batch or self.plan.global_batch, unlabelled, pseudo_labels is not None
        )
        numbers = {"iterations_per_epoch": iterations_per_epoch, "workers": workers}
        numbers |= {"seed": seed or 0, "validation_patches": validation_patches}
        for name, value in numbers.items():
            least = int(name == "iterations_per_epoch")
            if value < least:
                raise ConfigError(f"{name} is {value}; expected a whole number of at least {least}")
        for name, part in (("foreground_share", foreground_share), ("min_quality", min_quality)):
            if not 0 <= part <= 1:
                raise ConfigError(f"{name} is {part}; expected a {name.split('_')[1]} between 0 and 1")
        self.quality_weights = quality_weights
        self.iterations_per_epoch = iterations_per_epoch
        self.foreground_share = foreground_share
        self.workers = workers
        self.seed = seed or 0
        self.validation_patches = validation_patches
        self.predict_input = predict_input
        settings = AugmentationSettings() if augmentation is True else augmentation or NO_AUGMENTATION
        self.augmentation = (
            patch_augmentation(settings, self.plan, self.patch_voxels, mirror_axes, swap_left_right, transforms or ())
            if augmentation or transforms
            else None
        )
        self.clock = EpochClock()
        self._loaders: list[PatchLoader] = []
        try:
            chosen = choose_split(read_splits(self.store.path / "splits.json"), split, self.store.path)
        except DatasetError as error:
            raise ConfigError(f"{error} (data.split)") from None
        self._choose_cases(chosen, fold, unlabelled, max_unlabelled)
        self.pseudo_labelled: PseudoLabelledStore | None = None
        if pseudo_labels is not None:
            pool = chosen.unlabelled[:max_unlabelled]
            self.pseudo_labelled = PseudoLabelledStore(self.store.path, Path(pseudo_labels), pool, min_quality)

    def _choose_cases(
        self, split: Split, fold: int | Literal["all"], unlabelled: bool, max_unlabelled: int | None
    ) -> None:
        self.annotated = dict(split.annotated)
        try:
            training, held_out = (split.labelled, ()) if split.validation else fold_of(split.labelled, fold)
        except DatasetError as error:
            raise ConfigError(str(error)) from None
        self.labelled_names: tuple[str, ...] = tuple(training)
        self.validation_names: tuple[str, ...] = split.validation or held_out
        self.unlabelled_names: tuple[str, ...] = split.unlabelled[:max_unlabelled] if unlabelled else ()
        self.test_names: tuple[str, ...] = split.test
        if not self.labelled_names:
            raise ConfigError(f"{self.store.path}: the split has no labelled case to train on; choose another split")
        if unlabelled and not self.unlabelled_names:
            raise ConfigError(
                f"{self.store.path}: the split has no unlabelled case; set unlabelled: false to train on labelled "
                f"scans alone"
            )
        stored = set(self.store.names)
        used = self.labelled_names + self.validation_names + self.unlabelled_names + self.test_names
        missing = [name for name in used if name not in stored]
        if missing:
            raise StoreError(
                f"{self.store.path}: {len(missing)} of the split's {len(used)} cases are not in the store (the first "
                f"is {missing[0]!r}); run 'flarecps preprocess' again, it adds what is missing"
            )
        for name in (*self.labelled_names, *self.validation_names):
            if not self.store.record(name).has_labels:
                raise StoreError(
                    f"{self.store.path}: case {name!r} is to be labelled but has no labels in the store; correct the "
                    f"split, or preprocess again with the label file in place"
                )

    def source_changes(self) -> str:
        """Which cases of this training were made from files that have changed since, in one line; "" for none."""
        return self.store.source_changes([*self.labelled_names, *self.validation_names, *self.unlabelled_names])

    @property
    def rank(self) -> int:
        """This process among all."""
        return self.trainer.global_rank if self.trainer else 0

    @property
    def ranks(self) -> int:
        """The number of processes."""
        return self.trainer.world_size if self.trainer else 1

    def train_dataloader(self) -> CombinedLoader:
        """``{"labelled": batches}``, and beside them "unlabelled" and "pseudo_labelled" ones where they are read.

        Raises ConfigError when the processes can't share the global batch equally.
        """
        check_ranks(self.global_batch, self.ranks)
        trainer = self.trainer
        if trainer is not None:
            self.clock.follow(lambda: trainer.current_epoch)
        self._close()
        streams: dict[Stream, tuple[str, ...]] = {"labelled": self.labelled_names}
        if self.unlabelled_names:
            streams["unlabelled"] = self.unlabelled_names
        if self.pseudo_labelled is not None:
            streams["pseudo_labelled"] = self.pseudo_labelled.names
        loaders: dict[Stream, PatchLoader] = {}
        device = trainer.strategy.root_device if trainer else None
        for number, (stream, names) in enumerate(streams.items()):
            batches = self._batches(stream, names, self.global_batch[stream])
            workers = _share(self.workers, number, len(streams))
            loaders[stream] = PatchLoader(batches, self.clock, workers, device)
        self._loaders = list(loaders.values())
        return CombinedLoader(loaders, mode="min_size")

    def _batches(self, stream: Stream, names: tuple[str, ...], batch: int) -> PatchBatches:
        pseudo_labelled = self.pseudo_labelled if stream == "pseudo_labelled" else None
        settings = StreamSettings(
            names=names,
            patch_voxels=self.patch_voxels,
            batch=batch,
            foreground_share=self.foreground_share,
            augmentation=None if stream == "validation" else self.augmentation,
            annotated={} if pseudo_labelled else self.annotated,
            weights=tuple(pseudo_labelled.weights.values()) if pseudo_labelled and self.quality_weights else None,
        )
        sequence = DrawSequence(self.seed, stream, batch, self.iterations_per_epoch, self.rank, self.ranks)
        patch = volume_patch(self.patch_voxels)
        return PatchBatches(pseudo_labelled or self.store, settings, patch, stream != "unlabelled", sequence)

    def batches_ahead(self) -> tuple[int, float]:
        """Of this process's training streams together: batches that workers make ahead, and their memory in GB.

        0, 0 without workers, and before there are loaders. On a GPU one more batch of each stream lies on the device.
        """
        counts = [loader.batches_ahead for loader in self._loaders]
        sizes = [loader.batches.batch_bytes for loader in self._loaders]
        return sum(counts), sum(count * size for count, size in zip(counts, sizes, strict=True)) / 1e9

    def read_validation_patches(self) -> Iterator[dict[str, Any]]:
        """This process's share of the validation patches, each a batch of one (see ``batch_of``), not augmented.

        Their addresses never change, so that epochs can be compared. None where there are no validation cases.
        """
        if not self.validation_names:
            return
        batches = self._batches("validation", self.validation_names, self.validation_patches)
        for index in range(self.rank, self.validation_patches, self.ranks):
            yield batches.make([Draw(self.seed, epoch=0, stream="validation", index=index)])

    def val_dataloader(self) -> CaseLoader | list[Any]:
        """This process's validation cases, whole: see ``read_whole_case``; an empty list when there are none."""
        return self._cases(self.validation_names)

    def test_dataloader(self) -> CaseLoader | list[Any]:
        """This process's test cases, whole: see ``read_whole_case``; an empty list when there are none."""
        return self._cases(self.test_names)

    def predict_dataloader(self) -> CaseLoader:
        """This process's share of the scans under ``predict_input``: their paths; "" where there are too few."""
        if self.predict_input is None:
            raise ConfigError("predict needs data.predict_input: a scan, or a folder of scans")
        place = Path(self.predict_input)
        if not place_of(place).exists():
            raise ConfigError(f"data.predict_input: {place} does not exist; expected a scan or a folder of scans")
        paths = [str(path) for path in (find_scans(place) if place.is_dir() else stacks_at(place))]
        return CaseLoader(paths[self.rank :: self.ranks] or [""], str)  # Lightning skips a loop without batches

    def _cases(self, names: tuple[str, ...]) -> CaseLoader | list[Any]:
        own = list(names[self.rank :: self.ranks])
        own += [""] * (-(-len(names) // self.ranks) - len(own))  # equally many for all, who look up after each together
        return CaseLoader(own, self.read_whole_case) if names else []

    def read_whole_case(self, name: str) -> dict[str, Any]:
        """``image`` (C, S, H, W) float32 normalised, ``case``, ``spacing_mm`` (slice, row, column), all on the
        network's grid, and where the case has labels ``labels`` (S, H, W) uint8 and ``annotated`` (classes,) bool.
        Nothing for the name "", which a process without a case of its own is given, so that it still takes part in
        what all do together.
        """
        if not name:
            return {}
        image, labels = self.store.read_case(name)
        record = self.store.record(name)
        case: dict[str, Any] = {"image": torch.from_numpy(image)}
        if labels is not None:
            case["labels"] = torch.from_numpy(labels)
            listed = self.annotated.get(name, record.annotated)
            case["annotated"] = annotated_classes(listed, self.plan.class_count)
        return case | {"case": name, "spacing_mm": record.spacing_mm}

    def state_dict(self) -> dict[str, str]:
        """What a checkpoint keeps: which pseudo-labels are trained on, in short."""
        return {} if self.pseudo_labelled is None else {"pseudo_labels": self.pseudo_labelled.digest}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Go on from a checkpoint. Raises ConfigError where a training would go on with other pseudo-labels."""
        trainer = self.trainer
        if trainer is not None and trainer.training and state != self.state_dict():
            raise ConfigError(
                "the pseudo-labels are not those that this training began with (labels, struck.csv or "
                "data.min_quality have changed): undo that, or start a new training from its weights with --init"
            )

    def on_exception(self, exception: BaseException) -> None:
        """Let the workers go. Instead of PyTorch's word that a worker died, raise ``WorkerError``: which scan, what
        memory, what to do."""
        tables = [loader.batches.trace for loader in self._loaders if loader.batches.trace is not None]
        self._close()
        death = diagnosis(exception, tables, self.workers)
        if death is not None:
            raise death from exception

    def teardown(self, stage: str) -> None:
        """Let the workers go."""
        self._close()

    def _close(self) -> None:
        for loader in self._loaders:
            loader.end_workers()
        self._loaders = []


def _checked_patch(patch_voxels: list[int] | None, plan: Plan) -> tuple[int, ...]:
    """The patch to train on (whether a network's strides divide it is the model's concern)."""
    if patch_voxels is None:
        return tuple(plan.patch_voxels)
    if len(patch_voxels) != plan.dimensions or min(patch_voxels) < 1:
        raise ConfigError(
            f"patch_voxels is {list(patch_voxels)}; the plan is {plan.dimensions}D, so {plan.dimensions} positive "
            f"numbers are expected, such as {list(plan.patch_voxels)}"
        )
    return tuple(patch_voxels)


def _checked_batch(global_batch: dict[str, int], unlabelled: bool, pseudo_labelled: bool) -> dict[str, int]:
    """The global batch, 0 for unlabelled patches that are not in use; ConfigError for other names or sizes below 1.

    Where it says nothing of pseudo-labelled patches, there are as many as unlabelled ones, or else as labelled ones.
    """
    if pseudo_labelled:
        others = global_batch.get("unlabelled") or global_batch.get("labelled", 0)
        global_batch = {"pseudo_labelled": others, **global_batch}
    in_use = {"labelled": True, "unlabelled": unlabelled, "pseudo_labelled": pseudo_labelled}
    missing = any(global_batch.get(name, 0) < 1 for name, used in in_use.items() if used)
    if missing or set(global_batch) - set(in_use):
        raise ConfigError(
            f"global_batch is {dict(global_batch)}; expected {{labelled: n, unlabelled: n, pseudo_labelled: n}} with "
            f"n >= 1 (unlabelled is not needed with unlabelled: false, pseudo_labelled only with pseudo_labels)"
        )
    sizes = {name: int(global_batch[name]) if used else 0 for name, used in in_use.items()}
    return {name: size for name, size in sizes.items() if name != "pseudo_labelled" or size}


def _share(workers: int, number: int, streams: int) -> int:
    """How many of ``workers`` the ``number``-th of so many streams has: the first ones more, each at least one.

    >>> [_share(5, number, 2) for number in range(2)], [_share(1, number, 3) for number in range(3)], _share(0, 0, 2)
    ([3, 2], [1, 1, 1], 0)
    """
    return max(1, (workers + streams - 1 - number) // streams) if workers else 0
