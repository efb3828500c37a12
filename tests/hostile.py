"""Hostile inputs: seeded mutators of the files that the program reads, and what must hold whatever they make of them.

``python tests/hostile.py [--seed N] [--tries N] [FORMAT ...]`` prints a table: what was attacked, how often, how often
it went wrong. A try makes a sound input in a folder of its own, harms it, and lets the program read it. What must hold:

- it ends within the time, by a result or by an error that is one line, in the words of the program;
- what changes nothing (a byte order mark, semicolons for commas, blank lines) changes no result;
- no control character reaches the terminal, and nothing is written outside the folder.

A format is one entry of ``FORMATS``; mutators of binary files are in ``hostile_binary.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import platform
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from hostile_binary import (
    cut_or_flipped,
    good_scan,
    harm_model,
    harm_scan,
    harm_series,
    harm_store,
    make_model,
    make_series,
    make_store,
    of_nifti,
    of_text,
    read_model,
    read_scan,
    read_store,
)
from patience import patient
from run_folders import make_run
from small_model import small_plan

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.cli.main import main
from flarecps.errors import FlarecpsError, visible
from flarecps.evaluation.label_sets import read_tolerances
from flarecps.experiments.runner import processor_name
from flarecps.inference.postprocessing import Rules, read_rules, write_rules
from flarecps.interop.nnunet_architecture import network_from_nnunet
from flarecps.interop.nnunet_import import _read_json as read_model_json
from flarecps.interop.nnunet_plans import (
    channels_of_dataset,
    labels_of_dataset,
    nnunet_dataset_json,
    plan_from_nnunet,
    plan_to_nnunet,
    resolved_configuration,
)
from flarecps.networks import PlainUNet
from flarecps.planning.plan import read_plan, write_plan
from flarecps.reporting.curves import read_metrics
from flarecps.reporting.html import report_page
from flarecps.reporting.run_folder import read_runs
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SECONDS = 20  # on a machine with a core to spare
MEMORY_MB = 400  # more than before the try
ESCAPE = "\x1b]0;owned\x07\x1b[2J"
DEEP = "[" * 100_000 + "]" * 100_000

Mutation = tuple[str, bool]  # what was done, and whether it may change nothing


@dataclass(frozen=True)
class Format:
    """What is attacked: ``make`` writes a sound input into a folder, ``harm`` mutates it there, ``read`` reads it.

    ``read`` gives a command line, or is itself the function of the folder whose value is compared.
    """

    make: Callable[[Path], None]
    harm: Callable[[Random, Path], Mutation]
    read: Callable[[Path], list[str]] | Callable[[Path], Any]
    is_command: bool = True


# --- mutators

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 256, 1035, 2**40, 10**30, 1e308, "", " ", "1", "x", "nan", "../../victim",
    "/etc/passwd", ".", "=1+1", "<script>alert(1)</script>", "a|b", ESCAPE, "\u202eliver", "[/]", "[red]x",
    "x" * 5000, "a\nb", [], {}, [[]],
    [1], [1, 2, 3], ["x"], [None], {"0": "CT"}, {"a": {"b": 1}}, [True], [10**25], ["\x1b[2J"], "{\"a\": 1}",
)  # fmt: skip
RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "1" * 5000,
    '"\\ud800"',
    '"a\\u0000b"',
    '"\\u001b[2J"',
    DEEP,
    "01",
    "'x'",
    "",
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from _places(one, (*path, key))


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


def harm_json(rng: Random, path: Path) -> Mutation:
    """One change to a JSON file: a value, a key, its text, or what it is."""
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    places = list(_places(content))
    place = rng.choice(places)
    kind = rng.choice(
        ("value",) * 6 + ("raw",) * 3 + ("key", "delete", "twice", "bytes", "whole", "harmless", "harmless")
    )
    if kind == "value":
        new = rng.choice(VALUES)
        path.write_text(json.dumps(_replaced(content, place, new)), encoding="utf-8")
        return f"{place} is {str(new)[:30]!r}", False
    if kind == "raw":
        new = rng.choice(RAW)
        path.write_text(json.dumps(_replaced(content, place, "@@")).replace('"@@"', new), encoding="utf-8")
        return f"{place} is {new[:20]}", False
    holders = [(*one, None)[:-1] for one in places if isinstance(_at(content, one), dict) and _at(content, one)]
    if kind in ("key", "delete", "twice") and holders:
        holder = rng.choice(holders)
        entries = dict(_at(content, holder))
        key = rng.choice(list(entries))
        if kind == "twice":
            spoilt = json.dumps(_replaced(content, (*holder, key), "@@"))
            path.write_text(spoilt.replace('"@@"', f"1, {json.dumps(key)}: 2", 1), encoding="utf-8")
        else:
            value = entries.pop(key)
            entries |= (
                {rng.choice(("x", "", ESCAPE, "../../victim", "1", "a\0b", "ignore")): value} if kind == "key" else {}
            )
            path.write_text(json.dumps(_replaced(content, holder, entries)), encoding="utf-8")
        return f"{kind} {(*holder, key)}", False
    if kind == "harmless":
        encoding = rng.choice(("utf-8-sig", "utf-16", "utf-32"))
        path.write_text(json.dumps(content, indent=rng.choice((None, 4))) + "\r\n \n", encoding=encoding)
        return encoding, True
    return harm_bytes(rng, path)


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def harm_bytes(rng: Random, path: Path) -> Mutation:
    """One change to a file whatever it holds: cut, spoilt, emptied, or no file at all."""
    content = path.read_bytes()
    at = rng.randrange(len(content))
    whole: dict[str, bytes] = {
        "cut": content[:at],
        "flipped": content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :],
        "with NUL": content[:at] + b"\0" + content[at:],
        "with Latin-1": content[:at] + b"\xfc" + content[at:],
        "UTF-16 without a mark": content.decode("utf-8", "replace").encode("utf-16-le"),
        "empty": b"",
        "blank": b" \n\t\n",
        "null": b"null",
        "a list": b"[]",
        "a number": b"7",
        "a text": b'"text"',
        "nested": DEEP.encode(),
        "nested objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "noise": rng.randbytes(2000),
        "twice": content + content,
    }
    kind = rng.choice([*whole, "a folder", "a broken link", "a pipe"])
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a broken link":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(whole[kind])
    return kind, False


CELLS = ("", "x", "nan", "inf", "-1", "2", "1e400", "1,5", "=1+1", "'=1+1", ESCAPE, "a\nb", '"', "x" * 200_000,
         "\u202e", "<b>", "../../victim", "[/]", "\ufeff", "0x1F", "1_0", "٣")  # fmt: skip


def harm_csv(rng: Random, path: Path) -> Mutation:
    """One change to a CSV table: a cell, a row, a column, how it is written, or its bytes."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    row, column = rng.randrange(len(rows)), rng.randrange(len(rows[0]))
    structure = ("more cells", "fewer cells", "no column", "two columns", "no rows", "one row twice")
    kind = rng.choice(("cell",) * 5 + structure + ("bytes",) * 2 + ("harmless",) * 6)
    if kind == "bytes":
        return harm_bytes(rng, path)
    if kind == "harmless":
        return _as_spreadsheets_do(rng, path, rows)
    if kind == "cell":
        rows[row][column] = rng.choice(CELLS)
    elif kind == "more cells":
        rows[row] += ["0.5", "x"]
    elif kind == "fewer cells":
        rows[row] = rows[row][:-1]
    elif kind == "no column":
        rows = [cells[:column] + cells[column + 1 :] for cells in rows]
    elif kind == "two columns":
        rows[0][column] = rows[0][column - 1]
    elif kind == "no rows":
        rows = rows[:1]
    else:
        rows.append(rows[-1])
    _write_csv(path, rows)
    return f"{kind} ({row}, {column})", False


