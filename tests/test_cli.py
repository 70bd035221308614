"""The command line: help, exit codes, messages, JSON, and what each option of `compile` does to the examples."""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result
from tokenizers import Tokenizer

import registry
from cli import main
from compiler.options import CompileOptions, MixOptions, UnitOptions
from compiler.pipeline import compile_set
from compiler.rows.persona import persona
from compiler.units.progress import Done, Watcher
from tests.support.sets import (
    Row,
    chat,
    decode,
    manifest,
    one_message,
    qa,
    rejects,
    rows,
    text,
    tokenizer_of,
    trained,
    write,
)
from tests.support.shared import shared

Run = Callable[..., Result]

CLI = [sys.executable, "-m", "cli"]
COMMANDS = ["compile", "inspect", "verify", "formats"]
EXIT_CODES = "0 ok, 1 bug, 2 usage, 3 too many rejects, 4 integrity, 5 input/output, 6 locked"


# -- help --


def test_the_commands_are_those_that_scripts_rely_on() -> None:
    assert set(COMMANDS) <= set(main.commands)


@pytest.mark.parametrize("command", [[], *([name] for name in sorted(main.commands))], ids=" ".join)
def test_help_shows_an_example_and_the_exit_codes(run: Run, command: list[str]) -> None:
    for flag in ("--help", "-h"):
        shown = run(*command, flag).stdout
        assert re.search(r"Examples?:\n\s+cli ", shown)
        assert EXIT_CODES in " ".join(shown.split())
    options = main.commands[command[0]].params if command else []
    assert [option.name for option in options if isinstance(option, click.Option) and not option.help] == []


