"""What `--mix` asks for: shares, counts of rows, or everything a dataset has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.errors import UsageError, nearest

MOST = 10**12
"""The largest number that can be asked for: more rows or tokens than any set has."""


@dataclass(frozen=True)
class Request:
    """What the command line asks of one dataset: a share, a count of rows, or (neither) everything it has."""

    name: str
    share: float | None = None
    count: int | None = None


def parse_mix(text: str) -> list[Request]:
    """Return the requests of `agent:1,bench:2,extra#500,all`: shares, counts, or everything."""
    requests: list[Request] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, mark, number = part, "", ""
        for sign in (":", "#"):
            if sign in part:
                name, mark, number = part.rpartition(sign)
        if any(request.name == name for request in requests):
            raise UsageError(f"--mix {text}", f"{name!r} is named twice", "Add its shares up.")
        try:
            share = float(number) if mark == ":" else None
            count = int(number) if mark == "#" else None
        except ValueError:
            raise UsageError(
                f"--mix {text}",
                f"expected a number after {name!r}, found {number!r}",
                "--mix agent:1,bench:2",
            ) from None
        bad_share = share is not None and not 0 < share < float("inf")
        if not name or bad_share or (count is not None and not 0 < count <= MOST):
            most = f" and at most {MOST:,} rows" if (count or 0) > MOST else ""
            expected = f"expected NAME:SHARE or NAME#ROWS with a number above 0{most}"
            raise UsageError(f"--mix {text}", f"{expected}, found {part!r}")
        requests.append(Request(name, share, count))
    if not requests:
        raise UsageError("--mix", "names no dataset", "--mix agent:1,bench:2")
    return requests


def unknown_dataset(name: str, known: Sequence[str]) -> UsageError:
    """Return the error for a dataset that neither the files, the user's registry nor ours has."""
    return UsageError(f"--mix {name}", "unknown dataset", nearest(name, known))
