"""The paper's FLARE22 experiment as stages, from data to scores and tables: inference in each table's own settings.

Source: Huang et al., FLARE 2022: sections 2.1 to 2.3 (inference), 3.1 (data), 4.1 to 4.3 (tables). What it leaves open
stands in ``configs/flare22_*.yaml`` and docs/reproducing.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from flarecps.atomic import write_text
from flarecps.evaluation.score_table import read_scores
from flarecps.experiments.flare22_data import Flare22Data, link_flare22
from flarecps.experiments.paper_tables import (
    NOT_RUN,
    OwnScores,
    filled_csv,
    filled_markdown,
    paper_tables,
    protocol_table,
    read_paper,
)
from flarecps.experiments.stages import Stage, StageRecords, command_stage, fit_stage, store_stages

FIGURE_5 = ("0002", "0042", "0021", "0028")  # challenging, challenging, easy, easy
PAPER_INFERENCE = ("--sibling", "1", "--mode", "normal", "--step", "0.7", "--mirror")  # 2.1: TTA, step 0.7, normal mode
TEST_INFERENCE = ("--sibling", "1", "--mode", "fastest", "--step", "0.7", "--no-mirror", "--enforce-spacing")  # 4.3
NO_VALIDATION = "no validation scans in the data"
NO_REFERENCES = "no reference labels of validation scans in the data"
NO_TEST = "no test scans in the data (FLARE22 keeps them hidden)"
GROUPS = ("inspect", "plan", "preprocess", "fit", "segment", "postprocess", "score", "compare", "figures")
TABLES = "the paper's Tables 2 to 6 beside these numbers: tables.md, table_2.csv to table_6.csv"


@dataclass(frozen=True)
class _PaperMethod:
    """One column of the tables: its key, the paper's name, its config and its kind (2d or 3d)."""

    key: str
    title: str
    config: str
    kind: str


def _paper_methods(eight_gpus: bool = False) -> tuple[_PaperMethod, ...]:
    """The four trainings, in the paper's order; ``eight_gpus`` takes 2 + 2 patches in 3D as each GPU's."""
    three = "flare22_3d_8gpu" if eight_gpus else "flare22_3d"
    return (
        _PaperMethod("2d_supervised", "2D Baseline", "flare22_2d_supervised.yaml", "2d"),
        _PaperMethod("2d_cps", "2D Baseline+CPS", "flare22_2d.yaml", "2d"),
        _PaperMethod("3d_supervised", "3D Baseline", f"{three}_supervised.yaml", "3d"),
        _PaperMethod("3d_cps", "3D Baseline+CPS", f"{three}.yaml", "3d"),
    )


@dataclass(frozen=True)
class RecipeOptions:
    """What the stages are made from.

    ``configs`` finds a config by name; ``more`` holds words that are added to commands, by group or by group and kind
    (``fit_2d``); ``tables`` writes the tables.
    """

    data: Flare22Data
    out: Path
    configs: Callable[[str], Path]
    tables: Callable[[], None]
    more: Mapping[str, Sequence[str]] = field(default_factory=dict)
    checkpoint: str = "best"
    eight_gpus: bool = False
    workers: int = 2

    def added(self, group: str, kind: str = "") -> tuple[str, ...]:
        """The words to add to a command."""
        return (*self.more.get(group, ()), *(self.more.get(f"{group}_{kind}", ()) if kind else ()))

    def model(self, key: str) -> Path:
        """The checkpoint that segments."""
        return self.out / "runs" / key / "checkpoints" / f"{self.checkpoint}.ckpt"

    @property
    def dataset(self) -> Path:
        """The data as links."""
        return self.out / "data"


def flare22_stages(options: RecipeOptions) -> list[Stage]:
    """All stages, in order."""
    four = _paper_methods(options.eight_gpus)
    stages = _data_stages(options)
    stages += [_training(options, method) for method in four]
    for method in four:
        stages += _validation_stages(options, method)
    stages += [_comparison(options, four, kind) for kind in ("2d", "3d")]
    stages += [*_test_stages(options), _figure(options, four)]
    return [*stages, Stage("tables", action=options.tables, always=True, description=TABLES)]


def _data_stages(of: RecipeOptions) -> list[Stage]:
    """Links, the doctor, and for 2D and 3D plan and case store."""
    dataset, pool, report = of.dataset, ("--workers", of.workers), of.out / "inspection.json"
    links = (dataset / "dataset.json", dataset, of.out / "held_out")
    description = f"links to the scans of {of.data.root}: {of.data.listing()}"
    inspection = ("inspect", dataset, "--json", report, *pool, *of.added("inspect"))
    stages = [
        Stage("data", (), links, action=partial(link_flare22, of.data, of.out), description=description),
        command_stage("inspect", inspection, report, "data"),
    ]
    for kind, dimensions in (("2d", 2), ("3d", 3)):
        stages += store_stages(
            dataset,
            of.out / f"plan_{kind}.json",
            of.out / "stores" / kind,
            ("--dimensions", dimensions),
            ("--fingerprints", of.out / "fingerprints", *pool, *of.added("plan", kind)),
            (*pool, *of.added("preprocess", kind)),
            after=("data",),
            suffix=f"_{kind}",
        )
    return stages


