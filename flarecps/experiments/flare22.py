"""The paper's FLARE22 experiment: a study by ``configs/studies/flare22.yaml``, and what fills the paper's tables.

Source: Huang et al., FLARE 2022: sections 3.1 (data), 4.1 to 4.3 (tables, the test set's inference). What it leaves
open stands in ``configs/flare22_*.yaml`` and docs/reproducing.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from flarecps.atomic import write_text
from flarecps.datasets.catalogue import Catalogue
from flarecps.datasets.splits import DEFAULT_SPLIT, Split
from flarecps.errors import ConfigError
from flarecps.evaluation.score_table import read_scores
from flarecps.experiments.flare22_data import Flare22Data
from flarecps.experiments.paper_tables import (
    METHOD_TITLES,
    NOT_RUN,
    OwnScores,
    filled_csv,
    filled_markdown,
    paper_tables,
    protocol_table,
    read_paper,
)
from flarecps.experiments.stages import Stage, StageRecords, command_stage
from flarecps.experiments.study.protocol import Arm, Protocol
from flarecps.experiments.study.splits import HELD_OUT, StudySplits, validation_cases, validation_name
from flarecps.experiments.study.stages import Cell, StudyStages, option_words

FIGURE_5 = ("0002", "0042", "0021", "0028")  # challenging, challenging, easy, easy
TEST_INFERENCE = {"mode": "fastest", "step": 0.7, "mirror": False, "enforce_spacing": True}  # section 4.3
NO_VALIDATION = "no validation scans in the data"
NO_REFERENCES = "no reference labels of validation scans in the data"
NO_TEST = "no test scans in the data (FLARE22 keeps them hidden)"
WITHOUT_LABELS, TEST = "without_labels", "test"  # scans beside those that judge
TABLES = "the paper's Tables 2 to 6 beside these numbers: tables.md, table_2.csv to table_6.csv"
COLUMNS = tuple(name for name in METHOD_TITLES if name != "3d_cps_test")  # arms of the protocol that fill columns
WAY = "determined"  # post-processing of the validation scans


def flare22_splits(data: Flare22Data, catalogue: Catalogue, protocol: Protocol) -> StudySplits:
    """The paper's roles for a study: validation scans with labels judge, others are there to be segmented."""
    _check(protocol)
    lacking = "" if data.with_references else NO_REFERENCES if data.validation else NO_VALIDATION
    held_out = {DEFAULT_SPLIT: data.with_references, WITHOUT_LABELS: data.without_references, TEST: data.test}
    if protocol.held_out_fold is not None:
        held_out[validation_name(DEFAULT_SPLIT)] = validation_cases(data.labelled, protocol.held_out_fold)
    labelled, unlabelled = (tuple(case.name for case in cases) for cases in (data.labelled, data.unlabelled))
    used = replace(catalogue, cases=(*data.labelled, *data.unlabelled))
    return StudySplits(used, {DEFAULT_SPLIT: Split(labelled, unlabelled)}, held_out, lacking)


def _check(protocol: Protocol) -> None:
    """ConfigError for a protocol from which the paper's tables can't be filled."""
    known = {arm.name for arm in protocol.arms if "1" in arm.siblings and not (arm.average_of or arm.predictions)}
    judged = (protocol.judged.by, protocol.judged.splits, protocol.post_processing)
    if not known >= {*COLUMNS} or judged != ("test", (DEFAULT_SPLIT,), (WAY,)):
        raise ConfigError(
            f"the protocol does not fill the paper's tables: expected arms trained: {', '.join(COLUMNS)}, judged by "
            f"test on the split {DEFAULT_SPLIT}, with post_processing: [{WAY}]; begin with a copy of flare22.yaml"
        )


