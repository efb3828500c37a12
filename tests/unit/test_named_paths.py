"""The user's words for methods and paths, parsed alike by every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from flarecps.errors import ConfigError
from flarecps.named_paths import comma_list, method_names, name_and_rest, shortest_ends


def test_lists() -> None:
    assert comma_list(None) is None
    assert comma_list("control, CPS ,x=y") == ["control", "CPS", "x=y"]


def test_a_word_that_is_a_path_has_no_name_whatever_signs_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lambda=0.5").mkdir()
    assert name_and_rest("lambda=0.5") == (None, "lambda=0.5")
    assert name_and_rest("CPS=lambda=0.5") == ("CPS", "lambda=0.5")
    assert name_and_rest("=runs/a") == ("", "runs/a")
    assert name_and_rest("runs/a") == (None, "runs/a")


def test_ends_tell_all_paths_apart() -> None:
    paths = [("a", "cps", "0"), ("a", "control", "0"), ("b", "control", "0")]
    assert shortest_ends(paths) == ["a/cps/0", "a/control/0", "b/control/0"]
    assert shortest_ends([("x", "y"), ("x", "y")]) == ["y", "y"]  # the same path twice is its caller's concern


def test_names_come_from_the_option_then_the_word_then_the_path() -> None:
    paths = [("runs", "a"), ("runs", "b")]
    assert method_names([None, "CPS"], paths) == ["a", "CPS"]
    assert method_names([None, "CPS"], paths, ["one", "two"]) == ["one", "two"]
    with pytest.raises(ConfigError, match="--names has 1 names for 2 methods"):
        method_names([None, None], paths, ["one"])
