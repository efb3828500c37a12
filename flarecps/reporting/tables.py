"""Markdown tables of scores: organs as rows, the mean last; one method with DSC and NSD, or several side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.errors import ConfigError, counted, visible
from flarecps.evaluation.score_table import MethodScores, Scores, Summary, paired_change
from flarecps.evaluation.statistics import FEWEST_PAIRS, clearly_above

TITLES = {"dsc": "DSC", "nsd": "NSD"}  # measure -> heading
MEAN_ROW = "mean over organs"
NO_NUMBER = "–"
BOLD = f"bold: best, and above each other by more than chance ({FEWEST_PAIRS} or more cases, 95 % interval above 0)"
EMPTY = "empty: cases that hold the organ in neither map, each counted as 1 (FLARE22's rule)"
_TAG = re.compile("<(?=[A-Za-z/!?])")
DECIMALS = 4  # of scores wherever they are shown: FLARE's and the paper's


SCORES_HEADER = ["organ", *TITLES.values(), "cases"]


def score_rows(scores: Scores) -> list[list[str]]:
    """Rows under `SCORES_HEADER`: each organ, mean ± SD of its DSC and NSD, the cases ("6 (2 empty)"); the mean last.

    The last row is the mean of the organs' means; its SD is that of the cases' means.
    """
    rows = []
    for organ in (*scores.organs, None):
        found = [scores.summary(measure, organ) for measure in TITLES]
        title = MEAN_ROW if organ is None else organ_title(organ)
        rows.append([title, *map(mean_and_sd, found), f"{found[0].n}{empty_mark([scores], organ)}"])
    return rows


def empty_mark(tables: Sequence[Scores], organ: str | None) -> str:
    """ " (2 empty)" where that many cases of ``tables`` hold the organ in neither map and count as 1; else nothing.

    >>> one = Scores(("a", "b"), ("Gallbladder",), {}, protocol="official", empty={"Gallbladder": 1})
    >>> empty_mark([one], "Gallbladder"), empty_mark([one], None)
    (' (1 empty)', '')
    """
    found = {one.empty.get(organ or "", 0) for one in tables if one.protocol == "official"}
    return f" ({' or '.join(map(str, sorted(found)))} empty)" if any(found) else ""


def scores_markdown(scores: Scores, title: str = "Scores", notes: Sequence[str] = ()) -> str:
    """One method's scores: organs as rows; DSC, NSD (mean ± SD over cases) and the number of cases as columns."""
    table = markdown_table(SCORES_HEADER, score_rows(scores))
    remarks = plain_markdown("".join(f"- {note}\n" for note in notes))
    over = counted(len(scores.cases), "case")
    return f"# {title}\n\nMean ± SD over {over}.\n\n{table}" + (f"\n{remarks}" if remarks else "")


def methods_markdown(methods: Mapping[str, Scores], measure: str = "dsc", with_sd: bool = True) -> str:
    """Several methods side by side: organs as rows, methods as columns (mean ± SD over cases), the mean last.

    An organ that a method does not score gets a dash. Raises ConfigError for an unknown measure or no method.
    """
    if measure not in TITLES or not methods:
        raise ConfigError(f"a table needs a measure ({' or '.join(TITLES)}, not {measure!r}) and one or more methods")
    organs = dict.fromkeys(organ for scores in methods.values() for organ in scores.organs)
    body = [
        [
            MEAN_ROW if organ is None else organ_title(organ),
            *(mean_and_sd(scores.summary(measure, organ), with_sd) for scores in methods.values()),
        ]
        for organ in (*organs, None)
    ]
    return markdown_table([TITLES[measure], *methods], body)


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns also line up as plain text; the first to the left, the others to the right."""
    lines = [[_one_cell(cell) for cell in line] for line in [header, *body]]
    widths = [max(3, *(len(line[place]) for line in lines)) for place in range(len(header))]

    def text(line: Sequence[str]) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        return "| " + " | ".join([line[0].ljust(widths[0]), *numbers]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|"
    return "\n".join([text(lines[0]), rule, *map(text, lines[1:])]) + "\n"


def _one_cell(text: str) -> str:
    return plain_markdown(" ".join(text.splitlines())).replace("\\", "\\\\").replace("|", "\\|")


def plain_markdown(text: str) -> str:
    """Markdown in which names from elsewhere can be no HTML and no link, and command no terminal.

    >>> plain_markdown("p < 0.05, <b>liver</b> [x](y)")
    'p < 0.05, &lt;b>liver&lt;/b> [x]&#40;y)'
    """
    return _TAG.sub("&lt;", visible(text)).replace("](", "]&#40;")


def finite_number(cell: Any) -> float | None:
    """The number in a cell of a CSV; None for one that is absent, empty, not a number or not finite."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def score_text(score: float | None, signed: bool = False) -> str:
    """A score, or a difference of scores, as it is shown everywhere; a dash where there is none.

    >>> score_text(0.87941), score_text(-0.00001, signed=True), score_text(0.02, signed=True), score_text(None)
    ('0.8794', '0.0000', '+0.0200', '–')
    """
    if score is None or not math.isfinite(score):
        return NO_NUMBER
    shown = f"{score:{'+' if signed else ''}.{DECIMALS}f}"
    return shown[1:] if signed and float(shown) == 0 else shown


