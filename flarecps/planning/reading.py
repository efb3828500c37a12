"""Reading hand-edited JSON so that every mistake is answered with key, value, expectation and cure."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable
from typing import Any

from flarecps.errors import PlanError


class Reader:
    """Typed access to one JSON object; remembers which keys were asked for."""

    def __init__(self, content: Any, where: str, prefix: str = "") -> None:
        self.where, self.prefix = where, prefix
        if not isinstance(content, dict):
            name = f"'{prefix.rstrip('.')}'" if prefix else "the file"
            raise PlanError(f"{where}: {name} holds {_shown(content)}; expected an object with named entries")
        self.content: dict[str, Any] = content
        self.asked: set[str] = set()

    def error(self, key: str, expected: str, cure: str) -> PlanError:
        """The error for ``key``: its value, what was expected, how to cure it."""
        return PlanError(
            f"{self.where}: '{self.prefix}{key}' is {_shown(self.content.get(key))}; expected {expected}; {cure}"
        )

    def string(self, key: str) -> str:
        """A string."""
        return self._checked(key, lambda value: isinstance(value, str), "a text in quotes", "put it in double quotes")

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of at least one string."""

        def valid(value: Any) -> bool:
            return isinstance(value, list) and bool(value) and all(isinstance(entry, str) for entry in value)

        return tuple(self._checked(key, valid, "a list of texts", 'write it as ["…"]'))

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """One of ``choices``."""
        value = self.string(key)
        if value not in choices:
            raise self.error(key, " or ".join(f"'{choice}'" for choice in choices), "choose one of them")
        return value

    def boolean(self, key: str) -> bool:
        """true or false."""
        return self._checked(key, lambda value: isinstance(value, bool), "true or false", "write it without quotes")

    def integer(self, key: str, at_least: int = 1) -> int:
        """A whole number."""
        return self._checked(key, lambda value: _is_whole(value, at_least), f"a whole number, at least {at_least}")

    def number(self, key: str, above: float | None = None, at_least: float | None = None) -> float:
        """A finite number."""
        bound = f" above {above:g}" if above is not None else "" if at_least is None else f", at least {at_least:g}"
        return float(self._checked(key, lambda value: _is_number(value, above, at_least), f"a number{bound}"))

    def integers(self, key: str, length: int | None, at_least: int = 1) -> tuple[int, ...]:
        """A list of ``length`` whole numbers (``None``: one or more)."""
        expected = f"{_row_text(length)}, each at least {at_least}"
        return tuple(self._checked(key, lambda value: _is_row(value, length, at_least), expected))

    def numbers(self, key: str, length: int, above: float) -> tuple[float, ...]:
        """A list of ``length`` numbers."""

        def valid(value: Any) -> bool:
            return isinstance(value, list) and len(value) == length and all(_is_number(v, above) for v in value)

        return tuple(map(float, self._checked(key, valid, f"a list of {length} numbers, each above {above:g}")))

    def rows(self, key: str, length: int) -> tuple[tuple[int, ...], ...]:
        """A list of lists of ``length`` positive whole numbers; may be empty."""

        def valid(value: Any) -> bool:
            return isinstance(value, list) and all(_is_row(row, length, 1) for row in value)

        expected = f"a list whose entries are each {_row_text(length)}, at least 1"
        return tuple(map(tuple, self._checked(key, valid, expected, "edit it")))

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, as it stands."""
        expected, cure = "an object with named entries, { … }", "write the plan again with 'flarecps plan'"
        return dict(self._checked(key, lambda value: isinstance(value, dict), expected, cure))

    def section(self, key: str) -> Reader:
        """A reader of the object under ``key``."""
        return Reader(self._value(key), self.where, f"{self.prefix}{key}.")

    def refuse_unknown(self) -> None:
        """``PlanError`` for an entry nobody asked for: most often a misspelling."""
        for key in self.content:
            if key not in self.asked:
                near = difflib.get_close_matches(key, self.asked, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(self.asked))}"
                raise PlanError(f"{self.where}: '{self.prefix}{key}' is not an entry of a plan; {hint}")

    def _value(self, key: str) -> Any:
        """The entry as it stands; ``PlanError`` when it is missing (a misspelt neighbour is named)."""
        self.asked.add(key)
        if key not in self.content:
            near = difflib.get_close_matches(key, self.content, n=1)
            hint = f"is '{near[0]}' a misspelling of it?" if near else "write the plan again with 'flarecps plan'"
            raise PlanError(f"{self.where}: '{self.prefix}{key}' is missing; {hint}")
        return self.content[key]

    def _checked(
        self, key: str, valid: Callable[[Any], bool], expected: str, cure: str = "edit it, or plan again"
    ) -> Any:
        value = self._value(key)
        if not valid(value):
            raise self.error(key, expected, cure)
        return value


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these entries (for ``json.loads``); ``PlanError`` instead of silently taking the last."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise PlanError(f"'{key}' stands twice in one object; remove one of the two")
    return dict(pairs)


def _is_whole(value: Any, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _is_row(value: Any, length: int | None, at_least: int) -> bool:
    if not isinstance(value, list) or not value or (length is not None and len(value) != length):
        return False
    return all(_is_whole(entry, at_least) for entry in value)


def _is_number(value: Any, above: float | None, at_least: float | None = None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return (above is None or value > above) and (at_least is None or value >= at_least)


def _row_text(length: int | None) -> str:
    return "a list of whole numbers" if length is None else f"a list of {length} whole numbers"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
