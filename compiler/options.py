"""Everything that a compile can be asked, as plain frozen values, written down once.

A field has the name of its option on the command line, and that name again where the manifest lists the options.

    CompileOptions    one run of `cli compile`
      .mixing         MixOptions: which rows are drawn, and in which order
      .units          UnitOptions: how rows become tokens
    DatasetOptions    how the rows of one dataset are read; its card, its format and the command line decide
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import registry
from compiler.conversation import Kind
from schemas.arrow import TRAIN
from schemas.errors import UsageError, nearest
from schemas.stores import AnyPath

DEMO_NAME, DEMO_AUTHOR = "小样,Demi", "示例团队,the Demo Team"
"""Who the model is where nobody says: good for trying out, and the summary says that it was used."""
MOST = 10**12
"""The largest number that can be asked for: more rows or tokens than any set has."""

DEDUP = ("exact", "near")
NEAR, LEAST_NEAR = 0.8, 0.3
"""The similarity from which rows are near duplicates where none is given, and the least that can be given: below, most
rows would have to be compared with most others."""

Names = dict[str, str | None]
"""Standard name -> the name in the user's rows; None where the rows do not have it."""


@dataclass(frozen=True)
class Request:
    """What a mix asks of one dataset: a share, a count of rows, or (neither) everything it has."""

    name: str
    share: float | None = None
    count: int | None = None
    repeats: bool = False
    """Whether a count may repeat rows as often as it needs, as of the self-cognition pool."""
    split: str = TRAIN
    """The split that its rows are for; --val-size takes rows for validation from those for training."""


@dataclass(frozen=True)
class MixOptions:
    """How the requests of a mix are filled, split and ordered."""

    mix_unit: str = "rows"
    total: int | None = None
    max_repeats: int | None = None
    val_size: float = 0.0
    dedup: str | None = None
    """ "exact" drops conversations that came before; "near:0.8" those that are as similar to one that stays, too."""
    shuffle: bool = True
    seed: int = 0


@dataclass(frozen=True)
class UnitOptions:
    """How rows become tokens."""

    special_text: str = "text"
    max_length: int | None = None
    overlength: str = "turns"
    system: str | None = None
    """ "merge" puts a system text that the template refuses before the first user message."""
    repairs: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    """Keys of rows that need not be read: KEY anywhere, or where it stands, as `messages[].KEY`."""
    strict: bool = False
    allow_empty: bool = False
    """Replies with nothing in them are trained: their stop."""
    tools: str = "template"
    """How tools and calls are written: as the chat template does, or as ReAct text."""
    thinking: str = "template"
    """What becomes of the thinking of earlier replies: what the chat template does with it, or "keep"."""
    scan_secrets: bool = False
    """Secrets in texts are counted by kind; see compiler/rows/secrets.py."""
    redact: bool = False
    """They are replaced by placeholders, too."""
    decontaminate: tuple[tuple[str, str], ...] = ()
    """(name, sha256) of each benchmark file; rows that share text with one are dropped. compiler/rows/overlap.py"""
    decontaminate_ngram: int = 8
    """Words of the runs that are compared."""
    decontaminate_threshold: float | None = None
    """The part of a benchmark's text that must be shared; None = that of the method."""


@dataclass(frozen=True)
class DatasetOptions:
    """How the rows of one dataset are read: format, kind, names of columns and tags, weights policy, substitutions."""

    format: str
    columns: Names
    tags: Names
    weights: str
    kind: str = Kind.SFT
    persona: tuple[tuple[str, str], ...] = ()
    """(placeholder with its language, value) pairs of the self-cognition pool; see compiler/rows/persona.py."""
    kind_keys: tuple[str, ...] = ()
    """The keys by which a row is of another kind than the first ones, and a reject; () where the kind was asked for."""
    other_names: dict[str, str] = field(default_factory=dict)
    """Key -> column, for keys by which later rows may call a column that the first ones call otherwise."""
    react: bool = False
    """Whether replies are ReAct text, which is checked: the format's, unless the card says that they are plain."""
    clean: dict[str, list[str]] = field(default_factory=dict)
    """The card's clean-up rules; see compiler/rows/clean.py."""
    where: str = ""
    """The SQL condition that rows must meet; "" = none."""
    media: str = ""
    """The folder that references to images and videos are relative to."""
    policy: dict[str, Any] = field(default_factory=dict)
    """The weights policy itself, read once: a file of the user's may change meanwhile, or be on this machine alone."""


