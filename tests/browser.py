"""A headless browser that tells what a page does: messages on its console, requests, loads that failed.

It is driven through DevTools' pipe, which needs no package. Chromium is looked for, and installed by apt-get where the
tests may (as root); elsewhere the tests of pages are skipped with a reason.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PACKAGE = "chromium-headless-shell"  # the smallest that shows pages
PATIENCE_S = 60.0


def find_browser() -> str | None:
    """The path of a Chromium: FLARECPS_BROWSER's, or one on the path."""
    named = os.environ.get("FLARECPS_BROWSER")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


def browser_or_reason() -> tuple[str | None, str]:
    """The path of a browser, installed if need be; or None and why there is none."""
    found = find_browser()
    if found is not None:
        return found, ""
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        return None, f"no browser ({', '.join(NAMES)}), and only root may install one; FLARECPS_BROWSER can name one"
    options = ["-y", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    said = ""
    for words in (["update"], ["install", "--no-install-recommends", PACKAGE]):
        done = subprocess.run(
            [apt, *options, *words], env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        said = done.stderr.strip().splitlines()[-1] if done.returncode and done.stderr.strip() else said
    found = find_browser()
    return found, "" if found else f"no browser, and apt-get could not install {PACKAGE}: {said}"


@dataclass
class Visit:
    """What happened while a page was loaded and shown."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Browser:
    """A running browser with one tab."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        self._visit = Visit()
        self._loaded = False
        tab = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """DevTools' answer to one command; events that come before it are noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def show(self, path: Path, width: int, height: int = 900, phone: bool = False, dark: bool = False) -> Visit:
        """Open a file in a window of this size, and tell what it did until it was loaded."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self._visit, self._loaded = Visit(), False
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not self._loaded:
            self._message()
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        return self._visit

    def value(self, script: str) -> Any:
        """What an expression gives in the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        content = self.ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(content["data"]))

    def _message(self) -> dict[str, Any]:
        give_up = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0.0, give_up - time.monotonic()))
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, "the browser says nothing any more"
            self._rest += part
        text, self._rest = self._rest.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, told: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Runtime.consoleAPICalled":
            self._visit.console.append(" ".join(str(one.get("value")) for one in told["args"]))
        elif event == "Runtime.exceptionThrown":
            self._visit.console.append(str(told["exceptionDetails"].get("text")))
        elif event == "Log.entryAdded":
            self._visit.console.append(f"{told['entry']['level']}: {told['entry']['text']}")
        elif event == "Network.requestWillBeSent":
            self._visit.requests.append(told["request"]["url"])
        elif event == "Network.loadingFailed":
            self._visit.failed.append(f"{told.get('errorText')} {told.get('blockedReason', '')}")


@contextmanager
def running_browser(program: str, folder: Path) -> Iterator[Browser]:
    """A browser that keeps its files in ``folder`` and is gone after the block."""
    there, to_browser = os.pipe()
    from_browser, back = os.pipe()
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    words += ["--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"]

    def pipes() -> None:
        """DevTools reads from 3 and writes to 4."""
        first, second = os.dup(there), os.dup(back)
        os.dup2(first, 3)
        os.dup2(second, 4)

    process = subprocess.Popen(
        [program, *words],
        preexec_fn=pipes,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(folder), "LC_ALL": "C.UTF-8"},
    )
    os.close(there)
    os.close(back)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        os.close(to_browser)
        os.close(from_browser)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
