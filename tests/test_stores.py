"""Sources and sets in an object store: the same rows, the same sets, whole or not there; a real S3 server."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import Result

from cli import main
from compiler.read import cut, open_source, read
from compiler.report.browse import Site
from compiler.sets import store as uploads
from compiler.sets.verify import find_damage
from compiler.units.progress import Watcher
from schemas import kept, stores
from schemas.errors import InputError, IntegrityError, UsageError
from schemas.manifest import files_of, read_manifest
from schemas.reader import CompiledSet
from schemas.stores import StorePath, path_of
from tests.support.command import runner
from tests.support.store import BUCKET, Store, credentials, wire_to
from tests.support.vision import draw_images, make_model

ROWS = [{"instruction": f"Question {n}?", "output": f"Answer {n}. " + "ö" * (n % 7)} for n in range(60)]
LINES = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in ROWS)

ROOT = Path(__file__).resolve().parent.parent
Compile = Callable[..., Result]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def compile_(cache: Path) -> Compile:
    """Compile in this process, with the cache of this module."""

    def invoke(*arguments: object, code: int = 0, cache: Path = cache) -> Result:
        given = ["compile", *map(str, arguments), "--cache", str(cache)]
        result = runner().invoke(main, [*given, *(() if "--workers" in given else ("--workers", "1"))])
        assert result.exit_code == code, f"{result.stdout}\n{result.stderr}\n{result.exception!r}"
        return result

    return invoke


@pytest.fixture
def prefix(store: Store, request: pytest.FixtureRequest) -> str:
    """A folder of the bucket for this test alone."""
    assert store.address
    return f"t/{hashlib.sha256(request.node.name.encode()).hexdigest()[:16]}"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES)
    return path


def text_of(result: Result) -> str:
    assert "Traceback" not in result.stderr
    return result.stderr


# -- sources --


def table() -> pa.Table:
    return pa.Table.from_pylist(ROWS)


def arrow_bytes() -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table().schema) as writer:
        writer.write_table(table(), max_chunksize=20)
    return sink.getvalue()


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(table(), sink, row_group_size=20)
    return sink.getvalue()


def workbook_bytes() -> bytes:
    book, sink = openpyxl.Workbook(), io.BytesIO()
    for line in [["instruction", "output"], *([row["instruction"], row["output"]] for row in ROWS)]:
        book.worksheets[0].append(line)
    book.save(sink)
    return sink.getvalue()


def csv_bytes() -> bytes:
    return b"instruction,output\n" + b"".join(f'"{r["instruction"]}","{r["output"]}"\n'.encode() for r in ROWS)


FILES: dict[str, Callable[[], bytes]] = {
    "a.jsonl": lambda: LINES,
    "a.json": lambda: b"[" + LINES.strip().replace(b"\n", b",\n") + b"]",
    "a.csv": csv_bytes,
    "a.txt": lambda: LINES,
    "a.parquet": parquet_bytes,
    "a.arrow": arrow_bytes,
    "a.xlsx": workbook_bytes,
    "a.jsonl.gz": lambda: gzip.compress(LINES),
    "a.json.zst": lambda: zstandard.compress(b"[" + LINES.strip().replace(b"\n", b",") + b"]"),
    "a.parquet.gz": lambda: gzip.compress(parquet_bytes()),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_in_a_store_has_the_units_and_rows_of_the_same_file_here(
    store: Store, prefix: str, tmp_path: Path, name: str
) -> None:
    data = FILES[name]()
    (tmp_path / name).write_bytes(data)
    here = list(cut(open_source(tmp_path / name), 512))
    there = list(cut(open_source(store.put(f"{prefix}/{name}", data)), 512))
    assert [unit.digest for unit in there] == [unit.digest for unit in here]
    assert [list(read(unit)) for unit in there] == [list(read(unit)) for unit in here]
    assert sum(1 for unit in there for _ in read(unit)) == len(ROWS)


def without_file(split: pa.Table) -> list[dict[str, Any]]:
    return split.drop_columns(["file"]).to_pylist()


def test_sources_in_a_store_compile_to_the_rows_of_local_ones_and_use_their_objects(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path
) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    uri = store.put(f"{prefix}/data/a.jsonl", LINES)
    packed = store.put(f"{prefix}/data/b.parquet", parquet_bytes())
    here = compile_(tmp_path / "a.jsonl", "-o", tmp_path / "here")
    there = compile_(uri, "-o", tmp_path / "there")
    assert "1 unit compiled" in here.stdout
    assert "reused from the cache, none compiled" in there.stdout
    expected, found = (CompiledSet.open(tmp_path / name).table("train") for name in ("here", "there"))
    assert without_file(found) == without_file(expected)
    assert set(found["file"].to_pylist()) == {uri}
    compile_(uri, packed, "--workers", "2", "-o", tmp_path / "both")
    both = CompiledSet.open(tmp_path / "both")
    assert sorted(row["row"] for row in both.rows("train")) == sorted([*range(60), *range(60)])


def test_where_the_store_is_may_stand_in_the_uri_and_is_kept_nowhere(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = store.put(f"{prefix}/a.jsonl", LINES)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    compile_(f"{uri}?endpoint_override={store.address}&scheme=http", "-o", tmp_path / "out")
    assert {row["file"] for row in CompiledSet.open(tmp_path / "out").rows("train")} == {uri}
    assert store.address not in (tmp_path / "out" / "manifest.json").read_text()


@pytest.mark.parametrize("key", ["file_name", "cloud_file_name"])
def test_a_dataset_info_may_name_a_file_or_a_folder_in_a_store(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path, key: str
) -> None:
    file = store.put(f"{prefix}/one.jsonl", LINES)
    for name in ("train-0.jsonl", "train-1.jsonl", "test-0.jsonl", "notes.md"):
        store.put(f"{prefix}/many/{name}", LINES)
    info = {"one": {key: file}, "many": {key: f"s3://{BUCKET}/{prefix}/many"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    compile_("--registry", tmp_path, "--mix", "one,many", "-o", tmp_path / "out")
    found = {row["file"] for row in CompiledSet.open(tmp_path / "out").rows("train")}
    assert found == {file, *(f"s3://{BUCKET}/{prefix}/many/train-{n}.jsonl" for n in (0, 1))}


def test_a_large_file_is_fetched_piece_by_piece(store: Store, prefix: str) -> None:
    row = json.dumps({"instruction": "Long?", "output": "x" * 8000}).encode() + b"\n"
    data = row * (48 * 2**20 // len(row))
    store.put(f"{prefix}/large.jsonl", data)
    with wire_to(store) as wire:
        source = open_source(f"s3://{BUCKET}/{prefix}/large.jsonl{wire.query}")
        units = cut(source)
        next(units)
        assert wire.received < 32 * 2**20, "the first unit needs the beginning of the file only"
        tracemalloc.start()
        total = sum(len(unit.data or b"") for unit in units)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert total > len(data) * 0.9
    assert peak < 24 * 2**20


def test_a_file_takes_few_requests(store: Store, prefix: str) -> None:
    data = os.urandom(10 * 2**20)
    uri = store.put(f"{prefix}/data", data)
    with wire_to(store) as wire:
        path = path_of(uri + wire.query)
        assert path.read_bytes() == data
        assert len(wire.requests) <= 3, "what it is, and all of it"
        wire.requests.clear()
        with path.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256(data).digest()  # type: ignore[arg-type]
            file.seek(5)
            assert file.read(9 * 2**20) == data[5 : 5 + 9 * 2**20]
        assert len(wire.requests) <= 8, "10 MiB in pieces of 4, and 9 MiB at once"


def test_files_in_a_store_are_compiled_in_parts(compile_: Compile, store: Store, prefix: str, tmp_path: Path) -> None:
    files = {"a.jsonl": LINES, "b.parquet": parquet_bytes(), "c.jsonl.gz": gzip.compress(LINES)}
    uris = [store.put(f"{prefix}/{name}", data) for name, data in files.items()]
    given: list[object] = [*uris, "-o", tmp_path / "out"]
    own = tmp_path / "cache"
    for part in ("0/2", "1/2"):
        assert json.loads(compile_(*given, "--only", part, "--json", cache=own).stdout)["units_compiled"] > 0
    linked = json.loads(compile_(*given, "--json", cache=own).stdout)
    assert (linked["units_compiled"], linked["datasets"][1]["realized"]["rows"]) == (0, len(ROWS))


def test_a_file_that_changes_while_it_is_cut_or_before_it_is_read_is_noticed(store: Store, prefix: str) -> None:
    lines = iter(cut(open_source(store.put(f"{prefix}/a.jsonl", LINES)), 512))
    next(lines)
    store.put(f"{prefix}/a.jsonl", LINES.replace(b"Answer", b"Tanswe"))
    with pytest.raises(InputError, match=r"a\.jsonl: changed since it was cut into units"):
        list(lines)
    units = list(cut(open_source(store.put(f"{prefix}/a.parquet", parquet_bytes()))))
    store.put(f"{prefix}/a.parquet", parquet_bytes()[:-9] + b"x" * 9)
    with pytest.raises(InputError, match=r"a\.parquet: changed since it was cut into units"):
        list(read(units[0]))
    store.client.delete_object(Bucket=BUCKET, Key=f"{prefix}/a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: no such file"):
        list(read(units[0]))


def test_images_are_read_from_media_dir_and_not_from_a_store(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    draw_images(tmp_path / "images")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A square."}]
    uri = store.put(f"{prefix}/a.jsonl", json.dumps({"conversations": turns, "images": ["a.png"]}).encode())
    said = text_of(compile_(uri, "--tokenizer", model, "-o", tmp_path / "out", code=3))
    assert "not read from object stores; copy them, and name the folder with --media-dir" in said
    compile_(uri, "--tokenizer", model, "--media-dir", tmp_path / "images", "-o", tmp_path / "out")
    assert [row["images"][0]["uri"] for row in CompiledSet.open(tmp_path / "out").rows("train")] == ["a.png"]


def test_images_of_the_rows_are_files_of_the_set_in_the_store(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model")
    draw_images(tmp_path / "images")
    lines = []
    for name in ("a.png", "b.png"):
        url = f"data:image/png;base64,{base64.b64encode((tmp_path / 'images' / name).read_bytes()).decode()}"
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A square."}]
        lines.append(json.dumps({"conversations": turns, "images": [url]}))
    uri, target = store.put(f"{prefix}/a.jsonl", "\n".join(lines).encode()), f"s3://{BUCKET}/{prefix}/set"
    compile_(uri, "--tokenizer", model, "-o", target)
    opened = CompiledSet.open(target)
    for row in opened.rows("train"):
        (image,) = row["images"]
        assert hashlib.sha256((opened.files / image["uri"]).read_bytes()).hexdigest() == image["sha256"]
    assert find_damage(opened) == []
    name = f"{opened.files.name}/{image['uri']}"
    store.put(f"{prefix}/set/{name}", b"another")
    store.put(f"{prefix}/set/{opened.files.name}/media/mine.png", b"mine")
    assert find_damage(opened) == [f"{image['uri']}: is damaged or was edited", "media/mine.png: no row has it"]
    compile_(uri, "--limit", 1, "--tokenizer", model, "-o", target)
    assert len([key for key in store.keys(f"{prefix}/set") if "/media/" in key]) == 1


# -- what goes wrong, in words --


@pytest.mark.parametrize(
    ("uri", "what", "code"),
    [
        (f"s3://{BUCKET}/none.jsonl", f"error: s3://{BUCKET}/none.jsonl: no such file", 5),
        ("s3://nowhere-at-all/a.jsonl", "error: s3://nowhere-at-all/a.jsonl: no such bucket", 5),
        (f"s3://{BUCKET}/w/folder", f"error: s3://{BUCKET}/w/folder/empty.jsonl: has no rows", 5),
        (f"s3://{BUCKET}/w/folder/empty.jsonl", "empty.jsonl: has no rows", 5),
        (f"s3://{BUCKET}/w/folder/false.parquet", "false.parquet: cannot be read as a Parquet file", 5),
        (f"s3://{BUCKET}/a.jsonl?endpoint_override=127.0.0.1:1&scheme=http", "the store cannot be reached", 5),
        (f"s3://{BUCKET}/a.jsonl?colour=red", "unknown after the '?': colour", 2),
        (f"s3://me:geheim@{BUCKET}/a.jsonl", f"error: s3://{BUCKET}/a.jsonl: credentials are not part of a URI", 2),
        ("s3:///a.jsonl", "expected s3://BUCKET/KEY", 2),
    ],
)
def test_a_source_that_cannot_be_read_is_one_message(
    store: Store, compile_: Compile, tmp_path: Path, uri: str, what: str, code: int
) -> None:
    store.put("w/folder/empty.jsonl", b"")
    store.put("w/folder/false.parquet", b"PAR1 not at all PAR1")
    said = text_of(compile_(uri, "-o", tmp_path / "out", code=code))
    assert what in said
    assert "geheim" not in said
    assert len(said.strip().splitlines()) <= 2


@pytest.fixture
def as_(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Be another user of the store."""

    def become(environment: dict[str, str]) -> None:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        stores._filesystem.cache_clear()

    yield become
    stores._filesystem.cache_clear()


