"""What identifies a set: the digest of its manifest, and the digest of what it holds."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.manifest import Manifest


def manifest_digest(manifest: Manifest) -> str:
    """The sha256 of a manifest's canonical JSON without the digest itself: the identity of the set.

    Where its parts came from ("run") is left out.
    """
    return _digest({key: value for key, value in manifest.items() if key not in ("digest", "run")})


def content_digest(manifest: Manifest) -> str:
    """The sha256 of what a set holds: the shards of each split in order, the sources of their rows, what they are for.

    Versions of libraries, and options that had no effect, are in the manifest's digest and not in this one.
    """
    return _digest(
        {
            "kind": manifest["kind"],
            "tokenizer": manifest["tokenizer"]["digest"],
            "template": manifest["template"]["digest"],
            "sources": [[file["digest"] for file in dataset["files"]] for dataset in manifest["datasets"]],
            "splits": {
                name: [shard["sha256"] for shard in split["shards"]] for name, split in manifest["splits"].items()
            },
        }
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
