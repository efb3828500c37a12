"""Headers that lie, contradict themselves, or aim at the reader: one line that names the file, or a right result.

Seeded mutators change whole headers of NIfTI, NRRD and MHA. What is read all the same must be what SimpleITK and
nibabel read, in a process of their own: they crash on some of these files. Nothing outside the folder is opened, and no
file takes more time or memory than its size allows.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile_binary import cut_or_flipped, good_scan, of_nifti, of_text

from flarecps.batch_processing import attempt
from flarecps.errors import ScanError
from flarecps.volumes.io import Volume, read_header, read_space, read_volume

EACH = 150  # cases of a format


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where scans lie, with a pipe, and with a link to a file outside."""
    inside = tmp_path / "inside"
    inside.mkdir()
    os.mkfifo(inside / "pipe.raw")
    (tmp_path / "outside.raw").write_bytes(bytes(2 * 7 * 6 * 5))
    (inside / "link.raw").symlink_to(tmp_path / "outside.raw")
    return inside


REFERENCE = """
import json, sys
import SimpleITK as sitk, nibabel, numpy as np
nibabel.imageglobals.logger.disabled = True
sitk.ProcessObject.SetGlobalWarningDisplay(False)
for path in sys.argv[1:]:
    try:
        if path.endswith(".nii"):
            image = nibabel.load(path)
            array = np.squeeze(np.asarray(image.dataobj)).T
            said = [array.shape, float(np.float64(array).sum()), [float(edge) for edge in image.affine[:3].ravel()]]
        else:
            image = sitk.ReadImage(path)
            array = sitk.GetArrayFromImage(image)
            said = [np.squeeze(array).shape, float(np.float64(array).sum()),
                    [*image.GetSpacing()[:3], *image.GetOrigin()[:3], *image.GetDirection()]]
    except Exception as error:
        said = str(error)[-100:]
    print(json.dumps([path, said]), flush=True)
"""


