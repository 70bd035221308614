"""From a path to the kind of its contents, by its name and its first bytes, and to a stream of its bytes."""

from __future__ import annotations

import contextlib
import io
import re
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import orjson

from compiler.read.decompress import Decompressed
from compiler.read.elements import BRACKETS, OPEN_STRING
from compiler.read.model import COLUMNAR, MAX_ROW, FileKind, SourceFile, no_rows, open_file, unreadable
from schemas import kept
from schemas.errors import InputError
from schemas.stores import AnyPath, StorePath, no_such, path_of

KINDS = {
    ".arrow": FileKind.ARROW,
    ".csv": FileKind.CSV,
    ".feather": FileKind.ARROW,
    ".json": FileKind.JSON,
    ".jsonl": FileKind.JSONL,
    ".ndjson": FileKind.JSONL,
    ".parquet": FileKind.PARQUET,
    ".tsv": FileKind.TSV,
    ".txt": FileKind.TXT,
    ".xlsx": FileKind.XLSX,
}
_UTF8_BOM = b"\xef\xbb\xbf"
_FOREIGN_TEXT = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_FOREIGN_DATA = (
    (b"\x1f\x8b\x08", "gzip data", "with .gz added"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "with .zst added"),
    (b"PK\x03\x04", "a zip archive", "to .xlsx if it is a workbook"),
    (b"PAR1\x15", "a Parquet file", "to .parquet"),
    (b"ARROW1\0\0", "an Arrow file", "to .arrow"),
)
_KEYS_LOOKED_AT = 1 << 20  # bytes; enough to name the first keys of an object in place of an array
_LOOKED_AT = 1 << 12  # bytes; enough to find the next key
_DELIMITED = frozenset({FileKind.CSV, FileKind.TSV})
_UNNAMED = (b",", b"\t", b'"",', b'""\t')
_AROUND_ROWS = frozenset({"data", "rows", "train", "validation", "test", "examples", "samples", "items", "records"})
"""Keys of an object that is no row itself but holds them."""
_ROWS = re.compile(rb"\[\s*+[\[{]")
_TOKENS = re.compile(OPEN_STRING + rb"(?P<key>[ \t\r\n]*+:[ \t\r\n]*+)?|[\[\]{}]", re.DOTALL)


def open_source(path: str | AnyPath) -> SourceFile:
    """The kind of a file and how to read it, from its name and, for JSON, its first bytes.

    A `.json` of JSON Lines and a `.jsonl` of one array are read as what they are, with a note. It is JSON Lines
    if the object at the start is closed on its own line. It is an array if the bracket at the start is not
    closed on its line, or if that line is an array of objects and nothing follows. A `.json` that begins with an object
    over several lines holds such objects, one after another.

    InputError: unknown suffix, missing, not a file, unreadable, empty, UTF-16 or UTF-32, data of another
    kind, or a `.json` that begins with neither an array nor an object, or with an object around an array of rows.
    """
    path = path_of(path)
    _check_is_file(path)
    source = SourceFile(path, *_kind_of_name(path))
    return source if source.kind in COLUMNAR else _look_inside(source)


@contextlib.contextmanager
def open_stream(source: SourceFile) -> Iterator[BinaryIO]:
    """Yield the decompressed bytes from `source.start` on, as a buffered stream."""
    with contextlib.ExitStack() as stack:
        stream: BinaryIO = stack.enter_context(open_file(source.path))
        if source.compression:
            raw = Decompressed(stream, source.compression, str(source.path))
            stream = stack.enter_context(io.BufferedReader(raw, 1 << 18))
        try:
            stream.read(source.start)
            yield stream
        except OSError as error:
            raise unreadable(source.path, error) from error


def as_session(source: SourceFile) -> SourceFile:
    """The source, read as one row of all its lines; InputError unless it is JSON Lines."""
    if source.kind is not FileKind.JSONL:
        what = f"a session was expected, which is a file of JSON lines; found {source.kind}"
        raise InputError(str(source.path), what, "Name the files that the agent wrote, or another --format.")
    return replace(source, kind=FileKind.SESSION)


def _check_is_file(path: AnyPath) -> None:
    """Raise InputError unless the path is an ordinary file with something in it (a FIFO would block)."""
    if isinstance(path, StorePath):
        _check_is_in_store(path)
        return
    try:
        found = path.stat()
    except FileNotFoundError as error:
        if path.is_symlink():
            what = f"is a link to {str(path.readlink())!r}, which does not exist"
            raise InputError(str(path), what, "Restore that file, or name another.") from error
        raise unreadable(path, error) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:  # a NUL byte
        raise InputError(repr(str(path)), "cannot be a path") from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(str(path), "is a folder", "Name the files in it, one by one.")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(str(path), "is not a regular file", "Write the data into a file: it is read twice.")
    if not found.st_size:
        raise no_rows(path)
    open_file(path).close()


def _check_is_in_store(path: StorePath) -> None:
    size = kept.size(path)
    found = path.info() if size is None else None
    if found is None or found.is_file:
        if not (size if found is None else found.size):
            raise no_rows(path)
    elif found.type.name == "Directory":
        raise InputError(str(path), "is a folder", "Name the files in it, one by one.")
    else:
        raise no_such(path)


