"""From names and files to datasets: dataset_info.json as LLaMA-Factory means it, cards, hubs, file types, formats."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner, Result

from cli import main
from compiler.datasets.catalogue import Catalogue
from compiler.options import CompileOptions
from schemas.reader import CompiledSet
from tests.support.shared import shared

Run = Callable[..., Result]
Row = dict[str, Any]

DATA = Path(__file__).resolve().parent / "data"
FORMATS = ("alpaca", "sharegpt", "openai", "ms_agent")


def write(path: Path, rows: list[Row]) -> Path:
    """Write rows as JSON Lines, or as an array where the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("[" + ",\n".join(lines) + "]" if path.suffix == ".json" else "\n".join(lines) + "\n", "utf-8")
    return path


def alpaca(*questions: str) -> list[Row]:
    return [{"instruction": q, "output": f"About {q}."} for q in questions]


def info(folder: Path, **entries: Row) -> Path:
    """Write a dataset_info.json; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset_info.json").write_text(json.dumps(entries, ensure_ascii=False), "utf-8")
    return folder


def rows(out: Path) -> list[Row]:
    return list(CompiledSet.open(out).rows("train"))


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text("utf-8"))


def rejects(out: Path) -> list[tuple[str, str, str]]:
    found = map(json.loads, (out / "rejects.jsonl").read_text("utf-8").splitlines())
    return [(reject["reason"], reject["pointer"], reject["message"]) for reject in found]


@pytest.fixture
def ids(run: Run, tmp_path: Path) -> Callable[..., list[list[int]]]:
    """Compile without shuffling; return the ids of every row."""

    def of(*arguments: object) -> list[list[int]]:
        run("compile", *arguments, "--no-shuffle", "-o", tmp_path / "ids")
        return [row["input_ids"] for row in rows(tmp_path / "ids")]

    return of


# -- file types --


def as_csv(path: Path, given: list[dict[str, str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(given[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(given)


def as_xlsx(path: Path, given: list[dict[str, str]]) -> None:
    book = openpyxl.Workbook()
    for line in [list(given[0]), *(list(row.values()) for row in given)]:
        book.active.append(line)
    book.save(path)


def as_arrow(path: Path, given: list[dict[str, str]]) -> None:
    table = pa.Table.from_pylist(given)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def as_jsonl(path: Path, given: list[dict[str, str]]) -> None:
    write(path, list(given))


def packed(pack: Callable[[bytes], bytes]) -> Callable[[Path, list[dict[str, str]]], None]:
    def as_packed(path: Path, given: list[dict[str, str]]) -> None:
        path.write_bytes(pack(write(path.with_name("plain.jsonl"), list(given)).read_bytes()))

    return as_packed


WRITERS: dict[str, Callable[[Path, list[dict[str, str]]], None]] = {
    "x.json": as_jsonl,
    "x.jsonl": as_jsonl,
    "x.ndjson": as_jsonl,
    "x.csv": as_csv,
    "x.tsv": lambda path, given: as_csv(path, given, "\t"),
    "x.parquet": lambda path, given: pq.write_table(pa.Table.from_pylist(given), path, row_group_size=2),
    "x.arrow": as_arrow,
    "x.xlsx": as_xlsx,
    "x.jsonl.gz": packed(gzip.compress),
    "x.jsonl.zst": packed(zstandard.compress),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_gives_the_same_examples(
    ids: Callable[..., list[list[int]]], tmp_path: Path, name: str
) -> None:
    given = [
        {"instruction": "Translate, please.", "input": "春眠不觉晓", "output": "Spring sleep\nknows not the dawn."},
        {"instruction": 'Say "hi", twice', "input": "", "output": "hi; hi\t<|im_end|>"},
        {"instruction": " spaces stay ", "input": "x", "output": "yes"},
        {"instruction": "7", "input": "007", "output": "3.0"},
        {"instruction": "emoji", "input": "😀", "output": "ok"},
    ]
    WRITERS[name](tmp_path / name, given)
    expected = ids(write(tmp_path / "expected.jsonl", list(given)))
    assert len(expected) == 5
    assert ids(tmp_path / name) == expected
    assert [row["row"] for row in rows(tmp_path / "ids")] == [0, 1, 2, 3, 4]
    with_offsets = any(kind in name for kind in ("json", "csv", "tsv"))
    assert [row["offset"] is not None for row in rows(tmp_path / "ids")] == [with_offsets] * 5


@pytest.mark.parametrize("name", ["plain.txt", "c4.jsonl"])
def test_plain_text_is_taken_for_what_it_is(run: Run, tmp_path: Path, name: str) -> None:
    text = "Once upon a time.\nThe end.\n"
    (tmp_path / name).write_text(text if name.endswith("txt") else '{"text": "Once upon a time."}\n')
    result = run("compile", tmp_path / name, "-o", tmp_path / "out")
    assert "recognised as pretrain" in result.stderr
    assert manifest(tmp_path / "out")["kind"] == "pretrain"


def test_columnar_files_keep_lists_and_drop_nulls(ids: Callable[..., list[list[int]]], tmp_path: Path) -> None:
    given = [
        {"instruction": "a", "output": "b", "history": [["q", "r"]], "system": None},
        {"instruction": "a", "output": "b", "history": None, "system": "s"},
    ]
    pq.write_table(pa.Table.from_pylist(given), tmp_path / "x.parquet")
    assert ids(tmp_path / "x.parquet") == ids(write(tmp_path / "y.jsonl", given))


def test_a_json_file_that_is_json_lines_is_read_as_such_and_said_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("".join(json.dumps(row) + "\n" for row in alpaca("a", "b")))
    result = run("compile", tmp_path / "x.json", "-o", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 2
    assert f"{tmp_path}/x.json: read as JSON Lines although it is named .json" in result.stderr


def test_a_file_name_that_is_not_utf_8_is_used_or_named(run: Run, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xce\xca\xcc\xe2.jsonl")  # what GBK calls 问题.jsonl
    write(tmp_path / name, alpaca("a"))
    run("compile", tmp_path / name, "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert row["dataset"] == "\\xce\\xca\\xcc\\xe2"


def test_a_dataset_is_called_by_the_stem_of_its_file_without_any_suffix(run: Run, tmp_path: Path) -> None:
    (tmp_path / "my.chats.jsonl.gz").write_bytes(gzip.compress(json.dumps(alpaca("a")[0]).encode()))
    run("compile", tmp_path / "my.chats.jsonl.gz", "-o", tmp_path / "out")
    assert [entry["name"] for entry in manifest(tmp_path / "out")["datasets"]] == ["my"]


def names(out: Path) -> list[str]:
    return [entry["name"] for entry in manifest(out)["datasets"]]


def test_two_files_of_one_stem_get_names_that_tell_them_apart_and_it_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a" / "train.jsonl", alpaca("a"))
    write(tmp_path / "b" / "train.jsonl", alpaca("b"))
    write(tmp_path / "c.jsonl", alpaca("c"))
    result = run("compile", "a/train.jsonl", "b/train.jsonl", "c.jsonl", "--no-shuffle", "-o", "out")
    assert [(row["dataset"], row["file"]) for row in rows(tmp_path / "out")] == [
        ("a/train", "a/train.jsonl"), ("b/train", "b/train.jsonl"), ("c", "c.jsonl")
    ]  # fmt: skip
    assert "b/train: called so because another dataset is called 'train' too" in result.stderr
    run("compile", "a/train.jsonl", "b/train.jsonl", "--mix", "a/train:1,b/train:1", "-o", "mixed")
    assert names(tmp_path / "mixed") == ["a/train", "b/train"]


def test_two_files_that_differ_in_their_suffix_are_called_by_their_whole_names(run: Run, tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", alpaca("a")), write(tmp_path / "b" / "a.json", alpaca("b"))
    run("compile", one, two, "-o", tmp_path / "out")
    assert names(tmp_path / "out") == ["a.jsonl", "a.json"]


def test_a_name_can_be_given_with_the_file(run: Run, tmp_path: Path) -> None:
    one, two = write(tmp_path / "a" / "x.jsonl", alpaca("a")), write(tmp_path / "b" / "x.jsonl", alpaca("b"))
    run("compile", f"chats={one}", two, "--mix", "chats:1,x:1", "-o", tmp_path / "out")
    assert names(tmp_path / "out") == ["chats", "x"]


def test_a_file_whose_name_has_an_equals_sign_or_a_star_is_that_file(run: Run, tmp_path: Path) -> None:
    run("compile", write(tmp_path / "a=b*.jsonl", alpaca("a")), "-o", tmp_path / "out")
    assert names(tmp_path / "out") == ["a=b*"]


@pytest.mark.parametrize(
    ("given", "message", "code"),
    [
        (["c=a.jsonl", "c=b.jsonl"], "error: c=: 2 datasets of the command line are called 'c'", 2),
        (["a.jsonl", "a.jsonl"], "error: a.jsonl: is named twice", 2),
        (["=a.jsonl"], "error: =a.jsonl: no such file", 5),
        (["x=*.csv"], "error: *.csv: no file matches this pattern", 5),
        (["x=nothing.jsonl"], "error: nothing.jsonl: no such file", 5),
        (["x=*"], "error: x=*: the pattern matches the folder folder", 2),
    ],
)
def test_names_and_patterns_that_cannot_be_are_one_message(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], message: str, code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", alpaca("a"))
    write(tmp_path / "b.jsonl", alpaca("b"))
    (tmp_path / "folder").mkdir()
    assert message in run("compile", *given, "-o", "out", code=code).stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_is_one_dataset_and_what_is_not_read_of_it_is_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d" / "x-0.jsonl", alpaca("a"))
    write(tmp_path / "d" / "in" / "x-1.jsonl", alpaca("b"))
    (tmp_path / "d" / "notes.md").write_text("read me")
    result = run("compile", "d/", "--no-shuffle", "-o", "out")
    assert [(row["dataset"], row["file"]) for row in rows(tmp_path / "out")] == [
        ("d", "d/in/x-1.jsonl"), ("d", "d/x-0.jsonl")
    ]  # fmt: skip
    assert "d: files of it that are no data files: 1 .md" in result.stderr


def test_files_of_another_split_in_a_folder_are_named(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "d" / "train.jsonl", alpaca("a"))
    write(tmp_path / "d" / "test.jsonl", alpaca("b"))
    result = run("compile", tmp_path / "d", "-o", tmp_path / "out")
    assert "d: 1 data files of it are not read, as they are not of the split train: test.jsonl" in result.stderr
    assert len(rows(tmp_path / "out")) == 1


def test_a_pattern_is_one_dataset_with_a_name_and_a_dataset_a_file_without(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d" / "x.jsonl", alpaca("a"))
    write(tmp_path / "d" / "y.jsonl", alpaca("b"))
    run("compile", "all=d/*.jsonl", "-o", "one")
    assert [(row["dataset"], row["file"]) for row in sorted(rows(tmp_path / "one"), key=lambda r: r["file"])] == [
        ("all", "d/x.jsonl"), ("all", "d/y.jsonl")
    ]  # fmt: skip
    run("compile", "d/*.jsonl", "-o", "two")
    assert names(tmp_path / "two") == ["x", "y"]


def test_nan_under_a_key_that_is_not_read_is_counted_and_under_one_that_is_read_a_reject(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"instruction": "a", "output": "A", "score": NaN}\n{"instruction": "b", "output": "B", "system": NaN}\n'
    )
    run("compile", tmp_path / "a.jsonl", "--max-rejects", "1", "-o", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 1
    assert manifest(tmp_path / "out")["datasets"][0]["notes"] == {"not_a_number": 1}
    assert [found[1] for found in rejects(tmp_path / "out")] == ["/system"]


def test_a_limit_reads_the_first_rows_of_each_dataset_and_nothing_behind_them(run: Run, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", alpaca(*"abcdef"))
    write(tmp_path / "two" / "x.json", alpaca(*"gh"))
    write(tmp_path / "two" / "y.json", alpaca(*"ijk"))
    (tmp_path / "two" / "z.json").write_text("[this is never opened")
    pq.write_table(pa.Table.from_pylist(alpaca(*"lmnop")), tmp_path / "three.parquet")
    given = (one, tmp_path / "two", tmp_path / "three.parquet", "--no-shuffle", "--cache", tmp_path / "cache")
    result = run("compile", *given, "--limit", "3", "-o", tmp_path / "out")
    found = [(row["dataset"], Path(row["file"]).name, row["row"]) for row in rows(tmp_path / "out")]
    assert found == [
        ("one", "one.jsonl", 0), ("one", "one.jsonl", 1), ("one", "one.jsonl", 2),
        ("two", "x.json", 0), ("two", "x.json", 1), ("two", "y.json", 0),
        ("three", "three.parquet", 0), ("three", "three.parquet", 1), ("three", "three.parquet", 2),
    ]  # fmt: skip
    assert "--limit 3: at most 3 rows of each dataset were read" in result.stdout
    assert manifest(tmp_path / "out")["balance"]["read"] == 9
    run("compile", one, "--cache", tmp_path / "cache", "-o", tmp_path / "all")
    assert len(rows(tmp_path / "all")) == 6  # another object than the limited one


@pytest.mark.parametrize(
    ("condition", "kept"),
    [
        ("resolved = 1", "acf"),
        ("resolved = true and reward > 0.5", "ac"),
        ("resolved is true", "acf"),
        ("reward > 0.5", "abc"),
        ("not (reward > 0.5)", "df"),
        ("source = 'swe'", "abd"),
        ("source like 's%' and resolved <> 1", "b"),
        ("patch is not null", "ae"),
        ('patch is null and "my score" >= 2', "f"),
        ("source = 'true' or reward between 0.1 and 0.3", "df"),
        ("length(source) = 3 and reward is not null", "abd"),
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_where_chooses_rows_and_counts_the_others(
    run: Run, tmp_path: Path, kind: str, condition: str, kept: str
) -> None:
    columns: list[Row] = [
        {"resolved": True, "reward": 0.9, "source": "swe", "patch": "x"},
        {"resolved": 0, "reward": 1, "source": "swe"},
        {"resolved": 1, "reward": 0.7},
        {"reward": 0.1, "source": "swe"},
        {"resolved": None, "patch": "y" if kind == "csv" else ["y"]},
        {"resolved": 1.0, "reward": 0.2, "source": "true", "my score": 2},
    ]
    given = [row | more for row, more in zip(alpaca(*"abcdef"), columns, strict=True)]
    if kind == "csv" and "patch is" in condition:
        pytest.skip("a CSV file has no null")
    path = write(tmp_path / "a.jsonl", given)
    if kind == "csv":
        path = tmp_path / "a.csv"
        as_csv(path, [dict.fromkeys([*given[0], "my score"], "") | row for row in given])
    result = run("compile", path, "--where", condition, "--no-shuffle", "--workers", 1, "-o", tmp_path / "out")
    assert "".join("abcdef"[row["row"]] for row in rows(tmp_path / "out")) == kept
    balance = manifest(tmp_path / "out")["balance"]
    assert (balance["read"], balance["left_out"]) == (6, 6 - len(kept))
    assert f"a: {6 - len(kept)} of 6 rows left out by --where" in result.stdout.replace("\n", " ")


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("rewards > 0", "no row of 'a' has the column 'rewards'"),
        ("reward > 5", "it leaves out all 2 rows of 'a'"),
        ("reward >", "it is not an SQL expression"),
        ("reward", "it gives a value, not true or false"),
        ("1 = 1", "it names no column"),
        ("reward > avg(reward)", "it looks at several rows at once"),
        ("output > 0.5", "the column 'output' holds the text 'About a.', and is compared with a number"),
        ("tags = 'x'", "the column 'tags' holds an array"),
    ],
)
def test_a_condition_that_cannot_be_is_one_message(run: Run, tmp_path: Path, condition: str, message: str) -> None:
    given = [row | {"reward": 1, "tags": ["x"]} for row in alpaca("a", "b")]
    result = run("compile", write(tmp_path / "a.jsonl", given), "--where", condition, "-o", tmp_path / "out", code=2)
    assert message in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["lines", "array", "object", "parquet"])
def test_rows_can_be_piped_in_and_are_kept_in_the_cache(tmp_path: Path, kind: str) -> None:
    pq.write_table(pa.Table.from_pylist(alpaca(*"abc")), tmp_path / "x.parquet")
    data = {
        "lines": write(tmp_path / "x.jsonl", alpaca(*"abc")).read_bytes(),
        "array": write(tmp_path / "x.json", alpaca(*"abc")).read_bytes(),
        "object": json.dumps(alpaca("a")[0], indent=2).encode(),
        "parquet": (tmp_path / "x.parquet").read_bytes(),
    }[kind]
    cache = tmp_path / "cache"
    command = ["compile", "chats=-", "--cache", str(cache), "--workers", "1", "--no-shuffle"]
    command += ["-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, command, input=data, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = [(row["dataset"], row["file"], row["row"]) for row in rows(tmp_path / "out")]
    assert found == [("chats", "-", number) for number in range(1 if kind == "object" else 3)]
    (kept,) = (cache / "stdin").iterdir()
    assert kept.read_bytes() == data
    assert "none compiled" in CliRunner().invoke(main, command, input=data).output
    assert [path.name for path in (cache / "stdin").iterdir()] == [kept.name]


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "-: has no rows"), (b"a,b\n1,2\n", "-: JSON, Parquet or Arrow was expected, found 'a,b"),
     (gzip.compress(b"{}"), "-: what is piped in is compressed")],
)  # fmt: skip
def test_what_is_piped_in_and_cannot_be_read_is_one_message(tmp_path: Path, data: bytes, message: str) -> None:
    command = ["compile", "-", "--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, command, input=data, catch_exceptions=False)
    assert result.exit_code == 5
    assert message in result.stderr
    assert list((tmp_path / "cache" / "stdin").iterdir()) == []


def test_an_entry_of_two_registries_is_refused(run: Run, tmp_path: Path) -> None:
    a, b = (info(tmp_path / name, mine={"file_name": "x.json"}) for name in "ab")
    result = run("compile", "--registry", a, "--registry", b, "--mix", "mine:1", "-o", tmp_path / "out", code=2)
    assert f"--mix mine: 'mine' is an entry of {a}/dataset_info.json and {b}/dataset_info.json" in result.stderr


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.jsonl", None, "no such file"),
        ("empty.jsonl", b"", "has no rows"),
        ("blank.jsonl", b"\n\n", "has no rows"),
        ("none.json", b"[]", "has no rows"),
        ("cut.jsonl.gz", gzip.compress(b'{"instruction": "a", "output": "b"}\n' * 99)[:-9], "is cut short"),
        ("wide.jsonl", "\ufeff{}".encode("utf-16"), "is UTF-16 text"),
        ("data.pdf", b"%PDF", "unknown kind of file '.pdf'"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_message(
    run: Run, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    result = run("compile", tmp_path / name, "-o", tmp_path / "out", code=5)
    assert result.stderr.startswith(f"error: {tmp_path / name}: {message}")
    assert not (tmp_path / "out").exists()


# -- formats --


@pytest.mark.parametrize("name", FORMATS)
def test_auto_recognises_each_format_and_says_so(run: Run, tmp_path: Path, name: str) -> None:
    file = DATA / name / "rows.jsonl"
    count = len(file.read_text("utf-8").splitlines())
    result = run("compile", file, "-o", tmp_path / "out")
    assert f"rows: recognised as {name} ({count} of the first {count} rows match its schema)" in result.stderr
    (entry,) = manifest(tmp_path / "out")["datasets"]
    assert (entry["format"], entry["realized"]["rows"]) == (name, count)
    # Named or recognised: the same set.
    run("compile", file, "--format", name, "-o", tmp_path / "named")
    assert manifest(tmp_path / "named")["digest"] == manifest(tmp_path / "out")["digest"]


def test_auto_goes_by_most_rows_so_that_a_bad_first_row_does_not_mislead(run: Run, tmp_path: Path) -> None:
    lines = (DATA / "openai" / "rows.jsonl").read_text("utf-8")
    (tmp_path / "x.jsonl").write_text('{"conversations": 3}\nnot JSON\n' + lines, "utf-8")
    result = run("compile", tmp_path / "x.jsonl", "--max-rejects", "2", "-o", tmp_path / "out")
    good = len(lines.splitlines())
    assert f"x: recognised as openai ({good} of the first {good + 1} rows match its schema)" in result.stderr


REAL = {
    "openai/drone_training.jsonl": ("openai", 103),
    "llamafactory/alpaca_en_demo.json": ("alpaca", 999),
    "llamafactory/glaive_toolcall_en_demo.json": ("sharegpt", 300),
    "llamafactory/identity.json": ("alpaca", 91),
    "ms-swift/tests/alpaca.csv": ("alpaca", 3),
    "ms-swift/tests/alpaca2.csv": ("alpaca", 3),
    "ms-swift/tests/alpaca.jsonl": ("alpaca", 3),
    "ms-swift/tests/chatml.jsonl": ("openai", 3),
    "ms-swift/tests/conversations.jsonl": ("ms_agent", 3),
    "chatglm3/tool_alpaca.jsonl": ("chatglm3", 163),
    "ms-swift/tests/sharegpt.jsonl": ("conversation_pairs", 3),
    "ms-swift/tests/swift_multi.json": ("query_response", 3),
    "ms-swift/tests/swift_single.jsonl": ("query_response", 3),
    "llamafactory/dpo_en_demo.json": ("sharegpt", 300),
    "llamafactory/kto_en_demo.json": ("openai", 300),
    "llamafactory/c4_demo.jsonl": ("pretrain", 300),
}


@pytest.mark.parametrize("name", REAL)
def test_auto_recognises_real_files_and_compiles_every_row(run: Run, tmp_path: Path, name: str) -> None:
    format_, count = REAL[name]
    run("compile", shared("data", *name.split("/")), "-o", tmp_path / "out")
    (entry,) = manifest(tmp_path / "out")["datasets"]
    assert (entry["format"], entry["realized"]["rows"], entry["rejected"]) == (format_, count, {})


def test_auto_names_the_keys_of_rows_it_does_not_know(run: Run, tmp_path: Path) -> None:
    file = shared("data", "ms-swift", "tests", "swift_pre.jsonl")
    result = run("compile", file, "-o", tmp_path / "out", code=2)
    keys = "'response'"
    assert result.stderr.startswith(f"error: {file}: its rows match no known format (keys of the first: {keys})\n")
    assert "--format" in result.stderr
    assert "dataset_info.json" in result.stderr


ASKED, REPLIED = {"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "b"}


def test_rows_that_fit_no_format_are_compared_with_the_nearest_one(run: Run, tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": ""}, {"role": "user"}]}
    bad = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": 4}]}
    file = write(tmp_path / "x.jsonl", [bad, good])
    result = run("compile", file, "-o", tmp_path / "out", code=2)
    what = "expected null or string or array, found integer"
    assert f"The nearest format is openai, which {file}:1#/messages/1/content does not fit: {what}." in result.stderr


@pytest.mark.parametrize(
    ("row", "format_"),
    [
        ({"id": "7", "problem_text": "2+2?", "solution": "4"}, "alpaca"),
        ({"left": "2+2?", "right": "4"}, "alpaca"),
        ({"dialog": [ASKED, REPLIED], "topic": "sums"}, "openai"),
    ],
)
def test_names_of_columns_that_would_make_rows_fit_are_offered(
    run: Run, tmp_path: Path, row: Row, format_: str
) -> None:
    """As options, and as a dataset_info.json: both compile."""
    file = write(tmp_path / "x.jsonl", [row])
    result = run("compile", file, "-o", tmp_path / "out", code=2)
    assert f"The nearest format is {format_}, which {file}:1 does not fit: expected the key" in result.stderr
    options = result.stderr.partition("would fit with ")[2].partition(",\n")[0].split()
    run("compile", file, *options, "-o", tmp_path / "named")
    (tmp_path / "dataset_info.json").write_text(result.stderr.rpartition("(--registry): ")[2], "utf-8")
    run("compile", "--registry", tmp_path, "--mix", "x", "-o", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 1


GOOD, BAD = {"from": "gpt", "value": "good"}, {"from": "gpt", "value": "bad"}
OTHER_KINDS: dict[str, Row] = {
    "kto": {"messages": [ASKED, REPLIED], "label": False},
    "preference": {"conversations": [{"from": "human", "value": "a"}], "chosen": GOOD, "rejected": BAD},
}


@pytest.mark.parametrize(("kind", "row"), OTHER_KINDS.items(), ids=OTHER_KINDS)
def test_auto_never_trains_another_kind_of_data_as_plain_replies(run: Run, tmp_path: Path, kind: str, row: Row) -> None:
    """Not even where most rows are plain: one label or pair, and the plain ones are the rejects."""
    plain = {key: row[key] for key in row if key in ("messages", "conversations")}
    file = write(tmp_path / "x.jsonl", [plain, plain, row])
    run("compile", file, "--max-rejects", 2, "-o", tmp_path / "out")
    found = manifest(tmp_path / "out")
    assert (found["kind"], found["balance"]["rejected"], found["balance"]["in_shards"]) == (kind, 2, 1)


def test_images_of_a_model_that_takes_none_are_rejects(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [{"messages": [ASKED, REPLIED], "images": ["1.jpg"]}])
    result = run("compile", file, "-o", tmp_path / "out", code=3)
    assert "media: the row has images or videos" in result.stderr


def test_audios_are_refused_by_name(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", [{"messages": [ASKED, REPLIED], "audios": ["1.wav"]}])
    result = run("compile", file, "-o", tmp_path / "out", code=2)
    assert f"{file}: this version does not compile audios" in result.stderr


# -- dataset_info.json --


def test_an_entry_without_columns_and_tags_has_the_defaults(run: Run, tmp_path: Path) -> None:
    folder = info(
        tmp_path / "reg", plain={"file_name": "a.json"}, chat={"file_name": "b.jsonl", "formatting": "sharegpt"}
    )
    write(
        folder / "a.json", [{"instruction": "i", "input": "x", "output": "o", "system": "s", "history": [["q", "r"]]}]
    )
    write(folder / "b.jsonl", [{"conversations": [{"from": "human", "value": "i"}, {"from": "gpt", "value": "o"}]}])
    run("compile", "--registry", folder, "--mix", "plain,chat", "-o", tmp_path / "out")
    found = {entry["name"]: entry for entry in manifest(tmp_path / "out")["datasets"]}
    assert [found["plain"]["format"], found["chat"]["format"]] == ["alpaca", "sharegpt"]
    assert [row["file"] for row in rows(tmp_path / "out") if row["dataset"] == "plain"] == ["a.json"]


def test_columns_that_are_listed_leave_the_others_unread(ids: Callable[..., list[list[int]]], tmp_path: Path) -> None:
    some = {"prompt": "question", "response": "answer"}
    more = some | {"query": "input", "system": "persona", "history": "history"}
    entries = {"some": {"file_name": "a.jsonl", "columns": some}, "more": {"file_name": "b.jsonl", "columns": more}}
    folder = info(tmp_path / "reg", **entries)
    row = {
        "question": "q",
        "answer": "a",
        "input": "x",
        "persona": "p",
        "system": "never read",
        "history": [["h", "r"]],
    }
    write(folder / "a.jsonl", [row])
    write(folder / "b.jsonl", [{key: value for key, value in row.items() if key != "system"}])
    expected = write(tmp_path / "expected.jsonl", [{"instruction": "q", "output": "a"}])
    assert ids("--registry", folder, "--mix", "some") == ids(expected)
    expected = write(
        tmp_path / "expected.jsonl",
        [{"instruction": "q", "input": "x", "output": "a", "system": "p", "history": [["h", "r"]]}],
    )
    assert ids("--registry", folder, "--mix", "more") == ids(expected)


def test_a_null_column_is_not_there(ids: Callable[..., list[list[int]]], tmp_path: Path) -> None:
    columns = {"prompt": "instruction", "query": None, "response": "output"}
    folder = info(tmp_path / "reg", x={"file_name": "a.jsonl", "columns": columns})
    write(folder / "a.jsonl", [{"instruction": "q", "input": 5, "output": "a"}])
    expected = write(tmp_path / "y.jsonl", [{"instruction": "q", "output": "a"}])
    assert ids("--registry", folder, "--mix", "x") == ids(expected)


OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def test_tags_read_role_and_content_messages_as_sharegpt(ids: Callable[..., list[list[int]]], tmp_path: Path) -> None:
    entry = {"file_name": "a.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": OPENAI_TAGS}
    folder = info(tmp_path / "reg", x=entry)
    write(
        folder / "a.jsonl",
        [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "About q."}]}],
    )
    assert ids("--registry", folder, "--mix", "x") == ids(write(tmp_path / "y.jsonl", alpaca("q")))


@pytest.mark.parametrize("role", ["system", "observation", "function_call"])
def test_a_role_whose_tag_is_not_listed_is_an_unknown_role(run: Run, tmp_path: Path, role: str) -> None:
    entry = {"file_name": "a.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": OPENAI_TAGS}
    folder = info(tmp_path / "reg", x=entry)
    good = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    bad = [{"role": role, "content": "s"}, *good]
    write(folder / "a.jsonl", [{"messages": good}, {"messages": bad}])
    run("compile", "--registry", folder, "--mix", "x", "--max-rejects", 1, "-o", tmp_path / "out")
    assert rejects(tmp_path / "out") == [
        (
            "schema",
            "/messages/0/role",
            f"expected one of user, assistant, tool, tool_call, tool_response, found {role!r}",
        )
    ]


def test_every_tag_can_be_renamed(ids: Callable[..., list[list[int]]], tmp_path: Path) -> None:
    tags = {
        "role_tag": "who", "content_tag": "says", "user_tag": "U", "assistant_tag": "A",
        "observation_tag": "O", "function_tag": "F", "system_tag": "S",
    }  # fmt: skip
    columns = {"messages": "talk", "tools": "apis"}
    folder = info(
        tmp_path / "reg", x={"file_name": "a.jsonl", "formatting": "sharegpt", "columns": columns, "tags": tags}
    )
    call, api = '{"name": "f", "arguments": {"a": 1}}', '[{"name": "f"}]'
    texts = ["be", "q", call, "1", "r"]
    talk = [{"who": who, "says": text} for who, text in zip("SUFOA", texts, strict=True)]
    plain_roles = ["system", "human", "function_call", "observation", "gpt"]
    plain = [{"from": who, "value": text} for who, text in zip(plain_roles, texts, strict=True)]
    write(folder / "a.jsonl", [{"talk": talk, "apis": api}])
    expected = ids(write(tmp_path / "y.jsonl", [{"conversations": plain, "tools": api}]))
    assert ids("--registry", folder, "--mix", "x") == expected


def test_a_column_the_rows_do_not_have_is_named_with_those_they_have(run: Run, tmp_path: Path) -> None:
    folder = info(tmp_path / "reg", x={"file_name": "a.jsonl", "columns": {"prompt": "question", "response": "answer"}})
    write(folder / "a.jsonl", [{"question": "q", "reply": "a"}])
    result = run("compile", "--registry", folder, "--mix", "x", "-o", tmp_path / "out", code=3)
    assert "a.jsonl:1: schema: expected the key 'answer', found the keys 'question', 'reply'" in result.stderr


def test_num_samples_is_a_sample_and_beyond_the_size_repeats_evenly(run: Run, tmp_path: Path) -> None:
    folder = info(
        tmp_path / "reg",
        few={"file_name": "a.jsonl", "num_samples": 4},
        many={"file_name": "a.jsonl", "num_samples": 25},
    )
    write(folder / "a.jsonl", alpaca(*(f"q{i}" for i in range(10))))
    run("compile", "--registry", folder, "--mix", "few,many", "-o", tmp_path / "out")
    found = {entry["name"]: entry["balance"] for entry in manifest(tmp_path / "out")["datasets"]}
    assert (found["few"]["in_shards"], found["few"]["sampled_out"], found["few"]["repeats"]) == (4, 6, 0)
    assert (found["many"]["in_shards"], found["many"]["sampled_out"], found["many"]["repeats"]) == (25, 0, 15)


def test_a_file_name_may_be_a_folder_of_files_in_name_order(run: Run, tmp_path: Path) -> None:
    folder = info(tmp_path / "reg", x={"file_name": "parts"})
    write(folder / "parts" / "b.jsonl", alpaca("third"))
    write(folder / "parts" / "a.jsonl", alpaca("first", "second"))
    (folder / "parts" / "LICENSE").write_text("not data")
    run("compile", "--registry", folder, "--mix", "x", "--no-shuffle", "-o", tmp_path / "out")
    assert [(row["file"], row["row"]) for row in rows(tmp_path / "out")] == [
        ("parts/a.jsonl", 0), ("parts/a.jsonl", 1), ("parts/b.jsonl", 0)
    ]  # fmt: skip


def test_a_folder_of_files_of_several_types_is_refused(run: Run, tmp_path: Path) -> None:
    folder = info(tmp_path / "reg", x={"file_name": "parts"})
    write(folder / "parts" / "a.jsonl", alpaca("a"))
    as_csv(folder / "parts" / "b.csv", [{"instruction": "b", "output": "b"}])
    result = run("compile", "--registry", folder, "--mix", "x", "-o", tmp_path / "out", code=2)
    assert "expected files of one type, found csv, jsonl" in result.stderr


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, ["en/train-1", "en/train-2", "zh/train-1"]),
        ({"split": "train"}, ["en/train-1", "en/train-2", "zh/train-1"]),
        ({"split": "test"}, ["en/test-1"]),
        ({"split": "validation"}, ["zh/dev-1"]),
        ({"subset": "zh"}, ["zh/train-1"]),
        ({"subset": "en", "split": "test"}, ["en/test-1"]),
        ({"folder": "en"}, ["en/train-1", "en/train-2"]),
        ({"subset": None, "folder": None}, ["en/train-1", "en/train-2", "zh/train-1"]),
    ],
)
def test_split_subset_and_folder_narrow_a_folder(run: Run, tmp_path: Path, entry: Row, expected: list[str]) -> None:
    folder = info(tmp_path / "reg", x={"file_name": "d"} | entry)
    for name in ("en/train-1", "en/train-2", "en/test-1", "zh/train-1", "zh/dev-1"):
        write(folder / "d" / f"{name}.jsonl", alpaca(name))
    run("compile", "--registry", folder, "--mix", "x", "--no-shuffle", "-o", tmp_path / "out")
    assert [row["file"] for row in rows(tmp_path / "out")] == [f"d/{name}.jsonl" for name in expected]


def test_splits_whose_names_hold_other_names_are_told_apart(run: Run, tmp_path: Path) -> None:
    """HuggingFaceH4/ultrachat_200k: train_sft and train_gen are two splits, and the entry says "split": "train_sft"."""
    folder = info(tmp_path / "reg", x={"hf_hub_url": "org/ultra", "split": "train_sft"})
    for name in ("train_sft-00000-of-00001", "train_gen-00000-of-00001", "test_sft-00000-of-00001"):
        write(folder / "org" / "ultra" / "data" / f"{name}.jsonl", alpaca(name))
    run("compile", "--registry", folder, "--mix", "x", "-o", tmp_path / "out")
    assert [row["file"] for row in rows(tmp_path / "out")] == ["ultra/data/train_sft-00000-of-00001.jsonl"]


def test_a_split_or_a_file_that_is_not_there_is_named(run: Run, tmp_path: Path) -> None:
    folder = info(
        tmp_path / "reg", split={"file_name": "d", "split": "test"}, file={"file_name": "gone.json"},
        one={"file_name": "d/train.jsonl", "split": "test"}, empty={"file_name": "e"},
    )  # fmt: skip
    write(folder / "d" / "train.jsonl", alpaca("a"))
    (folder / "e").mkdir()
    for name, code, message in (
        ("split", 2, "#/split/split: no file of split 'test' among train.jsonl"),
        ("one", 2, "#/one/split: one file is one split, \"train\"; found 'test'"),
        ("file", 5, f"error: {folder}/gone.json: no such file or folder"),
        ("empty", 5, f"error: {folder}/e: no data file in it"),
    ):
        result = run("compile", "--registry", folder, "--mix", name, "-o", tmp_path / "out", code=code)
        assert message in result.stderr


@pytest.mark.parametrize(
    ("entry", "pointer", "nearest"),
    [
        ({"file_name": "a.jsonl", "colums": {}}, "", "'colums': did you mean 'columns'?"),
        ({"file_name": "a.jsonl", "columns": {"promt": "x"}}, "/columns", "'promt': did you mean 'prompt'?"),
        ({"file_name": "a.jsonl", "tags": {"roletag": "x"}}, "/tags", "'roletag': did you mean 'role_tag'?"),
        ({"file_name": "a.jsonl", "formatting": "sharegtp"}, "", "did you mean 'sharegpt'?"),
        ({"file_name": 3}, "/file_name", "3 is not of type 'string'"),
        ({"file_name": "a.jsonl", "num_samples": 0}, "/num_samples", "0 is less than the minimum of 1"),
        ({"formatting": "alpaca"}, "", "names no file_name and no hub"),
    ],
)
def test_an_entry_with_a_mistake_is_named_with_the_nearest_key(
    run: Run, tmp_path: Path, entry: Row, pointer: str, nearest: str
) -> None:
    folder = info(tmp_path / "reg", mine=entry)
    write(folder / "a.jsonl", alpaca("a"))
    result = run("compile", "--registry", folder, "--mix", "mine", "-o", tmp_path / "out", code=2)
    assert f"{folder}/dataset_info.json#/mine{pointer}: " in result.stderr
    assert nearest in result.stderr


@pytest.mark.parametrize(
    ("entry", "key", "kind"),
    [
        (
            {"file_name": "a", "formatting": "sharegpt", "columns": {"messages": "m", "audios": "v"}},
            "columns/audios",
            "audios",
        ),
        ({"script_url": "a"}, "script_url", "a loading script"),
        ({"cloud_file_name": "gs://b/a.json"}, "cloud_file_name", "files in cloud storage other than s3://"),
    ],
)
def test_what_this_version_does_not_compile_is_refused_by_name(
    run: Run, tmp_path: Path, entry: Row, key: str, kind: str
) -> None:
    folder = info(tmp_path / "reg", mine=entry)
    result = run("compile", "--registry", folder, "--mix", "mine", "-o", tmp_path / "out", code=2)
    assert f"dataset_info.json#/mine/{key}: this version does not compile {kind}" in result.stderr


@pytest.mark.parametrize("content", ["{", "[]", '"text"', '{"x": 3}'])
def test_a_dataset_info_that_is_none_is_one_message(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset_info.json").write_text(content)
    result = run(
        "compile", "--registry", tmp_path, "--mix", "x", "-o", tmp_path / "out", code=5 if content == "{" else 2
    )
    assert f"{tmp_path}/dataset_info.json" in result.stderr
    assert result.stderr.count("error:") == 1


def test_the_real_demos_of_llama_factory_compile_without_a_reject(run: Run, tmp_path: Path) -> None:
    folder = shared("data", "llamafactory")
    run(
        "compile",
        "--registry",
        folder,
        "--mix",
        "alpaca_en_demo,glaive_toolcall_en_demo,identity",
        "-o",
        tmp_path / "out",
    )
    found = [
        (entry["name"], entry["format"], entry["realized"]["rows"], entry["rejected"], entry["duplicates"])
        for entry in manifest(tmp_path / "out")["datasets"]
    ]
    assert found == [
        ("alpaca_en_demo", "alpaca", 999, {}, 14),
        ("glaive_toolcall_en_demo", "sharegpt", 300, {}, 35),
        ("identity", "alpaca", 91, {}, 0),
    ]


NOT_COMPILED = {
    "alpaca_zh_demo": "no such file or folder",
    "glaive_toolcall_zh_demo": "no such file or folder",
    "dpo_zh_demo": "no such file or folder",
    "wiki_demo": "no such file or folder",
    "mllm_audio_demo": "/columns/audios: this version does not compile audios",
    "mllm_video_audio_demo": "/columns/audios: this version does not compile audios",
}
OF_KIND = {
    "alpaca_en_demo": "sft",
    "glaive_toolcall_en_demo": "sft",
    "identity": "sft",
    "mllm_demo": "sft",
    "mllm_video_demo": "sft",
    "dpo_en_demo": "preference",
    "kto_en_demo": "kto",
    "c4_demo": "pretrain",
}


def test_the_real_dataset_info_says_of_which_kind_its_files_are(run: Run, tmp_path: Path) -> None:
    folder = shared("data", "llamafactory")
    entries = json.loads((folder / "dataset_info.json").read_text("utf-8"))
    assert {name for name, entry in entries.items() if "file_name" in entry} == {*NOT_COMPILED, *OF_KIND}
    catalogue = Catalogue(CompileOptions(tmp_path / "out", tmp_path / "cache", registries=(folder,)))
    assert {name: catalogue.resolve(name).options.kind for name in OF_KIND} == OF_KIND
    for name, reason in NOT_COMPILED.items():
        code = 5 if reason.startswith("no such file") else 2
        result = run("compile", "--registry", folder, "--mix", name, "-o", tmp_path / "out", code=code)
        assert reason in result.stderr
        assert f"dataset_info.json#/{name}" in result.stderr


# -- names --


def test_a_name_is_a_file_then_an_entry_then_a_card(run: Run, tmp_path: Path) -> None:
    one = info(tmp_path / "one", bench={"file_name": "x.jsonl"})
    two = info(tmp_path / "two", other={"file_name": "y.jsonl"})
    write(one / "x.jsonl", alpaca("entry of one"))
    write(two / "y.jsonl", alpaca("entry of two"))
    file = write(tmp_path / "bench.jsonl", alpaca("file"))

    def of(*arguments: object) -> set[str]:
        run("compile", *arguments, "-o", tmp_path / "out")
        return {row["file"] for row in rows(tmp_path / "out")}

    assert of("--mix", "bench") == {"samples/bench.jsonl"}
    assert of("--mix", "bench", "--registry", one) == {"x.jsonl"}
    assert of("--mix", "bench", "--registry", two, "--registry", one) == {"x.jsonl"}
    assert of(file, "--mix", "bench", "--registry", one) == {str(file)}


def test_an_unknown_name_is_compared_with_every_name_there_is(run: Run, tmp_path: Path) -> None:
    folder = info(tmp_path / "reg", my_chats={"file_name": "x.jsonl"})
    file = write(tmp_path / "support.jsonl", alpaca("a"))
    for wrong, right in (("my_chat", "my_chats"), ("suport", "support"), ("agnet", "agent"), ("ms_agent", "ms-agent")):
        mix = f"support:1,{wrong}:1"
        result = run("compile", file, "--mix", mix, "--registry", folder, "-o", tmp_path / "out", code=2)
        *_, message, hint = result.stderr.splitlines()
        assert message == f"error: --mix {wrong}: unknown dataset"
        assert hint.startswith(f"  did you mean {right!r}? known: ")
        assert {"agent", "bench", "ms-agent", "ms-bench", "my_chats", "support"} <= set(hint.split(": ")[1].split(", "))


def test_a_file_that_the_mix_leaves_out_is_an_error(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "chats.jsonl", alpaca("a"))
    result = run("compile", file, "--mix", "agent:1", "-o", tmp_path / "out", code=2)
    assert result.stderr == (
        f"error: --mix agent: the file {str(file)!r} is not in it\n  Add chats:SHARE to --mix, or leave the file out.\n"
    )


def test_a_registry_that_is_no_folder_is_named(run: Run, tmp_path: Path) -> None:
    for mix in ("agent", "nosuch"):
        result = run("compile", "--registry", tmp_path / "gone", "--mix", mix, "-o", tmp_path / "out", code=2)
        assert result.stderr.startswith(f"error: --registry {tmp_path}/gone: no such folder")


def test_a_file_called_like_the_self_cognition_pool_is_an_ordinary_file(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "self-cognition.jsonl", alpaca("who are {{NAME}}?"))
    run("compile", file, "-o", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 1
    result = run("compile", file, "--self-cognition", 3, "-o", tmp_path / "out", code=2)
    assert "self-cognition" in result.stderr


# -- hubs --


@pytest.fixture
def no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both hub clients as if they were not installed."""
    for client in ("modelscope_hub", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, client, None)


