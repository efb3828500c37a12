"""The doctor's parts on their own: hashes of scans, proposals, orientation rules, histogram rules, relabelling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flarecps.anatomy import FLARE22_LABELS, FLARE22_PAIRS
from flarecps.datasets.case_checks import (
    ABOVE,
    IN_FRONT,
    hounsfield_findings,
    hu_histogram,
    label_centres,
    label_orientation_findings,
    torso_findings,
)
from flarecps.datasets.duplicates import content_hash, find_duplicates, scan_hashes
from flarecps.datasets.relabelling import parse_ids, propose_renumbering, relabel_file
from flarecps.errors import DatasetError, ScanError
from flarecps.volumes.io import read_labels, read_volume, write_volume
from flarecps.volumes.space import Space, axis_codes, canonical_reorientation

REPOSITORY = Path(__file__).resolve().parents[2]


def noise(seed: int, shape: tuple[int, ...] = (1, 10, 20, 24)) -> np.ndarray:
    return np.random.default_rng(seed).normal(40, 200, shape).astype(np.int16)


# --- the same scan again


def test_content_hash_sees_values_and_shape_only() -> None:
    array = np.arange(24, dtype=np.int16).reshape(1, 2, 3, 4)
    assert content_hash(array) == content_hash(np.asfortranarray(array.astype(np.float32)))
    assert content_hash(array) != content_hash(array.reshape(1, 2, 4, 3))
    assert content_hash(array) != content_hash(array + 1)


@pytest.mark.parametrize(
    ("copy", "words"),
    [
        (lambda a: a.astype(np.float32), "equal voxels"),
        (lambda a: a[:, :, :, ::-1], "another order"),
        (lambda a: a.transpose(0, 3, 1, 2), "another order"),
        (lambda a: a + 1024, "10 equal slices of 10"),
        (lambda a: (a + 1000).astype(np.float32), "10 equal slices of 10"),
        (lambda a: a[:, 3:8], "5 equal slices of 5"),
        (lambda a: a[:, 8:, ::-1], "2 equal slices of 2"),
    ],
)
def test_duplicates_are_recognised(copy, words: str) -> None:  # type: ignore[no-untyped-def]
    hashes = {"a": scan_hashes(noise(1)), "b": scan_hashes(noise(2)), "copy": scan_hashes(copy(noise(1)))}
    ((names, alike),) = find_duplicates(hashes)
    assert names == ("a", "copy")
    assert words in alike


def test_different_scans_are_no_duplicates() -> None:
    changed = noise(1)
    changed[:, :, 5, 5] += 1  # one voxel of every slice
    empty = np.full((1, 10, 20, 24), -1000, np.int16)  # slices of air are equal in all scans
    padded = {name: np.concatenate([empty, noise(seed)], axis=1) for name, seed in (("p", 3), ("q", 4))}
    mask = np.zeros((1, 10, 20, 24), np.uint8)
    mask[:, :, 4:12, 4:14] = 1
    others = {"mask": mask, "mask moved": np.roll(mask, 3, axis=3)}
    scans = {"a": noise(1), "b": noise(2), "c": changed} | padded
    assert find_duplicates({name: scan_hashes(array) for name, array in scans.items()}) == []
    assert [alike for _, alike in find_duplicates({name: scan_hashes(array) for name, array in others.items()})] == [
        "equal voxels in another order (flipped or turned)"
    ], "few different values: no slice hashes"


def test_integers_and_floats_have_the_same_marks() -> None:
    array = noise(5)
    fractions = array.astype(np.float32)
    assert scan_hashes(array) == scan_hashes(fractions)
    wide = array.astype(np.int32)
    wide[0, 0, 0, 0] = 1 << 22  # too wide a range to be counted
    assert scan_hashes(wide) == scan_hashes(wide.astype(np.float32))


# --- label ids


def test_gaps_in_dataset_json_are_closed() -> None:
    proposal = propose_renumbering({"background": 0, "liver": 1, "spleen": 5}, [{0, 1, 5}])
    assert proposal is not None
    assert proposal.ids == {5: 2}
    assert proposal.labels == {"background": 0, "liver": 1, "spleen": 2}
    assert proposal.to_json()["commands"] == []  # without a folder


def test_unknown_ids() -> None:
    labels = {"background": 0, "liver": 1, "spleen": 2, "aorta": 3}
    assert propose_renumbering(labels, [{0, 1, 2, 3}]) is None
    swapped_in = propose_renumbering(labels, [{0, 1, 2, 3}, {0, 1, 2, 30}, {0, 1, 30}])
    assert swapped_in is not None
    assert swapped_in.ids == {30: 3}
    assert "30 stands where aorta is missing" in swapped_in.reason
    new = propose_renumbering(labels, [{0, 1, 2, 3, 7, 9}, {-1, 0, 1}])
    assert new is not None
    assert new.ids == {-1: 0, 7: 4, 9: 5}
    assert new.labels == labels | {"unknown 7": 4, "unknown 9": 5}
    both = propose_renumbering({"background": 0, "liver": 1, "spleen": 5}, [{0, 1, 5, 8}])
    assert both is not None
    assert both.ids == {5: 2, 8: 3}


@pytest.mark.parametrize(
    ("labels", "maps", "ids"),
    [
        ({"background": 0, "body": 1, "ball": 2}, [{-1, 0, 1, 2}], {-1: 0}),
        ({"background": 0, "body": 1, "ball": 2, "never": 3}, [{-1, 0, 1, 2}], {-1: 0}),  # as many ids as names
        ({"background": 0, "body": 1, "ball": 2}, [{-1, 0, 1, 77}], {-1: 0, 77: 2}),
        ({"background": 0, "left": 1035, "right": 2035}, [{0, 1035, 2035}], {1035: 1, 2035: 2}),
        ({"background": 0, "left": 1035, "right": 2035}, [{0, 1, 2}], {1035: 1, 2035: 2}),  # maps are right already
        ({"outside": -1, "background": 0, "body": 1}, [{-1, 0, 1}], {-1: 2}),
        ({"background": 0, "liver": 1, "spleen": 2, "aorta": 3}, [{0, 1, 2, 3, 200, 300}, {0, 3, 4}], {200: 5, 300: 6}),
    ],
)
def test_what_fits_is_left_alone(labels: dict[str, int], maps: list[set[int]], ids: dict[int, int]) -> None:
    proposal = propose_renumbering(labels, maps)
    assert proposal is not None
    assert proposal.ids == ids
    renumbered = [{proposal.ids.get(label, label) for label in held} for held in maps]
    assert sorted(proposal.labels.values()) == list(range(len(proposal.labels)))
    assert set().union(*renumbered) <= set(proposal.labels.values())


def test_relabel(tmp_path: Path) -> None:
    space = Space.canonical((6, 8, 10), (2.0, 1.0, 1.0))
    stored = canonical_reorientation((0, -1.0, 0, 1.0, 0, 0, 0, 0, -1.0)).apply_to_space(space)
    array = np.zeros(stored.shape, np.int16)
    array[1, 2, 3], array[2, 2, 2], array[3, 3, 3] = 300, -1, 2
    write_volume(tmp_path / "map.nii.gz", array, stored)
    source, out = tmp_path / "map.nii.gz", tmp_path / "new/map.nii.gz"
    assert relabel_file((source, out), parse_ids("300=1, -1=0")) == 2
    before, after = read_volume(source), read_labels(out)
    assert after.space.same_grid(before.space)
    expected = before.array.copy()
    expected[expected == 300], expected[expected == -1] = 1, 0
    np.testing.assert_array_equal(after.array, expected)
    with pytest.raises(ScanError, match=r"ids -1 do not fit"):
        relabel_file((source, out), parse_ids("300=1"))
    relabel_file((source, out), parse_ids("300=1, -1=0"))  # -1 alone has a cure that is one command
    unlooked = tmp_path / "unlooked.nii.gz"
    write_volume(unlooked, read_labels(out).array[0].astype(np.int16) - 1, before.space)
    with pytest.raises(ScanError, match="'flarecps relabel MAPS NEW --ids=-1=0' clears"):
        read_labels(unlooked)
    relabel_file((unlooked, tmp_path / "cleared.nii.gz"), parse_ids("-1=0"))
    assert read_labels(tmp_path / "cleared.nii.gz").array.min() == 0


@pytest.mark.parametrize("words", ["3", "a=1", "1=256", "1=-1", "1=2,1=3", "", "1=2,"])
def test_bad_ids(words: str) -> None:
    with pytest.raises(DatasetError, match="ids"):
        parse_ids(words)


# --- orientation


def test_axis_codes() -> None:
    assert axis_codes((-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)) == "RAS"
    assert axis_codes((0, 0.1, 1.0, -1.0, 0, 0, 0, -1.0, 0.1)) == "AIL"


def codes_of(labels: np.ndarray, spacing_mm: tuple[float, float, float], names: dict[int, str]) -> set[str]:
    centres = label_centres(labels, spacing_mm, names)
    pairs = tuple((names[right], names[left]) for right, left in FLARE22_PAIRS if right in names)
    return {code for code, _, _ in label_orientation_findings(centres, pairs)[0]}


def test_real_organs_lie_as_the_rules_say(shared_data: Path) -> None:
    names = {label: name for name, label in FLARE22_LABELS.items()}
    for path in sorted((shared_data / "flare22_labels").glob("*.nii.gz"))[:6]:
        volume = read_labels(path)
        labels = np.ascontiguousarray(volume.array[0][:, ::4, ::4])
        spacing_mm = volume.space.spacing_mm
        spacing_mm = (spacing_mm[0], 4 * spacing_mm[1], 4 * spacing_mm[2])
        assert codes_of(labels, spacing_mm, names) == set()
        assert codes_of(np.ascontiguousarray(labels[::-1]), spacing_mm, names) == {"upside-down"}
        assert codes_of(np.ascontiguousarray(labels[:, ::-1]), spacing_mm, names) == {"back-to-front"}
        assert codes_of(np.ascontiguousarray(labels[:, :, ::-1]), spacing_mm, names) == {"sides-swapped", "liver-left"}


def test_no_pair_contradicts_another() -> None:
    for table in (ABOVE, IN_FRONT):
        assert len(set(table)) == len(table)
        assert not {(low, high) for high, low in table} & set(table)


def test_similar_names_are_not_confused() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[8, 5, 5], labels[1, 5, 5] = 1, 2
    names = {0: "background", 1: "gallbladder", 2: "liver"}
    centres = label_centres(labels, (10.0, 10.0, 10.0), names)
    assert label_orientation_findings(centres, ()) == ([], False), "a gallbladder is no bladder"
    names = {0: "background", 1: "left_adrenal_gland", 2: "left_kidney"}
    centres = label_centres(labels, (10.0, 10.0, 10.0), names)
    assert label_orientation_findings(centres, ()) == ([], False), "above is decided, in front is not"
    flipped = label_centres(np.ascontiguousarray(labels[::-1]), (10.0, 10.0, 10.0), names)
    assert [code for code, _, _ in label_orientation_findings(flipped, ())[0]] == ["upside-down"]


def test_real_torsos_lie_as_their_voxels_say(shared_data: Path) -> None:
    volume = read_volume(shared_data / "ct" / "example_3mm" / "ct.nii.gz")
    assert list(torso_findings(volume.array[0], volume.space.spacing_mm)) == []
    turned = [code for code, _, _ in torso_findings(volume.array[0][:, ::-1], volume.space.spacing_mm)]
    assert turned == ["maybe-back-to-front"]


def trunk(cm2: float, lung_at: slice = slice(0, 0)) -> np.ndarray:
    """HU of a trunk of ``cm2`` in section, twice as wide as deep, 4 mm voxels: the spine behind, and lung."""
    depth_mm = np.sqrt(cm2 * 100 / (np.pi / 4 * 2))
    rows, columns = (np.arange(90) - 44.5) * 4, (np.arange(120) - 59.5) * 4
    reach = (rows[:, None] / (depth_mm / 2)) ** 2 + (columns[None] / depth_mm) ** 2
    hu = np.full((40, 90, 120), -1000.0, np.float32)
    hu[:, reach < 1] = 40
    hu[lung_at][:, reach < 0.4] = -850
    hu[:, (np.abs(rows + 0.35 * depth_mm) < 12)[:, None] & (np.abs(columns) < 15)[None]] = 500
    return hu


@pytest.mark.parametrize("cm2", [348.0, 320.0, 700.0])
def test_a_slim_patient_on_the_head_is_doubted(cm2: float) -> None:
    upright, spacing_mm = trunk(cm2, slice(32, 40)), (4.0, 4.0, 4.0)
    open_: list[str] = []
    assert list(torso_findings(upright, spacing_mm, open_)) == []
    assert [code for code, _, _ in torso_findings(upright[::-1], spacing_mm, open_)] == ["maybe-upside-down"]
    assert [code for code, _, _ in torso_findings(upright[:, ::-1], spacing_mm, open_)] == ["maybe-back-to-front"]
    assert open_ == []


@pytest.mark.parametrize(
    ("hu", "said"),
    [
        (trunk(220.0, slice(32, 40)), ["up and down", "front and back"]),  # it may be a head
        (trunk(500.0), ["up and down"]),  # no lung
        (trunk(500.0, slice(0, 40)), ["up and down"]),  # lung at both ends
        (trunk(500.0, slice(32, 40)).clip(-1000, 200), ["front and back"]),  # no bone
    ],
)
def test_what_the_voxels_do_not_tell_is_said(hu: np.ndarray, said: list[str]) -> None:
    for scan in (hu, hu[::-1], hu[:, ::-1]):
        not_judged: list[str] = []
        found = list(torso_findings(scan, (4.0, 4.0, 4.0), not_judged))
        assert len(found) <= 2 - len(said)
        assert sorted(not_judged) == sorted(said)


# --- Hounsfield units


def body(seed: int = 0) -> np.ndarray:
    """Half air, half soft tissue with fat and a little bone."""
    generator = np.random.default_rng(seed)
    hu = generator.normal(-1000, 10, (20, 40, 40))
    hu[:, 8:36] = generator.normal(45, 20, (20, 28, 40))
    hu[:, 8:12] = generator.normal(-100, 15, (20, 4, 40))
    hu[:, 28:30] = generator.normal(600, 150, (20, 2, 40))
    return np.rint(hu).clip(-1024, 3071)


def findings_of(hu: np.ndarray) -> list[str]:
    ends = int((hu == hu.min()).sum()), int((hu == hu.max()).sum())
    return [code for code, _, _ in hounsfield_findings(hu_histogram(hu), float(hu.min()), float(hu.max()), ends)]


@pytest.mark.parametrize("bone", [200, 2_000, 20_000])
@pytest.mark.parametrize("end", [700, 1024, 2000])
def test_a_clipped_scan_is_found_whatever_the_share_of_its_end(bone: int, end: int) -> None:
    """Bone thins out towards high values, by 1/e every 600 HU: a few voxels or most of the bone are clipped."""
    rng = np.random.default_rng(4)
    hu = np.concatenate([rng.normal(-950, 30, 90_000), rng.normal(40, 30, 90_000), 300 + rng.exponential(600, bone)])
    hu = np.rint(hu).clip(-1024, 3071).reshape(-1, 10, 10)
    assert findings_of(np.where(hu > 2800, 40, hu)) == []
    assert findings_of(hu.clip(-1024, end)) == ["clipped"]
    assert findings_of(hu.clip(-1024, end) + 0.4) == ["clipped"]
    assert findings_of(np.where(hu > end, 40, hu).repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)) == []


def test_real_heads_are_clipped_when_they_are_clipped(shared_data: Path) -> None:
    for path in sorted((shared_data / "kbp" / "imagesTr").glob("*.nii.gz"))[:12]:
        hu = read_volume(path).array[0]
        assert "clipped" not in findings_of(hu)
        assert "clipped" in findings_of(hu.clip(-1024, 1024))


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (lambda hu: hu, []),
        (lambda hu: hu.clip(-1024, 1023), []),
        (lambda hu: np.where(hu < -1010, -3024, hu), []),  # fill outside the field of view
        (lambda hu: hu + 1024, ["not-rescaled"]),
        (lambda hu: hu + 1000, ["not-rescaled"]),
        (lambda hu: np.where(hu < -1010, -2000, hu + 1024), ["not-rescaled"]),  # stored values with their fill
        (lambda hu: hu - 1024, ["rescaled-twice"]),
        (lambda hu: (hu - 1024).clip(-1024), ["rescaled-twice"]),
        (lambda hu: (hu + 1024) / 4095, ["normalised"]),
        (lambda hu: (hu - hu.mean()) / hu.std(), ["normalised"]),
        (lambda hu: np.rint((hu.clip(-160, 240) + 160) / 400 * 255), ["eight-bit"]),
        (lambda hu: np.abs(np.random.default_rng(3).normal(300, 100, hu.shape)), ["not-ct"]),  # as MR
        (lambda hu: hu.clip(-160, 240), ["clipped"]),
        (lambda hu: hu.clip(-1000, 300), ["clipped"]),
        (lambda hu: hu[:, 12:28], ["no-air"]),
        (lambda hu: np.where(hu > 900, 20000, hu), ["very-dense"]),
    ],
)
def test_how_values_were_made(change, codes: list[str]) -> None:  # type: ignore[no-untyped-def]
    for kind in (np.float32, np.int16):
        values = change(body()).astype(np.float32)
        if kind is np.int16:
            if not (values == np.rint(values)).all():
                continue
            values = values.astype(np.int16)
        ends = (int((values == values.min()).sum()), int((values == values.max()).sum()))
        found = hounsfield_findings(hu_histogram(values), float(values.min()), float(values.max()), ends)
        assert [code for code, _, _ in found] == codes
