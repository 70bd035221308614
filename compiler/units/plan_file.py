"""A plan file: the units that a run has still to compile, for `cli run-unit` to compile slices of, on any machine.

JSON Lines (schemas/plan.schema.json): what all units share, then a unit a line; the unit N is on the line N + 2. It
holds no bytes of the data: a unit of a compressed file is cut out of its file again, which gives the same units.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

from compiler.cache import objects
from compiler.datasets.files import readable
from compiler.options import DatasetOptions, UnitOptions
from compiler.read import FileKind, Unit
from compiler.tokenizer.encoders import REFERENCE
from compiler.units.collect import Collector
from compiler.units.machines import check_cache, check_code, check_name, portable, terms_of
from compiler.units.task import Setup, Task
from schemas import schema
from schemas.errors import InputError, IntegrityError, UsageError

VERSION = 1


@dataclass(frozen=True)
class Written:
    """A plan that was written, and how many units are in it; `cached` are those that need not be."""

    path: Path
    units: int
    cached: int


def write(path: Path, collector: Collector) -> Written:
    """Write the units that the cache lacks as a plan, and a mark of it into the cache."""
    units, encoder, digest = 0, REFERENCE, hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with tempfile.TemporaryFile(dir=path.parent) as lines:
        for task in map(portable, collector.missing()):
            line = _line(units, task)
            lines.write(line)
            digest.update(line)
            units, encoder = units + 1, task.encoder
        lines.seek(0)
        terms = terms_of(str(collector.cache.absolute()), "", encoder)
        head: dict[str, Any] = {
            "plan": VERSION,
            "units": units,
            "code": terms.code,
            "libraries": dict(terms.libraries),
            "encoder": encoder,
            "cache": terms.cache,
            "setup": asdict(collector.setup),
            "layouts": {dataset.name: asdict(dataset.options) for dataset, _ in collector.datasets},
            "lines": digest.hexdigest(),
        }
        head["digest"] = _digest(head)
        with partial.open("wb") as file:
            file.write(orjson.dumps(head, option=orjson.OPT_APPEND_NEWLINE))
            shutil.copyfileobj(lines, file)
    objects.store_record(collector.cache, head["digest"], {"plan": readable(str(path))})
    partial.replace(path)
    return Written(path, units, collector.done.cached)


def _line(number: int, task: Task) -> bytes:
    unit = asdict(replace(task.unit, data=None))
    del unit["data"]
    found = {"id": number, "dataset": task.dataset, "key": task.key} | unit | {"recut": task.unit.data is not None}
    try:
        return orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # the only text here that may not be UTF-8
        raise UsageError(
            "--plan-only", f"the name of {readable(task.unit.path)} is not UTF-8, as a plan is", "Rename it."
        ) from None


def _digest(head: dict[str, Any]) -> str:
    """Return the digest of a plan: of its head, which has that of its lines."""
    return objects.key_of("plan", {name: value for name, value in head.items() if name != "digest"})


# -- choosing --


def parse_ids(text: str) -> list[range]:
    """Return the units of `0-9,12`."""
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,12})(?:-(\d{1,12}))?", part.strip())
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UsageError(f"--ids {text}", f"expected numbers of units, found {part.strip()!r}", "--ids 0-9,12")
        ranges.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return ranges


def parse_slice(text: str) -> tuple[int, int]:
    """Return (K, N) of `K/N`, the K-th of N slices, counted from 0 as arrays of jobs are."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not match or int(match[1]) >= int(match[2]):
        last = f"0/{match[2]} to {int(match[2]) - 1}/{match[2]}" if match and int(match[2]) else "0/16 to 15/16"
        raise UsageError(f"--slice {text}", "expected K/N with K below N", f"Slices count from 0: {last}.")
    return int(match[1]), int(match[2])


@dataclass(frozen=True)
class UnitPlan:
    """A plan file that may be used here: made by this code, for a cache that is there."""

    path: Path
    head: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> UnitPlan:
        """Return the plan; a Problem where it, this machine's code or the cache is not what it was made with."""
        try:
            with path.open("rb") as file:
                head = _parsed(f"{path}:1", file.readline(1 << 24))
                lines = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(
                f"--plan {path}", f"cannot be read: {error.strerror}", "cli compile --plan-only writes one."
            ) from error
        if "plan" not in head:
            raise IntegrityError(f"{path}:1", "expected what the units of a plan share, found a unit")
        check_code(f"--plan {path}", head["code"], head["libraries"])
        if head["digest"] != _digest(head) or head["lines"] != lines:
            raise IntegrityError(f"--plan {path}", "it was changed or is not whole", "Make it again.")
        check_cache(head["cache"], head["digest"])
        return cls(path, head)

    @property
    def cache(self) -> Path:
        """The folder that objects go to."""
        return Path(self.head["cache"])

    @property
    def num_units(self) -> int:
        """How many units it has."""
        return int(self.head["units"])

    def slice(self, number: int, of: int) -> list[range]:
        """Return the units of a slice: neighbours, since those share files."""
        return [range(number * self.num_units // of, (number + 1) * self.num_units // of)]

    def check_ids(self, ids: list[range]) -> None:
        """Raise UsageError for units that it does not have."""
        for one in ids:
            if one.stop > self.num_units:
                has = f"0 to {self.num_units - 1}" if self.num_units else "none: everything was in the cache"
                raise UsageError(f"--ids {one.stop - 1}", "the plan has no such unit", f"It has {has}.")

    def tasks(self, ids: list[range]) -> Iterator[tuple[Task, bool]]:
        """Yield the units of these numbers, and whether their bytes must be cut out of their file again."""
        setup = self.head["setup"]
        asked = setup["options"] | {"repairs": tuple(setup["options"]["repairs"])}
        layouts = {name: _layout(found) for name, found in self.head["layouts"].items()}
        shared = {
            "setup": Setup(**setup | {"options": UnitOptions(**asked)}),
            "cache": self.head["cache"],
            "encoder": self.head["encoder"],
        }
        with self.path.open("rb") as file:
            file.readline()
            for number, line in enumerate(file):
                if any(number in one for one in ids):
                    found = _parsed(f"{self.path}:{number + 2}", line)
                    layout = layouts[found["dataset"]]
                    task = Task(_unit(found), layout, dataset=found["dataset"], key=found["key"], **shared)
                    check_name(task)
                    yield task, found["recut"]


def _layout(found: dict[str, Any]) -> DatasetOptions:
    return DatasetOptions(**found | {"persona": tuple((name, value) for name, value in found["persona"])})


def _unit(found: dict[str, Any]) -> Unit:
    kept = {name: found[name] for name in ("path", "offset", "length", "digest")}
    stamp = found["stamp"] and (found["stamp"][0], found["stamp"][1])
    return Unit(**kept, kind=FileKind(found["kind"]), data=None, header=tuple(found["header"]), stamp=stamp)


@cache
def _validator() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(schema("plan"))


def _parsed(where: str, line: bytes) -> dict[str, Any]:
    """Return a line of a plan, checked."""
    try:
        found: dict[str, Any] = orjson.loads(line)
        _validator().validate(found)
    except ValueError as error:
        what = str(error).splitlines()[0]
        raise IntegrityError(where, f"not a plan: {what}", "Make it again: cli compile --plan-only.") from error
    return found
