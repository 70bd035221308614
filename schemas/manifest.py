"""The manifest of a compiled set: what the compiler promises and every reader may rely on.

`Manifest` names its keys for Python, `manifest.schema.json` for everybody else; a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_args

import orjson

from schemas import schema
from schemas.arrow import FORMAT_VERSION, MANIFEST, PACKED_VERSION
from schemas.digests import content_digest, manifest_digest
from schemas.disk import read_regular
from schemas.errors import InputError, IntegrityError
from schemas.stores import AnyPath, StorePath, no_such


class BatchEntry(TypedDict):
    """One record batch of a shard: where it is in the file, and what is hashed of it."""

    offset: int
    length: int
    rows: int
    sequences: NotRequired[int]
    xxh3: str


class ShardEntry(TypedDict):
    """One Arrow file. `sequences` is only there in packed sets: how many examples its packs hold."""

    file: str
    rows: int
    sequences: NotRequired[int]
    tokens: int
    trained_tokens: int
    bytes: int
    sha256: str
    batches: list[BatchEntry]


class SplitEntry(TypedDict):
    """The totals of a split, and its shards in order."""

    rows: int
    sequences: NotRequired[int]
    tokens: int
    trained_tokens: int
    shards: list[ShardEntry]


class Balance(TypedDict):
    """Where every row went: read + expanded + repeats = all the others together."""

    read: int
    expanded: int
    repeats: int
    in_shards: int
    rejected: int
    cleaned: int
    sampled_out: int
    duplicates: int
    left_out: NotRequired[int]
    """Rows that do not meet --where, where it was given."""
    contaminated: NotRequired[int]
    """Examples whose text is in a benchmark of --decontaminate, where it was given."""


BalanceKey = Literal["read", "expanded", "repeats", "in_shards", "rejected", "cleaned", "sampled_out", "duplicates"]
BALANCE: tuple[BalanceKey, ...] = get_args(BalanceKey)
IfAsked = Literal["left_out", "contaminated"]
IF_ASKED: tuple[IfAsked, ...] = get_args(IfAsked)
"""The others, which are there if an option asked for them."""


class Realized(TypedDict):
    """What was drawn of a dataset."""

    rows: int
    tokens: int
    trained_tokens: int
    val_rows: int
    val_repeats: NotRequired[int]
    """Rows of the split val that say the same as one before them in it, where there are some."""
    test_rows: NotRequired[int]
    in_train: NotRequired[int]
    """Rows of a held-out file that say the same as one for training, where there are some."""


class FileEntry(TypedDict):
    """One source file, by the name that the command line gave it."""

    file: str
    rows: int
    digest: str


class SecretEntry(TypedDict):
    """One kind of secret: in how many rows it is, and the places of the first of them."""

    rows: int
    first: list[str]


class DatasetEntry(TypedDict):
    """One dataset: what it is, what was asked of it, and what became of its rows."""

    name: str
    format: str
    clean: NotRequired[dict[str, list[str]]]
    weights: str
    policy: dict[str, Any]
    sample: bool
    source: dict[str, Any]
    files: list[FileEntry]
    share: float | None
    count: int | None
    target: float | None
    realized: Realized
    rejected: dict[str, int]
    duplicates: int
    near_duplicates: NotRequired[int]
    """How many of the duplicates repeat a row nearly, where near ones were looked for."""
    notes: dict[str, int]
    unread: NotRequired[dict[str, int]]
    ignored: NotRequired[dict[str, int]]
    secrets: NotRequired[dict[str, SecretEntry]]
    """By kind, where --scan-secrets was given."""
    balance: Balance


class TokenizerEntry(TypedDict):
    """What identifies the tokenizer, and its control tokens by text."""

    digest: str
    files: list[str]
    named_tokens: dict[str, str]
    controls: dict[str, int]


class CertificateEntry(TypedDict):
    """The template's self-check."""

    checks: dict[str, int]
    refuses: dict[str, str]
    stops: list[str]
    merges_across_generation_boundary: int


class TemplateEntry(TypedDict):
    """What identifies the chat template, and its certificate."""

    name: str
    digest: str
    provenance: str
    reply_start: str
    variables: NotRequired[dict[str, bool]]
    """What the template was rendered with beside messages and tools, as at inference; only with --thinking keep."""
    certificate: CertificateEntry


class EmbeddedEntry(TypedDict):
    """The images that rows held themselves, in the set's folder `media`, each named by its sha256."""

    files: int
    bytes: int


class MediaEntry(TypedDict):
    """How the model takes images and videos."""

    name: str
    digest: str
    repeats_pad: bool
    images: NotRequired[int]
    """The images of all rows; absent in sets of earlier versions. So are the videos."""
    videos: NotRequired[int]
    embedded: NotRequired[EmbeddedEntry]


class PackingEntry(TypedDict):
    """What was packed into what."""

    length: int
    packs: int
    sequences: int
    efficiency: float


