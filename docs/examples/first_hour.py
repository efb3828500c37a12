"""A first hour with flarecps: README's own commands, run to the letter in a new environment, and what they print.

    python docs/examples/first_hour.py DATASET OUT.md

A clean clone of this repository and 25 scans of DATASET (nnU-Net v2's raw layout; 10 labelled, 10 taken as unlabelled,
5 test scans) lie in a new folder, which is removed at the end. There the blocks below README's "Install" and "Your own
scans" are run line by line; on a machine without a GPU the second's small training takes the place of the large one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LABELLED, UNLABELLED, TEST = 10, 10, 5
PASSED_ON = ("HOME", "TMPDIR", "OMP_NUM_THREADS")
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = 'while IFS= read -r -u 3 line; do eval "$line" 3<&-; echo "$$ ended with $?"; done'


def sections(readme: str) -> dict[str, list[list[str]]]:
    """The lines of README's ``sh`` blocks, by heading."""
    parts = re.split(r"^## (.+)\n", readme, flags=re.MULTILINE)[1:]
    return {
        heading: [block.splitlines() for block in BLOCK.findall(text)]
        for heading, text in zip(parts[::2], parts[1::2], strict=True)
    }


def commands(readme: str, gpu: bool) -> dict[str, list[str]]:
    """What a newcomer types, by heading: README's lines; without a GPU its small training instead of the large one."""
    found = sections(readme)
    (install,), (road, small) = found["Install"], found["Your own scans"]
    replaced = {line.split()[1]: line for line in small}
    return {"Install": install, "Your own scans": road if gpu else [replaced.get(x.split()[1], x) for x in road]}


def take_scans(source: Path, folder: Path) -> None:
    """Links to some scans of ``source`` as a data set of their own."""
    trained = sorted((source / "labelsTr").glob("*.nii.gz"))[: LABELLED + UNLABELLED]
    tested = sorted((source / "labelsTs").glob("*.nii.gz"))[:TEST]
    for place, labels in enumerate([*trained, *tested]):
        scan = labels.name.replace(".nii.gz", "_0000.nii.gz")
        kind = "Tr" if place < len(trained) else "Ts"
        links = [(source / f"images{kind}" / scan, f"images{'Un' if kind == 'Tr' and place >= LABELLED else kind}")]
        if kind == "Ts" or place < LABELLED:
            links.append((labels, f"labels{kind}"))
        for file, where in links:
            (folder / where).mkdir(parents=True, exist_ok=True)
            (folder / where / file.name).symlink_to(file.resolve())
    content = json.loads((source / "dataset.json").read_text(encoding="utf-8"))
    (folder / "dataset.json").write_text(json.dumps(content | {"numTraining": LABELLED}, indent=1), encoding="utf-8")


class Shell:
    """One bash, so that an environment that was activated stays so; a command's input is empty."""

    def __init__(self, folder: Path) -> None:
        mine = {name: os.environ[name] for name in os.environ if name in PASSED_ON or "PIP" in name}
        path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not Path(p, "activate").exists())
        reading, writing = os.pipe()
        self.bash = subprocess.Popen(
            ["bash", "-c", SHELL.replace("-u 3", f"-u {reading}").replace("3<&-", f"{reading}<&-")],
            cwd=folder, env={**mine, "PATH": path, "LANG": "C.UTF-8", "COLUMNS": "110"}, pass_fds=[reading],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        os.close(reading)
        self.lines = os.fdopen(writing, "w")

    def run(self, line: str) -> tuple[list[str], int]:
        """What a line printed, and its exit code."""
        self.lines.write(f"{line}\n")
        self.lines.flush()
        printed: list[str] = []
        assert self.bash.stdout is not None
        for answer in self.bash.stdout:
            if ended := re.search(rf"^{self.bash.pid} ended with (\d+)$", answer):
                return printed, int(ended[1])
            print(answer, end="")
            printed.append(answer.rstrip())
        raise SystemExit(f"the shell ended at: {line}")


def transcript(source: Path) -> str:
    """Markdown: every command, what it printed and how long it took."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    gpu = shutil.which("nvidia-smi") is not None
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / "flarecps"
        subprocess.run(["git", "clone", "--quiet", ROOT, place], check=True)
        take_scans(source, place / "DATASET")
        shell = Shell(place)
        began = time.monotonic()
        parts: list[str] = []
        code = 0
        for heading, lines in commands(readme, gpu).items():
            parts += [] if code else [f"## {heading}"]
            for line in [] if code else lines:
                print(f"$ {line}", flush=True)
                started = time.monotonic()
                printed, code = shell.run(line)
                took = time.monotonic() - started
                came = [one for one in printed if one.startswith("Successfully installed")]
                if came:  # by pip, which says much before
                    printed = [f"Successfully installed {len(came[-1].split()) - 2} packages"]
                words = "\n".join([f"$ {line}", *printed]).replace(f"{place}/", "")
                parts.append(f"```console\n{words}\n```\n\n{f'exit code {code}, ' if code else ''}{took:.0f} s")
                if code:
                    break
        minutes = (time.monotonic() - began) / 60
    threads = os.environ.get("OMP_NUM_THREADS")
    cores = f"{os.cpu_count()} cores{'' if gpu else ' without a GPU'}{f', {threads} thread' if threads else ''}"
    head = (
        "# A first hour\n\nREADME's commands, run to the letter by `docs/examples/first_hour.py` in a new environment "
        f"on {date.today()}: {LABELLED} labelled, {UNLABELLED} unlabelled and {TEST} test scans of real head-and-neck "
        f"CT (OpenKBP, `DATASET`), {cores}, Python {platform.python_version()}, {minutes:.0f} minutes in all. Of pip "
        f"only how many packages came is shown; all else is what was printed.{' **Broken off.**' if code else ''}"
    )
    return "\n\n".join([head, *parts]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dataset", type=Path, help="a data set in nnU-Net v2's raw layout with label maps")
    parser.add_argument("out", type=Path, help="the transcript to write")
    given = parser.parse_args()
    given.out.write_text(transcript(given.dataset.resolve()), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
