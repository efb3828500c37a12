"""Advice that was tried: every command that is printed as a cure is run as printed, and cures what it was for."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import hostile
import numpy as np
import pytest

from flarecps.cli.main import main
from flarecps.volumes.io import read_volume, write_volume

COMMAND = re.compile(r"flarecps relabel [^\n()]*?--ids=\S+?(?=[,;)]? |[,;)]?\n|\))")
BACKGROUND = {"background": 0}
NAMES = BACKGROUND | {"bone": 1, "cyst": 2}
INSPECT = ("--workers", "1", "--no-progress")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    hostile.make_data_set(tmp_path / "a set")  # a name that a shell would cut in two
    (tmp_path / "a set/splits.json").unlink()
    describe(tmp_path / "a set", labels=NAMES, left_right_pairs=[], channel_names={"0": "MR"})
    return tmp_path / "a set"


def draw(root: Path, ids: dict[int, int], labels: dict[str, int] | None = None) -> None:
    """Give the label maps other ids, and dataset.json other names."""
    for path in (root / "labelsTr").iterdir():
        volume = read_volume(path)
        drawn = volume.array[0].astype(np.int16)
        for old, new in ids.items():
            drawn[volume.array[0] == old] = new
        write_volume(path, drawn, volume.space)
    if labels is not None:
        describe(root, labels=labels, left_right_pairs=[])


def describe(root: Path, **entries: object) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def outside(root: Path) -> None:
    """-1 where nobody looked."""
    for path in (root / "labelsTr").iterdir():
        volume = read_volume(path)
        drawn = volume.array[0].astype(np.int16)
        drawn[:1] = -1
        write_volume(path, drawn, volume.space)


def outside_and_never_drawn(root: Path) -> None:
    """The same beside a structure that nobody drew: as many ids as names."""
    outside(root)
    describe(root, labels=BACKGROUND | {"bone": 1, "cyst": 2, "aorta": 3}, left_right_pairs=[])


def large_ids(root: Path) -> None:
    draw(root, {1: 1035, 2: 2035}, BACKGROUND | {"bone": 1035, "cyst": 2035})


def gaps(root: Path) -> None:
    draw(root, {2: 5}, BACKGROUND | {"bone": 1, "cyst": 5})


def unknown_ids(root: Path) -> None:
    draw(root, {1: 63, 2: 126})


def one_unknown_id(root: Path) -> None:
    draw(root, {2: 77, 0: -3})


def negative_name(root: Path) -> None:
    draw(root, {2: -1}, BACKGROUND | {"bone": 1, "cyst": -1})


def findings(root: Path, tmp_path: Path) -> tuple[set[str], dict]:
    main(["inspect", str(root), "--json", str(tmp_path / "found.json"), *INSPECT])
    content = json.loads((tmp_path / "found.json").read_text())
    return {one["code"] for one in content["findings"]}, content


def run_as_printed(said: str) -> list[list[str]]:
    """Run every relabel command in a text, each in place of the folder it was for; their words."""
    commands = [shlex.split(found) for found in COMMAND.findall(said)]
    for words in commands:
        assert words[0] == "flarecps"
        assert main([*words[1:], "--no-progress"]) == 0
        folder, out = map(Path, words[2:4])
        shutil.rmtree(folder)
        out.rename(folder)
    return commands


@pytest.mark.parametrize(
    "spoil",
    [outside, outside_and_never_drawn, large_ids, gaps, unknown_ids, one_unknown_id, negative_name],
    ids=lambda spoil: spoil.__name__,
)
def test_what_the_doctor_proposes_cures(
    root: Path, tmp_path: Path, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    right = {path.name: read_volume(path).array for path in (root / "labelsTr").iterdir()}
    spoil(root)
    _, content = findings(root, tmp_path)
    said = capsys.readouterr().out
    assert len(run_as_printed(said)) == len(content["renumbering"]["commands"]) == 1
    fragment = re.search(r"dataset\.json: (\".*)\n", said)
    describe(root, **json.loads(f"{{{fragment[1]}}}" if fragment else "{}"))
    left, again = findings(root, tmp_path)
    assert left <= {"never-drawn", "same-labels", "absent"}
    assert again["renumbering"] is None
    for path in (root / "labelsTr").iterdir():  # the very labels from which the ids were taken away
        skip = 1 if spoil.__name__.startswith("outside") else 0
        np.testing.assert_array_equal(read_volume(path).array[:, skip:], right[path.name][:, skip:])


def test_what_plan_says_of_gaps_cures(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gaps(root)
    assert main(["plan", str(root), "--out", str(tmp_path / "plan.json")]) == 2
    assert len(run_as_printed(capsys.readouterr().err)) == 1
    describe(root, labels=BACKGROUND | {"bone": 1, "cyst": 2})
    assert findings(root, tmp_path)[0] == set()


def test_what_is_said_of_a_label_to_be_ignored_cures(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(root, {0: 3}, BACKGROUND | {"bone": 1, "cyst": 2, "ignore": 3})
    assert main(["inspect", str(root), *INSPECT]) == 2
    assert len(run_as_printed(capsys.readouterr().err)) == 1
    describe(root, labels=BACKGROUND | {"bone": 1, "cyst": 2})
    assert findings(root, tmp_path)[0] == set()


def test_the_proposed_lists_of_drawn_ids_are_read(root: Path, tmp_path: Path) -> None:
    path = root / "labelsTr" / "a.nii.gz"
    volume = read_volume(path)
    write_volume(path, np.where(volume.array[0] == 2, 0, volume.array[0]), volume.space)
    assert "absent" in findings(root, tmp_path)[0]
    main(["inspect", str(root), "--annotated", str(root / "splits.json"), *INSPECT])
    assert json.loads((root / "splits.json").read_text())["annotated"] == {"a": [1]}
    assert findings(root, tmp_path)[0] == set()
