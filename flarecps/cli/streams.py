"""Standard output and standard error that end no work: closed ones, full disks and missing letters are bearable."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any

from flarecps.errors import visible

PIPE_CLOSED = 141  # 128 + SIGPIPE
UNWRITTEN = 2  # exit code, as of what else the machine refuses


class _Lasting(io.FileIO):
    """A file that takes what the disk refuses, and keeps the first refusal in ``refused``.

    That whoever reads standard output has gone, as ``head``, is raised: the rest is for nobody.
    """

    refused: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.refused = self.refused or error
            if isinstance(error, BrokenPipeError) and self.fileno() == 1:
                raise
            return memoryview(data).nbytes


def make_lasting() -> None:
    """Give this process streams that last, in place of those it began with; streams that others put there are kept.

    What was closed becomes the null device, or the next file that is opened would get what is printed.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            if (null := os.open(os.devnull, os.O_RDWR)) != number:
                os.dup2(null, number, inheritable=True)
                os.close(null)
        stream = getattr(sys, name)
        if stream is None or (number and stream is getattr(sys, f"__{name}__")):
            setattr(sys, name, _opened(number, stream))
        elif number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what a terminal has no sign for ends no command


def _opened(number: int, like: Any) -> io.TextIOWrapper:
    if number == 0:
        return open(number, encoding="utf-8", closefd=False)
    with suppress(OSError, AttributeError):  # the kept text goes first
        like.flush()
    raw = _Lasting(number, "w", closefd=False)
    immediate = bool(getattr(like, "write_through", False))  # python -u
    return io.TextIOWrapper(
        raw if immediate else io.BufferedWriter(raw),
        encoding=getattr(like, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=bool(getattr(like, "line_buffering", False)),
        write_through=immediate,
    )


def reader_has_gone() -> bool:
    """Whether whoever read standard output, as ``head``, has gone; what is still printed goes nowhere then."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    else:
        if not isinstance(_refused(), BrokenPipeError):
            return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def closing_code(code: int) -> int:
    """The exit code of a command that ended with ``code``, by what became of standard output: 141 where its reader has
    gone, 2 and a line on standard error where it can't be written.
    """
    if reader_has_gone():
        return PIPE_CLOSED
    if (refused := _refused()) is None:
        return code
    told = f"standard output can't be written ({refused.strerror}); send it elsewhere. The work itself went on"
    print(visible(f"flarecps: {told}"), file=sys.stderr)
    return code or UNWRITTEN


def _refused() -> OSError | None:
    buffer = getattr(sys.stdout, "buffer", None)
    return getattr(getattr(buffer, "raw", buffer), "refused", None)
