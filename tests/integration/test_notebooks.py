"""The notebooks: they run from top to bottom on the synthetic example, show pictures, and are kept without outputs."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
PICTURES = {
    "01_look_at_the_data": 3,
    "02_read_a_training_run": 9,
    "03_results": 4,
    "04_segment_a_scan": 1,
    "05_an_experiment": 4,
}
MADE = {
    "01_look_at_the_data": ("doctor.html", "my_plan.json"),
    "02_read_a_training_run": ("run.html",),
    "03_results": ("figures/cases.png", "figures/worst_cases.png", "figures/figures.html"),
    "04_segment_a_scan": ("labels.nii.gz", "segmentations/test_001.nii.gz"),
    "05_an_experiment": (),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all notebooks run, so that they share one example; beside it the experiments, as in the repository."""
    top = tmp_path_factory.mktemp("project")
    (top / "notebooks").mkdir()
    (top / "benchmarks").symlink_to(NOTEBOOKS[0].parents[1] / "benchmarks")
    return top / "notebooks"


def test_all_are_known() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(PICTURES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert notebook.cells[0].source.startswith("# ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the kernel, beside other tests
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = [one.data["image/png"] for one in outputs if "image/png" in one.get("data", {})]
    assert len(pictures) == PICTURES[path.stem]
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.width > 150  # one organ’s chart is the smallest
            assert len(image.convert("RGB").getcolors(2**24) or []) > 20  # something is drawn
    assert all((folder / "work" / name).is_file() for name in MADE[path.stem])
