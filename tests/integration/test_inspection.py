"""The doctor finds every planted defect, says where and what to do, and stays silent about a sound data set."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import as_series

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.cli.main import main
from flarecps.datasets.catalogue import read_catalogue
from flarecps.datasets.findings import KINDS
from flarecps.datasets.inspection import Inspection, inspect_catalogue, inspect_folder, inspection_to_json
from flarecps.datasets.phantom import write_phantom
from flarecps.datasets.splits import Split, read_splits
from flarecps.volumes.io import read_volume, write_volume
from flarecps.volumes.space import Space

REPOSITORY = Path(__file__).resolve().parents[2]
SEED = 3  # every one of its cases has a gallbladder: nothing at all is to be found


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set: three labelled, two unlabelled, one test case, the tiny phantom."""
    root = tmp_path_factory.mktemp("sound") / "phantom"
    write_phantom(root, 3, 2, 1, seed=SEED, progress=False)
    return root


@pytest.fixture
def dataset(sound: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    root = tmp_path / "dataset"
    shutil.copytree(sound, root)
    for folder, name in (("Tr", "labelled_001"), ("Tr", "labelled_002"), ("Tr", "labelled_003"),
                         ("Un", "unlabelled_001"), ("Un", "unlabelled_002"), ("Ts", "test_001")):  # fmt: skip
        short = {"labelled": "l", "unlabelled": "u", "test": "t"}[name.split("_")[0]] + name[-1]
        (root / f"images{folder}/{name}_0000.nii.gz").rename(root / f"images{folder}/{short}_0000.nii.gz")
        if folder != "Un":
            (root / f"labels{folder}/{name}.nii.gz").rename(root / f"labels{folder}/{short}.nii.gz")
    return root


L1, L1_LABELS = "imagesTr/l1_0000.nii.gz", "labelsTr/l1.nii.gz"
U1, U2, T1 = "imagesUn/u1_0000.nii.gz", "imagesUn/u2_0000.nii.gz", "imagesTs/t1_0000.nii.gz"


def inspected(root: Path) -> Inspection:
    return inspect_folder(root, workers=1, progress=False)


def read(path: Path) -> tuple[np.ndarray, Space]:
    volume = read_volume(path)
    return volume.array[0], volume.space


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], space: Space | None = None) -> None:
    """Write the file again with its canonical array changed; the grid follows its shape."""
    array, old = read(path)
    array = np.ascontiguousarray(change(array))
    write_volume(path, array, space or replace(old, shape=array.shape))


def describe(root: Path, **content: object) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


def header(path: Path, change: Callable[[nibabel.Nifti1Image], None]) -> None:
    image = nibabel.load(path)
    changed = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    change(changed)
    nibabel.save(changed, path)


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


# --- one defect each


def truncated(root: Path) -> None:
    cut(root / L1)


def truncated_labels(root: Path) -> None:
    cut(root / L1_LABELS, 0.9)


def truncated_other(suffix: str, compress: bool) -> Callable[[Path], None]:
    def plant(root: Path) -> None:
        array, _ = read(root / U1)
        path = root / f"imagesUn/u1{suffix}"
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path), useCompression=compress)
        cut(path)
        (root / U1).unlink()

    plant.__name__ = f"truncated{suffix}{'_packed' if compress else ''}"
    return plant


def empty_file(root: Path) -> None:
    (root / U1).write_bytes(b"")


def not_an_image(root: Path) -> None:
    (root / U1).write_text("<html>404</html>")


def nan_voxels(root: Path) -> None:
    def spoil(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.float32)
        array[3, 4, 5] = np.nan
        return array

    rewrite(root / U1, spoil)


def one_slice(root: Path) -> None:
    rewrite(root / U1, lambda array: array[:1])


def few_slices(root: Path) -> None:
    rewrite(root / U1, lambda array: array[20:25])


def missing_slice(root: Path) -> None:
    as_series(root / "imagesUn/u1", root / U1, lost=[7])
    (root / U1).unlink()


