"""A trained model as a function from a scan to its labels: the Python API behind ``flarecps segment``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from flarecps.casework import progress_bar
from flarecps.checkpoint import TrainedModel, read_checkpoint
from flarecps.errors import ConfigError
from flarecps.inference.mirroring import Mirroring, lateral_patch_axis
from flarecps.inference.sliding_window import Accumulate, Network, predict_probabilities, window_count
from flarecps.planning.plan import Plan
from flarecps.preprocessing.case import WayBack, prepare_case, probabilities_to_scan_labels
from flarecps.preprocessing.intensity import normalise
from flarecps.typing import LabelArray
from flarecps.volumes.io import Volume

Sibling: TypeAlias = Literal["1", "2", "average"]

DEFAULT_STEP = 0.7  # the paper's; nnU-Net's is 0.5
# Voxels that go through the network at once, by device: enough to keep it busy, little beside the activations.
BATCH_VOXELS = {"cpu": 2**18, "cuda": 2**22}


class Segmenter:
    """Segments scans with one network, or with several whose probabilities are averaged.

    >>> segmenter = Segmenter.load("runs/cps/checkpoints/last.ckpt")  # doctest: +SKIP
    >>> labels = segmenter(read_volume("scan.nii.gz"))  # doctest: +SKIP

    Args:
        plan: what the networks were trained by: spacing, patch, labels, intensities.
        networks: from windows (B, C, *patch) to logits (B, K, *patch), in evaluation mode.
        step: of the sliding window, as a fraction of the patch.
        mirror_axes: the patch's own axes that are mirrored at test time, in all combinations; ``"all"``, or none.
            Only axes along which the training mirrored, too, do good.
        swap_left_right: exchange paired labels when the left-right axis is mirrored, for models trained that way.
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, …
        batch: windows at a time; None: as many as suit patch and device. Does not change the result.
        accumulate: average ``"softmax"`` (nnU-Net v1) or ``"logits"`` (v2) over windows, mirrors and networks.
    """

    def __init__(
        self,
        plan: Plan,
        networks: Sequence[Network],
        step: float = DEFAULT_STEP,
        mirror_axes: Sequence[int] | Literal["all"] = (),
        swap_left_right: bool = False,
        device: torch.device | str = "auto",
        batch: int | None = None,
        accumulate: Accumulate = "softmax",
    ) -> None:
        if not 0 < step <= 1:
            raise ConfigError(f"step {step}: expected a fraction of the patch above 0, at most 1, e.g. {DEFAULT_STEP}")
        if batch is not None and batch < 1:
            raise ConfigError(f"batch {batch}: expected at least 1 window at a time")
        self.plan = plan
        self.step = step
        self.device = torch_device(device)
        self.networks = [one.to(self.device) if isinstance(one, nn.Module) else one for one in networks]
        self.mirroring = _mirroring(plan, mirror_axes, swap_left_right)
        voxels = torch.Size(plan.patch_voxels).numel()
        self.batch = batch or max(1, BATCH_VOXELS.get(self.device.type, BATCH_VOXELS["cuda"]) // voxels)
        self.accumulate: Accumulate = accumulate

    @classmethod
    def load(
        cls,
        checkpoint: Path | str,
        sibling: Sibling = "1",
        step: float = DEFAULT_STEP,
        mirror_axes: Sequence[int] | Literal["all"] = (),
        swap_left_right: bool = False,
        device: torch.device | str = "auto",
        batch: int | None = None,
        accumulate: Accumulate = "softmax",
    ) -> Segmenter:
        """The segmenter of a checkpoint's sibling ``"1"``, ``"2"``, or of their ``"average"``.

        A supervised control has one network: sibling 1, which is the average, too. Raises CheckpointError for a
        file that is not a checkpoint, ConfigError for settings that do not suit it.
        """
        model = read_checkpoint(checkpoint)
        networks = _chosen(model, sibling)
        return cls(model.plan, networks, step, mirror_axes, swap_left_right, device, batch, accumulate)

    def __call__(self, volume: Volume, show_progress: bool = False) -> LabelArray:
        """Labels, uint8 (slice, row, column), on the canonical grid of ``volume``; 0 outside the field of view.

        ``show_progress`` shows a bar over the windows. Raises ScanError when the channels are not the plan's.
        """
        probabilities, way_back = self.probabilities(volume, show_progress)
        return probabilities_to_scan_labels(probabilities.cpu().numpy(), way_back)

    def probabilities(self, volume: Volume, show_progress: bool = False) -> tuple[Tensor, WayBack]:
        """Class probabilities (K, S, H, W), float32, on the network's grid, and the way back to the scan's."""
        prepared = prepare_case(volume, self.plan)
        image = torch.from_numpy(normalise(prepared.image, self.plan.intensity, prepared.statistics))
        count = window_count(image.shape[1:], self.plan.patch_voxels, self.step)
        title = f"Segmenting {volume.source.path.name}"
        with progress_bar(title, count, unit="window", shown=show_progress) as advance:
            found = self._predict(image, self.batch, self.device, advance)
        if found is None:  # the GPU's memory is too small for sums of the whole scan, or for several windows at once
            torch.cuda.empty_cache()
            found = self._predict(image, 1, torch.device("cpu"), None)
            if found is None:
                raise ConfigError(
                    f"device {self.device}: not enough memory for one window of {self.plan.patch_voxels} voxels; "
                    "close other programs on it, or use --device cpu"
                )
        return found, prepared.way_back

    def _predict(
        self, image: Tensor, batch: int, sums_on: torch.device, advance: Callable[[], None] | None
    ) -> Tensor | None:
        """Class probabilities, or None when the GPU ran out of memory; the sums are kept on ``sums_on``."""
        try:
            return self._probabilities(image, batch, sums_on, advance)
        except torch.OutOfMemoryError:
            if self.device.type == "cpu":
                raise
        return None  # outside the except clause, so that the failed tensors are freed

    def _probabilities(
        self, image: Tensor, batch: int, sums_on: torch.device, advance: Callable[[], None] | None
    ) -> Tensor:
        return predict_probabilities(
            self.networks,
            image,
            self.plan.patch_voxels,
            self.plan.class_count,
            step=self.step,
            batch=batch,
            device=self.device,
            accumulate=self.accumulate,
            mirroring=self.mirroring,
            accumulate_on=sums_on,
            advance=advance,
        )


def torch_device(name: torch.device | str) -> torch.device:
    """The device called ``name``; ``"auto"`` is a GPU if there is one. ConfigError when it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}': not available here; expected auto, cpu, cuda or cuda:N") from error
    return device


