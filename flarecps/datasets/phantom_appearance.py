"""What the phantom's tissues measure in HU: contrast phases, mottle, the scanner's noise and drift."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from flarecps.datasets.phantom_shapes import Waves, draw_waves

AIR_HU = -1000.0
PHASES = ("native", "arterial", "portal venous", "late")

# Mean HU in the four phases; standard deviation between structures of one scan (HU); mottle within (HU, mm).
# The ranges overlap on purpose, between organs and with muscle and bowel: intensity alone must not tell them apart.
_TISSUES: dict[str, tuple[tuple[float, float, float, float], float, float, float]] = {
    "skin": ((20, 25, 30, 30), 0, 4, 20),
    "fat": ((-100, -100, -98, -98), 0, 7, 30),
    "muscle": ((52, 58, 66, 64), 3, 9, 14),
    "lung": ((-850, -840, -835, -840), 0, 35, 18),
    "myocardium": ((45, 90, 105, 90), 0, 6, 20),
    "heart blood": ((42, 230, 150, 120), 0, 5, 20),
    "cortical bone": ((420, 420, 430, 430), 30, 60, 15),
    "marrow": ((150, 155, 165, 165), 15, 40, 10),
    "disc": ((75, 75, 80, 80), 8, 10, 14),
    "canal": ((25, 30, 30, 30), 0, 5, 15),
    "liver": ((56, 68, 105, 94), 0, 6, 22),
    "portal vein": ((42, 85, 150, 122), 3, 4, 20),
    "spleen": ((48, 112, 126, 106), 0, 5, 25),
    "renal cortex": ((34, 168, 182, 150), 3, 6, 12),
    "renal medulla": ((30, 90, 162, 158), 3, 10, 16),
    "pancreas": ((38, 88, 92, 78), 0, 8, 12),
    "aorta": ((42, 260, 142, 118), 0, 4, 20),
    "cava": ((42, 66, 128, 116), 0, 6, 20),
    "adrenal": ((30, 66, 74, 62), 3, 5, 12),
    "bile": ((10, 10, 12, 12), 3, 4, 25),
    "dense bile": ((38, 38, 40, 40), 5, 6, 15),
    "esophagus": ((40, 58, 68, 62), 0, 7, 12),
    "esophagus lumen": ((30, 40, 48, 45), 8, 8, 12),
    "stomach wall": ((42, 72, 86, 78), 5, 7, 14),
    "gut wall": ((42, 76, 90, 80), 14, 8, 14),
    "water": ((12, 12, 14, 14), 4, 4, 25),
    "chyme": ((34, 36, 38, 38), 12, 12, 14),
    "food": ((48, 50, 52, 52), 14, 26, 14),
    "bright chyme": ((80, 84, 90, 86), 22, 16, 14),
    "oral contrast": ((190, 190, 190, 190), 55, 22, 20),
    "bowel tissue": ((44, 78, 100, 90), 18, 9, 14),
    "lump": ((46, 84, 106, 94), 20, 9, 20),
    "faeces": ((-10, -10, -5, -5), 20, 70, 13),
    "gas": ((-980, -980, -980, -980), 0, 5, 20),
    "table": ((-120, -120, -120, -120), 60, 20, 60),
}
TISSUES = tuple(_TISSUES)


@dataclass(frozen=True)
class Material:
    """One tissue of one scan: mean HU, its spread between structures (HU), and its mottle (HU, field)."""

    hu: float
    spread_hu: float
    mottle_hu: float
    mottle: Waves


@dataclass(frozen=True)
class Scanner:
    """How one scan was taken: its noise, drift and calibration, and the contrast phase."""

    phase: str
    noise_hu: float  # standard deviation of the noise
    grain_mm: float  # correlation length of the noise within a slice
    carry: float  # correlation of the noise between neighbouring slices, 0-1
    drift_hu: float  # standard deviation of the slow drift across the field
    drift: Waves
    round_field: bool  # nothing is reconstructed outside the circle


def draw_scanner(generator: np.random.Generator, wide: bool) -> Scanner:
    """A scanner: ``wide`` also has native scans, more noise and more drift, as other centres do."""
    shares = (0.2, 0.25, 0.3, 0.25) if wide else (0.0, 0.15, 0.6, 0.25)
    return Scanner(
        phase=str(generator.choice(PHASES, p=shares)),
        noise_hu=float(generator.uniform(8, 28) if wide else generator.uniform(8, 16)),
        grain_mm=float(generator.uniform(0.5, 4.5) if wide else generator.uniform(1.5, 3.5)),
        carry=float(generator.uniform(0.0, 0.5)),
        drift_hu=float(generator.uniform(0, 11) if wide else generator.uniform(0, 6)),
        drift=draw_waves(generator, 450, 4),
        round_field=bool(generator.random() < 0.35),
    )


def draw_materials(generator: np.random.Generator, phase: str, wide: bool) -> dict[str, Material]:
    """The tissues of one scan in a phase; timing, dose and fat differ between patients."""
    column = PHASES.index(phase)
    uptake = generator.uniform(0.6, 1.3) if wide else generator.uniform(0.85, 1.15)
    spread_of_uptake = 0.12 if wide else 0.06
    calibration = generator.normal(0, 6 if wide else 3)
    steatosis = generator.uniform(5, 40) if generator.random() < 0.3 else 0.0
    materials = {}
    for tissue, (means, spread, mottle, wavelength) in _TISSUES.items():
        native, enhanced = means[0], means[column]
        hu = native + (enhanced - native) * uptake * generator.uniform(1 - spread_of_uptake, 1 + spread_of_uptake)
        if tissue not in ("fat", "lung", "gas", "skin"):
            hu += generator.normal(0, 4) + calibration
        if tissue == "liver":
            hu -= steatosis
        materials[tissue] = Material(hu, spread, mottle, draw_waves(generator, wavelength))
    return materials


class Noise:
    """Slices of correlated noise, one after the other; the same generator gives the same slices in any chunks."""

    def __init__(self, generator: np.random.Generator, scanner: Scanner, in_plane_mm: tuple[float, float]) -> None:
        self._generator, self._scanner = generator, scanner
        self._sigma_voxels = tuple(scanner.grain_mm / spacing for spacing in in_plane_mm)
        self._before: np.ndarray | None = None

    def next_slice(self, shape: tuple[int, int]) -> np.ndarray:
        """Noise in HU (row, column), float32."""
        white = self._generator.standard_normal(shape, np.float32)
        fresh = ndimage.gaussian_filter(white, self._sigma_voxels, mode="wrap")
        fresh /= max(float(fresh.std()), 1e-6)
        if self._before is not None:
            fresh = self._scanner.carry * self._before + np.sqrt(1 - self._scanner.carry**2) * fresh
        self._before = fresh.astype(np.float32)
        return self._before * np.float32(self._scanner.noise_hu)
