"""Charts on their way into the page: valid, themed, unique ids, nothing from outside."""

from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.evaluation.score_table import Scores
from flarecps.reporting.plotting import (
    RUN_COLOURS,
    TEXT,
    inline_svg,
    literal_text,
    new_figure,
    run_colour,
    style_axes,
    write_png,
)
from flarecps.reporting.score_charts import box_figure


def chart(label: str = "epoch") -> str:
    figure = new_figure(4, 3)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
    style_axes(axes)
    axes.plot([1, 2, 3], [1, 3, 2], "o-", color=run_colour(0))
    axes.set_xlabel(literal_text(label), color=TEXT)
    return inline_svg(figure, 'a "line" <rising>', "first")


def test_svg_is_self_contained_and_themed() -> None:
    svg = chart()
    assert "http" not in svg
    assert "<style" not in svg
    assert "<metadata" not in svg
    assert "var(--run-0)" in svg
    assert "var(--ink)" in svg
    assert not any(colour in svg for colour in (TEXT, *RUN_COLOURS))
    assert re.search(r"<text[^>]*>epoch</text>", svg)
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.get("aria-label") == 'a "line" <rising>'
    assert root.get("viewBox")
    assert "width" not in root.attrib


def test_ids_are_the_pictures_own_and_all_references_are_met() -> None:
    svg = chart()
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("first-") for name in ids)
    used = re.findall(r"url\(#([^)]+)\)", svg) + re.findall(r'href="#([^"]+)"', svg)
    assert used
    assert set(used) <= set(ids)


@pytest.mark.parametrize("name", ["a<b>&c", "$x_1$", "cost: 5$", "run_1"])
def test_names_are_printed_letter_by_letter(name: str) -> None:
    root = ElementTree.fromstring(chart(name).replace("xlink:href", "href"))
    assert name in [element.text for element in root.iter("text")]


def test_leading_underscore_does_not_hide_a_name() -> None:
    assert not literal_text("_run").startswith("_")
    assert literal_text("_run").strip() == "_run"


def test_png_is_written_whole(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", new_figure(2, 1), dots_per_inch=50)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_boxes_stand_for_the_quartiles() -> None:
    values = np.array([[0.1, 0.9], [0.5, math.nan], [0.6, 0.7], [0.8, 0.8], [0.9, math.nan]])
    scores = Scores(tuple("abcde"), ("Liver", "RK"), {"dsc": values, "nsd": values})
    (axes,) = box_figure([scores, None], FLARE22_ORGANS[:3]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["liver", "right kidney", "spleen"]
    edges = [path.get_path().get_extents() for path in axes.patches]
    assert [(box.x0, box.x1) for box in edges] == [pytest.approx((0.5, 0.8)), pytest.approx((0.75, 0.85))]
    points = [line.get_xdata().tolist() for line in axes.get_lines() if line.get_marker() == "o"]
    assert points == [[0.1, 0.5, 0.6, 0.8, 0.9], [0.9, 0.7, 0.8]]
    lower, upper = axes.get_ylim()
    assert lower > upper  # organs downwards, as in the table
