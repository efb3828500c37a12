"""The case store: what is read is what was written, patches may overhang, interruptions leave nothing half done."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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
from flarecps.preprocessing import store_writing
from flarecps.preprocessing.case import GridMapping, Prepared
from flarecps.preprocessing.dataset import case_bytes, preprocess_dataset, verify_dataset, workers_that_fit
from flarecps.preprocessing.intensity import channel_statistics, dequantise, normalise, quantise
from flarecps.preprocessing.store import CaseStore
from flarecps.preprocessing.store_writing import find_damage, prepare_store, sample_voxels, write_case
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
    assert record.grid_mapping.scan_shape == SHAPE
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
    assert store_module.open_array(store.record("a").folder / "image.b2nd").chunks == (1, 1, 24, 28)
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


def test_several_may_begin_one_store_at_once(catalogue: Catalogue, tmp_path: Path) -> None:
    """As the tasks of a job array do: whoever looks while another one is at it finds a store, or room for one."""
    plan = a_plan()
    with ThreadPoolExecutor(8) as threads:
        for number in range(50):
            folder = tmp_path / f"store_{number}"
            list(threads.map(lambda _, folder=folder: prepare_store(folder, plan, catalogue), range(8)))
            assert CaseStore(folder).plan == plan
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("not a store")
    with pytest.raises(StoreError, match="exists and is not a case store"):
        prepare_store(tmp_path / "notes", plan, catalogue)


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

    def write_then_die(store, prepared, case, plan, remarks) -> None:
        if done:
            (store / "cases" / f".partial-{case.name}").mkdir()
            (store / "cases" / f".partial-{case.name}" / "image.b2nd").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        done.append(case.name)
        store_writing.write_case(store, prepared, case, plan, remarks)

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


def test_every_case_lists_the_checksums_of_its_files(store: CaseStore) -> None:
    for name in store.names:
        folder = store.path / "cases" / name
        listed = dict(reversed(line.split("  ")) for line in (folder / "checksums.sha256").read_text().splitlines())
        there = {path.name for path in folder.iterdir()} - {"checksums.sha256"}
        assert listed == {file: hashlib.sha256((folder / file).read_bytes()).hexdigest() for file in there}
        assert find_damage(folder) == ""


def test_the_stores_manifest_is_what_sha256sum_reads(store: CaseStore) -> None:
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet", "--strict", "manifest.sha256"], cwd=store.path, capture_output=True
    )
    assert (done.returncode, done.stdout) == (0, b"")
    listed = {line.split("  ")[1] for line in (store.path / "manifest.sha256").read_text().splitlines()}
    stored = {f"cases/{name}" for name in content_of(store.path / "cases") if not name.endswith("checksums.sha256")}
    assert listed == stored


@pytest.mark.parametrize("file", ["image.b2nd", "labels.b2nd", "samples.b2nd", "case.json", "checksums.sha256"])
@pytest.mark.parametrize("how", ["one bit", "cut off", "gone"])
def test_damage_is_found_taken_out_and_written_again(
    store: CaseStore, catalogue: Catalogue, file: str, how: str
) -> None:
    before = content_of(store.path)
    path = store.path / "cases" / "a" / file
    content = bytearray(path.read_bytes())
    if how == "one bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif how == "cut off":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    verdicts = verify_dataset(catalogue, a_plan(), store.path, workers=1, progress=False)
    assert [one.name for one in verdicts if one.value] == ["a"]
    assert CaseStore(store.path).names == ("b", "t", "u1", "u2")
    assert " cases/a/" not in (store.path / "manifest.sha256").read_text()
    verdicts = verify_dataset(catalogue, a_plan(), store.path, workers=1, progress=False)
    assert [(one.name, one.value) for one in verdicts if one.value] == [("a", "missing")]
    outcomes = preprocess_dataset(catalogue, a_plan(), store.path, workers=1, progress=False)
    assert [one.value for one in outcomes] == ["written", *["present"] * 4]
    assert content_of(store.path) == before


def test_a_file_cut_short_is_written_again_without_being_verified(store: CaseStore, catalogue: Catalogue) -> None:
    before = content_of(store.path)
    path = store.path / "cases" / "u1" / "image.b2nd"
    path.write_bytes(path.read_bytes()[:-1])
    (store.path / "cases" / "b" / "case.json").write_text("{")
    outcomes = preprocess_dataset(catalogue, a_plan(), store.path, workers=1, progress=False)
    assert [one.name for one in outcomes if one.value == "written"] == ["b", "u1"]
    assert content_of(store.path) == before


def test_a_case_that_is_a_link_is_replaced_and_what_it_leads_to_stays(store: CaseStore, tmp_path: Path) -> None:
    name = store.names[0]
    case, elsewhere = store.path / "cases" / name, tmp_path / "elsewhere"
    case.rename(elsewhere)
    case.symlink_to(elsewhere)
    before = sorted(elsewhere.iterdir())
    store_writing.remove_case(store.path, name)
    assert not [path for path in case.parent.iterdir() if path.is_symlink()]
    assert sorted(elsewhere.iterdir()) == before


def test_leftovers_of_killed_runs_go_but_not_another_jobs_work(store: CaseStore, catalogue: Catalogue) -> None:
    for name in (".partial-01234567-a", ".partial-01234567-b", ".partial-89abcdef-gone"):
        (store.path / "cases" / name).mkdir()
    preprocess_dataset(catalogue, a_plan(), store.path, workers=1, share="1/5", progress=False)  # case a
    assert [path.name for path in (store.path / "cases").glob(".*")] == [".partial-01234567-b"]
    assert store.names == ("a", "b", "t", "u1", "u2")


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "labels.b2nd" and path.parent.name.endswith("-b"):  # after digits that may begin with b
            whole(path, data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    outcomes = preprocess_dataset(catalogue, a_plan(), tmp_path / "store", workers=1, progress=False)
    failed = {one.name: one.error or "" for one in outcomes if one.failed}
    assert list(failed) == ["b"]
    assert "no room to write case 'b' (No space left on device); free some" in failed["b"]
    assert sorted(path.name for path in (tmp_path / "store" / "cases").iterdir()) == ["a", "t", "u1", "u2"]


def test_a_limit_on_file_size_is_noticed(catalogue: Catalogue, tmp_path: Path) -> None:
    """A real error of the operating system, in a process of its own: files may hold 4096 bytes there."""

    def limited(queue) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        sys.dont_write_bytecode = True  # a module's would be cut short, and kept
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            store_writing.write_array(tmp_path / "image.b2nd", voxels_of("a")[0][None], 3)
        except OSError as error:
            queue.put(error.errno)

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=limited, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == errno.EFBIG
    child.join(timeout=60)


def a_prepared_scan(array: np.ndarray) -> Prepared:
    shape = array.shape[1:]
    grid_mapping = GridMapping(shape, SPACING, (0, 0, 0), shape, (0, 1, 2), shape, SPACING)
    return Prepared(array, None, grid_mapping, channel_statistics(array))


def stored_and_back(array: np.ndarray, catalogue: Catalogue, path: Path) -> tuple[np.ndarray, str]:
    """Intensities that come back from a store of ``array``, and the type they were stored in."""
    plan = a_plan(channels=tuple(f"MR{number}" for number in range(len(array))), intensity=Intensity("zscore"))
    prepare_store(path, plan, replace(catalogue, channels=plan.channels))
    prepared = a_prepared_scan(array)
    write_case(path, prepared, Case("m", "unlabelled", (catalogue.cases[0].images[0],), None, None), plan)
    patch = CaseStore(path).read_case("m")[0]
    mean, sd = (np.array(prepared.statistics[key]).reshape(-1, 1, 1, 1) for key in ("mean", "sd"))
    assert find_damage(path / "cases" / "m") == ""
    return patch * sd + mean, str(store_module.open_array(path / "cases" / "m" / "image.b2nd").dtype)


@pytest.mark.parametrize("offset", [0.0, 500.0, -3.0])
def test_other_modalities_come_back_within_a_ten_thousandth_of_the_sd(
    catalogue: Catalogue, tmp_path: Path, offset: float
) -> None:
    generator = np.random.default_rng(4)
    scan = ((generator.gamma(4, 50, (2, *SHAPE)) + offset) * [[[[1.0]]], [[[0.001]]]]).astype(np.float32)
    back, kind = stored_and_back(scan, catalogue, tmp_path / "mr")
    assert kind == "int16"
    for one, other in zip(back, scan, strict=True):
        assert np.abs(one - other.astype(np.float64)).max() <= 1.1e-4 * other.std()


def test_a_scan_too_wide_for_16_bits_stays_float32(catalogue: Catalogue, tmp_path: Path) -> None:
    scan = np.random.default_rng(4).normal(100, 5, (1, *SHAPE)).astype(np.float32)
    scan[0, 3, 3, 3] = 1e5
    back, kind = stored_and_back(scan, catalogue, tmp_path / "mr")
    assert kind == "float32"
    np.testing.assert_allclose(back, scan, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("lowest", [0, 40_000])
def test_whole_numbers_stay_exact(catalogue: Catalogue, tmp_path: Path, lowest: int) -> None:
    scan = np.random.default_rng(5).integers(lowest, lowest + 200, (1, *SHAPE)).astype(np.float32)
    stored, scaling = quantise(scan, [float(scan.std())])
    assert scaling is not None
    assert scaling.scale == (1.0,)
    np.testing.assert_array_equal(dequantise(stored, scaling), scan)


def test_a_constant_scan_is_stored_and_comes_back_as_zero(catalogue: Catalogue, tmp_path: Path) -> None:
    back, _ = stored_and_back(np.full((1, *SHAPE), 7.25, np.float32), catalogue, tmp_path / "mr")
    np.testing.assert_array_equal(back, np.float32(7.25))


def test_workers_are_limited_by_memory(catalogue: Catalogue) -> None:
    one = workers_that_fit(catalogue.cases, a_plan(), 1, available=0)
    assert one == (1, one[1])
    assert one[1] > 250 << 20
    assert workers_that_fit(catalogue.cases, a_plan(), 5, available=3 * one[1]) == (3, 5 * one[1])
    assert workers_that_fit(catalogue.cases, a_plan(), 5, available=6 * one[1]) == (5, 5 * one[1])
    assert workers_that_fit([], a_plan(), 5, available=0)[0] == 5
    whole = case_bytes(119 * 512 * 512, 190 * 380 * 380, channels=1, ct=True)
    assert whole == (119 * 512 * 512 + 190 * 380 * 380) * 3 + 4 * 119 * 512 * 512 + (64 << 20)
