"""Histograms against NumPy; fingerprints of small volumes counted by hand; merging and workers."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.errors import DatasetError, ScanError
from flarecps.planning import fingerprint as fingerprint_module
from flarecps.planning.fingerprint import (
    Fingerprint,
    FingerprintAccumulator,
    fingerprint_case,
    fingerprint_dataset,
    fingerprint_shard,
    is_ct,
    to_hu,
)
from flarecps.planning.histogram import Histogram
from flarecps.volumes.io import Source, Volume, write_volume
from flarecps.volumes.space import CANONICAL_DIRECTION, Space, axis_codes, canonical_reorientation

GENERATOR = np.random.default_rng(7)


def a_volume(array: np.ndarray, spacing_mm: tuple = (2.0, 1.0, 0.5), name: str = "scan.nii.gz") -> Volume:
    space = Space.canonical(array.shape[1:], spacing_mm)
    source = Source(Path(name), space, canonical_reorientation(CANONICAL_DIRECTION), "nifti")
    return Volume(array, space, source)


def fingerprint(array: np.ndarray, labels: np.ndarray | None = None, name: str = "a", ct: bool = True, **more):
    return fingerprint_case(
        a_volume(array), None if labels is None else a_volume(labels), name=name, role="labelled", ct=ct,
        known_labels=range(4), **more,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 5001])
def test_statistics_equal_numpys(size: int) -> None:
    values = GENERATOR.integers(-1024, 3000, size).astype(np.int16)
    histogram = Histogram.of(values)
    assert histogram.count == size
    assert histogram.mean() == pytest.approx(values.mean(dtype=np.float64), rel=1e-12)
    assert histogram.sd() == pytest.approx(values.std(dtype=np.float64), rel=1e-12)
    for percent in (0, 0.5, 10, 50, 99.5, 100):
        assert histogram.percentile(percent) == pytest.approx(np.percentile(values.astype(float), percent), abs=1e-9)


def test_sums_beyond_64_bits_stay_exact() -> None:
    """3e15 voxels of 32767 HU: the sum of squares passes 2^63 by far."""
    counts = np.zeros(2, np.int64)
    counts[:] = 3 * 10**15
    histogram = Histogram(32766, counts)
    assert histogram.mean() == 32766.5
    assert histogram.sd() == 0.5


def test_addition_counts_both_and_keeps_equal_things_equal() -> None:
    one, other = GENERATOR.integers(-50, 20, 300), GENERATOR.integers(100, 180, 200)
    both = Histogram.of(np.concatenate([one, other]))
    assert Histogram.of(one) + Histogram.of(other) == both == Histogram.of(other) + Histogram.of(one)
    assert both + Histogram.empty() == both == Histogram.empty() + both
    assert Histogram.from_json(json.loads(json.dumps(both.to_json()))) == both


def test_an_empty_histogram_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="empty"):
        Histogram.empty().mean()
    with pytest.raises(TypeError, match="whole numbers"):
        Histogram.of(np.zeros(3))


def test_hu_are_whole_and_clamped() -> None:
    assert to_hu(np.array([-3024.0, -1024.4, -0.6, 39.4, 5e4])).tolist() == [-1024, -1024, -1, 39, 32767]
    assert to_hu(np.array([-3024, 40, 70000], np.int32)).tolist() == [-1024, 40, 32767]
    assert to_hu(np.array([0, 65535], np.uint16)).tolist() == [0, 32767]
    assert to_hu(np.array([0, 255], np.uint8)).dtype == np.int16


def test_one_case_by_hand() -> None:
    image = np.full((1, 6, 8, 10), -3024, np.int16)
    image[0, 1:5, 2:7, 0:9] = GENERATOR.integers(-100, 200, (4, 5, 9))
    labels = np.zeros((1, 6, 8, 10), np.uint8)
    labels[0, 2, 3, 1:4] = 1
    labels[0, 3, 3:5, 4] = 3
    found = fingerprint(image, labels)
    field = image[0, 1:5, 2:7, 0:9]
    (case,) = found.cases
    assert case.shape_voxels == (4, 5, 9)
    assert case.spacing_mm == (2.0, 1.0, 0.5)
    assert case.label_voxels == found.label_voxels == {0: 4 * 5 * 9 - 5, 1: 3, 3: 2}
    assert case.volumes_ml == pytest.approx({1: 3 * 1e-3, 3: 2 * 1e-3})  # a voxel of 2 × 1 × 0.5 mm is 1 µl
    assert found.histogram == Histogram.of(field)
    assert found.label_histograms == {1: Histogram.of(image[0, 2, 3, 1:4]), 3: Histogram.of(image[0, 3, 3:5, 4])}


def test_fill_below_the_scale_counts_as_air() -> None:
    image = np.array([-3024, 50, -1000, -1024], np.int16).reshape(1, 1, 2, 2).repeat(2, axis=1)
    histogram = fingerprint(image).histogram
    assert histogram is not None
    assert histogram.lowest == -1024
    assert histogram.count == math.prod(image.shape)


def test_other_modalities_have_no_histogram() -> None:
    found = fingerprint(GENERATOR.random((2, 3, 4, 5)).astype(np.float32), np.ones((1, 3, 4, 5), np.uint8), ct=False)
    assert found.histogram is None
    assert found.label_histograms == {}
    assert found.cases[0].volumes_ml == {1: pytest.approx(60e-3)}


def test_labels_that_do_not_belong() -> None:
    image = np.zeros((1, 3, 4, 5), np.int16)
    labels = np.zeros((1, 3, 4, 5), np.uint8)
    labels[0, 0, 0, 0] = 9
    with pytest.raises(ScanError, match=r"case 'a' hold the value 9; dataset\.json knows 0, 1, 2, 3"):
        fingerprint(image, labels)
    with pytest.raises(ScanError, match=r"not on the grid of its image scan\.nii\.gz \(case 'a'\)"):
        fingerprint(image, np.zeros((1, 3, 4, 6), np.uint8))


def some_cases(count: int = 5) -> list[Fingerprint]:
    cases = []
    for index in range(count):
        image = GENERATOR.integers(-1000, 1000, (1, 4, 5, 6 + index)).astype(np.int16)
        labels = GENERATOR.integers(0, 3, image.shape).astype(np.uint8)
        cases.append(fingerprint(image, labels, f"case_{index}"))
    return cases


def added(*parts: Fingerprint) -> Fingerprint:
    tally = FingerprintAccumulator()
    for part in parts:
        tally.add(part)
    return tally.total()


def test_merging_is_addition_in_any_grouping_and_order() -> None:
    cases = some_cases()
    whole = added(*cases)
    parts = added(added(*cases[3:]), added(*cases[1:3]), cases[0])
    assert parts == whole == added(*reversed(cases))
    assert added(Fingerprint(), whole) == whole
    assert whole.foreground == whole.label_histograms[1] + whole.label_histograms[2]
    assert Fingerprint.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    with pytest.raises(ValueError, match="case_3"):
        added(whole, cases[3])


def test_orientation_codes_are_nibabels() -> None:
    nibabel = pytest.importorskip("nibabel")
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
        for signs in ((1, 1, 1), (-1, 1, -1)):
            direction = np.zeros((3, 3))
            direction[axes, range(3)] = signs
            affine = np.eye(4)
            affine[:3, :3] = np.diag([-1, -1, 1]) @ direction  # ITK's LPS to NIfTI's RAS
            assert axis_codes(tuple(direction.ravel())) == "".join(nibabel.aff2axcodes(affine))


def test_ct_is_known_by_the_channels_names() -> None:
    assert is_ct(("CT",))
    assert is_ct((" ct ", "CT"))
    assert not is_ct(("CT", "PET"))


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """Two labelled, one unlabelled and one test case on disk, and a scan that cannot be read."""
    cases = []
    for name, role in (("a", "labelled"), ("b", "labelled"), ("u", "unlabelled"), ("t", "test")):
        array = GENERATOR.integers(-900, 900, (6, 7, 8)).astype(np.int16)
        space = Space.canonical(array.shape, (2.0, 1.0, 1.0))
        write_volume(tmp_path / f"{name}.nii.gz", array, space)
        write_volume(tmp_path / f"{name}_labels.nii.gz", (array > 0).astype(np.uint8), space)
        cases.append(Case(name, role, (tmp_path / f"{name}.nii.gz",), tmp_path / f"{name}_labels.nii.gz"))
    (tmp_path / "broken.nii.gz").write_bytes(b"not a scan")
    cases.append(Case("broken", "unlabelled", (tmp_path / "broken.nii.gz",)))
    return Catalogue(tmp_path, "small", {"background": 0, "organ": 1}, ("CT",), (), tuple(cases))


def test_a_data_set_is_fingerprinted_without_its_test_scans(catalogue: Catalogue) -> None:
    whole, failed = fingerprint_dataset(catalogue, workers=1, progress=False)
    assert [(case.name, case.role) for case in whole.cases] == [
        ("a", "labelled"), ("b", "labelled"), ("u", "unlabelled"),
    ]  # fmt: skip
    assert whole.cases[2].label_voxels == {}  # the labels of an unlabelled case are nobody's business
    assert whole.histogram is not None
    assert whole.histogram.count == 3 * 6 * 7 * 8
    assert whole.label_histograms[1].lowest > 0
    assert [outcome.name for outcome in failed] == ["broken"]
    assert "broken.nii.gz" in (failed[0].error or "")


def test_no_readable_labelled_case(catalogue: Catalogue) -> None:
    for case in catalogue.labelled:
        case.images[0].write_bytes(b"")
    with pytest.raises(DatasetError, match="no labelled case could be read; the first failed"):
        fingerprint_dataset(catalogue, workers=1, progress=False)


def test_shards_orders_and_interruptions_give_the_same_bytes(catalogue: Catalogue, tmp_path: Path) -> None:
    undisturbed, sharded = tmp_path / "undisturbed", tmp_path / "sharded"
    whole, _ = fingerprint_dataset(catalogue, workers=2, progress=False, folder=undisturbed)
    counts = []
    for share in ("3/3", "1/3", "2/3"):
        count, failed = fingerprint_shard(catalogue, share, sharded, workers=1, progress=False)
        counts.append((count, [outcome.name for outcome in failed]))
    assert sorted(counts) == [(1, []), (1, []), (2, ["broken"])]
    (sharded / "cases" / "a.json").unlink()  # a killed job leaves whole files, or none, and a partial one
    (sharded / "cases" / ".partial-00000000-a.json").write_text("{")
    merged, failed = fingerprint_dataset(catalogue, workers=1, progress=False, folder=sharded)
    assert [outcome.name for outcome in failed] == ["broken"]
    assert merged == whole == fingerprint_dataset(catalogue, workers=1, progress=False)[0]
    for name in ("fingerprint.json", "cases/a.json", "cases/b.json", "cases/u.json"):
        assert (undisturbed / name).read_bytes() == (sharded / name).read_bytes()
    content = json.loads((sharded / "fingerprint.json").read_text())
    assert Fingerprint.from_json(content) == whole


def count_readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    real = fingerprint_module.read_channels
    monkeypatch.setattr(fingerprint_module, "read_channels", lambda paths: read.extend(paths) or real(paths))
    return read


def test_only_what_is_out_of_date_is_read_again(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "fingerprints"
    read = count_readings(monkeypatch)

    def read_now(one: Catalogue = catalogue) -> list[str]:
        read.clear()
        fingerprint_dataset(one, workers=1, progress=False, folder=folder)
        return [path.name.removesuffix(".nii.gz") for path in read]

    assert read_now() == ["a", "b", "u", "broken"]
    assert read_now() == ["broken"]
    scan, labels = catalogue.cases[0].images[0], catalogue.cases[1].labels
    os.utime(scan, ns=(0, scan.stat().st_mtime_ns + 1))
    assert read_now() == ["a", "broken"]
    assert labels is not None
    write_volume(labels, np.ones((6, 7, 8), np.uint8), Space.canonical((6, 7, 8), (2.0, 1.0, 1.0)))
    assert read_now() == ["b", "broken"]
    (folder / "cases" / "u.json").write_text('{"format": "flarecps-fingerprint"')
    assert read_now() == ["u", "broken"]
    unlabelled = replace(
        catalogue, cases=tuple(replace(c, role="unlabelled") if c.name == "b" else c for c in catalogue.cases)
    )
    assert read_now(unlabelled) == ["b", "broken"]
    assert read_now(replace(unlabelled, labels={"background": 0, "organ": 1, "other": 2})) == ["a", "broken"]


def test_memory_does_not_grow_with_the_number_of_cases() -> None:
    """A thousand scans take as many counters as their range of HU is wide."""
    tally = FingerprintAccumulator()
    for index in range(1000):
        image = GENERATOR.integers(-1000, 1000, (1, 2, 3, 4)).astype(np.int16)
        tally.add(fingerprint(image, (image > 0).astype(np.uint8), f"case_{index}"))
    total = tally.total()
    assert total.histogram is not None
    assert total.histogram.count == 1000 * 24
    assert total.histogram.counts.size <= 2000
    assert [one.counts.size <= 1000 for one in total.label_histograms.values()] == [True]
