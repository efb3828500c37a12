"""What must hold of every file that is read, whatever it holds: seeded mutations of each format, a few at a time here.

More of them: ``python tests/hostile.py --tries 1000``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hostile
import pytest

SEED, TRIES = 20, 15


@pytest.mark.parametrize("name", hostile.FORMATS)
def test_a_hostile_file_is_one_line_or_a_right_result(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLARECPS_TRACEBACK", raising=False)
    assert hostile.attack(name, TRIES, SEED) == []


def test_the_suite_finds_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(read: object, mutation: hostile.Mutation = ("", False), command: bool = False) -> str:
        attacked = hostile.Format(lambda root: None, lambda rng, root: mutation, read, command)  # type: ignore[arg-type]
        return hostile.complaint(attacked, tmp_path, mutation, (0, "1", ""))

    assert look(lambda root: 1) == ""
    assert look(lambda root: {}["x"]).startswith("KeyError")
    assert look(lambda root: 2, ("a mark", True)).startswith("another result")
    assert look(lambda root: ["no such command"], command=True) == ""  # one line, exit code 2
    assert look(lambda root: ["inspect"], command=True) == ""
    monkeypatch.setattr(hostile, "main", lambda words: print("two\nlines", file=sys.stderr) or 2)
    assert look(lambda root: ["inspect"], command=True).startswith("not one line")
