"""The bytes of a compressed file: gzip members or zstd frames, of which none may hold more than a limit."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol

import zstandard

from schemas.errors import InputError


class _Member(Protocol):
    """One gzip member or zstd frame being decompressed (zlib and zstandard agree on these names)."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


_MEMBERS: dict[str, Callable[[], _Member]] = {
    "gz": lambda: zlib.decompressobj(wbits=31),
    "zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


class Expansion:
    """How many bytes a compressed file may hold for each of its own. It is the process's, as the run sets it."""

    most = 100


_ALWAYS = 1 << 24
"""Bytes that a compressed file may hold in any case."""


class Decompressed(io.RawIOBase):
    """The decompressed bytes of a file of any number of members; InputError where it is corrupt or truncated.

    gzip.open and zstandard.open are not used: the first loses the bytes before an error, the second accepts a
    truncated file.
    """

    _CHUNK = 512  # compressed bytes at a time: a zstd bomb makes at most 16 MiB out of this many

    def __init__(self, file: BinaryIO, compression: str, where: str) -> None:
        super().__init__()
        self._read = self._made = 0  # bytes, compressed and not
        self._file, self._compression, self._where = file, compression, where
        self._member: _Member | None = None
        self._rest = b""  # compressed, behind the end of the last member
        self._ready = memoryview(b"")
        self._given = 0
        self._padding = False  # after a gzip member there may be zeros

    def readable(self) -> bool:
        """True; BufferedReader asks."""
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        """Fill `into` with what comes next and return how much that was; 0 at the end."""
        while not self._ready:
            chunk = self._rest
            if not chunk:
                chunk = self._file.read(self._CHUNK)
                self._read += len(chunk)
            self._rest = b""
            if not chunk:
                if self._member is not None:
                    raise self._broken("is cut short")
                return 0
            self._ready = memoryview(self._decompress(chunk))
        size = min(len(into), len(self._ready))
        into[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        self._given += size
        return size

    def _decompress(self, chunk: bytes) -> bytes:
        """The decompressed bytes of a chunk; b"" if there are none yet."""
        if self._member is None:
            if self._padding:
                chunk = chunk.lstrip(b"\0")
            if not chunk:
                return b""
            self._member = _MEMBERS[self._compression]()
        try:
            out = self._member.decompress(chunk)
        except (zlib.error, zstandard.ZstdError) as error:
            raise self._broken(f"is not valid {self._compression} data ({error})") from error
        self._made += len(out)
        if self._made > max(_ALWAYS, self._read * Expansion.most):
            what = f"its first {self._read:,} bytes hold {self._made:,}, more than {Expansion.most} times as many"
            hint = "If that is what it should hold, allow it: --max-expansion N."
            raise InputError(self._where, what, hint)
        if self._member.eof:
            self._rest, self._member = self._member.unused_data, None
            self._padding = self._compression == "gz"
        return out

    def _broken(self, what: str) -> InputError:
        tool = "gzip" if self._compression == "gz" else "zstd"
        hint = f"Copy or download it again; `{tool} -t FILE` tests it."
        return InputError(self._where, f"{what}; {self._given} decompressed bytes were readable", hint)
