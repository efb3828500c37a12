"""The phantom data set: what it promises about anatomy, intensities, files and repeatability."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from flarecps.anatomy import FLARE22_LABELS
from flarecps.cli.main import main
from flarecps.datasets import phantom_scan
from flarecps.datasets.catalogue import read_catalogue
from flarecps.datasets.phantom import STORED_ORDERS, draw_case, is_out_of_distribution, reordering, write_phantom
from flarecps.datasets.phantom_scan import (
    PHASES,
    Acquisition,
    Scene,
    draw_materials,
    draw_scanner,
    draw_scene,
    noise_slices,
    paint,
)
from flarecps.errors import DatasetError
from flarecps.volumes.io import read_labels, read_volume
from flarecps.volumes.space import Space

LIVER, RIGHT_KIDNEY, SPLEEN, PANCREAS, AORTA, CAVA, RIGHT_ADRENAL = range(1, 8)
LEFT_ADRENAL, GALLBLADDER, ESOPHAGUS, STOMACH, DUODENUM, LEFT_KIDNEY = range(8, 14)
CASES = 12


@pytest.fixture(scope="module")
def cases() -> list[tuple[np.ndarray, np.ndarray, Space]]:
    """Small cases, image, labels and grid, every third from the wider distribution."""
    return [draw_case(np.random.default_rng([5, i]), "small", wide=i % 3 == 2) for i in range(CASES)]


def centre(labels: np.ndarray, label: int) -> np.ndarray:
    """Mean voxel (slice, row, column) of an organ."""
    return np.argwhere(labels == label).mean(0)


def test_arrays_are_what_they_claim(cases: list[tuple[np.ndarray, np.ndarray, Space]]) -> None:
    for image, labels, space in cases:
        assert image.shape == labels.shape == space.shape
        assert image.dtype == np.int16
        assert labels.dtype == np.uint8
        assert image.min() >= -1024
        assert labels.max() <= 13
        assert (image < -900).mean() > 0.1  # air around the patient and in the lungs


def test_all_organs_are_there(cases: list[tuple[np.ndarray, np.ndarray, Space]]) -> None:
    present = np.array([[(labels == label).any() for label in range(1, 14)] for _, labels, _ in cases])
    assert present[:, [i for i in range(13) if i != GALLBLADDER - 1]].mean() > 0.97  # a short field may cut one


def test_some_have_no_gallbladder() -> None:
    scenes = [draw_scene(np.random.default_rng(i), "small", wide=False) for i in range(40)]
    has = [any(solid.label == GALLBLADDER for solid in scene.solids) for scene in scenes]
    assert 2 <= has.count(False) <= 16  # 8 expected


def test_volumes_are_those_of_people(cases: list[tuple[np.ndarray, np.ndarray, Space]]) -> None:
    # FLARE22's training set, mean ml: liver 1694, kidneys 193 and 201, spleen 224, stomach 334, aorta 97, adrenals 5-6
    volumes = np.array([
        np.bincount(labels.ravel(), minlength=14) * space.voxel_volume_mm3 / 1000 for _, labels, space in cases
    ])  # fmt: skip
    typical = np.median(volumes, axis=0)
    for label, low, high in [(LIVER, 800, 2000), (SPLEEN, 90, 350), (RIGHT_KIDNEY, 90, 260), (LEFT_KIDNEY, 90, 260),
                             (STOMACH, 150, 600), (PANCREAS, 40, 160), (AORTA, 50, 180), (CAVA, 40, 150),
                             (RIGHT_ADRENAL, 1.5, 8), (LEFT_ADRENAL, 1.5, 8), (DUODENUM, 30, 120)]:  # fmt: skip
        assert low < typical[label] < high, FLARE22_LABELS
    assert volumes[:, LIVER].std() / volumes[:, LIVER].mean() > 0.1


def test_organs_lie_where_they_belong(cases: list[tuple[np.ndarray, np.ndarray, Space]]) -> None:
    superior, anterior, right = range(3)
    for _, labels, _ in cases:
        places = {label: centre(labels, label) for label in range(1, 14) if (labels == label).any()}
        midline = places[AORTA][right]
        assert places[LIVER][right] > midline + 3
        assert places[RIGHT_KIDNEY][right] > midline + 3
        assert places[LEFT_KIDNEY][right] < midline - 3
        assert places[SPLEEN][right] < places[LEFT_KIDNEY][right] + 2
        assert places[CAVA][right] > midline
        assert places[STOMACH][right] < places[LIVER][right]
        assert places[PANCREAS][anterior] > places[AORTA][anterior]
        assert places[STOMACH][anterior] > places[LEFT_KIDNEY][anterior]
        assert places[ESOPHAGUS][superior] > places[PANCREAS][superior]
        assert places[RIGHT_ADRENAL][superior] > places[RIGHT_KIDNEY][superior]
        assert places[LEFT_ADRENAL][superior] > places[LEFT_KIDNEY][superior]
        if GALLBLADDER in places:
            assert places[GALLBLADDER][right] > midline


def test_positions_vary_between_cases(cases: list[tuple[np.ndarray, np.ndarray, Space]]) -> None:
    relative = np.array([centre(labels, LIVER) / labels.shape for _, labels, _ in cases])
    assert (relative.std(0) > 0.03).all()


def test_full_size_is_the_same_patient_more_finely() -> None:
    coarse = draw_scene(np.random.default_rng(3), "small", wide=False)
    view = coarse.view
    fine_view = Acquisition(
        (view.shape[0] * 2, view.shape[1] * 2, view.shape[2] * 2),
        (view.spacing_mm[0] / 2, view.spacing_mm[1] / 2, view.spacing_mm[2] / 2),
        view.shift_mm, view.scale, view.turn, view.warp, view.warp_mm,
    )  # fmt: skip
    _, labels = paint(coarse, np.random.default_rng(0))
    _, fine = paint(Scene(fine_view, coarse.scanner, coarse.materials, coarse.solids), np.random.default_rng(0))
    for label in (LIVER, SPLEEN, STOMACH, RIGHT_KIDNEY):
        assert (fine == label).sum() / 8 == pytest.approx((labels == label).sum(), rel=0.08)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = phantom_scan.draw_scene(np.random.default_rng(4), "small", wide=True)
    whole = phantom_scan.paint(scene, np.random.default_rng(1))
    monkeypatch.setattr(phantom_scan, "SLAB_VOXELS", 70 * 70 * 6)
    slabs = phantom_scan.paint(scene, np.random.default_rng(1))
    assert np.array_equal(whole[1], slabs[1])
    assert np.abs(whole[0].astype(int) - slabs[0]).max() <= 1


def test_noise_is_correlated_and_as_strong_as_asked() -> None:
    scanner = draw_scanner(np.random.default_rng(0), wide=False)
    noise = noise_slices(np.random.default_rng(1), scanner, (1.0, 1.0), (128, 128))
    slices = np.stack(list(islice(noise, 30)))
    assert slices.std() == pytest.approx(scanner.noise_hu, rel=0.1)
    assert np.corrcoef(slices[:, :, 1:].ravel(), slices[:, :, :-1].ravel())[0, 1] > 0.5
    assert np.corrcoef(slices[1:].ravel(), slices[:-1].ravel())[0, 1] == pytest.approx(scanner.carry, abs=0.08)


def test_contrast_changes_organs_and_only_wide_cases_are_native() -> None:
    means = {
        phase: np.mean([
            [draw_materials(np.random.default_rng(i), phase, False)[t].hu for t in ("liver", "renal cortex", "muscle")]
            for i in range(20)
        ], axis=0) for phase in PHASES
    }  # fmt: skip
    assert means["portal venous"][0] > means["native"][0] + 25
    assert means["arterial"][1] > means["native"][1] + 90
    assert abs(means["native"][0] - means["native"][2]) < 20  # liver as bright as muscle
    drawn = {wide: {draw_scanner(np.random.default_rng(i), wide).phase for i in range(60)} for wide in (False, True)}
    assert drawn[False] == set(PHASES) - {"native"}
    assert drawn[True] == set(PHASES)


def test_roles_and_their_distributions() -> None:
    assert not is_out_of_distribution("labelled", 3)
    assert is_out_of_distribution("unlabelled", 0)
    assert [is_out_of_distribution("test", i) for i in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("codes", STORED_ORDERS)
def test_reordering_gives_the_named_order(codes: str) -> None:
    nibabel = pytest.importorskip("nibabel")
    space = reordering(codes).apply_to_space(Space.canonical((4, 5, 6), (3.0, 2.0, 1.0), (10.0, 20.0, 30.0)))
    affine = np.diag([-1, -1, 1, 1]) @ space.affine[:, [2, 1, 0, 3]]  # nibabel: RAS, index (column, row, slice)
    assert "".join(nibabel.aff2axcodes(affine)) == codes


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom on disk, written by two workers."""
    out = tmp_path_factory.mktemp("phantom") / "set"
    write_phantom(out, labelled=3, unlabelled=2, test=1, seed=11, workers=2, progress=False)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_catalogue_reads_it(dataset: Path) -> None:
    catalogue = read_catalogue(dataset)
    assert [case.name for case in catalogue.labelled] == ["labelled_001", "labelled_002", "labelled_003"]
    assert len(catalogue.unlabelled) == 2
    assert len(catalogue.test) == 1
    assert catalogue.labels == FLARE22_LABELS
    assert catalogue.left_right_pairs == ((2, 13), (7, 8))
    description = json.loads((dataset / "dataset.json").read_text())
    assert description["numTraining"] == 3
    assert description["channel_names"] == {"0": "CT"}


