"""What files become: rows with their bytes, rejects with their reason, or one message."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import decimal
import gzip
import importlib
import io
import json
import math
import os
import pickle
import pkgutil
import random
import re
import tempfile
import tokenize
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

import compiler
import schemas
from compiler.read import MAX_DEPTH, FileKind, Row, Unit, cut, open_source, read
from compiler.read.decompress import Expansion
from compiler.read.elements import Elements
from schemas.errors import InputError, Reason

UTF8_BOM = b"\xef\xbb\xbf"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def units(path: Path, target_bytes: int = 1 << 20) -> list[Unit]:
    return list(cut(open_source(path), target_bytes))


def rows(path: Path, target_bytes: int = 1 << 20) -> list[Row]:
    """All rows of a file, each checked to be exactly the slice that it names."""
    content = decompressed(path)
    found = []
    for unit in units(path, target_bytes):
        for index, row in enumerate(read(unit)):
            assert row.index == index
            if row.offset is not None and row.length is not None:
                assert unit.offset <= row.offset <= row.offset + row.length <= unit.offset + unit.length
                assert content[row.offset : row.offset + row.length] == row.raw
            assert row.reject is None or row.value is None
            found.append(row)
    return found


def values(path: Path, target_bytes: int = 1 << 20) -> list[Any]:
    """The values of a file in which no row is rejected."""
    found = rows(path, target_bytes)
    assert [row.reject for row in found if row.reject] == []
    return [row.value for row in found]


def decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as stream:
            return stream.read()
    return data


def refusal(path: Path) -> str:
    """The message for a file that is not read."""
    with pytest.raises(InputError) as caught:
        rows_of_broken(path)
    return str(caught.value)


def rows_of_broken(path: Path) -> list[Row]:
    return [row for unit in cut(open_source(path)) for row in read(unit)]


# Bad rows


@dataclass(frozen=True)
class BadRow:
    """One row that is rejected, and what its message contains."""

    name: str
    raw: bytes
    says: tuple[str, ...] = ()
    pointer: str = ""
    in_array: bool = True  # whether an array with it still has a place where the next row begins


BAD_ROWS = {
    Reason.NOT_UTF8: [
        BadRow("a byte that is not UTF-8", b'{"a": "x\xffy"}', ("0xff", "byte 8 of the row", "to UTF-8")),
        BadRow("GBK text", '{"a": "你好"}'.encode("gbk"), ("byte 7 of",)),
        BadRow("a surrogate in UTF-8", b'{"a": "\xed\xa0\x80"}', ("0xed", "byte 7 of")),
    ],
    Reason.JSON: [
        BadRow("NaN", b'["NaN", NaN]', ("NaN is not JSON", "byte 8 of the row", "null")),
        BadRow("Infinity", b"[1, Infinity]", ("Infinity is not JSON", "byte 4 of")),
        BadRow("-Infinity", b"[-Infinity]", ("-Infinity is not JSON", "byte 1 of")),
        BadRow("a number beyond floats", b"[1e999]", ("1e999", "byte 1 of", "64-bit float")),
        BadRow("too many digits", b"[" + b"9" * 5000 + b"]", ("5000 digits", "byte 1 of")),
        BadRow("a raw tab in a string", b'{"a": "x\ty"}', ("control character", "byte 8 of", r"x\ty")),
        BadRow("a raw NUL in a string", b'{"a": "\x00"}', ("control character", "byte 7 of")),
        BadRow("half a row", b'{"a": "x", "b": [1, 2', ("byte 21 of", "half a row"), in_array=False),
        BadRow("half a string", b'{"a": "x', ("Unterminated string", "byte 6 of"), in_array=False),
        BadRow("half an escape", b'{"a": "x\\', ("Unterminated string", "byte 6 of"), in_array=False),
        BadRow("two values", b'{"a": 1} {"b": 2}', ("text follows", "byte 9 of"), in_array=False),
        BadRow("a comma at the end", b'{"a": 1,}', ("a comma with nothing after it, before '}', at byte 8 of",)),
        BadRow("a comma at the end of a list", b'{"a": [1,]}', ("before ']', at byte 9 of the row",)),
        BadRow(
            "bare quotes",
            b'{"a": "the "x" y"}',
            (
                "a quote within a text is written",
                "at byte 11 of the row",
            ),
        ),
        BadRow("single quotes", b"{'a': 1}", ("double quotes", "byte 1 of", "\"{'a': 1}\"")),
        BadRow("Python's None", b'{"a": None}', ("Expecting value", "byte 6 of", "None")),
        BadRow("an error after wide characters", '{"é": "好", x}'.encode(), ("byte 14 of",)),
        BadRow("a bare word", b"tru", ("byte 0 of", "tru")),
        BadRow("brackets of two kinds", b"[1}", ("byte 2 of",)),
        BadRow("a bad escape", rb'{"a": "\x41"}', ("escape", "byte 7 of")),
        BadRow("a mark between files", UTF8_BOM + b'{"a": 1}', ("byte 0 of",), in_array=False),
    ],
    Reason.DUPLICATE_KEY: [
        BadRow("a key twice", b'{"a": 1, "b": 2, "a": 3}', ("'a'", "more than once")),
        BadRow("a key twice, once escaped", rb'{"a": 1, "\u0061": 1}', ("'a'",)),
        BadRow("a key twice, spaced", b'{"a" : 1, "a"\t: 1}', ("'a'",)),
        BadRow("a key twice, deep", b'{"m": [{}, {"a/b": {"~": {"k": 1, "k": 1}}}]}', ("'k'",), "/m/1/a~1b/~0"),
        BadRow("a key twice in what was dropped", b'{"x": {"a": {"k":1,"k":2}, "a": 3}}', ("'a'",), "/x"),
        # as many colons are read as would be written again: compiler.read.value says why that is not enough
        BadRow("a key twice, hidden by an escaped colon", rb'{"a": 1, "a": 2, "b": "\u003a"}', ("'a'",)),
        BadRow("a key twice, hidden by another one", rb'{"a": 1, "a": 2, "b": "\u003A"}', ("'a'",)),
        BadRow("an empty key twice", b'{"": 1, "": 2}', ("''",)),
    ],
    Reason.LONE_SURROGATE: [
        BadRow(
            "half a character",
            rb'{"m": [{"content": "ok \ud83d"}]}',
            (r"\ud83d", "half a character", "in the text 'ok "),
            "/m/0/content",
        ),
        BadRow("the other half", rb'["\ude00"]', (r"\ude00",), "/0"),
        BadRow("halves in the wrong order", rb'["\ude00\ud83d"]', (r"\ude00",), "/0"),
        BadRow("half a character in a key", rb'{"a": {"\ud83d": 1}}', (r"in the key '\ud83d'",), "/a"),
        BadRow("half a character by a long number", rb'["\ud83d", 12345678901234567890]', (r"\ud83d",), "/0"),
    ],
    Reason.TOO_DEEP: [
        BadRow("257 levels", b"[" * 257 + b"]" * 257, ("256 levels", "byte 256 of the row")),
        BadRow("5000 levels", b'{"a":' * 5000 + b"1" + b"}" * 5000, ("byte 1280 of",)),
        BadRow("too deep and never closed", b"[" * 100_000, ("256 levels",), in_array=False),
    ],
}
BAD_JSON_LINES = [(reason, bad) for reason, found in BAD_ROWS.items() for bad in found]
BAD_ELEMENTS = [(reason, bad) for reason, bad in BAD_JSON_LINES if bad.in_array]


def test_nan_within_a_key_is_null_and_a_reject_for_whoever_reads_the_key(tmp_path: Path) -> None:
    data = b'{"NaN": 1, "a": NaN, "b": {"c/d": [0, -Infinity]}, "e": "NaN"}\n'
    (row,) = rows(write(tmp_path / "a.jsonl", data))
    assert row.reject is None
    assert row.value == {"NaN": 1, "a": None, "b": None, "e": "NaN"}
    assert row.not_json is not None
    assert [(key, reject.pointer, reject.message) for key, reject in row.not_json.items()] == [
        ("a", "/a", "NaN is not JSON (write null, or leave the key out)"),
        ("b", "/b/c~1d/1", "-Infinity is not JSON (write null, or leave the key out)"),
    ]
    assert rows(write(tmp_path / "a.json", b"[" + data + b"]"))[0].value == row.value


def test_a_row_with_nan_and_another_mistake_is_a_reject(tmp_path: Path) -> None:
    found = rows(
        write(tmp_path / "a.jsonl", b'{"a": NaN, "b": 1, "b": 2}\n{"a": NaN, "b": tru}\n{"a": NaN, "b": 1e999}\n')
    )
    assert [row.reject is not None for row in found] == [True] * 3


PRETTY = b'{\n  "a": 1,\n  "b": [{"c": "}"}]\n}\n'


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize(
    ("data", "times"), [(PRETTY, 1), (UTF8_BOM + b"\n" + PRETTY, 1), (PRETTY * 3, 3), (PRETTY + b"{}", 2)]
)
def test_objects_over_several_lines_are_a_row_each(name: str, data: bytes, times: int, tmp_path: Path) -> None:
    path = write(tmp_path / name, data)
    expected = [{"a": 1, "b": [{"c": "}"}]}] * 3
    found = values(path)
    assert len(found) == times
    assert found == expected[:times] if b"{}" not in data else found == [expected[0], {}]
    assert values(path, 1) == found
    assert values(write(tmp_path / f"{name}.gz", gzip.compress(data))) == found


def test_an_object_over_several_lines_with_a_mistake_is_a_reject_that_shows_it(tmp_path: Path) -> None:
    (quote,) = rows(write(tmp_path / "a.json", b'{\n "a": "the "Network" part",\n "b": [1,\n]\n}'))
    assert quote.reject is not None
    assert "a quote within a text is written" in quote.reject.message
    assert "at byte 13 of the row (its line 2)" in quote.reject.message
    (half,) = rows(write(tmp_path / "a.json", b'{\n "a": [1,\n "b'))
    assert half.reject is not None
    assert "Unterminated string" in half.reject.message


def test_the_index_that_pandas_writes_is_not_a_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b",q,a\n0,x,y\n1,z,\n")
    assert values(path) == [{"q": "x", "a": "y"}, {"q": "z", "a": ""}]
    assert "the index that pandas writes" in open_source(path).notes[0]
    assert values(workbook(tmp_path / "a.xlsx", [None, "q"], [0, "x"], [1, "z"])) == [{"q": "x"}, {"q": "z"}]


def test_a_first_column_without_a_name_that_is_no_index_is_a_reject(tmp_path: Path) -> None:
    first, second = rows(write(tmp_path / "a.csv", b",a\n0,y\nSay hi,z\n"))
    assert first.value == {"a": "y"}
    assert second.reject is not None
    assert second.reject.reason == Reason.CSV
    assert "the first column has no name and holds 'Say hi'" in second.reject.message


def check_rejected(reason: Reason, bad: BadRow, path: Path) -> None:
    first, rejected, last = rows(path)
    assert (first.value, last.value) == ({"ok": 1}, {"ok": 2})
    assert rejected.reject is not None
    assert (rejected.reject.reason, rejected.reject.pointer) == (reason, bad.pointer)
    for part in bad.says:
        assert part in rejected.reject.message
    rejected.reject.message.encode()  # rejects are written as UTF-8
    assert len(rejected.reject.message) < 250
    assert rejected.raw == bad.raw


@pytest.mark.parametrize(("reason", "bad"), BAD_JSON_LINES, ids=[bad.name for _, bad in BAD_JSON_LINES])
def test_a_bad_line_is_rejected_and_its_neighbours_are_read(reason: Reason, bad: BadRow, tmp_path: Path) -> None:
    data = b'{"ok": 1}\n' + bad.raw + b'\r\n{"ok": 2}\n'
    check_rejected(reason, bad, write(tmp_path / "a.jsonl", data))


@pytest.mark.parametrize(("reason", "bad"), BAD_ELEMENTS, ids=[bad.name for _, bad in BAD_ELEMENTS])
def test_a_bad_element_is_rejected_and_its_neighbours_are_read(reason: Reason, bad: BadRow, tmp_path: Path) -> None:
    data = b'[{"ok": 1},\n' + bad.raw + b', {"ok": 2}]'
    check_rejected(reason, bad, write(tmp_path / "a.json", data))


# Bad files

ROW = b'{"a": 1}'
GZ, ZST = gzip.compress(ROW * 3), zstandard.compress(ROW * 3)

BAD_FILES: list[tuple[str, bytes, tuple[str, ...]]] = [
    # name, bytes, what the message says besides the name of the file
    ("empty.jsonl", b"", ("has no rows",)),
    ("empty.parquet", b"", ("has no rows",)),
    ("empty.csv.gz", gzip.compress(b""), ("has no rows",)),
    ("empty.xlsx.zst", zstandard.compress(b""), ("has no rows",)),
    ("mark.jsonl", UTF8_BOM, ("has no rows",)),
    ("blank.jsonl", b"\n \r\n\t\n", ("has no rows",)),
    ("blank.json", b" \n ", ("has no rows",)),
    ("mark.json", UTF8_BOM + b"\n", ("has no rows",)),
    ("blank.txt", b"\n\n \n", ("has no rows",)),
    ("blank.csv", b"\n\n", ("has no rows",)),
    ("header.csv", b"a,b\n", ("has no rows",)),
    ("header.tsv", b"a\tb", ("has no rows",)),
    ("array.json", b"[ ]\n", ("has no rows",)),
    ("array.jsonl", b"[]", ("has no rows",)),
    ("rows.yaml", b"a: 1", ("unknown kind of file '.yaml'", ".jsonl", ".parquet", ".xlsx", ".gz")),
    ("rows", b"a: 1", ("unknown kind of file ''", ".jsonl")),
    ("rows.gz", GZ, ("unknown kind of file '.gz'", ".jsonl")),
    ("rows.yaml.gz", GZ, ("unknown kind of file '.yaml.gz'", ".jsonl")),
    ("utf16.jsonl", '{"a": 1}'.encode("utf-16"), ("UTF-16", "iconv -f UTF-16 -t UTF-8")),
    ("utf16be.csv", b"\xfe\xff\0a", ("UTF-16",)),
    ("utf32.json.gz", gzip.compress("[1]".encode("utf-32")), ("UTF-32", "iconv -f UTF-32")),
    ("utf32be.txt", b"\0\0\xfe\xff\0\0\0a", ("UTF-32",)),
    ("named.jsonl", GZ, ("gzip data", "Rename", ".gz")),
    ("twice.jsonl.gz", gzip.compress(GZ), ("gzip data",)),
    ("named.json", ZST, ("zstd data", ".zst")),
    ("named.csv", b"PK\x03\x04rest of a zip", (".xlsx",)),
    ("data.json", b'{"version": 1,\n "data": [\n{"a": 1}]}', ("'version', 'data'", "jq", "'.[\"data\"][]'")),
    ("many.json", b'{\n"a":1,"b":1,"c":1,"d":1,"rows":[{"f":1}]}', ("'a', 'b', 'c', 'd', 'rows'",)),
    ("text.json", b"hello", ("array of rows was expected", "found 'hello'")),
    ("number.json", b"1", ("array of rows was expected", "found '1'")),
    ("open.json", b'[{"a": 1},\n{"a": 2}', ("never closed", "file ends at byte 19 (line 2)", "cut short")),
    (
        "open2.json",
        b'[{"a": 1},\n{"a": "',
        ("never closed", "row that begins at byte 11 (line 2)"),
    ),
    ("open3.json", b"[1, 2", ("never closed", "row that begins at byte 4 (line 1)")),
    ("open4.json", b"[", ("never closed", "byte 1")),
    ("open5.json", b'["a\\', ("never closed", "row that begins at byte 1")),
    ("unbalanced.json", b'[{"a": [1},\n{"a": 2}]', ("never closed", "last row begins at byte 1 (line 1)")),
    ("tail.json", b"[1]\n[2]", ("nothing was expected", "byte 4 (line 2)", "found '[2]'")),
    (
        "comma.json",
        b'[{"a": 1}\n{"a": 2}]',
        ("',' or ']' was", "byte 10 (line 2)", "found '{\"a\": 2}]'"),
    ),
    ("word.json", b'[1 "a"]', ("',' or ']' was expected", "byte 3 (line 1)")),
    ("close.json", b"[1}]", ("',' or ']' was expected", "byte 2")),
    ("trailing.json", b"[1,\n2,\n]", ("a row was expected", "byte 7 (line 3)", "found ']'")),
    ("leading.json", b"[,1]", ("a row was expected", "byte 1 (line 1)")),
    ("double.json", b"[1,,2]", ("a row was expected", "byte 3 (line 1)")),
    ("marked.json", UTF8_BOM + b"[1,,2]", ("byte 6 (line 1)",)),
    ("long.json", b"[" + b'{"a":\n1},' * 999 + b"]", ("a row was", "byte 8992 (line 1000)")),
    ("array_in.jsonl", b'[{"a": 1},\n{"a": 2}\n', ("never closed",)),
    ("same.csv", b"a,b,a\n1,2,3\n", ("columns 1 and 3", "'a'")),
    ("noname.csv", b"a,,b\n1,2,3\n", ("column 2", "no name")),
    ("spaces.tsv", b"a\t \n1\t2\n", ("column 2", "no name")),
    ("header8.csv", b"a,\xff\n1,2\n", ("header is not UTF-8", "byte 2")),
    ("badheader.csv", b'"a"b,c\n1,2\n', ("header is not a CSV record",)),
    ("mac.csv", b"a,b\r1,2\r", (r"lines end with \r alone",)),
    ("quote.csv", b'a,b\n1,2\n3,"4\n5,6\n', ("quote.csv:3: a quote", "begins here (byte 8)", "never closed", '""')),
    ("quote.csv.gz", gzip.compress(b'a,b\n1,2\n3,"4'), ("quote.csv.gz:3: ", "(byte 8)")),
    ("cut.jsonl.gz", GZ[:-8], ("cut short", "24 decompressed bytes", "gzip -t")),
    ("cut2.jsonl.gz", GZ + GZ[:5], ("cut short", "24 decompressed bytes")),
    ("cut.jsonl.zst", ZST[:-1], ("cut short", "0 decompressed bytes", "zstd -t")),
    ("cut2.jsonl.zst", ZST + ZST[:-1], ("cut short", "24 decompressed bytes")),
    ("cut.parquet.gz", GZ[:-1], ("cut short", "24 decompressed bytes")),
    ("sum.jsonl.gz", GZ[:-8] + b"\0\0\0\0" + GZ[-4:], ("not valid gz data", "incorrect data check")),
    ("tail.jsonl.gz", GZ + b"tail", ("not valid gz data", "24 decompressed bytes")),
    ("not.jsonl.gz", ROW, ("not valid gz data", "0 decompressed bytes")),
    ("zeros.jsonl.gz", bytes(100), ("not valid gz data", "0 decompressed bytes")),
    ("not.jsonl.zst", ROW, ("not valid zst data", "0 decompressed bytes")),
    ("not.parquet", b"hello" * 100, ("cannot be read as a Parquet file",)),
    ("not.parquet.gz", gzip.compress(b"hello" * 100), ("cannot be read as a Parquet file",)),
    ("not.arrow", b"hello" * 100, ("cannot be read as an Arrow file",)),
    ("not.feather", b"ARROW1\0\0" + b"hello" * 100, ("cannot be read as an Arrow file",)),
    ("feather1.feather", b"FEA1" + b"hello" * 100, ("cannot be read as an Arrow file",)),
    ("not.xlsx", b"hello" * 100, ("cannot be read as a workbook",)),
    ("zip.xlsx", b"PK\x03\x04" + b"hello" * 100, ("cannot be read as a workbook",)),
]


@pytest.mark.parametrize(("name", "data", "says"), BAD_FILES, ids=[name for name, _, _ in BAD_FILES])
def test_a_file_whose_rows_cannot_be_told_apart_is_one_message(
    name: str, data: bytes, says: tuple[str, ...], tmp_path: Path
) -> None:
    message = refusal(write(tmp_path / name, data))
    assert re.match(re.escape(str(tmp_path / name)) + r"(:\d+)?: ", message)
    for part in says:
        assert part in message
    message.encode()


def test_a_missing_file_is_one_message(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "a.jsonl")


def test_a_link_to_nothing_names_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "gone.jsonl")
    assert f"is a link to '{tmp_path / 'gone.jsonl'}', which does not exist" in refusal(tmp_path / "a.jsonl")


def test_links_in_a_circle_are_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "a.jsonl")
    assert "cannot be read (Too many levels of symbolic links)" in refusal(tmp_path / "a.jsonl")


def test_a_directory_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    assert "is a folder" in refusal(tmp_path / "a.jsonl")


def test_a_pipe_is_one_message_and_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    assert "is not a regular file" in refusal(tmp_path / "a.jsonl")


def test_a_path_that_cannot_exist_is_one_message(tmp_path: Path) -> None:
    assert "cannot be a path" in refusal(tmp_path / "a\0.jsonl")
    assert "cannot be read (File name too long)" in refusal(tmp_path / ("a" * 300 + ".jsonl"))


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """The rights of `nobody` for a while, because root may read everything."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def test_a_file_that_may_not_be_read_is_one_message() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.jsonl", ROW)
        path.chmod(0)
        Path(folder).chmod(0o755)
        with not_root():
            assert "permission denied" in refusal(path)


