"""A stand-in for wandb's server, on this machine, which keeps what wandb sends: history and saved views of a project.

wandb's own reader of a run's file is ``wandb sync``: it reads the records and sends them. What arrives here is what a
dashboard would show.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT = "someone", "flarecps"


@dataclass
class StoredRun:
    """One run: the lines of its streamed files by number, its uploaded files, its config and how often it began."""

    lines: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of the charts, in the order in which they arrived."""
        return [json.loads(line) for _, line in sorted(self.lines.get("wandb-history.jsonl", {}).items())]


class WandbServer:
    """What was received: ``runs`` by id, ``artifacts``, ``views`` by name, and ``unknown`` questions."""

    def __init__(self) -> None:
        self.runs: dict[str, StoredRun] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.views: dict[str, dict[str, Any]] = {}  # what was last sent of each, by name
        self.views_refused = ""  # why no view is taken
        self.unknown: list[str] = []
        self.address = ""
        self.refusing = False  # every question with 500

    def graphql(self, operation: str, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one of wandb's questions."""
        if operation == "UpsertBucket":
            run = self.runs.setdefault(asked["name"], StoredRun())
            if asked.get("config"):
                run.config |= {name: one.get("value") for name, one in json.loads(asked["config"]).items()}
            bucket = {"id": asked["name"], "name": asked["name"], "displayName": asked.get("displayName") or "",
                      "description": "", "config": "{}", "sweepName": None, "historyLineCount": len(run.history),
                      "project": {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": ENTITY}}}  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": False}}
        if operation == "RunResumeStatus":
            return {"model": {"id": "p", "name": PROJECT, "entity": {"id": "e", "name": ENTITY},
                              "bucket": self._resume(asked["name"])}}  # fmt: skip
        if operation == "CreateRunFiles":
            files = [
                {"name": name, "uploadUrl": f"{self.address}/upload/{asked['run']}/{name}"} for name in asked["files"]
            ]
            return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}
        if operation == "Viewer":
            return {"viewer": {"id": "v", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}",
                               "teams": {"edges": []}}}  # fmt: skip
        if operation == "View":
            if (asked["entityName"], asked["projectName"]) != (ENTITY, PROJECT):
                return {"project": None}
            found = self.views.get(asked["viewName"])
            node = {"id": "V1", "displayName": found["displayName"], "spec": found["spec"]} if found else None
            return {"project": {"allViews": {"edges": [{"node": node}] if node else []}}}
        if operation == "UpsertView2":
            if self.views_refused:
                raise PermissionError(self.views_refused)
            self.views[asked["name"]] = asked
            return {"upsertView": {"view": {"id": "V1", "name": asked["name"]}, "inserted": "id" not in asked}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "CreateArtifact":
            self.artifacts.append(asked["input"])
            return {"createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence":
                    {"id": "s", "latestArtifact": None}}}}  # fmt: skip
        self.unknown.append(operation)
        return {}

    def _resume(self, name: str) -> dict[str, Any] | None:
        run = self.runs.get(name)
        if run is None:
            return None
        last = run.history[-1:]
        return {"id": name, "name": name, "displayName": "", "summaryMetrics": json.dumps(last[0] if last else {}),
                "logLineCount": len(run.lines.get("output.log", {})), "historyLineCount": len(run.history),
                "eventsLineCount": len(run.lines.get("wandb-events.jsonl", {})),
                "historyTail": json.dumps([json.dumps(row) for row in last]), "eventsTail": "[]",
                "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
                "tags": [], "notes": "", "wandbConfig": json.dumps({"t": 1})}  # fmt: skip

    def stream(self, name: str, sent: dict[str, Any]) -> None:
        """Lines of a run's files, each with the number of its first."""
        run = self.runs.setdefault(name, StoredRun())
        for file, part in (sent.get("files") or {}).items():
            kept = run.lines.setdefault(file, {})
            for number, line in enumerate(part["content"], start=part["offset"]):
                kept[number] = line
        if sent.get("complete"):
            run.states.append(f"ended with {sent.get('exitcode')}")


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A running ``WandbServer`` on a free port of the loopback interface."""
    server = WandbServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def _body(self) -> bytes:
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

        def _answer(self, content: dict[str, Any]) -> None:
            text = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_POST(self) -> None:
            body = self._body()
            if server.refusing:
                self.send_response(500)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if self.path == "/graphql":
                sent = json.loads(body)
                named = re.search(r"(?:query|mutation)\s+(\w+)", sent.get("query", ""))
                operation = sent.get("operationName") or (named[1] if named else "")
                try:
                    self._answer({"data": server.graphql(operation, sent.get("variables") or {})})
                except PermissionError as refused:
                    self._answer({"data": None, "errors": [{"message": str(refused)}]})
                return
            if self.path.endswith("/file_stream"):
                server.stream(self.path.split("/")[-2], json.loads(body))
            self._answer({})  # what else arrives is wandb's own telemetry

        def do_PUT(self) -> None:
            _, run, name = self.path.strip("/").split("/", 2)
            server.runs[run].files[name] = self._body()
            self._answer({})

        def do_GET(self) -> None:
            self._answer({})

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that hangs up is none of a test's concern."""

    http = Quiet(("127.0.0.1", 0), Handler)
    server.address = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
