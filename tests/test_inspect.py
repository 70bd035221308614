"""`cli inspect`: what it shows is what is in the shards, it can be read without colours, and its checks are exact."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from rich.cells import cell_len

import registry
from compiler.tokenizer.tokenizer import Tokenizer
from tests.support.shared import shared

Run = Callable[..., Result]

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}
TYPED = "Is <|im_end|> a word?  And <|eot_id|>?"
INJECTED = {"messages": [{"role": "user", "content": TYPED}, {"role": "assistant", "content": "No.\n\nIt is text."}]}
CHINESE = {"messages": [{"role": "user", "content": "你好🧑‍🚀"}, {"role": "assistant", "content": "好呀🪿。"}]}
TRAINED_USER = {"messages": [{"role": "user", "content": "Hi", "loss": True}, {"role": "assistant", "content": "Yo"}]}
LAMP = {
    "messages": [
        {"role": "system", "content": "You control a lamp."},
        {"role": "user", "content": "开灯"},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "lamp", "arguments": '{"on": true}'}}]},
        {"role": "tool", "tool_call_id": "1", "content": '{"ok": true}'},
        {"role": "assistant", "content": "灯亮了。"},
    ]
}
REACT = {
    "conversations": [
        {"from": "system", "value": "Answer with the tool."},
        {"from": "user", "value": "Rain?"},
        {
            "from": "assistant",
            "value": "Thought: look.\nAction: sky\nAction Input: {}\nObservation: 12 mm\n"
            "Thought: so.\nFinal Answer: Rain.",
        },
    ]
}


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the test's folder, so that a file's label is its name, and in no terminal of any kind."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM", "COLUMNS", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def made(run: Run) -> Callable[..., Path]:
    """Compile rows as one file, in order, and return the set's folder."""

    def make(*rows: Any, name: str = "chats", options: tuple[object, ...] = ()) -> Path:
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        Path(f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        format_name = "ms_agent" if "conversations" in lines[0] else "openai"
        run("compile", f"{name}.jsonl", "--format", format_name, "--no-shuffle", *options, "-o", name)
        return Path(name)

    return make


def body(output: str) -> list[str]:
    """Return the lines of the first row's tokens, without the marks between tokens: legend and three lines before."""
    lines = output.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("━━ ")) + 3
    end = lines.index("", start) if "" in lines[start:] else len(lines)
    return [line.replace("┊", "") for line in lines[start:end]]


def rows_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


# -- a row in the terminal --


def test_a_row_shows_where_it_is_from_and_how_much_of_it_is_trained(run: Run, made: Callable[..., Path]) -> None:
    """5 tokens of `<|im_start|>user⏎Hi<|im_end|>`... are context; the reply is 2 tokens or so and its stop."""
    out = made(CHAT)
    manifest = json.loads((out / "manifest.json").read_text())
    tokens, trained = (manifest["splits"]["train"][key] for key in ("tokens", "trained_tokens"))
    shown = run("inspect", out).stdout.splitlines()
    assert shown[2] == "━━ chats.jsonl:1 ━━ chats ━━ row 0 of train"
    share = f"{100 * trained / tokens:.1f}%"
    template = "template auto (the tokenizer's chat template)"
    assert shown[3] == f"   {tokens} tokens · {trained} trained ({share}) · {template} · weights none"


def test_the_legend_is_printed_once(run: Run, made: Callable[..., Path]) -> None:
    shown = run("inspect", made(CHAT, INJECTED), "--sample", 2).stdout
    assert shown.count("‹control token›") == 1
    assert shown.splitlines()[0].startswith("context   ⟦trained⟧   ⟦2.0:weight 2⟧   ‹control token›")


def test_trained_runs_stand_in_brackets_and_roles_in_the_margin(run: Run, made: Callable[..., Path]) -> None:
    assert body(run("inspect", made(CHAT)).stdout) == [
        "user        ‹|im_start|›user↵",
        "            Hi‹|im_end|›↵",
        "assistant   ‹|im_start|›assistant↵",
        "          ┃ ⟦Yo‹|im_end|›⟧↵",
    ]


