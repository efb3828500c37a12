"""nnU-Net v2's data: what its dataset.json and splits_final.json may say, and other layouts made into its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from small_model import write_scan

from flarecps.cli.main import main
from flarecps.datasets.catalogue import read_catalogue
from flarecps.datasets.findings import FindingCollector
from flarecps.errors import DatasetError, ScanError
from flarecps.interop.nnunet_dataset import convert_dataset
from flarecps.preprocessing.store import CaseStore

LABELS = {"background": 0, "liver": 1, "spleen": 2}
FOLDS = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a"]}]


def write_labels(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.zeros((24, 24, 24), np.uint8)
    drawn[4:12, 4:12, 4:12], drawn[14:20, 14:20, 14:20] = 1, 2
    nibabel.save(nibabel.Nifti1Image(drawn, np.diag([-3.0, -3.0, 3.0, 1.0])), path)


def describe(root: Path, **content: object) -> None:
    root.mkdir(parents=True, exist_ok=True)
    entries = {"labels": LABELS, "channel_names": {"0": "CT"}, "numTraining": 3, "file_ending": ".nii.gz"} | content
    (root / "dataset.json").write_text(json.dumps(entries))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """An nnU-Net raw data set of three labelled, an unlabelled and a test scan."""
    root = tmp_path / "Dataset042_Small"
    for number, name in enumerate("abc"):
        write_scan(root / "imagesTr" / f"{name}_0000.nii.gz", number)
        write_labels(root / "labelsTr" / f"{name}.nii.gz")
    write_scan(root / "imagesUn" / "u_0000.nii.gz", 3)
    write_scan(root / "imagesTs" / "t_0000.nii.gz", 4)
    describe(root)
    return root


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS | {"both": [1, 2]}, r"'both' is a region of the ids \[1, 2\]; regions overlap"),
        (LABELS | {"ignore": 3}, "'ignore' marks voxels that nobody annotated"),
        ({"background": 0, "liver": [1], "spleen": [1, 2]}, "'spleen' is a region"),
    ],
)
def test_regions_and_ignored_voxels_are_refused_with_the_reason(labels: dict, message: str, raw: Path) -> None:
    describe(raw, labels=labels)
    with pytest.raises(DatasetError, match=message):
        read_catalogue(raw)


def test_a_region_of_one_id_is_that_id(raw: Path) -> None:
    describe(raw, labels={"background": 0, "liver": [1], "spleen": 2}, regions_class_order=[1, 2])
    assert read_catalogue(raw).labels == LABELS


def test_cases_may_be_named_in_dataset_json(raw: Path, tmp_path: Path) -> None:
    """nnU-Net v2's "dataset" entry: files anywhere, with any names; paths are relative to the folder."""
    (raw / "imagesTr").rename(tmp_path / "elsewhere")
    entry = {"images": ["../elsewhere/a_0000.nii.gz"], "label": str(raw / "labelsTr" / "b.nii.gz")}
    describe(raw, dataset={"first": entry})
    catalogue = read_catalogue(raw)
    assert [(case.name, case.role) for case in catalogue.cases] == [
        ("first", "labelled"), ("u", "unlabelled"), ("t", "test"),
    ]  # fmt: skip
    assert catalogue.labelled[0].images[0].samefile(tmp_path / "elsewhere" / "a_0000.nii.gz")
    describe(raw, dataset={"first": entry | {"images": ["nowhere.nii.gz"]}})
    with pytest.raises(DatasetError, match=r"listed in dataset\.json but not there"):
        read_catalogue(raw)
    describe(raw, dataset={"first": {"images": "a.nii.gz"}})
    with pytest.raises(DatasetError, match="of case 'first'"):
        read_catalogue(raw)


