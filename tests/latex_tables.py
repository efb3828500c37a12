"""A reader of LaTeX tables for tests: it takes them apart as LaTeX would, and fails on what LaTeX would fail on."""

from __future__ import annotations

import re

_KNOWN = {
    "begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "cmidrule", "multicolumn", "textbf",
    "footnotesize", "setlength", "tabcolsep",
    "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar", "pm", "times", "lambda",
}  # fmt: skip
_ACTIVE = set("#_^&~$")  # signs that must be escaped in a word


def tables(source: str) -> list[list[list[str]]]:
    """Every tabular as rows of cells; raises AssertionError where environments, braces, columns or signs are wrong."""
    text = re.sub(r"(?<!\\)%.*", "", source)
    _check_nesting(text)
    for command in re.findall(r"\\([a-zA-Z]+)", text):
        assert command in _KNOWN, f"unknown command \\{command}"
    found = []
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lcr]+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        body = re.sub(r"\\(top|mid|bottom)rule|\\cmidrule\(lr\)\{\d+-\d+\}", "", body)
        rows = [row.strip() for row in body.split(r"\\")]
        assert rows.pop() == "", "the last row ends with a line break"
        parsed = []
        for row in rows:
            assert not row.startswith("["), "a bracket after a line break would be its length"
            cells = [cell.strip() for cell in re.split(r"(?<!\\)&", row)]
            widths = [int(m.group(1)) if (m := re.match(r"\\multicolumn\{(\d+)\}", cell)) else 1 for cell in cells]
            assert sum(widths) == len(columns), f"{sum(widths)} cells in {len(columns)} columns: {row}"
            for cell in cells:
                _check_words(cell)
            parsed.append(cells)
        found.append(parsed)
    for caption in re.findall(r"\\caption\{(.*)\}", text):
        _check_words(caption)
    return found


def _check_nesting(text: str) -> None:
    """Braces and environments close in the order in which they were opened."""
    open_now: list[str] = []
    for token in re.findall(r"\\begin\{\w+\}|\\end\{\w+\}|\\.|[{}]", text):
        if token.startswith("\\begin"):
            open_now.append(token[7:-1])
        elif token.startswith("\\end"):
            assert open_now, f"{token} without beginning"
            assert open_now.pop() == token[5:-1], f"{token} closes another environment"
        elif token == "{":
            open_now.append("{")
        elif token == "}":
            assert open_now, "} without {"
            assert open_now.pop() == "{", "} closes an environment"
    assert not open_now, f"never closed: {open_now}"


def _check_words(cell: str) -> None:
    words = re.sub(r"\\[&%$#_{}]", "", cell)
    assert words.count("$") % 2 == 0, f"mathematics not closed: {cell}"
    words = re.sub(r"\$[^$]*\$", "", words)
    assert not _ACTIVE & set(words), f"unescaped sign in {cell!r}"
    assert words.isascii() or not set("±×–−λ") & set(words), f"a sign that LaTeX sets in mathematics: {cell!r}"
