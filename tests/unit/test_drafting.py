"""``convert`` without OUT: a first dataset.json from the files, and what is left to fill in."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from dicom_series import as_series

from flarecps.cli.main import main
from flarecps.datasets.catalogue import read_catalogue
from flarecps.datasets.drafting import draft_description
from flarecps.errors import DatasetError
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SPACE = Space.canonical((6, 10, 10), (5.0, 2.0, 2.0))  # 0.02 ml a voxel


def image(path: Path, lowest: int = -1000) -> Path:
    voxels = np.random.default_rng(len(path.name)).integers(lowest, 400, SPACE.shape).astype(np.int16)
    voxels[0, 0, 0] = lowest
    write_volume(path, voxels, SPACE)
    return path


def labels(path: Path, *ids: int) -> Path:
    """50 voxels, 1 ml, of each id."""
    voxels = np.zeros(SPACE.shape, np.uint8)
    for place, label in enumerate(ids):
        voxels[place, :5] = label
    write_volume(path, voxels, SPACE)
    return path


def folder(root: Path, tr: str = "Tr", number: str = "_0000") -> Path:
    for name, ids in (("a", (1, 2)), ("b", (2,))):
        image(root / f"images{tr}" / f"{name}{number}.nii.gz")
        labels(root / f"labels{tr}" / f"{name}.nii.gz", *ids)
    return root


@pytest.mark.parametrize(("tr", "number"), [("Tr", "_0000"), ("", "_0000"), ("", "")])
def test_the_command_that_a_folder_without_description_names_makes_it_usable(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tr: str, number: str
) -> None:
    root = folder(tmp_path / "my data", tr, number)
    for command in (["inspect", str(root)], ["plan", str(root), "--out", str(tmp_path / "plan.json")]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert "dataset.json: missing" in said
        named = said.split("; '", 1)[1].split("' drafts one")[0]  # the quotes of the path are the shell's
        assert shlex.split(named) == ["flarecps", "convert", str(root)]
    assert main(shlex.split(named)[1:]) == 0
    out = capsys.readouterr().out
    assert "structure_1: id 1, in 1 of 2 cases, 1 ml on average" in out
    assert "structure_2: id 2, in 2 of 2 cases, 1 ml on average" in out
    assert "to fill in: names of structures: structure_1, structure_2" in out
    assert "unlabelled scans" in out
    content = json.loads((root / "dataset.json").read_text())
    assert content == {
        "name": "my data", "channel_names": {"0": "CT"}, "numTraining": 2, "file_ending": ".nii.gz",
        "labels": {"background": 0, "structure_1": 1, "structure_2": 2},
    }  # fmt: skip
    assert [case.name for case in read_catalogue(root).labelled] == ["a", "b"]


def test_an_existing_description_is_never_touched(tmp_path: Path) -> None:
    root = folder(tmp_path / "data")
    (root / "dataset.json").write_text("mine")
    with pytest.raises(DatasetError, match="exists already"):
        draft_description(root)
    assert (root / "dataset.json").read_text() == "mine"
    (root / "dataset.json").unlink()
    (root / "dataset.json").symlink_to("nowhere.json")
    with pytest.raises(DatasetError, match="exists already"):
        draft_description(root)
    assert (root / "dataset.json").is_symlink()


def test_channels_are_counted_and_named_by_their_values(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for name in ("a", "b"):
        image(root / "imagesTr" / f"{name}_0000.nii.gz", lowest=0)
        image(root / "imagesTr" / f"{name}_0001.nii.gz")
        labels(root / "labelsTr" / f"{name}.nii.gz", 1)
    image(root / "imagesTr" / "c_0000.nii.gz")
    image(root / "imagesTr" / "c_0001.nii.gz")
    draft = draft_description(root)
    assert json.loads(draft.path.read_text())["channel_names"] == {"0": "channel_0", "1": "CT"}
    missing = "\n".join(draft.missing)
    assert "name of channel 0" in missing
    assert "label maps of 1 training image (c)" in missing
    assert "name of channel 1" not in missing


def test_numbers_that_count_the_cases_are_no_channels(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for number in range(3):
        image(root / "images" / f"case_{number:04d}.nii.gz")
        labels(root / "labels" / f"case_{number:04d}.nii.gz", 1)
    draft_description(root)
    assert [case.name for case in read_catalogue(root).labelled] == ["case_0000", "case_0001", "case_0002"]


def test_one_bad_label_map_is_reported_and_the_others_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "data")
    (root / "labelsTr" / "a.nii.gz").write_bytes(b"no image")
    labels(root / "labelsTr" / "orphan.nii.gz", 1)
    assert main(["convert", str(root)]) == 1
    said = capsys.readouterr()
    assert "left out: a: " in said.err
    assert "left out: orphan: " in said.err
    assert json.loads((root / "dataset.json").read_text())["labels"] == {"background": 0, "structure_2": 2}


def test_dicom_folders_and_mixed_endings_draft_no_ending(tmp_path: Path) -> None:
    root = tmp_path / "data"
    scan = image(tmp_path / "scan.nii.gz")
    as_series(root / "imagesTr" / "a_0000", scan)
    labels(root / "labelsTr" / "a.nii.gz", 1)
    image(root / "imagesTr" / "b_0000.nrrd")
    labels(root / "labelsTr" / "b.nii.gz", 1)
    draft = draft_description(root)
    assert "file_ending" not in json.loads(draft.path.read_text())
    assert {case.name for case in read_catalogue(root).labelled} == {"a", "b"}


def test_nothing_to_draft_from_writes_nothing(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    image(bare / "images" / "a.nii.gz")
    empty = tmp_path / "empty"
    image(empty / "images" / "a.nii.gz")
    labels(empty / "labels" / "a.nii.gz")
    flare = tmp_path / "flare"
    image(flare / "FLARE22_LabeledCase50" / "images" / "a_0000.nii.gz")
    labels(flare / "FLARE22_LabeledCase50" / "labels" / "a.nii.gz", 1)
    for root, message in (
        (bare, "no image with a label map"), (empty, "nothing but background"), (flare, "need no dataset.json"),
        (tmp_path / "none", "no such folder"),
    ):  # fmt: skip
        with pytest.raises(DatasetError, match=message):
            draft_description(root)
        assert not (root / "dataset.json").exists()
    assert main(["convert", str(bare), "--copy"]) == 2
