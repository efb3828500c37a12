"""Text files from elsewhere: every JSON, CSV and YAML file is read here, and what spreadsheets would run is defused.

A file is read whole and believed in nothing. What can't be right whoever reads it (no regular file, not UTF-8, not
JSON, a key twice, NaN, a number that fits no computer's integer, nesting without end, half a character) is one line
that names the file; the reader says which kind of error that is and what was expected. What each entry must be, its
reader checks (`json_fields`).
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flarecps.errors import FlarecpsError, cure_of, visible

LARGEST_FILE = 256 * 2**20  # bytes; the largest that this program writes, a store's statistics, have a hundredth
LARGEST_YAML = 2**20  # its parser is slow
MOST_NODES = 1_000_000  # of a YAML file once its references are followed, which can be a billion in 400 bytes
DEEPEST = 100  # lists in lists; the deepest file that is read, nnU-Net's plans, has 6
LARGEST_INTEGER = 2**63 - 1
MARKS = (  # byte order marks; UTF-32's first, for it begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
SEPARATORS = ",;\t"
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+(?:[eE][+-]?\d+)?\s*")
_FORMULA = re.compile(r"'*\s*[=+\-@＝＋－＠\t\r]")  # what spreadsheets take for one, and what they leave out before it


def read_text(path: Path | str, kind: type[FlarecpsError], expected: str, largest: int = LARGEST_FILE) -> str:
    """The text of a file: UTF-8, or UTF-16 or UTF-32 by its byte order mark, which is left out.

    Raises ``kind`` for no file, a folder, a pipe or device, more than ``largest`` bytes, and bytes of no such text.
    """
    path = Path(path)
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise kind(f"{path}: {'a folder' if path.is_dir() else 'a pipe or device'}; {expected}")
        if state.st_size > largest:
            raise kind(f"{path}: {state.st_size / 2**20:.0f} MB, of at most {largest / 2**20:.0f}; {expected}")
        content = path.read_bytes()
    except FileNotFoundError:
        raise kind(f"{path}: no such file; {expected}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise kind(f"{path}: can't be read ({reason}); {cure_of(error, expected)}") from None
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding).removeprefix("\ufeff")  # a second mark, which some programs write
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise kind(
            f"{path}: line {line} is not UTF-8 text (byte 0x{content[error.start]:02x}); save the file as UTF-8 "
            "(in Excel: 'CSV UTF-8')"
        ) from None


def read_json(path: Path | str, kind: type[FlarecpsError], expected: str) -> Any:
    """The content of a JSON file, in which every number is finite and fits 64 bits, and every text can be printed.

    Raises ``kind``, naming the file, for everything else; ``expected`` says what should be there and its cure.
    """

    def refuse(what: str) -> NoReturn:
        raise kind(f"{path}: {what}; {expected}")

    def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            refuse(f"'{visible(twice)}' stands twice in one object: remove one of the two")
        return content

    text = read_text(path, kind, expected)
    try:
        content = json.loads(text, object_pairs_hook=without_repetition)
    except RecursionError:
        refuse("nested without end")
    except ValueError as error:  # not JSON, or a whole number of thousands of digits
        refuse(f"not valid JSON ({error})")
    if problem := _no_plain_value(content):
        refuse(problem)
    return content


def read_own_json(path: Path | str) -> dict[str, Any]:
    """The object in a JSON file that this program writes for itself; {} where it is missing or damaged."""
    try:
        content = read_json(path, FlarecpsError, "")
    except FlarecpsError:
        return {}
    return content if isinstance(content, dict) else {}


def read_yaml(path: Path | str, kind: type[FlarecpsError], expected: str) -> dict[str, Any]:
    """The settings of a YAML file (a training's config) by name, references to other settings as they are written.

    Raises ``kind`` for what is no such file, or grows beyond measure when its references are followed.
    """
    import yaml  # type: ignore[import-untyped]  # of what OmegaConf itself reads with
    from omegaconf import OmegaConf

    text = read_text(path, kind, expected, LARGEST_YAML)
    try:
        plain = yaml.safe_load(text)
        problem = _no_plain_value(plain, MOST_NODES)
        if not isinstance(plain, dict | None):
            problem = "holds no settings (key: value)"
        content = None if problem else OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except Exception as error:  # OmegaConf and PyYAML raise many kinds
        raise kind(f"{path}: not readable as YAML ({' '.join(str(error).split())}); {expected}") from None
    if problem or not isinstance(content, dict):
        raise kind(f"{path}: {problem}; {expected}")
    return {str(key): value for key, value in content.items()}


def _no_plain_value(content: Any, most: float = math.inf) -> str:
    """What no reader can use in parsed JSON or YAML, in words; empty where there is nothing.

    With ``most`` (of YAML, which may have them) numbers need not be finite, and that many nodes are the most.
    """
    waiting = [(content, 1, "")]
    seen = 0
    while waiting:
        value, depth, name = waiting.pop()
        seen += 1
        if isinstance(value, str):
            if "\0" in value or not _can_be_encoded(value):
                return f"{name}the text '{visible(value[:40])}' holds what is no character"
        elif isinstance(value, float):
            if not math.isfinite(value) and most == math.inf:
                return f"{name}holds {value}, which is no JSON number"
        elif isinstance(value, int):
            if abs(value) > LARGEST_INTEGER:
                return f"{name}holds a whole number of more than 64 bits"
        elif isinstance(value, dict | list):
            if depth > DEEPEST:
                return f"{name}nested more than {DEEPEST} deep"
            if isinstance(value, dict):
                waiting += [(one, depth + 1, f"'{visible(str(key))}' ") for key, one in value.items()]
                waiting += [(key, depth + 1, "") for key in value]
            else:
                waiting += [(one, depth + 1, name) for one in value]
        if seen + len(waiting) > most:
            return f"more than {MOST_NODES} entries once its references (*name) are followed"
    return ""


def _can_be_encoded(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class Table:
    """A CSV file: its columns in order, and every row's cells by column, as text."""

    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def csv_lines(path: Path | str, kind: type[FlarecpsError], expected: str) -> tuple[list[list[str]], str]:
    """The cells of every line of a CSV file, and what separates them: a comma, a semicolon or a tab.

    Raises ``kind`` for what is no text and no CSV.
    """
    text = read_text(path, kind, expected)
    first, _, rest = text.partition("\n")
    separator = ""
    if (declared := first.strip().strip('"').lower()).startswith("sep=") and len(declared) <= 5:  # Excel's own
        separator, text = declared[4:] or ",", rest
        first, _, _ = text.partition("\n")
    separator = separator or max(SEPARATORS, key=first.count)  # a comma where there are none
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise kind(f"{path}: not a CSV table ({error}); {expected}") from None
    return lines, separator


def read_csv(path: Path | str, kind: type[FlarecpsError], expected: str, growing: bool = False) -> Table:
    """The table in a CSV file as this program, Excel and LibreOffice write it; empty without a row.

    Separated by commas, or by semicolons or tabs, whose numbers may have decimal commas and come with a point. Empty
    rows and unnamed empty columns at the end are left out, and the apostrophe by which `csv_text` defuses a cell. Rows
    that are shorter or longer than the header raise ``kind``; of a file that is still ``growing`` they are left out.
    """
    lines, separator = csv_lines(path, kind, expected)
    header, body = (lines[0], lines[1:]) if lines else ([], [])
    while header and not header[-1].strip():
        header = header[:-1]
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise kind(f"{path}: two columns are called '{visible(twice)}'; expected each once")
    rows = []
    for number, cells in enumerate(body, start=2):
        if not any(cell.strip() for cell in cells):
            continue
        fits = len(cells) >= len(header) and not any(cell.strip() for cell in cells[len(header) :])
        if not fits and not growing:
            raise kind(f"{path}: row {number} has {len(cells)} cells, the header {len(header)}; {expected}")
        if fits:
            rows.append({name: _cell(cell, separator) for name, cell in zip(header, cells, strict=False)})
    return Table(tuple(_cell(name, ",") for name in header), tuple(rows))


def _cell(cell: str, separator: str) -> str:
    if separator != "," and _DECIMAL_COMMA.fullmatch(cell):
        return cell.replace(",", ".")
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """The rows as CSV. Texts that a spreadsheet would run as a formula get an apostrophe before them; numbers do not.

    >>> csv_text([["=1+1", "-0.5", -0.5, "liver"]])
    "'=1+1,-0.5,-0.5,liver\\n"
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_defused(cell) for cell in row] for row in rows)
    return text.getvalue()


def _defused(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) and not _is_number(cell) else cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
