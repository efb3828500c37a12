"""Our planner beside nnU-Net v2's on the same geometries; exit code 1 on a difference without explanation.

    FLARECPS_PEER_PYTHON=…/python FLARECPS_DATA=…/data python benchmarks/planner_parity/compare.py

Writes the table to benchmarks/results/planner_parity/README.md, and geometries and nnU-Net's answers to
tests/golden/nnunet_plans.json, where the test suite compares them without nnU-Net.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import geometries
import numpy as np
from rich.console import Console
from rich.table import Table

from flarecps.datasets.catalogue import Catalogue
from flarecps.errors import PlanError
from flarecps.planning.fingerprint import CaseShape, Fingerprint
from flarecps.planning.histogram import Histogram
from flarecps.planning.plan import Plan
from flarecps.planning.planner import plan_dataset
from flarecps.planning.spacing import COARSE_AXIS

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "planner_parity"
GOLDEN = HERE.parent.parent / "tests" / "golden" / "nnunet_plans.json"
NNUNETS_STEPS_IN_OURS = 4  # two siblings, labelled and unlabelled patches
MOST_FEATURES = {2: 512, 3: 320}  # nnU-Net v2's caps
CONFIGURATIONS = {3: "3d_fullres", 2: "2d"}
SAME = 1e-9  # relative: nnU-Net takes a percentile where we take a median

EQUAL = "equal"
OTHER_ORDER = "equal with nnU-Net's axis order"
NEITHER = "neither plans single slices in 3D"


def main() -> int:
    """0 when every plan is equal, or differs for a reason that is listed."""
    peer = os.environ.get("FLARECPS_PEER_PYTHON")
    if not peer:
        sys.exit("FLARECPS_PEER_PYTHON names no Python with nnunetv2: 'make peers' makes one")
    data = os.environ.get("FLARECPS_DATA")
    if not data:
        sys.exit("FLARECPS_DATA names no folder with the real data sets")
    given = [*geometries.made(), *geometries.real(Path(data))]
    answers = ask_peer(peer, given)
    rows = [
        row(geometry, answer, dimensions)
        for geometry, answer in zip(given, answers["answers"], strict=True)
        for dimensions in (3, 2)
    ]
    write_golden(given, answers)
    counts = {verdict: sum(one["verdict"] == verdict for one in rows) for verdict in (EQUAL, OTHER_ORDER, NEITHER)}
    different = [one for one in rows if one["verdict"] not in counts]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "README.md").write_text(markdown(rows, counts, len(given), answers["versions"]))
    show(rows)
    print(
        f"{len(given)} geometries, {len(rows)} plans: {', '.join(f'{count} {name}' for name, count in counts.items())}"
    )
    print(f"{len(different)} different without explanation")
    for one in different:
        print(f"  {one['name']} {one['dimensions']}D: {one['verdict']}")
    return 1 if different else 0


def ask_peer(python: str, given: list[dict[str, Any]]) -> dict[str, Any]:
    """nnU-Net's plans, made in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder) / "geometries.json", Path(folder) / "answers.json"
        questions.write_text(json.dumps(given))
        subprocess.run([python, str(HERE / "peer.py"), str(questions), str(answers)], check=True)
        return json.loads(answers.read_text())


def row(geometry: dict[str, Any], answer: dict[str, Any], dimensions: int) -> dict[str, Any]:
    """What both plan for one geometry, and the verdict."""
    content = {"name": geometry["name"], "gb": geometry["gpu_memory_gb"], "dimensions": dimensions}
    theirs = answer.get(CONFIGURATIONS[dimensions])
    try:
        plan = our_plan(geometry, dimensions)
    except PlanError as error:
        both = theirs is None and "single slice" in str(error)
        return content | {"verdict": NEITHER if both else f"only nnU-Net plans: {error}"}
    if theirs is None:
        return content | {"verdict": answer.get("error", "only we plan")}
    theirs |= {"axis_order": answer["axis_order"]}
    ours = described(plan)
    content |= {"ours": ours, "theirs": theirs}
    wrong = differences(ours, theirs, dimensions)
    if not wrong:
        return content | {"verdict": EQUAL}
    if "axis_order" in wrong and ours["axis_order"] == [0, 1, 2] and not has_coarse_axis(plan):
        turned = described(our_plan(geometry, dimensions, tuple(theirs["axis_order"])))
        wrong = differences(turned, theirs, dimensions)
        if not wrong:
            return content | {"verdict": OTHER_ORDER}
    return content | {"verdict": "different: " + ", ".join(wrong)}