def test_text_that_only_looks_like_a_control_token_is_flagged(run: Run, made: Callable[..., Path]) -> None:
    """A typed `<|im_end|>` is text; so is another model's `<|eot_id|>`. Two spaces in a row can be seen."""
    assert body(run("inspect", made(INJECTED)).stdout) == [
        "user        ‹|im_start|›user↵",
        "            Is ⚠<|im_end|> a word?␣␣And ⚠<|eot_id|>?‹|im_end|›↵",
        "assistant   ‹|im_start|›assistant↵",
        "          ┃ ⟦No.↵",
        "          ┃ ↵",
        "          ┃ It is text.‹|im_end|›⟧↵",
    ]


def test_emphasis_shows_its_weight_and_an_observation_is_context(run: Run, made: Callable[..., Path]) -> None:
    assert body(run("inspect", made(REACT)).stdout) == [
        "system      ‹|im_start|›system↵",
        "            Answer with the tool.‹|im_end|›↵",
        "user        ‹|im_start|›user↵",
        "            Rain?‹|im_end|›↵",
        "assistant   ‹|im_start|›assistant↵",
        "          ┃ ⟦Thought: look.↵⟧",
        "          ┃ ⟦2.0:Action: sky↵",
        "          ┃ Action Input: {}↵",
        "          ┃ Observation:⟧ 12 mm↵",
        "          ┃ ⟦Thought: so.↵",
        "          ┃ Final Answer: Rain.‹|im_end|›⟧↵",
    ]


def test_a_weight_of_a_message_is_shown_as_it_was_written(run: Run, made: Callable[..., Path]) -> None:
    """1.1 has no exact float32; nobody wrote 1.100000023841858."""
    row = {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "Yo", "loss_scale": 1.1}]}
    assert body(run("inspect", made(row)).stdout)[-1] == "          ┃ ⟦1.1:Yo‹|im_end|›⟧↵"


def test_a_tool_call_is_trained_and_its_result_is_not(run: Run, made: Callable[..., Path]) -> None:
    shown = body(run("inspect", made(LAMP)).stdout)
    assert shown[shown.index("assistant   ‹|im_start|›assistant↵") :] == [
        "assistant   ‹|im_start|›assistant↵",
        "          ┃ ⟦‹tool_call›↵",
        '          ┃ {"name": "lamp", "arguments": {"on": true}}↵',
        "          ┃ ‹/tool_call›‹|im_end|›⟧↵",
        "tool        ‹|im_start|›tool↵",
        '            {"ok": true}‹|im_end|›↵',
        "assistant   ‹|im_start|›assistant↵",
        "          ┃ ⟦灯亮了。‹|im_end|›⟧↵",
    ]


def test_a_character_of_several_tokens_is_shown_whole(run: Run, made: Callable[..., Path]) -> None:
    """The goose is four bytes in three tokens of the demo tokenizer; no mark and no � stands between them."""
    out = made(CHINESE)
    assert body(run("inspect", out).stdout) == [
        "user        ‹|im_start|›user↵",
        "            你好🧑‍🚀‹|im_end|›↵",
        "assistant   ‹|im_start|›assistant↵",
        "          ┃ ⟦好呀🪿。‹|im_end|›⟧↵",
    ]
    [row] = rows_of(run("inspect", out, "--json"))
    assert [token["text"] for token in row["tokens"] if token["weight"]][-5:] == ["", "", "🪿", "。", "<|im_end|>"]


def test_bytes_that_never_become_a_character_are_shown_as_hex(run: Run, made: Callable[..., Path]) -> None:
    """--overlength cut may cut a character: the goose is f0 9f aa bf and its last byte is gone."""
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "🪿"}]}
    [whole] = rows_of(run("inspect", made(row), "--json"))
    cut = made(row, name="cut", options=("--max-length", whole["length"] - 3, "--overlength", "cut"))
    assert body(run("inspect", cut).stdout)[-1] == r"          ┃ ⟦\xf0\x9f\xaa⟧"


def test_data_can_neither_forge_a_mark_nor_command_the_terminal(run: Run, made: Callable[..., Path]) -> None:
    row = {"messages": [{"role": "user", "content": "⟦x⟧\x1b[31m\tred\u202e"}, {"role": "assistant", "content": "Yo"}]}
    shown = run("inspect", made(row)).stdout
    assert body(shown)[1] == "            <U+27E6>x<U+27E7><U+001B>[31m⇥red<U+202E>‹|im_end|›↵"
    assert "\x1b" not in shown and "\u202e" not in shown


