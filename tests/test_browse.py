"""`cli browse`: pages show the rows of the set that are asked for, and nobody else is answered."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import jsonschema
import pytest

from compiler.report.browse import Site as Pages
from compiler.report.browse import find
from schemas import schema
from schemas.reader import CompiledSet
from tests.support.browser import Page, chromium
from tests.support.command import outside
from tests.support.sets import manifest, one_message, qa, rows, text, write
from tests.support.trained import compile_set, config, in_shards, records, save_model, small_set, train

CLI = [sys.executable, "-m", "cli", "browse"]
EVIL = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'><style>body{display:none}</style>"
    "<a href='javascript:window.hacked=1'>link</a><svg onload='window.hacked=1'> \u202e \x1b[31m \" {{7*7}} -->"
)


class Site:
    """A running `cli browse`."""

    def __init__(self, line: str, process: subprocess.Popen[str]) -> None:
        found = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{40,}/", line)
        assert found, line + (process.stderr.read() if process.stderr else "")
        address = found[0]
        self.line, self.address, self.process = line, address, process
        parts = urlsplit(address)
        self.host, self.port, self.token = parts.netloc, int(parts.port or 0), parts.path.strip("/")

    def get(self, name: str = "", /, code: int = 200, **query: object) -> str:
        address = self.address + name + (f"?{urlencode(query)}" if query else "")
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                found, body = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            found, body = error.code, error.read()
        assert found == code, body
        return str(body.decode())

    def raw(self, request: str) -> str:
        with closing(socket.create_connection(("127.0.0.1", self.port), timeout=30)) as wire:
            wire.sendall(request.encode("latin-1"))
            wire.shutdown(socket.SHUT_WR)
            parts = []
            while part := wire.recv(65536):
                parts.append(part)
        return b"".join(parts).decode()

    def stop(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out, err


@contextmanager
def browsing(out: object, *options: object) -> Iterator[Site]:
    process = subprocess.Popen(
        [*CLI, str(out), "--no-open", *map(str, options)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=outside(),
    )  # fmt: skip
    try:
        yield Site(process.stdout.readline() if process.stdout else "", process)
    finally:
        process.kill()
        process.communicate()


def refused(out: object, *options: object, code: int) -> str:
    done = subprocess.run(
        [*CLI, str(out), "--no-open", *map(str, options)],
        capture_output=True, text=True, env=outside(), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return one_message(done.stderr)


def numbers(page: str) -> list[int]:
    """The numbers of the rows on a page, as their summaries say them."""
    return [int(one.replace(",", "")) for one in re.findall(r"(?:train|val|test) row ([\d,]+)(?:</a>)? ·", page)]


def said(page: str) -> str:
    """What a page says that it lists."""
    return unescape(re.search(r'<h2 id="said">(.*?)</h2>', page, re.DOTALL)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    return compile_set(folder / "shards", "--mix", "agent:3,bench:1", "--val-size", 20)


@pytest.fixture(scope="module")
def site(samples: Path) -> Iterator[Site]:
    with browsing(samples) as found:
        yield found


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of three batches; every 100th reply is red."""
    folder = tmp_path_factory.mktemp("many")
    replies = (qa(f"Question {n}", f"Reply {n}, {'red' if n % 100 == 0 else 'blue'}") for n in range(1100))
    return compile_set(folder / "shards", write(folder / "chats.jsonl", *replies))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


# -- which rows --


