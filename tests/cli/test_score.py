"""``flarecps score`` from files to tables, and what it says to mistaken users."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.cli.main import main
from flarecps.evaluation.score_table import read_scores
from flarecps.evaluation.scores import score_folders
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

LABELS = {"background": 0, "liver": 1, "aorta": 2, "thing one": 3}
SHAPE, SPACING_MM = (10, 16, 18), (2.5, 1.0, 1.0)
SPACE = Space.canonical(SHAPE, SPACING_MM, (10.0, -20.0, 30.0))


def labels_of(seed: int, move: int = 0) -> np.ndarray:
    """A block of liver, a tube of aorta through slices 2 to 7, a little thing; ``move`` shifts all along columns."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:8, 2:9, 2 + seed : 9] = 1
    labels[2:8, 11:13, 6:8] = 2
    labels[4:7, 11:14, 11:14] = 3
    return np.roll(labels, move, axis=2)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three cases predicted, the last a voxel off; their label set lies above the references, as in a data set."""
    predictions, references = tmp_path / "predictions", tmp_path / "data" / "labelsTs"
    for number in range(3):
        name = f"case_{number}.nii.gz"
        write_volume(references / name, labels_of(number), SPACE)
        write_volume(predictions / name, labels_of(number, move=int(number == 2)), SPACE)
    (references.parent / "dataset.json").write_text(json.dumps({"labels": LABELS}))
    return predictions, references


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; its exit code and all it said."""

    def score(*words: str) -> tuple[int, str]:
        code = main(["score", *map(str, folders), "--out", str(tmp_path / "out"), "--workers", "1", *words])
        said = capsys.readouterr()
        return code, said.out + said.err

    return score


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_official_files_by_hand(run: Run, tmp_path: Path) -> None:
    code, said = run()
    assert code == 0
    rows = rows_of(tmp_path / "out")
    names = ["Liver", "Aorta", "thing_one"]
    assert list(rows[0]) == ["Name", *(f"{name}_DSC" for name in names), *(f"{name}_NSD" for name in names)]
    assert [row["Name"] for row in rows] == ["case_0.nii.gz", "case_1.nii.gz", "case_2.nii.gz"]
    assert set(list(rows[0].values())[1:]) == {"1.0"}
    # one column of two lost: 1/2; of the liver's five: 4/5; of three: 2/3
    assert (rows[2]["Liver_DSC"], rows[2]["Aorta_DSC"], rows[2]["thing_one_DSC"]) == ("0.8", "0.5", "0.6667")
    assert {rows[2][f"{name}_NSD"] for name in names} == {"1.0"}  # 1 mm is within every tolerance

    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["protocol"] == "official"
    assert content["labels"] == {"liver": 1, "aorta": 2, "thing one": 3}
    assert content["tolerances_mm"] == {"liver": 5.0, "aorta": 2.0, "thing one": 2.0}
    liver = content["organs"]["liver"]["dsc"]
    assert liver["n"] == 3
    assert liver["mean"] == pytest.approx(2.8 / 3)
    assert liver["sd"] == pytest.approx(np.std([1, 1, 0.8], ddof=1))
    assert content["mean"]["dsc"]["mean"] == pytest.approx((2.8 + 2.5 + 2.6667) / 9)
    assert content["mean"]["dsc"]["sd"] == pytest.approx(np.std([1, 1, (0.8 + 0.5 + 0.6667) / 3], ddof=1))
    assert str(tmp_path) not in json.dumps(content)

    table = (tmp_path / "out" / "scores.md").read_text()
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == ["organ", "DSC", "NSD", "cases"]
    assert [line[0] for line in lines[2:]] == ["liver", "aorta", "thing one", "mean over organs"]
    assert lines[2][1:] == ["0.9333 ± 0.1155", "1.0000 ± 0.0000", "3"]
    assert lines[-1][1].startswith("0.8852 ±")
    assert "0.9333" in said
    assert "mean over organs" in said