def our_plan(geometry: dict[str, Any], dimensions: Any, order: Any = None) -> Plan:
    """Our plan for the same scans, all labelled, with memory for as many elements per patch as nnU-Net has."""
    cases = tuple(
        CaseShape(f"case_{i:04}", "labelled", tuple(shape), tuple(spacing), "RAS", {})
        for i, (shape, spacing) in enumerate(zip(geometry["shapes_voxels"], geometry["spacings_mm"], strict=True))
    )
    labels = {"background": 0} | {f"structure {label}": label for label in range(1, geometry["classes"])}
    catalogue = Catalogue(Path("parity"), "Parity", labels, ("CT",) * geometry["channels"], (), ())
    return plan_dataset(
        Fingerprint(cases, Histogram.of(np.arange(-1000, 1000))),
        catalogue,
        dimensions,
        gpu_memory_gb=geometry["gpu_memory_gb"] * NNUNETS_STEPS_IN_OURS,
        most_features=MOST_FEATURES[dimensions],
        order=order,
    )


def described(plan: Plan) -> dict[str, Any]:
    """The plan's numbers that nnU-Net decides too."""
    return {
        "axis_order": list(plan.axis_order),
        "spacing_mm": list(plan.spacing_mm)[3 - plan.dimensions :],
        "median_shape_voxels": list(plan.median_shape_voxels)[3 - plan.dimensions :],
        "patch_voxels": list(plan.patch_voxels),
        "features": list(plan.topology.features),
        "strides": [list(stride) for stride in plan.topology.strides],
        "kernels": [list(kernel) for kernel in plan.topology.kernels],
        "batch": plan.global_batch["labelled"],
        "batch_dice": plan.batch_dice,
    }


def differences(ours: dict[str, Any], theirs: dict[str, Any], dimensions: int) -> list[str]:
    """Names of the entries that differ."""
    wrong = [name for name in ours if name not in ("spacing_mm", "median_shape_voxels") and ours[name] != theirs[name]]
    if not np.allclose(ours["spacing_mm"], theirs["spacing_mm"], rtol=SAME, atol=0):
        wrong.append("spacing_mm")
    if ours["median_shape_voxels"] != np.rint(theirs["median_shape_voxels"]).astype(int).tolist():
        wrong.append("median_shape_voxels")
    stages = len(theirs["strides"])
    if theirs["convolutions_per_stage"] != [[2] * stages, [2] * (stages - 1)]:
        wrong.append("convolutions per stage (ours has two)")
    return wrong


def has_coarse_axis(plan: Plan) -> bool:
    """Whether one spacing is clearly larger than the other two; otherwise we leave the axes as they are."""
    _, middle, largest = sorted(plan.spacing_mm)
    return largest >= COARSE_AXIS * middle


def write_golden(given: list[dict[str, Any]], answers: dict[str, Any]) -> None:
    """Geometries and nnU-Net's answers, one of each a line."""
    pairs = [
        json.dumps({"geometry": geometry, "answer": answer}, separators=(",", ":"))
        for geometry, answer in zip(given, answers["answers"], strict=True)
    ]
    head = {
        "made_by": "benchmarks/planner_parity/compare.py",
        "date": str(datetime.date.today()),
        "versions": answers["versions"],
    }
    GOLDEN.write_text(json.dumps(head)[:-1] + ', "pairs": [\n' + ",\n".join(pairs) + "\n]}\n")