def test_nnunets_folds_are_splits(raw: Path) -> None:
    (raw / "splits_final.json").write_text(json.dumps(FOLDS))
    assert {case.name for case in read_catalogue(raw).labelled} == {"a", "b", "c"}  # no fold was named
    first, second = read_catalogue(raw, "fold_0").split, read_catalogue(raw, "fold_1").split
    assert (first.labelled, first.validation, first.unlabelled, first.test) == (("a", "b"), ("c",), ("u",), ("t",))
    assert (second.labelled, second.validation) == (("c",), ("a",))
    with pytest.raises(DatasetError, match="no split 'fold_2'; it has fold_0, fold_1"):
        read_catalogue(raw, "fold_2")
    (raw / "splits.json").write_text(json.dumps({"labelled": ["a"]}))  # this program's own file goes first
    assert [case.name for case in read_catalogue(raw).labelled] == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON"),
        ('{"train": []}', "list of folds"),
        ('[{"train": ["a"]}]', "fold 0: expected"),
        ('[{"train": ["a"], "val": ["a"]}]', "fold 0: split: case 'a' is listed as labelled and as validation"),
        ('[{"train": ["a"], "val": "c"}]', "fold 0: 'validation' must be a list"),
    ],
)
def test_malformed_folds_are_named(content: str, message: str, raw: Path) -> None:
    (raw / "splits_final.json").write_text(content)
    with pytest.raises(DatasetError, match=rf"splits_final\.json.*{message}"):
        read_catalogue(raw, "fold_0")


def test_a_raw_data_set_is_planned_and_preprocessed_as_it_is(raw: Path, tmp_path: Path) -> None:
    (raw / "splits_final.json").write_text(json.dumps(FOLDS))
    plan, store = tmp_path / "plan.json", tmp_path / "store"
    words = ["--patch", "[16, 16, 16]", "--workers", "1", "--no-progress", "--split", "fold_0"]
    assert main(["plan", str(raw), "--out", str(plan), *words]) == 0
    assert main(["preprocess", str(raw), str(plan), "--out", str(store), "--workers", "1", "--no-progress"]) == 0
    assert sorted(CaseStore(store).names) == ["a", "b", "c", "t", "u"]
    splits = json.loads((store / "splits.json").read_text())
    assert splits["fold_1"] == {"labelled": ["c"], "validation": ["a"], "unlabelled": ["u"], "test": ["t"]}


def flare22(root: Path, ending: str = ".nii.gz") -> Path:
    """FLARE22's own folders, with one scan in each role."""
    labelled = root / "Training" / "FLARE22_LabeledCase50"
    write_scan(labelled / "images" / f"FLARE22_Tr_0001_0000{ending}")
    write_labels(labelled / "labels" / f"FLARE22_Tr_0001{ending}")
    write_scan(root / "Training" / "FLARE22_UnlabeledCase2000" / f"Case_00001_0000{ending}")
    write_scan(root / "TuningSet" / "images" / f"FLARETs_0001_0000{ending}")
    write_labels(root / "TuningSet" / "labels" / f"FLARETs_0001{ending}")
    return root


def msd(root: Path, **content: object) -> Path:
    """A task of the Medical Segmentation Decathlon: no channel endings, ids as keys."""
    for name in ("liver_0", "liver_1"):
        write_scan(root / "imagesTr" / f"{name}.nii.gz")
        write_labels(root / "labelsTr" / f"{name}.nii.gz")
    write_scan(root / "imagesTs" / "liver_2.nii.gz")
    training = [
        {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("liver_0", "liver_1")
    ]
    labels = {"0": "background", "1": "liver", "2": "spleen"}
    describe(
        root, **({"name": "Liver", "modality": {"0": "CT"}, "labels": labels, "channel_names": {"0": "CT"},
                  "training": training, "test": ["./imagesTs/liver_2.nii.gz"]} | content),
    )  # fmt: skip
    return root


def files(root: Path) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if not path.is_dir()}


