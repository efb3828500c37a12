"""A comparison as people read it, in Markdown and in LaTeX (booktabs), and as CSV and JSON for programs.

`means_of` and `differences` give tables of words, the paper's Tables 3 to 6 (organs down, methods across, mean last),
that Markdown, LaTeX and the terminal only dress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flarecps import __version__
from flarecps.errors import counted, visible
from flarecps.evaluation.comparison import OVERALL, Comparison
from flarecps.evaluation.ranking import FLARE_MEASURES, MethodRank
from flarecps.evaluation.score_table import CSV_DECIMALS
from flarecps.reporting.tables import (
    BOLD,
    DECIMALS,
    EMPTY,
    NO_NUMBER,
    TITLES,
    clearly_best,
    empty_mark,
    markdown_table,
    plain_markdown,
    score_text,
)
from flarecps.text_files import csv_text

FORMAT, FORMAT_VERSION = "flarecps-comparison", 1
SMALLEST_P = 0.0001
MOST_METHODS_BESIDE = 2  # more, or seeds, get a table per measure, so that a page holds it
_WIDE_HEADING = ("difference", "interval", "p", "p (Holm)", "better/equal/worse", "cases")
_NARROW_HEADING = ("change", "interval", "p", "p Holm", "+/=/-", "n")  # for 80 columns, and for a printed page
NARROW_SENTENCE = "+/=/-: cases better, equal, worse."
RANKING_HEADING = ["method", "place", "score", *(f"{m.name} (×{m.weight:g})" for m in FLARE_MEASURES)]
RANKING_SENTENCE = (
    "Score: mean rank per case over five measures, GPU and CPU at half weight; 1 is best; equal values share their "
    "mean rank."
)
_PREAMBLE = "% Needs \\usepackage{booktabs}; with pdflatex, names beyond ASCII are read as UTF-8.\n"
_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "×": r"$\times$", "–": "--",
    "λ": r"$\lambda$", "−": "$-$", "[": "{[}", "]": "{]}",  # after \\\\ a bracket would be a length
}  # fmt: skip


@dataclass(frozen=True)
class FormattedCell:
    """One cell in words: ``rest`` follows the number ("± 0.0512 (0.0031)"); ``best``: see `clearly_best`."""

    number: str
    rest: str = ""
    best: bool = False


@dataclass(frozen=True)
class MeansTable:
    """One table: its measures, each with a column per method; rows of organ and cells, the mean last."""

    measures: tuple[str, ...]
    methods: tuple[str, ...]
    rows: tuple[tuple[str, tuple[FormattedCell, ...]], ...]


def means_of(comparison: Comparison, *measures: str) -> MeansTable:
    """The table of one measure, like the paper's Table 3, or of several side by side, like its Table 4."""
    methods = tuple(method.name for method in comparison.methods)
    rows = []
    for organ in (*comparison.organs, OVERALL):
        cells: list[FormattedCell] = []
        for measure in measures:
            found = [comparison.means[measure][method][organ] for method in methods]
            column = None if organ == OVERALL else organ
            for one, best in zip(found, clearly_best(comparison.methods, measure, column), strict=True):
                spread = [] if one.sd is None else [f"± {score_text(one.sd)}"]
                spread += [] if one.seeds_sd is None else [f"({score_text(one.seeds_sd)})"]
                cells.append(FormattedCell(score_text(one.mean), " ".join(spread), best))
        rows.append((_marked_title(comparison, organ), tuple(cells)))
    return MeansTable(measures, methods, tuple(rows))


def differences(comparison: Comparison, measure: str, method: str, wide: bool = False) -> list[tuple[str, ...]]:
    """A heading (``wide``: in full words) and rows: one method minus the baseline in one measure, the mean last."""
    difference, _, *others = _WIDE_HEADING if wide else _NARROW_HEADING
    rows: list[tuple[str, ...]] = [("organ", difference, _interval_title(comparison), *others)]
    for organ in (*comparison.organs, OVERALL):
        one = comparison.differences[measure][method][organ]
        interval = NO_NUMBER
        if one.interval is not None:
            interval = f"{score_text(one.interval.low, signed=True)} to {score_text(one.interval.high, signed=True)}"
        counts = f"{one.counts.wins}/{one.counts.ties}/{one.counts.losses}"
        change = score_text(one.mean, signed=True)
        rows.append((_marked_title(comparison, organ), change, interval, _p(one.p), _p(one.p_holm), counts, str(one.n)))
    return rows


