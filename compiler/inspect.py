"""What `cli inspect` shows and checks: rows of a published set, token by token, read from the set alone.

1. Only batches whose digest is the manifest's are read, and only a tokenizer whose files are: damage is one message.
2. The text of a token is the characters that its last byte completes, so that the texts joined are the decoded row;
   bytes that never become a character are written `\\xe4`.
3. Searching and checking go over columns, a batch at a time; token by token is only for the rows that are shown.

A row as JSON (`Row.as_json`) has these keys:

    row, split      its number in the split (0-based)
    dataset, file   where it is from; `source_row` and `offset` (bytes) say where in that file
    repeat          0 the first time a source row is used, 1 the second
    length          tokens; `num_trained` of them are trained
    tokens          a list of {id, text, label, weight, role, key, control, looks_like_control}: label is -100 where
                    the token is context; key is the weights policy's, or ""; looks_like_control is true for text
                    that spells a control token, or the `<|name|>` of any model, and is none
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate, chain, repeat
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from compiler.conversation import Role
from compiler.encode import IGNORED, TEMPLATE
from compiler.shards import ShardSet
from compiler.tokenizer import Tokenizer
from compiler.weigh import KEYWORD
from schemas.arrow import SHARD, SPLITS
from schemas.errors import IntegrityError, UsageError, nearest

Ints = npt.NDArray[np.int64]
LIMIT = 5
"""Rows, rejects and violations shown where nobody asked for more."""
_MAGIC = b"ARROW1\0\0"
_OTHER_MODELS = re.compile(r"<\|[^|<>\s]{1,40}\|>")
_BETWEEN = "\uffff"
"""Stands for a control token where text is searched: no text that looks like one goes across it."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a shown row; the module's docstring says what the fields mean."""

    id: int
    text: str
    label: int
    weight: float
    role: str
    key: str
    control: bool
    looks_like_control: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a split, decoded. `lookalikes` are (start, end) in characters of `text`."""

    row: int
    split: str
    dataset: str
    file: str
    source_row: int
    offset: int | None
    repeat: int
    length: int
    num_trained: int
    tokens: list[Token]
    lookalikes: list[tuple[int, int]]

    @property
    def text(self) -> str:
        """The whole row decoded, control tokens included."""
        return "".join(token.text for token in self.tokens)

    def as_json(self) -> dict[str, Any]:
        """Return the row with the keys that the module's docstring promises."""
        return {key: value for key, value in asdict(self).items() if key != "lookalikes"}


@dataclass(frozen=True)
class Query:
    """Which rows of a split to show. `row` is a number or FILE:ROW; nothing at all = the first row of each dataset."""

    split: str = "train"
    row: str | None = None
    find: str | None = None
    dataset: str | None = None
    sample: int | None = None
    seed: int = 0
    limit: int | None = None

    @property
    def asks(self) -> bool:
        """True where certain rows are asked for."""
        return (self.row, self.find, self.dataset, self.sample) != (None, None, None, None)


# -- reading --


