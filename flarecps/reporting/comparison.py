"""A comparison as people read it, and as CSV and JSON for programs.

`means` and `differences` give tables of words, the paper's Tables 3 to 6 (organs down, methods across, mean last), that
Markdown, LaTeX and the terminal only dress.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flarecps import __version__
from flarecps.evaluation.comparison import OVERALL, Comparison, Difference
from flarecps.evaluation.ranking import FLARE_MEASURES, MethodRank
from flarecps.evaluation.score_table import CSV_DECIMALS, Summary
from flarecps.reporting.tables import DECIMALS, NO_NUMBER, TITLES, best_as_shown, markdown_table, score_text

FORMAT, FORMAT_VERSION = "flarecps-comparison", 1
SMALLEST_P = 0.0001
MOST_METHODS_BESIDE = 2  # more, or seeds, get a table per measure, so that a page holds it
DIFFERENCE_HEADING = ("difference", "interval", "p", "p (Holm)", "better/equal/worse", "cases")
NARROW_HEADING = ("change", "interval", "p", "p Holm", "+/=/-", "n")  # for 80 columns, and for a printed page
NARROW_SENTENCE = "+/=/-: cases better, equal, worse."


@dataclass(frozen=True)
class FormattedCell:
    """One cell in words: ``rest`` follows the number ("± 0.0512 (0.0031)"); ``best``: no other method shows more."""

    number: str
    rest: str = ""
    best: bool = False

    @property
    def text(self) -> str:
        """Number and rest."""
        return f"{self.number} {self.rest}".rstrip()


@dataclass(frozen=True)
class MeansTable:
    """One table: its measures, each with a column per method; rows of organ and cells, the mean last."""

    measures: tuple[str, ...]
    methods: tuple[str, ...]
    rows: tuple[tuple[str, tuple[FormattedCell, ...]], ...]


def means(comparison: Comparison) -> list[MeansTable]:
    """The tables of means: all measures in one like the paper's Table 4, or one each where it would be too wide."""
    methods = tuple(method.name for method in comparison.methods)
    if len(methods) > MOST_METHODS_BESIDE or any(len(method.seeds) > 1 for method in comparison.methods):
        return [means_of(comparison, measure) for measure in comparison.measures]
    return [_means(comparison, comparison.measures, methods)]


def means_of(comparison: Comparison, measure: str) -> MeansTable:
    """The table of one measure, like the paper's Table 3."""
    return _means(comparison, (measure,), tuple(method.name for method in comparison.methods))


def differences(comparison: Comparison, measure: str, method: str) -> list[tuple[str, ...]]:
    """Rows of words under ``organ`` and `DIFFERENCE_HEADING`: one method minus the baseline in one measure."""
    found = comparison.differences[measure][method]
    return [(row_title(organ), *_difference_cells(found[organ])) for organ in (*comparison.organs, OVERALL)]


def row_title(organ: str) -> str:
    """An organ as the paper's tables call it: the name of FLARE's column (``RK``, ``Liver``)."""
    return organ.replace("_", " ")


def interval_title(comparison: Comparison) -> str:
    """``95 % interval``."""
    return f"{100 * comparison.confidence:g} % interval"


def caption(comparison: Comparison) -> str:
    """What the numbers of the tables of means are."""
    seeds = any(len(method.seeds) > 1 for method in comparison.methods)
    counts = sorted({len(method.cases) for method in comparison.methods})
    cases = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    words = f"Mean ± SD over {cases} case{'' if counts == [1] else 's'}"
    return words + (", in brackets SD over seeds." if seeds else ".")


def method_sentence(comparison: Comparison) -> str:
    """How differences, intervals and p were found."""
    return (
        f"Method minus {comparison.baseline.name}, paired by case; {interval_title(comparison)} by bootstrap over "
        f"cases (BCa, {comparison.resamples} resamples, seed {comparison.seed}); p: Wilcoxon's signed ranks, "
        "two-sided; p (Holm): corrected over the organs; the mean's p is one test of its own."
    )


