"""``flarecps reproduce flare22``: the paper's experiment as a study by its protocol, and its tables filled beside."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from flarecps.errors import ConfigError, visible


def reproduce(
    study: Literal["flare22"],
    *,
    data: Path,
    out: Path = Path("reproduction"),
    protocol: str | None = None,
    seeds: int | None = None,
    without: list[str] | None = None,
    stages: list[str] | None = None,
    dry_run: bool = False,
    submit: bool = False,
    sbatch: str = "",
    validation_20: Path | None = None,
    other_counts: bool = False,
    workers: int = 2,
) -> int:
    """Run the paper's FLARE22 experiment and fill its Tables 2 to 6 and Figure 5 beside the paper's numbers.

    DATA is FLARE22 as its organisers ship it: FLARE22_LabeledCase50/, FLARE22_UnlabeledCase…/, a validation folder with
    images/ and perhaps labels/, and perhaps a test folder. This is 'flarecps study' by the protocol flare22, with the
    paper's roles of scans: plans, stores and trainings (2D and 3D, supervised and CPS), segmentation in the settings of
    each table, scores by the official protocol, comparison, verdict, tables. A stage whose result stands is left out,
    so the same command goes on after an interruption. OUT/tables.md can be made at any time (--stages paper_tables):
    what is not there yet, or can't be known, is said in its cell.

    Args:
        study: flare22.
        data: folder of the FLARE22 data; nothing is written there.
        out: folder for everything; needs room for two case stores, 2D and 3D.
        protocol: another protocol with the same arms, a changed copy of configs/studies/flare22.yaml: fewer epochs,
            other devices, the last checkpoint, flare22_3d_8gpu (2 + 2 patches on each of 8 GPUs).
        seeds: trainings of every arm; by default 1, as the paper, of which the verdict can judge no variation between
            trainings. The tables are filled from the first.
        without: scans that are left out, by name, such as those that 'flarecps inspect' calls damaged.
        stages: only these stages, by name; * and ? are allowed (train_*3d_*).
        dry_run: print the protocol and the commands, and make nothing.
        submit: write the trainings as arrays of SLURM jobs that wait for each other (OUT/slurm), and submit them.
        sbatch: more options for sbatch, as one argument: --sbatch="--time=5-0 --partition=gpu".
        validation_20: file with the names of the 20 cases of Tables 4 and 5, one a line; by default those with labels.
        other_counts: go on with other numbers of scans than the paper's 50 and 1000; the tables say so.
        workers: processes for inspect, plan and preprocess.
    """
    from functools import partial

    from flarecps.cli.configs import found_config
    from flarecps.cli.study import carry_out, check_out, protocol_file
    from flarecps.datasets.catalogue import read_catalogue
    from flarecps.experiments.flare22 import PaperStages, flare22_splits
    from flarecps.experiments.flare22_data import assign_roles, check_case_counts, released_cases
    from flarecps.experiments.study.protocol_file import read_protocol
    from flarecps.experiments.study.splits import left_out
    from flarecps.experiments.study.study import PROTOCOL, RECORDS, Asked, Study

    check_out(out, data)
    if out.is_file() or ((out / RECORDS / "data.json").is_file() and not (out / PROTOCOL).is_file()):
        raise ConfigError(
            f"--out {out}: is a file, or was begun by a former version, whose stages were others; choose another --out "
            "(trainings begin anew), or go on with the flarecps that began it"
        )
    out = out.resolve()
    kept = not (protocol or seeds or without) and (out / PROTOCOL).is_file()  # which may be another than flare22
    without = list(read_protocol(out / PROTOCOL).without) if kept else without or []
    catalogue = left_out(read_catalogue(data.resolve()), without)
    found = assign_roles(catalogue)
    said = check_case_counts(found, other_counts)
    released, how = released_cases(found, validation_20)
    notes = [f"data: {found.counts()}", *said, *(f"left out: {why}" for why in catalogue.faults.values()),
             f"Tables 4 and 5: {how}", f"protocol: {PROTOCOL}, beside this file"]  # fmt: skip
    asked = Asked(None if kept else protocol_file(protocol or study), seeds=seeds,
                  without=None if kept else without or None)  # fmt: skip
    made = Study(data.resolve(), out, asked, lambda name: Path(found_config(name)).absolute(), workers,
                 partial(flare22_splits, found, catalogue), PaperStages(found, released, notes))  # fmt: skip
    made.said = [f"data: {found.counts()}", *said, *made.said]
    again = ["reproduce", study, "--data", str(data.resolve()), "--out", str(out), "--workers", str(workers)]
    again += ["--validation-20", str(validation_20.resolve())] if validation_20 else []
    again += ["--other-counts"] * other_counts
    code = carry_out(made, again, stages, dry_run, submit, sbatch)
    if not (dry_run or submit) and (out / "tables.md").is_file():
        print(visible(f"written: {out}/tables.md, table_2.csv to table_6.csv"))
    return code
