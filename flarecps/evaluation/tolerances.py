"""The tolerances of NSD: FLARE22's unless the user names others."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flarecps.anatomy import Organ
from flarecps.errors import ConfigError

EXPECTED = 'expected millimetres for all (3), by organ (liver=5,spleen=3), or a JSON file {"liver": 5}'


def read_tolerances(words: str, organs: Sequence[Organ]) -> dict[str, float]:
    """Tolerances in mm by organ name, from the user's ``words``: ``3``, ``liver=5,RK=3``, ``2,liver=5`` or a file.

    A bare number holds for every organ that is not named; the organs left unmentioned are not in the result. Organs go
    by their name or their column in FLARE's tables, in capitals or not. The file is JSON, ``{"liver": 5, "RK": 3}``.
    Raises ConfigError for an unknown organ, and a tolerance that is not a number of 0 mm or more.
    """
    names = {word.lower(): organ.name for organ in organs for word in (organ.name, organ.column)}
    found: dict[str, float] = {}
    for word, value in _entries(words):
        tolerance_mm = _millimetres(value, words)
        if word is None:
            found = {organ.name: tolerance_mm for organ in organs} | found
        elif word.lower() not in names:
            known = ", ".join(organ.name for organ in organs)
            raise ConfigError(f"tolerance {words!r}: no organ is called {word!r}; the label set holds {known}")
        else:
            found[names[word.lower()]] = tolerance_mm
    return found


def with_tolerances(organs: Sequence[Organ], tolerances_mm: Mapping[str, float]) -> tuple[Organ, ...]:
    """The organs, those in ``tolerances_mm`` (by name) with that tolerance.

    >>> from flarecps.anatomy import FLARE22_ORGANS
    >>> [organ.tolerance_mm for organ in with_tolerances(FLARE22_ORGANS[:2], {"liver": 1.5})]
    [1.5, 3.0]
    """
    return tuple(replace(organ, tolerance_mm=tolerances_mm.get(organ.name, organ.tolerance_mm)) for organ in organs)


def _entries(words: str) -> list[tuple[str | None, object]]:
    """(organ or None for all, value) in the order written."""
    if words.strip().lower().endswith(".json"):
        path = Path(words.strip())
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; {EXPECTED}") from None
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: not readable as JSON ({error}); {EXPECTED}") from error
        if not isinstance(content, dict) or not content:
            raise ConfigError(f'{path}: expected one object with a tolerance in mm by organ, such as {{"liver": 5}}')
        return list(content.items())
    entries: list[tuple[str | None, object]] = []
    for part in words.split(","):
        organ, equals, value = part.partition("=")
        entries.append((organ.strip(), value) if equals else (None, part))
    return entries


def _millimetres(value: object, words: str) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # whatever the user wrote
    except (TypeError, ValueError):
        raise ConfigError(f"tolerance {words!r}: {value!r} is no number of mm; {EXPECTED}") from None
    if not math.isfinite(number) or number < 0 or isinstance(value, bool):
        raise ConfigError(f"tolerance {words!r}: {value!r} is no distance; expected 0 mm or more")
    return number
