"""A real SLURM of two pretended nodes on this machine: plain processes in one folder, on the loopback interface."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "srun", "scancel")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
INSTALL_WITHIN_S = 180
NODES = ("n1", "n2")
CREDENTIALS_EXPIRE_S = 5  # a requeued job starts no sooner
NODE_IS_LOST_AFTER_S = 5

CONFIG = """\
ClusterName=flarecps
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire={expire}
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmdTimeout={lost}
KillWait=5
MinJobAge=600
ReturnToService=2
{nodes}
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""
NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=16 RealMemory=64000 Gres=gpu:2"


class MissingSlurm(Exception):
    """Why there can be no cluster here."""


def install_slurm() -> None:
    """SLURM's programs, by apt where they are missing; raises ``MissingSlurm`` when that can't be done."""
    if os.geteuid() != 0:
        raise MissingSlurm("SLURM's daemons want root")
    if all(map(shutil.which, PROGRAMS)):
        return
    if shutil.which("apt-get") is None:
        raise MissingSlurm("no SLURM, and no apt-get to install it")
    install = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for words in (install, ["apt-get", "update"], install):
        try:
            subprocess.run(
                words, env=environment, capture_output=True, timeout=INSTALL_WITHIN_S, check=words[1] == "update"
            )
        except (subprocess.SubprocessError, OSError) as error:
            raise MissingSlurm(f"apt could not install {', '.join(PACKAGES)}: {error}") from error
        if all(map(shutil.which, PROGRAMS)):
            return
    raise MissingSlurm(f"apt did not install {', '.join(PACKAGES)}")


def wait_for(what: str, true: Callable[[], object], within_s: float, log: Path | None = None) -> float:
    """Seconds until ``true()`` is; an AssertionError naming ``what``, with the job's log, when it is not in time."""
    began = time.monotonic()
    while not true():
        said = log.read_text() if log is not None and log.is_file() else ""
        assert time.monotonic() - began < within_s, f"{what}: not within {within_s} s\n{said}"
        time.sleep(0.1)
    return time.monotonic() - began


class Cluster:
    """munged, slurmctld and a slurmd per node, all in ``folder``; ``close`` leaves no process behind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.jobs: list[str] = []

    def start(self) -> None:
        """Write the configuration and start the daemons."""
        self.folder.chmod(0o755)
        (self.folder / "state").mkdir()
        munge = self.folder / "munge"
        munge.mkdir(mode=0o700)
        (munge / "key").write_bytes(os.urandom(64))
        (munge / "key").chmod(0o400)
        for gpu in range(2):  # devices that no GPU is behind
            os.mknod(self.folder / f"gpu{gpu}", 0o20666, os.makedev(1, 3))
        controller, *ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(NODE.format(name=name, port=port) for name, port in zip(NODES, ports, strict=True))
        (self.folder / "slurm.conf").write_text(
            CONFIG.format(
                folder=self.folder,
                controller=controller,
                nodes=nodes,
                expire=CREDENTIALS_EXPIRE_S,
                lost=NODE_IS_LOST_AFTER_S,
            )
        )
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpu[0-1]\n")
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        files = {name: munge / name for name in ("pid", "log", "seed")}
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={self.folder}/munge.socket", f"--key-file={munge}/key",
            f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}",
        )  # fmt: skip
        wait_for("munged", (self.folder / "munge.socket").exists, 10)
        self._daemon("slurmctld", "-D")
        for name in NODES:
            self.start_node(name)
        wait_for("idle nodes", lambda: self.say("sinfo", "-h", "-o", "%T %D").split() == ["idle", "2"], 30)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd, at first or after ``kill_node``."""
        self._nodes[name] = self._daemon("slurmd", "-D", "-N", name)

    def kill_node(self, name: str, process: int) -> None:
        """End a node as a power cut would: its slurmd, and the steps and their processes, of which one is given."""
        self._nodes[name].kill()
        step = psutil.Process(process).parent()
        assert step is not None
        assert "slurmstepd" in step.name()
        for one in (step, *step.children(recursive=True)):
            one.kill()

    def submit(self, *words: object, environment: Mapping[str, str] | None = None, folder: Path | None = None) -> str:
        """The id of a job, given to ``sbatch`` with ``words``."""
        given = self.say("sbatch", "--parsable", *words, environment=environment, folder=folder).strip()
        self.jobs.append(given)
        return given

    def state(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says of a job (or of one task of an array)."""
        shown = self.say("scontrol", "--oneliner", "show", "job", job).splitlines()[0]
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def cancel(self, *words: object) -> None:
        """``scancel`` with these words."""
        self.say("scancel", *words)

    def wait_for_state(self, job: str, *states: str, within_s: float) -> float:
        """Seconds until the job is in one of ``states``."""
        return wait_for(f"job {job} {states}", lambda: self.state(job)["JobState"] in states, within_s)

    def close(self) -> None:
        """End all jobs and daemons, whatever state they are in."""
        own = {daemon.pid for daemon in self._daemons}
        for process in psutil.process_iter():
            if process.pid not in own and self._mine(process):
                for one in _family(process):
                    with suppress(psutil.Error):
                        one.kill()
        for daemon in reversed(self._daemons):
            daemon.send_signal(signal.SIGKILL if daemon in self._nodes.values() else signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _mine(self, process: psutil.Process) -> bool:
        """Whether a process is a step's daemon of this cluster, which hides its environment, or what it has started."""
        try:
            if process.name() == "slurmstepd":
                return any(file.path.startswith(f"{self.folder}/") for file in process.open_files())
            return process.environ().get("SLURM_CONF") == self.environment["SLURM_CONF"]
        except psutil.Error:
            return False

    def _daemon(self, *words: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{words[0]}.out").open("ab")
        daemon = subprocess.Popen(words, env=os.environ | self.environment, stdout=log, stderr=log)
        log.close()
        self._daemons.append(daemon)
        return daemon

    def say(self, *words: object, environment: Mapping[str, str] | None = None, folder: Path | None = None) -> str:
        """What a command prints; it must succeed."""
        given = os.environ | self.environment | dict(environment or {})
        done = subprocess.run(
            [str(word) for word in words],
            env=given,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
