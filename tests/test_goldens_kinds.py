"""Pairs, KTO rows, documents, last-round weights, ReAct text and screenshots against the upstream projects' output.

Rows go through the command line, so that what is compared is what a trainer reads. On every row that upstream does
not cut, ids are equal; the positions where labels (or a last id) differ are worked out here from upstream's own
output, each under the number of the decision that declares it, and must be exactly those found.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli import main
from compiler.conversation import Conversation
from compiler.formats.turns import unusual_order
from compiler.rows.react.dialect import to_text
from compiler.rows.recognise import recognise
from schemas.errors import Reason, RowError
from schemas.reader import CompiledSet
from tests.support.command import runner
from tests.support.goldens import at_line_start, by_character, compiled, differing, goldens, lifted, text_of
from tests.support.shared import shared, tools

Golden = dict[str, Any]
Row = dict[str, Any]
Compile = Callable[..., list[Row]]
Differences = dict[int, int]
"""{position: number of the decision that declares the difference}."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the whole file: certificates are made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def shards(tmp_path: Path, cache: Path) -> Compile:
    """Compile raw rows and return those of the set, in the order of the file."""

    def compile_rows(rows: list[Row], tokenizer: str, template: str, entry: Row | None = None) -> list[Row]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        if entry is not None:
            (tmp_path / "dataset_info.json").write_text(json.dumps({"rows": entry | {"file_name": file.name}}))
        source = [file] if entry is None else ["--registry", tmp_path, "--mix", "rows"]
        given = ["--tokenizer", shared("tokenizers", tokenizer), "--template", template, "--no-shuffle"]
        given += ["--max-rejects", "100%", "--workers", "1", "--cache", cache, "-o", tmp_path / "out"]
        done = runner().invoke(main, ["compile", *map(str, [*source, *given])], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return list(CompiledSet.open(tmp_path / "out").rows("train"))

    return compile_rows


def found(mine: list[int], theirs: list[int]) -> set[int]:
    """Return where two columns of one length differ."""
    return {i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b}


# -- LLaMA-Factory --

LF = {"qwen": ("qwen2.5", "auto"), "chatglm3": ("chatglm3", "chatglm3"), "glm4": ("glm4", "glm4")}
LF |= {"mistral": ("mistral", "mistral")}
"""Its templates, with the tokenizer and the template that lays rows out in the same way."""


@pytest.fixture(scope="module", params=LF)
def template(request: pytest.FixtureRequest) -> str:
    """One of the templates; of the module, so that the tests with one tokenizer come together."""
    return request.param


def lf_declared(template: str, ids: list[int], labels: list[int]) -> tuple[Differences, Differences]:
    """Return what decisions say of (ids, labels) of one side: the newline after the stop (3), GLM-4's last stop (1)."""
    if template == "qwen":
        return {}, differing({"input_ids": ids, "labels": labels}, "<|im_end|>")
    return ({len(ids) - 1: 1},) * 2 if template == "glm4" else ({}, {})


@pytest.mark.parametrize("stage", ["rm", "kto"])
def test_pairs_and_kto_rows_equal_llamafactorys_and_labels_differ_as_decided(
    shards: Compile, template: str, stage: str
) -> None:
    mine = [g for g in goldens("llamafactory") if (g["template"], g["stage"]) == (template, stage)]
    whole = [g for g in mine if g["settings"]["cutoff_len"] == 4096]
    compiled_rows = shards([g["source"] for g in whole], *LF[template], whole[0]["dataset_attr"])
    sides = {"": "chosen_", "rejected_": "rejected_"} if stage == "rm" else {"": ""}
    outcomes, decisions = Counter({"cut upstream (decision 10)": len(mine) - len(whole)}), Counter[int]()
    for golden, row in zip(whole, compiled_rows, strict=True):
        for ours, theirs in sides.items():
            their_ids, their_labels = golden[f"{theirs}input_ids"], golden[f"{theirs}labels"]
            in_ids, in_labels = lf_declared(template, their_ids, their_labels)
            assert found(row[f"{ours}input_ids"], their_ids) == set(in_ids), golden["id"]
            assert found(row[f"{ours}labels"], their_labels) == set(in_labels), golden["id"]
            decisions.update(in_labels.values())
        if stage == "kto":
            assert row["desirable"] is golden["kto_tags"]
        if template == "glm4":
            ends = [row[f"{ours}input_ids"][-1] for ours in sides]
            assert ends == [tools("glm4", "glm4")[0].controls["<|user|>"]] * len(sides)
        outcomes["compared"] += 1
    assert outcomes["compared"] == 2
    assert outcomes["cut upstream (decision 10)"] == (2 if (template, stage) == ("qwen", "rm") else 0)
    assert sum(outcomes.values()) == len(mine)
    assert decisions == {"qwen": {3: 2 * len(sides)}, "glm4": {1: 2 * len(sides)}}.get(template, {})


def test_documents_equal_llamafactorys_but_for_what_ends_them(shards: Compile, template: str) -> None:
    """Qwen: <|endoftext|> here, <|im_end|> there; ChatGLM3: </s> by id here, spelled as text there (decision 18)."""
    mine = [g for g in goldens("llamafactory") if (g["template"], g["stage"]) == (template, "pt")]
    compiled_rows = shards([g["source"] for g in mine], *LF[template], mine[0]["dataset_attr"])
    tokenizer, _ = tools(*LF[template])
    end = {"qwen": "<|endoftext|>", "glm4": "<|endoftext|>"}.get(template, "</s>")
    for golden, row in zip(mine, compiled_rows, strict=True):
        ids, theirs, text = row["input_ids"], golden["input_ids"], golden["source"]["text"]
        assert ids[-1] == tokenizer.controls[end]
        if template == "chatglm3":
            # The text and "</s>" are encoded as one there: the last piece of the text takes the "<" of it in.
            assert [tokenizer.token(i) for i in theirs[-3:]] == [".</", "s", ">"]
            assert [tokenizer.token(i) for i in ids[-2:]] == [".", "</s>"]
            assert ids[:-2] == theirs[:-3]
            assert tokenizer.decode(theirs) == tokenizer.decode(ids[:-1]) + "</s>" == text + "</s>"
        else:
            assert ids[:-1] == theirs[:-1]
            assert theirs[-1] == tokenizer.controls["<|im_end|>" if template == "qwen" else end]
        starts_with_bos = template == "mistral"
        assert (ids[0] == theirs[0] == tokenizer.controls.get("<s>")) is starts_with_bos
        # Their collator copies the ids; it shifts them, so the first one is never a target there either.
        assert row["labels"] == [-100, *ids[1:]]
        assert row["num_trained"] == len(ids) - 1
    assert len(mine) == 2


# -- ms-swift --


def swift(file: str, *modes: str) -> list[Golden]:
    return [g for g in goldens(file) if g["settings"]["mode"] in modes]


@pytest.mark.parametrize(("file", "tokenizer", "card"), [
    ("ms_swift_qwen", "qwen2.5", "auto"), ("ms_swift_glm_llama", "glm4", "glm4"),
])  # fmt: skip
def test_pairs_equal_ms_swifts_and_labels_differ_as_decided(
    shards: Compile, file: str, tokenizer: str, card: str
) -> None:
    """Recognised by rejected_response, which is a text. GLM-4's newline after the header is trained (2)."""
    pairs = swift(file, "rlhf")
    decisions = Counter[int]()
    for golden, row in zip(pairs, shards([g["source"] for g in pairs], tokenizer, card), strict=True):
        for ours, theirs in {"": "chosen_", "rejected_": "rejected_"}.items():
            ids, labels = golden[f"{theirs}input_ids"], golden[f"{theirs}labels"]
            assert row[f"{ours}input_ids"] == ids, golden["id"]
            if tokenizer == "glm4":
                declared = {ids.index(tools("glm4", "glm4")[0].controls["<|assistant|>"]) + 1: 2}
            else:
                declared = differing({"input_ids": ids, "labels": labels}, "<|im_end|>")
            assert found(row[f"{ours}labels"], labels) == set(declared), golden["id"]
            decisions.update(declared.values())
    assert decisions == {2 if tokenizer == "glm4" else 3: 4}
    assert len(pairs) == 2


def test_kto_rows_equal_ms_swifts_but_for_the_history_they_train(shards: Compile) -> None:
    rows = swift("ms_swift_qwen", "kto")
    decisions = Counter[int]()
    for golden, row in zip(rows, shards([g["source"] for g in rows], "qwen2.5", "auto"), strict=True):
        ids, labels = golden["chosen_input_ids"], golden["chosen_labels"]
        assert row["input_ids"] == ids
        assert row["desirable"] is golden["label"]
        last = len(ids) - ids[::-1].index(tools("qwen2.5")[0].controls["<|im_start|>"])  # where the last header begins
        declared = {i: 12 for i in range(last) if labels[i] != -100}
        declared |= differing({"input_ids": ids, "labels": labels}, "<|im_end|>")
        assert found(row["labels"], labels) == set(declared)
        decisions.update(declared.values())
    assert len(rows) == 2
    assert decisions[3] == 6  # three replies each, of which two are history
    assert decisions[12] > 1000


# -- the last round --

IDS_DIFFER = {"alpaca_synthetic/1": 4, "alpaca_synthetic/2": 15, "openai_tools_synthetic/1": 7}


def last_round(golden: Golden, conversation: Conversation) -> tuple[str, list[int]]:
    """Compare a row under the policy last_round; return what came of it, and the decisions its differences are from."""
    ours = compiled(conversation, "qwen2.5", "auto", "last_round")
    ids, labels = ours.ids.tolist(), ours.labels.tolist()
    if ids != golden["input_ids"]:
        return "ids differ by decision", [IDS_DIFFER[golden["id"]]]
    declared = differing(golden, "<|im_end|>")
    wrong = found(labels, golden["labels"]) - set(declared)
    assert not wrong, golden["id"]
    return "equal", list(declared.values())


def mask_history(golden: Golden) -> bool:
    return (golden["template"], golden["stage"]) == ("qwen", "sft") and bool(golden["settings"].get("mask_history"))


def test_last_round_is_ms_swifts() -> None:
    outcomes, decisions = Counter[str](), Counter[int]()
    rows = [g for g in goldens("ms_swift_qwen") if g["settings"]["loss_scale"] == "last_round"]
    for golden in rows:
        name, _ = recognise([golden["source"]])
        assert name is not None
        try:
            outcome, differences = last_round(golden, lifted(golden["source"], name))
        except RowError as error:
            assert error.reject.reason in (Reason.TURN_ORDER, Reason.TEMPLATE_REFUSED)
            outcomes["rejected here (decision 11)"] += 1
            continue
        outcomes[outcome] += 1
        decisions.update(differences)
    assert outcomes == {
        "rejected here (decision 11)": 2, "ids differ by decision": 3, "equal": 19
    }  # fmt: skip
    assert sum(outcomes.values()) == len(rows)
    assert decisions == {3: 19, 4: 1, 7: 1, 15: 1}


def test_last_round_is_llamafactorys_mask_history() -> None:
    outcomes, decisions = Counter[str](), Counter[int]()
    rows = [g for g in goldens("llamafactory") if mask_history(g)]
    for golden in rows:
        attributes = golden["dataset_attr"]
        names = (attributes.get("formatting", "alpaca"), attributes.get("columns"), attributes.get("tags"))
        try:
            conversation = lifted(golden["source"], *names)
        except RowError as error:
            assert golden["dropped"]
            assert error.reject.reason is Reason.TURN_ORDER
            outcomes["dropped by both (decision 11)"] += 1
            continue
        if golden.get("dropped"):
            assert unusual_order(conversation)
            outcomes["dropped upstream, the template's to decide here (decision 11)"] += 1
            continue
        outcome, differences = last_round(golden, conversation)
        outcomes[outcome] += 1
        decisions.update(differences)
    assert outcomes == {
        "dropped by both (decision 11)": 1, "dropped upstream, the template's to decide here (decision 11)": 1,
        "ids differ by decision": 1, "equal": 15
    }  # fmt: skip
    assert sum(outcomes.values()) == len(rows)
    assert decisions == {3: 15, 15: 1}


def test_last_round_and_react_weigh_one_round_as_ms_swift_does_character_by_character() -> None:
    """Theirs is tokenized in pieces, so ids differ (5). A character of ours may weigh less where one token covers two
    weights, or a keyword stands in the middle of a line, or a newline follows the stop (3)."""
    checked = 0
    for golden in goldens("ms_swift_qwen"):
        if golden["settings"]["loss_scale"] != "last_round+react":
            continue
        ours = compiled(lifted(golden["source"], "openai"), "qwen2.5", "auto", "last_round+react")
        theirs = by_character(golden["input_ids"], golden["loss_scale"], golden["labels"])
        mine = by_character(ours.ids.tolist(), ours.weights.tolist(), ours.labels.tolist())
        assert [c for c, _ in mine] == [c for c, _ in theirs]
        differ = [i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a[1] != b[1]]
        assert all(mine[i][1] < theirs[i][1] or not at_line_start(theirs, i) for i in differ), golden["id"]
        assert len(differ) < len(mine) * 0.2
        checked += 1
    assert checked == 5


def test_last_round_and_react_leave_earlier_rounds_untrained() -> None:
    reply = "Thought: look\nAction: f\nAction Input: {}\nObservation: 21\nFinal Answer: 21."
    turns = [("user", "Hi?"), ("assistant", reply), ("user", "And now?"), ("assistant", reply)]
    conversation = lifted({"messages": [{"role": role, "content": text} for role, text in turns]}, "openai")
    both = compiled(conversation, "qwen2.5", "auto", "last_round+react")
    one = compiled(conversation, "qwen2.5", "auto", "react")
    last = max(i for i, token in enumerate(both.ids) if token == tools("qwen2.5")[0].controls["<|im_start|>"])
    assert both.weights[:last].max() == 0 < one.weights[:last].max()
    assert (both.weights[last:] == one.weights[last:]).all()
    assert sorted(set(both.weights.tolist())) == [0.0, 1.0, 2.0]


def test_react_text_has_the_ids_of_ms_swift_up_to_the_first_declared_difference() -> None:
    """Rows without tools have all of them. With tools they go on to the first arguments, which are JSON here and
    Python's notation there, or to what we put before a text beside a call; a system text of the row's own stays."""
    outcomes = Counter[str]()
    rows = [g for g in goldens("ms_swift_qwen") if g["settings"]["agent_template"] == "react_en"]
    for golden in rows:
        name, _ = recognise([golden["source"]])
        assert name is not None
        policy = "react" if golden["settings"]["loss_scale"] == "react" else "none"
        try:
            conversation = to_text(lifted(golden["source"], name), "en")
            ids, theirs = compiled(conversation, "qwen2.5", "auto", policy).ids.tolist(), golden["input_ids"]
        except RowError as error:
            assert error.reject.reason in (Reason.TURN_ORDER, Reason.TEMPLATE_REFUSED)
            outcomes["rejected here (decision 11)"] += 1
            continue
        same = next((i for i, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), len(ids))
        before = text_of(ids[:same], "qwen2.5")
        if ids == theirs:
            assert "Action:" not in before
            outcomes["equal"] += 1
        elif golden["id"] == "sharegpt_synthetic/0":
            assert before == "<|im_start|>system\n"
            assert conversation.messages[0].content.startswith(f"{golden['source']['system']}\n\nAnswer the following")
            outcomes["the row's own system text stays"] += 1
        elif golden["id"] == "openai_tools_synthetic/1":
            assert before.endswith("<|im_start|>assistant\n")
            assert text_of(ids[same:], "qwen2.5").startswith("Thought: Let me check.\n")
            outcomes["a thought has its keyword"] += 1
        else:
            assert before.endswith("\nAction Input:")
            assert text_of(theirs[same : same + 1], "qwen2.5").strip() == "{'"
            assert text_of(ids[same : same + 1], "qwen2.5").strip() == '{"'
            outcomes["arguments are JSON (6)"] += 1
    assert outcomes == {
        "equal": 10, "arguments are JSON (6)": 8, "the row's own system text stays": 2, "a thought has its keyword": 2,
        "rejected here (decision 11)": 4,
    }  # fmt: skip
    assert sum(outcomes.values()) == len(rows)


# -- CogAgent --


def cogagent_declared(ids: list[int], labels: list[int]) -> Differences:
    """Return the label differences: the header that they train (2), the next role token that they do not (1)."""
    controls = tools("glm4", "cogagent")[0].controls
    user, assistant = controls["<|user|>"], controls["<|assistant|>"]
    header = {i: 2 for i, token in enumerate(ids) if token == assistant}
    return header | {i: 1 for i in range(1, len(ids)) if ids[i] == user and labels[i - 1] != -100}


def with_screen(source: Row) -> Row:
    """Return the row with a screenshot that is here."""
    messages = [m | {"image": "screen.png"} if "image" in m else m for m in source["messages"]]
    return {"messages": messages}


def test_screenshots_equal_cogagents_own_script_where_it_keeps_them(shards: Compile, tmp_path: Path) -> None:
    rows = goldens("cogagent")
    Image.new("RGB", (56, 56)).save(tmp_path / "screen.png")
    sources = {g["id"]: with_screen(g["source"]) for g in rows}
    found_rows = shards(list(sources.values()), "glm4", "cogagent")
    mine = {list(sources)[row["row"]]: row for row in found_rows}
    assert set(mine) == {"cogagent/0", "cogagent/3"}
    outcomes, decisions = Counter[str](), Counter[int]()
    for golden in rows:
        outcome, declared = cogagent_outcome(golden, mine.get(golden["id"]))
        outcomes[outcome] += 1
        decisions.update(declared.values())
    assert outcomes == {
        "no reply, rejected here (11)": 8, "crashes upstream (17)": 8, "cut upstream (10)": 2, "ids equal": 1,
        "the last image is lost upstream (16)": 2, "prompt and reply equal": 3,
    }  # fmt: skip
    assert sum(outcomes.values()) == len(rows)
    assert decisions == {1: 1 + 2 * 2, 2: 1 + 2 * 2, 16: 2}


def cogagent_outcome(golden: Golden, row: Row | None) -> tuple[str, Differences]:
    """Compare one golden with our row; return what came of it, and the differences that decisions declare."""
    controls = tools("glm4", "cogagent")[0].controls
    image = [controls[text] for text in ("<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>")]
    if row is None:
        assert golden["id"] == "cogagent/5"
        return "no reply, rejected here (11)", {}
    if "error" in golden:
        return "crashes upstream (17)", {}
    settings, ids, theirs = golden["settings"], row["input_ids"], golden["input_ids"]
    if len(ids) > settings["max_input_length"] + settings["max_output_length"]:
        return "cut upstream (10)", {}
    first = 0 if golden["id"] == "cogagent/0" else 1
    if "output_ids" in golden:  # its evaluation: prompts, and what is to be generated
        replies = golden["output_ids"][-(1 + first) :]  # of one reply, the first "output" is its prompt once more
        assert theirs[0] == ids[: ids.index(controls["<|assistant|>"]) + 1]
        assert [label for label in row["labels"] if label != -100] == [token for reply in replies for token in reply]
        return "prompt and reply equal", {}
    labels = list(golden["labels"])
    declared = cogagent_declared(theirs, labels)
    lost = len(theirs)
    if first:  # the image of the second message stands before the first, whose own is lost
        lost = [i for i, token in enumerate(theirs) if token == controls["<|user|>"]][1] + 2
        theirs, labels = theirs[:lost] + image + theirs[lost:], labels[:lost] + [-100] * 3 + labels[lost:]
    assert ids == theirs
    assert found(row["labels"], labels) == {i + 3 * (i >= lost) for i in declared}
    assert all(
        row["labels"][i] == (-100 if ids[i] == controls["<|assistant|>"] else ids[i])
        for i in found(row["labels"], labels)
    )
    assert [entry["num_tokens"] for entry in row["images"]] == [1600] * (1 + first)
    assert [ids[e["position"] - 1 : e["position"] + 2] for e in row["images"]] == [image] * (1 + first)
    return ("the last image is lost upstream (16)", declared | {-1: 16}) if first else ("ids equal", declared)
