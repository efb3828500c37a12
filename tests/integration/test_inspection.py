"""The doctor finds every planted defect, says where, and stays silent about a sound data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flarecps.cli.main import main
from flarecps.datasets.catalogue import read_catalogue
from flarecps.datasets.examination import content_hash
from flarecps.datasets.inspection import Inspection, inspect_catalogue, inspection_to_json
from flarecps.datasets.splits import Split
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SHAPE = (12, 20, 24)
SPACING_MM = (5.0, 4.0, 4.0)
LABELS = {"background": 0, "liver": 1, "right kidney": 2, "spleen": 3, "left kidney": 4}


def scan(seed: int) -> np.ndarray:
    """A body of soft tissue in air, int16 HU."""
    hu = np.full(SHAPE, -1000, np.int16)
    hu[:, 3:-3, 3:-3] = np.random.default_rng(seed).normal(40, 20, (SHAPE[0], SHAPE[1] - 6, SHAPE[2] - 6))
    return hu


def anatomy() -> np.ndarray:
    """Liver and right kidney on the patient's right (high columns), spleen and left kidney on the left."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[6:10, 6:14, 14:20] = 1
    labels[2:5, 6:10, 14:18] = 2
    labels[6:10, 6:10, 4:8] = 3
    labels[2:5, 6:10, 5:9] = 4
    return labels


