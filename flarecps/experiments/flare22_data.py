"""FLARE22's scans in the paper's roles: 50 labelled, the first 1000 unlabelled, validation with some labels, test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flarecps.anatomy import FLARE22_LABELS
from flarecps.datasets.catalogue import Case, Catalogue
from flarecps.errors import ConfigError, DatasetError
from flarecps.text_files import read_text

LABELLED, UNLABELLED, UNLABELLED_USED, VALIDATION, RELEASED = 50, 2000, 1000, 50, 20


@dataclass(frozen=True)
class Flare22Data:
    """The cases of FLARE22 in the paper's roles."""

    root: Path
    labelled: tuple[Case, ...]
    unlabelled: tuple[Case, ...]  # those used: the first 1000 by name
    unlabelled_found: int
    validation: tuple[Case, ...]
    test: tuple[Case, ...]

    @property
    def with_references(self) -> tuple[Case, ...]:
        """Validation cases with labels."""
        return tuple(case for case in self.validation if case.labels is not None)

    @property
    def without_references(self) -> tuple[Case, ...]:
        """Validation cases without labels, for the challenge's own server."""
        return tuple(case for case in self.validation if case.labels is None)

    def counts(self) -> str:
        """How many scans there are of each role."""
        with_labels = len(self.with_references)
        return (
            f"{len(self.labelled)} labelled, {len(self.unlabelled)} of {self.unlabelled_found} unlabelled, "
            f"{len(self.validation)} validation ({with_labels} with labels), {len(self.test)} test"
        )


def assign_roles(catalogue: Catalogue) -> Flare22Data:
    """The paper's roles: a folder whose name holds "test" has the test set, other kept-apart folders the validation's.

    Raises DatasetError for labels that are not FLARE22's 13 organs.
    """
    if catalogue.labels != FLARE22_LABELS:
        raise DatasetError(
            f"{catalogue.root}: its labels are {', '.join(catalogue.labels)}; expected FLARE22's 13 organs with its ids"
        )
    unlabelled = sorted(catalogue.unlabelled, key=lambda case: case.name)
    tests = [case for case in catalogue.test if "test" in case.images[0].relative_to(catalogue.root).parts[0].lower()]
    validation = [case for case in catalogue.test if case not in tests]
    return Flare22Data(
        catalogue.root,
        tuple(sorted(catalogue.labelled, key=lambda case: case.name)),
        tuple(unlabelled[:UNLABELLED_USED]),
        len(unlabelled),
        tuple(sorted(validation, key=lambda case: case.name)),
        tuple(sorted(tests, key=lambda case: case.name)),
    )


def check_case_counts(data: Flare22Data, other_counts: bool) -> list[str]:
    """Where the numbers of scans differ from the paper's, in sentences.

    Raises DatasetError when the scans of training are not the paper's 50 and 1000, unless ``other_counts``.
    """
    said = []
    if len(data.labelled) != LABELLED:
        said.append(f"{len(data.labelled)} labelled scans, the paper has {LABELLED}")
    if len(data.unlabelled) < UNLABELLED_USED:
        said.append(f"{len(data.unlabelled)} unlabelled scans, the paper uses the first {UNLABELLED_USED}")
    if said and not other_counts:
        raise DatasetError(
            f"{data.root}: {'; '.join(said)}: complete the download, or go on with these by --other-counts"
        )
    if data.unlabelled_found != UNLABELLED and len(data.unlabelled) == UNLABELLED_USED:
        said.append(f"{data.unlabelled_found} unlabelled scans, FLARE22 has {UNLABELLED}; the first 1000 are used")
    if len(data.validation) != VALIDATION:
        said.append(f"{len(data.validation)} validation scans, FLARE22 has {VALIDATION}")
    return said


def released_cases(data: Flare22Data, listed: Path | None) -> tuple[tuple[str, ...], str]:
    """The cases of Tables 4 and 5, and how they were found.

    The paper does not name the 20 whose labels were released: they are those ``listed`` in a file (one name a line),
    else those with labels where these are 20, else all with labels. Raises ConfigError for names that are no case with
    labels.
    """
    judged = tuple(case.name for case in data.with_references)
    if listed is not None:
        names = tuple(read_text(listed, ConfigError, "expected one case name a line").split())
        strange = [name for name in names if name not in judged]
        if strange or not names:
            raise ConfigError(
                f"{listed}: {strange[0] if strange else 'nothing'} is no validation case with labels; expected names "
                f"such as {judged[0] if judged else 'FLARETs_0001'}, one a line"
            )
        return names, f"the {len(names)} cases listed in {listed.name}"
    if len(judged) == RELEASED:
        return judged, "the 20 validation cases with labels"
    return judged, f"all {len(judged)} validation cases with labels: the paper does not name its 20 (--validation-20)"
