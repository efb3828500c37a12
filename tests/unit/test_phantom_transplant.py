"""Phantom cases built from label maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from flarecps.datasets.phantom import anatomy_sources, draw_case, write_phantom
from flarecps.errors import DatasetError
from flarecps.volumes.io import read_labels, write_volume
from flarecps.volumes.space import Space


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two label maps, at 3 mm, made by the synthetic phantom."""
    folder = tmp_path_factory.mktemp("anatomy")
    for index in range(2):
        _, labels, space = draw_case(np.random.default_rng(index), "small", wide=False)
        write_volume(folder / f"map_{index}.nii.gz", labels, space)
    return folder


def test_organs_keep_their_volumes_about(anatomy: Path) -> None:
    source = read_labels(anatomy / "map_0.nii.gz")
    before = np.bincount(source.array.ravel(), minlength=14)[1:] * source.space.voxel_volume_mm3
    image, labels, space = draw_case(np.random.default_rng(0), "small", False, anatomy / "map_0.nii.gz")
    after = np.bincount(labels.ravel(), minlength=14)[1:] * space.voxel_volume_mm3
    large = [0, 1, 2, 10, 12]  # liver, kidneys, spleen, stomach
    assert image.dtype == np.int16
    assert labels.shape == image.shape
    assert (after[large] / before[large] > 0.4).all()
    assert (after[large] / before[large] < 2.0).all()  # the patient is scaled as a whole, too
    kidneys = [np.argwhere(labels == label)[:, 2].mean() for label in (2, 13)]
    assert kidneys[0] > kidneys[1]


def test_organs_look_like_organs_in_a_body(anatomy: Path) -> None:
    image, labels, _ = draw_case(np.random.default_rng(2), "small", False, anatomy / "map_1.nii.gz")
    assert 20 < image[labels == 1].mean() < 160
    assert (image < -900).mean() > 0.1  # air around
    assert (image > 250).any()  # bone


def test_two_draws_are_two_patients(anatomy: Path) -> None:
    path = anatomy / "map_0.nii.gz"
    first, second = (draw_case(np.random.default_rng(i), "small", False, path)[1] for i in (0, 1))
    assert first.shape != second.shape or (first != second).mean() > 0.01


def test_dataset_from_maps(anatomy: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, 1, 1, 1, seed=3, anatomy=anatomy, workers=1, progress=False)
    assert (read_labels(tmp_path / "labelsTr" / "labelled_001.nii.gz").array == 1).any()
    assert len(list(tmp_path.glob("images*/*.nii.gz"))) == 3
    sources = json.loads((tmp_path / "phantom.json").read_text())["sources"]
    assert sources["labelled_001"] != sources["test_001"]
    assert sources["unlabelled_001"] == sources["labelled_001"]  # the only map that is no test patient's


def test_no_patient_is_tested_and_trained_on() -> None:
    maps = [Path(f"map_{i}") for i in range(10)]
    found = anatomy_sources(maps, {"labelled": 3, "unlabelled": 20, "test": 5})
    assert len({*found["labelled"], *found["test"]}) == 8
    assert found["unlabelled"][:2] == maps[8:]  # those that nobody has
    assert set(found["unlabelled"]) == {*maps[8:], *found["labelled"]}
    whole = anatomy_sources(maps, {"labelled": 2, "unlabelled": 3, "test": 5})
    assert [*whole["labelled"], *whole["test"], *whole["unlabelled"]] == maps
    few = anatomy_sources(maps[:1], {"labelled": 1, "unlabelled": 1, "test": 1})
    assert few == {"labelled": maps[:1], "unlabelled": maps[:1], "test": maps[:1]}


def test_folder_without_maps(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no label maps"):
        write_phantom(tmp_path / "out", 1, 0, 0, anatomy=tmp_path / "empty", workers=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("value", "message"), [(0, "no organ"), (14, "id 14")])
def test_maps_that_are_not_flare22s(tmp_path: Path, value: int, message: str) -> None:
    space = Space.canonical((8, 8, 8), (5.0, 5.0, 5.0))
    write_volume(tmp_path / "map.nii.gz", np.full(space.shape, value, np.uint8), space)
    with pytest.raises(DatasetError, match=message):
        draw_case(np.random.default_rng(0), "small", False, tmp_path / "map.nii.gz")


def test_real_anatomy(shared_data: Path) -> None:
    path = shared_data / "flare22_labels" / "FLARE22_Tr_0001.nii.gz"
    if not path.is_file():
        pytest.skip("FLARE22's label maps are not at hand")
    _, labels, _ = draw_case(np.random.default_rng(0), "small", False, path)
    assert set(np.unique(labels)) >= {1, 2, 3, 5, 6, 11, 12, 13}