def _as_spreadsheets_do(rng: Random, path: Path, rows: list[list[str]]) -> Mutation:
    kind = rng.choice(
        ("mark", "utf-16", "semicolons", "tabs", "sep=", "trailing commas", "blank rows", "quoted", "CRLF")
    )
    if kind in ("semicolons", "tabs", "sep="):
        rows = [[re.sub(r"^(-?\d+)\.(\d+)$", r"\1,\2", cell) for cell in row] for row in rows]
    rows = [[*row, "", ""] for row in rows] if kind == "trailing commas" else rows
    rows = [*rows, [], [""] * len(rows[0])] if kind == "blank rows" else rows
    separator = {"semicolons": ";", "tabs": "\t", "sep=": ";"}.get(kind, ",")
    quoting = csv.QUOTE_ALL if kind == "quoted" else csv.QUOTE_MINIMAL
    encoding = {"mark": "utf-8-sig", "utf-16": "utf-16", "sep=": "utf-8-sig"}.get(kind, "utf-8")
    before = "sep=;\r\n" if kind == "sep=" else ""
    _write_csv(path, rows, before, encoding, delimiter=separator, quoting=quoting, lineterminator="\r\n")
    return kind, True


def _write_csv(path: Path, rows: list[list[str]], before: str = "", encoding: str = "utf-8", **how: Any) -> None:
    text = io.StringIO()
    csv.writer(text, **how).writerows(rows)
    path.write_text(before + text.getvalue(), encoding=encoding, newline="")


