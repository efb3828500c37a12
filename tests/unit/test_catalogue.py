"""The catalogue reads four layouts into the same cases, and says what is wrong with a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from dicom_series import hounsfield, series

from flarecps.anatomy import FLARE22_LABELS
from flarecps.datasets.catalogue import Catalogue, read_catalogue
from flarecps.datasets.layouts import link_cases
from flarecps.datasets.splits import Split
from flarecps.errors import DatasetError
from flarecps.preprocessing.sources import source_files
from flarecps.volumes.io import read_volume

LABELS = {"background": 0, "right lung": 1, "left lung": 2}


def touch(root: Path, *names: str) -> None:
    """Empty files: a catalogue never opens a scan."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def describe(root: Path, **content: object) -> None:
    root.mkdir(exist_ok=True, parents=True)
    description = {"labels": LABELS, "channel_names": {"0": "CT"}} | content
    (root / "dataset.json").write_text(json.dumps(description))


def nnunet(root: Path) -> Path:
    describe(root)
    touch(root, *(f"imagesTr/p_{i}_0000.nii.gz" for i in (1, 2, 3)), *(f"labelsTr/p_{i}.nii.gz" for i in (1, 2, 3)))
    touch(root, "imagesUn/u_1_0000.nii.gz", "imagesTs/t_1_0000.nii.gz", "labelsTs/t_1.nii.gz")
    return root


def roles(catalogue: Catalogue) -> dict[str, list[str]]:
    return {
        "labelled": [case.name for case in catalogue.labelled],
        "unlabelled": [case.name for case in catalogue.unlabelled],
        "test": [case.name for case in catalogue.test],
    }


def test_nnunet_layout(tmp_path: Path) -> None:
    root = nnunet(tmp_path / "Dataset007_Lungs")
    touch(root, "imagesTr/._p_1_0000.nii.gz", "imagesTr/notes.txt")  # macOS droppings, and what is not a scan
    catalogue = read_catalogue(root)
    assert catalogue.layout == "nnU-Net"
    assert catalogue.name == "Dataset007_Lungs"
    assert roles(catalogue) == {"labelled": ["p_1", "p_2", "p_3"], "unlabelled": ["u_1"], "test": ["t_1"]}
    assert catalogue.labels == LABELS
    assert catalogue.channels == ("CT",)
    assert catalogue.left_right_pairs == ((1, 2),), "pairs are found by name when dataset.json lists none"
    first = catalogue.cases[0]
    assert first.images == (root / "imagesTr/p_1_0000.nii.gz",)
    assert first.labels == root / "labelsTr/p_1.nii.gz"
    assert catalogue.unlabelled[0].labels is None
    assert catalogue.test[0].labels == root / "labelsTs/t_1.nii.gz"


