"""What became of one source row of a set.

1. The provenance columns of the shards say which examples of it are in the set; `rejects.jsonl`, what was refused.
2. Where neither has it, the manifest's balance says what can have happened: where only one thing can, it did.
3. Else the set's plan is made again from its sources (again.py), which also says which row a duplicate repeats. Where
   that cannot be, the answer is what is possible, and why no more is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from compiler.inspect.find import Source, sources_at
from compiler.inspect.rows import SplitExamples, rejects
from compiler.sets.again import Unknown
from schemas.arrow import SPLITS
from schemas.errors import DROPPED, UsageError
from schemas.manifest import DatasetEntry
from schemas.order import Ints
from schemas.places import parse
from schemas.reader import CompiledSet, SplitReader

LEFT_OUT, SAMPLED_OUT, DUPLICATE, IN_SHARDS = "left_out", "sampled_out", "duplicate", "in_shards"
REJECTED, CLEANED, CONTAMINATED, UNKNOWN = "rejected", "cleaned", "contaminated", "unknown"
_OF_BALANCE = {"left_out": LEFT_OUT, "sampled_out": SAMPLED_OUT, "duplicates": DUPLICATE}
"""What can become of a row that leaves no trace in the set."""


@dataclass(frozen=True)
class Fate:
    """What became of one example of a row: its part, whether it was drawn, and the row that it repeats, if it does."""

    part: int
    drawn: bool
    dropped: bool
    """Whether --dedup left it out."""
    same_as: tuple[Source, int] | None
    """The row that stays in its place, the first with the same conversation or a similar one, and its part."""
    similarity: float = 1.0
    """Of the two: 1 for the same conversation, below where --dedup near left it out."""


class RemadePlan(Protocol):
    """The plan of a set, made again."""

    def fates(self, source: Source) -> list[Fate]:
        """What became of each example of a source row that could be compiled; none for other rows."""


@dataclass
class Answer:
    """What became of a row. `absent` are its examples that are nowhere in the set, as far as they are known."""

    source: Source
    place: str
    examples: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    absent: list[dict[str, Any]] = field(default_factory=list)
    possible: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def outcomes(self) -> list[str]:
        """What became of it, in a word or several: its examples may have met different ends."""
        found = [IN_SHARDS] if self.examples else []
        found += [str(one["reason"]) if one["reason"] in DROPPED else REJECTED for one in self.rejects]
        found += [one["outcome"] for one in self.absent]
        return list(dict.fromkeys(found)) or [UNKNOWN]

    def json(self) -> dict[str, Any]:
        """The keys of `--json`."""
        dataset, file, row = self.source
        return {
            "place": self.place,
            "dataset": dataset,
            "file": file,
            "row": row,
            "outcomes": self.outcomes,
            "examples": self.examples,
            "rejects": self.rejects,
            "absent": self.absent,
            "possible": self.possible,
            "remarks": self.remarks,
        }


def why(
    opened: CompiledSet, given: str, make_again: Callable[[], RemadePlan], *, sources: bool = False
) -> list[Answer]:
    """What became of the rows at a place: one row, in nearly all files. With `sources` they are always read again."""
    if not parse(given):
        raise UsageError(
            given, "expected FILE:LINE or FILE#/ROW", "chats.jsonl:4 or data.json#/3, as messages name rows"
        )
    refused = list(rejects(opened))
    return [
        _answer(opened, source, refused, make_again, sources=sources) for source in sources_at(opened, given, given)
    ]


def _answer(
    opened: CompiledSet,
    source: Source,
    refused: list[dict[str, Any]],
    make_again: Callable[[], RemadePlan],
    *,
    sources: bool,
) -> Answer:
    [entry] = [one for one in opened.manifest["datasets"] if one["name"] == source[0]]
    answer = Answer(source, opened.places.place(*source))
    for name in SPLITS:
        answer.examples += _in_split(opened, name, source)
    keys = ("reason", "message", "place", "pointer")
    mine = [one for one in refused if (one["dataset"], one["file"], one["row"]) == source]
    answer.rejects = [{key: one[key] for key in keys} for one in mine]
    balance: dict[str, Any] = dict(entry["balance"])
    possible = [outcome for key, outcome in _OF_BALANCE.items() if balance.get(key)]
    found = bool(answer.examples or answer.rejects)
    if found:  # a row that was left out has no examples at all
        possible = [outcome for outcome in possible if outcome != LEFT_OUT]
        if not balance["expanded"] or not possible:
            return answer
        if not sources:
            what = " or ".join(_WORDS[outcome] for outcome in possible)
            answer.remarks.append(f"further examples of this row can have been {what}; --sources tells")
            return answer
    else:
        _check_whole(opened)
    if not possible:
        raise opened.damage(f"{answer.place} is in no shard and no reject, and the balance of {entry['name']} is full")
    certain = not found and len(possible) == 1 and not sources
    if certain and possible != [DUPLICATE]:
        answer.absent = [{"part": None, "outcome": possible[0], "of": None}]
    else:
        _from_sources(opened, answer, possible, make_again, found=found)
    answer.remarks += _reasons(opened, entry, answer.outcomes, answer.possible)
    return answer


def _from_sources(
    opened: CompiledSet, answer: Answer, possible: list[str], make_again: Callable[[], RemadePlan], *, found: bool
) -> None:
    """Complete an answer with what the sources say."""
    try:
        fates = make_again().fates(answer.source)
    except Unknown as reason:
        answer.remarks.append(f"the sources cannot say more: {reason}")
        if not found and len(possible) == 1:
            answer.absent = [{"part": None, "outcome": possible[0], "of": None}]
        else:
            answer.possible = possible
        return
    if not fates and not found:
        if LEFT_OUT in possible:
            answer.absent = [{"part": None, "outcome": LEFT_OUT, "of": None}]
        else:
            answer.possible = possible
    for fate in fates:
        if not fate.drawn:
            of = None if fate.same_as is None else opened.places.place(*fate.same_as[0])
            what = DUPLICATE if fate.dropped else SAMPLED_OUT
            one = {"part": fate.part, "outcome": what, "of": of if fate.dropped else None}
            if fate.dropped and _is_near(opened):
                one["similarity"] = round(fate.similarity, 6)
            answer.absent.append(one)


def _is_near(opened: CompiledSet) -> bool:
    return (opened.manifest["options"].get("dedup") or "").startswith("near")


_WORDS = {LEFT_OUT: "left out by --where", SAMPLED_OUT: "sampled out", DUPLICATE: "dropped as duplicates"}


def _reasons(opened: CompiledSet, entry: DatasetEntry, outcomes: list[str], possible: list[str]) -> Iterator[str]:
    """What was asked that had these outcomes."""
    every, options = {*outcomes, *possible}, opened.manifest["options"]
    if LEFT_OUT in every:
        left = entry["balance"].get("left_out", 0)
        condition = options.get("own", {}).get(entry["name"], {}).get("where", options.get("where"))
        yield f"--where {condition!r} left out {left:,} rows of {entry['name']}"
    if DUPLICATE in every:
        yield f"--dedup {options.get('dedup')} dropped {entry['balance']['duplicates']:,} examples of {entry['name']}"
    if SAMPLED_OUT in every:
        left = entry["balance"]["sampled_out"]
        asked = f"#{entry['count']}" if entry["count"] is not None else f":{entry['share']:g}" if entry["share"] else ""
        how = f"--mix {entry['name']}{asked}" if asked else "a limit of its registry entry"
        if options.get("persona") and entry["name"] == "self-cognition":
            how = f"--self-cognition {entry['count']}"
        yield f"{how} drew {entry['realized']['rows']:,} examples and left out {left:,} that could be used"


def _check_whole(opened: CompiledSet) -> None:
    """Raise unless every batch is as it was written: that a row is nowhere can only be said of a whole set."""
    for name in SPLITS:
        split = opened.split(name)
        for number in range(len(split.entries)):
            split.check(number)


_PROVENANCE = ["dataset", "file", "row"]


def _in_split(opened: CompiledSet, name: str, source: Source) -> Iterator[dict[str, Any]]:
    """The examples of a source row in a split."""
    split, start = opened.split(name), 0
    checked = SplitExamples(opened, name)
    for number in range(len(split.entries)):
        rows = _rows(split, number, "row")
        at = np.flatnonzero(rows == source[2])
        for column, value in zip(_PROVENANCE[:2], source[:2], strict=True):
            if len(at):
                at = at[_values(split, number, column, at) == value]
        for one in at.tolist():
            row = checked.row(start + one)
            if (row["dataset"], row["file"], row["row"]) != source:
                raise opened.damage(f"{name}: row {start + one:,} is read differently a second time")
            yield _example(split, number, one, start + one, row)
        start += len(rows)


def _rows(split: SplitReader, number: int, name: str) -> Ints:
    """A column of numbers, of examples also where rows are packs."""
    column = split.columns(number, [name]).column(name)
    values: Ints = (column.flatten() if split.opened.is_packed else column).to_numpy()
    return values


def _values(split: SplitReader, number: int, name: str, at: Ints) -> np.ndarray[Any, np.dtype[np.object_]]:
    """The texts of a column at these examples."""
    column = split.columns(number, [name]).column(name)
    texts = (column.flatten() if split.opened.is_packed else column).take(at)
    return np.array(texts.to_pylist(), dtype=object)


def _example(split: SplitReader, number: int, at: int, example: int, row: dict[str, Any]) -> dict[str, Any]:
    """An example as the answer has it."""
    shard, first = split.place(number)
    pack = None
    if split.opened.is_packed:
        sizes = np.asarray(split.columns(number, ["seq_lens"]).column("seq_lens").value_lengths())
        ends = np.cumsum(sizes)
        inside = int(np.searchsorted(ends, at, side="right"))
        pack = {
            "row": int(split.starts[number]) + inside,
            "place": at - int(ends[inside] - sizes[inside]),
            "of": int(sizes[inside]),
        }
        at = inside
    tokens = len(row["input_ids"]) + len(row.get("rejected_input_ids", ()))
    return {
        "split": split.name,
        "row": example,
        "shard": shard["file"],
        "shard_row": first + at,
        "pack": pack,
        "part": row["part"],
        "repeat": row["repeat"],
        "tokens": tokens,
        "trained_tokens": row["num_trained"],
        "trained_share": round(row["num_trained"] / tokens, 6),
        "repairs": row["repairs"] or [],
    }


_SAID = {
    IN_SHARDS: "in the set",
    REJECTED: "rejected",
    CLEANED: "removed by a clean-up rule of its dataset's card",
    CONTAMINATED: "dropped by --decontaminate",
    LEFT_OUT: "left out by --where",
    SAMPLED_OUT: "not drawn by the mix",
    DUPLICATE: "dropped as a duplicate",
    UNKNOWN: "not in the set",
}


def said(answer: Answer) -> Iterator[str]:
    """The answer as lines of text."""
    dataset, _, row = answer.source
    outcomes = ", and ".join(_SAID[outcome] for outcome in answer.outcomes)
    if answer.possible:
        outcomes += ": " + " or ".join(_WORDS[outcome] for outcome in answer.possible)
    yield f"{answer.place} (row {row} of {dataset}): {outcomes}"
    for one in answer.examples:
        pack = one["pack"]
        where = f"{one['split']} row {one['row']:,}, {one['shard']} row {one['shard_row']:,}"
        where += f" (pack {pack['row']:,}, example {pack['place'] + 1} of {pack['of']})" if pack else ""
        more = f", repaired: {', '.join(one['repairs'])}" if one["repairs"] else ""
        share = f"{one['trained_tokens']:,} of {one['tokens']:,} tokens trained ({one['trained_share']:.1%})"
        yield f"  {where}: part {one['part']}, repeat {one['repeat']}: {share}{more}"
    for reject in answer.rejects:
        yield f"  {reject['place']}: {reject['reason']}: {reject['message']}"
    for one in answer.absent:
        if not one["of"] and len(answer.outcomes) == 1 and not one["part"]:
            continue  # the first line says it
        part = "" if one["part"] is None else f"part {one['part']}: "
        like = f" (similarity {one['similarity']:.2f})" if "similarity" in one else ""
        yield f"  {part}{_SAID[one['outcome']]}" + (f" of {one['of']}{like}" if one["of"] else "")
    for remark in answer.remarks:
        yield f"  {remark}"
