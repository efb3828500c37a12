"""Seeds of one method, sessions of one run, pictures through time: what a report makes of them, in plain records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flarecps import metric_names
from flarecps.anatomy import organs_of
from flarecps.evaluation.score_table import Scores
from flarecps.reporting.curves import PANELS, Curve, mean_curve, panel_figure
from flarecps.reporting.report_cases import evenly_spaced, overlay_histories, validation_scores
from flarecps.reporting.run_description import run_status, sessions_of
from flarecps.reporting.run_folder import Run, averaged_over_runs, common_name, groups_of
from flarecps.training.callbacks.validation_results import is_milestone

MODEL = {"cross_pseudo_supervision": True, "initial_seed": 0}


def run(name: str, config: dict[str, Any] | None = None, **parts: Any) -> Run:
    return Run(name, Path(name), config=config or {}, **parts)


def config(**more: Any) -> dict[str, Any]:
    return {
        "seed_everything": 0, "trainer": {"max_epochs": 5, "default_root_dir": "a"},
        "data": {"seed": 0, "fold": 0}, "model": dict(MODEL), **more,
    }  # fmt: skip


def scores(*rows: list[float], cases: tuple[str, ...] = ("a", "b")) -> Scores:
    array = np.array(rows, float)
    return Scores(cases, ("Liver", "RK"), {"dsc": array, "nsd": array / 2})


def test_seeds_belong_together_and_methods_do_not() -> None:
    other_seed = config(seed_everything=1, trainer={"max_epochs": 5, "default_root_dir": "b"})
    control = config(model={"cross_pseudo_supervision": False, "initial_seed": 0})
    longer = config(trainer={"max_epochs": 6, "default_root_dir": "a"})
    runs = [
        run("cps_seed0", config()), run("control", control), run("cps_seed1", other_seed),
        run("longer", longer), run("no config"), run("nor this"),
    ]  # fmt: skip
    found = groups_of(runs)
    assert [group.places for group in found] == [(0, 2), (1,), (3,), (4,), (5,)]
    assert (found[0].name, found[0].kind) == ("cps", "seed")
    folds = groups_of([run("fold_0", config()), run("fold_1", config(data={"seed": 0, "fold": 1}))])
    assert [(group.places, group.kind) for group in folds] == [((0, 1), "fold")]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["runs/cps/seed-1", "runs/cps/seed-2"], "runs/cps"),
        (["cps3d_1", "cps3d_12"], "cps3d"),
        (["x1", "y1"], "x1 and 1 more"),
    ],
)
def test_what_a_group_is_called(names: list[str], expected: str) -> None:
    assert common_name(names) == expected


def test_a_case_counts_with_its_mean_over_the_seeds() -> None:
    nan = float("nan")
    one, two = scores([0.8, nan], [0.6, 0.4]), scores([0.6, 0.5], [0.8, 0.2], [0.1, 0.1], cases=("a", "b", "c"))
    runs = [run("s0", config(), scores=one), run("s1", config(seed_everything=1), scores=two)]
    (group,) = groups_of(runs)
    found = averaged_over_runs(runs, group).scores
    assert found is not None
    assert found.cases == ("a", "b"), "only cases that all have"
    np.testing.assert_allclose(found.values["dsc"], [[0.7, 0.5], [0.7, 0.3]])
    np.testing.assert_allclose(found.values["nsd"], [[0.35, 0.25], [0.35, 0.15]])
    runs = [run("s0", config(), scores=one), run("s1", config(seed_everything=1)), run("s2", config(seed_everything=2))]
    (group,) = groups_of(runs)
    assert averaged_over_runs(runs, group).scores is one, "a seed without scores yet is left out"
    assert averaged_over_runs(runs[1:], groups_of(runs[1:])[0]).scores is None


def test_seeds_are_drawn_thin_with_their_mean_and_a_band() -> None:
    panel = next(panel for panel in PANELS if panel.key == "loss")
    curves = [Curve(np.arange(1, n + 1), np.array(v, float)) for n, v in ((3, [4, 3, 2]), (2, [2, 1]), (2, [5, 5]))]
    metrics = [{metric_names.LOSS_TOTAL: curve} for curve in curves]
    mean, spread = mean_curve(curves[:2])
    assert mean.epochs.tolist() == [1, 2]
    assert mean.values.tolist() == [3, 2]
    assert spread.tolist() == pytest.approx([np.sqrt(2)] * 2)
    (axes,) = panel_figure(panel, metrics, groups=[0, 0, 1]).axes
    lines = axes.get_lines()
    assert [line.get_linewidth() for line in lines] == [0.7, 0.7, 1.5, 1.5]
    assert [line.get_ydata().tolist() for line in lines] == [[4, 3, 2], [2, 1], [3, 2], [5, 5]]
    assert lines[0].get_color() == lines[2].get_color() != lines[3].get_color()
    (band,) = axes.collections
    (path,) = band.get_paths()
    assert path.vertices[:, 1].max() == pytest.approx(3 + np.sqrt(2))
    assert path.vertices[:, 1].min() == pytest.approx(max(1.0, 2 - np.sqrt(2)))


# -- sessions


def record(start: int, seen: int, finished: bool = False, **more: Any) -> dict[str, Any]:
    moment = "2026-01-01T10:{:02d}:00+00:00"
    return {
        "started": moment.format(start), "seen": moment.format(seen),
        "finished": moment.format(seen) if finished else None, **more,
    }  # fmt: skip


def test_a_run_of_three_sessions_lasted_as_long_as_they_did() -> None:
    """10 minutes until it was killed, 5 until it was requeued, 20 to the end: what lies between them does not count."""
    first = record(0, 10, first_epoch=1, completed_epochs=4)
    second = record(20, 25, first_epoch=5, completed_epochs=6, ended_by="StoppedBySignal")
    last = record(30, 50, finished=True, first_epoch=7, completed_epochs=10)
    environment = {**last, "sessions": [first, second, last]}
    found = sessions_of(environment)
    assert [session.seconds for session in found] == [600, 300, 1200]
    assert [session.how for session in found] == ["", "stopped by a signal, as for a requeue", "trained to the end"]
    plan = {"trainer": {"max_epochs": 10}}
    assert run_status(environment, plan, logged_epochs=10) == "finished after 10 epochs, 35 min in 3 sessions"
    going = {**second, "sessions": [first, second]}
    assert run_status(going, plan, logged_epochs=7) == "6 of 10 epochs so far, about 10 min to go in 2 sessions"


def test_a_session_that_has_completed_nothing_yet_goes_on_where_the_last_one_was() -> None:
    first, second = record(0, 10, first_epoch=1, completed_epochs=4), record(20, 20, first_epoch=4)
    environment = {**second, "sessions": [first, second]}
    assert run_status(environment, {"trainer": {"max_epochs": 10}}, 4) == "3 of 10 epochs so far in 2 sessions"


def test_older_records_and_none() -> None:
    old = {"started": "2026-01-01T10:00:00+00:00", "finished": "2026-01-01T12:05:00+00:00", "completed_epochs": 5}
    assert run_status(old, {}, 5) == "finished after 5 epochs, 2 h 05 min"
    assert run_status({}, {}, 0) == ""
    assert run_status({}, {"trainer": {"max_epochs": 9}}, 0) == "no epoch completed yet"
    assert run_status({}, {"trainer": {"max_epochs": 9}}, 2) == "2 of 9 epochs so far"
    assert run_status({"started": old["started"], "finished": None}, {"trainer": {"max_epochs": 9}}, 2) == (
        "2 of 9 epochs so far"
    )
    assert sessions_of({}) == []
    failed = record(0, 10, first_epoch=1, completed_epochs=4, ended_by="TrainingError")
    said = run_status({**failed, "sessions": [failed]}, {"trainer": {"max_epochs": 8}}, 4)
    assert said == "4 of 8 epochs so far, about 10 min to go; the last session was ended by TrainingError"


# -- through time


def test_pictures_of_the_first_last_and_between(tmp_path: Path) -> None:
    assert evenly_spaced([3]) == [3]
    assert evenly_spaced(list(range(1, 101))) == [1, 26, 51, 75, 100]
    folder = tmp_path / "overlays" / "case_1"
    folder.mkdir(parents=True)
    for epoch in (1, 5, 10):
        (folder / f"epoch_{epoch:04d}.jpg").write_bytes(bytes([epoch]))
    (folder / "notes.jpg").write_bytes(b"x")
    (folder / ".partial-1-epoch_0011.jpg").write_bytes(b"x")
    (course,) = overlay_histories([Run("r", tmp_path)], [0])
    assert (course["case"], course["latest"]["epoch"]) == ("case_1", 10)
    assert [moment["epoch"] for moment in course["earlier"]] == [1, 5]
    assert course["latest"]["picture"] == "data:image/jpeg;base64,Cg=="
    assert overlay_histories([Run("r", tmp_path / "nothing")], [0]) == []


def test_the_last_validation_by_sibling() -> None:
    organs = organs_of({"background": 0, "liver": 1, "spleen": 2})

    def curve(*values: float) -> Curve:
        return Curve(np.arange(1, len(values) + 1), np.array(values))

    cps = {metric_names.dsc(source, "liver"): curve(0.1, last) for source, last in
           (("sibling_1", 0.5), ("sibling_2", 0.6), ("average", 0.7))}  # fmt: skip
    cps[metric_names.DSC_MEAN] = curve(0.1, 0.7)
    control = {metric_names.dsc(source, "liver"): curve(0.4) for source in ("sibling_1", "average")}
    found = validation_scores([run("cps", metrics=cps), run("none"), run("control", metrics=control)], organs)
    assert found is not None
    assert [column[1:] for column in found["columns"]] == [
        ("cps", "sibling 1"), ("cps", "sibling 2"), ("cps", "both averaged"), ("control", "one network"),
    ]  # fmt: skip
    assert [(organ.name, values) for organ, values in found["rows"]] == [("liver", [0.5, 0.6, 0.7, 0.4])]
    assert found["mean"] == pytest.approx([0.5, 0.6, 0.7, 0.4])
    assert found["epochs"][0] == ("cps", 2)
    assert validation_scores([run("none")], organs) is None


@pytest.mark.parametrize(("epochs", "every"), [(1, 1), (19, 1), (20, 1), (1000, 1), (1000, 7), (36, 2), (5, 5)])
def test_milestones_are_few_and_hold_the_last(epochs: int, every: int) -> None:
    validated = list(range(every, epochs + 1, every))
    shown = [epoch for epoch in validated if is_milestone(epoch, epochs, every)]
    assert shown[-1] == validated[-1]
    assert min(len(validated), 10) <= len(shown) <= 21
