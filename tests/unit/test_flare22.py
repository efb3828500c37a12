"""FLARE22's rules one by one, on cases small enough to count by hand, and the strict protocol beside them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage

from flarecps.anatomy import FLARE22_LABELS, FLARE22_ORGANS, Organ, organs_of
from flarecps.errors import ScanError
from flarecps.evaluation.flare22 import (
    BOTH_EMPTY,
    NOT_CROPPED,
    ONLY_PREDICTION,
    ONLY_REFERENCE,
    OrganScore,
    Protocol,
    score_case,
)

SPACING_MM = (2.5, 1.0, 1.0)
PEER_SPACING_MM = SPACING_MM[::-1]  # (column, row, slice)
LIVER, AORTA = FLARE22_ORGANS[0], FLARE22_ORGANS[4]


def tube(first: int, last: int, label: int) -> np.ndarray:
    """A 2×2 voxel tube through slices ``first`` to ``last`` (inclusive) of 12: 4 voxels a slice."""
    labels = np.zeros((12, 8, 8), np.uint8)
    labels[first : last + 1, 3:5, 3:5] = label
    return labels


def score_one(
    prediction: np.ndarray, reference: np.ndarray, organ: Organ, protocol: Protocol = "official"
) -> OrganScore:
    return score_case(prediction, reference, SPACING_MM, [organ], protocol)[organ.name]


def test_empty_in_both_is_one_officially_and_no_number_strictly() -> None:
    empty = np.zeros((4, 4, 4), np.uint8)
    official, strict = score_one(empty, empty, LIVER), score_one(empty, empty, LIVER, "strict")
    assert (official.dsc, official.nsd, official.remark) == (1.0, 1.0, BOTH_EMPTY)
    assert (strict.dsc, strict.nsd, strict.remark) == (None, None, BOTH_EMPTY)


@pytest.mark.parametrize("organ", [LIVER, AORTA])
@pytest.mark.parametrize("protocol", ["official", "strict"])
def test_empty_in_one_is_zero(organ: Organ, protocol: Protocol) -> None:
    some, empty = tube(2, 8, organ.id), np.zeros((12, 8, 8), np.uint8)
    absent, invented = score_one(empty, some, organ, protocol), score_one(some, empty, organ, protocol)
    assert (absent.dsc, absent.nsd, absent.remark) == (0.0, 0.0, ONLY_REFERENCE)
    assert (invented.dsc, invented.nsd, invented.remark) == (0.0, 0.0, ONLY_PREDICTION)
    assert (absent.reference_ml, absent.prediction_ml) == (28 * 2.5 / 1000, 0.0)


def row(start: int, label: int = 1) -> np.ndarray:
    """Ten voxels in a row."""
    labels = np.zeros((3, 3, 30), np.uint8)
    labels[1, 1, start : start + 10] = label
    return labels


def test_a_dsc_below_a_fifth_makes_nsd_zero() -> None:
    """Liver's tolerance is 5 mm. Ten voxels shifted by 8 share 2 (DSC 0.2: kept), by 9 one (DSC 0.1: NSD forced)."""
    kept, forced = score_one(row(8), row(0), LIVER), score_one(row(9), row(0), LIVER)
    assert kept.dsc == 0.2
    assert kept.nsd is not None
    assert 0.5 < kept.nsd < 1.0
    assert (forced.dsc, forced.nsd) == (0.1, 0.0)
    honest = score_one(row(9), row(0), LIVER, "strict")
    assert honest.dsc == 0.1
    assert honest.nsd is not None
    assert 0.5 < honest.nsd < kept.nsd


def test_tubes_are_cropped_to_the_reference_and_lose_its_last_slice() -> None:
    reference = tube(2, 8, AORTA.id)
    without_last, too_long, without_first = tube(2, 7, AORTA.id), tube(0, 11, AORTA.id), tube(3, 8, AORTA.id)
    assert score_one(without_last, reference, AORTA).dsc == 1.0
    assert score_one(without_last, reference, AORTA).nsd == 1.0
    assert score_one(too_long, reference, AORTA).dsc == 1.0
    assert score_one(without_first, reference, AORTA).dsc == 0.9091  # 2·20 / (20 + 24)
    assert score_one(without_last, reference, AORTA, "strict").dsc == pytest.approx(2 * 24 / (24 + 28))
    assert score_one(too_long, reference, AORTA, "strict").dsc == pytest.approx(2 * 28 / (48 + 28))


@pytest.mark.parametrize(
    ("name", "cropped"),
    [("aorta", True), ("inferior vena cava", True), ("esophagus", True), ("liver", False), ("duodenum", False)],
)
def test_the_crop_goes_by_name_in_any_label_set(name: str, cropped: bool) -> None:
    (organ,) = organs_of({"background": 0, name: 9})
    score = score_one(tube(2, 7, 9), tube(2, 8, 9), organ)
    assert score.dsc == (1.0 if cropped else 0.9231)


def test_other_structures_with_the_tubes_ids_are_not_cropped() -> None:
    (organ,) = organs_of({"background": 0, "parotid": 5})
    assert score_one(tube(2, 7, 5), tube(2, 8, 5), organ).dsc == 0.9231


