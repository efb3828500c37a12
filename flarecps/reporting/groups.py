"""Runs that differ by nothing but chance: seeds (or folds) of one method, which a report shows together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flarecps.evaluation.score_table import MethodScores
from flarecps.method_config import method_of, with_method
from flarecps.reporting.run_folder import Run

CHANCE = (("seed_everything",), ("data", "seed"), ("model", "initial_seed"))
FOLD = ("data", "fold")
PLACES = (("trainer", "default_root_dir"), ("ckpt_path",), ("overwrite",), ("data", "workers"), ("pictures",))


@dataclass(frozen=True)
class Group:
    """Runs of one method, by their place among all; one alone is a group, too."""

    name: str
    places: tuple[int, ...]
    kind: str  # what they differ by: "seed", "fold" or "run"


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The runs by method, in the order in which each method is first met.

    Two runs belong together when their configs say the same but for seeds, fold and folders. A run without a config is
    alone.
    """
    found: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        found.setdefault(_method(run) or f"run {place}", []).append(place)
    return [
        Group(common_name([runs[place].name for place in places]), tuple(places), _kind([runs[p] for p in places]))
        for places in found.values()
    ]


def as_one(runs: Sequence[Run], group: Group) -> Run:
    """A group as if it were one run: every case's scores are the means over the group's scored runs."""
    first = runs[group.places[0]]
    scored = MethodScores(group.name, tuple(s for place in group.places if (s := runs[place].scores) is not None))
    scores = scored.seeds[0] if len(scored.seeds) == 1 else None
    if len(scored.seeds) > 1:  # of the cases that all have, so that every row says the same thing
        scores = scored.over_seeds(scored.complete_cases, scored.organs)
    return Run(group.name, first.folder, first.plan, scores=scores, config=first.config)


def common_name(names: Sequence[str]) -> str:
    """What the names of a group have in common; the first and a count where that is nothing.

    >>> common_name(["cps_seed_0", "cps_seed_1"]), common_name(["one"]), common_name(["a", "b"])
    ('cps', 'one', 'a and 1 more')
    """
    if len(names) == 1:
        return names[0]
    alike = itertools.takewhile(lambda signs: len(set(signs)) == 1, zip(*names, strict=False))
    start = "".join(signs[0] for signs in alike).rstrip("0123456789 _-./")
    for word in ("seed", "fold", "run"):
        start = start.removesuffix(word).rstrip(" _-./")
    return start or f"{names[0]} and {len(names) - 1} more"


def _method(run: Run) -> str | None:
    """Everything a config says but chance and places, as text; None without a config."""
    if not run.config:
        return None
    kept = json.loads(json.dumps(run.config, default=str))
    if isinstance(kept.get("model"), dict):  # runs from before and after methods were classes belong together
        kept["model"] = {**with_method(kept["model"]), "method": method_of(kept)}
    for path in (*CHANCE, FOLD, *PLACES):
        _remove(kept, path)
    return json.dumps(kept, sort_keys=True)


def _kind(runs: Sequence[Run]) -> str:
    for kind, paths in (("seed", CHANCE), ("fold", (FOLD,))):
        if any(len({str(_at(run.config, path)) for run in runs}) > 1 for path in paths):
            return kind
    return "run"


def _at(config: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = config
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _remove(config: Any, path: Sequence[str]) -> None:
    *way, last = path
    for key in way:
        config = config.get(key) if isinstance(config, dict) else None
    if isinstance(config, dict):
        config.pop(last, None)
