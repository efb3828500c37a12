"""``flarecps report`` on made-up run folders: one page, self-contained, of whatever a run has."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_folders import Page, make_data, make_run, reference

from flarecps.cli.main import main
from flarecps.reporting.report_cases import comparison_rows
from flarecps.reporting.run_folder import read_runs, scans_by_name
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space


@pytest.fixture(scope="module")
def side_by_side(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a CPS run and its control."""
    folder = tmp_path_factory.mktemp("report")
    make_data(folder)
    make_run(folder / "runs" / "cps", 2, 0.8)
    make_run(folder / "runs" / "control", 1, 0.7)
    out = folder / "pages" / "report.html"
    words = [
        "report", str(folder / "runs" / "cps"), str(folder / "runs" / "control"), "--out", str(out),
        "--images", str(folder / "imagesTs"), "--references", str(folder / "labelsTs"), "--names", "CPS <3D>,control",
    ]  # fmt: skip
    assert main(words) == 0
    return out


def test_one_file_that_asks_for_nothing(side_by_side: Path) -> None:
    page = Page(side_by_side)
    assert [path.name for path in side_by_side.parent.iterdir()] == ["report.html"]
    assert "script" not in page.tags
    assert page.addresses
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "@import" not in page.source
    assert "url(" not in page.source.replace("url(#", "")
    assert len(page.ids) == len(set(page.ids))
    targets = {address[1:] for address in page.addresses if address.startswith("#")}
    assert targets <= set(page.ids)


def test_headline_and_table_by_hand(side_by_side: Path) -> None:
    page = Page(side_by_side)
    # liver: 0.80 0.82 0.84 0.86 → 0.83, kidney 0.80, spleen 0.70; mean 0.7767
    assert "0.7767 mean DSC" in page.text
    assert "0.6767 mean DSC" in page.text
    assert "+0.1000 DSC" in page.text
    assert "higher in 4 of 4 cases" in page.text
    assert "liver 0.8300 ± 0.0258" in page.text
    assert "mean NSD 0.3883" in page.text
    assert "over 4 cases" in page.text
    assert "<b>" not in page.source, "of four cases no lead is beyond chance"
    assert "3D cross-pseudo supervision, two siblings" in page.text
    assert "3D supervised control, one network" in page.text
    assert "finished after 5 epochs, 2 h 05 min" in page.text


def test_names_are_escaped(side_by_side: Path) -> None:
    page = Page(side_by_side)
    assert "<3D>" not in page.source
    assert "CPS <3D>" in page.text
    assert "3d" not in page.tags


def test_pictures_of_best_median_and_worst(side_by_side: Path) -> None:
    page = Page(side_by_side)
    assert len(page.pictures) == 4  # three cases, and the hardest organ of the worst
    for picture in page.pictures:
        kind, content = picture["src"].split(",", 1)
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.width > 1000
        assert "the prediction of CPS <3D>" in picture["alt"]
        assert re.search(r"DSC: CPS <3D> 0\.\d{4}\b", picture["alt"])
    assert [picture["alt"].split(":")[0] for picture in page.pictures] == [
        "Case c4", "Case c3", "Case c1", "Case c1, spleen close by",
    ]  # fmt: skip
    assert "The best of 4 cases by mean DSC over both runs" in page.text


def test_curves_plan_environment_and_commands(side_by_side: Path) -> None:
    page = Page(side_by_side)
    for title in ("Validation DSC", "Total loss L", "Supervised loss Lsup", "Weight λ", "Learning rate", "Lcps"):
        assert title in page.text
    assert page.source.count('<svg role="img"') == 1 + 6 + 1  # boxes, charts, organs
    assert "every optimiser step sees 2 labelled and 2 unlabelled ones" in page.text
    assert page.text.count("The plan in words") == 1
    assert page.text.count("Intensities") == 1  # both runs share one plan
    assert "git checkout abc1234 # with changes that were not committed" in page.text
    assert "flarecps fit --config tiny.yaml" in page.text
    assert "2026-01-01 10:00 UTC" in page.text