def test_a_missing_prediction_costs_nothing_officially_and_all_strictly(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (folders[0] / "case_1.nii.gz").unlink()
    code, said = run()
    assert code == 0
    assert "1 reference without a prediction, left out, as FLARE22's script does: case_1" in said
    assert [row["Name"] for row in rows_of(tmp_path / "out")] == ["case_0.nii.gz", "case_2.nii.gz"]
    code, said = run("--protocol", "strict")
    assert code == 0
    assert "scored 0: case_1" in said
    rows = rows_of(tmp_path / "out")
    assert [row["Liver_DSC"] for row in rows] == ["1.0", "0.0", "0.8"]
    assert rows[2]["thing_one_DSC"] == "0.666667"
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["missing_predictions"] == ["case_1"]
    assert content["cases"]["case_2"]["organs"]["liver"]["hd95_mm"] == 1.0


def test_strict_leaves_empty_in_both_out_of_the_mean(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in folders:
        labels = labels_of(0)
        labels[labels == 3] = 0
        write_volume(folder / "case_0.nii.gz", labels, SPACE)
    _, said = run("--protocol", "strict")
    assert "1 organ empty in prediction and reference, left out of the means" in said
    assert rows_of(tmp_path / "out")[0]["thing_one_DSC"] == ""
    content = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert content["organs"]["thing one"]["dsc"]["n"] == 2
    assert content["organs"]["thing one"]["empty_in_both"] == 1
    scores = read_scores(tmp_path / "out" / "scores.csv")
    assert scores.mean() == pytest.approx(content["mean"]["dsc"]["mean"], abs=1e-6)
    run()
    assert rows_of(tmp_path / "out")[0]["thing_one_DSC"] == "1.0"


def test_the_dropped_slice_is_the_last_stored_one(tmp_path: Path) -> None:
    """One scan stored from the feet up and from the head down: the official crop drops opposite ends, strict none."""
    reference, prediction = labels_of(0), labels_of(0)
    prediction[7][prediction[7] == 2] = 0  # the uppermost slice of the aorta is missed
    head_first = Space(SHAPE, SPACING_MM, (-1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0), (10.0, -20.0, 52.5))
    for folder, labels in (("references", reference), ("predictions", prediction)):
        write_volume(tmp_path / folder / "up.nii.gz", labels, SPACE)
        write_volume(tmp_path / folder / "down.nii.gz", labels[::-1], head_first)
    pair = tmp_path / "predictions", tmp_path / "references"
    official, strict = (score_folders(*pair, LABELS, p, progress=False) for p in ("official", "strict"))
    assert official.cases["up"].organs["aorta"].dsc == 1.0
    assert official.cases["down"].organs["aorta"].dsc == 0.8889  # slices 0 to 4 of the crop, the first one missed
    assert strict.cases["up"].organs["aorta"] == strict.cases["down"].organs["aorta"]
    assert strict.cases["up"].organs["aorta"].dsc == pytest.approx(2 * 20 / 44)


def test_strict_accepts_another_voxel_order_of_the_same_grid(tmp_path: Path) -> None:
    head_first = Space(SHAPE, SPACING_MM, (-1.0, 0, 0, 0, -1.0, 0, 0, 0, -1.0), (10.0, -20.0, 52.5))
    write_volume(tmp_path / "r" / "a.nii.gz", labels_of(0), SPACE)
    write_volume(tmp_path / "p" / "a.nii.gz", labels_of(0)[::-1], head_first)
    strict = score_folders(tmp_path / "p", tmp_path / "r", LABELS, "strict", progress=False)
    assert [score.dsc for score in strict.cases["a"].organs.values()] == [1.0, 1.0, 1.0]
    official = score_folders(tmp_path / "p", tmp_path / "r", LABELS, "official", progress=False)
    assert "direction" in official.cases["a"].warnings[0]


def test_official_spacing_is_the_headers_pixdim(tmp_path: Path) -> None:
    """The organisers' script reads the reference's pixdim, which a header may contradict by its sform."""
    path = tmp_path / "r" / "a.nii.gz"
    write_volume(path, labels_of(0), SPACE)
    write_volume(tmp_path / "p" / "a.nii.gz", labels_of(0, move=1), SPACE)
    image = nibabel.load(path)
    header = image.header.copy()
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine, header), path)
    raw = bytearray(gzip.decompress(path.read_bytes()))
    raw[80:92] = np.array([9.0, 1.0, 2.5], "<f4").tobytes()  # pixdim[1..3]: columns 9 mm apart
    path.write_bytes(gzip.compress(bytes(raw)))
    official, strict = (
        score_folders(tmp_path / "p", tmp_path / "r", LABELS, p, progress=False) for p in ("official", "strict")
    )
    assert strict.cases["a"].organs["liver"].nsd == 1.0
    nsd = official.cases["a"].organs["liver"].nsd
    assert nsd is not None
    assert nsd < 1.0


