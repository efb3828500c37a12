"""How scans are segmented: one set of choices, from the command line to the process that does the work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from flarecps.checkpoint import Trusted
from flarecps.errors import ConfigError
from flarecps.inference.export import MODES, Mode
from flarecps.inference.resources.budget import UNLIMITED, Budget
from flarecps.inference.sliding_window import Accumulate

Sibling: TypeAlias = Literal["1", "2", "average"]

DEFAULT_STEP = 0.7  # the paper's; nnU-Net's is 0.5


@dataclass(frozen=True)
class SegmentationSettings:
    """The choices of ``Segmenter`` and ``segment_folder``; plain values, so that they travel between processes.

    Args:
        sibling: which of a checkpoint's networks: ``"1"``, ``"2"``, or the ``"average"`` of their probabilities.
        step: of the sliding window, as a fraction of the patch.
        mirror_axes: the patch's own axes that are mirrored at test time, in all combinations; ``"all"``, or none.
            Only axes along which the training mirrored, too, do good.
        swap_left_right: exchange paired labels when the left-right axis is mirrored, for models trained that way.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …, ``"mps"`` (Apple's).
        batch: windows at a time; None: as many as suit patch and device. Does not change the result.
        accumulate: average ``"softmax"`` (nnU-Net v1) or ``"logits"`` (v2) over windows, mirrors and networks.
        mode: ``"normal"``, ``"fast"`` or ``"fastest"``, see ``flarecps.inference.export``.
        skip_air: leave out windows that hold no body; they are background.
        coarse_to_fine: a quick pass on larger voxels finds the region of the organs; only windows there are run.
        enforce_spacing: the paper's pretended spacing; 10 to 20 % less DSC (the paper).
        budget: limits of memory and time. What is traded for them is chosen for each scan.
        trusted: networks of one's own that a checkpoint may name: classes or dotted paths (docs/extending.md).

    Raises ConfigError for a value that is none of these.
    """

    sibling: Sibling = "1"
    step: float = DEFAULT_STEP
    mirror_axes: tuple[int, ...] | Literal["all"] = ()
    swap_left_right: bool = False
    device: torch.device | str = "auto"
    batch: int | None = None
    accumulate: Accumulate = "softmax"
    mode: Mode = "normal"
    skip_air: bool = False
    coarse_to_fine: bool = False
    enforce_spacing: bool = False
    budget: Budget = UNLIMITED
    trusted: Trusted = ()

    def __post_init__(self) -> None:
        if self.sibling not in ("1", "2", "average"):
            raise ConfigError(f"sibling '{self.sibling}': expected 1, 2 or average")
        if not 0 < self.step <= 1:
            raise ConfigError(
                f"step {self.step}: expected a fraction of the patch above 0, at most 1, e.g. {DEFAULT_STEP}"
            )
        if self.batch is not None and self.batch < 1:
            raise ConfigError(f"batch {self.batch}: expected at least 1 window at a time")
        if self.mode not in MODES:
            raise ConfigError(f"mode '{self.mode}': expected one of {', '.join(MODES)}")
        if self.accumulate not in ("softmax", "logits"):
            raise ConfigError(f"accumulate '{self.accumulate}': expected softmax or logits")
