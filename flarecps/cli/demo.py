"""``flarecps demo``: the whole road on a synthetic abdomen, or on a few own scans, by the commands one types."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from flarecps.cli import PLAIN
from flarecps.cli.configs import config_path
from flarecps.durations import clock
from flarecps.errors import ConfigError, counted
from flarecps.experiments.stages import Stage

if TYPE_CHECKING:
    from flarecps.cli.console import Console
    from flarecps.evaluation.score_table import Scores

RECORDS = "stages"  # folder of what is done
CPS, CONTROL = "cps", "supervised"  # run folders
NAMES = {CONTROL: "supervised control", CPS: "CPS"}  # what tables call them
CPS_EPOCHS = 24  # of configs/demo_3d.yaml
Arms: TypeAlias = Mapping[str, tuple[str, Sequence[object]]]  # run folder → its config and more words for 'fit'


def equal_compute(epochs: int) -> int:
    """The epochs of a control that compute as much as so many of ``configs/demo_3d.yaml``, a third of them with λ > 0.

    Two siblings on two labelled patches cost two of the control's steps, and three with an unlabelled patch more.

    >>> equal_compute(24)
    56
    """
    before = lambda_start(epochs) + 1
    return 2 * before + 3 * (epochs - before)


def lambda_start(epochs: int) -> int:
    """The last epoch, counted from 0, in which λ is 0: the next is the first of the last third."""
    return 2 * epochs // 3 - 1


def length_words(epochs: int) -> list[object]:
    """The options of a training of so many epochs, whose learning rate falls to the end."""
    return ["--trainer.max_epochs", epochs, "--model.scheduler.init_args.total_iters", epochs]


SIZES: dict[str, tuple[str, list[str], Arms, str]] = {  # the phantom, words for 'plan', arms, how they compare
    "small": (
        "--labelled 16 --unlabelled 24 --test 8 --organs large",
        ["--spacing", "[8, 8, 8]"],
        {CPS: ("demo_3d", ()), CONTROL: ("demo_3d_supervised", length_words(equal_compute(CPS_EPOCHS)))},
        f"at equal compute ({CPS_EPOCHS} and {equal_compute(CPS_EPOCHS)} epochs)",
    ),
    "full": (
        "--labelled 20 --unlabelled 80 --test 10",
        [],
        {CPS: ("phantom_3d_full", ()), CONTROL: ("phantom_3d_full_supervised", ())},
        "after equally many steps",
    ),
}


def demo(
    *,
    out: Path = Path("demo"),
    size: Literal["small", "full"] = "small",
    seed: int = 0,
    real: Path | None = None,
    minutes: float = 15.0,
) -> None:
    """See 3D Cross-Pseudo Supervision work: phantom, inspect, plan, preprocess, fit, segment, score, report.

    Every stage is the command a user would type and is printed before it runs. CPS trains on labelled and unlabelled
    scans, its supervised control on labelled ones alone, until it has computed as much (full: taken as many steps); the
    report compares them on test scans that neither has seen. With --real the scans are yours.

    Args:
        out: folder for everything the demo makes: new, empty, or that of a demo that was interrupted and goes on.
        size: small, with 6 large organs, fits two CPU cores and a few minutes; full (13 organs, finer scans, larger
            networks) wants a GPU.
        seed: of the phantom.
        real: a data set folder of yours (see 'flarecps inspect'), at least 3 labelled scans; a few are taken, at a
            coarse spacing, and some labelled ones are held out unless there is a labelled test set.
        minutes: with --real, about how long the two trainings take together on this machine.
    """
    from flarecps.cli.console import Console

    console = Console()
    if out.exists() and any(out.iterdir()) and not (out / RECORDS).is_dir():
        raise ConfigError(f"{out}: this folder is not empty, and no demo's; remove it or choose another with --out")
    if (out / ("phantom" if real else "data")).exists():
        raise ConfigError(f"{out}: holds a demo on {'the phantom' if real else 'own scans'}; choose another --out")
    began = time.monotonic()
    if real is not None:
        from flarecps.cli.demo_real import real_demo

        data, arms, compared = real_demo(real, out, minutes, console)
    else:
        stages, data, (_, _, arms, compared) = _stages(out, size, seed), out / "phantom", SIZES[size]
        run_announced(stages, out, console)
    console.rule("[bold]result[/]", align="left")
    _show_scores(out, data, list(arms), compared, console, with_oracles=real is None)
    _write_figure(out, data, list(arms))
    console.print(
        f"done in {clock(time.monotonic() - began)}; the report with pictures is {out / 'report.html'}", **PLAIN
    )


def run_announced(stages: Sequence[Stage], out: Path, console: Console, before: int = 0, after: int = 0) -> None:
    """Run the stages, printing each with its number of all: ``before`` were printed already, ``after`` come later."""
    from flarecps.experiments.runner import run_stages
    from flarecps.experiments.stages import StageRecords

    places = {stage.name: number for number, stage in enumerate(stages, start=1)}
    began = time.monotonic()

    def announce(stage: Stage, text: str, begins: bool) -> None:
        if places[stage.name] <= before:
            return
        so_far = f"({clock(time.monotonic() - began)} so far)"
        console.rule(f"[bold]{places[stage.name]}/{len(stages) + after}  {stage.name}[/]  {so_far}", align="left")
        console.print(text if begins else "done before", style="dim", **PLAIN)

    run_stages(stages, StageRecords(stages, out / RECORDS), announce)


def _stages(out: Path, size: str, seed: int) -> list[Stage]:
    """The commands of the demo on the phantom, one after another; what an interrupted one left is used."""
    from flarecps.experiments.stages import command_stage, store_stages

    data, store = out / "phantom", out / "store"
    scans, planning, arms, _ = SIZES[size]
    phantom = ["phantom", data, *scans.split(), "--size", size, "--seed", seed]
    stages = [
        command_stage("phantom", phantom, data / "dataset.json", protected=True),
        Stage("inspect", ("inspect", str(data)), after=("phantom",)),
        *store_stages(data, out / "plan.json", store, planning, after=["inspect"]),
    ]
    return [*stages, *arm_stages(out, data, store, arms, stages[-1].name)]


def arm_stages(out: Path, data: Path, store: Path, arms: Arms, after: str) -> list[Stage]:
    """Each arm trained, then each on the test scans of ``data``, its scores, and the report of all."""
    from flarecps.experiments.stages import command_stage, fit_stage

    runs = {method: out / "runs" / method for method in arms}
    stages: list[Stage] = []

    def last() -> str:
        return stages[-1].name if stages else after

    for method, (config, more) in arms.items():
        run = runs[method]
        words = ["fit", "--config", config, "--data.store", store, "--trainer.default_root_dir", run, *more]
        stages.append(fit_stage(f"fit_{method}", words, config_path(config), run, last()))
    for method, run in runs.items():
        words = ["segment", run / "checkpoints" / "last.ckpt", data / "imagesTs", run / "segmentations"]
        stages.append(command_stage(f"segment_{method}", words, run / "segmentations", last()))
    for method, run in runs.items():
        words = ["score", run / "segmentations", data / "labelsTs", "--out", run / "scores"]
        stages.append(command_stage(f"score_{method}", words, run / "scores" / "scores.csv", last()))
    names = ",".join(NAMES[method] for method in runs)
    images = ["--images", data / "imagesTs", "--references", data / "labelsTs"]
    report = ["report", *runs.values(), "--names", names, *images, "--out", out / "report.html"]
    return [*stages, command_stage("report", report, out / "report.html", last())]


def _show_scores(
    out: Path, data: Path, arms: Sequence[str], compared: str, console: Console, with_oracles: bool
) -> None:
    """A table of DSC per organ: control, CPS, and on the phantom two oracles that do not learn; and what it says."""
    from rich.markup import escape
    from rich.table import Table

    from flarecps.anatomy import organs_of
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.evaluation.score_table import mean_of, read_scores
    from flarecps.reporting.tables import MEAN_ROW, empty_rule, score_text

    organs = organs_of(read_catalogue(data).labels)
    shown = [method for method in NAMES if method in arms]
    scores = {method: read_scores(out / "runs" / method / "scores" / "scores.csv") for method in shown}
    columns = {
        NAMES[method]: {organ.name: found.mean("dsc", organ.column) for organ in organs}
        for method, found in scores.items()
    }
    columns |= _oracles(data) if with_oracles else {}
    cases = counted(len(scores[CONTROL].cases), "test scan")
    table = Table("organ", title=f"DSC, mean over {cases}", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    for organ in organs:
        table.add_row(escape(organ.name), *(score_text(dsc[organ.name]) for dsc in columns.values()))
    table.add_section()
    means = (score_text(mean_of(list(dsc.values()))) for dsc in columns.values())
    table.add_row(f"[bold]{MEAN_ROW}[/]", *means)
    console.print(table)
    said = [f"{rule}." for rule in [empty_rule({NAMES[method]: found for method, found in scores.items()})] if rule]
    if CPS in scores:
        said.append(comparison_in_words(scores[CONTROL], scores[CPS], compared))
    if with_oracles:
        said.append(
            "best HU interval: per organ, the one interval that fits each test case best, chosen on that case itself; "
            "mean atlas: where the labelled cases have the organ on average. Neither learns."
        )
    console.print(*said, sep="\n", style="dim", **PLAIN)


def comparison_in_words(control: Scores, cps: Scores, compared: str) -> str:
    """What the difference of the two says, with its interval over the cases; ``compared``: on what terms."""
    from flarecps.evaluation.score_table import MethodScores, paired_change
    from flarecps.evaluation.statistics import bootstrap_interval, clearly_above
    from flarecps.reporting.tables import score_text

    found = paired_change(MethodScores("control", (control,)), MethodScores("CPS", (cps,)))
    changes = found.case_means()
    interval = bootstrap_interval(changes)
    spread = ""
    if interval is not None:
        low, high = (score_text(end, signed=True) for end in (interval.low, interval.high))
        spread = f" (95 % interval over scans {low} to {high})"
    if clearly_above(changes):
        verdict = "CPS is ahead"
    elif clearly_above(-changes):
        verdict = "the control is ahead"
    else:
        verdict = "neither is ahead by more than chance"
    mean = score_text(found.mean("dsc"), signed=True)
    return (
        f"CPS minus control {compared}: {mean}{spread}, n = {len(found.cases)}: {verdict}. One short training each "
        "shows how it all works; docs/methods.md says which method is better."
    )


def _write_figure(out: Path, data: Path, arms: Sequence[str]) -> None:
    """``OUT/figure.png``: an easy and a hard test case beside the reference and the arms (paper, Figure 5)."""
    from flarecps.anatomy import organs_of
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.reporting.case_figures import comparison_figure
    from flarecps.reporting.plotting import write_png
    from flarecps.reporting.report_cases import comparison_rows
    from flarecps.reporting.run_folder import read_runs, scans_by_name

    shown = [method for method in NAMES if method in arms]
    folders = [out / "runs" / method for method in shown]
    runs = read_runs(folders, [NAMES[method] for method in shown], Path("segmentations"), Path("scores"))
    images, references = (scans_by_name(data / folder) for folder in ("imagesTs", "labelsTs"))
    if rows := comparison_rows(runs, images, references):
        figure = comparison_figure(rows, organs_of(read_catalogue(data).labels))
        write_png(out / "figure.png", figure, dots_per_inch=160)


def _oracles(data: Path) -> dict[str, dict[str, float]]:
    """Mean DSC by organ name of the oracles, over the test cases."""
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.evaluation.oracles import atlas_oracle, interval_oracle
    from flarecps.evaluation.score_table import mean_of
    from flarecps.volumes.io import read_labels, read_volume

    catalogue = read_catalogue(data)
    ids = {name: label for name, label in catalogue.labels.items() if label}
    training = [read_labels(case.labels).array[0] for case in catalogue.labelled if case.labels is not None]
    intervals, atlases = [], []
    for case in catalogue.test:
        if case.labels is not None:
            reference = read_labels(case.labels).array[0]
            intervals.append(interval_oracle(read_volume(case.images[0]).array[0], reference, ids.values()))
            atlases.append(atlas_oracle(training, reference, ids.values()))
    found = {"best HU interval": intervals, "mean atlas": atlases}
    return {
        title: {name: mean_of([case[label] for case in cases]) for name, label in ids.items()}
        for title, cases in found.items()
    }