def test_wrong_credentials_are_one_message(
    store: Store, prefix: str, compile_: Compile, rows: Path, tmp_path: Path, as_: Callable[[dict[str, str]], None]
) -> None:
    uri = store.put(f"{prefix}/a.jsonl", LINES)
    as_({"AWS_SECRET_ACCESS_KEY": "wrong"})
    for arguments in ((uri, "-o", tmp_path / "out"), (rows, "-o", f"s3://{BUCKET}/{prefix}/out")):
        assert "permission denied\n  Check AWS_ACCESS_KEY_ID" in text_of(compile_(*arguments, code=5))


def test_who_may_only_read_can_compile_from_a_store_and_not_into_it(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path, as_: Callable[[dict[str, str]], None]
) -> None:
    uri = store.put(f"{prefix}/a.jsonl", LINES)
    as_(credentials("reader"))
    compile_(uri, "-o", tmp_path / "out")
    assert "permission denied" in text_of(compile_(uri, "-o", f"s3://{BUCKET}/{prefix}/out", code=5))
    assert store.keys(f"{prefix}/out") == []


def test_credentials_of_a_profile_are_used(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    as_: Callable[[dict[str, str]], None],
) -> None:  # fmt: skip
    owner = credentials("owner")
    keys = [f"{name.lower()} = {owner[name]}" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
    (tmp_path / "credentials").write_text("\n".join(["[mine]", *keys]))
    uri = store.put(f"{prefix}/a.jsonl", LINES)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    as_({"AWS_PROFILE": "mine", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")})
    compile_(uri, "-o", f"s3://{BUCKET}/{prefix}/out")
    as_({"AWS_PROFILE": "other"})
    said = text_of(compile_(uri, "-o", f"s3://{BUCKET}/{prefix}/out", code=5))
    assert "other" in said or "permission denied" in said


# -- sets --


def target(prefix: str) -> tuple[str, StorePath]:
    uri = f"s3://{BUCKET}/{prefix}/set"
    path = path_of(uri)
    assert isinstance(path, StorePath)
    return uri, path


def test_a_set_in_a_store_is_the_local_one(store: Store, prefix: str, compile_: Compile, tmp_path: Path) -> None:
    uri, path = target(prefix)
    (tmp_path / "bad.jsonl").write_bytes(LINES + b"{}\n")
    given = (tmp_path / "bad.jsonl", "--val-size", "0.2", "--max-rejects", "1")
    compile_(*given, "-o", tmp_path / "here")
    compile_(*given, "-o", uri)
    here, there = CompiledSet.open(tmp_path / "here"), CompiledSet.open(path)
    assert there.manifest["digest"] == here.manifest["digest"]
    assert find_damage(there) == []
    assert list(there.rows("val")) == list(here.rows("val"))
    assert there.table("train") == here.table("train")
    folder = there.manifest["run"]["folder"]
    local = {
        file.relative_to(tmp_path / "here").as_posix() for file in (tmp_path / "here").rglob("*") if file.is_file()
    }
    assert set(store.keys(f"{prefix}/set")) == {
        name if name == "manifest.json" else f"{folder}/{name}" for name in local
    }
    for name in local - {"manifest.json"}:
        assert store.get(f"{prefix}/set/{folder}/{name}") == (tmp_path / "here" / name).read_bytes()


def test_what_reads_sets_works_on_one_in_a_store(
    store: Store, prefix: str, compile_: Compile, rows: Path, tmp_path: Path
) -> None:
    uri, path = target(prefix)
    compile_(rows, "-o", tmp_path / "here")
    compile_(rows, "-o", uri)

    def said(*arguments: str, code: int = 0) -> str:
        result = runner().invoke(main, arguments)
        assert result.exit_code == code, result.stderr
        return result.stdout + result.stderr

    for question in (["--row", "3"], ["--find", "Answer 7"], ["--rejected"], ["--assert", "user:0"], ["--sample", "2"]):
        assert said("inspect", uri, *question) == said("inspect", str(tmp_path / "here"), *question)
    assert "are whole" in said("verify", uri)
    for command, *more in (["why", f"{rows}:4"], ["stats", "--json"]):
        assert said(command, uri, *more) == said(command, str(tmp_path / "here"), *more)
    assert said("diff", uri, str(tmp_path / "here")).startswith("equal: ")
    pages = []
    for where in (uri, str(tmp_path / "here")):
        said("report", where, "-o", str(tmp_path / "report.html"), "--rows", "5")
        listed = Site(CompiledSet.open(where), None).page("", "sort=longest&text=Answer")
        pages.append([(tmp_path / "report.html").read_text().replace(where, "SET"), str(listed).replace(where, "SET")])
    assert pages[0][0].partition("<h2>Rows</h2>")[2] == pages[1][0].partition("<h2>Rows</h2>")[2] != ""
    assert pages[0][1].partition("<h2")[2] == pages[1][1].partition("<h2")[2] != ""
    shard = f"{prefix}/set/{read_manifest(path)['run']['folder']}/train/shard-00000.arrow"
    data = bytearray(store.get(shard))
    data[len(data) // 2] ^= 1
    store.put(shard, bytes(data))
    assert "train/shard-00000.arrow: batch 0 (rows 0 to 59) is damaged" in said("verify", uri, code=4)
    assert "is damaged" in said("inspect", uri, "--row", "3", code=4)
    store.client.delete_object(Bucket=BUCKET, Key=shard)
    assert "train/shard-00000.arrow: No such file or directory" in said("verify", uri, code=4)
    assert "no such file or folder" in said("verify", f"{uri}-not", code=5)
    assert "no such bucket" in said("inspect", "s3://nowhere-at-all/x", code=5)


def test_a_set_is_copied_from_and_to_a_store_as_it_is(
    store: Store, prefix: str, compile_: Compile, rows: Path, tmp_path: Path
) -> None:
    uri, _ = target(prefix)
    compile_(rows, "-o", uri)
    for name in store.keys(f"{prefix}/set"):
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(store.get(f"{prefix}/set/{name}"))
    assert find_damage(CompiledSet.open(tmp_path / "copy")) == []
    compile_(rows, "-o", tmp_path / "here")
    for file in (tmp_path / "here").rglob("*"):
        if file.is_file():
            store.put(f"{prefix}/back/{file.relative_to(tmp_path / 'here')}", file.read_bytes())
    path = path_of(f"s3://{BUCKET}/{prefix}/back")
    assert find_damage(CompiledSet.open(path)) == []
    compile_(rows, "-o", path, "--seed", "1")
    assert find_damage(CompiledSet.open(path)) == []
    assert not [name for name in store.keys(f"{prefix}/back") if name.startswith("train/")]


def test_other_programs_read_the_shards(store: Store, prefix: str, compile_: Compile, rows: Path) -> None:
    assert store.address
    uri, path = target(prefix)
    compile_(rows, "-o", uri)
    opened = CompiledSet.open(path)
    found = pyarrow.dataset.dataset(str(opened.files / "train"), format="arrow").to_table()
    assert found.to_pylist() == list(opened.rows("train"))


def test_each_file_is_one_put_and_the_manifest_is_the_last(
    store: Store, prefix: str, compile_: Compile, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with wire_to(store) as wire:
        compile_(rows, "-o", f"s3://{BUCKET}/{prefix}/set{wire.query}")
    puts = [path.removeprefix(f"/{BUCKET}/{prefix}/set/") for method, path in wire.requests if method == "PUT"]
    assert puts[-1] == "manifest.json"
    probe = next(name for name in puts if name.endswith("/README.md"))  # put again, to see that this is refused
    assert sorted([*store.keys(f"{prefix}/set"), probe]) == sorted(puts)


def test_a_set_is_replaced_at_once_and_its_old_files_are_removed(
    store: Store, prefix: str, compile_: Compile, rows: Path
) -> None:
    uri, path = target(prefix)
    compile_(rows, "-o", uri)
    store.put(f"{prefix}/set/notes.txt", b"mine")
    before = CompiledSet.open(path)
    compile_(rows, "-o", uri, "--seed", "1")
    after = CompiledSet.open(path)
    assert after.manifest["digest"] != before.manifest["digest"]
    assert find_damage(after) == []
    assert "train/shard-00000.arrow: No such file or directory" in find_damage(before)
    with pytest.raises(IntegrityError, match="another set took its place while it was read"):
        list(before.rows("train"))
    assert {name.split("/")[0] for name in store.keys(f"{prefix}/set")} == {
        "manifest.json", "notes.txt", after.manifest["run"]["folder"],
    }  # fmt: skip


def test_a_reader_never_sees_a_mix_while_a_set_is_replaced(prefix: str, compile_: Compile, rows: Path) -> None:
    uri, path = target(prefix)
    compile_(rows, "-o", uri)
    wrong: list[str] = []
    seen: set[str] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            opened = CompiledSet.open(path)
            seen.add(opened.manifest["digest"])
            gone = ("No such file", "another set took its place while it was read")
            wrong.extend(problem for problem in find_damage(opened) if not any(one in problem for one in gone))

    reader = threading.Thread(target=look)
    reader.start()
    for seed in range(1, 5):
        compile_(rows, "-o", uri, "--seed", seed)
    done.set()
    reader.join()
    assert wrong == []
    assert len(seen) > 1


def test_a_folder_of_something_else_is_refused_and_not_touched(
    store: Store, prefix: str, compile_: Compile, rows: Path
) -> None:
    store.put(f"{prefix}/set/thesis.txt", b"two years of work")
    store.put(f"{prefix}/other/manifest.json", b'{"name": "an app"}')
    store.put(f"{prefix}/file", b"a file")
    assert "holds no compiled set (found 'thesis.txt')" in text_of(
        compile_(rows, "-o", f"s3://{BUCKET}/{prefix}/set", code=2)
    )
    assert "holds no compiled set (found 'manifest.json')" in text_of(
        compile_(rows, "-o", f"s3://{BUCKET}/{prefix}/other", code=2)
    )
    assert "expected a folder, found a file" in text_of(compile_(rows, "-o", f"s3://{BUCKET}/{prefix}/file", code=2))
    assert store.keys(prefix) == ["file", "other/manifest.json", "set/thesis.txt"]


def test_a_bucket_that_is_not_there_is_one_message(compile_: Compile, store: Store, rows: Path) -> None:
    assert store.address
    assert "no such bucket" in text_of(compile_(rows, "-o", "s3://nowhere-at-all/x", code=5))


def test_too_many_rejects_publish_nothing_and_are_kept_in_the_cache(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "bad.jsonl").write_bytes(LINES + b"{}\n" * 9)
    said = text_of(compile_(tmp_path / "bad.jsonl", "-o", f"s3://{BUCKET}/{prefix}/set", code=3))
    assert f"All rejects are in {cache / 'set.rejects.jsonl'}" in said
    assert len((cache / "set.rejects.jsonl").read_bytes().splitlines()) == 9
    assert store.keys(prefix) == []


def broken_after(puts: int, error: BaseException) -> Callable[..., Path]:
    """A put that raises after some that work: no store raises a KeyboardInterrupt or a MemoryError in this process."""
    put, count = uploads.StoreOutput._put, iter(range(1000))

    def broken(self: uploads.StoreOutput, folder: str, path: Path) -> Path:
        if next(count) >= puts:
            raise error
        return put(self, folder, path)

    return broken


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (MemoryError(), 5), (InputError("somewhere", "is full"), 5)]
)
def test_an_exception_in_the_middle_publishes_nothing_and_leaves_nothing(
    store: Store, prefix: str, compile_: Compile, rows: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException,
    code: int, cache: Path,
) -> None:  # fmt: skip
    uri, path = target(prefix)
    for before in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(uploads.StoreOutput, "_put", broken_after(2, error))
            compile_(rows, "-o", uri, "--seed", "1", code=code)
        if not before:
            assert store.keys(f"{prefix}/set") == []
            compile_(rows, "-o", uri)
    assert find_damage(CompiledSet.open(path)) == []
    assert CompiledSet.open(path).manifest["seed"] == 0
    assert {name.split("/")[0] for name in store.keys(f"{prefix}/set")} == {
        "manifest.json", read_manifest(path)["run"]["folder"],
    }  # fmt: skip
    assert not list((cache / "outgoing").iterdir())


def test_a_store_that_goes_away_in_the_middle_leaves_the_old_set_and_says_what_remains(
    store: Store, prefix: str, compile_: Compile, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, path = target(prefix)
    compile_(rows, "-o", uri)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with wire_to(store) as wire:
        puts = iter(range(1000))
        gone = threading.Event()

        def cut_off(method: str, _path: str) -> str | None:
            if method == "PUT" and next(puts) == 3:
                gone.set()
            return "request" if gone.is_set() else None

        wire.on_request = cut_off
        said = text_of(compile_(rows, "-o", f"{uri}{wire.query}", "--seed", "1", code=5))
    assert "the store cannot be reached" in said
    assert "could not be removed" in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store.address}")
    opened = CompiledSet.open(path)
    assert (find_damage(opened), opened.manifest["seed"]) == ([], 0)
    compile_(rows, "-o", uri, "--seed", "2")  # which removes what remained
    assert len({name.split("/")[0] for name in store.keys(f"{prefix}/set")}) == 2


def test_a_compile_that_is_killed_while_it_puts_publishes_nothing_and_locks_nobody_out(
    store: Store, prefix: str, compile_: Compile, rows: Path, cache: Path
) -> None:
    uri, path = target(prefix)
    with wire_to(store) as wire:
        reached, go_on = threading.Event(), threading.Event()

        def stall(method: str, path: str) -> None:
            if method == "PUT" and path.endswith(".arrow"):
                reached.set()
                go_on.wait(30)

        wire.on_request = stall
        command = [sys.executable, "-m", "cli", "compile", str(rows), "-o", f"{uri}{wire.query}", "--workers", "1"]
        with subprocess.Popen([*command, "--cache", str(cache)], cwd=ROOT, stderr=subprocess.PIPE) as process:
            assert reached.wait(60)
            process.send_signal(signal.SIGKILL)
        go_on.set()
    assert "manifest.json" not in store.keys(f"{prefix}/set")
    with pytest.raises(InputError, match=r"no manifest\.json|no such file"):
        CompiledSet.open(path)
    compile_(rows, "-o", uri)
    assert find_damage(CompiledSet.open(path)) == []
    assert len({name.split("/")[0] for name in store.keys(f"{prefix}/set")}) == 2


@pytest.mark.parametrize("first_ever", [True, False])
def test_of_two_compiles_into_one_set_one_publishes_and_the_other_is_told(
    store: Store, prefix: str, compile_: Compile, rows: Path, tmp_path: Path, first_ever: bool
) -> None:
    """With two caches, as on two machines: nothing but the store knows of both."""
    uri, path = target(prefix)
    if not first_ever:
        compile_(rows, "-o", uri)
    other = [sys.executable, "-m", "cli", "compile", str(rows), "-o", uri, "--seed", "2", "--workers", "1"]
    others = iter([[*other, "--cache", str(tmp_path / "other")]])

    def publish_another(method: str, key: str) -> None:
        """Hold the first manifest back until another compile has published."""
        if method == "PUT" and key.endswith("manifest.json"):
            for command in others:
                subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=50)

    with wire_to(store) as wire:
        wire.on_request = publish_another
        said = text_of(compile_(rows, "-o", f"{uri}{wire.query}", "--seed", "1", code=6))
    assert f"error: {uri}" in said and "another compile published there" in said
    opened = CompiledSet.open(path)
    assert (opened.manifest["seed"], find_damage(opened)) == (2, [])
    assert len({name.split("/")[0] for name in store.keys(f"{prefix}/set")}) == 2


def test_a_second_compile_on_this_machine_is_told_before_it_begins(
    store: Store, prefix: str, compile_: Compile, rows: Path, cache: Path
) -> None:
    uri, path = target(prefix)
    assert store.keys(prefix) == []
    with uploads.StoreOutput(path, cache, Watcher()):
        said = text_of(compile_(rows, "-o", uri, code=6))
    assert f"error: {uri}: another compile on this machine is writing it" in said
    compile_(rows, "-o", uri)


def test_an_answer_that_gets_lost_does_not_take_a_published_set_back(
    store: Store, prefix: str, compile_: Compile, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client tries again, and is told that the manifest is already there: it is our own."""
    uri, path = target(prefix)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with wire_to(store) as wire:
        lost = iter(["answer"])
        wire.on_request = lambda method, path: (
            next(lost, None) if method == "PUT" and path.endswith("manifest.json") else None
        )
        compile_(rows, "-o", f"{uri}{wire.query}")
        assert next(lost, None) is None
        assert sum(method == "PUT" and path.endswith("manifest.json") for method, path in wire.requests) == 2
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{store.address}")
    assert find_damage(CompiledSet.open(path)) == []


def test_a_store_that_ignores_conditions_is_refused(
    store: Store, prefix: str, compile_: Compile, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_of = uploads._client  # a header cannot be taken out on the wire: requests are signed

    def careless(path: StorePath) -> Any:
        client = client_of(path)
        put = client.put_object
        client.put_object = lambda **given: put(**{key: value for key, value in given.items() if key[:2] != "If"})
        return client

    monkeypatch.setattr(uploads, "_client", careless)
    said = text_of(compile_(rows, "-o", f"s3://{BUCKET}/{prefix}/set", code=5))
    assert "the store ignores the condition of a put" in said
    assert store.keys(prefix) == []


def test_writing_without_the_extra_says_what_to_install(
    store: Store, prefix: str, compile_: Compile, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.address
    monkeypatch.delitem(sys.modules, "compiler.sets.store")
    monkeypatch.setitem(sys.modules, "boto3", None)
    said = text_of(compile_(rows, "-o", f"s3://{BUCKET}/{prefix}/set", code=2))
    assert re.search(r"pip install -e '/.*\[s3\]'", said)


# -- the contract with other readers --


def test_the_files_of_a_set_are_where_the_manifest_says(tmp_path: Path) -> None:
    assert files_of(tmp_path, {}) == tmp_path
    assert files_of(tmp_path, {"run": {"folder": "ab-12"}}) == tmp_path / "ab-12"


def test_a_manifest_cannot_lead_out_of_its_folder(compile_: Compile, rows: Path, tmp_path: Path) -> None:
    compile_(rows, "-o", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    manifest["run"]["folder"] = "../elsewhere"
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(IntegrityError, match="/run/folder"):
        read_manifest(tmp_path / "out")


def test_a_path_in_a_store_has_the_parts_of_a_path() -> None:
    path = path_of("s3://b/data/a.jsonl.gz?region=eu-west-1")
    assert isinstance(path, StorePath)
    assert (path.name, path.suffix, path.suffixes, path.bucket) == ("a.jsonl.gz", ".gz", [".jsonl", ".gz"], "b")
    assert str(path.parent / "x") == "s3://b/data/x?region=eu-west-1"
    assert path_of(str(path)) == path
    assert path.uri == "s3://b/data/a.jsonl.gz"
    assert path_of("data/a.jsonl") == Path("data/a.jsonl")
    with pytest.raises(UsageError):
        path_of("s3://b/a#b")


# -- patience, and a store that answers late --


@pytest.fixture
def stopped(store: Store) -> Iterator[Callable[[bool], None]]:
    """A function that stops the store's process, or lets it go on."""

    def stop(yes: bool) -> None:
        store.server.send_signal(signal.SIGSTOP if yes else signal.SIGCONT)

    yield stop
    stop(False)


@pytest.mark.slow
def test_a_manifest_that_is_put_late_finds_its_files(
    store: Store, prefix: str, compile_: Compile, rows: Path, cache: Path, stopped: Callable[[bool], None]
) -> None:
    """The store stands still while the manifest is on its way, and the user does not wait."""
    uri, path = target(prefix)
    compile_(rows, "-o", uri)
    sent = threading.Event()
    with wire_to(store) as wire:

        def stand_still(method: str, path: str) -> None:
            if method == "PUT" and path.endswith("manifest.json") and not sent.is_set():
                stopped(True)
                sent.set()

        wire.on_request = stand_still
        command = [sys.executable, "-m", "cli", "compile", str(rows), "-o", f"{uri}{wire.query}", "--seed", "1"]
        with subprocess.Popen(
            [*command, "--workers", "1", "--cache", str(cache)], cwd=ROOT, stderr=subprocess.PIPE, text=True
        ) as process:
            assert sent.wait(60)
            time.sleep(2.5)  # the client sends the body when it has waited a second for an answer to the header
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=30)[1]
        stopped(False)
    assert "the store did not say whether the set is published" in said and "interrupted" in said
    deadline = time.monotonic() + 30
    while CompiledSet.open(path).manifest["seed"] != 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    opened = CompiledSet.open(path)
    assert (opened.manifest["seed"], find_damage(opened)) == (1, [])


def test_a_wire_that_is_cut_at_the_trial_of_a_condition_is_one_message(
    store: Store, prefix: str, compile_: Compile, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, _ = target(prefix)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    seen: list[str] = []

    def cut(method: str, path: str) -> str | None:
        again = method == "PUT" and path.endswith("README.md") and path in seen
        seen.append(path)
        return "request" if again else None

    with wire_to(store) as wire:
        wire.on_request = cut
        said = text_of(compile_(rows, "-o", f"{uri}{wire.query}", code=5))
    assert "the store cannot be reached" in said
    assert store.keys(f"{prefix}/set") == []  # what was put is removed


@pytest.mark.slow
def test_reading_waits_for_a_store_that_is_silent_for_a_while(
    store: Store, prefix: str, stopped: Callable[[bool], None]
) -> None:
    path = path_of(store.put(f"{prefix}/data", b"x" * 1000))
    stopped(True)
    threading.Timer(20, stopped, [False]).start()
    began = time.monotonic()
    assert path.read_bytes() == b"x" * 1000
    assert time.monotonic() - began > 15


def test_how_often_a_request_is_made_is_a_setting_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "7")
    assert stores.tries() == 7
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(UsageError, match="AWS_MAX_ATTEMPTS=many: expected a number from 1 to 99"):
        stores.tries()


# -- many small files --


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "jsonl.gz"])
def test_a_small_file_takes_two_requests_and_many_are_fetched_at_once(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path, kind: str
) -> None:
    for n in range(12):
        row = {"instruction": f"Question {n}?", "output": "An answer."}
        table = pa.Table.from_pylist([row])
        sink = io.BytesIO()
        pq.write_table(table, sink)
        line = json.dumps(row).encode() + b"\n"
        data = {"jsonl": line, "parquet": sink.getvalue(), "jsonl.gz": gzip.compress(line)}[kind]
        store.put(f"{prefix}/many/{n:02}.{kind}", data)
    waiting: list[int] = [0, 0]
    with wire_to(store) as wire:

        def slowly(_method: str, path: str) -> None:
            waiting[0] += 1
            waiting[1] = max(waiting)
            time.sleep(0.05 if f".{kind}" in path else 0)
            waiting[0] -= 1

        wire.on_request = slowly
        given = [f"many=s3://{BUCKET}/{prefix}/many{wire.query}", "-o", tmp_path / "out"]
        compile_(*given, cache=tmp_path / "cache")
        asked = [path for _, path in wire.requests if f".{kind}" in path]
        assert len(asked) == 2 * 12
        compile_(*given, cache=tmp_path / "cache")  # everything is in the cache, and files are looked at anew
        assert len([path for _, path in wire.requests if f".{kind}" in path]) == 4 * 12
    assert waiting[1] > 3  # at the same time
    assert CompiledSet.open(tmp_path / "out").manifest["splits"]["train"]["rows"] == 12


