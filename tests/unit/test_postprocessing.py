"""Post-processing: components and holes counted by hand, and the rule that finds which of it does good."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from flarecps.cli.main import main
from flarecps.errors import ConfigError
from flarecps.inference.postprocessing import (
    Rules,
    determine_rules,
    filled,
    largest_component,
    largest_foreground,
    largest_of_each,
    pairs_of,
    read_rules,
    rules_beside,
    write_rules,
)

LABELS = {"liver": 1, "spleen": 2}


def plane(*rows: str) -> np.ndarray:
    """A label map of three equal slices between two empty ones, drawn in digits; '.' is background."""
    section = np.array([[0 if letter == "." else int(letter) for letter in row] for row in rows], np.uint8)
    return np.stack([np.zeros_like(section), section, section, section, np.zeros_like(section)])


def drawn(labels: np.ndarray) -> list[str]:
    return ["".join("." if value == 0 else str(value) for value in row) for row in labels[2]]


def test_the_largest_component_is_connected_by_faces() -> None:
    mask = plane(
        "11.1",
        "1..1",
        ".1..",  # touches the first piece by an edge only
    ).astype(bool)
    assert drawn(largest_component(mask).astype(np.uint8)) == [
        "11..",
        "1...",
        "....",
    ]
    assert not largest_component(np.zeros((3, 3, 3), bool)).any()


def test_components_of_equal_size_are_all_kept() -> None:
    mask = plane("1.1.1", "1.1..").astype(bool)
    assert drawn(largest_component(mask).astype(np.uint8)) == ["1.1..", "1.1.."]


def test_all_organs_together_and_each_alone() -> None:
    labels = plane(
        "1122.1",
        "1122..",
        "......",
        "2...11",
    )
    assert drawn(largest_foreground(labels)) == ["1122..", "1122..", "......", "......"]
    assert drawn(largest_of_each(labels, (1,))) == ["1122..", "1122..", "......", "2....."]
    assert drawn(largest_of_each(labels, (2, 7))) == ["1122.1", "1122..", "......", "....11"]
    assert largest_of_each(labels, ()) is labels


def test_a_hole_is_background_that_touches_one_organ_alone() -> None:
    one = np.ones((5, 7, 14), np.uint8)
    one[:, :, 7:] = 2
    one[2, 3, 2] = 0  # in the liver
    one[2, 3, 4:6] = 0  # a second hole, of two voxels
    one[2, 3, 10] = 0  # in the spleen
    one[2, 5, 6:8] = 0  # between both: nobody's
    one[2, 0:2, 3] = 0  # open to the scan's border
    livers, both = filled(one, (1,)), filled(one, (1, 2))
    assert np.argwhere(livers != one).tolist() == [[2, 3, 2], [2, 3, 4], [2, 3, 5]]
    assert np.argwhere(both != one).tolist() == [[2, 3, 2], [2, 3, 4], [2, 3, 5], [2, 3, 10]]
    assert both[2, 3].tolist() == [1] * 7 + [2] * 7
    assert filled(both, (1, 2)) is both


def test_holes_of_one_organ_are_scipys() -> None:
    generator = np.random.default_rng(3)
    for size in (6, 13):
        labels = (generator.random((size, 11, 9)) < 0.75).astype(np.uint8)
        np.testing.assert_array_equal(filled(labels, (1,)), ndimage.binary_fill_holes(labels).astype(np.uint8))
    assert (filled(labels, (1,)) != labels).any()


def test_the_steps_follow_one_another() -> None:
    """Spleen inside the liver goes, and the hole that it leaves is filled."""
    labels = np.ones((5, 5, 9), np.uint8)
    labels[2, 2, 2] = 2
    labels[:, :, 6] = 0
    labels[:, :, 7:] = 2
    done = Rules(LABELS, largest=(2,), filled=(1,))(labels)
    assert (done[:, :, :6] == 1).all()
    assert (done[:, :, 7:] == 2).all()
    assert labels[2, 2, 2] == 2, "the map that was given stays as it was"
    assert Rules(LABELS)(labels) is labels
    assert not Rules(LABELS)
    assert "liver" in Rules(LABELS, filled=(1,)).describe()


# -- which of it does good


def write(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(labels.T, np.diag([1.0, 1.0, 2.0, 1.0])), path)


TRUTH = plane(
    "1111....",
    "1111....",
    "1111....",
    "......22",
    "22....22",
)  # the spleen of 6 pixels in two pieces, of 4 and 2


def test_a_step_is_taken_where_it_lets_an_organ_rise_and_none_fall(tmp_path: Path) -> None:
    """Liver: 12 pixels, predicted with a hole and a stray piece. Spleen: exactly right, in two pieces."""
    prediction = plane(
        "1111...1",
        "1111....",
        "1111....",
        "......22",
        "22....22",
    )
    prediction[2, 1, 1] = 0  # enclosed: slices 1 and 3 are liver there
    write(tmp_path / "p" / "a.nii.gz", prediction)
    write(tmp_path / "r" / "a.nii.gz", TRUTH)
    rules, failed = determine_rules(pairs_of(tmp_path / "p", tmp_path / "r"), LABELS, progress=False)
    assert not failed
    assert not rules.whole_foreground, "it would take the spleen"
    assert rules.largest == (1,), "it would take half the spleen"
    assert rules.filled == (1,)
    # liver: truth 36 voxels; predicted 36 - 1 + 3 = 38, shared 35
    assert rules.evidence["mean_dsc_as_predicted"] == {"liver": round(2 * 35 / 74, 6), "spleen": 1.0}
    assert rules.evidence["mean_dsc_after"] == {"liver": 1.0, "spleen": 1.0}
    np.testing.assert_array_equal(rules(prediction), TRUTH)


def test_all_organs_together_is_the_first_step(tmp_path: Path) -> None:
    truth = plane("1122", "1122", "....", "....")
    prediction = plane("1122", "1122", "....", "1..2")
    write(tmp_path / "p" / "a.nii.gz", prediction)
    write(tmp_path / "r" / "a.nii.gz", truth)
    rules, _ = determine_rules(pairs_of(tmp_path / "p", tmp_path / "r"), LABELS, progress=False)
    assert rules.whole_foreground
    assert rules.largest == rules.filled == (), "nothing is left for them to do"


def test_means_over_scans_decide_and_absent_organs_do_not_count(tmp_path: Path) -> None:
    """In scan a the step helps the liver by more than it harms in b; the spleen is in no scan."""
    truth = plane("1111", "1111", "....", "1...")
    for name, prediction in {
        "a": plane("1111", "1111", "....", "..11"),
        "b": plane("1111", "1111", "....", "1..."),
    }.items():
        write(tmp_path / "p" / f"{name}.nii.gz", prediction)
        write(tmp_path / "r" / f"{name}.nii.gz", truth)
    rules, _ = determine_rules(pairs_of(tmp_path / "p", tmp_path / "r"), LABELS, progress=False)
    # a: 2*8/(10+9) -> 2*8/(8+9), a rise of 0.099; b: 1 -> 2*8/17, a fall of 0.059
    assert rules.whole_foreground
    assert rules.evidence["mean_dsc_after"] == {"liver": round(16 / 17, 6), "spleen": None}


def test_the_command_determines_and_applies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prediction = plane("1111..2.", "1.11....", "1111...1", "....2222")
    for name in ("a", "b", "c"):
        write(tmp_path / "p" / f"{name}.nii.gz", prediction)
        write(tmp_path / "r" / f"{name}.nii.gz", plane("1111....", "1111....", "1111....", "....2222"))
    description = {"labels": {"background": 0, **LABELS}}
    (tmp_path / "p" / "dataset.json").write_text(json.dumps(description))
    (tmp_path / "p" / "c.nii.gz").write_bytes(b"broken")
    (tmp_path / "model").mkdir()
    words = ["postprocess", "determine", tmp_path / "p", tmp_path / "r", "--out", tmp_path / "model"]
    assert main([str(word) for word in words]) == 1, "c could not be used"
    said = capsys.readouterr()
    assert "largest component of liver, spleen" in said.out
    assert "left out: c:" in said.err
    rules = tmp_path / "model" / "postprocessing.json"
    assert rules_beside((tmp_path / "model" / "last.ckpt",)) == rules
    assert json.loads(rules.read_text())["evidence"]["scans"] == ["a", "b"]

    (tmp_path / "p" / "c.nii.gz").unlink()
    words = ["postprocess", "apply", tmp_path / "p", tmp_path / "out", "--rules", rules]
    assert main([str(word) for word in words]) == 0
    assert "2 of 2 label maps" in capsys.readouterr().out
    done = nibabel.load(tmp_path / "out" / "a.nii.gz")
    expected = read_rules(rules)(prediction)
    np.testing.assert_array_equal(np.asarray(done.dataobj).T, expected)
    assert not np.array_equal(expected, prediction)
    assert done.header.get_zooms() == (1.0, 1.0, 2.0)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == description
    assert main(["postprocess", "apply", str(tmp_path / "p"), str(tmp_path / "p"), "--rules", str(rules)]) == 2
    assert "own folder" in capsys.readouterr().err
    assert main(["postprocess", "polish"]) == 2
    assert "determine or apply" in capsys.readouterr().err


def test_rules_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "postprocessing.json"
    with pytest.raises(ConfigError, match=r"no such file.*determine"):
        read_rules(path)
    with pytest.raises(ConfigError, match=r"no such file.*determine"):
        rules_beside((tmp_path / "last.ckpt",))
    path.write_text("{}")
    with pytest.raises(ConfigError, match="'schema' is missing"):
        read_rules(path)
    rules = Rules(LABELS, True, (1,), (2,), {"scans": ["a"]})
    write_rules(path, rules)
    assert read_rules(path, {"background": 0, **LABELS}) == rules
    with pytest.raises(ConfigError, match="made for the labels"):
        read_rules(path, {"background": 0, "liver": 1})
    (tmp_path / "fold1").mkdir()
    write_rules(tmp_path / "fold1" / "postprocessing.json", Rules(LABELS))
    with pytest.raises(ConfigError, match="other rules than"):
        rules_beside((tmp_path / "0.ckpt", tmp_path / "fold1" / "1.ckpt"))
