"""`cli report`: what the page shows is what is in the set, nothing from the data acts on it, and it needs nobody."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import Result

from cli import main
from compiler.inspect.rows import SplitExamples
from compiler.inspect.tokens import decode_row
from compiler.inspect.vocabulary import TokenBytes
from compiler.report import row_html
from compiler.report.measure import measure
from schemas import schema
from schemas.reader import CompiledSet
from tests.support.browser import Page, chromium
from tests.support.command import outside, runner
from tests.support.sets import manifest, one_message, rejects, rows, write
from tests.support.vision import draw_images, make_model

Run = Callable[..., Result]
CLI = [sys.executable, "-m", "cli"]
EVIL = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'><svg onload=alert(1)>"
    "<iframe src=javascript:window.hacked=1></iframe>\u202eltr\u2066 \x1b[31m \x00 ' \" {{7*7}} {% x %} --> ]]>"
)


def messages(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": said} for role, said in turns], **more}


def compiled(folder: Path, *options: object) -> Path:
    arguments = ["compile", *options, "--cache", folder / "cache", "--workers", "1", "-o", folder / "out"]
    done = runner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two datasets with both splits and weights."""
    return compiled(tmp_path_factory.mktemp("samples"), "--mix", "agent:3,bench:1", "--val-size", 20)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose rows, keys, rejects and file name try to run something."""
    folder = tmp_path_factory.mktemp("hostile")
    good = messages(("user", EVIL), ("assistant", EVIL), **{"<img src=x onerror=window.hacked=1>": 1})
    bad = messages(("user", EVIL + "rejected"))
    file = write(
        folder / "a<img src=x onerror=alert(1)>.jsonl", good, messages(("user", "Hi"), ("assistant", "Yo")), bad
    )
    return compiled(folder, f"evil={file}", "--format", "openai", "--max-rejects", 1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def report(out: Path, *options: object, code: int = 0) -> Result:
    target = () if "-o" in options else ("-o", out.parent / "report.html")
    done = runner().invoke(main, list(map(str, ["report", out, *target, *options])), catch_exceptions=False)
    assert done.exit_code == code, done.stderr
    return done


class Reader(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.titles: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.titles += [value or "" for name, value in attrs if tag == "i" and name == "title"]


# -- what is on the page --


def test_every_token_of_a_row_stands_there_with_its_id_label_and_weight(samples: Path) -> None:
    """The oracle is the shard itself."""
    opened = CompiledSet.open(samples)
    shards = rows(samples)
    number = next(n for n, row in enumerate(shards) if row["loss_weights"] and len(row["input_ids"]) < 1400)
    html = row_html(decode_row(SplitExamples(opened, "train"), number, TokenBytes(opened)))
    found = [
        (int(i), int(label), float(weight))
        for title in Reader(html).titles
        for i, label, weight in re.findall(r"id (\d+), label (-?\d+), weight ([\d.]+)", title)
    ]
    row = shards[number]
    assert found == list(zip(row["input_ids"], row["labels"], row["loss_weights"], strict=True))
    assert "<style>" in html and "<script" not in html  # what a notebook shows


def test_the_histograms_count_the_rows_of_the_shards(samples: Path) -> None:
    found = measure(CompiledSet.open(samples), 10, 0)
    every = [*rows(samples), *rows(samples, "val")]
    for name, figures in found.figures.items():
        lengths = [len(row["input_ids"]) for row in every if row["dataset"] == name]
        assert np.array_equal(figures.lengths, np.bincount(lengths))
        assert figures.quantile(1.0) == max(lengths)
        assert figures.trained == sum(row["num_trained"] for row in every if row["dataset"] == name)
        assert figures.shares.sum() == len(lengths)
    assert {name for name, _ in found.drawn} == {"train", "val"}


def test_the_sample_is_that_of_the_seed(samples: Path) -> None:
    opened = CompiledSet.open(samples)
    one, same, other = (measure(opened, 30, seed).drawn for seed in (1, 1, 2))
    assert one == same != other
    assert len(set(one)) == 30


def test_json_is_as_its_schema_says_and_counts_what_is_there(hostile: Path) -> None:
    found = json.loads(report(hostile, "--json").stdout)
    jsonschema.Draft202012Validator(schema("report")).validate(found)
    page = Path(found["report"]).read_bytes()
    assert len(page) == found["bytes"] < 5_000_000
    assert (found["rows"], found["rows_shown"], found["rejected"], found["rejected_shown"]) == (2, 2, 1, 1)
    assert found["set"] == manifest(hostile)["digest"]


def test_pairs_stand_side_by_side_and_kto_rows_say_what_they_are(tmp_path: Path) -> None:
    pair = {"instruction": "2+2?", "input": "", "chosen": "It is 4.", "rejected": "It is 5."}
    out = compiled(tmp_path, write(tmp_path / "pairs.jsonl", pair))
    report(out)
    page = (tmp_path / "report.html").read_text("utf-8")
    chosen, rejected = re.findall(r'<div class="side (?:chosen|rejected)">(.*?)</div>\n</div>', page, re.DOTALL) or [
        *page.partition('class="side chosen"')[2].partition('class="side rejected"')[::2]
    ]
    assert ">4<" in chosen and ">5<" in rejected and ">5<" not in chosen
    kto = messages(("user", "2+2?"), ("assistant", "5"), label=False)
    (tmp_path / "k").mkdir()
    report(compiled(tmp_path / "k", write(tmp_path / "kto.jsonl", kto)))
    assert "not desirable" in (tmp_path / "k" / "report.html").read_text("utf-8")


def test_a_closed_row_shows_how_the_first_message_of_the_user_begins(tmp_path: Path) -> None:
    turns = (("system", "Be short."), ("user", "2 + 2?"), ("assistant", "4"), ("user", "And 3?"), ("assistant", "5"))
    report(compiled(tmp_path, write(tmp_path / "chats.jsonl", messages(*turns))))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert re.findall(r'<span class="begin" dir="auto">(.*?)</span>', page) == ["2 + 2?"]


def test_packs_show_their_boundaries_and_long_documents_a_gap(tmp_path: Path) -> None:
    out = compiled(tmp_path, "--mix", "bench:1", "--pack", 2048)
    report(out, "--rows", 3)
    page = (tmp_path / "report.html").read_text("utf-8")
    lengths = {", ".join(map(str, row["seq_lens"])) for row in rows(out)}
    shown = re.findall(r"of (\d+) in pack (\d+), .*?; lengths: ([\d, …]+);", page)
    assert len(shown) == 3 and {listed for *_, listed in shown} <= lengths
    (tmp_path / "d").mkdir()
    document = write(tmp_path / "d.jsonl", {"text": "One word and another. " * 2000})
    report(compiled(tmp_path / "d", document, "--format", "pretrain"))
    assert "tokens are left out here" in (tmp_path / "d" / "report.html").read_text("utf-8")


def test_images_are_shown_small_where_they_are_found_and_as_boxes_elsewhere(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    draw_images(tmp_path)
    row = messages(("user", "<image>What?"), ("assistant", "Navy."), images=["a.png"])
    out = compiled(tmp_path, write(tmp_path / "look.jsonl", row), "--tokenizer", model)
    report(out)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert 'src="data:image/jpeg;base64,' in page and "112×56" in page
    (tmp_path / "a.png").write_bytes((tmp_path / "b.png").read_bytes())  # another image under its name
    report(out)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "data:image" not in page and "112×56" in page


@pytest.mark.parametrize(
    "written",
    [
        "CLICK(box=[[250,100,500,900]])",
        "<box>(250,100),(500,900)</box>",
        "<|box_start|>(250,100), (500,900)<|box_end|>",
    ],
)
def test_the_box_of_a_reply_is_drawn_over_the_last_image_before_it(tmp_path: Path, written: str) -> None:
    """Boxes of a prompt can be on screens that are not there: they are not drawn."""
    model = make_model(tmp_path / "model")
    draw_images(tmp_path)
    row = messages(
        ("user", "<image>First [[1,2,3,4]]?"), ("assistant", "None."),
        ("user", "<image>And here?"), ("assistant", f"{written} and [[5,5,5,5]] <box>(1,2)</box>"),
        images=["a.png", "b.png"],
    )  # fmt: skip
    out = compiled(tmp_path, write(tmp_path / "look.jsonl", row), "--tokenizer", model)
    report(out)
    page = (tmp_path / "report.html").read_text("utf-8")
    first, second = re.findall(r'<span class="medium">.*?tokens.*?</span></span>', page, re.DOTALL)
    assert "a.png" in first and 'class="boxes"' not in first
    drawn = re.findall(r'<rect class="box" x="(\d+)" y="(\d+)" width="(\d+)" height="(\d+)">', second)
    assert "b.png" in second and drawn == [("250", "100", "250", "800")] and "1 box of the reply" in second


@pytest.mark.slow
def test_a_box_lies_where_the_reply_says_on_the_image(tmp_path: Path, browser: Any) -> None:
    model = make_model(tmp_path / "model")
    draw_images(tmp_path)
    row = messages(("user", "<image>Where?"), ("assistant", "[[250,100,500,900]]"), images=["a.png"])
    report(compiled(tmp_path, write(tmp_path / "look.jsonl", row), "--tokenizer", model))
    for width in (1280, 390):
        tab = Page(browser, tmp_path / "report.html", width).tab
        tab.click("#f-open")
        image, box = (tab.locator(name).bounding_box() for name in (".shot img", ".boxes .box"))
        shares = [(box["x"] - image["x"]) / image["width"], (box["y"] - image["y"]) / image["height"]]
        assert np.allclose(shares, [0.25, 0.1], atol=0.03)
        assert np.allclose([box["width"] / image["width"], box["height"] / image["height"]], [0.25, 0.8], atol=0.06)


# -- errors --


def test_what_is_no_set_or_a_damaged_one_is_one_message_and_writes_nothing(samples: Path, tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    nothing = report(tmp_path, "-o", target, code=5)
    assert "no manifest.json" in one_message(nothing.stderr)
    out = Path(shutil.copytree(samples, tmp_path / "out"))
    shard = next((out / "train").glob("*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert "is damaged" in one_message(report(out, "-o", target, code=4).stderr)
    shard.unlink()
    report(out, "-o", target, code=4)
    assert not target.exists() and not list(tmp_path.glob(".r.html*"))


def test_only_a_report_is_replaced_and_nothing_is_written_into_the_set(samples: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.html"
    mine.write_text("<!doctype html>mine")
    assert "is not a report" in one_message(report(samples, "-o", mine, code=2).stderr)
    assert mine.read_text() == "<!doctype html>mine"
    report(samples, "-o", tmp_path / "new.html", "--rows", 1)
    report(samples, "-o", tmp_path / "new.html", "--rows", 2)
    for place in (tmp_path, tmp_path / "no" / "r.html", samples / "r.html", "s3://bucket/r.html"):
        one_message(report(samples, "-o", place, code=2).stderr)


def test_a_full_disk_leaves_the_old_report(samples: Path, tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    report(samples, "-o", target, "--rows", 1)
    before = target.read_bytes()
    done = subprocess.run(
        [*CLI, "report", str(samples), "-o", str(target)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        env=outside(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "cannot be written" in one_message(done.stderr)
    assert target.read_bytes() == before and list(tmp_path.iterdir()) == [target]


# -- hostile rows --


def test_nothing_of_a_hostile_row_becomes_a_tag_or_an_attribute(hostile: Path) -> None:
    report(hostile)
    page = (hostile.parent / "report.html").read_text("utf-8")
    found = Reader(page)
    assert found.tags.count("script") == 1
    assert not {"img", "iframe", "object", "link", "base"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert all(value.startswith("#") for name, value in found.attributes if name == "href")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", page)
    assert rejects(hostile / "rejects.jsonl")[0]["reason"] in page
    policy = next(value for name, value in found.attributes if value.startswith("default-src"))
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy


@pytest.mark.slow
def test_a_hostile_row_runs_nothing_in_a_browser(hostile: Path, browser: Any) -> None:
    report(hostile)
    page = Page(browser, hostile.parent / "report.html")
    page.tab.click("#f-open")
    assert page.tab.evaluate("window.hacked") is None
    assert "<script>window.hacked=1</script>" in page.tab.locator("#list").inner_text()  # it is there, as text
    assert page.said == []
    assert page.asked == [(hostile.parent / "report.html").as_uri()]
    # The policy holds by itself, were something not escaped.
    page.tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hacked=1>')")
    page.tab.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked=1'}))"
    )
    page.tab.wait_for_timeout(200)
    assert page.tab.evaluate("window.hacked") is None
    assert all("Content Security Policy" in line for line in page.said) and page.said


# -- in a browser --


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_rows_are_shown_and_filtered_in_a_browser_without_a_request(
    samples: Path, browser: Any, width: int, scheme: str
) -> None:
    report(samples, "--rows", 20)
    page = Page(browser, samples.parent / "report.html", width, scheme)
    assert page.count() == "20 of 20 rows, 0 of 0 rejected"
    page.tab.select_option("#f-dataset", "agent")
    assert page.count() == f"{page.shown('#list .row')} of 20 rows, 0 of 0 rejected" != "20 of 20 rows, 0 of 0 rejected"
    page.tab.select_option("#f-dataset", "")
    page.tab.fill("#f-text", "no such text in any row")
    assert page.shown("#list .row") == 0
    page.tab.fill("#f-text", "")
    page.tab.select_option("#f-role", "system")
    assert page.shown("#list .row") > 0
    page.tab.select_option("#f-role", "")
    page.tab.keyboard.press("Escape")
    page.tab.locator("h1").click()
    page.tab.keyboard.press("j")
    page.tab.keyboard.press("Enter")
    assert page.shown("#list .row[open]") == 1
    page.tab.locator("#list .row[open] i[title]").first.click()
    assert re.search(r"id \d+, label -?\d+, weight \d", page.tab.locator("#at").inner_text())
    assert page.tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.said == [] and page.asked == [(samples.parent / "report.html").as_uri()]


@pytest.mark.slow
def test_rejected_rows_are_filtered_by_their_reason(hostile: Path, browser: Any) -> None:
    report(hostile)
    page = Page(browser, hostile.parent / "report.html")
    assert page.count() == "2 of 2 rows, 1 of 1 rejected"
    page.tab.select_option("#f-reason", "turn_order")
    assert page.count() == "0 of 2 rows, 1 of 1 rejected"
    assert page.shown(".reject") == 1
