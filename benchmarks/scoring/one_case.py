"""One run of one side in a process of its own: ``one_case.py SIDE PREDICTION.npy REFERENCE.npy S R C`` (mm).

The sides: ``flarecps`` (its strict protocol, which finds HD95, ASSD and volumes beside DSC and NSD);
``surface-distance`` (DeepMind's package on whole masks, organ by organ); ``surface-distance-cropped`` (the same, handed
each organ's bounding box). The last line printed is JSON: seconds, MB above the imports, DSC and NSD per organ.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable

import memory
import numpy as np
import scipy.ndimage

from flarecps.anatomy import FLARE22_ORGANS

Spacing = tuple[float, float, float]
Scores = dict[str, tuple[float, float]]


def flarecps_side() -> Callable[[np.ndarray, np.ndarray, Spacing], Scores]:
    """DSC and NSD of every organ by flarecps."""
    from flarecps.evaluation.flare22 import score_case

    def score(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing) -> Scores:
        scores = score_case(prediction, reference, spacing_mm, FLARE22_ORGANS, "strict")
        return {name: (found.dsc, found.nsd) for name, found in scores.items()}

    return score


def peer_side(crop: bool) -> Callable[[np.ndarray, np.ndarray, Spacing], Scores]:
    """DSC and NSD of every organ by surface-distance; it calls names that NumPy 2 and SciPy no longer have."""
    vars(np).update(Inf=math.inf, NaN=math.nan)
    scipy.ndimage.filters = scipy.ndimage.morphology = scipy.ndimage
    from surface_distance import metrics

    def score(prediction: np.ndarray, reference: np.ndarray, spacing_mm: Spacing) -> Scores:
        boxes = [scipy.ndimage.find_objects(labels) for labels in (prediction, reference)] if crop else []
        found = {}
        for organ in FLARE22_ORGANS:
            box = (slice(None),) * 3
            if crop:
                pair = zip(*(of[organ.id - 1] for of in boxes), strict=True)
                box = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in pair)
            p, r = prediction[box] == organ.id, reference[box] == organ.id
            distances = metrics.compute_surface_distances(r, p, spacing_mm)
            nsd = metrics.compute_surface_dice_at_tolerance(distances, organ.tolerance_mm)
            found[organ.name] = (float(metrics.compute_dice_coefficient(r, p)), float(nsd))
        return found

    return score


SIDES = {
    "flarecps": flarecps_side,
    "surface-distance": lambda: peer_side(crop=False),
    "surface-distance-cropped": lambda: peer_side(crop=True),
}


def main() -> None:
    """Score the pair once and print what it took."""
    side, prediction_file, reference_file, *spacing = sys.argv[1:]
    score = SIDES[side]()
    before_mb = memory.forget_peak()
    prediction, reference = np.load(prediction_file), np.load(reference_file)
    maps_mb = memory.forget_peak() - before_mb
    start, cpu = time.perf_counter(), time.process_time()
    scores = score(prediction, reference, tuple(map(float, spacing)))
    wall_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
    peak = memory.peak_mb() - before_mb
    print(json.dumps({"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak, "maps_mb": maps_mb, "scores": scores}))


if __name__ == "__main__":
    main()