class PaperStages:
    """The stages beside the study's: other scans segmented, comparisons, Figure 5 and the tables."""

    def __init__(self, data: Flare22Data, released: tuple[str, ...], notes: Sequence[str]) -> None:
        self.data, self.released, self.notes = data, released, notes

    def __call__(self, made: StudyStages, records: StageRecords) -> list[Stage]:
        """Of a study whose stages are ``made``."""
        fill = partial(write_paper_tables, made, self.data, self.released, self.notes, records)
        return [
            *(self._without_labels(made, name) for name in COLUMNS),
            *(self._comparison(made, kind) for kind in ("2d", "3d")),
            *self._test(made),
            self._figure(made),
            Stage("paper_tables", action=fill, always=True, description=TABLES),
        ]

    def _without_labels(self, made: StudyStages, name: str) -> Stage:
        """Validation scans without labels as those with labels, for the challenge's server."""
        cell, labels, none = cell_of(name), made.out / WITHOUT_LABELS / name, "all validation scans have labels"
        why = "" if self.data.without_references else none if self.data.validation else NO_VALIDATION
        words = ("segment", *made.checkpoints(cell), made.out / HELD_OUT / WITHOUT_LABELS / "images", labels,
                 *made.segment_words("1"), "--postprocess", made.rules(WAY, cell, "1"))  # fmt: skip
        return command_stage(f"{WITHOUT_LABELS}_{name}", words, labels, f"rules_{WAY}_{cell.name}.1", lacking=why)

    def _comparison(self, made: StudyStages, kind: str) -> Stage:
        """Baseline and CPS of one kind side by side."""
        names, out = [name for name in COLUMNS if name.startswith(kind)], made.out / "results" / f"comparison_{kind}"
        named = [f"{METHOD_TITLES[name]}={made.scores(cell_of(name), '1', WAY)}" for name in names]
        after = [f"score_{WAY}_{cell_of(name).name}.1" for name in names]
        return command_stage(
            f"compare_{kind}", ("compare", *named, "--out", out), out, *after, lacking=made.splits.lacking
        )

    def _test(self, made: StudyStages) -> list[Stage]:
        """Table 6: the 3D CPS model on the test set in the settings of the test submission."""
        cell, labels, scans = cell_of("3d_cps"), made.out / TEST / "3d_cps", made.out / HELD_OUT / TEST
        lacking = "" if self.data.test else NO_TEST
        options = option_words({**made.protocol.segment, **TEST_INFERENCE})
        segment = ("segment", *made.checkpoints(cell), scans / "images", labels, "--sibling", "1", *options)
        score = ("score", labels, scans / "labels", "--out", test_scores(made).parent, "--protocol", "official",
                 "--workers", 1)  # fmt: skip
        hidden = "" if all(case.labels is not None for case in self.data.test) else "the test labels are hidden"
        return [
            command_stage("test_3d_cps", segment, labels, f"train_{cell.name}", lacking=lacking),
            command_stage("test_scores", score, test_scores(made), "test_3d_cps", lacking=lacking or hidden),
        ]

    def _figure(self, made: StudyStages) -> Stage:
        """Figure 5: the paper's four cases where they are there, else four from the easiest to the hardest."""
        judged = [case.name for case in self.data.with_references]
        shown = [name for number in FIGURE_5 for name in judged if name.endswith(f"_{number}")]
        which = ("--cases", ",".join(shown)) if len(shown) == len(FIGURE_5) else ("--rows", len(FIGURE_5))
        named = [f"{METHOD_TITLES[name]}={made.labels(WAY, cell_of(name), '1')}" for name in COLUMNS]
        scans, out = made.out / HELD_OUT / DEFAULT_SPLIT, made.out / "figure_5"
        words = ("figures", *named, "--references", scans / "labels", "--images", scans / "images", "--labels",
                 made.out / "data", "--out", out, *which)  # fmt: skip
        after = [f"apply_{WAY}_{cell_of(name).name}.1" for name in COLUMNS]
        return command_stage("figure_5", words, out / "cases.png", *after, lacking=made.splits.lacking)


def cell_of(name: str) -> Cell:
    """The training that fills an arm's column: that of the first seed."""
    return Cell(name, DEFAULT_SPLIT, 0, 0)


def test_scores(made: StudyStages) -> Path:
    """The table of Table 6."""
    return made.out / TEST / "scores" / "scores.csv"


def batch_note(arm: Arm) -> str:
    """How Table 2's batch of 2 + 2 is taken in 3D."""
    return f"3D batch: 2 + 2 patches {'on each of 8 GPUs' if '_8gpu' in arm.config else 'in all'}"


def write_paper_tables(
    made: StudyStages, data: Flare22Data, released: tuple[str, ...], notes: Sequence[str], records: StageRecords
) -> None:
    """Write ``OUT/tables.md`` and ``table_N.csv`` from what is there now; ``released``: the cases of Tables 4 and 5."""
    out = made.out
    runs = {name: made.run(cell_of(name)) for name in COLUMNS}
    starts = {name: records.read(records.stages[f"train_{cell_of(name).name}"]).get("starts", []) for name in runs}
    parts = ["# FLARE22: the paper's tables, and the same from this run", f"Paper: {read_paper()['source']}."]
    protocol, protocol_csv = protocol_table(runs, {name: len(found) > 1 for name, found in starts.items()})
    settings = [f"{key}: {getattr(made.protocol, key)}" for key in ("checkpoint", "scoring")]
    said = [*notes, *settings, batch_note(made.protocol.arm("3d_cps"))]
    parts += ["\n".join(f"- {note}" for note in said), protocol]
    write_text(out / "table_2.csv", protocol_csv)
    judged = tuple(case.name for case in data.with_references)
    for table in paper_tables():
        counted = released if table.number in (4, 5) else judged
        own = {method: _own(made, method, counted, records) for method, _ in table.columns}
        parts.append(filled_markdown(table, own))
        write_text(out / f"table_{table.number}.csv", filled_csv(table, own))
    figure = records.stages["figure_5"]
    drawn = "figure_5/cases.png" if records.state(figure) == "done" else figure.lacking or "not drawn yet"
    parts.append(f"## Figure 5\n\n{drawn}")
    parts.append("Efficiency (time, GPU memory, CPU of a case) is in none of the paper's tables and is not measured "
                 "here: `flarecps efficiency` does it.")  # fmt: skip
    write_text(out / "tables.md", "\n\n".join(part.rstrip() for part in parts) + "\n")


def _own(made: StudyStages, method: str, cases: tuple[str, ...], records: StageRecords) -> OwnScores:
    """The scores of one column, or why there are none."""
    of_test = method == "3d_cps_test"
    stage = records.stages["test_scores" if of_test else f"score_{WAY}_{cell_of(method).name}.1"]
    if records.state(stage) != "done":
        return OwnScores(lacking=stage.lacking or NOT_RUN)
    scores = read_scores(test_scores(made) if of_test else made.scores(cell_of(method), "1", WAY))
    return OwnScores(scores, scores.cases if of_test else tuple(case for case in scores.cases if case in cases))