def harm_folder(rng: Random, root: Path) -> Mutation:
    """One change to a folder of files: one of them goes, doubles, changes its name, place or content."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path, other = rng.choice(files), rng.choice(files)
    kind = rng.choice(
        ("gone", "copied", "renamed", "swapped", "linked", "no folder", "hidden", "bytes", "json", "json")
    )
    if kind == "gone":
        path.unlink()
    elif kind == "copied":
        content = path.read_bytes()
        (other.parent / path.name.replace("_0000", rng.choice(("", "_0001", "_0000_0000")))).write_bytes(content)
    elif kind == "renamed":
        names = (f"x{path.name}", path.name.upper(), "[red].nii.gz", f"a{ESCAPE[:5]}.nii.gz")
        path.rename(path.with_name(rng.choice(names)))
    elif kind == "swapped":
        content = path.read_bytes()
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "linked":
        path.unlink()
        path.symlink_to(rng.choice((path.parent, Path("nowhere"), path)))
    elif kind == "no folder":
        shutil.rmtree(
            path.parent if path.parent != root else other.parent if other.parent != root else root / "imagesTr"
        )
    elif kind == "hidden":
        path.rename(path.with_name(f".{path.name}"))
    elif kind == "json":
        return harm_json(rng, root / "dataset.json")
    else:
        kind = harm_bytes(rng, path)[0]
    return f"{path.relative_to(root)} {kind} ({other.relative_to(root)})", False


# --- formats


def make_data_set(root: Path) -> None:
    """Three labelled scans and an unlabelled one in nnU-Net's layout, with both kinds of splits."""
    numbers = np.random.default_rng(0)
    space = Space.canonical((10, 12, 12), (5.0, 5.0, 5.0))
    for place, name in enumerate(("a", "b", "c", "u")):
        labels = np.zeros(space.shape, np.uint8)
        labels[2:5, 2:6, 2 + place : 6 + place], labels[6:9, 4:8, 4:8] = 1, 2
        image = numbers.normal(-900, 20, space.shape) + 950 * (labels > 0)
        folder = "imagesUn" if name == "u" else "imagesTr"
        write_volume(root / folder / f"{name}_0000.nii.gz", image.astype(np.int16), space)
        if name != "u":
            write_volume(root / "labelsTr" / f"{name}.nii.gz", labels, space)
    described = {"name": "small", "channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2},
                 "left_right_pairs": [[1, 2]], "numTraining": 3, "file_ending": ".nii.gz"}  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(described))
    split = {"labelled": ["a", "b"], "unlabelled": ["u"], "validation": ["c"], "annotated": {"a": [1, 2]}}
    (root / "splits.json").write_text(json.dumps({"default": split}))


def _with_list(root: Path, key: str) -> None:
    """The same with its cases listed in dataset.json, as MSD (training) or nnU-Net v2 (dataset) may have it."""
    make_data_set(root)
    (root / "splits.json").unlink()
    content = json.loads((root / "dataset.json").read_text())
    files = {name: (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz") for name in "abc"}
    content[key] = (
        [{"image": image, "label": label} for image, label in files.values()] if key == "training"
        else {name: {"images": [image], "label": label} for name, (image, label) in files.items()}
    )  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))


