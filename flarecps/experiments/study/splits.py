"""Which scans a study's trainings learn from, and which judge them: links to the data set, and its own splits.json."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flarecps.atomic import write_json
from flarecps.datasets.catalogue import Catalogue, read_catalogue
from flarecps.datasets.layouts import Case, link_cases, link_subset
from flarecps.datasets.splits import DEFAULT_SPLIT, Split, split_to_json
from flarecps.datasets.splits import fold as fold_names
from flarecps.errors import DatasetError, counted, did_you_mean, first_few
from flarecps.experiments.study.protocol import ALL, Judged

_SEED = 12345  # of the folds; must not be tuned: studies stay comparable
OFFERED = (2, 3, 5)  # folds
LEAST_TRAINED = 2  # labelled scans of a fold
DATA, HELD_OUT = "data", "held_out"  # folders of a study


@dataclass(frozen=True)
class StudySplits:
    """``splits`` by `split_name`; ``held_out``: the cases that judge trainings of such a split, and, by
    `validation_name`, those that they keep for validation; perhaps others, to be segmented by its models.

    ``lacking``: why nothing is judged, where no scan can judge.
    """

    catalogue: Catalogue
    splits: Mapping[str, Split]
    held_out: Mapping[str, tuple[Case, ...]]
    lacking: str = ""

    @property
    def listing(self) -> str:
        """What trainings and verdict depend on: every split with its judges."""
        names = {name: [case.name for case in cases] for name, cases in self.held_out.items()}
        found = [(name, split_to_json(split), names.pop(name, [])) for name, split in self.splits.items()]
        return repr([*found, *names.items()])


def split_name(judged: Judged, labels: str, fold: int | None) -> str:
    """The name of the split of one fold; without a fold, of the training on all labelled scans at the end."""
    return labels if judged.by != "folds" or fold is None else f"{labels}.fold_{fold}_of_{judged.folds}"


def validation_name(name: str) -> str:
    """Of the scans that trainings of a split keep for validation."""
    return f"{name}.validation"


def study_splits(
    dataset: Path, judged: Judged, without: Sequence[str] = (), held_out_fold: int | None = None
) -> StudySplits:
    """The splits by which a study of the data set is made, ``without`` some of its scans; ``held_out_fold``: which
    fifth, if any, trainings keep for validation.

    DatasetError where its scans do not suffice, or one that is to be left out is not there.
    """
    if judged.by == "folds":
        return _of_folds(left_out(read_catalogue(dataset), without), judged)
    splits, held_out, known = {}, {}, dict[str, Case]()
    for name in judged.splits:
        catalogue = read_catalogue(dataset, None if name == DEFAULT_SPLIT else name)  # perhaps the folders' roles
        catalogue = left_out(catalogue, without)
        roles, judges = catalogue.split, catalogue.test
        if judged.by == "withheld":
            judges = tuple(sorted(catalogue.unlabelled, key=lambda case: case.name)[-judged.scans :])
            withheld = {case.name for case in judges}
            unlabelled = tuple(one for one in sorted(roles.unlabelled) if one not in withheld)
            annotated = {case: ids for case, ids in roles.annotated.items() if case not in withheld}
            roles = Split(roles.labelled, unlabelled, annotated=annotated)  # fmt: skip
        if lacking := [case.name for case in judges if case.labels is None]:
            raise DatasetError(f"{dataset}: {counted(len(lacking), 'scan')} that should judge split {name!r} have no "
                               f"labels ({first_few(lacking)}); judge by folds instead")  # fmt: skip
        if not judges:
            raise DatasetError(
                f"{dataset}: split {name!r} has no {judged.by} scans to judge by; judge by folds instead"
            )
        splits[name] = Split(roles.labelled, roles.unlabelled, annotated=roles.annotated)
        held_out[name] = judges
        if held_out_fold is not None:
            held_out[validation_name(name)] = validation_cases(
                [case for case in catalogue.labelled if case.name in roles.labelled], held_out_fold
            )
        known |= {case.name: case for case in catalogue.cases if case.role != "test"}
    cases = tuple(known.values())
    return StudySplits(replace(catalogue, cases=cases), splits, held_out)


def validation_cases(labelled: Sequence[Case], held_out_fold: int) -> tuple[Case, ...]:
    """Those of the labelled cases that a training with ``data.fold`` keeps for validation."""
    names = set(fold_names([case.name for case in labelled], held_out_fold)[1])
    return tuple(case for case in labelled if case.name in names)


def left_out(catalogue: Catalogue, without: Sequence[str]) -> Catalogue:
    """The data set without these scans; DatasetError for one that is not there."""
    names = [case.name for case in catalogue.cases]
    if unknown := next((name for name in without if name not in names), None):
        raise DatasetError(f"{catalogue.root}: no scan {unknown!r} to leave out{did_you_mean(unknown, names)}")
    return replace(catalogue, cases=tuple(case for case in catalogue.cases if case.name not in without))


def _of_folds(catalogue: Catalogue, judged: Judged) -> StudySplits:
    labelled, roles = {case.name: case for case in catalogue.labelled}, catalogue.split
    order = np.random.RandomState(_SEED).permutation(sorted(labelled))  # a stream that numpy has frozen
    if not suffice(len(order), judged.folds):
        raise DatasetError(
            f"{catalogue.root}: {counted(len(order), 'labelled scan')} can't be cross-validated in {judged.folds} "
            f"folds; expected at least {max(judged.folds, LEAST_TRAINED + 1)}: label more, or take "
            "fewer folds (--folds 2)"
        )
    splits, held_out = {}, {}
    for folds in sorted({*OFFERED, judged.folds}):  # all that a budget may choose: one store serves them
        for labels in judged.labels if suffice(len(order), folds) else ():
            for fold in range(folds):
                judges = set(order[fold::folds])
                trained = [str(name) for name in order if name not in judges]
                if labels != ALL:
                    trained = trained[: max(1, round(float(labels) * len(trained)))]
                name = split_name(replace(judged, folds=folds), labels, fold)
                splits[name] = _split(trained, roles)
                held_out[name] = tuple(labelled[one] for one in sorted(judges))
    splits[ALL] = _split(list(labelled), roles)
    return StudySplits(replace(catalogue, cases=(*catalogue.labelled, *catalogue.unlabelled)), splits, held_out)


def suffice(scans: int, folds: int) -> bool:
    """Whether so many labelled scans can be cross-validated in so many folds."""
    return scans >= folds and scans - -(-scans // folds) >= LEAST_TRAINED


def _split(trained: list[str], roles: Split) -> Split:
    kept = {*trained, *roles.unlabelled}
    return Split(tuple(sorted(trained)), roles.unlabelled,
                 annotated={name: ids for name, ids in roles.annotated.items() if name in kept})  # fmt: skip


def link_study(found: StudySplits, out: Path) -> None:
    """``OUT/data``, a data set of links with the study's splits.json, and ``OUT/held_out/SPLIT/images`` and ``labels``.

    Test scans are in no data set that is trained on.
    """
    catalogue, data = found.catalogue, out / DATA
    for folder in (data, out / HELD_OUT):  # of links alone; what is no scan of the study any more goes
        shutil.rmtree(folder, ignore_errors=True)
    learnt = {name for split in found.splits.values() for name in split.labelled}
    for name, judges in found.held_out.items():
        link_cases(judges, out / HELD_OUT / name / "images", out / HELD_OUT / name / "labels")
    data.mkdir(parents=True, exist_ok=True)
    write_json(data / "splits.json", {name: split_to_json(split) for name, split in found.splits.items()})
    description = {
        "name": catalogue.name,
        "labels": catalogue.labels,
        "channel_names": {str(number): name for number, name in enumerate(catalogue.channels)},
        "left_right_pairs": [list(pair) for pair in catalogue.left_right_pairs],
    }
    link_subset(data, [case for case in catalogue.cases if case.name in learnt],
                [case for case in catalogue.cases if case.name not in learnt], description)  # fmt: skip
