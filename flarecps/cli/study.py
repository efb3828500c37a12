"""``flarecps study``: which method to use on one's own data, judged fairly, and the model at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flarecps.cli import PLAIN
from flarecps.errors import ConfigError

if TYPE_CHECKING:
    from flarecps.cli.console import Console
    from flarecps.experiments.stages import Stage
    from flarecps.experiments.study.protocol import Protocol
    from flarecps.experiments.study.study import Study

NOT_ALL = 1  # exit code: a stage waits for another


def study(
    dataset: Path,
    *,
    out: Path,
    protocol: str | None = None,
    arms: list[str] | None = None,
    folds: int | None = None,
    seeds: int | None = None,
    budget: float | None = None,
    learning_curve: bool = False,
    without: list[str] | None = None,
    stages: list[str] | None = None,
    submit: bool = False,
    sbatch: str = "",
    dry_run: bool = False,
    workers: int = 2,
) -> int:
    """Find out, with intervals, whether unlabelled scans help on your data and which method to use; train that model.

    A control and methods are cross-validated on the labelled scans, at equal steps and at equal total compute;
    post-processing is decided on other folds than it is judged on. OUT gets protocol.yaml (written before the first
    training; it is not changed afterwards), results/, verdict.md, report.html and the recommended model, trained on
    all labelled scans. The same command goes on after an interruption, at any stage.

    Args:
        dataset: folder of the data set; nothing is written there.
        out: folder for everything; needs room for a case store, and checkpoints of all trainings.
        protocol: a protocol, as a YAML file or by name ('flarecps configs' lists them); by default one is drafted for
            the data.
        arms: only these arms of it, beside the baseline; what they need is trained, too.
        folds: parts that the labelled scans are judged in; by default the protocol's, or 5, fewer with few scans.
        seeds: trainings of every arm and fold; by default the protocol's, or 2.
        budget: hours that the study may take; folds, seeds and epochs are chosen to fit, and it is said how.
        learning_curve: also train the baseline on half of the labels, and say what ten more would bring.
        without: scans that are left out, by name, such as those that 'flarecps inspect' calls damaged.
        stages: only these stages, by name; * and ? are allowed.
        submit: write the trainings as arrays of SLURM jobs that wait for each other (OUT/slurm), and submit them.
        sbatch: more options for sbatch, as one argument: --sbatch="--time=5-0 --partition=gpu".
        dry_run: print the protocol and the commands, and make nothing.
        workers: processes for inspect, plan and preprocess.
    """
    from flarecps.cli.configs import found_config
    from flarecps.experiments.study.study import Asked, Study

    check_out(out, dataset)
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / "stages").is_dir()):
        raise ConfigError(f"--out {out}: is a file, or a folder that is not empty and no study's; choose another")
    if budget is not None and not 0 < budget < math.inf:
        raise ConfigError(f"--budget {budget:g}: expected hours above 0")
    asked = Asked(protocol_file(protocol), arms, folds, seeds, budget, learning_curve, without)
    found = Study(dataset.resolve(), out.resolve(), asked, lambda name: Path(found_config(name)).absolute(), workers)
    again = ["study", str(dataset.resolve()), "--out", str(out.resolve()), "--workers", str(workers)]
    return carry_out(found, again, stages, dry_run, submit, sbatch)


def check_out(out: Path, dataset: Path) -> None:
    """ConfigError where a study would write in the data's folder."""
    if out.resolve().is_relative_to(dataset.resolve()):
        raise ConfigError(f"--out {out}: lies in the data's folder, where nothing is written; name a folder elsewhere")


