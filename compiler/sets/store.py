"""Publication into an object store: the set is written on this machine, then put file by file, the manifest last.

    TARGET/manifest.json                      names the folder that holds the set (run.folder)
    TARGET/FOLDER/train/shard-00000.arrow     and all other files; every publication has a new folder

1. Every file is put into the new folder, a few at a time.
2. The manifest is put. This one put replaces the set: readers of the old manifest still find the old files.
3. The files of the old set are removed; a reader that still wants one of them gets an error that it is gone.

The put of the manifest is conditional: it succeeds only if the manifest is still the one that was there when the
compile began. Of two compiles that write one set one publishes and the other fails, and a killed one leaves no lock.

pyarrow.fs has no conditional put (it silently ignores the header), so boto3 writes: the `[s3]` extra.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from compiler.sets.folder import EMBEDDED_FILE, LOCK, OWN, Output, foreign, is_ours
from compiler.units.progress import Watcher
from schemas.arrow import MANIFEST
from schemas.errors import InputError, LockedError, Problem, UsageError
from schemas.manifest import Manifest, sealed
from schemas.stores import ANSWER_SECONDS, CONNECT_SECONDS, StorePath, address_of, problem, tries

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 4
"""Files that are put, or removed, at the same time."""
_LOST = (404, 409, 412)
"""Statuses of a conditional put that failed: the manifest is gone, being written, or another one."""
_FOLDER = re.compile("[0-9a-f]{16}-[0-9a-f]{8}")


class StoreOutput:
    """A set that is being put into a store. A context manager like `Output`, which holds the files until then."""

    def __init__(self, target: StorePath, cache: Path, watcher: Watcher) -> None:
        self.target, self._watcher = target, watcher
        self._local = Output(cache / "outgoing" / sha256(str(target).encode()).hexdigest()[:16], watcher.say)
        self._client = _client(target)
        self._etag: str | None = None
        """ETag of the manifest that was there when the compile began; None if there was none."""
        self._on_its_way = False
        """Whether the manifest was sent and not definitely refused: the store may still put it."""

    @property
    def partial(self) -> Path:
        """The local folder to write the set to."""
        return self._local.partial

    def check(self) -> None:
        """Raise what entering would raise of the target; nothing is put, and no lock is taken."""
        if self.target.is_file():
            raise UsageError(f"-o {self.target}", "expected a folder, found a file")
        self._check_target()

    def __enter__(self) -> StoreOutput:
        if self.target.is_file():
            raise UsageError(f"-o {self.target}", "expected a folder, found a file")
        try:
            self._local.__enter__()
        except LockedError as error:
            raise self._locked("another compile on this machine is writing it") from error
        try:
            self._check_target()
        except BaseException:
            self._local.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *raised: Any) -> None:
        self._local.__exit__(*raised)

    def _check_target(self) -> None:
        """Remember the manifest in place; UsageError if there are files that are no compiled set."""
        manifest, self._etag = self._manifest()
        other = None if is_ours(manifest) else next((key for key in self._keys() if not _FOLDER.match(key)), None)
        if other is not None:
            raise foreign(self.target, {other.split("/")[0]})

    def publish(self, manifest: Manifest) -> None:
        """Put all files, the manifest last. If that fails, what was put is removed again.

        Nothing is removed once the manifest is on its way: the store may put it later, and it needs its files.
        """
        folder = f"{secrets.token_hex(8)}-{secrets.token_hex(4)}"
        manifest["run"]["folder"] = folder
        data = sealed(manifest)
        files = {path: path.stat().st_size for path in sorted(self.partial.rglob("*")) if path.is_file()}
        files.pop(self.partial / LOCK)
        old = [key for key in self._keys() if key != MANIFEST and _is_own(key)]
        try:
            done = 0
            for path in _in_parallel(lambda path: self._put(folder, path), files):
                done += files[path]
                self._watcher.put(done, sum(files.values()))
            self._check_conditional_puts(f"{folder}/README.md")
            self._put_manifest(data)
        except BaseException as error:
            if self._on_its_way:
                self._leave(folder, error)
            else:
                self._withdraw(folder, error)
            raise
        try:
            self._remove(old)
        except Problem as error:
            self._watcher.say(f"the set is published; files of the one before it could not be removed: {error}")

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self.target.bucket, "Key": "/".join([*self.target.key.parts[1:], name])}

    def _keys(self, below: str = "") -> Iterator[str]:
        """Yield the names of all files below the target, a thousand with each request."""
        top, pages = self._key("")["Key"], self._client.get_paginator("list_objects_v2")
        with self._client_errors():
            for page in pages.paginate(Bucket=self.target.bucket, Prefix=top + below):
                yield from (entry["Key"].removeprefix(top) for entry in page.get("Contents", []))

    def _manifest(self) -> tuple[bytes, str | None]:
        """The manifest in place and its ETag; no bytes and None if there is none."""
        with self._client_errors():
            try:
                found = self._client.get_object(**self._key(MANIFEST))
                return found["Body"].read(), found["ETag"]
            except self._client.exceptions.NoSuchKey:
                return b"", None

    def _put(self, folder: str, path: Path) -> Path:
        name = f"{folder}/{path.relative_to(self.partial).as_posix()}"
        with self._client_errors(name), path.open("rb") as file:
            self._client.put_object(**self._key(name), Body=file)
        return path

    def _put_manifest(self, data: bytes) -> None:
        condition = {"IfMatch": self._etag} if self._etag else {"IfNoneMatch": "*"}
        self._on_its_way = True
        try:
            self._client.put_object(**self._key(MANIFEST), Body=data, ContentType="application/json", **condition)
        except (ClientError, BotoCoreError) as error:
            if self._manifest()[0] == data:
                return  # it was put, but the answer got lost, and the client's second try found it there
            self._on_its_way = not _is_refusal(error)
            if _status(error) in _LOST:
                raise self._locked("another compile published there, or removed the set, while this one ran") from error
            raise problem(self.target / MANIFEST, str(error)) from error

    def _check_conditional_puts(self, name: str) -> None:
        """InputError unless the store refuses to put a file that exists, on condition that it does not."""
        try:
            self._client.put_object(**self._key(name), Body=b"", IfNoneMatch="*")
        except ClientError as error:
            if _status(error) in _LOST:
                return
            raise problem(self.target, str(error)) from error
        except BotoCoreError as error:
            raise problem(self.target, str(error)) from error
        what = "the store ignores the condition of a put, so that two compiles could overwrite each other unseen"
        raise InputError(str(self.target), what, "Compile into a folder of this machine, and copy that.")

    def _withdraw(self, folder: str, error: BaseException) -> None:
        """Remove what was put. If that fails, say so."""
        try:
            self._remove(self._keys(f"{folder}/"))
        except Problem:
            self._tell(error, f"what was put into {self.target / folder} could not be removed")

    def _leave(self, folder: str, error: BaseException) -> None:
        """Say that the set may be published, or be published yet."""
        self._tell(
            error,
            "the store did not say whether the set is published: cli verify tells. If it is not, what was put into "
            f"{self.target / folder} remains until the next compile that publishes there",
        )

    def _tell(self, error: BaseException, what: str) -> None:
        """Add a sentence to an error, or say it beside one that has no message."""
        if isinstance(error, Problem):
            raise type(error)(error.where, error.what, f"{error.hint}\n  {what}.".lstrip()) from error
        self._watcher.say(what)

    def _remove(self, names: Iterable[str]) -> None:
        with self._client_errors():
            for _ in _in_parallel(lambda name: self._client.delete_object(**self._key(name)), names):
                pass

    def _locked(self, what: str) -> LockedError:
        return LockedError(str(self.target), what, "Nothing was published. Run again, or choose another -o.")

    @contextmanager
    def _client_errors(self, name: str = "") -> Iterator[None]:
        """Turn errors of the client into an InputError."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            raise problem(self.target / name, str(error)) from error


