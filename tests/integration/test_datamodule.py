"""The data module on a tiny case store: one sequence of batches, whoever reads it and whenever it is resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import re
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import jsonargparse
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from patience import patient
from scipy import ndimage

from flarecps.data import patch_loader
from flarecps.data.augmentation import AugmentationSettings
from flarecps.data.datamodule import ScanDataModule
from flarecps.data.worker_trace import WorkerTrace, diagnosis
from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.errors import ConfigError, StoreError, WorkerError
from flarecps.planning.plan import Intensity, Plan, Topology
from flarecps.preprocessing.case import GridMapping, Prepared
from flarecps.preprocessing.store import CaseStore
from flarecps.preprocessing.store_writing import prepare_store, write_case
from flarecps.processes import kill

LABELS = {"background": 0, "liver": 1, "right kidney": 2, "left kidney": 3}
SHAPE = (20, 26, 24)
PATCH = [8, 12, 8]
HU_OF = np.array([-50, 50, 150, 250], dtype=np.int16)  # of each label: the image tells the labels
SPATIAL_ONLY = AugmentationSettings(
    rotation_probability=0.5,
    scaling_probability=0.5,
    noise_probability=0,
    blur_probability=0,
    brightness_probability=0,
    contrast_probability=0,
    low_resolution_probability=0,
    inverted_gamma_probability=0,
    gamma_probability=0,
)

ON_CPU = SimpleNamespace(root_device=torch.device("cpu"))  # what a trainer says of its device


def make_plan(dimensions: int) -> Plan:
    ones, twos, threes = (1,) * dimensions, (2,) * dimensions, (3,) * dimensions
    return Plan(
        dataset="tiny",
        dimensions=dimensions,
        labels=LABELS,
        left_right_pairs=((2, 3),),
        channels=("CT",),
        spacing_mm=(2.0, 1.0, 1.5),
        axis_order=(0, 1, 2),
        median_shape_voxels=SHAPE,
        patch_voxels=tuple(PATCH[-dimensions:]),
        topology=Topology((8, 16, 32), (ones, twos, twos), (threes,) * 3),
        global_batch={"labelled": 4, "unlabelled": 2},
        batch_dice=True,
        intensity=Intensity("ct", -100, 300, 100, 100),
        fingerprint={},
        memory_gb=1.0,
    )


def make_store(folder: Path, dimensions: int = 3) -> Path:
    """Six labelled-in-the-folder cases, three unlabelled with labels that must not be read, two test cases."""
    plan = make_plan(dimensions)
    source = folder.parent / "dataset"
    source.mkdir()
    names = [f"case_{number}" for number in range(6)]
    unlabelled, test = ["free_0", "free_1", "free_2"], ["test_0", "test_1"]
    roles = dict.fromkeys(names, "labelled")
    roles |= dict.fromkeys(unlabelled, "unlabelled") | dict.fromkeys(test, "test")
    splits = {
        "all": {"labelled": names, "unlabelled": unlabelled, "test": test},
        "held_out": {
            "labelled": names[:2],
            "unlabelled": unlabelled,
            "validation": names[2:5],
            "annotated": {"case_0": [2]},
        },
        "supervised": {"labelled": names},
        "absent": {"labelled": [*names, "nowhere"], "unlabelled": unlabelled},
    }
    (source / "splits.json").write_text(json.dumps(splits))
    cases = {}
    for name, role in roles.items():
        image, labels = source / f"{name}_image", source / f"{name}_labels"
        image.touch()
        labels.touch()
        annotated = (1, 3) if name == "case_5" else None
        cases[name] = Case(name, role, (image,), labels if name != "test_1" else None, annotated)
    prepare_store(folder, plan, Catalogue(source, "tiny", LABELS, ("CT",), ((2, 3),), tuple(cases.values())))
    for seed, case in enumerate(cases.values()):
        generator = np.random.default_rng(seed)
        labels = np.zeros(SHAPE, dtype=np.uint8)
        for label in (1, 2, 3):
            low = generator.integers(0, np.array(SHAPE) - 7)
            labels[low[0] : low[0] + 6, low[1] : low[1] + 6, low[2] : low[2] + 6] = label
        grid_mapping = GridMapping(SHAPE, plan.spacing_mm, (0, 0, 0), SHAPE, (0, 1, 2), SHAPE, plan.spacing_mm)
        statistics = {"mean": [0.0], "sd": [1.0]}
        prepared = Prepared(HU_OF[labels][None], labels if case.labels else None, grid_mapping, statistics)
        write_case(folder, prepared, case, plan)
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("three") / "store")


@pytest.fixture(scope="module")
def flat_store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("two") / "store", dimensions=2)


def module(store: Path, **changes) -> ScanDataModule:
    settings = {"split": "all", "iterations_per_epoch": 3, "seed": 5, **changes}
    return ScanDataModule(str(store), **settings)


def epochs(data: ScanDataModule, count: int) -> list[list[dict]]:
    """The batches of the first epochs, without a trainer."""
    loader = data.train_dataloader()
    found = []
    for epoch in range(count):
        data.clock.set(epoch)
        found.append([batch for batch, _, _ in loader])
    data.teardown("fit")
    return found


def assert_equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    else:
        assert one == other


# --- batches -------------------------------------------------------------------------------------------------------


def test_batches_hold_what_the_contract_says(store):
    data = module(store)
    assert data.plan == make_plan(3)
    loader = data.train_dataloader()
    iter(loader)
    assert len(loader) == 3
    (first, second) = epochs(data, 2)
    assert len(first) == len(second) == 3
    for number, batch in enumerate(first):
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        assert list(labelled) == ["image", "labels", "annotated", "case", "index", "location"]
        assert list(unlabelled) == ["image", "case", "index", "location"]
        assert labelled["image"].shape == (4, 1, 8, 12, 8)
        assert labelled["image"].dtype == unlabelled["image"].dtype == torch.float32
        assert labelled["labels"].shape == (4, 1, 8, 12, 8)
        assert labelled["labels"].dtype == torch.uint8
        assert labelled["annotated"].shape == (4, 4)
        assert labelled["annotated"].dtype == torch.bool
        assert unlabelled["image"].shape == (2, 1, 8, 12, 8)
        assert (labelled["location"].shape, unlabelled["location"].shape) == ((4, 3), (2, 3))
        assert labelled["index"].tolist() == [number * 4 + place for place in range(4)]
        assert unlabelled["index"].tolist() == [number * 2 + place for place in range(2)]
        assert set(labelled["case"]) <= set(data.labelled_names)
        assert set(unlabelled["case"]) <= set(data.unlabelled_names)
    assert not torch.equal(first[0]["labelled"]["image"], second[0]["labelled"]["image"])
    assert_equal(epochs(module(store), 2), [first, second])
    assert not torch.equal(epochs(module(store, seed=6), 1)[0][0]["labelled"]["image"], first[0]["labelled"]["image"])


def test_zero_one_and_four_workers_give_identical_batches(store):
    alone = epochs(module(store), 2)
    for workers in (1, 2, 3, 4):
        assert_equal(epochs(module(store, workers=workers), 2), alone)


class PretendedStream:
    """A CUDA stream whose copies are done at once, on the CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record_event(self) -> None: ...

    def wait_event(self, event: None) -> None: ...


