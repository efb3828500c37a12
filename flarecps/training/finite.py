"""Steps whose loss or gradient is not a finite number never reach the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flarecps.errors import TrainingError
from flarecps.methods import Losses
from flarecps.training.health import PseudoLabelCounts
from flarecps.training.ranks import gather_from_ranks, on_all_ranks, true_on_all_ranks, warn

OnNonfinite = Literal["stop", "fp32"]


@dataclass(frozen=True)
class Step:
    """The losses of one batch, whose gradients are in the siblings; its logits are gone."""

    losses: Losses
    norms: list[Tensor]  # of each sibling's gradient, before clipping; under DDP of the averaged gradient
    sound: Tensor  # whether the finest logits of every patch were finite, in all siblings (B,)
    counts: PseudoLabelCounts | None  # None where no unlabelled patch was computed

    @property
    def is_finite(self) -> Tensor:
        """Whether the loss and every gradient are."""
        return torch.stack([value.isfinite() for value in (self.losses.total, *self.norms)]).all()

    def without_graph(self) -> Step:
        """The same, of which nothing can be differentiated."""
        one = self.losses
        supervised, unsupervised = ([loss.detach() for loss in losses] for losses in (one.supervised, one.unsupervised))
        return replace(
            self,
            losses=replace(one, total=one.total.detach(), supervised=supervised, unsupervised=unsupervised),
        )


def sound_patches(finest: Sequence[Tensor]) -> Tensor:
    """Whether the logits (B, C, *patch) of every patch are finite numbers, in all siblings (B,)."""
    return torch.stack([logits.isfinite().flatten(1).all(1) for logits in finest]).all(0)


@dataclass(frozen=True)
class _Unread:
    """A step that nobody has looked at yet: what a complaint about it needs, without its graph."""

    finite: Tensor  # on the CPU once ``there``
    there: Any  # a CUDA event, None on a CPU
    step: Step
    batch: Mapping[str, Any]  # where its patches come from
    epoch: int
    autocast: bool


class FiniteSteps(nn.Module):
    """Lets finite steps pass; the others stop the training, or are computed again in full precision.

    All ranks decide alike. How many steps in a row had to be repeated is kept in the checkpoint.
    """

    def __init__(self, on_nonfinite: OnNonfinite, most_repeats_in_a_row: int) -> None:
        super().__init__()
        self.on_nonfinite = on_nonfinite
        self.most_repeats_in_a_row = most_repeats_in_a_row
        self.repeats_in_a_row = 0
        self._unread: _Unread | None = None

    def take_unread(self, compute: Callable[[], Step], batch: Mapping[str, Any], epoch: int) -> tuple[Step, Tensor]:
        """The step of ``compute``, and whether it is finite on all ranks, which stays on the device, unread.

        The caller lets the optimisers pass over a step that is not. Before it returns, the answer about the step
        before, long there, is read; so the device never waits, and no step is taken after one that was not finite.
        Raises ``TrainingError`` as ``take`` does with ``on_nonfinite`` stop, one step late.
        """
        step = compute()
        self.read()
        finite = on_all_ranks(step.is_finite)
        places = {
            stream: {key: part[key] for key in ("case", "location", "index") if key in part}
            for stream, part in batch.items()
        }
        autocast = torch.is_autocast_enabled(finite.device.type)
        copy = torch.empty((), dtype=torch.bool, pin_memory=finite.is_cuda).copy_(finite, non_blocking=True)
        there = torch.cuda.current_stream(finite.device).record_event() if finite.is_cuda else None
        self._unread = _Unread(copy, there, step.without_graph(), places, epoch, autocast)
        return step, finite

    def read(self) -> None:
        """Look at the step that was taken unread, if there is one; to be called before anything is saved."""
        unread, self._unread = self._unread, None
        if unread is None:
            return
        if unread.there is not None:
            unread.there.synchronize()
        if not bool(unread.finite):
            what = _described(unread.step, unread.batch, unread.epoch)
            raise TrainingError(_stopped(what, unread.autocast))

    def take(self, compute: Callable[[], Step], batch: Mapping[str, Any], epoch: int) -> Step:
        """The step that ``compute`` gives for ``batch``, with finite gradients.

        ``compute`` is called under the caller's precision, and once more without autocast if that was not enough and
        ``on_nonfinite`` is ``fp32``. Raises ``TrainingError`` when no finite step is to be had, or when too many in
        a row had to be repeated.
        """
        step = compute()
        if true_on_all_ranks(step.is_finite):
            self.repeats_in_a_row = 0
            return step
        what = _described(step, batch, epoch)
        device = step.losses.total.device.type
        autocast = torch.is_autocast_enabled(device)
        if self.on_nonfinite == "stop" or not autocast:
            raise TrainingError(_stopped(what, autocast))
        self.repeats_in_a_row += 1
        if self.repeats_in_a_row > self.most_repeats_in_a_row:
            raise TrainingError(
                f"{what}; {self.most_repeats_in_a_row} steps in a row before it were repeated in full precision, the "
                "most that model.most_repeats_in_a_row allows. Train with trainer.precision 32-true, or lower the "
                "learning rate"
            )
        warn(f"{what}; the step is repeated in full precision")
        with torch.autocast(device, enabled=False):
            step = compute()
        if not true_on_all_ranks(step.is_finite):
            raise TrainingError(f"{_described(step, batch, epoch)}, even in full precision. {_CURE}")
        return step

    def get_extra_state(self) -> dict[str, int]:
        """What the checkpoint keeps."""
        return {"repeats_in_a_row": self.repeats_in_a_row}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on from a checkpoint."""
        self.repeats_in_a_row = state["repeats_in_a_row"]


