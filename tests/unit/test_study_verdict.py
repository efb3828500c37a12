"""The verdict of a study: kbp's, from its kept scores, held against the committed tables; and its words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flarecps.cli.configs import config_path
from flarecps.evaluation.score_table import Scores, read_scores
from flarecps.experiments.study.cost import Costs
from flarecps.experiments.study.drafting import draft
from flarecps.experiments.study.protocol import Protocol
from flarecps.experiments.study.protocol_file import read_protocol
from flarecps.experiments.study.results import Column, StudyScores
from flarecps.experiments.study.verdict import Verdict, verdict_of

REPOSITORY = Path(__file__).resolve().parents[2]
KBP = REPOSITORY / "benchmarks" / "results" / "kbp"
MAIN = ("cps", "control", "control_long", "control_two", "control_long_two")


def kbp() -> Verdict:
    """Of the main arms with ten labels, as `flarecps study` would give it."""
    protocol = read_protocol(REPOSITORY / "configs" / "studies" / "kbp.yaml")
    ten = ("10_labelled",)
    arms = tuple(replace(arm, splits=ten) for arm in protocol.arms if arm.name in MAIN)
    protocol = replace(protocol, arms=arms, judged=replace(protocol.judged, splits=ten), post_processing=("none",))
    tables: dict[Column, dict[tuple[int, int], Scores]] = {}
    for arm in arms:
        for sibling in arm.siblings:
            files = [KBP / "runs" / ten[0] / arm.name / f"seed_{seed}" / f"scores_{sibling}.csv" for seed in range(3)]
            tables[Column(arm.name, sibling, ten[0], "none")] = {
                (0, seed): read_scores(path) for seed, path in enumerate(files)
            }
    return verdict_of(StudyScores(protocol, tables), Costs(protocol, config_path), {}, {ten[0]: 10})


def test_kbps_main_table_again_from_its_protocol() -> None:
    """Means, SD over seeds and differences as tables.md has them; the intervals are wider, as they count trainings."""
    table = (KBP / "tables.md").read_text(encoding="utf-8").split("\n\n")
    main = next(part for part in table if "two controls averaged, equal compute each |" in part)
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:]] for cells in (row.split("|") for row in main.split("\n"))
    }
    found = kbp()
    assert len(found.standings) == 6
    for one in found.standings:
        committed = rows[one.title]
        assert committed[1] == f"{one.mean:.4f} ± {one.seeds_sd:.4f}"
        if beside := re.match(r"(\S+) \((\S+) to (\S+)\)", committed[5]):
            assert one.judged is not None
            assert one.judged.difference.interval is not None
            assert f"{one.judged.difference.mean:+.4f}" == beside[1]
            assert one.judged.difference.interval.low < float(beside[2])
            assert one.judged.difference.interval.high > float(beside[3])
    assert found.recommended.arm == "control_long_two"
    assert "at 2.0 times its compute" in found.sentences[0]
    assert "they did harm" in found.sentences[1]


def scores(protocol: Protocol, effects: dict[str, float], folds: int, scans: int = 8) -> StudyScores:
    generator = np.random.default_rng(0)
    tables: dict[Column, dict[tuple[int, int], Scores]] = {}
    hard = generator.normal(0, 0.05, (folds, scans))
    for arm in protocol.arms:
        for sibling in arm.siblings:
            column = Column(arm.name, sibling, "all", "determined")
            tables[column] = {}
            for fold in range(folds):
                for seed in range(protocol.seeds):
                    values = 0.7 + effects.get(arm.name, 0) + hard[fold] + generator.normal(0, 0.01, scans)
                    cases = tuple(f"case_{fold}_{place}" for place in range(scans))
                    measures = dict.fromkeys(("dsc", "nsd"), values[:, None])
                    tables[column][fold, seed] = Scores(cases, ("Liver",), measures)
    return StudyScores(protocol, tables)


@pytest.mark.parametrize(
    ("effects", "chosen", "said"),
    [
        ({}, "control_long", "neither help nor harm can be told"),
        ({"cps": 0.1}, "cps", "they helped"),
        ({"cps": -0.1}, "control_long", "they did harm"),
        ({"control_two": 0.1, "cps": 0.05}, "control_two", "they helped"),
        ({"control": 0.1}, "control_long", "neither help nor harm"),  # a plain control is no candidate
    ],
)
def test_which_to_use(effects: dict[str, float], chosen: str, said: str) -> None:
    protocol = draft(3, 2, 100, 50, True)
    costs = Costs(protocol, config_path)
    seconds = {"control_long": 100.0, "cps": 130.0, "control_two": 110.0}
    found = verdict_of(scores(protocol, effects, 3), costs, seconds, {"all": 16})
    assert found.recommended.arm == chosen
    assert said in " ".join(found.sentences)
    assert next(one for one in found.remarks if "computing time" in one).startswith(
        "“CPS, siblings averaged” took 1.30"
    )
    if not effects:
        assert "could not have been seen" in found.sentences[0]


def test_an_interval_without_0_that_tells_nothing_is_explained() -> None:
    """Intervals are each method's own; the verdict is by Holm over all."""
    protocol = draft(3, 2, 100, 50, True)
    costs = Costs(protocol, config_path)
    explained = 0
    for effect in np.linspace(0.004, 0.016, 25):
        found = verdict_of(scores(protocol, {"cps": -effect}, 3), costs, {}, {"all": 16})
        (one,) = (one for one in found.standings if one.column.arm == "cps" and one.with_holm)
        (said,) = (text for text in found.sentences if f"brought with “{one.title}”" in text)
        assert one.judged is not None
        interval, p = one.judged.difference.interval, one.judged.p_holm
        assert interval is not None
        assert p is not None
        without_0 = not interval.low <= 0 <= interval.high
        is_explained = "of several methods, one may look so by chance" in said
        assert is_explained == (without_0 and p >= 0.05)
        explained += is_explained
    assert explained


def test_one_training_each_decides_nothing() -> None:
    protocol = replace(draft(2, 1, 100, 50, True))
    alone = scores(protocol, {"cps": 0.3}, 1)
    single = replace(protocol, judged=replace(protocol.judged, by="test", folds=5, splits=("all",)),
                     post_processing=("none",))  # fmt: skip
    tables = {replace(column, way="none"): own for column, own in alone.tables.items()}
    found = verdict_of(StudyScores(single, tables), Costs(single, config_path), {}, {"all": 16})
    assert found.recommended.arm == "control_long"
    assert "says nothing of other trainings" in found.sentences[0]