# Kinds and notes

IS_ARRAY = "read as one JSON array although it is named as JSON Lines"
IS_LINES = "read as JSON Lines although it is named .json"
HAS_MARK = "skipped the UTF-8 byte order mark at the start"


@pytest.mark.parametrize(
    ("name", "data", "kind", "notes"),
    [
        ("a.jsonl", ROW, FileKind.JSONL, ()),
        ("a.NDJSON", ROW, FileKind.JSONL, ()),
        ("a.json", b"[1]", FileKind.JSON, ()),
        ("a.csv", b"a\n1", FileKind.CSV, ()),
        ("a.tsv", b"a\n1", FileKind.TSV, ()),
        ("a.txt", b"a", FileKind.TXT, ()),
        ("a.parquet", b"?", FileKind.PARQUET, ()),
        ("a.arrow", b"?", FileKind.ARROW, ()),
        ("a.feather", b"?", FileKind.ARROW, ()),
        ("a.xlsx", b"?", FileKind.XLSX, ()),
        ("a.jsonl", UTF8_BOM + ROW, FileKind.JSONL, (HAS_MARK,)),
        ("a.json", ROW + b"\n" + ROW, FileKind.JSONL, (IS_LINES,)),
        ("a.json", b"\n\n" + ROW, FileKind.JSONL, (IS_LINES,)),
        ("a.json", b'{"a": NaN}\n' + ROW, FileKind.JSONL, (IS_LINES,)),
        ("a.json", b'[{"a": 1}]\n[{"a": 1}]', FileKind.JSON, ()),
        ("a.jsonl", b"[\n1]", FileKind.JSON, (IS_ARRAY,)),
        (
            "a.jsonl",
            b'[{"a": 1}, {}]\n',
            FileKind.JSON,
            (IS_ARRAY,),
        ),
        ("a.jsonl", b'[{"a": 1}]\n[{"a": 2}]\n', FileKind.JSONL, ()),  # rows that are lists of messages
        ("a.jsonl", b"[1, 2]\n", FileKind.JSONL, ()),
        (
            "a.json",
            UTF8_BOM + ROW,
            FileKind.JSONL,
            (
                HAS_MARK,
                IS_LINES,
            ),
        ),
    ],
)
@pytest.mark.parametrize("suffix", COMPRESS)
def test_the_name_decides_the_kind_unless_the_content_says_otherwise(
    name: str, data: bytes, kind: FileKind, notes: tuple[str, ...], suffix: str, tmp_path: Path
) -> None:
    source = open_source(write(tmp_path / (name + suffix), COMPRESS[suffix](data)))
    assert (source.kind, source.compression, source.notes) == (kind, suffix[1:], notes)


