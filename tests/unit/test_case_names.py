"""Names of cases become files in one way, and what is no plain name becomes none."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import flarecps
from flarecps.case_names import file_name, why_not_plain
from flarecps.datasets.catalogue import Case
from flarecps.datasets.layouts import link_cases
from flarecps.datasets.splits import read_splits
from flarecps.errors import DatasetError
from flarecps.inference.case_records import record_path
from flarecps.inference.folders import requests_for
from flarecps.inference.outputs import OutputOptions, SegmentationRequest
from flarecps.preprocessing.store import is_finished
from flarecps.preprocessing.store_writing import remove_case
from flarecps.volumes.discovery import label_maps

STRANGE = ["", ".", "..", "../../victim", "/abs/path", "a/b", "a\\b", "a\0b", "a\nb", "\x1b[31m", "\x7f", "\ud800"]
STRANGE += [".hidden", "CON", "nul", "com1.old", "LPT9", " a", "a ", "a.", "x" * 201, "ä" * 101, "\u2028"]
STRANGE += [".partial-12345678-a"]
PLAIN = ["case_01", "Fall 7", "patient-é", "患者", "a.b.c", "console", "=1+1", "[red]", "x" * 200]


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_name_becomes_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"^case name .*expected a plain one") as refused:
        file_name(name, ".json")
    assert str(refused.value).isascii()
    assert "\n" not in str(refused.value)
    inside = tmp_path / "a/b/c"
    victim = tmp_path / "a/victim"
    victim.mkdir(parents=True)
    scan = tmp_path / "scan.nii.gz"
    scan.write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    request = SegmentationRequest(name, (scan,), inside / "x.nii.gz")
    for attempt in (
        lambda: link_cases([Case(name, "labelled", (scan,))], inside),
        lambda: record_path(inside, "statistics", name),
        lambda: remove_case(inside, name),
        lambda: OutputOptions(probabilities=True).paths(request),
        lambda: OutputOptions(draw=lambda *_: None).paths(request),
    ):
        with pytest.raises(DatasetError):
            attempt()
    assert not is_finished(tmp_path, name)
    assert [path for path in sorted(tmp_path.rglob("*")) if path != inside and path not in inside.parents] == [
        path for path in before if path not in inside.parents
    ]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_is_kept_as_it_is(name: str, tmp_path: Path) -> None:
    assert file_name(name, ".nii.gz") == f"{name}.nii.gz"
    (tmp_path / f".partial-12345678-{file_name(name, '_0000.nii.gz')}").touch()


def test_what_is_no_text_is_no_name() -> None:
    assert why_not_plain(7) == why_not_plain(None) == "is no text"


@pytest.mark.parametrize("content", [{"labelled": ["../x"]}, {"labelled": ["a"], "annotated": {"../x": [1]}}])
def test_splits_hold_plain_names_only(content: dict, tmp_path: Path) -> None:
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=r"splits\.json.*'\.\./x' holds a slash"):
        read_splits(tmp_path / "splits.json")


def test_no_other_line_makes_a_file_of_a_case_name() -> None:
    """Joining a folder and a case's name is for ``file_name``."""
    joined = re.compile(r"""/ f?["'(]*\{?(case|request|order|record|entry)\.name|/ "cases" / (name|case)""")
    for path in Path(flarecps.__file__).parent.rglob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            assert not joined.search(line) or path.name == "phantom.py", f"{path}: {line.strip()}"


def test_names_that_one_file_would_hold_on_some_systems_are_not_both_taken(tmp_path: Path) -> None:
    """Linux has both files, macOS and Windows the second one's content under the first one's name."""
    for name in ("case_1", "Case_1", "STRASSE", "straße", "other"):
        (tmp_path / f"{name}_0000.nii.gz").touch()
    if len(list(tmp_path.iterdir())) < 5:
        pytest.skip("this file system is one of these")
    faults = {one.name: one.fault for one in requests_for(tmp_path, tmp_path / "out")}
    assert {name for name, fault in faults.items() if fault} == {"case_1", "straße"}
    assert "the case name 'case_1' is taken by 'Case_1'" in faults["case_1"]
    with pytest.raises(DatasetError, match=r"'case_1_0000' is taken by Case_1_0000\.nii\.gz, where"):
        label_maps(tmp_path)
