"""OpenJPEG and GDCM, which decode compressed frames, in a process of their own: what crashes it costs one scan.

It is begun with the first frame, serves all that follow, ends with this one's, and is replaced when it died
(docs/decisions/0022-decoders-apart.md). OpenJPEG comes with Pillow, which is small: JPEG 2000; GDCM with SimpleITK:
JPEG, JPEG-LS, and JPEG 2000 beyond 16 bits or in a file's boxes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from flarecps.errors import ScanError
from flarecps.volumes import decoder_process

PROGRAM = decoder_process.__file__
THREADS = 2  # of OpenJPEG
WITHIN_S = 120.0  # a frame takes milliseconds

_one_at_a_time = threading.Lock()
_decoder: subprocess.Popen[bytes] | None = None
_owner = 0  # a forked process has its parent's pipes, and must not use them


def decode(decoder: str, frame: Path, shape: tuple[int, int]) -> Path:
    """The file of the pixels of ``frame``, which is of ``shape`` (rows, columns); it lies beside it.

    By "OpenJPEG" a code stream's, raw; by "GDCM" a DICOM file's, as MetaImage. Raises ScanError, whose message is the
    reason alone, when it can't be decoded, or the decoder dies of it or does not end.
    """
    with _one_at_a_time:
        process = _running()
        out_of_time = threading.Event()

        def end() -> None:
            out_of_time.set()
            process.kill()

        watch = threading.Timer(WITHIN_S, end)
        watch.start()
        answer = b""
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps([decoder, str(frame), *shape]).encode() + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            watch.cancel()
            if not answer:  # it died, or this process was interrupted: what it would answer is nobody's
                _end(process)
    if out_of_time.is_set():
        raise ScanError(f"not decoded within {WITHIN_S:g} s")
    if not answer:
        raise ScanError(f"its decoder died of it, {_ending(process.returncode)}")
    if reason := json.loads(answer):
        raise ScanError(reason)
    return frame.with_name(f"{frame.name}.{decoder_process.SUFFIXES[decoder]}")


def _running() -> subprocess.Popen[bytes]:
    global _decoder, _owner
    if _decoder is None or _owner != os.getpid() or _decoder.poll() is not None:
        _owner = os.getpid()
        _decoder = subprocess.Popen(
            # Isolated, so that a module in the working directory is none of ours; `sys.path` makes a site needless
            [sys.executable, "-I", "-S", "-B", PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={"OPJ_NUM_THREADS": str(THREADS), **os.environ},
            start_new_session=True,  # Ctrl-C is for this process; the decoder ends when nobody can ask it any more
        )
    return _decoder


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
