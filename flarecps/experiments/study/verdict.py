"""What a study found, in words: which method to use, what unlabelled scans brought, what more labels would bring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from flarecps.errors import counted
from flarecps.evaluation.nested import Judgement, NestedMean, judge, nested_mean
from flarecps.experiments.study.cost import Costs
from flarecps.experiments.study.protocol import ALL, Arm
from flarecps.experiments.study.results import Column, StudyScores

EQUAL = 0.1  # share by which compute may differ and still be called equal
UNEQUAL = 0.2  # share by which measured time may differ from the declared cost
MORE_LABELS = 10
ANOTHER_PLAN = "trained by another plan"
KNOWN = {"better": "better than", "worse": "worse than", "not told apart": "not told apart from",
         "not known": "of unknown standing to"}  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """One column beside the baseline; ``cost`` in the baseline's, None where they can't be compared; ``seconds`` of
    computing a training measured.

    ``judged`` is None for the baseline; ``with_holm``: one of the methods that the verdict chooses from.
    """

    column: Column
    title: str
    mean: float
    seeds_sd: float | None
    cost: float | None
    seconds: float | None
    judged: Judgement | None
    reads_unlabelled: bool
    with_holm: bool


@dataclass(frozen=True)
class LearningCurve:
    """DSC (or NSD) by the number of labelled scans, and what ``MORE_LABELS`` more would bring by its slope."""

    points: tuple[tuple[float, float], ...]
    gain: NestedMean | None
    more: int = MORE_LABELS


@dataclass(frozen=True)
class Verdict:
    """All findings; ``recommended`` is the column to use, ``sentences`` say it to people."""

    measure: str
    recommended: Column
    standings: tuple[Standing, ...]
    sentences: tuple[str, ...]
    remarks: tuple[str, ...]
    curve: LearningCurve | None = None
    other_labels: Mapping[str, tuple[Standing, ...]] = field(default_factory=dict)

    @property
    def content(self) -> dict[str, Any]:
        """As plain types."""
        found = asdict(self)
        for one, plain in zip(self.standings, found["standings"], strict=True):
            plain["verdict"] = one.judged.verdict if one.judged else "baseline"
        return found


def verdict_of(
    scores: StudyScores, costs: Costs, seconds: Mapping[str, float], labelled: Mapping[str, float]
) -> Verdict:
    """The verdict. ``seconds``: measured computing time of an arm in all, teachers counted, by name; ``labelled``: how
    many labelled scans a training has, by the name of the labels."""
    protocol, measure = scores.protocol, scores.protocol.primary.measure
    first = protocol.labels_of(protocol.arm(protocol.primary.baseline))[0]
    standings = _standings(scores, costs, seconds, first)
    beside = protocol.labels_of(protocol.arm(protocol.primary.baseline))[1:] if protocol.judged.by != "folds" else ()
    others = {labels: _standings(scores, costs, seconds, labels) for labels in beside}
    better = [one for one in standings if one.with_holm and one.judged and one.judged.verdict == "better"]
    baseline = standings[0]
    chosen = max(better, key=lambda one: one.mean) if better else baseline
    curve = _curve(scores, labelled) if protocol.judged.learning_curve else None
    sentences = [_which(chosen, baseline, standings, measure.upper())]
    for one in standings:
        given = [protocol.arm(each.column.arm).predictions for each in (one, baseline)]
        if one.with_holm and (one.reads_unlabelled or any(given)):
            whose = "another program's" if given[0] else "held against another program's" if given[1] else ANOTHER_PLAN
            sentences.append(_brought(one, baseline, measure.upper(), whose))
    if curve is not None:
        sentences.append(_curve_words(curve, measure.upper()))
    return Verdict(
        measure, chosen.column, standings, tuple(sentences), tuple(_remarks(scores, standings)), curve, others
    )


def _standings(scores: StudyScores, costs: Costs, seconds: Mapping[str, float], labels: str) -> tuple[Standing, ...]:
    """The baseline first, then all with as many labels; Holm over the methods, not over plain controls."""
    protocol, measure = scores.protocol, scores.protocol.primary.measure
    base = scores.figure(protocol.primary.baseline, labels)
    columns = [one for one in scores.tables if one.labels == labels and one.way == base.way and one != base]
    figures = [one for one in columns if one.sibling == protocol.arm(one.arm).siblings[0]
               and _is_method(protocol.arm(one.arm), costs)]  # fmt: skip
    differences = {one: scores.differences(one, base, measure) for one in columns}
    judged = dict(zip(figures, judge([differences[one] for one in figures]), strict=True))
    judged |= {one: judge([differences[one]])[0] for one in columns if one not in judged}
    return tuple(
        Standing(one, protocol.arm(one.arm).title_of(one.sibling), float(np.nanmean(scores.seed_means(one, measure))),
                 _sd(scores.seed_means(one, measure)), costs.ratio(one.arm, base.arm),
                 seconds.get(one.arm), judged.get(one), costs.reads_unlabelled(one.arm), one in figures)
        for one in (base, *columns)
    )  # fmt: skip


def _is_method(arm: Arm, costs: Costs) -> bool:
    """Whether it is more than a plain control of some length."""
    return bool(arm.average_of or arm.predictions) or costs.reads_unlabelled(arm.name)


def _sd(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if values.size > 1 else None


def _which(chosen: Standing, baseline: Standing, standings: tuple[Standing, ...], measure: str) -> str:
    if chosen is not baseline and chosen.judged:
        unequal = chosen.cost is not None and abs(chosen.cost - 1) >= EQUAL
        more = f", at {chosen.cost:.1f} times its compute" if unequal else ""
        return (f"Use “{chosen.title}”: its {measure} of {chosen.mean:.3f} is better than that of “{baseline.title}” "
                f"({baseline.mean:.3f}) by {_difference(chosen.judged)}{more}.")  # fmt: skip
    if any(one.judged and one.judged.verdict == "not known" for one in standings if one.with_holm):
        return (f"Use “{baseline.title}” ({measure} {baseline.mean:.3f}) until more is known: one training of each "
                "method says nothing of other trainings; take two seeds or more, or folds.")  # fmt: skip
    reach = max((one.judged.difference.reach for one in standings if one.with_holm and one.judged), default=0.0)
    blind = f"; differences of less than about {reach:.3f} could not have been seen" if reach else ""
    return (
        f"Use “{baseline.title}” ({measure} {baseline.mean:.3f}): on these scans no method was clearly better{blind}."
    )


def _brought(one: Standing, baseline: Standing, measure: str, whose: str) -> str:
    if one.judged is None:
        return f"“{one.title}” has no scan in common with “{baseline.title}”."
    if one.cost is None:
        return (f"“{one.title}”, {whose}: {_difference(one.judged)} {measure}; "
                f"{KNOWN[one.judged.verdict]} “{baseline.title}”.")  # fmt: skip
    effort = "at equal compute" if abs(one.cost - 1) < EQUAL else f"at {one.cost:.1f} times the compute"
    verdict = {"better": "they helped", "worse": "they did harm", "not known": "whether they help is not known",
               "not told apart": "neither help nor harm can be told"}[one.judged.verdict]  # fmt: skip
    interval, p = one.judged.difference.interval, one.judged.p_holm
    if one.judged.verdict == "not told apart" and interval and not interval.low <= 0 <= interval.high:
        verdict += f": of several methods, one may look so by chance (p {p:.2g} by Holm)"
    return (f"What the unlabelled scans brought with “{one.title}”, {effort}: {_difference(one.judged)} {measure}; "
            f"{verdict}.")  # fmt: skip


def _difference(judged: Judgement) -> str:
    """A mean with its interval: "+0.0123 (95 % interval +0.0010 to +0.0236)"."""
    found = judged.difference
    if found.interval is None:
        return f"{found.mean:+.4f} (no interval: one training each)"
    return f"{found.mean:+.4f} (95 % interval {found.interval.low:+.4f} to {found.interval.high:+.4f})"


def _curve(scores: StudyScores, labelled: Mapping[str, float]) -> LearningCurve:
    """The baseline's scores over the number of labels, and the slope per doubling, scan by scan and seed by seed."""
    baseline, measure = scores.protocol.primary.baseline, scores.protocol.primary.measure
    labels = sorted(scores.protocol.judged.labels, key=lambda one: labelled[one])
    values = [scores.values(scores.figure(baseline, one), measure) for one in labels]
    doublings = np.log2([labelled[one] for one in labels])
    centred = doublings - doublings.mean()
    points = tuple(
        (labelled[one], float(np.nanmean(np.concatenate(found)))) for one, found in zip(labels, values, strict=True)
    )
    if not centred.any():  # so few scans that a share of them is all
        return LearningCurve(points, None)
    most = labelled[ALL]
    ahead = math.log2((most + MORE_LABELS) / most)
    gains = [
        ahead * sum(weight * found[fold] for weight, found in zip(centred, values, strict=True)) / (centred**2).sum()
        for fold in range(scores.protocol.folds)
    ]
    return LearningCurve(points, nested_mean(gains))