def _training(of: RecipeOptions, method: _PaperMethod) -> Stage:
    run, config = of.out / "runs" / method.key, of.configs(method.config)
    words = ("fit", "--config", config, "--data.store", of.out / "stores" / method.kind,
             "--trainer.default_root_dir", run, *of.added("fit", method.kind))  # fmt: skip
    gpus = 8 if "_8gpu" in method.config else 1
    return fit_stage(f"train_{method.key}", words, config, run, f"preprocess_{method.kind}", gpus)


def _validation_stages(of: RecipeOptions, method: _PaperMethod) -> list[Stage]:
    """Tables 3 to 5: post-processing determined on the held-out fold, validation scans segmented with it and scored."""
    key, model, added = method.key, of.model(method.key), of.added("segment", method.kind)
    held_out, rules = of.out / "held_out_labels" / key, of.out / "rules" / f"{key}.json"
    words = ("segment", model, of.out / "held_out" / "images", held_out, *PAPER_INFERENCE, *added)
    stages = [command_stage(f"held_out_{key}", words, held_out, f"train_{key}")]
    words = ("postprocess", "determine", held_out, of.out / "held_out" / "labels", "--out", rules,
                   "--labels", of.dataset, *of.added("postprocess"))  # fmt: skip
    stages.append(command_stage(f"rules_{key}", words, rules, f"held_out_{key}"))
    settings = (*PAPER_INFERENCE, "--postprocess", rules, *added)
    for part, cases, lacking in (
        ("validation", of.data.with_references, NO_REFERENCES),
        ("without_labels", of.data.without_references, "all validation scans have labels"),
    ):
        labels, why = of.out / part / key, "" if cases else lacking if of.data.validation else NO_VALIDATION
        words = ("segment", model, of.dataset / part / "images", labels, *settings)
        stages.append(command_stage(f"{part}_{key}", words, labels, f"rules_{key}", lacking=why))
    lacking = "" if of.data.with_references else NO_REFERENCES
    return [*stages, _score(of, key, of.out / "validation" / key, "validation", f"validation_{key}", lacking)]


def _score(of: RecipeOptions, key: str, labels: Path, part: str, after: str, lacking: str) -> Stage:
    scores = of.out / "scores" / key
    words = ("score", labels, of.dataset / part / "labels", "--out", scores, "--protocol", "official",
                   "--labels", of.dataset, *of.added("score"))  # fmt: skip
    return command_stage(f"score_{key}", words, scores / "scores.csv", after, lacking=lacking)


def _comparison(of: RecipeOptions, four: Sequence[_PaperMethod], kind: str) -> Stage:
    pair, out = [method for method in four if method.kind == kind], of.out / f"compare_{kind}"
    named = [f"{one.title}={of.out / 'scores' / one.key}" for one in pair]
    words = ("compare", *named, "--out", out, *of.added("compare"))
    scored = tuple(f"score_{one.key}" for one in pair)
    return command_stage(
        f"compare_{kind}", words, out, *scored, lacking="" if of.data.with_references else NO_REFERENCES
    )


def _test_stages(of: RecipeOptions) -> list[Stage]:
    """Table 6: the 3D CPS model on the test set in the settings of the test submission."""
    labels, lacking = of.out / "test" / "3d_cps", "" if of.data.test else NO_TEST
    words = ("segment", of.model("3d_cps"), of.dataset / "test" / "images", labels, *TEST_INFERENCE,
                   *of.added("segment", "3d"))  # fmt: skip
    hidden = "" if all(case.labels is not None for case in of.data.test) else "the test labels are hidden"
    return [
        command_stage("test_3d_cps", words, labels, "train_3d_cps", lacking=lacking),
        _score(of, "3d_cps_test", labels, "test", "test_3d_cps", lacking or hidden),
    ]


def _figure(of: RecipeOptions, four: Sequence[_PaperMethod]) -> Stage:
    """Figure 5: the paper's four cases where they are there, else four from the easiest to the hardest."""
    judged = [case.name for case in of.data.with_references]
    shown = [name for number in FIGURE_5 for name in judged if name.endswith(f"_{number}")]
    which = ("--cases", ",".join(shown)) if len(shown) == len(FIGURE_5) else ("--rows", len(FIGURE_5))
    named = [f"{one.title}={of.out / 'validation' / one.key}" for one in four]
    validation, out = of.dataset / "validation", of.out / "figure_5"
    words = ("figures", *named, "--references", validation / "labels", "--images", validation / "images",
                   "--labels", of.dataset, "--out", out, *which, *of.added("figures"))  # fmt: skip
    after = tuple(f"validation_{one.key}" for one in four)
    return command_stage("figure_5", words, out / "cases.png", *after, lacking="" if judged else NO_REFERENCES)


def write_paper_tables(
    out: Path, data: Flare22Data, released: tuple[str, ...], notes: Sequence[str], records: StageRecords
) -> None:
    """Write ``OUT/tables.md`` and ``table_N.csv`` from what is there now; ``released``: the cases of Tables 4 and 5."""
    runs = {method.key: out / "runs" / method.key for method in _paper_methods()}
    starts = {key: records.read(records.stages[f"train_{key}"]).get("starts", []) for key in runs}
    continued = {key: len(found) > 1 or any(one.startswith("job") for one in found) for key, found in starts.items()}
    parts = ["# FLARE22: the paper's tables, and the same from this run", f"Paper: {read_paper()['source']}."]
    protocol, protocol_csv = protocol_table(runs, continued)
    parts += ["\n".join(f"- {note}" for note in notes), protocol]
    write_text(out / "table_2.csv", protocol_csv)
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