@pytest.mark.usefixtures("no_client")
def test_a_hub_dataset_without_a_copy_and_without_a_client_says_what_to_do(run: Run, tmp_path: Path) -> None:
    result = run("compile", "--mix", "ms-agent:1,ms-bench:2", "-o", tmp_path / "out", code=2)
    assert result.stderr == (
        "error: dataset ms-agent: modelscope_hub, which downloads it from ModelScope, is not installed\n"
        "  The embedded samples are called agent and bench. Put its files into DIR/iic/ms_agent and add --registry DIR"
        f", or install it: pip install -e '{DATA.parent.parent}[hub]'\n"
    )
    folder = info(tmp_path / "reg", remote={"hf_hub_url": "org/remote"})
    result = run("compile", "--mix", "remote", "--registry", folder, "-o", tmp_path / "out", code=2)
    assert "huggingface_hub, which downloads it from Hugging Face, is not installed" in result.stderr
    assert "DIR/org/remote" in result.stderr


@pytest.mark.usefixtures("no_client")
@pytest.mark.parametrize("place", ["iic/ms_agent", "ms_agent", "ms-agent"])
def test_a_hub_dataset_is_read_from_a_local_folder(run: Run, tmp_path: Path, place: str) -> None:
    lines = (DATA / "ms_agent" / "rows.jsonl").read_text("utf-8")
    (tmp_path / "local" / place).mkdir(parents=True)
    (tmp_path / "local" / place / "train.jsonl").write_text(lines, "utf-8")
    (tmp_path / "local" / place / "README.md").write_text("a card")
    run("compile", "--mix", "ms-agent", "--registry", tmp_path / "local", "-o", tmp_path / "out")
    (entry,) = manifest(tmp_path / "out")["datasets"]
    assert (entry["format"], entry["weights"], entry["realized"]["rows"]) == ("ms_agent", "react", 6)
    assert entry["source"] == {"hub": {"modelscope": "iic/ms_agent"}}
    assert not entry["sample"]


@pytest.mark.usefixtures("no_client")
def test_a_hub_entry_ignores_its_other_places(run: Run, tmp_path: Path) -> None:
    """LLaMA-Factory's order: hub, script, cloud, file."""
    entry = {"hf_hub_url": "org/d", "script_url": "s", "cloud_file_name": "s3://x", "file_name": "never.json"}
    folder = info(tmp_path / "reg", x=entry)
    write(folder / "org" / "d" / "train.jsonl", alpaca("a"))
    run("compile", "--mix", "x", "--registry", folder, "-o", tmp_path / "out")
    assert [row["file"] for row in rows(tmp_path / "out")] == ["d/train.jsonl"]