def test_files_hold_what_was_drawn(dataset: Path) -> None:
    for case in read_catalogue(dataset).labelled:
        image, labels = read_volume(case.images[0]), read_labels(case.labels)
        assert image.space.same_grid(labels.space)
        assert image.array.dtype == np.int16
        kidneys = [centre(labels.array[0], label)[2] for label in (RIGHT_KIDNEY, LEFT_KIDNEY)]
        assert kidneys[0] > kidneys[1]
    image, labels, _ = draw_case(np.random.default_rng([11, 0, 1]), "small", wide=False)
    assert np.array_equal(read_volume(dataset / "imagesTr" / "labelled_002_0000.nii.gz").array[0], image)
    assert np.array_equal(read_labels(dataset / "labelsTr" / "labelled_002.nii.gz").array[0], labels)


def test_same_seed_same_bytes_whatever_the_workers_and_counts(dataset: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "again", labelled=3, unlabelled=2, test=1, seed=11, workers=1, progress=False)
    assert contents(tmp_path / "again") == contents(dataset)
    write_phantom(tmp_path / "fewer", labelled=1, unlabelled=0, test=1, seed=11, workers=1, progress=False)
    scans = {name: data for name, data in contents(tmp_path / "fewer").items() if name.endswith(".nii.gz")}
    assert len(scans) == 4
    assert all(contents(dataset)[name] == data for name, data in scans.items())