def test_a_prediction_outside_the_crop_is_zero() -> None:
    for outside in (tube(8, 8, AORTA.id), tube(9, 11, AORTA.id)):
        score = score_one(outside, tube(2, 8, AORTA.id), AORTA)
        assert (score.dsc, score.nsd) == (0.0, 0.0)


def test_a_one_slice_tube_is_scored_uncropped_and_flagged() -> None:
    same = score_one(tube(5, 5, AORTA.id), tube(5, 5, AORTA.id), AORTA)
    assert (same.dsc, same.nsd, same.remark) == (1.0, 1.0, NOT_CROPPED)
    longer = score_one(tube(4, 6, AORTA.id), tube(5, 5, AORTA.id), AORTA)
    assert longer.dsc == 0.5  # 2·4 / (12 + 4)


def test_official_rounds_each_case_and_strict_does_not() -> None:
    reference, prediction = row(0), row(0)
    prediction[1, 1, 5:10] = 0
    assert score_one(prediction, reference, LIVER).dsc == 0.6667
    assert score_one(prediction, reference, LIVER, "strict").dsc == pytest.approx(2 / 3, abs=1e-15)


def test_strict_adds_distances_in_mm() -> None:
    shifted = score_one(np.roll(tube(2, 8, 1), 2, axis=2), tube(2, 8, 1), LIVER, "strict")
    assert shifted.hd95_mm == 2.0
    assert shifted.assd_mm is not None
    assert 0.0 < shifted.assd_mm < 2.0
    assert score_one(tube(2, 8, 1), tube(2, 8, 1), LIVER).hd95_mm is None


def test_a_missing_prediction_is_zero_where_the_reference_has_the_organ() -> None:
    reference = tube(2, 8, LIVER.id)
    scores = score_case(np.zeros_like(reference), reference, SPACING_MM, [LIVER, AORTA], "strict")
    assert (scores["liver"].dsc, scores["liver"].nsd) == (0.0, 0.0)
    assert scores["aorta"].dsc is None


def test_values_outside_the_label_set_are_refused_but_in_official_predictions() -> None:
    good, bad = tube(2, 8, 1), tube(2, 8, 1)
    bad[0, 0, 0], bad[0, 0, 1] = 17, 4
    with pytest.raises(ScanError, match=r"the prediction holds the label values 4, 17; expected 0 and 1 liver"):
        score_case(bad, good, SPACING_MM, [LIVER], "strict")
    for protocol in ("official", "strict"):
        with pytest.raises(ScanError, match=r"the reference holds"):
            score_case(good, bad, SPACING_MM, [LIVER], protocol)
    assert score_case(bad, good, SPACING_MM, [LIVER], "official") == score_case(
        good, good, SPACING_MM, [LIVER], "official"
    )


def deformed_organs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two label maps of 13 random shapes (some absent in one or both), alike but not equal."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(3, 21, (13, 3)) * (0.6, 1, 1)
    grid = np.stack(np.indices((14, 24, 24)), axis=-1).astype(float)
    maps = []
    for _ in range(2):
        moved = centres + rng.normal(0, 0.8, centres.shape)
        distances = np.linalg.norm((grid[..., None, :] - moved) * (1.6, 1, 1), axis=-1)
        labels = np.where(distances.min(axis=-1) < 4.5, distances.argmin(axis=-1) + 1, 0).astype(np.uint8)
        labels[labels == rng.integers(1, 14)] = 0
        labels[labels == 9] = 0
        maps.append(labels)
    return maps[0], maps[1]


@pytest.mark.parametrize("seed", range(4))
def test_official_equals_the_rules_written_with_the_peers_package(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rules of the facts sheet over arrays (column, row, slice), with DeepMind's functions and no crop of ours."""
    peer = pytest.importorskip("surface_distance.metrics", reason="DeepMind's surface-distance is not installed")
    for name, value in (("Inf", math.inf), ("NaN", math.nan)):
        monkeypatch.setattr(np, name, value, raising=False)
    for name in ("filters", "morphology"):
        monkeypatch.setattr(scipy.ndimage, name, scipy.ndimage, raising=False)
    prediction, reference = deformed_organs(seed)
    found = score_case(prediction, reference, SPACING_MM, organs_of(FLARE22_LABELS), "official")
    seen = set()
    for organ in FLARE22_ORGANS:
        p, r = ((labels == organ.id).T for labels in (prediction, reference))
        if not p.any() and not r.any():
            expected = (1.0, 1.0)
        elif not p.any() or not r.any():
            expected = (0.0, 0.0)
        else:
            if organ.id in (5, 6, 10):
                slices = np.where(r)[2]
                p, r = p[:, :, slices.min() : slices.max()], r[:, :, slices.min() : slices.max()]
            dsc = peer.compute_dice_coefficient(r, p)
            nsd = 0.0
            if dsc >= 0.2:
                distances = peer.compute_surface_distances(r, p, PEER_SPACING_MM)
                nsd = peer.compute_surface_dice_at_tolerance(distances, organ.tolerance_mm)
            expected = (round(dsc, 4), round(nsd, 4))
        assert (found[organ.name].dsc, found[organ.name].nsd) == expected, organ.name
        seen.add(expected)
    assert len(seen) > 8