class RunEntry(TypedDict):
    """Where the parts of the set came from, and where it was put. No part of the set's digest: a set may be published
    again into another folder. Nothing that a reader trusts depends on it: what is found in `folder` is checked against
    the digests of shards and files.
    """

    tokenizer: NotRequired[dict[str, Any]]
    """The hub, repository and commit that the tokenizer was downloaded from; absent where it was given as a folder."""
    media: NotRequired[dict[str, str]]
    """By dataset, the folder of its images and videos, as seen from the set's folder. Not for sets in object stores."""
    recipe: NotRequired[dict[str, Any]]
    """What `cli compile` was asked (schemas/recipe.schema.json), for `--from`. Not for sets in object stores."""
    folder: NotRequired[str]


class Manifest(TypedDict):
    """The whole file. `packing` is only there in packed sets."""

    format_version: int
    kind: str
    versions: dict[str, str]
    tokenizer: TokenizerEntry
    template: TemplateEntry
    media: NotRequired[MediaEntry | None]
    seed: int
    run: NotRequired[RunEntry]
    options: dict[str, Any]
    packing: NotRequired[PackingEntry]
    datasets: list[DatasetEntry]
    balance: Balance
    splits: dict[str, SplitEntry]
    files: dict[str, str]
    content_digest: NotRequired[str]
    """What the set holds, whatever made it; absent in sets of earlier versions."""
    digest: str


REPLACED = ".replaced"
"""Where in a set's folder the old set is while the files of a new one take its place."""


def whole(folder: AnyPath) -> AnyPath:
    """The folder with the set: `folder` itself, or the old set in it while a new one is moved into its place."""
    if isinstance(folder, Path) and not (folder / MANIFEST).exists() and (folder / REPLACED / MANIFEST).is_file():
        return folder / REPLACED
    return folder


def read_manifest(folder: AnyPath) -> Manifest:
    """Read the manifest of the set in `folder`; InputError or IntegrityError with one message where there is none."""
    path = folder / MANIFEST
    try:
        data = read_regular(path)
    except FileNotFoundError:
        if isinstance(folder, StorePath) and not folder.exists():
            raise no_such(folder) from None
        what = "no such folder" if not folder.exists() else "no manifest.json: the set is not complete, or not one"
        raise InputError(str(folder), what, "Compile it with cli compile ... -o DIR.") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from error
    return parse_manifest(data, str(path))


def sealed(manifest: Manifest) -> bytes:
    """The file of a manifest, with the digests of the content and of itself, which are put into it."""
    manifest["content_digest"] = content_digest(manifest)
    manifest["digest"] = manifest_digest(manifest)
    return (json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()


def embedded_of(manifest: Manifest) -> EmbeddedEntry | None:
    """The images of a set that its rows held themselves; None where there are none."""
    media = manifest.get("media")
    return None if media is None else media.get("embedded")


def has_media(manifest: Manifest, kind: str) -> bool:
    """Whether rows of a set have images or videos (`kind`); earlier versions did not count them, so they may have."""
    media = manifest.get("media")
    if media is None:
        return False
    return (media.get("images", 1) if kind == "image" else media.get("videos", 1)) > 0


CONVERTED = "tokenizer/converted"
"""The folder in a set with a tokenizer that Transformers loads, where the model's own is a vocabulary file alone."""


def files_of(folder: AnyPath, manifest: Manifest) -> AnyPath:
    """The folder that the names in a manifest are in: in object stores not the manifest's own."""
    return folder / str(manifest.get("run", {}).get("folder", ""))


def parse_manifest(data: bytes, where: str) -> Manifest:
    """Parse the manifest at `where`; IntegrityError if the bytes are none, or not as they were written."""
    try:
        found = orjson.loads(data)  # it refuses halves of characters, which json takes
    except ValueError as error:
        raise IntegrityError(where, f"not a manifest: {error}", "Compile the set again.") from error
    version = found.get("format_version") if isinstance(found, dict) else None
    if version not in (FORMAT_VERSION, PACKED_VERSION):
        raise IntegrityError(
            where, f"expected format version {FORMAT_VERSION} or {PACKED_VERSION}, found {version}",
            "Compile the set again with this version.",
        )  # fmt: skip
    problem = _problem(found)
    manifest: Manifest = found
    if not problem and manifest["digest"] != manifest_digest(manifest):
        problem = "its own digest does not match: it is damaged or was edited"
    if not problem and manifest.get("content_digest", known := content_digest(manifest)) != known:
        problem = "content_digest is not that of its shards and sources"
    if problem:
        raise IntegrityError(where, f"not a manifest: {problem}", "Compile the set again.")
    return manifest


def _problem(manifest: Any) -> str | None:
    import jsonschema_rs  # only readers of manifests need it

    validator = jsonschema_rs.validator_for(schema("manifest"))
    for error in validator.iter_errors(manifest):
        return f"{'/'.join(['', *map(str, error.instance_path)])}: {error.message[:200]}"
    return None
