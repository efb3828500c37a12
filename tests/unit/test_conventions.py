"""Plans that were made elsewhere: voxels as stored, CT clipped before resampling, cropping to what is not 0."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from skimage.transform import resize
from small_model import small_plan, write_model, write_scan

from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.errors import PlanError, StoreError
from flarecps.inference.folders import OutputOptions, segment_folder
from flarecps.inference.resources.budget import Budget
from flarecps.inference.segmenter import Segmenter
from flarecps.planning.plan import Conventions, Plan, plan_from_json, plan_to_json
from flarecps.preprocessing.case import prepare_case
from flarecps.preprocessing.intensity import normalise
from flarecps.preprocessing.store import CaseStore
from flarecps.preprocessing.store_writing import prepare_store, write_case
from flarecps.reporting.run_description import describe_plan
from flarecps.volumes.io import Volume, in_file_order, read_labels, read_volume
from flarecps.volumes.space import AS_IT_IS, Reorientation, Space

AS_STORED = Conventions(orientation="as_stored")


def with_conventions(conventions: Conventions, **changes: object) -> Plan:
    return replace(small_plan((3.0, 3.0, 3.0), **changes), conventions=conventions)


def scan_in(order: tuple[str, str, str], path: Path) -> Path:
    """A scan of 20×24×28 voxels of unlike spacing, stored with these axis codes."""
    noise = np.random.default_rng(0).normal(size=(20, 24, 28))
    for axis in range(3):
        noise = noise + np.roll(noise, 1, axis)
    image = nibabel.Nifti1Image((noise * 60).astype(np.int16), np.diag([2.5, 3.0, 4.0, 1.0]))
    wanted = nibabel.orientations.axcodes2ornt(order)
    path.parent.mkdir(exist_ok=True)
    nibabel.save(
        image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted)), path
    )
    return path


def unlike_network(tiles: torch.Tensor) -> torch.Tensor:
    """Logits that depend on a voxel's neighbours along each axis in another way, and on which side they are."""
    kernel = torch.arange(27, dtype=torch.float32).reshape(1, 1, 3, 3, 3) - 13
    found = torch.nn.functional.conv3d(tiles, kernel, padding=1)
    return torch.cat([torch.zeros_like(found), found, 0.5 * found.abs()], dim=1)


def test_a_plan_says_its_conventions_only_where_they_are_not_the_programs_own() -> None:
    own, other = small_plan(), with_conventions(Conventions("as_stored", "before_resampling", "nonzero"))
    assert "conventions" not in plan_to_json(own)
    content = plan_to_json(other)
    assert content["conventions"] == {"orientation": "as_stored", "intensity": "before_resampling", "crop": "nonzero"}
    assert plan_from_json(content) == other
    assert plan_from_json(content | {"conventions": {"crop": "nonzero"}}).conventions == Conventions(crop="nonzero")


def test_a_plan_with_the_former_word_for_conventions_is_read_and_finds_its_store() -> None:
    plan = with_conventions(AS_STORED)
    content = plan_to_json(plan)
    content["habits"] = content.pop("conventions")
    assert plan_from_json(content) == plan
    assert plan.preprocessing_hash() == "6a62eedcf6c9d19d"  # as computed before the word changed
    with pytest.raises(PlanError, match="left out beside 'conventions'"):
        plan_from_json(content | {"conventions": content["habits"]})


def test_conventions_decide_what_is_stored() -> None:
    hashes = {
        with_conventions(conventions).preprocessing_hash()
        for conventions in (
            Conventions(),
            AS_STORED,
            Conventions(intensity="before_resampling"),
            Conventions(crop="nonzero"),
        )
    }
    assert len(hashes) == 4
    before = with_conventions(Conventions(intensity="before_resampling"))
    wider = replace(before, intensity=replace(before.intensity, high=300.0))
    assert wider.preprocessing_hash() != before.preprocessing_hash()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conventions": {"orientation": "LPS"}}, "expected 'ras' or 'as_stored'"),
        ({"conventions": {"orientaton": "ras"}}, "did you mean 'orientation'"),
        ({"conventions": []}, "expected an object"),
        (
            {"conventions": {"orientation": "as_stored"}, "left_right_pairs": [[1, 2]]},
            "left and right may be on any axis",
        ),
    ],
)
def test_mistaken_conventions_are_answered(changes: dict, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        plan_from_json(plan_to_json(small_plan()) | changes)


def test_every_reordering_has_its_inverse() -> None:
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    space = Space.canonical((2, 3, 4), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0))
    for axes, flips in product(permutations(range(3)), product((False, True), repeat=3)):
        order = Reorientation(axes, flips)  # type: ignore[arg-type]
        there, back = order.apply_to_space(space), order.inverse()
        assert np.array_equal(back.apply(order.apply(array)), array)
        assert np.array_equal(back.apply(array), order.undo(array))
        assert back.apply_to_space(there).same_grid(space)