def test_rows_of_the_readme_figure(side_by_side: Path) -> None:
    folder = side_by_side.parent.parent
    runs = read_runs(
        [folder / "runs" / "control", folder / "runs" / "cps"], ["supervised control", "CPS"],
        Path("segmentations"), Path("scores"),
    )  # fmt: skip
    images, references = scans_by_name(folder / "imagesTs"), scans_by_name(folder / "labelsTs")
    rows = comparison_rows(runs, images, references)
    assert [row.name for row in rows] == ["c4", "c1"]
    assert list(rows[0].predictions) == ["supervised control", "CPS"]
    assert rows[0].mean_dsc["CPS"] == pytest.approx((0.86 + 0.8 + 0.7) / 3)
    assert np.array_equal(rows[1].reference, reference())
    assert [row.name for row in comparison_rows(runs, images, references, count=1)] == ["c3"]
    assert [row.name for row in comparison_rows(runs, images, references, count=3)] == ["c4", "c3", "c1"]
    assert comparison_rows(runs, images, {}) == []


def test_a_run_that_is_still_going(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "going"
    make_run(run, 2, 0.0, scored=False)
    with (run / "csv" / "metrics.csv").open("a") as stream:
        stream.write("5,59,0.")  # the line being written
    assert main(["report", str(run)]) == 0
    page = Page(run / "report.html")
    assert str(run / "report.html") in capsys.readouterr().out.replace("\n", "")
    assert "5 of 5 epochs so far" in page.text
    assert "not scored yet" in page.text
    assert "Scores per organ" not in page.text
    assert "--images FOLDER" in page.text
    assert not page.pictures
    assert page.source.count('<svg role="img"') == 7


def test_one_bad_scan_does_not_lose_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_data(tmp_path)
    make_run(tmp_path / "run", 2, 0.8)
    (tmp_path / "imagesTs" / "c4_0000.nii.gz").write_bytes(b"cut")
    write_volume(
        tmp_path / "run" / "segmentations" / "c1.nii.gz",
        reference()[:-1],
        Space.canonical((13, 20, 22), (4.0, 3.0, 3.0)),
    )
    (tmp_path / "labelsTs" / "c3.nii.gz").unlink()
    words = ["--images", str(tmp_path / "imagesTs"), "--references", str(tmp_path / "labelsTs")]
    assert main(["report", str(tmp_path / "run"), *words]) == 0
    page = Page(tmp_path / "run" / "report.html")
    said = " ".join(capsys.readouterr().out.split())
    for text in (page.text, said):
        assert "c4 is not shown" in text
        assert "c1 is not shown" in text
        assert "13×20×22" in text
        assert "c3 is shown without reference" in text
    assert len(page.pictures) == 1


def test_pictures_without_scores(tmp_path: Path) -> None:
    make_data(tmp_path)
    make_run(tmp_path / "run", 2, 0.8)
    shutil.rmtree(tmp_path / "run" / "scores")
    assert main(["report", str(tmp_path / "run"), "--images", str(tmp_path / "imagesTs")]) == 0
    page = Page(tmp_path / "run" / "report.html")
    assert [picture["alt"].split(":")[0] for picture in page.pictures] == ["Case c1", "Case c2", "Case c3"]
    assert "reference" not in page.pictures[0]["alt"]


@pytest.mark.parametrize("missing", ["run", "images", "references"])
def test_missing_folders_are_named(tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", 1, 0.5, scored=False)
    words = {"run": [], "images": ["--images"], "references": ["--references"]}[missing]
    run = tmp_path / ("nowhere" if missing == "run" else "run")
    assert main(["report", str(run), *words, *([str(tmp_path / "nowhere")] if words else [])]) == 2
    said = capsys.readouterr().err
    assert "nowhere" in said
    assert "no such" in said
    assert not (tmp_path / "run" / "report.html").exists()


def test_names_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "run", 1, 0.5, scored=False)
    assert main(["report", str(tmp_path / "run"), "--names", "a,b"]) == 2
    assert "expected 1 different names" in capsys.readouterr().err