def test_a_small_file_is_read_anew_by_the_next_run(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path
) -> None:
    for answer in ("one", "two"):
        line = json.dumps({"instruction": "Which?", "output": answer}).encode() + b"\n"
        uri = store.put(f"{prefix}/which.jsonl", line)
        compile_(uri, "-o", tmp_path / answer)
    one, two = (CompiledSet.open(tmp_path / answer).manifest["digest"] for answer in ("one", "two"))
    assert one != two


@pytest.mark.parametrize("times", [1, 1000])
def test_bytes_that_arrive_damaged_are_noticed(
    store: Store, prefix: str, compile_: Compile, tmp_path: Path, times: int
) -> None:
    uri = store.put(f"{prefix}/rows.jsonl", LINES)
    left = iter(range(times))
    with wire_to(store) as wire:

        def flip(data: bytes) -> bytes:
            at = data.find(b"Question")
            number = next(left, None) if at >= 0 else None
            return data if number is None else data[: at + 2] + bytes([65 + number % 20]) + data[at + 3 :]

        wire.on_answer = flip
        done = compile_(uri + wire.query, "-o", tmp_path / "out", code=0 if times == 1 else 5)
    if times == 1:
        compile_(uri, "-o", tmp_path / "right")
        splits = [CompiledSet.open(tmp_path / name).manifest["splits"] for name in ("out", "right")]
        assert splits[0] == splits[1]
        assert find_damage(CompiledSet.open(tmp_path / "out")) == []
    else:
        assert "the store's answers differ" in text_of(done)


def test_one_key_in_two_stores_is_two_files(store: Store, prefix: str) -> None:
    """What is kept while a run lasts is by store, bucket and key."""
    uri = store.put(f"{prefix}/a", b"here")
    with kept.keeping(), wire_to(store) as wire:
        assert path_of(uri).read_bytes() == b"here"
        store.put(f"{prefix}/a", b"there")  # as the other store would have it
        assert path_of(uri + wire.query).read_bytes() == b"there"
        assert path_of(uri).read_bytes() == b"here"