@pytest.mark.parametrize("order", [("P", "L", "I"), ("S", "A", "R"), ("R", "A", "S"), ("I", "R", "P")])
def test_as_stored_the_network_sees_the_files_own_order(order: tuple[str, str, str], tmp_path: Path) -> None:
    """The reference knows no patient: the file's array, taken by a plan without conventions as if it were RAS."""
    path = scan_in(order, tmp_path / "scan.nii.gz")
    volume = read_volume(path)
    stored = np.asarray(nibabel.load(path).dataobj).transpose(2, 1, 0)
    spacing = tuple(float(edge) for edge in nibabel.load(path).header.get_zooms()[::-1])
    plain = Space.canonical(stored.shape, spacing)
    file_order = Volume(stored[None], plain, replace(volume.source, stored=plain, reorientation=AS_IT_IS))
    expected = Segmenter(small_plan(), [unlike_network], step=0.5)(file_order)
    assert {1, 2} <= set(np.unique(expected))
    plan = with_conventions(AS_STORED)
    for mode in ("normal", "fast", "fastest"):
        labels = Segmenter(plan, [unlike_network], step=0.5, mode=mode)(volume)
        assert labels.shape == volume.space.shape
        reference = Segmenter(small_plan(), [unlike_network], step=0.5, mode=mode)(file_order)
        assert np.array_equal(volume.source.reorientation.undo(labels), reference)
    assert np.array_equal(in_file_order(volume).array[0], stored)
    ras = Segmenter(small_plan(), [unlike_network], step=0.5)(volume)
    assert (order == ("R", "A", "S")) == np.array_equal(ras, volume.source.reorientation.apply(expected))


def test_as_stored_labels_follow_the_scans_file_not_their_own(tmp_path: Path) -> None:
    volume = read_volume(scan_in(("P", "L", "I"), tmp_path / "scan.nii.gz"))
    drawn = (read_volume(scan_in(("R", "A", "S"), tmp_path / "again.nii.gz")).array > 0).astype(np.int16)
    image = nibabel.load(tmp_path / "again.nii.gz")
    nibabel.save(nibabel.Nifti1Image(drawn[0].transpose(2, 1, 0), image.affine), tmp_path / "labels.nii.gz")
    labels = read_labels(tmp_path / "labels.nii.gz")
    same_spacing = replace(with_conventions(AS_STORED), spacing_mm=in_file_order(volume).space.spacing_mm)
    prepared = prepare_case(volume, same_spacing, labels)
    assert prepared.labels is not None
    assert np.array_equal(prepared.labels, (prepared.image[0] > 0).astype(np.uint8))


def test_before_resampling_the_window_is_applied_first(tmp_path: Path) -> None:
    """Against scikit-image's cubic resizing of the clipped scan, which is what nnU-Net does."""
    volume = read_volume(write_scan(tmp_path / "scan.nii.gz", spacing_mm=2.0))
    plan = replace(with_conventions(Conventions(intensity="before_resampling")), spacing_mm=(3.0, 3.0, 3.0))
    low, high = plan.intensity.low, plan.intensity.high
    narrow = replace(plan, intensity=replace(plan.intensity, low=low / 4, high=high / 4))
    prepared = prepare_case(volume, narrow)
    clipped = np.clip(volume.array[0].astype(float), low / 4, high / 4)
    shape = prepared.grid_mapping.network_shape
    expected = resize(clipped, shape, order=3, mode="edge", anti_aliasing=False)
    assert prepared.image.dtype == np.float32
    assert np.abs(prepared.image[0] - expected).max() < 1e-3  # nothing is rounded to whole HU
    seen = normalise(prepared.image, narrow.intensity, prepared.statistics)[0]
    assert np.abs(seen - (expected - narrow.intensity.mean) / narrow.intensity.sd).max() < 1e-4
    after = prepare_case(volume, replace(narrow, conventions=Conventions()))
    late = normalise(after.image, narrow.intensity, after.statistics)[0]
    assert np.abs(late - seen).max() > 0.1  # the order matters


