"""Places: what a message prints is where the row is, by an independent count, and what `cli inspect --row` takes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli import main
from compiler.read import cut, open_source, read
from schemas.places import FileLines, Place, Places, parse, spell
from tests.support.command import runner

Run = Callable[..., Result]
Row = dict[str, Any]

ROWS = [{"instruction": word, "output": f"to {word}"} for word in ("zero", "one", "two", "three", "four", "five")]
ROWS[3] = {"instruction": "broken", "output": ""}
"""An empty reply is rejected in every kind of file, at `/output`."""
LINES = [json.dumps(row) for row in ROWS]
BLANKS = "\r\n\n" + "\r\n  \t\r\n".join(LINES[:4]) + "\n\n\n" + "\n".join(LINES[4:])
"""Rows on lines 3, 5, 7, 9, 12 and 13, with ends of both kinds and none at the end."""


def as_csv(delimiter: str) -> str:
    """A blank line, a header, and records with quoted cells of one to six lines, some of them blank."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    writer.writerow(["instruction", "output"])
    for n, row in enumerate(ROWS):
        writer.writerow([row["instruction"] + "\n\n" * (n % 3) + ".", row["output"] and row["output"] + "\r\n" * n])
        file.write("\r\n" * (n % 2))
    return "\r\n" + file.getvalue()


def line(data: bytes, number: int) -> str:
    """The line, as sed counts."""
    found = subprocess.run(["sed", "-n", f"{number}p"], input=data, capture_output=True, check=True).stdout
    return found.decode("utf-8", "replace")


def from_line(data: bytes, number: int) -> str:
    """The text from that line on."""
    return "".join(data.decode().splitlines(keepends=True)[number - 1 :])


def by_line(data: bytes, place: str) -> str:
    return line(data, int(place.removeprefix(":").split("#")[0]))


def by_object(data: bytes, place: str) -> str:
    number = int(place.removeprefix(":").split("#")[0])
    value, _ = json.JSONDecoder().raw_decode(from_line(data, number))
    return json.dumps(value)


def by_record(data: bytes, place: str) -> str:
    number, delimiter = int(place.removeprefix(":").split("#")[0]), "\t" if b"\t" in data else ","
    return " ".join(next(csv.reader(io.StringIO(from_line(data, number), newline=""), delimiter=delimiter)))


def by_index(rows: list[Any], place: str) -> str:
    assert place.startswith("#/")
    return json.dumps(rows[int(place.split("/")[1])])


def by_pointer(data: bytes, place: str) -> str:
    return by_index(json.loads(data), place)


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=2)


def arrow(path: Path) -> None:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(str(path), table.schema) as file:
        file.write_table(table, 2)


def xlsx(path: Path) -> None:
    book = openpyxl.Workbook()
    for cells in ([], ["instruction", "output"], *([*row.values()] for row in ROWS[:3]), []):
        book.active.append(cells)
    for row in ROWS[3:]:
        book.active.append([*row.values()])
    book.save(path)


PRETTY = "\n".join(json.dumps(row, indent=n % 3 + 1) + "\n" * (n % 2) for n, row in enumerate(ROWS))
TEXTS = "zero\n\n one \r\n\x0c\ntwo\nbroken \xff\nfour\nfive".encode("latin-1")
Find = Callable[[bytes, str], str]
TEXT_FILES: dict[str, tuple[bytes, Find]] = {
    "lines.jsonl": ("\n".join(LINES).encode(), by_line),
    "blank.jsonl": (BLANKS.encode(), by_line),
    "marked.jsonl": (b"\xef\xbb\xbf" + BLANKS.encode(), by_line),
    "blank.ndjson.gz": (BLANKS.encode(), by_line),
    "blank.jsonl.zst": (BLANKS.encode(), by_line),
    "lines.json": (BLANKS.encode(), by_line),
    "array.json": (json.dumps(ROWS, indent=2).encode(), by_pointer),
    "array.jsonl": (b"[\n" + b",\n\n".join(text.encode() for text in LINES) + b"]", by_pointer),
    "array.json.gz": (json.dumps(ROWS).encode(), by_pointer),
    "pretty.json": (PRETTY.encode(), by_object),
    "pretty.json.zst": (b"\n" + PRETTY.encode(), by_object),
    "cells.csv": (as_csv(",").encode(), by_record),
    "cells.csv.gz": (as_csv(",").encode(), by_record),
    "cells.tsv": (as_csv("\t").encode(), by_record),
    "texts.txt": (TEXTS, by_line),
}
TABLES: dict[str, Callable[[Path], None]] = {"rows.parquet": parquet, "rows.arrow": arrow, "rows.xlsx": xlsx}


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shown(run: Run, out: Path, *options: object) -> list[Row]:
    return [json.loads(text) for text in run("inspect", out, "--json", *options).stdout.splitlines()]


