"""The stages that every training goes through: fit, segment the test scans, score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from flarecps.experiments.stages import Stage

RESUME = ("--ckpt_path", "last")


def last_checkpoint(run: Path) -> Path:
    """Where a training in ``run`` keeps its newest checkpoint."""
    return run / "checkpoints" / "last.ckpt"


def fit_stage(name: str, words: Sequence[object], config: Path, run: Path, after: str, gpus: int = 1) -> Stage:
    """A training by ``words`` (fit or a command around it) in ``run``; its checkpoints are never removed.

    An interrupted one goes on from its last checkpoint. The stage depends on the content of ``config``, too.
    """
    last = last_checkpoint(run)
    return Stage(
        name,
        tuple(map(str, words)),
        (last,),
        (after,),
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
    labels, scores = run / "labels", run / "scores"
    segment = ("segment", str(last_checkpoint(run)), str(dataset / "imagesTs"), str(labels), *segment_words)
    score = ("score", str(labels), str(dataset / "labelsTs"), "--protocol", "strict", "--out", str(scores))
    return [
        fit_stage(f"train_{name}", words, config, run, after),
        Stage(f"segment_{name}", segment, (labels,), (f"train_{name}",)),
        Stage(f"score_{name}", score, (scores / "scores.csv",), (f"segment_{name}",)),
    ]
