"""The files of a comparison: what the user names on the command line becomes methods and their measures."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flarecps.errors import ConfigError, DatasetError, first_few
from flarecps.evaluation.score_table import MEASURES, MethodScores, Scores, read_scores
from flarecps.named_paths import method_names, name_and_rest
from flarecps.reporting.tables import finite_number
from flarecps.text_files import read_csv
from flarecps.volumes.io import scan_name

SCORES = ("scores.csv", "scores/scores.csv")  # what a folder stands for: the first that is there
EFFICIENCY = ("efficiency_all.csv", "efficiency.csv")
TIME, CPU = "Time", "AUC_CPU_Time"
GPU, GPU_TOLERATED = "AUC_GPU_Time", "AUC_GPU_Time_over_2048MB"


def named_files(
    words: Sequence[str], in_folder: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, list[Path]]:
    """Method name → its files, in order, of words such as ``A.csv``, ``CPS=A.csv,B.csv`` or ``CPS=runs/cps_*``.

    A folder stands for the first file of ``in_folder`` that it holds. A word that is a path itself is taken as one,
    whatever signs it holds. Without NAME= and ``names``, a method is called by the shortest end of its path that
    differs from the others.

    Raises ConfigError for a name used twice and a wrong number of ``names``, DatasetError for missing files.
    """
    given = [_split(word) for word in words]
    files = [[_file(path, in_folder) for path in paths] for _, paths in given]
    called = method_names([name for name, _ in given], [_telling_parts(found[0]) for found in files], names)
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None or not all(called):
        raise ConfigError(
            f"the method name {twice or ''!r} is {'used twice' if twice else 'empty'}; several seeds of one method are "
            f"written NAME=FILE,FILE, different methods have different names"
        )
    return dict(zip(called, files, strict=True))


def read_method(name: str, paths: Sequence[Path]) -> MethodScores:
    """The method whose seeds were scored in these files.

    Raises DatasetError for a table that is none, a case or a file twice, and scores outside 0 to 1.
    """
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise DatasetError(f"{name}: the same file twice; name every seed once")
    return MethodScores(name, tuple(_read_score_file(path) for path in paths))


def read_efficiency(paths: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Case → measure → mean over the files, of tables with FLARE's columns; other columns with numbers come along.

    A case or measure that a file lacks is averaged over the other files. Raises DatasetError for other tables.
    """
    gathered: dict[str, dict[str, list[float]]] = {}
    for path in paths:
        for row in _read_efficiency_rows(path):
            case = gathered.setdefault(row.pop("Name"), {})
            for measure, number in row.items():
                case.setdefault(measure, []).append(number)
    return {case: {m: float(np.mean(found)) for m, found in row.items()} for case, row in gathered.items()}


def ranking_values(
    methods: Sequence[MethodScores], efficiencies: Sequence[dict[str, dict[str, float]]]
) -> tuple[dict[str, np.ndarray], tuple[str, ...], list[str]]:
    """Methods × cases of FLARE's five measures, the cases that can be ranked, and remarks on what was taken.

    A case needs a mean DSC, a mean NSD and the three efficiencies of every method. Raises DatasetError for none.
    """
    everyone = tuple(dict.fromkeys(case for method in methods for case in method.cases))
    merged = [method.over_seeds(everyone, method.organs) for method in methods]
    gpu = GPU_TOLERATED if all(GPU_TOLERATED in row for one in efficiencies for row in one.values()) else GPU
    tables = {
        **{measure.upper(): np.stack([one.case_means(measure) for one in merged]) for measure in MEASURES},
        **{
            name: np.array([[_of_case(one, case).get(column, np.nan) for case in everyone] for one in efficiencies])
            for name, column in ((TIME, TIME), (GPU, gpu), (CPU, CPU))
        },
    }
    whole = np.isfinite(np.stack(list(tables.values()))).all(axis=(0, 1))
    cases = tuple(case for case, there in zip(everyone, whole, strict=True) if there)
    if not cases:
        raise DatasetError(
            "no case has DSC, NSD, Time, AUC_GPU_Time and AUC_CPU_Time of every method; expected efficiency tables "
            "whose Name column holds the names of the scored cases (flarecps efficiency --name CASE)"
        )
    said = [
        "AUC GPU is of the memory above 2048 MB, FLARE's tolerance"
        if gpu == GPU_TOLERATED
        else "AUC GPU is of all memory, without FLARE's tolerance of 2048 MB (efficiency_all.csv has both)"
    ]
    if len(cases) < len(everyone):
        left_out = [case for case in everyone if case not in cases]
        said.append(f"ranked over {len(cases)} of {len(everyone)} cases; not all measures of {first_few(left_out)}")
    return {name: table[:, whole] for name, table in tables.items()}, cases, said