def test_a_used_again_row_says_so(run: Run, made: Callable[..., Path]) -> None:
    out = made(CHAT, options=("--mix", "chats:1", "--total", 2, "--max-repeats", 1))
    shown = run("inspect", out, "--row", "chats.jsonl:1").stdout
    assert "weights none\n" in shown and "weights none · repeat 1\n" in shown
    assert shown.endswith("chats.jsonl:1 is used 2 times in train\n")


# -- with and without colours --


def test_a_pipe_gets_every_mark_and_no_escape_code(run: Run, made: Callable[..., Path]) -> None:
    shown = run("inspect", made(INJECTED)).stdout
    assert "\x1b" not in shown
    for mark in "⟦⟧‹›⚠┊↵␣┃":
        assert mark in shown


def test_no_color_in_a_terminal_keeps_the_marks(
    run: Run, made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = made(INJECTED)
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    shown = run("inspect", out).stdout
    assert not re.search(r"\x1b\[[\d;]*[34]8;", shown), "no colour"
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "⟦No" in plain and "⚠<┊|" in plain and "‹|im_end|›⟧↵" in plain


def test_colours_part_the_tokens_and_keep_the_marks(
    run: Run, made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbouring tokens have two shades of one colour, so that no mark is needed between them."""
    out = made(INJECTED)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    shown = run("inspect", out).stdout
    plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert "┊" not in plain
    assert "Is ⚠<|im_end|> a word?␣␣And ⚠<|eot_id|>?‹|im_end|›↵" in plain
    assert {"38;5;35", "38;5;29"} <= set(re.findall(r"38;5;\d+", shown)), "both shades of trained"


def test_a_terminal_gets_lines_that_fit(run: Run, made: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A long reply is wrapped beside the bar; Chinese counts two cells a character."""
    reply = "路灯亮了，街上没有人。" * 20
    out = made({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": reply}]})
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line) for line in run("inspect", out).stdout.splitlines()]
    reply_lines = [line for line in lines if "灯" in line or "街" in line]
    assert len(reply_lines) > 8
    assert all(line.startswith("          ┃ ") and cell_len(line) <= 60 for line in reply_lines)


# -- which rows --


def numbered(count: int, word: str = "lamp") -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"{word} number {n}."}, {"role": "assistant", "content": "Yes."}]}
        for n in range(count)
    ]


def test_by_default_the_first_row_of_each_dataset_is_shown(run: Run, made: Callable[..., Path]) -> None:
    made(*numbered(3), name="lamps")
    made(REACT, REACT, name="steps")
    run("compile", "lamps.jsonl", "steps.jsonl", "--no-shuffle", "-o", "both")
    shown = rows_of(run("inspect", "both", "--json"))
    assert [(row["dataset"], row["row"], row["source_row"]) for row in shown] == [("lamps", 0, 0), ("steps", 3, 0)]
    only = rows_of(run("inspect", "both", "--dataset", "steps", "--json"))
    assert [(row["dataset"], row["row"]) for row in only] == [("steps", 3)]


def test_a_row_is_found_by_its_number_or_by_its_source(run: Run, made: Callable[..., Path]) -> None:
    """600 rows are two batches of a shard."""
    out = made(*numbered(600))
    for given in ("599", "chats.jsonl:600", "chats.jsonl:600#/messages/1", "chats.jsonl#/599"):
        [row] = rows_of(run("inspect", out, "--row", given, "--json"))
        assert "".join(token["text"] for token in row["tokens"]) == (
            "<|im_start|>user\nlamp number 599.<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
        )


def test_find_shows_some_matches_and_says_how_many_there_are(run: Run, made: Callable[..., Path]) -> None:
    """The search is of characters, not of tokens: it goes across control tokens and begins within a word."""
    out = made(*numbered(590), *numbered(20, word="灯🪿"))
    result = run("inspect", out, "--find", "灯🪿 number 1", "--json")
    assert [row["row"] for row in rows_of(result)] == [591, 600, 601, 602, 603]
    assert result.stderr == '5 of 11 rows of train with "灯🪿 number 1"; --limit 11 shows all\n'
    assert len(rows_of(run("inspect", out, "--find", "amp number 58", "--limit", 100, "--json"))) == 11
    across = run("inspect", out, "--find", "number 7.<|im_end|>\n<|im_start|>assistant", "--json")
    assert [row["row"] for row in rows_of(across)] == [7, 597]