@pytest.fixture
def for_a_card(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device to which batches are copied ahead, on a pretended stream."""
    device, to = torch.device("cuda", 0), torch.Tensor.to
    monkeypatch.setattr(torch.cuda, "Stream", PretendedStream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", PretendedStream)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda one, *place, **more: one.clone() if place == (device,) else to(one, *place, **more)
    )
    return device


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_batches_that_are_copied_ahead_are_the_same_and_a_resumed_epoch_goes_on(store, for_a_card, workers):
    """The copy is a batch ahead of the step: where to go on is told by what the step was given."""
    expected = epochs(module(store), 2)
    trainer = SimpleNamespace(
        global_rank=0, world_size=1, current_epoch=0, strategy=SimpleNamespace(root_device=for_a_card)
    )
    data = module(store, workers=workers)
    data.trainer = trainer
    loader = data.train_dataloader()
    batches = iter(loader)
    assert_equal(next(batches)[0], expected[0][0])
    state = {stream: one.state_dict() for stream, one in loader.iterables.items()}
    assert set(map(str, state.values())) == {"{'epoch': 0, 'iteration': 1}"}
    assert_equal([next(batches)[0], next(batches)[0]], expected[0][1:])
    trainer.current_epoch = 1
    assert_equal([batch for batch, _, _ in loader], expected[1])
    data.teardown("fit")

    resumed = module(store, workers=workers)
    resumed.trainer = trainer
    trainer.current_epoch = 0
    loader = resumed.train_dataloader()
    for stream, one in loader.iterables.items():
        one.load_state_dict(state[stream])
    assert_equal([batch for batch, _, _ in loader], expected[0][1:])
    resumed.teardown("fit")


@pytest.mark.parametrize(("workers", "each"), [(0, 0), (1, 2), (2, 2), (4, 2), (6, 3)])
def test_batches_ahead_are_stated_in_memory(store, workers, each):
    """Two streams share the workers; of the memory, what the batches hold that two of each stream take."""
    data = module(store, workers=workers)
    assert data.batches_ahead() == (0, 0)
    loader = data.train_dataloader()
    batch = loader.iterables["labelled"].batches[0, 0], loader.iterables["unlabelled"].batches[0, 0]
    held = [sum(one[key].nbytes for key in ("image", "labels") if key in one) for one in batch]
    count, size_gb = data.batches_ahead()
    assert count == 2 * each
    assert size_gb == pytest.approx(each * sum(held) / 1e9)
    data.teardown("fit")


def test_workers_that_are_begun_anew_give_identical_batches(store):
    """As on macOS and Windows, where no process is forked."""
    alone = epochs(module(store, workers=0), 1)
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method("spawn", force=True)
    try:
        assert_equal(epochs(module(store, workers=2), 1), alone)
    finally:
        multiprocessing.set_start_method(before, force=True)


def test_workers_that_stand_still_at_an_epochs_start_are_replaced(store, monkeypatch):
    monkeypatch.setattr(patch_loader, "LOOKS_S", 1)
    expected = epochs(module(store), 2)
    data = module(store, workers=2)
    loader = data.train_dataloader()
    assert_equal([batch for batch, _, _ in loader], expected[0])
    stopped = [one.pid for stream in data._loaders for one in stream._processes]
    assert len(stopped) >= 2
    for process in stopped:
        os.kill(process, signal.SIGSTOP)
    data.clock.set(1)
    assert_equal([batch for batch, _, _ in loader], expected[1])
    assert not {one.pid for one in multiprocessing.active_children()} & set(stopped)
    data.teardown("fit")


def test_spawned_workers_would_get_the_same_subjects(store):
    data = module(store)
    batches = data.train_dataloader().iterables["labelled"].batches
    copied = pickle.loads(pickle.dumps(batches))  # as spawn and forkserver send them
    for iteration in range(2):
        assert_equal(batches[0, iteration], copied[0, iteration])


def test_two_ranks_together_have_what_one_has(store):
    alone = epochs(module(store), 1)[0]
    shares = []
    for rank in range(2):
        data = module(store)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, current_epoch=0, strategy=ON_CPU)
        shares.append(epochs(data, 1)[0])
    for number, batch in enumerate(alone):
        for stream in ("labelled", "unlabelled"):
            parts = [share[number][stream] for share in shares]
            together = torch.cat([part["index"] for part in parts])
            order = together.argsort()
            assert torch.equal(together[order], batch[stream]["index"])
            assert torch.equal(torch.cat([part["image"] for part in parts])[order], batch[stream]["image"])


def test_processes_that_cannot_share_a_batch_are_refused(store):
    data = module(store)
    data.trainer = SimpleNamespace(global_rank=0, world_size=4, current_epoch=0, strategy=ON_CPU)
    with pytest.raises(ConfigError, match=r"unlabelled: 2\).*4 processes.*1 or 2:"):
        data.train_dataloader()


def test_forced_patches_show_a_structure_in_their_middle(store):
    data = module(store, augmentation=False, foreground_share=0.75, iterations_per_epoch=20)
    seen = set()
    for batch in epochs(data, 1)[0]:
        centres = batch["labelled"]["labels"][:, 0, 4, 6, 4].tolist()
        seen |= set(centres[1:])
        # a voxel nearer to the scan's first corner than half a patch can't be the centre, but is in the patch
        assert all(labels.any() for labels in batch["labelled"]["labels"][1:])
    assert {1, 2, 3} <= seen


def test_plain_patches_are_what_the_store_holds(store):
    for batch in epochs(module(store, augmentation=False), 1)[0]:
        image, labels = batch["labelled"]["image"].numpy(), batch["labelled"]["labels"].numpy()
        inside = image != 0  # 0 is outside; no label has 100 HU
        np.testing.assert_allclose(image[inside], ((HU_OF[labels] - 100) / 100)[inside], atol=1e-6)
        assert (labels[~inside] == 0).all()
        for name, location, patch in zip(
            *(batch["labelled"][key] for key in ("case", "location", "image")), strict=True
        ):
            stored, _ = CaseStore(store).read_patch(name, tuple(location.tolist()), (8, 12, 8), labels=False)
            np.testing.assert_array_equal(patch.numpy(), stored)


@pytest.mark.parametrize("swap", [False, True])
def test_spatial_augmentation_keeps_image_and_labels_together(store, swap):
    data = module(store, augmentation=SPATIAL_ONLY, swap_left_right=swap, foreground_share=1.0, iterations_per_epoch=12)
    swapped = 0
    for batch in epochs(data, 1)[0]:
        for image, labels in zip(batch["labelled"]["image"], batch["labelled"]["labels"], strict=True):
            shown = image.numpy()[0] * 100 + 100
            even = (ndimage.maximum_filter(shown, 3) - ndimage.minimum_filter(shown, 3) < 1) & (shown != 100)
            read = np.abs(shown[..., None] - HU_OF).argmin(axis=-1)[even]
            found = labels.numpy()[0][even]
            agrees, agrees_swapped = (np.array_equal(told, found) for told in (read, np.array([0, 1, 3, 2])[read]))
            assert agrees or (swap and agrees_swapped)
            swapped += not agrees
    assert (swapped > 0) == swap


def test_global_generators_are_left_alone(store):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epochs(module(store), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_flat_patches_are_single_slices(flat_store):
    data = module(flat_store, foreground_share=0.5)
    for batch in epochs(data, 1)[0]:
        assert batch["labelled"]["image"].shape == (4, 1, 12, 8)
        assert batch["labelled"]["labels"].shape == (4, 1, 12, 8)
        assert batch["unlabelled"]["image"].shape == (2, 1, 12, 8)
    plain = module(flat_store, foreground_share=1.0, augmentation=False)
    assert all(labels.any() for batch in epochs(plain, 1)[0] for labels in batch["labelled"]["labels"])


def test_labels_of_unlabelled_cases_are_never_read(tmp_path):
    folder = make_store(tmp_path / "store")
    for name in ("free_0", "free_1", "free_2"):
        for kind in ("labels", "samples"):
            (folder / "cases" / name / f"{kind}.b2nd").unlink()
    assert len(epochs(module(folder), 1)[0]) == 3


def test_annotated_classes_come_from_split_or_store(store):
    data = module(store, iterations_per_epoch=15)
    by_case = {}
    for batch in epochs(data, 1)[0]:
        by_case |= dict(zip(batch["labelled"]["case"], batch["labelled"]["annotated"].tolist(), strict=True))
    assert by_case["case_5"] == [True, True, False, True]
    assert by_case["case_0"] == [True] * 4
    held_out = module(store, split="held_out")
    found = {
        name: flags
        for batch in epochs(held_out, 1)[0]
        for name, flags in zip(batch["labelled"]["case"], batch["labelled"]["annotated"].tolist(), strict=True)
    }
    assert found["case_0"] == [True, False, True, False]
    assert found["case_1"] == [True] * 4


# --- under Lightning -----------------------------------------------------------------------------------------------


class Witness(LightningModule):
    """A model that only writes down what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, int, list[int], float]] = []
        self.validated: list[str] = []
        self.predicted: list[str] = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.optimizers().step()
        labelled = batch["labelled"]
        total = float(labelled["image"].sum() + batch["unlabelled"]["image"].sum())
        self.seen.append((self.current_epoch, batch_idx, labelled["index"].tolist(), total))

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["case"])

    def predict_step(self, batch, batch_idx):
        self.predicted.append(batch)


