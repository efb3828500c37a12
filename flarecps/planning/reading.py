"""Reading hand-edited JSON so that every mistake is answered with key, value, expectation and cure."""

from __future__ import annotations

import difflib
import json
import math
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

    def value(self, key: str) -> Any:
        """The entry as it stands; ``PlanError`` when it is missing (a misspelt neighbour is named)."""
        self.asked.add(key)
        if key not in self.content:
            near = difflib.get_close_matches(key, self.content, n=1)
            hint = f"is '{near[0]}' a misspelling of it?" if near else "write the plan again with 'flarecps plan'"
            raise PlanError(f"{self.where}: '{self.prefix}{key}' is missing; {hint}")
        return self.content[key]

    def string(self, key: str) -> str:
        """A string."""
        value = self.value(key)
        if not isinstance(value, str):
            raise self.error(key, "a text in quotes", "put it in double quotes")
        return value

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of at least one string."""
        value = self.value(key)
        if not isinstance(value, list) or not value or not all(isinstance(entry, str) for entry in value):
            raise self.error(key, "a list of texts", 'write it as ["…"]')
        return tuple(value)

    def choice(self, key: str, choices: tuple[str, ...]) -> str:
        """One of ``choices``."""
        value = self.string(key)
        if value not in choices:
            raise self.error(key, " or ".join(f"'{choice}'" for choice in choices), "choose one of them")
        return value

    def boolean(self, key: str) -> bool:
        """true or false."""
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", "write it without quotes")
        return value

    def integer(self, key: str, at_least: int = 1) -> int:
        """A whole number."""
        value = self.value(key)
        if not _is_whole(value) or value < at_least:
            raise self.error(key, f"a whole number, at least {at_least}", "edit it, or plan again")
        return int(value)

    def number(self, key: str, above: float | None = None, at_least: float | None = None) -> float:
        """A finite number."""
        value = self.value(key)
        if not _fits(value, above, at_least):
            raise self.error(key, f"a number{_bound(above, at_least)}", "edit it, or plan again")
        return float(value)

    def integers(self, key: str, length: int | None, at_least: int = 1) -> tuple[int, ...]:
        """A list of ``length`` whole numbers (``None``: one or more)."""
        value = self.value(key)
        if not _is_row(value, length, at_least):
            raise self.error(key, f"{_row_text(length)}, each at least {at_least}", "edit it, or plan again")
        return tuple(value)

    def numbers(self, key: str, length: int, above: float) -> tuple[float, ...]:
        """A list of ``length`` numbers."""
        value = self.value(key)
        if not isinstance(value, list) or len(value) != length or not all(_fits(v, above, None) for v in value):
            raise self.error(key, f"a list of {length} numbers, each above {above:g}", "edit it, or plan again")
        return tuple(float(v) for v in value)

    def rows(self, key: str, length: int) -> tuple[tuple[int, ...], ...]:
        """A list of lists of ``length`` positive whole numbers; may be empty."""
        value = self.value(key)
        if not isinstance(value, list) or not all(_is_row(row, length, 1) for row in value):
            raise self.error(key, f"a list whose entries are each {_row_text(length)}, at least 1", "edit it")
        return tuple(tuple(row) for row in value)

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, as it stands."""
        value = self.value(key)
        if not isinstance(value, dict):
            raise self.error(key, "an object with named entries, { … }", "write the plan again with 'flarecps plan'")
        return dict(value)

    def section(self, key: str) -> Reader:
        """A reader of the object under ``key``."""
        return Reader(self.value(key), self.where, f"{self.prefix}{key}.")

    def refuse_unknown(self) -> None:
        """``PlanError`` for an entry nobody asked for: most often a misspelling."""
        for key in self.content:
            if key not in self.asked:
                near = difflib.get_close_matches(key, self.asked, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(self.asked))}"
                raise PlanError(f"{self.where}: '{self.prefix}{key}' is not an entry of a plan; {hint}")


class DuplicateKeyError(ValueError):
    """A key that stands twice in one JSON object; its text is the key."""


def reject_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these entries (for ``json.loads``); ``DuplicateKeyError`` instead of silently taking the last."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKeyError(next(key for key in keys if keys.count(key) > 1))
    return content


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_row(value: Any, length: int | None, at_least: int) -> bool:
    if not isinstance(value, list) or not value or (length is not None and len(value) != length):
        return False
    return all(_is_whole(entry) and entry >= at_least for entry in value)


def _fits(value: Any, above: float | None, at_least: float | None) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return False
    return (above is None or value > above) and (at_least is None or value >= at_least)


def _bound(above: float | None, at_least: float | None) -> str:
    if above is not None:
        return f" above {above:g}"
    return "" if at_least is None else f", at least {at_least:g}"


def _row_text(length: int | None) -> str:
    return "a list of whole numbers" if length is None else f"a list of {length} whole numbers"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "…"
