"""Data sets as a planner sees them: spacings (mm) and shapes (voxels) of their scans, (slice, row, column).

Made ones cover what planners decide by: isotropic and anisotropic scans, tiny and huge ones, single slices, thresholds
hit exactly, coarse axes in every place, few and many scans, classes, channels and gigabytes. Real ones are read from
the data folder. Everything is drawn from fixed seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flarecps.datasets.catalogue import read_catalogue
from flarecps.planning.fingerprint import fingerprint_case, fingerprint_dataset
from flarecps.volumes.io import read_channels

Geometry = dict[str, Any]


def made() -> Iterator[Geometry]:
    """Some seventy invented data sets, each for a rule."""
    abdomen = {"spacing": (1.0, 0.8, 0.8), "shape": (400, 512, 512), "classes": 14}
    for gb in (4, 8, 11, 24, 40, 80):
        yield _varied(f"thin abdominal CT, {gb} GB", **abdomen, gb=gb)
    for gb in (2, 8):
        yield _same(f"abdominal CT as in the paper, {gb} GB", (1.0, 0.8, 0.8), (400, 512, 512), classes=14, gb=gb)
    yield _varied("one abdominal CT", **abdomen, count=1)
    yield _varied("abdominal CT, 105 classes", (1.5, 0.9, 0.9), (280, 480, 480), classes=105)
    yield _varied("abdominal CT, 5 mm slices", (5.0, 0.8, 0.8), (60, 512, 512), classes=14)
    yield _varied("abdominal CT, 2.5 mm slices, 24 GB", (2.5, 0.8, 0.8), (100, 512, 512), classes=14, gb=24)
    yield _varied("whole-body PET/CT, 2 channels", (3.0, 2.04, 2.04), (326, 400, 400), channels=2)
    yield _varied(
        "brain MR, 4 channels, isotropic", (1.0, 1.0, 1.0), (140, 170, 138), classes=4, channels=4, spread=0.05
    )
    yield _varied("hippocampus, tiny", (1.0, 1.0, 1.0), (36, 50, 35), classes=3, count=60)
    yield _varied("heart, thick short axis", (10.0, 1.56, 1.56), (9, 216, 256), classes=4)
    yield _varied("prostate MR, 2 channels", (3.6, 0.62, 0.62), (20, 320, 320), classes=3, channels=2)
    yield _varied("knee MR, coronal slices", (0.5, 3.0, 0.5), (320, 32, 320), classes=5)
    yield _varied("spine MR, sagittal slices", (0.7, 0.7, 4.4), (448, 448, 15), classes=8)
    yield _varied("spine MR, sagittal slices, thin", (1.0, 1.0, 3.3), (440, 440, 18), classes=8)
    yield _varied("micro-CT, huge and isotropic", (0.05, 0.05, 0.05), (1400, 1000, 1000))
    yield _varied("cone-beam CT, huge", (0.2, 0.2, 0.2), (500, 800, 800), classes=3)
    yield _varied("chest CT, very long", (0.6, 0.75, 0.75), (1200, 512, 512), gb=24)
    yield _varied("electron microscopy, very thick", (50.0, 4.0, 4.0), (165, 1000, 1000))
    yield _same("a cube of 24 voxels", (1.0, 1.0, 1.0), (24, 24, 24))
    yield _same("a few voxels, odd", (1.0, 1.0, 1.0), (9, 11, 7))
    yield _same("nothing to halve", (1.0, 1.0, 1.0), (7, 6, 7))
    yield _same("three slices", (5.0, 1.0, 1.0), (3, 40, 40))
    yield _same("two slices", (5.0, 1.0, 1.0), (2, 256, 256))
    yield _same("pencil", (1.0, 1.0, 1.0), (2000, 64, 64))
    yield _same("plank", (1.0, 1.0, 1.0), (30, 100, 900))
    yield _same("photographs (single slices)", (999.0, 1.0, 1.0), (1, 512, 768), channels=3)
    yield _same("slide scans (single slices)", (999.0, 0.5, 0.5), (1, 6000, 9000), channels=3)
    for ratio in (1.99, 2.0, 2.01, 3.0, 3.01, 4.0, 8.0):
        yield _same(f"slices {ratio:g} times as thick", (ratio, 1.0, 1.0), (64, 320, 320))
    yield _same("two coarse axes", (1.0, 3.0, 3.0), (300, 100, 100))
    yield _same("two equal coarse axes, in-plane", (2.5, 4.0, 4.0), (64, 53, 55))
    yield _same("3 mm, but for rounding in the header", (3.0, 3.0000002, 3.0), (112, 122, 101))
    yield _varied("thin and thick slices mixed", (5.0, 0.8, 0.8), (60, 512, 512), slice_mm=(0.8, 1.25, 5.0, 5.0, 8.0))
    yield _varied(
        "tenth percentile finer than the plane", (6.0, 1.0, 1.0), (20, 300, 300), slice_mm=(0.5, 6.0, 6.0, 7.0)
    )
    for count in (2, 12, 60, 150):
        yield _varied(f"{count} small scans", (2.0, 2.0, 2.0), (40, 48, 44), count=count)
    generator = np.random.default_rng(2026)
    for index in range(20):
        spacing = np.exp(generator.uniform(np.log(0.3), np.log(8.0), 3)).round(3)
        shape = np.exp(generator.uniform(np.log(4), np.log(700), 3)).round().astype(int)
        gb = generator.choice([6, 8, 10, 16, 48])
        yield _varied(
            f"at random {index + 1}, {gb} GB", tuple(spacing), tuple(shape), gb=float(gb),
            classes=int(generator.integers(2, 30)), count=int(generator.integers(1, 40)), seed=index,
        )  # fmt: skip


def real(data: Path) -> Iterator[Geometry]:
    """The real data sets; shapes after this program's cropping, of the FLARE22 labels as they are (no images)."""
    flare = [read_channels((path,)).space for path in sorted((data / "flare22_labels").glob("*.nii.gz"))]
    spacings, shapes = [one.spacing_mm for one in flare], [one.shape for one in flare]
    for gb in (2, 8):
        yield _geometry(f"real: FLARE22's 50 labelled CTs, {gb} GB", spacings, shapes, 14, gb=gb)
    for name, folder in (("OpenKBP head-and-neck CT", "kbp"), ("left atrium MR", "la")):
        catalogue = read_catalogue(data / folder)
        fingerprint, failed = fingerprint_dataset(catalogue, workers=2)
        if failed:
            raise SystemExit(f"{failed[0].name}: {failed[0].error}")
        spacings, shapes = (
            [one.spacing_mm for one in fingerprint.cases],
            [one.shape_voxels for one in fingerprint.cases],
        )
        yield _geometry(f"real: {name}", spacings, shapes, len(catalogue.labels))
    for folder in ("abdomen_512", "example_3mm"):
        volume = read_channels((data / "ct" / folder / "ct.nii.gz",))
        found = fingerprint_case(volume, None, name=folder, role="labelled", ct=True, known_labels=()).cases[0]
        yield _geometry(f"real: CT {folder}", [found.spacing_mm], [found.shape_voxels], 14)