class StopAt(Callback):
    """Saves a checkpoint at one batch and ends the run there, as a scheduler's signal would."""

    def __init__(self, epoch: int, batch: int, path: Path) -> None:
        self.epoch, self.batch, self.path = epoch, batch, path

    def on_train_batch_end(self, trainer, *_):
        if (trainer.current_epoch, _[-1]) == (self.epoch, self.batch):
            trainer.save_checkpoint(self.path)
            raise KeyboardInterrupt


def fit(data: ScanDataModule, *callbacks: Callback, resume: Path | None = None, **settings) -> Witness:
    witness = Witness()
    trainer = Trainer(
        **{"max_epochs": 3, **settings},
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
    )
    try:
        trainer.fit(witness, datamodule=data, ckpt_path=resume)
    except (KeyboardInterrupt, SystemExit):
        assert callbacks
    return witness


@pytest.mark.parametrize("workers", [0, 2])
def test_trainer_sees_each_epochs_own_draws(store, workers):
    expected = epochs(module(store), 3)
    witness = fit(module(store, workers=workers))
    assert [entry[:3] for entry in witness.seen] == [
        (epoch, number, list(range(number * 4, number * 4 + 4))) for epoch in range(3) for number in range(3)
    ]
    totals = [
        float(batch["labelled"]["image"].sum() + batch["unlabelled"]["image"].sum())
        for epoch in expected
        for batch in epoch
    ]
    assert [entry[3] for entry in witness.seen] == totals