def _marked_title(comparison: Comparison, organ: str) -> str:
    """FLARE's column as the paper's tables have it, with how many cases hold it in neither map: ``RK (2 empty)``."""
    tables = [table for method in comparison.methods for table in method.seeds]
    return organ.replace("_", " ") + empty_mark(tables, organ)


def _interval_title(comparison: Comparison) -> str:
    """``95 % interval``."""
    return f"{100 * comparison.confidence:g} % interval"


def caption(comparison: Comparison) -> str:
    """What the numbers of the tables of means are."""
    seeds = any(len(method.seeds) > 1 for method in comparison.methods)
    counts = sorted({len(method.cases) for method in comparison.methods})
    cases = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    words = f"Mean ± SD over {cases} case{'' if counts == [1] else 's'}"
    words += ", in brackets SD over seeds" * seeds
    words += f"; {EMPTY}" * any(table.protocol == "official" and table.empty for method in comparison.methods
                                for table in method.seeds)  # fmt: skip
    return f"{words}; {BOLD}." if len(comparison.methods) > 1 else f"{words}."


def method_sentence(comparison: Comparison) -> str:
    """How differences, intervals and p were found."""
    return (
        f"Method minus {comparison.baseline.name}, paired by case; {_interval_title(comparison)} by bootstrap over "
        f"cases (BCa, {comparison.resamples} resamples, seed {comparison.seed}); p: Wilcoxon signed-rank test, "
        "two-sided; p (Holm): corrected over the organs; the mean's p is one test of its own."
    )


def comparison_markdown(
    comparison: Comparison, remarks: Sequence[str], standings: Sequence[MethodRank] = (), ranked_cases: int = 0
) -> str:
    """The whole page: means, differences by method and measure, the ranking if there is one, remarks."""
    parts = ["# Comparison\n", caption(comparison) + "\n"]
    for table in _means(comparison):
        heading = ["organ", *(f"{TITLES[m]} {name}" for m in table.measures for name in table.methods)]
        body = [[title, *(_dressed(one, "**", "**") for one in cells)] for title, cells in table.rows]
        parts.append(markdown_table(heading, body))
    if len(comparison.methods) > 1:
        parts += ["## Differences\n", method_sentence(comparison) + "\n"]
    for method in comparison.methods[1:]:
        for measure in comparison.measures:
            words, *rows = differences(comparison, measure, method.name, wide=True)
            parts.append(f"### {method.name} minus {comparison.baseline.name}: {TITLES[measure]}\n")
            parts.append(markdown_table(words, rows))
    if standings:
        ranking = markdown_table(RANKING_HEADING, ranking_rows(standings))
        parts += ["## FLARE's ranking\n", f"{RANKING_SENTENCE} {counted(ranked_cases, 'case')}.\n\n{ranking}"]
    if remarks:
        parts += ["## To be known\n", "".join(f"- {remark}\n" for remark in remarks)]
    return plain_markdown("\n".join(parts))


def _means(comparison: Comparison) -> list[MeansTable]:
    """The tables of means: all measures in one, or one each where it would be too wide."""
    if len(comparison.methods) > MOST_METHODS_BESIDE or any(len(method.seeds) > 1 for method in comparison.methods):
        return [means_of(comparison, measure) for measure in comparison.measures]
    return [means_of(comparison, *comparison.measures)]


def ranking_rows(standings: Sequence[MethodRank]) -> list[list[str]]:
    """Rows of words under `RANKING_HEADING`, best first."""
    return [
        [one.method, str(one.place), f"{one.score:.3f}", *(f"{one.ranks[m.name]:.3f}" for m in FLARE_MEASURES)]
        for one in standings
    ]


def means_csv(comparison: Comparison) -> str:
    """Organs as rows, the mean last; per measure and method mean, SD over cases, SD over seeds and number of cases."""
    pairs = [(measure, method.name) for measure in comparison.measures for method in comparison.methods]
    kinds = ("mean", "SD", "SD over seeds", "cases")
    rows: list[list[Any]] = [["organ", *(f"{TITLES[m]} {name} {kind}" for m, name in pairs for kind in kinds)]]
    for organ in (*comparison.organs, OVERALL):
        row: list[Any] = [organ.replace("_", " ")]
        for measure, name in pairs:
            cell = comparison.means[measure][name][organ]
            row += [*map(_rounded, (cell.mean, cell.sd, cell.seeds_sd)), cell.n]
        rows.append(row)
    return csv_text(rows)


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
                whose = [TITLES[measure], method.name, comparison.baseline.name, organ.replace("_", " ")]
                rows.append([*whose, *numbers, *p, *counts, one.n])
    return csv_text(rows)


