"""The case store: preprocessed scans as chunked, compressed arrays that patches are read from.

One directory::

    STORE/plan.json  store.json  [splits.json]
    STORE/cases/NAME/image.b2nd  [labels.b2nd  samples.b2nd]  case.json

Images are int16 HU (CT) or float32, not normalised: intensity scaling is applied when a patch is read.
A case folder appears whole (temporary name, then rename), so an interrupted run continues where it stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from flarecps.datasets.catalogue import Case
from flarecps.planning.plan import Plan
from flarecps.preprocessing.case import Prepared, WayBack
from flarecps.typing import LabelArray, NormalisedArray, SpacingMm, Triple

Role = Literal["labelled", "unlabelled", "test"]


@dataclass(frozen=True)
class CaseRecord:
    """What the store knows about a case besides its voxels."""

    name: str
    shape: Triple  # network grid
    spacing_mm: SpacingMm  # network grid
    role: Role  # in the data set's folders; a split may decide otherwise
    has_labels: bool
    annotated: tuple[int, ...] | None  # label ids annotated in this case; None: all
    statistics: dict[str, list[float]]  # "mean" and "sd" per channel
    way_back: WayBack
    folder: Path

    @cached_property
    def samples(self) -> dict[int, np.ndarray]:
        """Voxels (n, 3) of every structure present, by label id; empty without labels. Read when first asked for."""
        raise NotImplementedError


class CaseStore:
    """A preprocessed data set. Cheap to make, safe to share with forked and spawned workers, and picklable."""

    def __init__(self, path: Path | str) -> None:
        """Raises ``StoreError`` when ``path`` is not a case store."""
        self.path = Path(path)

    @cached_property
    def plan(self) -> Plan:
        """The plan the store was last preprocessed with."""
        raise NotImplementedError

    @cached_property
    def names(self) -> tuple[str, ...]:
        """All finished cases, sorted."""
        raise NotImplementedError

    def record(self, name: str) -> CaseRecord:
        """The record of a case; ``StoreError`` when there is none of that name."""
        raise NotImplementedError

    def read_patch(
        self, name: str, lower: tuple[int, ...], shape: tuple[int, ...], labels: bool
    ) -> tuple[NormalisedArray, LabelArray | None]:
        """A normalised patch (C, *shape) float32 and its labels (*shape) uint8, or None unless ``labels``.

        ``lower``: first voxel (S, H, W), may be negative; the part outside the scan is 0 in both.
        """
        raise NotImplementedError

    def read_case(self, name: str) -> tuple[NormalisedArray, LabelArray | None]:
        """The whole normalised case (C, S, H, W) float32 and its labels (S, H, W), None where it has none."""
        raise NotImplementedError


def write_case(store: Path, prepared: Prepared, case: Case, plan: Plan) -> None:
    """Write one case folder, whole or not at all."""
    raise NotImplementedError