@pytest.mark.parametrize(
    ("suffix", "mutate"),
    [(".nrrd", of_text), (".nhdr", of_text), (".mha", of_text), (".mhd", of_text), (".nii", of_nifti)]
    + [(suffix, cut_or_flipped) for suffix in (".nrrd", ".mha", ".nii", ".nii.gz")],
)  # fmt: skip
def test_a_line_or_a_right_result(folder: Path, suffix: str, mutate: Callable[[bytes, random.Random], bytes]) -> None:
    rng = random.Random(f"{suffix} {mutate.__name__}")
    content, accepted = good_scan(folder, suffix), {}
    assert read_volume(folder / f"good{suffix}").array.sum() == 7 * 209 * 105
    for number in range(EACH):
        path = folder / f"{number}{suffix}"
        path.write_bytes(mutate(content, rng))
        began = time.monotonic()
        tracemalloc.start()
        read, line = attempt(read_volume, path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if read is None:
            assert (line or "").startswith(str(path))
        else:
            assert np.isfinite(read.array).all()
            accepted[str(path)] = read
        assert peak < 8 << 20, path.read_bytes()[:400]
        assert time.monotonic() - began < 2, path.read_bytes()[:400]
    assert 0 < len(accepted) < EACH
    if mutate is cut_or_flipped:
        return
    done = subprocess.run([sys.executable, "-c", REFERENCE, *accepted], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, "the reference crashed on a file that was accepted here"
    for line in done.stdout.splitlines():
        path, said = json.loads(line)
        check_against(accepted[path], said, Path(path))


def check_against(volume: Volume, said: object, path: Path) -> None:
    """Equal to the reference's shape, sum and grid, unless that refused the file or a remark says what was assumed.

    Without CompressedDataSize, MetaIO gives voxels of memory that nobody has written.
    """
    if not isinstance(said, list) or (path.suffix == ".mha" and b"CompressedDataSize" not in path.read_bytes()):
        return
    shape, total, grid = said
    assert list(volume.source.stored.shape) == shape, path.read_bytes()[:400]
    assert float(np.float64(volume.array).sum()) == pytest.approx(total, rel=1e-5), path.read_bytes()[:400]
    if volume.warnings:
        return
    stored = volume.source.stored
    if path.suffix == ".nii":
        affine = np.diag([-1.0, -1.0, 1.0]) @ stored.affine[:3][:, [2, 1, 0, 3]]
        np.testing.assert_allclose(affine.ravel(), grid, rtol=1e-4, atol=1e-4, err_msg=str(path.read_bytes()[:400]))
    else:
        ours = [*stored.spacing_mm[::-1], *stored.origin_mm, *stored.direction]
        np.testing.assert_allclose(ours, grid, atol=1e-6, err_msg=str(path.read_bytes()[:400]))


def mha(folder: Path, *lines: str, voxels: bytes = bytes(2 * 7 * 6 * 5), without: str = "!") -> Path:
    """A good .mha with ``lines`` in place of its own of the same name."""
    fields = {
        "ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False", "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "0 0 0", "ElementSpacing": "1 1 1",
        "DimSize": "5 6 7", "ElementType": "MET_SHORT", "ElementDataFile": "LOCAL",
    }  # fmt: skip
    fields |= dict(line.split(" = ") for line in lines)
    fields["ElementDataFile"] = fields.pop("ElementDataFile")  # the last, whatever was added
    text = "".join(f"{name} = {value}\n" for name, value in fields.items() if name != without)
    path = folder / "scan.mha"
    path.write_bytes(text.encode() + voxels)
    return path


def nrrd(folder: Path, *lines: str, voxels: bytes = bytes(2 * 7 * 6 * 5), without: str = "!") -> Path:
    """A good .nrrd with ``lines`` in place of its own of the same name."""
    fields = {
        "type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "5 6 7",
        "space directions": "(1,0,0) (0,1,0) (0,0,1)", "kinds": "domain domain domain", "endian": "little",
        "encoding": "raw", "space origin": "(0,0,0)",
    }  # fmt: skip
    fields |= dict(line.split(": ") for line in lines)
    text = "".join(f"{name}: {value}\n" for name, value in fields.items() if name != without)
    path = folder / "scan.nrrd"
    path.write_bytes(b"NRRD0004\n" + text.encode() + b"\n" + voxels)
    return path


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("ElementDataFile = %s%s%s%n", "plain name"),  # crashed ITK: a format string
        ("ElementDataFile = scan%03d.raw 1 7 1", "plain name"),
        ("ElementDataFile = LIST", "plain name"),
        ("ElementDataFile = ../outside.raw", "plain name"),
        ("ElementDataFile = /etc/passwd", "plain name"),
        ("ElementDataFile = /dev/zero", "plain name"),
        ("ElementDataFile = pipe.raw", "not a regular file"),  # hung
        ("ElementDataFile = link.raw", "link out of the folder"),
        ("ElementDataFile = gone.raw", "not there"),
        ("NDims = -1", "NDims"),  # crashed ITK
        ("NDims = 100", "NDims"),
        ("NDims = 1000000000", "NDims"),
        ("DimSize = 5 6 1000000000", "can't hold the voxels"),
        ("DimSize = 99999999999999999999 6 7", "DimSize"),
        ("DimSize = 5 6 6", "holds more voxels"),  # one slice of the seven would be lost without a word
        ("ElementSpacing = -1 -1 -1", "sizes above 0"),  # became 1 mm
        ("ElementSpacing = 0 1 1", "sizes above 0"),
        ("ElementSpacing = 1 1", "3 finite numbers"),
        ("ElementSpacing = 1e300 1 1", "expected 0.001 to 100 mm"),
        ("ElementSpacing = 1000 1000 1000", "expected 0.001 to 100 mm"),
        ("Offset = nan nan nan", "3 finite numbers"),
        ("Offset = 1e999 0 0", "beyond all measure|3 finite numbers"),
        ("TransformMatrix = 1 0 0 1 0 0 0 0 1", "lie in one plane"),
        ("ElementNumberOfChannels = 3", "several numbers per voxel"),
        ("ElementType = MET_STRING", "voxels of type"),
        ("BinaryData = False", "written as text"),
        ("ElementToIntensityFunctionSlope = 2", "rescales"),
        ("CompressedData = True", "can't be read"),
    ],
)
def test_mha_headers_refused_by_name(folder: Path, line: str, complaint: str) -> None:
    path = mha(folder, line)
    for read in (read_volume, read_header, read_space) if "Compressed" not in line else (read_volume,):
        with pytest.raises(ScanError, match=complaint) as refused:
            read(path)
        assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("data file: ../outside.raw", "plain name"),
        ("data file: pipe.raw", "not a regular file"),
        ("data file: slice_%03d.raw 1 7 1 2", "plain name"),
        ("data file: LIST", "plain name"),
        ("dimension: 1000000000", "dimension"),
        ("dimension: -3", "dimension"),
        ("sizes: 5 6", "sizes"),
        ("sizes: 5 6 100000000000", "can't hold the voxels"),
        ("space directions: none none none", "in space to 0 of 3 axes"),  # became 1 mm and identity
        ("space directions: none (0,1,0) (0,0,1)", "in space to 2 of 3 axes"),
        ("space directions: (nan,0,0) (0,1,0) (0,0,1)", "finite numbers"),
        ("space directions: (0,0,0) (0,1,0) (0,0,1)", "sizes above 0"),
        ("space directions: (1,0,0) (1,0,0) (0,0,1)", "lie in one plane"),
        ("space origin: (nan,0,0)", "finite numbers"),
        ('space units: "m" "m" "m"', "expected mm"),
        ("encoding: ascii", "expected raw or gzip"),
        ("encoding: gzip", "can't be read"),
        ("kinds: vector domain domain", "in space to 2 of 3 axes"),
        ("endian: middle", "order of bytes"),
        ("spaces: 3", "no field of NRRD"),
        ("line skip: 3", "lines of text"),
        ("byte skip: 100", "can't hold the voxels"),
    ],
)
def test_nrrd_headers_refused_by_name(folder: Path, line: str, complaint: str) -> None:
    path = nrrd(folder, line)
    with pytest.raises(ScanError, match=complaint) as refused:
        read_volume(path)
    assert str(refused.value).startswith(str(path))


