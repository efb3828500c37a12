"""OpenJPEG and GDCM, which decode compressed frames, in a process of their own: what crashes it costs one scan.

It is begun with the first frame, serves all that follow, ends with this one's, and is replaced when it died
(docs/decisions/0022-decoders-apart.md). OpenJPEG comes with Pillow, which is small: JPEG 2000; GDCM with SimpleITK:
JPEG, JPEG-LS, and JPEG 2000 beyond 16 bits or in a file's boxes.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from flarecps.errors import ScanError, WriteError
from flarecps.volumes import decoder_process

PROGRAM = decoder_process.__file__
AHEAD = 4  # frames: one is decoded while this process sees to others
WITHIN_S = 120.0  # a frame takes milliseconds
LOOKS_S = 1.0  # seconds between two looks whether an answer is late

_one_at_a_time = threading.Lock()
_decoder: subprocess.Popen[bytes] | None = None


@dataclass
class Decoding:
    """What is asked of the decoders, and answered in the same order."""

    process: subprocess.Popen[bytes]
    folder: Path
    pixels: deque[Path]  # not answered yet
    names: Iterator[int]
    deadline: float = math.inf  # of the answer that is waited for, of time.monotonic()
    ended: threading.Event = field(default_factory=threading.Event)

    def ask(self, decoder: str, frame: bytes, shape: tuple[int, int]) -> None:
        """Ask for the pixels of a frame of ``shape`` (rows, columns), of at most `AHEAD` before the first is answered.

        "OpenJPEG" takes a code stream, "GDCM" a DICOM file.
        """
        file = self.folder / str(next(self.names))
        try:
            with open(file, "wb", opener=decoder_process.over) as content:
                content.write(frame)
                content.truncate()
        except OSError as error:
            raise WriteError(error.errno, error.strerror, str(file)) from error
        self.pixels.append(file.with_suffix(f".{decoder_process.SUFFIXES[decoder]}"))
        _send(self.process, decoder, os.fsencode(file).hex(), *map(str, shape))

    def answer(self) -> Path:
        """The file of the first frame's pixels, raw from OpenJPEG, MetaImage from GDCM; `AHEAD` later it is another's.

        Raises ScanError, whose message is the reason alone, when it can't be decoded, or the decoder dies of it or does
        not end; WriteError where there is no room for the pixels.
        """
        assert self.process.stdout is not None
        self.deadline = time.monotonic() + WITHIN_S
        answer = self.process.stdout.readline()
        out_of_time, self.deadline = time.monotonic() > self.deadline, math.inf
        pixels = self.pixels.popleft()
        if not answer:
            self.pixels.clear()
            _end(self.process)
            died = f"its decoder died of it, {_ending(self.process.returncode)}"
            raise ScanError(f"not decoded within {WITHIN_S:g} s" if out_of_time else died)
        reason = answer.decode("utf-8", "replace").rstrip("\n")
        if reason.startswith(decoder_process.REFUSED):
            number, words = reason[1:].split(" ", 1)
            raise WriteError(int(number), words, str(pixels))
        if reason:
            raise ScanError(reason)
        return pixels

    def watch(self) -> None:
        """Kill the decoder when an answer is late, until the event `ended`: a thread's work."""
        while not self.ended.wait(LOOKS_S):
            if time.monotonic() > self.deadline:
                self.process.kill()


def begin(decoder: str) -> None:
    """Let "OpenJPEG" or "GDCM" be loaded meanwhile: frames will be asked for soon. Nothing where others are at work."""
    if _one_at_a_time.acquire(blocking=False):
        try:
            _send(_running(), decoder)
        finally:
            _one_at_a_time.release()


@contextmanager
def decoding() -> Iterator[Decoding]:
    """The decoders, for this thread alone."""
    with _one_at_a_time, tempfile.TemporaryDirectory() as folder:
        asked = Decoding(_running(), Path(folder), deque(), cycle(range(AHEAD + 1)))
        threading.Thread(target=asked.watch, daemon=True).start()
        try:
            yield asked
        finally:
            asked.ended.set()
            if asked.pixels:  # an error, or this process was interrupted: what it would answer is nobody's
                _end(asked.process)


def _running() -> subprocess.Popen[bytes]:
    global _decoder
    if _decoder is None or _decoder.poll() is not None:
        _decoder = subprocess.Popen(
            # Isolated, so that a module in the working directory is none of ours; `sys.path` makes a site needless
            [sys.executable, "-I", "-S", "-B", PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process; the decoder ends when nobody can ask it any more
        )
    return _decoder


def _send(decoder: subprocess.Popen[bytes], *words: str) -> None:
    assert decoder.stdin is not None
    with suppress(BrokenPipeError):
        decoder.stdin.write(" ".join(words).encode("ascii") + b"\n")
        decoder.stdin.flush()


def _forget() -> None:
    """In a forked process: its parent's pipes are none of it, and no thread is left that could free the lock."""
    global _decoder, _one_at_a_time
    _decoder, _one_at_a_time = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _end(decoder: subprocess.Popen[bytes]) -> None:
    assert decoder.stdin is not None
    assert decoder.stdout is not None
    with suppress(OSError):  # what was not sent can't be, either
        decoder.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        decoder.wait(1.0)
    decoder.kill()
    decoder.wait()
    decoder.stdout.close()


def _ending(code: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"