def check_places(run: Run, out: Path, file: str, find: Callable[[str], str]) -> None:
    """Every row and the reject are at their places, and are found by them."""
    [reject] = shown(run, out, "--rejected")
    place = run("inspect", out, "--rejected").stdout.split("  ")[0]
    assert place == reject["place"]
    assert "broken" in find(place.removeprefix(file))
    assert reject["row"] == 3
    assert (reject["line"] is None) == (f"{file}#/3" in place)
    for text in (place, place.removesuffix(reject["pointer"]), f"{file}#/3"):
        message = run("inspect", out, "--row", text, code=2).stderr
        assert message.startswith(f"error: --row {text}: it is not in train\n  It was rejected ({reject['reason']}: ")
    kept = shown(run, out, "--limit", 9)
    words = {0: "zero", 1: "one", 2: "two", 4: "four", 5: "five"}
    assert {row["source_row"] for row in kept} == set(words)
    for row in kept:
        assert words[row["source_row"]] in find(row["place"].removeprefix(file))
        for text in (row["place"], row["place"] + ("#" if row["line"] else "") + "/output"):
            assert shown(run, out, "--row", text) == [row]
        assert f"━━ {row['place']} ━━" in run("inspect", out, "--row", row["place"]).stdout


@pytest.mark.parametrize("name", TEXT_FILES)
def test_the_place_of_a_row_in_a_text_file_is_where_it_is(run: Run, tmp_path: Path, name: str) -> None:
    data, find = TEXT_FILES[name]
    pack = {"gz": gzip.compress, "zst": zstandard.compress}.get(name.rpartition(".")[2], bytes)
    (tmp_path / name).write_bytes(pack(data))
    failed = run("compile", name, "-o", "out", code=3).stderr
    run("compile", name, "-o", "out", "--max-rejects", 1)
    check_places(run, tmp_path / "out", name, partial(find, data))
    [reject] = shown(run, tmp_path / "out", "--rejected")
    assert f"\nerror: {reject['place']}: {reject['reason']}: " in failed
    [kept] = map(json.loads, (tmp_path / "out" / "rejects.jsonl").read_text("utf-8").splitlines())
    assert (kept["row"], kept["line"]) == (3, reject["line"])


@pytest.mark.parametrize("name", TABLES)
def test_the_place_of_a_row_in_a_table_is_its_number(run: Run, tmp_path: Path, name: str) -> None:
    TABLES[name](tmp_path / name)
    run("compile", name, "-o", "out", "--max-rejects", 1)
    check_places(run, tmp_path / "out", name, partial(by_index, ROWS))


