"""Made-up run folders with their scans, and a parsed page: what the tests of reports share."""

from __future__ import annotations

import csv
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from flarecps import metric_names
from flarecps.planning.plan import Intensity, Plan, Topology, write_plan
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

LABELS = {"background": 0, "liver": 1, "right kidney": 2, "spleen": 3}
COLUMNS = ("Liver", "RK", "Spleen")
SPACE = Space.canonical((14, 20, 22), (4.0, 3.0, 3.0))
CASES = ("c1", "c2", "c3", "c4")


class Page(HTMLParser):
    """What a test wants to know of a page: its text, links, pictures and tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.pictures: list[dict[str, str]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.addresses += [found[name] for name in ("src", "href", "xlink:href", "srcset", "data") if name in found]
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "img":
            self.pictures.append(found)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def reference() -> np.ndarray:
    labels = np.zeros(SPACE.shape, np.uint8)
    labels[3:11, 8:15, 12:19] = 1
    labels[4:8, 3:7, 13:16] = 2
    labels[5:10, 4:8, 3:8] = 3
    return labels


def make_data(data: Path) -> None:
    rng = np.random.default_rng(0)
    for name in CASES:
        labels = reference()
        image = rng.normal(40, 20, SPACE.shape).astype(np.int16)
        write_volume(data / "imagesTs" / f"{name}_0000.nii.gz", image, SPACE)
        write_volume(data / "labelsTs" / f"{name}.nii.gz", labels, SPACE)


def make_run(run: Path, siblings: int, level: float, scored: bool = True) -> None:
    """A run folder whose scores are ``level`` plus 0.02 per case, with its predictions when ``scored``."""
    topology = Topology((8, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3), (3, 3, 3)))
    plan = Plan(
        "Tiny", 3, LABELS, (), ("CT",), (4.0, 3.0, 3.0), (0, 1, 2), (14, 20, 22), (8, 16, 16), topology,
        {"labelled": 2, "unlabelled": 2}, True, Intensity("ct", -200.0, 300.0, 50.0, 60.0), {}, 0.5,
    )  # fmt: skip
    run.mkdir(parents=True)
    write_plan(run / "plan.json", plan)
    (run / "config.yaml").write_text(
        f"trainer: {{max_epochs: 5}}\nmodel: {{cross_pseudo_supervision: {str(siblings == 2).lower()}}}\n"
    )
    (run / "csv").mkdir()
    names = [metric_names.LOSS_TOTAL, metric_names.LAMBDA, metric_names.DSC_MEAN]
    for number in range(1, siblings + 1):
        names += [f(number) for f in (metric_names.supervised_loss, metric_names.cross_pseudo_loss)]
        names.append(metric_names.learning_rate(number))
    names += [metric_names.dsc("average", organ) for organ in list(LABELS)[1:]]
    with (run / "csv" / "metrics.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["epoch", "step", *names])
        for epoch in range(5):
            writer.writerow([epoch, 10 * epoch + 9, *(1 / (epoch + 1 + place) for place in range(len(names)))])
    if not scored:
        return
    (run / "environment.json").write_text(
        json.dumps(
            {
                "command": "flarecps fit --config tiny.yaml",
                "versions": {"torch": "2.4"},
                "git": {"commit": "abc1234", "state": "changed"},
                "started": "2026-01-01T10:00:00+00:00",
                "finished": "2026-01-01T12:05:00+00:00",
                "completed_epochs": 5,
            }
        )
    )
    (run / "scores").mkdir()
    with (run / "scores" / "scores.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Name", *(f"{column}_{kind}" for kind in ("DSC", "NSD") for column in COLUMNS)])
        for place, name in enumerate(CASES):
            prediction = np.roll(reference(), place, axis=1)
            write_volume(run / "segmentations" / f"{name}.nii.gz", prediction, SPACE)
            dsc = [level + 0.02 * place, level, level - 0.1]
            writer.writerow([f"{name}.nii.gz", *dsc, *(value / 2 for value in dsc)])