OWN = ("format", "kind", "columns", "tags", "weights", "where", "media_dir")
"""The fields of CompileOptions that a dataset can have of its own."""


@dataclass(frozen=True)
class CompileOptions:
    """One run of `cli compile`."""

    out: AnyPath
    cache: Path
    files: tuple[str, ...] = ()
    val: tuple[str, ...] = ()
    """Files whose rows are all for validation."""
    test: tuple[str, ...] = ()
    """The same for the split test."""
    mix: tuple[Request, ...] = ()
    """Empty = all of `files`."""
    registries: tuple[Path, ...] = ()
    format: str = "auto"
    kind: str = "auto"
    columns: tuple[tuple[str, str], ...] = ()
    """(name, key) pairs: the keys of the rows of `files`, in place of a format's own."""
    tags: tuple[tuple[str, str], ...] = ()
    """The same for what stands inside lists: keys and roles."""
    media_dir: Path | None = None
    """None = the folder of each dataset."""
    self_cognition: int = 0
    """Rows about who the model is."""
    self_cognition_file: Path | None = None
    """The rows to draw from instead of the embedded ones."""
    name: str = DEMO_NAME
    author: str = DEMO_AUTHOR
    tokenizer: Path = registry.DEMO_TOKENIZER
    tokenizer_source: dict[str, Any] = field(default_factory=dict)
    """The hub, the repository and the commit that it was downloaded from; {} = it was given as a folder."""
    hub: str | None = None
    """The hub that is preferred; None = what the environment chooses, else Hugging Face."""
    template: str = "auto"
    weights: str = "auto"
    units: UnitOptions = field(default_factory=UnitOptions)
    mixing: MixOptions = field(default_factory=MixOptions)
    pack: int | None = None
    """Tokens of a pack; None = each example is a row of its own."""
    max_rejects: str = "1%"
    max_expansion: int = 100
    """Bytes that a compressed file may hold for each of its own."""
    unknown_keys: str = "count"
    """ "error" ends the run where rows have keys that nothing reads."""
    engine: str = "local"
    ray_address: str = ""
    workers: int = 1
    """0 = as many as the cluster has."""
    where: str = ""
    """The SQL condition that rows of every dataset must meet; see compiler/rows/where.py."""
    own: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By dataset, what a recipe says of it alone, in place of `OWN` fields above."""
    recipe: dict[str, Any] = field(default_factory=dict)
    """What was asked, for the manifest: paths start from this process's folder. {} = it cannot be asked again."""
    limit: int | None = None
    """The first so many rows of each dataset are compiled, and no others are read; None = all."""
    only: tuple[int, int] | None = None
    """(K, N): compile the K-th of N parts of the units, and link nothing; None = compile all and link."""


_COMMA = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')
"""A comma with whole pairs of quotes behind it."""
_QUOTED = re.compile(r'"(?P<text>(?:[^"]|"")*)"\s*(?P<rest>.*)', re.DOTALL)


def split_at_commas(text: str, where: str, like: str = '"A, B"') -> list[tuple[str, str | None]]:
    """Split at commas that are not in double quotes: pieces, each (text, None) or (text in quotes, what follows).

    A quote within quotes is written twice.
    """
    if text.count('"') % 2:
        raise UsageError(f"{where} {text}", "a quote is never closed", f"{where} '{like},...'")
    pieces = [piece.strip() for piece in _COMMA.split(text)]
    return [
        (found["text"].replace('""', '"'), found["rest"]) if (found := _QUOTED.fullmatch(piece)) else (piece, None)
        for piece in pieces
    ]


def quoted(name: str) -> str:
    """A name as --mix takes it: in quotes if it has a sign that means something there."""
    return '"' + name.replace('"', '""') + '"' if re.search(r'[,:#"]', name) else name


