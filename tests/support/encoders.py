"""Sources large enough for the fast encoder, and a fast encoder with a fault."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from compiler.tokenizer import encoders
from compiler.tokenizer.encoders import FastEncoder, Ids
from compiler.units.unit import tools_of


def long_files(folder: Path, count: int) -> list[Path]:
    """Write three files, each of more than a unit."""
    paths = []
    for name in "abc":
        path = folder / f"{name}.jsonl"
        said = ("Tides " * 150 + "潮汐 " * 50, "An answer. " * 120)
        path.write_text(
            "".join(
                json.dumps({"instruction": f"{name}{i} {said[0]}", "output": f"{i} {said[1]}"}) + "\n"
                for i in range(count)
            ),
            "utf-8",
        )
        paths.append(path)
    return paths


class Wrong(FastEncoder):
    """A fast encoder with a fault that the awkward texts do not show: the last id of some real texts is another one."""

    def encode(self, texts: Sequence[str], *, fresh: bool) -> Ids:
        ids, lengths = super().encode(texts, fresh=fresh)
        if any("潮汐" in text and len(text) > 900 for text in texts):
            ids = ids.copy()
            ids[np.cumsum(lengths) - 1] += 1
        return ids, lengths


def use_wrong(patch: pytest.MonkeyPatch) -> None:
    """Encode with the wrong encoder, and with nothing that was loaded before.

    The faults that fastokens has are found before it is used, so one that is not has to be made.
    """
    patch.setattr("compiler.tokenizer.tokenizer._LOADED", {})
    patch.setattr("compiler.units.unit.tools_of", tools_of.__wrapped__)
    patch.setattr(encoders, "FastEncoder", Wrong)
