"""Learning curves: sparse, growing and resumed metric files, and what is drawn of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flarecps import metric_names
from flarecps.reporting.curves import (
    ORGAN_CHARTS,
    PANELS,
    Curve,
    Panel,
    drawable,
    last_epoch,
    organ_figure,
    panel_figure,
    read_metrics,
)


def panel(key: str) -> Panel:
    return next(panel for panel in PANELS if panel.key == key)


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def curve(*values: float) -> Curve:
    return Curve(np.arange(1, len(values) + 1), np.array(values))


def test_rows_are_sparse_and_epochs_count_from_one(tmp_path: Path) -> None:
    metrics = read_metrics(
        written(
            tmp_path / "metrics.csv",
            "epoch,step,train/loss,validation/dsc/mean\n0,9,2.0,\n1,19,1.5,\n1,19,,0.25\n2,29,1.0,\n",
        )
    )
    assert metrics["train/loss"].epochs.tolist() == [1, 2, 3]
    assert metrics["train/loss"].values.tolist() == [2.0, 1.5, 1.0]
    assert metrics["validation/dsc/mean"].epochs.tolist() == [2]
    assert "step" not in metrics
    assert last_epoch(metrics) == 3


def test_a_resumed_run_keeps_its_last_word(tmp_path: Path) -> None:
    metrics = read_metrics(written(tmp_path / "m.csv", "epoch,step,a\n0,1,5\n1,2,4\n1,2,3\n2,3,2\n"))
    assert metrics["a"].values.tolist() == [5, 3, 2]


@pytest.mark.parametrize("ending", ["2,3", "2,3,", '2,3,"', "2", "2,3,1.2,9,9", "", "\n"])
def test_a_line_that_is_still_being_written_is_ignored(tmp_path: Path, ending: str) -> None:
    metrics = read_metrics(written(tmp_path / "m.csv", f"epoch,step,a,b\n0,1,5,6\n1,2,4,5\n{ending}"))
    assert metrics["a"].values.tolist() == [5, 4]


def test_what_is_not_finite_is_no_point(tmp_path: Path) -> None:
    metrics = read_metrics(written(tmp_path / "m.csv", "epoch,step,a,b\n0,1,nan,text\n1,2,inf,\n2,3,1,\n"))
    assert metrics["a"].epochs.tolist() == [3]
    assert "b" not in metrics


def test_without_file_or_rows_there_are_no_curves(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "missing.csv") == {}
    assert read_metrics(written(tmp_path / "m.csv", "")) == {}
    assert read_metrics(written(tmp_path / "m.csv", "epoch,step,a\n")) == {}
    assert last_epoch({}) == 0


def test_every_logged_name_of_the_paper_has_a_chart() -> None:
    charted = {name for panel in PANELS for _, name in panel.metrics}
    assert {metric_names.LOSS_TOTAL, metric_names.LAMBDA, metric_names.DSC_MEAN} <= charted
    for name_of in (metric_names.supervised_loss, metric_names.cross_pseudo_loss, metric_names.learning_rate):
        assert {name_of(1), name_of(2)} <= charted


def test_runs_share_axes_siblings_differ_by_dashes() -> None:
    cps = {metric_names.supervised_loss(1): curve(3, 2, 1), metric_names.supervised_loss(2): curve(3, 2, 2)}
    control = {metric_names.supervised_loss(1): curve(3, 1)}
    (axes,) = panel_figure(panel("supervised"), [cps, control]).axes
    lines = axes.get_lines()
    assert [line.get_ydata().tolist() for line in lines] == [[3, 2, 1], [3, 2, 2], [3, 1]]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert [line.get_linestyle() for line in lines] == ["-", "--", "-"]
    assert axes.get_xlim() == (1, 3)
    assert axes.get_ylim()[0] == 0
    assert all(tick == int(tick) and 1 <= tick <= 3 for tick in axes.get_xticks())


def test_a_control_has_no_cross_pseudo_curve() -> None:
    zeros = {metric_names.cross_pseudo_loss(1): curve(0, 0)}
    assert not drawable(panel("cross_pseudo"), [zeros])
    both = [{metric_names.cross_pseudo_loss(1): curve(1, 0.5)}, zeros]
    assert drawable(panel("cross_pseudo"), both)
    assert len(panel_figure(panel("cross_pseudo"), both).axes[0].get_lines()) == 1
    assert not drawable(panel("speed"), both)


def test_axes_fit_their_quantity() -> None:
    (axes,) = panel_figure(panel("dsc"), [{metric_names.DSC_MEAN: curve(0.2, 0.99)}]).axes
    assert axes.get_ylim()[0] == 0.0
    assert axes.get_ylim()[1] <= 1.0
    (axes,) = panel_figure(panel("loss"), [{metric_names.LOSS_TOTAL: curve(0.5, -0.8)}]).axes  # Dice as -Dice
    assert axes.get_ylim()[0] < -0.8
    (axes,) = panel_figure(panel("lambda"), [{metric_names.LAMBDA: curve(0, 0)}]).axes
    assert axes.get_ylim() == (0, 1)
    (axes,) = panel_figure(panel("rate"), [{metric_names.learning_rate(1): curve(0.1, 0.02)}]).axes
    assert axes.get_yscale() == "log"
    (axes,) = panel_figure(panel("loss"), [{metric_names.LOSS_TOTAL: curve(0.5)}]).axes  # the first epoch alone
    assert axes.get_lines()[0].get_marker() == "o"


def test_organs_have_their_own_charts_with_one_pair_of_axes() -> None:
    names = ["liver", "right kidney", "spleen"]
    metrics = {metric_names.dsc("average", name): curve(0.1, 0.2 + 0.1 * i) for i, name in enumerate(names[:2])}
    figure = organ_figure([metrics, {}], names)
    assert figure is not None
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == ["liver", "right kidney"]
    assert {axes.get_ylim() for axes in shown} == {(0, 1)}
    assert organ_figure([metrics], ["pancreas"]) is None
    assert organ_figure([], names) is None


def test_health_and_validation_patches_have_charts() -> None:
    charted = {name for panel in PANELS for _, name in panel.metrics}
    assert {metric_names.HEALTH_VANISHED, metric_names.HEALTH_HELD, metric_names.DATA_WAIT} <= charted
    assert {metric_names.patch_loss(2), metric_names.patch_dsc_mean(1)} <= charted
    by_organ = {name for chart in ORGAN_CHARTS for _, name in chart.metrics_of("right kidney")}
    assert {metric_names.health_agreement("right kidney"), metric_names.health_entropy("right kidney")} <= by_organ
    assert {metric_names.health_volume(number, "right kidney") for number in (1, 2)} <= by_organ
    assert metric_names.patch_dsc(1, "right kidney") in by_organ


def test_a_share_against_its_prior_is_a_ratio_around_one() -> None:
    chart = next(one for one in ORGAN_CHARTS if one.ratio)
    metrics = {
        metric_names.health_volume(1, "liver"): curve(1, 0.2, 0),
        metric_names.health_volume(2, "liver"): curve(1, 2),
    }
    figure = organ_figure([metrics], ["liver", "spleen"], chart)
    assert figure is not None
    (axes,) = figure.axes  # nothing is known of the spleen
    first, second, one = axes.get_lines()
    assert first.get_ydata().tolist() == [1, 0.2, 0.01]  # none at all lies at the lower edge
    assert (first.get_linestyle(), second.get_linestyle()) == ("-", "--")
    assert set(one.get_ydata()) == {1}
    assert axes.get_yscale() == "log"


def test_counts_have_whole_ticks() -> None:
    (axes,) = panel_figure(panel("vanished"), [{metric_names.HEALTH_VANISHED: curve(0, 0)}]).axes
    assert axes.get_ylim() == (0, 1)
    assert all(tick == int(tick) for tick in axes.get_yticks())
