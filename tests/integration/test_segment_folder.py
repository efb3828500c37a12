"""``segment`` on folders: what else a scan gets, shares of a folder, names, and that nothing finished is touched."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import matplotlib.image
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import series
from pydicom import dcmread
from pydicom.pixels import pixel_array
from small_model import LABELS, small_plan, write_model, write_scan

from flarecps.cli.main import main
from flarecps.inference.folders import OutputOptions, SegmentationRequest, requests_for, segment_folder
from flarecps.inference.postprocessing import Rules, write_rules
from flarecps.inference.probability_file import network_affine
from flarecps.inference.resources.budget import Budget
from flarecps.inference.resources.cost import MemoryEstimate
from flarecps.inference.resources.planner import Estimate
from flarecps.inference.resources.usage import ram_bytes
from flarecps.inference.segment_case import CaseSegmentation
from flarecps.inference.segmenter import Segmenter
from flarecps.inference.settings import SegmentationSettings
from flarecps.preprocessing.case import prepare_case
from flarecps.volumes import io
from flarecps.volumes.discovery import label_maps
from flarecps.volumes.io import read_volume

ORGANS = {name: label for name, label in LABELS.items() if label}
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "last.ckpt")


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for seed, name in enumerate(NAMES):
        write_scan(folder / f"{name}_0000.nii.gz", seed)
    return folder


def segment(model: Path, scans: Path, out: Path, *more: object) -> int:
    return main([str(word) for word in ("segment", model, scans, out, "--device", "cpu", *more)])


def labels_of(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_everything_at_once(tmp_path: Path, model: Path, scans: Path) -> None:
    words = ("--statistics", "--agreement", "--preview", "--probabilities")
    assert segment(model, scans, tmp_path / "out", *words) == 0
    assert segment(model, scans, tmp_path / "plain") == 0
    assert segment(model, scans, tmp_path / "second", "--sibling", "2") == 0
    records = {one["case"]: one for one in json.loads((tmp_path / "out" / "statistics.json").read_text())}
    ranking = json.loads((tmp_path / "out" / "agreement.json").read_text())
    for name in NAMES:
        result = f"{name}.nii.gz"
        assert (tmp_path / "out" / result).read_bytes() == (tmp_path / "plain" / result).read_bytes()
        ours, theirs = (labels_of(tmp_path / folder / result) for folder in ("out", "second"))
        image = labels_of(scans / f"{name}_0000.nii.gz").astype(float)
        (agreement,) = (one for one in ranking if one["case"] == name)
        for organ, label in ORGANS.items():
            mask = ours == label
            found = records[name]["organs"][organ]
            assert found["voxels"] == mask.sum() > 0
            assert found["ml"] == pytest.approx(mask.sum() * 27 / 1000, abs=1e-3)
            assert found["mean_hu"] == pytest.approx(image[mask].mean(), abs=1e-3)
            assert agreement["organs"][organ] == pytest.approx(dice(mask, theirs == label), abs=1e-6)
        assert agreement["mean"] == pytest.approx(np.mean(list(agreement["organs"].values())), abs=1e-6)
        picture = matplotlib.image.imread(tmp_path / "out" / "previews" / f"{name}.png")
        assert picture.shape[0] > 300
        assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 100

    means = [one["mean"] for one in ranking]
    assert means == sorted(means), "what to annotate next comes first"
    assert len(set(means)) == 3
    with (tmp_path / "out" / "agreement.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["case"]) for row in rows] == [(str(n + 1), one["case"]) for n, one in enumerate(ranking)]
    with (tmp_path / "out" / "statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == list(NAMES)
    assert float(rows[1]["liver_ml"]) == records["b"]["organs"]["liver"]["ml"]
    assert float(rows[1]["spleen_mean_hu"]) == records["b"]["organs"]["spleen"]["mean_hu"]


def test_probabilities_are_those_that_the_labels_come_from(tmp_path: Path, model: Path, scans: Path) -> None:
    """The plan's grid is the scans', so the highest probability is the label; read by NumPy alone."""
    assert segment(model, scans / "a_0000.nii.gz", tmp_path / "out", "--probabilities") == 0
    with np.load(tmp_path / "out" / "probabilities" / "a.npz", allow_pickle=False) as archive:
        probabilities, grid = archive["probabilities"], json.loads(str(archive["grid"]))
    assert probabilities.dtype == np.float16
    assert grid["axes"] == ["slice", "class", "row", "column"]
    assert grid["classes"] == {"0": "background", "1": "liver", "2": "spleen"}
    np.testing.assert_allclose(probabilities.astype(float).sum(1), 1, atol=2e-3)
    volume = read_volume(scans / "a_0000.nii.gz")
    expected, _ = Segmenter.load(model, device="cpu").probabilities(volume)
    np.testing.assert_allclose(probabilities.transpose(1, 0, 2, 3), expected.numpy(), atol=1e-3)
    written = read_volume(tmp_path / "out" / "a.nii.gz").array[0]
    sure = np.sort(expected.numpy(), axis=0)
    sure = sure[-1] - sure[-2] > 2e-3
    assert sure.mean() > 0.9
    assert (probabilities.argmax(1)[sure] == written[sure]).all()


@pytest.mark.parametrize("axis_order", [(0, 1, 2), (2, 0, 1)])
def test_the_affine_of_probabilities_places_them_in_the_patient(tmp_path: Path, axis_order) -> None:
    """A scan whose values are its own RAS positions: after resampling, each voxel's value is where it lies."""
    affine = np.array([[0.0, -2.0, 0, 30], [1.7, 0, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (30, 26, 22)), indexing="ij"), -1)
    positions = index @ affine[:3, :3].T + affine[:3, 3]
    for axis in range(3):
        nibabel.save(nibabel.Nifti1Image(np.round(100 * positions[..., axis]).astype(np.int16), affine),
                     tmp_path / "scan.nii.gz")  # fmt: skip
        volume = read_volume(tmp_path / "scan.nii.gz")
        prepared = prepare_case(volume, small_plan((3.0, 3.1, 2.9), axis_order=axis_order))
        placed = network_affine(volume.space, prepared.grid_mapping)
        shape = prepared.image.shape[1:]
        inner = np.stack(np.meshgrid(*(np.arange(2, n - 2) for n in shape), indexing="ij"), -1)
        expected = (inner @ placed[:3, :3].T + placed[:3, 3])[..., axis]
        found = prepared.image[0][2:-2, 2:-2, 2:-2] / 100
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_what_is_asked_for_later_is_made_of_what_is_there(
    tmp_path: Path, model: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics of finished results, corrected by hand since, without running a network or touching them."""
    out = tmp_path / "out"
    assert segment(model, scans, out) == 0
    image = nibabel.load(out / "b.nii.gz")
    corrected = np.zeros(image.shape, np.uint8)
    corrected[3:6, 4:8, 5:10] = 2
    nibabel.save(nibabel.Nifti1Image(corrected, image.affine, image.header), out / "b.nii.gz")
    before = {name: (out / f"{name}.nii.gz").read_bytes() for name in NAMES}

    def no_network(*given: object, **more: object) -> None:
        raise AssertionError("the network ran")

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "__call__", no_network)
        assert segment(model, scans, out, "--statistics", "--preview") == 0
    records = {one["case"]: one["organs"] for one in json.loads((out / "statistics.json").read_text())}
    assert records["b"]["spleen"]["voxels"] == 60
    assert records["b"]["liver"] == {"voxels": 0, "ml": 0.0, "mean_hu": None}
    assert segment(model, scans, out, "--agreement") == 0
    assert {name: (out / f"{name}.nii.gz").read_bytes() for name in NAMES} == before


def test_shards_fill_one_folder(tmp_path: Path, model: Path, scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert segment(model, scans, out, "--statistics", "--shard", "1/2") == 0
    assert "2 of 2 scans segmented" in capsys.readouterr().out
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]
    assert segment(model, scans, out, "--statistics", "--shard", "2/2") == 0
    assert [one["case"] for one in json.loads((out / "statistics.json").read_text())] == list(NAMES)
    assert segment(model, scans, out, "--shard", "3/2") == 2
    assert "shard '3/2'" in capsys.readouterr().err


def test_worker_processes_make_the_same_files(tmp_path: Path, model: Path, scans: Path) -> None:
    outputs = OutputOptions(statistics=True, probabilities=True, agreement=True)
    for workers in (1, 2):
        done = segment_folder(model, scans, tmp_path / str(workers), workers, progress=False, outputs=outputs)
        assert [outcome.error for outcome in done] == [None] * 3
    one, two = ({path.relative_to(tmp_path / w): path for path in (tmp_path / w).rglob("*.*")} for w in "12")
    assert one.keys() == two.keys()
    for name, path in one.items():
        if path.suffix == ".npz":  # a zip file knows when it was made
            with np.load(path) as of_one, np.load(two[name]) as of_two:
                np.testing.assert_array_equal(of_one["probabilities"], of_two["probabilities"])
        else:
            assert path.read_bytes() == two[name].read_bytes()


def test_rules_are_applied_when_they_are_asked_for(tmp_path: Path, scans: Path, capsys) -> None:
    model = write_model(tmp_path / "checkpoints" / "last.ckpt")
    scan = scans / "a_0000.nii.gz"
    assert segment(model, scan, tmp_path / "early", "--postprocess", "auto") == 2
    assert "flarecps postprocess determine" in capsys.readouterr().err
    rules = Rules(ORGANS, whole_foreground=True, largest=(1, 2), filled=(2,))
    write_rules(model.parent / "postprocessing.json", rules)
    assert segment(model, scan, tmp_path / "raw") == 0
    assert segment(model, scan, tmp_path / "auto", "--postprocess", "auto", "--statistics") == 0
    assert segment(model, scan, tmp_path / "file", "--postprocess", model.parent / "postprocessing.json") == 0
    raw, auto = (read_volume(tmp_path / kind / "a.nii.gz").array[0] for kind in ("raw", "auto"))
    np.testing.assert_array_equal(auto, rules(raw))
    assert (auto != raw).any()
    assert (tmp_path / "file" / "a.nii.gz").read_bytes() == (tmp_path / "auto" / "a.nii.gz").read_bytes()
    (record,) = json.loads((tmp_path / "auto" / "statistics.json").read_text())
    assert record["organs"]["liver"]["voxels"] == np.count_nonzero(auto == 1)


def test_agreement_needs_two_siblings_and_no_limit_of_time(tmp_path: Path, model: Path, scans: Path, capsys) -> None:
    control = write_model(tmp_path / "control.ckpt", siblings=1)
    assert segment(control, scans, tmp_path / "out", "--agreement") == 2
    assert "agreement needs two siblings" in capsys.readouterr().err
    assert segment(model, scans, tmp_path / "out", "--agreement", "--max-seconds", "100") == 2
    assert "limit of time" in capsys.readouterr().err


def test_agreement_of_the_average_is_that_of_its_siblings(tmp_path: Path, model: Path, scans: Path) -> None:
    for sibling in ("1", "average"):
        words = ("--agreement", "--sibling", sibling)
        assert segment(model, scans / "a_0000.nii.gz", tmp_path / sibling, *words) == 0
    one, both = (json.loads((tmp_path / sibling / "agreement" / "a.json").read_text()) for sibling in ("1", "average"))
    assert one == both


def test_a_limit_of_ram_is_held_one_scan_at_a_time(tmp_path: Path, model: Path, scans: Path) -> None:
    """Little room: nothing is read ahead; ample room: the labels are the same."""
    segmenter = Segmenter.load(model, device="cpu", budget=Budget(ram_bytes=2**40))
    _, estimate = segmenter.estimate(read_volume(scans / "a_0000.nii.gz"))
    for limit in (int(estimate.ram.peak * 1.5), 2**40):
        out = tmp_path / str(limit)
        done = segment_folder(
            model,
            scans,
            out,
            progress=False,
            settings=SegmentationSettings(device="cpu", budget=Budget(ram_bytes=limit)),
        )
        assert [outcome.error for outcome in done] == [None] * 3
    first, second = (sorted((tmp_path / name).glob("*.nii.gz")) for name in sorted(p.name for p in tmp_path.iterdir()))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_scan_that_expands_beyond_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, model: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its header announces 200 MB in a file of a few hundred kB; the others are done, its voxels are never touched."""
    write_scan(tmp_path / "in" / "a.nii.gz")
    image = sitk.Image([512, 512, 400], sitk.sitkInt16)
    image.SetSpacing((0.5, 0.5, 0.5))
    sitk.WriteImage(image, str(tmp_path / "in" / f"b{suffix}"), useCompression=True)
    del image
    read: list[str] = []
    original = io.read_voxels
    monkeypatch.setattr(io, "read_voxels", lambda header: read.append(header.path.name) or original(header))
    budget = Budget(ram_bytes=int(1.15 * ram_bytes()) + 300 * 2**20)
    settings = SegmentationSettings(device="cpu", budget=budget)
    done = segment_folder(model, tmp_path / "in", tmp_path / "out", progress=False, settings=settings)
    assert [outcome.failed for outcome in done] == [False, True]
    assert "does not fit its budget" in (done[1].error or "")
    assert read == ["a.nii.gz"]


def test_series_of_one_name_in_several_folders(tmp_path: Path, shared_data: Path) -> None:
    """a/SERIES and b/SERIES keep apart, and a series is called the same whatever lies beside it."""
    for folder in ("a/SERIES", "b/SERIES", "b/study/SERIES", "plain"):
        (tmp_path / "in" / folder).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / folder).symlink_to(shared_data / "ct" / "dicom_slab", target_is_directory=True)
    write_scan(tmp_path / "in" / "scan_0000.nii.gz")
    requests = requests_for(tmp_path / "in", tmp_path / "out")
    assert sorted(one.result.name for one in requests) == [
        "a_SERIES.nii.gz", "b_SERIES.nii.gz", "b_study_SERIES.nii.gz", "plain.nii.gz", "scan.nii.gz",
    ]  # fmt: skip
    (alone,) = requests_for(tmp_path / "in" / "a", tmp_path / "out")
    assert alone.result.name == "SERIES.nii.gz"
    (tmp_path / "in" / "a_SERIES.nii").touch()
    assert ["both are case 'a_SERIES'" in one.fault for one in requests_for(tmp_path / "in", tmp_path / "out")] == [
        True, False, False, False, False,
    ]  # fmt: skip


