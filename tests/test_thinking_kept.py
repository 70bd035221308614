"""`--thinking keep`: where a chat template can keep the thinking of earlier replies, a conversation is one example.

The oracle is `transformers`: `apply_chat_template` with the template's own variable gives the ids, and the places where
its generation prompts end and its replies stop give the labels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import registry
from schemas.manifest import read_manifest
from tests.support.families import FAMILIES, family_folder, official_source
from tests.support.sets import manifest, rejects, rows, write

Run = Callable[..., Result]
Row = dict[str, Any]

IGNORED = -100
GLM = """[gMASK]<sop>{%- set ns = namespace(asked=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.asked = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' -%}
{%- if (clear_thinking is defined and not clear_thinking) or loop.index0 > ns.asked -%}
{{ '<think>' + m.reasoning_content.strip() + '</think>' }}
{%- else -%}{{ '</think>' }}{%- endif -%}
{%- endif -%}{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
<think>{% endif -%}"""
"""What GLM-4.7's template does with thinking, around ChatML."""
COUNTING = (
    "{{ messages|selectattr('role', 'equalto', 'user')|list|length }} questions, "
    "{% if keep_past_thinking %}all{% endif %}"
    + GLM.replace("(clear_thinking is defined and not clear_thinking)", "keep_past_thinking")
)
"""A template that changes the beginning with every question, thinking apart."""
SWITCHED: dict[str, tuple[str, dict[str, bool]]] = {
    "qwen3_6": ("", {"preserve_thinking": True}),
    "lfm2_2_5_v2": ("", {"preserve_thinking": True}),
    "nemotron_3_nano": ("", {"truncate_history_thinking": False}),
    "glm": (GLM, {"clear_thinking": False}),
}


def model_folder(folder: Path, name: str, template: str = "") -> Path:
    family = FAMILIES["qwen3"]
    tokens = [*family.tokens.split(), "<|startoftext|>", "[gMASK]", "<sop>"]
    source = template or official_source(name)
    return family_folder(
        folder / "model", source, tokens, family.eos, "<|startoftext|>", registry.DEMO_TOKENIZER,
        marks=family.marks.split(),
    )  # fmt: skip


def expected(folder: Path, row: Row, variables: dict[str, bool]) -> tuple[list[int], list[int]]:
    """(ids, labels) by transformers: each reply is trained from its generation prompt to its stop."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = row["messages"]

    def ids(end: int, *, prompt: bool = False) -> list[int]:
        found = tokenizer.apply_chat_template(
            messages[:end], add_generation_prompt=prompt, return_dict=False, **variables
        )
        return list(found)

    whole, stop = ids(len(messages)), tokenizer.convert_tokens_to_ids("<|im_end|>")
    labels = [IGNORED] * len(whole)
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start, after = len(ids(i, prompt=True)), ids(i + 1)
            end = len(after) - after[::-1].index(stop)
            assert whole[:end] == after[:end]
            labels[start:end] = whole[start:end]
    return whole, labels


def user(said: str) -> Row:
    return {"role": "user", "content": said}


def reply(said: str, thought: str, **more: Any) -> Row:
    return {"role": "assistant", "content": said, "reasoning_content": thought, **more}


THREE = {
    "messages": [
        user("3 + 4?"), reply("7.", "Three and four."), user("Plus 1?"), reply("8.", "Seven and one.\n\nEight."),
        user("And half of it?"), reply("4.", "8 / 2"),
    ]
}  # fmt: skip
TWO = {"messages": [*THREE["messages"][:3], reply("8.", "Seven and one.", loss=False)]}


@pytest.mark.parametrize("name", SWITCHED)
def test_a_template_with_a_switch_keeps_all_thinking_in_one_example(name: str, run: Run, tmp_path: Path) -> None:
    template, variables = SWITCHED[name]
    folder = model_folder(tmp_path, name, template)
    file = write(tmp_path / "rows.jsonl", THREE, TWO)
    options = ["--tokenizer", folder, "--thinking", "keep", "--no-shuffle"]
    done = run("compile", file, *options, "-o", tmp_path / "out")
    first, second = rows(tmp_path / "out")
    assert (first["input_ids"], first["labels"]) == expected(folder, THREE, variables)
    ids, labels = expected(folder, TWO, variables)
    assert second["input_ids"] == ids
    assert sum(label >= 0 for label in second["labels"]) < sum(label >= 0 for label in labels)
    found = manifest(tmp_path / "out")
    assert found["options"]["thinking"] == "keep"
    assert found["template"]["variables"] == variables
    assert found["template"]["certificate"]["one_example_per_reply"] == 0
    assert found["datasets"][0]["notes"] == {}
    ((variable, value),) = variables.items()
    assert f"keeps the thinking of earlier replies with {variable}={str(value).lower()}" in done.stderr
    run("compile", file, "--tokenizer", folder, "--no-shuffle", "-o", tmp_path / "default")
    assert len(rows(tmp_path / "default")) == 4
    other = manifest(tmp_path / "default")
    assert "thinking" not in other["options"]
    assert "variables" not in other["template"]
    assert other["template"]["digest"] != found["template"]["digest"]


def test_thinking_written_into_the_text_is_kept_too(run: Run, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "qwen3_6")
    inline = [
        m
        if m["role"] == "user"
        else {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{m['content']}"}
        for m in THREE["messages"]
        for thought in [m.get("reasoning_content")]
    ]
    file = write(tmp_path / "rows.jsonl", THREE, {"messages": inline})
    run("compile", file, "--tokenizer", folder, "--thinking", "keep", "--no-shuffle", "-o", tmp_path / "out")
    first, second = rows(tmp_path / "out")
    assert first["input_ids"] == second["input_ids"]
    assert first["labels"] == second["labels"]


def test_calls_keep_their_thinking_after_the_next_question(run: Run, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "qwen3_6")
    function = {"name": "lamp", "arguments": {"on": True}}
    made = reply("", "the lamp", tool_calls=[{"id": "c1", "type": "function", "function": function}])
    messages = [
        user("Light!"),
        made,
        {"role": "tool", "content": "ok", "tool_call_id": "c1"},
        reply("Done.", "it is on"),
    ]
    tools = [{"type": "function", "function": {"name": "lamp", "parameters": {"type": "object", "properties": {}}}}]
    source = {"messages": [*messages, user("Thanks."), reply("Bye.", "polite")]}
    file = write(tmp_path / "rows.jsonl", source | {"tools": tools})
    run("compile", file, "--tokenizer", folder, "--thinking", "keep", "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = tokenizer.apply_chat_template(source["messages"], tools=tools, return_dict=False, preserve_thinking=True)
    assert row["input_ids"] == list(wanted)
    assert tokenizer.decode(row["input_ids"]).count("<think>\n") == 3


def test_a_pair_is_rendered_with_the_switch(run: Run, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "qwen3_6")
    messages = THREE["messages"]
    other = reply("3.", "a guess")
    file = write(tmp_path / "rows.jsonl", {"messages": messages[:5], "chosen": messages[5], "rejected": other})
    run("compile", file, "--tokenizer", folder, "--thinking", "keep", "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    variables = {"preserve_thinking": True}
    assert row["input_ids"] == expected(folder, THREE, variables)[0]
    assert row["rejected_input_ids"] == expected(folder, {"messages": [*messages[:5], other]}, variables)[0]


def test_a_template_without_a_switch_is_one_message_that_says_what_to_do(run: Run, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "qwen3")
    file = write(tmp_path / "rows.jsonl", THREE)
    found = run("compile", file, "--tokenizer", folder, "--thinking", "keep", "-o", tmp_path / "out", code=2)
    assert f"template auto of {folder} leaves out the thinking of earlier replies" in found.stderr
    assert "reads no variable that keeps it (preserve_thinking, " in found.stderr
    assert "Leave --thinking out" in found.stderr
    assert not (tmp_path / "out").exists()


def test_a_switch_that_keeps_some_of_it_is_refused(run: Run, tmp_path: Path) -> None:
    """Gemma 4's keeps the thinking of replies with calls alone."""
    folder = model_folder(tmp_path, "gemma4_v5")
    file = write(tmp_path / "rows.jsonl", THREE)
    found = run("compile", file, "--tokenizer", folder, "--thinking", "keep", "-o", tmp_path / "out", code=2)
    assert "preserve_thinking does not keep all of it" in found.stderr


def test_a_template_that_keeps_it_anyway_says_so_and_changes_no_token(run: Run, tmp_path: Path) -> None:
    file = write(
        tmp_path / "rows.jsonl", {"messages": [user("a"), {"role": "assistant", "content": "<think>x</think>b"}]}
    )
    done = run("compile", file, "--thinking", "keep", "-o", tmp_path / "kept")
    assert "--thinking keep: the chat template keeps the thinking of earlier replies anyway" in done.stderr
    run("compile", file, "-o", tmp_path / "default")
    assert rows(tmp_path / "kept") == rows(tmp_path / "default")
    kept, default = manifest(tmp_path / "kept"), manifest(tmp_path / "default")
    assert kept["template"] == default["template"]


def test_a_template_that_changes_earlier_turns_in_another_way_makes_rejects(run: Run, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, "counting", COUNTING)
    file = write(tmp_path / "rows.jsonl", {"messages": THREE["messages"][:2]}, THREE)
    options = ["--tokenizer", folder, "--thinking", "keep", "--max-rejects", "1"]
    run("compile", file, *options, "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "template_unstable")
    assert reject["message"].endswith("without --thinking keep each reply is an example by itself")


def test_documents_have_no_thinking_to_keep(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"text": "a document"})
    found = run("compile", file, "--thinking", "keep", "-o", tmp_path / "out", code=2)
    assert "--thinking: it is about conversations, and these are documents" in found.stderr


@pytest.mark.parametrize("name", ["qwen3_6", "glm"])
def test_the_tokenizer_of_a_checkpoint_keeps_it_by_default(name: str, run: Run, tmp_path: Path) -> None:
    """What `cli export` writes and `cli chat --adapter` loads; a request may still say otherwise."""
    from transformers import AutoTokenizer

    from trainer.use.checkpoint import TrainedModel
    from trainer.use.tokenizer import copy_tokenizer

    template, variables = SWITCHED[name]
    folder, out = model_folder(tmp_path, name, template), tmp_path / "out"
    run("compile", write(tmp_path / "rows.jsonl", THREE), "--tokenizer", folder, "--thinking", "keep", "-o", out)
    trained = TrainedModel(tmp_path, {}, out, read_manifest(out), tmp_path, None)
    (tmp_path / "copy").mkdir()
    note = copy_tokenizer(trained, tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "copy")
    (row,) = rows(out)
    assert list(tokenizer.apply_chat_template(THREE["messages"], return_dict=False)) == row["input_ids"]
    opposite = {key: not value for key, value in variables.items()}
    dropped = tokenizer.apply_chat_template(THREE["messages"], return_dict=False, **opposite)
    original = AutoTokenizer.from_pretrained(folder).apply_chat_template(THREE["messages"], return_dict=False)
    assert list(dropped) == list(original) != row["input_ids"]
    ((variable, value),) = variables.items()
    assert f"`{variable}={str(value).lower()}` is its default here" in note