@pytest.mark.parametrize("stop", [(0, 1), (1, 0), (1, 1), (1, 2)])
@pytest.mark.parametrize("validation", [False, True])
def test_resumed_run_draws_what_the_uninterrupted_one_draws(store, tmp_path, stop, validation):
    split = "held_out" if validation else "all"
    whole = fit(module(store, split=split)).seen
    path = tmp_path / "stopped.ckpt"
    first = fit(module(store, split=split), StopAt(*stop, path)).seen
    second = fit(module(store, split=split), resume=path).seen
    assert len(first) == stop[0] * 3 + stop[1] + 1
    assert first + second == whole


def test_epoch_cut_short_is_followed_by_the_next_ones_first_batch(store):
    whole = fit(module(store)).seen
    cut = fit(module(store), limit_train_batches=2).seen
    assert cut == [entry for entry in whole if entry[1] < 2]


class KillAWorker(Callback):
    """What the kernel does to a process when memory runs out."""

    def on_train_batch_end(self, trainer, *_):
        worker = multiprocessing.active_children()[0]
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()


def test_a_worker_that_dies_is_named_by_its_scan_and_the_memory_it_had(store):
    data = module(store, workers=2, iterations_per_epoch=50)
    with pytest.raises(WorkerError, match=r"killed by signal|died") as caught:
        fit(data, KillAWorker())
    message = str(caught.value)
    assert re.search(r"while it read case '(case|free)_\d' \((un)?labelled, epoch 0, index \d+\)", message)
    assert re.search(r"with [\d.]+ of [\d.]+ GiB RAM", message)
    assert "data.workers lower than 2" in message