# Text


def test_the_text_of_a_row_is_never_changed(tmp_path: Path) -> None:
    text = " \u0000\u2028\u0085\ufeff\r\n\t e\u0301 é \U0001f600 \uffff "
    for ascii_only in (True, False):
        data = json.dumps([text], ensure_ascii=ascii_only).encode()
        assert values(write(tmp_path / "a.jsonl", data + b"\n1")) == [[text], 1]
        assert values(write(tmp_path / "a.json", b"[" + data + b"]")) == [[text]]
    line = text.replace("\r\n", "")
    assert values(write(tmp_path / "a.txt", f"{line}\r\n{line}\n{line}".encode())) == [{"text": line}] * 3


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("a.jsonl", b'\r\n {"a": 1} \r\n\n{"b":"\xe5\xa5\xbd"}', [(6, 8), (18, 11)]),
        ("a.json", b'[ 1,\r\n{"a":1} ,"x"]', [(5, 1), (9, 7), (18, 3)]),
        ("a.csv", b'a,b\r\n\r\n1,2\r\n"x\r\ny",3', [(10, 3), (15, 8)]),
        ("a.txt", b"\r\n a \r\n\nb", [(5, 3), (11, 1)]),
    ],
)
def test_offsets_count_every_byte_of_the_file(
    name: str, data: bytes, expected: list[tuple[int, int]], tmp_path: Path
) -> None:
    found = rows(write(tmp_path / name, UTF8_BOM + data))
    assert [(row.offset, row.length) for row in found] == expected