def test_nonzero_keeps_air_that_the_field_of_view_leaves_out(tmp_path: Path) -> None:
    voxels = np.full((20, 20, 20), -1024, np.int16)
    voxels[5:15, 5:15, 5:15] = 40
    voxels[:2] = 0
    image = nibabel.Nifti1Image(voxels, np.diag([-3.0, -3.0, 3.0, 1.0]))
    nibabel.save(image, tmp_path / "scan.nii.gz")
    volume = read_volume(tmp_path / "scan.nii.gz")
    assert prepare_case(volume, with_conventions(Conventions(crop="nonzero"))).grid_mapping.box.shape == (20, 20, 18)
    nibabel.save(nibabel.Nifti1Image(np.where(voxels == 0, -1024, voxels), image.affine), tmp_path / "other.nii.gz")
    assert (
        prepare_case(read_volume(tmp_path / "other.nii.gz"), with_conventions(Conventions())).grid_mapping.box.shape
        == (10,) * 3
    )


def test_a_store_keeps_clipped_ct_finely(tmp_path: Path) -> None:
    volume = read_volume(write_scan(tmp_path / "scan.nii.gz", spacing_mm=2.0))
    plan = with_conventions(Conventions(intensity="before_resampling"))
    plan = replace(plan, intensity=replace(plan.intensity, low=-40.5, high=60.25, sd=12.0))
    catalogue = Catalogue(tmp_path, "one", dict(plan.labels), ("CT",), (), ())
    prepare_store(tmp_path / "store", plan, catalogue)
    prepared = prepare_case(volume, plan)
    write_case(tmp_path / "store", prepared, Case("scan", "unlabelled", (tmp_path / "scan.nii.gz",)), plan)
    image, _ = CaseStore(tmp_path / "store").read_case("scan")
    expected = normalise(prepared.image, plan.intensity, prepared.statistics)
    assert np.abs(image - expected).max() < 1e-3
    assert image.min() == pytest.approx(-40.5 / 12, abs=1e-3)
    assert image.max() == pytest.approx(60.25 / 12, abs=1e-3)


def test_a_store_of_another_window_says_so(tmp_path: Path) -> None:
    plan = with_conventions(Conventions(intensity="before_resampling"))
    catalogue = Catalogue(tmp_path, "one", dict(plan.labels), ("CT",), (), ())
    prepare_store(tmp_path / "store", plan, catalogue)
    wider = replace(plan, intensity=replace(plan.intensity, high=300.0))
    with pytest.raises(StoreError, match="window -200 to 200 HU there, -200 to 300 here"):
        prepare_store(tmp_path / "store", wider, catalogue)
    with pytest.raises(StoreError, match=r"conventions .*before_resampling.* there, .*after_resampling.* here"):
        prepare_store(tmp_path / "store", replace(plan, conventions=Conventions()), catalogue)


def test_a_report_says_the_conventions() -> None:
    said = dict(describe_plan(with_conventions(Conventions("as_stored", "before_resampling", "nonzero"))))
    assert said["Conventions of another program"] == (
        "Voxels are taken in the order of the file; CT is clipped before it is resampled; "
        "scans are cropped to what is not 0."
    )
    assert "Conventions of another program" not in dict(describe_plan(small_plan()))


def test_as_stored_with_a_budget_and_probabilities(tmp_path: Path) -> None:
    """The same labels within a budget; probabilities know where their voxels are in the patient."""
    path = scan_in(("P", "L", "I"), tmp_path / "scans" / "scan.nii.gz")
    volume, plan = read_volume(path), replace(with_conventions(AS_STORED), spacing_mm=(4.0, 3.0, 2.5))
    budget = Budget(ram_bytes=2**34, seconds=1000.0)
    labels = Segmenter(plan, [unlike_network], step=0.5)(volume)
    assert np.array_equal(Segmenter(plan, [unlike_network], step=0.5, budget=budget)(volume), labels)
    stored = nibabel.load(path)
    same_grid = replace(plan, spacing_mm=tuple(float(edge) for edge in stored.header.get_zooms()[::-1]))
    checkpoint = write_model(tmp_path / "a.ckpt", plan=same_grid)
    outcomes = segment_folder(
        checkpoint, tmp_path / "scans", tmp_path / "out", outputs=OutputOptions(probabilities=True), progress=False
    )
    assert not any(one.failed for one in outcomes)
    with np.load(tmp_path / "out" / "probabilities" / "scan.npz") as archive:
        found, grid = archive["probabilities"], json.loads(str(archive["grid"]))
    drawn = np.asarray(nibabel.load(tmp_path / "out" / "scan.nii.gz").dataobj)
    assert np.array_equal(found.argmax(axis=1), drawn.transpose(2, 1, 0))
    turned = np.eye(4)[[2, 1, 0, 3]]  # of an index (slice, row, column) to the file's (column, row, slice)
    assert np.allclose(grid["affine_ras_mm"], stored.affine @ turned, atol=1e-4)
