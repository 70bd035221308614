"""Leases: lock files for file systems without `flock`, each a line of JSON that says who holds it.

A lease is taken over only with proof that its holder is gone: a process of this machine that does not run any more, or
ran before this machine was started. Of other machines nothing can be proven, so the user is asked.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schemas.errors import LockedError

LEASE = ".lease"
"""The lease of a folder. Of those who only use it, each has one with its own name added."""


def take(folder: Path, say: Callable[[str], object], *, shared: bool) -> None:
    """Take the lease of a folder until `give_back` or the end of this process; LockedError while others have one."""
    mine = holder()
    name = f"{LEASE}-{secrets.token_hex(4)}" if shared else LEASE
    for path in sorted(folder.glob(f"{LEASE}*")):
        if shared and path.name != LEASE:
            continue
        if (found := _read(path)) is not None and not _is_gone(path, found, mine):
            who = f"process {found.get('pid')} on {found.get('host')}, since {found.get('since')}"
            how = f"Wait for it. If no such process runs there, remove {path}."
            raise LockedError(str(folder), f"it is in use by {who}", how)
        say(f"{path}: its holder is gone, and the lease is taken over")
        _remove(path, found)
    try:
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError as error:
        raise LockedError(str(folder), "another process took it just now", "Wait for it.") from error
    with os.fdopen(descriptor, "w") as file:
        file.write(json.dumps(mine) + "\n")
    atexit.register(give_back, folder / name)


def give_back(path: Path) -> None:
    """Remove a lease, if it is this process's own."""
    found = _read(path)
    if found is not None and _same(found, holder()):
        path.unlink(missing_ok=True)


def give_back_all(folder: Path) -> None:
    """Remove every lease that this process has of a folder."""
    for path in folder.glob(f"{LEASE}*"):
        give_back(path)


def holder() -> dict[str, Any]:
    """What tells this process from all others: machine, start of the machine, number and start of the process."""
    from datetime import UTC, datetime  # only where there are no locks

    return {
        "host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "start": _start(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(name) == other[name] for name in ("host", "boot", "pid", "start"))


def _is_gone(path: Path, found: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether the holder is this process, or provably gone."""
    if _same(found, mine):
        return True
    if not found:
        return False  # half-written: its holder is at it, or it is no lease
    if found.get("host") != mine["host"] or path.is_symlink():
        return False
    if found.get("boot") != mine["boot"]:
        return bool(found.get("boot") and mine["boot"])
    return bool(found.get("start")) and _start(found.get("pid")) != found.get("start")


def _read(path: Path) -> dict[str, Any] | None:
    """What a lease says; nothing if it says nothing that can be read, None if it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        return {}
    with os.fdopen(descriptor, "rb") as file:
        try:
            found = json.loads(file.read(4096))
        except (ValueError, OSError):
            return {}
    return found if isinstance(found, dict) else {}


def _remove(path: Path, found: dict[str, Any] | None) -> None:
    """Remove a lease that was found stale, unless another process was faster and has put its own there."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.stale")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _read(aside) != found:
            aside.rename(path)
            raise LockedError(str(path.parent), "another process took it just now", "Wait for it.")
        aside.unlink()


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start(pid: object) -> str:
    """When a process was started, in ticks of this machine; "" if it does not run or that is not told."""
    if not isinstance(pid, int):
        return ""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
