"""The contract of a method: what one step computes, and what it needs to do so."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flarecps.losses import DeepSupervision, DiceCrossEntropy, LinearRamp, downsampled_labels
from flarecps.planning.plan import Plan

# By stream, then by name: "image" (B, channel, *patch), where there are labels "labels" (B, 1, *patch) and "annotated"
# (B, classes), and where each patch comes from.
Batch: TypeAlias = Mapping[str, Mapping[str, Any]]

# A ``Loss`` or a ``Ramp``, as a constructor must annotate them for configs to give one of a user's own: jsonargparse
# compares a protocol's annotations with the user's, and takes one that returns a Tensor for a factory of tensors.
AnyLoss: TypeAlias = DiceCrossEntropy | Callable[..., Any]
AnyRamp: TypeAlias = LinearRamp | Callable[[int], float]


@dataclass(frozen=True)
class Losses:
    """What a step computes of one batch; the losses are connected to the siblings by their graph."""

    total: Tensor  # what is differentiated
    supervised: list[Tensor]  # Lsup of each sibling, which its plateau watches
    unsupervised: list[Tensor]  # of each sibling, before λ; 0 where there is none
    finest: list[Tensor]  # each sibling's logits at full resolution, detached: of labelled patches, then the others
    labelled: int  # how many of these patches are labelled

    @property
    def unlabelled(self) -> list[Tensor]:
        """Each sibling's finest logits of the unlabelled patches; empty where they were not computed."""
        return [logits[self.labelled :] for logits in self.finest]


class Method(nn.Module, ABC):
    """How labelled and unlabelled patches teach one or more networks of one architecture, the siblings.

    The training module holds the siblings and their optimisers; a method says what a step computes. What it keeps
    beside them, such as a teacher's weights, is its own modules and parameters, or ``get_extra_state``; a checkpoint
    holds it under ``method.``, and a resumed training goes on with it exactly. No buffers: DDP would broadcast them in
    every step. Nothing of it is trained: gradients reach the siblings alone. A method belongs to one training.

    Args:
        loss: Lsup's loss at one scale; by default Dice + cross-entropy.
    """

    streams: ClassVar[tuple[str, ...]] = ("labelled",)
    """The kinds of patches that a step reads, by the names of a batch."""

    sibling_count: ClassVar[int] = 1
    """How many networks learn."""

    extra_networks: float = 0.0
    """The memory that a step holds beside the siblings, in networks' worth of it: for an EMA teacher, whose forward
    pass keeps no feature maps for a backward pass, about 0.2."""

    siblings_in_turn: bool = False
    """Whether a step holds one sibling's feature maps at a time, as ``outputs_of`` lets it; planner, dry run and
    ``step_cost`` count with it. A method that has the choice takes it as an argument of this name."""

    def __init__(self, loss: AnyLoss | None = None) -> None:
        super().__init__()
        self.loss = DeepSupervision(loss or DiceCrossEntropy())

    def start(self, siblings: nn.ModuleList, plan: Plan) -> None:
        """Make what is kept beside ``siblings``, which have their first weights, for a training by ``plan``.

        Called once they are built, and again where they are given the weights of another training (``fit --init``); a
        checkpoint that is resumed is loaded afterwards. Losses whose ``batch_dice`` is None take the plan's.
        """
        for part in self.modules():
            if isinstance(part, DeepSupervision):
                part.decide_batch_dice(plan.batch_dice)

    def weight(self, epoch: int) -> float:
        """λ, the weight of what unlabelled patches teach, in ``epoch`` (from 0); while it is 0 they are not computed.

        Dry runs time a step with and without them by it.
        """
        return 0.0

    def step_cost(self, patches: Mapping[str, int], epoch: int) -> float:
        """What a step computes, in steps of one network on one patch, forward and backward; forward alone is a third.

        ``patches``: of a batch, by stream. By default every sibling learns from every patch of the method's streams,
        and from labelled ones alone while λ is 0; in turn, all but the last do their forward pass twice.
        """
        read = self.streams if self.weight(epoch) else ("labelled",)
        again = (self.sibling_count - 1) / 3 if self.siblings_in_turn else 0
        return float((self.sibling_count + again) * sum(patches[stream] for stream in read))

    @abstractmethod
    def step(self, siblings: nn.ModuleList, batch: Batch, epoch: int) -> Losses:
        """The losses of ``batch``, whose total is differentiated by the caller.

        ``epoch`` counts from 0, without those in which λ was held back. A step whose loss is not finite may be computed
        again in full precision, so state is changed in ``after_step`` alone.
        """

    def after_step(self, siblings: nn.ModuleList) -> None:
        """Called when the optimisers have taken a step, which was finite: the place where a teacher follows."""
        return

    def inference_networks(self, siblings: nn.ModuleList) -> list[nn.Module]:
        """The networks that validation and inference use, of ``siblings`` or of its own; the first is "sibling 1"."""
        return list(siblings)

    def supervised_losses(self, outputs: Sequence[Sequence[Tensor]], labelled: Mapping[str, Any]) -> list[Tensor]:
        """Lsup of every sibling (equation 1), of its outputs, finest scale first, whose first patches are labelled."""
        labels, annotated = labelled["labels"][:, 0], labelled.get("annotated")
        targets = [downsampled_labels(labels, scale.shape[2:]) for scale in outputs[0]]
        return [
            self.loss_of(number)([scale[: len(labels)] for scale in scales], targets, annotated)
            for number, scales in enumerate(outputs)
        ]

    def loss_of(self, sibling: int) -> DeepSupervision:
        """Lsup's loss of a sibling, numbered from 0."""
        return self.loss


def outputs_of(siblings: nn.ModuleList, images: Tensor, in_turn: bool = False) -> list[list[Tensor]]:
    """Every sibling's outputs (B, classes, *scale) of ``images`` (B, channel, *patch), finest scale first.

    With ``in_turn`` only the last sibling's feature maps stay for the backward pass, which begins with it; another's
    are dropped, and computed again once those of the sibling after it are gone. Losses and gradients are the same, bit
    for bit where the device computes a pass twice alike. As the caller differentiates one total, this holds for any
    loss and under DDP. A network that counts its passes, as batch norm's running means do, sees one more.
    """
    dropped = len(siblings) - 1 if in_turn else 0
    return [
        checkpoint(sibling, images, use_reentrant=False) if number < dropped else sibling(images)
        for number, sibling in enumerate(siblings)
    ]
