"""FLARE22's rules from label files to the official CSV, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flarecps.cli.main import main
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SHAPE, SPACING_MM = (12, 8, 30), (2.5, 1.0, 1.0)
SPACE = Space.canonical(SHAPE, SPACING_MM)
LIVER, AORTA = 1, 5


def tube(labels: np.ndarray, first: int, last: int) -> np.ndarray:
    """An aorta of 2×2 voxels through the slices ``first`` to ``last``."""
    labels[first : last + 1, 3:5, 25:27] = AORTA
    return labels


def bar(start: int, length: int = 10) -> np.ndarray:
    """A liver of ten voxels in a row."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1, 1, start : start + length] = LIVER
    return labels


# case: (prediction or None, reference, what the official table says: liver DSC, aorta DSC, liver NSD, aorta NSD).
# The liver's tolerance is 5 mm, the aorta's 2 mm. The areas in mm², from the middles of the 2×2×2 blocks' edges: a
# corner is 0.5·√(0.25² + 2·0.625²) = 0.459279, an edge within a slice √(1.25² + 0.5²) = 1.346291 a mm, one from slice
# to slice √(0.5² + 0.5²) = 0.707107 a mm.
CASES: dict[str, tuple[np.ndarray | None, np.ndarray, str]] = {
    "a_both_empty": (bar(0), bar(0), "1.0,1.0,1.0,1.0"),
    "b_not_predicted": (bar(0), tube(bar(0), 2, 8), "1.0,0.0,1.0,0.0"),
    "c_only_predicted": (tube(bar(0), 2, 8), bar(0), "1.0,0.0,1.0,0.0"),
    # One of ten voxels shared: DSC 0.1 is below 0.2, so the NSD, which would be about 0.7, is 0.
    "d_below_a_fifth": (bar(9), bar(0), "0.1,1.0,0.0,1.0"),
    # Two of ten: DSC is 0.2 and not below. The bar: 4·9·1.346291 + 8·0.459279 = 52.140716; beyond 5 mm lie one end
    # (4 corners) and 2 mm beside it (8·1.346291): 12.607447. NSD = 1 - 12.607447/52.140716.
    "e_just_a_fifth": (bar(8), bar(0), "0.2,1.0,0.7582,1.0"),
    # The reference's last slice is left out on both sides, so a prediction that misses it is perfect ...
    "f_last_slice_dropped": (tube(bar(0), 2, 7), tube(bar(0), 2, 8), "1.0,1.0,1.0,1.0"),
    # ... and so is one that runs through the whole scan.
    "g_cropped_range": (tube(bar(0), 0, 11), tube(bar(0), 2, 8), "1.0,1.0,1.0,1.0"),
    # The first slice is missed: 20 of 24 voxels, DSC 2·20/44. Six slices: 2·(12.5+1+12.5) + 50·0.707107 +
    # 8·1.346291 + 8·0.459279 = 101.799904; five: 84.728836; the open end, 2.5 mm off: 1 + 4·1.346291 + 4·0.459279 =
    # 8.222282. NSD = 1 - 8.222282/186.528740.
    "h_first_slice_missed": (tube(bar(0), 3, 8), tube(bar(0), 2, 8), "1.0,0.9091,1.0,0.9559"),
    "i_outside_the_crop": (tube(bar(0), 8, 11), tube(bar(0), 2, 8), "1.0,0.0,1.0,0.0"),
    # On one slice the organisers' crop is empty and their script fails: ours takes the tube uncropped, 2·4/(12+4). One
    # slice: 2·1 + 8·1.346291 + 8·0.459279 = 16.444564; three: 2·(5+1+5) + 20·0.707107 + 8·1.346291 + 8·0.459279 =
    # 50.586701. Beyond 2 mm lie both ends of the longer one. NSD = 1 - 16.444564/67.031265.
    "j_one_slice": (tube(bar(0), 4, 6), tube(bar(0), 5, 5), "1.0,0.5,1.0,0.7547"),
    # Five of ten: 2·5/15 to four decimals. The lost end's farthest layers are exactly 5 mm off: inclusive.
    "k_rounded": (bar(0, 5), bar(0), "0.6667,1.0,1.0,1.0"),
    "l_missing": (None, bar(0), ""),
}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    for name, (prediction, reference, _) in CASES.items():
        write_volume(tmp_path / "r" / f"{name}.nii.gz", reference, SPACE)
        if prediction is not None:
            write_volume(tmp_path / "p" / f"{name}.nii.gz", prediction, SPACE)
    (tmp_path / "labels.json").write_text(json.dumps({"labels": {"background": 0, "liver": LIVER, "aorta": AORTA}}))
    return str(tmp_path / "p"), str(tmp_path / "r")