def test_another_seed_another_patient(dataset: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "other", labelled=1, unlabelled=0, test=0, seed=12, workers=1, progress=False)
    name = "labelsTr/labelled_001.nii.gz"
    assert contents(tmp_path / "other")[name] != contents(dataset)[name]


def test_an_older_phantom_is_replaced(tmp_path: Path) -> None:
    write_phantom(tmp_path, labelled=2, unlabelled=0, test=0, workers=1, progress=False)
    with pytest.raises(DatasetError, match="seed -5: expected a whole number, 0 or more"):
        write_phantom(tmp_path, labelled=1, unlabelled=0, test=0, seed=-5)
    write_phantom(tmp_path, labelled=1, unlabelled=0, test=0, workers=1, progress=False)
    assert [path.name for path in sorted((tmp_path / "imagesTr").iterdir())] == ["labelled_001_0000.nii.gz"]


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "imagesTr" / "precious_0000.nii.gz").write_bytes(b"real")
    with pytest.raises(DatasetError, match="no phantom"):
        write_phantom(tmp_path, labelled=1, unlabelled=0, test=0, workers=1, progress=False)
    assert contents(tmp_path) == {"imagesTr/precious_0000.nii.gz": b"real"}


def test_counts_are_checked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="at least 1"):
        write_phantom(tmp_path / "a", labelled=0, unlabelled=1, test=1)
    assert not (tmp_path / "a").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["phantom", str(tmp_path / "p"), "--labelled", "1", "--unlabelled", "0", "--test", "0", "--workers", "1"]
    assert main(words) == 0
    assert (tmp_path / "p" / "dataset.json").is_file()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert main(["phantom", str(tmp_path / "full")]) == 2
    assert "holds files that are no phantom" in capsys.readouterr().err