def test_text_of_two_neighbouring_rows_is_not_found(run: Run, made: Callable[..., Path]) -> None:
    out = made(*numbered(3))
    run("inspect", out, "--find", "Yes.<|im_end|>\n<|im_start|>user", code=2)


def test_find_points_at_the_match(run: Run, made: Callable[..., Path]) -> None:
    shown = run("inspect", made(*numbered(3)), "--find", "number 2").stdout
    assert "   found at token 5: <|im_start|>user↵lamp number 2.<|im_end|>↵<|im_start|>a…\n" in shown
    assert shown.endswith('\n\n1 of 1 row of train with "number 2"\n')


def test_a_sample_is_drawn_by_its_seed(run: Run, made: Callable[..., Path]) -> None:
    out = made(*numbered(200))

    def drawn(*options: object) -> list[int]:
        return [row["row"] for row in rows_of(run("inspect", out, "--json", *options))]

    first = drawn("--sample", 5)
    assert first == drawn("--sample", 5, "--seed", 0) == sorted(set(first)) and len(first) == 5
    assert first != drawn("--sample", 5, "--seed", 1)
    assert drawn("--sample", 500) == list(range(200))
    among = drawn("--sample", 9, "--find", "number 19")
    assert len(among) == 9 and set(among) < {19, *range(190, 200)}


def test_a_limit_alone_shows_the_first_rows(run: Run, made: Callable[..., Path]) -> None:
    shown = rows_of(run("inspect", made(*numbered(20)), "--limit", 3, "--json"))
    assert [row["row"] for row in shown] == [0, 1, 2]


def test_a_row_of_the_other_split_is_found_there(run: Run, made: Callable[..., Path]) -> None:
    out = made(*numbered(20), options=("--val-size", "4"))
    validation = rows_of(run("inspect", out, "--split", "val", "--sample", 10, "--json"))
    assert len(validation) == 4 and {row["split"] for row in validation} == {"val"}
    missing = f"chats.jsonl:{validation[0]['source_row'] + 1}"
    assert run("inspect", out, "--row", missing, code=2).stderr == (
        f"error: --row {missing}: it is not in train\n  It is in val: add --split val.\n"
    )


# -- rejected rows --

BAD = '{"messages": [{"role": "humann", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]}'


def test_rejected_rows_are_shown_with_the_place_and_the_reason(run: Run, made: Callable[..., Path]) -> None:
    out = made(CHAT, BAD, options=("--max-rejects", "100%"))
    place, raw, _, note = run("inspect", out, "--rejected").stdout.splitlines()
    assert place.startswith("chats.jsonl:2#/messages/0/role  schema: ") and "'humann'" in place
    assert raw == f"    {BAD}"
    assert note == "1 of 1 rejected row"
    [entry] = rows_of(run("inspect", out, "--rejected", "--json"))
    assert (entry["row"], entry["line"], entry["pointer"]) == (1, 2, "/messages/0/role")
    assert (entry["place"], entry["reason"]) == ("chats.jsonl:2#/messages/0/role", "schema")


def test_rejects_are_limited_and_counted(run: Run, made: Callable[..., Path]) -> None:
    out = made(CHAT, *[BAD] * 7, options=("--max-rejects", "100%"))
    shown = run("inspect", out, "--rejected", "--dataset", "chats").stdout
    assert shown.count("schema:") == 5
    assert shown.endswith("5 of 7 rejected rows of chats; --limit 7 shows all\n")
    assert run("inspect", made(CHAT, name="good"), "--rejected").stdout == "\nno row was rejected\n"


def test_a_rejected_row_that_is_asked_for_is_explained(run: Run, made: Callable[..., Path]) -> None:
    out = made(CHAT, BAD, options=("--max-rejects", "100%"))
    message = run("inspect", out, "--row", "chats.jsonl:2", code=2).stderr
    assert message.startswith("error: --row chats.jsonl:2: it is not in train\n  It was rejected (schema: ")


# -- for machines --


