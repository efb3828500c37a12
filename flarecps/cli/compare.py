"""``flarecps compare``: methods side by side, with paired statistics and FLARE's ranking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flarecps.errors import ConfigError
from flarecps.named_paths import comma_list

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from flarecps.evaluation.comparison import Comparison
    from flarecps.evaluation.ranking import MethodRank
    from flarecps.evaluation.score_table import MethodScores

PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


def compare(
    scores: list[str],
    *,
    out: Path | None = None,
    names: str | None = None,
    efficiency: list[str] | None = None,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> None:
    """Compare methods by the scores of their cases: the first one named is the baseline.

    Shows organs as rows and methods as columns, mean ± SD, and each method's difference from the baseline, paired by
    case: bootstrap confidence interval, Wilcoxon signed-rank test with Holm's correction over organs, in how many cases
    it is better or worse. OUT gets comparison.md, comparison.tex (booktabs), comparison.csv, differences.csv,
    comparison.json and, with --efficiency, ranking.csv.

    Cases and organs that a method lacks are named; differences are over what both have.

    Args:
        scores: one argument per method; FILE, NAME=FILE, or NAME=FILE,FILE for several seeds of one method
            (NAME=runs/cps_* works too). A FILE is a scores.csv of 'flarecps score', its folder, or FLARE's own table.
        out: folder for the tables; without it they are only shown.
        names: names of the methods, separated by commas, in order.
        efficiency: tables of 'flarecps efficiency' or FLARE's own, one argument per method, in order or as NAME=FILE;
            several FILEs are averaged. They add FLARE's ranking.
        resamples: bootstrap resamples.
        confidence: confidence level of the interval, 0.95 for 95 %.
        seed: random seed of the bootstrap; the same seed gives the same interval.
    """
    from rich.console import Console

    from flarecps.evaluation.comparison import compare_methods, remarks
    from flarecps.evaluation.ranking import rank_methods
    from flarecps.reporting.comparison_files import (
        EFFICIENCY,
        SCORES,
        named_files,
        ranking_values,
        read_efficiency,
        read_method,
    )

    if not 0 < confidence < 1 or resamples < 100:
        raise ConfigError(
            f"--confidence {confidence:g} --resamples {resamples}: expected a share between 0 and 1, and 100 or more"
        )
    called = comma_list(names)
    methods = [read_method(name, files) for name, files in named_files(scores, SCORES, called).items()]
    found = compare_methods(methods, resamples, confidence, seed)
    said = remarks(found)
    standings: list[MethodRank] = []
    ranked: tuple[str, ...] = ()
    if efficiency is not None:
        files = _in_order(named_files(efficiency, EFFICIENCY), efficiency, methods)
        values, ranked, more = ranking_values(methods, [read_efficiency(paths) for paths in files])
        standings = rank_methods([method.name for method in methods], values)
        said += more
    console = Console()
    _show_means(found, console)
    _show_differences(found, console)
    _show_ranking(standings, console)
    for remark in said:
        console.print(f"- {remark}", **PLAIN)
    if out is not None:
        _write(out, found, said, standings, ranked)
        console.print(f"written: {out}/comparison.md, .tex, .csv, .json, differences.csv"
                      + (", ranking.csv" if standings else ""), **PLAIN)  # fmt: skip


def _in_order(files: dict[str, list[Path]], words: list[str], methods: list[MethodScores]) -> list[list[Path]]:
    """The efficiency files of each method: by name where names are given, else in order."""
    if len(words) != len(methods):
        raise ConfigError(
            f"--efficiency names {len(words)} tables for {len(methods)} methods; expected one argument per method "
            "(NAME=FILE,FILE for several tables of one)"
        )
    called = [method.name for method in methods]
    if set(files) == set(called):
        return [files[name] for name in called]
    unknown = [name for name in files if name not in called and any(word.startswith(f"{name}=") for word in words)]
    if unknown:
        raise ConfigError(f"--efficiency {unknown[0]}=…: no method has this name; the methods are {', '.join(called)}")
    return list(files.values())


def _write(out: Path, found: Comparison, said: list[str], standings: list[MethodRank], ranked: tuple[str, ...]) -> None:
    from flarecps.atomic import write_json, write_text
    from flarecps.reporting.comparison import (
        comparison_json,
        comparison_markdown,
        differences_csv,
        means_csv,
        ranking_csv,
        ranking_markdown,
    )
    from flarecps.reporting.comparison_latex import comparison_latex

    out.mkdir(parents=True, exist_ok=True)
    ranking = ranking_markdown(standings, len(ranked)) if standings else ""
    write_text(out / "comparison.md", comparison_markdown(found, said, ranking))
    write_text(out / "comparison.tex", comparison_latex(found, standings))
    write_text(out / "comparison.csv", means_csv(found))
    write_text(out / "differences.csv", differences_csv(found))
    write_json(out / "comparison.json", comparison_json(found, said, standings, ranked))
    if standings:
        write_text(out / "ranking.csv", ranking_csv(standings))


def _show_means(found: Comparison, console: Console) -> None:
    from rich.text import Text

    from flarecps.reporting.comparison import caption, means_of
    from flarecps.reporting.tables import TITLES

    for measure in found.measures:
        table = means_of(found, measure)
        rows = [
            [Text(title), *(Text.assemble((one.number, "bold" if one.best else ""), " ", one.rest) for one in cells)]
            for title, cells in table.rows
        ]
        _show_rows(f"{TITLES[measure]}: {caption(found)}", ["organ", *table.methods], rows, console)


def _show_differences(found: Comparison, console: Console) -> None:
    from rich.text import Text

    from flarecps.reporting.comparison import (
        NARROW_HEADING,
        NARROW_SENTENCE,
        differences,
        interval_title,
        method_sentence,
    )
    from flarecps.reporting.tables import TITLES

    heading = ["organ", *NARROW_HEADING]
    heading[2] = interval_title(found)
    for method in found.methods[1:]:
        for measure in found.measures:
            title = f"{TITLES[measure]}: {method.name} minus {found.baseline.name}"
            rows = [list(map(Text, row)) for row in differences(found, measure, method.name)]
            _show_rows(title, heading, rows, console)
    if len(found.methods) > 1:
        console.print(f"{method_sentence(found)} {NARROW_SENTENCE}", **PLAIN)


def _show_rows(title: str, heading: list[str], rows: list[list[Text]], console: Console) -> None:
    """A table of organs whose last row, the mean, stands apart."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(heading):
        shown.add_column(Text(column), justify="right" if place else "left", no_wrap=True)
    for row in rows[:-1]:
        shown.add_row(*row)
    shown.add_section()
    shown.add_row(*rows[-1])
    console.print(shown)


def _show_ranking(standings: list[MethodRank], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from flarecps.reporting.comparison import RANKING_HEADING, RANKING_SENTENCE, ranking_rows

    if not standings:
        return
    shown = Table(RANKING_HEADING[0], title="FLARE's ranking", title_justify="left")
    for column in RANKING_HEADING[1:]:
        shown.add_column(column, justify="right")
    for row in ranking_rows(standings):
        shown.add_row(*map(Text, row))
    console.print(shown)
    console.print(RANKING_SENTENCE, **PLAIN)
