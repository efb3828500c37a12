"""The project's own job scripts on a real SLURM: requeues, deaths of ranks and nodes, job arrays."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from runs import assert_same_training, on_two_ranks
from slurm_cluster import NODES, Cluster, MissingSlurm, install_slurm, wait_for
from stores import REPOSITORY, TEST, TinyStores, fit_words

from flarecps.checkpoint import load_plain
from flarecps.datasets.phantom import write_phantom
from flarecps.preprocessing import sources
from flarecps.preprocessing.store import CaseStore

pytestmark = pytest.mark.slurm

SCRIPTS = REPOSITORY / "slurm"
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=1"]
CONFIG = "phantom_2d.yaml"
STEPS = 5  # per epoch
TRAINING = ["--model.method.init_args.ramp", "{start: 0, length: 3}"]
TRAINING += ["--data.global_batch", "{labelled: 2, unlabelled: 2}"]
TRAINING += ["--data.iterations_per_epoch", STEPS, "--data.workers", 2]  # SLURM signals them, too
STARTED_S = 120  # two interpreters import, on a busy machine


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        install_slurm()
    except MissingSlurm as reason:
        pytest.skip(f"no SLURM: {reason}")
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@dataclass(frozen=True)
class Training:
    """A training submitted to the cluster, or to be."""

    cluster: Cluster
    stores: TinyStores
    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def words(self, *more: object, epochs: int) -> list[str]:
        """The words of ``flarecps fit``, the command left out."""
        return fit_words(CONFIG, self.stores, self.run, *TRAINING, *more, epochs=epochs)[1:]

    def submit(
        self,
        epochs: int,
        pace_s: float = 0.0,
        fails_at: str = "null",
        environment: dict[str, str] | None = None,
    ) -> str:
        """The job's id; what earlier jobs noted is cleared."""
        self.folder.mkdir(exist_ok=True)
        for note in ("pid_0", "pid_1", "at"):
            (self.folder / note).unlink(missing_ok=True)
        job = self.job(epochs, pace_s, fails_at)
        return self.cluster.submit(*job, environment=environment or program(), folder=self.folder)

    def job(self, epochs: int, pace_s: float = 0.0, fails_at: str = "null", *options: object) -> list[object]:
        """The words of ``sbatch``: options, script and the words of ``flarecps fit``."""
        settings = f"{{folder: {self.folder}, pace_s: {pace_s}, fails_at: {fails_at}}}"
        callbacks = f"[{{class_path: slurm_instruments.Instruments, init_args: {settings}}}]"
        words = [SCRIPTS / "fit.sbatch", *self.words("--trainer.callbacks", callbacks, epochs=epochs)]
        return [*TWO_NODES, f"--output={self.log}", *options, *words]

    def noted(self, name: str) -> list[str]:
        file = self.folder / name
        return file.read_text().splitlines() if file.is_file() else []

    def wait_for_step(self, epoch: int, step: int) -> None:
        """Until rank 1 has come to this step of this epoch, or further; rank 0 then waits for it in backward."""

        def there() -> bool:
            return any(tuple(map(int, line.split())) >= (epoch, step) for line in self.noted("at"))

        wait_for(f"step {step} of epoch {epoch}", there, STARTED_S, self.log)

    def usr1(self, job: str) -> None:
        self.cluster.cancel("--signal=USR1", job)

    def wait_for_restart(self, job: str, count: int) -> None:
        state = self.cluster.state
        wait_for(f"restart {count}", lambda: state(job)["Restarts"] == str(count), 60)
        self.cluster.wait_for_state(job, "RUNNING", within_s=60)


def program() -> dict[str, str]:
    """The environment in which job scripts run this repository's program, with the tests' modules at hand."""
    folders = [REPOSITORY, REPOSITORY / "tests", REPOSITORY / "tests" / "slurm"]
    return {
        "FLARECPS": f"{sys.executable} -m flarecps",
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "OMP_NUM_THREADS": "1",
    }