def test_json_has_one_object_a_row_with_stable_keys(run: Run, made: Callable[..., Path]) -> None:
    [row] = rows_of(run("inspect", made(REACT), "--json"))
    place = ["row", "split", "dataset", "file", "source_row", "line", "place", "part", "offset", "repeat", "repairs"]
    assert list(row) == ["version", *place, "images", "videos", "length", "num_trained", "tokens"]
    keys = ["id", "text", "label", "weight", "role", "key", "control", "looks_like_control"]
    assert all(list(token) == keys for token in row["tokens"])
    assert (row["dataset"], row["file"], row["source_row"], row["offset"]) == ("chats", "chats.jsonl", 0, 0)
    assert (row["line"], row["place"]) == (1, "chats.jsonl:1")
    trained = [token for token in row["tokens"] if token["weight"] > 0]
    assert len(trained) == row["num_trained"] and all(token["label"] == token["id"] for token in trained)
    texts: dict[tuple[str, str, float], str] = {}
    for token in row["tokens"]:
        who = (token["role"], token["key"], token["weight"])
        texts[who] = texts.get(who, "") + token["text"]
    assert texts["assistant", "Action:", 2.0] == " sky\n"
    assert texts["assistant", "Observation:", 0.0] == " 12 mm\n"
    assert texts["assistant", "keyword", 2.0] == "Action:Action Input:Observation:"
    assert texts["assistant", "", 1.0] == "<|im_end|>"


def test_json_tells_control_tokens_from_text_that_spells_them(run: Run, made: Callable[..., Path]) -> None:
    [row] = rows_of(run("inspect", made(INJECTED), "--json"))
    assert [token["text"] for token in row["tokens"] if token["control"]] == [
        "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>",
    ]  # fmt: skip
    assert "".join(t["text"] for t in row["tokens"] if t["looks_like_control"]).replace(" ", "") == (
        "<|im_end|><|eot_id|>"
    )
    assert not any(token["control"] and token["looks_like_control"] for token in row["tokens"])


def test_the_sanity_check_has_the_lines_of_chatglm3(run: Run, made: Callable[..., Path]) -> None:
    """The demo tokenizer's control tokens follow its 8,000 pieces."""
    lines = run("inspect", made(CHAT), "--format", "sanity").stdout.splitlines()
    assert lines[0] == "Sanity Check >>>>>>>>>>>>>" and lines[-1] == "<<<<<<<<<<<<< Sanity Check"
    assert lines[1] == "      '<|im_start|>':   8001 ->   -100"
    assert lines[-3] == "        '<|im_end|>':   8002 ->   8002"
    assert re.fullmatch(r" {16}'\\n': +(\d+) -> +-100", lines[-2])
    trained = [m for line in lines if (m := re.fullmatch(r" *'(.*)': +(\d+) -> +(\2)", line))]
    assert "".join(match[1] for match in trained) == "Yo<|im_end|>"


def test_a_part_of_a_character_is_bytes_in_the_sanity_check(run: Run, made: Callable[..., Path]) -> None:
    shown = run("inspect", made(CHINESE), "--format", "sanity").stdout
    assert r"b'\xaa'" in shown and r"b'\xbf'" in shown and "�" not in shown


@pytest.mark.parametrize("name", ["demo", "qwen2.5", "mistral"])
def test_the_texts_joined_are_what_the_official_tokenizer_decodes(
    name: str, run: Run, made: Callable[..., Path]
) -> None:
    """Ours come from the bytes of vocabulary entries, without building the tokenizer: it is the oracle here."""
    folder = registry.DEMO_TOKENIZER if name == "demo" else shared("tokenizers", name)
    odd = {
        "messages": [{"role": "user", "content": "  a\tb \n\né 你🧑‍🚀"}, {"role": "assistant", "content": "\n ok  "}]
    }
    out = made(CHAT, INJECTED, CHINESE, odd, options=("--tokenizer", folder))
    tokenizer = Tokenizer.load(folder)
    for row in rows_of(run("inspect", out, "--sample", 9, "--json")):
        ids = [token["id"] for token in row["tokens"]]
        assert "".join(token["text"] for token in row["tokens"]) == tokenizer.decode(ids)


# -- assertions --


def test_an_assertion_that_holds_says_how_many_tokens_it_checked(run: Run, made: Callable[..., Path]) -> None:
    out = made(LAMP, CHAT)
    rows = rows_of(run("inspect", out, "--sample", 2, "--json"))
    count = sum(token["role"] == "tool" for row in rows for token in row["tokens"])
    assert count > 0
    said = run("inspect", out, "--assert", "tool:0").stdout
    assert said == f"tool:0 holds: none of {count} tokens of role tool is trained, in 2 rows\n"


