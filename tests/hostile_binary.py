"""Seeded mutators of scans, checkpoints and case stores, each with the sound input that it harms.

What is attacked with them is in ``hostile.py``; what must hold of headers beyond that, in ``test_hostile_headers.py``.
"""

from __future__ import annotations

import copy
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
import torch
from dicom_series import hounsfield, series
from pydicom.dataelem import DataElement, RawDataElement
from small_model import small_plan, write_model

from flarecps.checkpoint import read_checkpoint
from flarecps.datasets.catalogue import read_catalogue
from flarecps.preprocessing.checksums import CHECKSUMS, sha256
from flarecps.preprocessing.dataset import preprocess_dataset
from flarecps.preprocessing.store import CaseStore
from flarecps.volumes.io import read_volume, write_volume
from flarecps.volumes.space import Space

SHAPE, SPACING_MM = (7, 6, 5), (2.0, 1.5, 1.25)
WORDS = (
    "-1", "0", "1", "2", "1000", "1000000000", "99999999999999999999", "1e300", "-1e-300", "nan", "inf", "-0", "0x10",
    "1.5", "", "%s%n%s%n", "%d", "True", "none", "(1,0,0)", "LOCAL", "LIST", "../outside.raw", "/dev/zero", "pipe.raw",
    "/etc/passwd", "link.raw", "gone.raw", ".", "slice_%03d.raw 1 7 1", "bzip2", "float", "MET_DOUBLE", "\xff" * 9,
)  # fmt: skip


# --- scans


def good_scan(folder: Path, suffix: str) -> bytes:
    """A scan as this program, or SimpleITK for files in two parts, writes it."""
    voxels = np.arange(210, dtype=np.int16).reshape(SHAPE) * 7
    path = folder / f"good{suffix}"
    if suffix in (".nhdr", ".mhd"):
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(SPACING_MM[::-1])
        sitk.WriteImage(image, str(path))
    else:
        write_volume(path, voxels, Space.canonical(SHAPE, SPACING_MM, (3.0, -4.0, 5.0)))
    return path.read_bytes()


def of_text(content: bytes, rng: Random) -> bytes:
    """A text header with one or two changes; voxels that follow it stay."""
    end = (
        content.find(b"\n\n") if content.startswith(b"NRRD") else content.find(b"\n", content.find(b"ElementDataFile"))
    )
    end = end if end > 0 else len(content)
    lines, rest = content[:end].decode("latin-1").split("\n"), content[end:]
    for _ in range(rng.choice((1, 1, 2))):
        at = rng.randrange(len(lines))
        words = re.split(r"([ =:,()]+)", lines[at])
        change = rng.randrange(8)
        if change < 4:
            words[rng.randrange(0, len(words), 2)] = rng.choice(WORDS)
            lines[at] = "".join(words)
        elif change == 4 and len(lines) > 1:
            del lines[at]
        elif change == 5:
            lines.insert(at, rng.choice(lines))
        elif change == 6:
            lines[at] += f" {rng.choice(WORDS)}"
        else:
            place = rng.randrange(len(lines[at]) + 1)
            lines[at] = lines[at][:place] + chr(rng.randrange(256)) + lines[at][place + 1 :]
    return "\n".join(lines).encode("latin-1", "replace") + rest


def of_nifti(content: bytes, rng: Random) -> bytes:
    """A NIfTI header with a field or some bytes changed."""
    block = bytearray(content)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.5:
            at, kind = rng.choice(
                [(40 + 2 * n, "h") for n in range(8)] + [(76 + 4 * n, "f") for n in range(4)]
                + [(70, "h"), (72, "h"), (108, "f"), (112, "f"), (116, "f"), (123, "b"), (252, "h"), (254, "h")]
                + [(256 + 4 * n, "f") for n in range(18)]
            )  # fmt: skip
            low, high = (-(2**15), 2**15 - 1) if kind == "h" else (-128, 127)
            floats = (0.0, -1.0, 1e30, float("nan"), float("inf"), -352.0, 353.0, 1e9)
            value = rng.choice(floats) if kind == "f" else rng.choice((0, -1, 1, 2, 7, 16, 255 % 128, low, high))
            struct.pack_into(f"<{kind}", block, at, value)
        else:
            block[rng.randrange(352)] = rng.randrange(256)
    return bytes(block)


