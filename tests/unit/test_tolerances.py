"""Tolerances of NSD as users write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flarecps.anatomy import FLARE22_ORGANS, organs_of
from flarecps.errors import ConfigError
from flarecps.evaluation.label_sets import read_tolerances, with_tolerances

ORGANS = organs_of({"liver": 1, "right kidney": 2, "thing": 3})


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("3", {"liver": 3.0, "right kidney": 3.0, "thing": 3.0}),
        ("liver=5,thing=0.5", {"liver": 5.0, "thing": 0.5}),
        (" RK = 1 , Liver=2", {"right kidney": 1.0, "liver": 2.0}),
        ("1.5,liver=4", {"liver": 4.0, "right kidney": 1.5, "thing": 1.5}),
        ("liver=4,1.5", {"liver": 4.0, "right kidney": 1.5, "thing": 1.5}),
        ("0", {"liver": 0.0, "right kidney": 0.0, "thing": 0.0}),
    ],
)
def test_words(words: str, expected: dict[str, float]) -> None:
    assert read_tolerances(words, ORGANS) == expected


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "tolerances.json"
    path.write_text(json.dumps({"liver": 5, "rk": 2.5}))
    assert read_tolerances(str(path), ORGANS) == {"liver": 5.0, "right kidney": 2.5}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "is no number of mm"),
        ("five", "is no number of mm; expected millimetres for all"),
        ("liver=", "is no number"),
        ("spleen=3", "no organ is called 'spleen'; the label set holds liver, right kidney, thing"),
        ("-1", "expected 0 mm or more"),
        ("nan", "expected 0 mm or more"),
        ("liver=inf", "expected 0 mm or more"),
        ("nowhere.json", "no such file"),
    ],
)
def test_mistakes(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_tolerances(words, ORGANS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[3]", "expected one object"),
        ('{"liver": [3]}', "no number"),
        ('{"liver": true}', "no distance"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_tolerances(str(path), ORGANS)


def test_only_the_tolerance_changes() -> None:
    changed = with_tolerances(FLARE22_ORGANS, {"spleen": 1.0})
    assert [organ.tolerance_mm for organ in changed] == [5, 3, 1, 5, 2, 2, 2, 2, 2, 3, 5, 7, 3]
    assert [(o.id, o.name, o.column, o.colour) for o in changed] == [
        (o.id, o.name, o.column, o.colour) for o in FLARE22_ORGANS
    ]
