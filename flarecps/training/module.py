"""3D Cross-Pseudo Supervision as a Lightning module."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from flarecps import checkpoint, metric_names
from flarecps.errors import ConfigError
from flarecps.losses import (
    DeepSupervision,
    DiceCrossEntropy,
    LinearRamp,
    PseudoLabelFilter,
    cross_pseudo_losses,
    downsampled_labels,
)
from flarecps.networks import PlainUNet, compile_in_place, he_normal_, lay_out
from flarecps.planning.memory import MemoryModel
from flarecps.planning.plan import Plan, Topology, plan_from_json
from flarecps.training.finite import FiniteSteps, OnNonfinite, Step
from flarecps.training.health import (
    CollapseWatch,
    OnCollapse,
    PseudoLabelHealth,
    class_priors,
    named_health,
    vanished,
)
from flarecps.training.optimisation import NesterovSGD, Plateau, SmoothedLoss, step_schedulers
from flarecps.training.validation import OrganScores, named_scores, organ_dsc, sibling_labels

# in_channels, classes, features, strides, kernels -> network
NetworkFactory: TypeAlias = Callable[
    [int, int, Sequence[int], Sequence[Sequence[int]], Sequence[Sequence[int]]], nn.Module
]


class CrossPseudoSupervision(LightningModule):
    """Two siblings of one architecture that learn from labels and from each other: L = Lsup + λ Lcps (equation 3).

    Args:
        plan: the plan of the case store (linked from the data; not set by hand).
        network: the architecture, built once per sibling.
        topology: features, strides and kernels instead of the plan's.
        loss: Lsup's and Lcps's loss at one scale.
        optimizer: built once per sibling.
        scheduler: built once per sibling; a plateau watches its own sibling's smoothed Lsup.
        ramp: λ by epoch.
        cross_pseudo_supervision: false trains one network on the labelled scans alone: the supervised control.
        one_mean: one CPS loss over labelled and unlabelled patches together, as in the authors' code, instead of two
            terms added, as in the paper.
        cps_on_labelled: false leaves the labelled patches out of Lcps; the paper's has both.
        pseudo_labels: which of them are believed; null believes all, as the paper does.
        compile: compile each sibling: true, or one of torch.compile's modes; checkpoints are the same either way.
        channels_last: keep images and weights with channels innermost in memory.
        on_collapse: what a class that vanishes from the pseudo-labels does: warn, or hold λ until it is back.
        vanished_below: a class has vanished when its share of the unlabelled voxels, in either sibling's labels, is
            less than this times its share of the labelled scans.
        on_nonfinite: what a loss that is not a number does: stop the training, or fp32 to repeat the step in full
            precision.
        most_repeats_in_a_row: so many steps may be repeated one after another; with one more the training stops.
        clip_norm: largest gradient norm of a sibling.
        window_step: step of validation's sliding window, as a share of the patch.
        initial_seed: of sibling 1's weights; sibling 2, which is drawn independently, takes the next. None: twice
            ``seed_everything`` (from Python: 0), so that trainings of neighbouring seeds share no sibling.
    """

    def __init__(
        self,
        plan: dict[str, Any],
        network: NetworkFactory = PlainUNet,
        topology: Topology | None = None,
        loss: DiceCrossEntropy | None = None,
        optimizer: OptimizerCallable = NesterovSGD,
        scheduler: LRSchedulerCallable = Plateau,
        ramp: LinearRamp | None = None,
        cross_pseudo_supervision: bool = True,
        one_mean: bool = False,
        cps_on_labelled: bool = True,
        pseudo_labels: PseudoLabelFilter | None = None,
        compile: bool | str = False,
        channels_last: bool = False,
        on_collapse: OnCollapse = "warn",
        vanished_below: float = 0.01,
        on_nonfinite: OnNonfinite = "stop",
        most_repeats_in_a_row: int = 10,
        clip_norm: float = 12.0,
        window_step: float = 0.5,
        initial_seed: int | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.plan = _planned(plan, topology, networks=1 + cross_pseudo_supervision)
        self.siblings = nn.ModuleList(
            _sibling(network, self.plan, seed=(initial_seed or 0) + index)
            for index in range(1 + cross_pseudo_supervision)
        )
        self.memory_format = lay_out(self.siblings, self.plan.dimensions, channels_last)
        compile_in_place(self.siblings, compile)
        loss = loss or DiceCrossEntropy()
        if loss.batch_dice is None:
            loss.batch_dice = self.plan.batch_dice
        self.loss = DeepSupervision(loss)
        self.ramp = ramp or LinearRamp()
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.cross_pseudo_supervision = cross_pseudo_supervision
        self.one_mean = one_mean
        self.cps_on_labelled = cps_on_labelled
        self.pseudo_labels = pseudo_labels
        self.clip_norm = clip_norm
        self.window_step = window_step
        self.smoothed_loss = SmoothedLoss(len(self.siblings))
        self.finite_steps = FiniteSteps(on_nonfinite, most_repeats_in_a_row)
        self.vanished_below = vanished_below
        self.class_priors = class_priors(self.plan)
        self.health = PseudoLabelHealth(self.plan.class_count)
        self.collapse_watch = CollapseWatch(on_collapse, self.plan.labels)
        names = [metric_names.LOSS_TOTAL]
        for number in range(1, 1 + len(self.siblings)):
            names += [metric_names.supervised_loss(number), metric_names.cross_pseudo_loss(number)]
        self.epoch_means = nn.ModuleDict({_attribute(name): MeanMetric() for name in names})
        self.organ_scores = OrganScores(self.plan.labels, len(self.siblings))

    # -- the step

    def training_step(self, batch: dict[str, dict[str, Any]], batch_index: int) -> None:
        step = self.finite_steps.take(lambda: self.differentiated(batch), batch, self.current_epoch)
        for optimizer in self._optimizers():
            optimizer.step()
            optimizer.zero_grad()
        self._remember(step)

    def differentiated(self, batch: dict[str, dict[str, Any]]) -> Step:
        """The losses of a batch, their gradients in the siblings and clipped (paper, equations 1 to 3)."""
        self.zero_grad()
        weight = self.weight_of_pseudo_labels
        labelled = len(batch["labelled"]["image"])
        outputs = self.outputs(batch, with_unlabelled=weight > 0)
        supervised = self.supervised_losses(outputs, batch["labelled"])
        crossed = self.cross_pseudo_losses(outputs, labelled)
        total = torch.stack(supervised).sum() + weight * torch.stack(crossed).sum()
        self.manual_backward(total)
        norms = [nn.utils.clip_grad_norm_(sibling.parameters(), self.clip_norm) for sibling in self.siblings]
        return Step(total, supervised, crossed, norms, [scales[0].detach() for scales in outputs], labelled)

    def outputs(self, batch: dict[str, dict[str, Any]], with_unlabelled: bool) -> list[list[Tensor]]:
        """Each sibling's logits, finest scale first: of the labelled patches, then of the unlabelled ones.

        While λ is 0 (and in the supervised control) the unlabelled patches are not computed at all: what is multiplied
        by 0 teaches nothing, and instance norm keeps patches independent of each other.
        """
        images = batch["labelled"]["image"]
        if with_unlabelled:
            images = torch.cat([images, batch["unlabelled"]["image"]])
        images = images.to(memory_format=self.memory_format)
        return [sibling(images) for sibling in self.siblings]

    def supervised_losses(self, outputs: list[list[Tensor]], labelled: dict[str, Any]) -> list[Tensor]:
        """Lsup of every sibling (equation 1)."""
        labels, annotated = labelled["labels"][:, 0], labelled.get("annotated")
        targets = [downsampled_labels(labels, scale.shape[2:]) for scale in outputs[0]]
        return [self.loss([scale[: len(labels)] for scale in scales], targets, annotated) for scales in outputs]

    def cross_pseudo_losses(self, outputs: list[list[Tensor]], labelled: int) -> list[Tensor]:
        """Lcps of every sibling (equation 2); 0 without unlabelled patches, which come after ``labelled`` others."""
        if len(outputs[0][0]) == labelled:
            return [torch.zeros((), device=self.device)] * len(outputs)
        if not self.cps_on_labelled:
            outputs, labelled = [[scale[labelled:] for scale in scales] for scales in outputs], 0
        first, second = outputs
        return list(cross_pseudo_losses(first, second, labelled, self.loss, self.one_mean, self.pseudo_labels))

    @property
    def weight_of_pseudo_labels(self) -> float:
        """λ of the present epoch; 0 in the supervised control. Epochs in which it was held do not count."""
        if not self.cross_pseudo_supervision:
            return 0.0
        return self.ramp(self.current_epoch - self.collapse_watch.held_epochs)

    def on_train_epoch_end(self) -> None:
        means = {name: metric.compute() for name, metric in self._named_means()}
        for _, metric in self._named_means():
            metric.reset()
        watched = self.smoothed_loss.update(
            float(means[metric_names.supervised_loss(number)]) for number in range(1, 1 + len(self.siblings))
        )
        rates = {
            metric_names.learning_rate(number): optimizer.param_groups[0]["lr"]
            for number, optimizer in enumerate(self._optimizers(), start=1)
        }
        self.log_dict({**means, **rates, metric_names.LAMBDA: self.weight_of_pseudo_labels})  # equal on all ranks
        step_schedulers(self._schedulers(), watched)
        self._watch_pseudo_labels()

    def _watch_pseudo_labels(self) -> None:
        """Log the epoch's pseudo-label health, and let a class that has vanished have its consequence."""
        if not self.health.update_called:  # λ was 0
            return
        health = self.health.compute()  # of all ranks
        self.health.reset()
        gone = vanished(health["shares"].cpu(), self.class_priors, self.vanished_below)
        self.collapse_watch.update(gone, self.current_epoch)
        self.log_dict(
            {
                **named_health(health, self.class_priors, self.plan.labels),
                metric_names.HEALTH_VANISHED: float(len(gone)),
                metric_names.HEALTH_HELD: float(self.collapse_watch.held_epochs),
            }
        )

    # -- optimisers

    def configure_optimizers(self) -> tuple[list[Any], list[Any]]:
        if self.trainer.precision == "16-mixed":
            raise ConfigError(
                "trainer.precision is 16-mixed: two optimisers share one loss scale there, which is updated between "
                "their steps, so sibling 2 would take steps of another size; use bf16-mixed or 32-true"
            )
        optimizers = [self.optimizer(sibling.parameters()) for sibling in self.siblings]
        return optimizers, [self.scheduler(optimizer) for optimizer in optimizers]

    def _optimizers(self) -> list[Any]:
        wrapped = self.optimizers()
        return wrapped if isinstance(wrapped, list) else [wrapped]

    def _schedulers(self) -> list[Any]:
        schedulers = self.lr_schedulers()
        return schedulers if isinstance(schedulers, list) else [schedulers]

    # -- whole scans

    def validation_step(self, case: dict[str, Any], batch_index: int) -> dict[str, Any] | None:
        """The case's ``predicted`` labels and ``dsc`` by source, for callbacks that show them; None without a case."""
        return self._score_case(case)

    def on_validation_epoch_end(self) -> None:
        self._log_scores("validation")

    def test_step(self, case: dict[str, Any], batch_index: int) -> None:
        self._score_case(case)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def predict_step(self, path: str, batch_index: int) -> str:
        """The scan's path; a ``SegmentationWriter`` computes and writes its labels."""
        return path

    def finest_networks(self) -> list[nn.Module]:
        """The siblings as functions from patches to full-resolution logits."""
        return [checkpoint.FinestScale(sibling).eval() for sibling in self.siblings]

    def _score_case(self, case: dict[str, Any]) -> dict[str, Any] | None:
        if "labels" not in case:  # a test scan without reference, or a rank without a scan of its own
            return None
        predicted = sibling_labels(self.finest_networks(), case["image"], self.plan, self.window_step)
        dsc = organ_dsc(predicted, case["labels"], self.organ_scores.organs, case.get("annotated"))
        self.organ_scores.update(dsc)
        return {"predicted": predicted, "dsc": dsc}

    def _log_scores(self, stage: str) -> None:
        scores = named_scores(self.organ_scores.compute(), stage)
        self.organ_scores.reset()
        if not self.trainer.sanity_checking:
            self.log_dict(scores)  # equal on all ranks; one that did not know them could not save what is best

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint_content: dict[str, Any]) -> None:
        progress: Any = self.trainer.fit_loop.epoch_progress.current
        checkpoint_content[checkpoint.ENTRY] = checkpoint.model_entry(self.plan, self.siblings, progress.processed)

    def on_load_checkpoint(self, checkpoint_content: dict[str, Any]) -> None:
        checkpoint.check_fits(checkpoint_content, self.plan, self.siblings)
        for name, state in self.state_dict().items():  # what an older version did not keep starts anew
            if name.endswith("_extra_state"):
                checkpoint_content["state_dict"].setdefault(name, state)

    # -- running means

    def _remember(self, step: Step) -> None:
        means: Any = self.epoch_means
        means[_attribute(metric_names.LOSS_TOTAL)].update(step.total.detach())
        for number, (lsup, lcps) in enumerate(zip(step.supervised, step.crossed, strict=True), start=1):
            means[_attribute(metric_names.supervised_loss(number))].update(lsup.detach())
            means[_attribute(metric_names.cross_pseudo_loss(number))].update(lcps.detach())
        if len(step.unlabelled[0]):
            self.health.update(step.unlabelled)

    def running_metrics(self) -> dict[str, Metric]:
        """What counts through an epoch, by name: a checkpoint within an epoch must hold it."""
        means: dict[str, Any] = dict(self._named_means())
        return means | {"health": self.health}

    def _named_means(self) -> list[tuple[str, Any]]:
        return [(name.replace("|", "/"), metric) for name, metric in self.epoch_means.items()]


def _attribute(name: str) -> str:
    return name.replace("/", "|")  # ModuleDict refuses dots only, but a state_dict key reads better without slashes


def _planned(content: dict[str, Any], topology: Topology | None, networks: int) -> Plan:
    """The plan this run trains by: with the config's topology, and the memory that its own step takes.

    Checked as a whole: the plan's own topology need not fit the config's patch.
    """
    if topology is not None:
        content = content | {"topology": json.loads(json.dumps(asdict(topology)))}
    plan = plan_from_json(content, where="the plan, with data.patch_voxels and model.topology")
    memory = MemoryModel(plan.memory_gb, plan.dimensions, plan.class_count, networks, streams=1)
    patches = sum(plan.global_batch.values())
    return replace(plan, memory_gb=round(memory.step_gb(plan.patch_voxels, plan.topology, patches), 2))


def _sibling(network: NetworkFactory, plan: Plan, seed: int) -> nn.Module:
    topology = plan.topology
    built = network(len(plan.channels), plan.class_count, topology.features, topology.strides, topology.kernels)
    return he_normal_(built, torch.Generator().manual_seed(seed))