def cut_or_flipped(content: bytes, rng: Random) -> bytes:
    """Any file, truncated, longer, or with bytes changed anywhere."""
    change = rng.randrange(3)
    if change == 0:
        return content[: rng.randrange(len(content))]
    if change == 1:
        return content + rng.randbytes(rng.choice((1, 9, 30, 5000)))
    block = bytearray(content)
    for _ in range(rng.choice((1, 3))):
        block[rng.randrange(len(block))] ^= 1 << rng.randrange(8)
    return bytes(block)


def _scan_in(root: Path) -> Path:
    return next(path for path in root.glob("good.*") if path.suffix not in (".raw", ".zraw"))


def harm_scan(mutate: Callable[[bytes, Random], bytes]) -> Callable[[Random, Path], tuple[str, bool]]:
    """A mutator of the file ``good.*`` in a folder."""

    def harm(rng: Random, root: Path) -> tuple[str, bool]:
        path = _scan_in(root)
        path.write_bytes(mutate(path.read_bytes(), rng))
        return path.name, False

    return harm


def read_scan(root: Path) -> Any:
    """Shape, sum and grid of the scan in ``root``: a file, or a DICOM series in ``root``/series."""
    path = root / "series"
    volume = read_volume(path if path.is_dir() else _scan_in(root))
    assert np.isfinite(volume.array).all()
    return volume.array.shape, float(np.float64(volume.array).sum()), volume.space, volume.warnings


# --- DICOM

