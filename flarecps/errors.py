"""The errors a user can cause: each names the file or value, what was expected, and the usual cure.

The command line prints such an error as one line and ends with exit code 2; anything else is a defect of the program,
whose traceback it keeps in a log file (`cli.main`).
"""

import errno
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

# Controls but line ends and tabs, what turns the direction of writing, and halves of characters (of file names).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CURE_OF_MEMORY = "free some memory, use fewer workers, or raise its limit (ulimit -v)"
_CURE_OF_PROCESSES = (
    "raise the limit of processes (ulimit -u) or memory (-v), or use fewer workers and threads (OMP_NUM_THREADS)"
)
_CURES = {  # of what the machine refuses, about which a traceback says nothing
    **dict.fromkeys(FULL_DISK, "free some, or raise the quota"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "check its permissions, or name another"),
    errno.ENOMEM: _CURE_OF_MEMORY,
    errno.EAGAIN: _CURE_OF_PROCESSES,
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "raise the limit of open files (ulimit -n), or use fewer workers"),
    **dict.fromkeys(
        (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP,
         errno.EBUSY, errno.EXDEV, errno.ENXIO),
        "check the path, or name another",
    ),
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENODEV, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
        "check the disk and how it is mounted",
    ),
}  # fmt: skip
_REFUSED_FOR_NOW = (
    errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EACCES, errno.EPERM,
    errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN,
)  # fmt: skip
_IN_WORDS = {  # the same where an error has no number
    "can't start new thread": _CURE_OF_PROCESSES,
    "failed to map segment from shared object": _CURE_OF_MEMORY,
    "cannot allocate memory": _CURE_OF_MEMORY,
    "Too many open files": _CURES[errno.EMFILE],
}


class FlarecpsError(Exception):
    """Base of all errors whose message is written for the user."""


class ScanError(FlarecpsError):
    """A scan or label file that can't be read, or holds what it must not."""


class GridError(ScanError):
    """A grid that no scan can have: its message names no file, whoever reads one adds it."""


class DatasetError(FlarecpsError):
    """A dataset folder that is not one, or contradicts itself."""


class PlanError(FlarecpsError):
    """A plan that is malformed or does not fit the data."""


class StoreError(FlarecpsError):
    """A case store that is missing, damaged, or made by another plan."""


class CheckpointError(FlarecpsError):
    """A file that is not a checkpoint of this program, or can't be loaded safely."""


class ConfigError(FlarecpsError):
    """Settings that contradict each other or the data."""


class TrainingError(FlarecpsError):
    """A training that can't go on; raised on all of its processes at once, with the same message."""


class WorkerError(FlarecpsError):
    """A process that prepared data and died, usually for want of memory."""


class WriteError(FlarecpsError, OSError):
    """A file that can't be written: the disk is full or read-only, a quota is used up, permissions lack.

    Made of errno, its text and the file's path, as every OSError is.
    """

    def __str__(self) -> str:
        cure = _CURES.get(self.errno or 0, "check its permissions, or name another")
        return f"{self.filename}: can't be written ({self.strerror}); {cure}, and run the same command again"


def refusal(error: Exception) -> str | None:
    """What the machine refuses, in a line with its cure; None for an error of another kind.

    >>> refusal(OSError(errno.EROFS, "Read-only file system", "scores")), refusal(OSError("no such host"))
    ('scores: Read-only file system; check its permissions, or name another', None)
    """
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return "no folder for temporary files can be written to: neither TMPDIR's, nor /tmp; let TMPDIR name one"
    if isinstance(error, RuntimeError) and str(error).startswith("Symlink loop"):  # Path.resolve, before Python 3.13
        return f"{error}; {_CURES[errno.ELOOP]}"
    if isinstance(error, OSError) and (cure := _CURES.get(error.errno or 0)):
        return f"{error.filename}: " * (error.filename is not None) + f"{error.strerror}; {cure}"
    if isinstance(error, MemoryError):
        return ": ".join(filter(None, ("not enough memory (RAM)", str(error)))) + f"; {_CURE_OF_MEMORY}"
    if isinstance(error, ImportError | RuntimeError):
        for words, cure in _IN_WORDS.items():
            if words.lower() in str(error).lower():
                return f"{error}; {cure}"
    return refusal(error.__cause__) if isinstance(error.__cause__, Exception) else None  # a library's own words for it


def may_be_whole(error: BaseException) -> bool:
    """Whether a file that could not be read may be as it should be: the machine refuses, or has lost the disk.

    >>> may_be_whole(OSError(errno.EMFILE, "Too many open files")), may_be_whole(OSError(errno.EIO, "bad sector"))
    (True, False)
    """
    return isinstance(error, OSError) and error.errno in _REFUSED_FOR_NOW


def cure_of(error: BaseException, otherwise: str) -> str:
    """The cure of what the machine refuses, as where too many files are open; ``otherwise`` for what it doesn't.

    >>> cure_of(OSError(errno.EIO, "Input/output error"), "copy it again"), cure_of(EOFError(), "copy it again")
    ('check the disk and how it is mounted', 'copy it again')
    """
    return _CURES.get(getattr(error, "errno", None) or 0, otherwise)


def first_few(names: Sequence[str], most: int = 5) -> str:
    """Names as a message lists them: the first of them, and a sign that there are more.

    >>> first_few(["liver", "spleen"]), first_few("abc", most=2)
    ('liver, spleen', 'a, b, …')
    """
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")


def counted(number: int, noun: str) -> str:
    """A number of things as a message says it.

    >>> counted(1, "case"), counted(2, "case")
    ('1 case', '2 cases')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the known one that is most like it; nothing where none is.

    >>> did_you_mean("--worker", ["--workers", "--out"]), did_you_mean("--zzz", ["--out"])
    ('; did you mean --workers?', '')
    """
    plain = {one.lstrip("-").lower(): one for one in known}  # dashes would make all options alike
    nearest = get_close_matches(word.lstrip("-").lower(), list(plain), n=1)
    return f"; did you mean {plain[nearest[0]]}?" if nearest else ""


def visible(text: str) -> str:
    """A text from outside as it is printed: control characters are shown, and obeyed by no terminal.

    >>> visible("liver\\x1b[2J"), visible("Leber, größte\\n")
    ('liver\\\\x1b[2J', 'Leber, größte\\n')
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
