"""The two programs label one real CT alike: benchmarks/interop/agreement.py, with one network trained on each side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_models_travel_both_ways(shared_data: Path, tmp_path: Path) -> None:
    """Shorter trainings than the script's own, the same thresholds: 0.995 exported, 0.999 imported."""
    if not os.environ.get("FLARECPS_PEER_PYTHON"):
        pytest.skip("nnU-Net is not at hand (set FLARECPS_PEER_PYTHON to its Python; 'make peers' installs it)")
    scan = shared_data / "ct" / "example_3mm"
    script = REPOSITORY / "benchmarks" / "interop" / "agreement.py"
    words = [scan / "ct.nii.gz", scan / "seg13.nii.gz", tmp_path, "--dimensions", 3, "--networks", "PlainUNet"]
    words += ["--nnunet-epochs", 5]
    done = subprocess.run([sys.executable, str(script), *map(str, words)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = {row["way"]: row["structures"] for row in json.loads((tmp_path / "agreement.json").read_text())["rows"]}
    assert set(rows) == {"exported", "imported back", "imported"}
    for way, threshold in (("exported", 0.995), ("imported back", 0.999), ("imported", 0.999)):
        assert rows[way]
        for structure, one in rows[way].items():
            assert one["dice"] >= threshold, (way, structure)
    assert min(one["dsc_flarecps"] for one in rows["exported"].values()) > 0.8
