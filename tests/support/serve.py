"""`transformers serve` and `cli serve` on a free port of the loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.command import outside

SECONDS = 90


@contextlib.contextmanager
def serving(model: Path) -> Iterator[str]:
    """Serve a model's folder from the one above it; give the address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [str(Path(sys.executable).parent / "transformers"), "serve", f"./{model.name}"]
    said = model.parent / "serve.log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            cwd=model.parent, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        until = time.monotonic() + SECONDS
        while True:
            assert process.poll() is None and time.monotonic() < until, said.read_text(encoding="utf-8")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=20)


@contextlib.contextmanager
def cli_serve(model: Path, *options: object) -> Iterator[str]:
    """Run `cli serve` on a model's folder; give the address that it prints."""
    command = [str(Path(sys.executable).parent / "cli"), "serve", str(model), "--port", "0", *map(str, options)]
    said = model.parent / "serve.log"
    with said.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True,
            env=outside() | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith(f"serving {model.name} at "), said.read_text(encoding="utf-8")
        yield line.split(" at ")[1].strip()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0, said.read_text(encoding="utf-8")
        assert said.read_text(encoding="utf-8") == ""
    finally:
        process.kill()
        process.wait(timeout=20)
        process.stdout.close()