def best_as_shown(scores: Sequence[float | None]) -> list[bool]:
    """Which scores of a row are marked as best: the highest as shown, all of a tie; none where all show the same.

    >>> best_as_shown([0.8, 0.9, 0.90004]), best_as_shown([0.9, 0.90004]), best_as_shown([0.9, None])
    ([False, True, True], [False, False], [False, False])
    """
    shown = [score_text(score) for score in scores]
    there = [float(word) for word in shown if word != NO_NUMBER]
    highest = max(there, default=0.0)
    return [word != NO_NUMBER and float(word) == highest > min(there) for word in shown]


def clearly_best(methods: Sequence[MethodScores], measure: str, organ: str | None) -> list[bool]:
    """Which methods of a row are marked: those of `best_as_shown` whose lead over all others is more than chance.

    The lead is judged case by case (`clearly_above`); ``organ`` is a column, None stands for the mean over organs.
    """
    best = best_as_shown([method.summary(measure, organ).mean for method in methods])
    leaders = [method for method, marked in zip(methods, best, strict=True) if marked]
    others = [method for method, marked in zip(methods, best, strict=True) if not marked]

    def leads(one: MethodScores, other: MethodScores) -> bool:
        change = paired_change(other, one)
        return clearly_above(change.case_means(measure) if organ is None else change.organ(organ, measure))

    rivals = [other for other in others if other.summary(measure, organ).mean is not None]
    clear = bool(leaders) and all(leads(one, other) for one in leaders for other in rivals)
    return [marked and clear for marked in best]


def empty_rule(methods: Mapping[str, Scores]) -> str | None:
    """A sentence on means that hold cases without the organ, each counted as 1; None where there is no such case.

    >>> one = Scores(("a", "b"), ("Gallbladder",), {}, protocol="official", empty={"Gallbladder": 1})
    >>> empty_rule({"CPS": one}).split(": ")[1]
    'gallbladder 1 of 2 cases'
    """
    found: dict[str, list[str]] = {}  # what is said, and of whom
    for name, scores in methods.items():
        if scores.protocol == "official" and scores.empty:
            of = counted(len(scores.cases), "case")
            words = ", ".join(f"{organ_title(column)} {count} of {of}" for column, count in scores.empty.items())
            found.setdefault(words, []).append(name)
    if not found:
        return None
    of_all = len(found) == 1 and len(next(iter(found.values()))) == len(methods)
    said = [words if of_all else f"{', '.join(names)}: {words}" for words, names in found.items()]
    return f"Counted as 1 (FLARE22's rule), as neither prediction nor reference holds the organ: {'; '.join(said)}"


def mean_and_sd(found: Summary, with_sd: bool = True) -> str:
    """``0.8794 ± 0.0512``; without SD the mean alone; a dash without a mean.

    >>> [mean_and_sd(Summary(*found, n=2)) for found in ((0.87941, 0.05117), (0.5, None), (None, None))]
    ['0.8794 ± 0.0512', '0.5000', '–']
    """
    return score_text(found.mean) + (f" ± {score_text(found.sd)}" if with_sd and found.sd is not None else "")


def organ_title(column: str) -> str:
    """What people call the organ of a score column: FLARE22's by their full names, others with spaces."""
    known = {organ.column: organ.name for organ in FLARE22_ORGANS}
    return known.get(column, column.replace("_", " "))