def cut_short(path: Path) -> None:
    """What a full or failing disk leaves of a file."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


def test_three_requeues_end_as_an_uninterrupted_run(cluster: Cluster, tiny_stores: TinyStores, tmp_path: Path) -> None:
    """Signals reach both ranks while rank 0 is in backward and rank 1 is not; one comes before Python is ready.

    The first time the training finds scontrol, then there is none, as in a container, and the job script requeues.
    """
    training = Training(cluster, tiny_stores, tmp_path / "stopped")
    programs = training.folder / "programs"
    programs.mkdir(parents=True)
    (programs / "scontrol").symlink_to(str(shutil.which("scontrol")))
    environment = program() | {"FLARECPS": f"env PATH={programs} {sys.executable} -m flarecps"}
    job = training.submit(epochs=3, pace_s=0.3, environment=environment)
    training.wait_for_step(0, 1)
    training.usr1(job)

    training.wait_for_restart(job, 1)
    (programs / "scontrol").unlink()
    (training.folder / "pid_1").unlink()
    wait_for("rank 1's process", lambda: ranks_of(job) >= 2, STARTED_S)
    training.usr1(job)
    assert not (training.folder / "pid_1").exists(), "the signal was to come while modules are imported"

    training.wait_for_restart(job, 2)
    training.wait_for_step(2, 1)
    training.usr1(job)
    training.wait_for_restart(job, 3)
    cluster.wait_for_state(job, "COMPLETED", "FAILED", within_s=STARTED_S)
    log = training.log.read_text()
    assert cluster.state(job)["JobState"] == "COMPLETED", log
    assert log.count("the job is requeued") == 3, log
    assert log.count("requeued by the job script") == 2, log
    assert not list(training.folder.glob(".requeue-*"))

    every_step = [f"{epoch} {step}" for epoch in range(3) for step in range(STEPS)]
    assert training.noted("steps_0") == training.noted("steps_1") == every_step, "each once, on both ranks"
    written = training.noted("written")
    assert [line.split()[1] for line in written].count("requeue.ckpt") == 3
    assert [line.split()[1] for line in written].count("last.ckpt") == 3
    assert all(line.startswith("0 ") for line in written), "rank 0 writes, and each only once"
    assert sorted(path.name for path in (training.run / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]

    through = Training(cluster, tiny_stores, tmp_path / "through")
    through.folder.mkdir()
    two = ["--trainer.num_nodes", 1, "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    assert on_two_ranks(["fit", *through.words(*two, epochs=3)], through.folder) == [0, 0]
    ours = assert_same_training(training.run, through.run)
    assert ours["global_step"] == 2 * 3 * STEPS


def test_a_chain_goes_on_where_a_site_forbids_much(cluster: Cluster, tiny_stores: TinyStores, tmp_path: Path) -> None:
    """No requeue, nothing of the submitting shell, a set-up file instead, --mem, and disks that only the nodes know.

    The second job goes on after the step at which the first was told to stop; the third isn't needed.
    """
    training = Training(cluster, tiny_stores, tmp_path / "chain")
    training.folder.mkdir()
    given = program() | {"FLARECPS_STORE": str(tiny_stores.two), "FLARECPS_SCRATCH": "$TMPDIR/${SLURMD_NODENAME}/s"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in given.items()]
    lines += [f"export TMPDIR={training.folder}/disk-$SLURM_JOB_ID", "[[ -z ${OF_THE_SHELL:-} ]]  # the last command"]
    (training.folder / "flarecps-setup.sh").write_text("\n".join(lines) + "\n")
    shown = cluster.say(
        SCRIPTS / "chain.sh", 3, *training.job(3, 0.3, "null", "--mem=3G"), folder=training.folder,
        environment={"SBATCH_EXPORT": "NONE", "OF_THE_SHELL": "1", "TMPDIR": str(tmp_path / "of the shell")},
    )  # fmt: skip
    first, second, third = shown.split()
    cluster.jobs += [first, second, third]
    training.wait_for_step(1, 1)
    training.usr1(first)
    cluster.wait_for_state(first, "FAILED", "COMPLETED", within_s=60)
    state = cluster.state(first)
    log = training.log.read_text()
    assert (state["JobState"], state["ExitCode"]) == ("FAILED", f"{128 + signal.SIGUSR1}:0"), log
    assert (state["MinMemoryNode"], state["Requeue"], state["Restarts"]) == ("3G", "0", "0")
    assert "go on with --ckpt_path auto" in log

    cluster.wait_for_state(second, "COMPLETED", "FAILED", within_s=STARTED_S)
    assert cluster.state(second)["JobState"] == "COMPLETED", training.log.read_text()
    cluster.wait_for_state(third, "CANCELLED", within_s=60)
    every_step = [f"{epoch} {step}" for epoch in range(3) for step in range(STEPS)]
    assert training.noted("steps_0") == training.noted("steps_1") == every_step, "each once, on both ranks"
    for job in (first, second):
        copies = [training.folder / f"disk-{job}" / node / "s" / tiny_stores.two.name for node in NODES]
        assert all((copy / "plan.json").is_file() for copy in copies)
    assert f"store: {copies[0]}\n" in (training.run / "config.yaml").read_text(), "rank 0 has trained from its node's"
    assert not (tmp_path / "of the shell").exists()


def ranks_of(job: str) -> int:
    """How many interpreters the job's ranks have started."""
    import psutil

    found = 0
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("SLURM_JOB_ID") == job and "SLURM_PROCID" in process.environ()
            found += mine and process.name().startswith("python")
        except psutil.Error:
            continue
    return found


