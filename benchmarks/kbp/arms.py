"""The arms of the kbp experiment as its three protocols name them, and where what is kept of it lies."""

from __future__ import annotations

from pathlib import Path

from flarecps.experiments.study.protocol_file import read_protocol

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "kbp"
KBP, SCREEN, CONFIRM = (
    read_protocol(ROOT / "configs" / "studies" / f"{name}.yaml") for name in ("kbp", "kbp_screen", "kbp_confirm")
)

CPS, CONTROL, CONTROL_LONG, CPS_LONG = map(KBP.arm, ("cps", "control", "control_long", "cps_long"))
TWO_CONTROLS, TWO_SHORT_CONTROLS = map(KBP.arm, ("control_long_two", "control_two"))
MAIN_ARMS = (CPS, CONTROL, CONTROL_LONG)
ABLATIONS = tuple(arm for arm in KBP.arms if arm.splits == ("10_labelled",))
FEW_LABELS, ALL_LABELS = (10, 5, 20), 142