def test_only_a_newline_ends_a_line_of_text(tmp_path: Path) -> None:
    data = "a\rb\x0bc\x0cd\x85e\u2028f\ng\r\r\nh\r".encode()
    texts = [value["text"] for value in values(write(tmp_path / "a.txt", data))]
    assert texts == ["a\rb\x0bc\x0cd\x85e\u2028f", "g\r", "h\r"]


def test_a_line_of_text_that_is_not_utf8_is_rejected_alone(tmp_path: Path) -> None:
    good, bad = rows(write(tmp_path / "a.txt", b"good\nb\xc3d\n"))
    assert good.value == {"text": "good"}
    assert bad.reject is not None
    assert bad.reject.reason is Reason.NOT_UTF8
    assert "byte 1 of the row" in bad.reject.message


def test_values_that_are_not_objects_are_rows(tmp_path: Path) -> None:
    expected = [1, "a", None, True, [], [1, [2]], -1.5, {}]
    lines = [json.dumps(value).encode() for value in expected]
    assert values(write(tmp_path / "a.jsonl", b"\n".join(lines))) == expected
    assert values(write(tmp_path / "a.json", b"[" + b",".join(lines) + b"]")) == expected


@pytest.mark.parametrize(
    "number",
    [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**18, 10**30 + 1, -(10**4000)],
)
def test_integers_are_exact_however_long(number: int, tmp_path: Path) -> None:
    for text in (f'{{"a": [{number}], "b": "{number}"}}', f'{{"a":[{number}],"b":"{number}"}}'):
        assert values(write(tmp_path / "a.jsonl", text.encode())) == [{"a": [number], "b": str(number)}]