def test_a_rank_that_fails_or_is_killed_ends_the_job(cluster: Cluster, tiny_stores: TinyStores, tmp_path: Path) -> None:
    """And what comes after: a damaged last checkpoint, then a node that is lost, cost one epoch each."""
    training = Training(cluster, tiny_stores, tmp_path / "faults")

    # an exception in one rank: its traceback is in the log
    job = training.submit(epochs=50, fails_at="'0 2'")
    training.wait_for_step(0, 2)
    assert cluster.wait_for_state(job, "FAILED", within_s=40) < 20  # without kill-on-bad-exit: 40
    assert "OSError: the cosmic ray of rank 1" in training.log.read_text()

    # kill -9
    job = training.submit(epochs=50, pace_s=0.1)
    training.wait_for_step(2, 1)
    os.kill(int((training.folder / "pid_1").read_text()), signal.SIGKILL)
    assert cluster.wait_for_state(job, "FAILED", within_s=40) < 20  # without kill-on-bad-exit: 40
    last, previous = (training.run / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    whole = [load_plain(path)["flarecps"]["completed_epochs"] for path in (last, previous)]
    assert whole[0] == whole[1] + 1 >= 2

    # the last checkpoint is cut short: the one before is taken, and the log says so
    cut_short(last)
    training.log.unlink()
    job = training.submit(epochs=50, pace_s=0.1)
    training.wait_for_step(whole[0] + 1, 1)
    assert training.noted("at")[0] == f"{whole[1]} 0"
    log = training.log.read_text()
    assert re.search(r"last\.ckpt: .*passed over", log)
    assert re.search(r"resume from .*previous\.ckpt", log)

    # a node is lost: the job waits for it and goes on from the last whole epoch
    at_loss = len(training.noted("at"))
    cluster.kill_node("n2", int((training.folder / "pid_1").read_text()))
    wait_for("requeue", lambda: cluster.state(job)["Restarts"] == "1", 90)
    completed = load_plain(last)["flarecps"]["completed_epochs"]
    assert completed >= whole[0] + 1
    cluster.start_node("n2")
    wait_for("the restarted training", lambda: len(training.noted("at")) > at_loss, STARTED_S)
    assert training.noted("at")[at_loss] == f"{completed} 0"
    cluster.cancel(job)


def test_an_array_preprocesses_as_one_process_does(cluster: Cluster, tiny_stores: TinyStores, tmp_path: Path) -> None:
    """Four tasks at once into one store, of which one fails for a damaged scan and is run again alone."""
    dataset = tmp_path / "dataset"
    shutil.copytree(tiny_stores.dataset, dataset)
    plan, store = tiny_stores.three / "plan.json", tmp_path / "store"
    scan = sorted((dataset / "imagesTr").glob("*.nii.gz"))[1]  # the second case: task 2's
    whole = scan.read_bytes()
    scan.write_bytes(whole[: len(whole) // 2])
    words = [SCRIPTS / "preprocess.sbatch", dataset, plan, store]
    options = ["--cpus-per-task=1", "--mem=1G", f"--output={tmp_path}/log_%a"]

    job = cluster.submit("--array=1-4", *options, *words, environment=program())
    tasks = [f"{job}_{number}" for number in range(1, 5)]
    for task in tasks:
        cluster.wait_for_state(task, "COMPLETED", "FAILED", within_s=STARTED_S)
    ends = [cluster.state(task)["JobState"] for task in tasks]
    assert ends == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    assert scan.name.removesuffix("_0000.nii.gz") in (tmp_path / "log_2").read_text()

    scan.write_bytes(whole)
    again = cluster.submit("--array=2", "--export=ALL,FLARECPS_SHARDS=4", *options, *words, environment=program())
    cluster.wait_for_state(f"{again}_2", "COMPLETED", "FAILED", within_s=STARTED_S)
    assert cluster.state(f"{again}_2")["JobState"] == "COMPLETED", (tmp_path / "log_2").read_text()
    assert_same_store(store, tiny_stores.three)


def assert_same_store(ours: Path, theirs: Path) -> None:
    """The same files with the same bytes, but for those that say where the scans lay and when they were changed."""
    assert CaseStore(ours).names == CaseStore(theirs).names
    files = [
        sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file()) for folder in (ours, theirs)
    ]
    assert files[0] == files[1]
    for name in (name for name in files[0] if name.parts[0] != sources.FOLDER):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


def test_the_pipeline_runs_from_scans_to_scores(cluster: Cluster, tiny_stores: TinyStores, tmp_path: Path) -> None:
    """plan → preprocess array → fit → segment array → score, each waiting for the one before."""
    work = tmp_path / "work"
    small = "--cpus-per-task=1"
    environment = program() | {
        "PLAN_OPTIONS": small,
        "PREPROCESS_OPTIONS": small,
        "FIT_OPTIONS": f"{small} --ntasks-per-node=1 --gres=gpu:1",
        "SEGMENT_OPTIONS": small,
        "SCORE_OPTIONS": small,
        "PLAN_WORDS": "--dimensions 2 --spacing [20,12,12] --patch [32,32]",
    }
    words = fit_words(CONFIG, tiny_stores, work / "run", *TRAINING, epochs=1)[1:]
    training = words[words.index("--trainer.max_epochs") :]  # what is before, the pipeline says itself
    shards = ["--preprocess-shards", 2, "--segment-shards", 2, "--fit-jobs", 2]
    shown = cluster.say(
        SCRIPTS / "pipeline.sh", *shards, tiny_stores.dataset, work, REPOSITORY / "configs" / CONFIG, *training,
        environment=environment, folder=tmp_path,
    )  # fmt: skip
    lines = [line.split() for line in shown.splitlines()]
    assert [name for name, _ in lines] == ["plan", "preprocess", "fit", "fit", "segment", "score"]
    cluster.jobs += [job for _, job in lines]
    jobs = dict(lines)
    cluster.wait_for_state(jobs["score"], "COMPLETED", "FAILED", "CANCELLED", within_s=4 * STARTED_S)
    logs = "".join(path.read_text() for path in tmp_path.glob("*.out"))
    assert cluster.state(jobs["score"])["JobState"] == "COMPLETED", logs
    assert cluster.state(jobs["fit"])["JobState"] == "CANCELLED", "the first link has trained to the end"
    scores = json.loads((work / "scores" / "scores.json").read_text())
    assert scores
    assert len(list((work / "segmentations").glob("*.nii.gz"))) == TEST


def test_a_study_runs_from_scans_to_the_verdict(cluster: Cluster, tmp_path: Path) -> None:
    """Stores, an array of trainings, teachers' labels, an array of students, the judging: each after the one before."""
    write_phantom(tmp_path / "scans", 4, 2, 0, "small", seed=3, workers=1, progress=False)
    settings = {
        "trainer.max_epochs": 1, "data.iterations_per_epoch": 2, "data.workers": 0, "data.patch_voxels": "[32, 32]",
        "trainer.accelerator": "cpu", "trainer.precision": "32-true",
    }  # fmt: skip
    control = {"config": "phantom_2d_supervised", "settings": {"data.unlabelled": False}}
    batch = {"labelled": 1, "unlabelled": 1, "pseudo_labelled": 1}
    student = {"model.method": "flarecps.methods.SelfTraining", "data.global_batch": batch}
    protocol = {
        "primary": {"method": "self", "baseline": "control"},
        "judged": {"by": "folds", "folds": 2},
        "plan": {"dimensions": 2, "spacing": "[20, 12, 12]", "patch": "[32, 32]"},
        "segment": {"device": "cpu"},
        "settings": settings,
        "arms": {"control": control, "self": {"settings": student, "teachers": "control"}},
    }
    (tmp_path / "protocol.yaml").write_text(json.dumps(protocol))
    out = tmp_path / "an out"
    words = [sys.executable, "-m", "flarecps", "study", tmp_path / "scans", "--out", out, "--submit", "--workers", 1]
    words += ["--protocol", tmp_path / "protocol.yaml", "--sbatch=--cpus-per-task=1 --mem=1G"]
    shown = cluster.say(*words, environment=program(), folder=tmp_path)
    jobs = [line.split(": job ") for line in shown.splitlines()]
    assert [name for name, _ in jobs] == ["prepare", "trainings_0", "labels_1", "trainings_2", "judge"]
    cluster.jobs += [job for _, job in jobs]
    cluster.wait_for_state(jobs[-1][1], "COMPLETED", "FAILED", "CANCELLED", within_s=8 * STARTED_S)
    logs = "".join(path.read_text() for path in sorted((out / "slurm").glob("*.out")))
    assert cluster.state(jobs[-1][1])["JobState"] == "COMPLETED", logs
    assert json.loads((out / "verdict.json").read_text())["recommended"]["arm"] in ("control", "self")
    assert (out / "report.html").is_file()
    assert not list(tmp_path.glob("*.out")), "logs lie with the study"
