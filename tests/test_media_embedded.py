"""Images that rows hold themselves, as bytes in tables or as data URLs: they become files of the set.

The law: whatever way a row holds its images, its example is that of the same row with the images in files.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result
from PIL import Image

from compiler.cache import objects
from compiler.conversation import Embedded
from compiler.read import cut, open_source, read, tables
from schemas import disk
from tests.support.sets import chat, manifest, one_message, rejects, rows, write
from tests.support.shared import shared
from tests.support.vision import Row, make_model

Run = Callable[..., Result]
FORMATS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP"}
MIMES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "gif": "image/gif", "bmp": "image/bmp"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("embedded") / "model")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with a picture in each format, of different sizes, full of noise."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (suffix, format_) in enumerate(FORMATS.items()):
        size = (56 + 28 * number, 84)
        noise = random.Random(number).randbytes(size[0] * size[1] * 3)
        Image.frombytes("RGB", size, noise).save(folder / f"{suffix}.{suffix}", format_)
    return folder


NAMES = [f"{suffix}.{suffix}" for suffix in FORMATS]
CONTENTS = [
    (["<image>what is it?", "A clock."], ["png.png"]),
    (["<image> or <image>?", "The second.", "And <image>?", "No."], ["jpg.jpg", "webp.webp", "png.png"]),
    (["Hello.", "Hello."], []),
    (["see <image>", "Yes."], ["gif.gif"]),
    (["see <image>", "No."], ["bmp.bmp"]),
]


def openai(texts: list[str], **more: Any) -> Row:
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]} | more


def in_parts(texts: list[str], images: list[str], part: Callable[[str], Row]) -> Row:
    """The row with its images in parts, where their marks are."""
    waiting = iter(images)
    messages: list[Row] = []
    for i, text in enumerate(texts):
        if i % 2:
            messages.append({"role": "assistant", "content": text})
            continue
        content: list[Row] = []
        for n, piece in enumerate(text.split("<image>")):
            content += [part(next(waiting))] if n else []
            content += [{"type": "text", "text": piece}] if piece else []
        messages.append({"role": "user", "content": content})
    return {"messages": messages}


def data_url(path: Path) -> str:
    return f"data:{MIMES[path.suffix[1:]]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def as_paths(folder: Path, _: Path) -> Path:
    return write(folder / "rows.jsonl", *(openai(texts, images=images) for texts, images in CONTENTS))


def as_urls(folder: Path, pictures: Path) -> Path:
    found = (openai(texts, images=[data_url(pictures / name) for name in images]) for texts, images in CONTENTS)
    return write(folder / "rows.jsonl", *found)


def as_url_parts(folder: Path, pictures: Path) -> Path:
    def part(name: str) -> Row:
        return {"type": "image_url", "image_url": {"url": data_url(pictures / name)}}

    return write(folder / "rows.jsonl", *(in_parts(texts, images, part) for texts, images in CONTENTS))


def as_blocks(folder: Path, pictures: Path) -> Path:
    def part(name: str) -> Row:
        data = base64.encodebytes((pictures / name).read_bytes()).decode()  # in lines
        return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}

    return write(folder / "rows.jsonl", *(in_parts(texts, images, part) for texts, images in CONTENTS))


def as_features(folder: Path, pictures: Path) -> Path:
    """Written by the library that people write them with."""
    datasets = pytest.importorskip("datasets")
    held = [{"bytes": (pictures / name).read_bytes(), "path": None} for name in NAMES]
    lists = [[held[NAMES.index(name)] for name in images] for _, images in CONTENTS]
    text = datasets.Value("string")
    messages = [{"role": text, "content": text}]
    features = datasets.Features({"messages": messages, "images": [datasets.Image(decode=False)]})
    rows_ = [openai(texts)["messages"] for texts, _ in CONTENTS]
    made = datasets.Dataset.from_dict({"messages": rows_, "images": lists}, features=features)
    made.to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


def as_struct(folder: Path, pictures: Path) -> Path:
    """An Arrow file, with large binary and no paths."""
    held = [[{"bytes": (pictures / name).read_bytes()} for name in images] for _, images in CONTENTS]
    table = pa.table({
        "messages": [openai(texts)["messages"] for texts, _ in CONTENTS],
        "images": pa.array(held, pa.list_(pa.struct({"bytes": pa.large_binary()}))),
    })  # fmt: skip
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=2)
    return folder / "rows.arrow"


def as_table_parts(folder: Path, pictures: Path) -> Path:
    """Parts in a table: every part has every key, null where it has none."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    part_type = pa.struct({"type": pa.string(), "text": pa.string(), "image": image})
    message = pa.struct({"role": pa.string(), "content": pa.list_(part_type)})

    def part(name: str) -> Row:
        return {"type": "image", "image": {"bytes": (pictures / name).read_bytes(), "path": name}}

    lists = [in_parts(texts, images, part)["messages"] for texts, images in CONTENTS]
    for one in (message for messages in lists for message in messages):
        if isinstance(one["content"], str):
            one["content"] = [{"type": "text", "text": one["content"]}]
    table = pa.table({"messages": pa.array(lists, pa.list_(message))})
    pq.write_table(table, folder / "rows.parquet")
    return folder / "rows.parquet"


