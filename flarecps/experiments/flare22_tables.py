"""The tables of ``flarecps reproduce``: the paper's Tables 2 to 6 beside what was scored so far."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flarecps.atomic import write_text
from flarecps.evaluation.score_table import read_scores
from flarecps.experiments.flare22 import paper_methods
from flarecps.experiments.flare22_data import Flare22Data
from flarecps.experiments.stages import StageRecords
from flarecps.reporting.paper_tables import (
    NOT_RUN,
    OwnScores,
    filled_csv,
    filled_markdown,
    paper_tables,
    protocol_csv,
    protocol_markdown,
    read_paper,
)


def write_paper_tables(
    out: Path, data: Flare22Data, released: tuple[str, ...], notes: Sequence[str], records: StageRecords
) -> None:
    """Write ``OUT/tables.md`` and ``table_N.csv`` from what is there now; ``released``: the cases of Tables 4 and 5."""
    runs = {method.key: out / "runs" / method.key for method in paper_methods()}
    starts = {key: records.read(records.stages[f"train_{key}"]).get("starts", []) for key in runs}
    continued = {key: len(found) > 1 or any(one.startswith("job") for one in found) for key, found in starts.items()}
    parts = ["# FLARE22: the paper's tables, and the same from this run", f"Paper: {read_paper()['source']}."]
    parts += ["\n".join(f"- {note}" for note in notes), protocol_markdown(runs, continued)]
    write_text(out / "table_2.csv", protocol_csv(runs, continued))
    judged = tuple(case.name for case in data.with_references)
    for table in paper_tables():
        counted = released if table.number in (4, 5) else judged
        own = {method: _own(out, method, counted, records) for method, _ in table.columns}
        parts.append(filled_markdown(table, own))
        write_text(out / f"table_{table.number}.csv", filled_csv(table, own))
    figure = records.stages["figure_5"]
    drawn = "figure_5/cases.png" if records.state(figure) == "done" else figure.lacking or "not drawn yet"
    parts.append(f"## Figure 5\n\n{drawn}")
    parts.append("Efficiency (time, GPU memory, CPU of a case) is in none of the paper's tables and is not measured "
                 "here: `flarecps efficiency` does it.")  # fmt: skip
    write_text(out / "tables.md", "\n\n".join(part.rstrip() for part in parts) + "\n")


def _own(out: Path, method: str, cases: tuple[str, ...], records: StageRecords) -> OwnScores:
    """The scores of one column, or why there are none."""
    stage = records.stages[f"score_{method}"]
    if records.state(stage) != "done":
        return OwnScores(lacking=stage.lacking or NOT_RUN)
    scores = read_scores(out / "scores" / method / "scores.csv")
    counted = scores.cases if method == "3d_cps_test" else tuple(case for case in scores.cases if case in cases)
    return OwnScores(scores, counted)