def cells(one: dict[str, Any]) -> list[str]:
    """A row as text; nnU-Net's numbers where they differ from ours."""
    start = [one["name"], f"{one['gb']:g}", f"{one['dimensions']}D"]
    if "ours" not in one:
        return [*start, *["–"] * 6, one["verdict"]]
    columns = [
        _both(one, "axis_order", lambda order: "".join("src"[axis] for axis in order)),
        _both(one, "spacing_mm", lambda mm: "×".join(f"{edge:.6g}" for edge in mm)),
        _both(one, "patch_voxels", lambda voxels: "×".join(str(edge) for edge in voxels)),
        _both(one, "strides", _stages),
        _both(one, "kernels", _stages),
        _both(one, "batch", str),
    ]
    return [*start, *columns, one["verdict"]]


def _both(one: dict[str, Any], name: str, text: Any) -> str:
    ours, theirs = text(one["ours"][name]), text(one["theirs"][name])
    return ours if ours == theirs else f"{ours} (nnU-Net {theirs})"


def _stages(rows: list[list[int]]) -> str:
    return " ".join("".join(str(entry) for entry in stage) for stage in rows)


HEADINGS = ["data set", "GB", "", "axes", "spacing mm", "patch", "strides", "kernels", "batch", "verdict"]


def show(rows: list[dict[str, Any]]) -> None:
    """The table on the terminal, without strides and kernels, for which a terminal is too narrow."""
    kept = [HEADINGS.index(name) for name in HEADINGS if name not in ("strides", "kernels")]
    table = Table()
    for index in kept:
        table.add_column(HEADINGS[index], no_wrap=True)
    for one in rows:
        text = cells(one)
        table.add_row(*(text[index] for index in kept))
    Console(width=240).print(table)


def markdown(rows: list[dict[str, Any]], counts: dict[str, int], total: int, versions: dict[str, str]) -> str:
    """The whole table with what it was made from."""
    peers = ", ".join(f"{name} {number}" for name, number in versions.items())
    said = "; ".join(f"{count} {name}" for name, count in counts.items())
    different = len(rows) - sum(counts.values())
    head = f"""# Plans beside nnU-Net's

**{total} data sets, {len(rows)} plans: {said}; {different} different without explanation.**

    FLARECPS_PEER_PYTHON=.peers/bin/python FLARECPS_DATA=DATA python benchmarks/planner_parity/compare.py

{datetime.date.today()}, {processor()}, {os.cpu_count()} hyperthreads, no GPU needed; flarecps {version("flarecps")};
peer in a process of its own: {peers}. Plans are deterministic: other work on the machine changes nothing.

**What is compared.** Axis order, target spacing (relative 1e-9), median shape, patch, features, strides, kernels,
batch, batch Dice (whether nnU-Net adds a low-resolution stage), convolutions per stage: all must be equal.

**The same memory estimate.** nnU-Net plans one network and one kind of patch for the gigabytes in the table, we plan
for {NNUNETS_STEPS_IN_OURS} times as many, because our step holds two networks and two kinds of patches; features are
capped at 512 in 2D, as nnU-Net's. All scans count as labelled.

**Data sets.** Made ones by `geometries.py`, each for a rule; real ones with shapes after our cropping, given to both
(of FLARE22 only labels are at hand: whole scans). nnU-Net's default planner runs as it is, on fingerprints in its own
format.

**Equal with nnU-Net's axis order**: the two coarsest spacings are within 5 % of each other. nnU-Net puts the larger
one first, whichever rounding made it larger; we keep (slice, row, column), so 2D networks see axial slices. Given
nnU-Net's order, our planner decides exactly what nnU-Net does.

`tests/golden/nnunet_plans.json` holds the data sets and nnU-Net's answers; the test suite repeats the comparison.

Axes: s slice, r row, c column, in the network's order. Strides and kernels: one group of digits a stage, one digit an
axis. Where we decide otherwise nnU-Net's number is in brackets.

"""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + "---|" * len(HEADINGS)]
    lines += ["| " + " | ".join(cells(one)) + " |" for one in rows]
    return head + "\n".join(lines) + "\n"


def processor() -> str:
    """Architecture and, on Linux, the processor's name."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.is_file() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return ", ".join([platform.machine(), *names[:1]])


if __name__ == "__main__":
    sys.exit(main())
