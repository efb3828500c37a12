"""Which organs a method loses that its control of as many steps finds: one table over the seeds, from kept scores.

    python benchmarks/study/keep.py OUT benchmarks/results/phantom13/3d_seeds
    python benchmarks/phantom13/organs.py benchmarks/results/phantom13/3d_seeds

RESULTS/organs.md gets each organ's DSC by arm, averaged over test scans and seeds, and the organs that are lost, by
the README's rule. Exit code 1 where one is. Beside a control of equal total compute, which the rule does not ask for,
the same is said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from flarecps.atomic import write_text
from flarecps.evaluation.comparison import OVERALL, compare_methods
from flarecps.experiments.study.protocol_file import read_protocol
from flarecps.reporting.comparison_files import read_method
from flarecps.reporting.tables import markdown_table

PROTOCOL = read_protocol(Path(__file__).resolve().parents[2] / "configs" / "studies" / "phantom13_3d.yaml")
BESIDE = {
    "cps": "control",
    "self_training": "control_long",
    "self_training_sure": "control_long",
    "control_long_two": "control_long",
}  # as many steps
COMPUTES_AS_MUCH = {"self_training": "control_of_self", "self_training_sure": "control_of_self"}  # teachers counted
FOUND, LOST = 0.1, 0.5  # the DSC of a control that finds an organ; the share of it under which a method loses it


def lost(method: Mapping[str, float], control: Mapping[str, float]) -> list[str]:
    """The organs that the control finds and the method loses, from mean DSC by organ."""
    return [organ for organ, dsc in control.items() if organ != OVERALL and dsc >= FOUND and method[organ] < LOST * dsc]


def organ_means(results: Path) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Mean DSC by arm and organ, `OVERALL` among them, and trainings, of the protocol's arms with scores."""
    means, trainings = {}, {}
    for arm in PROTOCOL.arms:
        files = sorted(results.glob(f"runs/default/{arm.name}/seed_*/scores_1.csv"))
        if files:
            cells = compare_methods([read_method(arm.name, files)], resamples=100).means["dsc"][arm.name]
            means[arm.name] = {organ: cell.mean for organ, cell in cells.items() if cell.mean is not None}
            trainings[arm.name] = len(files)
    return means, trainings


def report(results: Path) -> tuple[str, bool]:
    """The table and its verdicts as Markdown; whether an organ is lost."""
    means, trainings = organ_means(results)
    header = ["DSC", *(f"{PROTOCOL.arm(name).title} ({trainings[name]})" for name in means)]
    organs = list(next(iter(means.values())))
    shown = ["mean" if organ == OVERALL else organ.replace("_", " ") for organ in organs]
    body = [[name, *(f"{one[organ]:.3f}" for one in means.values())] for name, organ in zip(shown, organs, strict=True)]
    verdicts, beyond = _verdicts(means, BESIDE), _verdicts(means, COMPUTES_AS_MUCH)
    text = [markdown_table(header, body), "In brackets trainings. Organs lost:\n", _listed(verdicts)]
    if beyond:
        text += ["Beside a control of equal total compute, which the rule does not ask for:\n", _listed(beyond)]
    return "\n".join(text), any(verdicts.values())


def _verdicts(means: Mapping[str, Mapping[str, float]], beside: Mapping[str, str]) -> dict[str, list[str]]:
    return {
        f"{PROTOCOL.arm(name).title}, beside {PROTOCOL.arm(control).title}": lost(means[name], means[control])
        for name, control in beside.items()
        if name in means and control in means
    }


def _listed(verdicts: Mapping[str, list[str]]) -> str:
    return "".join(f"- {title}: {', '.join(organs) or 'none'}\n" for title, organs in verdicts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, metavar="RESULTS")
    results = parser.parse_args().results
    if not any(results.glob("runs/default/*/seed_*/scores_1.csv")):
        parser.error(f"{results}: no runs/default/ARM/seed_N/scores_1.csv; keep a study's scores first (study/keep.py)")
    text, bad = report(results)
    write_text(results / "organs.md", text)
    print(text)
    sys.exit(int(bad))


if __name__ == "__main__":
    main()