def _varied(
    name: str,
    spacing: tuple[float, ...],
    shape: tuple[int, ...],
    *,
    count: int = 25,
    spread: float = 0.15,
    slice_mm: tuple[float, ...] = (),
    seed: int = 0,
    **more: Any,
) -> Geometry:
    """``count`` scans around ``spacing`` and ``shape``; in-plane spacings equal where they are in ``spacing``."""
    generator = np.random.default_rng([seed, count])
    spacings, shapes = [], []
    for index in range(count):
        factors = np.exp(generator.normal(0, spread, 3))
        mm = [round(float(edge * factor), 4) for edge, factor in zip(spacing, factors, strict=True)]
        if spacing[1] == spacing[2]:
            mm[2] = mm[1]
        if slice_mm:
            mm[0] = slice_mm[index % len(slice_mm)]
        spacings.append(tuple(mm))
        shapes.append(tuple(max(1, round(edge * float(np.exp(generator.normal(0, spread))))) for edge in shape))
    return _geometry(name, spacings, shapes, **more)


def _same(name: str, spacing: tuple[float, ...], shape: tuple[int, ...], count: int = 5, **more: Any) -> Geometry:
    return _geometry(name, [spacing] * count, [shape] * count, **more)


def _geometry(
    name: str, spacings: list[Any], shapes: list[Any], classes: int = 2, channels: int = 1, gb: float = 8.0
) -> Geometry:
    return {
        "name": name,
        "gpu_memory_gb": float(gb),
        "classes": classes,
        "channels": channels,
        "spacings_mm": [[float(edge) for edge in one] for one in spacings],
        "shapes_voxels": [[int(edge) for edge in one] for one in shapes],
    }
