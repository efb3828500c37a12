"""The case store: what is read is what was written, patches may overhang, interruptions leave nothing half done."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.datasets.splits import read_splits
from flarecps.errors import PlanError, StoreError
from flarecps.planning.plan import Intensity, Plan, Topology
from flarecps.preprocessing import dataset as preprocessing_dataset
from flarecps.preprocessing import store as store_module
from flarecps.preprocessing.dataset import preprocess_dataset
from flarecps.preprocessing.intensity import normalise
from flarecps.preprocessing.samples import sample_voxels
from flarecps.preprocessing.store import CaseStore
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SHAPE = (20, 24, 28)
SPACING = (2.0, 1.0, 1.0)


def a_plan(**changes) -> Plan:
    plan = Plan(
        dataset="small",
        dimensions=3,
        labels={"background": 0, "one": 1, "two": 2},
        left_right_pairs=(),
        channels=("CT",),
        spacing_mm=SPACING,
        axis_order=(0, 1, 2),
        median_shape_voxels=SHAPE,
        patch_voxels=(8, 8, 8),
        topology=Topology((4, 8), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3))),
        global_batch={"labelled": 2, "unlabelled": 2},
        batch_dice=False,
        intensity=Intensity("ct", -500.0, 500.0, 10.0, 300.0),
        fingerprint={},
        memory_gb=1.0,
    )
    return replace(plan, **changes)


def voxels_of(name: str) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(sum(name.encode()))
    image = generator.integers(-1000, 1500, SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:9, 3:12, 4:20] = 1
    labels[10:15, 13:20, 5:9] = 2
    return image, labels


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """Two labelled cases (one annotated in part), two unlabelled, one test case."""
    root = tmp_path / "data"
    root.mkdir()
    space = Space.canonical(SHAPE, SPACING)
    cases = []
    for name, role in (("a", "labelled"), ("b", "labelled"), ("u1", "unlabelled"), ("u2", "unlabelled"), ("t", "test")):
        image, labels = voxels_of(name)
        write_volume(root / f"{name}.nii.gz", image, space)
        path = None
        if role != "unlabelled":
            path = root / f"{name}_labels.nii.gz"
            write_volume(path, labels, space)
        cases.append(Case(name, role, (root / f"{name}.nii.gz",), path, (1,) if name == "b" else None))
    return Catalogue(root, "small", dict(a_plan().labels), ("CT",), (), tuple(cases))


@pytest.fixture
def store(catalogue: Catalogue, tmp_path: Path) -> CaseStore:
    outcomes = preprocess_dataset(catalogue, a_plan(), tmp_path / "store", workers=1, progress=False)
    assert [(one.name, one.value) for one in outcomes] == [(case.name, "written") for case in catalogue.cases]
    return CaseStore(tmp_path / "store")


def content_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_whole_cases_come_back_normalised(store: CaseStore) -> None:
    assert store.names == ("a", "b", "t", "u1", "u2")
    assert store.plan == a_plan()
    for name in store.names:
        image, labels = voxels_of(name)
        stored, stored_labels = store.read_case(name)
        np.testing.assert_array_equal(stored, normalise(image[None], a_plan().intensity, {}))
        if name.startswith("u"):
            assert stored_labels is None
        else:
            np.testing.assert_array_equal(stored_labels, labels)


def test_records(store: CaseStore) -> None:
    image, labels = voxels_of("b")
    record = store.record("b")
    assert (record.name, record.shape, record.spacing_mm, record.role) == ("b", SHAPE, SPACING, "labelled")
    assert record.annotated == (1,)
    assert store.record("a").annotated is None
    assert record.statistics == {"mean": [pytest.approx(image.mean())], "sd": [pytest.approx(image.std())]}
    assert record.way_back.scan_shape == SHAPE
    samples = record.samples
    assert samples.keys() == {1, 2}
    for label, expected in sample_voxels(labels, "b").items():
        np.testing.assert_array_equal(samples[label], expected)
    unlabelled = store.record("u1")
    assert (unlabelled.has_labels, unlabelled.samples, unlabelled.role) == (False, {}, "unlabelled")
    assert "a" in store
    assert "nobody" not in store


@pytest.mark.parametrize(
    ("lower", "shape"),
    [
        ((0, 0, 0), (8, 8, 8)),
        ((3, 5, 7), (8, 9, 10)),
        ((-3, -4, -5), (8, 8, 8)),
        ((15, 20, 25), (10, 11, 12)),
        ((-2, 4, -3), (30, 6, 40)),
        ((19, 23, 27), (1, 1, 1)),
        ((-9, 0, 0), (8, 8, 8)),
        ((100, 0, 0), (4, 4, 4)),
    ],
)
def test_patches_equal_numpys_even_beyond_the_scan(store: CaseStore, lower: tuple, shape: tuple) -> None:
    image, labels = voxels_of("a")
    margin = 120
    expected = np.pad(normalise(image[None], a_plan().intensity, {}), [(0, 0), *[(margin, margin)] * 3])
    expected_labels = np.pad(labels, margin)
    region = tuple(slice(margin + start, margin + start + size) for start, size in zip(lower, shape, strict=True))
    patch, patch_labels = store.read_patch("a", lower, shape, labels=True)
    assert (patch.dtype, patch_labels is not None and patch_labels.dtype) == (np.float32, np.uint8)
    np.testing.assert_array_equal(patch, expected[(slice(None), *region)])
    np.testing.assert_array_equal(patch_labels, expected_labels[region])
    assert store.read_patch("a", lower, shape, labels=False)[1] is None


def test_padding_is_the_mean_not_air(store: CaseStore) -> None:
    patch, _ = store.read_patch("a", (-4, 0, 0), (4, 4, 4), labels=False)
    assert not patch.any()


def test_labels_of_an_unlabelled_case(store: CaseStore) -> None:
    with pytest.raises(StoreError, match="case 'u1' has no labels"):
        store.read_patch("u1", (0, 0, 0), (4, 4, 4), labels=True)
    with pytest.raises(StoreError, match="no case 'nobody'"):
        store.record("nobody")


def test_in_2d_one_slice_is_one_chunk(catalogue: Catalogue, tmp_path: Path) -> None:
    plan = a_plan(dimensions=2, patch_voxels=(8, 8), topology=Topology((4, 8), ((1, 1), (2, 2)), ((3, 3), (3, 3))))
    preprocess_dataset(catalogue, plan, tmp_path / "store2", workers=1, progress=False)
    store = CaseStore(tmp_path / "store2")
    assert store_module._open(store.record("a").folder / "image.b2nd").chunks == (1, 1, 24, 28)
    patch, _ = store.read_patch("a", (5, 0, 0), (1, 24, 28), labels=False)
    np.testing.assert_array_equal(patch, normalise(voxels_of("a")[0][None, 5:6], plan.intensity, {}))


def _sum_of_patch(store: CaseStore, queue) -> None:
    queue.put(float(store.read_patch("a", (1, 2, 3), (9, 9, 9), labels=False)[0].sum()))


def test_forked_workers_read_what_the_parent_reads(store: CaseStore) -> None:
    expected = float(store.read_patch("a", (1, 2, 3), (9, 9, 9), labels=False)[0].sum())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=_sum_of_patch, args=(store, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [expected, expected]
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0


def test_a_store_can_be_sent_to_spawned_workers(store: CaseStore) -> None:
    store.read_case("a")
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read_case("a")[0], store.read_case("a")[0])


def test_few_arrays_stay_open(store: CaseStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "OPEN_ARRAYS", 2)
    for name in store.names * 2:
        store.read_patch(name, (0, 0, 0), (4, 4, 4), labels=False)
        assert len(store._arrays) <= 2


def test_finished_cases_are_left_alone(store: CaseStore, catalogue: Catalogue) -> None:
    before = {path: path.stat().st_mtime_ns for path in (store.path / "cases").rglob("*")}
    plan = a_plan(intensity=Intensity("ct", 0.0, 100.0, 50.0, 25.0))  # intensities are applied on reading
    outcomes = preprocess_dataset(catalogue, plan, store.path, workers=1, progress=False)
    assert {one.value for one in outcomes} == {"present"}
    assert {path: path.stat().st_mtime_ns for path in (store.path / "cases").rglob("*")} == before
    assert CaseStore(store.path).read_case("a")[0].max() == 2.0


def test_a_changed_scan_is_done_again(store: CaseStore, catalogue: Catalogue) -> None:
    image, _ = voxels_of("a")
    write_volume(catalogue.cases[0].images[0], np.clip(image, -10, 10), Space.canonical(SHAPE, SPACING))
    outcomes = preprocess_dataset(catalogue, a_plan(), store.path, workers=1, progress=False)
    assert [one.value for one in outcomes] == ["written", *["present"] * 4]


def test_another_plans_store_is_refused(store: CaseStore, catalogue: Catalogue) -> None:
    before = content_of(store.path)
    plan = a_plan(spacing_mm=(3.0, 1.0, 1.0))
    with pytest.raises(StoreError, match=r"another plan \(spacing_mm \(2\.0, 1\.0, 1\.0\) there.*choose another --out"):
        preprocess_dataset(catalogue, plan, store.path, workers=1, progress=False)
    assert content_of(store.path) == before


def test_a_folder_of_something_else_is_refused(catalogue: Catalogue) -> None:
    before = content_of(catalogue.root)
    with pytest.raises(StoreError, match="not a case store"):
        preprocess_dataset(catalogue, a_plan(), catalogue.root, workers=1, progress=False)
    assert content_of(catalogue.root) == before
    with pytest.raises(StoreError, match="flarecps preprocess"):
        CaseStore(catalogue.root)


def test_a_plan_for_other_labels_is_refused(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="the plan's labels are"):
        preprocess_dataset(
            catalogue, a_plan(labels={"background": 0, "one": 1}), tmp_path / "s", workers=1, progress=False
        )
    assert not (tmp_path / "s").exists()


def test_a_bad_case_does_not_stop_the_others(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.cases[2].images[0].write_bytes(b"")
    outcomes = preprocess_dataset(catalogue, a_plan(), tmp_path / "store", workers=1, progress=False)
    assert [one.name for one in outcomes if one.failed] == ["u1"]
    assert CaseStore(tmp_path / "store").names == ("a", "b", "t", "u2")


def _die_at_second_case(catalogue: Catalogue, path: Path) -> None:
    done = []

    def write_then_die(store, prepared, case, plan) -> None:
        if done:
            (store / "cases" / f".partial-{case.name}").mkdir()
            (store / "cases" / f".partial-{case.name}" / "image.b2nd").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(case.name)
        store_module.write_case(store, prepared, case, plan)

    preprocessing_dataset.write_case = write_then_die  # type: ignore[attr-defined]  # in this child process only
    preprocess_dataset(catalogue, a_plan(), path, workers=1, progress=False)


def test_killed_and_started_again_equals_undisturbed(store: CaseStore, catalogue: Catalogue, tmp_path: Path) -> None:
    child = multiprocessing.get_context("fork").Process(
        target=_die_at_second_case, args=(catalogue, tmp_path / "other")
    )
    child.start()
    child.join(timeout=60)
    assert child.exitcode == -signal.SIGKILL
    assert CaseStore(tmp_path / "other").names == ("a",)
    outcomes = preprocess_dataset(catalogue, a_plan(), tmp_path / "other", workers=1, progress=False)
    assert [one.value for one in outcomes] == ["present", *["written"] * 4]
    assert content_of(tmp_path / "other") == content_of(store.path)


def test_shards_make_the_same_store_as_one_run(store: CaseStore, catalogue: Catalogue, tmp_path: Path) -> None:
    for share in ("2/2", "1/2"):
        preprocess_dataset(catalogue, a_plan(), tmp_path / "shards", workers=1, share=share, progress=False)
    assert content_of(tmp_path / "shards") == content_of(store.path)


def test_workers_make_the_same_store_as_one_process(store: CaseStore, catalogue: Catalogue, tmp_path: Path) -> None:
    outcomes = preprocess_dataset(catalogue, a_plan(), tmp_path / "parallel", workers=2, progress=False)
    assert not any(one.failed for one in outcomes)
    assert content_of(tmp_path / "parallel") == content_of(store.path)


def test_splits_are_the_folders_roles_or_the_data_sets_own(
    store: CaseStore, catalogue: Catalogue, tmp_path: Path
) -> None:
    split = read_splits(store.path / "splits.json")["default"]
    assert (split.labelled, split.unlabelled, split.test) == (("a", "b"), ("u1", "u2"), ("t",))
    assert split.annotated == {"b": (1,)}
    own = {"few": {"labelled": ["a"], "unlabelled": ["b", "u1", "u2"], "test": ["t"]}}
    (catalogue.root / "splits.json").write_text(json.dumps(own))
    preprocess_dataset(catalogue, a_plan(), tmp_path / "store2", workers=1, progress=False)
    assert read_splits(tmp_path / "store2" / "splits.json")["few"].labelled == ("a",)


def test_a_damaged_array_is_named(store: CaseStore) -> None:
    (store.path / "cases" / "a" / "image.b2nd").write_bytes(b"")
    with pytest.raises(StoreError, match=r"a/image\.b2nd: missing or damaged"):
        CaseStore(store.path).read_case("a")