def read_file(opened: ShardSet, name: str) -> bytes:
    """Return the bytes of a file beside the shards; IntegrityError unless they are what the manifest says."""
    try:
        data = (opened.folder / name).read_bytes()
    except OSError as error:
        raise _damage(opened, f"{name}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != opened.manifest["files"].get(name):
        raise _damage(opened, f"{name}: is damaged or was edited")
    return data


def _damage(opened: ShardSet, what: str) -> IntegrityError:
    hint = f"cli verify {opened.folder} names every damage; compile the set again."
    return IntegrityError(str(opened.folder), what, hint)


class Split:
    """The batches of one split, each checked against its digest when it is read.

    A batch is read where the manifest says it is: the file's own index is not needed, and `cli verify` looks at it.
    """

    def __init__(self, opened: ShardSet, name: str) -> None:
        self.opened, self.name = opened, name
        self._batches = [(s, n, b) for s in opened.shards(name) for n, b in enumerate(s["batches"])]
        self._starts = [0, *accumulate(batch["rows"] for _, _, batch in self._batches)]
        self._last: tuple[int, pa.RecordBatch] | None = None

    @property
    def num_rows(self) -> int:
        """The rows of the split, by the manifest."""
        return self._starts[-1]

    def scan(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Yield (number of its first row, batch)."""
        for i, start in enumerate(self._starts[:-1]):
            yield start, self._batch(i)

    def rows(self, numbers: list[int], vocabulary: Vocabulary) -> Iterator[Row]:
        """Yield the rows of these numbers, decoded."""
        for number in numbers:
            i = bisect_right(self._starts, number) - 1
            [columns] = self._batch(i).slice(number - self._starts[i], 1).to_pylist()
            yield vocabulary.row(self.name, number, columns)

    def _batch(self, i: int) -> pa.RecordBatch:
        if self._last is None or self._last[0] != i:
            self._last = (i, self._read(*self._batches[i]))
        return self._last[1]

    def _read(self, shard: dict[str, Any], number: int, entry: dict[str, Any]) -> pa.RecordBatch:
        name, end = shard["file"], entry["offset"] + entry["length"]
        try:
            with (self.opened.folder / name).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(entry["offset"])
                data = file.read(entry["length"]) if end <= size else b""
        except OSError as error:
            raise _damage(self.opened, f"{name}: {error.strerror}") from error
        if end > size:
            raise _damage(self.opened, f"{name}: expected {shard['bytes']} bytes, found {size}")
        if xxhash.xxh3_128_hexdigest(data) != entry["xxh3"]:
            first = sum(batch["rows"] for batch in shard["batches"][:number])
            last = first + entry["rows"] - 1
            raise _damage(self.opened, f"{name}: batch {number} (rows {first} to {last}) is damaged")
        try:
            batch = _decode(pa.py_buffer(data))
        except pa.ArrowException as error:
            raise _damage(self.opened, f"{name}: batch {number} is no Arrow batch: {error}") from error
        if batch.num_rows != entry["rows"]:
            raise _damage(self.opened, f"{name}: batch {number} has {batch.num_rows} rows, expected {entry['rows']}")
        return batch


def _decode(part: pa.Buffer) -> pa.RecordBatch:
    """Return the batch in a part of an Arrow file; the part of a file's first batch begins with the file's header."""
    if part.slice(0, len(_MAGIC)).to_pybytes() == _MAGIC:
        return pa.ipc.open_stream(part.slice(len(_MAGIC))).read_next_batch()
    return pa.ipc.read_record_batch(part, SHARD)


class Vocabulary:
    """The set's own tokenizer: what bytes every id stands for, and what only looks like a control token.

    It is read as data: nothing is encoded, so the tokenizer itself, a second's work for a large one, is not built.
    """

    def __init__(self, opened: ShardSet) -> None:
        self._opened = opened
        names = [name for name in opened.manifest["files"] if name.startswith("tokenizer/")]
        files = {name.removeprefix("tokenizer/"): read_file(opened, name) for name in names}
        if "tokenizer.json" not in files:
            raise _damage(opened, "tokenizer/tokenizer.json: not in the manifest")
        self.tokenizer = Tokenizer(opened.folder / "tokenizer", files)
        self._controls = frozenset(self.tokenizer.controls.values())

    @cached_property
    def bytes_of(self) -> pa.LargeBinaryArray:
        """Return the bytes of every id, large_binary[V]."""
        spell = _speller(self.tokenizer)
        model = self.tokenizer.spec["model"]["vocab"]
        vocab = model if isinstance(model, dict) else {entry[0]: number for number, entry in enumerate(model)}
        table = [b""] * (max(*vocab.values(), *self._controls) + 1)
        for token, number in vocab.items():
            table[number] = spell(token, number)
        for token, number in self.tokenizer.controls.items():
            table[number] = token.encode()
        return pa.array(table, pa.large_binary())

    def pieces(self, ids: pa.Array) -> pa.LargeBinaryArray:
        """Return the bytes of these ids."""
        if len(ids) and pc.max(ids).as_py() >= len(self.bytes_of):
            raise _damage(self._opened, f"token {pc.max(ids)} is not in its tokenizer")
        return self.bytes_of.take(ids)

    def piece(self, token_id: int) -> str | bytes:
        """Return what one token decodes to by itself; bytes where they are no whole character."""
        data = self.bytes_of[token_id].as_py()
        try:
            data.decode()
        except UnicodeDecodeError:
            return data
        return self.tokenizer.decode([token_id])

    def row(self, split: str, number: int, columns: dict[str, Any]) -> Row:
        """Return one row of a split, decoded."""
        ids, labels = columns["input_ids"], columns["labels"]
        weights = columns["loss_weights"] or [float(label != IGNORED) for label in labels]
        pieces = self.pieces(pa.array(ids, pa.int32())).to_pylist()
        controls = [token_id in self._controls for token_id in ids]
        texts = _texts(pieces, controls)
        who = chain.from_iterable(repeat((s["role"], s["key"]), s["num_tokens"]) for s in columns["spans"])
        lookalikes, flags = self._lookalikes(texts, controls)
        tokens = [
            Token(token_id, text, label, weight, role, key, control, flag)
            for token_id, text, label, weight, (role, key), control, flag in zip(
                ids, texts, labels, weights, who, controls, flags, strict=True
            )
        ]
        of_source = {key: columns[key] for key in ("dataset", "file", "offset", "repeat", "num_trained")}
        place = {"row": number, "split": split, "source_row": columns["row"], "length": len(ids)}
        return Row(**place, **of_source, tokens=tokens, lookalikes=lookalikes)

    def _lookalikes(self, texts: list[str], controls: list[bool]) -> tuple[list[tuple[int, int]], list[bool]]:
        """Return where the text spells a control token, and which tokens take part in that."""
        searched = "".join(_BETWEEN * len(t) if control else t for t, control in zip(texts, controls, strict=True))
        ends = list(accumulate(map(len, texts)))
        flags = [False] * len(texts)
        own = [match.span() for match in self.tokenizer.control_pattern.finditer(searched)]
        found = [*own, *(m.span() for m in _OTHER_MODELS.finditer(searched) if m.span() not in own)]
        for start, end in found:
            first, last = bisect_right(ends, start), bisect_left(ends, end)
            flags[first : last + 1] = [True] * (last + 1 - first)
        return sorted(found), flags


def _texts(pieces: list[bytes], controls: list[bool]) -> list[str]:
    """Return each token's text: the characters its last byte completes; joined they are the whole text."""
    decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
    texts: list[str] = []
    for piece, control in zip(pieces, controls, strict=True):
        if control and texts:
            texts[-1] += decoder.decode(b"", True)
        texts.append(piece.decode() if control else decoder.decode(piece))
    texts[-1] += decoder.decode(b"", True)
    return texts


def _speller(tokenizer: Tokenizer) -> Callable[[str, int], bytes]:
    """Return what turns a vocabulary entry and its id into bytes, as the tokenizer's own decoder would."""
    decoder = tokenizer.spec.get("decoder") or {}
    kinds = {part["type"]: part for part in (decoder, *decoder.get("decoders", []))} if decoder else {}
    if "ByteLevel" in kinds:
        alphabet = {ord(char): byte for byte, char in _byte_alphabet().items()}
        return lambda token, _: token.translate(alphabet).encode("latin-1", "ignore")
    if kinds.keys() & {"ByteFallback", "Metaspace"}:
        return lambda token, _: (
            bytes([int(token[3:5], 16)])
            if re.fullmatch("<0x[0-9A-F]{2}>", token)
            else token.replace("\u2581", " ").encode()
        )
    return lambda _, number: tokenizer.decode([number]).encode()


def _byte_alphabet() -> dict[int, str]:
    """Return the character that byte-level BPE writes for each byte: itself where it prints, else one from U+0100."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printed]
    return {byte: chr(byte) for byte in printed} | {byte: chr(0x100 + n) for n, byte in enumerate(others)}


# -- choosing --


def choose(split: Split, query: Query, vocabulary: Vocabulary) -> tuple[list[int], str]:
    """Return the numbers of the rows to show, and a sentence on how many there are beside them (or "")."""
    manifest = split.opened.manifest
    _check_dataset(manifest, query.dataset)
    if query.find == "":
        raise UsageError("--find", "expected a text to look for, found an empty one")
    if not split.num_rows:
        others = [name for name in SPLITS if manifest["splits"][name]["rows"]]
        raise UsageError(f"--split {split.name}", "the set has no rows there", f"known: {', '.join(others)}")
    if query.row is not None:
        return _by_row(split, query)
    if not query.asks:
        return _first_of_each(split), ""
    found = _matching(split, query, vocabulary)
    what = f"{_rows(len(found))} of {query.dataset or split.name}"
    what += f" in {split.name}" if query.dataset else ""
    what += f" with {json.dumps(query.find, ensure_ascii=False)}" if query.find is not None else ""
    if not len(found):
        if query.find is None:
            raise UsageError(f"--dataset {query.dataset}", f"no row of it is in {split.name}", "See --split.")
        searched = f"{query.dataset} in {split.name}" if query.dataset else split.name
        hint = f"{_rows(split.num_rows)} of {split.name} were searched; upper and lower case differ."
        raise UsageError(f"--find {query.find}", f"no row of {searched} contains it", hint)
    if query.sample is not None:
        generator = np.random.Generator(np.random.PCG64(query.seed))
        drawn = generator.choice(found, min(query.sample, len(found)), replace=False)
        return sorted(drawn.tolist()), f"{len(drawn):,} of {what}, drawn with --seed {query.seed}"
    limit = query.limit or (LIMIT if query.find is not None else 1)
    more = f"; --limit {len(found)} shows all" if len(found) > limit else ""
    return found[:limit].tolist(), f"{min(limit, len(found)):,} of {what}{more}"


def _check_dataset(manifest: dict[str, Any], name: str | None) -> None:
    names = [entry["name"] for entry in manifest["datasets"]]
    if name is not None and name not in names:
        raise UsageError(f"--dataset {name}", "no such dataset in the set", nearest(name, names))


def _rows(count: int) -> str:
    return f"{count:,} row" + "s" * (count != 1)


def _by_row(split: Split, query: Query) -> tuple[list[int], str]:
    given = query.row or ""
    if re.fullmatch(r"-?\d+", given):
        if not 0 <= int(given) < split.num_rows:
            raise UsageError(f"--row {given}", f"{split.name} has rows 0 to {split.num_rows - 1}")
        return [int(given)], ""
    label, _, number = given.rpartition(":")
    if not label or not number.isdecimal():
        raise UsageError(f"--row {given}", "expected a row of the split, or FILE:ROW", "--row 0, --row chats.jsonl:4")
    file, rows = _file(split, label, f"--row {given}")
    if int(number) >= rows:
        raise UsageError(f"--row {given}", f"{file} has rows 0 to {rows - 1}")
    found = _of_source(split, file, int(number))
    if not found:
        raise UsageError(f"--row {given}", f"it is not in {split.name}", _whereabouts(split, file, int(number)))
    limit = query.limit or LIMIT
    note = f"{file}:{number} is used {len(found)} times in {split.name}" if len(found) > 1 else ""
    return found[:limit], note + (f"; the first {limit} are shown" if len(found) > limit else "")


def _file(split: Split, label: str, where: str) -> tuple[str, int]:
    """Return the file of that label and its rows; the end of a label will do where it names one file."""
    entries = split.opened.manifest["datasets"]
    files = {file["file"]: file["rows"] for entry in entries for file in entry["files"]}
    found = [file for file in files if file == label] or [file for file in files if file.endswith(f"/{label}")]
    if len(found) != 1:
        what = "several files end so" if found else "no such file in the set"
        raise UsageError(where, what, nearest(label, found or files))
    return found[0], files[found[0]]


def _of_source(split: Split, file: str, row: int) -> list[int]:
    found: list[int] = []
    for start, batch in split.scan():
        same = pc.and_(pc.equal(batch.column("file"), file), pc.equal(batch.column("row"), row))
        found += (start + np.flatnonzero(same.to_numpy(zero_copy_only=False))).tolist()
    return found


def _whereabouts(split: Split, file: str, row: int) -> str:
    for name in SPLITS:
        if name != split.name and _of_source(Split(split.opened, name), file, row):
            return f"It is in {name}: add --split {name}."
    for reject in rejects(split.opened):
        if (reject["file"], reject["row"]) == (file, row):
            return f"It was rejected ({reject['reason']}: {reject['message']}); see --rejected."
    return "It was sampled out, or dropped as a duplicate."


def _first_of_each(split: Split) -> list[int]:
    """Return the first row of each dataset, in the manifest's order; stops reading when all are found."""
    realized = {entry["name"]: entry["realized"] for entry in split.opened.manifest["datasets"]}
    sizes = {name: (r["rows"] - r["val_rows"], r["val_rows"]) for name, r in realized.items()}
    wanted = {name: -1 for name, rows in sizes.items() if rows[SPLITS.index(split.name)]}
    for start, batch in split.scan():
        for name in [name for name, found in wanted.items() if found < 0]:
            at = pc.index(batch.column("dataset"), name).as_py()
            wanted[name] = start + at if at >= 0 else -1
        if all(found >= 0 for found in wanted.values()):
            break
    return [found for found in wanted.values() if found >= 0]


def _matching(split: Split, query: Query, vocabulary: Vocabulary) -> Ints:
    """Return the numbers of all rows of the dataset that contain the text."""
    if query.dataset is None and query.find is None:
        return np.arange(split.num_rows)
    found: list[Ints] = []
    for start, batch in split.scan():
        keep = np.ones(batch.num_rows, dtype=bool)
        if query.dataset is not None:
            keep &= pc.equal(batch.column("dataset"), query.dataset).to_numpy(zero_copy_only=False)
        if query.find is not None and keep.any():
            keep &= _contains(batch.column("input_ids"), query.find, vocabulary)
        found.append(start + np.flatnonzero(keep))
    return np.concatenate(found)


def _contains(ids: pa.ListArray, text: str, vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
    """Return bool[N]: which rows' bytes contain the text's. One search over all rows; the loop is over matches."""
    pieces = vocabulary.pieces(ids.values)
    _, offsets, data = pieces.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[ids.offsets.to_numpy()]
    found = np.zeros(len(ids), dtype=bool)
    needle, hay = text.encode("utf-8", "surrogateescape"), data.to_pybytes() if data else b""
    at = hay.find(needle)
    while at >= 0:
        row = int(np.searchsorted(ends, at, side="right")) - 1
        inside = at + len(needle) <= ends[row + 1]
        found[row] |= inside
        at = hay.find(needle, int(ends[row + 1]) if inside else at + 1)
    return found


def rejects(opened: ShardSet, dataset: str | None = None) -> list[dict[str, Any]]:
    """Return the entries of rejects.jsonl, of one dataset or of all."""
    _check_dataset(opened.manifest, dataset)
    entries = [json.loads(line) for line in read_file(opened, "rejects.jsonl").splitlines()]
    return [entry for entry in entries if dataset in (None, entry["dataset"])]


# -- checking --


@dataclass
class Check:
    """`NAME:0`: no token of these roles or policy keys may be trained. Counts are over all rows of all splits."""

    given: str
    roles: list[str]
    keys: list[str]
    tokens: int = 0
    trained: int = 0
    rows: int = 0
    violations: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True where no token that may not be trained is."""
        return not self.trained

    def as_json(self) -> dict[str, Any]:
        """Return {assert, ok, roles, keys, tokens, trained, rows, violations}, counts being over all rows."""
        return {"assert": self.given, "ok": self.ok} | {k: v for k, v in asdict(self).items() if k != "given"}

    @property
    def what(self) -> str:
        """The tokens that are checked, in words."""
        return " or ".join([f"role {role}" for role in self.roles] + [f"key {key!r}" for key in self.keys])


def parse_check(given: str, manifest: dict[str, Any]) -> Check:
    """Return the check that `NAME:0` asks for; NAME is a role or a policy key, in any case, its colon given or not."""
    name, colon, number = given.rpartition(":")
    if not colon or not name or not re.fullmatch(r"[-+]?[\d.]+%?", number):
        raise UsageError(f"--assert {given}", "expected ROLE:0 or KEY:0", "--assert tool:0 --assert Observation:0")
    if number != "0":
        raise UsageError(f"--assert {given}", "only 0 is supported: no token may be trained", f"--assert {name}:0")
    roles = [*map(str, Role), TEMPLATE[0]]
    keys = [KEYWORD]
    for policy in (entry["policy"] for entry in manifest["datasets"]):
        keys += [key for part in ("keywords", "patterns") for key in policy.get(part, {}) if key not in keys]

    def same(known: str) -> bool:
        return known.casefold().removesuffix(":") == name.casefold().removesuffix(":")

    check = Check(given, list(filter(same, roles)), list(filter(same, keys)))
    if not check.what:
        raise UsageError(f"--assert {given}", "no such role or policy key", nearest(name, [*roles, *keys]))
    return check


def run_checks(opened: ShardSet, checks: list[Check]) -> int:
    """Fill in the checks' counts over every row of every split; return the number of rows."""
    rows = 0
    for split in (Split(opened, name) for name in SPLITS):
        rows += split.num_rows
        for start, batch in split.scan():
            edges, roles, keys = _edges(split, batch)
            values = batch.column("labels").values.to_numpy()
            trained = np.concatenate([[0], np.cumsum(values != IGNORED)])
            # int64[S]: the trained tokens of every span.
            counts = trained[edges[1:]] - trained[edges[:-1]]
            for check in checks:
                mine = _is_in(roles, check.roles) | _is_in(keys, check.keys)
                check.tokens += int(np.diff(edges)[mine].sum())
                wrong = np.flatnonzero(mine & (counts > 0))
                if len(wrong):
                    _violations(check, split, start, batch, edges, wrong, counts)
    _add_texts(opened, checks)
    return rows


def _edges(split: Split, batch: pa.RecordBatch) -> tuple[Ints, pa.Array, pa.Array]:
    """Return (first token of each span and the end int64[S + 1], roles, keys); the tokens are the whole batch's."""
    spans = batch.column("spans")
    edges = np.concatenate([[0], np.cumsum(spans.values.field("num_tokens").to_numpy(), dtype=np.int64)])
    if not np.array_equal(edges[spans.offsets.to_numpy()], batch.column("labels").offsets.to_numpy()):
        raise _damage(split.opened, f"{split.name}: the spans of a row do not cover its tokens")
    return edges, spans.values.field("role"), spans.values.field("key")


def _is_in(names: pa.Array, wanted: list[str]) -> npt.NDArray[np.bool_]:
    return pc.is_in(names, pa.array(wanted, pa.string())).to_numpy(zero_copy_only=False)


def _violations(
    check: Check, split: Split, start: int, batch: pa.RecordBatch, edges: Ints, wrong: Ints, counts: Ints
) -> None:
    """Count the spans that are wrong, and note the first one of the first rows."""
    rows = np.searchsorted(batch.column("spans").offsets.to_numpy(), wrong, side="right") - 1
    found, firsts = np.unique(rows, return_index=True)
    check.trained += int(counts[wrong].sum())
    check.rows += len(found)
    for row, first in zip(found.tolist(), wrong[firsts].tolist(), strict=True):
        if len(check.violations) == LIMIT:
            break
        labels = batch.column("labels").values[edges[first] : edges[first + 1]].to_numpy()
        # The first stretch of trained tokens in the span: as a rule all of it.
        is_trained = labels != IGNORED
        a = int(is_trained.argmax())
        b = a + int((~is_trained[a:]).argmax() or len(labels) - a)
        entry: dict[str, Any] = {"row": start + row, "split": split.name}
        entry |= {"file": batch.column("file")[row].as_py(), "source_row": batch.column("row")[row].as_py()}
        entry["token"] = int(edges[first]) + a - batch.column("labels").offsets[row].as_py()
        check.violations.append(entry | {"text": labels[a:b]})


def _add_texts(opened: ShardSet, checks: list[Check]) -> None:
    """Replace the ids noted for a violation by their text; the tokenizer is only needed where there are any."""
    found = [entry for check in checks for entry in check.violations]
    vocabulary = Vocabulary(opened) if found else None
    for entry in found:
        if vocabulary is not None:
            pieces = vocabulary.pieces(pa.array(entry["text"]))
            entry["text"] = b"".join(pieces.to_pylist()).decode("utf-8", "backslashreplace")
