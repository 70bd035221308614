"""The Python API: what `compiler.compile` and `compiler.open` return. docs/python.md has examples.

made = compiler.compile("chats.jsonl", tokenizer="Qwen2.5-7B-Instruct", out="shards", max_length=4096)
opened = compiler.open("shards")
opened.rows("train")[0]["input_ids"]
opened.to_polars("train")
"""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compiler.commands.compile import asked_options, compile_
from compiler.pipeline import compile_set
from compiler.units.progress import Watcher
from schemas.errors import UsageError, nearest
from schemas.manifest import Manifest
from schemas.reader import CompiledSet, SplitReader
from schemas.stores import AnyPath

if TYPE_CHECKING:
    import datasets
    import polars
    import pyarrow as pa

_SHOWN = 3
"""Rows that a notebook shows of a split, and examples of a pack."""


class OpenRow(dict[str, Any]):
    """A row's columns as Python values; README.md lists them. A notebook shows its tokens."""

    def __init__(self, columns: dict[str, Any], split: SplitReader, number: int) -> None:
        super().__init__(columns)
        self._place = split, number

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)  # to another process goes what the row holds, and not its set

    def _repr_html_(self) -> str:
        split, number = self._place
        return _html(split, [number])


class OpenRows:
    """The rows of a split: `len`, by number, and in order. A batch is checked against its digest when it is read."""

    def __init__(self, split: SplitReader) -> None:
        self._split = split
        self._last: tuple[int, pa.RecordBatch] | None = None

    def _repr_html_(self) -> str:
        return _html(self._split, range(min(len(self), _SHOWN)))

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, number: int) -> OpenRow:
        place = number + len(self) if number < 0 else number
        if not 0 <= place < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        batch, inside = self._split.find(place)
        if self._last is None or self._last[0] != batch:
            self._last = batch, self._split.batch(batch)
        return OpenRow(self._last[1].slice(inside, 1).to_pylist()[0], self._split, place)

    def __iter__(self) -> Iterator[OpenRow]:
        rows = (row for batch in self._split.batches() for row in batch.to_pylist())
        return (OpenRow(row, self._split, number) for number, row in enumerate(rows))


def _html(split: SplitReader, rows: Sequence[int]) -> str:
    """Rows as HTML that needs nothing around it; of a pack, its first examples."""
    from compiler.report.rows import notebook  # only notebooks ask

    return notebook(split, rows, _SHOWN)


@dataclass(frozen=True)
class OpenSet:
    """A compiled set. Its length is the number of rows in all splits; in a packed set a row is a pack."""

    set: CompiledSet

    @property
    def folder(self) -> AnyPath:
        """Where the set is."""
        return self.set.folder

    @property
    def manifest(self) -> Manifest:
        """What `manifest.json` says."""
        return self.set.manifest

    @property
    def kind(self) -> str:
        """sft, preference, kto or pretrain."""
        return self.set.kind

    @property
    def is_packed(self) -> bool:
        """Whether a row is a pack of several examples."""
        return self.set.is_packed

    @property
    def splits(self) -> dict[str, int]:
        """The number of rows by split, of all splits that have some."""
        return {name: entry["rows"] for name, entry in self.manifest["splits"].items() if entry["rows"]}

    def __len__(self) -> int:
        return sum(self.splits.values())

    def rows(self, split: str = "train") -> OpenRows:
        """The rows of a split."""
        return OpenRows(self.set.split(self._known(split)))

    def to_arrow(self, split: str = "train") -> pa.Table:
        """The rows as an Arrow table. The set's files are mapped, not copied, and every batch is checked."""
        return self.set.table(self._known(split))

    def to_polars(self, split: str = "train") -> polars.DataFrame:
        """The rows as a Polars frame."""
        import polars

        return polars.DataFrame(self.to_arrow(split))

    def to_hf(self, split: str = "train") -> datasets.Dataset:
        """The rows as a dataset of the library `datasets`, which must be installed."""
        try:
            import datasets
        except ImportError:
            hint = "Install it: pip install datasets. to_arrow and to_polars work without it."
            raise UsageError("to_hf", "the library datasets is not installed", hint) from None
        return datasets.Dataset(self.to_arrow(split), split=datasets.NamedSplit(split))

    def _known(self, split: str) -> str:
        if split not in self.splits:
            raise UsageError(
                f"{self.folder}: split {split}", "it is empty, or there is none", nearest(split, self.splits)
            )
        return split

    def _repr_html_(self) -> str:
        first = [_html(self.set.split(name), [0]) for name in list(self.splits)[:1]]
        return "".join([f"<p>{html.escape(repr(self))}</p>", *first])

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {rows:,}" for name, rows in self.splits.items())
        return f"<{self.kind} set {self.folder}: {counts}>"


class _Printed(Watcher):
    """Prints warnings to stderr, as the command does; no progress."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)


def open_set(where: str | AnyPath) -> OpenSet:
    """Open a set; its manifest is read and checked, its rows are not."""
    return OpenSet(CompiledSet.open(where))


def compile_files(files: tuple[str | Path, ...], options: dict[str, Any]) -> OpenSet:
    """Compile as the command line does with these options; return the set that was written."""
    arguments = [*_arguments(options), "--", *map(str, files)]
    names: Any = {"help_option_names": ["-h", "--help"]}  # click keeps the first ones for the whole process
    try:
        context = compile_.make_context("compile", arguments, **names)
    except click.UsageError as error:
        raise UsageError("compile", error.format_message().rstrip(".")) from None
    with context, asked_options(context.params) as asked:  # in the folder of a recipe, where there is one
        compile_set(asked, _Printed())
        return open_set(asked.out.absolute() if isinstance(asked.out, Path) else asked.out)


_OF_THE_TERMINAL = {
    "json": "compile returns the set, and its manifest says what the summary says",
    "only": "it writes no set that could be returned; run cli compile --only K/N",
    "dry_run": "it writes no set that could be returned; run cli compile --dry-run",
    "sample": "it is about a dry run; run cli compile --dry-run",
    "help": "it is of the terminal: docs/python.md",
}


def _arguments(options: dict[str, Any]) -> list[str]:
    """The options as the command line spells them; None is the default, and a list is the option repeated."""
    known = {_name(option): option for option in compile_.params if isinstance(option, click.Option)}
    arguments = []
    for name, value in options.items():
        if name in _OF_THE_TERMINAL:
            raise UsageError(f"compile({name}=...)", _OF_THE_TERMINAL[name], "Leave it out.")
        if name not in known:
            raise UsageError(f"compile({name}=...)", "no such option", nearest(name, set(known) - {*_OF_THE_TERMINAL}))
        arguments += _spelled(name, known[name], value)
    return arguments


def _name(option: click.Option) -> str:
    """The keyword of an option: its long name with underscores."""
    return option.opts[-1].removeprefix("--").replace("-", "_")


def _spelled(name: str, option: click.Option, value: Any) -> list[str]:
    long = option.opts[-1]
    if value is None:
        return []
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"compile({name}={value!r})", "expected True or False")
        return [long] if value else [*option.secondary_opts[-1:]]
    if isinstance(value, bool):
        raise UsageError(f"compile({name}={value!r})", "it is no switch: expected a value")
    many = isinstance(value, list | tuple)
    if many and not option.multiple:
        raise UsageError(f"compile({name}={value!r})", "expected one value, found several")
    return [f"{long}={one}" for one in (value if many else [value])]
