"""Compressed pixels whose decoder dies, hangs or takes all memory: one scan's error, whatever the command."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from dicom_series import a_slice, as_series, hounsfield
from full_disk import full_disk
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEG2000Lossless
from small_model import write_model, write_scan

from flarecps.cli.main import main
from flarecps.datasets.phantom import write_phantom
from flarecps.errors import ScanError, WriteError
from flarecps.volumes import decoders
from flarecps.volumes.io import read_volume

FATAL = b"what kills a decoder"
JPEG_2000 = b"\xff\x4f\xff\x51" + bytes(38) + b"\x0b" + FATAL  # as a code stream of 12 bits begins: OpenJPEG's
OF_TEST = f"""
import ctypes, os, runpy, sys, time
sound = runpy.run_path({decoders.PROGRAM!r})
def decode(decoder, frame, rows, columns):
    with open(frame, "rb") as file:
        return FAULT if {FATAL!r} in file.read() else sound["decode"](decoder, frame, rows, columns)
sound["serve"].__globals__["decode"] = decode
sound["serve"]()
"""


@pytest.fixture
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A decoder that meets a fault in some streams: by default the error of a null pointer."""
    program = tmp_path / "decoder_of_test" / "program.py"
    program.parent.mkdir()
    program.write_text(OF_TEST.replace("FAULT", getattr(request, "param", "ctypes.string_at(0)")), encoding="utf-8")
    monkeypatch.setattr(decoders, "PROGRAM", str(program))
    monkeypatch.setattr(decoders, "_decoder", None)
    yield
    if decoders._decoder is not None and decoders._decoder.poll() is None:
        decoders._end(decoders._decoder)


def pack(folder: Path, stream: bytes | None = None) -> Path:
    """Every slice of a series as JPEG 2000; or as what its code stream is not."""
    for file in folder.iterdir():
        content = dcmread(file)
        if stream is None:
            packed = jpeg_2000(content.pixel_array, file.with_name("packed.dcm"))
            content.PixelData = packed.PixelData
        else:
            content.PixelData = encapsulate([stream])
        content["PixelData"].VR = "OB"
        content["PixelData"].is_undefined_length = True
        content.file_meta.TransferSyntaxUID = JPEG2000Lossless
        content.save_as(file)
    return folder


def jpeg_2000(values: np.ndarray, file: Path) -> Dataset:
    writer = sitk.ImageFileWriter()
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG2000")
    writer.SetFileName(str(file))
    writer.Execute(sitk.GetImageFromArray(values))
    packed = dcmread(file)
    assert packed.file_meta.TransferSyntaxUID == JPEG2000Lossless
    file.unlink()
    return packed


def series(folder: Path, stream: bytes | None = None, slices: int = 4) -> Path:
    for number, plane in enumerate(hounsfield(slices, 32, 32)):
        content = a_slice(plane, number)
        content.ensure_file_meta()
        content.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
        folder.mkdir(parents=True, exist_ok=True)
        content.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return pack(folder, stream)


@pytest.mark.parametrize(
    ("fault", "stream", "said"),
    [
        pytest.param("ctypes.string_at(0)", FATAL, "died of it, SIGSEGV", id="segmentation fault, GDCM"),
        pytest.param("ctypes.string_at(0)", JPEG_2000, "died of it, SIGSEGV", id="segmentation fault, OpenJPEG"),
        pytest.param("os.abort()", FATAL, "died of it, SIGABRT", id="abort"),
        pytest.param("os._exit(3)", JPEG_2000, "died of it, exit code 3", id="exit"),
        pytest.param("time.sleep(600)", JPEG_2000, "not decoded within 6 s", id="hang"),
    ],
    indirect=["fault"],
)
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_decoder_that_dies_is_an_error_of_its_scan(tmp_path: Path, fault: None, stream: bytes, said: str) -> None:
    sound = series(tmp_path / "sound")
    volume = read_volume(sound)
    assert np.array_equal(volume.source.reorientation.undo(volume.array[0]), hounsfield(4, 32, 32))
    bad = series(tmp_path / "bad", stream)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "WITHIN_S", 6.0 if said.startswith("not decoded") else decoders.WITHIN_S)
        with pytest.raises(ScanError) as found:
            read_volume(bad)
    assert said in str(found.value)
    assert str(found.value).startswith(str(tmp_path / "bad"))
    assert "expected pixels packed as JPEG 2000" in str(found.value)
    assert read_volume(sound).array.shape == (1, 4, 32, 32), "another decoder serves what follows"


