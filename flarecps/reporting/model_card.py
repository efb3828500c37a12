"""A model card: what is known of trained networks, in Markdown, and "not stated" for what is not.

Nothing is guessed, and no folder of the machine that trained them is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from flarecps import __version__
from flarecps.anatomy import organs_of
from flarecps.checkpoint import TrainedModel
from flarecps.durations import duration_in_words
from flarecps.errors import ConfigError, counted, first_few, visible
from flarecps.evaluation.score_table import Scores
from flarecps.json_fields import is_number, is_whole
from flarecps.method_config import method_name, method_of
from flarecps.networks import network_name
from flarecps.planning.plan import Plan
from flarecps.reporting.run_description import describe_plan, sessions_of
from flarecps.reporting.run_folder import Run
from flarecps.reporting.tables import SCORES_HEADER, markdown_table, plain_markdown, score_rows

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Statements:
    """What no file knows, in people's own words; None: nobody said."""

    data_source: str | None = None
    intended_use: str | None = None
    licence: str | None = None


def model_card(
    models: Mapping[str, TrainedModel],
    runs: Mapping[str, Run | None],
    command: str,
    statements: Statements,
    scores: Scores | None = None,
    postprocessing: str | None = None,
) -> str:
    """The card of networks of one plan that lie in one folder, by the names of their files.

    ``runs`` trained them, None where it is not known; ``command`` is what one types in their folder; ``postprocessing``
    says the rules beside them in words. Raises ConfigError for ``scores``, of test cases, of another label set.
    """
    plan = next(iter(models.values())).plan
    organs = organs_of(plan.labels)
    sections = {
        "Use": _use(models, command),
        "Intended use": _said(statements.intended_use),
        "Licence": _said(statements.licence),
        "Labels": markdown_table(["structure", "label"], [[organ.name, str(organ.id)] for organ in organs]),
        "Data": _data(plan, statements),
        "Plan": "\n".join(f"- **{subject}.** {plain_markdown(text)}" for subject, text in describe_plan(plan)),
        "Training": _training({name: training_facts(model, runs[name]) for name, model in models.items()}),
        "Scores": _scores(scores, plan),
        "Post-processing": f"`--postprocess auto` applies postprocessing.json: {plain_markdown(postprocessing)}."
        if postprocessing
        else "None comes with these networks.",
    }
    body = "\n\n".join(f"## {heading}\n\n{text.rstrip()}" for heading, text in sections.items())
    first = f"Segments {', '.join(plan.channels)} scans into {counted(len(organs), 'structure')}."
    return visible(f"# {_line(plan.dataset)}\n\n{_line(first)}\n\n{body}\n")


def training_facts(model: TrainedModel, run: Run | None) -> dict[str, str]:
    """How one file's networks were trained, by subject; "not stated" where neither file nor run says it."""
    config: Mapping[str, Any] = run.config if run else {}
    sessions = sessions_of(run.environment) if run else []
    last: Mapping[str, Any] = sessions[-1].record if sessions else {}
    lengths = [one.seconds for one in sessions if one.seconds is not None]
    ended = sessions[-1].ended if sessions else None
    planned, start, method = _at(config, "trainer", "max_epochs"), config.get("init"), method_of(config)
    gpus, versions = _at(last, "machine", "gpus"), last.get("versions")
    network: Any = model.siblings[0].network
    facts: dict[str, Any] = {
        "network": f"{network_name(network)}, {sum(weight.numel() for weight in network.parameters()):,} weights",
        "method": f"{method_name(config)}: {_called(method)}" if method else None,
        "cross-validation fold": _at(config, "data", "fold"),
        "epochs": f"{model.epoch} of {planned}" if is_whole(planned, 1) else str(model.epoch),
        "steps per epoch": _at(config, "data", "iterations_per_epoch"),
        "optimiser": _called(_at(config, "model", "optimizer")),
        "learning rate's schedule": _called(_at(config, "model", "scheduler")),
        "mirrored axes": _at(config, "data", "mirror_axes"),
        "began from": f"weights of {PurePath(str(start)).name}" if start else "random weights" if config else None,
        "seed": config.get("seed_everything"),
        "precision": last.get("precision"),
        "processes": last.get("world_size"),
        "graphics cards": (", ".join(map(str, gpus)) or "none") if isinstance(gpus, list) else None,
        "time": duration_in_words(sum(lengths)) if lengths else None,
        "ended": ended.date().isoformat() if ended else None,
        "versions": ", ".join(f"{name} {one}" for name, one in versions.items())
        if isinstance(versions, Mapping)
        else None,
        "commit of the program": sessions[-1].commit if sessions and last.get("git") else None,
    }
    return {subject: NOT_STATED if fact in (None, "") else str(fact) for subject, fact in facts.items()}


