"""Checkpoints of the trainer, as every command reads them: what is in them, and whether it is as it was written.

    run.json    the run, its data and its model, with the trainer's mark; written first
    COMPLETE    the size and digest of every other file, the mark, and a digest of its own; written last

Digests tell damage, not forgery: who can write a checkpoint can write its digests.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import xxhash

from schemas import own, schema
from schemas.disk import is_inside
from schemas.errors import InputError, IntegrityError

COMPLETE, RUN, STATE = "COMPLETE", "run.json", "deepspeed"
MADE_BY = "finetune-data-compiler train"
_PIECE = 2**22
_LARGEST = 2**26
"""Bytes that run.json and COMPLETE may have."""
_EARLIER = "Make another checkpoint with this version: an earlier one wrote no digests."
_WRONG = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What JSON of another shape than COMPLETE's or run.json's can raise."""
Entry = tuple[int, str]
"""The size of a file, and its digest: xxh3 of 128 bits."""


def digest(path: Path) -> Entry:
    """The size and the digest of a regular file; OSError for anything else."""
    found, size, piece = xxhash.xxh3_128(), 0, memoryview(bytearray(_PIECE))
    with os.fdopen(_regular(path), "rb", buffering=0) as file:
        while count := file.readinto(piece):
            found.update(piece[:count])
            size += count
    return size, found.hexdigest()


def _regular(path: Path) -> int:
    """A descriptor of a regular file; a pipe or a device is refused before it is waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(None, "is no regular file", str(path))
    return descriptor


def files(folder: Path) -> list[str]:
    """The names of a checkpoint's files but COMPLETE and hidden ones, sorted; links to folders are not followed."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(place).relative_to(folder)
        found += [(inside / name).as_posix() for name in names if not name.startswith(".")]
    return sorted(name for name in found if name != COMPLETE)


def sealed(run: str, entries: dict[str, Entry]) -> bytes:
    """The contents of COMPLETE, for a run and its files."""
    found = {"made_by": MADE_BY, "run": run, "files": {name: list(entry) for name, entry in entries.items()}}
    text = json.dumps(found, ensure_ascii=False, sort_keys=True)
    found["digest"] = xxhash.xxh3_128_hexdigest(text.encode())
    return (json.dumps(found, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def is_ours(folder: Path) -> bool:
    """Whether this trainer made a folder: run.json or, should that be damaged, COMPLETE has its mark."""
    return any(own.is_ours(folder, name, MADE_BY) for name in (RUN, COMPLETE))


def damage(folder: Path, *, state: bool = True, part: int = 0, parts: int = 1) -> list[str]:
    """What is not as it was written in a checkpoint: a line for each file; with `parts`, only every so many-th is read.

    Without `state`, what only a resume reads is left out.
    """
    try:
        listed = _listed(folder)
    except (OSError, *_WRONG) as error:
        return [f"{COMPLETE}: {_said(error)}"]
    problems = []
    for number, (name, entry) in enumerate(sorted(listed.items())):
        if number % parts != part or not (state or _is_outside(name)):
            continue
        try:
            size, found = digest(folder / name)
        except OSError as error:
            problems.append(f"{name}: {_said(error)}")
            continue
        if size != entry[0]:
            problems.append(f"{name}: expected {entry[0]} bytes, found {size}")
        elif found != entry[1]:
            problems.append(f"{name}: is damaged or was edited")
    return problems


def strangers(folder: Path, *, state: bool = True) -> list[str]:
    """The files in a checkpoint that COMPLETE does not list, as `damage` found it to be whole."""
    listed = _listed(folder)
    return [name for name in files(folder) if name not in listed and (state or _is_outside(name))]


def _is_outside(name: str) -> bool:
    return not name.startswith(f"{STATE}/")


def _listed(folder: Path) -> dict[str, Entry]:
    """The files that COMPLETE lists; ValueError and the like unless every byte of it is as it was written."""
    data = _read(folder / COMPLETE)
    if not data:
        raise ValueError(f"is empty. {_EARLIER}")
    found = json.loads(data)
    entries = {str(name): (int(entry[0]), str(entry[1])) for name, entry in found["files"].items()}
    if data != sealed(found["run"], entries):
        raise ValueError("is damaged or was edited")
    if wrong := next((name for name in entries if not is_inside(name)), None):
        raise ValueError(f"lists {wrong!r}, which leads out of the folder")
    return entries


def _read(path: Path) -> bytes:
    with os.fdopen(_regular(path), "rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"has more than {_LARGEST:,} bytes")
    return data


def _said(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or (
        str(error) if type(error) is ValueError else "is damaged"
    )


def check(folder: Path, *, state: bool = False) -> None:
    """Raise an IntegrityError that names a file of a checkpoint which is damaged, missing, or none of its own."""
    if problems := damage(folder, state=state):
        more = f" ({len(problems) - 1} more)" if len(problems) > 1 else ""
        hint = f"Use another checkpoint. cli verify {folder} names all damage."
        raise IntegrityError(str(folder), f"{problems[0]}{more}", hint)
    if found := strangers(folder, state=state):
        what = f"{found[0]}: no file of this checkpoint; it was put there later"
        raise IntegrityError(str(folder), what, "Move it somewhere else.")


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a complete checkpoint, its digest and schema checked; a Problem where it is damaged."""
    import jsonschema_rs  # as for manifests

    hint, path = "Use another checkpoint.", folder / COMPLETE
    try:
        entry = _listed(folder)[RUN]
        path = folder / RUN
        run = json.loads(_read(path)) if digest(path) == entry else None
        problem = next(jsonschema_rs.validator_for(schema("checkpoint")).iter_errors(run), None)
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {_said(error)}", hint) from error
    except _WRONG as error:
        raise IntegrityError(str(path), _said(error), hint) from error
    if run is None:
        raise IntegrityError(str(path), "is damaged or was edited", hint)
    if problem is not None:
        pointer = "/".join(["", *map(str, problem.instance_path)])
        raise IntegrityError(f"{path}#{pointer}", problem.message[:200], hint)
    found: dict[str, Any] = run
    return found