def half_a_scan_missing(root: Path) -> None:
    as_series(root / "imagesUn/u1", root / U1, lost=range(2, 30))
    (root / U1).unlink()


def slice_sent_twice(root: Path) -> None:
    as_series(root / "imagesUn/u1", root / U1, again=[7])
    (root / U1).unlink()


def two_phases(root: Path) -> None:
    for echo in ("2.3", "4.6"):
        later = as_series(root / "later", root / L1, EchoTime=echo, RescaleIntercept=f"-{echo[0]}00")
        for file in later.iterdir():
            (root / "imagesTr/l1_0000").mkdir(exist_ok=True)
            file.rename(root / "imagesTr/l1_0000" / f"{echo}{file.name}")
    (root / L1).unlink()


def other_spacing(root: Path) -> None:
    _, space = read(root / L1_LABELS)
    longer = (space.spacing_mm[0], space.spacing_mm[1], space.spacing_mm[2] + 0.1)
    rewrite(root / L1_LABELS, lambda array: array, replace(space, spacing_mm=longer))


def other_origin(root: Path) -> None:
    _, space = read(root / L1_LABELS)
    x, y, z = space.origin_mm
    rewrite(root / L1_LABELS, lambda array: array, replace(space, origin_mm=(x, y, z + 3)))