def comparison_markdown(comparison: Comparison, remarks: Sequence[str], ranking: str = "") -> str:
    """The whole page: means, differences by method and measure, the ranking if there is one, remarks."""
    parts = ["# Comparison\n", caption(comparison) + "\n"]
    for table in means(comparison):
        heading = ["organ", *(f"{TITLES[m]} {name}" for m in table.measures for name in table.methods)]
        body = [[title, *(_markdown_cell(cell) for cell in cells)] for title, cells in table.rows]
        parts.append(markdown_table(heading, body))
    if len(comparison.methods) > 1:
        parts += ["## Differences\n", method_sentence(comparison) + "\n"]
    heading = ["organ", *DIFFERENCE_HEADING]
    heading[2] = interval_title(comparison)
    for method in comparison.methods[1:]:
        for measure in comparison.measures:
            parts.append(f"### {method.name} minus {comparison.baseline.name}: {TITLES[measure]}\n")
            parts.append(markdown_table(heading, differences(comparison, measure, method.name)))
    if ranking:
        parts += ["## FLARE's ranking\n", ranking]
    if remarks:
        parts += ["## To be known\n", "".join(f"- {remark}\n" for remark in remarks)]
    return "\n".join(parts)


def ranking_rows(standings: Sequence[MethodRank]) -> list[list[str]]:
    """Rows of words under `RANKING_HEADING`, best first."""
    return [
        [one.method, str(one.place), f"{one.score:.3f}", *(f"{one.ranks[m.name]:.3f}" for m in FLARE_MEASURES)]
        for one in standings
    ]


RANKING_HEADING = ["method", "place", "score", *(f"{m.name} (×{m.weight:g})" for m in FLARE_MEASURES)]
RANKING_SENTENCE = (
    "Score: mean rank per case over five measures, GPU and CPU at half weight; 1 is best; equal values share their "
    "mean rank."
)


def ranking_markdown(standings: Sequence[MethodRank], cases: int) -> str:
    """The ranking as a table, with what the score is."""
    table = markdown_table(RANKING_HEADING, ranking_rows(standings))
    return f"{RANKING_SENTENCE} {cases} case{'' if cases == 1 else 's'}.\n\n{table}"


def means_csv(comparison: Comparison) -> str:
    """Organs as rows, the mean last; per measure and method mean, SD over cases, SD over seeds and number of cases."""
    pairs = [(measure, method.name) for measure in comparison.measures for method in comparison.methods]
    kinds = ("mean", "SD", "SD over seeds", "cases")
    rows: list[list[Any]] = [["organ", *(f"{TITLES[m]} {name} {kind}" for m, name in pairs for kind in kinds)]]
    for organ in (*comparison.organs, OVERALL):
        row: list[Any] = [row_title(organ)]
        for measure, name in pairs:
            cell = comparison.means[measure][name][organ]
            row += [*map(_rounded, (cell.mean, cell.sd, cell.seeds_sd)), cell.n]
        rows.append(row)
    return _csv(rows)


def differences_csv(comparison: Comparison) -> str:
    """One row per measure, method and organ: the method minus the baseline, with interval, p and counts."""
    rows: list[list[Any]] = [
        ["measure", "method", "baseline", "organ", "difference", "low", "high", "p", "p_holm",
         "better", "equal", "worse", "cases"]
    ]  # fmt: skip
    for measure in comparison.measures:
        for method in comparison.methods[1:]:
            for organ, one in comparison.differences[measure][method.name].items():
                low, high = (one.interval.low, one.interval.high) if one.interval else (None, None)
                numbers = map(_rounded, (one.mean, low, high))
                p = ["" if value is None else f"{value:.6g}" for value in (one.p, one.p_holm)]
                counts = (one.counts.wins, one.counts.ties, one.counts.losses)
                rows.append([TITLES[measure], method.name, comparison.baseline.name, row_title(organ),
                             *numbers, *p, *counts, one.n])  # fmt: skip
    return _csv(rows)


