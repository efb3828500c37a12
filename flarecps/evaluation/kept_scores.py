"""One case's scores in a file of their own, with what they were made from: so that a stopped run can continue.

A file appears whole or not at all. It is used again only when the label maps have the same contents, and protocol,
organs and tolerances are the same; copying or touching the label maps changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flarecps.anatomy import Organ
from flarecps.atomic import write_json
from flarecps.evaluation.flare22 import OrganScore, Protocol
from flarecps.evaluation.score_table import CaseScore

FORMAT = "flarecps-case-scores"
RULES_VERSION = 1  # to be raised whenever the same label maps would get another score
TWO_FILES = (".nhdr", ".mhd")  # headers whose voxels lie in a second file


def made_from(prediction: Path | None, reference: Path, organs: Sequence[Organ], protocol: Protocol) -> dict[str, Any]:
    """All that a case's scores depend on, as plain types."""
    return {
        "rules_version": RULES_VERSION,
        "protocol": protocol,
        "organs": [[organ.id, organ.name, organ.tolerance_mm] for organ in organs],
        "prediction": None if prediction is None else _contents(prediction),
        "reference": _contents(reference),
    }


def write_kept(path: Path, made: dict[str, Any], score: CaseScore) -> None:
    """Keep the scores of a case, atomically; the folder must exist."""
    write_json(path, {"format": FORMAT, "made_from": made, "scores": asdict(score)})


def read_kept(path: Path, made: dict[str, Any]) -> CaseScore | None:
    """The scores in the file; None when it is not one, or they were made from something else."""
    if any(file is not None and file["name"].lower().endswith(TWO_FILES) for file in _files(made)):
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if (content["format"], content["made_from"]) != (FORMAT, made):
            return None
        kept = content["scores"]
        organs = {name: OrganScore(**score) for name, score in kept["organs"].items()}
        return CaseScore(kept["file_name"], organs, kept["missing"], tuple(kept["warnings"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged: the case is scored again
        return None


def _files(made: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    return made["prediction"], made["reference"]


def _contents(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return {"name": path.name, "sha256": digest.hexdigest()}
