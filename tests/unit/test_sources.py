"""What was corrected is seen: labels and images that change in place, of every format, with and without their times."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_model import small_plan

from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.errors import StoreError
from flarecps.planning.plan import Intensity, Plan
from flarecps.preprocessing import dataset as preprocessing_dataset
from flarecps.preprocessing import sources
from flarecps.preprocessing.dataset import cases_without_hashes, preprocess_dataset, verify_dataset
from flarecps.preprocessing.store import CaseStore
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

SPACE = Space.canonical((10, 12, 14), (2.0, 1.5, 1.5))
LONG_AGO = 1_600_000_000  # seconds


def a_plan(channels: tuple[str, ...] = ("MR",)) -> Plan:
    labels = {"background": 0, "one": 1, "two": 2}
    return small_plan(SPACE.spacing_mm, labels=labels, channels=channels, intensity=Intensity("zscore"))


def scan(path: Path, seed: int) -> Path:
    """A scan of 16-bit numbers, not compressed: with the same size whatever they are."""
    array = np.random.default_rng(seed).integers(0, 1000, SPACE.shape).astype(np.int16)
    if path.suffix == ".mhd":
        size = " ".join(map(str, SPACE.shape[::-1]))
        lines = ["ObjectType = Image", "NDims = 3", f"DimSize = {size}", "ElementType = MET_SHORT"]
        path.write_text("\n".join([*lines, f"ElementDataFile = {path.stem}.raw"]) + "\n")
        path.with_suffix(".raw").write_bytes(array.tobytes())
    else:
        write_volume(path, array, SPACE)
    return path


def data_set(root: Path, cases: dict[str, Case], plan: Plan) -> Catalogue:
    return Catalogue(root, "small", dict(plan.labels), plan.channels, (), tuple(cases.values()))


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    root = tmp_path / "data"
    root.mkdir()
    cases = {}
    for seed, name in enumerate("ab"):
        labels = root / f"{name}_labels.nii"
        write_volume(labels, (np.indices(SPACE.shape).sum(0) % 3).astype(np.uint8), SPACE)
        cases[name] = Case(name, "labelled", (scan(root / f"{name}.nii", seed),), labels, None)
    return data_set(root, cases, a_plan())


def preprocess(catalogue: Catalogue, store: Path) -> dict[str, str]:
    outcomes = preprocess_dataset(catalogue, a_plan(catalogue.channels), store, workers=1, progress=False)
    return {one.name: one.value or one.error or "" for one in outcomes}


def verify(catalogue: Catalogue, store: Path) -> dict[str, str]:
    outcomes = verify_dataset(catalogue, a_plan(catalogue.channels), store, workers=1, progress=False)
    return {one.name: one.value or one.error or "" for one in outcomes}


def change_in_place(path: Path, restore_times: bool = False) -> None:
    """Another value in the last voxels; the same name, size and, if so wished, time of change."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        last = file.read(4)
        file.seek(-4, os.SEEK_END)
        file.write(bytes({0: 1, 1: 2, 2: 0}.get(byte, byte ^ 1) for byte in last))
    assert path.stat().st_size == before.st_size
    if restore_times:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def age(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let times decide at once: the files of the test are younger than a tick of a coarse clock."""
    monkeypatch.setattr(sources, "TICK_NS", -(10**18))


@pytest.mark.parametrize("aged", [True, False])
@pytest.mark.parametrize("restore_times", [True, False])
@pytest.mark.parametrize("file", ["a.nii", "a_labels.nii"])
def test_a_change_of_the_same_size_is_seen(
    catalogue: Catalogue, tmp_path: Path, file: str, restore_times: bool, aged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if aged:
        age(catalogue, monkeypatch)
    preprocess(catalogue, tmp_path / "store")
    change_in_place(catalogue.root / file, restore_times)
    assert preprocess(catalogue, tmp_path / "store") == {"a": "written", "b": "present"}
    assert preprocess(catalogue, tmp_path / "store") == {"a": "present", "b": "present"}


def test_what_no_time_tells_is_found_by_verify(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A system without the time that nobody can set: only reading helps."""
    age(catalogue, monkeypatch)
    times = sources._times
    monkeypatch.setattr(sources, "_times", lambda path: [*times(path)[:3], 0])
    preprocess(catalogue, tmp_path / "store")
    change_in_place(catalogue.root / "b_labels.nii", restore_times=True)
    assert preprocess(catalogue, tmp_path / "store") == {"a": "present", "b": "present"}
    assert verify(catalogue, tmp_path / "store") == {
        "a": "",
        "b": "not made from the files that are there now (b_labels.nii changed)",
    }
    assert preprocess(catalogue, tmp_path / "store") == {"a": "present", "b": "written"}
    assert verify(catalogue, tmp_path / "store") == {"a": "", "b": ""}


@pytest.mark.parametrize("how", ["touched", "copied back"])
def test_the_same_content_is_not_done_again(
    catalogue: Catalogue, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    age(catalogue, monkeypatch)
    preprocess(catalogue, tmp_path / "store")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "cases").rglob("*")}
    if how == "touched":
        os.utime(catalogue.root / "a.nii", (LONG_AGO, LONG_AGO))
    else:
        shutil.copytree(catalogue.root, tmp_path / "elsewhere")
        shutil.rmtree(catalogue.root)
        shutil.copytree(tmp_path / "elsewhere", catalogue.root)
    assert preprocess(catalogue, tmp_path / "store") == {"a": "present", "b": "present"}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "cases").rglob("*")} == before
    monkeypatch.setattr(sources, "sha256", lambda path: pytest.fail("times were noted: nothing is read again"))
    assert preprocess(catalogue, tmp_path / "store") == {"a": "present", "b": "present"}


