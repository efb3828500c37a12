"""Dual-debiased CPS: the class weights of DHC (Wang & Li, MICCAI 2023), each sibling's by a measure of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flarecps.dice import dice_coefficient
from flarecps.losses import DeepSupervision, PseudoLabelFilter, WeightedDiceCrossEntropy
from flarecps.losses.label_counts import counted_labels
from flarecps.losses.ranks import sum_over_ranks
from flarecps.methods.cross_pseudo import CrossPseudoSupervision
from flarecps.methods.method import AnyRamp, Batch, Losses
from flarecps.planning.plan import Plan

LEAST = 1e-6  # share of voxels and Dice below which no logarithm is taken
WINDOW = 50  # steps over which a class is seen to be learned or unlearned
POWER = 1 / 5


class DualDebiasedSupervision(CrossPseudoSupervision):
    """CPS whose losses weigh classes: sibling 1's by how rare they are, sibling 2's by how hard they are to learn.

    Rare: w_k = K log(n_max / n_k) / max_k log(n_max / n_k), n the running shares of the classes in sibling 1's
    pseudo-labels, never less than in the labelled scans, so that a class that vanishes does not take all the weight.
    Hard: w_k = K d_k / max_k d_k, d_k = (unlearned / learned)^⅕ (1 − Dice_k) with running means over about 50 steps of
    the falls and rises of log Dice_k, of sibling 2 on labelled patches. K is the number of classes. The commonest class
    has the weight 0 for sibling 1; there Dice alone answers for it.

    Args:
        ramp: λ by epoch; by default the paper's.
        one_mean: one CPS loss over labelled and unlabelled patches together, instead of two terms.
        cps_on_labelled: false leaves the labelled patches out of Lcps.
        pseudo_labels: which voxels of them are trusted; null trusts all.
        equal_steps: divide L by 1 + λ × the number of Lcps's terms.
        momentum: of the running shares, per step.
        siblings_in_turn: hold one sibling's feature maps at a time: about half of the memory, a sixth more time, the
            same gradients.
    """

    def __init__(
        self,
        ramp: AnyRamp | None = None,
        one_mean: bool = False,
        cps_on_labelled: bool = True,
        pseudo_labels: PseudoLabelFilter | None = None,
        equal_steps: bool = False,
        momentum: float = 0.95,
        siblings_in_turn: bool = False,
    ) -> None:
        super().__init__(None, ramp, one_mean, cps_on_labelled, pseudo_labels, None, equal_steps, siblings_in_turn)
        self.rare = DeepSupervision(WeightedDiceCrossEntropy())
        self.hard = DeepSupervision(WeightedDiceCrossEntropy())
        self.momentum = momentum
        self.state: dict[str, Tensor] = {}
        self._next: dict[str, Tensor] = {}

    def start(self, siblings: nn.ModuleList, plan: Plan) -> None:
        super().start(siblings, plan)
        structures = plan.fingerprint.get("structures", {})
        shares = {label: structures.get(name, {}).get("share_of_labelled_voxels", 0.0)
                  for name, label in plan.labels.items() if label}  # fmt: skip
        prior = torch.full((plan.class_count,), LEAST, dtype=torch.float64)
        for label, share in shares.items():
            prior[label] = max(share, LEAST)
        prior[0] = max(1 - sum(shares.values()), LEAST)
        nothing = torch.zeros(plan.class_count, dtype=torch.float64)
        self.prior = prior
        self.state = {"shares": prior, "dice": nothing, "learned": nothing, "unlearned": nothing}

    def loss_of(self, sibling: int) -> DeepSupervision:
        return (self.rare, self.hard)[sibling]

    def step(self, siblings: nn.ModuleList, batch: Batch, epoch: int) -> Losses:
        device = batch["labelled"]["image"].device
        self.state = {name: value.to(device) for name, value in self.state.items()}
        self.rare.loss.weights, self.hard.loss.weights = self.weights_of_rare(), self.weights_of_hard()
        losses = super().step(siblings, batch, epoch)
        self._next = self.seen(losses, batch["labelled"]["labels"][:, 0])
        return losses

    def weights_of_rare(self) -> Tensor:
        """Sibling 1's weights (classes,), in float64."""
        shares = torch.maximum(self.state["shares"], self.prior.to(self.state["shares"]))
        rarity = (shares.max() / shares).log()
        return len(rarity) * rarity / rarity.max().clamp_min(LEAST)

    def weights_of_hard(self) -> Tensor:
        """Sibling 2's weights (classes,), in float64."""
        ratio = (self.state["unlearned"] + LEAST) / (self.state["learned"] + LEAST)
        difficulty = ratio**POWER * (1 - self.state["dice"]).clamp_min(LEAST)
        return len(difficulty) * difficulty / difficulty.max()

    @torch.no_grad()
    def seen(self, losses: Losses, truth: Tensor) -> dict[str, Tensor]:
        """The state after a step, of all ranks: shares of pseudo-labels, Dice, and how it moved.

        A class that neither the labels nor sibling 2 have in this step keeps its Dice.
        """
        classes = losses.finest[0].shape[1]
        state = dict(self.state)
        pseudo = losses.unlabelled[0]
        if len(pseudo):
            counts = sum_over_ranks(_counts(pseudo.argmax(1), classes))
            state["shares"] = torch.lerp(counts / counts.sum(), state["shares"], self.momentum)
        found = losses.finest[1][: losses.labelled].argmax(1)
        both = _counts(torch.where(found == truth, found, classes), classes + 1)[:-1]
        shared, total = sum_over_ranks(torch.stack([both, _counts(found, classes) + _counts(truth, classes)]))
        dice = torch.where(total > 0, dice_coefficient(shared, total.clamp_min(1)), state["dice"])
        change = (dice.clamp_min(LEAST) / state["dice"].clamp_min(LEAST)).log()
        for name, part in (("learned", change.clamp_min(0)), ("unlearned", (-change).clamp_min(0))):
            state[name] = torch.lerp(state[name], part, 1 / WINDOW)
        return state | {"dice": dice}

    def after_step(self, siblings: nn.ModuleList) -> None:
        self.state = self._next

    def get_extra_state(self) -> dict[str, Any]:
        return dict(self.state)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


def _counts(labels: Tensor, classes: int) -> Tensor:
    """Voxels of each class, in float64."""
    return counted_labels(labels.flatten().long(), classes).double()