def test_pages_together_list_every_row_once_and_filters_and_orders_are_those_of_the_shards(
    samples: Path, site: Site
) -> None:
    shard = rows(samples)
    pages = -(-len(shard) // 20)
    assert [n for page in range(1, pages + 1) for n in numbers(site.get(page=page))] == list(range(len(shard)))
    assert f"the list has the pages 1 to {pages}" in site.get(page=pages + 1, code=404)
    bench = [n for n, row in enumerate(shard) if row["dataset"] == "bench"]
    page = site.get(dataset="bench")
    assert numbers(page) == bench[:20] and f"{len(bench):,} rows of train, dataset bench" in said(page)

    def length(n: int) -> int:
        return len(shard[n]["input_ids"])

    def share(n: int) -> float:
        return float(shard[n]["num_trained"] / length(n))

    every = range(len(shard))
    assert numbers(site.get(sort="longest")) == sorted(every, key=lambda n: -length(n))[:20]
    assert numbers(site.get(sort="shortest", dataset="bench")) == sorted(bench, key=length)[:20]
    assert numbers(site.get(sort="least-trained", page=2)) == sorted(every, key=share)[20:40]
    assert numbers(site.get(split="val")) == list(range(20))
    for wrong in ({"sort": "x"}, {"dataset": "x"}, {"split": "test"}, {"page": "x"}, {"start": 3}, {"other": 1}):
        site.get(code=404, **wrong)
    site.get("?page=1&page=2", code=404)


def test_a_text_is_found_in_the_rows_that_have_it_and_the_page_says_how_far_was_looked(
    samples: Path, site: Site
) -> None:
    shard = rows(samples)
    having = [n for n, row in enumerate(shard) if "Action Input" in text(samples, row)]
    page = site.get(text="Action Input")
    assert 0 < len(having) < len(shard)
    assert numbers(page) == having[:20]
    assert f"in the rows 0 to {len(shard) - 1:,} of {len(shard):,}" in said(page)
    after = having[3] + 1
    assert numbers(site.get(text="Action Input", start=after)) == having[4:24]
    longest = sorted(having, key=lambda n: -len(shard[n]["input_ids"]))
    assert numbers(site.get(text="Action Input", sort="longest")) == longest[:20]
    assert numbers(site.get(text="action input no row has")) == []


def test_a_search_stops_after_its_limit_and_goes_on_where_it_stopped(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process: the limit is what is changed."""
    monkeypatch.setattr(find, "MOST", 1)
    pages, query, found, ends = Pages(CompiledSet.open(many), None), "text=red", list[int](), 0
    while query:
        code, page = pages.page("", query)
        assert code == 200
        found += numbers(page)
        more = re.search(r'href="\.\?([^"]*)">search on from there', page)
        assert ("The search stopped there" in page) == (more is not None)
        query, ends = unescape(more[1]) if more else "", ends + 1
    assert found == [n for n, row in enumerate(rows(many)) if "red" in text(many, row)]
    assert len(found) == 11 and ends == 3


def test_a_row_is_found_by_its_number_and_by_its_place_as_cli_why_takes_it(tmp_path: Path) -> None:
    file = write(tmp_path / "chats.jsonl", *[qa(f"Question {n}", f"Reply {n}") for n in range(30)])
    out = compile_set(tmp_path / "shards", file, "--val-size", 5)
    with browsing(out) as site:
        for split in ("train", "val"):
            shard = rows(out, split)
            page = site.get("row", at=3, split=split)
            assert numbers(page) == [3]
            for row in (shard[0], shard[-1]):
                page = site.get("row", at=f"chats.jsonl:{row['row'] + 1}")
                assert f"/chats.jsonl:{row['row'] + 1}</b>" in page and f"{split} row" in page
                assert numbers(page) == [shard.index(row)]
        assert "has the rows 0 to 24" in site.get("row", at=25, code=404)
        assert "no row begins on this line" in unescape(site.get("row", at="chats.jsonl:31", code=404))
        assert "no such file in the set" in site.get("row", at="chat.jsonl:1", code=404)
        assert "is no row" in site.get("row", at="x", code=404)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("way", ["as they come", "grouped", "packed", "windows"])
def test_the_rows_of_a_step_are_those_that_the_run_trained(tmp_path: Path, way: str) -> None:
    """The oracle is the log of a real run: how many tokens it counted in each step."""
    data = small_set(tmp_path / "data", *(["--pack", 64] if way == "packed" else []))
    if way == "windows":
        in_shards(data, 5)
    model = save_model(tmp_path / "model")
    run = config(
        tmp_path / "run.json", model, max_steps=12, save_strategy="steps", save_steps=12, seed=7,
        group_by_length=way in ("grouped", "windows"), per_device_train_batch_size=2, gradient_accumulation_steps=2,
        **({"shuffle_shards": 2} if way == "windows" else {}),
    )  # fmt: skip
    train(data, run)
    shard, before = rows(data), 0
    lengths = [length for row in shard for length in (row["seq_lens"] if way == "packed" else [len(row["input_ids"])])]
    logged = [record for record in records(run) if "loss" in record]
    with browsing(data, "--log", tmp_path / "run" / "log.jsonl") as site:
        first = set()
        for record in logged:
            page = site.get("step", n=record["step"])
            pages = -(-int(re.search(r"([\d,]+) rows?$", said(page))[1]) // 20)  # type: ignore[index]
            others = [site.get("step", n=record["step"], page=one) for one in range(2, pages + 1)]
            shown = [n for one in (page, *others) for n in numbers(one)]
            assert sum(lengths[n] for n in shown) == record["tokens"] - before
            assert "Checked: the log counts" in page and f"{record['loss']:.6g}" in page
            assert "It has no loss of a row" in page
            first |= set(shown)
            before = record["tokens"]
        assert first == set(range(len(lengths)))  # more than one epoch
        site.get("step", n=13, code=404)
        worst = max(logged, key=lambda record: record["loss"])["step"]
        assert re.search(r'href="step\?n=(\d+)"', site.get("run", sort="loss"))[1] == str(worst)  # type: ignore[index]
        if way != "grouped":  # what follows is the same for all
            return
        log, step = tmp_path / "run" / "log.jsonl", logged[5]
        lines = log.read_text().splitlines(True)
        lines = [line for line in lines if json.loads(line)["step"] != step["step"]]
        rewritten = log.with_suffix(".new")
        rewritten.write_text(
            "".join(lines) + '{"step": Infinity, "loss": 1}\n{"step": 11, "loss": NaN}\n{"step": 13, "lo'
        )
        rewritten.replace(log)  # as a resume does; the last line is being written
        assert "its loss is not known" in site.get("step", n=6)
        assert re.search(r'href="step\?n=(\d+)"', site.get("run", sort="loss"))[1] == "11"  # type: ignore[index]
    other = small_set(tmp_path / "other", count=21)
    assert "another set" in refused(other, "--log", tmp_path / "run", code=2)
    shutil.rmtree(tmp_path / "run" / "checkpoint-12")
    assert "no complete checkpoint" in refused(data, "--log", tmp_path / "run", code=5)
    assert "expected log.jsonl" in refused(data, "--log", tmp_path, code=5)


# -- who is answered --


def test_without_the_host_the_token_or_get_nothing_is_answered(site: Site) -> None:
    def status(target: str, host: str | None = site.host, method: str = "GET", more: str = "") -> int:
        head = f"Host: {host}\r\n" if host is not None else ""
        answer = site.raw(f"{method} {target} HTTP/1.1\r\n{head}{more}\r\n")
        if not answer.startswith("HTTP/1.0 200"):
            assert site.token not in answer and "train" not in answer, answer
        assert answer.count("HTTP/1.") == 1
        return int(answer.split()[1])

    home = f"/{site.token}/"
    assert status(home) == 200 and status(home, f"localhost:{site.port}") == 200
    for host in (None, "", "evil.example", f"evil.example:{site.port}", "127.0.0.1", f"127.0.0.1:{site.port + 1}",
                 f"127.0.0.1:{site.port}.evil.example", f"[::1]:{site.port}"):  # fmt: skip
        assert status(home, host) == 403, host
    assert status(home, more=f"Host: {site.host}\r\n") == 403  # two
    for target in ("/", "", "/x/", f"/{site.token[:-1]}/", f"/{site.token}x/", "/é/", f"/?token={site.token}"):
        assert status(target or "/") == 403, target
    for target in ("x", "../", "..%2f..%2fetc/passwd", "/etc/passwd", "manifest.json", "train/shard-00000.arrow",
                   "run", "step?n=1", "row/", "%00", "row%3fat=1"):  # fmt: skip
        assert status(home + target) == 404, target
    for target in (f"/{site.token}", f"//{site.token}/../", f"http://evil.example{home}"):
        assert status(target) in (403, 404), target
    for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PATCH", "NONE"):
        assert status(home, method=method) == 405, method
    for request in (
        "nonsense\r\n\r\n",
        f"GET {home}\r\n\r\n",
        f"GET {home} HTTP/9.9\r\n\r\n",
        f"GET {home} HTTP/1.1\r\n{'x' * 70_000}",
    ):
        assert site.token not in site.raw(request) and "train" not in site.raw(request)
    assert "Server:" not in site.raw(f"GET {home} HTTP/1.1\r\nHost: {site.host}\r\n\r\n")


def test_pages_carry_a_policy_that_allows_their_own_script_alone(site: Site) -> None:
    head, _, body = site.raw(f"GET /{site.token}/ HTTP/1.1\r\nHost: {site.host}\r\n\r\n").partition("\r\n\r\n")
    policy = re.search(r"Content-Security-Policy: (.*)\r\n", head)[1]  # type: ignore[index]
    assert policy.startswith("default-src 'none'; script-src 'sha256-") and "unsafe" not in policy
    assert "form-action 'self'" in policy and "frame-ancestors 'none'" in policy
    assert "Referrer-Policy: no-referrer" in head and "Cache-Control: no-store" in head
    assert site.token not in body


def test_the_server_listens_on_loopback_alone(site: Site) -> None:
    mine = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = [
        fields[1] for fields in mine if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == site.port
    ]
    assert listening == [f"0100007F:{site.port:04X}"]


# -- begin and end --


def test_ctrl_c_ends_it_with_one_line(samples: Path) -> None:
    with browsing(samples) as site:
        site.get()
        code, out, err = site.stop()
        assert (code, out.split(), err) == (0, ["stopped"], "")


def test_json_gives_the_address_as_its_schema_says(samples: Path) -> None:
    with browsing(samples, "--json") as site:
        found = json.loads(site.line)
        jsonschema.Draft202012Validator(schema("browse")).validate(found)
        assert found["address"] == site.address and found["set"] == manifest(samples)["digest"]
        assert found["rows"] == {name: len(rows(samples, name)) for name in ("train", "val")}
        code, out, _ = site.stop()
        assert (code, out) == (0, "")


def test_what_cannot_be_shown_is_one_message(samples: Path, site: Site, tmp_path: Path) -> None:
    assert "no manifest.json" in refused(tmp_path, code=5)
    assert "Address already in use" in refused(samples, "--port", site.port, code=5)
    out = Path(shutil.copytree(samples, tmp_path / "out"))
    shard = next((out / "train").glob("*.arrow"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:4000] + bytes([whole[4000] ^ 1]) + whole[4001:])
    assert "is damaged" in refused(out, code=4)
    shard.unlink()
    refused(out, code=4)


def test_a_damaged_batch_is_a_page_with_the_message_and_the_others_stay(many: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(many, tmp_path / "out"))
    with browsing(out) as site:
        shard = next((out / "train").glob("*.arrow"))
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        assert "is damaged" in site.get("row", at=600, code=500)
        assert numbers(site.get("row", at=3)) == [3]
        assert numbers(site.get("row", at=1099)) == [1099]
        code, _, err = site.stop()
        assert code == 0 and "is damaged" in one_message(err)


def test_a_pack_and_a_pair_are_shown_as_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    packed = compile_set(tmp_path / "p" / "shards", "--mix", "bench:1", "--pack", 2048)
    pair = {"instruction": "2+2?", "input": "", "chosen": "It is 4.", "rejected": "It is 5."}
    pairs = compile_set(tmp_path / "shards", write(tmp_path / "pairs.jsonl", pair))
    with browsing(packed) as site:
        page = site.get(sort="shortest")
        lengths = [(length, n) for n, length in enumerate(one for row in rows(packed) for one in row["seq_lens"])]
        assert numbers(page) == [n for _, n in sorted(lengths)][:20]
        assert "in pack" in page
    with browsing(pairs) as site:
        assert 'class="side rejected"' in site.get("row", at=0)


# -- in a browser --


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme", "script"), [(1280, "light", True), (390, "dark", False)])
def test_rows_are_listed_searched_sorted_and_opened_with_links_and_forms_alone(
    samples: Path, site: Site, browser: Any, width: int, scheme: str, script: bool
) -> None:
    page = Page(browser, site.address, width, scheme, java_script_enabled=script)
    shard, tab = rows(samples), page.tab

    def go(what: str) -> None:
        with tab.expect_navigation():
            tab.click(what)

    assert page.shown("#list .row") == 20
    go("text=next >> nth=0")
    assert f"21 to 40 of {len(shard):,}" in tab.inner_text(".pager >> nth=0")
    tab.select_option("form[action='.'] [name=dataset]", "bench")
    tab.select_option("form[action='.'] [name=sort]", "longest")
    go("text=Show >> nth=0")
    longest = max(
        (n for n, row in enumerate(shard) if row["dataset"] == "bench"), key=lambda n: len(shard[n]["input_ids"])
    )
    assert tab.inner_text("#list summary a >> nth=0") == f"train row {longest:,}"
    tab.fill("[name=text]", "no row has this")
    go("text=Show >> nth=0")
    assert page.shown("#list .row") == 0
    tab.fill("[name=at]", "5")
    go("text=Go >> nth=0")
    assert page.shown("#list .row[open]") == 1 and "train row 5" in tab.inner_text("#said")
    go("text=next row")
    assert "train row 6" in tab.inner_text("#said")
    if script:
        tab.locator("#list .row[open] i[title]").first.click()
        assert re.search(r"id \d+, label -?\d+, weight \d", tab.inner_text("#at"))
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.said == []
    assert all(url.startswith(site.address) for url in page.asked)


@pytest.mark.slow
def test_a_hostile_row_runs_nothing_in_a_browser(tmp_path: Path, browser: Any) -> None:
    good = qa(EVIL, EVIL)
    file = write(tmp_path / "a<img src=x onerror=alert(1)>.jsonl", good)
    out = compile_set(tmp_path / "shards", f"evil={file}", "--format", "alpaca")
    with browsing(out) as site:
        for address in (
            "",
            "?" + urlencode({"text": "<script>window"}),
            "row?at=0",
            f"row?at={quote(EVIL)}",
            f"?sort={quote(EVIL)}",
        ):
            page = Page(browser, site.address + address)
            page.tab.wait_for_timeout(100)
            assert page.tab.evaluate("window.hacked") is None
            if "sort" not in address and quote(EVIL) not in address:
                page.tab.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
                assert "<script>window.hacked=1</script>" in page.tab.locator("#list").inner_text()
                assert page.said == []
            assert page.tab.locator("a[href^=javascript]").count() == page.tab.locator("img").count() == 0
            assert page.tab.locator("body").is_visible()
            assert all(url.startswith(site.address) for url in page.asked)
            page.tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=window.hacked=1>')")
            page.tab.wait_for_timeout(100)
            assert page.tab.evaluate("window.hacked") is None
