"""The process that decodes compressed frames, run as a script: it imports a decoder when a frame needs it, and no more.

A line of standard input is a request: the decoder, the file of the frame in hexadecimal digits, its rows and columns.
The answer is a line as well, `decode`'s; the decoder alone is to be imported, and is not answered. What else is
imported here, such as json or contextlib, a series would wait for.
"""

from __future__ import annotations

import os
import signal
import sys

LIBRARIES = {"OpenJPEG": "PIL.Jpeg2KImagePlugin", "GDCM": "SimpleITK"}
SUFFIXES = {"OpenJPEG": "raw", "GDCM": "mha"}  # of the files of pixels
REFUSED = "\t"  # before what the system refused; no other reason holds one
ENDS_ITSELF_AFTER_S = 180  # of one frame, where nobody is left to end it (decoders.WITHIN_S)
MOST_BYTES = 2 * 2**30  # beyond what the libraries take: a code stream may announce any size
STDIN, STDOUT, STDERR = 0, 1, 2  # C libraries print to the latter two


def serve() -> None:
    sys.path[:] = sys.argv[1:]  # imports as who began it
    imported = set()
    alarm = getattr(signal, "alarm", lambda seconds: None)  # Windows has none
    with os.fdopen(os.dup(STDOUT), "w", encoding="utf-8") as answers, os.fdopen(STDIN, encoding="ascii") as requests:
        os.dup2(STDERR, STDOUT)
        for request in requests:
            decoder, *asked = request.split()
            if decoder not in imported:
                imported.add(decoder)
                __import__(LIBRARIES[decoder])
                _limit_memory()
            if not asked:
                continue
            frame, rows, columns = asked
            alarm(ENDS_ITSELF_AFTER_S)
            answers.write(decode(decoder, os.fsdecode(bytes.fromhex(frame)), int(rows), int(columns)) + "\n")
            alarm(0)
            answers.flush()


def decode(decoder: str, frame: str, rows: int, columns: int) -> str:
    """An empty text, with the pixels in a file beside ``frame``; or the reason why it can't be decoded: `REFUSED`,
    number and words where the system has refused something, as on a full disk.
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
                return f"{REFUSED}{error.errno} {error.strerror}"
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
    with open(pixels, "wb", opener=over) as file:
        file.write(values)
        file.truncate()


def over(path: str, flags: int) -> int:
    """For `open` to write over a file, whose pages are there already; what is longer is to be truncated."""
    return os.open(path, flags & ~os.O_TRUNC, 0o600)


def _by_gdcm(frame: str, pixels: str) -> None:
    import SimpleITK as sitk

    image = sitk.ReadImage(frame, imageIO="GDCMImageIO")
    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    sitk.WriteImage(image, pixels)  # as an array, it would need NumPy here


def _limit_memory() -> None:
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            most = int(file.read().split()[0]) * resource.getpagesize() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))
    except (ImportError, ValueError, OSError):  # Windows has no such limit, macOS does not keep it
        pass


if __name__ == "__main__":
    serve()
