"""``flarecps compare``: methods side by side, with paired statistics and FLARE's ranking."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flarecps.cli import PLAIN
from flarecps.errors import ConfigError, did_you_mean
from flarecps.named_paths import comma_list

if TYPE_CHECKING:
    from rich.text import Text

    from flarecps.cli.console import Console
    from flarecps.evaluation.comparison import Comparison
    from flarecps.evaluation.ranking import MethodRank
    from flarecps.evaluation.score_table import MethodScores


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
    from flarecps.cli.console import Console
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
    _show(found, standings, console)
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
        known = f"the methods are {', '.join(called)}{did_you_mean(unknown[0], called)}"
        raise ConfigError(f"--efficiency {unknown[0]}=…: no method has this name; {known}")
    return list(files.values())


def _write(out: Path, found: Comparison, said: list[str], standings: list[MethodRank], ranked: tuple[str, ...]) -> None:
    from flarecps.atomic import write_json, write_text
    from flarecps.reporting import comparison

    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "comparison.md", comparison.comparison_markdown(found, said, standings, len(ranked)))
    write_text(out / "comparison.tex", comparison.comparison_latex(found, standings))
    write_text(out / "comparison.csv", comparison.means_csv(found))
    write_text(out / "differences.csv", comparison.differences_csv(found))
    write_json(out / "comparison.json", comparison.comparison_json(found, said, standings, ranked))
    if standings:
        write_text(out / "ranking.csv", comparison.ranking_csv(standings))


def _show(found: Comparison, standings: list[MethodRank], console: Console) -> None:
    """Print the means of each measure, the differences from the baseline, and the ranking if there is one."""
    from rich.table import Table
    from rich.text import Text

    from flarecps.reporting import comparison
    from flarecps.reporting.tables import TITLES

    for measure in found.measures:
        table = comparison.means_of(found, measure)
        rows = [
            [Text(title), *(Text.assemble((one.number, "bold" if one.best else ""), " ", one.rest) for one in cells)]
            for title, cells in table.rows
        ]
        title = f"{TITLES[measure]}: {comparison.caption(found)}"
        _show_organs(title, ["organ", *table.methods], rows, console)
    for method in found.methods[1:]:
        for measure in found.measures:
            title = f"{TITLES[measure]}: {method.name} minus {found.baseline.name}"
            heading, *body = comparison.differences(found, measure, method.name)
            _show_organs(title, heading, [list(map(Text, row)) for row in body], console)
    if len(found.methods) > 1:
        console.print(f"{comparison.method_sentence(found)} {comparison.NARROW_SENTENCE}", **PLAIN)
    if standings:
        first, *others = comparison.RANKING_HEADING
        shown = Table(first, title="FLARE's ranking", title_justify="left")
        for column in others:
            shown.add_column(column, justify="right")
        for row in comparison.ranking_rows(standings):
            shown.add_row(*map(Text, row))
        console.print(shown)
        console.print(comparison.RANKING_SENTENCE, **PLAIN)


def _show_organs(title: str, heading: Sequence[str], rows: list[list[Text]], console: Console) -> None:
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
