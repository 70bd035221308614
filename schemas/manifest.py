"""The manifest of a compiled set, read and checked: what the compiler promises and every reader may rely on."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from schemas import schema
from schemas.arrow import FORMAT_VERSION, MANIFEST, PACKED_VERSION
from schemas.errors import InputError, IntegrityError
from schemas.stores import AnyPath, StorePath, no_such


def read_manifest(folder: AnyPath) -> dict[str, Any]:
    """Return the manifest of the set in `folder`; InputError or IntegrityError with one message where there is none."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        if isinstance(folder, StorePath) and not folder.exists():
            raise no_such(folder) from None
        what = "no such folder" if not folder.exists() else "no manifest.json: the set is not complete, or not one"
        raise InputError(str(folder), what, "Compile it with cli compile ... -o DIR.") from None
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from error
    return parse_manifest(data, str(path))


def files_of(folder: AnyPath, manifest: dict[str, Any]) -> AnyPath:
    """Return the folder that the names of a manifest's shards and files are in: in object stores not its own."""
    return folder / str(manifest.get("run", {}).get("folder", ""))


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """Return the manifest that the bytes at `where` are; IntegrityError if they are none, or not as written."""
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise IntegrityError(where, f"not a manifest: {error}", "Compile the set again.") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version not in (FORMAT_VERSION, PACKED_VERSION):
        raise IntegrityError(
            where, f"expected format version {FORMAT_VERSION} or {PACKED_VERSION}, found {version}",
            "Compile the set again with this version.",
        )  # fmt: skip
    problem = _problem(manifest)
    if not problem and manifest["digest"] != manifest_digest(manifest):
        problem = "its own digest does not match: it is damaged or was edited"
    if problem:
        raise IntegrityError(where, f"not a manifest: {problem}", "Compile the set again.")
    return manifest


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Return the sha256 of a manifest's canonical JSON without the digest itself: the identity of the set.

    What made it ("run") is no part of that: the same set may be made by another engine.
    """
    rest = {key: value for key, value in manifest.items() if key not in ("digest", "run")}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _problem(manifest: Any) -> str | None:
    import jsonschema_rs  # only readers of manifests need it

    validator = jsonschema_rs.validator_for(schema("manifest"))
    for error in validator.iter_errors(manifest):
        return f"{'/'.join(['', *map(str, error.instance_path)])}: {error.message[:200]}"
    return None