def _kind_of_name(path: AnyPath) -> tuple[FileKind, str]:
    """(kind, compression) by the suffixes alone, in upper or lower case."""
    name = path.name.lower()
    compression = next((end for end in ("gz", "zst") if name.endswith("." + end)), "")
    kind = KINDS.get(Path(name.removesuffix("." + compression) if compression else name).suffix)
    if kind is None:
        hint = f"Known: {', '.join(KINDS)}, each also with .gz or .zst added."
        found = "".join(path.suffixes[-2:] if compression else path.suffixes[-1:])
        raise InputError(str(path), f"unknown kind of file {found!r}", hint)
    return kind, compression


def _look_inside(source: SourceFile) -> SourceFile:
    """The source with what the first bytes of a text file say about it."""
    path = source.path
    with open_stream(source) as stream:
        head = stream.read(8)
    if not head:
        raise no_rows(path)
    for mark, encoding in _FOREIGN_TEXT:
        if head.startswith(mark):
            hint = f"Convert it to UTF-8: iconv -f {encoding} -t UTF-8 FILE > NEW_FILE"
            raise InputError(str(path), f"is {encoding} text", hint)
    for magic, what, suffix in _FOREIGN_DATA:
        if head.startswith(magic):
            raise InputError(str(path), f"holds {what}, not {source.kind} text", f"Rename it {suffix}.")
    kind, start, notes = source.kind, 0, []
    if head.startswith(_UTF8_BOM):
        start = len(_UTF8_BOM)
        notes.append("skipped the UTF-8 byte order mark at the start")
    source = SourceFile(path, kind, source.compression, tuple(notes), start)
    if kind in _DELIMITED and head[start:].startswith(_UNNAMED):
        notes.append("the first column has no name: it is taken for the index that pandas writes, and not read")
    if kind is FileKind.JSON and (kind := _kind_of_json(source)) is FileKind.JSONL:
        notes.append("read as JSON Lines although it is named .json")
    elif kind is FileKind.JSONL and _begins_with_a_brace(source):
        kind = FileKind.OBJECTS
        notes.append("read as objects over several lines although it is named as JSON Lines")
    elif kind is FileKind.JSONL and _is_array(source):
        kind = FileKind.JSON
        notes.append("read as one JSON array although it is named as JSON Lines")
    return SourceFile(path, kind, source.compression, tuple(notes), start)


def _kind_of_json(source: SourceFile) -> FileKind:
    """Whether a `.json` file is an array, JSON Lines or objects over several lines; InputError if it is neither."""
    with open_stream(source) as stream:
        line = _first_line(stream)
        if not line:
            raise no_rows(source.path)
        if line.startswith(b"["):
            return FileKind.JSON
        hint = "Put the rows into an array, [{...}, {...}], or write one object per line into a .jsonl file."
        if not line.startswith(b"{"):
            found = line[:24].decode("utf-8", "replace")
            raise InputError(str(source.path), f"an array of rows was expected, found {found!r}", hint)
        if _closes(line):
            return FileKind.JSONL
        keys, lists = _keys(line + b"\n" + stream.read(_KEYS_LOOKED_AT))
    shown = ", ".join(map(repr, keys[:5])) + (", ..." if len(keys) > 5 else "")
    if not lists or lists[0] not in _AROUND_ROWS:
        return FileKind.OBJECTS
    hint = f"If the rows are in {lists[0]!r}: jq -c '.[\"{lists[0]}\"][]' FILE > ROWS.jsonl"
    what = f"an array of rows was expected, found one object with the keys {shown or '(none)'}"
    raise InputError(str(source.path), what, hint)


def _begins_with_a_brace(source: SourceFile) -> bool:
    """Whether the first line is a single brace with a key or the object's end after it: an object over several lines.

    A brace before whole rows is a broken row of JSON Lines.
    """
    with open_stream(source) as stream:
        return _first_line(stream) == b"{" and stream.read(_LOOKED_AT).lstrip()[:1] in (b'"', b"}")


def _is_array(source: SourceFile) -> bool:
    """Whether a `.jsonl` is one array: its `[` is not closed on its line, or the line is all and holds only objects."""
    with open_stream(source) as stream:
        line = _first_line(stream)
        if not line.startswith(b"["):
            return False
        if not _closes(line):
            return True
        if _first_line(stream):
            return False
    try:
        value = orjson.loads(line)
    except ValueError:
        return False
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)


def _first_line(stream: BinaryIO) -> bytes:
    """The next line that is not blank, stripped; b"" at the end of the file. Of a line of any length, MAX_ROW bytes."""
    return next((text for line in iter(lambda: stream.readline(MAX_ROW), b"") if (text := line.strip())), b"")


def _closes(line: bytes) -> bool:
    """Whether the bracket at the start of the line is closed on it."""
    depth = 0
    for match in BRACKETS.finditer(line):
        if not match[0].startswith(b'"'):
            depth += 1 if match[0] in (b"[", b"{") else -1
            if not depth:
                return True
    return False


def _keys(text: bytes) -> tuple[list[str], list[str]]:
    """The first keys of the object that `text` begins with, and those of them that hold an array of rows."""
    keys, lists, depth = [], [], 0
    for match in _TOKENS.finditer(text):
        if not match[0].startswith(b'"'):
            depth += 1 if match[0] in (b"[", b"{") else -1
        elif depth == 1 and match["key"]:
            keys.append(text[match.start() + 1 : match.start("key") - 1].decode("utf-8", "replace"))
            if _ROWS.match(text, match.end()):
                lists.append(keys[-1])
    return keys, lists
