"""DSC per organ over whole scans, in numbers worked out by hand."""

from __future__ import annotations

import torch

from flarecps.training.validation import OrganScores, organ_dsc

LABELS = {"background": 0, "liver": 1, "spleen": 2}


def scan(*values: int) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 1, -1)


def test_an_organ_nobody_drew_in_a_case_says_nothing_about_it():
    scores = OrganScores(LABELS, siblings=1)
    found = {"sibling_1": scan(1, 1, 2, 2), "average": scan(1, 1, 0, 0)}
    scores.update(organ_dsc(found, scan(1, 0, 0, 0), scores.organs, torch.tensor([True, True, False])))
    scores.update(organ_dsc(found, scan(1, 1, 2, 0), scores.organs))
    result = scores.compute()
    assert result["sibling_1", "liver"] == (2 / 3 + 1) / 2
    assert result["sibling_1", "spleen"] == 2 / 3  # of the second case alone
    assert result["average", "spleen"] == 0
