"""Rows as people have them: kinds that later rows contradict, names, flags, and shapes met in public data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

import registry
from compiler.formats.kinds import kind_of_rows
from compiler.rows.recognise import recognise
from schemas.reader import CompiledSet
from tests.support.sets import Row, entry, rejects, rows, text, write

Run = Callable[..., Result]


def turns(asked: str = "q", said: str = "a") -> list[Row]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]


def texts(out: Path) -> list[str]:
    return [text(out, row) for row in rows(out)]


PLAIN = [{"messages": turns(f"q{i}")} for i in range(25)]
LABELLED = [{"messages": turns(f"l{i}"), "label": i % 2 == 0} for i in range(25)]
PAIRS = [{"messages": turns(f"p{i}"), "rejected_response": "bad"} for i in range(25)]
ALPACA = [{"instruction": f"i{i}", "output": "o"} for i in range(25)]


# -- kinds --


@pytest.mark.parametrize(
    ("first", "later", "found"),
    [
        (PLAIN, LABELLED, "expected a plain row like the first ones, found a kto row"),
        (PLAIN, PAIRS, "expected a plain row like the first ones, found a preference row"),
        (PAIRS, PLAIN, "expected a preference row like the first ones, found a plain row"),
        (PAIRS, LABELLED, "expected a preference row like the first ones, found a kto row"),
        (LABELLED, PLAIN, "expected a kto row like the first ones, found a plain row"),
        (LABELLED, PAIRS, "expected a kto row like the first ones, found a preference row"),
    ],
)
def test_a_later_row_of_another_kind_is_a_reject_that_says_so_and_what_to_do(
    run: Run, tmp_path: Path, first: list[Row], later: list[Row], found: str
) -> None:
    file = write(tmp_path / "x.jsonl", *first, *later)
    run("compile", file, "--max-rejects", "25", "-o", tmp_path / "out")
    named = rejects(tmp_path / "out" / "rejects.jsonl")
    assert [reject["row"] for reject in named] == list(range(25, 50))
    assert all(found in reject["message"] and "--kind" in reject["message"] for reject in named)
    done = run("compile", file, "-o", tmp_path / "none", code=3)
    assert "put each sort into a file of its own" in done.stderr


def test_a_file_of_two_formats_is_said_to_be_one_where_it_fails(run: Run, tmp_path: Path) -> None:
    done = run("compile", write(tmp_path / "x.jsonl", *ALPACA, *PLAIN), "-o", tmp_path / "out", code=3)
    said = "There are rejects that are good sft rows of the format openai among sft rows of alpaca; put each sort into"
    assert said in done.stderr


def test_a_kind_that_is_asked_for_is_read_in_rows_that_show_it_late(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", *PLAIN, *LABELLED)
    run("compile", file, "--kind", "kto", "--max-rejects", "25", "-o", tmp_path / "out")
    made = CompiledSet.open(tmp_path / "out")
    assert (made.manifest["kind"], made.table("train").num_rows) == ("kto", 25)
    assert [reject["row"] for reject in rejects(tmp_path / "out" / "rejects.jsonl")] == list(range(25))


@pytest.mark.parametrize("classes", [range(2, 40), [0, 1, 2] * 9])
def test_a_label_that_names_classes_makes_no_kto_rows_and_no_rejects(
    run: Run, tmp_path: Path, classes: list[int]
) -> None:
    rows = [{"messages": turns(f"q{i}"), "label": i % 5} for i in classes]
    done = run("compile", write(tmp_path / "x.jsonl", *rows), "-o", tmp_path / "out")
    assert "the key 'label' is not read as a KTO label, because some rows have other values" in done.stderr
    assert (entry(tmp_path / "out")["rejected"], entry(tmp_path / "out")["unread"]) == ({}, {"label": len(rows)})


def test_kto_labels_may_be_floats_as_tables_with_gaps_have_them(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("instruction,output,kto_tag\nq,r,1.0\nq,s,0.0\nq,t,\n")
    run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    made = CompiledSet.open(tmp_path / "out")
    assert sorted(made.table("train").column("desirable").to_pylist()) == [False, True]
    assert [reject["row"] for reject in rejects(tmp_path / "out" / "rejects.jsonl")] == [2]


def test_a_kto_tag_that_is_no_label_is_never_trained_as_a_plain_row(run: Run, tmp_path: Path) -> None:
    row = {"instruction": "q", "output": "r", "kto_tag": "good"}
    done = run("compile", write(tmp_path / "x.jsonl", row), "--format", "alpaca", "-o", tmp_path / "out", code=3)
    assert "expected a label, true or false, also as 1, 0 or text, found 'good'" in done.stderr


def test_texts_with_a_label_are_documents_and_the_label_is_named(run: Run, tmp_path: Path) -> None:
    run("compile", write(tmp_path / "x.jsonl", *[{"text": "Some words.", "label": 1}] * 3), "-o", tmp_path / "out")
    assert (entry(tmp_path / "out")["format"], entry(tmp_path / "out")["unread"]) == ("pretrain", {"label": 3})


# -- names of speakers --


def test_names_of_speakers_are_named_where_the_template_writes_none(run: Run, tmp_path: Path) -> None:
    named = [{"messages": [message | {"name": "Bob"} for message in turns()]}]
    run("compile", write(tmp_path / "x.jsonl", *named, *PLAIN), "-o", tmp_path / "out")
    assert entry(tmp_path / "out")["unread"] == {"messages[].name": 1}
    run("compile", tmp_path / "x.jsonl", "--ignore", "name", "--unknown-keys", "error", "-o", tmp_path / "out")
    assert entry(tmp_path / "out")["ignored"] == {"name": 1}


def test_names_of_users_are_read_where_the_template_writes_them_and_those_of_replies_are_not(
    run: Run, tmp_path: Path
) -> None:
    """As templates that put the name in place of the role."""
    folder = tmp_path / "tokenizer"
    shutil.copytree(registry.DEMO_TOKENIZER, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config["chat_template"] = (
        "{% for m in messages %}<|im_start|>{{ m.name or m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    asked, said = turns()
    rows = [
        {"messages": [asked | {"name": f"Bob{i}"} if i % 2 else asked, said | ({"name": "Ann"} if i == 5 else {})]}
        for i in range(6)
    ]
    file = write(tmp_path / "x.jsonl", *rows)
    run("compile", file, "--tokenizer", folder, "--no-shuffle", "-o", tmp_path / "out")
    heads = [text.partition("\n")[0] for text in texts(tmp_path / "out")]
    assert heads == [f"<|im_start|>{name}" for name in ("user", "Bob1", "user", "Bob3", "user", "Bob5")]
    assert all("<|im_start|>assistant\na<|im_end|>" in text for text in texts(tmp_path / "out"))
    assert entry(tmp_path / "out")["unread"] == {"messages[].name": 1}


# -- what was asked is recorded, and names may have every sign --


def test_columns_tags_and_kind_are_recorded_where_they_were_given(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", {"talk": [{"who": "human", "value": "q"}, {"who": "gpt", "value": "a"}]})
    asked = ["--format", "sharegpt", "--columns", "messages=talk", "--tags", "role_tag=who", "--kind", "sft"]
    run("compile", file, *asked, "--unknown-keys", "error", "--limit", "1", "-o", tmp_path / "out")
    options = CompiledSet.open(tmp_path / "out").manifest["options"]
    assert {name: options[name] for name in ("columns", "tags", "kind", "unknown_keys", "limit")} == {
        "columns": {"messages": "talk"}, "tags": {"role_tag": "who"}, "kind": "sft", "unknown_keys": "error",
        "limit": 1,
    }  # fmt: skip
    run("compile", write(tmp_path / "y.jsonl", *PLAIN), "-o", tmp_path / "out")
    plain = CompiledSet.open(tmp_path / "out").manifest["options"]
    assert not {"columns", "tags", "kind", "unknown_keys", "limit", "where"} & plain.keys()


def test_keys_with_commas_quotes_and_equals_signs_can_be_said(run: Run, tmp_path: Path) -> None:
    row = {"question, long": "Q?", "a=b": "A.", 'c"d': "S.", "e, f": 1}
    file = write(tmp_path / "x.jsonl", row)
    columns = 'instruction="question, long",output=a=b,system="c""d"'
    run("compile", file, "--columns", columns, "--ignore", '"e, f"', "-o", tmp_path / "out")
    assert all(text in texts(tmp_path / "out")[0] for text in ("Q?", "A.", "S."))
    assert (entry(tmp_path / "out")["unread"], entry(tmp_path / "out")["ignored"]) == ({}, {"e, f": 1})
    done = run("compile", file, "--columns", columns, "--unknown-keys", "error", "-o", tmp_path / "out", code=2)
    assert '--ignore "e, f"' in done.stderr
    done = run("compile", file, "--columns", 'instruction="question, long', "-o", tmp_path / "out", code=2)
    assert "a quote is never closed" in done.stderr


def test_rows_for_validation_that_repeat_one_another_are_counted_and_said(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", *[{"messages": turns(f"q{i % 5}")} for i in range(40)])
    done = run("compile", file, "--val-size", "0.2", "-o", tmp_path / "out")
    val = CompiledSet.open(tmp_path / "out").table("val").column("input_ids").to_pylist()
    repeats = len(val) - len({tuple(ids) for ids in val})
    assert repeats > 0
    assert f"x: {repeats} of {len(val)} rows for validation repeat another row of that split" in done.stdout
    assert entry(tmp_path / "out")["realized"]["val_repeats"] == repeats
    summary = json.loads(run("compile", file, "--val-size", "0.2", "--json", "-o", tmp_path / "out").stdout)
    assert summary["datasets"][0]["realized"]["val_repeats"] == repeats
    done = run("compile", file, "--val-size", "0.2", "--dedup", "exact", "-o", tmp_path / "out")
    assert "rows for validation repeat" not in done.stdout


# -- keys that are read in some messages or parts only --


@pytest.mark.parametrize(
    ("message", "pointer"),
    [
        ({"tool_calls": [{"function": {"name": "f", "arguments": {}}}]}, "/messages/0"),
        ({"function_call": {"name": "f", "arguments": "{}"}}, "/messages/0"),
        ({"content": [{"type": "text", "text": "q", "image": "a.png"}]}, "/messages/0/content/0/image"),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}, "/messages/0/train_detail"),
        ({"training": False}, "/messages/0/training"),
    ],
)
def test_a_key_where_it_is_not_read_is_a_reject(run: Run, tmp_path: Path, message: Row, pointer: str) -> None:
    asked, said = turns()
    file = write(tmp_path / "x.jsonl", {"messages": [asked | message, said]}, *PLAIN)
    run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["pointer"]) == ("unread_key", pointer)


def test_a_text_in_a_block_that_has_none_is_named(run: Run, tmp_path: Path) -> None:
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}, "text": "LOST"}
    result = {"type": "tool_result", "tool_use_id": "t", "content": "r"}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
        {"role": "assistant", "content": "a"},
    ]
    run("compile", write(tmp_path / "x.jsonl", {"messages": messages}), "--format", "anthropic", "-o", tmp_path / "out")
    assert entry(tmp_path / "out")["unread"] == {"messages[].content[].text": 1}


def test_a_system_column_beside_another_system_message_is_named(run: Run, tmp_path: Path) -> None:
    row = {"messages": [{"role": "system", "content": "A"}, *turns()], "system": "B"}
    run("compile", write(tmp_path / "x.jsonl", row, row | {"system": "A"}), "-o", tmp_path / "out")
    assert entry(tmp_path / "out")["unread"] == {"system": 1}


# -- shapes and near misses --


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"query": "q", "answer": "a", "lang": "py"}, "query_answer"),
        ({"messages": turns(said="good"), "rejected_messages": turns(said="bad")}, "messages_rejected_messages"),
        ({"messages": [{"role": "system", "content": "S", "tools": [{"name": "f"}]}, *turns()]}, "glm4"),
        ({"instruction": "q", "output": "a", "text": "### Response: a"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "q", "weight": 0}, {"from": "gpt", "value": "a"}]}, "sharegpt"),
        ({"problem": "p", "solution": "s", "answer": "42", "messages": turns()}, "openai"),
        (
            {"prompt": "q", "chosen": turns(said="g"), "rejected": turns(said="b"), "chosen_model": "m"},
            "conversational",
        ),
        ({"query": "q", "response": "a", "type": "x", "original_question": "o"}, "query_response"),
    ],
)
def test_a_row_of_a_public_dataset_is_recognised(row: Row, name: str) -> None:
    assert recognise([row], kind_of_rows([row]))[0] == name


@pytest.mark.parametrize(
    ("row", "options"),
    [
        ({"messages": [{"role": "User", "content": "q"}, {"role": "Assistant", "content": "a"}]},
         "--format openai --tags user_tag=User,assistant_tag=Assistant"),
        ({"messages": [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a"}]},
         "--format openai --tags content_tag=text"),
        ({"conversations": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "a"}]},
         "--format sharegpt --tags user_tag=Human,assistant_tag=GPT"),
        ({"talk": [{"speaker": "Customer", "text": "q"}, {"speaker": "Agent", "text": "a"}]},
         "--columns messages=talk --tags role_tag=speaker,content_tag=text,user_tag=Customer,assistant_tag=Agent"),
    ],
)  # fmt: skip
def test_other_names_of_roles_and_keys_are_offered_and_work(run: Run, tmp_path: Path, row: Row, options: str) -> None:
    file = write(tmp_path / "x.jsonl", row)
    done = run("compile", file, "-o", tmp_path / "out", code=2)
    assert options in done.stderr
    line = next(line for line in done.stderr.splitlines() if "would fit with" in line)
    run("compile", file, *line.partition("would fit with ")[2].rstrip(",").split(), "-o", tmp_path / "out")
    assert "q<|im_end|>" in texts(tmp_path / "out")[0]
    (tmp_path / "dataset_info.json").write_text(done.stderr.partition("(--registry): ")[2].partition("\n")[0])
    run("compile", "--registry", tmp_path, "--mix", "x", "-o", tmp_path / "registered")
    assert texts(tmp_path / "registered") == texts(tmp_path / "out")


# -- texts that somebody forgot --


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("{{ user.name }}", "placeholder: {{ user.name }}"),
        ("<image> What is it?", "placeholder: <image>"),
        ("<img>a.png</img> What is it?", "placeholder: <img>"),
        ("<ref-object>", "placeholder: <ref-object>"),
        ("<|start_header_id|>user", "marker: <|start_header_id|>"),
        ("<start_of_turn>user", "marker: <start_of_turn>"),
        ("Human: q\n\n Assistant: a", "marker: Human: / Assistant:"),
        ("", "empty_prompt"),
    ],
)
def test_what_was_not_filled_in_is_counted(run: Run, tmp_path: Path, text: str, note: str) -> None:
    run("compile", write(tmp_path / "x.jsonl", {"messages": turns(text)}, *PLAIN), "-o", tmp_path / "out")
    assert entry(tmp_path / "out")["notes"][note] == 1


def test_markers_of_chats_in_documents_are_counted(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", {"text": "### Human: q### Assistant: a"}, {"text": "Just words."})
    run("compile", file, "-o", tmp_path / "out")
    assert entry(tmp_path / "out")["notes"] == {"marker: ### Assistant:": 1}


def test_react_text_under_other_weights_is_said(run: Run, tmp_path: Path) -> None:
    said = "Thought: x\nAction: f\nAction Input: {}\nObservation: y\nFinal Answer: z"
    file = write(tmp_path / "x.jsonl", {"messages": turns(said=said)}, *PLAIN)
    assert "--weights react" in run("compile", file, "-o", tmp_path / "out").stdout
    assert "all of it is trained" not in run("compile", file, "--weights", "react", "-o", tmp_path / "out").stdout


def test_a_reply_of_an_empty_thought_is_counted(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", {"messages": turns(said="<think>\n\n</think>\n\n")}, *PLAIN)
    done = run("compile", file, "-o", tmp_path / "out")
    assert "x: in 1 row, a reply is nothing but an empty <think>, and is trained" in done.stdout


def test_no_columns_are_advised_that_would_leave_out_what_was_asked(run: Run, tmp_path: Path) -> None:
    """As in TRL's stepwise rows, whose steps are right or wrong."""
    rows_ = [{"prompt": f"Q{i}", "completions": ["one", "two"], "labels": [True, False]} for i in range(3)]
    said = run("compile", write(tmp_path / "x.jsonl", *rows_), "-o", tmp_path / "out", code=2).stderr
    assert "its rows match no known format" in said
    assert "--columns messages=completions" not in said
