"""What an arm computes by its method's own word, and how many epochs make two arms equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from flarecps.errors import ConfigError
from flarecps.experiments.study.protocol import Arm, Protocol
from flarecps.json_fields import is_whole, shown
from flarecps.losses import LinearRamp
from flarecps.method_config import SUPERVISED
from flarecps.methods import Method
from flarecps.text_files import read_yaml

STREAMS = ("labelled", "unlabelled", "pseudo_labelled")
METHOD, RAMP, EPOCHS = "model.method", "model.method.init_args.ramp", "trainer.max_epochs"
MOST_EPOCHS = 100_000  # every one is looked at; the longest trainings have a hundredth
TRIED = (10, MOST_EPOCHS)  # epochs at which λ must be a number
ITERATIONS = "data.iterations_per_epoch"
TOTAL = "model.scheduler.init_args.total_iters"


@dataclass(frozen=True)
class Recipe:
    """What decides the compute of an arm's own training; ``patches`` of a batch, by stream."""

    method: Method
    patches: Mapping[str, int]
    epochs: int
    iterations: int
    scheduled: bool  # whether the config's learning rate falls over as many epochs, which must be said

    def cost(self, epochs: int | None = None) -> float:
        """Forward and backward passes of one patch through one network, by the method's declared cost."""
        until = self.epochs if epochs is None else epochs
        return self.iterations * sum(self.method.step_cost(self.patches, epoch) for epoch in range(until))

    def affordable(self, cost: float) -> int:
        """The epochs that cost so much, half of a first one more or less; at most `MOST_EPOCHS`, perhaps none."""
        first, spent = self.cost(1), 0.0
        most = round(min(max(cost / first, 0.0), MOST_EPOCHS))
        for epoch in range(most):
            spent += self.method.step_cost(self.patches, epoch)
            if epoch and self.iterations * spent > cost + first / 2:
                return epoch
        return most


