"""Label maps of several methods, scored against one set of references: what every figure of results is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flarecps.anatomy import Organ, organs_of
from flarecps.errors import ConfigError, DatasetError, first_few
from flarecps.evaluation.flare22 import Protocol
from flarecps.evaluation.label_sets import label_set
from flarecps.evaluation.score_table import ScoredCases, write_scores
from flarecps.evaluation.scores import score_folders
from flarecps.named_paths import method_names, name_and_rest
from flarecps.reporting.run_folder import scans_by_name

KEPT = "cases"  # folder of a method's scores for those of single cases, as 'flarecps score' has it


@dataclass(frozen=True)
class Results:
    """Methods with their score tables, and the files of every case. ``images`` may be empty."""

    organs: tuple[Organ, ...]
    tables: Mapping[str, ScoredCases]  # by method, in the order given
    predictions: Mapping[str, Mapping[str, Path]]  # method → case → label map
    references: Mapping[str, Path]
    images: Mapping[str, Path]

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods."""
        return tuple(self.tables)

    @property
    def cases(self) -> tuple[str, ...]:
        """The cases that any method has scores of, sorted."""
        return tuple(sorted({case for table in self.tables.values() for case in table.cases}))

    def mean_dsc(self, method: str, case: str) -> float:
        """The mean DSC over the organs of one case; NaN where there is none."""
        return self.tables[method].scores.of(case)

    @property
    def failed(self) -> dict[str, str]:
        """``METHOD, CASE`` → why it could not be scored."""
        return {f"{m}, {case}": error for m, table in self.tables.items() for case, error in table.failed.items()}

    @property
    def notes(self) -> list[str]:
        """Which predictions are missing, in sentences."""
        missing = {method: table.missing for method, table in self.tables.items() if table.missing}
        return [f"{method}: no prediction of {first_few(names)}" for method, names in missing.items()]


def gather_results(
    predictions: Mapping[str, Path],
    references: Path,
    images: Path | None = None,
    labels: Path | None = None,
    protocol: Protocol = "official",
    workers: int = 1,
    progress: bool = True,
    keep: Path | None = None,
) -> Results:
    """The scored results of one or more methods; a case that can't be scored becomes a note and the others go on.

    ``predictions`` are folders of label maps by method, ``references`` of those they are scored against, file by file
    of one name, and ``images`` of the scans, for pictures. ``labels`` (a dataset.json) names the structures, by default
    that beside the references, else FLARE22's; ``protocol`` as in `score_folders`. Scores are kept in the folder
    ``keep``, as METHOD/scores.csv and so on: what an earlier call made from the same files is not scored again.

    Raises ConfigError without a method, DatasetError for missing folders and where no case of a method was scored.
    """
    if not predictions:
        raise ConfigError("no method: name at least one folder of predicted label maps")
    if images is not None and not images.is_dir():
        raise DatasetError(f"{images}: no such folder; expected the scans that were segmented")
    structures, _ = label_set(labels, next(iter(predictions.values())), references)
    tables = {}
    for method, folder in predictions.items():
        own = None if keep is None else keep / _folder_name(method)
        kept = None if own is None else own / KEPT
        table = score_folders(folder, references, structures, protocol, workers, progress, keep=kept)
        if not table.cases:
            first = next(iter(table.failed.values()))
            raise DatasetError(f"{method}: none of {len(table.failed)} cases could be scored; the first: {first}")
        if own is not None:
            write_scores(table, own)
        tables[method] = table
    maps = {method: scans_by_name(folder) for method, folder in predictions.items()}
    return Results(organs_of(structures), tables, maps, scans_by_name(references), scans_by_name(images))


def named_folders(words: Sequence[str], names: Sequence[str] | None = None) -> dict[str, Path]:
    """Method → folder, of words such as ``runs/cps/segmentations`` or ``CPS=runs/cps/segmentations``.

    Without a name a method is called by the shortest ends of the paths that differ, usual folder names left out.
    Raises ConfigError for a name that is used twice or a wrong number of ``names``, DatasetError for a missing folder.
    """
    parsed = [name_and_rest(word) for word in words]
    given = [Path(rest) for _, rest in parsed]
    for folder in given:
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; expected a method's label maps, as FOLDER or NAME=FOLDER")
    called = method_names([name for name, _ in parsed], [_telling_parts(folder) for folder in given], names)
    folders = [_folder_name(name) for name in called]
    twice = next((name for name, own in zip(called, folders, strict=True) if folders.count(own) > 1), None)
    if twice is not None:
        raise ConfigError(f"the method name {twice!r} is used twice; give every folder its own: NAME=FOLDER")
    return dict(zip(called, given, strict=True))


def _telling_parts(folder: Path) -> tuple[str, ...]:
    """The parts of a path without the name that all folders of predictions have."""
    parts = folder.resolve().parts
    return parts[:-1] if len(parts) > 2 and parts[-1] in ("segmentations", "predictions") else parts


def _folder_name(method: str) -> str:
    """A method's name as the name of a folder: letters, digits, dots and dashes; the rest becomes ``_``.

    >>> _folder_name("CPS, 2 networks")
    'CPS__2_networks'
    """
    return "".join(sign if sign.isalnum() or sign in "-." else "_" for sign in method).lstrip(".") or "_"