def carry_out(
    found: Study, again: list[str], stages: list[str] | None, dry_run: bool, submit: bool, sbatch: str
) -> int:
    """Run these ``stages`` of a study (all without), print them, or submit them; the exit code.

    ``again``: the words of ``flarecps`` that go on with it.
    """
    from flarecps.cli.console import Console
    from flarecps.errors import first_few
    from flarecps.experiments.runner import run_lock, sbatch_words
    from flarecps.experiments.stages import select_stages
    from flarecps.experiments.study.protocol_file import protocol_text

    if sbatch and not submit:
        raise ConfigError(f"--sbatch {sbatch}: says how jobs are submitted, which --submit asks for; add it")
    options, console = sbatch_words(sbatch), Console()
    _check_options(found.made.protocol, found.dataset)
    known = [one.name for one in found.stages()]
    for word in stages or ():
        if not any(fnmatch(name, word) for name in known):
            raise ConfigError(f"--stages {word}: no such stage; stages: {first_few(known)} (all with --dry-run)")
    if dry_run:
        console.print(protocol_text(found.made.protocol), **PLAIN)
        for stage in select_stages(found.stages(), stages):
            console.print(f"# {stage.name}: {stage.lacking or found.records.state(stage)}", style="bold", **PLAIN)
            console.print(stage.command, **PLAIN)
        return 0
    if submit:
        with run_lock(found.records.folder):
            for line in found.submit(again, options):
                console.print(line, **PLAIN)
        return 0
    left = _run(found, stages, console)
    for name, why in left.items():
        Console(stderr=True).print(f"not done: {name}: {why}", style="yellow", **PLAIN)
    for line in found.closing_lines():
        console.print(line, **PLAIN)
    return NOT_ALL if _waits(left) else 0


def _run(found: Study, stages: list[str] | None, console: Console) -> dict[str, str]:
    """Run the stages part by part; stage → why it was not done."""
    from rich.markup import escape

    from flarecps.experiments.runner import STANDS, run_lock, run_stages

    left = dict[str, str]()

    def announce(stage: Stage, text: str, begins: bool) -> None:
        if begins:
            places = list(found.records.stages)
            where = f"{places.index(stage.name) + 1}/{len(places)}" if stage.name in places else ""
            console.rule(f"[bold]{where}  {escape(stage.name)}[/]{found.time_left()}", align="left")
            console.print(text, style="dim", **PLAIN)
        elif text != STANDS:
            console.print(f"{stage.name}: {text}", **PLAIN)

    with run_lock(found.records.folder) as lock:
        for part in found.parts():
            while found.said:
                console.print(f"- {found.said.pop(0)}", style="yellow", **PLAIN)
            todo = [one for one in part if stages is None or any(fnmatch(one.name, word) for word in stages)]
            left |= run_stages(todo, found.records, announce, lock=lock)
            if _waits(left):
                break
    return left


def _waits(left: Mapping[str, str]) -> bool:
    """Whether a stage was left for want of another, and not of scans."""
    from flarecps.experiments.runner import NEEDS

    return any(why.startswith(NEEDS) for why in left.values())


def _check_options(protocol: Protocol, dataset: Path) -> None:
    """Let the commands' own parsers look at the protocol's options: a misspelt one is told before hours of training."""
    from flarecps.cli.arguments import call_with_arguments
    from flarecps.cli.plan import plan
    from flarecps.cli.segment import segment
    from flarecps.experiments.study.stages import option_words

    planned = {"plan": protocol.plan} | {f"plans.{name}": options for name, options in protocol.plans.items()}
    given: list[tuple[str, Callable[..., Any], Mapping[str, Any], list[str]]] = [
        *((name, plan, options, [str(dataset), "--out", "PLAN"]) for name, options in planned.items()),
        ("segment", segment, protocol.segment, [str(dataset)] * 3),
    ]
    for name, command, options, words in given:

        @wraps(command)
        def nothing(*_: Any, **__: Any) -> int:
            return 0

        call_with_arguments(nothing, [*words, *option_words(options)], prog=f"flarecps study: the protocol's '{name}'")


def protocol_file(given: str | None) -> Path | None:
    """The file of a protocol that is named by its path, or by its name among those that come with flarecps."""
    from flarecps.cli.configs import study_protocols
    from flarecps.errors import did_you_mean

    if given is None or Path(given).is_file():
        return None if given is None else Path(given)
    known = study_protocols()
    if (name := given.removesuffix(".yaml")) in known:
        return known[name]
    advice = did_you_mean(name, known) or f"; protocols: {', '.join(sorted(known))}"
    raise ConfigError(f"--protocol {given}: no such file, nor a protocol's name{advice}")
