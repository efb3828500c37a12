"""``flarecps figures`` on label maps whose errors are known: choices, files, a bad case, mistakes."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.cli.main import main
from flarecps.reporting.case_figures import lowest_scores
from flarecps.reporting.result_figures import cases_by_difficulty, read_slices
from flarecps.reporting.results import Results, gather_results
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SPACE = Space.canonical((12, 40, 44), (4.0, 3.0, 3.0))
CASES = ("a", "b", "c", "d")
LIVER, SPLEEN = FLARE22_ORGANS[0], FLARE22_ORGANS[2]


def reference() -> np.ndarray:
    labels = np.zeros(SPACE.shape, np.uint8)
    labels[3:10, 12:28, 24:36] = LIVER.id
    labels[5:9, 12:20, 6:14] = SPLEEN.id
    return labels


def prediction(case: str, method: str) -> np.ndarray:
    """``good`` is the reference moved by 0 to 3 voxels; ``bad`` is moved twice as far, and lacks the spleen of c."""
    labels = np.roll(reference(), CASES.index(case) * (1 if method == "good" else 2), axis=2)
    if method == "bad" and case == "c":
        labels[labels == SPLEEN.id] = 0
        labels[7, 2:10, 2:10] = SPLEEN.id  # a spleen elsewhere, on one slice
    return labels


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for case in CASES:
        image = rng.normal(40, 20, SPACE.shape).astype(np.int16)
        image[:, :3] = -1000
        write_volume(tmp_path / "images" / f"{case}_0000.nii.gz", image, SPACE)
        write_volume(tmp_path / "references" / f"{case}.nii.gz", reference(), SPACE)
        for method in ("good", "bad"):
            write_volume(tmp_path / method / f"{case}.nii.gz", prediction(case, method), SPACE)
    return tmp_path


def words(data: Path, *more: str) -> list[str]:
    return [
        "figures", f"good={data / 'good'}", f"bad={data / 'bad'}", "--references", str(data / "references"),
        "--images", str(data / "images"), "--out", str(data / "out"), "--workers", "1", *more,
    ]  # fmt: skip


def results_of(data: Path) -> Results:
    methods = {"good": data / "good", "bad": data / "bad"}
    return gather_results(methods, data / "references", data / "images", progress=False)


class Page(HTMLParser):
    """Addresses and alternative texts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.addresses += [found[name] for name in ("src", "href", "xlink:href") if name in found]
        self.alts += [found["alt"]] if tag == "img" else []


def test_cases_are_chosen_from_the_easiest_to_the_hardest(data: Path) -> None:
    results = results_of(data)
    assert results.mean_dsc("good", "a") == 1.0
    ranked = sorted(CASES, key=lambda case: -np.mean([results.mean_dsc(m, case) for m in ("good", "bad")]))
    assert cases_by_difficulty(results, 4) == ranked
    assert cases_by_difficulty(results, 2) == [ranked[0], ranked[-1]]
    assert cases_by_difficulty(results, 1) == [ranked[1]]  # of the two in the middle the better
    assert cases_by_difficulty(results, 9) == ranked
    assert cases_by_difficulty(results, 0) == []


def test_the_poorest_score_and_the_slice_where_it_errs_most(data: Path) -> None:
    results = results_of(data)
    poor = lowest_scores(results, 3)
    assert (poor[0].case, poor[0].organ, poor[0].method, poor[0].dsc) == ("c", SPLEEN, "bad", 0.0)
    assert len({(one.case, one.organ.id) for one in poor}) == 3
    assert [one.dsc for one in poor] == sorted(one.dsc for one in poor)
    assert [one.organ for one in lowest_scores(results, 9, most_of_one_organ=1)] == [SPLEEN, LIVER]
    assert all(one.dsc < 1 and one.case != "a" for one in lowest_scores(results, 99, 99))  # a is without error
    rows, slices, failed = read_slices(results, ["b"], poor[:1])
    assert not failed
    assert rows[0].image.shape[0] == 1
    assert set(np.unique(rows[0].reference)) == {0, LIVER.id, SPLEEN.id}
    first = slices[0]
    assert first.slice_number == 7  # 64 voxels missed and 64 too many; on its neighbours 64
    assert first.reference.sum() == first.predictions["bad"].sum() == 64
    assert first.predictions["good"].sum() == 64
    assert not (first.reference & first.predictions["bad"]).any()
    assert first.dsc["bad"] == 0.0
    assert first.dsc["good"] > 0.5


def test_every_file_is_written_and_the_page_asks_for_nothing(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(data, "--rows", "3", "--worst", "4")) == 0
    out = data / "out"
    for name in ("cases.png", "boxes.png", "volumes.png", "worst_cases.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 600
            assert np.unique(np.asarray(picture.convert("L"))).size > 20
    page = Page(out / "figures.html")
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    assert "http://" not in page.source
    assert "https://" not in page.source
    assert "<script" not in page.source
    assert len(page.alts) == 1 + 4
    assert "good DSC 1.0000" in page.alts[0]
    (medians,) = re.findall(r"Median DSC: [^\"]*", page.source)
    scores = re.findall(r"\b[01]\.\d+", " ".join([*page.alts, medians]))
    assert {len(score) for score in scores} == {len("0.8794")}, "with as many decimals as in the tables"
    assert "spleen of c, axial slice 7" in page.alts[1]
    assert "good: mean DSC 0." in capsys.readouterr().out
    assert (out / "scores" / "bad" / "scores.csv").is_file()


def test_a_bad_case_is_named_and_the_others_are_shown(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "images" / "c_0000.nii.gz").write_bytes(b"cut")
    (data / "good" / "b.nii.gz").write_bytes(b"cut")
    assert main(words(data)) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "not shown: c:" in said
    assert "not shown: good, b:" in said
    page = Page(data / "out" / "figures.html")
    assert "a, axial slice" in page.alts[0]
    assert "c is not shown" in page.source
    assert not any("of c," in alt for alt in page.alts)


def test_without_scans_there_are_charts(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [word for word in words(data) if word not in ("--images", str(data / "images"))]
    assert main(chosen) == 0
    assert "need the scans" in capsys.readouterr().out
    assert not (data / "out" / "cases.png").exists()
    assert (data / "out" / "volumes.png").is_file()
    assert not Page(data / "out" / "figures.html").alts


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--cases", "a,x"], "case 'x' can't be shown without its scan"),
        (["--names", "one"], "--names has 1 names for 2 methods"),
        (["--names", "one,one"], "used twice"),
        (["--window", "[240, -160]"], "the darker one first"),
        (["--rows", "-1"], "expected 0 or more"),
    ],
)
def test_mistakes_are_named(data: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(data, *more)) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("air", "shown"), [(-1024, (-160.0, 240.0)), (0, (1.0, 99.0))])
def test_ct_gets_a_soft_tissue_window_other_scans_their_percentiles(
    data: Path, air: int, shown: tuple[float, float]
) -> None:
    values = np.linspace(0, 100, SPACE.shape[0] * SPACE.shape[1] * SPACE.shape[2]).reshape(SPACE.shape)
    values[0, 0, 0] = air
    write_volume(data / "images" / "a_0000.nii.gz", values.astype(np.float32), SPACE)
    (row,), _, _ = read_slices(results_of(data), ["a"], [])
    assert row.window_hu == pytest.approx(shown, abs=0.01)
