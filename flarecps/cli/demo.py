"""``flarecps demo``: the whole road on a synthetic abdomen, by the very commands a user types."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flarecps.cli.configs import config_path
from flarecps.durations import clock
from flarecps.errors import ConfigError, FlarecpsError

if TYPE_CHECKING:
    from flarecps.cli.console import Console

LARGE_ORGANS = ("liver", "spleen", "right kidney", "left kidney", "stomach")
METHODS = {"supervised": "supervised control", "cps": "CPS"}  # run folder -> what tables call it


SIZES = {  # scans of the phantom, the config (CPS; its control has another ending), more words for 'flarecps plan'
    "small": ("--labelled 12 --unlabelled 24 --test 6", "phantom_3d", ["--spacing", "[10, 10, 10]"]),
    "full": ("--labelled 20 --unlabelled 80 --test 10", "phantom_3d_full", []),
}


def demo(*, out: Path = Path("demo"), size: Literal["small", "full"] = "small", seed: int = 0) -> None:
    """See 3D Cross-Pseudo Supervision work: phantom, inspect, plan, preprocess, fit, segment, score, report.

    Every stage is the command a user would type and is printed before it runs. CPS and its supervised control train
    for equally many steps; the report compares them on test scans that neither has seen.

    Args:
        out: folder for everything the demo makes; it must not exist yet, or be empty.
        size: small fits two CPU cores and about ten minutes; full (finer scans, larger networks) wants a GPU.
        seed: of the phantom.
    """
    from flarecps.cli.console import Console

    console = Console()
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out}: this folder is not empty; remove it or choose another with --out")
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    stages = _stages(out, size, seed)
    for number, words in enumerate(stages, start=1):
        console.rule(
            f"[bold]{number}/{len(stages)}  {words[0]}[/]  ({clock(time.monotonic() - began)} so far)", align="left"
        )
        console.print(f"flarecps {shlex.join(words)}", style="dim", soft_wrap=True, highlight=False)
        done = subprocess.run([sys.executable, "-m", "flarecps", *words], check=False)
        if done.returncode:
            raise FlarecpsError(f"stage '{words[0]}' ended with exit code {done.returncode}; its message stands above")
    console.rule("[bold]result[/]", align="left")
    _show_scores(out, console)
    _write_figure(out)
    console.print(
        f"done in {clock(time.monotonic() - began)}; the report with pictures is [bold]{out / 'report.html'}[/]"
    )


def _stages(out: Path, size: str, seed: int) -> list[list[str]]:
    """The commands of the demo, without the leading ``flarecps``."""
    data, plan, store = str(out / "phantom"), str(out / "plan.json"), str(out / "store")
    scans, config, planning = SIZES[size]
    configs = {"cps": config_path(config), "supervised": config_path(f"{config}_supervised")}
    runs = {method: str(out / "runs" / method) for method in configs}
    stages = [
        ["phantom", data, *scans.split(), "--size", size, "--seed", str(seed)],
        ["inspect", data],
        ["plan", data, *planning, "--out", plan],
        ["preprocess", data, plan, "--out", store],
    ]
    for method, run in runs.items():
        where = ["--data.store", store, "--trainer.default_root_dir", run]
        stages.append(["fit", "--config", str(configs[method]), *where])
    for run in runs.values():
        stages.append(["segment", f"{run}/checkpoints/last.ckpt", f"{data}/imagesTs", f"{run}/segmentations"])
    for run in runs.values():
        stages.append(["score", f"{run}/segmentations", f"{data}/labelsTs", "--out", f"{run}/scores"])
    names = ",".join(METHODS[method] for method in runs)
    images = ["--images", f"{data}/imagesTs", "--references", f"{data}/labelsTs"]
    stages.append(["report", *runs.values(), "--names", names, *images, "--out", str(out / "report.html")])
    return stages


def _show_scores(out: Path, console: Console) -> None:
    """A table of DSC per organ: CPS, control, and two oracles that do not learn."""
    from rich.table import Table

    from flarecps.anatomy import FLARE22_ORGANS
    from flarecps.evaluation.score_table import read_scores
    from flarecps.reporting.tables import score_text

    columns = {}
    for method, name in METHODS.items():
        scores = read_scores(out / "runs" / method / "scores" / "scores.csv")
        columns[name] = {organ.name: scores.mean("dsc", organ.column) for organ in FLARE22_ORGANS}
    columns |= _oracles(out / "phantom")
    table = Table("organ", title="DSC on the test scans, mean over cases", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    organs = list(columns["CPS"])
    for organ in organs:
        table.add_row(organ, *(score_text(dsc[organ]) for dsc in columns.values()))
    table.add_section()
    for title, members in (("mean", organs), ("mean of liver, spleen, kidneys, stomach", LARGE_ORGANS)):
        means = (sum(dsc[organ] for organ in members) / len(members) for dsc in columns.values())
        table.add_row(f"[bold]{title}[/]", *map(score_text, means))
    console.print(table)
    console.print(
        "best HU interval: per organ, the one interval that fits each test case best, chosen on that case itself; "
        "mean atlas: where the labelled cases have the organ on average. Neither learns.",
        style="dim",
    )


def _write_figure(out: Path) -> None:
    """``OUT/figure.png``: an easy and a hard test case beside the reference, the control and CPS (paper, Figure 5)."""
    from flarecps.anatomy import FLARE22_ORGANS
    from flarecps.reporting.case_figures import comparison_figure
    from flarecps.reporting.plotting import write_png
    from flarecps.reporting.report_cases import comparison_rows
    from flarecps.reporting.run_folder import read_runs, scans_by_name

    runs = read_runs(
        [out / "runs" / method for method in METHODS], list(METHODS.values()), Path("segmentations"), Path("scores")
    )
    images, references = (scans_by_name(out / "phantom" / folder) for folder in ("imagesTs", "labelsTs"))
    figure = comparison_figure(comparison_rows(runs, images, references), FLARE22_ORGANS)
    write_png(out / "figure.png", figure, dots_per_inch=160)


def _oracles(data: Path) -> dict[str, dict[str, float]]:
    """Mean DSC by organ name of the oracles, over the test cases."""
    from flarecps.anatomy import FLARE22_ORGANS
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.evaluation.oracles import atlas_oracle, interval_oracle
    from flarecps.evaluation.score_table import mean_of
    from flarecps.volumes.io import read_labels, read_volume

    catalogue = read_catalogue(data)
    ids = [organ.id for organ in FLARE22_ORGANS]
    training = [read_labels(case.labels).array[0] for case in catalogue.labelled if case.labels is not None]
    intervals, atlases = [], []
    for case in catalogue.test:
        if case.labels is not None:
            reference = read_labels(case.labels).array[0]
            intervals.append(interval_oracle(read_volume(case.images[0]).array[0], reference, ids))
            atlases.append(atlas_oracle(training, reference, ids))
    found = {"best HU interval": intervals, "mean atlas": atlases}
    return {
        title: {organ.name: mean_of([case[organ.id] for case in cases]) for organ in FLARE22_ORGANS}
        for title, cases in found.items()
    }
