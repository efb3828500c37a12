"""The measures as torchmetrics: against the strict protocol, by hand, empty organs, and in a collection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from flarecps.anatomy import organs_of
from flarecps.errors import ScanError
from flarecps.evaluation.flare22 import OrganScore, count_case, score_case
from flarecps.evaluation.label_sets import with_tolerances
from flarecps.evaluation.metrics import (
    AverageSurfaceDistance,
    DiceScore,
    HausdorffDistance95,
    NormalisedSurfaceDice,
    RelativeVolumeError,
    VolumeError,
)

ORGANS = organs_of({"liver": 1, "aorta": 2, "thing": 7})
SPACING_MM = (2.5, 1.0, 0.8)
CLASSES = {
    "dsc": DiceScore,
    "nsd": NormalisedSurfaceDice,
    "hd95_mm": HausdorffDistance95,
    "assd_mm": AverageSurfaceDistance,
    "volume_error_ml": VolumeError,
    "volume_error_relative": RelativeVolumeError,
}


def scan(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A pair of label maps; every third has no thing at all, every fourth predicts no aorta."""
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(2):
        labels = np.zeros((8, 14, 15), np.int64)
        for label, start in ((1, 1), (2, 6), (7, 11)):
            low = rng.integers(0, 3, 3)
            labels[1 + low[0] : 6, low[1] : 12, start : start + 2 + low[2]] = label
        maps.append(labels)
    prediction, reference = maps
    if seed % 3 == 0:
        prediction[prediction == 7] = reference[reference == 7] = 0
    if seed % 4 == 0:
        prediction[prediction == 2] = 0
    return torch.from_numpy(prediction), torch.from_numpy(reference)


@pytest.mark.parametrize("measure", CLASSES)
def test_the_mean_over_scans_is_that_of_the_strict_protocol(measure: str) -> None:
    metric = CLASSES[measure](ORGANS)
    values: dict[str, list[float]] = {organ.name: [] for organ in ORGANS}
    for seed in range(5):
        prediction, reference = scan(seed)
        metric.update(prediction, reference, SPACING_MM)
        scores = score_case(
            *(x.numpy().astype(np.uint8) for x in (prediction, reference)), SPACING_MM, ORGANS, "strict"
        )
        for name, score in scores.items():
            if (value := getattr(score, measure)) is not None:
                values[name].append(value)
    assert [len(of) for of in values.values()] == metric.scans.tolist()
    assert len({len(of) for of in values.values()}) > 1
    expected = [float(np.mean(of)) for of in values.values()]
    assert metric.compute().tolist() == pytest.approx(expected, abs=1e-12)


def test_by_hand() -> None:
    """Ten voxels of 2.5 × 1 × 0.8 mm against eight, five shared."""
    prediction, reference = torch.zeros(3, 4, 30, dtype=torch.uint8), torch.zeros(3, 4, 30, dtype=torch.uint8)
    prediction[1, 1, 5:15] = reference[1, 1, 2:10] = 1
    found = {measure: kind(ORGANS) for measure, kind in CLASSES.items()}
    for metric in found.values():
        metric.update(prediction, reference, SPACING_MM)
    values = {measure: metric.compute()[0].item() for measure, metric in found.items()}
    assert values["dsc"] == pytest.approx(2 * 5 / 18)
    assert values["volume_error_ml"] == pytest.approx(2 * 2.0 / 1000)
    assert values["volume_error_relative"] == pytest.approx(0.25)
    assert values["nsd"] == 1.0  # the ends are 3 and 5 voxels of 0.8 mm apart, the liver's tolerance is 5 mm
    assert values["hd95_mm"] == pytest.approx(4 * 0.8)  # five voxels off is only the end face, 3.9 % of the area
    assert math.isnan(found["dsc"].compute()[1].item())


def test_empty_organs() -> None:
    some, none = torch.zeros(3, 3, 3, dtype=torch.int64), torch.zeros(3, 3, 3, dtype=torch.int64)
    some[1, 1, 1] = 1
    expected = {
        "dsc": (0.0, 0.0),
        "nsd": (0.0, 0.0),
        "hd95_mm": (None, None),
        "assd_mm": (None, None),
        "volume_error_ml": (0.002, -0.002),
        "volume_error_relative": (None, -1.0),
    }
    for measure, (only_prediction, only_reference) in expected.items():
        for pair, value in (((some, none), only_prediction), ((none, some), only_reference), ((none, none), None)):
            metric = CLASSES[measure](ORGANS)
            metric.update(*pair, SPACING_MM)
            assert metric.scans.tolist() == [0 if value is None else 1, 0, 0]
            assert metric.compute()[0].item() == pytest.approx(value if value is not None else math.nan, nan_ok=True)


def test_a_collection_works_each_family_out_once_and_tells_tolerances_apart() -> None:
    """A first scan without any error gives all distances the same value: sums must not be shared for that."""
    narrow = with_tolerances(ORGANS, {"liver": 0.5})
    metrics = {measure: kind(ORGANS) for measure, kind in CLASSES.items()} | {"narrow": NormalisedSurfaceDice(narrow)}
    together = MetricCollection(dict(metrics))  # type: ignore[arg-type]  # a dict of metrics is what it takes
    apart = {name: metric.clone() for name, metric in metrics.items()}
    _, perfect = scan(1)
    for pair in ((perfect, perfect), scan(1), scan(2)):
        together.update(*pair, SPACING_MM)
        for metric in apart.values():
            metric.update(*pair, SPACING_MM)
    assert sorted(map(len, together.compute_groups.values())) == [1, 3, 3]
    found = together.compute()
    for name, metric in apart.items():
        torch.testing.assert_close(found[name], metric.compute(), rtol=0, atol=0, equal_nan=True)
    assert found["narrow"][0] < found["nsd"][0]
    together.reset()
    assert together["nsd"].total.sum() == 0


def test_what_is_not_a_label_map_is_refused() -> None:
    metric = DiceScore(ORGANS)
    good = torch.zeros(2, 2, 2, dtype=torch.int64)
    for bad, message in (
        (good.float(), "whole numbers"),
        (good[None], "slice, row, column"),
        (good - 1, "expected 0 to 255"),
        (good[:1], "one shape"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.update(bad, good, SPACING_MM)
    for kind in (DiceScore, NormalisedSurfaceDice):
        with pytest.raises(ScanError, match="the prediction holds the label value 5"):
            kind(ORGANS).update(good + 5, good, SPACING_MM)


def test_volumes() -> None:
    labels = np.repeat(np.array([1, 0], np.uint8), (7, 5)).reshape(1, 3, 4)
    assert count_case(labels, labels * 0, SPACING_MM, ORGANS)["liver"].prediction_ml == pytest.approx(0.014)
    too_little = OrganScore(None, None, prediction_ml=2.0, reference_ml=4.0)
    assert (too_little.volume_error_ml, too_little.volume_error_relative) == (-2.0, -0.5)
    assert OrganScore(None, None, prediction_ml=2.0).volume_error_relative is None
    assert OrganScore(None, None).volume_error_ml is OrganScore(None, None).volume_error_relative is None
