"""Object stores: paths for `s3://` URIs, with as much of pathlib's Path as readers need, and plain error messages.

    s3://BUCKET/KEY[?endpoint_override=HOST:PORT&scheme=http&region=REGION&force_virtual_addressing=true]

After `?` stand options of pyarrow.fs. Credentials are not among them: they would end up in the shell's history and in
messages. They are taken from where AWS's tools take them (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE and
~/.aws, the machine's role). AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and AWS_REGION are honoured.

    path = path_of("s3://bucket/sets/x")         a StorePath; any other text is a pathlib.Path
    with (path / "manifest.json").open() as file: ...        reads ranges, 4 MiB at a time
    store, name = path.filesystem()              for pyarrow: store.open_input_file(name)
"""

from __future__ import annotations

import errno
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, urlsplit

from schemas import kept
from schemas.errors import InputError, UsageError

SCHEME = "s3://"
QUERY = ("endpoint_override", "scheme", "region", "force_virtual_addressing")
BUFFER = 4 << 20
"""Bytes of one request when a file is read from beginning to end."""
CONNECT_SECONDS, ANSWER_SECONDS = 10, 60
"""How long a store may take to accept a connection, and to answer; then the request is tried again (`tries`)."""


@dataclass(frozen=True, order=True)
class StorePath:
    """A file or folder in an object store. A failure to reach it is an InputError (exit code 5)."""

    key: PurePosixPath
    """Bucket and key, as pyarrow.fs takes paths."""
    query: str = ""
    """How the store is reached, as it was given; not part of the path's identity."""

    def __str__(self) -> str:
        return self.uri + (f"?{self.query}" if self.query else "")

    def __truediv__(self, name: str | PurePosixPath) -> StorePath:
        return replace(self, key=self.key / name)

    @property
    def uri(self) -> str:
        """The URI without its query, as shards and manifests name it."""
        return f"{SCHEME}{self.key}"

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.key.parts[0]

    @property
    def name(self) -> str:
        """The last part, as in pathlib; likewise suffix, suffixes and parent."""
        return self.key.name

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot on."""
        return self.key.suffix

    @property
    def suffixes(self) -> list[str]:
        """The ends of the name."""
        return self.key.suffixes

    @property
    def parent(self) -> StorePath:
        """The folder it is in."""
        return replace(self, key=self.key.parent)

    def filesystem(self) -> tuple[Any, str]:
        """Pyarrow's file system for the store, and the path in it."""
        with in_words(self):
            return _filesystem(self.bucket, *address_of(self.query)), str(self.key)

    def info(self) -> Any:
        """Pyarrow's FileInfo: the type, and the size of a file."""
        store, name = self.filesystem()
        with in_words(self):
            return store.get_file_info(name)

    def is_file(self) -> bool:
        """Whether there is a file of this name."""
        return kept.size(self) is not None or bool(self.info().is_file)

    def exists(self) -> bool:
        """Whether there is a file or folder of this name."""
        return self.info().type.name != "NotFound"

    def is_dir(self) -> bool:
        """Whether there are files below this name."""
        return self.info().type.name == "Directory"

    def rglob(self, pattern: str) -> list[StorePath]:
        """The files (no folders) below this folder whose names match, at any depth, in no order."""
        from pyarrow.fs import FileSelector

        store, name = self.filesystem()
        with in_words(self):
            found = store.get_file_info(FileSelector(name, recursive=True, allow_not_found=True))
        files = []
        for info in (one for one in found if one.is_file):
            files.append(replace(self, key=PurePosixPath(info.path)))
            kept.listed(files[-1], info.size)
        return [file for file in files if file.key.match(pattern)]

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the file for reading by range; FileNotFoundError if there is none, as in pathlib."""
        if mode != "rb":
            raise ValueError(f"a file in a store is opened with mode 'rb', not {mode!r}")
        if (found := kept.fetch(self)) is not None:
            return io.BytesIO(found[0])
        store, name = self.filesystem()
        with in_words(self):
            return io.BufferedReader(_Ranges(self, store.open_input_file(name)), BUFFER)

    def read_bytes(self) -> bytes:
        """Read the whole file; FileNotFoundError if there is none."""
        with self.open() as file:
            return file.read()

    def stamp(self) -> tuple[int, str]:
        """Size and ETag, which change when the file is written; FileNotFoundError if there is none."""
        found = kept.fetch(self)
        return self.whole(-1)[1] if found is None else found[1]

    def whole(self, largest: int) -> tuple[bytes | None, tuple[int, str]]:
        """(the bytes, None of a file that is larger, and its size and ETag); FileNotFoundError if there is none."""
        store, name = self.filesystem()
        with in_words(self), store.open_input_file(name) as file:
            found = file.metadata()
            stamp = file.size(), (found.get("ETag") or found["Last-Modified"]).decode()
            return (bytes(file.read()) if stamp[0] <= largest else None), stamp


AnyPath = Path | StorePath


def path_of(text: str | AnyPath) -> AnyPath:
    """Parse the name of a file or folder: a local path, or a URI of an object store; UsageError for a wrong URI."""
    if isinstance(text, StorePath):
        return text
    if not str(text).startswith(SCHEME):
        return Path(text)
    given = urlsplit(str(text))
    shown = f"{SCHEME}{given.netloc.rpartition('@')[2]}{given.path}"
    if "@" in given.netloc:
        hint = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        raise UsageError(shown, "credentials are not part of a URI", hint)
    if not given.netloc or given.fragment:
        raise UsageError(shown, "expected s3://BUCKET/KEY", "A key with '#' or '?' in it cannot be named.")
    unknown = [name for name, _ in parse_qsl(given.query, keep_blank_values=True) if name not in QUERY]
    if unknown:
        raise UsageError(shown, f"unknown after the '?': {unknown[0]}", f"Known: {', '.join(QUERY)}.")
    return StorePath(PurePosixPath(given.netloc + given.path), given.query)


def address_of(query: str) -> tuple[str | None, str | None, bool]:
    """How a store is reached: URL of its endpoint (None = AWS), region if known, whether addressing is virtual."""
    given, environment = dict(parse_qsl(query)), os.environ.get
    endpoint = given.get("endpoint_override")
    if endpoint and "://" not in endpoint:
        endpoint = f"{given.get('scheme', 'https')}://{endpoint}"
    endpoint = endpoint or environment("AWS_ENDPOINT_URL_S3") or environment("AWS_ENDPOINT_URL")
    region = given.get("region") or environment("AWS_REGION") or environment("AWS_DEFAULT_REGION")
    return endpoint or None, region or None, given.get("force_virtual_addressing", "").lower() in ("true", "1")


@lru_cache(maxsize=32)
def _filesystem(bucket: str, endpoint: str | None, region: str | None, virtual: bool) -> Any:
    try:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem, resolve_s3_region
    except ImportError as error:
        what = "this build of pyarrow cannot read object stores"
        raise UsageError("pyarrow", what, "Install it from PyPI: pip install --force-reinstall pyarrow.") from error
    patience: dict[str, Any] = {
        "connect_timeout": CONNECT_SECONDS, "request_timeout": ANSWER_SECONDS,
        "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=tries()),
    }  # fmt: skip
    if endpoint is None:
        return S3FileSystem(region=region or resolve_s3_region(bucket), **patience)
    scheme, _, host = endpoint.partition("://")
    return S3FileSystem(
        endpoint_override=host.rstrip("/"), scheme=scheme, region=region or "us-east-1",
        force_virtual_addressing=virtual, **patience,
    )  # fmt: skip


def tries() -> int:
    """How often a request is made before the store counts as out of reach: AWS_MAX_ATTEMPTS, as for AWS's tools."""
    given = os.environ.get("AWS_MAX_ATTEMPTS", "3")
    if not re.fullmatch("[1-9][0-9]?", given):
        raise UsageError(f"AWS_MAX_ATTEMPTS={given}", "expected a number from 1 to 99", "Unset it for 3.")
    return int(given)