class FailAfterKilling(Callback):
    """A worker dies when an error is on its way already, or while it is handled."""

    def __init__(self, moment):
        self.moment, self.handled = moment, False

    def kill(self):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    def on_train_batch_end(self, *_):
        if self.moment == "before":
            self.kill()
        raise ValueError("the error that counts")

    def on_exception(self, *_):
        if self.moment == "while":
            self.kill()
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            self.handled = True


@pytest.mark.parametrize("moment", ["before", "while"])
def test_a_worker_that_dies_does_not_disturb_the_handling_of_an_error(store, moment):
    """PyTorch's handler of SIGCHLD would raise in the middle of it, and nobody would end the other workers."""
    before = signal.getsignal(signal.SIGCHLD)
    data, failing = module(store, workers=2, iterations_per_epoch=50), FailAfterKilling(moment)
    with pytest.raises(ValueError, match="the error that counts"):
        fit(data, failing)
    assert failing.handled
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) is before


def test_a_batch_whose_memory_went_with_its_worker_is_the_workers_death(store):
    """PyTorch fetches a batch's memory from the worker that made it: a socket's error when that one is gone."""

    def lost():
        raise ConnectionResetError
        yield

    data = module(store, workers=2)
    epoch = iter(data.train_dataloader())
    next(epoch)
    loader = data._loaders[0]
    with pytest.raises(ConnectionResetError):  # all workers live: it is something else
        next(loader._received(lost()))
    kill(loader._processes)
    with pytest.raises(RuntimeError, match=r"\(pid \d+\) is killed by signal: Killed") as caught:
        next(loader._received(lost()))
    death = diagnosis(caught.value, [loader.batches.trace], workers=2)
    assert "a data worker died (Killed) while it read case '" in str(death)
    data.teardown("fit")


