"""The documentation as a site: README, docs/ and what they link to, with the API and every command's options.

    python docs/build_site.py build/site          (make docs does it with an environment of its own)

Pages keep their places in the repository, so links are the same here and on its host; mkdocs checks them all, and the
build fails where one leads nowhere. Why mkdocs: docs/decisions/0020-the-site.md.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "build" / "site-source"  # mkdocs.yml names it
STARTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "docs/decisions/*.md")
FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(r"(\]\()([^()\s]+)(\))")
ELSEWHERE = re.compile(r"[a-z][a-z+.-]*:")  # another address
HEADING = re.compile(r"^#{1,6} +(.+?)[ #]*$", re.MULTILINE)
MODULES = {  # beside the names that the package itself offers
    "methods": "How labelled and unlabelled patches teach: ``model.method`` of a config names one.",
    "losses": "Losses, ramps of λ and filters of pseudo-labels.",
    "networks": "The networks.",
    "evaluation.metrics": "The measures as torchmetrics.",
    "errors": "What is raised for a mistake of the user.",
}


def prose(text: str) -> str:
    """The Markdown without its code, which may look like links: blanks stand in its place."""
    for code in (FENCE, CODE):
        text = code.sub(lambda found: " " * len(found[0]), text)
    return text


def links(text: str) -> Iterator[re.Match[str]]:
    """The links of a page to this repository's files; the target is group 2."""
    return (found for found in LINK.finditer(prose(text)) if not ELSEWHERE.match(found[2]))


def anchors(text: str) -> set[str]:
    """What a link may name after ``#`` in this page, as the host and the site make it of headings."""
    found: dict[str, int] = {}
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {name if not number else f"{name}-{number}" for name, most in found.items() for number in range(most + 1)}


def pages() -> list[Path]:
    """The pages that are begun with; others come in by links."""
    return [path for pattern in STARTS for path in sorted(ROOT.glob(pattern))]


def collect(source: Path) -> None:
    """Copy the pages and what they link to into ``source``; a link to a folder leads to its README, or to a list."""
    waiting, done = pages(), set()
    while waiting:
        path = waiting.pop()
        if path in done:
            continue
        done.add(path)
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            names = sorted(one.name for one in path.iterdir() if not one.name.startswith((".", "_")))
            lines = [f"- [{name}]({name})" if name.endswith(".md") else f"- `{name}`" for name in names]
            copy.mkdir(exist_ok=True)
            (copy / "README.md").write_text("\n".join([f"# {path.name}", "", *lines, ""]), encoding="utf-8")
            continue
        if path.suffix != ".md":
            shutil.copyfile(path, copy)
            continue
        text = path.read_text(encoding="utf-8")
        for found in reversed(list(links(text))):
            file, _, _ = found[2].partition("#")
            target = (path.parent / file).resolve()
            if not file or not target.exists():
                continue  # mkdocs will say it
            if target.is_dir():
                waiting.append(target / "README.md" if (target / "README.md").is_file() else target)
                text = f"{text[: found.start(2)]}{file.rstrip('/')}/README.md{text[found.end(2) :]}"
            else:
                waiting.append(target)
        copy.write_text(text, encoding="utf-8")


def commands_page() -> str:
    """Markdown: every command's help, as the program prints it."""
    from flarecps.cli.main import COMMANDS, main

    parts = ["# Commands", "As `flarecps COMMAND --help` prints it; made from the code."]
    os.environ |= {"COLUMNS": "90", "NO_COLOR": "1", "NO_MKDOCS_2_WARNING": "1"}
    for name, command in COMMANDS.items():
        printed = io.StringIO()
        with redirect_stdout(printed), suppress(SystemExit):
            main([name, "--help"])
        parts += [f"## {name}", command.help, f"```text\n{printed.getvalue().strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def api_page() -> str:
    """Markdown for mkdocstrings: the names the package offers, then some of its modules whole."""
    flarecps = importlib.import_module("flarecps")
    parts = [
        "# Python API",
        "`from flarecps import NAME` gives these; the modules below have more. Arrays are (channel, slice, row, "
        "column) in RAS voxel order, spacings in millimetres.",
    ]
    parts += [f"::: flarecps.{home}.{name}" for name, home in flarecps._HOMES.items()]
    for module, title in MODULES.items():
        parts += [f"## flarecps.{module}", title]
        found = importlib.import_module(f"flarecps.{module}")
        names = getattr(found, "__all__", None) or [
            name
            for name, value in vars(found).items()
            if isinstance(value, type) and value.__module__ == found.__name__ and not name.startswith("_")
        ]
        parts += [f"::: flarecps.{module}.{name}" for name in names if name not in flarecps._HOMES]
    return "\n\n".join(parts) + "\n"


def main(out: Path) -> int:
    """Build the site into ``out``; mkdocs' exit code."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    collect(SOURCE)
    shutil.copyfile(ROOT / "docs" / "site.css", SOURCE / "docs" / "site.css")
    (SOURCE / "reference").mkdir()
    for name, page in {"commands": commands_page, "api": api_page}.items():
        (SOURCE / "reference" / f"{name}.md").write_text(page(), encoding="utf-8")
    words = ["-m", "mkdocs", "build", "--strict", "--config-file", ROOT / "mkdocs.yml", "--site-dir"]
    code = subprocess.run([sys.executable, *words, out.resolve()], check=False).returncode
    if code == 0:
        print(out / "index.html")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "site")))
