"""Input that is made to take all memory or time: each kind ends early, in one message, within a bound."""

from __future__ import annotations

import gzip
import io
import json
import re
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import Result

import registry
from compiler.encode import weigh
from compiler.encode.weigh import Policy
from compiler.templates import jinja
from compiler.tokenizer.tokenizer import Tokenizer
from schemas.errors import InputError, Reason, RowError
from schemas.limits import limited
from tests.support.command import outside

ROOT = Path(__file__).resolve().parent.parent
LIMITED = """
import re, sys
import cli
try:
    cli.main()
finally:  # ru_maxrss would be that of the process before it was replaced by this one
    print("peak", int(re.search("VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) // 1024, file=sys.stderr)
"""


def compiled(folder: Path, *arguments: object, seconds: float = 20) -> tuple[int, str, int]:
    """Compile in a process of its own; its exit code, what it said, and the most MiB that it had."""
    command = [sys.executable, "-c", LIMITED, "compile", *map(str, arguments), "--cache", "cache", "-o", "out"]
    begin = time.monotonic()
    done = subprocess.run(
        [*command, "--workers", "1"], cwd=folder, env=outside() | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert time.monotonic() - begin < 3 * seconds  # machines are shared
    return done.returncode, done.stderr, int(done.stderr.rsplit("peak", 1)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json"])
def test_a_line_of_a_gigabyte_is_refused_in_less_than_400_mib(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write({"a.json": b'[{"text": "', "a.jsonl": b'{"text": "'}.get(name, b'text\n"'))
        for _ in range(1 << 10):
            file.write(b"a" * (1 << 20))
    code, said, peak = compiled(tmp_path, name)
    assert code == 5
    assert f"has more than {32 if name == 'a.csv' else 128} MiB" in said
    assert peak < 400


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_small_file_that_unpacks_to_a_gigabyte_is_refused(tmp_path: Path, compression: str) -> None:
    pack = gzip.compress if compression == "gz" else zstandard.ZstdCompressor().compress
    (tmp_path / f"a.jsonl.{compression}").write_bytes(pack((b" " * 1000 + b"\n") * (1 << 18)))
    code, said, peak = compiled(tmp_path, f"a.jsonl.{compression}")
    assert code == 5
    assert "more than 100 times as many" in said
    assert "--max-expansion N" in said
    assert peak < 400
    row = b'{"instruction": "say it again", "output": "b"}\n'
    (tmp_path / f"b.jsonl.{compression}").write_bytes(pack(row * 400_000))
    assert compiled(tmp_path, f"b.jsonl.{compression}", "--limit", "9")[0] == 0
    assert (
        compiled(tmp_path, f"b.jsonl.{compression}", "--max-expansion", "1", "--limit", "9")[0] == 0
    )  # 16 MiB are free


def workbook(*cells: str) -> bytes:
    """A workbook of one sheet with these cells, each a text."""
    types = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    rows = "".join(
        f'<row r="{"".join(filter(str.isdigit, at))}"><c r="{at}" t="inlineStr"><is><t>x{n}</t></is></c></row>'
        for n, at in enumerate(cells)
    )
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override '
        f'PartName="/xl/workbook.xml" ContentType="{types}.sheet.main+xml"/><Override '
        f'PartName="/xl/worksheets/sheet1.xml" ContentType="{types}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="a" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="a" sheetId="1" '
        f'r:id="b"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="b" '
        f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{rows}</sheetData></worksheet>',
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in parts.items():
            file.writestr(name, text)
    return data.getvalue()


def test_a_workbook_with_a_cell_far_away_is_refused(tmp_path: Path) -> None:
    (tmp_path / "far.xlsx").write_bytes(workbook("A1", "A2", "XFD1048576"))
    code, said, peak = compiled(tmp_path, "far.xlsx")
    assert code == 5
    assert "its cells reach to row 1,048,576 and column 16,384" in said
    assert peak < 400
    (tmp_path / "near.xlsx").write_bytes(workbook("A1", "A2", "C9000"))
    assert "column 3" in compiled(tmp_path, "near.xlsx")[1] or "header" in compiled(tmp_path, "near.xlsx")[1]


@pytest.mark.parametrize("columns", [9_999, 100_000])
def test_a_header_of_many_columns_takes_no_time(tmp_path: Path, columns: int) -> None:
    names = [f"c{n}" for n in range(columns)]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join(["1"] * columns) + "\n")
    code, said, _ = compiled(tmp_path, "a.csv")
    assert code in (2, 3, 5)
    if columns > 10_000:
        assert "has 100,000 columns, and at most 10,000 are read" in said


TEMPLATES = {
    "division": "{{ 1/0 }}",
    "overflow": "{{ (10**400)|float }}",
    "power": "{{ 2**100000000 }}",
    "long text": "{{ 'x' * 10**10 }}",
    "wide field": "{{ '%{}d'.format(10**9) % 1 }}",
    "loops": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(x='x'*1000) %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "long output": "{% for a in range(100000) %}{{ 'aaaaaaaa' * 1000 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_fails_or_never_ends_is_one_message(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "SECONDS", 0.5)
    template = jinja.ChatTemplate(TEMPLATES[name], {}, "template")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    begin = time.process_time()
    with pytest.raises((RowError, InputError)) as raised:
        template.render([{"role": "user", "content": "x"}], None, generation_prompt=False)
    if name in ("loops", "doubling", "long text"):  # no reject, which would depend on the machine
        assert isinstance(raised.value, InputError)
        assert "the chat template takes more than" in str(raised.value)
    else:
        assert isinstance(raised.value, RowError)
        assert raised.value.reject.reason is Reason.TEMPLATE_REFUSED
    assert time.process_time() - begin < 5
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - before < 1200
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("source", ["{% break %}", "{{" * 200, "{% if " + "(" * 300, "{{ '%1000000000d' % 1 }}"])
def test_a_template_that_cannot_be_read_is_one_message(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "SECONDS", 0.5)
    with pytest.raises(InputError, match=r"the chat template (cannot be used|took more than|is not valid)"):
        jinja.ChatTemplate(source, {}, "template")


@pytest.mark.parametrize("tail", ["", "</tool_call>", "</tool_call>" * 9 + "<tool_call>" * 20_000])
def test_marks_of_a_policy_that_never_close_take_linear_time(tail: str) -> None:
    policy = Policy.from_card(registry.weights("hermes"))
    begin = time.process_time()
    found = policy.intervals("<tool_call>" * 20_000 + tail)
    assert time.process_time() - begin < 1
    assert len(found) == (1 if tail else 0)


def test_a_pattern_that_takes_exponential_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weigh, "SECONDS", 0.5)
    policy = Policy.from_card({"name": "mine", "patterns": {"a": {"pattern": "(a+)+b", "weight": 2.0}}})
    with pytest.raises(InputError, match=r"--weights mine: its patterns took more than 0\.5 seconds"):
        policy.intervals("a" * 40 + "c b")


def test_the_plain_end_of_a_pattern_is_that_of_every_match() -> None:
    ends = {"<a>.+?</a>": "</a>", r"x\bfoo": "foo", "a|b": "", "a+": "", "(?x)a b": "", "ab$": "", r"\d": ""}
    assert {pattern: weigh._literal_end(re.compile(pattern)) for pattern in ends} == ends


@pytest.mark.parametrize(
    "change",
    [
        {"added_tokens": [{"id": 1 << 40}]},
        {"model": []},
        {"model": {"type": "BPE", "vocab": {"a": 10**12}, "merges": []}},
        {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        {"normalizer": 1},
        {"decoder": {"type": "nope"}},
    ],
    ids=str,
)
def test_a_file_that_is_no_tokenizer_is_one_message(tmp_path: Path, change: dict[str, Any]) -> None:
    shutil.copytree(registry.DEMO_TOKENIZER, tmp_path / "t")
    spec = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(spec | change))
    with pytest.raises(InputError, match="not a tokenizer") as told:
        _ = Tokenizer.load(tmp_path / "t").reference
    with pytest.raises(InputError) as again:  # as in a compile, where it is loaded ahead
        _ = Tokenizer.load(tmp_path / "t", tmp_path / "cache", encodes=True).reference
    assert str(again.value) == str(told.value)


def test_half_a_character_in_the_settings_of_a_tokenizer_is_one_message(
    tmp_path: Path, run: Callable[..., Result]
) -> None:
    """It was found when the manifest was to be written, which holds what a bos_token is."""
    shutil.copytree(registry.DEMO_TOKENIZER, tmp_path / "t")
    settings = json.loads((tmp_path / "t" / "tokenizer_config.json").read_text())
    (tmp_path / "t" / "tokenizer_config.json").write_text(json.dumps(settings | {"unk_token": "\ud800"}))
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    said = run("compile", tmp_path / "a.jsonl", "--tokenizer", tmp_path / "t", "-o", tmp_path / "out", code=5).stderr
    assert f"error: {tmp_path / 't' / 'tokenizer_config.json'}: not JSON: no low surrogate" in said
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_padding_of_any_length_is_not_done(tmp_path: Path) -> None:
    shutil.copytree(registry.DEMO_TOKENIZER, tmp_path / "t")
    spec = json.loads((tmp_path / "t" / "tokenizer.json").read_text())
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    spec["padding"] = padding | {"pad_type_id": 0, "pad_token": "x"}
    (tmp_path / "t" / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.load(tmp_path / "t")
    assert tokenizer.official.encode("a").ids == Tokenizer.load(registry.DEMO_TOKENIZER).official.encode("a").ids


def test_the_limit_of_memory_follows_a_process_that_grows() -> None:
    with limited(10):
        pass
    held = [bytearray(1 << 28) for _ in range(9)]  # not written to, so it takes no memory
    with limited(10):  # at once: also Arrow takes much memory between two renderings
        held.append(bytearray(1 << 28))
        with pytest.raises(MemoryError):
            bytearray(1 << 32)
    assert len(bytearray(1 << 32)) == 1 << 32


def test_the_time_of_a_template_ends_with_it_also_for_the_program_that_takes_its_place(tmp_path: Path) -> None:
    """As torchrun takes that of cli follow: a timer outlives its handler there, and at the exit of Python."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, time\n"
        "if len(sys.argv) > 1:\n"
        "    from schemas.limits import limited\n"
        "    with limited(0.1):\n"
        "        pass\n"
        "    os.execv(sys.executable, [sys.executable, *sys.argv[:1]])\n"
        "while time.process_time() < 0.5:\n"
        "    pass\n"
        "print('here')\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, script, "first"], env=outside(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr


# -- names and messages --


def test_a_terminal_is_not_obeyed_through_names_and_no_password_is_shown(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    bad = tmp_path / "a\x1b[31m\x07b.jsonl"
    bad.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "a"}\n', encoding="utf-8")
    out = tmp_path / "out"
    said = [
        run("compile", bad, "-o", out, "--max-rejects", "60%"),
        run("inspect", out),
        run("inspect", out, "--rejected"),
    ]
    said.append(run("compile", f"{bad}.gz", "-o", out, code=5))
    for done in said:
        assert r"a\x1b[31m\x07b" in done.stdout + done.stderr
        assert not {*"\x1b\x07"} & {*done.stdout, *done.stderr}
    secret = run("compile", "--mix", "agent", "--tokenizer", "https://me:secret@host/x", "-o", out, code=2).stderr
    assert "https://***@host/x" in secret and "secret" not in secret