def test_a_stopped_worker_that_has_promised_a_batch_is_not_waited_for(store, monkeypatch):
    """The training asks it for the batch's memory, by a socket that has no limit of time."""
    monkeypatch.setattr(patch_loader, "LOOKS_S", 1)
    monkeypatch.setattr(patch_loader, "ANSWER_WITHIN_S", 1)
    data = module(store, workers=2, iterations_per_epoch=10)
    epoch = iter(data.train_dataloader())
    next(epoch)
    time.sleep(1.0)  # the next batches are made
    processes = [one for loader in data._loaders for one in loader._processes]
    for one in processes:
        os.kill(one.pid, signal.SIGSTOP)
    rescue = threading.Timer(patient(20), lambda: [one.kill() for one in processes])
    rescue.start()
    with pytest.raises(RuntimeError, match="no data worker has answered for 1 s") as caught:
        _ = [next(epoch) for _ in range(9)]
    rescue.cancel()
    assert "last they read case '" in str(diagnosis(caught.value, [data._loaders[0].batches.trace], workers=2))
    data.teardown("fit")


def test_what_a_killed_worker_held_is_not_waited_for(store):
    """PyTorch tells the workers that it is over by an event: one that was killed while it looked holds the lock."""
    data = module(store, workers=2)
    next(iter(data.train_dataloader()))
    for loader in data._loaders:
        if loader.workers:
            assert loader._loader._iterator._workers_done_event._cond.acquire(timeout=1)
    ended = threading.Thread(target=data.teardown, args=("fit",), daemon=True)
    ended.start()
    ended.join(patient(20))
    assert not ended.is_alive()
    assert not multiprocessing.active_children()