def _training(facts: Mapping[str, Mapping[str, str]]) -> str:
    """What all files have in common as a list, and what differs as a table."""
    (first, *others) = facts.values()
    shared = [subject for subject, fact in first.items() if all(other[subject] == fact for other in others)]
    text = "\n".join(f"- **{subject.capitalize()}.** {_line(first[subject])}" for subject in shared)
    differing = [subject for subject in first if subject not in shared]
    if not differing:
        return text
    table = markdown_table(
        ["file", *differing], [[name, *(own[one] for one in differing)] for name, own in facts.items()]
    )
    return f"{text}\n\n{table}"


def _at(content: Any, *way: str) -> Any:
    """What a mapping of mappings holds there; None where it holds nothing."""
    for key in way:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _called(content: Any) -> str | None:
    """A config's class with its numbers, as one would call it; texts are left out, for they may be paths.

    >>> _called({"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "nesterov": True, "foreach": None}})
    'torch.optim.SGD(lr=0.1, nesterov=True)'
    """
    if not isinstance(content, Mapping) or not isinstance(content.get("class_path"), str):
        return None
    return f"{content['class_path']}({', '.join(_named(content.get('init_args')))})"


def _named(arguments: Any) -> list[str]:
    named = []
    for key, value in arguments.items() if isinstance(arguments, Mapping) else ():
        if isinstance(value, bool) or is_number(value):
            named.append(f"{key}={value}")
        elif isinstance(value, Mapping):
            named.append(f"{key}={_called(value) or '{' + ', '.join(_named(value)) + '}'}")
    return named


def _use(models: Mapping[str, TrainedModel], command: str) -> str:
    held = {len(model.siblings) for model in models.values()}
    most, alike = max(held), len(held) == 1
    text = f"With flarecps {__version__} or newer, in this folder:\n\n```sh\n{command}\n```\n\n"
    text += "SCANS is a scan or a folder of scans, LABELS the folder for the results, on each scan's own voxels. "
    if len(models) > 1:
        text += f"The probabilities of the {len(models)} files are averaged. "
    if most > 1:
        many = f"{'' if alike else 'up to '}{most}"
        text += f"A file holds {many} networks: the first is used, with `--sibling average` their average. "
    return text + "`sha256sum -c checksums.sha256` tells whether all files are whole."


def _said(words: str | None) -> str:
    return _line(words) if words else f"{NOT_STATED.capitalize()}."


def _line(words: str) -> str:
    return plain_markdown(" ".join(words.split()))


def _data(plan: Plan, statements: Statements) -> str:
    counts = {role: _at(plan.fingerprint, "cases", role) for role in ("labelled", "unlabelled")}
    known = [f"{count} {role}" for role, count in counts.items() if is_whole(count)]
    planned = f"planned on {' and '.join(known)} scans" if known else f"number of scans {NOT_STATED}"
    lines = [f"- **Name.** {_line(plan.dataset)}; {planned}."]
    for key, heading, unit in (("spacing_mm", "Voxels", "mm"), ("shape_voxels", "Sizes", "voxels")):
        found = [_at(plan.fingerprint, key, which) for which in ("minimum", "median", "maximum")]
        if all(isinstance(one, list) and all(map(is_number, one)) for one in found):
            least, median, most = ("×".join(f"{number:.4g}" for number in one) for one in found)
            lines.append(f"- **{heading}** (slice×row×column): {least} to {most} {unit}, median {median}.")
    return "\n".join([*lines, f"- **Where they come from, and whom they show.** {_said(statements.data_source)}"])


def _scores(scores: Scores | None, plan: Plan) -> str:
    """A table as ``score`` writes it; ConfigError where it is of structures that the networks don't know."""
    if scores is None:
        return f"{NOT_STATED.capitalize()}."
    if strange := sorted(set(scores.organs) - {organ.column for organ in organs_of(plan.labels)}):
        raise ConfigError(
            f"{scores.origin}: scores of {first_few(strange)}, which these networks don't segment; give the scores "
            "of their own segmentations"
        )
    protocol = f"protocol `{scores.protocol}`" if scores.protocol else f"protocol {NOT_STATED}"
    return (
        f"Mean ± SD over {counted(len(scores.cases), 'case')} ({protocol}), as the table that was given says; which "
        f"cases, and how they were segmented, is {NOT_STATED}.\n\n{markdown_table(SCORES_HEADER, score_rows(scores))}"
    )
