"""``flarecps score``: predictions against references, per organ and case."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flarecps.cli import PLAIN, next_command
from flarecps.errors import counted, first_few

if TYPE_CHECKING:
    from flarecps.cli.console import Console
    from flarecps.evaluation.score_table import ScoredCases

MOST_WORKERS = 8
KEPT = "cases"  # folder of OUT for the scores of single cases
DISTANCE_TITLES = {
    "hd95_mm": "HD95, mm",
    "assd_mm": "ASSD, mm",
    "volume_error_ml": "volume, ml",
    "volume_error_relative": "volume, %",
}
DISTANCES = "Distances, and volume of prediction minus reference"
FAILED = 1  # exit code: some cases could not be scored


def score(
    predictions: Path,
    references: Path,
    *,
    out: Path,
    protocol: Literal["official", "strict"] = "official",
    labels: Path | None = None,
    tolerance_mm: str | None = None,
    workers: int = 0,
    shard: str | None = None,
) -> int:
    """Score label maps against references: DSC and NSD per organ and case, mean ± SD over cases.

    Files belong together by name. OUT gets scores.csv (FLARE22's columns), scores.json (everything) and scores.md. The
    exit code is 1 when a case could not be scored; the others are scored all the same. Every case's scores are kept in
    OUT/cases as they are done: an interrupted command, started again, continues, and only label maps that changed are
    scored anew.

    The label set is that of --labels, else of a dataset.json in or above the references' folder or in the predictions'
    folder, else FLARE22's 13 organs.

    Args:
        predictions: folder of predicted label maps (NIfTI, NRRD, MHA), or one file.
        references: folder of reference label maps with the same names, or one file.
        out: folder for the scores; made if needed.
        protocol: official is FLARE22's evaluation with all its rules (empty in both = 1, aorta, IVC and esophagus
            cropped along the slices, NSD 0 below DSC 0.2, 4 decimals, missing predictions left out); strict counts
            missing predictions as 0, crops nothing, requires equal grids, leaves empty-in-both out of means, and adds
            HD95 and ASSD in mm.
        labels: dataset.json (or its folder) that names the structures.
        tolerance_mm: tolerance of NSD; a number for all (3), by organ (liver=5,RK=3), both (2,liver=5), or a JSON file
            with an object of organs. Organs left out keep FLARE22's (2 to 7 mm by organ), 2 mm for other structures.
        workers: processes that score cases in parallel; 0 takes one per core, at most 8.
        shard: I/N scores the I-th of N shares of the cases into OUT/cases, for job arrays; after all shares, the
            command without --shard writes the tables.
    """
    from flarecps.anatomy import organs_of
    from flarecps.cli.console import Console
    from flarecps.evaluation.label_sets import label_set, read_tolerances
    from flarecps.evaluation.scores import score_folders
    from flarecps.named_paths import check_output_folder
    from flarecps.processes import usable_cores

    check_output_folder(out)
    console, problems = Console(), Console(stderr=True)
    structures, origin = label_set(labels, predictions, references)
    tolerances_mm = read_tolerances(tolerance_mm, organs_of(structures)) if tolerance_mm is not None else {}
    scored = score_folders(
        predictions,
        references,
        structures,
        protocol,
        workers or min(usable_cores(), MOST_WORKERS),
        tolerances_mm=tolerances_mm,
        keep=out / KEPT,
        share=shard,
    )
    if shard is not None:
        said = f"share {shard}: {counted(len(scored.cases), 'case')} scored, kept in {out / KEPT}"
        console.print(f"{said}; after all shares the command without --shard writes the tables", **PLAIN)
    elif scored.cases:
        _write_and_show(scored, out, [f"labels: {origin}", *_notes(scored)], console)
    for name, error in scored.failed.items():
        problems.print(f"not scored: {name}: {error}", style="red", **PLAIN)
    if scored.cases and not scored.failed and shard is None:
        run = predictions.parent
        one = ("report", run) if (run / "config.yaml").is_file() else ("compare", out, "OTHER_SCORES")
        console.print(next_command(*one), **PLAIN)
    if scored.failed:
        left_out = f"{len(scored.failed)} of {len(scored.failed) + len(scored.cases)} cases could not be scored"
        means = "; the means leave them out" if scored.cases else "; no tables were written"
        problems.print(left_out + means, **PLAIN)
    return FAILED if scored.failed else 0


def _write_and_show(scored: ScoredCases, out: Path, notes: list[str], console: Console) -> None:
    from flarecps.atomic import write_text
    from flarecps.evaluation.score_table import write_scores
    from flarecps.reporting.tables import SCORES_HEADER, markdown_table, score_rows, scores_markdown

    write_scores(scored, out)
    page = scores_markdown(scored.scores, f"Scores ({scored.protocol} protocol)", notes[1:])
    title = f"{counted(len(scored.cases), 'case')}, {scored.protocol} protocol: mean ± SD over cases"
    _show_rows(title, SCORES_HEADER, score_rows(scored.scores), console)
    if scored.protocol == "strict":
        heading = ["organ", *DISTANCE_TITLES.values(), "cases"]
        page += (
            f"\n## {DISTANCES}\n\nMean ± SD over cases; distances where prediction and reference both hold the organ "
        )
        page += f"(counted in the last column).\n\n{markdown_table(heading, _distance_rows(scored))}"
        _show_rows(f"{DISTANCES}: mean", heading, _distance_rows(scored, with_sd=False), console)
    write_text(out / "scores.md", page)
    console.print(*notes, f"written: {out}/scores.csv, scores.json, scores.md", sep="\n", **PLAIN)


def _notes(scored: ScoredCases) -> list[str]:
    """What a reader of the means must know."""
    from flarecps.anatomy import organs_of
    from flarecps.reporting.tables import empty_rule

    notes = []
    preset = {organ.name: organ.tolerance_mm for organ in organs_of({organ.name: organ.id for organ in scored.organs})}
    changed = [f"{o.name} {o.tolerance_mm:g} mm" for o in scored.organs if o.tolerance_mm != preset[o.name]]
    if changed:
        notes.append(f"NSD with tolerances other than FLARE22's: {', '.join(changed)}")
    if scored.missing:
        fate = "left out, as FLARE22's script does" if scored.protocol == "official" else "scored 0"
        absent = counted(len(scored.missing), "reference")
        notes.append(f"{absent} without a prediction, {fate}: {first_few(scored.missing)}")
    warned = [name for name, case in scored.cases.items() if case.warnings]
    if warned:
        first = scored.cases[warned[0]].warnings[0]
        notes.append(f"{counted(len(warned), 'case')} with a warning: {first_few(warned)}; the first: {first}")
    empty = sum(map(scored.empty_in_both, scored.organs))
    if rule := empty_rule({"": scored.scores}):
        notes.append(rule)
    elif empty:
        notes.append(f"{counted(empty, 'organ')} empty in prediction and reference, left out of the means")
    single = [name for name, case in scored.cases.items() if any("uncropped" in s.remark for s in case.organs.values())]
    if single:
        notes.append(f"a one-slice tube (FLARE22's script fails there) was scored uncropped in: {first_few(single)}")
    if scored.failed:
        failed = counted(len(scored.failed), "case")
        notes.append(f"{failed} could not be scored, left out: {first_few(tuple(scored.failed))}")
    return notes


def _distance_rows(scored: ScoredCases, with_sd: bool = True) -> list[list[str]]:
    """HD95 and ASSD (mm), volume error (ml and %) per organ, and of how many cases the distances are."""
    from flarecps.reporting.tables import NO_NUMBER

    rows = []
    for organ in scored.organs:
        cells = []
        for measure in DISTANCE_TITLES:
            of = scored.scores.summary(measure, organ.column)
            scale = 100.0 if measure == "volume_error_relative" else 1.0
            mean = NO_NUMBER if of.mean is None else f"{scale * of.mean:.2f}"
            cells.append(mean if of.sd is None or not with_sd else f"{mean} ± {scale * of.sd:.2f}")
        rows.append([organ.name, *cells, str(scored.scores.organ(organ.column, "hd95_mm").size)])
    return rows


def _show_rows(title: str, heading: list[str], rows: list[list[str]], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from flarecps.reporting.tables import MEAN_ROW

    shown = Table(heading[0], title=Text(title), title_justify="left")
    for column in heading[1:]:
        shown.add_column(Text(column), justify="right", no_wrap=True)
    for row in rows:
        if row[0] == MEAN_ROW:
            shown.add_section()
        shown.add_row(*map(Text, row))
    console.print(shown)