def test_every_channel_and_a_headers_data_file_count(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    images = scan(root / "a_0000.mhd", 1), scan(root / "a_0001.mhd", 2)
    case = Case("a", "unlabelled", images, None, None)
    recorded = sources.hashes_of(case)
    assert [name for name, *_ in recorded] == ["a_0000.mhd", "a_0000.raw", "a_0001.mhd", "a_0001.raw"]
    for file in ("a_0000.raw", "a_0001.raw"):
        assert sources.is_made_from(recorded, case)
        change_in_place(root / file)
        assert not sources.is_made_from(recorded, case)
        recorded = sources.hashes_of(case)


def test_each_slice_of_a_dicom_folder_counts(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.dcm").write_bytes(bytes(200))
    (folder / ".DS_Store").write_bytes(b"x")
    case = Case("s", "unlabelled", (folder,), None, None)
    recorded = sources.hashes_of(case)
    assert [name for name, *_ in recorded] == ["0.dcm", "1.dcm", "2.dcm"]
    assert sources.is_made_from(recorded, case)
    change_in_place(folder / "1.dcm", restore_times=True)
    assert not sources.is_made_from(recorded, case)
    (folder / "1.dcm").unlink()
    assert not sources.is_made_from(recorded, case)


def test_a_missing_file_costs_one_case_only(catalogue: Catalogue, tmp_path: Path) -> None:
    (catalogue.root / "a_labels.nii").unlink()
    found = preprocess(catalogue, tmp_path / "store")
    assert found["b"] == "written"
    assert "a_labels.nii: a file of case 'a' can't be read (No such file or directory)" in found["a"]
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    case = replace(catalogue.cases[1], name="c", images=(tmp_path / "dangling",))
    found = preprocess(replace(catalogue, cases=(catalogue.cases[1], case)), tmp_path / "store")
    assert "dangling: a link to" in found["c"]


def test_a_case_that_changes_while_it_is_read_is_not_kept(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = preprocessing_dataset.read_labels

    def meanwhile(path: Path):
        labels = read(path)
        if path.name == "a_labels.nii":
            change_in_place(path)
        return labels

    monkeypatch.setattr(preprocessing_dataset, "read_labels", meanwhile)
    found = preprocess(catalogue, tmp_path / "store")
    assert "case 'a' changed while it was read; run the same command again" in found["a"]
    assert CaseStore(tmp_path / "store").names == ("b",)


def list_again(folder: Path) -> None:
    """Make a case's list of checksums anew."""
    files = sorted(path for path in folder.iterdir() if path.suffix != ".sha256")
    (folder / "checksums.sha256").write_text("".join(f"{sources.sha256(path)}  {path.name}\n" for path in files))


def as_of_an_earlier_version(store: Path) -> None:
    """What such a store says of its sources: names and sizes."""
    shutil.rmtree(store / "sources")
    for path in store.glob("cases/*/case.json"):
        content = json.loads(path.read_text())
        content["made_from"]["files"] = [entry[:2] for entry in content["made_from"]["files"]]
        path.write_text(json.dumps(content, indent=1) + "\n")
        list_again(path.parent)


def test_a_store_without_hashes_is_read_and_continued(catalogue: Catalogue, tmp_path: Path) -> None:
    store = tmp_path / "store"
    preprocess(catalogue, store)
    assert cases_without_hashes(catalogue, store) == []
    as_of_an_earlier_version(store)
    assert preprocess(catalogue, store) == {"a": "present", "b": "present"}
    assert verify(catalogue, store) == {"a": "", "b": ""}
    assert cases_without_hashes(catalogue, store) == ["a", "b"]
    assert "without hashes of its scans" in CaseStore(store).source_changes(["a", "b"])
    scan(catalogue.root / "b.nii", 9).open("ab").write(b"x")  # another size is seen there, too
    assert preprocess(catalogue, store)["b"] != "present"


def test_a_training_is_told_of_changes(catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess(catalogue, tmp_path / "store")
    store = CaseStore(tmp_path / "store")
    assert store.source_changes(["a", "b"]) == ""
    os.utime(catalogue.root / "a.nii", (LONG_AGO, LONG_AGO))
    assert store.source_changes(["a", "b"]) == ""
    change_in_place(catalogue.root / "b_labels.nii")
    assert "scans or labels of 1 case changed after they were preprocessed (b)" in store.source_changes(["a", "b"])
    assert store.source_changes(["a"]) == ""
    monkeypatch.setattr(sources, "MOST_HASHED_BYTES", 10)
    assert "of 2 cases were touched since (a, b)" in store.source_changes(["a", "b"])
    shutil.rmtree(catalogue.root)
    assert store.source_changes(["a", "b"]) == ""
    (tmp_path / "store" / "sources" / "a.json").write_text("{")
    (tmp_path / "store" / "sources" / "b.json").unlink()
    assert store.source_changes(["a", "b"]) == ""


def test_a_case_names_its_sources(catalogue: Catalogue, tmp_path: Path) -> None:
    preprocess(catalogue, tmp_path / "store")
    found = CaseStore(tmp_path / "store").record("a").sources
    assert [(name, size) for name, size, _ in found] == [
        (name, (catalogue.root / name).stat().st_size) for name in ("a.nii", "a_labels.nii")
    ]
    assert found[0][2] == sources.sha256(catalogue.root / "a.nii")


# -- the bytes of the store


def read_everything(path: Path) -> None:
    store = CaseStore(path)
    store.record("a").samples  # noqa: B018
    store.read_case("a")


@pytest.mark.parametrize("file", ["image.b2nd", "labels.b2nd", "samples.b2nd", "case.json"])
def test_any_flipped_bit_is_found_on_the_first_read(catalogue: Catalogue, tmp_path: Path, file: str) -> None:
    preprocess(catalogue, tmp_path / "store")
    path = tmp_path / "store" / "cases" / "a" / file
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(whole), 20):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=f"cases/a/{file.replace('.', '[.]')}: missing or damaged"):
            read_everything(tmp_path / "store")
    path.write_bytes(whole)
    CaseStore(tmp_path / "store").read_case("a")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b"3", b"{}", b'{"made_from": []}', b'{"made_from": {"annotated": 3}}', b"\xff\xfe"]
)
def test_a_senseless_record_is_one_line(catalogue: Catalogue, tmp_path: Path, content: bytes) -> None:
    """Also where its checksum agrees, and in a store of version 1, which has none."""
    preprocess(catalogue, tmp_path / "store")
    folder = tmp_path / "store" / "cases" / "a"
    (folder / "case.json").write_bytes(content)
    for version in (2, 1):
        list_again(folder)
        description = json.loads((tmp_path / "store" / "store.json").read_text())
        (tmp_path / "store" / "store.json").write_text(json.dumps(description | {"version": version}))
        with pytest.raises(StoreError, match=r"cases/a/case[.]json: the record of case 'a' is missing or damaged"):
            CaseStore(tmp_path / "store").record("a")
    assert preprocess(catalogue, tmp_path / "store") == {"a": "written", "b": "present"}


