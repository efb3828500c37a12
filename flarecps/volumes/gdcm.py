"""GDCM, which decodes JPEG, JPEG-LS and JPEG 2000, in a process of its own: what crashes it costs one scan.

It comes with SimpleITK. The process is begun with the first frame, serves all that follow, ends with this one's, and is
replaced when it died (docs/decisions/0022-decoders-apart.md).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from flarecps.errors import ScanError

# Isolated, so that a module that lies in the working directory is none of ours; imports as this process does.
PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from flarecps.volumes.gdcm import serve; serve()"
WITHIN_S = 120.0  # a frame takes milliseconds
MOST_BYTES = 2 * 2**30  # beyond what the libraries take: a code stream may announce any size
STDOUT, STDERR = 1, 2  # the file descriptors that C libraries print to

_one_at_a_time = threading.Lock()
_decoder: subprocess.Popen[bytes] | None = None
_owner = 0  # a forked process has its parent's pipes, and must not use them


def decoded(frame: Path) -> np.ndarray:
    """The stored values (row, column) of a DICOM file of one frame. ``frame.npy`` is written beside it.

    Raises ScanError, whose message is the reason alone, when it can't be decoded, or the decoder dies of it or does not
    end.
    """
    with _one_at_a_time:
        decoder = _running()
        out_of_time = threading.Event()

        def end() -> None:
            out_of_time.set()
            decoder.kill()

        watch = threading.Timer(WITHIN_S, end)
        watch.start()
        answer = b""
        try:
            assert decoder.stdin is not None
            assert decoder.stdout is not None
            with suppress(BrokenPipeError):
                decoder.stdin.write(json.dumps(str(frame)).encode() + b"\n")
                decoder.stdin.flush()
            answer = decoder.stdout.readline()
        finally:
            watch.cancel()
            if not answer:  # it died, or this process was interrupted: what it would answer is nobody's
                _end(decoder)
    if out_of_time.is_set():
        raise ScanError(f"not decoded within {WITHIN_S:g} s")
    if not answer:
        raise ScanError(f"its decoder died of it, {_ending(decoder.returncode)}")
    if reason := json.loads(answer):
        raise ScanError(reason)
    return np.load(frame.with_suffix(".npy"), allow_pickle=False)


def _running() -> subprocess.Popen[bytes]:
    global _decoder, _owner
    if _decoder is None or _owner != os.getpid() or _decoder.poll() is not None:
        _owner = os.getpid()
        _decoder = subprocess.Popen(
            [sys.executable, "-I", "-B", "-c", PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
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


def serve() -> None:
    """What the process does: it decodes the file of each line, and answers an empty text or the reason why not."""
    with os.fdopen(os.dup(STDOUT), "w", encoding="ascii") as answers:
        os.dup2(STDERR, STDOUT)  # libraries print there, too
        _limit_memory()
        for line in sys.stdin:
            answers.write(json.dumps(_decode(Path(json.loads(line)))) + "\n")
            answers.flush()


def _decode(frame: Path) -> str:
    import SimpleITK as sitk

    with tempfile.TemporaryFile(dir=frame.parent) as printed:
        os.dup2(printed.fileno(), STDERR)
        try:
            image = sitk.ReadImage(str(frame), imageIO="GDCMImageIO")
            np.save(frame.with_suffix(".npy"), sitk.GetArrayViewFromImage(image)[0])
        except (RuntimeError, MemoryError, OSError) as error:
            printed.seek(0)
            said = printed.read().decode("utf-8", "replace").strip().splitlines()[:1]
            reason = (said or str(error).strip().splitlines()[-1:] or ["no reason given"])[0].split("ERROR:")[-1]
            return " ".join(reason.split())[:200]
    return ""


def _limit_memory() -> None:
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit, macOS does not keep it
        import resource

        import SimpleITK  # noqa: F401  # what it takes counts as the libraries'

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
