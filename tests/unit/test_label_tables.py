"""Label files that other programs read with names and colours: NIfTI's label table, Slicer's segmentations."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from flarecps.anatomy import FLARE22_ORGANS, Organ, organs_of
from flarecps.volumes.discovery import find_cases, label_maps
from flarecps.volumes.io import read_labels, read_volume, scan_name, write_labels, write_volume
from flarecps.volumes.space import Space, as_direction

NAMES = organs_of({"background": 0, "liver": 1, "a <b> & ]]> größte": 2, "left kidney": 3})


def source(path: Path) -> Path:
    """A scan stored in another order than RAS, on an oblique grid."""
    turn, _ = np.linalg.qr(np.array([[0.9, 0.2, 0.1], [-0.1, -0.8, 0.3], [0.1, 0.2, 0.9]]))
    space = Space((5, 6, 7), (2.5, 0.8, 0.9), as_direction(turn), (3.0, -4.0, 5.0))
    voxels = np.random.default_rng(3).integers(-100, 100, space.shape).astype(np.int16)
    write_volume(path, voxels, space)
    return path


def table(path: Path) -> list[tuple[int, str, tuple[int, ...]]]:
    """Ids, names and colours in a NIfTI file's first extension, as TotalSegmentator's users read them."""
    entries = ElementTree.fromstring(nibabel.load(path).header.extensions[0].get_content()).iter("Label")
    colours = ("Red", "Green", "Blue")
    return [(int(e.get("Key")), e.text, tuple(round(255 * float(e.get(c))) for c in colours)) for e in entries]


def expected(organs: tuple[Organ, ...]) -> list[tuple[int, str, tuple[int, ...]]]:
    return [(organ.id, organ.name, organ.colour) for organ in organs]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
@pytest.mark.parametrize("scan_ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("organs", [NAMES, FLARE22_ORGANS], ids=["own", "flare22"])
def test_nifti_labels_carry_names_and_colours(tmp_path: Path, ending: str, scan_ending: str, organs) -> None:
    volume = read_volume(source(tmp_path / f"scan{scan_ending}"))
    labels = (np.abs(volume.array[0]) % 4).astype(np.uint8)
    named, bare = tmp_path / f"named{ending}", tmp_path / f"bare{ending}"
    write_labels(named, labels, volume.source, organs)
    write_labels(bare, labels, volume.source)
    assert table(named) == expected(organs)
    images = nibabel.load(named), nibabel.load(bare)
    assert np.array_equal(*(np.asarray(image.dataobj) for image in images))
    assert np.array_equal(images[0].affine, images[1].affine)
    assert not images[1].header.extensions
    assert np.array_equal(read_labels(named).array[0], labels)
    through_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(named)))
    assert np.array_equal(through_itk, sitk.GetArrayFromImage(sitk.ReadImage(str(bare))))


def test_a_big_endian_source_gets_its_table_too(tmp_path: Path) -> None:
    scan = tmp_path / "scan.nii"
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), ">i2"), np.diag([-2.0, -2, 2, 1]), header), scan)
    volume = read_volume(scan)
    write_labels(tmp_path / "labels.nii", volume.array[0].astype(np.uint8), volume.source, NAMES)
    assert table(tmp_path / "labels.nii") == expected(NAMES)
    assert np.asarray(nibabel.load(tmp_path / "labels.nii").dataobj).min() == 1


@pytest.mark.parametrize("scan_ending", [".nii.gz", ".mha"])
def test_slicers_segmentation_has_segments_on_the_scans_grid(tmp_path: Path, scan_ending: str) -> None:
    volume = read_volume(source(tmp_path / f"scan{scan_ending}"))
    labels = (np.abs(volume.array[0]) % 4).astype(np.uint8)
    result = tmp_path / "case.seg.nrrd"
    write_labels(result, labels, volume.source, NAMES)
    image, scan = sitk.ReadImage(str(result)), sitk.ReadImage(str(tmp_path / f"scan{scan_ending}"))
    for read in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(image, read)(), getattr(scan, read)(), atol=1e-4)
    values = np.abs(sitk.GetArrayFromImage(scan)) % 4
    assert np.array_equal(sitk.GetArrayFromImage(image), values)
    head = result.read_bytes().split(b"\n\n")[0].decode()
    fields = dict(line.split(":=", 1) for line in head.splitlines() if ":=" in line)
    for number, organ in enumerate(NAMES):
        of = {key.split("_", 1)[1]: value for key, value in fields.items() if key.startswith(f"Segment{number}_")}
        assert (of["Name"], of["LabelValue"], of["Layer"]) == (organ.name, str(organ.id), "0")
        assert tuple(round(255 * float(part)) for part in of["Color"].split()) == organ.colour
        assert of["Extent"] == "0 6 0 5 0 4"
    assert "Segment3_Name" not in fields
    assert np.array_equal(read_labels(result).array[0], labels)
    assert scan_name(result) == "case"


def test_a_segmentation_beside_its_scan_is_a_label_map_and_no_scan(tmp_path: Path) -> None:
    """As 3D Slicer leaves them; also among the files of a scan with several channels."""
    for name in ("case_0000.nrrd", "case_0001.nrrd"):
        source(tmp_path / "scans" / name)
    volume = read_volume(tmp_path / "scans" / "case_0000.nrrd")
    for folder in ("scans", "labels"):
        write_labels(tmp_path / folder / "case.seg.nrrd", np.ones(volume.space.shape, np.uint8), volume.source, NAMES)
    for place in (tmp_path / "scans", tmp_path / "scans" / "case_0000.nrrd"):
        (case,) = find_cases(place, channels=2)
        assert (case.name, case.fault) == ("case", "")
        assert [path.name for path in case.images] == ["case_0000.nrrd", "case_0001.nrrd"]
    assert list(label_maps(tmp_path / "labels")) == ["case"]
