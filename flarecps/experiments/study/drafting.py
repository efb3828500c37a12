"""A protocol for a data set that has none, and a protocol of fewer arms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from flarecps.errors import ConfigError, did_you_mean, first_few
from flarecps.experiments.study.protocol import Arm, Judged, Primary, Protocol
from flarecps.method_config import CROSS_PSEUDO, DICE_CROSS_ENTROPY, LCPS_SMOOTH, SUPERVISED


def draft(folds: int, seeds: int, epochs: int, iterations: int, unlabelled: bool) -> Protocol:
    """A sensible protocol for any data set: fit's own settings, and methods held against controls of equal compute.

    A student trains as long as its teachers, for half of the compute: shorter ones were worse than they were
    (docs/methods.md). Without unlabelled scans only controls are compared: one as long as two averaged ones together.
    """
    ramp = dict.fromkeys(("start", "length"), max(1, epochs // 3))
    supervised = {"model.method": SUPERVISED, "data.unlabelled": False}
    cps = {
        "model.method": CROSS_PSEUDO,
        "model.method.init_args.ramp": ramp,
        "model.method.init_args.pseudo_label_loss": DICE_CROSS_ENTROPY,
        "model.method.init_args.pseudo_label_loss.init_args.smooth": LCPS_SMOOTH,
    }
    student = {"model.method": "flarecps.methods.SelfTraining"}
    arms = [Arm("control", "control, equal steps", settings=supervised)]
    if unlabelled:
        arms += [
            Arm("control_long", "control, equal compute", settings=supervised, compute_of="cps"),
            Arm("control_half", "control, half of that", settings=supervised, compute_of="cps", share=0.5, siblings=()),
            Arm("control_two", "two controls averaged, equal compute together", average_of="control_half"),
            Arm("cps", "CPS", settings=cps, siblings=("average", "1")),
            Arm("control_quarter", "control, a quarter of that", settings=supervised, compute_of="cps", share=0.25,
                siblings=()),
            Arm("self", "self-training from two of those, equal compute in all", settings=student, compute_of="cps",
                teachers="control_quarter"),
        ]  # fmt: skip
        primary = Primary("cps", "control_long")
    else:
        long = {**supervised, "trainer.max_epochs": 2 * epochs}
        arms += [Arm("control_long", "control, twice the steps", settings=long),
                 Arm("control_two", "two controls averaged", average_of="control")]  # fmt: skip
        primary = Primary("control_two", "control_long")
    settings = {
        "trainer.max_epochs": epochs,
        "data.iterations_per_epoch": iterations,
        "trainer.enable_progress_bar": False,
    }
    return Protocol(tuple(arms), Judged("folds", folds), primary, seeds, settings=settings)


def only_arms(protocol: Protocol, names: Sequence[str]) -> Protocol:
    """The protocol with these arms, the primary baseline and those that they need. ConfigError for an unknown name.

    Where the primary method is not among them, the first that is takes its place.
    """
    every = [arm.name for arm in protocol.arms]
    for name in names:
        if name not in every:
            raise ConfigError(f"no arm {name!r}{did_you_mean(name, every) or f'; arms: {first_few(every)}'}")
    wanted = [*names, protocol.primary.baseline]
    for name in wanted:  # grows while it is walked through
        arm = protocol.arm(name)
        wanted += [one for one in (arm.compute_of, arm.teachers, arm.average_of) if one and one not in wanted]
    others = [name for name in names if name != protocol.primary.baseline]
    if not others:
        raise ConfigError(f"arms {', '.join(names)}: only the baseline; name a method beside it: {first_few(every)}")
    method = protocol.primary.method if protocol.primary.method in names else others[0]
    serving = set(wanted) - {*names, protocol.primary.baseline}
    arms = tuple(replace(arm, siblings=()) if arm.name in serving and arm.name != method else arm
                 for arm in protocol.arms if arm.name in wanted)  # fmt: skip
    return replace(protocol, arms=arms, primary=replace(protocol.primary, method=method))