def test_an_ended_thread_that_pins_is_not_waited_for(store):
    """It ends by the error that would else be raised where the batch is asked for; workers live, and nothing comes."""

    def waiting():
        raise RuntimeError("DataLoader timed out after 5 seconds")
        yield

    data = module(store, workers=2)
    next(iter(data.train_dataloader()))
    loader = data._loaders[0]
    ended = threading.Thread(target=lambda: None)
    ended.start()
    ended.join()
    loader._threads = {*loader._threads, ended}
    with pytest.raises(RuntimeError, match="no data worker has answered for 0 s") as caught:
        next(loader._received(waiting()))
    assert "shared memory is short" in str(diagnosis(caught.value, [loader.batches.trace], workers=2))
    data.teardown("fit")


@pytest.mark.parametrize(
    ("error", "cure"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that …"), "shm-size"),
        (RuntimeError("DataLoader worker (pid(s) 7, 9) exited unexpectedly"), "data.workers lower than 3"),
        (RuntimeError("shapes do not match"), None),
        (ValueError("DataLoader worker (pid 7)"), None),
    ],
)
def test_only_the_death_of_a_worker_is_diagnosed(error, cure):
    found = diagnosis(error, [WorkerTrace(3)], workers=3)
    assert found is None if cure is None else cure in str(found)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("is_overwritten", [False, True])