def other_direction(root: Path) -> None:
    def turn(image: nibabel.Nifti1Image) -> None:
        cosine, sine = np.cos(0.05), np.sin(0.05)
        turned = np.array([[cosine, -sine, 0, 0], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ image.affine
        image.set_sform(turned, 1)
        image.set_qform(turned, 1)

    header(root / L1_LABELS, turn)


def other_shape(root: Path) -> None:
    rewrite(root / L1_LABELS, lambda array: array[:-1])


def no_codes(root: Path) -> None:
    def clear(image: nibabel.Nifti1Image) -> None:
        image.header["sform_code"] = image.header["qform_code"] = 0
        image.set_sform(None, 0)
        image.set_qform(None, 0)

    rewrite(root / U1, lambda array: array[:, ::-1, ::-1])  # as ITK assumes, so that nothing else is wrong
    header(root / U1, clear)


def sheared(root: Path) -> None:
    def shear(image: nibabel.Nifti1Image) -> None:
        affine = image.affine.copy()
        affine[1, 2] += 1.5
        image.set_sform(affine, 1)
        image.set_qform(None, 0)
        image.header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)

    rewrite(root / U1, lambda array: array)
    header(root / U1, shear)


def metres(root: Path) -> None:
    array, space = read(root / U1)
    z, y, x = space.spacing_mm
    write_volume(root / U1, array, Space.canonical(array.shape, (z / 1000, y / 1000, x / 1000)))


def never_rescaled(root: Path) -> None:
    rewrite(root / U1, lambda array: array + 1024)


def rescaled_twice(root: Path) -> None:
    rewrite(root / U1, lambda array: array - 1024)


def normalised(root: Path) -> None:
    rewrite(root / U1, lambda array: ((array.clip(-1000, 1000) + 1000) / 2000).astype(np.float32))


def eight_bit(root: Path) -> None:
    rewrite(root / U1, lambda array: ((array.clip(-160, 240) + 160) * (255 / 400)).astype(np.uint8))


def magnetic(root: Path) -> None:
    rewrite(root / U1, lambda array: np.abs(array + 300).astype(np.int16))


def clipped(root: Path) -> None:
    rewrite(root / U1, lambda array: array.clip(-160, 240))


def cropped_into_the_body(root: Path) -> None:
    def centre(array: np.ndarray) -> np.ndarray:
        planes, rows, columns = (edge // 2 for edge in array.shape)
        inner = array[planes - 10 : planes, rows - 10 : rows + 10, columns - 10 : columns + 10]
        return np.where(inner < -200, 40, inner)

    rewrite(root / U1, centre)


def constant(root: Path) -> None:
    rewrite(root / U1, lambda array: np.full_like(array, -1024))


def metal(root: Path) -> None:
    def implant(array: np.ndarray) -> np.ndarray:
        array = array.astype(np.int16)
        array[10, 20:22, 20:22] = 20000
        return array

    rewrite(root / U1, implant)


def both(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    rewrite(root / L1, change)
    rewrite(root / L1_LABELS, change)


def flipped_sides(root: Path) -> None:
    both(root, lambda array: array[:, :, ::-1])


def flipped_slices(root: Path) -> None:
    both(root, lambda array: array[::-1])


def flipped_rows(root: Path) -> None:
    both(root, lambda array: array[:, ::-1])


def unlabelled_upside_down(root: Path) -> None:
    rewrite(root / U1, lambda array: array[::-1])


def unlabelled_back_to_front(root: Path) -> None:
    rewrite(root / U1, lambda array: array[:, ::-1])


def liver_alone_on_the_left(root: Path) -> None:
    describe(root, labels={"background": 0, "liver": 1}, left_right_pairs=[])
    for name in ("labelsTr/l1", "labelsTr/l2", "labelsTr/l3", "labelsTs/t1"):
        rewrite(root / f"{name}.nii.gz", lambda array: (array == 1).astype(np.uint8))
    flipped_sides(root)


def unknown_value(root: Path) -> None:
    rewrite(root / L1_LABELS, lambda array: np.where(array == 4, 77, array))


def fractions(root: Path) -> None:
    rewrite(root / L1_LABELS, lambda array: array.astype(np.float32) * 0.5)


def floats(root: Path) -> None:
    rewrite(root / L1_LABELS, lambda array: array.astype(np.float32))


def negative(root: Path) -> None:
    rewrite(root / L1_LABELS, lambda array: np.where(array == 0, -1, array.astype(np.int16)))


def empty_labels(root: Path) -> None:
    rewrite(root / L1_LABELS, np.zeros_like)


def absent_structure(root: Path) -> None:
    rewrite(root / L1_LABELS, lambda array: np.where(array == 3, 0, array))


def shifted_labels(root: Path) -> None:
    def to_the_corner(array: np.ndarray) -> np.ndarray:
        moved = np.zeros_like(array)
        moved[array == 1] = 1
        for label in range(2, 14):
            moved[array == label] = label
        kidney = np.argwhere(array == 13)
        moved[array == 13] = 0
        moved[tuple((kidney - kidney.min(axis=0)).T)] = 13  # left, back, feet: where the kidney's corner is air
        return moved

    rewrite(root / L1_LABELS, to_the_corner)


def labels_of_another(root: Path) -> None:
    array, _ = read(root / "labelsTr/l2.nii.gz")
    image, space = read(root / "imagesTr/l2_0000.nii.gz")
    write_volume(root / L1, np.ascontiguousarray(np.where(image > -900, image + 3, image)), space)
    write_volume(root / L1_LABELS, array, space)


def leaked(root: Path) -> None:
    array, space = read(root / T1)
    write_volume(root / "imagesUn/u1.mha", array.astype(np.float32), space)  # another name, format and number type
    (root / U1).unlink()


def leaked_mirror_image(root: Path) -> None:
    array, space = read(root / T1)
    write_volume(root / U1, np.ascontiguousarray(array[:, :, ::-1]), Space.canonical(space.shape, (5.0, 5.0, 5.0)))


def leaked_part(root: Path) -> None:
    array, space = read(root / T1)
    part = np.ascontiguousarray(array[5:-5] + 2)  # cropped, other header, shifted by a constant
    write_volume(root / U1, part, Space.canonical(part.shape, space.spacing_mm))


def labelled_and_unlabelled(root: Path) -> None:
    array, space = read(root / L1)
    write_volume(root / U1, array, space)


def copied(root: Path) -> None:
    shutil.copy(root / U2, root / U1)


def image_without_labels(root: Path) -> None:
    (root / L1_LABELS).unlink()


def labels_without_image(root: Path) -> None:
    shutil.copy(root / L1_LABELS, root / "labelsTr/l9.nii.gz")


def one_name_twice(root: Path) -> None:
    shutil.copy(root / U2, root / "imagesUn/l1_0000.nii.gz")


def alike_but_for_case(root: Path) -> None:
    (root / "imagesUn/u2_0000.nii.gz").rename(root / "imagesUn/L1_0000.nii.gz")


def odd_name(root: Path) -> None:
    (root / "imagesUn/con_0000.nii.gz").touch()


def second_channel(root: Path) -> None:
    shutil.copy(root / U2, root / "imagesUn/u2_0001.nii.gz")


def gap_in_ids(root: Path) -> None:
    labels = json.loads((root / "dataset.json").read_text())["labels"]
    describe(root, labels={name: 15 if label == 12 else label for name, label in labels.items()})
    for name in ("labelsTr/l1", "labelsTr/l2", "labelsTr/l3", "labelsTs/t1"):
        rewrite(root / f"{name}.nii.gz", lambda array: np.where(array == 12, 15, array))


def nobody_drew_it(root: Path) -> None:
    labels = json.loads((root / "dataset.json").read_text())["labels"]
    describe(root, labels=labels | {"heart": 14})


def named_but_not_there(root: Path) -> None:
    split = {"labelled": ["l1", "l2", "l3"], "unlabelled": ["u1", "u2", "u9"], "test": ["t1"]}
    (root / "splits.json").write_text(json.dumps(split))


def drawn_though_not_listed(root: Path) -> None:
    split = {"labelled": ["l1", "l2", "l3"], "unlabelled": ["u1", "u2"], "test": ["t1"]}
    (root / "splits.json").write_text(json.dumps(split | {"annotated": {"l1": list(range(1, 13))}}))


def label_map_among_images(root: Path) -> None:
    shutil.copy(root / "labelsTr/l1.nii.gz", root / "imagesTr/l1.nii.gz")


def list_of_another_version(root: Path) -> None:
    listed = [{"image": f"./imagesTr/l{n}.nii.gz", "label": f"./labelsTr/l{n}.nii.gz"} for n in (1, 2, 3)]
    describe(root, training=listed)


DEFECTS = [  # plant, case, codes, words of the first
    (truncated, "l1", ["unreadable"], "imagesTr/l1_0000.nii.gz"),
    (truncated_labels, "l1", ["unreadable"], "labelsTr/l1.nii.gz"),
    (truncated_other(".nrrd", True), "u1", ["unreadable"], "u1.nrrd"),
    (truncated_other(".nrrd", False), "u1", ["unreadable"], "u1.nrrd"),
    (truncated_other(".mha", True), "u1", ["unreadable"], "u1.mha"),
    (truncated_other(".mha", False), "u1", ["unreadable"], "u1.mha"),
    (empty_file, "u1", ["empty-file"], "0 bytes"),
    (not_an_image, "u1", ["unreadable"], "u1_0000.nii.gz"),
    (nan_voxels, "u1", ["not-finite"], "1 voxels are NaN"),
    (one_slice, "u1", ["one-slice"], "one-slice"),
    (few_slices, "u1", ["few-voxels"], "5×"),
    (missing_slice, "u1", ["missing-slices"], "uneven (6.18 to 12.4 mm"),
    (half_a_scan_missing, "u1", ["missing-slices"], "sizes would be wrong"),
    (slice_sent_twice, "u1", ["odd-slices"], "1 slice there twice with equal voxels"),
    (two_phases, "l1", ["several-stacks"], "2 stacks of slices (te2.3, te4.6)"),
    (other_spacing, "l1", ["grid-mismatch"], "spacing"),
    (other_origin, "l1", ["grid-mismatch"], "origin"),
    (other_direction, "l1", ["grid-mismatch"], "direction"),
    (other_shape, "l1", ["grid-mismatch"], "voxels"),
    (no_codes, "u1", ["no-orientation"], "codes 0"),
    (sheared, "u1", ["sheared"], "sheared"),
    (metres, "u1", ["extreme-extent", "extreme-spacing"], "0."),
    (never_rescaled, "u1", ["not-rescaled"], "soft tissue near"),
    (rescaled_twice, "u1", ["rescaled-twice"], "of the voxels between -200 and 300"),
    (normalised, "u1", ["normalised"], "from 0 to"),
    (eight_bit, "u1", ["eight-bit"], "as in a picture"),
    (magnetic, "u1", ["not-ct"], "none negative"),
    (clipped, "u1", ["clipped"], "at exactly -160"),
    (cropped_into_the_body, "u1", ["no-air"], "values from"),
    (constant, "u1", ["constant"], "-1024"),
    (metal, "u1", ["very-dense"], "4 voxels above 5000 HU"),
    (flipped_sides, "l1", ["liver-left", "sides-swapped", "sides-swapped"], "left of the spleen"),
    (flipped_slices, "l1", ["upside-down"], "esophagus lies below duodenum"),
    (flipped_rows, "l1", ["back-to-front"], "stomach lies behind right kidney"),
    (unlabelled_upside_down, "u1", ["maybe-upside-down"], "in the lowest fifth"),
    (unlabelled_back_to_front, "u1", ["maybe-back-to-front"], "in front of the body's middle"),
    (liver_alone_on_the_left, "l1", ["maybe-liver-left"], "left part"),
    (unknown_value, "l1", ["unknown-labels", "absent"], "77 ("),
    (fractions, "l1", ["fractional-labels"], "not whole numbers"),
    (floats, "l1", ["float-labels"], "float32"),
    (negative, "l1", ["negative-labels"], "-1 ("),
    (empty_labels, "l1", ["empty-labels"], "all background"),
    (absent_structure, "l1", ["absent"], "spleen"),
    (shifted_labels, "l1", ["misplaced-labels"], "left kidney"),
    (labels_of_another, "l1", ["same-labels"], "l1, l2"),
    (leaked, "u1", ["leak"], "u1 (unlabelled), t1 (test): equal voxels"),
    (leaked_mirror_image, "u1", ["leak"], "flipped or turned"),
    (leaked_part, "u1", ["leak"], "equal slices of"),
    (labelled_and_unlabelled, "l1", ["pool-overlap"], "l1 (labelled), u1 (unlabelled)"),
    (copied, "u1", ["duplicate"], "u2 (unlabelled)"),
    (image_without_labels, "l1", ["image-without-labels"], "training image without labels"),
    (labels_without_image, "l9", ["labels-without-image"], "labelsTr/l9.nii.gz"),
    (one_name_twice, "l1", ["same-name"], "is taken by"),
    (alike_but_for_case, "L1", ["letter-case"], "is taken by"),
    (odd_name, "con", ["odd-name"], "is a device's on Windows"),
    (second_channel, "u2", ["channel-count"], "has the channels _0000, _0001"),
    (label_map_among_images, "l1", ["stray-file"], "imagesTr/l1.nii.gz"),
    (list_of_another_version, "", ["stale-list"], 'none of the 3 images under "training"'),
    (gap_in_ids, "", ["label-ids"], "15"),
    (nobody_drew_it, "", ["never-drawn"], "heart (id 14)"),
    (named_but_not_there, "u9", ["missing-file"], "the split names"),
    (drawn_though_not_listed, "l1", ["not-annotated"], "left kidney drawn"),
]  # fmt: skip


def test_a_sound_data_set(dataset: Path) -> None:
    inspection = inspected(dataset)
    assert inspection.findings == ()
    assert not inspection.breaks_training
    assert inspection.renumbering is None
    summary = inspection.summary
    assert (summary["cases"]["labelled"], summary["cases"]["unlabelled"], summary["cases"]["test"]) == (3, 2, 1)
    assert set(summary["cases_with_structure"].values()) == {4}
    assert summary["intensities"]["lowest"] >= -1024
    assert summary["not_judged"] == {}
    spacing = [read(path)[1].spacing_mm for path in dataset.glob("images*/*.nii.gz")]
    assert summary["spacing_mm"]["median"] == pytest.approx(np.median(spacing, axis=0).tolist(), abs=1e-4)


@pytest.mark.parametrize(("plant", "case", "codes", "words"), DEFECTS)
def test_every_planted_defect_is_found(
    dataset: Path, plant: Callable[[Path], None], case: str, codes: list[str], words: str
) -> None:
    plant(dataset)
    inspection = inspected(dataset)
    found = [(one.case, one.code) for one in inspection.findings]
    assert found == [(case, code) for code in codes], "one bad case hides no other and blames no other"
    first = inspection.findings[0]
    assert words in first.found
    assert str(dataset) not in first.found, "paths are told from the data set's folder"
    assert first.expected
    assert first.cure
    assert inspection.breaks_training == any(KINDS[code].severity == "error" for code in codes)


def test_every_kind_is_planted() -> None:
    planted = {code for _, _, codes, _ in DEFECTS for code in codes}
    elsewhere = {"header", "odd-orientation", "not-examined"}  # in tests of their own
    assert planted | elsewhere == set(KINDS)
    assert len(planted) >= 15


def test_docs_list_every_kind() -> None:
    text = (REPOSITORY / "docs/doctor.md").read_text(encoding="utf-8")
    rows = {
        code: (severity, meaning, cure)
        for code, severity, meaning, cure in re.findall(
            r"^\| `([a-z-]+)` \| (\w+) \| (.+?) \| (.+?) \|$", text, re.MULTILINE
        )
    }
    assert rows == {code: (kind.severity, kind.meaning, kind.cure) for code, kind in KINDS.items()}


def test_units_and_disagreeing_headers(dataset: Path) -> None:
    def millimetres_as_metres(image: nibabel.Nifti1Image) -> None:
        image.header["xyzt_units"] = 3  # micrometres
        affine = image.affine.copy()
        affine[:3] *= 1000
        image.set_sform(affine, 1)
        image.set_qform(None, 0)
        image.header["pixdim"][1:4] *= 1000

    rewrite(dataset / U1, lambda array: array)
    header(dataset / U1, millimetres_as_metres)
    assert {(one.case, one.code) for one in inspected(dataset).findings} == {("u1", "header")}


def test_the_one_that_is_stored_otherwise(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "imagesTr").mkdir(parents=True)
    (root / "dataset.json").write_text(json.dumps({"labels": {"a": 1}, "channel_names": {"0": "MR"}}))
    for index in range(21):
        array = np.random.default_rng(index).normal(0, 100, (8, 9, 10)).astype(np.float32)
        space = Space.canonical(array.shape, (5.0, 5.0, 5.0))
        if index == 4:
            space = replace(space, direction=(1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
        write_volume(root / f"imagesTr/c{index}_0000.nii.gz", array, space)
        labels = np.zeros(array.shape, np.uint8)
        labels[2:5, 2:5, 2 + index % 5 : 8] = 1
        write_volume(root / f"labelsTr/c{index}.nii.gz", labels, space)
    findings = [one for one in inspected(root).findings if one.code != "same-labels"]
    assert [(one.case, one.code) for one in findings] == [("c4", "odd-orientation")]
    assert "LAS and mirror-handed, 20 of 21 as RAS" in findings[0].found


def test_a_case_that_kills_the_examination_is_named(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flarecps.datasets import inspection as module

    real = module.inspect_case

    def inspect_case(order):  # type: ignore[no-untyped-def]
        if order[0].name == "u1":
            raise MemoryError
        return real(order)

    monkeypatch.setattr(module, "inspect_case", inspect_case)
    findings = inspected(dataset).findings
    assert [(one.case, one.code) for one in findings] == [("u1", "not-examined")]
    assert "not enough memory" in findings[0].found


def test_annotated_lists_are_proposed_and_honoured(dataset: Path, tmp_path: Path) -> None:
    absent_structure(dataset)
    proposal = tmp_path / "proposal" / "splits.json"
    assert main(["inspect", str(dataset), "--annotated", str(proposal), "--workers", "1", "--no-progress"]) == 0
    without_spleen = (1, 2, *range(4, 14))
    split = read_splits(proposal)["default"]
    assert split == Split(("l1", "l2", "l3"), ("u1", "u2"), ("t1",), (), {"l1": without_spleen})
    shutil.copy(proposal, dataset / "splits.json")
    assert inspected(dataset).findings == (), "said to be undrawn, the spleen is not missed"
    assert read_catalogue(dataset).labelled[0].annotated == without_spleen


def test_what_is_not_annotated_reaches_the_training_batch(dataset: Path, tmp_path: Path) -> None:
    """From the doctor's proposal through preprocessing to the mask that the loss gets."""
    from flarecps.data.datamodule import ScanDataModule

    absent_structure(dataset)
    plan, store = tmp_path / "plan.json", tmp_path / "store"
    quiet = ["--workers", "1", "--no-progress"]
    main(["inspect", str(dataset), "--annotated", str(dataset / "splits.json"), *quiet])
    assert main(["plan", str(dataset), "--out", str(plan), "--gpu-memory", "4", *quiet]) == 0
    assert main(["preprocess", str(dataset), str(plan), "--out", str(store), *quiet]) == 0
    module = ScanDataModule(
        str(store), global_batch={"labelled": 4, "unlabelled": 1}, patch_voxels=[16, 16, 16], iterations_per_epoch=2
    )
    seen = set()
    for batch, _, _ in module.train_dataloader():
        for case, annotated in zip(batch["labelled"]["case"], batch["labelled"]["annotated"], strict=True):
            assert annotated.tolist() == [not (case == "l1" and label == 3) for label in range(14)]
            seen.add(case)
    assert "l1" in seen


def test_renumbering_is_proposed_and_cures(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gap_in_ids(dataset)
    report = tmp_path / "report.json"
    assert main(["inspect", str(dataset), "--json", str(report), "--workers", "1", "--no-progress"]) == 1
    said = capsys.readouterr().out
    proposal = json.loads(report.read_text())["renumbering"]
    assert proposal["ids"] == {"13": 12, "15": 13}
    assert len(proposal["commands"]) == 2  # labelsTr, labelsTs
    for command in proposal["commands"]:
        assert f"  label maps: {command}\n" in said
        program, *words = shlex.split(command)
        assert program == "flarecps"
        assert main([*words, "--no-progress"]) == 0
        folder, new = map(Path, words[1:3])
        shutil.rmtree(folder)
        new.rename(folder)
    description = json.loads((dataset / "dataset.json").read_text())
    assert proposal["dataset_json"]["left_right_pairs"] == [[2, 12], [7, 8]]
    describe(dataset, **proposal["dataset_json"])
    assert description["labels"]["duodenum"] == 15
    assert inspected(dataset).findings == ()


def test_what_can_not_be_judged_is_said(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cropped_into_the_body(dataset)
    page = tmp_path / "page.html"
    assert main(["inspect", str(dataset), "--html", str(page), "--workers", "1", "--no-progress"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "up and down can't be judged of 1 CT (no telling organs, no torso; see the pictures of --html): u1" in said
    assert "front and back of 1 CT without telling organs" in page.read_text(encoding="utf-8")


def test_validation_cases_in_the_pool_are_a_leak(dataset: Path) -> None:
    labelled_and_unlabelled(dataset)
    split = Split(("l2", "l3"), ("u1",), (), ("l1",))
    findings = inspect_catalogue(read_catalogue(dataset).with_split(split), progress=False).findings
    assert [one.code for one in findings] == ["leak"]


def test_labels_of_unlabelled_cases_are_not_looked_at(dataset: Path) -> None:
    unknown_value(dataset)
    split = Split(("l2", "l3"), ("l1", "u1", "u2"), ("t1",))
    assert inspect_catalogue(read_catalogue(dataset).with_split(split), progress=False).findings == ()


def test_other_modalities_have_no_hounsfield_units(dataset: Path) -> None:
    never_rescaled(dataset)
    describe(dataset, channel_names={"0": "MR"})
    assert inspected(dataset).findings == ()


def test_channels_of_one_case_share_a_grid(dataset: Path) -> None:
    describe(dataset, channel_names={"0": "CT", "1": "CT"})
    for path in sorted(dataset.glob("images*/*_0000.nii.gz")):
        rewrite(path, lambda array: array)
        shutil.copy(path, str(path).replace("_0000", "_0001"))
    assert inspected(dataset).findings == ()
    rewrite(dataset / "imagesUn/u1_0001.nii.gz", lambda array: array[:-2])
    rewrite(dataset / "imagesUn/u2_0001.nii.gz", lambda array: array + 1024)
    assert [(one.case, one.code) for one in inspected(dataset).findings] == [
        ("u1", "grid-mismatch"),
        ("u2", "not-rescaled"),
    ]


def test_nothing_is_summed_up_of_scans_that_can_not_be_read(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in dataset.glob("images*/*.nii.gz"):
        path.write_bytes(path.read_bytes()[:300])
    assert main(["inspect", str(dataset), "--workers", "1", "--no-progress"]) == 1
    said = capsys.readouterr().out
    assert "can't be read" in said
    assert "stored as" not in said
    assert "median" not in said


def test_command_line(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truncated(dataset)
    unknown_value(dataset)
    never_rescaled(dataset)
    unlabelled = read_catalogue(dataset).unlabelled[1].images[0]
    rewrite(unlabelled, lambda array: array[::-1])
    report, page = tmp_path / "out" / "inspection.json", tmp_path / "out" / "page.html"
    words = ["inspect", str(dataset), "--json", str(report), "--html", str(page), "--workers", "2", "--no-progress"]
    assert main(words) == 1
    said = capsys.readouterr().out
    assert "would break training: 2 errors, 1 warning, 0 notes" in said
    content = json.loads(report.read_text())
    assert content["breaks_training"] is True
    assert [(one["case"], one["code"]) for one in content["findings"]] == [
        ("u1", "not-rescaled"),
        ("l1", "unreadable"),
        ("u2", "maybe-upside-down"),
    ]
    assert set(content["findings"][0]) == {"case", "severity", "code", "title", "found", "expected", "cure", "message"}
    assert content["cases"]["l1"] == {"role": "labelled", "readable": False}
    assert content["cases"]["l2"]["volumes_ml"]["liver"] > 500
    assert content == json.loads(json.dumps(inspection_to_json(inspected(dataset)))), (
        "one process or two: the same findings in the same order"
    )
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", text), "nothing is asked for from outside"
    assert "<script" not in text
    assert text.count('<article class="portrait">') == 6
    assert text.count("data:image/jpeg;base64,") == 5
    assert "no picture: the scan can’t be read" in text
    assert text.index("Stored values, not HU") < text.index("Perhaps upside down")
    liver = f"rgb({' '.join(map(str, FLARE22_ORGANS[0].colour))})"
    for word in ("Would break training", "flarecps inspect", "Volumes of the structures", liver):
        assert word in text


def test_the_page_stays_small(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flarecps.reporting import doctor

    never_rescaled(dataset)
    monkeypatch.setattr(doctor, "MOST_PICTURES", 3)
    monkeypatch.setattr(doctor, "SOUND_PICTURES", 2)
    inspection = inspected(dataset)
    assert doctor.sampled_cases(inspection)[0] == "u1"
    assert len(doctor.sampled_cases(inspection)) == 3
    page = doctor.doctor_page(inspection, doctor.gallery_cases(inspection, progress=False))
    assert page.count('<article class="portrait">') == 3
    assert "3 cases are not shown" in page


def test_real_scans(shared_data: Path) -> None:
    catalogue = read_catalogue(shared_data / "kbp", "5_labelled")
    few = replace(catalogue, cases=catalogue.labelled + catalogue.unlabelled[:10] + catalogue.test[:5])
    assert [one.code for one in inspect_catalogue(few, progress=False).findings if one.severity != "note"] == []