@pytest.mark.parametrize("text", ["[0.1234567890123456789012]", "[123456789012345678901e-3]", "[1E5, -0.0, 5e-324]"])
def test_floats_are_the_nearest_ones_however_long(text: str, tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.jsonl", text.encode() + b"\n1"))[0] == json.loads(text)


@pytest.mark.parametrize("depth", [200, 254, 255, MAX_DEPTH])
def test_rows_may_be_nested_up_to_the_limit(depth: int, tmp_path: Path) -> None:
    text = b"[" * depth + b"]" * depth
    assert values(write(tmp_path / "a.jsonl", b"1\n" + text)) == [1, json.loads(text)]


def test_brackets_and_quotes_inside_strings_are_text(tmp_path: Path) -> None:
    expected = ['[{"', "\\", '\\"', "],", {"}]": '\\\\"['}, '"', [",", {"a": "\\"}]]
    for ascii_only in (True, False):
        data = json.dumps(expected, ensure_ascii=ascii_only, indent=1).encode()
        for target in (1, 2, 3, 5, 7, 100):
            assert values(write(tmp_path / "a.json", data), target) == expected


# CSV


def test_every_csv_value_is_text(tmp_path: Path) -> None:
    data = 'id,"na,me",x\r\n001,"a ""q""\r\nb", 1.50 \r\n,NaN,""\n"",null,é'.encode()
    assert values(write(tmp_path / "a.csv", data)) == [
        {"id": "001", "na,me": 'a "q"\r\nb', "x": " 1.50 "},
        {"id": "", "na,me": "NaN", "x": ""},
        {"id": "", "na,me": "null", "x": "é"},
    ]


def test_a_record_of_empty_fields_is_a_row_and_a_blank_line_is_not(tmp_path: Path) -> None:
    assert values(write(tmp_path / "a.tsv", b"a\tb\n\n\t\n  \n\r\n")) == [{"a": "", "b": ""}]
    assert values(write(tmp_path / "a.csv", b'\n\na\n""\n\nx')) == [{"a": ""}, {"a": "x"}]


@pytest.mark.parametrize(
    ("record", "reason", "says"),
    [
        (b"1", Reason.CSV, ("2 fields were expected (a, b), found 1",)),
        (b"1,2,", Reason.CSV, ("2 fields were expected (a, b), found 3",)),
        (b'"1"x,2', Reason.CSV, ("not a CSV record", "',' expected after '\"'")),
        (b'1,"2\n3"x', Reason.CSV, ("not a CSV record",)),
        (b"1\r2,3", Reason.CSV, ("new-line character",)),
        (b"1,\xff", Reason.NOT_UTF8, ("0xff", "byte 2 of the row")),
        (b'"1\n\xe4",2', Reason.NOT_UTF8, ("0xe4", "byte 3 of the row")),
    ],
)
def test_a_bad_record_is_rejected_and_its_neighbours_are_read(
    record: bytes, reason: Reason, says: tuple[str, ...], tmp_path: Path
) -> None:
    for target in (1, 1000):
        path = write(tmp_path / "a.csv", b"a,b\nx,y\n" + record + b"\r\nx,y\n")
        first, rejected, last = rows(path, target)
        assert first.value == last.value == {"a": "x", "b": "y"}
        assert rejected.raw == record
        assert rejected.reject is not None
        assert rejected.reject.reason is reason
        for part in says:
            assert part in rejected.reject.message


# The same rows, however the file is cut or compressed

ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.text('\\"[]{},: \n\r\tué', max_size=12)
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=8,
)
TARGETS = st.sampled_from([1, 2, 3, 4, 5, 8, 13, 40, 100, 1 << 20])
LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n\t\r\n"])


def check_the_same_everywhere(name: str, data: bytes, expected: list[Any], target: int) -> None:
    """The rows are the expected ones and the slices of the file, for each compression; so are the units."""
    with tempfile.TemporaryDirectory() as folder:
        seen: list[list[Unit]] = []
        for suffix, compress in COMPRESS.items():
            middle = len(data) // 2  # two gzip members, two zstd frames
            packed = compress(data[:middle]) + compress(data[middle:])
            path = write(Path(folder) / (name + suffix), packed)
            assert values(path, target) == expected
            seen.append([replace(unit, path="", data=None) for unit in units(path, target)])
        assert seen[0] == seen[1] == seen[2]
        for row in rows(Path(folder) / name, target):
            assert row.offset is not None
            assert row.length is not None
            if name.endswith(("l", "n")):
                assert json.loads(data[row.offset : row.offset + row.length]) == row.value


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(ANY_VALUE, st.booleans(), LINE_ENDS), min_size=1, max_size=8),
    st.booleans(),
    st.booleans(),
    TARGETS,
)
def test_json_lines_are_the_same_rows_for_any_cut(
    parts: list[tuple[Any, bool, bytes]], marked: bool, ended: bool, target: int
) -> None:
    data = b'{"first": 0}\n' + b"".join(
        json.dumps(value, ensure_ascii=is_ascii).encode() + end for value, is_ascii, end in parts
    )
    data = (UTF8_BOM if marked else b"") + (data if ended else data.rstrip())
    check_the_same_everywhere("a.jsonl", data, [{"first": 0}, *(value for value, _, _ in parts)], target)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(ANY_VALUE, min_size=1, max_size=8),
    st.booleans(),
    st.sampled_from([None, 0, 1, "\t"]),
    st.booleans(),
    TARGETS,
)
def test_arrays_are_the_same_rows_for_any_cut(
    expected: list[Any], is_ascii: bool, indent: int | str | None, marked: bool, target: int
) -> None:
    text = json.dumps(expected, ensure_ascii=is_ascii, indent=indent)
    data = (UTF8_BOM if marked else b"") + text.encode().replace(b"\n", b"\r\n") + b" \n"
    check_the_same_everywhere("a.json", data, expected, target)


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.lists(ANY_TEXT, min_size=2, max_size=2), min_size=1, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    TARGETS,
)
def test_csv_records_are_the_same_rows_for_any_cut(
    records: list[list[str]], end: str, quote_all: bool, target: int
) -> None:
    if not quote_all:  # the csv module would not quote them, and not read them unquoted
        records = [[field.replace("\r", "") for field in record] for record in records]
    quoting = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting)
        writer.writerows([["a b", '"c"\n'], *records])
        expected = [{"a b": first, '"c"\n': second} for first, second in records]
        check_the_same_everywhere(name, out.getvalue().encode(), expected, target)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n")), min_size=1), TARGETS)
def test_lines_of_text_are_the_same_rows_for_any_cut(lines: list[str], target: int) -> None:
    data = b"first\n" + "\r\n".join(lines).encode()
    expected = [{"text": "first"}]
    expected += [{"text": line} for line in lines if line.encode().strip()]
    check_the_same_everywhere("a.txt", data, expected, target)


def reference_elements(data: bytes) -> list[bytes]:
    """The elements of an array, found one byte at a time."""
    found, begin, depth, quoted, at = [], 1, 0, False, 1
    while at < len(data):
        byte = data[at : at + 1]
        if quoted:
            at += byte == b"\\"
            quoted = byte != b'"'
        elif byte == b'"':
            quoted = True
        elif byte in (b"[", b"{"):
            depth += 1
        elif byte in (b"]", b"}") and depth:
            depth -= 1
        elif (byte == b"," and not depth) or byte == b"]":
            found.append(data[begin:at].strip())
            begin = at + 1
        at += 1
    return found