def test_a_damaged_case_is_named_without_a_workers_traceback(tmp_path, workers, is_overwritten):
    store = make_store(tmp_path / "store")
    image = store / "cases" / "case_3" / "image.b2nd"
    content = bytearray(image.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = b"x" * 200
    image.write_bytes(content if is_overwritten else b"not an array")
    with pytest.raises(StoreError) as caught:
        epochs(module(store, workers=workers, iterations_per_epoch=20), 1)
    assert "case_3" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_validation_cases_come_whole_and_once(store):
    data = module(store, split="held_out")
    assert data.validation_names == ("case_2", "case_3", "case_4")
    shares = []
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shares.append([case.get("case") for case in data.val_dataloader()])
    assert shares == [["case_2", "case_4"], ["case_3", None]], "equally many, for the ranks look up after each together"
    data.trainer = None
    case = next(iter(data.val_dataloader()))
    image, labels = CaseStore(store).read_case("case_2")
    assert torch.equal(case["image"], torch.from_numpy(image))
    assert torch.equal(case["labels"], torch.from_numpy(labels))
    assert case["image"].shape == (1, *SHAPE)
    assert case["spacing_mm"] == (2.0, 1.0, 1.5)
    assert case["annotated"].tolist() == [True] * 4
    assert data.read_whole_case("case_0")["annotated"].tolist() == [True, False, True, False]  # by the split
    assert data.read_whole_case("case_5")["annotated"].tolist() == [True, True, False, True]  # by the store
    assert fit(data, num_sanity_val_steps=0, max_epochs=1).validated == list(data.validation_names)


@pytest.mark.parametrize("kind", ["store", "flat_store"])
def test_validation_patches_are_the_same_in_every_epoch_and_shared_by_the_ranks(kind, request):
    folder = request.getfixturevalue(kind)
    data = module(folder, fold=0, validation_patches=5)
    data.clock.set(0)
    patches = list(data.read_validation_patches())
    data.clock.set(3)
    assert_equal(list(data.read_validation_patches()), patches)
    assert len(patches) == 5
    assert [patch["index"].tolist() for patch in patches] == [[index] for index in range(5)]
    assert {patch["case"][0] for patch in patches} <= set(data.validation_names)
    forced = patches[-1]["labels"]
    assert forced.any(), "the last ones of a batch hold a structure, as in training"
    shares = []
    for rank in range(2):
        part = module(folder, fold=0, validation_patches=5)
        part.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        shares.append(list(part.read_validation_patches()))
    assert [len(share) for share in shares] == [3, 2]
    assert_equal(sorted(shares[0] + shares[1], key=lambda patch: int(patch["index"])), patches)
    assert not list(module(folder, fold="all").read_validation_patches())


def test_no_validation_cases_is_no_obstacle(store):
    data = module(store)
    assert data.val_dataloader() == []
    witness = fit(data, max_epochs=1)
    assert len(witness.seen) == 3
    assert witness.validated == []


def test_test_cases_may_lack_labels(store):
    cases = {case["case"]: case for case in module(store).test_dataloader()}
    assert sorted(cases) == ["test_0", "test_1"]
    assert "labels" in cases["test_0"]
    assert "labels" not in cases["test_1"]


def test_predict_hands_out_paths(store, tmp_path):
    for name in ("b.nii.gz", "a.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    data = module(store, predict_input=str(tmp_path))
    witness = Witness()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.predict(witness, datamodule=data, return_predictions=False)
    assert witness.predicted == [str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")]
    assert list(module(store, predict_input=str(tmp_path / "a.nii.gz")).predict_dataloader()) == [
        str(tmp_path / "a.nii.gz")
    ]
    with pytest.raises(ConfigError, match="predict_input"):
        module(store).predict_dataloader()
    with pytest.raises(ConfigError, match="nothing_here"):
        module(store, predict_input=str(tmp_path / "nothing_here")).predict_dataloader()


# --- choosing cases, and settings that can't be --------------------------------------------------------------------


def test_folds_hold_out_a_fifth_of_the_labelled_cases(store):
    held_out = [module(store, fold=number).validation_names for number in range(5)]
    assert sorted(name for names in held_out for name in names) == [f"case_{number}" for number in range(6)]
    for number, names in enumerate(held_out):
        assert set(module(store, fold=number).labelled_names) == {f"case_{case}" for case in range(6)} - set(names)
    assert module(store).validation_names == ()


def test_unlabelled_cases_can_be_fewer_or_none(store):
    assert module(store, max_unlabelled=2).unlabelled_names == ("free_0", "free_1")
    alone = module(store, split="supervised", unlabelled=False)
    assert list(epochs(alone, 1)[0][0]) == ["labelled"]
    assert alone.global_batch == {"labelled": 4, "unlabelled": 0}
    with_and_without = epochs(module(store), 1)[0][0]["labelled"], epochs(alone, 1)[0][0]["labelled"]
    assert_equal(*with_and_without)  # the control sees the same labelled patches


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "misspelt"}, r"misspelt.*all, held_out, supervised"),
        ({"split": None}, r"several splits \(all, held_out"),
        ({"split": "supervised"}, r"no unlabelled case.*unlabelled: false"),
        ({"fold": 7}, r"fold 7.*0\.\.4"),
        ({"patch_voxels": [8, 8]}, r"\[8, 8\].*3 positive numbers"),
        ({"global_batch": {"labelled": 2}}, r"global_batch.*unlabelled: n"),
        ({"global_batch": {"labelled": 2, "other": 3}}, "global_batch"),
        ({"foreground_share": 1.5}, "foreground_share is 1.5"),
        ({"iterations_per_epoch": 0}, "iterations_per_epoch is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"mirror_axes": [3]}, r"mirror_axes is \[3\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(store, changes, message):
    with pytest.raises(ConfigError, match=message):
        module(store, **changes)


def test_store_that_is_missing_or_incomplete_names_the_cure(store, tmp_path):
    with pytest.raises(StoreError, match="flarecps preprocess"):
        ScanDataModule(str(tmp_path / "nowhere"))
    with pytest.raises(StoreError, match=r"'nowhere'.*flarecps preprocess"):
        module(store, split="absent")


def test_every_setting_is_a_documented_config_line(store):
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(ScanDataModule, "data")
    settings = parser.parse_object(
        {"data": {"store": str(store), "split": "all", "augmentation": {"gamma_probability": 0.0}, "fold": 2}}
    )
    data = parser.instantiate(settings).data
    assert data.augmentation.steps[6].probability == 0
    assert len(data.validation_names) == 1
    undocumented = [action.dest for action in parser._actions if action.dest.startswith("data.") and not action.help]
    assert undocumented == []