def test_several_channels_come_in_order(tmp_path: Path) -> None:
    describe(tmp_path, channel_names={"1": "T2", "0": "T1"})
    touch(tmp_path, "imagesTr/a_0001.nii.gz", "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    catalogue = read_catalogue(tmp_path)
    assert catalogue.channels == ("T1", "T2")
    assert [path.name for path in catalogue.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]


def test_flare22_layout_needs_no_dataset_json(tmp_path: Path) -> None:
    labelled = "Training/FLARE22_LabeledCase50"
    touch(tmp_path, f"{labelled}/images/FLARE22_Tr_0001_0000.nii.gz", f"{labelled}/labels/FLARE22_Tr_0001.nii.gz")
    touch(tmp_path, "Training/FLARE22_UnlabeledCase1-1000/Case_00001_0000.nii.gz")
    touch(tmp_path, "Training/FLARE22_UnlabeledCase1001-2000/Case_01001_0000.nii.gz")
    touch(tmp_path, "Validation/FLARETs_0001_0000.nii.gz")
    catalogue = read_catalogue(tmp_path)
    assert catalogue.layout == "FLARE22"
    assert catalogue.labels == FLARE22_LABELS
    assert catalogue.left_right_pairs == ((2, 13), (7, 8))
    assert roles(catalogue) == {
        "labelled": ["FLARE22_Tr_0001"],
        "unlabelled": ["Case_00001", "Case_01001"],
        "test": ["FLARETs_0001"],
    }


def test_msd_layout(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/spleen_10.nii.gz", "labelsTr/spleen_10.nii.gz", "imagesTs/spleen_1.nii.gz")
    content = {
        "name": "Spleen",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "training": [{"image": "./imagesTr/spleen_10.nii.gz", "label": "./labelsTr/spleen_10.nii.gz"}],
        "test": ["./imagesTs/spleen_1.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    catalogue = read_catalogue(tmp_path)
    assert catalogue.layout == "MSD"
    assert catalogue.labels == {"background": 0, "spleen": 1}
    assert roles(catalogue) == {"labelled": ["spleen_10"], "unlabelled": [], "test": ["spleen_1"]}


def test_plain_folders_with_a_dicom_series(tmp_path: Path) -> None:
    describe(tmp_path)
    touch(tmp_path, "images/pat_0001.nii.gz", "images/pat_0002/slice1", "labels/pat_0001.nii.gz")
    touch(tmp_path, "labels/pat_0002.nii.gz", "unlabelled/pat_0003.mha", "test/images/x.nrrd", "test/labels/x.nii.gz")
    catalogue = read_catalogue(tmp_path)
    assert catalogue.layout == "plain"
    expected = {"labelled": ["pat_0001", "pat_0002"], "unlabelled": ["pat_0003"], "test": ["x"]}
    assert roles(catalogue) == expected, "labels carry the same names, so _0001 is no channel here"
    assert catalogue.test[0].labels == tmp_path / "test/labels/x.nii.gz"


def test_split_gives_the_roles(tmp_path: Path) -> None:
    catalogue = read_catalogue(nnunet(tmp_path))
    split = Split(("p_1",), ("p_2", "u_1"), ("t_1",), ("p_3",), {"p_1": (1,)})
    chosen = catalogue.with_split(split)
    assert roles(chosen) == {"labelled": ["p_1", "p_3"], "unlabelled": ["p_2", "u_1"], "test": ["t_1"]}
    assert chosen.validation_names == ("p_3",)
    assert chosen.labelled[0].annotated == (1,)
    assert chosen.split == split, "a catalogue can say its split again"
    assert "first 'nobody'" in catalogue.with_split(Split(("p_1", "nobody"))).faults["nobody"]
    with pytest.raises(DatasetError, match=r"annotated ids \[9\]"):
        catalogue.with_split(Split(("p_1",), annotated={"p_1": (9,)}))
    with pytest.raises(DatasetError, match="no labelled case"):
        catalogue.with_split(Split(("u_1",)))


def test_splits_file_counts_by_name_or_when_it_is_the_only_one(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    (root / "splits.json").write_text(json.dumps({"one": {"labelled": ["p_1"], "unlabelled": ["p_2", "p_3"]}}))
    assert len(read_catalogue(root).labelled) == 3
    assert len(read_catalogue(root, "one").labelled) == 1
    (root / "splits.json").write_text(json.dumps({"labelled": ["p_2"], "unlabelled": ["p_3"]}))
    assert roles(read_catalogue(root)) == {"labelled": ["p_2"], "unlabelled": ["p_3"], "test": []}
    with pytest.raises(DatasetError, match="no split 'ten'"):
        read_catalogue(root, "ten")


def test_an_image_without_labels_may_be_unlabelled_by_split(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    (root / "labelsTr/p_3.nii.gz").unlink()
    catalogue = read_catalogue(root)
    assert [case.name for case in catalogue.labelled] == ["p_1", "p_2"]
    assert re.search(r"p_3_0000.nii.gz: training image without labels.*imagesUn", catalogue.faults["p_3"])
    (root / "splits.json").write_text(json.dumps({"s": {"labelled": ["p_1"], "unlabelled": ["p_3"]}}))
    assert roles(read_catalogue(root, "s"))["unlabelled"] == ["p_3"]


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        read_catalogue(tmp_path / "absent")
    with pytest.raises(DatasetError, match="no images found; expected imagesTr/"):
        read_catalogue(tmp_path)
    touch(tmp_path, "images/a.nii.gz")
    with pytest.raises(
        DatasetError, match=r"dataset.json: missing; .flarecps convert .*drafts one; it names the labels"
    ):
        read_catalogue(tmp_path)
    describe(tmp_path)
    with pytest.raises(DatasetError, match="no labelled case"):
        read_catalogue(tmp_path)


def test_labels_without_image(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    touch(root, "labelsTr/p_9.nii.gz")
    catalogue = read_catalogue(root)
    assert len(catalogue.labelled) == 3
    assert "p_9.nii.gz: labels without an image" in catalogue.faults["p_9"]


def test_missing_channel_and_wrong_number_of_channels(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    describe(root, channel_names={"0": "T1", "1": "T2"})
    with pytest.raises(DatasetError, match=r"no labelled case.*p_1_0000\.nii\.gz: case 'p_1' has the channels _0000;"):
        read_catalogue(root)
    describe(root)
    touch(
        root, "imagesTr/p_4_0001.nii.gz", "labelsTr/p_4.nii.gz", "imagesUn/u_2_0000.nii.gz", "imagesUn/u_2_0001.nii.gz"
    )
    (root / "splits.json").write_text(json.dumps({"labelled": ["p_1", "p_4"], "unlabelled": ["u_1", "u_2"]}))
    catalogue = read_catalogue(root)
    assert roles(catalogue) == {"labelled": ["p_1"], "unlabelled": ["u_1"], "test": []}, "the others are done"
    assert {name: "has the channels" in fault for name, fault in catalogue.faults.items()} == {"p_4": True, "u_2": True}


def test_one_name_in_two_roles(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    touch(root, "imagesUn/p_1_0000.nii.gz")
    catalogue = read_catalogue(root)
    assert roles(catalogue)["labelled"] == ["p_1", "p_2", "p_3"]
    assert "case name 'p_1' is taken" in catalogue.faults["p_1"]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, 'expected "labels"'),
        ({"background": 0}, "no structure besides background"),
        ({"background": 0, "liver": 1, "spleen": 5}, "renumber .* 5->2"),
        ({"background": 0, "liver": 1, "spleen": 1}, "share a name or an id"),
        ({"background": 0, "all": [1, 2]}, "is a region"),
        ({"background": 0, "liver": "one"}, "expected a whole number"),
    ],
)
def test_bad_label_sets(tmp_path: Path, labels: dict[str, object], message: str) -> None:
    root = nnunet(tmp_path)
    describe(root, labels=labels)
    with pytest.raises(DatasetError, match=message):
        read_catalogue(root)


def test_bad_description(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    describe(root, left_right_pairs=[[1, 7]])
    with pytest.raises(DatasetError, match=r"ids \[7\]"):
        read_catalogue(root)
    (root / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_catalogue(root)


def test_real_folders(shared_data: Path) -> None:
    kbp = read_catalogue(shared_data / "kbp", "10_labelled")
    assert (len(kbp.labelled), len(kbp.unlabelled), len(kbp.test)) == (10, 132, 25)
    assert kbp.left_right_pairs == ((3, 4),)
    assert all(case.labels is not None for case in kbp.test)


def test_of_several_stacks_the_label_map_s_name_says_which(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    for folder in ("imagesTr/d_0000", "imagesTr/e_0000", "imagesTr/f_0000", "imagesUn/g_0000", "imagesTs/h_0000"):
        for echo in (1, 2):
            series(root / folder, hounsfield() + echo, f"{echo}_{{}}.dcm", EchoNumbers=echo)
    touch(root, "labelsTr/d_echo2.nii.gz", "labelsTr/e.nii.gz", "labelsTs/h_echo1.nii.gz")
    catalogue = read_catalogue(root)
    assert roles(catalogue) == {
        "labelled": ["d_echo2", "p_1", "p_2", "p_3"],
        "unlabelled": ["g_echo1", "g_echo2", "u_1"],
        "test": ["h_echo1", "h_echo2", "t_1"],
    }
    assert set(catalogue.faults) == {"e", "f"}
    assert "e_0000: 2 stacks of slices (echo1, echo2), and no label map is called e_echo1 or" in catalogue.faults["e"]
    named = {case.name: case for case in catalogue.cases}
    link_cases([named["d_echo2"]], tmp_path / "links", tmp_path / "maps")
    assert (read_volume(tmp_path / "links/d_echo2_0000").array == read_volume(named["d_echo2"].images[0]).array).all()
    assert len(source_files(named["d_echo2"])) == 11


def test_accents_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    one, marked = "M\u00fcller", "Mu\u0308ller"
    describe(tmp_path)
    touch(tmp_path, f"imagesTr/{marked}_0000.nii.gz", f"labelsTr/{one}.nii.gz", f"imagesUn/{marked} 2_0000.NII.GZ")
    (tmp_path / "splits.json").write_text(json.dumps({"labelled": [marked], "unlabelled": [f"{one} 2"]}))
    assert roles(read_catalogue(tmp_path)) == {"labelled": [one], "unlabelled": [f"{one} 2"], "test": []}


@pytest.mark.parametrize("ending", [".png", ".tif", ".npy"])
def test_an_ending_that_no_3d_image_has_is_refused(tmp_path: Path, ending: str) -> None:
    describe(tmp_path, file_ending=ending)
    touch(tmp_path, f"imagesTr/a_0000{ending}", f"labelsTr/a{ending}")
    with pytest.raises(DatasetError, match=rf'"file_ending" is .*{ending}.*expected that of 3D images'):
        read_catalogue(tmp_path)
