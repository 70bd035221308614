"""The digest of a model: its configuration, and the names, types, shapes and some of the numbers of its tensors.

It says whether a model is another one, in a fraction of a second: three pieces of every tensor are read, not all of it.
Another training changes numbers in nearly all pieces, and so does a LoRA that was merged in. What no piece holds is not
seen: a single changed row of a large tensor, say. Files that are cut up in another way have the same digest.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from schemas.errors import InputError
from trainer.models.original.families import config_of
from trainer.models.original.weights import files_of

_PIECE = 2048
"""Bytes of a piece."""
_WITHOUT_EFFECT = ("_name_or_path", "transformers_version", "use_cache", "dtype", "torch_dtype")
"""Keys of a config.json that say nothing of the model, or what the tensors say themselves."""


def digest_of(folder: Path) -> str:
    """The digest of the model in a folder: sha256 in hexadecimal."""
    config = {key: value for key, value in config_of(folder).items() if key not in _WITHOUT_EFFECT}
    found = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    tensors: dict[str, bytes] = {}
    for path in files_of(folder):
        try:
            with path.open("rb") as file:
                tensors |= _tensors(file)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(str(path), f"cannot be read: {error}", "Download it again.") from error
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name])
    return found.hexdigest()


def _tensors(file: BinaryIO) -> dict[str, bytes]:
    """A digest of every tensor of a safetensors file."""
    length = int.from_bytes(file.read(8), "little")
    header: dict[str, Any] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        digest = hashlib.sha256(json.dumps([entry["dtype"], entry["shape"]]).encode())
        places = {start, (start + end - _PIECE) // 2, end - _PIECE} if end - start > 3 * _PIECE else {start}
        for place in sorted(places):
            file.seek(place)
            digest.update(file.read(_PIECE if len(places) > 1 else end - start))
        found[name] = digest.digest()
    return found