def write(path: Path, array: np.ndarray, spacing_mm: tuple[float, float, float] = SPACING_MM) -> None:
    array = array.astype(np.int16) if array.dtype == bool else array
    write_volume(path, array, Space.canonical(array.shape, spacing_mm))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A sound data set: three labelled, two unlabelled, one test case."""
    root = tmp_path / "dataset"
    for index, (folder, name) in enumerate(
        [("Tr", "a"), ("Tr", "b"), ("Tr", "c"), ("Un", "u"), ("Un", "v"), ("Ts", "t")]
    ):
        write(root / f"images{folder}/{name}_0000.nii.gz", scan(index))
        if folder != "Un":
            write(root / f"labels{folder}/{name}.nii.gz", anatomy())
    description = {"labels": LABELS, "channel_names": {"0": "CT"}}
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def inspected(root: Path) -> Inspection:
    return inspect_catalogue(read_catalogue(root), workers=1, progress=False)


def test_a_sound_data_set(dataset: Path) -> None:
    inspection = inspected(dataset)
    assert inspection.findings == ()
    assert not inspection.breaks_training
    assert inspection.summary["cases"]["labelled"] == 3
    assert inspection.summary["spacing_mm"]["median"] == list(SPACING_MM)
    assert inspection.summary["shape_voxels"]["highest"] == list(SHAPE)
    assert inspection.summary["cases_with_structure"] == dict.fromkeys(list(LABELS)[1:], 4)
    assert inspection.summary["intensities"]["lowest"] == -1000


def truncated(root: Path) -> None:
    path = root / "imagesTr/a_0000.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def truncated_labels(root: Path) -> None:
    path = root / "labelsTr/a.nii.gz"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def not_an_image(root: Path) -> None:
    (root / "imagesUn/u_0000.nii.gz").write_text("<html>404</html>")


def nan_voxels(root: Path) -> None:
    array = scan(1).astype(np.float32)
    array[3, 4, 5] = np.nan
    write(root / "imagesUn/u_0000.nii.gz", array)


def one_slice(root: Path) -> None:
    write(root / "imagesUn/u_0000.nii.gz", scan(1)[:1])


def few_slices(root: Path) -> None:
    write(root / "imagesUn/u_0000.nii.gz", scan(11)[:5], (10, 4, 4))


def other_grid(root: Path) -> None:
    write(root / "labelsTr/a.nii.gz", anatomy(), (5, 4, 4.5))


def other_shape(root: Path) -> None:
    write(root / "labelsTr/a.nii.gz", anatomy()[:-1])


def unknown_value(root: Path) -> None:
    labels = anatomy()
    labels[0, 0, :7] = 9
    write(root / "labelsTr/a.nii.gz", labels)


def fractions(root: Path) -> None:
    write(root / "labelsTr/a.nii.gz", anatomy().astype(np.float32) * 0.5)


def empty(root: Path) -> None:
    write(root / "labelsTr/a.nii.gz", np.zeros(SHAPE, np.uint8))


def absent_structure(root: Path) -> None:
    labels = anatomy()
    labels[labels == 3] = 0
    write(root / "labelsTr/a.nii.gz", labels)


def flipped(root: Path) -> None:
    write(root / "imagesTr/a_0000.nii.gz", scan(0)[:, :, ::-1])
    write(root / "labelsTr/a.nii.gz", anatomy()[:, :, ::-1])


def never_rescaled(root: Path) -> None:
    write(root / "imagesUn/u_0000.nii.gz", scan(12) + 1024)


def windowed(root: Path) -> None:
    write(root / "imagesUn/u_0000.nii.gz", np.clip(scan(12), -160, 240))


def constant(root: Path) -> None:
    write(root / "imagesUn/u_0000.nii.gz", np.full(SHAPE, -1024, np.int16))


def metres(root: Path) -> None:
    write(root / "imagesUn/u_0000.nii.gz", scan(12), (0.005, 0.004, 0.004))


def leaked(root: Path) -> None:
    write(root / "imagesUn/u_0000.mha", scan(5).astype(np.float32))  # the test scan as another file and number type
    (root / "imagesUn/u_0000.nii.gz").unlink()


def copied(root: Path) -> None:
    write(root / "imagesUn/u_0000.nii.gz", scan(4))  # as v


@pytest.mark.parametrize(
    ("plant", "case", "severity", "code", "words"),
    [
        (truncated, "a", "error", "unreadable", "a_0000.nii.gz"),
        (truncated_labels, "a", "error", "unreadable", "labelsTr/a.nii.gz"),
        (not_an_image, "u", "error", "unreadable", "u_0000.nii.gz"),
        (nan_voxels, "u", "error", "not-finite", "1 voxels are NaN"),
        (one_slice, "u", "error", "few-voxels", "one-slice"),
        (few_slices, "u", "warning", "few-voxels", "5×20×24"),
        (other_grid, "a", "error", "grid-mismatch", "spacing"),
        (other_shape, "a", "error", "grid-mismatch", "11×20×24 against 12×20×24"),
        (unknown_value, "a", "error", "unknown-labels", "9 (7 voxels)"),
        (fractions, "a", "error", "unreadable", "not whole numbers"),
        (empty, "a", "warning", "empty-labels", "all background"),
        (absent_structure, "a", "note", "absent", "spleen"),
        (flipped, "a", "error", "sides-swapped", "right kidney lies left of left kidney"),
        (flipped, "a", "error", "liver-left", "liver"),
        (never_rescaled, "u", "error", "not-hounsfield", "rescale"),
        (windowed, "u", "warning", "no-air", "-160"),
        (constant, "u", "error", "constant", "-1024"),
        (metres, "u", "warning", "extreme-spacing", "0.005"),
        (metres, "u", "warning", "extreme-extent", "mm"),
        (leaked, "u", "error", "leak", "t (test)"),
        (copied, "u", "warning", "duplicate", "v (unlabelled)"),
    ],
)
def test_every_planted_defect_is_found(
    dataset: Path, plant: Callable[[Path], None], case: str, severity: str, code: str, words: str
) -> None:
    plant(dataset)
    inspection = inspected(dataset)
    found = [one for one in inspection.findings if one.code == code]
    assert [(one.case, one.severity) for one in found] == [(case, severity)], inspection.findings
    assert words in found[0].message
    assert {one.case for one in inspection.findings} == {case}, "one bad case hides no other and blames no other"
    assert inspection.breaks_training == any(one.severity == "error" for one in inspection.findings)


def test_structure_that_nobody_drew(dataset: Path) -> None:
    (dataset / "dataset.json").write_text(json.dumps({"labels": LABELS | {"pancreas": 5}}))
    found = [one for one in inspected(dataset).findings if one.code == "never-drawn"]
    assert [one.case for one in found] == [""]
    assert "pancreas (id 5)" in found[0].message


def test_annotated_lists_are_honoured(dataset: Path) -> None:
    absent_structure(dataset)
    catalogue = read_catalogue(dataset)
    split = replace(catalogue.split, annotated={"a": (1, 2, 4), "b": (1, 2, 3)})
    findings = inspect_catalogue(catalogue.with_split(split), progress=False).findings
    assert [(one.case, one.code) for one in findings] == [("b", "not-annotated")], "a: spleen is known to be undrawn"


def test_validation_cases_in_the_pool_are_a_leak(dataset: Path) -> None:
    copied(dataset)
    write(dataset / "imagesTr/c_0000.nii.gz", scan(4))
    split = Split(("a", "b"), ("u",), (), ("c",))
    findings = inspect_catalogue(read_catalogue(dataset).with_split(split), progress=False).findings
    assert [one.code for one in findings] == ["leak"]


def test_labels_of_unlabelled_cases_are_not_looked_at(dataset: Path) -> None:
    unknown_value(dataset)
    split = Split(("b", "c"), ("a", "u", "v"), ("t",))
    assert inspect_catalogue(read_catalogue(dataset).with_split(split), progress=False).findings == ()


def test_content_hash_sees_values_and_shape_only() -> None:
    array = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    assert content_hash(array) == content_hash(np.asfortranarray(array.astype(np.float32)))
    assert content_hash(array) != content_hash(array.reshape(1, 2, 4, 3))
    assert content_hash(array) != content_hash(array + 1)


def test_other_modalities_may_be_positive(dataset: Path) -> None:
    never_rescaled(dataset)
    (dataset / "dataset.json").write_text(json.dumps({"labels": LABELS, "channel_names": {"0": "MR"}}))
    assert inspected(dataset).findings == ()


def test_command_line(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(dataset), "--workers", "1", "--no-progress"]) == 0
    assert "fit for training" in capsys.readouterr().out
    other_shape(dataset)
    absent_structure(dataset)
    truncated(dataset)
    report = tmp_path / "out" / "inspection.json"
    assert main(["inspect", str(dataset), "--json", str(report), "--workers", "2", "--no-progress"]) == 1
    assert "would break training: 1 errors" in capsys.readouterr().out
    content = json.loads(report.read_text())
    assert content["breaks_training"] is True
    assert [(one["case"], one["code"]) for one in content["findings"]] == [("a", "unreadable")]
    assert content == json.loads(json.dumps(inspection_to_json(inspected(dataset)))), (
        "one process or two: the same findings in the same order"
    )


def test_real_scans(shared_data: Path) -> None:
    catalogue = read_catalogue(shared_data / "kbp", "5_labelled")
    few = replace(catalogue, cases=catalogue.labelled + catalogue.unlabelled[:10] + catalogue.test[:5])
    assert inspect_catalogue(few, progress=False).findings == ()