def _is_own(key: str) -> bool:
    return key.split("/")[0] in OWN or bool(_FOLDER.match(key) or EMBEDDED_FILE.fullmatch(key))


def _client(target: StorePath) -> Any:
    endpoint, region, virtual = address_of(target.query)
    style = "virtual" if virtual else "path" if endpoint else "auto"
    config = Config(
        retries={"max_attempts": tries(), "mode": "standard"},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=ANSWER_SECONDS,
        s3={"addressing_style": style},
        ignore_configured_endpoint_urls=True,
    )
    if endpoint and not region:
        region = "us-east-1"  # the store has no regions, but signatures name one
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:  # an unknown profile, an endpoint that is no URL
        raise problem(target, str(error)) from error


def _in_parallel(do: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield the result of each item in order, a few at a time. The first error is raised when those running end."""
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        yield from pool.map(do, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _is_refusal(error: Exception) -> bool:
    """Whether a put was refused for good: its condition failed, or its only try was turned down."""
    status = _status(error)
    if status in _LOST:
        return True
    tries = error.response["ResponseMetadata"].get("RetryAttempts", 1) if isinstance(error, ClientError) else 1
    return status is not None and 400 <= status < 500 and not tries


def _status(error: Exception) -> int | None:
    return error.response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(error, ClientError) else None