def _folds(root: Path) -> None:
    make_data_set(root)
    (root / "splits.json").unlink()
    (root / "splits_final.json").write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}]))


def _inspect(*more: str) -> Callable[[Path], list[str]]:
    return lambda root: ["inspect", str(root), "--workers", "1", "--no-progress", *more]


def _tables(root: Path) -> None:
    for name, level in (("one", 0.8), ("two", 0.6)):
        make_table(root / name / "scores.csv", level)
        (root / name / "scores.json").write_text(
            json.dumps({"format": "flarecps-scores", "protocol": "strict", "tolerances_mm": {"liver": 5.0}})
        )
        rows = [["Name", "Time", "AUC_GPU_Time", "AUC_CPU_Time"], *([f"c{n}", 10 + n, 900, 55.5] for n in range(4))]
        _write_csv(root / name / "efficiency.csv", [[str(cell) for cell in row] for row in rows])


def make_table(path: Path, level: float) -> None:
    """A table of scores with four cases and two organs."""
    path.parent.mkdir(parents=True)
    header = ["Name", "Liver_DSC", "Spleen_DSC", "Liver_NSD", "Spleen_NSD"]
    scores = [[f"c{n}.nii.gz", *(f"{level + 0.01 * (n + m):.6f}" for m in range(4))] for n in range(4)]
    _write_csv(path, [header, *scores])


def _compare(root: Path) -> list[str]:
    return ["compare", f"one={root}/one/scores.csv", f"two={root}/two/scores.csv", "--efficiency",
            f"one={root}/one/efficiency.csv", f"two={root}/two/efficiency.csv", "--out", f"{root}/out"]  # fmt: skip


def _model(root: Path) -> None:
    plan = small_plan()
    topology = plan.topology
    network = PlainUNet(1, 3, topology.features, topology.strides, topology.kernels, output_bias=True)
    (root / "plans.json").write_text(json.dumps(plan_to_nnunet(plan, network)))
    (root / "dataset.json").write_text(json.dumps(nnunet_dataset_json(plan)))


def _read_model(root: Path) -> Any:
    plans, dataset = (read_model_json(root / name) for name in ("plans.json", "dataset.json"))
    configuration = resolved_configuration(plans, "3d_fullres", str(root))
    classes, channels = len(labels_of_dataset(dataset, str(root))), len(channels_of_dataset(dataset, str(root)))
    network = network_from_nnunet(configuration, channels, classes, str(root))
    return plan_from_nnunet(plans, dataset, configuration, network, str(root))


def _rules(root: Path) -> None:
    write_rules(
        root / "rules.json", Rules({"background": 0, "liver": 1, "spleen": 2}, True, (1,), (2,), {"scans": ["a"]})
    )


def _described_rules(root: Path) -> str:
    return read_rules(root / "rules.json").describe()


def _in(name: str, harm: Callable[[Random, Path], Mutation]) -> Callable[[Random, Path], Mutation]:
    return lambda rng, root: harm(rng, root / name)


def harm_yaml(rng: Random, path: Path) -> Mutation:
    """One change to a YAML file of settings."""
    bomb = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" if n else "a0: &a0 [x]" for n in range(12))
    texts = {
        "a bomb": bomb, "a loop": "a: &a [*a]", "nested": "[" * 5000, "tabs": "a:\n\tb: 1",
        "code": "a: !!python/object/apply:os.system [exit]", "a list": "[1, 2]", "a text": "hello",
        "two keys": "a: 1\na: 2", "odd keys": "1: x\n? [a]\n: y", "trainer": "trainer: 7",
        "a method": "model: {method: x}", "no method": "model: {method: {class_path: 3, init_args: [1]}}",
        "epochs": "trainer: {max_epochs: {a: 1}}", "init": "model: {init_args: [1]}",
        "escape": 'model: {method: "\\e[2J"}',
        "reference": "a: ${b.c}", "loss": "model: {cross_pseudo_supervision: [], loss: {}, ramp: 3}",
    }  # fmt: skip
    kind = rng.choice([*texts, "bytes"])
    if kind == "bytes":
        return harm_bytes(rng, path)
    path.write_text(texts[kind], encoding="utf-8")
    return kind, False


