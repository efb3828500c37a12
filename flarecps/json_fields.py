"""Typed access to parsed JSON: every mistake in it is answered with key, value, expectation and cure."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable
from typing import Any

from flarecps.errors import FlarecpsError, PlanError


class Reader:
    """Typed access to one JSON object; remembers which keys were asked for.

    ``where`` begins every message and ``prefix`` every key; what is wrong raises ``kind``. ``again``: how such a file
    is made anew, the cure where there is no better one.
    """

    def __init__(
        self,
        content: Any,
        where: str,
        prefix: str = "",
        kind: type[FlarecpsError] = PlanError,
        again: str = "write the plan again with 'flarecps plan'",
    ) -> None:
        self.where, self.prefix, self.kind, self.again = where, prefix, kind, again
        if not isinstance(content, dict):
            name = f"'{prefix.rstrip('.')}'" if prefix else "the file"
            raise kind(f"{where}: {name} holds {shown(content)}; expected an object with named entries; {again}")
        self.content: dict[str, Any] = content
        self.asked: set[str] = set()

    def error(self, key: str, expected: str, cure: str = "") -> FlarecpsError:
        """The error for ``key``: its value, what was expected, how to cure it."""
        found = f"{self.where}: '{self.prefix}{key}' is {shown(self.content.get(key))}"
        return self.kind(f"{found}; expected {expected}; {cure or self.again}")

    def string(self, key: str) -> str:
        """A string."""
        return self._checked(key, lambda value: isinstance(value, str), "a text in quotes", "put it in double quotes")

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of at least one string."""
        valid = _list_of(lambda entry: isinstance(entry, str))
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
        return self._checked(key, lambda value: is_whole(value, at_least), f"a whole number, at least {at_least}")

    def number(self, key: str, above: float | None = None, at_least: float | None = None) -> float:
        """A finite number."""
        bound = f" above {above:g}" if above is not None else "" if at_least is None else f", at least {at_least:g}"
        return float(self._checked(key, lambda value: is_number(value, above, at_least), f"a number{bound}"))

    def integers(self, key: str, length: int | None, at_least: int = 1) -> tuple[int, ...]:
        """A list of ``length`` whole numbers (``None``: one or more)."""
        valid = _list_of(lambda entry: is_whole(entry, at_least), length)
        return tuple(self._checked(key, valid, f"{_row_text(length)}, each at least {at_least}"))

    def ids(self, key: str) -> tuple[int, ...]:
        """A list of label ids; may be empty."""
        return () if self._value(key) == [] else self.integers(key, None)

    def numbers(self, key: str, length: int, above: float) -> tuple[float, ...]:
        """A list of ``length`` numbers."""
        valid = _list_of(lambda entry: is_number(entry, above), length)
        return tuple(map(float, self._checked(key, valid, f"a list of {length} numbers, each above {above:g}")))

    def rows(self, key: str, length: int) -> tuple[tuple[int, ...], ...]:
        """A list of lists of ``length`` positive whole numbers; may be empty."""
        rows = _list_of(_list_of(lambda entry: is_whole(entry, 1), length))
        expected = f"a list whose entries are each {_row_text(length)}, at least 1"
        return tuple(map(tuple, self._checked(key, lambda value: value == [] or rows(value), expected, "edit it")))

    def mapping(self, key: str) -> dict[str, Any]:
        """An object, as it stands."""
        expected = "an object with named entries, { … }"
        return dict(self._checked(key, lambda value: isinstance(value, dict), expected, self.again))

    def section(self, key: str) -> Reader:
        """A reader of the object under ``key``."""
        return Reader(self._value(key), self.where, f"{self.prefix}{key}.", self.kind, self.again)

    def refuse_unknown(self) -> None:
        """An error for an entry nobody asked for: most often a misspelling."""
        for key in self.content:
            if key not in self.asked:
                near = difflib.get_close_matches(key, self.asked, n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(self.asked))}"
                raise self.kind(f"{self.where}: '{self.prefix}{key}' is not an entry here; {hint}")

    def _value(self, key: str) -> Any:
        """The entry as it stands; an error when it is missing (a misspelt neighbour is named)."""
        self.asked.add(key)
        if key not in self.content:
            near = difflib.get_close_matches(key, self.content, n=1)
            hint = f"is '{near[0]}' a misspelling of it?" if near else self.again
            raise self.kind(f"{self.where}: '{self.prefix}{key}' is missing; {hint}")
        return self.content[key]

    def _checked(self, key: str, valid: Callable[[Any], bool], expected: str, cure: str = "") -> Any:
        value = self._value(key)
        if not valid(value):
            raise self.error(key, expected, cure)
        return value


def is_whole(value: Any, at_least: int = 0) -> bool:
    """Whether a JSON value is a whole number (true and false are none) of at least that much."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _list_of(valid: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    """Whether a value is a list of ``length`` (None: one or more) entries that are all ``valid``."""

    def is_such_a_list(value: Any) -> bool:
        fits = isinstance(value, list) and (bool(value) if length is None else len(value) == length)
        return fits and all(map(valid, value))

    return is_such_a_list


def is_number(value: Any, above: float | None = None, at_least: float | None = None) -> bool:
    """Whether a JSON value is a finite number (true and false are none) within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        return False
    return (above is None or value > above) and (at_least is None or value >= at_least)


def _row_text(length: int | None) -> str:
    return "a list of whole numbers" if length is None else f"a list of {length} whole numbers"


def shown(value: Any) -> str:
    """A JSON value as a message shows it, at most 80 characters."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # no JSON, but a checkpoint's
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "…"
