"""What Windows and macOS lack is missed nowhere: looked for on Linux, with those things taken away."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flarecps import atomic
from flarecps.errors import ConfigError
from flarecps.inference.resources.devices import computes_as_the_cpu, torch_device
from flarecps.processes import peak_memory_bytes

ROOT = Path(__file__).resolve().parents[2]

OTHERS = """torch torch.utils.data lightning.pytorch lightning.pytorch.cli torchio torchmetrics SimpleITK wandb psutil
    rich.progress scipy.ndimage scipy.stats matplotlib.figure matplotlib.backends.backend_agg nibabel blosc2 pydicom
    onnx omegaconf jsonargparse jinja2 pynvml multiprocessing.synchronize concurrent.futures.process"""
MODULES = "fcntl resource termios tty pty pwd grp syslog"
SIGNALS = "SIGUSR1 SIGUSR2 SIGHUP SIGQUIT SIGKILL SIGCHLD SIGALRM SIGPIPE pthread_sigmask sigtimedwait alarm"
CALLS = "fork getuid geteuid sched_getaffinity statvfs uname killpg setsid getpgrp mkfifo getloadavg"

# Other programs' modules come first: they know themselves which system they are on.
WITHOUT_POSIX = f"""
import importlib, multiprocessing, os, pathlib, pkgutil, signal, sys
for name in {OTHERS.split()}:
    importlib.import_module(name)
for name in {MODULES.split()}:
    sys.modules[name] = None
for name in {SIGNALS.split()}:
    delattr(signal, name)
for name in {CALLS.split()}:
    delattr(os, name)
import flarecps
found = [one.name for one in pkgutil.walk_packages(flarecps.__path__, "flarecps.")]
found = [one for one in found if not one.endswith(("__main__", "_triton"))]  # Triton is imported where there is a GPU
for name in found:
    importlib.import_module(name)
assert len(found) > 100
"""


OTHERS_OPEN = ("os", "atomic", "text_files", "archive", "blosc2", "Image")  # whose functions of these names say it


def without_posix(*more: str) -> subprocess.CompletedProcess[str]:
    """A Python that has lost what only POSIX systems have, with all of this program's modules, and then this."""
    words = [sys.executable, "-c", "\n".join([WITHOUT_POSIX, *more])]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_every_module_imports_and_the_road_to_a_store_holds_without_posix(tmp_path: Path) -> None:
    done = without_posix(
        "from flarecps.training import stop_signals",
        "from flarecps.processes import blocked, kill, usable_cores",
        "with stop_signals.listening(), blocked([signal.SIGTERM]):",
        "    stop_signals.reinstall_handlers(with_interrupts=True)",
        "    signal.raise_signal(signal.SIGTERM)",
        "    assert stop_signals.received() == stop_signals.StopRequest.END",
        "kill([])",
        "assert usable_cores() >= 1",
        "from flarecps.experiments.runner import run_lock, _children_cpu_s",
        f"with run_lock(pathlib.Path({str(tmp_path)!r})):",
        "    assert _children_cpu_s() >= 0",
        "from flarecps.cli.main import main",
        f"folder = {str(tmp_path)!r}",
        "one = ['--labelled', '2', '--unlabelled', '1', '--test', '0', '--workers', '1']",
        "assert main(['phantom', f'{folder}/phantom', *one]) == 0",
        "alone = ['--workers', '1', '--out']",
        "assert main(['plan', f'{folder}/phantom', *alone, f'{folder}/plan.json']) == 0",
        "assert main(['preprocess', f'{folder}/phantom', f'{folder}/plan.json', *alone, f'{folder}/store']) == 0",
    )
    assert done.returncode == 0, done.stderr


def without_encoding(path: Path) -> list[str]:
    """Where text is read or written in whatever encoding the system has; UTF-8 on Linux, another on Windows."""
    found = []
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        is_method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if is_method else getattr(call.func, "id", "")
        words = [one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        binary = any(re.fullmatch("[rwxa+]*b[rwxa+]*", word) for word in words)
        elsewhere = is_method and getattr(call.func.value, "id", "") in OTHERS_OPEN
        given = {keyword.arg for keyword in call.keywords}
        asked = name == "open" or (is_method and name in ("read_text", "write_text"))
        if asked and not (binary or elsewhere or "encoding" in given):
            found.append(f"{path}:{call.lineno}")
    return found


def test_text_files_are_utf_8_on_every_system(tmp_path: Path) -> None:
    files = sorted((ROOT / "flarecps").rglob("*.py"))
    assert [place for path in files for place in without_encoding(path)] == []
    (tmp_path / "a.py").write_text("open('a')\nopen('a', 'rb')\npath.open('w')\npath.read_text()\n", encoding="utf-8")
    assert [place[-1] for place in without_encoding(tmp_path / "a.py")] == ["1", "3", "4"]


def test_peak_memory_is_what_the_system_says() -> None:
    said = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    assert peak_memory_bytes() == pytest.approx(int(said.split()[1]) * 1024, rel=0.1)


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a.csv", "a\r\nb\n")
    assert (tmp_path / "a.csv").read_bytes() == b"a\r\nb\n"


def test_apples_gpu_is_taken_where_it_computes_as_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert computes_as_the_cpu(torch.device("cpu"))
    assert not computes_as_the_cpu(torch.device("meta")), "which has layers, but no numbers"
    with pytest.raises(ConfigError, match="device 'mps': not available here; expected auto, cpu, cuda, cuda:N or mps"):
        torch_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert torch_device("auto") == torch.device("cpu"), "a GPU that is said to be there and does not compute"
