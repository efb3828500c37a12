"""Overlay pictures: what is drawn lies where it belongs, in millimetres, in the organ's colour."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from flarecps.anatomy import FLARE22_ORGANS, Organ, organs_of
from flarecps.reporting.case_figures import CaseRow, comparison_figure
from flarecps.reporting.overlays import display_window, overlay_figure
from flarecps.reporting.plotting import write_png

SHAPE = (12, 20, 24)
SPACING = (5.0, 1.5, 1.5)
LIVER, SPLEEN = FLARE22_ORGANS[0], FLARE22_ORGANS[2]


def texts(figure: Figure) -> list[str]:
    own = [text.get_text() for text in figure.texts]
    own += [text.get_text() for axes in figure.axes for text in axes.texts]
    return own + [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def pixels(figure: Figure) -> np.ndarray:
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(float)


def panels(figure: Figure) -> list:
    """The axes that show a scan, row by row."""
    return [axes for axes in figure.axes if axes.images]


def inside(figure: Figure, axes: object) -> np.ndarray:
    """The pixels of one panel, first row on top."""
    picture = pixels(figure)
    box = axes.get_window_extent()  # type: ignore[attr-defined]
    height = picture.shape[0]
    return picture[height - round(box.y1) + 1 : height - round(box.y0) - 1, round(box.x0) + 1 : round(box.x1) - 1]


def looks_like(picture: np.ndarray, organ: Organ) -> np.ndarray:
    """Where a picture has the hue of an organ (strongest minus weakest channel as in its colour)."""
    colour = np.array(organ.colour, float)
    wanted = (colour - colour.mean()) / np.linalg.norm(colour - colour.mean())
    hue = picture - picture.mean(axis=-1, keepdims=True)
    strength = np.linalg.norm(hue, axis=-1)
    return (hue @ wanted > 0.97 * strength) & (strength > 30)


@pytest.fixture
def case() -> tuple[np.ndarray, np.ndarray]:
    """A grey block and a reference with the liver on the patient's right and the spleen on the left."""
    image = np.full(SHAPE, 40.0)
    reference = np.zeros(SHAPE, np.uint8)
    reference[4:9, 8:14, 15:21] = LIVER.id  # large column index: the patient's right
    reference[4:9, 4:8, 3:7] = SPLEEN.id
    return image, reference