def _page(root: Path) -> str:
    runs = read_runs([root / "run"], None, Path("labels"), Path("scores"))
    return re.sub(r"20\d\d-\d\d-\d\d[^<]*", "", report_page(runs, [], []))


def _run(root: Path) -> None:
    make_run(root / "run", 2, 0.8)
    for part in ("segmentations", "scores", "csv"):  # whose charts take time
        shutil.rmtree(root / "run" / part)


def _metrics(root: Path) -> None:
    make_run(root / "run", 2, 0.8, scored=False)


def _curves(root: Path) -> Any:
    return {name: curve.values.tolist() for name, curve in read_metrics(root / "run/csv/metrics.csv").items()}


def _tolerances(root: Path) -> None:
    (root / "t.json").write_text('{"liver": 5, "RK": 3}')


def _read_tolerances(root: Path) -> dict[str, float]:
    return read_tolerances(str(root / "t.json"), FLARE22_ORGANS)


def _scan(root: Path, suffix: str) -> None:
    good_scan(root, suffix)


FORMATS: dict[str, Format] = {
    "dataset.json": Format(make_data_set, _in("dataset.json", harm_json), _inspect()),
    "dataset.json, MSD": Format(lambda root: _with_list(root, "training"), _in("dataset.json", harm_json), _inspect()),
    "dataset.json, v2": Format(lambda root: _with_list(root, "dataset"), _in("dataset.json", harm_json), _inspect()),
    "splits.json": Format(make_data_set, _in("splits.json", harm_json), _inspect("--split", "default")),
    "splits_final.json": Format(_folds, _in("splits_final.json", harm_json), _inspect("--split", "fold_0")),
    "nnU-Net folder": Format(make_data_set, harm_folder, _inspect()),
    "scores.csv": Format(_tables, _in("one/scores.csv", harm_csv), _compare),
    "scores.json": Format(_tables, _in("one/scores.json", harm_json), _compare),
    "efficiency.csv": Format(_tables, _in("two/efficiency.csv", harm_csv), _compare),
    "plan.json": Format(lambda root: write_plan(root / "plan.json", small_plan()), _in("plan.json", harm_json),
                        lambda root: read_plan(root / "plan.json"), False),
    "plans.json of nnU-Net": Format(_model, _in("plans.json", harm_json), _read_model, False),
    "dataset.json of a model": Format(_model, _in("dataset.json", harm_json), _read_model, False),
    "postprocessing.json": Format(_rules, _in("rules.json", harm_json), _described_rules, False),
    "tolerances": Format(_tolerances, _in("t.json", harm_json), _read_tolerances, False),
    "environment.json": Format(_run, _in("run/environment.json", harm_json), _page, False),
    "config.yaml": Format(_run, _in("run/config.yaml", harm_yaml), _page, False),
    "metrics.csv": Format(_metrics, _in("run/csv/metrics.csv", harm_csv), _curves, False),
    "DICOM series": Format(make_series, harm_series, read_scan, False),
    "checkpoint": Format(make_model, harm_model, read_model, False),
    "case store": Format(make_store(make_data_set), harm_store(harm_json, harm_bytes), read_store, False),
}  # fmt: skip
for _name, _suffix, _mutate in (
    ("NIfTI", ".nii", of_nifti), ("NIfTI, bytes", ".nii.gz", cut_or_flipped), ("NRRD", ".nrrd", of_text),
    ("NRRD in two files", ".nhdr", of_text), ("NRRD, bytes", ".nrrd", cut_or_flipped), ("MHA", ".mha", of_text),
    ("MHA in two files", ".mhd", of_text), ("MHA, bytes", ".mha", cut_or_flipped),
):  # fmt: skip
    FORMATS[_name] = Format(partial(_scan, suffix=_suffix), harm_scan(_mutate), read_scan, False)


# --- what must hold