def test_the_next_scan_is_read_ahead_only_where_it_fits(
    tmp_path: Path, model: Path, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the estimate peak and its reserve: 2 bytes a voxel of the next scan (int16), 2 of that being written."""
    peak, voxels = 10**9, 24**3
    enough = round(peak * 1.15) + (2 + 2) * voxels
    estimate = Estimate(MemoryEstimate(peak, 0, 0, 0), 0, 1.0)
    monkeypatch.setattr(Segmenter, "estimate", lambda segmenter, volume, prepared=None: (None, estimate))
    monkeypatch.setattr(Segmenter, "check_unread", lambda *sizes: None)  # which counts what this process holds already
    following = requests_for(scans, tmp_path)[1]
    for limit, fits in ((enough + 1, True), (enough - 1, False), (None, True)):
        segmenter = Segmenter.load(model, device="cpu", budget=Budget(ram_bytes=limit))
        case = CaseSegmentation(segmenter, OutputOptions())
        loaded = case.read(requests_for(scans, tmp_path)[0])
        assert (loaded.prepared is None) == (limit is not None), "one step at a time where memory is counted"
        assert case.may_read_ahead(loaded, following) == fits
    series = SegmentationRequest(
        "series", (tmp_path,), tmp_path / "series.nii.gz"
    )  # only reading it tells how large it is
    assert not CaseSegmentation(
        Segmenter.load(model, device="cpu", budget=Budget(ram_bytes=2**40)), OutputOptions()
    ).may_read_ahead(loaded, series)


def test_results_that_other_programs_read(tmp_path: Path, model: Path, scans: Path) -> None:
    """Names, colours and DICOM from the command line; what can't be had is one scan's fault, and costs no labels."""
    numbers = np.random.default_rng(4).integers(-200, 200, (24, 24, 24))
    series(tmp_path / "in" / "ct", numbers, FrameOfReferenceUID="1.2.3.7", PatientID="P")
    series(tmp_path / "in" / "frameless", numbers)
    (tmp_path / "in" / "plain.nii.gz").symlink_to(scans / "a_0000.nii.gz")
    out = tmp_path / "out"
    words = ("--dicom-seg", "--rtstruct", "--format", "seg.nrrd")
    assert segment(model, tmp_path / "in", out, *words) == 1
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {
        "dataset.json", "ct.seg.nrrd", "frameless.seg.nrrd", "plain.seg.nrrd", "dicom_seg/ct.dcm", "rtstruct/ct.dcm",
    }  # fmt: skip
    segmented = read_volume(out / "ct.seg.nrrd").array
    seg = dcmread(out / "dicom_seg" / "ct.dcm")
    assert seg.PatientID == "P"
    assert [one.SegmentLabel for one in seg.SegmentSequence] == ["liver", "spleen"]
    frames = zip(pixel_array(seg), seg.PerFrameFunctionalGroupsSequence, strict=True)
    counts = dict.fromkeys(ORGANS.values(), 0)
    for frame, group in frames:
        counts[group.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(frame.sum())
    assert counts == {label: int((segmented == label).sum()) for label in counts}
    again = (out / "ct.seg.nrrd").stat().st_mtime_ns
    (out / "rtstruct" / "ct.dcm").unlink()
    assert segment(model, tmp_path / "in", out, *words) == 1
    assert (out / "rtstruct" / "ct.dcm").exists()
    assert (out / "ct.seg.nrrd").stat().st_mtime_ns == again
    assert segment(model, tmp_path / "in", out) == 2, "one folder, one ending"
    assert segment(model, scans / "a_0000.nii.gz", tmp_path / "one.seg.nrrd") == 0
    assert "Segment1_Name:=spleen" in (tmp_path / "one.seg.nrrd").read_bytes()[:4000].decode(errors="replace")
    assert list(label_maps(out)) == ["ct", "frameless", "plain"], "score finds the cases by their names"


def test_post_processed_labels_keep_names_and_ending(tmp_path: Path, model: Path, scans: Path) -> None:
    assert segment(model, scans / "a_0000.nii.gz", tmp_path / "one" / "a.nii.gz") == 0
    assert segment(model, scans / "a_0000.nii.gz", tmp_path / "two" / "a.seg.nrrd") == 0
    write_rules(tmp_path / "rules.json", Rules(LABELS))
    for folder, name in (("one", "a.nii.gz"), ("two", "a.seg.nrrd")):
        words = ["apply", tmp_path / folder, tmp_path / f"{folder}_done", "--rules", tmp_path / "rules.json"]
        assert main(["postprocess", *map(str, words)]) == 0
        assert (tmp_path / f"{folder}_done" / name).is_file()
    (table,) = nibabel.load(tmp_path / "one_done" / "a.nii.gz").header.extensions
    assert b">spleen<" in table.get_content()