def test_help_of_compile_lists_every_option_once_under_its_heading(run: Run) -> None:
    shown = run("compile", "--help").stdout
    headings = ["Sources", "Template and masks", "Length and packing", "Mix", "Output", "Running"]
    assert re.findall(r"^(\w.*):$", shown, re.MULTILINE) == headings
    sections = dict(zip(headings, re.split(r"^\w.*:$", shown, flags=re.MULTILINE)[1:], strict=True))
    listed = [
        name for section in sections.values() for name in re.findall(r"^  (?:-\w, )?(--[\w-]+)", section, re.MULTILINE)
    ]
    options = [param for param in main.commands["compile"].params if isinstance(param, click.Option)]
    assert sorted(listed) == sorted([*(option.opts[-1] for option in options), "--help"])
    for heading, name in (("Sources", "--registry"), ("Template and masks", "--weights"), ("Mix", "--total")):
        assert f"  {name} " in sections[heading]
    assert "<=x" not in shown and "x>=" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_starts_almost_as_fast_as_click_alone(command: list[str]) -> None:
    """CPU time, and a ratio of interleaved runs: another machine, or a busy one, changes neither."""

    def seconds(*arguments: str) -> float:
        before = os.times()
        subprocess.run(arguments, check=True, capture_output=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    alone = (sys.executable, "-c", "import click, json, pathlib, re")
    pairs = [(seconds(*CLI, *command, "--help"), seconds(*alone)) for _ in range(3)]
    ours, theirs = map(min, zip(*pairs, strict=True))
    assert ours < 4 * theirs


@pytest.mark.parametrize(("arguments", "code"), [(["formats"], 0), (["formats", "--wrong"], 2)])
def test_the_process_ends_after_all_that_was_to_be_done(arguments: list[str], code: int) -> None:
    program = """
import atexit, sys, threading, time
import cli
atexit.register(print, "handler")
threading.Thread(target=lambda: (time.sleep(0.5), print("thread"))).start()
cli.run()
"""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code and done.stdout.endswith("thread\nhandler\n")


@pytest.mark.parametrize(("closed", "arguments", "code"), [(">&-", "formats", 0), (">&- 2>&-", "formats --wrong", 2)])
def test_a_command_without_streams_does_what_it_does(closed: str, arguments: str, code: int) -> None:
    command = ["sh", "-c", f"{sys.executable} -m cli {arguments} {closed}"]
    done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (code, b"")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, cli; cli.main(['compile', '--help'], standalone_mode=False); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {
        "torch", "pyarrow", "polars", "tokenizers", "transformers", "numpy", "jinja2", "datasets", "huggingface_hub",
        "jsonschema", "jsonschema_rs", "rich", "compiler.pipeline",
    }  # fmt: skip
    assert heavy & set(done.stderr.split()) == set()


def test_a_compile_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    """Every import is waited for before the first unit, and in each worker. pandas takes as long as all the others."""
    code = "import sys, cli; cli.main(sys.argv[1:], standalone_mode=False); print(*sys.modules, file=sys.stderr)"
    arguments = ("compile", "--mix", "agent:1", "--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    unused = {
        "torch", "pandas", "polars", "transformers", "datasets", "huggingface_hub", "jsonschema", "PIL", "fastokens",
        "ray", "boto3", "yaml",
    }  # fmt: skip
    assert unused & set(done.stderr.split()) == set()


@pytest.mark.slow
def test_the_core_compiles_without_torch_transformers_or_a_hub_client(tmp_path: Path) -> None:
    code = """
import sys
for name in ("torch", "transformers", "datasets", "huggingface_hub", "modelscope", "ray"):
    sys.modules[name] = None
import socket
def refuse(*_):
    raise AssertionError("the core must not use the network")
socket.socket.connect = refuse
import cli
cli.main(["compile", "--mix", "agent:1", "--workers", "1", "--cache", "c", "-o", "o"])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(rows(tmp_path / "o")) == 72


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", run("--version").stdout)


# -- exit codes --

MAIN_JOB = ["compile", "--mix", "agent:1,bench:2", "--self-cognition", "3000"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The main job, as a user would run it: nothing but the embedded samples and tokenizer."""
    folder = tmp_path_factory.mktemp("job")
    done = subprocess.run(
        [*CLI, *MAIN_JOB, "--cache", "cache"], cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False
    )
    return folder, done


def test_exit_0_is_the_main_job_on_embedded_data(job: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = job
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = manifest(folder / "shards")
    assert {entry["name"]: entry["realized"]["rows"] for entry in found["datasets"]} == {
        "agent": 72, "bench": 144, "self-cognition": 3000
    }  # fmt: skip
    assert [entry["name"] for entry in found["datasets"] if entry["sample"]] == ["agent", "bench"]
    assert found["splits"]["train"]["rows"] == 72 + 144 + 3000
    lines = reversed(done.stdout.splitlines())  # two tables have a line for each dataset; the first one counts
    table = {words[0]: words[1:4] for words in map(str.split, lines) if words}
    assert table["agent"] == ["share", "1", "72"]
    assert table["bench"] == ["share", "2", "144"]
    assert table["self-cognition"] == ["3,000", "rows", "3,000"]
    assert table["total"][:1] == ["3,216"]
    assert "embedded samples were used for agent and bench: good for trying things out, too small to" in " ".join(
        done.stdout.split()
    )
    assert "the self-cognition rows call the model 小样 / Demi, as in the demo; --name gives it" in done.stdout
    assert f"wrote shards  manifest {found['digest'][:16]}" in done.stdout


def test_no_placeholder_is_left_in_the_main_job(job: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = job
    out = folder / "shards"
    mine = [row for row in rows(out) if row["dataset"] == "self-cognition"]
    tokenizer = tokenizer_of((out / "tokenizer" / "tokenizer.json").read_text("utf-8"))
    texts = tokenizer.decode_batch([row["input_ids"] for row in mine], skip_special_tokens=False)
    assert not any("{{" in one or "}}" in one for one in texts)
    assert any("Demi" in one for one in texts)
    assert any("小样" in one for one in texts)
    counts = Counter(row["row"] for row in mine)
    assert len(counts) >= 100
    assert set(counts.values()) == {3000 // len(counts), 3000 // len(counts) + 1}


@pytest.fixture
def bad_rows(tmp_path: Path) -> Path:
    return write(tmp_path / "bad.jsonl", *(qa(f"q{i}") for i in range(9)), {"instruction": "no output"})


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [*CLI, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.mark.slow
def test_exit_2_is_a_mistake_in_the_command(tmp_path: Path) -> None:
    done = cli("compile", "--mix", "agnet:1", "--cache", tmp_path / "c", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --mix agnet: unknown dataset\n  did you mean 'agent'? known: agent, bench, ")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.slow
def test_exit_3_is_too_many_rejects(tmp_path: Path, bad_rows: Path) -> None:
    done = cli("compile", bad_rows, "--cache", tmp_path / "c", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (3, "")
    assert one_message(done.stderr) == (
        f"error: {bad_rows}:10: schema: expected the key 'output', found the keys 'instruction'\n"
        "  1 of 10 rows of 'bad' were rejected (schema 1). --max-rejects 1% allows 0.\n"
        f"  Nothing was published. All rejects are in {tmp_path}/out.rejects.jsonl; "
        "what was compiled is kept for the next run.\n"
    )


@pytest.mark.slow
def test_exit_4_is_damage_on_disk(tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    run("compile", write(tmp_path / "x.jsonl", qa("a")), "-o", out)
    (out / "README.md").write_text("edited")
    done = cli("verify", out)
    assert (done.returncode, done.stdout, done.stderr) == (4, "", "README.md: is damaged or was edited\n")


@pytest.mark.slow
def test_exit_5_is_a_file_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    done = cli("compile", tmp_path / "gone.jsonl", "--cache", tmp_path / "c", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == (
        f"error: {tmp_path}/gone.jsonl: no such file or folder\n"
        "  Check the path; a relative path starts at the current folder.\n"
    )


@pytest.mark.slow
def test_exit_6_is_an_output_that_another_process_writes(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", qa("a"))
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = cli("compile", file, "--cache", tmp_path / "c", "-o", tmp_path / "out")
    assert (done.returncode, done.stdout) == (6, "")
    assert one_message(done.stderr) == (
        f"error: {tmp_path}/out: another compile is writing it\n  Wait for it, or choose another -o folder.\n"
    )


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_input_output(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", qa("a"))
    done = cli("compile", file, "--cache", file / "cache", "-o", tmp_path / "out")
    assert done.returncode == 5
    assert "Choose another folder with --cache." in one_message(done.stderr)
    assert not (tmp_path / "out").exists()


# -- rejects --


def test_too_many_rejects_publish_nothing_and_keep_what_was_there(run: Run, tmp_path: Path, bad_rows: Path) -> None:
    out = tmp_path / "out"
    good = write(tmp_path / "good.jsonl", qa("good"))
    run("compile", good, "-o", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    failed = run("compile", good, bad_rows, "-o", out, code=3)
    assert failed.stdout == ""
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (reject,) = rejects(tmp_path / "out.rejects.jsonl")
    line = '{"instruction": "no output"}'
    assert reject == {
        "dataset": "bad",
        "file": str(bad_rows),
        "row": 9,
        "line": 10,
        "offset": bad_rows.read_text().index(line),
        "length": len(line),
        "pointer": "",
        "reason": "schema",
        "message": "expected the key 'output', found the keys 'instruction'",
        "raw": line,
    }
    # What was compiled is kept: the next run, which allows it, encodes nothing again.
    summary = json.loads(run("compile", good, bad_rows, "--max-rejects", 1, "-o", out, "--json").stdout)
    assert summary["units_compiled"] == 0
    assert rejects(out / "rejects.jsonl") == [reject]
    assert summary["balance"]["rejected"] == 1


def test_rejects_of_an_earlier_failure_do_not_outlive_a_success(run: Run, tmp_path: Path, bad_rows: Path) -> None:
    run("compile", bad_rows, "-o", tmp_path / "out", code=3)
    assert (tmp_path / "out.rejects.jsonl").exists()
    run("compile", bad_rows, "--max-rejects", "10%", "-o", tmp_path / "out")
    assert not (tmp_path / "out.rejects.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad", "good", "limit", "code"),
    [
        (0, 10, "0", 0),
        (1, 10, "0", 3),
        (5, 5, "5", 0),
        (6, 5, "5", 3),
        (1, 99, "1%", 0),
        (1, 98, "1%", 3),
        (5, 195, "2.5%", 0),
        (6, 195, "2.5%", 3),
        (9, 1, "100%", 0),
        (1, 1, "0%", 3),
        (1, 1, "1000000", 0),
    ],
)
def test_max_rejects_is_a_number_or_a_share_of_each_dataset(
    run: Run, tmp_path: Path, bad: int, good: int, limit: str, code: int
) -> None:
    file = write(tmp_path / "x.jsonl", *["{"] * bad, *(qa(str(i)) for i in range(good)))
    other = write(tmp_path / "y.jsonl", *(qa(f"other {i}") for i in range(100)))
    run("compile", file, other, "--format", "alpaca", "--max-rejects", limit, "-o", tmp_path / "out", code=code)
    if not code:
        assert len(rejects(tmp_path / "out" / "rejects.jsonl")) == bad
        assert len(rows(tmp_path / "out")) == good + 100


def test_a_file_of_nothing_but_bad_rows_is_an_error_that_shows_one(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", {"instruction": "a"}, {"instruction": "b"})
    failed = run("compile", file, "--format", "alpaca", "--max-rejects", "100%", "-o", tmp_path / "out", code=3)
    assert f"{file}:1: schema: expected the key 'output'" in one_message(failed.stderr)
    assert "2 of 2 rows of 'x' were rejected (schema 2)" in failed.stderr
    assert len(rejects(tmp_path / "out.rejects.jsonl")) == 2


def test_a_reject_that_is_no_text_is_kept_as_hex(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", qa("a"))
    file.write_bytes(file.read_bytes() + b'{"instruction": "\xff", "output": "b"}\n')
    run("compile", file, "--max-rejects", 1, "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert bytes.fromhex(reject["raw_hex"]) == b'{"instruction": "\xff", "output": "b"}'
    assert reject["reason"] == "not_utf8"


# -- JSON --


def keys(value: Any) -> Any:
    return {key: keys(one) for key, one in value.items()} if isinstance(value, dict) else None


def test_the_json_of_compile_has_stable_keys(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", qa("a"), qa("b"))
    result = run("compile", file, "--val-size", 1, "-o", tmp_path / "out", "--json")
    (line,) = result.stdout.splitlines()
    summary = json.loads(line)
    balance = dict.fromkeys(
        ("read", "expanded", "repeats", "in_shards", "rejected", "cleaned", "sampled_out", "duplicates")
    )
    split = dict.fromkeys(("rows", "tokens", "trained_tokens", "shards"))
    assert keys(summary) == {
        "version": None,
        "kind": None,
        "datasets": None,
        "balance": balance,
        "options": dict.fromkeys(
            ("mix_unit", "total", "max_repeats", "val_size", "dedup", "shuffle", "max_length", "overlength",
             "special_text", "system", "repairs", "ignore", "strict", "tools", "max_rejects", "persona")
        ),
        "seed": None,
        "splits": {"train": split, "val": split},
        "out": None,
        "digest": None,
        "content_digest": None,
        "units_compiled": None,
        "units_cached": None,
        "remarks": None,
    }  # fmt: skip
    (entry,) = summary["datasets"]
    assert keys(entry) == {
        **dict.fromkeys(("name", "format", "weights", "sample", "files", "share", "count", "target", "duplicates")),
        "policy": {"name": None, "description": None},
        "clean": {},
        "source": {},
        "realized": dict.fromkeys(("rows", "tokens", "trained_tokens", "val_rows")),
        "rejected": {},
        "unread": {},
        "ignored": {},
        "notes": {},
        "balance": balance,
    }
    assert summary["digest"] == manifest(tmp_path / "out")["digest"]
    assert summary["splits"]["train"]["shards"] == 1


@pytest.mark.slow
def test_the_json_of_verify_has_stable_keys(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("compile", write(tmp_path / "x.jsonl", qa("a")), "-o", out)
    assert json.loads(run("verify", out, "--json").stdout) == {"version": 1, "ok": True, "shards": 1, "problems": []}
    (out / "rejects.jsonl").write_text("x")
    failed = run("verify", out, "--json", code=4)
    problems = ["rejects.jsonl: is damaged or was edited"]
    assert json.loads(failed.stdout) == {"version": 1, "ok": False, "shards": 1, "problems": problems}
    assert failed.stderr == ""


def test_the_json_of_formats_has_stable_keys(run: Run) -> None:
    found = json.loads(run("formats", "--json").stdout)
    assert all(
        set(entry)
        == {"version", "name", "title", "description", "like", "columns", "tags", "weights", "kinds", "examples"}
        for entry in found
    )
    assert {"alpaca", "sharegpt", "openai", "ms_agent"} <= {entry["name"] for entry in found}
    assert [entry["name"] for entry in json.loads(run("formats", "openai", "--json").stdout)] == ["openai"]


def test_formats_is_a_table_of_every_format(run: Run) -> None:
    described = json.loads(run("formats", "--json").stdout)
    lines = run("formats").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:-2] if not line.startswith(" ")] == [one["name"] for one in described]
    assert re.fullmatch("alpaca +an instruction and its reply +sft, preference, kto", lines[1])
    assert lines[2].strip() == "{instruction, input, output}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alpaca", "sharegpt", "openai", "ms_agent", "toolbench"])
def test_formats_of_one_name_shows_an_example_that_is_a_row_of_it(run: Run, tmp_path: Path, name: str) -> None:
    shown = run("formats", name).stdout
    assert shown.startswith(f"{name}: ")
    assert re.search(r"^columns  \S", shown, re.MULTILINE)
    example = shown[shown.index("\n{") :]
    row, _ = json.JSONDecoder().raw_decode(example.strip())
    described = json.loads(run("formats", name, "--json").stdout)
    assert row == described[0]["examples"][0]
    file = tmp_path / "x.json"  # a file of ToolBench's is one object
    file.write_text(json.dumps(row if name == "toolbench" else [row]), "utf-8")
    run("compile", file, "--format", name, "-o", tmp_path / "out")
    assert len(rows(tmp_path / "out")) >= 1


def test_progress_and_notes_go_to_stderr_and_the_result_to_stdout(run: Run, tmp_path: Path) -> None:
    result = run("compile", write(tmp_path / "x.jsonl", qa("a")), "-o", tmp_path / "out")
    recognised, demo = result.stderr.splitlines()
    assert recognised == "x: recognised as alpaca (1 of the first 1 rows match its schema)"
    assert demo.startswith("warning: x: the demo tokenizer is no model's")
    assert "recognised" not in result.stdout
    assert "wrote" in result.stdout


@pytest.mark.parametrize(
    "command", ["inspect", "inspect --json", "inspect --format sanity", "verify"], ids=lambda command: command
)
def test_a_reader_that_goes_away_ends_a_command_quietly_with_141(run: Run, tmp_path: Path, command: str) -> None:
    """`cli inspect shards | head -1` is no failure of ours, and no success: checks may not have been printed."""
    out = tmp_path / "out"
    run("compile", write(tmp_path / "x.jsonl", qa("a")), "-o", out)
    reader, writer = os.pipe()
    os.close(reader)
    name, *options = command.split()
    done = subprocess.run([*CLI, name, out, *options], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 141
    assert not re.search("error|Traceback|Exception|Broken", done.stderr)


def test_a_file_of_a_set_is_answered_with_the_folder_of_the_set(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run("compile", write(tmp_path / "x.jsonl", qa("a")), "-o", out)
    for file in (out / "manifest.json", out / "train" / "shard-00000.arrow"):
        said = one_message(run("inspect", file, code=2).stderr)
        assert f"Name the folder of the set: cli inspect {out}\n" in said


# -- mistakes --


MISTAKES = {
    "compile FILE --format alpca": "unknown format 'alpca'\n  did you mean 'alpaca'? known: agentnet, alpaca, ",
    "compile FILE --template chatm": "--template chatm: no such name\n  did you mean 'chatml'? known: ",
    "compile FILE --weights reakt": "--weights reakt: no such name\n  did you mean 'react'? known: ",
    "compile FILE --repair danglin": "--repair danglin: unknown repair\n  did you mean 'dangling'? known: arg",
    "compile FILE --overlength turn": "did you mean 'turns'? known: cut, last-turns, reject, turns",
    "compile FILE --mix-unit token": "did you mean 'tokens'? known: rows, tokens, trained_tokens",
    "compile FILE --special-text alow": "did you mean 'allow'? known: allow, reject, text",
    "compile FILE --system merg": "did you mean 'merge'? known: merge",
    "compile FILE --dedup exct": "did you mean 'exact'? known: exact",
    "compile FILE --vall-size 1": "--vall-size: no such option\n  did you mean '--val-size'?",
    "compile FILE --tokeniser x": "--tokeniser: no such option\n  did you mean '--tokenizer'?",
    "compile FILE --zz": "--zz: no such option\n",
    "compil FILE": "compil: no such command\n  did you mean 'compile'? known: browse, cache, chat, compile, ",
    "formats open-ai": "unknown format 'open-ai'\n  did you mean 'openai'?",
    "compile": "nothing to compile",
    "verify": "Missing argument 'OUT'",
    "verify FILE": "expected the folder of a compiled set, found a file\n  Rows are compiled first: cli compile ",
    "inspect FILE --row 1": "--row: it is about a compiled set, and ",
    "compile FILE --max-rejects 5x": "--max-rejects 5x: expected a number of rows or a percentage",
    "compile FILE --max-rejects -1": "--max-rejects",
    "compile FILE --seed x": "'x' is not a valid integer",
    "compile FILE --max-length 0": "--max-length",
    "compile FILE --workers 0": "--workers",
    "compile FILE --self-cognition -3": "--self-cognition",
    "compile FILE --name x --author y": "Add --self-cognition N.",
    "compile --self-cognition 3 --name x": "--name/--author: expected both or neither",
    "compile --self-cognition 3 --name a,b,c --author x": "--name 'a,b,c': expected one value, or two as ZH,EN",
    "compile --self-cognition 3 --name a, --author x": "--name 'a,': expected one value, or two as ZH,EN",
    "compile FILE --tokenizer nosuch": "--tokenizer nosuch: no such folder",
}


@pytest.mark.parametrize(("command", "message"), MISTAKES.items(), ids=MISTAKES)
def test_a_mistake_is_one_message_that_names_it_and_what_is_right(
    run: Run, tmp_path: Path, command: str, message: str
) -> None:
    file = write(tmp_path / "x.jsonl", qa("a"))
    given = [str(file) if argument == "FILE" else argument for argument in command.split()]
    if given[0] == "compile":
        given += ["-o", str(tmp_path / "out")]
    result = run(*given, code=2)
    assert message in one_message(result.stderr)
    assert len(one_message(result.stderr).splitlines()) <= 2
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["empty", "no tokenizer.json"])
def test_a_folder_that_is_no_tokenizer_is_named(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "tok").mkdir()
    if content != "empty":
        (tmp_path / "tok" / "tokenizer_config.json").write_text("{}")
    file = write(tmp_path / "x.jsonl", qa("a"))
    result = run("compile", file, "--tokenizer", tmp_path / "tok", "-o", tmp_path / "out", code=2)
    assert str(tmp_path / "tok") in one_message(result.stderr)
    assert "tokenizer.json" in result.stderr


# -- self-cognition --


@pytest.mark.parametrize(
    ("given", "zh", "en"),
    [
        ("陶白白,Baibai", "陶白白", "Baibai"),
        ("陶白白, Tao Baibai", "陶白白", "Tao Baibai"),
        ("Acme,Acme AI", "Acme", "Acme AI"),
        ("Acme, Inc.", "Acme, Inc.", "Acme, Inc."),
        ('"Acme,Inc."', "Acme,Inc.", "Acme,Inc."),
        ('极致公司,"Acme, Inc."', "极致公司", "Acme, Inc."),
        ('"极致，公司","Acme, Inc."', "极致，公司", "Acme, Inc."),
    ],
)
def test_the_comma_of_a_company_is_told_from_the_one_between_two_languages(given: str, zh: str, en: str) -> None:
    assert dict(persona("M", given)) == {"name.zh": "M", "name.en": "M", "author.zh": zh, "author.en": en}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "author", "values"),
    [
        ("卡卡罗特,Kakarot", "陶白白,Tao Baibai", {"zh": ("卡卡罗特", "陶白白"), "en": ("Kakarot", "Tao Baibai")}),
        ("莫莫，Momo", "Ava", {"zh": ("莫莫", "Ava"), "en": ("Momo", "Ava")}),
    ],
    ids=["both languages", "a full-width comma, and one value for both"],
)
def test_names_and_authors_are_filled_in_by_language_in_query_and_reply(
    run: Run, tmp_path: Path, name: str, author: str, values: dict[str, tuple[str, str]]
) -> None:
    out = tmp_path / "out"
    run("compile", "--self-cognition", 200, "--name", name, "--author", author, "-o", out)
    pool = [json.loads(line) for line in registry.SELF_COGNITION.read_text("utf-8").splitlines()]
    assert 100 <= len(pool) <= 200
    assert {row["tag"] for row in pool} == {"zh", "en"}
    found = rows(out)
    assert {row["row"] for row in found} == set(range(len(pool)))
    for row in found:
        source = pool[row["row"]]
        name, author = values[source["tag"]]
        filled = {key: value.replace("{{NAME}}", name).replace("{{AUTHOR}}", author) for key, value in source.items()}
        query, reply = filled["query"], filled["response"]
        assert "{{" not in query + reply
        assert text(out, row) == f"<|im_start|>user\n{query}<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>\n"
        assert trained(out, row) == [f"{reply}<|im_end|>"]


# -- what options do --


@pytest.mark.slow
def test_text_that_spells_a_control_token_stays_text_is_rejected_or_becomes_it(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = write(tmp_path / "x.jsonl", qa("What is <|im_end|>?", "A stop."), qa("plain"))
    end = Tokenizer.from_file(str(registry.DEMO_TOKENIZER / "tokenizer.json")).token_to_id("<|im_end|>")

    def of(choice: list[str], *more: object) -> dict[int, int]:
        """Return, by row, how many stops an example has: two belong to the template."""
        run("compile", file, *choice, *more, "-o", out)
        assert all(text(out, row).startswith("<|im_start|>user\n") for row in rows(out))
        return {row["row"]: row["input_ids"].count(end) for row in rows(out)}

    assert of([]) == of(["--special-text", "text"]) == {0: 2, 1: 2}
    assert manifest(out)["datasets"][0]["notes"] == {"special_text": 1}
    assert of(["--special-text", "allow"]) == {0: 3, 1: 2}
    run("compile", file, "--special-text", "reject", "-o", out, code=3)
    assert of(["--special-text", "reject"], "--max-rejects", 1) == {1: 2}
    (reject,) = rejects(out / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (0, "special_text")
    assert reject["message"] == "the text spells the control token '<|im_end|>'"


def test_a_system_message_that_the_template_refuses_is_rejected_or_merged(run: Run, tmp_path: Path) -> None:
    out, mistral = tmp_path / "out", shared("tokenizers", "mistral")
    file = write(tmp_path / "x.jsonl", qa("q", "a", system="Be kind."), qa("q", "a"))
    run("compile", file, "--tokenizer", mistral, "--max-rejects", 1, "-o", out)
    (reject,) = rejects(out / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (0, "template_refused")
    assert "--system merge" in reject["message"]
    result = run("compile", file, "--tokenizer", mistral, "--system", "merge", "--no-shuffle", "-o", out)
    merged, plain = rows(out)
    assert text(out, merged) == "<s> [INST] Be kind.\n\nq [/INST]a</s>"
    assert text(out, plain) == "<s> [INST] q [/INST]a</s>"
    assert manifest(out)["datasets"][0]["notes"] == {"repair:system_merge": 1}
    assert manifest(out)["options"]["system"] == "merge"
    assert "x: in 1 row, the system text was put before the first user message" in result.stdout


def test_system_merge_changes_nothing_where_the_template_takes_a_system_message(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", qa("q", "a", system="Be kind."))
    for arguments in ([], ["--system", "merge"]):
        run("compile", file, *arguments, "-o", tmp_path / "out")
        assert text(tmp_path / "out", rows(tmp_path / "out")[0]).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
        assert manifest(tmp_path / "out")["datasets"][0]["notes"] == {}


def test_repair_dangling_removes_trailing_turns_without_a_reply(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    file = write(
        tmp_path / "x.jsonl",
        chat(("u", "1"), ("a", "2"), ("u", "3")),
        chat(("u", "1"), ("c", '{"name": "f", "arguments": {}}'), ("o", "4")),
        chat(("u", "1"), ("a", "2")),
        chat(("u", "only a question")),
    )
    run("compile", file, "--max-rejects", "100%", "-o", out)
    assert [reject["row"] for reject in rejects(out / "rejects.jsonl")] == [0, 1, 3]
    result = run("compile", file, "--repair", "dangling", "--max-rejects", "100%", "--no-shuffle", "-o", out)
    assert [(reject["row"], reject["reason"]) for reject in rejects(out / "rejects.jsonl")] == [(3, "turn_order")]
    first, second, third = rows(out)
    assert first["input_ids"] == third["input_ids"]
    assert "4" not in text(out, second)
    assert manifest(out)["datasets"][0]["notes"] == {"repair:dangling": 2}
    assert manifest(out)["options"]["repairs"] == ["dangling"]
    assert "x: in 2 rows, trailing turns without a reply were removed" in result.stdout


SYSTEM = ("s", "You answer in one short sentence, always.")
TALK = [
    ("u", "The first question?"), ("a", "The first answer."),
    ("u", "And a second one?"), ("a", "Another answer."),
    ("u", "A last one?"), ("a", "The last answer."),
]  # fmt: skip


@pytest.fixture
def ids(run: Run, tmp_path: Path) -> Callable[..., list[int] | None]:
    """Compile one conversation; return its ids, or None where it was rejected as too long."""

    def of(turns: list[tuple[str, str]], *arguments: object) -> list[int] | None:
        # A second row that always fits, so that there is a set to look at.
        file = write(tmp_path / "talk.jsonl", chat(*turns), chat(("u", "a"), ("a", "b")))
        run("compile", file, *arguments, "--max-rejects", 1, "--no-shuffle", "-o", tmp_path / "talk")
        assert all(reject["reason"] == "too_long" for reject in rejects(tmp_path / "talk" / "rejects.jsonl"))
        return next((row["input_ids"] for row in rows(tmp_path / "talk") if row["row"] == 0), None)

    return of


def test_overlength_turns_keeps_the_longest_prefix_of_whole_turns(ids: Callable[..., list[int] | None]) -> None:
    whole = [SYSTEM, *TALK]
    lengths = {}
    for turns in (3, 5, 7):
        prefix = ids(whole[:turns])
        assert prefix
        lengths[turns] = len(prefix)
        for extra in (0, 1):
            assert ids(whole, "--max-length", len(prefix) + extra) == prefix
    assert ids(whole, "--max-length", lengths[5] - 1) == ids(whole[:3])
    assert ids(whole, "--max-length", lengths[3] - 1, "--overlength", "turns") is None


def test_overlength_last_turns_keeps_the_system_text_and_the_last_turns(ids: Callable[..., list[int] | None]) -> None:
    whole = [SYSTEM, *TALK]
    for turns in (2, 4):
        suffix = ids([SYSTEM, *TALK[-turns:]])
        assert suffix
        assert ids(whole, "--max-length", len(suffix), "--overlength", "last-turns") == suffix
    shortest = ids([SYSTEM, *TALK[-2:]])
    assert shortest
    assert ids(whole, "--max-length", len(shortest) - 1, "--overlength", "last-turns") is None


def test_overlength_reject_keeps_what_fits_and_rejects_what_does_not(
    ids: Callable[..., list[int] | None], tmp_path: Path
) -> None:
    whole = ids(TALK)
    assert whole
    assert ids(TALK, "--max-length", len(whole), "--overlength", "reject") == whole
    assert ids(TALK, "--max-length", len(whole) - 1, "--overlength", "reject") is None
    (reject,) = rejects(tmp_path / "talk" / "rejects.jsonl")
    assert reject["message"].startswith(f"expected at most {len(whole) - 1} tokens, found {len(whole)}")


def test_overlength_cut_is_a_plain_cut(ids: Callable[..., list[int] | None], tmp_path: Path) -> None:
    whole = ids(TALK)
    assert whole
    first = ids(TALK[:2])
    assert first
    for length in (len(whole) - 1, len(first) + 2, len(first)):
        assert ids(TALK, "--max-length", length, "--overlength", "cut") == whole[:length]
        assert manifest(tmp_path / "talk")["datasets"][0]["notes"] == {"cut": 1}


def test_a_cut_that_leaves_nothing_to_train_is_a_reject(run: Run, tmp_path: Path) -> None:
    long = chat(("u", "A question that is long enough to fill it all."), ("a", "b"))
    file = write(tmp_path / "x.jsonl", long, chat(("u", "a"), ("a", "b")))
    run("compile", file, "--max-length", 12, "--overlength", "cut", "--max-rejects", 1, "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (0, "nothing_trained")


def test_the_summary_says_how_many_rows_were_shortened(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", chat(*TALK), chat(*TALK[:2]))
    result = run("compile", file, "--max-length", 30, "-o", tmp_path / "out")
    assert "x: in 1 row, turns were dropped to fit --max-length" in result.stdout
    result = run("compile", file, "--max-length", 30, "--overlength", "cut", "-o", tmp_path / "out")
    assert "x: in 1 row, tokens after --max-length were cut off" in result.stdout


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([{}, {}, {}, {}], ["A1<|im_end|>", "A2<|im_end|>"]),
        ([{}, {"loss": False}, {}, {}], ["A2<|im_end|>"]),
        ([{}, {"loss_scale": 0}, {}, {}], ["A2<|im_end|>"]),
        ([{}, {}, {}, {"loss": False}], ["A1<|im_end|>"]),
        ([{"loss": True}, {}, {}, {"loss": True}], ["Q1", "A1<|im_end|>", "A2<|im_end|>"]),
        ([{}, {"loss": None}, {"loss_scale": 0.5}, {"loss": False}], ["A1<|im_end|>", "Q2"]),
        ([{}, {"train": False}, {}, {"train": True}], ["A2<|im_end|>"]),
        ([{}, {"trainable": False}, {}, {}], ["A2<|im_end|>"]),
        ([{}, {"loss_mask": 0}, {}, {"loss_mask": 1}], ["A2<|im_end|>"]),
        ([{"loss_weight": 0.0}, {"loss_weight": 0.0}, {}, {"loss_weight": 1.0}], ["A2<|im_end|>"]),
        ([{"weight": 1}, {"weight": 0}, {"weight": 1}, {"weight": 1}], ["A2<|im_end|>"]),
        (
            [{"train": True}, {"loss": True, "loss_scale": 2}, {"weight": 0.5}, {}],
            ["Q1", "A1<|im_end|>", "A2<|im_end|>"],
        ),
    ],
)
def test_per_message_loss_decides_what_is_trained(
    run: Run, tmp_path: Path, flags: list[Row], expected: list[str]
) -> None:
    turns = [("u", "Q1"), ("a", "A1"), ("u", "Q2"), ("a", "A2")]
    out = tmp_path / "out"
    flagged = chat(*((*turn, more) for turn, more in zip(turns, flags, strict=True)))
    run("compile", write(tmp_path / "x.jsonl", flagged), "-o", out)
    (row,) = rows(out)
    assert trained(out, row) == expected
    run("compile", write(tmp_path / "y.jsonl", chat(*turns)), "-o", out)
    assert rows(out)[0]["input_ids"] == row["input_ids"]  # weights never change ids


@pytest.mark.parametrize(
    "flag", [{"loss": True}, {"weight": 1}, {"loss_scale": 1.0}, {"loss_mask": 1}, {"train": True}]
)
def test_a_flag_that_only_says_trained_leaves_a_reply_to_the_policy(run: Run, tmp_path: Path, flag: Row) -> None:
    turns = [("u", "Q"), ("a", "Action: look")]
    weights = []
    for name, more in (("x", {}), ("y", flag)):
        row = chat(*((*turn, more) if turn[0] == "a" else turn for turn in turns))
        run("compile", write(tmp_path / f"{name}.jsonl", row), "--weights", "react", "-o", tmp_path / "out")
        weights.append(rows(tmp_path / "out")[0]["loss_weights"])
    assert weights[0] == weights[1]
    assert 2.0 in weights[0]


@pytest.mark.parametrize(
    ("flags", "weight"), [({"weight": 0.25}, 0.25), ({"loss_weight": 3}, 3.0), ({"loss": True, "loss_scale": 0.5}, 0.5)]
)
def test_a_number_is_the_weight_of_the_whole_reply(run: Run, tmp_path: Path, flags: Row, weight: float) -> None:
    run("compile", write(tmp_path / "x.jsonl", chat(("u", "Q"), ("a", "A", flags))), "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert {w for w, label in zip(row["loss_weights"], row["labels"], strict=True) if label != -100} == {weight}


@pytest.mark.parametrize(
    "flags", [{"train": True, "loss": False}, {"loss_scale": 2, "weight": 0}, {"loss_weight": 2, "loss_scale": 3}]
)
def test_flags_that_contradict_each_other_are_a_reject(run: Run, tmp_path: Path, flags: Row) -> None:
    result = run(
        "compile", write(tmp_path / "x.jsonl", chat(("u", "Q"), ("a", "A", flags))), "-o", tmp_path / "out", code=3
    )
    assert "#/conversations/1" in result.stderr
    assert "expected flags that agree on what is trained" in result.stderr


def test_openai_weight_0_is_context(run: Run, tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1", "weight": 0},
        {"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2", "weight": 1},
    ]  # fmt: skip
    run("compile", write(tmp_path / "x.jsonl", {"messages": messages}), "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert trained(tmp_path / "out", row) == ["A2<|im_end|>"]


def test_a_weights_policy_changes_weights_and_never_ids(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reply = "Thought: look it up\nAction: clock\nAction Input: {}\nObservation: 14:05\nFinal Answer: five past two"
    turns = [{"from": "user", "value": "Q"}, {"from": "assistant", "value": reply}]
    file = write(tmp_path / "x.jsonl", {"conversations": turns})
    found = {}
    for policy in ("auto", "react", "none"):
        run("compile", file, "--weights", policy, "-o", out)
        (row,) = rows(out)
        found[policy] = row
        assert manifest(out)["datasets"][0]["weights"] == {"auto": "react"}.get(policy, policy)
    assert found["auto"] == found["react"]
    assert found["none"]["input_ids"] == found["react"]["input_ids"]
    assert found["none"]["loss_weights"] is None
    assert trained(out, found["none"]) == [f"{reply}<|im_end|>"]
    before, after = trained(out, found["react"])
    assert before == reply[: reply.index(" 14:05")]
    assert after == "Final Answer: five past two<|im_end|>"
    assert set(found["react"]["loss_weights"]) == {0.0, 1.0, 2.0}


def test_workers_change_nothing_and_options_are_in_the_manifest(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", *(qa(f"q{i}") for i in range(20)))
    run(
        "compile", file, "--workers", 2, "--seed", 4, "--max-length", 500, "--overlength", "cut", "-o", tmp_path / "out"
    )
    found = manifest(tmp_path / "out")
    assert found["seed"] == 4
    assert {key: found["options"][key] for key in ("max_length", "overlength", "shuffle", "special_text")} == {
        "max_length": 500, "overlength": "cut", "shuffle": True, "special_text": "text"
    }  # fmt: skip
    assert "workers" not in found["options"]


@pytest.mark.slow
def test_a_field_of_the_options_has_the_name_of_its_option() -> None:
    classes = (CompileOptions, MixOptions, UnitOptions)
    derived = {"units", "mixing", "tokenizer_source", "own", "recipe"}
    names = {field.name for options in classes for field in fields(options)} - derived
    of_the_command = {"as_json", "made_from", "save_recipe", "dry_run", "sample"}
    assert names == {option.name for option in main.commands["compile"].params} - of_the_command


def test_a_run_tells_how_far_it_is_from_the_first_unit_to_the_last(tmp_path: Path) -> None:
    seen: list[Done] = []

    class Noted(Watcher):
        def units(self, done: Done) -> None:
            seen.append(replace(done))

    lines = [json.dumps({"instruction": f"{i} " * 400, "output": "x" * 400}) for i in range(3000)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"instruction": 1}']) + "\n")
    options = CompileOptions(tmp_path / "out", tmp_path / "cache", (str(tmp_path / "a.jsonl"),))
    for _ in range(2):
        compile_set(options, Noted())
    first, again = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    for some in (first, again):
        assert [one.share for one in some] == sorted(one.share or 0.0 for one in some)
        assert (some[-1].rows, some[-1].rejected, some[-1].share) == (3001, 1, 1.0)
        assert some[-1].bytes == (tmp_path / "a.jsonl").stat().st_size
    assert (first[-1].compiled, first[-1].cached) == (again[-1].cached, again[-1].compiled) == (len(first), 0)


@pytest.mark.parametrize(("name", "place"), [("rows.jsonl", ":1"), ("rows.json", "#/0"), ("rows.csv", ":2")])
def test_a_file_that_is_not_utf8_at_all_is_a_file_of_rejects(run: Run, tmp_path: Path, name: str, place: str) -> None:
    rows = [{"instruction": "你好", "output": "您好"}]
    text = {"rows.jsonl": json.dumps(rows[0], ensure_ascii=False), "rows.json": json.dumps(rows, ensure_ascii=False),
            "rows.csv": "instruction,output\n你好,您好\n"}[name]  # fmt: skip
    (tmp_path / name).write_bytes(text.encode("gbk"))
    result = run("compile", tmp_path / name, "-o", tmp_path / "out", code=3)
    assert f"{tmp_path}/{name}{place}: not_utf8: byte 0x" in result.stderr
    assert "convert the file to UTF-8" in result.stderr
    assert "no row of it can be read, so its format is not known" in result.stderr


def test_the_mix_may_be_given_in_parts(run: Run, tmp_path: Path) -> None:
    run("compile", "--mix", "agent:1", "--mix", "bench:2", "-o", tmp_path / "out")
    assert [(one["name"], one["share"]) for one in manifest(tmp_path / "out")["datasets"]] == [
        ("agent", 1),
        ("bench", 2),
    ]


def test_the_summary_of_a_mix_by_tokens_has_their_shares(run: Run, tmp_path: Path) -> None:
    result = run("compile", "--mix", "agent:1,bench:1", "--mix-unit", "tokens", "-o", tmp_path / "out")
    realized = [one["realized"]["tokens"] for one in manifest(tmp_path / "out")["datasets"]]
    assert "share of tokens" in result.stdout
    assert f"{realized[0] / sum(realized):.1%}" in result.stdout
    plain = run("compile", "--mix", "agent:1,bench:1", "-o", tmp_path / "other")
    assert "share of tokens" not in plain.stdout


def test_a_registry_that_holds_nothing_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("compile", "--registry", tmp_path / "empty", "--mix", "agent", "-o", tmp_path / "out", code=2)
    assert f"--registry {tmp_path}/empty: it holds no dataset_info.json" in result.stderr


def test_pairs_of_conversations_are_pairs_and_never_plain_rows(run: Run, tmp_path: Path) -> None:
    chats = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": said}] for said in ("GOOD", "BAD")]
    file = write(tmp_path / "pairs.jsonl", {"messages": chats[0], "rejected_messages": chats[1]})
    run("compile", file, "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert manifest(tmp_path / "out")["kind"] == "preference"
    assert "GOOD" in decode(tmp_path / "out", row["input_ids"])
    assert "BAD" not in decode(tmp_path / "out", row["input_ids"])
    assert "BAD" in decode(tmp_path / "out", row["rejected_input_ids"])


@pytest.mark.parametrize("tools", [0, False, 1.5, True, "text", {"a": 1}, [], ["f"], None])
def test_tools_of_a_chatglm3_row_may_be_any_json_that_the_template_takes(run: Run, tmp_path: Path, tools: Any) -> None:
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"tools": tools, "conversations": chat}] * 9
    options = ["--format", "chatglm3", "--max-rejects", "100%"]
    taken = not tools or not isinstance(tools, float | bool)  # the demo's template loops over them
    file = write(tmp_path / "rows.jsonl", *rows)
    result = run("compile", file, *options, "-o", tmp_path / "out", code=0 if taken else 3)
    if taken:
        assert manifest(tmp_path / "out")["datasets"][0]["balance"]["in_shards"] == 9
    else:
        assert "template_refused: the chat template failed on it" in result.stderr
