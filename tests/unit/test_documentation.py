"""Links lead somewhere, examples in docstrings are true, and what stands in several places is the same in each."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import flarecps

ROOT = Path(__file__).resolve().parents[2]
FOUND = pkgutil.walk_packages(flarecps.__path__, "flarecps.")
MODULES = sorted(one.name for one in FOUND if "__main__" not in one.name)
PARTS = ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python")


def loaded(path: Path) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """docs/build_site.py."""
    return loaded(ROOT / "docs" / "build_site.py")


def broken_links(site: ModuleType, page: Path) -> list[str]:
    """The links of a page that lead to no file, or to no heading of one."""
    text = page.read_text(encoding="utf-8")
    found = []
    for link in site.links(text):
        file, _, anchor = link[2].partition("#")
        target = page.parent / file if file else page
        if not target.exists():
            found.append(f"{page}: no {link[2]}")
        elif anchor and target.suffix == ".md" and anchor not in site.anchors(target.read_text(encoding="utf-8")):
            found.append(f"{page}: no heading {link[2]}")
    return found


def test_links_lead_to_files_and_headings(site: ModuleType) -> None:
    folders = ("docs", "benchmarks", "slurm", "docker", "notebooks")
    pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in (ROOT / folder).rglob("*.md"))]
    assert len(pages) > 40
    assert [one for page in sorted(pages) for one in broken_links(site, page)] == []


def test_broken_links_are_seen(site: ModuleType, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# What *is* it? (1)\n## Twice\n## Twice\n[a](#what-is-it-1) [b](#twice-1) [c](https://x.org/y) `[d](no.md)`\n"
        "```\n[e](no.md)\n# No heading\n```\n![f](no.png) [g](page.md#twice-2) [h](#no-heading) [`i`](no/)\n",
        encoding="utf-8",
    )
    said = [one.removeprefix(f"{page}: ") for one in broken_links(site, page)]
    assert said == ["no no.png", "no heading page.md#twice-2", "no heading #no-heading", "no no/"]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    if name.endswith("_triton"):
        pytest.importorskip("triton", reason="Triton is not installed")
    module = importlib.import_module(name)
    if ">>>" not in Path(module.__file__ or "").read_text(encoding="utf-8"):
        return
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


def test_hooks_before_a_commit_and_the_public_host_check_what_ci_checks() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    words = [line.split("/")[-1].split() for line in recipe[1].splitlines()]
    linted = [" ".join(word for word in line if not word.startswith("-") and word != ".") for line in words]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"].split(" --")[0] for hook in hooks] == linted == ["ruff check", "ruff format", "mypy"]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    run = [step["run"] for step in steps if "run" in step]
    assert {".ci/run", "make docs"} < set(run)
    assert "secrets." not in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert workflow["permissions"] == {"contents": "read"}
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    called = [*(ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines(), *run]
    assert {line.split()[1] for line in called if line.startswith("make ")} <= targets


def pyproject() -> dict[str, Any]:
    """The project's table."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = pyproject()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors", "type"} <= set(citation)
    assert all(set(one) <= {"name", "given-names", "family-names"} for one in citation["authors"])


def test_only_extras_that_exist_are_named() -> None:
    extras = set(pyproject()["optional-dependencies"])
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "Makefile", *ROOT.glob("docs/**/*.md")]
    files += [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("docker/*file"), *ROOT.glob("flarecps/**/*.py")]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    assert not [file for file, text in texts.items() if re.search(r"flarecps\[\w+\]'", text)], "no index has it"
    named = {name for text in texts.values() for name in re.findall(r"install (?:-e )?'?\.\[(\w+)\]", text)}
    assert {"onnx", "tests"} <= named <= extras


def test_the_site_is_built_without_a_broken_link(tmp_path: Path) -> None:
    if missing := [name for name in PARTS if not _is_there(name)]:
        pytest.skip(f"needs {', '.join(missing)}: pip install '.[docs]', or make docs")
    words = [sys.executable, str(ROOT / "docs" / "build_site.py"), str(tmp_path / "site")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    commands = (tmp_path / "site" / "reference" / "commands" / "index.html").read_text(encoding="utf-8")
    assert all(word in commands for word in ("--max-vram", "--data.store", "usage: flarecps reproduce"))
    api = (tmp_path / "site" / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in api for name in flarecps.__all__ if name != "__version__")


def test_the_first_hour_is_readmes() -> None:
    """The transcript's commands are README's, in order; one that was broken off says so."""
    path = ROOT / "docs" / "examples" / "first_hour.py"
    hour = loaded(path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    wanted = [line for lines in hour.commands(readme, gpu=False).values() for line in lines]
    page = (path.parent / "first-hour.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\$ (.+)$", page, re.MULTILINE)
    assert shown == wanted[: len(shown)]
    assert len(shown) == len(wanted) or "broken off" in page.lower()
    assert wanted[0].startswith("python3 -m venv")
    assert [line.split()[1] for line in wanted[3:]] == ["inspect", "plan", "preprocess", "fit", "segment", "score"]
    assert "--config cpu_3d" in wanted[6]
    assert "WARNING" not in page


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