class Costs:
    """The recipes and costs of a protocol's arms; ``find`` finds a config by name."""

    def __init__(self, protocol: Protocol, find: Callable[[str], Path]) -> None:
        self.protocol, self.find = protocol, find
        self._recipes: dict[str, Recipe] = {}

    def settings(self, arm: Arm) -> dict[str, Any]:
        """The arm's settings, and those that all share, by dotted name; not its config's."""
        return {**self.protocol.settings, **arm.settings}

    def recipe(self, name: str) -> Recipe:
        """Of an arm that is trained. ConfigError where its settings leave the compute open."""
        if name not in self._recipes:
            recipe = self._recipe(self.protocol.arm(name))
            self._recipes[name] = self._equalled(self.protocol.arm(name), recipe)
        return self._recipes[name]

    def total(self, name: str) -> float:
        """What an arm computes in all: its training, its teachers', or the two that it averages."""
        arm = self.protocol.arm(name)
        if arm.average_of:
            return 2 * self.total(arm.average_of)
        return self.recipe(name).cost() + (2 * self.total(arm.teachers) if arm.teachers else 0.0)

    def ratio(self, name: str, baseline: str) -> float | None:
        """What an arm computes in all beside the baseline; None where passes differ, by several plans, or one is
        another program's."""
        given = any(self.protocol.arm(one).predictions for one in (name, baseline))
        alike = not given and len(self.protocol.plans_in((name, baseline))) == 1
        return self.total(name) / self.total(baseline) if alike else None

    def reads_unlabelled(self, name: str) -> bool:
        """Whether unlabelled scans teach the arm, or its teachers' labels of them."""
        arm = self.protocol.arm(name)
        return not arm.predictions and self.recipe(arm.average_of or name).method.streams != ("labelled",)

    def words(self, arm: Arm) -> list[str]:
        """The settings of the arm's training as words of ``fit``."""
        found = self.settings(arm)
        recipe = self.recipe(arm.name)
        found[EPOCHS] = recipe.epochs
        if recipe.scheduled:
            found[TOTAL] = recipe.epochs
        return [f"--{key}={_text(value)}" for key, value in found.items()]

    def _equalled(self, arm: Arm, recipe: Recipe) -> Recipe:
        if not arm.compute_of:
            return recipe
        left = arm.share * self.total(arm.compute_of) - (2 * self.total(arm.teachers) if arm.teachers else 0.0)
        if not (epochs := recipe.affordable(left)):
            raise ConfigError(
                f"arm '{arm.name}': its teachers '{arm.teachers}' compute as much as '{arm.compute_of}' alone, nothing "
                "is left for the student; give the teachers fewer epochs" if arm.teachers else
                f"arm '{arm.name}': {arm.share:g} of what '{arm.compute_of}' computes is not one epoch; give it more"
            )  # fmt: skip
        return replace(recipe, epochs=epochs)

    def _recipe(self, arm: Arm) -> Recipe:
        settings, config = self.settings(arm), self._config(arm)
        default = _at(config, "model", "method")
        theirs = default if isinstance(default, str) else _at(default, "class_path")
        named = settings.get(METHOD) or settings.get(f"{METHOD}.class_path") or theirs or SUPERVISED
        kept = _at(default, "init_args") if named == theirs else None
        arguments = dict(kept) if isinstance(kept, Mapping) else {}
        prefix = f"{METHOD}.init_args."
        arguments |= {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
        batch = settings.get("data.global_batch") or _at(config, "data", "global_batch") or {}
        if not isinstance(batch, Mapping) or not all(
            is_whole(number, int(stream == "labelled")) for stream, number in batch.items()
        ):
            raise ConfigError(f"arm '{arm.name}': data.global_batch is {shown(batch)}; expected patches by kind, as "
                              "{labelled: 2, unlabelled: 2}")  # fmt: skip
        patches = {stream: batch.get(stream, batch.get("unlabelled", 1)) for stream in STREAMS}
        epochs = settings.get(EPOCHS, _at(config, "trainer", "max_epochs"))
        iterations = settings.get(ITERATIONS, _at(config, "data", "iterations_per_epoch") or 250)
        for key, number in ((EPOCHS, epochs), (ITERATIONS, iterations)):
            if not is_whole(number, 1) or (key == EPOCHS and number > MOST_EPOCHS):
                most = f" and at most {MOST_EPOCHS}" if key == EPOCHS else ""
                raise ConfigError(f"arm '{arm.name}': {key} is {shown(number)}; expected a whole number, at least 1"
                                  f"{most}, in 'settings' or the config")  # fmt: skip
        scheduled = is_whole(_at(config, "model", "scheduler", "init_args", "total_iters"))
        return Recipe(built_method(str(named), arguments, f"arm '{arm.name}'"), patches, epochs, iterations, scheduled)

    def _config(self, arm: Arm) -> dict[str, Any]:
        return read_yaml(self.find(arm.config), ConfigError, "expected a training's config") if arm.config else {}


def built_method(class_path: str, arguments: Mapping[str, Any], where: str) -> Method:
    """The method, without the losses and filters that a config names, for which its cost does not ask."""
    module, _, name = class_path.rpartition(".")
    plain = {
        key: value
        for key, value in arguments.items()
        if "." not in key and not (isinstance(value, Mapping | str) and ("class_path" in value or "." in value))
    }
    try:
        kind = getattr(import_module(module or "flarecps.methods"), name)
        if not (isinstance(kind, type) and issubclass(kind, Method)):
            raise ConfigError(f"{where}: {class_path} is no flarecps.methods.Method; expected a class of these")
        if plain.get("ramp") is not None:
            plain["ramp"] = LinearRamp(**plain["ramp"])
        method = kind(**plain)
        _ = [float(method.weight(epoch)) for epoch in (0, *TRIED)]  # a ramp of texts is found here
    except (ImportError, AttributeError, ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}: the method {class_path} can't be made ({error}); expected a class such as "
            "flarecps.methods.Supervised and its arguments as 'model.method.init_args.NAME'"
        ) from error
    return method


def scaled(protocol: Protocol, epochs: Mapping[str, int], costs: Costs) -> Protocol:
    """The protocol with other epochs for the arms named; λ's ramps keep their shares of a training."""
    arms = []
    for arm in protocol.arms:
        if arm.name not in epochs or arm.average_of or arm.compute_of:
            arms.append(arm)
            continue
        recipe, new = costs.recipe(arm.name), epochs[arm.name]
        more: dict[str, Any] = {EPOCHS: new}
        ramp = getattr(recipe.method, "ramp", None)
        if isinstance(ramp, LinearRamp):
            start, length = (round(one * new / recipe.epochs) for one in (ramp.start, ramp.length))
            more[RAMP] = {"final": ramp.final, "start": start, "length": length}
        arms.append(replace(arm, settings={**arm.settings, **more}))
    return replace(protocol, arms=tuple(arms))


def _at(config: Mapping[str, Any], *keys: str) -> Any:
    found: Any = config
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, default=str)