def test_grid_headings_legend_and_convention(case: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = case
    figure = overlay_figure(image, reference, {"CPS": reference, "control": reference}, SPACING, FLARE22_ORGANS)
    assert len(panels(figure)) == 3 * 4
    written = texts(figure)
    for word in ("scan", "reference", "CPS", "control", "liver", "spleen", "outline of the reference"):
        assert written.count(word) == 1
    assert "pancreas" not in written
    assert any("patient’s right is on the image’s left" in text for text in written)
    assert {text.split()[0] for text in written if text.split()[-1].isdigit()} == {"axial", "coronal", "sagittal"}


def test_sides_and_colours(case: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = case
    figure = overlay_figure(image, reference, {"CPS": reference}, SPACING, FLARE22_ORGANS)
    axial = inside(figure, panels(figure)[1])
    rows, columns = np.nonzero(looks_like(axial, LIVER))
    other_rows, other_columns = np.nonzero(looks_like(axial, SPLEEN))
    assert columns.max() < axial.shape[1] / 2 < other_columns.min()  # the patient's right on the image's left
    assert rows.mean() < other_rows.mean()  # the spleen lies further back: lower in the picture


def test_one_scale_of_millimetres(case: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = case
    figure = overlay_figure(image, reference, {}, SPACING, FLARE22_ORGANS)
    pixels(figure)
    scales = []
    for axes in panels(figure):
        box = axes.get_window_extent()
        left, right = axes.get_xlim()
        bottom, top = axes.get_ylim()
        scales += [box.width / (right - left), box.height / (bottom - top)]
    assert np.allclose(scales, scales[0], rtol=1e-6)
    # the area of the liver in the picture is that of its voxels: 6 × 6 of 1.5 mm
    axial = inside(figure, panels(figure)[1])
    drawn_mm2 = looks_like(axial, LIVER).sum() / scales[0] ** 2
    assert drawn_mm2 == pytest.approx(36 * 1.5**2, rel=0.08)


def test_missed_and_superfluous_organs_can_be_told_apart(case: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = case
    prediction = np.where(reference == LIVER.id, 0, reference).astype(np.uint8)
    figure = overlay_figure(image, reference, {"CPS": prediction}, SPACING, FLARE22_ORGANS)
    shown = inside(figure, panels(figure)[2])
    assert not looks_like(shown, LIVER).any()
    white = (shown > 200).all(axis=-1)
    assert white[:, : white.shape[1] // 2].sum() > 50  # its outline is there all the same


def test_without_reference_or_without_predictions(case: tuple[np.ndarray, np.ndarray]) -> None:
    image, labels = case
    figure = overlay_figure(image, None, {"CPS": labels}, SPACING, FLARE22_ORGANS)
    assert len(panels(figure)) == 3 * 2
    assert "outline of the reference" not in texts(figure)
    assert len(panels(overlay_figure(image, None, {}, SPACING, FLARE22_ORGANS))) == 3
    assert len(panels(overlay_figure(image, np.zeros_like(labels), {"CPS": labels}, SPACING, FLARE22_ORGANS))) == 9


def test_one_organ_close_by(case: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = case
    figure = overlay_figure(image, reference, {"CPS": reference}, (5.0, 6.0, 6.0), FLARE22_ORGANS, SPLEEN)
    written = texts(figure)
    assert "spleen" in written
    assert "liver" not in written
    width = panels(figure)[0].get_xlim()[1]
    assert width < SHAPE[2] * 6.0  # cropped


def test_scores_in_the_corner_and_letters_taken_literally(case: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = case
    figure = overlay_figure(
        image, reference, {"$x_1$": reference, "b": reference}, SPACING, FLARE22_ORGANS,
        mean_dsc={"$x_1$": 0.8794, "b": math.nan},
    )  # fmt: skip
    pixels(figure)
    assert texts(figure).count("whole case: DSC 0.8794") == 1
    assert sum(text.startswith("whole case: DSC") for text in texts(figure)) == 1
    assert r"\$x_1\$" in texts(figure)  # how matplotlib is told that these are no formulas


def test_arrays_of_different_shape_are_refused(case: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = case
    with pytest.raises(ValueError, match="differ in shape"):
        overlay_figure(image, reference[1:], {}, SPACING, FLARE22_ORGANS)


def test_other_label_sets() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[5, 5, 5] = 1
    organs = organs_of({"background": 0, "left atrium": 1})
    assert "left atrium" in texts(overlay_figure(np.zeros(SHAPE), labels, {}, SPACING, organs, window_hu=(0.0, 1.0)))


def test_window_of_a_scan_without_units() -> None:
    assert display_window(np.arange(101.0), is_hu=False) == (1.0, 99.0)
    low, high = display_window(np.zeros((2, 2)), is_hu=False)
    assert high > low


def test_comparison_figure_has_a_row_per_case(case: tuple[np.ndarray, np.ndarray]) -> None:
    image, reference = case
    rows = [
        CaseRow(name, image, reference, {"control": reference, "CPS": reference}, SPACING, {"CPS": dsc})
        for name, dsc in (("a", 0.75), ("b", 0.5))
    ]
    figure = comparison_figure(rows, FLARE22_ORGANS)
    assert len(panels(figure)) == 2 * 4
    written = texts(figure)
    assert [text for text in written if text in ("image", "reference", "control", "CPS")] == [
        "image", "reference", "control", "CPS",
    ]  # fmt: skip
    assert "whole case: DSC 0.7500" in written
    assert "whole case: DSC 0.5000" in written
    with pytest.raises(ValueError, match="at least one case"):
        comparison_figure([], FLARE22_ORGANS)
    with pytest.raises(ValueError, match="the same methods"):
        comparison_figure([rows[0], CaseRow("c", image, reference, {"CPS": reference}, SPACING)], FLARE22_ORGANS)


def test_comparison_figure_becomes_a_png(case: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    image, reference = case
    row = CaseRow("a", image, reference, {"CPS": reference}, SPACING)
    write_png(tmp_path / "f.png", comparison_figure([row], FLARE22_ORGANS), dots_per_inch=160)
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]


def test_pyplot_is_never_loaded() -> None:
    code = (
        "import sys, flarecps.reporting.html, flarecps.reporting.case_figures; "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
