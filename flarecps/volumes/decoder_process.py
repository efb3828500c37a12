"""The process that decodes compressed frames, run as a script: it imports a decoder when a frame needs it, and no more.

A line of standard input is a request, a list: the decoder, the file of the frame, its rows and columns. The answer is a
line as well, `decode`'s; the decoder alone is to be imported, and is not answered.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress
from importlib import import_module

LIBRARIES = {"OpenJPEG": "PIL.Jpeg2KImagePlugin", "GDCM": "SimpleITK"}
SUFFIXES = {"OpenJPEG": "raw", "GDCM": "mha"}  # of the files of pixels
ENDS_ITSELF_AFTER_S = 180  # of one frame, where nobody is left to end it (decoders.WITHIN_S)
MOST_BYTES = 2 * 2**30  # beyond what the libraries take: a code stream may announce any size
STDIN, STDOUT, STDERR = 0, 1, 2  # C libraries print to the latter two


def serve() -> None:
    sys.path[:] = sys.argv[1:]  # imports as who began it
    imported = set()
    alarm = getattr(signal, "alarm", lambda seconds: None)  # Windows has none
    with os.fdopen(os.dup(STDOUT), "w", encoding="ascii") as answers, os.fdopen(STDIN, encoding="ascii") as requests:
        os.dup2(STDERR, STDOUT)
        for request in requests:
            decoder, *asked = json.loads(request)
            if decoder not in imported:
                imported.add(decoder)
                import_module(LIBRARIES[decoder])
                _limit_memory()
            if not asked:
                continue
            alarm(ENDS_ITSELF_AFTER_S)
            answers.write(json.dumps(decode(decoder, *asked)) + "\n")
            alarm(0)
            answers.flush()


def decode(decoder: str, frame: str, rows: int, columns: int) -> str | list[int | str]:
    """An empty text, with the pixels in a file beside ``frame``; or the reason why it can't be decoded: its number and
    words where the system has refused something, as on a full disk.
    """
    pixels = f"{frame}.{SUFFIXES[decoder]}"
    with open(f"{frame}.txt", "w+b") as printed:
        os.dup2(printed.fileno(), STDERR)
        try:
            if decoder == "OpenJPEG":
                _by_openjpeg(frame, pixels, rows, columns)
            else:
                _by_gdcm(frame, pixels)
        except Exception as error:  # on bytes that are no picture, they raise all sorts
            if isinstance(error, OSError) and error.errno:
                return [error.errno, error.strerror]
            printed.seek(0)
            said = printed.read().decode("utf-8", "replace").strip().splitlines()[:1]
            reason = (said or str(error).strip().splitlines()[-1:] or [type(error).__name__])[0].split("ERROR:")[-1]
            return " ".join(reason.split())[:200]
        finally:
            os.dup2(STDOUT, STDERR)
    return ""


def _by_openjpeg(stream: str, pixels: str, rows: int, columns: int) -> None:
    from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile  # `Image.open` would import the other formats as well

    with Jpeg2KImageFile(stream) as image:
        if (image.height, image.width) != (rows, columns) or image.mode not in ("L", "I;16"):
            found = f"{image.height}×{image.width} pixels of mode {image.mode}"
            raise ValueError(f"its code stream holds {found}, its header {rows}×{columns}")
        values = image.tobytes()
    with open(pixels, "wb") as file:
        file.write(values)


def _by_gdcm(frame: str, pixels: str) -> None:
    import SimpleITK as sitk

    image = sitk.ReadImage(frame, imageIO="GDCMImageIO")
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    sitk.WriteImage(image, pixels)  # as an array, it would need NumPy here


def _limit_memory() -> None:
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit, macOS does not keep it
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


if __name__ == "__main__":
    serve()