def test_a_file_is_read_once_for_its_checksum(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preprocess(catalogue, tmp_path / "store")
    store = CaseStore(tmp_path / "store")
    store.read_case("a")
    monkeypatch.setattr("flarecps.preprocessing.checksums.sha256", lambda path: pytest.fail(f"{path} is read again"))
    store.read_case("a")
    CaseStore(tmp_path / "store").read_case("a")


def test_a_list_that_lost_a_line_is_damage(catalogue: Catalogue, tmp_path: Path) -> None:
    preprocess(catalogue, tmp_path / "store")
    path = tmp_path / "store" / "cases" / "a" / "checksums.sha256"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(StoreError, match=r"image[.]b2nd: missing or damaged"):
        CaseStore(tmp_path / "store").read_case("a")
    assert "does not list" in verify(catalogue, tmp_path / "store")["a"]


def test_a_plan_of_another_grid_is_not_read(catalogue: Catalogue, tmp_path: Path) -> None:
    preprocess(catalogue, tmp_path / "store")
    path = tmp_path / "store" / "plan.json"
    path.write_text(path.read_text().replace("2.0", "2.5", 1))
    with pytest.raises(StoreError, match=r"plan.json: not the plan that the cases were preprocessed with"):
        CaseStore(tmp_path / "store").plan  # noqa: B018