@pytest.mark.parametrize("name", ["blank.jsonl", "array.json", "pretty.json"])
def test_rows_from_a_pipe_have_places_in_what_was_piped(run: Run, tmp_path: Path, name: str) -> None:
    data, find = TEXT_FILES[name]
    command = ["compile", "-", "-o", "out", "--cache", "cache", "--max-rejects", "1"]
    result = runner().invoke(main, command, input=data, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    check_places(run, tmp_path / "out", "-", partial(find, data))


SESSION = [
    {"type": "user", "uuid": "a", "parentUuid": None, "sessionId": "s", "message": {"role": "user", "content": "zero"}},
    {"type": "assistant", "uuid": "b", "parentUuid": "a", "sessionId": "s",
     "message": {"id": "m", "role": "assistant", "content": [{"type": "text", "text": "one"}]}},
]  # fmt: skip


def test_places_in_a_session_are_lines_of_the_file(run: Run, tmp_path: Path) -> None:
    """A file is one row; the item that is wrong is on a line of its own."""
    (tmp_path / "chats").mkdir()
    for name, role in (("a", "assistant"), ("b", "other")):
        SESSION[1]["message"]["role"] = role
        text = "\n" + "\r\n\r\n".join(map(json.dumps, SESSION)) + "\n"
        (tmp_path / "chats" / f"{name}.jsonl").write_text(text, "utf-8", newline="")
    failed = run("compile", "chats", "--format", "claude_code", "-o", "out", code=3).stderr
    place = failed.partition("error: ")[2].partition(": ")[0]
    assert place == "chats/b.jsonl:4#/message/role"
    assert json.loads(line((tmp_path / "chats/b.jsonl").read_bytes(), 4))["message"]["role"] == "other"
    run("compile", "chats", "--format", "claude_code", "-o", "out", "--max-rejects", 1)
    [reject] = shown(run, tmp_path / "out", "--rejected")
    assert (reject["row"], reject["line"], reject["pointer"]) == (0, 4, "/lines/1/message/role")
    assert "It was rejected" in run("inspect", "out", "--row", place, code=2).stderr
    [row] = shown(run, tmp_path / "out")
    assert row["place"] == "chats/a.jsonl:2"
    for text in ("chats/a.jsonl:2", "chats/a.jsonl:4#/message/content", "a.jsonl:4", "chats/a.jsonl#/0"):
        assert shown(run, tmp_path / "out", "--row", text) == [row]
    said = run("inspect", "out", "--row", "a.jsonl:3", code=2).stderr
    assert said.endswith("The nearest: --row chats/a.jsonl:2 and --row chats/a.jsonl:4\n")


def test_a_broken_line_of_a_session_is_its_place(run: Run, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("\n" + json.dumps(SESSION[0]) + '\n\n{"type": \n', "utf-8")
    failed = run("compile", "s.jsonl", "--format", "claude_code", "-o", "out", code=3).stderr
    assert "\nerror: s.jsonl:4: json: " in failed


def test_what_is_no_place_of_a_row_is_an_error_that_names_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(BLANKS, "utf-8", newline="")
    (tmp_path / "b.json").write_text(json.dumps(ROWS), "utf-8")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    run("compile", "a.jsonl", "b.json", "c.parquet", "-o", "out", "--max-rejects", 1)
    counted = "is an array or a table, whose rows are counted from 0, not by lines\n  Name the row by its number: --row"
    lines = "no row begins on this line\n  The nearest: --row"
    for given_, said in (
        ("a.jsonl:1", f"{lines} a.jsonl:3"),
        ("a.jsonl:8#/output", f"{lines} a.jsonl:7 and --row a.jsonl:9"),
        ("a.jsonl:10", f"{lines} a.jsonl:9 and --row a.jsonl:12"),
        ("a.jsonl:14", f"{lines} a.jsonl:13"),
        ("a.jsonl:0", "lines are counted from 1\n  The nearest: --row a.jsonl:3"),
        ("a.jsonl#/6", "a.jsonl has the rows a.jsonl#/0 to a.jsonl#/5"),
        ("b.json:3", f"b.json {counted} b.json#/3"),
        ("b.json:3#/output", f"b.json {counted} b.json#/3"),
        ("b.json:77", f"b.json {counted} b.json#/5"),
        ("b.json#/6/output", "b.json has the rows b.json#/0 to b.json#/5"),
        ("b.json#/01", "b.json has the rows b.json#/0 to b.json#/5"),
        ("b.json#", "b.json has the rows b.json#/0 to b.json#/5"),
        ("c.parquet:0", f"c.parquet {counted} c.parquet#/0"),
    ):
        assert run("inspect", "out", "--row", given_, code=2).stderr == f"error: --row {given_}: {said}\n"


def test_objects_that_begin_on_one_line_are_all_shown(run: Run, tmp_path: Path) -> None:
    text = "{\n" + LINES[0][1:] + " " + LINES[1] + LINES[2] + "\n" + LINES[4]
    (tmp_path / "a.json").write_text(text, "utf-8")
    run("compile", "a.json", "-o", "out")
    assert {row["source_row"]: row["place"] for row in shown(run, tmp_path / "out", "--limit", 9)} == {
        0: "a.json:1", 1: "a.json:2", 2: "a.json:2", 3: "a.json:3"
    }  # fmt: skip
    result = run("inspect", "out", "--row", "a.json:2", "--json")
    assert {json.loads(text)["source_row"] for text in result.stdout.splitlines()} == {1, 2}
    assert result.stderr == "2 rows begin at a.json:2\n"
    assert [row["source_row"] for row in shown(run, tmp_path / "out", "--row", "a.json#/2")] == [2]


def test_files_of_one_name_in_two_datasets_keep_their_own_places(run: Run, tmp_path: Path) -> None:
    for folder, text in (("p", LINES[0] + "\n" + LINES[1]), ("q", "\n\n" + LINES[2])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_text(text, "utf-8")
        info = {folder: {"file_name": "a.jsonl"}}
        (tmp_path / folder / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    run("compile", "--registry", "p", "--registry", "q", "--mix", "p#2,q#1", "-o", "out")
    for place, dataset in (("a.jsonl:1", "p"), ("a.jsonl:2", "p"), ("a.jsonl:3", "q")):
        [row] = shown(run, tmp_path / "out", "--row", place)
        assert (row["dataset"], row["place"]) == (dataset, place)
    assert {row["dataset"] for row in shown(run, tmp_path / "out", "--row", "a.jsonl#/0")} == {"p", "q"}


def test_a_set_needs_no_sources_to_know_places(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(BLANKS, "utf-8", newline="")
    run("compile", "a.jsonl", "-o", "out", "--max-rejects", 1, "--pack", 200)
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "out").rename(tmp_path / "moved")
    [row] = shown(run, tmp_path / "moved", "--row", "a.jsonl:12")
    assert row["source_row"] == 4


def test_rows_that_were_not_read_are_not_said_to_be_missing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(BLANKS, "utf-8", newline="")
    run("compile", "a.jsonl", "-o", "out", "--limit", 2)
    assert run("inspect", "out", "--row", "a.jsonl:7", code=2).stderr == (
        "error: --row a.jsonl:7: no row begins on this line, of those that --limit 2 read\n"
        "  The nearest: --row a.jsonl:5\n"
    )


def test_a_set_of_an_earlier_version_names_rows_by_number(run: Run, tmp_path: Path) -> None:
    from schemas.manifest import read_manifest, sealed

    (tmp_path / "a.jsonl").write_text(BLANKS, "utf-8", newline="")
    run("compile", "a.jsonl", "-o", "out", "--max-rejects", 1)
    manifest = read_manifest(tmp_path / "out")
    del manifest["files"]["lines.jsonl"]
    (tmp_path / "out" / "manifest.json").write_bytes(sealed(manifest))
    (tmp_path / "out" / "lines.jsonl").unlink()
    [row] = shown(run, tmp_path / "out", "--row", "a.jsonl#/4")
    assert (row["source_row"], row["line"], row["place"]) == (4, None, "a.jsonl#/4")
    said = run("inspect", "out", "--row", "a.jsonl:4", code=2).stderr
    assert said == (
        "error: --row a.jsonl:4: an earlier version compiled the set, without the lines of its rows\n"
        "  Name the row by its number: --row a.jsonl#/4\n"
    )


def test_the_nearest_format_is_named_with_the_place_of_the_row(run: Run, tmp_path: Path) -> None:
    """Blank lines and rows that cannot be read stand before it."""
    text = '\n{"left": \n\n{"left": 1, "other": 2}\n'
    (tmp_path / "a.jsonl").write_text(text, "utf-8")
    said = run("compile", "a.jsonl", "-o", "out", code=2).stderr
    assert ", which a.jsonl:4" in said
    (tmp_path / "a.json").write_text('[{"left": x}, {"left": 1, "other": 2}]', "utf-8")
    said = run("compile", "a.json", "-o", "out", code=2).stderr
    assert ", which a.json#/1" in said


# -- laws --


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, dict[int, int]]:
    """A suffix, a text, and the line of each row by its number, counted while the text is put together."""
    suffix = draw(st.sampled_from([".jsonl", ".csv", ".json"]))
    end = st.sampled_from(["\n", "\r\n"])
    blanks = st.lists(end if suffix != ".jsonl" else st.sampled_from(["\n", "\r\n", "  \n", "\t\r\n"]), max_size=3)
    text, lines = "", {}
    if suffix == ".csv":
        text += "".join(draw(blanks)) + "instruction,output" + draw(end)
    for number in range(draw(st.integers(1, 12))):
        text += "".join(draw(blanks))
        row = {"instruction": f"row {number}" + "\n" * draw(st.integers(0, 3)), "output": "yes"}
        lines[number] = text.count("\n") + 1
        if suffix == ".csv":
            text += f'"{row["instruction"]}",{row["output"]}'
        else:
            text += json.dumps(row, indent=draw(st.integers(0, 2)) if suffix == ".json" else None)
        text += draw(end)
    return suffix, text, lines


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files(), st.integers(1, 400))
def test_the_reader_knows_the_line_of_every_row(
    tmp_path: Path, file: tuple[str, str, dict[int, int]], target: int
) -> None:
    suffix, text, lines = file
    path = tmp_path / f"x{suffix}"
    path.write_text(text, "utf-8", newline="")
    found = {}
    for unit in cut(open_source(path), target):
        for row in read(unit):
            assert unit.line is not None and row.line is not None
            number = int(row.value["instruction"].split()[1])
            found[number] = unit.line + row.line
    assert found == lines


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files(), st.integers(1, 400))
def test_a_row_is_found_by_its_place(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: tuple[str, str, dict[int, int]], target: int
) -> None:
    """Through units of any size, objects, and `lines.jsonl`."""
    suffix, text, lines = file
    monkeypatch.setattr("compiler.units.plan.cut", partial(cut, target_bytes=target))
    path = tmp_path / f"x{suffix}"
    path.write_text(text, "utf-8", newline="")
    run("compile", path.name, "--format", "alpaca", "-o", "out")
    rows = shown(run, tmp_path / "out", "--limit", 99)
    assert {row["source_row"]: row["line"] for row in rows} == lines
    for row in rows[:3]:
        assert row in shown(run, tmp_path / "out", "--row", row["place"])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(1, 5))
