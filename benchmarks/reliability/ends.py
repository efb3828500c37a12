"""How long ``fit`` takes to end after each signal and fault, and by which exit code: the table of docs/reliability.md.

``python benchmarks/reliability/ends.py`` runs the tests of every end (two data workers a rank) and prints what they
measured: from the signal, or the fault, until the last of the training's processes was gone. The limit is 20 s.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from flarecps.experiments.runner import processor_name
from flarecps.reporting.tables import markdown_table

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "integration" / "test_every_end.py"


def main() -> int:
    """Run the tests and print the table; their exit code."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "ends.xml")
        words = [sys.executable, "-m", "pytest", "-q", str(TESTS), f"--junitxml={found}", *sys.argv[1:]]
        code = subprocess.run(words, check=False, stdout=sys.stderr).returncode
        rows = [
            [_words(case.get("name", "")), properties["exit code"], properties["seconds"]]
            for case in ElementTree.parse(found).iter("testcase")
            if "seconds" in (properties := {one.get("name"): one.get("value", "") for one in case.iter("property")})
        ]
    print(markdown_table(["what happens", "exit code", "seconds"], rows))
    print(f"{datetime.date.today()}: {processor_name()}, {os.cpu_count()} cores, {platform.system()}")
    return code


def _words(name: str) -> str:
    """A test's name as a row's title."""
    return name.removeprefix("test_").replace("_", " ").replace("[", " [")


if __name__ == "__main__":
    sys.exit(main())