def parse_mix(text: str) -> tuple[Request, ...]:
    """Parse `agent:1,bench:2,extra#500,"a,b":1,all`: shares, counts, or everything; a name with signs is in quotes."""
    requests: list[Request] = []
    for part, rest in split_at_commas(text, "--mix"):
        name, mark, number = part, "", ""
        if not part and rest is None:
            continue
        if rest is not None:
            mark, number = rest[:1], rest[1:]
            if mark not in ("", ":", "#"):
                raise UsageError(f"--mix {text}", f"expected : or # after {quoted(name)}, found {rest!r}")
        for sign in (":", "#") if rest is None else ():
            if sign in part:
                name, mark, number = part.rpartition(sign)
        if any(request.name == name for request in requests):
            raise UsageError(f"--mix {text}", f"{name!r} is named twice", "Add its shares up.")
        try:
            share = float(number) if mark == ":" else None
            count = int(number) if mark == "#" else None
        except ValueError:
            signs = rest is None and part.count(":") + part.count("#") > 1
            raise UsageError(
                f"--mix {text}",
                f"expected a number after {name!r}, found {number!r}",
                "--mix agent:1,bench:2" + (f"; a name with such signs is in quotes: {quoted(part)}" if signs else ""),
            ) from None
        bad_share = share is not None and not 0 < share < float("inf")
        if not name or bad_share or (count is not None and not 0 < count <= MOST):
            most = f" and at most {MOST:,} rows" if (count or 0) > MOST else ""
            expected = f"expected NAME:SHARE or NAME#ROWS with a number above 0{most}"
            raise UsageError(f"--mix {text}", f"{expected}, found {part!r}")
        requests.append(Request(name, share, count))
    if not requests:
        raise UsageError("--mix", "names no dataset", "--mix agent:1,bench:2")
    return tuple(requests)


def parse_names(option: str, texts: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Parse `NAME=KEY,...`: (name, key) pairs, no name twice. A key with a comma is in quotes: `instruction="a, b"`."""
    found: dict[str, str] = {}
    pieces = [piece for text in texts for piece in split_at_commas(text, option, 'instruction="A, B"')]
    for part in filter(None, (piece if rest is None else f"{quoted(piece)}{rest}" for piece, rest in pieces)):
        name, sign, key = (piece.strip() for piece in part.partition("="))
        if len(key) > 1 and key[0] == key[-1] == '"':
            key = key[1:-1].replace('""', '"')
        if not (name and sign and key):
            raise UsageError(f"{option} {part}", "expected NAME=KEY", f"{option} instruction=question,output=answer")
        if name in found:
            raise UsageError(f"{option} {part}", f"{name!r} is named twice", "Name it once.")
        found[name] = key
    return tuple(found.items())


def parse_keys(option: str, text: str) -> tuple[str, ...]:
    """Parse `KEY,...`: keys, each once. A key with a comma is in quotes."""
    return tuple(dict.fromkeys(filter(None, (piece + (rest or "") for piece, rest in split_at_commas(text, option)))))


def parse_dedup(text: str, where: str = "") -> tuple[str, float | None]:
    """Parse `exact`, `near` or `near:THRESHOLD`: the name, and the similarity from which rows are near duplicates.

    `where` is what the command line says, where it is not --dedup.
    """
    where = where or f"--dedup {text}"
    name, sign, number = text.partition(":")
    if name not in DEDUP or (sign and name != "near"):
        raise UsageError(where, "unknown", nearest(name, DEDUP))
    try:
        threshold = float(number) if sign else NEAR
    except ValueError:
        threshold = 0.0
    if not LEAST_NEAR <= threshold <= 1:
        what = f"expected a similarity from {LEAST_NEAR} to 1, found {number!r}"
        raise UsageError(where, what, f"{NEAR} is a good one.")
    return name, threshold if name == "near" else None


def wants_near(options: MixOptions) -> bool:
    """Whether near duplicates are looked for."""
    return options.dedup is not None and parse_dedup(options.dedup)[1] is not None


def parse_part(text: str) -> tuple[int, int]:
    """Parse `K/N`, the K-th of N parts, counted from 0 as the jobs of an array are."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not match or int(match[1]) >= int(match[2]):
        last = f"0/{match[2]} to {int(match[2]) - 1}/{match[2]}" if match and int(match[2]) else "0/16 to 15/16"
        raise UsageError(f"--only {text}", "expected K/N with K below N", f"Parts are counted from 0: {last}.")
    return int(match[1]), int(match[2])


def check_mix(requests: list[Request], mixing: MixOptions) -> None:
    """Raise for options that would do nothing: they are about shares, or counts, and no dataset has one."""
    if any(request.share is not None for request in requests):
        return
    unit = None if mixing.mix_unit == "rows" else mixing.mix_unit
    counts = any(request.count is not None for request in requests)
    given = {"--total": mixing.total, "--max-repeats": None if counts else mixing.max_repeats, "--mix-unit": unit}
    for option, value in given.items():
        if value is not None:
            name = quoted(requests[0].name) if requests else "NAME"
            what = "shares and counts" if option == "--max-repeats" else "shares"
            raise UsageError(f"{option} {value}", f"it is about {what}, and no dataset has one", f"--mix {name}:1")
