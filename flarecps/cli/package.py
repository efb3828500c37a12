"""``flarecps package``: trained networks as a folder that says what they are and segments wherever it is put."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flarecps.planning.plan import Plan
    from flarecps.reporting.run_folder import Run


def package(
    checkpoint: list[Path],
    out: Path,  # shows as OUT on the command line
    scores: Path | None = None,
    data_source: str | None = None,
    intended_use: str | None = None,
    licence: str | None = None,
    trust: list[str] | None = None,
) -> int:
    """Write a folder to hand on: weights, a model card, post-processing rules, checksums.

    The weights are those that 'flarecps segment' uses: no optimiser, and no path of this machine. The card, README.md,
    says what the run knows of data, plan, labels and training, and "not stated" of the rest. A postprocessing.json
    beside the checkpoint comes along, without the names of the scans it was found on.

    Args:
        checkpoint: a .ckpt file written by 'flarecps fit' or 'flarecps import'; of several (the folds of one plan) the
            probabilities are averaged.
        out: the folder to write, a new one. It appears whole or not at all.
        scores: for the card: a scores.csv of test cases, or the folder that 'flarecps score' wrote.
        data_source: for the card: where the scans come from, whom they show, and by what leave they were used.
        intended_use: for the card: what the model is for, and what it is not for.
        licence: for the card: under which the weights may be used.
        trust: classes of your own networks that the checkpoint may name, such as my_lab.nets.MyUNet; their code runs.
    """
    import shlex
    from dataclasses import replace

    from flarecps.atomic import write_text
    from flarecps.checkpoint import TrainedModel
    from flarecps.cli.console import Console
    from flarecps.evaluation.score_table import read_scores
    from flarecps.inference.postprocessing import FILE_NAME, read_rules, rules_beside, write_rules
    from flarecps.inference.segmenter import Segmenter
    from flarecps.interop.model_package import write_package
    from flarecps.named_paths import check_output_folder
    from flarecps.reporting.model_card import Statements, model_card

    console, warn = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    check_output_folder(out)
    trusted = tuple(trust or ())
    plan = Segmenter.load(checkpoint, device="cpu", trusted=trusted).plan  # whole, and of one plan
    alone = len(checkpoint) == 1
    files = {"model.ckpt" if alone else f"model_{number}.ckpt": path for number, path in enumerate(checkpoint, 1)}
    table = scores / "scores.csv" if scores is not None and scores.is_dir() else scores
    scored = read_scores(table) if table is not None else None
    has_rules = any((path.parent / FILE_NAME).is_file() for path in checkpoint)
    rules = read_rules(rules_beside(tuple(checkpoint)), plan.labels) if has_rules else None
    words = ["flarecps", "segment", *files, "SCANS", "LABELS"]
    words += ["--postprocess", "auto"] if rules else []
    words += [word for one in trusted for word in ("--trust", one)]

    def write_beside(folder: Path, models: dict[str, TrainedModel]) -> None:
        runs = {name: run_of(path, models[name].plan) for name, path in files.items()}
        for name in (name for name, run in runs.items() if run is None):
            warn.print(
                f"{files[name]}: not in the RUN/checkpoints of its training; how it went is 'not stated'", markup=False
            )
        if rules is not None:
            evidence = {key: value for key, value in rules.evidence.items() if key != "scans"}
            write_rules(folder / FILE_NAME, replace(rules, evidence=evidence))
        statements = Statements(data_source, intended_use, licence)
        said = rules.describe() if rules is not None else None
        write_text(folder / "README.md", model_card(models, runs, shlex.join(words), statements, scored, said))

    write_package(out, files, write_beside, trusted)
    for path in sorted(out.iterdir()):
        console.print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)", markup=False)
    stated = {"scores": scores, "data-source": data_source, "intended-use": intended_use, "licence": licence}
    unsaid = [f"--{option}" for option, given in stated.items() if not given]
    if unsaid:
        console.print(f"the card says 'not stated' where {', '.join(unsaid)} would say it", markup=False)
    console.print(f"in {out}: {shlex.join(words)}", markup=False)
    return 0


def run_of(checkpoint: Path, plan: Plan) -> Run | None:
    """The run that wrote a checkpoint, by its place in RUN/checkpoints; None without one, or with another plan."""
    from flarecps.errors import DatasetError
    from flarecps.reporting.run_folder import read_run

    folder = checkpoint.resolve().parent
    if folder.name != "checkpoints":
        return None
    try:
        run = read_run(folder.parent, folder.parent.name, Path("segmentations"), Path("scores"))
    except DatasetError:
        return None
    return run if run.plan == plan else None
