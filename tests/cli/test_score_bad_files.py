"""``flarecps score`` with truncated, shifted, wrongly labelled and renamed files: which case, why; others scored."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from flarecps.cli.main import main
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SHAPE, SPACING_MM = (8, 14, 16), (2.5, 1.0, 1.0)
SPACE = Space.canonical(SHAPE, SPACING_MM, (10.0, -20.0, 30.0))
PROTOCOLS = ("official", "strict")


def labels() -> np.ndarray:
    """Two kidneys and an aorta of FLARE22's numbers."""
    found = np.zeros(SHAPE, np.uint8)
    found[2:6, 3:8, 1:5], found[2:6, 3:8, 11:15], found[1:7, 9:11, 7:9] = 2, 13, 5
    return found


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two cases, "bad" to be spoilt and "good" to be scored whatever happens."""
    for folder in ("p", "r"):
        for name in ("bad", "good"):
            write_volume(tmp_path / folder / f"{name}.nii.gz", labels(), SPACE)
    return tmp_path / "p", tmp_path / "r"


def score(folders: tuple[Path, Path], protocol: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    """Exit code, all that was said, and the cases of the table; ``good`` must be perfect in it."""
    out = folders[0].parent / "out"
    code = main(["score", *map(str, folders), "--out", str(out), "--protocol", protocol, "--workers", "1"])
    said = capsys.readouterr()
    with (out / "scores.csv").open(newline="") as stream:
        rows = {row["Name"]: row for row in csv.DictReader(stream)}
    assert rows["good.nii.gz"]["RK_DSC"] == "1.0"
    return code, said.out + said.err, list(rows)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shortened_within(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-500]))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def no_image(path: Path) -> None:
    path.write_bytes(b"not an image at all" * 40)


def probabilities(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image((labels().T * 0.37).astype(np.float32), nibabel.load(path).affine), path)


def scan_instead(path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(labels().T.astype(np.int16) - 1000, nibabel.load(path).affine), path)


def other_labels(path: Path) -> None:
    write_volume(path, labels() * 10, SPACE)


def cropped(path: Path) -> None:
    write_volume(path, labels()[:-1], Space.canonical((7, 14, 16), SPACING_MM, (10.0, -20.0, 30.0)))


@pytest.mark.parametrize("side", [0, 1], ids=["prediction", "reference"])
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (cut_off, "truncated"),
        (shortened_within, "truncated"),
        (emptied, "bad.nii.gz"),
        (no_image, "bad.nii.gz"),
        (probabilities, "not whole numbers"),
        (scan_instead, "expected labels from 0 to 255: is it the scan instead?"),
        (other_labels, "holds the label values 20, 50, 130; expected 0 and 1 liver"),
        (cropped, "voxels"),
    ],
)
def test_a_spoilt_file_costs_only_its_case(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], why: str, side: int
) -> None:
    spoil(folders[side] / "bad.nii.gz")
    for protocol in PROTOCOLS:
        code, said, scored = score(folders, protocol, capsys)
        if spoil in (scan_instead, other_labels) and side == 0 and protocol == "official":  # the organisers cast them
            assert (code, scored) == (0, ["bad.nii.gz", "good.nii.gz"])
            assert "1 case with a warning: bad" in said
            continue
        assert (code, scored) == (1, ["good.nii.gz"])
        (line,) = [line for line in said.splitlines() if line.startswith("not scored: ")]
        assert line.startswith("not scored: bad: ")
        assert why in line
        assert "1 of 2 cases could not be scored" in said


def test_a_shifted_map(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    write_volume(folders[0] / "bad.nii.gz", labels(), Space.canonical(SHAPE, SPACING_MM, (10.0, -20.0, 32.5)))
    code, said, scored = score(folders, "official", capsys)
    assert (code, scored) == (0, ["bad.nii.gz", "good.nii.gz"])
    assert "1 case with a warning: bad; the first: not on the reference's grid (voxels up to" in said
    code, said, scored = score(folders, "strict", capsys)
    assert (code, scored) == (1, ["good.nii.gz"])
    assert "not scored: bad: " in said
    assert "not on the grid of its reference (voxels up to" in said


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sides_taken_for_each_other(
    folders: tuple[Path, Path], protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    swapped = labels()
    swapped[labels() == 2], swapped[labels() == 13] = 13, 2
    write_volume(folders[0] / "bad.nii.gz", swapped, SPACE)
    code, said, _ = score(folders, protocol, capsys)
    assert code == 0
    assert (
        "1 case with a warning: bad; the first: the prediction's right kidney (2) lies on the reference's left " in said
    )
    assert "left kidney (13) (DSC 1.00): are labels exchanged?" in said


def test_pipes_and_links_that_lead_nowhere_are_reported(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = folders[0] / "bad.nii.gz"
    for make, words in (
        (lambda: os.mkfifo(file), "not a regular file"),
        (lambda: file.symlink_to("/gone"), "can't be reached"),
        (lambda: (file.mkdir(), os.mkfifo(file / "x.dcm")), "bad.nii.gz: a folder"),
    ):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
        make()
        code, said, scored = score(folders, "official", capsys)
        assert (code, scored) == (1, ["good.nii.gz"])
        assert words in said


def test_a_renamed_prediction(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    (folders[0] / "bad.nii.gz").rename(folders[0] / "bad_0001.nii.gz")
    code, said, scored = score(folders, "official", capsys)
    assert (code, scored) == (1, ["good.nii.gz"])
    assert "not scored: bad_0001: a prediction without reference" in said
    assert "if it belongs to 'bad', which has no prediction, give it that name" in said
    assert "1 reference without a prediction, left out, as FLARE22's script does: bad" in said
    code, said, scored = score(folders, "strict", capsys)
    assert (code, scored) == (1, ["bad.nii.gz", "good.nii.gz"])
    assert "scored 0: bad" in said
    (folders[0] / "bad_0001.nii.gz").rename(folders[0] / "elsewhere.nii.gz")
    assert "if it belongs" not in score(folders, "strict", capsys)[1]