class _Ranges(io.RawIOBase):
    """A file in a store as a Python file object; errors while reading have plain messages too."""

    def __init__(self, path: StorePath, file: Any) -> None:
        super().__init__()
        self._path, self._file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, into: Any, /) -> int:
        with in_words(self._path):
            return int(self._file.readinto(into))

    def readall(self) -> bytes:
        with in_words(self._path):
            return bytes(self._file.read())  # one request; the inherited method makes one for every 8 KiB

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def in_words(path: StorePath) -> Iterator[None]:
    """Turn errors of a store or its client into InputError; a missing file stays FileNotFoundError."""
    try:
        yield
    except OSError as error:
        gone = isinstance(error, FileNotFoundError) or any(mark in str(error) for mark in _GONE)
        if not gone and not (_CUT_OFF in str(error) and _is_gone(path)):
            raise problem(path, str(error)) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error


def _is_gone(path: StorePath) -> bool:
    store, name = path.filesystem()
    try:
        return bool(store.get_file_info(name).type.name == "NotFound")
    except OSError:
        return False


_GONE = ("NO_SUCH_KEY", "RESOURCE_NOT_FOUND")
"""How the client names a file that was removed after it was opened."""
_CUT_OFF = "Failed to flush response stream"
"""What the client says of an answer that ended early, as when a file is removed while it is read."""
_NO_BUCKET = ("no such bucket", "Check its name, and AWS_ENDPOINT_URL (or endpoint_override).")
_WORDS = (
    (("NO_SUCH_BUCKET", "NoSuchBucket", "' not found"), *_NO_BUCKET),
    (
        ("ACCESS_DENIED", "AccessDenied", "INVALID_ACCESS_KEY_ID", "InvalidAccessKeyId", "SIGNATURE_DOES_NOT_MATCH",
         "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "(403)", "status 403", "locate credentials"),
        "permission denied", "Check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) and what they may do.",
    ),
    (
        ("NETWORK_CONNECTION", "REQUEST_TIMEOUT", "connect to the endpoint", "Connect timeout", "Connection was closed",
         "Read timeout"),
        "the store cannot be reached", "Check the network, AWS_ENDPOINT_URL (or endpoint_override), and http or https.",
    ),
    (("status 301", "(301)", "PermanentRedirect", "AuthorizationHeaderMalformed"), "the bucket is in another region",
     "Name it: AWS_REGION, or ?region=REGION after the URI."),
)  # fmt: skip
"""Parts of pyarrow's and boto3's messages, what they mean, and what to do."""


def no_such(path: StorePath) -> InputError:
    """The InputError for a path that names nothing."""
    store, _ = path.filesystem()
    with in_words(path):
        is_bucket = store.get_file_info(path.bucket).type.name == "Directory"
    if is_bucket:
        return InputError(str(path), "no such file or folder", "Check the key; upper and lower case differ.")
    return InputError(str(path), *_NO_BUCKET)


def problem(path: StorePath, said: str) -> InputError:
    """The InputError for a message of a store's client about a path."""
    for marks, what, hint in _WORDS:
        if any(mark in said for mark in marks):
            return InputError(str(path), what, hint)
    return InputError(str(path), f"the store or its client said: {said.splitlines()[0][:300]}", "")