@settings(max_examples=1000)
@given(st.lists(st.text('ab\\\\"[]{},: \n', max_size=25).map(str.encode)), st.integers(1, 9))
def test_the_scanner_agrees_with_a_slow_one_on_any_soup(soup: list[bytes], size: int) -> None:
    data = b"[" + b",".join(b"{" + part + b"}" for part in soup) + b"]"
    blocks = [data[at : at + size] for at in range(0, len(data), size)]
    try:
        spans = list(Elements("x", 0).spans(blocks))
    except InputError as error:
        with pytest.raises(InputError) as caught:
            list(Elements("x", 0).spans([data]))
        assert caught.value.what.split(", found")[0] == error.what.split(", found")[0]
    else:
        assert spans == list(Elements("x", 0).spans([data]))
        assert [data[begin:end] for begin, end in spans] == (reference_elements(data) if soup else [])


@st.composite
def objects_with_keys_twice(draw: st.DrawFn) -> tuple[bytes, bool]:
    """JSON in any spelling, and whether an object in it repeats a key."""
    space = st.sampled_from(["", " ", "\t"])

    def string() -> tuple[str, str]:
        text = draw(st.text('a:"\\ ', max_size=3))
        spellings = ([json.dumps(c)[1:-1], f"\\u{ord(c):04x}", f"\\u{ord(c):04X}"] for c in text)
        spelled = [draw(st.sampled_from(ways)) for ways in spellings]
        return text, '"' + "".join(spelled) + '"'

    def value(depth: int) -> tuple[str, bool]:
        if depth == 3 or draw(st.booleans()):
            return string()[1], False
        pairs = [(string(), value(depth + 1)) for _ in range(draw(st.integers(0, 3)))]
        keys = [text for (text, _), _ in pairs]
        members = [f"{key}{draw(space)}:{draw(space)}{inner}" for (_, key), (inner, _) in pairs]
        twice = len(set(keys)) < len(keys) or any(inner for _, (_, inner) in pairs)
        return "{" + ",".join(members) + "}", twice

    text, twice = value(0)
    return text.encode(), twice


@settings(max_examples=1000)
@given(objects_with_keys_twice())
def test_a_key_twice_is_found_in_any_spelling_and_never_where_there_is_none(case: tuple[bytes, bool]) -> None:
    raw, twice = case
    (row,) = read(unit_of(FileKind.JSONL, raw))
    assert (row.reject is not None and row.reject.reason is Reason.DUPLICATE_KEY) == twice
    if not twice:
        assert row.value == json.loads(raw)


def unit_of(kind: FileKind, data: bytes) -> Unit:
    return Unit(path="x", kind=kind, offset=0, length=len(data), digest="", data=data)


