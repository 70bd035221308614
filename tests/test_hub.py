"""Hub datasets: downloaded with the real client from a real server on loopback, or a message that says what to do."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROW = {"conversations": [{"from": "user", "value": "hub?"}, {"from": "assistant", "value": "hub."}]}
FILES = {"train.jsonl": (json.dumps(ROW) + "\n").encode() * 3, "test.jsonl": b'{"bad": 1}\n', "README.md": b"# hub\n"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """The few answers of the Hugging Face hub that a dataset snapshot needs."""

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/datasets/iic/ms_agent"):
            siblings = [{"rfilename": name} for name in FILES]
            entries = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in FILES.items()]
            data = {
                "id": "iic/ms_agent",
                "sha": COMMIT,
                "siblings": siblings,
                "private": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
            }
            payload = json.dumps(entries if "/tree/" in path else data).encode()
            self._send(payload, {"Content-Type": "application/json"}, body=body)
        elif path.startswith(f"/datasets/iic/ms_agent/resolve/{COMMIT}/"):
            payload = FILES[path.rpartition("/")[2]]
            self._send(payload, {"ETag": f'"{hashlib.sha1(payload).hexdigest()}"', "X-Repo-Commit": COMMIT}, body=body)
        else:
            self.send_error(404)

    def _send(self, payload: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        if body:
            self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def cli(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_") and "proxy" not in key.lower()}
    command = [
        sys.executable,
        "-m",
        "cli",
        *arguments,
        "--cache",
        str(folder / "cache"),
        "-o",
        str(folder / "out"),
        "--json",
    ]
    return subprocess.run(
        command,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=Path(__file__).parents[1],
    )


def test_a_hub_dataset_is_downloaded_and_its_commit_is_in_the_manifest(hub: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the [hub] extra")
    registry = tmp_path / "registry"
    registry.mkdir()
    entry = {
        "hf_hub_url": "iic/ms_agent",
        "formatting": "sharegpt",
        "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "user", "assistant_tag": "assistant"},
    }
    (registry / "dataset_info.json").write_text(json.dumps({"from_hub": entry}), encoding="utf-8")
    done = cli(
        tmp_path,
        "compile",
        "--mix",
        "from_hub",
        "--registry",
        str(registry),
        HF_ENDPOINT=hub,
        HF_HOME=str(tmp_path / "hf"),
    )
    assert done.returncode == 0, done.stderr
    dataset = json.loads(done.stdout)["datasets"][0]
    assert dataset["realized"]["rows"] == 3
    assert dataset["source"] == {"hub": {"huggingface": "iic/ms_agent"}, "revision": COMMIT}


def test_a_hub_that_cannot_be_reached_is_one_message_that_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the [hub] extra")
    registry = tmp_path / "registry"
    registry.mkdir()
    (registry / "dataset_info.json").write_text('{"far": {"hf_hub_url": "nobody/nothing"}}', encoding="utf-8")
    done = cli(
        tmp_path,
        "compile",
        "--mix",
        "far",
        "--registry",
        str(registry),
        HF_HUB_OFFLINE="1",
        HF_HOME=str(tmp_path / "hf"),
    )
    assert done.returncode == 5
    assert "nobody/nothing could not be downloaded" in done.stderr
    assert "Put its files into DIR/nobody/nothing and add --registry DIR" in done.stderr
    assert "Traceback" not in done.stderr
