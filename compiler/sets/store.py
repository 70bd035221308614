"""A set put into an object store: written on this machine first, then each file by one put, the manifest last.

    TARGET/manifest.json                      says which folder holds the set (run.folder)
    TARGET/FOLDER/train/shard-00000.arrow     and everything else; every publication has a folder of its own

So one put replaces a set: whoever reads the manifest before it finds the old files, whoever reads it after it the new
ones. The put holds only if the manifest is still the one that was there when the compile began, so of two compiles
that write the same set one publishes and the other fails, with no lock that a killed compile could leave behind.
The files of the old set are removed afterwards; a reader that still wants one of them is told that it is gone.

pyarrow.fs has no conditional put (it ignores the header without a word): what writes is boto3, the `[s3]` extra.
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

from compiler.sets.folder import OWN, Output, foreign, is_ours
from compiler.units.progress import Watcher
from schemas.arrow import MANIFEST
from schemas.errors import InputError, LockedError, Problem, UsageError
from schemas.manifest import Manifest, sealed
from schemas.stores import StorePath, address_of, problem

T = TypeVar("T")
R = TypeVar("R")

_AT_ONCE = 4
"""Files that are put, or removed, at a time."""
_LOST = (404, 409, 412)
"""Answers to a conditional put whose condition does not hold: the manifest is gone, being written, another one."""
_FOLDER = re.compile("[0-9a-f]{16}-[0-9a-f]{8}")


class StoreOutput:
    """A set on its way into a store. Use as a context manager, like `Output`, which holds the files until then."""

    def __init__(self, target: StorePath, cache: Path, watcher: Watcher) -> None:
        self.target, self._watcher = target, watcher
        self._local = Output(cache / "outgoing" / sha256(str(target).encode()).hexdigest()[:16])
        self._client = _client(target)
        self._etag: str | None = None
        """Of the manifest that was there when the compile began; None where there was none."""

    @property
    def partial(self) -> Path:
        """The folder on this machine that the set is written to."""
        return self._local.partial

    def __enter__(self) -> StoreOutput:
        if self.target.is_file():
            raise UsageError(f"-o {self.target}", "expected a folder, found a file")
        try:
            self._local.__enter__()
        except LockedError as error:
            raise self._locked("another compile on this machine is writing it") from error
        try:
            self._look()
        except BaseException:
            self._local.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *raised: Any) -> None:
        self._local.__exit__(*raised)

    def _look(self) -> None:
        """Remember the manifest in place. Raise if there are files and they are no set of ours."""
        manifest, self._etag = self._manifest()
        other = None if is_ours(manifest) else next((key for key in self._keys() if not _FOLDER.match(key)), None)
        if other is not None:
            raise foreign(self.target, {other.split("/")[0]})

    def publish(self, manifest: Manifest) -> None:
        """Put everything in place, the manifest last. What was put is removed again if that fails."""
        folder = f"{secrets.token_hex(8)}-{secrets.token_hex(4)}"
        manifest["run"]["folder"] = folder
        data = sealed(manifest)
        files = {path: path.stat().st_size for path in sorted(self.partial.rglob("*")) if path.is_file()}
        old = [key for key in self._keys() if key != MANIFEST and (key.split("/")[0] in OWN or _FOLDER.match(key))]
        try:
            done = 0
            for path in _each(lambda path: self._put(folder, path), files):
                done += files[path]
                self._watcher.put(done, sum(files.values()))
            self._check_conditions(f"{folder}/README.md")
            self._put_manifest(data)
        except BaseException as error:
            self._take_back(folder, data, error)
            raise
        try:
            self._remove(old)
        except Problem as error:
            self._watcher.say(f"the set is published; files of the one before it could not be removed: {error}")

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self.target.bucket, "Key": "/".join([*self.target.key.parts[1:], name])}

    def _keys(self, below: str = "") -> Iterator[str]:
        """Yield the names of everything below the target, a thousand with each request."""
        top, pages = self._key("")["Key"], self._client.get_paginator("list_objects_v2")
        with self._asking():
            for page in pages.paginate(Bucket=self.target.bucket, Prefix=top + below):
                yield from (entry["Key"].removeprefix(top) for entry in page.get("Contents", []))

    def _manifest(self) -> tuple[bytes, str | None]:
        """Return the manifest in place with its ETag; no bytes and None where there is none."""
        with self._asking():
            try:
                found = self._client.get_object(**self._key(MANIFEST))
                return found["Body"].read(), found["ETag"]
            except self._client.exceptions.NoSuchKey:
                return b"", None

    def _put(self, folder: str, path: Path) -> Path:
        name = f"{folder}/{path.relative_to(self.partial).as_posix()}"
        with self._asking(name), path.open("rb") as file:
            self._client.put_object(**self._key(name), Body=file)
        return path

    def _put_manifest(self, data: bytes) -> None:
        condition = {"IfMatch": self._etag} if self._etag else {"IfNoneMatch": "*"}
        try:
            self._client.put_object(**self._key(MANIFEST), Body=data, ContentType="application/json", **condition)
        except (ClientError, BotoCoreError) as error:
            if self._manifest()[0] == data:
                return  # it was put, the answer got lost, and the client's second try found it there
            if _status(error) in _LOST:
                raise self._locked("another compile published there, or removed the set, while this one ran") from error
            raise problem(self.target / MANIFEST, str(error)) from error

    def _check_conditions(self, name: str) -> None:
        """Raise unless the store refuses to put a file that is there under the condition that it is not."""
        try:
            self._client.put_object(**self._key(name), Body=b"", IfNoneMatch="*")
        except ClientError as error:
            if _status(error) in _LOST:
                return
            raise problem(self.target, str(error)) from error
        what = "the store ignores the condition of a put, so that two compiles could overwrite each other unseen"
        raise InputError(str(self.target), what, "Compile into a folder of this machine, and copy that.")

    def _take_back(self, folder: str, data: bytes, error: BaseException) -> None:
        """Remove what was put, unless it is published after all or nobody can tell; then say so."""
        try:
            if self._manifest()[0] != data:
                self._remove(self._keys(f"{folder}/"))
        except Problem:
            what = f"what was put into {self.target / folder} could not be removed"
            if isinstance(error, Problem):
                raise type(error)(error.where, error.what, f"{error.hint}\n  {what}.".lstrip()) from error
            self._watcher.say(what)

    def _remove(self, names: Iterable[str]) -> None:
        with self._asking():
            for _ in _each(lambda name: self._client.delete_object(**self._key(name)), names):
                pass

    def _locked(self, what: str) -> LockedError:
        return LockedError(str(self.target), what, "Nothing was published. Run again, or choose another -o.")

    @contextmanager
    def _asking(self, name: str = "") -> Iterator[None]:
        """Turn what the client raises into an InputError."""
        try:
            yield
        except (ClientError, BotoCoreError) as error:
            raise problem(self.target / name, str(error)) from error


def _client(target: StorePath) -> Any:
    endpoint, region, virtual = address_of(target.query)
    style = "virtual" if virtual else "path" if endpoint else "auto"
    config = Config(
        retries={"max_attempts": 3, "mode": "standard"},
        connect_timeout=10,
        s3={"addressing_style": style},
        ignore_configured_endpoint_urls=True,
    )
    if endpoint and not region:
        region = "us-east-1"  # the store has none; signatures name one
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, region_name=region, config=config)
    except (BotoCoreError, ValueError) as error:  # a profile that is not there, an endpoint that is no URL
        raise problem(target, str(error)) from error


def _each(do: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield what comes of every item, a few done at a time; the first error ends it when those under way are done."""
    pool = ThreadPoolExecutor(_AT_ONCE)
    try:
        yield from pool.map(do, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _status(error: Exception) -> int | None:
    return error.response["ResponseMetadata"]["HTTPStatusCode"] if isinstance(error, ClientError) else None