@pytest.mark.parametrize("bad", [0, 6, 11])
def test_one_damaged_slice_is_named_and_others_are_read_meanwhile(tmp_path: Path, bad: int) -> None:
    sound, damaged = (series(tmp_path / name, slices=12) for name in ("sound", "damaged"))
    content = dcmread(damaged / f"{bad}.dcm")
    stream = get_frame(content.PixelData, 0, number_of_frames=1)
    content.PixelData = encapsulate([stream[: len(stream) // 2]])
    content.save_as(damaged / f"{bad}.dcm")
    with pytest.raises(ScanError, match=f"{bad}.dcm: can't be read") as found:
        read_volume(damaged)
    volume = read_volume(sound)
    assert found.traceback, "it holds all that was called: the decoder was free nevertheless"
    assert np.array_equal(volume.source.reorientation.undo(volume.array[0]), hounsfield(12, 32, 32))


@pytest.mark.parametrize("room", [60, 1800])  # bytes: not even the frame; the frame, but not its pixels
def test_a_full_disk_for_temporary_files_is_no_damaged_scan(tmp_path: Path, fault: None, room: int) -> None:
    scan = series(tmp_path / "scan")
    with full_disk(room), pytest.raises(WriteError, match=f"^{tempfile.gettempdir()}.*can't be written .*; free some"):
        read_volume(scan)


def test_a_decoder_that_died_between_scans_is_replaced(tmp_path: Path, fault: None) -> None:
    sound = series(tmp_path / "sound")
    read_volume(sound)
    assert decoders._decoder is not None
    decoders._decoder.kill()
    decoders._decoder.wait()
    assert read_volume(sound).array.shape == (1, 4, 32, 32)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems keep no such limit")
@pytest.mark.parametrize("fault", ["str(len(bytearray(3 * 2**30)))"], indirect=True)
@pytest.mark.parametrize("stream", [FATAL, JPEG_2000], ids=["GDCM", "OpenJPEG"])
def test_a_decoder_has_a_limit_of_memory(tmp_path: Path, fault: None, stream: bytes) -> None:
    with pytest.raises(ScanError, match="died of it, exit code 1"):
        read_volume(series(tmp_path / "bad", stream))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_forked_while_another_thread_reads_has_a_decoder_of_its_own(tmp_path: Path) -> None:
    program = (
        "import os, sys; from flarecps.volumes import decoders, io; io.read_volume(sys.argv[1]);"
        "first = decoders._decoder.pid; decoders._one_at_a_time.acquire(); pid = os.fork()\n"
        "if pid: sys.exit(os.waitpid(pid, 0)[1])\n"
        "io.read_volume(sys.argv[1]); assert decoders._decoder.pid != first"
    )
    subprocess.run([sys.executable, "-c", program, str(series(tmp_path / "sound"))], check=True, timeout=120)


def test_the_decoder_ends_with_whoever_began_it(tmp_path: Path) -> None:
    """Even if it is killed outright."""
    sound = series(tmp_path / "sound")
    program = (
        "import os, sys, signal; from flarecps.volumes import decoders, io; io.read_volume(sys.argv[1]);"
        "print(decoders._decoder.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(sound)], capture_output=True, text=True, check=False)
    number = int(done.stdout)
    if psutil.pid_exists(number):
        psutil.wait_procs([psutil.Process(number)], 10)
    assert not psutil.pid_exists(number) or psutil.Process(number).status() == psutil.STATUS_ZOMBIE


def test_segment_does_the_other_scans(tmp_path: Path, fault: None, capsys: pytest.CaptureFixture[str]) -> None:
    scans = tmp_path / "in"
    for name, stream in (("first", None), ("second", FATAL), ("third", None)):
        pack(as_series(scans / name, write_scan(tmp_path / f"{name}.nii.gz")), stream)
    words = ["segment", str(write_model(tmp_path / "m.ckpt")), str(scans), str(tmp_path / "out"), "--device", "cpu"]
    assert main(words) == 1
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["first.nii.gz", "third.nii.gz"]
    said = capsys.readouterr().err
    assert "2 of 3 scans" not in said
    assert [line for line in said.splitlines() if "SIGSEGV" in line and line.startswith("second: ")]
    assert "Traceback" not in said


def test_inspect_plan_and_preprocess_do_the_other_cases(
    tmp_path: Path, fault: None, capsys: pytest.CaptureFixture[str]
) -> None:
    data, plan, store = tmp_path / "data", tmp_path / "plan.json", tmp_path / "store"
    write_phantom(data, 3, 1, 0, "small", seed=3, workers=1, progress=False)
    scan = next(data.glob("images*/unlabelled_001_0000.nii.gz"))
    pack(as_series(scan.with_name("unlabelled_001_0000"), scan), FATAL)
    scan.unlink()
    sizes = ["--spacing", "[20,12,12]", "--patch", "[16,16,16]"]
    for words in (
        ["inspect", str(data)],
        ["plan", str(data), "--out", str(plan), *sizes],
        ["preprocess", str(data), str(plan), "--out", str(store)],
    ):
        assert main([*words, "--workers", "1"]) == 1, words
        told = capsys.readouterr()
        said = " ".join((told.err + told.out).split())
        assert "unlabelled_001" in said
        assert "SIGSEGV" in said
        assert "Traceback" not in said
    assert len(list(store.glob("cases/*"))) == 3