def test_runs_of_lines_are_the_lines(steps: list[int], first: int) -> None:
    lines = [first + sum(steps[:n]) for n in range(len(steps) + 1)]
    begin = [n for n in range(len(lines)) if not n or lines[n] != lines[n - 1] + 1]
    found = FileLines(np.array(begin), np.array([lines[n] for n in begin]), len(lines))
    again = Places.load(b"".join(Places({("d", "f"): found}).dump())).lines("d", "f")
    assert again is not None
    for some in (found, again):
        assert [some.line_of(n) for n in range(len(lines))] == lines
        for line_ in range(lines[-1] + 3):
            assert some.on(line_) == [n for n, one in enumerate(lines) if one == line_]
            if line_ not in lines:
                near = [
                    max([n for n in lines if n < line_], default=0),
                    min([n for n in lines if n > line_], default=0),
                ]
                assert some.around(line_) == [n for n in near if n]


NAMES = st.text(st.sampled_from("ab:#/.4 "), min_size=1).filter(lambda name: name[-1] not in ":#/")
POINTERS = st.just("") | st.text(st.sampled_from("ab:#/4~")).map(lambda text: f"/{text}")


@given(NAMES, st.integers(0, 99), st.none() | st.integers(1, 99), POINTERS)
def test_what_is_spelled_is_parsed(name: str, row: int, line_: int | None, pointer: str) -> None:
    """Whatever names and keys hold, the place that was spelled is among what the text can mean."""
    inside = pointer if line_ is not None else f"/{row}{pointer}"
    assert Place(name, line_, inside) in parse(spell(name, row, line_, pointer))
