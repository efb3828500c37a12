"""``flarecps reproduce flare22``: the paper's experiment, stage by stage, and its tables beside the numbers found."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from flarecps.cli import PLAIN
from flarecps.errors import ConfigError, visible

if TYPE_CHECKING:
    from flarecps.experiments.stages import Stage

RECORDS = "stages"  # folder of OUT
KINDS = ("2d", "3d")
WITH_KINDS = ("plan", "preprocess", "fit", "segment")
NOT_ALL = 1  # exit code: a stage could not be done because another must come first


def reproduce(
    study: Literal["flare22"],
    *,
    data: Path,
    out: Path = Path("reproduction"),
    stages: list[str] | None = None,
    without: list[str] | None = None,
    dry_run: bool = False,
    submit: bool = False,
    sbatch: str = "",
    more: Path | None = None,
    checkpoint: Literal["best", "last"] = "best",
    eight_gpus: bool = False,
    validation_20: Path | None = None,
    other_counts: bool = False,
    workers: int = 2,
) -> int:
    """Run the paper's FLARE22 experiment and fill its Tables 2 to 6 and Figure 5 beside the paper's numbers.

    DATA is FLARE22 as its organisers ship it: FLARE22_LabeledCase50/, FLARE22_UnlabeledCase…/, a validation folder with
    images/ and perhaps labels/, and perhaps a test folder. Stages are flarecps commands, printed before they run: data,
    inspect, plan, preprocess, four trainings (2D and 3D, supervised and CPS), segmentation in the settings of each
    table, scores by the official protocol, comparison, tables. A stage whose result stands is left out, so the same
    command goes on after an interruption. OUT/tables.md can be made at any time (--stages tables): what is not there
    yet, or can't be known, is said in its cell.

    Args:
        study: flare22.
        data: folder of the FLARE22 data; nothing is written there.
        out: folder for everything; needs room for two case stores, 2D and 3D.
        stages: only these stages, by name; * and ? are allowed (train_3d_*).
        without: leave out these stages.
        dry_run: print the commands, and what is done already, and make nothing.
        submit: hand trainings to SLURM (sbatch slurm/fit.sbatch) instead of running them; call again when they end.
        sbatch: more options for sbatch, as one argument: --sbatch="--time=5-0 --partition=gpu".
        more: YAML file of arguments to add to commands, by group (plan, preprocess, fit, segment, with or without _2d
            or _3d; inspect, postprocess, score, compare, figures), such as fit_3d: [--trainer.devices, "2"]; the tables
            list them.
        checkpoint: which of a training's checkpoints segments: best by the held-out fold, as the authors' code does,
            or last.
        eight_gpus: take Table 2's batch of 2 + 2 patches in 3D as each of 8 GPUs' (configs/flare22_3d_8gpu.yaml).
        validation_20: file with the names of the 20 cases of Tables 4 and 5, one a line; by default those with labels.
        other_counts: go on with other numbers of scans than the paper's 50 and 1000; the tables say so.
        workers: processes for inspect, plan and preprocess.
    """
    from flarecps.cli.configs import config_path
    from flarecps.cli.console import Console
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.experiments.flare22 import RecipeOptions, flare22_stages, write_paper_tables
    from flarecps.experiments.flare22_data import assign_roles, check_case_counts, released_cases
    from flarecps.experiments.runner import NEEDS, STANDS, run_stages, slurm_words
    from flarecps.experiments.stages import StageRecords, select_stages

    console, problems = Console(), Console(stderr=True)
    if out.resolve().is_relative_to(data.resolve()):
        raise ConfigError(f"--out {out}: lies in the data's folder, where nothing is written; name a folder elsewhere")
    catalogue = read_catalogue(data.resolve())
    found = assign_roles(catalogue)
    said = [*check_case_counts(found, other_counts), *(f"left out: {why}" for why in catalogue.faults.values())]
    released, how = released_cases(found, validation_20)
    out, words = out.resolve(), _read_more(more)
    notes = [f"data: {found.counts()}", *said, f"Tables 4 and 5: {how}", f"checkpoint: {checkpoint}",
             "3D batch: 2 + 2 patches on each of 8 GPUs" if eight_gpus else "3D batch: 2 + 2 patches in all",
             *(f"more words for {group}: {shlex.join(added)}" for group, added in words.items())]  # fmt: skip

    def fill() -> None:
        write_paper_tables(out, found, released, notes, records)
        print(visible(f"written: {out}/tables.md, table_2.csv to table_6.csv"))

    every = flare22_stages(RecipeOptions(found, out, config_path, fill, words, checkpoint, eight_gpus, workers))
    records = StageRecords(every, out / RECORDS)
    todo = select_stages(every, stages, without)
    console.print(f"{data}: {found.counts()}", **PLAIN)
    for sentence in said:
        console.print(f"- {sentence}", style="yellow", **PLAIN)
    if dry_run:
        for stage in todo:
            console.print(f"# {stage.name}: {stage.lacking or records.state(stage)}", style="bold", **PLAIN)
            submitted = submit and stage.gpus
            console.print(shlex.join(slurm_words(stage, sbatch)) if submitted else stage.command, **PLAIN)
        return 0

    def announce(stage: Stage, text: str, begins: bool) -> None:
        heading = f"[bold]{todo.index(stage) + 1}/{len(todo)}  {stage.name}[/]"
        if begins:
            console.rule(heading, align="left")
            console.print(text, style="dim", **PLAIN)
        elif text == STANDS:
            console.print(f"{heading}  {text}", highlight=False)
        else:
            console.print(f"{stage.name}: {text}", **PLAIN)

    left = run_stages(todo, records, announce, sbatch if submit else None)
    for name, why in left.items():
        problems.print(f"not done: {name}: {why}", style="yellow", **PLAIN)
    waits = any(records.read(stage).get("state") == "submitted" for stage in every)
    return NOT_ALL if not waits and any(why.startswith(NEEDS) for why in left.values()) else 0


def _read_more(path: Path | None) -> dict[str, list[str]]:
    """Words to add to commands, by group. Raises ConfigError for another file."""
    from flarecps.experiments.flare22 import GROUPS
    from flarecps.text_files import read_yaml

    if path is None:
        return {}
    known = [*GROUPS, *(f"{group}_{kind}" for group in WITH_KINDS for kind in KINDS)]
    content = read_yaml(path, ConfigError, "expected lists of words by group, as fit_3d: [--trainer.devices, '2']")
    for group, words in content.items():
        if group not in known:
            raise ConfigError(f"{path}: no group {group!r}; groups: {', '.join(known)}")
        if not isinstance(words, list):
            raise ConfigError(f"{path}: {group} must be a list of words, as [--trainer.devices, '2']")
    return {str(group): [str(word) for word in words] for group, words in content.items()}