GEOMETRY = (
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel",
    "PhotometricInterpretation", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope",
    "RescaleIntercept", "SliceThickness", "InstanceNumber", "SOPClassUID", "SeriesInstanceUID", "SOPInstanceUID",
    "Modality", "NumberOfFrames", "PixelData", "SpecificCharacterSet", "PatientName", "GantryDetectorTilt",
)  # fmt: skip
TEXTS = (
    b"", b"0", b"-1", b"1e300", b"-1e-300", b"nan", b"inf", b"1,5", b"x", b"1\\2\\3", b"0\\0", b"0.9\\0.8\\0.7",
    b"nan\\nan\\nan\\nan\\nan\\nan", b"1\\0\\0\\1\\0\\0", b"9" * 70, b"\xff\xfe", b"\x1b[2J", b"../../victim",
    b"ISO 2022 IR 87", b"\\" * 50, b"MONOCHROME1", b"RGB", b"1.2.840.10008.1.2.4.90",
)  # fmt: skip
SYNTAXES = (b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.5\0", b"1.2.840.10008.1.2\0\0\0", b"1.2.840.10008.1.2.9\0")
WHOLE = (0, 1, 2, 3, 7, 8, 12, 15, 16, 17, 32, 64, 255, 32767, 65535)


def make_series(root: Path) -> None:
    """A series of five slices."""
    series(root / "series", hounsfield(5, 7, 6))


def harm_series(rng: Random, root: Path) -> tuple[str, bool]:
    """One change to a slice of a series, or to its folder: an attribute, bytes, a file too many."""
    files = sorted((root / "series").iterdir())
    path, other = rng.choice(files), rng.choice(files)
    others = ("gone", "no attribute", "bytes", "bytes", "syntax", "copied", "renamed", "all")
    kind = rng.choice(("attribute",) * 6 + others)
    if kind == "bytes":
        path.write_bytes(cut_or_flipped(path.read_bytes(), rng))
    elif kind == "gone":
        path.unlink()
    elif kind == "syntax":
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", rng.choice(SYNTAXES)))
    elif kind == "copied":
        (path.parent / "again.dcm").write_bytes(other.read_bytes())
    elif kind == "renamed":
        path.rename(path.with_name(rng.choice(("DICOMDIR", "\x1b[2J.dcm", ".hidden", "x.nii.gz", "y"))))
    else:
        keyword, text, number = rng.choice(GEOMETRY), rng.choice(TEXTS), rng.choice(WHOLE)
        for one in files if kind == "all" else [path]:
            _edit(one, kind, keyword, text, number)
        return f"{kind} {keyword} {text[:20]!r} {number}", False
    return f"{kind} {path.name}", False


def _edit(path: Path, kind: str, keyword: str, text: bytes, number: int) -> None:
    """Change a file past pydicom's own checks: its raw bytes say what they say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = pydicom.dcmread(path)
        if kind == "no attribute":
            content.pop(keyword, None)
        else:
            tag = pydicom.datadict.tag_for_keyword(keyword)
            kind_of_value = pydicom.datadict.dictionary_VR(tag)
            if kind_of_value == "US":
                content[tag] = DataElement(tag, "US", number)
            else:
                raw = text + b" " * (len(text) % 2)
                stored = "OW" if keyword == "PixelData" else kind_of_value
                content[tag] = RawDataElement(pydicom.tag.Tag(tag), stored, len(raw), raw, 0, False, True)
        content.save_as(path)


# --- checkpoints

PLAIN: tuple[Any, ...] = (
    None, True, -1, 0, 7, 10**9, 10**30, 1.5, float("nan"), "", "x", "os.system", [], {}, [1], (), b"x",
)  # fmt: skip


def make_model(root: Path) -> None:
    """A checkpoint of a small network."""
    write_model(root / "model.ckpt")


class Runs:
    """What a pickle runs when it is loaded by whoever allows it."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def _tensors(root: Path) -> Iterator[tuple[str, Callable[[torch.Tensor], Any]]]:
    """What a weight may be replaced by."""
    indices = torch.tensor([[10**6]])
    yield "not finite", lambda weight: torch.full_like(weight, float("inf"))
    yield "empty", lambda weight: weight.new_empty(0)
    yield "another shape", lambda weight: weight[None]
    yield "huge", lambda weight: torch.zeros(1).expand(10**10)
    yield "complex", lambda weight: weight.to(torch.complex64)
    yield "whole numbers", lambda weight: weight.to(torch.int64)
    yield "float8", lambda weight: weight.to(torch.float8_e4m3fn)
    yield "meta", lambda weight: weight.to("meta")
    yield "quantised", lambda weight: torch.quantize_per_tensor(weight.float(), 0.1, 0, torch.qint8)
    yield "sparse", lambda weight: weight.to_sparse()
    yield (
        "sparse beyond its size",
        lambda weight: Runs(
            torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (indices, torch.ones(1), (3,), True)
        ),
    )
    yield (
        "beyond its storage",
        lambda weight: Runs(torch._utils._rebuild_tensor_v2, weight.untyped_storage(), 0, (10**6,), (1,), False, {}),
    )
    yield (
        "before its storage",
        lambda weight: Runs(torch._utils._rebuild_tensor_v2, weight.untyped_storage(), -(10**6), (4,), (1,), False, {}),
    )
    yield "a program", lambda weight: Runs(os.system, f"touch {root.parent / 'owned'}")
    yield "an evaluation", lambda weight: Runs(eval, f"open({str(root.parent / 'owned')!r}, 'w')")
    yield "a list", lambda weight: [1.0]
    yield "a parameter", lambda weight: torch.nn.Parameter(weight)


def harm_model(rng: Random, root: Path) -> tuple[str, bool]:
    """One change to a checkpoint: its bytes, an entry of its archive, a plain value, a weight."""
    path = root / "model.ckpt"
    kind = rng.choice(("bytes", "archive") + ("value",) * 4 + ("weight",) * 4 + ("key",))
    if kind == "bytes":
        path.write_bytes(cut_or_flipped(path.read_bytes(), rng))
        return kind, False
    if kind == "archive":
        with zipfile.ZipFile(path) as parts:
            held = {part.filename: parts.read(part) for part in parts.infolist()}
        chosen = rng.choice(list(held))
        how = rng.choice(("gone", "cut", "zeros", "packed", "../owned"))
        content = held.pop(chosen)
        more = {"cut": content[: len(content) // 2], "zeros": bytes(len(content)), "packed": content}.get(how)
        held |= {} if how == "gone" else {"../owned" if more is None else chosen: content if more is None else more}
        packing = zipfile.ZIP_DEFLATED if how == "packed" else zipfile.ZIP_STORED
        with zipfile.ZipFile(path, "w", packing) as parts:
            for name, one in held.items():
                parts.writestr(name, one)
        return f"{chosen} {how}", False
    content = torch.load(path, weights_only=True)
    if kind == "weight":
        held = content["state_dict"]
        name = rng.choice(list(held))
        how, change = rng.choice(list(_tensors(root)))
        held[name] = change(held[name])
        what = f"{name} {how}"
    else:
        holder, key = rng.choice(list(_entries(content)))
        new = rng.choice(PLAIN)
        if kind == "value":
            holder[key] = copy.deepcopy(new)
        elif isinstance(holder, dict):
            holder[rng.choice(("x", 7, None))] = holder.pop(key)
        what = f"{kind} {key} {new!r}"
    torch.save(content, path)
    return what, False


def _entries(content: Any) -> Iterator[tuple[Any, Any]]:
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in list(items):
        yield content, key
        yield from _entries(value)


def read_model(root: Path) -> Any:
    """What a checkpoint gives back, in numbers."""
    model = read_checkpoint(root / "model.ckpt")
    weights = [weight for one in model.siblings for weight in one.state_dict().values()]
    return model.plan, len(model.siblings), [(tuple(one.shape), float(one.double().sum())) for one in weights]


# --- case stores


def make_store(data: Callable[[Path], None]) -> Callable[[Path], None]:
    """Write the data set of ``data`` and its store, which alone stays."""

    def make(root: Path) -> None:
        data(root / "data")
        plan = small_plan((10.0, 10.0, 10.0))
        preprocess_dataset(read_catalogue(root / "data"), plan, root / "store", workers=1, progress=False)

    return make


def harm_store(
    harm_json: Callable[[Random, Path], tuple[str, bool]], harm_bytes: Callable[[Random, Path], tuple[str, bool]]
) -> Callable[[Random, Path], tuple[str, bool]]:
    """One change to a file of a store; of a JSON file its list of checksums may speak the truth."""

    def harm(rng: Random, root: Path) -> tuple[str, bool]:
        files = sorted(path for path in (root / "store").rglob("*") if path.is_file())
        path = rng.choice(files)
        kind = rng.choice(("flipped", "gone", "bytes", "json", "json", "json"))
        what = kind
        if kind == "flipped":
            path.write_bytes(cut_or_flipped(path.read_bytes(), rng))
        elif kind == "gone":
            path.unlink()
        elif kind == "json":
            path = rng.choice([one for one in files if one.suffix == ".json"])
            what = harm_json(rng, path)[0]
            listed = path.parent / CHECKSUMS
            if listed.is_file() and path.is_file():
                lines = [line for line in listed.read_text().splitlines() if not line.endswith(f"  {path.name}")]
                listed.write_text("\n".join([*lines, f"{sha256(path)}  {path.name}"]) + "\n")
        else:
            what = harm_bytes(rng, path)[0]
        return f"{path.relative_to(root)} {what}", False

    return harm


def read_store(root: Path) -> Any:
    """Every case of a store, in numbers."""
    store = CaseStore(root / "store")
    found = []
    for name in store.names:
        record = store.record(name)
        image, labels = store.read_case(name)
        voxels = {label: len(places) for label, places in record.samples.items()} if record.has_labels else {}
        total = None if labels is None else int(labels.sum())
        found.append((name, image.shape, float(np.float64(image).sum()), total, voxels))
    return found