def _of_case(rows: dict[str, dict[str, float]], case: str) -> dict[str, float]:
    """The row of a case; FLARE's efficiency tables name the scan (X_0000), its scores the label map (X)."""
    return rows.get(case) or rows.get(f"{case}_0000") or {}


def _split(word: str) -> tuple[str | None, list[str]]:
    """(name or None, paths) of one word."""
    name, listed = name_and_rest(word)
    paths, parts = list[str](), listed.split(",")
    while parts:  # a path may hold commas itself
        ends = next((end for end in range(len(parts), 1, -1) if os.path.exists(",".join(parts[:end]))), 1)
        part, parts = ",".join(parts[:ends]), parts[ends:]
        paths += _matching(part) if part else []
    if not paths:
        raise ConfigError(f"{word!r}: no file named; expected FILE, NAME=FILE or NAME=FILE,FILE (the seeds)")
    return name, paths


def _matching(pattern: str) -> list[str]:
    """The paths that a pattern with * or ? stands for, sorted: the shell leaves one behind NAME= as it is."""
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return [pattern]
    found = sorted(glob.glob(pattern))
    if not found:
        raise DatasetError(f"{pattern}: nothing matches this pattern; expected score files or folders")
    return found


def _file(path: str, in_folder: Sequence[str]) -> Path:
    given = Path(path)
    candidates = [given / name for name in in_folder] if given.is_dir() else [given]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    maker = "flarecps score" if in_folder == SCORES else "flarecps efficiency"
    where = f"{given} holds no {in_folder[-1].split('/')[-1]}" if given.is_dir() else f"{given}: no such file"
    raise DatasetError(f"{where}; expected a table made by '{maker} … --out DIR', or its folder")


def _telling_parts(file: Path) -> tuple[str, ...]:
    """The parts of a path without the usual names of files and folders."""
    parts = file.resolve().with_suffix("").parts
    while len(parts) > 2 and parts[-1] in ("scores", "efficiency", "efficiency_all"):
        parts = parts[:-1]
    return parts


def _read_score_file(path: Path) -> Scores:
    scores = read_scores(path)
    twice = next((case for case in scores.cases if scores.cases.count(case) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path}: the case {twice!r} has two rows; keep one")
    for measure, values in scores.values.items():
        wrong = np.argwhere(~np.isnan(values) & ~((values >= 0) & (values <= 1)))
        if wrong.size:
            row, column = wrong[0]
            raise DatasetError(
                f"{path}: {scores.organs[column]}_{measure.upper()} of {scores.cases[row]} is {values[row, column]:g}; "
                "expected shares from 0 to 1 (divide percentages by 100)"
            )
    return scores


def _read_efficiency_rows(path: Path) -> list[dict[str, Any]]:
    needed = ("Name", TIME, GPU, CPU)
    expected = f"expected the columns {', '.join(needed)}: see 'flarecps efficiency'"
    table = read_csv(path, DatasetError, expected)
    absent = [column for column in needed if column not in table.columns]
    if absent or not table.rows:
        raise DatasetError(
            f"{path}: not a table of efficiency ({'without ' + ', '.join(absent) if absent else 'no rows'}); {expected}"
        )
    read = []
    for row in table.rows:
        numbers: dict[str, Any] = {}
        for column, text in row.items():
            number = finite_number(text)
            if number is not None:
                numbers[column] = number
            elif column in needed[1:]:
                raise DatasetError(f"{path}: {column} of {row['Name']} is {text!r}; expected a number")
        numbers["Name"] = scan_name(row["Name"])
        read.append(numbers)
    names = [row["Name"] for row in read]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"{path}: the case {twice!r} has two rows; keep one")
    return read
