"""The stages that every training goes through: plan and case store; fit; segment the test scans; score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flarecps.experiments.stages import Stage, command_stage

RESUME = ("--ckpt_path", "last")


def last_checkpoint(run: Path) -> Path:
    """Where a training in ``run`` keeps its newest checkpoint."""
    return run / "checkpoints" / "last.ckpt"


def store_stages(
    dataset: Path,
    plan: Path,
    store: Path,
    plan_words: Sequence[object] = (),
    more: Sequence[object] = (),
    preprocess_more: Sequence[object] | None = None,
    after: Sequence[str] = (),
    suffix: str = "",
) -> list[Stage]:
    """Stages ``planSUFFIX`` and ``preprocessSUFFIX``.

    ``plan_words`` come before ``--out``, ``more`` at the end of both commands, or ``preprocess_more`` at the second's.
    """
    planning = ("plan", dataset, *plan_words, "--out", plan, *more)
    writing = ("preprocess", dataset, plan, "--out", store, *(more if preprocess_more is None else preprocess_more))
    return [
        command_stage(f"plan{suffix}", planning, plan, *after),
        command_stage(f"preprocess{suffix}", writing, store, f"plan{suffix}"),
    ]


def fit_stage(name: str, words: Sequence[object], config: Path, run: Path, after: str, gpus: int = 1) -> Stage:
    """A training by ``words`` (fit or a command around it) in ``run``; its checkpoints are never removed.

    An interrupted one goes on from its last checkpoint. The stage depends on the content of ``config``, too.
    """
    last = last_checkpoint(run)
    return command_stage(
        name,
        words,
        last,
        after,
        depends_on=config.read_text(encoding="utf-8"),
        resume=(last, RESUME),
        protected=True,
        is_finished=partial(training_is_finished, run),
        gpus=gpus,
    )


def training_is_finished(run: Path) -> bool:
    """Whether a training in ``run`` came to its end, by its own record and not only to a stop before a requeue."""
    from omegaconf import OmegaConf

    try:
        record = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        wanted = OmegaConf.load(run / "config.yaml").trainer.max_epochs
        return bool(record["finished"]) and record["completed_epochs"] >= wanted
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def training_stages(
    name: str,
    words: Sequence[object],
    config: Path,
    run: Path,
    dataset: Path,
    after: str,
    segment_words: Sequence[str] = (),
) -> list[Stage]:
    """Stages ``train_NAME``, ``segment_NAME``, ``score_NAME``: a training judged on the test scans of ``dataset``.

    Label maps (``run/labels``) are those of the last checkpoint, scores (``run/scores``) by the strict protocol.
    """
    return [
        fit_stage(f"train_{name}", words, config, run, after),
        *judging_stages(name, [last_checkpoint(run)], dataset, run / "labels", run / "scores", f"train_{name}",
                        segment_words),
    ]  # fmt: skip


def judging_stages(
    name: str,
    checkpoints: Sequence[Path],
    dataset: Path,
    labels: Path,
    scores: Path,
    after: str = "",
    segment_words: Sequence[str] = (),
    score_words: Sequence[str] = (),
) -> list[Stage]:
    """Stages ``segment_NAME`` and ``score_NAME``: a model, or several averaged, on the test scans of ``dataset``.

    Label maps go to ``labels``, their scores by the strict protocol to ``scores``.
    """
    segment = ("segment", *checkpoints, dataset / "imagesTs", labels, *segment_words)
    score = ("score", labels, dataset / "labelsTs", "--protocol", "strict", "--out", scores, *score_words)
    return [
        command_stage(f"segment_{name}", segment, labels, *([after] if after else [])),
        command_stage(f"score_{name}", score, scores / "scores.csv", f"segment_{name}"),
    ]