def ranking_csv(standings: Sequence[MethodRank]) -> str:
    """One row per method, best first: place, score, mean rank in each measure."""
    rows: list[list[Any]] = [["method", "place", "score", *(f"rank {measure.name}" for measure in FLARE_MEASURES)]]
    for one in standings:
        rows.append([one.method, one.place, *map(_rounded, (one.score, *(one.ranks[m.name] for m in FLARE_MEASURES)))])
    return _csv(rows)


def comparison_json(
    comparison: Comparison,
    remarks: Sequence[str],
    standings: Sequence[MethodRank] = (),
    ranked_cases: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything as plain types, unrounded: files and cases of each method, cells, differences, ranking, remarks."""
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "flarecps": __version__,
        "baseline": comparison.baseline.name,
        "bootstrap": {
            "method": "BCa",
            "resamples": comparison.resamples,
            "confidence": comparison.confidence,
            "seed": comparison.seed,
        },
        "organs": list(comparison.organs),
        "methods": {
            method.name: {
                "files": [table.origin for table in method.seeds],
                "protocols": [table.protocol for table in method.seeds],
                "cases": list(method.cases),
            }
            for method in comparison.methods
        },
        "means": {
            measure: {name: {organ: _cell(one) for organ, one in found.items()} for name, found in methods.items()}
            for measure, methods in comparison.means.items()
        },
        "differences": {
            measure: {name: {organ: asdict(one) for organ, one in found.items()} for name, found in methods.items()}
            for measure, methods in comparison.differences.items()
        },
        "ranking": {"cases": list(ranked_cases), "standings": [asdict(one) for one in standings]},
        "remarks": list(remarks),
    }


def _means(comparison: Comparison, measures: tuple[str, ...], methods: tuple[str, ...]) -> MeansTable:
    rows = []
    for organ in (*comparison.organs, OVERALL):
        cells: list[FormattedCell] = []
        for measure in measures:
            cells += _marked([comparison.means[measure][method][organ] for method in methods])
        rows.append((row_title(organ), tuple(cells)))
    return MeansTable(measures, methods, tuple(rows))


def _marked(cells: Sequence[Summary]) -> list[FormattedCell]:
    """The cells of one measure in words, the best of them marked."""
    best = best_as_shown([cell.mean for cell in cells])
    return [
        FormattedCell(score_text(cell.mean), _spread(cell), marked) for cell, marked in zip(cells, best, strict=True)
    ]


def _spread(cell: Summary) -> str:
    words = [] if cell.sd is None else [f"± {score_text(cell.sd)}"]
    return " ".join(words + ([] if cell.seeds_sd is None else [f"({score_text(cell.seeds_sd)})"]))


def _markdown_cell(cell: FormattedCell) -> str:
    return f"**{cell.number}** {cell.rest}".rstrip() if cell.best else cell.text


def _difference_cells(one: Difference) -> tuple[str, ...]:
    interval = NO_NUMBER
    if one.interval is not None:
        interval = f"{score_text(one.interval.low, signed=True)} to {score_text(one.interval.high, signed=True)}"
    return (
        score_text(one.mean, signed=True),
        interval,
        _p(one.p),
        _p(one.p_holm),
        f"{one.counts.wins}/{one.counts.ties}/{one.counts.losses}",
        str(one.n),
    )


def _p(p: float | None) -> str:
    if p is None:
        return NO_NUMBER
    return f"<{SMALLEST_P}" if p < SMALLEST_P else f"{p:.{DECIMALS}f}"


def _rounded(number: float | None) -> float | str:
    return "" if number is None else round(number, CSV_DECIMALS)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(one: Summary) -> dict[str, Any]:
    return {"mean": one.mean, "sd": one.sd, "seeds_sd": one.seeds_sd, "n": one.n}