def _chosen(model: TrainedModel, sibling: Sibling) -> Sequence[nn.Module]:
    if sibling not in ("1", "2", "average"):
        raise ConfigError(f"sibling '{sibling}': expected 1, 2 or average")
    if sibling == "average":
        return model.siblings
    if int(sibling) > len(model.siblings):
        raise ConfigError(
            f"sibling {sibling}: {model.path} holds one network only (a supervised control); use sibling 1"
        )
    return (model.siblings[int(sibling) - 1],)


def _mirroring(plan: Plan, axes: Sequence[int] | Literal["all"], swap_left_right: bool) -> Mirroring | None:
    chosen = tuple(range(plan.dimensions)) if axes == "all" else tuple(int(axis) for axis in axes)
    if not chosen:
        if swap_left_right:
            raise ConfigError("swap_left_right without mirroring does nothing: choose the mirror axes, too")
        return None
    if len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(plan.dimensions)):
        names = "0 slice, 1 row, 2 column" if plan.dimensions == 3 else "0 row, 1 column"
        raise ConfigError(f"mirror axes {list(chosen)}: expected each of the patch's axes at most once ({names})")
    lateral = lateral_patch_axis(plan) if swap_left_right else None
    return Mirroring(chosen, lateral, plan.left_right_pairs)
