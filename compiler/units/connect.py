"""The connection to a Ray cluster."""

from __future__ import annotations

import io
import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from schemas import install
from schemas.errors import InputError, Terminated, UsageError

CONNECTING = 10.0
"""Seconds that the cluster's address has to answer."""


@contextmanager
def connected(address: str, workers: int) -> Iterator[Any]:
    """Connect to Ray. What it would print is in its logs; our stdout is for results."""
    try:
        import ray
    except ImportError:
        raise UsageError("--engine ray", "Ray is not installed", install.extra("ray")) from None
    address = address or os.environ.get("RAY_ADDRESS", "")
    where = f"--ray-address {address}" if address else "--engine ray"
    _check_address(where, address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own = {"address": "local", "num_cpus": workers or None, "include_dashboard": False}
    with redirect_stdout(io.StringIO()):
        try:
            ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **({"address": address} if address else own))
        except (OSError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
            raise _unreachable(where, str(error).splitlines()[0]) from error
        before = signal.signal(signal.SIGTERM, _terminated)  # Ray's own handler prints a C++ stack and exits with 15
        try:
            yield ray
        finally:
            ray.shutdown()
            signal.signal(signal.SIGTERM, before)


def _terminated(*_: object) -> None:
    hint = "What was compiled is in the cache: run the same command again."
    raise Terminated("--engine ray", "SIGTERM ended the run", hint)


def _check_address(where: str, address: str) -> None:
    """Raise for an address at which nobody listens. Ray itself would wait a quarter of an hour."""
    if "://" in address:
        what = "expected HOST:PORT or auto; Ray's client protocol is for machines outside of the cluster"
        raise UsageError(where, what, "Run this on a machine of the cluster.")
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECTING).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _unreachable(where, str(error)) from error


def _unreachable(where: str, why: str) -> InputError:
    how = "Start it with `ray start --head`, which says its HOST:PORT; Python and Ray must be the same everywhere."
    return InputError(where, f"no Ray cluster could be reached: {why}", how)
