"""A comparison as LaTeX: tables for booktabs, to be taken into a paper with ``\\input``."""

from __future__ import annotations

from collections.abc import Sequence

from flarecps.evaluation.comparison import Comparison
from flarecps.evaluation.ranking import MethodRank
from flarecps.reporting.comparison import (
    NARROW_HEADING,
    NARROW_SENTENCE,
    RANKING_HEADING,
    RANKING_SENTENCE,
    FormattedCell,
    MeansTable,
    caption,
    differences,
    interval_title,
    means,
    method_sentence,
    ranking_rows,
)
from flarecps.reporting.tables import TITLES

PREAMBLE = "% Needs \\usepackage{booktabs}; with pdflatex, names beyond ASCII are read as UTF-8.\n"
_ESCAPED = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "×": r"$\times$", "–": "--",
    "λ": r"$\lambda$", "−": "$-$", "[": "{[}", "]": "{]}",  # after \\\\ a bracket would be a length
}  # fmt: skip


def escaped(text: str) -> str:
    """``text`` so that LaTeX prints it as it is.

    >>> escaped("CPS_100% & more")
    'CPS\\\\_100\\\\% \\\\& more'
    """
    return "".join(_ESCAPED.get(sign, sign) for sign in text)


def comparison_latex(comparison: Comparison, standings: Sequence[MethodRank] = ()) -> str:
    """Tables of means, of differences (one per method, all measures), and of the ranking if there is one."""
    parts = [PREAMBLE, *(_means(table, caption(comparison)) for table in means(comparison))]
    for method in comparison.methods[1:]:
        parts.append(_differences(comparison, method.name))
    if standings:
        heading, *body = (list(map(escaped, row)) for row in [RANKING_HEADING, *ranking_rows(standings)])
        parts.append(_table("l" + "r" * (len(heading) - 1), [_row(heading)], [[_row(row) for row in body]],
                            f"FLARE's ranking. {RANKING_SENTENCE}"))  # fmt: skip
    return "\n".join(parts)


def _means(table: MeansTable, words: str) -> str:
    across = len(table.methods)
    groups, rules = ["Metrics"], []
    for place, measure in enumerate(table.measures):
        first = 2 + place * across
        groups.append(rf"\multicolumn{{{across}}}{{c}}{{{TITLES[measure]}}}")
        rules.append(rf"\cmidrule(lr){{{first}-{first + across - 1}}}")
    head = [_row(groups), " ".join(rules)]
    if across > 1:
        head.append(_row(["Organ", *(escaped(name) for _ in table.measures for name in table.methods)]))
    else:
        words = f"{table.methods[0]}. {words}"
        head.pop()
    body = [_row([escaped(title), *map(_cell, cells)]) for title, cells in table.rows]
    return _table("l" + "r" * (across * len(table.measures)), head, [body[:-1], body[-1:]], words)


def _differences(comparison: Comparison, method: str) -> str:
    headings = [escaped(word) for word in ("organ", *NARROW_HEADING)]
    headings[2] = escaped(interval_title(comparison))
    blocks = []
    for measure in comparison.measures:
        rows = [_row(map(_number, row)) for row in differences(comparison, measure, method)]
        blocks.append([_row([rf"\multicolumn{{{len(headings)}}}{{l}}{{{TITLES[measure]}}}"]), *rows])
    words = f"{method} minus {comparison.baseline.name}. {method_sentence(comparison)} {NARROW_SENTENCE}"
    return _table("l" + "r" * (len(headings) - 1), [_row(headings)], blocks, words)


def _table(columns: str, head: Sequence[str], blocks: Sequence[Sequence[str]], words: str) -> str:
    body = "\n\\midrule\n".join("\n".join(block) for block in blocks)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{escaped(words)}}}",
            rf"\begin{{tabular}}{{{columns}}}",
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


def _row(cells: Sequence[str] | map[str]) -> str:
    return " & ".join(cells) + r" \\"


def _cell(cell: FormattedCell) -> str:
    number = escaped(cell.number)
    if cell.best:
        number = rf"\textbf{{{number}}}"
    return f"{number} {escaped(cell.rest)}".rstrip()


def _number(word: str) -> str:
    """A cell of differences: its minus signs as LaTeX sets them."""
    return escaped(word).replace("-0.", "$-$0.").replace("-1.", "$-$1.")