def test_what_a_header_does_not_say_is_said(folder: Path) -> None:
    for path in (mha(folder, without="TransformMatrix"), nrrd(folder, "spacings: 1 1 1", without="space directions")):
        assert any("no orientation" in remark for remark in read_volume(path).warnings)
    for path in (mha(folder, without="Offset"), nrrd(folder, without="space origin")):
        assert any("no position" in remark for remark in read_volume(path).warnings)
    assert any("scanner-xyz" in remark for remark in read_volume(nrrd(folder, "space: scanner-xyz")).warnings)
    assert read_volume(mha(folder)).warnings == read_volume(nrrd(folder)).warnings == ()


def test_frames_and_axes_of_one_voxel(folder: Path) -> None:
    """A fourth axis of one voxel says nothing, wherever it lies; of two it is refused."""
    voxels = np.arange(210, dtype="<i2")
    fields = ("dimension: 4", "kinds: list domain domain domain", "space directions: none (1,0,0) (0,1,0) (0,0,1)")
    path = nrrd(folder, *fields, "sizes: 1 5 6 7", voxels=voxels.tobytes())
    np.testing.assert_array_equal(np.sort(read_volume(path).array.ravel()), voxels)
    with pytest.raises(ScanError, match="several frames or several numbers per voxel"):
        read_volume(nrrd(folder, *fields, "sizes: 2 5 6 7", voxels=voxels.tobytes() * 2))


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_voxels_beside_their_header(folder: Path, suffix: str, order: str) -> None:
    """Behind 32 bytes of another header, in either order of bytes."""
    voxels = np.arange(210, dtype="<i2" if order == "little" else ">i2")
    (folder / "scan.raw").write_bytes(bytes(32) + voxels.tobytes())
    big = str(order == "big")
    path = (
        mha(folder, "HeaderSize = 32", f"BinaryDataByteOrderMSB = {big}", "ElementDataFile = scan.raw", voxels=b"")
        if suffix == ".mhd"
        else nrrd(folder, "byte skip: 32", f"endian: {order}", "data file: scan.raw", voxels=b"")
    )
    volume = read_volume(path.rename(path.with_suffix(suffix)))
    stored = volume.source.reorientation.undo(volume.array)[0]
    np.testing.assert_array_equal(stored, voxels.reshape(7, 6, 5))
    assert stored.dtype == voxels.dtype.newbyteorder("=")


@pytest.mark.parametrize("edit", [(42, "h", -5), (40, "h", 9), (70, "h", 9999), (72, "h", 8), (108, "f", 0.0),
                                  (108, "f", 353.5), (108, "f", 1e9), (112, "f", float("inf")), (344, "b", 0),
                                  (80, "f", 5e4), (254, "h", 77)])  # fmt: skip
def test_nifti_fields_refused_or_said(folder: Path, edit: tuple[int, str, float]) -> None:
    block = bytearray(good_scan(folder, ".nii"))
    struct.pack_into(f"<{edit[1]}", block, edit[0], edit[2])
    path = folder / "scan.nii"
    path.write_bytes(block)
    volume, line = attempt(read_volume, path)
    assert (volume is None and (line or "").startswith(str(path))) or (volume is not None and volume.warnings)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_little_that_expands_to_much_is_unpacked_no_further_than_announced(folder: Path, suffix: str) -> None:
    """64 MB of zeros behind the last voxel, in 64 kB."""
    more = bytes(64 << 20)
    path = folder / f"scan{suffix}"
    if suffix == ".nii.gz":
        path.write_bytes(gzip.compress(gzip.decompress(good_scan(folder, ".nii.gz")) + more))
    elif suffix == ".nrrd":
        nrrd(folder, "encoding: gzip", voxels=gzip.compress(bytes(420) + more))
    else:
        mha(folder, "CompressedData = True", voxels=zlib.compress(bytes(420) + more))
    del more
    tracemalloc.start()
    with pytest.raises(ScanError, match="holds more voxels"):
        read_volume(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_pipe_is_no_scan(folder: Path) -> None:
    os.mkfifo(folder / "scan.nii.gz")
    with pytest.raises(ScanError, match="not a regular file"):
        read_volume(folder / "scan.nii.gz")
