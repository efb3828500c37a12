"""A protocol's file: read, and written as it is kept beside a study's results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from flarecps.errors import ConfigError
from flarecps.experiments.study.protocol import (
    BY,
    CHECKPOINTS,
    EXPECTED,
    INTENSITIES,
    MEASURES,
    PAIRS,
    SCORING,
    Arm,
    Judged,
    Primary,
    Protocol,
)
from flarecps.json_fields import Reader
from flarecps.text_files import read_yaml

TEXTS = ("title", "config", "plan", "compute_of", "teachers", "average_of", "predictions")  # of an arm
_Value = TypeVar("_Value")


def read_protocol(path: Path) -> Protocol:
    """The protocol in a YAML file. ConfigError names what is missing, unknown, or contradicts itself."""
    content = _with_text_keys(read_yaml(path, ConfigError, EXPECTED))
    reader = Reader(content, str(path), kind=ConfigError, again=EXPECTED)
    named = reader.section("arms")
    arms = tuple(_arm(named.section(name), name) for name in named.content)
    judged, primary = _judged(reader.section("judged")), _primary(reader.section("primary"))
    more: dict[str, Any] = {
        "seeds": _or(reader, "seeds", reader.integer, 1),
        "pairs": _or(reader, "pairs", partial(reader.choice, choices=PAIRS), "disjoint"),
        "post_processing": _texts(reader, "post_processing", ("determined",)),
        "scoring": _or(reader, "scoring", partial(reader.choice, choices=SCORING), "strict"),
        "checkpoint": _or(reader, "checkpoint", partial(reader.choice, choices=CHECKPOINTS), "last"),
        "without": _texts(reader, "without", ()),
        "remarks": _texts(reader, "remarks", ()),
        **{key: _settings(reader, key) for key in ("settings", "plan", "segment")},
        "plans": _plans(reader),
    }
    reader.refuse_unknown()
    try:
        return Protocol(arms, judged, primary, **more)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _arm(reader: Reader, name: str) -> Arm:
    texts = {key: _or(reader, key, reader.string, "") for key in TEXTS}
    found = Arm(
        name,
        settings=_settings(reader, "settings"),
        intensity=_or(reader, "intensity", partial(reader.choice, choices=INTENSITIES), "global"),
        share=_or(reader, "share", partial(reader.number, above=0), 1.0),
        siblings=_texts(reader, "siblings", ("1",)),
        splits=_texts(reader, "splits", ()),
        **texts,
    )
    reader.refuse_unknown()
    return found


def _judged(reader: Reader) -> Judged:
    found = Judged(
        reader.choice("by", BY),
        _or(reader, "folds", partial(reader.integer, at_least=2), 5),
        _texts(reader, "splits", ()),
        _or(reader, "scans", reader.integer, 0),
        _or(reader, "learning_curve", partial(_shares, reader), ()),
    )
    reader.refuse_unknown()
    return found


def _primary(reader: Reader) -> Primary:
    measure = _or(reader, "measure", partial(reader.choice, choices=MEASURES), "dsc")
    found = Primary(reader.string("method"), reader.string("baseline"), measure)
    reader.refuse_unknown()
    return found


def _with_text_keys(content: Any) -> Any:
    """YAML's keys may be numbers, or ``on``, which is true."""
    if isinstance(content, Mapping):
        return {str(key): _with_text_keys(value) for key, value in content.items()}
    return content


def _or(reader: Reader, key: str, read: Callable[[str], _Value], default: _Value) -> _Value:
    reader.asked.add(key)
    return read(key) if key in reader.content else default


def _settings(reader: Reader, key: str) -> dict[str, Any]:
    nothing: dict[str, Any] = {}
    return _or(reader, key, reader.mapping, nothing)


def _plans(reader: Reader) -> dict[str, Any]:
    named = Reader(_settings(reader, "plans"), reader.where, "plans.", reader.kind, reader.again)
    return {name: named.mapping(name) for name in named.content}


def _texts(reader: Reader, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
    if reader.content.get(key) == []:
        reader.asked.add(key)
        return ()
    found = _or(reader, key, reader.strings, default)
    if len({*found}) < len(found):
        raise reader.error(key, "each of them once", "remove what stands twice")
    return found


def _shares(reader: Reader, key: str) -> tuple[float, ...]:
    found = reader.numbers(key, len(reader.content[key]) if isinstance(reader.content[key], list) else 1, 0)
    if not all(share < 1 for share in found) or len({f"{share:g}" for share in found}) < len(found):
        raise reader.error(key, "different shares of the labelled scans, between 0 and 1", "write [0.25, 0.5]")
    return found


def protocol_content(protocol: Protocol) -> dict[str, Any]:
    """The protocol as plain types, in the form that `read_protocol` reads; what is as by default is left out."""
    content = _plain(protocol, Protocol)
    content["arms"] = {arm.name: _plain(arm, Arm, ("name",)) for arm in protocol.arms}
    content["judged"] = {"by": protocol.judged.by, **_plain(protocol.judged, Judged)}
    content["primary"] = _plain(protocol.primary, Primary)
    if protocol.judged.by == "folds":
        content["judged"]["folds"] = protocol.judged.folds
    return {key: content[key] for key in ("remarks", "primary", "judged", "seeds", *content) if key in content}


def _plain(one: Any, kind: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
    standard = {
        each.name: each.default_factory() if callable(each.default_factory) else each.default for each in fields(kind)
    }
    found = {}
    for key, value in asdict(one).items():
        if key not in without and value != standard[key]:
            found[key] = (
                list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
            )
    return found


def protocol_text(protocol: Protocol) -> str:
    """The protocol as YAML."""
    import yaml  # type: ignore[import-untyped]

    head = (
        "# The protocol of a study (docs/study.md). It was written before the study ran and stays with its results.\n"
    )
    return head + str(yaml.safe_dump(protocol_content(protocol), sort_keys=False, allow_unicode=True, width=110))