def _curve_words(curve: LearningCurve, measure: str) -> str:
    seen = ", ".join(f"{mean:.3f} with {number:g}" for number, mean in curve.points)
    if curve.gain is None:
        return f"More labels: {measure} was {seen}."
    return (f"What {curve.more} more labelled scans would bring, if the curve goes on as it came ({measure} {seen} "
            f"labelled scans): {_difference(Judgement(curve.gain, curve.gain.p))} {measure}.")  # fmt: skip


def _remarks(scores: StudyScores, standings: tuple[Standing, ...]) -> list[str]:
    protocol = scores.protocol
    found = [f"Left out of everything: {', '.join(protocol.without)}."] if protocol.without else []
    judged = next((one.judged.difference for one in standings if one.judged), None)
    if judged:
        how = f"in {counted(judged.folds, 'fold')}, " if judged.folds > 1 else ""
        found.append(
            f"Judged on {counted(judged.scans, 'scan')}, {how}by {counted(judged.seeds, 'seed')} each; intervals count "
            "with other scans and other trainings, learning from these labelled scans."
        )
    if protocol.pairs == "neighbours" and any(arm.average_of or arm.teachers for arm in protocol.arms):
        found.append(
            "Averaged pairs, and teachers, of neighbouring seeds share trainings: their intervals are too narrow."
        )
    base = standings[0]
    for one in standings[1:]:
        first = one.column.sibling == protocol.arm(one.column.arm).siblings[0]
        if (
            first
            and base.seconds
            and one.seconds
            and one.cost
            and abs(one.seconds / base.seconds / one.cost - 1) > UNEQUAL
        ):
            found.append(f"“{one.title}” took {one.seconds / base.seconds:.2f} times the computing time of "
                         f"“{base.title}”, start-up included; its method declares {one.cost:.2f} times.")  # fmt: skip
    return found
