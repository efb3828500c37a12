"""The words by which a command line names methods and their paths, such as ``CPS=runs/cps``: parsed here, for all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flarecps.errors import ConfigError

FILES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".csv", ".json", ".md", ".html", ".png", ".zip")


def comma_list(words: str | None) -> list[str] | None:
    """The names of "a, b"; None where nothing was given.

    >>> comma_list("control, CPS")
    ['control', 'CPS']
    """
    return None if words is None else [name.strip() for name in words.split(",")]


def name_and_rest(word: str) -> tuple[str | None, str]:
    """(NAME, REST) of ``NAME=REST``; (None, word) of any other word, and of one that is a path itself.

    >>> name_and_rest("CPS = runs/cps"), name_and_rest("runs/cps")
    (('CPS', ' runs/cps'), (None, 'runs/cps'))
    """
    name, equals, rest = word.partition("=")
    return (name.strip(), rest) if equals and not os.path.exists(word) else (None, word)


def shortest_ends(paths: Sequence[Sequence[str]]) -> list[str]:
    """The parts of each path from its end, as few as tell all different paths apart.

    >>> shortest_ends([("runs", "cps"), ("runs", "control")])
    ['cps', 'control']
    """
    depth = 1
    while len({tuple(path[-depth:]) for path in paths}) < len({tuple(path) for path in paths}):
        depth += 1
    return ["/".join(path[-depth:]) for path in paths]


def method_names(
    given: Sequence[str | None], paths: Sequence[Sequence[str]], names: Sequence[str] | None = None
) -> list[str]:
    """What each method is called: by ``names`` (of ``--names``), else as ``given``, else by its path's shortest end.

    Raises ConfigError for a wrong number of ``names``.
    """
    if names is None:
        return [name or end for name, end in zip(given, shortest_ends(paths), strict=True)]
    if len(names) != len(given):
        raise ConfigError(f"--names has {len(names)} names for {len(given)} methods; expected one each, in order")
    return list(names)


def check_output_folder(path: Path) -> None:
    """Nothing, or ConfigError where results want a folder and ``path`` is, or is called like, a file."""
    if path.is_dir():
        return
    if path.name.lower().endswith(FILES):
        raise ConfigError(
            f"{path}: a file's name; expected that of a folder (one scan's labels may be a file ending in .nii.gz)"
        )
    if path.exists():
        raise ConfigError(f"{path}: is a file; expected a folder, new or of an earlier run")
