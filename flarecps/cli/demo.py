"""``flarecps demo``: the whole road on a synthetic abdomen, by the very commands a user types."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flarecps.cli.configs import config_path
from flarecps.durations import clock
from flarecps.errors import ConfigError
from flarecps.experiments.stages import Stage

if TYPE_CHECKING:
    from flarecps.cli.console import Console

LARGE_ORGANS = ("liver", "spleen", "right kidney", "left kidney", "stomach")
RECORDS = "stages"  # folder of what is done
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
        out: folder for everything the demo makes: new, empty, or that of a demo that was interrupted and goes on.
        size: small fits two CPU cores and about ten minutes; full (finer scans, larger networks) wants a GPU.
        seed: of the phantom.
    """
    from flarecps.cli.console import Console
    from flarecps.experiments.runner import run_stages
    from flarecps.experiments.stages import StageRecords

    console = Console()
    records = out / RECORDS
    if out.exists() and any(out.iterdir()) and not records.is_dir():
        raise ConfigError(f"{out}: this folder is not empty, and no demo's; remove it or choose another with --out")
    began = time.monotonic()
    stages = _stages(out, size, seed)
    places = {stage.name: number for number, stage in enumerate(stages, start=1)}

    def announce(stage: Stage, text: str, begins: bool) -> None:
        so_far = f"({clock(time.monotonic() - began)} so far)"
        console.rule(f"[bold]{places[stage.name]}/{len(stages)}  {stage.name}[/]  {so_far}", align="left")
        console.print(text if begins else "done before", style="dim", soft_wrap=True, highlight=False)

    try:
        run_stages(stages, StageRecords(stages, records), announce)
    except KeyboardInterrupt:
        print("flarecps demo: the same command again goes on from here", file=sys.stderr)
        raise
    console.rule("[bold]result[/]", align="left")
    _show_scores(out, console)
    _write_figure(out)
    console.print(
        f"done in {clock(time.monotonic() - began)}; the report with pictures is [bold]{out / 'report.html'}[/]"
    )


def _stages(out: Path, size: str, seed: int) -> list[Stage]:
    """The commands of the demo, one after another; what an interrupted one left is used."""
    from flarecps.experiments.stages import command_stage, fit_stage, store_stages

    data, plan, store = out / "phantom", out / "plan.json", out / "store"
    scans, config, planning = SIZES[size]
    configs = {"cps": config, "supervised": f"{config}_supervised"}
    runs = {method: out / "runs" / method for method in configs}
    phantom = ["phantom", data, *scans.split(), "--size", size, "--seed", seed]
    stages = [
        command_stage("phantom", phantom, data / "dataset.json", protected=True),
        Stage("inspect", ("inspect", str(data)), after=("phantom",)),
        *store_stages(data, plan, store, planning, after=["inspect"]),
    ]
    for method, run in runs.items():
        words = ["fit", "--config", configs[method], "--data.store", store, "--trainer.default_root_dir", run]
        trained = fit_stage(f"fit_{method}", words, config_path(configs[method]), run, stages[-1].name)
        stages.append(replace(trained, resume=(run / "checkpoints", ("--ckpt_path", "auto"))))
    for method, run in runs.items():
        words = ["segment", run / "checkpoints" / "last.ckpt", data / "imagesTs", run / "segmentations"]
        stages.append(command_stage(f"segment_{method}", words, run / "segmentations", stages[-1].name))
    for method, run in runs.items():
        words = ["score", run / "segmentations", data / "labelsTs", "--out", run / "scores"]
        stages.append(command_stage(f"score_{method}", words, run / "scores" / "scores.csv", stages[-1].name))
    names = ",".join(METHODS[method] for method in runs)
    images = ["--images", data / "imagesTs", "--references", data / "labelsTs"]
    report = ["report", *runs.values(), "--names", names, *images, "--out", out / "report.html"]
    return [*stages, command_stage("report", report, out / "report.html", stages[-1].name)]


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