def ranking_csv(standings: Sequence[MethodRank]) -> str:
    """One row per method, best first: place, score, mean rank in each measure."""
    rows: list[list[Any]] = [["method", "place", "score", *(f"rank {measure.name}" for measure in FLARE_MEASURES)]]
    for one in standings:
        rows.append([one.method, one.place, *map(_rounded, (one.score, *(one.ranks[m.name] for m in FLARE_MEASURES)))])
    return csv_text(rows)


def comparison_json(
    comparison: Comparison, remarks: Sequence[str], standings: Sequence[MethodRank], ranked_cases: Sequence[str]
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
            measure: {
                name: {
                    organ: {key: getattr(one, key) for key in ("mean", "sd", "seeds_sd", "n")}
                    for organ, one in found.items()
                }
                for name, found in methods.items()
            }
            for measure, methods in comparison.means.items()
        },
        "differences": {
            measure: {name: {organ: asdict(one) for organ, one in found.items()} for name, found in methods.items()}
            for measure, methods in comparison.differences.items()
        },
        "ranking": {"cases": list(ranked_cases), "standings": [asdict(one) for one in standings]},
        "remarks": list(remarks),
    }


def _dressed(cell: FormattedCell, before: str, after: str, escape: Callable[[str], str] = str) -> str:
    """A cell as text, the number of a best one between two marks."""
    number = escape(cell.number)
    return f"{before + number + after if cell.best else number} {escape(cell.rest)}".rstrip()


def _p(p: float | None) -> str:
    if p is None:
        return NO_NUMBER
    return f"<{SMALLEST_P}" if p < SMALLEST_P else f"{p:.{DECIMALS}f}"


def _rounded(number: float | None) -> float | str:
    return "" if number is None else round(number, CSV_DECIMALS)


def escaped(text: str) -> str:
    """``text`` so that LaTeX prints it as it is.

    >>> escaped("CPS_100% & more")
    'CPS\\\\_100\\\\% \\\\& more'
    """
    return "".join(_ESCAPED.get(sign, sign) for sign in visible(text))


def comparison_latex(comparison: Comparison, standings: Sequence[MethodRank] = ()) -> str:
    """Tables of means, of differences (one per method, all measures), and of the ranking if there is one."""
    parts = [_PREAMBLE]
    for table in _means(comparison):
        across, words = len(table.methods), caption(comparison)
        groups, rules = ["Metrics"], []
        for place, measure in enumerate(table.measures):
            first = 2 + place * across
            groups.append(rf"\multicolumn{{{across}}}{{c}}{{{TITLES[measure]}}}")
            rules.append(rf"\cmidrule(lr){{{first}-{first + across - 1}}}")
        head = [_row(groups)]
        if across > 1:
            head += [" ".join(rules), _row(["Organ", *(escaped(one) for _ in table.measures for one in table.methods)])]
        else:
            words = f"{table.methods[0]}. {words}"
        body = [_row([escaped(title), *(_dressed(one, r"\textbf{", "}", escaped) for one in cells)])
                for title, cells in table.rows]  # fmt: skip
        parts.append(_table(1 + across * len(table.measures), head, [body[:-1], body[-1:]], words))
    for method in comparison.methods[1:]:
        blocks = []
        for measure in comparison.measures:
            headings, *rows = differences(comparison, measure, method.name)
            title = rf"\multicolumn{{{len(headings)}}}{{l}}{{{TITLES[measure]}}}"
            blocks.append([_row([title]), *(_row(map(_number, row)) for row in rows)])
        words = f"{method.name} minus {comparison.baseline.name}. {method_sentence(comparison)} {NARROW_SENTENCE}"
        parts.append(_table(len(headings), [_row(map(escaped, headings))], blocks, words))
    if standings:
        heading, *ranked = (_row(map(escaped, row)) for row in [RANKING_HEADING, *ranking_rows(standings)])
        parts.append(_table(len(RANKING_HEADING), [heading], [ranked], f"FLARE's ranking. {RANKING_SENTENCE}"))
    return "\n".join(parts)


def _table(columns: int, head: Sequence[str], blocks: Sequence[Sequence[str]], words: str) -> str:
    body = "\n\\midrule\n".join("\n".join(block) for block in blocks)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{escaped(words)}}}",
            rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
            r"\toprule",
            *head,
            r"\midrule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _row(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _number(word: str) -> str:
    """A cell of differences: its minus signs as LaTeX sets them."""
    return escaped(word).replace("-0.", "$-$0.").replace("-1.", "$-$1.")