def test_flare22_becomes_a_raw_data_set_of_links(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, out = flare22(tmp_path / "FLARE22"), tmp_path / "raw" / "Dataset022_FLARE22"
    assert main(["convert", str(source), str(out)]) == 0
    found = capsys.readouterr()
    assert "1 labelled, 1 unlabelled, 1 test" in found.out
    assert not found.err
    made = files(out)
    assert list(made) == [
        "dataset.json", "imagesTr/FLARE22_Tr_0001_0000.nii.gz", "imagesTs/FLARETs_0001_0000.nii.gz",
        "imagesUn/Case_00001_0000.nii.gz", "labelsTr/FLARE22_Tr_0001.nii.gz", "labelsTs/FLARETs_0001.nii.gz",
    ]  # fmt: skip
    assert all(path.is_symlink() and path.is_file() for name, path in made.items() if name != "dataset.json")
    content = json.loads(made["dataset.json"].read_text())
    assert content["labels"]["left kidney"] == 13
    assert (content["numTraining"], content["file_ending"]) == (1, ".nii.gz")
    ours, theirs = read_catalogue(out), read_catalogue(source)
    assert ours.layout == "nnU-Net"
    for name in ("labels", "channels", "left_right_pairs"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert [(case.name, case.role) for case in ours.cases] == [(case.name, case.role) for case in theirs.cases]


def test_msd_becomes_a_raw_data_set_with_channel_endings(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = msd(tmp_path / "Task03_Liver")
    assert main(["convert", str(source), str(tmp_path / "livers"), "--copy"]) == 0
    assert "DatasetNNN_Name" in capsys.readouterr().err
    made = files(tmp_path / "livers")
    assert "imagesTr/liver_0_0000.nii.gz" in made
    assert "labelsTr/liver_1.nii.gz" in made
    assert "imagesTs/liver_2_0000.nii.gz" in made
    assert not any(path.is_symlink() for path in made.values())
    assert read_catalogue(tmp_path / "livers").labels == LABELS
    original = (source / "imagesTr" / "liver_0.nii.gz").read_bytes()
    assert made["imagesTr/liver_0_0000.nii.gz"].read_bytes() == original


@pytest.mark.parametrize("copy", [[], ["--copy"]])
def test_pipes_and_dangling_links_are_left_out_and_reported(
    copy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    source = msd(tmp_path / "Task03_Liver", test=["./imagesTs/liver_2.nii.gz", "./imagesTs/gone.nii.gz"])
    for name, harm in (("imagesTr/liver_0", os.mkfifo), ("imagesTs/liver_2", lambda path: os.symlink("/gone", path))):
        (source / f"{name}.nii.gz").unlink()
        harm(source / f"{name}.nii.gz")
    assert main(["convert", str(source), str(tmp_path / "livers"), *copy]) == 1
    assert "left out: liver_0: " in capsys.readouterr().err
    assert [path for path in files(tmp_path / "livers") if path.startswith("imagesT")] == [
        "imagesTr/liver_1_0000.nii.gz"
    ]
    complaints = FindingCollector()
    read_catalogue(source, complaints=complaints)
    assert [(one.code, "2 of 2 scans" in one.found) for one in complaints.findings] == [("stale-list", True)]


def test_what_can_not_be_converted_is_named(raw: Path, tmp_path: Path) -> None:
    mixed = flare22(tmp_path / "mixed")
    write_scan(mixed / "Training" / "FLARE22_UnlabeledCase2000" / "Case_00002_0000.nii")
    several = msd(tmp_path / "several", channel_names={"0": "T1", "1": "T2"})
    four = msd(tmp_path / "four")
    voxels = np.zeros((24, 24, 24, 2), np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), four / "imagesTr" / "liver_0.nii.gz")
    series = flare22(tmp_path / "series")
    (series / "Training" / "FLARE22_UnlabeledCase2000" / "dicom").mkdir()
    (series / "Training" / "FLARE22_UnlabeledCase2000" / "dicom" / "slice.dcm").touch()
    for source, kind, message in (
        (raw, DatasetError, "has nnU-Net's raw layout already"),
        (mixed, DatasetError, "expects one ending for all"),
        (several, DatasetError, "no labelled case.*has 1 image files, but dataset.json names 2 channels"),
        (four, ScanError, "liver_0"),
        (series, DatasetError, "a DICOM series"),
    ):
        with pytest.raises(kind, match=message):
            convert_dataset(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match="exists already"):
        convert_dataset(flare22(tmp_path / "good"), tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".partial")]


def test_splits_travel_along(tmp_path: Path) -> None:
    source = msd(tmp_path / "Task03_Liver")
    (source / "splits.json").write_text(json.dumps({"labelled": ["liver_0"], "validation": ["liver_1"]}))
    convert_dataset(source, tmp_path / "Dataset003_Liver")
    assert read_catalogue(tmp_path / "Dataset003_Liver").split.validation == ("liver_1",)