def test_a_trained_user_message_fails_and_is_named(run: Run, made: Callable[..., Path]) -> None:
    """Row 599 is in the second batch; only its content is trained, not its header."""
    out = made(*numbered(599), TRAINED_USER)
    result = run("inspect", out, "--assert", "user:0", "--assert", "system:0", code=4)
    assert re.fullmatch(
        r"user:0 fails: 1 of [\d,]+ tokens of role user is trained, in 1 of 600 rows\n"
        r"  train row 599  chats\.jsonl:600  token 3 ⟦Hi⟧\n",
        result.stderr,
    )
    assert result.stdout == "system:0 holds, but there was nothing to check: no token of role system in 600 rows\n"


def test_an_assertion_looks_at_every_split(run: Run, made: Callable[..., Path]) -> None:
    """One of eight rows is in val, and wherever a trained user message is, it is found."""
    rows = [
        {"messages": [{"role": "user", "content": f"Say {n}", "loss": True}, {"role": "assistant", "content": "."}]}
        for n in range(8)
    ]
    out = made(*rows, options=("--val-size", "1"))
    result = json.loads(run("inspect", out, "--assert", "user:0", "--json", code=4).stdout)
    [check] = result["checks"]
    assert (result["ok"], result["rows"], check["rows"]) == (False, 8, 8)
    assert len(check["violations"]) == 5, "the first ones are named, all are counted"
    assert "\n  and 3 more rows\n" in run("inspect", out, "--assert", "user:0", code=4).stderr


def test_an_assertion_on_a_policy_key_takes_any_case_and_no_colon(run: Run, made: Callable[..., Path]) -> None:
    out = made(REACT)
    for given in ("Observation:0", "observation:0", "OBSERVATION::0"):
        assert run("inspect", out, "--assert", given).stdout.startswith(f"{given} holds: none of ")
    failing = run("inspect", out, "--assert", "action input:0", code=4).stderr
    assert re.search(r"\n  train row 0  chats\.jsonl:1  token \d+ ⟦ \{\}↵⟧\n$", failing)


def test_an_assertion_as_json_is_one_object(run: Run, made: Callable[..., Path]) -> None:
    result = json.loads(run("inspect", made(TRAINED_USER), "--assert", "user:0", "--json", code=4).stdout)
    [check] = result.pop("checks")
    assert result == {"version": 1, "ok": False, "rows": 1}
    assert check == {
        "assert": "user:0", "ok": False, "roles": ["user"], "keys": [], "tokens": 1, "trained": 1, "rows": 1,
        "violations": [
            {"row": 0, "split": "train", "file": "chats.jsonl", "source_row": 0, "place": "chats.jsonl:1", "token": 3,
             "text": "Hi"}
        ],
    }  # fmt: skip


# -- what goes wrong --


NAMES = "known: assistant, document, image, keyword, system, template, tool, user, video"
SEARCHED = "3 rows of train were searched; upper and lower case differ."
PLACES = "--row 0, --row chats.jsonl:4, --row data.json#/3"
MEANT = "did you mean 'chats.jsonl'? known: chats.jsonl"
UNSHOWN = [
    ("--row 3", "--row 3: train has rows 0 to 2"),
    ("--row -1", "--row -1: train has rows 0 to 2"),
    ("--row chats.jsonl:4", "--row chats.jsonl:4: no row begins on this line\n  The nearest: --row chats.jsonl:3"),
    ("--row chats.jsonl:0", "--row chats.jsonl:0: lines are counted from 1\n  The nearest: --row chats.jsonl:1"),
    ("--row chats.jsonl#/3", "--row chats.jsonl#/3: chats.jsonl has the rows chats.jsonl#/0 to chats.jsonl#/2"),
    ("--row chat.jsonl:1", f"--row chat.jsonl:1: no such file in the set\n  {MEANT}"),
    ("--row first", f"--row first: expected a row of the split, FILE:LINE or FILE#/ROW\n  {PLACES}"),
    ("--find LAMP", f"--find LAMP: no row of train contains it\n  {SEARCHED}"),
    ("--find ''", "--find: expected a text to look for, found an empty one"),
    ("--dataset chat", "--dataset chat: no such dataset in the set\n  did you mean 'chats'? known: chats"),
    ("--rejected --dataset chat", "--dataset chat: no such dataset in the set\n  did you mean 'chats'? known: chats"),
    ("--split val", "--split val: the set has no rows there\n  known: train"),
    ("--row 0 --sample 2", "--row --sample: they do not go together\n  --find, --sample and --dataset do."),
    ("--rejected --format sanity", "--rejected --format sanity: a rejected row has no tokens\n  Leave --format out."),
    ("--json --format sanity", "--json --format sanity: they do not go together\n  Choose one of them."),
    ("--assert tools:0", f"--assert tools:0: no such role or policy key\n  did you mean 'tool'? {NAMES}"),
    ("--assert Observation:0", f"--assert Observation:0: no such role or policy key\n  {NAMES}"),
    ("--assert tool:1", "--assert tool:1: only 0 is supported: no token may be trained\n  --assert tool:0"),
    ("--assert tool", "--assert tool: expected ROLE:0 or KEY:0\n  --assert tool:0 --assert Observation:0"),
]  # fmt: skip


