"""The layout of a dashboard: every metric in one panel, few panels, in reading order, with organs known or not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flarecps import metric_names as names
from flarecps.anatomy import FLARE22_ORGANS
from flarecps.errors import ConfigError
from flarecps.reporting.dashboard_layout import MOST_LINES, Section, layout, logged_names

ORGANS = [organ.name for organ in FLARE22_ORGANS]
READING_ORDER = ["Is it learning?", "How good is it?", "Are the pseudo-labels sound?", "Speed and memory",
                 "Pictures and cases", "Each sibling by organ"]  # fmt: skip


def logged(organs: list[str], siblings: int = 2, cases: tuple[str, ...] = ("case_1", "case_2")) -> set[str]:
    """What a training logs on a GPU, from the table of docs/dashboards.md."""
    found = {"train/loss", "train/lambda", "validation/dsc/mean", "health/vanished_classes",
             "health/lambda_held_epochs", "throughput/patches_per_s", "throughput/data_wait_share",
             "throughput/gpu_memory_gb", "results/validation_cases", *map(names.overlay, cases)}  # fmt: skip
    for n in range(1, siblings + 1):
        found |= {f"train/loss_sup/sibling_{n}", f"train/loss_cps/sibling_{n}", f"learning_rate/sibling_{n}"}
        found |= {f"validation_patches/loss/sibling_{n}", f"validation_patches/dsc/sibling_{n}/mean"}
    for organ in (organ.replace(" ", "_") for organ in organs):
        found |= {f"validation/dsc/average/{organ}", f"health/agreement/{organ}", f"health/entropy/{organ}"}
        for n in range(1, siblings + 1):
            found |= {f"validation/dsc/sibling_{n}/{organ}", f"validation_patches/dsc/sibling_{n}/{organ}"}
            found.add(f"health/volume_ratio/sibling_{n}/{organ}")
    return found


def metrics(sections: list[Section]) -> list[str]:
    return [metric for section in sections for panel in section.panels for metric in panel.metrics]


def test_thirteen_organs_make_few_panels_in_reading_order() -> None:
    everything = logged(ORGANS)
    sections = layout(everything)
    panels = [panel for section in sections for panel in section.panels]
    assert len(everything) > 120
    assert [section.name for section in sections] == READING_ORDER
    assert [section.is_open for section in sections] == [True] * 5 + [False]
    assert len(panels) <= 40
    assert sum(len(section.panels) for section in sections if section.is_open) <= 30
    assert all(1 <= len(panel.metrics) <= MOST_LINES for panel in panels)
    assert sorted(metrics(sections)) == sorted(everything), "each in one panel"
    assert not any(panel.pattern for panel in panels), "all are known by name"
    first, good = sections[:2]
    assert [panel.metrics for panel in first.panels[:4]] == [
        ("train/loss",),
        ("train/loss_sup/sibling_1", "train/loss_sup/sibling_2"),
        ("train/loss_cps/sibling_1", "train/loss_cps/sibling_2"),
        ("train/lambda",),
    ]
    assert good.panels[0].metrics == ("validation/dsc/mean",)
    assert [panel.title.partition(": ")[2] for panel in good.panels[2:]] == [
        "aorta to left kidney",
        "liver to stomach",
    ]
    assert [len(panel.metrics) for panel in good.panels[2:]] == [7, 6]


def test_without_a_run_patterns_find_the_same_metrics() -> None:
    everything = logged(["liver", "lesion (2 cm)", "左肾"])
    sections = layout()
    assert [section.name for section in sections] == READING_ORDER
    found = metrics(sections)
    for section in sections:
        for panel in section.panels:
            assert bool(panel.pattern) != bool(panel.metrics)
            if panel.pattern:
                # what all dialects of regular expressions know: a server's is not Python's
                assert re.fullmatch(r"\^[\w/]+\[\^/\]\+\$", panel.pattern)
                found += [name for name in everything if re.search(panel.pattern, name)]
    means = {"validation_patches/dsc/sibling_1/mean", "validation_patches/dsc/sibling_2/mean"}  # by organ, too
    pictures = {name for name in everything if name.startswith("overlays/")}
    assert sorted(found) == sorted([*(everything - pictures), *means])


def test_what_a_training_does_not_log_has_no_panel() -> None:
    """A control of one network, with two organs, on a CPU, without validation scans."""
    without = ("validation/", "health/", "results/", "overlays/", "throughput/gpu", "train/loss_cps", "train/lambda")
    control = {name for name in logged(["liver", "spleen"], 1) if not name.startswith(without)}
    sections = layout(control)
    assert [section.name for section in sections] == [READING_ORDER[n] for n in (0, 1, 3, 5)]
    assert sorted(metrics(sections)) == sorted(control)
    (by_organ,) = sections[-1].panels
    assert by_organ.title == "DSC on validation patches, sibling 1", "two organs are no range"
    assert layout(set()) == []


def test_the_names_are_read_from_a_runs_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="completed epoch"):
        logged_names(tmp_path)
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "metrics.csv").write_text("epoch,steps,train/loss,validation/dsc/mean\n1,9,0.5,\n2,18,0.4,")
    assert logged_names(tmp_path) == {"train/loss"}, "the last line is still being written, and there is no DSC yet"
    for place in ("overlays/case 7/epoch_0001.jpg", "overlays/empty/note.txt", "validation.csv"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    assert logged_names(tmp_path) == {"train/loss", "overlays/case 7", "results/validation_cases"}