class TooSlow(BaseException):
    """Raised where a try runs past its time; no ``except Exception`` takes it."""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise TooSlow in the block when it takes longer."""

    def end(number: int, frame: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def state(folder: Path) -> dict[str, str]:
    """Every file below a folder by its name, with a digest of its content."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run(format_: Format, root: Path) -> tuple[int, str, str]:
    """Exit code, and what was printed or returned and said, as text in which the folder has no name."""
    out, said = io.StringIO(), io.StringIO()
    if format_.is_command:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
            try:
                code = main(format_.read(root))
            except SystemExit as end:
                code = int(end.code or 0)
        return code, out.getvalue().replace(str(root), "ROOT"), said.getvalue().replace(str(root), "ROOT")
    try:
        return 0, repr(format_.read(root)).replace(str(root), "ROOT"), ""
    except FlarecpsError as error:
        return 2, "", f"flarecps: {visible(' '.join(str(error).split()))}\n".replace(str(root), "ROOT")


def complaint(format_: Format, root: Path, mutation: Mutation, sound: tuple[int, str, str]) -> str:
    """What went wrong with a mutated input, in words; empty where nothing did."""
    before = _peak_mb()
    try:
        with within(patient(SECONDS)):
            code, printed, said = run(format_, root)
    except TooSlow:
        return f"took more than {SECONDS} s"
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    if _peak_mb() - before > MEMORY_MB:
        return f"took {_peak_mb() - before:.0f} MB"
    if code not in (0, 1, 2) or "Traceback" in said + printed:
        return f"exit code {code}: {said}"
    if code == 2 and (said.count("\n") != 1 or not said.startswith("flarecps")):
        return f"not one line: {said!r}"
    if format_.is_command and re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202e]", printed + said):
        return f"a control character: {printed + said!r}"
    if mutation[1] and (code, printed) != sound[:2]:
        return f"another result: {code} {said or printed!r}"
    return ""


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def attack(name: str, tries: int, seed: int) -> list[str]:
    """What went wrong in so many tries of a format, a line each with the seed that repeats it."""
    format_ = FORMATS[name]
    bad = []
    with tempfile.TemporaryDirectory() as folder:
        arena = Path(folder)
        sound_root, root = arena / "sound", arena / "inside" / "data"
        sound_root.mkdir()
        format_.make(sound_root)
        root.parent.mkdir()
        shutil.copytree(sound_root, root)
        sound = run(format_, root)
        if sound[0] not in (0, 1):
            return [f"{name}: the sound input is refused: {sound[2]}"]
        before = state(sound_root)
        for number in range(seed, seed + tries):
            shutil.rmtree(root.parent)
            shutil.copytree(sound_root, root)
            mutation = harm(format_, number, root)
            if found := complaint(format_, root, mutation, sound):
                bad.append(f"{name}, seed {number}, {mutation[0]}: {found}")
            shutil.rmtree(root)
            left = [
                path for path in arena.rglob("*") if sound_root not in (path, *path.parents) and path != root.parent
            ]
            if left or state(sound_root) != before:
                bad.append(f"{name}, seed {number}, {mutation[0]}: wrote outside its folder: {left[:3]}")
    return bad


def harm(format_: Format, seed: int, root: Path) -> Mutation:
    """Mutate the input in ``root`` as this seed has it."""
    return format_.harm(Random(seed), root)


def report(names: list[str], tries: int, seed: int) -> int:
    """Print the table, and every bad try to standard error; how many there were."""
    os.environ.pop("FLARECPS_TRACEBACK", None)
    print("| attacked | tried | bad | seconds |\n|---|---:|---:|---:|")
    total, all_began = 0, time.monotonic()
    for name in names:
        began = time.monotonic()
        bad = attack(name, tries, seed)
        total += len(bad)
        print(f"| {name} | {tries} | {len(bad)} | {time.monotonic() - began:.0f} |", flush=True)
        for line in bad:
            print(visible(line), file=sys.stderr)
    print(f"| **all** | {tries * len(names)} | {total} | {time.monotonic() - all_began:.0f} |")
    machine = f"{processor_name()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    print(f"\n{datetime.now().date()}, seeds {seed} to {seed + tries - 1}: {machine}, PyTorch {torch.__version__}")
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Let the program read hostile inputs.")
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help=f"of {', '.join(FORMATS)}; all by default")
    parser.add_argument("--tries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(1 if report(given.formats or list(FORMATS), given.tries, given.seed) else 0)