@settings(max_examples=1000)
@given(st.binary(max_size=30) | st.text('{}[]":, 0129-eE.+\\ud8a\n', max_size=30).map(str.encode))
def test_a_row_is_read_exactly_if_the_json_module_reads_it_without_complaint(raw: bytes) -> None:
    for row in read(unit_of(FileKind.JSONL, raw)):
        if row.reject is None:
            assert repr(row.value) == repr(json.loads(row.raw))
        else:
            assert row.reject.message
            assert row.value is None


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([kind.value for kind in FileKind]),
    st.sampled_from(list(COMPRESS)),
    st.binary(max_size=60) | st.text('{}[]":,\t\r\n a1\\', max_size=60).map(str.encode),
)
def test_any_bytes_under_any_name_are_rows_or_one_message(kind: str, suffix: str, data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.suppress(InputError):
            rows(write(Path(folder) / f"a.{kind}{suffix}", COMPRESS[suffix](data)))
        if suffix:
            with contextlib.suppress(InputError):
                rows_of_broken(write(Path(folder) / f"b.{kind}{suffix}", data))


def test_no_pattern_repeats_a_group_possessively() -> None:
    """Python 3.11.0 to 3.11.4 match `(...)*+` wrongly, so that strings of JSON had no end; Debian 12 has 3.11.2."""
    root = Path(__file__).parents[1]
    for path in (one for room in ("compiler", "schemas", "trainer") for one in (root / room).rglob("*.py")):
        with path.open("rb") as file:
            for token in tokenize.tokenize(file.readline):
                is_pattern = token.type == tokenize.STRING and not token.string.endswith('"""')
                assert not (is_pattern and re.search(r"\)[*+?]\+", token.string)), f"{path}:{token.start[0]}"
    for room in (compiler, schemas):  # patterns that are put together of several strings
        for found in pkgutil.walk_packages(room.__path__, f"{room.__name__}."):
            for name, value in vars(importlib.import_module(found.name)).items():
                if isinstance(value, re.Pattern):
                    text = value.pattern if isinstance(value.pattern, str) else value.pattern.decode("latin-1")
                    assert not re.search(r"(?<!\\)\)[*+?]\+", text), f"{found.name}.{name}"


# Units


def test_units_are_about_as_long_as_asked_for_and_never_split_a_row(tmp_path: Path) -> None:
    lines = [json.dumps({"n": n, "text": "x" * (n % 100)}).encode() for n in range(2000)]
    lines[1000] = json.dumps("y" * 50_000).encode()
    for name, data in (
        ("a.jsonl", b"\n".join(lines)),
        ("a.json", b"[" + b",\n".join(lines) + b"]"),
        ("a.txt", b"\n".join(lines)),
        ("a.csv", b"text\n" + b"\n".join(b'"x' + b"\n" * (n % 100) + b'"' for n in range(2000))),
    ):
        lengths = sorted(unit.length for unit in units(write(tmp_path / name, data), 4000))
        assert all(1000 <= length < 8200 for length in lengths[1:-1])
        assert lengths[-1] > 50_000 or name == "a.csv"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_row_that_is_put_in_front_moves_few_units_although_rows_end_alike(name: str, tmp_path: Path) -> None:
    rows = [{"n": n, "text": "x" * (n * 37 % 501), "source": "the same name of a source, " * 4} for n in range(3000)]
    digests = []
    for some in (rows, [{"first": 1}, *rows]):
        lines = list(map(json.dumps, some))
        text = "[" + ",\n".join(lines) + "]" if name == "a.json" else "\n".join(lines)
        digests.append({unit.digest for unit in units(write(tmp_path / name, text.encode()), 20_000)})
    before, after = digests
    assert len(before) > 40
    assert len(before - after) <= 6


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_cutting_a_large_file_takes_little_memory(name: str, suffix: str, tmp_path: Path) -> None:
    words = random.Random(1).choices([f"word{n}" for n in range(500)], k=10_000)
    lines = [json.dumps({"text": " ".join(words[n % 9900 :][:100])}).encode() for n in range(20_000)]
    if name == "a.csv":
        lines = [b'"' + line.replace(b'"', b'""') + b'"' for line in lines]
    data = b"[" + b",\n".join(lines) + b"]" if name == "a.json" else b"\n".join(lines)
    source = open_source(write(tmp_path / (name + suffix), COMPRESS[suffix](data)))
    tracemalloc.start()
    length = sum(unit.length for unit in cut(source, 1 << 16))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length > 0.99 * len(data)
    assert peak < len(data) / 10


def test_a_file_that_is_much_larger_than_it_seems_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Expansion, "most", 10**6)  # as with --max-expansion
    data = (b"x" * 999 + b"\n") * 100_000
    source = open_source(write(tmp_path / "a.txt.zst", zstandard.compress(data)))
    tracemalloc.start()
    count = sum(1 for _ in cut(source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count >= 48  # equal lines end alike: each unit grows to twice the target
    assert peak < len(data) / 4


def test_a_unit_can_be_sent_to_another_process(tmp_path: Path) -> None:
    for suffix, compress in COMPRESS.items():
        (unit,) = units(write(tmp_path / f"a.jsonl{suffix}", compress(ROW)))
        sent = pickle.loads(pickle.dumps(unit))
        assert [row.value for row in read(sent)] == [{"a": 1}]
        assert (sent.data is None) == (suffix == "")


def test_the_digest_names_what_decides_the_rows_and_nothing_else(tmp_path: Path) -> None:
    def digests(name: str, data: bytes) -> list[str]:
        return [unit.digest for unit in units(write(tmp_path / name, data), 8)]

    assert digests("a.jsonl", ROW + b"\n" + ROW + b"\n") == digests("b.jsonl", ROW + b"\n") * 2
    assert digests("a.csv", b"a,b\n1,2\n") != digests("b.csv", b"a,c\n1,2\n")
    assert digests("a.csv", b"a,b\n1,2\n") != digests("a.tsv", b"a,b\n1,2\n")
    assert digests("a.jsonl", ROW) != digests("a.txt", ROW)


def test_a_file_that_changes_after_it_was_cut_is_one_message(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROW)
    (unit,) = units(path)
    write(path, b'{"a": 2}')
    with pytest.raises(InputError, match="changed since it was cut into units"):
        list(read(unit))
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        list(read(unit))


# Tables


def parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def arrow_bytes(table: pa.Table, *, stream: bool) -> bytes:
    sink = io.BytesIO()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


def parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=2)
    return sink.getvalue()


def test_a_null_in_a_table_is_a_key_that_the_row_does_not_have(tmp_path: Path) -> None:
    expected: list[Any] = [
        {
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "calls": [{"name": "f"}]}],
            "n": 1,
        },
        {"messages": [], "extra": {"a": {"c": 1}}},
        {"messages": [None], "extra": {}},
        {},
    ]
    table = pa.Table.from_pylist(expected, schema=pa.schema({
        "messages": pa.list_(pa.struct({
            "role": pa.string(), "content": pa.string(), "calls": pa.list_(pa.struct({"name": pa.string()})),
        })),
        "n": pa.int64(),
        "extra": pa.struct({"a": pa.struct({"b": pa.string(), "c": pa.int8()})}),
        "never": pa.null(),
    }))  # fmt: skip
    assert values(parquet(tmp_path / "a.parquet", table)) == expected


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("name", "as_bytes"),
    [
        ("a.parquet", parquet_bytes),
        ("a.arrow", lambda table: arrow_bytes(table, stream=False)),
        ("a.feather", lambda table: arrow_bytes(table, stream=False)),
        ("a.arrow", lambda table: arrow_bytes(table, stream=True)),
    ],
    ids=["parquet", "arrow file", "feather", "arrow stream"],
)
def test_tables_are_read_group_by_group_from_any_container(
    name: str, as_bytes: Callable[[pa.Table], bytes], suffix: str, tmp_path: Path
) -> None:
    expected = [{"n": n, "text": f"text {n}", "tags": ["a"] * n} for n in range(5)]
    data = as_bytes(pa.Table.from_pylist(expected))
    path = write(tmp_path / (name + suffix), COMPRESS[suffix](data))
    found = units(path)
    assert [(unit.offset, unit.length) for unit in found] == [(0, 1), (1, 1), (2, 1)]
    assert [len(list(read(unit))) for unit in found] == [2, 2, 1]
    assert values(path) == expected
    plain = units(write(tmp_path / f"b{name}", data))
    assert [unit.digest for unit in found] == [unit.digest for unit in plain]
    assert len({unit.digest for unit in found}) == 3
    (row, *_) = read(found[1])
    assert (row.index, row.offset, row.length) == (0, None, None)
    assert orjson.loads(row.raw) == expected[2]


def test_groups_without_rows_are_passed_over(tmp_path: Path) -> None:
    table = pa.table({"a": pa.array([], pa.int64())})
    assert "has no rows" in refusal(parquet(tmp_path / "a.parquet", table))
    assert "has no rows" in refusal(write(tmp_path / "a.arrow", arrow_bytes(table, stream=True)))


def test_what_json_has_no_type_for_becomes_text(tmp_path: Path) -> None:
    zone = dt.timezone(dt.timedelta(hours=8))
    at = dt.datetime(2024, 1, 2, 3, 4, 5, 678, zone)
    columns: dict[str, tuple[pa.Array, Any]] = {
        "seconds": (pa.array([dt.datetime(2024, 1, 2)], pa.timestamp("s")), "2024-01-02 00:00:00"),
        "zone": (pa.array([at], pa.timestamp("us", "Asia/Shanghai")), "2024-01-02 03:04:05.000678+08:00"),
        "nano": (pa.array([1_000_001_999], pa.timestamp("ns")), "1970-01-01 00:00:01.000001"),
        "nanos": (pa.array([[1_999]], pa.list_(pa.timestamp("ns"))), ["1970-01-01 00:00:00.000001"]),
        "date": (pa.array([dt.date(2024, 1, 2)]), "2024-01-02"),
        "time": (pa.array([1_999], pa.time64("ns")), "00:00:00.000001"),
        "decimal": (pa.array([decimal.Decimal("1.50")]), "1.50"),
        "binary": (pa.array(["é".encode()], pa.binary()), "é"),
        "half": (pa.array([np.float16(1.5)], pa.float16()), 1.5),
        "yes": (pa.array([True]), True),
        "category": (pa.array(["x"]).dictionary_encode(), "x"),
        "map": (pa.array([[("b", 1), ("a", None)]], pa.map_(pa.string(), pa.int8())), {"b": 1, "a": None}),
        "empty map": (pa.array([[]], pa.map_(pa.string(), pa.int8())), {}),
        "key": (pa.array([[(1, dt.date(2024, 1, 2))]], pa.map_(pa.int8(), pa.date32())), {"1": "2024-01-02"}),
        "in struct": (pa.array([{"d": decimal.Decimal("2.0"), "x": None}]), {"d": "2.0"}),
    }
    table = pa.table({name: array for name, (array, _) in columns.items()})
    expected = {name: value for name, (_, value) in columns.items()}
    assert values(write(tmp_path / "a.arrow", arrow_bytes(table, stream=False))) == [expected]
    assert values(parquet(tmp_path / "a.parquet", table.drop_columns(["half"]))) == [
        {name: value for name, value in expected.items() if name != "half"}
    ]


