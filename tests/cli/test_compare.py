"""``flarecps compare`` from files to tables, and what it says to mistaken users."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from latex_tables import tables

from flarecps.anatomy import FLARE22_ORGANS
from flarecps.cli.main import main
from flarecps.reporting.comparison import escaped
from flarecps.reporting.comparison_files import named_files
from flarecps.reporting.tables import score_rows
from flarecps.volumes.io import write_volume
from flarecps.volumes.space import Space

Run = Callable[..., tuple[int, str]]
COLUMNS = [organ.column for organ in FLARE22_ORGANS]


def write_table(path: Path, cases: dict[str, float], columns: list[str] = COLUMNS) -> Path:
    """FLARE's own table: each case's DSC is the same for all organs but the last, which has 0.1 less; NSD 0.03 more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Name", *(f"{c}_DSC" for c in columns), *(f"{c}_NSD" for c in columns)])
        for name, score in cases.items():
            row = [score] * (len(columns) - 1) + [score - 0.1]
            writer.writerow([f"{name}.nii.gz", *(f"{x:.4f}" for x in row), *(f"{x + 0.03:.4f}" for x in row)])
    return path


def write_efficiency(path: Path, rows: dict[str, tuple[float, float, float]]) -> Path:
    """FLARE's efficiency table: time, AUC GPU, AUC CPU."""
    lines = ["Name,Time,GPU_Mem,AUC_GPU_Time,CPU_Utilization,AUC_CPU_Time,RAM,AUC_RAM_Time"]
    lines += [f"{name}.nii.gz,{t},100,{gpu},50,{cpu},1000,2000" for name, (t, gpu, cpu) in rows.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_paths_may_hold_commas_and_be_many(tmp_path: Path) -> None:
    files = [write_table(tmp_path / "a,b" / name, {"case": 0.5}) for name in ("x,y.csv", "z.csv")]
    (tmp_path / "a").mkdir()
    assert named_files([f"CPS={files[0]},{files[1]}", str(files[0])], ()) == {"CPS": files, "x,y": [files[0]]}
    many = [files[1]] * 400  # more letters than a path may have
    assert named_files([f"CPS={','.join(map(str, many))}"], ()) == {"CPS": many}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """(exit code, all that was said) of `flarecps compare WORDS`."""
    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str | Path) -> tuple[int, str]:
        code = main(["compare", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return call


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A control and a method that is 0.02 0.04 0.06 better in three cases."""
    control = write_table(tmp_path / "control" / "scores" / "scores.csv", {"a": 0.70, "b": 0.80, "c": 0.90})
    method = write_table(tmp_path / "cps" / "scores.csv", {"a": 0.72, "b": 0.84, "c": 0.96})
    return control, method


def test_the_layout_of_the_papers_tables(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, said = run(*files, "--out", out)
    assert code == 0
    with (out / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["organ"] for row in rows] == [*COLUMNS, "mean"]  # Liver … LK, mean last, as the paper's rows
    liver, mean = rows[0], rows[-1]
    # control: mean of .7 .8 .9 is .8, SD .1; cps .84, SD √((.12² + 0 + .12²)/2) = .12
    assert (liver["DSC control mean"], liver["DSC control SD"]) == ("0.8", "0.1")
    assert (liver["DSC cps mean"], liver["DSC cps SD"], liver["DSC cps cases"]) == ("0.84", "0.12", "3")
    # mean over 13 organs, the last 0.1 lower: .8 - .1/13
    assert float(mean["DSC control mean"]) == pytest.approx(0.8 - 0.1 / 13, abs=1e-6)
    markdown = (out / "comparison.md").read_text()
    assert "DSC control |" in markdown
    assert " 0.8400 ± 0.1200" in markdown
    assert "0.8400 ± 0.1200" in said
    assert max(len(line) for line in said.splitlines() if "│" in line or "±" in line) <= 80


def test_differences_are_the_hand_computed_ones(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    """+.02 +.04 +.06: mean .04; exact p 2/8; 13 organs with the same p: Holm 13 · .25 > 1; three wins."""
    run(f"control={files[0]}", f"CPS={files[1]}", "--out", tmp_path / "out")
    with (tmp_path / "out" / "differences.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 14
    for row in rows:
        assert (row["method"], row["baseline"], row["difference"]) == ("CPS", "control", "0.04")
        assert (row["p"], row["p_holm"]) == ("0.25", "" if row["organ"] == "mean" else "1")
        assert (row["better"], row["equal"], row["worse"], row["cases"]) == ("3", "0", "0", "3")
        assert 0.02 <= float(row["low"]) < 0.04 < float(row["high"]) <= 0.06
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["baseline"] == "control"
    assert content["differences"]["dsc"]["CPS"]["Liver"]["counts"] == {"wins": 3, "ties": 0, "losses": 0}


def test_seeds_of_one_method(run: Run, tmp_path: Path) -> None:
    """Seeds .70 .80 and .74 .84: mean .77, SD over cases .1/√2 = .0707, over seeds .04/√2 = .0283."""
    for seed, more in enumerate((0.0, 0.04)):
        write_table(tmp_path / f"cps_{seed}" / "scores.csv", {"a": 0.70 + more, "b": 0.80 + more})
    control = write_table(tmp_path / "control.csv", {"a": 0.6, "b": 0.8})
    for word in (f"CPS={tmp_path}/cps_0,{tmp_path}/cps_1/scores.csv", f"CPS={tmp_path}/cps_*"):
        code, said = run(f"control={control}", word, "--out", tmp_path / "out")
        assert code == 0
        assert "0.7700 ± 0.0707 (0.0283)" in said
        assert "in brackets SD over seeds" in said
        assert "seeds: control 1, CPS 2" in said
    assert "(0.0283)" in (tmp_path / "out" / "comparison.tex").read_text()


def test_latex_is_sound_and_its_cells_are_the_numbers(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    efficiencies = [write_efficiency(tmp_path / f"e{k}.csv", dict.fromkeys("abc", (1.0 + k, 2.0, 3.0))) for k in (0, 1)]
    names = "control_50%,CPS & more"
    code, _ = run(*files, "--names", names, "--out", tmp_path / "out", "--efficiency", *efficiencies)
    assert code == 0
    source = (tmp_path / "out" / "comparison.tex").read_text()
    means, differences, ranking = tables(source)
    assert means[0] == ["Metrics", r"\multicolumn{2}{c}{DSC}", r"\multicolumn{2}{c}{NSD}"]
    assert means[1] == ["Organ", *[r"control\_50\%", r"CPS \& more"] * 2]
    assert [row[0] for row in means[2:]] == [*COLUMNS, "mean"]
    assert means[2][1:3] == [r"0.8000 $\pm$ 0.1000", r"0.8400 $\pm$ 0.1200"]
    assert [row[0] for row in differences].count("mean") == 2
    assert differences[2][1] == "+0.0400"
    assert [row[0] for row in ranking] == ["method", r"CPS \& more", r"control\_50\%"]


WILD_NAMES = "λ±,#_{},\\,~^,[$&%]"


def wild_files(folder: Path) -> list[Path]:
    """Five methods' tables whose organs hold every sign with a meaning in LaTeX."""
    columns = ["[a]_#1", "b^2~{x}", "50%_&_\\more", "$5|<>"]
    return [write_table(folder / f"{k}.csv", {"a": 0.7, "b": 0.8}, columns) for k in range(5)]


def test_latex_of_any_name(run: Run, tmp_path: Path) -> None:
    """Every sign with a meaning in LaTeX, in names of methods and organs; a bracket at the beginning of a row."""
    assert run(*wild_files(tmp_path), "--names", WILD_NAMES, "--out", tmp_path / "out")[0] == 0
    parsed = tables((tmp_path / "out" / "comparison.tex").read_text())
    assert len(parsed) == 2 + 4  # five methods: a table per measure, and four of differences
    assert parsed[0][2][0] == r"{[}a{]} \#1"


@pytest.mark.parametrize(
    "broken",
    [
        r"\begin{tabular}{lr} a & b \\",  # never closed
        r"\begin{tabular}{lr} a & b & c \\ \end{tabular}",  # a column too many
        r"\begin{tabular}{lr} a_1 & b \\ \end{tabular}",  # not escaped
        r"\begin{tabular}{lr} a & {b \\ \end{tabular}",  # a brace left open
        r"\begin{tabular}{l} \textbold{a} \\ \end{tabular}",  # no such command
    ],
)
def test_the_latex_reader_refuses_what_latex_would(broken: str) -> None:
    with pytest.raises(AssertionError):
        tables(broken)


def typeset(folder: Path) -> subprocess.CompletedProcess[str]:
    """What pdflatex says of the folder's comparison.tex in a plain article."""
    (folder / "page.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{comparison.tex}\\end{document}"
    )
    return subprocess.run(
        ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "page.tex"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(run: Run, tmp_path: Path) -> None:
    run(*wild_files(tmp_path), "--names", WILD_NAMES, "--out", tmp_path)
    done = typeset(tmp_path)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_of_two_methods_fits_a_page(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    """13 organs, DSC and NSD of two methods, and the differences: within the text width of a plain article."""
    run(*files, "--out", tmp_path)
    assert "Overfull" not in typeset(tmp_path).stdout


def test_escaping_by_hand() -> None:
    assert escaped("a_b & 5%") == r"a\_b \& 5\%"
    assert escaped("\\{~^") == r"\textbackslash{}\{\textasciitilde{}\textasciicircum{}"


def test_flares_ranking_by_hand(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    """CPS is better in DSC and NSD (ranks 1), slower (2), takes more GPU (2), less CPU (1), in both ranked cases:
    (1 + 1 + 2 + 2/2 + 1/2) / 4 = 1.375 against 1.625. Case c has no time of the control; names may end in _0000.
    """
    control = write_efficiency(tmp_path / "e" / "control.csv", {"a_0000": (10, 100, 50), "b_0000": (12, 100, 50)})
    cps = write_efficiency(tmp_path / "e" / "cps.csv", {"a": (20, 200, 40), "b": (20, 200, 40), "c": (20, 200, 40)})
    words = [f"control={files[0]}", f"CPS={files[1]}", "--out", tmp_path / "out"]
    code, said = run(*words, "--efficiency", f"CPS={cps}", f"control={control}")
    assert code == 0
    with (tmp_path / "out" / "ranking.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    standings = [(row["method"], row["place"], row["score"]) for row in rows]
    assert standings == [("CPS", "1", "1.375"), ("control", "2", "1.625")]
    assert "ranked over 2 of 3 cases; not all measures of c" in said
    assert "without FLARE's tolerance of 2048 MB" in said
    in_order = run(*words, "--efficiency", control, cps)[1]
    assert "1.375" in in_order


def test_the_ranking_takes_the_tolerance_where_all_tables_have_it(
    run: Run, files: tuple[Path, Path], tmp_path: Path
) -> None:
    """GPU areas of 100 and 200 are 0 above 2048 MB: equal, so 1.5 each instead of 1 and 2."""
    folders = []
    for name, area in (("control", 100.0), ("cps", 200.0)):
        table = write_efficiency(tmp_path / name / "eff" / "efficiency.csv", dict.fromkeys("abc", (10, area, 50)))
        lines = table.read_text().splitlines()
        more = [f"{line},{'AUC_GPU_Time_over_2048MB' if not row else 0}" for row, line in enumerate(lines)]
        table.with_name("efficiency_all.csv").write_text("\n".join(more) + "\n")
        folders.append(table.parent)
    for efficiencies, rank, words in (
        (folders, "1.5", "memory above 2048 MB"),
        ([folder / "efficiency.csv" for folder in folders], "1.0", "without FLARE's tolerance"),
        ([folders[0], folders[1] / "efficiency.csv"], "1.0", "without FLARE's tolerance"),
    ):
        said = run(*files, "--efficiency", *efficiencies, "--out", tmp_path / "out")[1]
        assert words in said
        with (tmp_path / "out" / "ranking.csv").open() as stream:
            control = next(row for row in csv.DictReader(stream) if row["method"] == "control")
        assert control["rank AUC_GPU_Time"] == rank


def test_a_score_folder_agrees_with_flarecps_score(files: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    """The column of a method is what `flarecps score` prints for it."""
    from flarecps.evaluation.score_table import read_scores

    run(files[1].parent, "--out", tmp_path / "out")
    with (tmp_path / "out" / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    theirs = [row[1] for row in score_rows(read_scores(files[1]))]
    assert [f"{float(row['DSC cps mean']):.4f} ± {float(row['DSC cps SD']):.4f}" for row in rows] == theirs


def test_folders_of_flarecps_score_with_their_rules(run: Run, tmp_path: Path) -> None:
    """Organs in neither map: 1 by the official rules, no number by the strict ones; that and the rules are said."""
    space = Space.canonical((6, 8, 8), (2.0, 1.0, 1.0))
    for name, labels in (("a", (1, 9)), ("b", (1,))):
        scan = np.zeros((6, 8, 8), np.uint8)
        for place, label in enumerate(labels):
            scan[2:5, 1:4, 1 + 4 * place : 4 + 4 * place] = label
        write_volume(tmp_path / "references" / f"{name}.nii.gz", scan, space)
        write_volume(tmp_path / "predictions" / f"{name}.nii.gz", scan, space)
    pair = [str(tmp_path / "predictions"), str(tmp_path / "references")]
    for protocol in ("official", "strict"):
        assert main(["score", *pair, "--protocol", protocol, "--out", str(tmp_path / protocol), "--workers", "1"]) == 0
    code, said = run(tmp_path / "official", tmp_path / "strict", "--out", tmp_path / "out")
    assert code == 0
    assert "scored by different protocols, so the numbers are not comparable" in said
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    cells = content["means"]["dsc"]
    assert (cells["official"]["Gallbladder"]["n"], cells["strict"]["Gallbladder"]["n"]) == (2, 1)
    assert content["methods"]["strict"]["protocols"] == ["strict"]
    # 11 organs in neither case, the gallbladder in one: 23 cells each of DSC and NSD
    assert "strict: 46 cells without a number" in said


def test_mistakes_are_answered(run: Run, files: tuple[Path, Path], tmp_path: Path) -> None:
    control, cps = files
    percent = write_table(tmp_path / "percent.csv", {"a": 70.0, "b": 80.0})
    doubled = write_table(tmp_path / "doubled.csv", {"a": 0.5})
    doubled.write_text(doubled.read_text() + doubled.read_text().splitlines()[1] + "\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_table.csv").write_text("x,y\n1,2\n")
    for words, answer in [
        ([control, tmp_path / "nowhere.csv"], "no such file"),
        ([control, tmp_path / "empty"], "holds no scores.csv"),
        ([control, f"CPS={tmp_path}/none_*"], "nothing matches"),
        ([control, tmp_path / "no_table.csv"], "not a table of scores"),
        ([control, percent], "Liver_DSC of a is 70; expected shares from 0 to 1"),
        ([control, doubled], "the case 'a' has two rows"),
        ([f"A={control}", f"A={cps}"], "the method name 'A' is used twice"),
        ([f"A={control},{control}"], "the same file twice"),
        ([control, cps, "--names", "one"], "1 names for 2 methods"),
        ([control, cps, "--efficiency", control], "1 tables for 2 methods"),
        ([control, cps, "--efficiency", control, cps], "not a table of efficiency (without Time"),
        ([control, cps, "--confidence", "95"], "expected a share between 0 and 1"),
    ]:
        code, said = run(*words)
        assert (code, answer in said) == (2, True), said
        assert said.count("\n") == 1, said
