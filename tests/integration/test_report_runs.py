"""``flarecps report`` on runs as training leaves them: several seeds, a run that still goes, and a look at the pages.

The pages of a CPS and control pair are opened in a headless browser.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, browser_or_reason, running_browser
from PIL import Image
from run_folders import Page, make_data, make_run

from flarecps import metric_names
from flarecps.cli.main import main


def add_validation(run: Path, siblings: int) -> None:
    """The columns of each sibling's DSC, and pictures of a case after epochs 1, 3 and 5."""
    table = run / "csv" / "metrics.csv"
    sources = [f"sibling_{number}" for number in range(1, siblings + 1)]
    names = [metric_names.dsc(source, organ) for source in sources for organ in ("liver", "spleen")]
    names += [metric_names.health_agreement("liver"), metric_names.health_volume(1, "liver")] * (siblings > 1)
    head, *rows = table.read_text().splitlines()
    rows = [row + "".join(f",{0.1 * number + 0.02 * place:.3f}" for place in range(len(names))) for number, row in
            enumerate(rows, start=1)]  # fmt: skip
    table.write_text("\n".join([",".join([head, *names]), *rows]) + "\n")
    for epoch in (1, 3, 5):
        path = run / "overlays" / "v1" / f"epoch_{epoch:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (972, 640), (40 * epoch, 20, 20)).save(path)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a CPS run and its control, with everything that a page can hold."""
    folder = tmp_path_factory.mktemp("pair")
    make_data(folder)
    for name, siblings, level in (("CPS", 2, 0.8), ("control", 1, 0.7)):
        make_run(folder / name, siblings, level)
        add_validation(folder / name, siblings)
    record = json.loads((folder / "CPS" / "environment.json").read_text())
    first = record | {
        "finished": None, "seen": "2026-01-01T11:00:00+00:00", "first_epoch": 1, "completed_epochs": 2,
        "ended_by": "StoppedBySignal", "slurm_job": "4711",
    }  # fmt: skip
    last = record | {
        "command": f"{record['command']} --ckpt_path last", "started": "2026-01-01T11:10:00+00:00", "first_epoch": 3,
    }  # fmt: skip
    (folder / "CPS" / "environment.json").write_text(json.dumps(last | {"sessions": [first, last]}))
    out = folder / "report.html"
    words = ["--images", folder / "imagesTs", "--references", folder / "labelsTs", "--out", out]
    assert main([str(word) for word in ["report", folder / "CPS", folder / "control", *words]]) == 0
    return out


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program, reason = browser_or_reason()
    if program is None:
        pytest.skip(reason)
    with running_browser(program, tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.mark.parametrize(
    ("width", "phone", "dark"), [(1280, False, False), (1280, False, True), (390, True, False)],
    ids=["desktop", "dark", "phone"],
)  # fmt: skip
def test_a_browser_shows_the_pair_without_complaint(
    pair: Path, browser: Browser, tmp_path: Path, width: int, phone: bool, dark: bool
) -> None:
    visit = browser.show(pair, width, phone=phone, dark=dark)
    assert visit.console == []
    assert visit.failed == []
    assert [address for address in visit.requests if not address.startswith("data:")] == [pair.resolve().as_uri()]
    assert browser.value("document.documentElement.scrollWidth") <= width, "only tables and pictures may be wider"
    assert browser.value("document.images.length") == 10
    sizes = browser.value(
        "Promise.all([...document.images].map(image => image.decode().then(() => image.naturalWidth)))"
    )
    assert min(sizes) > 500
    assert browser.value("[...document.querySelectorAll('svg text')].length") > 50
    broken = "[...document.querySelectorAll('nav a')].filter(link => !document.querySelector(link.hash)).length"
    assert browser.value(broken) == 0
    browser.screenshot(tmp_path / "page.png")
    with Image.open(tmp_path / "page.png") as page:
        assert page.height > 3000
        grey = np.asarray(page.convert("L"))
    assert np.unique(grey).size > 50
    assert (np.median(grey) < 60) == dark


def test_a_browser_that_is_given_a_bad_page_complains(browser: Browser, tmp_path: Path) -> None:
    """What the test above relies on: an error, a request and a load that fails are seen."""
    page = tmp_path / "bad.html"
    page.write_text("<img src='nowhere.png'><script>console.log('hello'); nowhere()</script>")
    visit = browser.show(page, 800)
    assert "hello" in visit.console
    assert any("Uncaught" in said for said in visit.console)
    assert any(address.endswith("nowhere.png") for address in visit.requests)
    assert any("ERR_FILE_NOT_FOUND" in why for why in visit.failed)


def test_validation_pictures_sessions_and_the_first_command(pair: Path) -> None:
    page = Page(pair)
    assert "While it learned" in page.text
    assert "sibling 1 sibling 2 both averaged one network" in page.text
    assert "liver 0.500 0.520" not in page.text, "sibling 2's liver is its own column"
    alts = [picture["alt"] for picture in page.pictures]
    assert len([alt for alt in alts if alt.startswith("Validation case v1 in run CPS after epoch 5")]) == 1
    assert alts.count("The same after epoch 1.") == 2
    assert "finished after 5 epochs, 1 h 55 min in 2 sessions" in page.text
    assert "stopped by a signal, as for a requeue" in page.text
    assert "4711" in page.text
    assert "flarecps fit --config tiny.yaml flarecps segment" in page.text, "not the resumed session's command"
    assert "script" not in page.tags


def test_seeds_share_a_column_a_colour_and_a_band(tmp_path: Path) -> None:
    runs = []
    for name, siblings, levels in (("cps", 2, (0.80, 0.84)), ("control", 1, (0.70, 0.72))):
        for seed, level in enumerate(levels):
            run = tmp_path / f"{name}_seed_{seed}"
            make_run(run, siblings, level)
            config = run / "config.yaml"
            config.write_text(f"seed_everything: {seed}\n{config.read_text()}")
            runs.append(str(run))
    assert main(["report", *runs, "--out", str(tmp_path / "report.html")]) == 0
    page = Page(tmp_path / "report.html")
    assert "<h1>cps · control</h1>" in page.source
    # liver: level + 0.02 per case; 0.83 and 0.87 → 0.850; by hand, means of seeds 0.777 and 0.817
    assert "liver 0.8500 ± 0.0258 0.7400 ± 0.0258 +0.1100" in page.text
    assert "cps, seed by seed: mean DSC 0.7767, 0.8167; standard deviation between them 0.0283." in page.text
    assert "cps (2 seeds)" in page.text
    assert "cps minus control, case by case, each the mean over its runs +0.1100 DSC" in page.text
    assert page.source.count('class="card"') == 5
    assert page.source.count("--mark: var(--run-0)") == page.source.count("--mark: var(--run-1)") == 2


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    """A plan, a record without an end, a table of which the first line is not yet whole, no checkpoint."""
    run = tmp_path / "going"
    make_run(run, 2, 0.0, scored=False)
    (run / "csv" / "metrics.csv").write_text("epoch,step,train/lo")
    begun = {"command": "flarecps fit", "started": "2026-01-01T10:00:00+00:00", "seen": "2026-01-01T10:00:00+00:00",
             "finished": None, "first_epoch": 1}  # fmt: skip
    (run / "environment.json").write_text(json.dumps(begun | {"sessions": [begun]}))
    assert main(["report", str(run)]) == 0
    page = Page(run / "report.html")
    assert "no epoch completed yet" in page.text
    assert "not scored yet" in page.text
    assert "Learning curves" not in page.text
