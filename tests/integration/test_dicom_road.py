"""DICOM folders in every command: the road from series to scores, the same remarks and refusals all along."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_series import as_series, enhanced, no_image
from pydicom import dcmread
from small_model import write_model
from stores import TinyStores, fit

from flarecps.cli.main import main
from flarecps.datasets.phantom import write_phantom
from flarecps.volumes.io import read_labels, read_space, read_volume, write_volume

GAP = "gap: slice distances are uneven"
TWICE = "twice: 1 slice there twice with equal voxels, counted once"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom whose scans are DICOM folders: three labelled, one of them with a gap, two unlabelled, one test."""
    root = tmp_path_factory.mktemp("dicom") / "data"
    write_phantom(root, 3, 2, 1, "small", seed=3, workers=1, progress=False)
    names = {"labelled_001": "one", "labelled_002": "two", "labelled_003": "gap", "unlabelled_001": "twice",
             "unlabelled_002": "phases", "test_001": "test"}  # fmt: skip
    for scan in sorted(root.glob("images*/*.nii.gz")):
        case = names[scan.name.split("_0000")[0]]
        folder = scan.parent / f"{case}_0000"
        if case == "phases":
            as_series(folder, scan, AcquisitionNumber=1)
            second = as_series(root / "second", scan, AcquisitionNumber=2, RescaleIntercept="-1000")
            for file in second.iterdir():
                file.rename(folder / f"second_{file.name}")
            second.rmdir()
        else:
            as_series(folder, scan, lost=[7] if case == "gap" else [], again=[4] if case == "twice" else [])
        no_image(folder / "structures.dcm")
        scan.unlink()
        labels = scan.parent.parent / scan.parent.name.replace("images", "labels") / scan.name.replace("_0000", "")
        if labels.is_file():
            labels.rename(labels.with_name(f"{case}.nii.gz"))
    labels = root / "labelsTr" / "gap.nii.gz"
    drawn = read_labels(labels).array[0]
    space = read_space(root / "imagesTr" / "gap_0000")  # as it is read: one slice fewer, a little farther apart
    write_volume(labels, np.delete(drawn, 7, axis=0), space)
    return root


