"""A training as a Lightning module: what a run is, whatever its method."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any, TypeAlias

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import MeanMetric, Metric

from flarecps import checkpoint, metric_names
from flarecps.errors import CheckpointError, ConfigError
from flarecps.kernels import Kernels, Road, chosen_road, no_triton, using
from flarecps.methods import CrossPseudoSupervision, Method
from flarecps.networks import (
    PlainUNet,
    check_contract,
    compile_in_place,
    he_normal_,
    keeps_layout,
    pad_image_channels,
    set_memory_format,
)
from flarecps.planning.memory import Learners, MemoryModel
from flarecps.planning.plan import Plan, Topology, plan_from_json
from flarecps.training.finite import FiniteSteps, OnNonfinite, Step, sound_patches
from flarecps.training.health import (
    CollapseWatch,
    OnCollapse,
    PseudoLabelHealth,
    class_priors,
    named_health,
    pseudo_label_counts,
    vanished,
)
from flarecps.training.kernel_trial import what_fails
from flarecps.training.optimisation import NesterovSGD, Plateau, SmoothedLoss
from flarecps.training.ranks import gather_from_ranks, warn
from flarecps.training.validation import OrganScores, named_scores, organ_dsc, sibling_labels

# in_channels, classes, features, strides, kernels -> network
NetworkFactory: TypeAlias = Callable[
    [int, int, Sequence[int], Sequence[Sequence[int]], Sequence[Sequence[int]]], nn.Module
]


class SegmentationModule(LightningModule):
    """Siblings, networks of one architecture, that a method teaches: their optimisers, health and checkpoints.

    Args:
        plan: the plan of the case store (linked from the data; not set by hand).
        method: what a step computes of labelled and unlabelled patches; by default the paper's.
        network: the architecture, built once per sibling.
        topology: features, strides and kernels instead of the plan's.
        optimizer: built once per sibling.
        scheduler: built once per sibling; a plateau watches its own sibling's smoothed Lsup.
        compile: compile each sibling: true, or one of torch.compile's modes; checkpoints are the same either way.
        channels_last: keep images and weights with channels innermost in memory; null: on a GPU, where ``kernels`` have
            norms for that layout.
        kernels: the road of norms and losses, see ``flarecps.kernels``: auto (Triton's kernels on a GPU that has them,
            the composite where ``compile`` is on, plain on a CPU), plain, composite or triton.
        pad_channels: let the first convolution see so many channels, those that the image lacks zeros.
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
        method: Method | None = None,
        network: NetworkFactory = PlainUNet,
        topology: Topology | None = None,
        optimizer: OptimizerCallable = NesterovSGD,
        scheduler: LRSchedulerCallable = Plateau,
        compile: bool | str = False,
        channels_last: bool | None = None,
        kernels: Kernels = "auto",
        pad_channels: int = 0,
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
        method = method or CrossPseudoSupervision()
        self.plan = _planned(plan, topology, method)
        self.siblings = nn.ModuleList(
            _sibling(network, self.plan, seed=(initial_seed or 0) + index) for index in range(method.sibling_count)
        )
        check_contract(self.siblings[0])
        set_memory_format(self.siblings, self.plan.dimensions, bool(channels_last))
        pad_image_channels(self.siblings, pad_channels)
        self.channels_last = channels_last
        self.kernels = kernels
        self.road: Road = "plain"
        self.method = method
        self.start_method()
        compile_in_place(self.siblings, compile)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clip_norm = clip_norm
        self.window_step = window_step
        self.smoothed_loss = SmoothedLoss(len(self.siblings))
        self.finite_steps = FiniteSteps(on_nonfinite, most_repeats_in_a_row)
        self.vanished_below = vanished_below
        self.class_priors = class_priors(self.plan)
        self.health = PseudoLabelHealth(self.plan.class_count, len(self.siblings))
        self.collapse_watch = CollapseWatch(on_collapse, self.plan.labels)
        self.pretended_epoch: int | None = None  # of a dry run, in place of the present one
        names = [metric_names.LOSS_TOTAL]
        for number in range(1, 1 + len(self.siblings)):
            names += [metric_names.supervised_loss(number), metric_names.cross_pseudo_loss(number)]
        # no search for nan, which waits for the device: FiniteSteps lets none through.
        # ModuleDict refuses dots only, but a state_dict key reads better without slashes
        self.epoch_means = nn.ModuleDict({name.replace("/", "|"): MeanMetric("disable") for name in names})
        self.organ_scores = OrganScores(self.plan.labels, len(self.inference_networks))

    def start_method(self) -> None:
        """Let the method begin from the siblings' weights: at first, and when they have been given others."""
        self.method.start(self.siblings, self.plan)
        self.method.requires_grad_(False)
        self.inference_prefixes  # noqa: B018  # a method that names a foreign network is told so now, not after hours

    def setup(self, stage: str) -> None:
        """Choose the road for the trainer's device, one for all ranks; one that is not there is said once."""
        device = self.trainer.strategy.root_device
        self.road = chosen_road(self.kernels, device)
        if self.kernels == "triton" or (self.kernels == "auto" and device.type == "cuda"):
            reasons = gather_from_ranks(no_triton(device) or what_fails(device))
            if failing := [rank for rank, why in enumerate(reasons) if why]:  # on two roads ranks would round apart
                self.road = "plain"
                whose = f" (rank {failing[0]} of {len(reasons)})" if len(reasons) > 1 else ""
                warn(f"norms and losses are PyTorch's own, which is slower: {reasons[failing[0]]}{whose}")
        if self.channels_last is None and self.road != "plain" and keeps_layout(self.siblings[0]):
            self.channels_last = True
            networks = dict.fromkeys([*self.siblings, *self.inference_networks])
            set_memory_format(networks, self.plan.dimensions, channels_last=True)

    # -- the step

    def training_step(self, batch: dict[str, dict[str, Any]], batch_index: int) -> None:
        self._check_streams(batch)
        optimizers = _listed(self.optimizers())
        with using(self.road):
            if self._passes_over(optimizers):
                step, finite = self.finite_steps.take_unread(
                    lambda: self.differentiated(batch), batch, self.current_epoch
                )
                for optimizer in optimizers:
                    optimizer.optimizer.found_inf = (~finite).float()
            else:
                step = self.finite_steps.take(lambda: self.differentiated(batch), batch, self.current_epoch)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.method.after_step(self.siblings)
        self._remember(step)

    def _passes_over(self, optimizers: Sequence[Any]) -> bool:
        """Whether steps need not be read: fused optimisers on a GPU pass over one that is not finite by themselves."""
        fused = all(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups)
        return self.device.type == "cuda" and fused and self.finite_steps.on_nonfinite == "stop"

    def differentiated(self, batch: dict[str, dict[str, Any]]) -> Step:
        """The method's losses of a batch, and their gradients in the siblings, clipped.

        What the logits tell is counted first, so that they do not lie beside what the backward pass makes.
        """
        self.zero_grad()
        losses = self.method.step(self.siblings, batch, self.method_epoch)
        sound, counts = sound_patches(losses.finest), pseudo_label_counts(losses.unlabelled)
        losses = replace(losses, finest=[])
        self.manual_backward(losses.total)
        norms = [nn.utils.clip_grad_norm_(sibling.parameters(), self.clip_norm) for sibling in self.siblings]
        return Step(losses, norms, sound, counts)

    @property
    def method_epoch(self) -> int:
        """The present epoch as the method counts it: those in which λ was held do not count."""
        epoch = self.current_epoch if self.pretended_epoch is None else self.pretended_epoch
        return epoch - self.collapse_watch.held_epochs

    def _check_streams(self, batch: dict[str, dict[str, Any]]) -> None:
        missing = [stream for stream in self.method.streams if stream not in batch]
        if missing:
            raise ConfigError(
                f"the method {type(self.method).__name__} reads {' and '.join(missing)} patches, which this run's data "
                "has not; unlabelled ones need data.unlabelled true, pseudo_labelled ones data.pseudo_labels, a folder "
                "written by 'flarecps pseudo-label'; model.method flarecps.methods.Supervised needs neither"
            )

    def on_train_epoch_end(self) -> None:
        self.finite_steps.read()
        means = {name: metric.compute() for name, metric in self._named_means().items()}
        for metric in self._named_means().values():
            metric.reset()
        watched = self.smoothed_loss.update(
            float(means[metric_names.supervised_loss(number)]) for number in range(1, 1 + len(self.siblings))
        )
        rates = {
            metric_names.learning_rate(number): optimizer.param_groups[0]["lr"]
            for number, optimizer in enumerate(_listed(self.optimizers()), start=1)
        }
        weight = {metric_names.LAMBDA: self.method.weight(self.method_epoch)}
        self.log_dict({**means, **rates, **weight})  # equal on all ranks
        for scheduler, value in zip(_listed(self.lr_schedulers()), watched, strict=True):
            if isinstance(scheduler, ReduceLROnPlateau):  # looks at its own sibling's smoothed Lsup
                scheduler.step(value)
            else:
                scheduler.step()
        self._watch_pseudo_labels()

    def _watch_pseudo_labels(self) -> None:
        """Log the epoch's pseudo-label health, and let a class that has vanished have its consequence."""
        if not self.health.update_called or self.pretended_epoch is not None:  # λ was 0, or a dry run's few steps
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

    # -- whole scans

    def validation_step(self, case: dict[str, Any], batch_index: int) -> dict[str, Any] | None:
        """The case's ``predicted`` labels and ``dsc`` by source, for callbacks that show them; None without a case."""
        if "labels" not in case:  # a test scan without reference, or a rank without a scan of its own
            return None
        with using(self.road):
            predicted = sibling_labels(self.finest_networks(), case["image"], self.plan, self.window_step)
        dsc = organ_dsc(predicted, case["labels"], self.organ_scores.organs, case.get("annotated"))
        self.organ_scores.update(dsc)
        return {"predicted": predicted, "dsc": dsc}

    def on_validation_epoch_end(self) -> None:
        self._log_scores("validation")

    def test_step(self, case: dict[str, Any], batch_index: int) -> None:
        self.validation_step(case, batch_index)

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def predict_step(self, path: str, batch_index: int) -> str:
        """The scan's path; a ``SegmentationWriter`` computes and writes its labels."""
        return path

    @property
    def inference_networks(self) -> list[nn.Module]:
        """The networks that the method lets inference use."""
        return self.method.inference_networks(self.siblings)

    @property
    def inference_prefixes(self) -> list[str]:
        """Where their weights begin in the state_dict."""
        places = {network: f"{name}." for name, network in self.named_modules()}
        try:
            return [places[network] for network in self.inference_networks]
        except KeyError:
            raise ConfigError(
                f"{type(self.method).__name__}.inference_networks gives a network that is neither a sibling nor an "
                "attribute of the method, so no checkpoint would hold it"
            ) from None

    def finest_networks(self) -> list[nn.Module]:
        """The networks for inference as functions from patches to full-resolution logits, in evaluation mode."""
        return [checkpoint.FinestScale(network).eval() for network in self.inference_networks]

    def _log_scores(self, stage: str) -> None:
        scores = named_scores(self.organ_scores.compute(), stage)
        self.organ_scores.reset()
        if not self.trainer.sanity_checking:
            self.log_dict(scores)  # equal on all ranks; one that did not know them could not save what is best

    # -- checkpoints

    def on_save_checkpoint(self, checkpoint_content: dict[str, Any]) -> None:
        self.finite_steps.read()
        progress: Any = self.trainer.fit_loop.epoch_progress.current  # Lightning annotates its base class
        checkpoint_content[checkpoint.ENTRY] = checkpoint.model_entry(
            self.plan, self.siblings, progress.processed, self.inference_prefixes
        )

    def on_load_checkpoint(self, checkpoint_content: dict[str, Any]) -> None:
        checkpoint.check_fits(checkpoint_content, self.plan, self.siblings)
        state = checkpoint_content["state_dict"]
        for name, value in self.state_dict().items():  # what an older version did not keep starts anew
            if name.endswith("_extra_state"):
                state.setdefault(name, value)
        theirs, ours = ({name for name in held if name.startswith("method.")} for held in (state, self.state_dict()))
        if theirs != ours:
            raise CheckpointError(
                f"the checkpoint holds the state of another method than {type(self.method).__name__}; use the config "
                "it was trained with (RUN/config.yaml)"
            )

    # -- running means

    def _remember(self, step: Step) -> None:
        means, losses = self._named_means(), step.losses
        means[metric_names.LOSS_TOTAL].update(losses.total.detach())
        for number, (lsup, lcps) in enumerate(zip(losses.supervised, losses.unsupervised, strict=True), start=1):
            means[metric_names.supervised_loss(number)].update(lsup.detach())
            means[metric_names.cross_pseudo_loss(number)].update(lcps.detach())
        if step.counts is not None:
            self.health.update(step.counts)

    def running_metrics(self) -> dict[str, Metric]:
        """What counts through an epoch, by name: a checkpoint within an epoch must hold it."""
        return {**self._named_means(), "health": self.health}

    def _named_means(self) -> dict[str, Any]:
        return {name.replace("|", "/"): metric for name, metric in self.epoch_means.items()}


