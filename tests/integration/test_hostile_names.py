"""Names from elsewhere (structures, methods, runs) in everything that is printed or written: shown, run by nobody."""

from __future__ import annotations

import ast
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hostile import make_data_set
from run_folders import make_run
from small_model import small_plan, write_model

import flarecps
from flarecps.cli.main import main
from flarecps.text_files import csv_text

ESCAPES, FORMULA, MARKUP = "\x1b]0;owned\x07\x1b[2J\u202e", "=HYPERLINK(1)", "<script>alert(1)</script>"
LATEX, LINK = r"\input{/etc/passwd}$x$", "[a](http://owned)"
HOSTILE = {"escapes": ESCAPES, "formula": FORMULA, "html": MARKUP, "latex and link": LATEX + LINK}
CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e]")
# calls of print whose text is this program's alone
OWN_TEXT = {"_help_text", "help_text", "interrupted", "second signal", "__version__", "SCRIPT"}


class Tags(HTMLParser):
    """The scripts and the addresses of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self._in_script = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._in_script = tag == "script"
        self.addresses += [value or "" for name, value in attributes if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
            self._in_script = False


def check_file(path: Path) -> None:
    if path.suffix in (".png", ".jpg", ".gz", ".ckpt", ".lock", ".b2nd"):
        return
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".csv":
        for row in csv.reader(text.splitlines()):
            for cell in row:
                assert not re.match(r"[=@\t\r]|[+-](?![\d.])", cell), (path, cell)
    elif path.suffix in (".html", ".svg"):
        found = Tags()
        found.feed(text)
        assert not [one for one in found.scripts if "alert(1)" in one], path
        assert not [one for one in found.addresses if "owned" in one], path
    elif path.suffix == ".md":
        assert "<script" not in text, path
        assert "](http://owned" not in text, path
    elif path.suffix == ".tex":
        assert r"\input" not in text, path
        assert "$x$" not in text, path
    if path.suffix in (".md", ".tex", ".txt"):
        assert not CONTROLS.search(text), path


def check_folder(folder: Path) -> set[str]:
    """The kinds of files that were looked at."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        check_file(path)
    return {path.suffix for path in files}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_names_are_shown_and_run_by_nobody(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In every command that names structures, methods or runs; one may refuse the name, in one line."""
    data, out = tmp_path / "data", tmp_path / "out"
    out.mkdir()
    make_data_set(data)
    described = json.loads((data / "dataset.json").read_text())
    described |= {"name": name, "labels": {"background": 0, name: 1, "spleen": 2}}
    (data / "dataset.json").write_text(json.dumps(described))
    tables = {method: out / method for method in ("one", "two")}
    for number, folder in enumerate(tables.values()):
        folder.mkdir()
        rows = [["Name", f"{name}_DSC", "Spleen_DSC", f"{name}_NSD", "Spleen_NSD"]]
        rows += [[f"c{n}.nii.gz", *[f"{0.5 + 0.1 * number + 0.01 * n:.6f}"] * 4] for n in range(4)]
        (folder / "scores.csv").write_text(csv_text(rows))
    model = write_model(tmp_path / "model.ckpt", plan=small_plan(labels={"background": 0, name: 1, "spleen": 2}))
    run = make_run(tmp_path / "runs" / "a", 2, 0.8)
    method = name.replace("=", "") if name == FORMULA else name
    commands: list[list[Any]] = [
        ["inspect", data, "--html", out / "inspect.html", "--no-progress"],
        ["inspect", tmp_path / name.replace("/", "")],
        ["plan", data, "--out", out / "plan.json", "--no-progress"],
        ["segment", model, data / "imagesTr", out / "labels", "--statistics"],
        ["score", out / "labels", data / "labelsTr", "--out", out / "scored"],
        ["summary", model],
        ["compare", f"{method}={out}/one/scores.csv", f"two={out}/two/scores.csv", "--out", out / "cmp"],
        ["report", f"{method}={run}", "--out", out / "report.html"],
        ["convert", data, out / "Dataset001_x"],
        [name],
    ]  # fmt: skip
    for words in commands:
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        said = capfd.readouterr()
        assert code in (0, 1, 2), words
        assert not CONTROLS.search(said.out + said.err), (words, said)
    kinds = check_folder(out)
    assert kinds >= {".csv", ".html", ".md", ".tex"} if name in (MARKUP, LATEX + LINK) else kinds


def test_every_print_shows_what_it_is_given() -> None:
    """Commands print by cli/console.Console; whatever else prints makes its text visible, unless it is its own."""
    problems = []
    for path in sorted(Path(flarecps.__file__).parent.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print":
                problems += [f"{path.name}:{call.lineno}" for text in call.args if not _is_visible(text)]
    assert problems == []


def _is_visible(text: ast.expr) -> bool:
    words = ast.unparse(text)
    return isinstance(text, ast.Constant) or "visible" in words or any(own in words for own in OWN_TEXT)


def test_csv_is_written_in_one_place() -> None:
    """By ``csv_text``, which defuses formulas; metrics.csv, whose names are this program's, by Lightning's columns."""
    folder = Path(flarecps.__file__).parent
    writing = re.compile(r"csv\.(writer|DictWriter)\(")
    assert [path.name for path in sorted(folder.rglob("*.py")) if writing.search(path.read_text(encoding="utf-8"))] == [
        "text_files.py",
        "metrics_table.py",
    ]
