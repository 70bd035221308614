"""`cli inspect FILE`: what it says of rows that are not compiled is what the compile does with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import polars as pl
import pytest
from click.testing import Result

from schemas import schema
from tests.support.sets import Row, entry, qa, rejects, write

Run = Callable[..., Result]

VALIDATOR = jsonschema.Draft202012Validator(schema("inspect_files"))
CALL = {"id": "1", "function": {"name": "lamp", "arguments": '{"on": true}'}}
LAMP = {
    "messages": [
        {"role": "user", "content": "Light!", "mood": "dark"},
        {"role": "assistant", "content": "", "reasoning_content": "It is dark.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
        {"role": "assistant", "content": "It is on."},
    ],
    "tools": [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}],
    "id": "row-1",
    "colour": "red",
}


@pytest.fixture
def look(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Row]:
    """A function that gives what the command prints as JSON of files in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def found(*given: object) -> Row:
        printed: Row = json.loads(run("inspect", *given, "--json").stdout)
        VALIDATOR.validate(printed)
        return printed

    return found


def becomes(found: Row) -> dict[str, str]:
    return {key["key"]: key["becomes"] for key in found["datasets"][0]["keys"]}


def test_keys_are_read_ignored_or_not_read_as_the_manifest_of_the_compile_says(
    run: Run, look: Callable[..., Row], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", LAMP)
    found = look(path.name, "--ignore", "shade")
    one = found["datasets"][0]
    assert one["format"] == "openai" and "recognised as openai (1 of the first 1 rows" in one["notes"][0]
    assert becomes(found) == {"messages": "read", "tools": "read", "id": "ignored", "colour": "not read"}
    assert one["below"] == [{"path": "messages[].mood", "becomes": "not read", "rows": 1}]
    kept = [{key: one[key] for key in one if key != "reasoning_content"} for one in LAMP["messages"]]  # not rendered
    run("compile", write(path, {**LAMP, "messages": kept}), "-o", tmp_path / "out")
    unread = entry(tmp_path / "out")["unread"]
    assert set(unread) == {"colour", "messages[].mood"}


def test_a_row_is_shown_as_the_conversation_that_it_becomes(look: Callable[..., Row], run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", LAMP)
    (row,) = look(path.name)["datasets"][0]["rows"]
    assert row["place"] == "a.jsonl:1"
    (one,) = row["made"]
    assert [message["role"] for message in one["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert one["messages"][1]["thinking"] == "It is dark."
    assert one["messages"][1]["calls"] == [{"name": "lamp", "arguments": {"on": True}, "id": "1"}]
    printed = run("inspect", path.name).stdout
    for text in ("━━ a.jsonl:1", "thinking  It is dark.", 'call      lamp {"on": true}', "colour   1  not read"):
        assert text in printed


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_files_of_every_kind_are_read_with_the_columns_that_are_named(
    look: Callable[..., Row], tmp_path: Path, name: str
) -> None:
    rows = [{"q": f"question {i}", "a": f"answer {i}"} for i in range(5)]
    frame = pl.DataFrame(rows)
    {
        "a.jsonl": frame.write_ndjson,
        "a.csv": frame.write_csv,
        "a.parquet": frame.write_parquet,
        "a.json": lambda path: Path(path).write_text(json.dumps(rows)),
    }[name](tmp_path / name)
    found = look(name, "--columns", "prompt=q,response=a", "--limit", 2)
    one = found["datasets"][0]
    assert {key["key"]: key["as"] for key in one["keys"]} == {"q": "prompt", "a": "response"}
    assert [row["made"][0]["messages"][1]["content"] for row in one["rows"]] == ["answer 0", "answer 1"]


def test_a_rejected_row_has_the_place_and_the_message_of_the_compile(
    run: Run, look: Callable[..., Row], tmp_path: Path
) -> None:
    bad = {"instruction": "q", "output": 7}
    path = write(tmp_path / "a.jsonl", qa("q0"), "{broken", bad, {"instruction": "q", "output": "a", "loss_mask": [1]})
    made = [
        row["made"][0].get("reject")
        for row in look(path.name, "--format", "alpaca", "--limit", 9)["datasets"][0]["rows"]
    ]
    run("compile", path.name, "--format", "alpaca", "--max-rejects", 9, "-o", tmp_path / "out")
    found = rejects(tmp_path / "out" / "rejects.jsonl")
    expected = [{key: one[key] for key in ("reason", "message", "pointer")} for one in found]
    assert [one for one in made if one] == expected and len(expected) >= 2
    assert f"a.jsonl:3#{expected[1]['pointer']}" in run("inspect", path.name, "--format", "alpaca").stdout


def test_with_a_tokenizer_the_masks_are_those_of_the_set(run: Run, look: Callable[..., Row], tmp_path: Path) -> None:
    import registry

    path = write(tmp_path / "a.jsonl", *(qa(f"q{i}", f"answer {i}") for i in range(5)))
    tokenizer = ("--tokenizer", registry.DEMO_TOKENIZER)
    masks = look(path.name, *tokenizer, "--limit", 2)["masks"]
    run("compile", path.name, *tokenizer, "--no-shuffle", "-o", tmp_path / "out")
    of_set = [json.loads(line) for line in run("inspect", "out", "--limit", 2, "--json").stdout.splitlines()]
    assert masks == [{key: value for key, value in row.items() if key != "version"} for row in of_set]
    assert "⟦" in run("inspect", path.name, *tokenizer).stdout
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.jsonl", "cache", "out"]


def test_folders_and_entries_of_a_dataset_info_are_read_and_options_of_sets_are_refused(
    run: Run, look: Callable[..., Row], tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", {"q": "hi", "a": "yo"})
    entries: dict[str, Any] = {"mine": {"file_name": "a.jsonl", "columns": {"prompt": "q", "response": "a"}}}
    (folder / "dataset_info.json").write_text(json.dumps(entries))
    found = look("data/dataset_info.json", "--dataset", "mine")
    assert becomes(found) == {"q": "read", "a": "read"}
    assert "Name one with --dataset: " in run("inspect", "data/dataset_info.json", code=2).stderr
    (folder / "dataset_info.json").unlink()
    write(folder / "a.jsonl", qa("q0"))
    assert look("data")["datasets"][0]["name"] == "data"
    assert "it is about a compiled set" in run("inspect", "data/a.jsonl", "--row", "1", code=2).stderr
    assert "Add --tokenizer" in run("inspect", "data/a.jsonl", "--template", "chatml", code=2).stderr
    run("compile", "data/a.jsonl", "-o", "out")
    assert "about files that are not compiled" in run("inspect", "out", "--kind", "sft", code=2).stderr
    assert "expected text or sanity" in run("inspect", "out", "--format", "alpaca", code=2).stderr