def _listed(found: Any) -> list[Any]:
    """Lightning's optimisers or schedulers, of which it gives one alone without a list."""
    return found if isinstance(found, list) else [found]


def segmentation_module(module: LightningModule) -> SegmentationModule:
    """``module``, as the callbacks here are written for it; TypeError for one of another kind."""
    if not isinstance(module, SegmentationModule):
        raise TypeError(f"{type(module).__name__}: expected a SegmentationModule")
    return module


def _planned(content: dict[str, Any], topology: Topology | None, method: Method) -> Plan:
    """The plan this run trains by: with the config's topology, and the memory that its own step takes.

    Checked as a whole: the plan's own topology need not fit the config's patch.
    """
    if topology is not None:
        content = content | {"topology": json.loads(json.dumps(asdict(topology)))}
    plan = plan_from_json(content, where="the plan, with data.patch_voxels and model.topology")
    learners = Learners(method.sibling_count, method.extra_networks, method.siblings_in_turn)
    memory = MemoryModel(plan.memory_gb, plan.dimensions, plan.class_count, learners, streams=1)
    patches = sum(number for stream, number in plan.global_batch.items() if stream in method.streams)
    return replace(plan, memory_gb=round(memory.step_gb(plan.patch_voxels, plan.topology, patches), 2))


def _sibling(network: NetworkFactory, plan: Plan, seed: int) -> nn.Module:
    topology = plan.topology
    built = network(len(plan.channels), plan.class_count, topology.features, topology.strides, topology.kernels)
    return he_normal_(built, torch.Generator().manual_seed(seed))