_CURE = (
    "The weights are as they were before this step, and the last checkpoint is whole. Look at these scans (flarecps "
    "inspect), lower the learning rate"
)


def _stopped(what: str, autocast: bool) -> str:
    if not autocast:
        return f"{what}; in full precision, so no repetition would help. {_CURE}"
    return f"{what}. {_CURE}, or have such steps repeated: model.on_nonfinite fp32"


def _addresses(batch: Mapping[str, Any], epoch: int) -> list[str]:
    """Where each patch of a batch comes from, one phrase a patch.

    >>> part = {"case": ["a"], "index": torch.tensor([4]), "location": torch.tensor([[1, 2, 3]])}
    >>> _addresses({"labelled": part}, epoch=7)
    ['labelled a at voxel (1, 2, 3) (epoch 7, index 4)']
    """
    return [
        f"{stream} {case} at voxel {tuple(location)} (epoch {epoch}, index {index})"
        for stream, part in batch.items()
        if "case" in part
        for case, location, index in zip(part["case"], part["location"].tolist(), part["index"].tolist(), strict=True)
    ]


def _described(step: Step, batch: Mapping[str, Any], epoch: int) -> str:
    """What is not finite and in which patches, the same words on every rank.

    Sums over ranks and batches carry one patch's nan everywhere, so the logits tell whose it is: patches with finite
    ones are named only where all are.
    """
    losses, names = step.losses, _addresses(batch, epoch)
    guilty = [name for name, fine in zip(names, step.sound.tolist(), strict=False) if not fine]
    told = gather_from_ranks((guilty, names))
    patches = [name for own, _ in told for name in own] or [name for _, own in told for name in own]
    columns = (losses.supervised, losses.unsupervised, step.norms)
    lsup, lcps, norms = (", ".join(map(_number, values)) for values in columns)
    whose = "from" if any(own for own, _ in told) else "though the logits are, in"
    return (
        f"loss or gradient is not finite in epoch {epoch}: L {_number(losses.total)}, Lsup {lsup}, Lcps {lcps}, "
        f"gradient norms {norms}; {whose} " + "; ".join(patches)
    )


def _number(value: Tensor) -> str:
    return f"{float(value):.4g}"