def test_nan_in_a_table_stays_for_the_schema_to_reject(tmp_path: Path) -> None:
    (row,) = rows(parquet(tmp_path / "a.parquet", pa.table({"a": [math.nan]})))
    assert math.isnan(row.value["a"])
    assert row.raw == b'{"a":null}'


def raw_strings(*texts: bytes) -> pa.Array:
    """An Arrow column of text without the check that it is UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


@pytest.mark.parametrize(
    ("column", "reason", "pointer", "says"),
    [
        (raw_strings(b"ok", b"\xff"), Reason.NOT_UTF8, "/x~1y", "not UTF-8"),
        (pa.array([b"ok", b"\x89PNG"], pa.binary()), Reason.NOT_UTF8, "/x~1y", "leave the column out"),
        (pa.array([0, 2**62], pa.timestamp("us")), Reason.JSON, "/x~1y", "timestamp[us]"),
        (
            pa.array([[("a", 1)], [("b", 1), ("b", 2)]], pa.map_(pa.string(), pa.int8())),
            Reason.DUPLICATE_KEY,
            "/x~1y",
            "'b'",
        ),
    ],
    ids=["text", "binary", "year", "map"],
)
def test_a_cell_that_cannot_be_json_rejects_its_row_alone(
    column: pa.Array, reason: Reason, pointer: str, says: str, tmp_path: Path
) -> None:
    table = pa.table({"n": [1, 2], "x/y": column})
    for path in (
        write(tmp_path / "a.arrow", arrow_bytes(table, stream=False)),
        write(tmp_path / "b.arrow.gz", gzip.compress(arrow_bytes(table, stream=True))),
        parquet(tmp_path / "a.parquet", table),
    ):
        good, bad = rows(path)
        assert good.value["n"] == 1
        assert bad.reject is not None
        assert (bad.reject.reason, bad.reject.pointer) == (reason, pointer)
        assert says in bad.reject.message
        assert bad.raw == b'{"n":2}'


def test_tables_that_cannot_be_objects_are_one_message(tmp_path: Path) -> None:
    one = pa.array([1])
    twice = pa.Table.from_arrays([one, one], names=["a", "a"])
    message = refusal(write(tmp_path / "a.arrow", arrow_bytes(twice, stream=False)))
    assert "column /a exists more than once" in message
    inner = pa.table({"s": pa.StructArray.from_arrays([one, one], names=["a", "a"])})
    message = refusal(write(tmp_path / "b.arrow", arrow_bytes(inner, stream=True)))
    assert "column /s/a exists more than once" in message
    union = pa.table({"u": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [one])})
    assert "column /u is a union" in refusal(write(tmp_path / "c.arrow", arrow_bytes(union, stream=False)))


def test_a_damaged_table_is_one_message(tmp_path: Path) -> None:
    data = parquet_bytes(pa.table({"a": ["some text"] * 100}))
    broken = data[:10] + b"\xff" * 30 + data[40:]
    assert "cannot be read as a Parquet file" in refusal(write(tmp_path / "a.parquet", broken))
    for stream in (True, False):  # an offset far beyond the text: reading it would crash
        data = arrow_bytes(pa.table({"a": ["x"]}), stream=stream)
        offsets = b"\0\0\0\0\1\0\0\0x"
        assert data.count(offsets) == 1
        broken = data.replace(offsets, b"\0\0\0\0\xff\xff\xff\x7fx")
        assert "record batch 0 is corrupt" in refusal(write(tmp_path / "a.arrow", broken))
        renamed = arrow_bytes(pa.table({"name": ["x"]}), stream=stream).replace(b"name", b"n\xffme")
        assert "cannot be read as an Arrow file" in refusal(write(tmp_path / "a.arrow", renamed))


# Workbooks


def workbook(path: Path, *lines: list[Any]) -> Path:
    book = openpyxl.Workbook()
    for line in lines:
        book.active.append(line)
    book.create_sheet("second").append(["not", "read"])
    book.save(path)
    return path


def test_cells_are_what_a_person_reads(tmp_path: Path) -> None:
    path = workbook(
        tmp_path / "a.xlsx",
        ["text", "number", "flag", "when", 2024, "end"],
        [" x \ny ", 3, True, dt.datetime(2024, 1, 2, 3, 4, 5), "é", None],
        [],
        ["", 3.5, False, dt.date(2024, 1, 2), 0.1 + 0.2, "last"],
        ["007", -2.0, None, dt.time(3, 4), 1234567890123],
    )
    expected = [
        {
            "text": " x \ny ",
            "number": "3",
            "flag": True,
            "when": "2024-01-02T03:04:05",
            "2024": "é",
            "end": "",
        },
        {"text": "", "number": "3.5", "flag": False, "when": "2024-01-02", "2024": "0.3", "end": "last"},
        {"text": "007", "number": "-2", "flag": "", "when": "03:04:00", "2024": "1234567890123", "end": ""},
    ]
    assert values(path) == expected
    packed = write(tmp_path / "a.xlsx.zst", zstandard.compress(path.read_bytes()))
    assert values(packed) == expected
    assert [unit.digest for unit in units(packed)] == [unit.digest for unit in units(path)]
    assert units(path)[0].header == ("text", "number", "flag", "when", "2024", "end")


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([], "has no rows"),
        ([["a", "b"]], "has no rows"),
        ([["a", None, "c"], [1, 2, 3]], "column 2 of the header has no name"),
        ([["a", "b"], [1, 2, 3]], "column 3 of the header has no name"),
        ([["a", "a"], [1, 2]], "columns 1 and 2 of the header are both named 'a'"),
    ],
)
def test_a_sheet_without_a_table_is_one_message(lines: list[list[Any]], says: str, tmp_path: Path) -> None:
    assert says in refusal(workbook(tmp_path / "a.xlsx", *lines))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_that_changes_after_it_was_cut_is_one_message(name: str, tmp_path: Path) -> None:
    path = tmp_path / name

    def write_table(value: str) -> None:
        table = pa.table({"a": [value]})
        if name.endswith("parquet"):
            pq.write_table(table, path)
        else:
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)

    write_table("before")
    (unit,) = units(path)
    assert [row.value for row in read(unit)] == [{"a": "before"}]
    write_table("after!")  # as long as before
    with pytest.raises(InputError, match="changed since it was cut into units"):
        list(read(unit))


def test_a_workbook_that_changes_after_it_was_cut_is_one_message(tmp_path: Path) -> None:
    path = workbook(tmp_path / "a.xlsx", ["a"], [1])
    (unit,) = units(path)
    workbook(path, ["a"], [2])
    with pytest.raises(InputError, match="changed since it was cut into units"):
        list(read(unit))
