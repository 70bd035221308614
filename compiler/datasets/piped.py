"""Rows that are piped in: `cli compile -`.

A file is read twice, once to cut it into units and once to compile them, and a pipe only once. So what comes is kept in
the cache, under the digest of its bytes: the same input is the same file for every worker and every run.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from typing import IO, BinaryIO

from compiler.read import FileKind, open_source
from schemas.errors import InputError, UsageError

FOLDER = "stdin"
"""The folder in the cache."""
_BLOCK = 1 << 20
_MAGIC = {b"PAR1": ".parquet", b"ARROW1": ".arrow", b"\xff\xff\xff\xff": ".arrow"}
_PACKED = {b"\x1f\x8b": "gzip -dc", b"\x28\xb5\x2f\xfd": "zstd -dc"}


def keep_piped(cache: Path) -> Path:
    """Read the standard input to its end into the cache; the file that has it, named for what it holds."""
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("-", "nothing is piped in", "PROGRAM | cli compile -")
    folder = cache / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".json", delete=False) as file:
            path = Path(file.name)
            try:
                digest, head = _copy(sys.stdin.buffer, file)
                file.close()
                kept = folder / (digest + _suffix(path, head))
                if not kept.exists():  # another run may be reading it
                    path.replace(kept)
            finally:
                path.unlink(missing_ok=True)
    except OSError as error:
        what = f"cannot be kept in {folder}: {error.strerror}"
        raise InputError("-", what, "Name another folder with --cache.") from error
    return kept


def _copy(source: BinaryIO, file: IO[bytes]) -> tuple[str, bytes]:
    """Copy everything; its digest, and its first bytes."""
    digest, head = hashlib.sha256(), b""
    while block := source.read(_BLOCK):
        head = head or block.lstrip()[:16]
        digest.update(block)
        file.write(block)
    return digest.hexdigest()[:32], head


def _suffix(path: Path, head: bytes) -> str:
    """The suffix that says what a file holds: JSON in one of its forms, Parquet or Arrow."""
    for magic, suffix in _MAGIC.items():
        if head.startswith(magic):
            return suffix
    for magic, program in _PACKED.items():
        if head.startswith(magic):
            raise InputError("-", "what is piped in is compressed", f"{program} FILE | cli compile -")
    if not head:
        raise InputError("-", "has no rows", "Check the program that writes into the pipe.")
    if head.removeprefix(b"\xef\xbb\xbf")[:1] not in (b"{", b"["):
        found = head.decode("utf-8", "replace")
        hint = "Write CSV and text into a file, whose name says what it is."
        raise InputError("-", f"JSON, Parquet or Arrow was expected, found {found!r}", hint)
    return ".jsonl" if open_source(path).kind is FileKind.JSONL else ".json"
