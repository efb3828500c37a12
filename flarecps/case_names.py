"""The one way from a case's name to a file's: names come from files that others wrote and are never taken for paths."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import MutableMapping

from flarecps.errors import DatasetError

LONGEST_BYTES = 200  # file systems take 255, of which endings and the mark of unfinished files take some
RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?")  # Windows' devices, with any ending

ALIKE = ", where capital and small letters are not told apart (macOS, Windows, many shares); rename one"


def file_name(name: str, ending: str = "") -> str:
    """The name of case ``name``'s file or, without ``ending``, folder: ``name + ending``.

    Raises DatasetError for a name that is no plain file name on every system: empty, starting with a dot, starting or
    ending with a space, ending with a dot, with a slash, backslash, control character or half of a surrogate pair, one
    that Windows keeps for devices, or above 200 bytes. So what is joined to a folder stays in it.

    >>> file_name("case_01", ".nii.gz")
    'case_01.nii.gz'
    """
    if reason := why_not_plain(name):
        raise DatasetError(f"case name {ascii(name)[:80]}: {reason}; expected a plain one, such as case_01: rename it")
    return name + ending


def composed(name: str) -> str:
    """A name with its accents as one letter each: macOS and archives write ü as u and a mark, which looks the same.

    >>> len(composed("u\u0308"))
    1
    """
    return unicodedata.normalize("NFC", name)


def taken_by(name: str, others: MutableMapping[str, str]) -> str:
    """The one of ``others`` whose files ``name``'s would replace where letters' case is not told apart (macOS, Windows,
    many shares); empty, and ``name`` is among them from now on, where none would be.

    >>> known = {}
    >>> [taken_by(name, known) for name in ("case_01", "Case_01", "case_02", "case_01")]
    ['', 'case_01', '', 'case_01']
    """
    if other := others.get(alike := composed(name).casefold(), ""):
        return other
    others[alike] = name
    return ""


def why_not_plain(name: object) -> str:
    """Why a case can't be called so (see ``file_name``); empty for a plain name.

    >>> why_not_plain("case_01"), why_not_plain("../victim")
    ('', 'holds a slash')
    """
    if not isinstance(name, str):
        return "is no text"
    if not name:
        return "is empty"
    if "/" in name or "\\" in name:
        return "holds a " + ("slash" if "/" in name else "backslash")
    kinds = {unicodedata.category(letter) for letter in name}
    if "Cs" in kinds:
        return "is not UTF-8"
    if kinds & {"Cc", "Zl", "Zp"}:
        return "holds a control character"
    if name.startswith("."):
        return "starts with a dot, as hidden files do"
    if name != name.strip() or name.endswith("."):
        return "starts or ends with a space, or ends with a dot"
    if RESERVED.fullmatch(name):
        return "is a device's on Windows"
    if len(name.encode()) > LONGEST_BYTES:
        return f"has {len(name.encode())} bytes, more than {LONGEST_BYTES}"
    return ""