WAYS = [as_urls, as_url_parts, as_blocks, as_features, as_struct, as_table_parts]


@pytest.fixture
def compiled(run: Run, model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Compile a file with the vision model and return the set."""

    def compile_file(file: Path, *options: Any, out: str = "out", code: int = 0) -> Path:
        given = ["--tokenizer", model, "--no-shuffle", "--max-rejects", "100%", *options]
        run("compile", file, *given, "-o", tmp_path / out, code=code)
        return tmp_path / out

    return compile_file


def examples(out: Path) -> list[Any]:
    """What the law compares: everything but where rows and images are from."""
    found = []
    for row in rows(out):
        images = [{key: value for key, value in image.items() if key != "uri"} for image in row["images"]]
        keys = ("input_ids", "labels", "loss_weights", "spans", "seq_lens", "row", "part", "num_trained")
        found.append({key: row[key] for key in keys} | {"images": images})
    return found


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_row_is_the_same_whether_its_images_are_files_or_in_it(
    compiled: Callable[..., Path], pictures: Path, tmp_path: Path, way: Callable[[Path, Path], Path]
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    in_files = examples(compiled(as_paths(pictures, pictures), out="files"))
    out = compiled(way(folder, pictures))
    assert examples(out) == in_files
    assert [len(row["images"]) for row in in_files] == [1, 3, 0, 1, 1]


@pytest.mark.parametrize("way", [as_urls, as_features], ids=lambda way: way.__name__)
def test_images_in_rows_are_files_of_the_set_each_once_by_its_digest(
    compiled: Callable[..., Path], run: Run, pictures: Path, tmp_path: Path, way: Callable[[Path, Path], Path]
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    out = compiled(way(folder, pictures))
    shutil.rmtree(folder)
    digests = {name: hashlib.sha256((pictures / name).read_bytes()).hexdigest() for name in NAMES}
    named = {f"media/{d[:2]}/{d}.{name.split('.')[1]}": (pictures / name).read_bytes() for name, d in digests.items()}
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / "media").rglob("*.*")}
    assert found == named
    for row, (_, images) in zip(rows(out), CONTENTS, strict=True):
        assert [image["sha256"] for image in row["images"]] == [digests[name] for name in images]
        assert all(image["uri"] in named for image in row["images"])
    total = sum(map(len, named.values()))
    assert manifest(out)["media"]["embedded"] == {"files": 5, "bytes": total}
    assert "Images that rows held: 5 files in `media`" in (out / "README.md").read_text("utf-8")
    run("verify", out)
    assert "media/" in run("inspect", out, "--limit", "1").stdout


def test_the_summary_says_how_many_images_and_bytes_there_are(
    run: Run, model: Path, pictures: Path, tmp_path: Path
) -> None:
    file = as_urls(tmp_path, pictures)
    said = run("compile", file, "--tokenizer", model, "-o", tmp_path / "out").stdout
    assert "images in rows: 5 files in media/, " in said
    said = run("compile", as_paths(pictures, pictures), "--tokenizer", model, "-o", tmp_path / "plain").stdout
    assert "images in rows" not in said
    assert "embedded" not in manifest(tmp_path / "plain")["media"]
    assert not (tmp_path / "plain" / "media").exists()


def test_datasets_share_an_image_and_a_set_holds_those_of_its_own_rows(
    run: Run, model: Path, pictures: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    files = [as_urls(first, pictures).rename(first / "a.jsonl"), as_features(second, pictures)]
    given = ["--tokenizer", model, "-o", tmp_path / "out"]
    run("compile", *files, *given)
    assert len(list((tmp_path / "out" / "media").rglob("*.*"))) == 5
    kept = list((tmp_path / "cache" / "media").rglob("*.*"))
    assert len(kept) == 5
    run("compile", files[0], "--limit", 1, *given)
    (only,) = (tmp_path / "out" / "media").rglob("*.*")
    assert only.read_bytes() == (pictures / "png.png").read_bytes()
    run("compile", as_paths(pictures, pictures), *given)
    assert not (tmp_path / "out" / "media").exists()


# -- what is no image --


def parquet(path: Path, images: list[Any], type_: pa.DataType, **columns: Any) -> Path:
    """A table of one question with an image each."""
    table = pa.table({
        "instruction": ["<image>q"] * len(images), "output": ["r"] * len(images),
        "images": pa.array(images, type_), **columns,
    })  # fmt: skip
    pq.write_table(table, path)
    return path


IMAGE_TYPE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_bytes_that_are_no_image_are_rejects_at_their_place_and_rows_show_a_digest_for_them(
    compiled: Callable[..., Path], pictures: Path
) -> None:
    png = (pictures / "png.png").read_bytes()
    images: list[Any] = [
        [{"bytes": png, "path": "clock.png"}],
        [{"bytes": png[:-100], "path": "clock.png"}],
        [{"bytes": b"\xff\x00 noise", "path": None}],
        [{"bytes": b"", "path": None}],
        [{"bytes": None, "path": None}],
        [{"bytes": None, "path": "../clock.png"}],
        [{"bytes": None, "path": "png.png"}],
        [{"bytes": b"plain text", "path": "png.png"}],
    ]
    out = compiled(parquet(pictures / "rows.parquet", images, pa.list_(IMAGE_TYPE)))
    assert [(row["row"], row["images"][0]["uri"][:6]) for row in rows(out)] == [(0, "media/"), (6, "png.pn")]
    found = rejects(out / "rejects.jsonl")
    assert [(r["row"], r["reason"], r["pointer"]) for r in found] == [
        (n, "media", "/images/0") for n in (1, 2, 3, 4, 5, 7)
    ]
    said = [r["message"] for r in found]
    for message, part in zip(said, ["cut off or broken", "expected an image", "expected 1 to", "found neither",
                                    "it contains '..'", "expected an image"], strict=True):  # fmt: skip
        assert part in message
    digest = hashlib.sha256(png[:-100]).hexdigest()
    held = {"bytes": f"sha256:{digest} ({len(png) - 100:,} bytes)", "path": "clock.png"}
    assert json.loads(found[0]["raw"])["images"] == [held]


def test_one_image_in_a_column_of_its_own_need_not_be_a_list(compiled: Callable[..., Path], pictures: Path) -> None:
    held = {"bytes": (pictures / "jpg.jpg").read_bytes(), "path": "photo"}
    table = pa.table({"conversations": [chat(("u", "<image>q"), ("a", "r"))["conversations"]],
                      "image": pa.array([held], IMAGE_TYPE)})  # fmt: skip
    pq.write_table(table, pictures / "rows.parquet")
    (row,) = rows(compiled(pictures / "rows.parquet"))
    assert row["images"][0]["uri"].endswith(".jpg")


BAD_URLS = [
    ("data:image/png,iVBOR", "expected a data URL in base64"),
    ("data:image/png;base64,iVB*", "expected a data URL in base64, found text that is not"),
    ("data:image/png;base64,", "expected 1 to"),
    ("data:image/png;base64,aGVsbG8=", "expected an image"),
    ("https://example.org/a.png", "references with a scheme are not followed"),
]


def test_a_data_url_that_holds_no_image_is_a_reject_at_its_place(
    compiled: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    good = data_url(pictures / "png.png")
    parts = [in_parts(["<image>q", "r"], [url], lambda url: {"type": "image_url", "image_url": {"url": url}})
             for url in (good, *(url for url, _ in BAD_URLS))]  # fmt: skip
    out = compiled(write(tmp_path / "rows.jsonl", *parts))
    assert [row["row"] for row in rows(out)] == [0]
    found = rejects(out / "rejects.jsonl")
    assert [(r["reason"], r["pointer"]) for r in found] == [("media", "/messages/0/content/0")] * len(BAD_URLS)
    for reject, (_, expected) in zip(found, BAD_URLS, strict=True):
        assert expected in reject["message"]


def test_bytes_as_text_in_a_text_file_are_a_reject_that_says_what_to_write(
    compiled: Callable[..., Path], pictures: Path
) -> None:
    """No text becomes a file: not one that spells what a row of a table shows for its bytes, either."""
    data = (pictures / "png.png").read_bytes()
    spelled = Embedded(data, "png.png")["bytes"]
    ask = {"instruction": "<image>q", "output": "r"}
    texts = [spelled, base64.b64encode(data).decode()]
    lines = [ask | {"images": [{"bytes": text, "path": "png.png"}]} for text in texts]
    out = compiled(write(pictures / "rows.jsonl", ask | {"images": [{"path": "png.png"}]}, *lines))
    assert [row["row"] for row in rows(out)] == [0]
    found = rejects(out / "rejects.jsonl")
    assert [(r["reason"], r["pointer"]) for r in found] == [("media", "/images/0/bytes")] * 2
    assert "give a path or a data URL" in found[0]["message"]


def test_rejects_of_rows_with_data_urls_show_the_rows_without_them(
    compiled: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    url = data_url(pictures / "png.png")
    block = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": url.split(",")[1]}}
    bad = [openai(["no mark", "r"], images=[url]), {"messages": [{"role": "user", "content": [block]}]}]
    file = write(tmp_path / "rows.jsonl", openai(["<image>q", "r"], images=[url]), *bad)
    found = rejects(compiled(file, "--format", "openai") / "rejects.jsonl")
    assert [r["row"] for r in found] == [1, 2]
    lines = file.read_bytes().splitlines()
    at = 0
    for n, line in enumerate(lines):
        if n:
            assert (found[n - 1]["offset"], found[n - 1]["length"]) == (at, len(line))
        at += len(line) + 1
    size = len(url.split(",")[1])
    assert json.loads(found[0]["raw"])["images"] == [f"data:image/png;base64,({size:,} characters of base64 left out)"]
    assert f'"data": "({size:,} characters of base64 left out)"' in found[1]["raw"]


def test_videos_in_rows_are_refused_by_name(compiled: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    url = data_url(pictures / "png.png")
    ask = {"instruction": "<video>q", "output": "r"}
    good = {"instruction": "<image>q", "output": "r", "images": [url]}
    out = compiled(write(tmp_path / "rows.jsonl", good, ask | {"videos": [url]}, ask | {"videos": [[url, url]]}))
    found = rejects(out / "rejects.jsonl")
    assert [(r["reason"], r["pointer"]) for r in found] == [("media", "/videos/0")] * 2
    assert "expected a video as a file, found its bytes in the row" in found[0]["message"]
    table = pa.table({"instruction": ["<video>q"], "output": ["r"],
                      "videos": pa.array([[{"bytes": b"\x00\xff", "path": None}]], pa.list_(IMAGE_TYPE))})  # fmt: skip
    pq.write_table(table, tmp_path / "rows.parquet")
    out = compiled(tmp_path / "rows.parquet", "--format", "alpaca", out="other", code=3)
    (reject,) = rejects(tmp_path / "other.rejects.jsonl")
    assert (reject["reason"], reject["pointer"]) == ("schema", "/videos/0")


def test_binary_elsewhere_in_a_row_is_what_it_was(tmp_path: Path) -> None:
    """In the arguments of a call a struct {bytes, path} is a struct: text, or a reject."""
    call = pa.struct({"arguments": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    for data, expected in ((b"text", {"bytes": "text", "path": "a"}), (b"\xff", None)):
        table = pa.table({"messages": pa.array([[{"arguments": {"bytes": data, "path": "a"}}]], pa.list_(call))})
        pq.write_table(table, tmp_path / "a.parquet")
        (row,) = (row for unit in cut(open_source(tmp_path / "a.parquet")) for row in read(unit))
        if expected is None:
            assert row.reject is not None
            assert row.reject.reason == "not_utf8"
        else:
            assert row.value["messages"][0]["arguments"] == expected


def test_rows_are_the_same_however_few_are_held_at_once(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path
) -> None:
    def values(file: Path) -> list[Any]:
        return [row.value for unit in cut(open_source(file)) for row in read(unit)]

    for file in (as_features(tmp_path, pictures), as_struct(tmp_path, pictures)):
        whole = values(file)
        monkeypatch.setattr(tables, "_BATCH_BYTES", 1)
        assert values(file) == whole
        monkeypatch.undo()
        assert [image.data for image in whole[0]["images"]] == [(pictures / "png.png").read_bytes()]


# -- CogAgent --


def screen_row(image: Any) -> Row:
    asked = "Task: Open the menu\nHistory steps: \n(Platform: WIN)\n(Answer in Action-Operation format.)\n"
    said = "Action: Click on the menu\nGrounded Operation: CLICK(box=[[012,034,056,078]], element_info='menu')"
    return {"messages": [{"role": "user", "content": asked, "image": image}, {"role": "assistant", "content": said}]}


def test_screenshots_of_cogagent_may_be_in_the_rows(run: Run, pictures: Path, tmp_path: Path) -> None:
    tokenizer = shared("tokenizers", "glm4")
    folder = tmp_path / "source"
    folder.mkdir()
    message = pa.struct({"role": pa.string(), "content": pa.string(), "image": IMAGE_TYPE})
    held = screen_row({"bytes": (pictures / "png.png").read_bytes(), "path": "screen.png"})["messages"]
    pq.write_table(pa.table({"messages": pa.array([held], pa.list_(message))}), folder / "table.parquet")
    files = {
        "paths": write(pictures / "rows.jsonl", screen_row("png.png")),
        "urls": write(folder / "rows.jsonl", screen_row(data_url(pictures / "png.png"))),
        "table": folder / "table.parquet",
    }
    found = {}
    for name, file in files.items():
        given = ["--tokenizer", tokenizer, "--template", "cogagent", "--format", "cogagent", "-o", tmp_path / name]
        run("compile", file, *given)
        found[name] = examples(tmp_path / name)
    assert found["paths"] == found["urls"] == found["table"]
    assert found["paths"][0]["images"][0]["num_tokens"] == 1600


# -- the cache --


def units(run: Run, model: Path, file: Path, out: Path, code: int = 0) -> tuple[int, int]:
    said = run("compile", file, "--tokenizer", model, "--no-shuffle", "--json", "-o", out, code=code).stdout
    summary = json.loads(said)
    return summary["units_compiled"], summary["units_cached"]


def test_a_cached_unit_links_its_images_again_and_is_compiled_anew_without_them(
    run: Run, model: Path, pictures: Path, tmp_path: Path
) -> None:
    file, kept = as_features(tmp_path, pictures), tmp_path / "cache" / "media"
    assert units(run, model, file, tmp_path / "first") == (1, 0)
    assert units(run, model, file, tmp_path / "second") == (0, 1)
    run("verify", tmp_path / "second")
    (path, *_) = sorted(kept.rglob("*.*"))
    path.unlink()
    assert units(run, model, file, tmp_path / "third") == (1, 0)
    run("verify", tmp_path / "third")
    assert len(list(kept.rglob("*.*"))) == 5


def test_a_damaged_image_in_the_cache_reaches_no_set(run: Run, model: Path, pictures: Path, tmp_path: Path) -> None:
    file, out = as_features(tmp_path, pictures), tmp_path / "out"
    given = ["--tokenizer", model, "-o", out]
    run("compile", file, *given)
    before = manifest(out)["digest"]
    path = sorted((tmp_path / "cache" / "media").rglob("*.*"))[0]
    damage(path)
    said = one_message(run("compile", file, *given, code=4).stderr)
    assert path.name in said
    assert "an image in the cache was damaged, and removed" in said
    run("compile", file, *given)
    assert manifest(out)["digest"] == before
    run("verify", out)


def damage(path: Path) -> None:
    """Put other bytes of the same number in the place of a file, which a set may be linked to."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_cache_verify_and_prune_know_images(run: Run, model: Path, pictures: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    kept = cache / "media"
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write(first, *(openai(["<image>q", "r"], images=[data_url(pictures / name)]) for name in NAMES[:2]))
    write(second, *(openai(["<image>q", "r"], images=[data_url(pictures / name)]) for name in NAMES[1:3]))
    for file in (first, second):
        run("compile", file, "--tokenizer", model, "-o", tmp_path / "out")
    objects.keep_file(cache, f"media/00/{'0' * 64}.png", b"of a run that was killed")
    listed = json.loads(run("cache", "list", "--cache", cache, "--json").stdout)
    assert listed["left_over"] == {"files": 1, "bytes": 24}
    on_disk = sum(path.stat().st_size for path in cache.rglob("*.*") if path.name != ".lock")
    assert listed["bytes"] == on_disk - 24

    path = sorted(kept.rglob("*.*"))[1]
    damage(path)
    assert str(path) in run("cache", "verify", "--cache", cache, code=4).stderr
    run("cache", "verify", "--cache", cache, "--remove")
    assert not path.exists()
    run("cache", "verify", "--cache", cache, code=4)  # the objects that list it are not whole without it
    for file in (first, second):
        run("compile", file, "--tokenizer", model, "-o", tmp_path / "out")
    run("cache", "verify", "--cache", cache)

    for record in (cache / "objects").rglob("*.json"):
        if b'"dataset":"a"' in record.read_bytes():
            os.utime(record, (0, 0))
    said = json.loads(run("cache", "prune", "--cache", cache, "--unused-for", "1d", "--json").stdout)
    assert (said["objects"], said["left_over"]) == (1, 1)
    names = {hashlib.sha256((pictures / name).read_bytes()).hexdigest() for name in NAMES[1:3]}
    assert {path.stem for path in kept.rglob("*.*")} == names
    run("cache", "prune", "--cache", cache, "--keep", "0")
    assert not list(kept.rglob("*.*"))


def test_workers_that_meet_the_same_image_write_one_file(run: Run, model: Path, pictures: Path, tmp_path: Path) -> None:
    images = [[{"bytes": (pictures / NAMES[n % 5]).read_bytes(), "path": None}] for n in range(40)]
    file = parquet(tmp_path / "rows.parquet", images, pa.list_(IMAGE_TYPE))
    pq.write_table(pq.read_table(file), file, row_group_size=5)
    run("compile", file, "--tokenizer", model, "--workers", 2, "-o", tmp_path / "out")
    assert len(rows(tmp_path / "out")) == 40
    kept = list((tmp_path / "cache" / "media").rglob("*"))
    assert len([path for path in kept if path.is_file()]) == 5
    run("verify", tmp_path / "out")


# -- sets --


def test_verify_names_images_that_are_gone_changed_or_strange(
    compiled: Callable[..., Path], run: Run, pictures: Path, tmp_path: Path
) -> None:
    out = compiled(as_features(tmp_path, pictures))
    first, second, *_ = sorted((out / "media").rglob("*.*"))
    first.unlink()
    damage(second)
    (out / "media" / "notes.txt").write_text("mine")
    said = run("verify", out, code=4).stderr
    for path, what in ((first, "No such file"), (second, "is damaged"), (out / "media" / "notes.txt", "no row has it")):
        (line,) = (line for line in said.splitlines() if path.name in line)
        assert what in line


def test_a_folder_of_somebody_else_is_neither_replaced_nor_removed(
    compiled: Callable[..., Path], run: Run, model: Path, pictures: Path, tmp_path: Path
) -> None:
    out = compiled(as_paths(pictures, pictures))
    (out / "media").mkdir()
    (out / "media" / "mine.png").write_bytes(b"mine")
    compiled(as_paths(pictures, pictures), "--seed", 1)
    assert (out / "media" / "mine.png").read_bytes() == b"mine"
    before = manifest(out)["digest"]
    given = ["--tokenizer", model, "-o", out]
    said = one_message(run("compile", as_urls(tmp_path, pictures), *given, code=2).stderr)
    assert "its folder media holds something else" in said
    assert manifest(out)["digest"] == before
    assert (out / "media" / "mine.png").read_bytes() == b"mine"


def test_a_set_that_is_replaced_loses_its_images_and_one_that_is_not_keeps_them(
    compiled: Callable[..., Path], run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = compiled(as_urls(tmp_path, pictures))
    rename = Path.rename

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def fail_at_manifest(self: Path, target: Path) -> Path:
        if self.name == "manifest.json":
            fail()
        return rename(self, target)

    one = write(tmp_path / "one.jsonl", openai(["<image>q", "r"], images=[data_url(pictures / "jpg.jpg")]))
    monkeypatch.setattr(disk, "exchange", fail)
    monkeypatch.setattr(Path, "rename", fail_at_manifest)
    compiled(one, code=5)
    monkeypatch.undo()
    run("verify", out)
    assert len(list((out / "media").rglob("*.*"))) == 5
    compiled(one)
    assert len(list((out / "media").rglob("*.*"))) == 1
    run("verify", out)


def test_equal_images_of_one_row_are_one_file(compiled: Callable[..., Path], pictures: Path, tmp_path: Path) -> None:
    url = data_url(pictures / "png.png")
    (row,) = rows(compiled(write(tmp_path / "rows.jsonl", openai(["<image><image>q", "r"], images=[url, url]))))
    assert len({image["uri"] for image in row["images"]}) == 1
    assert len(row["images"]) == 2


def test_an_image_that_is_turned_is_measured_as_it_is_shown(compiled: Callable[..., Path], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sink = io.BytesIO()
    Image.new("RGB", (112, 56)).save(sink, "JPEG", exif=exif)
    url = f"data:image/jpeg;base64,{base64.b64encode(sink.getvalue()).decode()}"
    (row,) = rows(compiled(write(tmp_path / "rows.jsonl", openai(["<image>q", "r"], images=[url]))))
    assert [(image["width"], image["height"]) for image in row["images"]] == [(56, 112)]
