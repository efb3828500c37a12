"""Discovery loses nothing, a case has one name in every command, and its fault is its own."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import enhanced, hounsfield
from dicom_series import series as slices
from small_model import LABELS, write_model, write_scan

from flarecps.cli.main import main
from flarecps.datasets.catalogue import read_catalogue
from flarecps.errors import ScanError
from flarecps.inference.folders import requests_for
from flarecps.volumes import discovery
from flarecps.volumes.discovery import find_cases, find_scans
from flarecps.volumes.io import read_volume


def relative(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in find_scans(folder)]


def series(folder: Path) -> Path:
    """Slices that are DICOM by their suffix; nothing reads them here."""
    folder.mkdir(parents=True)
    for index in range(3):
        (folder / f"{index}.dcm").touch()
    return folder


def segment(model: Path, scans: Path, out: Path, *more: object) -> int:
    return main([str(word) for word in ("segment", model, scans, out, "--device", "cpu", *more)])


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    archive, folder = tmp_path / "archive", tmp_path / "in"
    series(archive / "P1/study/CT")
    series(folder / "P2/CT")
    (folder / "P1").symlink_to(archive / "P1")
    (folder / "P3").mkdir()
    (folder / "P3/scan.NII.GZ").touch()
    (folder / "P2/up").symlink_to(folder)
    (archive / "P1/self").symlink_to(archive / "P1")
    for hidden in (".Trash-1000/files/old", "P2/.cache/x"):
        series(folder / hidden)
    assert relative(folder) == ["P1/study/CT", "P2/CT", "P3/scan.NII.GZ"]
    assert [case.name for case in find_cases(folder)] == ["P1_study_CT", "P2_CT", "P3_scan"]


def test_folders_that_link_each_other_do_not_multiply(tmp_path: Path) -> None:
    folders = [tmp_path / "in" / str(index) for index in range(12)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "x.nii").touch()
        for other in folders:
            (folder / f"to_{other.name}").symlink_to(other)
    found = find_scans(tmp_path / "in")
    assert {path.resolve() for path in found} == {(folder / "x.nii").resolve() for folder in folders}
    assert len(found) < 2 * 12 * 12, "12! were all ways gone"


def test_what_can_not_be_reached_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.nii.gz").symlink_to(tmp_path / "gone")
    (tmp_path / "P1").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.nii").symlink_to(tmp_path / "self.nii")
    (series(tmp_path / "CT") / "9.dcm").symlink_to(tmp_path / "gone.dcm")
    (tmp_path / "shut").mkdir()
    listed = Path.iterdir

    def refused(folder: Path) -> object:
        if folder.name == "shut":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refused)
    assert relative(tmp_path) == ["CT", "P1", "a.nii.gz", "self.nii", "shut"]
    from flarecps.volumes.io import read_volume

    for name, words in (("CT", "1 link in it"), ("P1", "nowhere, which can't"), ("shut", "Permission denied")):
        with pytest.raises(ScanError, match=words):
            read_volume(tmp_path / name)


def test_links_to_themselves_and_pipes_are_reported_and_the_rest_is_done(tmp_path: Path, capsys) -> None:
    model, scans = write_model(tmp_path / "last.ckpt"), tmp_path / "in"
    write_scan(scans / "c.nii.gz")
    (scans / "self").symlink_to(scans / "self")
    os.mkfifo(scans / "pipe_0000.mha")
    (scans / "sub").mkdir()
    os.mkfifo(scans / "sub/dataset.json")
    assert segment(model, scans, tmp_path / "out") == 1
    said = capsys.readouterr().err
    assert "self: " in said
    assert "can't be reached" in said
    assert "pipe: " in said
    assert "not a regular file" in said
    assert (tmp_path / "out/c.nii.gz").is_file()


def test_segment_reports_what_it_can_not_reach_and_does_the_rest(tmp_path: Path, capsys) -> None:
    model = write_model(tmp_path / "last.ckpt")
    write_scan(tmp_path / "real/c.nii.gz")
    scans = tmp_path / "in"
    scans.mkdir()
    (scans / "c_0000.nii.gz").symlink_to(tmp_path / "real/c.nii.gz")
    (scans / "d_0000.nii.gz").symlink_to(tmp_path / "real/d.nii.gz")
    shutil.copy(tmp_path / "real/c.nii.gz", scans / "con.nii.gz")
    assert segment(model, scans, scans / "out") == 1
    err = capsys.readouterr().err
    assert "d: " in err
    assert "can't be reached" in err
    assert "is a device's on Windows" in err
    assert [path.name for path in (scans / "out").glob("*.nii.gz")] == ["c.nii.gz"]
    assert [one.name for one in requests_for(scans, tmp_path / "other")] == ["c", "con", "d"], "results are no scans"


def test_endings_of_outputs(tmp_path: Path, capsys) -> None:
    model, scan = write_model(tmp_path / "last.ckpt"), write_scan(tmp_path / "in/c_0000.nii.gz")
    scan = tmp_path / "in/c_0000.nii.gz"
    assert segment(model, scan, tmp_path / "y.NII.GZ") == 0
    assert nibabel.Nifti1Image.from_bytes(gzip.decompress((tmp_path / "y.NII.GZ").read_bytes()))
    for name in ("x.nrrd", "x.MHA", "x.Json"):
        assert segment(model, scan, tmp_path / name) == 2
        assert "expected that of a folder" in capsys.readouterr().err
        assert not (tmp_path / name).exists()
    for command in (["plan", "in"], ["preprocess", "in", "plan.json"], ["score", "in", "in"]):
        words = [command[0], *(str(tmp_path / word) for word in command[1:]), "--out", str(tmp_path / "x.nrrd")]
        assert main(words) == 2
        assert not (tmp_path / "x.nrrd").exists()
    assert main(["relabel", str(scan), str(tmp_path / "r.nii.gz"), "--ids", "1=2"]) == 2


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        (["a_0000", "b_0000"], ["a", "b"], ["a", "b"]),
        (["case_0000", "case_0001"], ["case_0000", "case_0001"], ["case_0000", "case_0001"]),
        (["a_0000", "b_0000"], ["a_0000", "b_0000"], ["a", "b"]),
        (["FLARE22_Tr_0001_0000", "FLARE22_Tr_0002_0000"], ["FLARE22_Tr_0001", "FLARE22_Tr_0002"], None),
        (["case_0001", "case_0002"], ["case_0001", "case_0002"], ["case_0001", "case_0002"]),
    ],
)
def test_one_name_in_every_command(
    images: list[str], labels: list[str], names: list[str] | None, tmp_path: Path, capsys
) -> None:
    root = tmp_path / "data"
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        write_scan(root / f"imagesTr/{image}.nii.gz", index)
        map_ = np.zeros((24, 24, 24), np.uint8)
        map_[4:12, 4:12, 4:12] = 1
        affine = nibabel.load(root / f"imagesTr/{image}.nii.gz").affine
        (root / "labelsTr").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(map_, affine), root / f"labelsTr/{label}.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"labels": LABELS, "channel_names": {"0": "CT"}}))
    names = names or labels
    assert [case.name for case in read_catalogue(root).labelled] == names
    requests = requests_for(root / "imagesTr", tmp_path / "out")
    assert [one.name for one in requests] == names
    for request, label in zip(requests, labels, strict=True):
        request.result.parent.mkdir(exist_ok=True)
        shutil.copy(root / f"labelsTr/{label}.nii.gz", request.result)
    words = [
        "score",
        str(tmp_path / "out"),
        str(root / "labelsTr"),
        "--out",
        str(tmp_path / "scores"),
        "--workers",
        "1",
    ]
    assert main([*words, "--protocol", "strict"]) == 0, capsys.readouterr().err
    assert sorted(path.stem for path in (tmp_path / "scores/cases").glob("*.json")) == names


def test_file_ending_is_obeyed(tmp_path: Path) -> None:
    for name in ("imagesTr/a_0000.NRRD", "imagesTr/a_0000.nii.gz", "imagesTr/a_seg.nii.gz", "labelsTr/a.nrrd"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    content = {"labels": LABELS, "channel_names": {"0": "CT"}, "file_ending": ".nrrd"}
    enhanced(tmp_path / "imagesTr/b_0000.dcm", hounsfield(), range(5))
    (tmp_path / "labelsTr/b.nrrd").touch()
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = [(case.name, case.images[0].name) for case in read_catalogue(tmp_path).cases]
    assert found == [("a", "a_0000.NRRD"), ("b", "b_0000.dcm")]
    (tmp_path / "imagesTr/b_0000.dcm").unlink()
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"file_ending": ".mha"}))
    with pytest.raises(ScanError, match=r'no file there ends in \.mha.*"file_ending"'):
        read_catalogue(tmp_path)


def test_a_case_without_its_channel_is_reported_and_the_others_are_done(tmp_path: Path, capsys) -> None:
    root = tmp_path / "data"
    for index, name in enumerate(("bad", "good")):
        for channel in range(2 if name == "good" else 1):
            write_scan(root / f"imagesTr/{name}_{channel:04d}.nii.gz", index)
        image = sitk.ReadImage(str(root / f"imagesTr/{name}_0000.nii.gz"))
        (root / "labelsTr").mkdir(exist_ok=True)
        sitk.WriteImage(sitk.Cast(image > 0, sitk.sitkUInt8), str(root / f"labelsTr/{name}.nii.gz"))
    victim = {"images": ["imagesTr/good_0000.nii.gz", "imagesTr/good_0001.nii.gz"], "label": "labelsTr/good.nii.gz"}
    labels = {"background": 0, "liver": 1}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "T1", "1": "T2"}}))
    words = [str(root), "--out", str(tmp_path / "plan.json"), "--workers", "1"]
    preprocess = ["preprocess", str(root), str(tmp_path / "plan.json"), "--out", str(tmp_path / "s"), "--workers", "1"]
    assert main(["plan", *words, "--fingerprints", str(tmp_path / "prints")]) == 1
    err = capsys.readouterr().err
    assert "bad: " in err
    assert "has the channels _0000; expected _0000 to _0001" in err
    assert main(preprocess) == 1
    assert [path.name for path in (tmp_path / "s/cases").iterdir()] == ["good"]
    capsys.readouterr()
    assert main([*preprocess, "--verify"]) == 1
    assert "bad: " in capsys.readouterr().err
    assert main(["inspect", str(root), "--workers", "1"]) == 1
    assert "channel-count" in capsys.readouterr().out
    requests = requests_for(root / "imagesTr", tmp_path / "out", channels=2)
    assert [bool(one.fault) for one in requests] == [True, False]

    named = {"good": victim, "../../victim": victim, "/abs": victim, "": victim, ".": victim}
    content = {"labels": labels, "channel_names": {"0": "T1", "1": "T2"}, "dataset": named}
    (root / "dataset.json").write_text(json.dumps(content))
    before = {str(path) for path in tmp_path.rglob("*")}
    assert main(["plan", *words, "--fingerprints", str(tmp_path / "a/b/prints")]) == 1
    assert main(preprocess) == 1
    new = {str(path) for path in tmp_path.rglob("*")} - before
    assert all(os.path.commonpath([path, str(tmp_path / "a")]) == str(tmp_path / "a") for path in new)
    assert [path.name for path in (tmp_path / "s/cases").iterdir()] == ["good"]


def test_labels_or_images_alone_are_that_case_s_fault(tmp_path: Path, capsys) -> None:
    root = tmp_path / "data"
    for index, name in enumerate(("lost", "good", "bare", "twice")):
        write_scan(root / f"imagesTr/{name}_0000.nii.gz", index)
        image = sitk.ReadImage(str(root / f"imagesTr/{name}_0000.nii.gz"))
        (root / "labelsTr").mkdir(exist_ok=True)
        if name != "bare":
            sitk.WriteImage(sitk.Cast(image > 0, sitk.sitkUInt8), str(root / f"labelsTr/{name}.nii.gz"))
    shutil.copy(root / "labelsTr/good.nii.gz", root / "labelsTr/orphan.nii.gz")
    write_scan(root / "imagesUn/twice_0000.nii.gz", 7)
    (root / "imagesTr/lost_0000.nii.gz").unlink()
    (root / "imagesTr/lost_0000.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    split = {"labelled": ["good", "lost", "bare", "twice", "gone"], "unlabelled": []}
    (root / "splits.json").write_text(json.dumps({"mine": split}))
    content = {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "T1"}}
    (root / "dataset.json").write_text(json.dumps(content))
    plan, store = tmp_path / "plan.json", tmp_path / "store"
    faults = {
        "orphan: ": "labels without an image",
        "bare: ": "without labels",
        "twice: ": "is taken",
        "lost: ": "a link to",
    }
    for words in (
        ["plan", str(root), "--out", str(plan), "--fingerprints", str(tmp_path / "prints")],
        ["preprocess", str(root), str(plan), "--out", str(store)],
    ):
        assert main([*words, "--workers", "1"]) == 1
        err = " ".join(capsys.readouterr().err.split())
        for case, why in faults.items():
            assert case in err, (words, err)
            assert why in err, (words, err)
    assert sorted(path.name for path in (store / "cases").iterdir()) == ["good", "twice"]
    assert main(["inspect", str(root), "--workers", "1"]) == 1
    said = capsys.readouterr().out
    assert all(code in said for code in ("labels-without-image", "image-without-labels", "same-name", "unreadable"))
    assert main(["plan", str(root), "--split", "mine", "--out", str(plan), "--fingerprints", str(tmp_path / "p")]) == 1
    assert "gone: " in capsys.readouterr().err


@pytest.mark.parametrize("longer", ["predictions", "references"])
def test_predictions_and_references_with_and_without_the_channel_s_number(longer: str, tmp_path: Path, capsys) -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[2:6, 2:6, 2:6] = 1
    for folder in ("predictions", "references"):
        (tmp_path / folder).mkdir()
        for case in ("a", "b_0001", "c"):
            name = f"{case}_0000" if folder == longer and case == "a" else case
            nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / folder / f"{name}.nii.gz")
    (tmp_path / "references/dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    out = tmp_path / "scores"
    words = ["score", str(tmp_path / "predictions"), str(tmp_path / "references"), "--out", str(out), "--workers", "1"]
    assert main([*words, "--protocol", "strict", "--labels", str(tmp_path / "references/dataset.json")]) == 0
    assert sorted(path.stem for path in (out / "cases").glob("*.json")) == ["a", "b_0001", "c"], capsys.readouterr().err


def test_what_macos_adds_is_no_scan_and_images_in_two_files_are_told(tmp_path: Path, capsys) -> None:
    model = write_model(tmp_path / "last.ckpt")
    write_scan(tmp_path / "in/a_0000.nii.gz")
    for name in ("__MACOSX/in/._a.nii.gz", "__MACOSX/in/a.nii.gz"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"no scan")
    nibabel.save(nibabel.Nifti1Pair(np.zeros((5, 5, 5), np.int16), np.eye(4)), tmp_path / "in/pair_0000.img")
    (tmp_path / "in/lonely.hdr").touch()
    assert [case.name for case in find_cases(tmp_path / "in")] == ["a", "pair"]
    assert segment(model, tmp_path / "in", tmp_path / "out") == 1
    assert "pair_0000.hdr: NIfTI in two files" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == ["a.nii.gz"]


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.AnalyzeImage])
@pytest.mark.parametrize("name", ["it's a pair.hdr", "it's a pair.img"])
def test_what_is_printed_joins_an_image_in_two_files(tmp_path: Path, kind: Any, name: str) -> None:
    values = np.random.default_rng(0).integers(0, 900, (4, 5, 6)).astype(np.int16)
    nibabel.save(kind(values, np.diag([2.0, 3.0, 4.0, 1.0])), tmp_path / "it's a pair.img")
    with pytest.raises(ScanError, match="in two files") as found:
        read_volume(tmp_path / name)
    told, is_nifti = str(found.value), kind is nibabel.Nifti1Pair
    assert (": NIfTI in" in told, "check left and right" in told) == (is_nifti, not is_nifti)
    command = shlex.split(told.partition("expected one: ")[2].partition(" joins them")[0])
    subprocess.run([sys.executable, *command[1:]], check=True)
    volume = read_volume(tmp_path / "it's a pair.nii.gz")
    assert volume.space.spacing_mm == (4.0, 3.0, 2.0)
    if is_nifti:
        np.testing.assert_array_equal(volume.array[0], values.T)


def test_many_dicom_headers_are_read_with_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every file is counted once, whatever folder it lies in; where there are few, nothing is said."""
    for name in "ab":
        slices(tmp_path / name)
    found = find_scans(tmp_path)
    assert capfd.readouterr().err == ""
    for name in "ab":  # as new: what was read is remembered
        (tmp_path / name).rename(tmp_path / f"{name}2")
    monkeypatch.setattr(discovery, "MANY_FILES", 10)
    assert [path.name for path in find_scans(tmp_path)] == [f"{path.name}2" for path in found]
    assert capfd.readouterr().err.startswith("Reading DICOM headers: 10 of 10 files, in ")
