"""Markdown tables of scores, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from flarecps.errors import ConfigError
from flarecps.evaluation.score_table import read_scores
from flarecps.reporting.tables import markdown_table, methods_markdown, scores_markdown

FIRST = """Name,Liver_DSC,RK_DSC,Liver_NSD,RK_NSD
a.nii.gz,0.9,0.5,1.0,0.4
b.nii.gz,0.7,,0.8,
"""
SECOND = """Name,Liver_DSC,my_thing_DSC,Liver_NSD,my_thing_NSD
a.nii.gz,0.6,0.2,0.5,0.3
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    first, second = tmp_path / "first" / "scores.csv", tmp_path / "second.csv"
    first.parent.mkdir()
    first.write_text(FIRST)
    second.write_text(SECOND)
    return first, second


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in table.splitlines() if line.startswith("|")]


def test_one_method_with_both_measures(files: tuple[Path, Path]) -> None:
    text = scores_markdown(read_scores(files[0]), "CPS", notes=["a note"])
    header, _, liver, kidney, mean = cells(text)
    assert text.startswith("# CPS\n")
    assert text.endswith("\n- a note\n")
    assert header == ["organ", "DSC", "NSD", "cases"]
    assert liver == ["liver", "0.8000 ± 0.1414", "0.9000 ± 0.1414", "2"]
    assert kidney == ["right kidney", "0.5000", "0.4000", "1"]
    # (0.8 + 0.5) / 2; cases: (0.9 + 0.5) / 2 and 0.7, hence no spread
    assert mean == ["mean over organs", "0.6500 ± 0.0000", "0.6500 ± 0.0707", "2"]


def test_methods_side_by_side(files: tuple[Path, Path]) -> None:
    table = methods_markdown({"CPS": read_scores(files[0]), "control": read_scores(files[1])})
    assert cells(table)[0] == ["DSC", "CPS", "control"]
    assert cells(table)[2:] == [
        ["liver", "0.8000 ± 0.1414", "0.6000"],
        ["right kidney", "0.5000", "–"],
        ["my thing", "–", "0.2000"],
        ["mean over organs", "0.6500 ± 0.0000", "0.4000"],
    ]
    plain = methods_markdown({"CPS": read_scores(files[0])}, "nsd", with_sd=False)
    assert cells(plain)[2:] == [["liver", "0.9000"], ["right kidney", "0.4000"], ["mean over organs", "0.6500"]]


def test_columns_line_up_and_bars_are_escaped() -> None:
    lines = markdown_table(["organ", "a|b"], [["liver", "1"], ["x", "0.25"]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0] == r"| organ | a\|b |"
    assert lines[1] == "|-------|-----:|"


def test_mistakes(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="'hd95'"):
        methods_markdown({"CPS": read_scores(files[0])}, "hd95")
    with pytest.raises(ConfigError, match="one or more methods"):
        methods_markdown({})