def test_officially_foreign_ids_are_cast_as_by_the_organisers(
    run: Run, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """257 is 1 in 8 bits, -1 is 255: the case with them gets the scores of the case that holds those numbers."""
    whole = labels_of(1).astype(np.int32)
    whole[whole == 1] = 257
    whole[0, 0, :3] = (-1, 300, 9)
    cast = whole.astype(np.uint8)
    assert (cast[0, 0, :3].tolist(), int((cast == 1).sum())) == ([255, 44, 9], int((labels_of(1) == 1).sum()))
    for name, array in (("case_0", whole), ("case_1", cast)):
        write_volume(folders[0] / f"{name}.nii.gz", array, SPACE)
        write_volume(folders[1] / f"{name}.nii.gz", labels_of(0), SPACE)
    code, said = run()
    assert code == 0
    assert "9 (1 voxel), 44 (1 voxel), 255 (1 voxel), no structure of the label set: taken for background" in said
    first, second, *_ = rows_of(tmp_path / "out")
    assert {**first, "Name": ""} == {**second, "Name": ""}
    remarks = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert "prediction: values from -1 to 300; expected labels from 0 to 255" in json.dumps(remarks)
    assert run("--protocol", "strict")[0] == 1


def test_bad_cases_are_named_and_the_others_scored(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    whole = (predictions / "case_0.nii.gz").read_bytes()
    (predictions / "case_0.nii.gz").write_bytes(whole[: len(whole) // 2])
    strange = labels_of(1)
    strange[0, 0, 0] = 9
    write_volume(predictions / "case_1.nii.gz", strange, SPACE)
    write_volume(predictions / "case_9.nii.gz", labels_of(0), SPACE)
    small = Space.canonical((9, 16, 18), SPACING_MM)
    write_volume(predictions / "case_3.nii.gz", labels_of(0)[:9], small)
    write_volume(references / "case_3.nii.gz", labels_of(0), SPACE)
    write_volume(references / "case_1.nii.gz", strange, SPACE)
    code, said = run()
    assert code == 1
    lines = {line.split(": ")[1]: line for line in said.splitlines() if line.startswith("not scored: ")}
    assert set(lines) == {"case_0", "case_1", "case_3", "case_9"}
    assert "truncated" in lines["case_0"]
    assert "the reference holds the label value 9" in lines["case_1"]
    assert "9×16×18 against 10×16×18 voxels" in lines["case_3"]
    assert "prediction without reference" in lines["case_9"]
    assert "4 of 5 cases could not be scored; the means leave them out" in said
    assert [row["Name"] for row in rows_of(tmp_path / "out")] == ["case_2.nii.gz"]
    assert set(json.loads((tmp_path / "out" / "scores.json").read_text())["failed"]) == set(lines)


def test_a_shifted_grid_is_a_warning_officially_and_an_error_strictly(run: Run, folders: tuple[Path, Path]) -> None:
    write_volume(folders[0] / "case_1.nii.gz", labels_of(1), Space.canonical(SHAPE, SPACING_MM, (10.0, -20.0, 35.0)))
    code, said = run()
    assert code == 0
    assert "1 case with a warning: case_1; the first: not on the reference's grid (voxels up to" in said
    code, said = run("--protocol", "strict")
    assert code == 1
    assert "not scored: case_1: " in said
    assert "not on the grid of its reference (voxels up to" in said


def test_folders_that_can_not_be_compared(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = map(str, folders)
    out = tmp_path / "out"
    empty, renamed = tmp_path / "empty", tmp_path / "renamed"
    empty.mkdir()
    shutil.copytree(predictions, renamed)
    for file in renamed.iterdir():
        file.rename(renamed / f"my_{file.name}")
    for words, message in (
        ([str(tmp_path / "nowhere"), references], "nowhere: no such folder"),
        ([predictions, str(tmp_path / "nowhere")], "nowhere: no such folder"),
        ([str(empty), references], "no label maps in this folder"),
        ([str(renamed), references], "no prediction has the name of a reference"),
        ([predictions, references, "--labels", str(tmp_path / "no.json")], "no.json: no such file"),
    ):
        assert main(["score", *words, "--out", str(out), "--workers", "1"]) == 2
        said = capsys.readouterr().err
        assert message in said
        assert len(said.strip().splitlines()) == 1
        assert not out.exists()


def test_where_the_label_set_comes_from(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = folders
    assert f"labels: {references.parent / 'dataset.json'}" in run()[1]
    msd = tmp_path / "msd.json"
    msd.write_text(json.dumps({"labels": {"0": "background", "3": "c", "1": "a", "2": "b"}}))
    assert f"labels: {msd}" in run("--labels", str(msd))[1]
    assert list(rows_of(tmp_path / "out")[0])[1:4] == ["a_DSC", "b_DSC", "c_DSC"]
    (predictions / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 2, "aorta": 1, "x": 3}}))
    code, said = run()
    assert code == 2
    assert "not those of the references" in said
    (references.parent / "dataset.json").unlink()
    assert f"labels: {predictions / 'dataset.json'}" in run()[1]
    (predictions / "dataset.json").unlink()
    code, said = run()
    assert code == 0
    assert "labels: FLARE22's 13 organs" in said
    header = list(rows_of(tmp_path / "out")[0])
    assert header == ["Name", *(f"{o.column}_{m}" for m in ("DSC", "NSD") for o in FLARE22_ORGANS)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", 'expected "labels"'),
        ('{"labels": {"liver": [1, 2]}}', "is a region"),
        ('{"labels": {"liver": "one"}}', "expected a whole number"),
        ('{"labels": {"liver": 256}}', "expected 0 to 255"),
        ('{"labels": {"liver": 1, "spleen": 1}}', "expected each once"),
        ('{"labels": {"background": 0}}', "no structure besides background"),
    ],
)
def test_bad_label_sets(run: Run, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "labels.json"
    path.write_text(content)
    code, said = run("--labels", str(path))
    assert code == 2
    assert message in said


def test_two_files_are_one_case_whatever_their_names(folders: tuple[Path, Path], tmp_path: Path) -> None:
    prediction = folders[0] / "case_2.nii.gz"
    renamed = prediction.rename(folders[0] / "mine.nii.gz")
    reference = folders[1] / "case_2.nii.gz"
    assert main(["score", str(renamed), str(reference), "--out", str(tmp_path / "one"), "--protocol", "strict"]) == 0
    (row,) = rows_of(tmp_path / "one")
    assert (row["Name"], row["Liver_DSC"]) == ("case_2.nii.gz", "0.8")


def test_two_workers_score_as_one(folders: tuple[Path, Path]) -> None:
    one, two = (score_folders(*folders, LABELS, "strict", workers, progress=False) for workers in (1, 2))
    assert one == two


def test_a_real_label_map_against_itself(shared_data: Path, tmp_path: Path) -> None:
    reference = shared_data / "ct" / "example_3mm"
    (labels,) = (path for path in sorted(reference.glob("*.nii.gz")) if path.name != "ct.nii.gz")
    assert main(["score", str(labels), str(labels), "--out", str(tmp_path / "out")]) == 0
    (row,) = rows_of(tmp_path / "out")
    assert set(list(row.values())[1:]) == {"1.0"}