def test_what_cannot_be_shown_is_one_message(run: Run, made: Callable[..., Path]) -> None:
    out = made(*numbered(3))
    for options, message in UNSHOWN:
        result = run("inspect", out, *shlex.split(options), code=2)
        assert (result.stdout, result.stderr) == ("", f"error: {message}\n"), options


def test_no_flipped_byte_of_a_batch_is_shown_as_data(run: Run, made: Callable[..., Path]) -> None:
    """Flips all over the shard: in what inspect reads each is exit 4 and one message, never a traceback or a row."""
    out = made(*numbered(4))
    shard = out / "train" / "shard-00000.arrow"
    [entry] = json.loads((out / "manifest.json").read_text())["splits"]["train"]["shards"]
    [batch] = entry["batches"]
    whole = shard.read_bytes()
    for position in range(batch["offset"], batch["offset"] + batch["length"], 211):
        shard.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        for options in ((), ("--find", "lamp"), ("--assert", "tool:0")):
            result = run("inspect", out, *options, code=4)
            assert result.stderr == (
                "error: chats: train/shard-00000.arrow: batch 0 (rows 0 to 3) is damaged\n"
                "  cli verify chats names every damage. Copy the set again from where it is whole, or compile it.\n"
            )
            assert "lamp number" not in result.stdout


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("tokenizer/tokenizer.json", (), "is damaged or was edited"),
        ("tokenizer/tokenizer_config.json", ("--row", "0"), "is damaged or was edited"),
        ("rejects.jsonl", ("--rejected",), "is damaged or was edited"),
        ("lines.jsonl", (), "is damaged or was edited"),
    ],
)
def test_an_edited_file_is_not_used(
    name: str, options: tuple[str, ...], what: str, run: Run, made: Callable[..., Path]
) -> None:
    out = made(CHAT)
    (out / name).write_bytes((out / name).read_bytes() + b" ")
    message = run("inspect", out, *options, code=4).stderr
    assert message.startswith(f"error: chats: {name}: {what}\n")


def test_a_shard_that_is_short_or_gone_is_one_message(run: Run, made: Callable[..., Path]) -> None:
    out = made(CHAT)
    shard = out / "train" / "shard-00000.arrow"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:300])
    assert f"train/shard-00000.arrow: expected {size} bytes, found 300\n" in run("inspect", out, code=4).stderr
    shard.write_bytes(b"")
    assert f"expected {size} bytes, found 0\n" in run("inspect", out, code=4).stderr
    shard.unlink()
    assert "train/shard-00000.arrow: No such file or directory\n" in run("inspect", out, code=4).stderr


def test_the_tokenizer_is_the_sets_own(run: Run, made: Callable[..., Path], tmp_path: Path) -> None:
    """The folder a set was compiled with may be gone."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in registry.DEMO_TOKENIZER.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    out = made(CHAT, options=("--tokenizer", folder))
    for path in folder.iterdir():
        path.unlink()
    assert body(run("inspect", out).stdout)[-1] == "          ┃ ⟦Yo‹|im_end|›⟧↵"


def test_every_example_of_the_help_runs(run: Run, made: Callable[..., Path]) -> None:
    made(*numbered(20), name="chats")
    made(REACT, REACT, REACT, name="agent")
    run("compile", "chats.jsonl", "agent.jsonl", "-o", "shards")
    examples = [line.strip() for line in run("inspect", "--help").stdout.splitlines() if line.startswith("    cli ")]
    assert len(examples) == 8
    for example in examples:
        command, *arguments = shlex.split(example)
        assert command == "cli"
        run(*arguments)
