"""What a training is where nobody said: decided by the store's split and by the machine, by rules that can be stated.

docs/training.md gives them in words. A setting that a config or an option names is never decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flarecps.errors import counted
from flarecps.method_config import CROSS_PSEUDO, DICE_CROSS_ENTROPY, LCPS_SMOOTH, SUPERVISED

EPOCHS = {True: 1000, False: 100}  # with a GPU the paper's and nnU-Net's; on a CPU a tenth, of a fifth of the steps
ITERATIONS = {True: 250, False: 50}  # steps in an epoch
# A shorter training than the paper's is too short for a plateau of 30 epochs, so its learning rate falls as a
# polynomial; and λ waits until the siblings know the classes (docs/decisions/0002): it rises over the second third.
PAPERS_EPOCHS = 1000
MOST_WORKERS = 12
DRY_RUN_FILE = "FLARECPS_DRY_RUN_FILE"  # of the environment: a dry run writes {"training_s": seconds} there
METHOD = "model.method"


@dataclass(frozen=True)
class Machine:
    """What a process of a training may use: cores, and the GPU it trains on, if it does."""

    cores: int
    gpu: bool
    bf16: bool

    def __str__(self) -> str:
        return f"{counted(self.cores, 'core')}, {'a GPU' if self.gpu else 'no GPU'}"


def default_settings(
    given: Mapping[str, Any], with_config: bool, unlabelled_cases: int, machine: Machine
) -> dict[str, Any]:
    """The settings to add to ``given``, by dotted name.

    A config says how to learn: beside one, method and length are filled in where it is silent, and what depends on the
    machine; the learning rate's schedule, λ's ramp and the epochs' length are then its own or the classes' defaults.
    """
    method = chosen_method(given, unlabelled_cases)
    usual: dict[str, Any] = {
        "trainer.default_root_dir": str(Path("runs") / Path(str(given.get("data.store"))).name),
        "trainer.precision": "bf16-mixed" if machine.bf16 else "32-true",
        "data.workers": min(machine.cores, MOST_WORKERS) if machine.gpu else 0,
    }
    if method == SUPERVISED:
        usual["data.unlabelled"] = False
    if not with_config:
        usual |= {"trainer.devices": 1, "data.iterations_per_epoch": ITERATIONS[machine.gpu]}
    ends = (str(given.get(f"trainer.max_{unit}")).lower() for unit in ("steps", "time"))
    if all(end in ("none", "null", "-1") for end in ends):
        usual["trainer.max_epochs"] = EPOCHS[machine.gpu]
    found = {name: value for name, value in usual.items() if name not in given}
    names_method = any(name == METHOD or name == f"{METHOD}.class_path" for name in given)
    arguments: dict[str, Any] = {}
    losses = tuple(f"{METHOD}.init_args.{name}" for name in ("loss", "pseudo_label_loss"))
    names_loss = any(name.startswith(losses) for name in given)
    if not with_config and not names_loss:
        arguments["pseudo_label_loss"] = {"class_path": DICE_CROSS_ENTROPY, "init_args": {"smooth": LCPS_SMOOTH}}
    epochs = epochs_of({**given, **found}, siblings=1 if method == SUPERVISED else 2)
    if not with_config and epochs is not None and 0 < epochs < PAPERS_EPOCHS:
        arguments["ramp"] = dict.fromkeys(("start", "length"), max(1, epochs // 3))
        if not any(name.startswith("model.scheduler") for name in given):
            polynomial = {"total_iters": epochs, "power": 0.9}
            found["model.scheduler"] = {"class_path": "torch.optim.lr_scheduler.PolynomialLR", "init_args": polynomial}
    if not names_method:
        found[METHOD] = {"class_path": method}
        if method == CROSS_PSEUDO and arguments:
            found[METHOD]["init_args"] = arguments
    return found


def chosen_method(given: Mapping[str, Any], unlabelled_cases: int) -> str:
    """The class of the method: the one that is named, else CPS where there are unlabelled cases to learn from."""
    named = given.get(METHOD)
    named = named.get("class_path") if isinstance(named, Mapping) else named
    named = given.get(f"{METHOD}.class_path") or named
    if named:
        ours = {path.rpartition(".")[2]: path for path in (CROSS_PSEUDO, SUPERVISED)}
        return ours.get(str(named), str(named))
    return CROSS_PSEUDO if unlabelled_cases and str(given.get("data.unlabelled")).lower() != "false" else SUPERVISED


def epochs_of(given: Mapping[str, Any], siblings: int) -> int | None:
    """The epochs that a training has, those of its ``max_steps`` too; None where it has no end that is known.

    Lightning counts a step of every sibling's optimiser as one of ``max_steps``.
    """
    epochs = _whole(given.get("trainer.max_epochs"))
    if epochs is not None and epochs >= 0:
        return epochs
    steps, iterations = _whole(given.get("trainer.max_steps")), _whole(given.get("data.iterations_per_epoch"))
    if steps is None or steps < 0 or not iterations:
        return None
    return -(-steps // (siblings * iterations))


def in_words(found: Mapping[str, Any], given: Mapping[str, Any], unlabelled_cases: int, machine: Machine) -> list[str]:
    """What was decided, in words, a line each; nothing for what nobody would ask about."""
    lines = []
    if METHOD in found:
        name = found[METHOD]["class_path"].rpartition(".")[2]
        why = counted(unlabelled_cases, "unlabelled case") if unlabelled_cases else "no unlabelled cases"
        lines.append(f"method {name} ({why})")
        if found[METHOD]["class_path"] == CROSS_PSEUDO:
            lines.append("train its control, too (--model.method Supervised): as many hours of it may do better")
    if "trainer.max_epochs" in found:
        steps = {**given, **found}.get("data.iterations_per_epoch", ITERATIONS[True])
        lines.append(f"{found['trainer.max_epochs']} epochs of {steps} steps (--trainer.max_epochs N changes it)")
    if not machine.gpu and "data.iterations_per_epoch" in found:
        lines.append("the plan's network is slow without a GPU: see --dry-run; --config cpu_3d trains a small one")
    here = [
        f"{name.partition('.')[2]} {found[name]}" for name in ("trainer.precision", "data.workers") if name in found
    ]
    if here:
        lines.append(f"{', '.join(here)} ({machine})")
    if "trainer.default_root_dir" in found:
        lines.append(f"run folder {found['trainer.default_root_dir']}")
    return lines


def _whole(value: Any) -> int | None:
    try:
        return int(str(value))
    except ValueError:
        return None