def score(folders: tuple[str, str], out: Path, *words: str) -> dict:
    labels = str(Path(folders[0]).parent / "labels.json")
    assert main(["score", *folders, "--out", str(out), "--labels", labels, "--workers", "1", *words]) == 0
    return json.loads((out / "scores.json").read_text())


def test_the_official_csv_by_hand(folders: tuple[str, str], tmp_path: Path) -> None:
    content = score(folders, tmp_path / "out")
    rows = [f"{name}.nii.gz,{row}" for name, (prediction, _, row) in CASES.items() if prediction is not None]
    header = "Name,Liver_DSC,Aorta_DSC,Liver_NSD,Aorta_NSD"
    assert (tmp_path / "out" / "scores.csv").read_text() == "\n".join([header, *rows]) + "\n"
    assert content["missing_predictions"] == ["l_missing"]
    remarks = {name: case["organs"]["aorta"]["remark"] for name, case in content["cases"].items()}
    assert remarks["j_one_slice"] == "one slice, scored uncropped"
    assert remarks["a_both_empty"] == "both empty"
    assert content["mean"]["dsc"]["mean"] == pytest.approx((8 + 0.1 + 0.2 + 0.6667 + 6 + 0.9091 + 0.5) / 22)


def test_the_strict_protocol_on_the_same_files(folders: tuple[str, str], tmp_path: Path) -> None:
    content = score(folders, tmp_path / "out", "--protocol", "strict")
    assert list(content["cases"]) == list(CASES)
    scores = {name: case["organs"] for name, case in content["cases"].items()}
    assert scores["a_both_empty"]["aorta"]["dsc"] is None
    assert scores["d_below_a_fifth"]["liver"]["dsc"] == 0.1
    assert scores["d_below_a_fifth"]["liver"]["nsd"] == pytest.approx(
        1 - (1.837117 + 3 * 5.385165) / 52.140716, abs=1e-6
    )
    assert scores["f_last_slice_dropped"]["aorta"]["dsc"] == pytest.approx(2 * 24 / (24 + 28))
    assert scores["g_cropped_range"]["aorta"]["dsc"] == pytest.approx(2 * 28 / (48 + 28))
    assert scores["g_cropped_range"]["aorta"]["volume_error_ml"] == pytest.approx(20 * 2.5 / 1000)
    assert scores["g_cropped_range"]["aorta"]["volume_error_relative"] == pytest.approx(20 / 28)
    assert scores["k_rounded"]["liver"]["dsc"] == pytest.approx(2 / 3, abs=1e-15)
    assert scores["l_missing"]["liver"]["dsc"] == scores["l_missing"]["liver"]["nsd"] == 0.0
    assert scores["l_missing"]["liver"]["volume_error_relative"] == -1.0
    assert content["organs"]["aorta"]["empty_in_both"] == 5
    assert content["organs"]["aorta"]["dsc"]["n"] == len(CASES) - 5
    assert content["organs"]["liver"]["dsc"]["n"] == len(CASES)
    page = (tmp_path / "out" / "scores.md").read_text()
    assert "| organ | HD95, mm |" in " ".join(page.split())


def test_tolerances_from_the_command_line(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With 2.5 mm the open end of the aorta is near enough; with 4.5 mm one more layer of the bar is not."""
    content = score(folders, tmp_path / "out", "--tolerance", "aorta=2.5,liver=4.5")
    assert content["tolerances_mm"] == {"liver": 4.5, "aorta": 2.5}
    assert content["cases"]["h_first_slice_missed"]["organs"]["aorta"]["nsd"] == 1.0
    expected = round(1 - (12.607447 + 5.385165) / 52.140716, 4)
    assert content["cases"]["e_just_a_fifth"]["organs"]["liver"]["nsd"] == expected
    note = "NSD with tolerances other than FLARE22's: liver 4.5 mm, aorta 2.5 mm"
    assert note in capsys.readouterr().out
    assert note in (tmp_path / "out" / "scores.md").read_text()
    words = ["score", *folders, "--out", str(tmp_path / "out"), "--tolerance", "ears=1"]
    assert main(words) == 2
    assert "no organ is called 'ears'" in capsys.readouterr().err


def test_two_structures_of_one_column_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A blank becomes an underscore in the table's columns: one structure would be given the other's numbers."""
    for folder in ("p", "r"):
        write_volume(tmp_path / folder / "case.nii.gz", bar(0), SPACE)
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"labels": {"background": 0, "left lobe": 1, "left_lobe": 2}}))
    words = ["score", str(tmp_path / "p"), str(tmp_path / "r"), "--out", str(tmp_path / "out"), "--labels", str(labels)]
    assert main(words) == 2
    assert "'left lobe' and 'left_lobe' would share the columns left_lobe_" in capsys.readouterr().err