def test_the_whole_road_from_dicom_folders(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = shutil.copytree(dataset, tmp_path / "data")
    plan, store, run = tmp_path / "plan.json", tmp_path / "store", tmp_path / "run"
    assert main(["inspect", str(dataset), "--json", str(tmp_path / "found.json"), "--workers", "1"]) == 1
    found = json.loads((tmp_path / "found.json").read_text())["findings"]
    codes = {(one["case"], one["code"]) for one in found}
    assert {("gap", "missing-slices"), ("twice", "odd-slices")} <= codes
    assert not any(one["severity"] == "error" for one in found if one["case"] != "gap"), found
    capsys.readouterr()

    words = ["--spacing", "[20,12,12]", "--patch", "[16,16,16]", "--workers", "1"]
    assert main(["plan", str(dataset), "--out", str(plan), *words, "--fingerprints", str(tmp_path / "prints")]) == 0
    said = capsys.readouterr().err
    assert GAP in said
    assert TWICE in said
    assert main(["plan", str(dataset), "--out", str(plan), *words, "--fingerprints", str(tmp_path / "prints")]) == 0
    assert GAP in capsys.readouterr().err, "what was kept is told again"
    record = tmp_path / "prints/cases/twice.json"
    before, one = record.read_bytes(), dataset / "imagesUn/twice_0000/002.dcm"
    one.write_bytes(one.read_bytes()[:-2] + b"\x00\x00")  # which leaves the folder's own state as it was
    assert main(["plan", str(dataset), "--out", str(plan), *words, "--fingerprints", str(tmp_path / "prints")]) == 0
    assert record.read_bytes() != before
    capsys.readouterr()

    assert main(["preprocess", str(dataset), str(plan), "--out", str(store), "--workers", "2"]) == 0
    said = capsys.readouterr().err
    assert GAP in said
    assert TWICE in said
    stacks = {"phases_acquisition1", "phases_acquisition2"}
    assert stacks <= {path.name for path in (store / "cases").iterdir()}

    assert main(["preprocess", str(dataset), str(plan), "--out", str(store), "--workers", "1"]) == 0
    assert GAP in capsys.readouterr().err, "of cases that were there already, too"
    fit("phantom_3d.yaml", TinyStores(dataset, store, store), run, "--data.fold", "all", epochs=1)
    checkpoint = run / "checkpoints" / "last.ckpt"
    out = tmp_path / "segmented"
    assert main(["segment", str(checkpoint), str(dataset / "imagesTs"), str(out), "--device", "cpu"]) == 0
    (result,) = out.glob("*.nii.gz")
    result.rename(out / "test.nii.gz")
    assert read_space(out / "test.nii.gz").same_grid(read_space(dataset / "imagesTs" / "test_0000"))
    scores = tmp_path / "scores"
    assert main(["score", str(out), str(dataset / "labelsTs"), "--out", str(scores)]) == 0
    with open(next(scores.glob("*.csv")), newline="") as file:
        assert any(row for row in csv.reader(file))

    predicted = ["predict", "--config", run / "config.yaml", "--ckpt_path", checkpoint]
    predicted += ["--trainer.default_root_dir", tmp_path / "predict", "--data.predict_input", dataset / "imagesUn"]
    capsys.readouterr()
    assert main([str(word) for word in predicted]) == 0
    said = capsys.readouterr().err
    assert "1 slice there twice with equal voxels, counted once" in said
    assert stacks <= {path.name.split(".")[0] for path in (tmp_path / "predict").rglob("*.nii.gz")}


def test_segment_says_what_is_odd_and_does_the_others(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, scans = write_model(tmp_path / "model.ckpt"), tmp_path / "scans"
    for place, name in (("Tr", "gap"), ("Un", "twice"), ("Un", "phases")):
        shutil.copytree(dataset / f"images{place}" / f"{name}_0000", scans / name)
    volume = read_volume(dataset / "imagesTr" / "one_0000")
    planes = volume.array[0, ::-1, ::-1, ::-1]
    enhanced(scans / "frames" / "ct.dcm", planes, range(len(planes) - 1, -1, -1))
    assert main(["segment", str(model), str(scans), str(tmp_path / "out"), "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert GAP in said
    assert TWICE in said
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == [
        "frames.nii.gz", "gap.nii.gz", "phases_acquisition1.nii.gz", "phases_acquisition2.nii.gz", "twice.nii.gz",
    ]  # fmt: skip
    one = scans / "phases" / "stack:acquisition2"
    assert main(["segment", str(model), str(one), str(tmp_path / "alone.nii.gz"), "--device", "cpu"]) == 0
    whole, alone = (read_labels(tmp_path / name) for name in ("out/phases_acquisition2.nii.gz", "alone.nii.gz"))
    np.testing.assert_array_equal(whole.array, alone.array)
    file = scans / "frames" / "ct.dcm"
    assert main(["segment", str(model), str(file), str(tmp_path / "one"), "--device", "cpu"]) == 0
    as_file, as_folder = (read_labels(tmp_path / name) for name in ("one/ct.nii.gz", "out/frames.nii.gz"))
    np.testing.assert_array_equal(as_file.array, as_folder.array)
    assert as_file.space == as_folder.space
    assert (as_file.space.spacing_mm[0], as_file.array.shape[1:]) == (2.5, volume.array.shape[1:])


def test_the_road_on_a_real_series(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A compressed CT of 20 slices, cut into four cases."""
    slab, root = shared_data / "ct" / "dicom_slab", tmp_path / "slab"
    height = {file: dcmread(file, stop_before_pixels=True).ImagePositionPatient[2] for file in slab.iterdir()}
    files = sorted(height, key=lambda file: float(height[file]))
    organs = read_labels(shared_data / "ct" / "dicom_slab_seg13.nii.gz").array[0]
    for place, name, first, last in (("Tr", "a", 0, 6), ("Tr", "b", 6, 12), ("Un", "c", 12, 16), ("Ts", "d", 16, 20)):
        folder = root / f"images{place}" / f"{name}_0000"
        folder.mkdir(parents=True)
        for number, file in enumerate(files[first:last]):
            shutil.copy(file, folder / f"{(7 * number) % 11}")
        if place != "Un":
            write_volume(root / f"labels{place}" / f"{name}.nii.gz", organs[first:last], read_space(folder))
    labels = {"background": 0} | {f"organ {number}": number for number in range(1, 14)}
    (root / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "CT"}}))
    plan, store, run, out = (str(tmp_path / name) for name in ("plan.json", "store", "run", "out"))
    main(["inspect", str(root), "--json", str(tmp_path / "found.json"), "--workers", "1"])
    findings = json.loads((tmp_path / "found.json").read_text())["findings"]
    assert {one["code"] for one in findings if one["severity"] == "error"} <= {"never-drawn"}, findings
    words = ["--spacing", "[2,4,4]", "--patch", "[8,32,32]", "--workers", "1"]
    assert main(["plan", str(root), "--out", plan, *words]) == 0
    assert main(["preprocess", str(root), plan, "--out", store, "--workers", "1"]) == 0
    stores = TinyStores(root, Path(store), Path(store))
    fit("phantom_3d.yaml", stores, Path(run), "--data.fold", "all", "--data.patch_voxels", "[8,32,32]", epochs=1)
    checkpoint = f"{run}/checkpoints/last.ckpt"
    assert main(["segment", checkpoint, str(root / "imagesTs"), out, "--device", "cpu"]) == 0
    (result,) = Path(out).glob("*.nii.gz")
    result = result.rename(Path(out) / "d.nii.gz")
    assert read_space(result).same_grid(read_space(root / "imagesTs" / "d_0000"))
    assert main(["score", out, str(root / "labelsTs"), "--out", str(tmp_path / "scores")]) == 0
