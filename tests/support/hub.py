"""A server on loopback with the few answers of Hugging Face's hub and of ModelScope's that a download needs.

The answers of the second one follow modelscope_hub 0.5 and, for commits, `list_repo_commits` of modelscope 1.37.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

ROOT = Path(__file__).resolve().parents[2]
Files = Mapping[str, bytes]


@dataclass
class Repository:
    """A repository: its commits with their files, and the commits that branches and tags are at."""

    commits: Mapping[str, Files]
    refs: Mapping[str, str]

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, tag or commit; None if there is none."""
        found = self.refs.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class Hub:
    """A running server."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By `models/ID` and `datasets/ID`."""
    asked: list[str] = field(default_factory=list)

    def run(self, folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in a process of its own that asks this server; its caches are in `folder`."""
        return run(self.url, folder, *arguments, **environment)


def run(url: str, folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with both hubs at `url` and their caches in `folder`."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *map(str, arguments)],
        env=surroundings(url, folder) | environment, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
    )  # fmt: skip


def surroundings(url: str, folder: Path) -> dict[str, str]:
    """The environment of a process that asks a server of ours."""
    other = re.compile(r"HF_.*|USE_.*|MODELSCOPE_.*|.*proxy", re.IGNORECASE)
    kept = {name: value for name, value in os.environ.items() if not other.fullmatch(name)}
    places = {"HF_ENDPOINT": url, "MODELSCOPE_ENDPOINT": url, "HF_HOME": "hf", "MODELSCOPE_CACHE": "ms"}
    made = {name: value if value == url else str(folder / value) for name, value in places.items()}
    return kept | made | {"MODELSCOPE_HOME": str(folder / "ms-home"), "OMP_NUM_THREADS": "1"}


@contextmanager
def serving() -> Iterator[Hub]:
    """A server that runs until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = server.hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        hub.asked.append(self.path)
        parts, query = (
            urlsplit(self.path),
            {key: value[0] for key, value in parse_qs(urlsplit(self.path).query).items()},
        )
        if found := re.fullmatch(
            r"/api/v1/((?:models|datasets)/[^/]+/[^/]+)/(commits|repo|repo/files|repo/tree)", parts.path
        ):
            self._modelscope(hub.repositories.get(found[1]), found[2], query)
        elif found := re.fullmatch(
            r"/api/((?:models|datasets)/[^/]+/[^/]+)(?:/(?:revision|tree)/([^/]+))?(/.*)?", parts.path
        ):
            self._hugging_face(hub.repositories.get(found[1]), found[1], found[2] or "main", "/tree/" in parts.path)
        elif found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", parts.path):
            repository = hub.repositories.get(f"{'datasets' if found[1] else 'models'}/{found[2]}")
            commit = repository.commit(found[3]) if repository else None
            self._file(repository, commit, found[4], {"X-Repo-Commit": commit or ""})
        else:
            self.send_error(404)

    def _hugging_face(self, repository: Repository | None, name: str, revision: str, tree: bool) -> None:
        commit = repository.commit(revision) if repository else None
        if repository is None or commit is None:
            code = "RepoNotFound" if repository is None else "RevisionNotFound"
            self._send(404, b"{}", {"X-Error-Code": code})
            return
        files = repository.commits[commit]
        info = {
            "id": name.partition("/")[2], "sha": commit, "private": False, "tags": [], "downloads": 0, "likes": 0,
            "siblings": [{"rfilename": path} for path in files],
        }  # fmt: skip
        entries = [{"type": "file", "path": path, "size": len(data), "oid": "0"} for path, data in files.items()]
        self._json(entries if tree else info)

    def _modelscope(self, repository: Repository | None, what: str, query: Mapping[str, str]) -> None:
        commit = repository.commit(query.get("Ref") or query.get("Revision") or "master") if repository else None
        if repository is None or commit is None:
            self._json({"Code": 10010205001, "Success": False, "Message": "not found", "Data": None}, 404)
        elif what == "commits":
            self._json({"Code": 200, "Success": True, "Data": {"Commit": [{"Id": commit}], "TotalCount": 1}})
        elif what == "repo":
            self._file(repository, commit, query["FilePath"], {})
        else:
            entries = [
                {"Path": path, "Type": "blob", "Size": len(data), "Sha256": hashlib.sha256(data).hexdigest()}
                for path, data in repository.commits[commit].items()
            ]
            self._json({"Code": 200, "Success": True, "Data": {"Files": entries}})

    def _file(self, repository: Repository | None, commit: str | None, path: str, headers: dict[str, str]) -> None:
        data = repository.commits[commit].get(path) if repository and commit else None
        if data is None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        else:
            self._send(200, data, headers | {"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, payload: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass
