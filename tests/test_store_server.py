"""The store of the tests: when its server dies, one test fails and says so, and the others go on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.store import server_program

ROOT = Path(__file__).resolve().parent.parent
INNER = """
def test_before(store):
    store.put("kept", b"bytes")

def test_the_server_is_killed(store):
    store.server.kill()
    store.server.wait()
    store.client.head_bucket(Bucket="buck")

def test_after(store):
    assert store.get("kept") == b"bytes"

def test_without_a_store():
    pass
"""


def test_a_server_that_is_killed_fails_one_test_and_serves_the_next(tmp_path: Path) -> None:
    server_program()
    (tmp_path / "test_inner.py").write_text(INNER)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-c", "/dev/null", "--rootdir"]
    done = subprocess.run([*command, tmp_path, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "1 failed, 3 passed" in done.stdout, done.stdout
    assert "the object store died during this test: its server ended with exit code -9" in done.stdout
    assert "EndpointConnectionError" not in done.stdout
