"""Images and videos of rows: their place in the ids, their records, and what no row can forge.

The model is one as Qwen2-VL lays it out, made here from the embedded tokenizer; CogAgent needs ../shared. What the
ids must be is put together here by hand: published ids of the texts between the control tokens, and as many
placeholders as 28x28 pixels fit into the image.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from PIL import Image
from tokenizers import Tokenizer

import registry
from cli import main
from compiler.conversation import Conversation, Media, MediaFacts, Message, Role
from compiler.encode.batch import Encoded
from compiler.encode.length import fit
from compiler.rows import media
from compiler.templates.load import Template, load_template
from compiler.tokenizer.tokenizer import Tokenizer as Compiled
from compiler.units import local
from tests.support.command import runner
from tests.support.conversations import texts
from tests.support.encoded import encode_segments
from tests.support.families import official_source
from tests.support.reference import jinja_environment
from tests.support.sets import chat, manifest, rejects, rows, write
from tests.support.shared import shared
from tests.support.vision import (
    END,
    FRAMES,
    IMAGE,
    PROCESSOR,
    SIZES,
    START,
    TEMPLATE,
    VIDEO,
    VISION,
    Row,
    draw_images,
    make_model,
)

Run = Callable[..., Result]

IGNORED = -100
TOKENS = {"a.png": 8, "b.png": 10, "c.png": 4}
"""A token for every 28x28 pixels."""
VIDEO_TOKENS = {2: 4, 3: 8}
"""By the number of frames of 56x56 pixels: two frames together are 4."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("vision") / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder for rows, with images."""
    draw_images(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def compiled(run: Run, model: Path, data: Path, tmp_path: Path) -> Callable[..., list[Row]]:
    """Compile rows with the vision model and return those of the set."""

    def compile_rows(*sources: Row, options: Sequence[Any] = (), code: int = 0) -> list[Row]:
        file = write(data / "rows.jsonl", *sources)
        given_options = ["--no-shuffle", "--max-rejects", "100%", *options]
        run("compile", file, "--tokenizer", model, *given_options, "-o", tmp_path / "out", code=code)
        return rows(tmp_path / "out") if code == 0 else []

    return compile_rows


@pytest.fixture
def rejected(tmp_path: Path) -> Callable[[], list[tuple[int, str, str, str]]]:
    """(row, reason, pointer, message) of the last set's rejects."""

    def read() -> list[tuple[int, str, str, str]]:
        found = rejects(tmp_path / "out" / "rejects.jsonl")
        return [(r["row"], r["reason"], r["pointer"], r["message"]) for r in found]

    return read


# -- what the ids must be --


@cache
def bare() -> Tokenizer:
    """The demo tokenizer without its control tokens: whatever a text spells is text."""
    spec = json.loads((registry.DEMO_TOKENIZER / "tokenizer.json").read_text("utf-8"))
    return Tokenizer.from_str(json.dumps(spec | {"added_tokens": []}))


def ids_of(*pieces: str | list[int]) -> list[int]:
    """The ids of texts with control tokens between them; texts side by side are one text."""
    found: list[int] = []
    pending = ""
    for piece in [*pieces, []]:
        if isinstance(piece, str):
            pending += piece
            continue
        found += bare().encode(pending, add_special_tokens=False).ids if pending else []
        found += piece
        pending = ""
    return found


Content = list[str | list[int]]
IM_START, IM_END = [8001], [8002]


def image(name: str) -> list[int]:
    return [START, *[IMAGE] * TOKENS[name], END]


def video(frames: int) -> list[int]:
    return [START, *[VIDEO] * VIDEO_TOKENS[frames], END]


def sequence(*turns: tuple[str, Content]) -> tuple[list[int], list[int]]:
    """(ids, labels) of a conversation; replies are encoded by themselves and trained."""
    ids: list[int] = []
    labels: list[int] = []
    before: Content = []
    for role, content in turns:
        if role != "assistant":
            before += [IM_START, f"{role}\n", *content, IM_END, "\n"]
            continue
        context, reply = ids_of(*before, IM_START, "assistant\n"), ids_of(*content, IM_END)
        ids += context + reply
        labels += [IGNORED] * len(context) + reply
        before = ["\n"]
    after = ids_of(*before)
    return ids + after, labels + [IGNORED] * len(after)


def columns(row: Row) -> tuple[list[int], list[int]]:
    return row["input_ids"], row["labels"]


def check_references(row: Row) -> None:
    """Check that every reference leads to its own placeholders, and that there are no others."""
    seen: list[int] = []
    for kind, pad in (("images", IMAGE), ("videos", VIDEO)):
        for entry in row[kind]:
            at = range(entry["position"], entry["position"] + entry["num_tokens"])
            assert [row["input_ids"][i] for i in (at[0] - 1, *at, at[-1] + 1)] == [START, *[pad] * len(at), END]
            seen += at
    assert sorted(seen) == [i for i, token in enumerate(row["input_ids"]) if token in (IMAGE, VIDEO)]
    assert all(row["labels"][i] == IGNORED for i in seen)


# -- where they stand --


def test_an_image_stands_where_its_mark_does(compiled: Callable[..., list[Row]], data: Path) -> None:
    (row,) = compiled(chat(("u", "before <image> after"), ("a", "A clock.")) | {"images": ["a.png"]})
    assert columns(row) == sequence(("user", ["before ", image("a.png"), " after"]), ("assistant", ["A clock."]))
    (entry,) = row["images"]
    assert entry["uri"] == "a.png"
    assert entry["sha256"] == hashlib.sha256((data / "a.png").read_bytes()).hexdigest()
    assert (entry["width"], entry["height"], entry["num_tokens"]) == (112, 56, 8)
    assert row["videos"] == []
    check_references(row)
    roles = [(span["role"], span["key"], span["num_tokens"]) for span in row["spans"]]
    assert ("user", "image", 10) in roles


def test_images_of_several_turns_keep_their_order(compiled: Callable[..., list[Row]]) -> None:
    turns = [("u", "<image><image> which?"), ("a", "The <image> first."), ("u", "and <image>\n"), ("a", "Both.")]
    (row,) = compiled(chat(("s", "You see <image>s."), *turns) | {"images": ["b.png", "a.png", "b.png"]})
    assert columns(row) == sequence(
        ("system", ["You see <image>s."]),
        ("user", [image("b.png"), image("a.png"), " which?"]),
        ("assistant", ["The <image> first."]),
        ("user", ["and ", image("b.png"), "\n"]),
        ("assistant", ["Both."]),
    )
    assert [entry["uri"] for entry in row["images"]] == ["b.png", "a.png", "b.png"]
    positions = [entry["position"] for entry in row["images"]]
    assert positions == sorted(positions)
    check_references(row)


def test_a_tool_may_answer_with_an_image(compiled: Callable[..., list[Row]]) -> None:
    call = ("c", '{"name": "look", "arguments": {}}')
    (row,) = compiled(chat(("u", "Look."), call, ("o", "seen: <image>"), ("a", "A clock.")) | {"images": ["c.png"]})
    called = json.dumps({"type": "function", "function": {"name": "look", "arguments": {}}})
    assert columns(row) == sequence(
        ("user", ["Look."]),
        ("assistant", [[8003], called, [8004]]),
        ("tool", ["seen: ", image("c.png")]),
        ("assistant", ["A clock."]),
    )
    (span,) = (span for span in row["spans"] if span["key"] == "image")
    assert (span["role"], span["num_tokens"]) == ("tool", 6)
    check_references(row)


@pytest.mark.parametrize("kind", ["preference", "kto"])
def test_pairs_and_kto_rows_take_images(compiled: Callable[..., list[Row]], kind: str) -> None:
    asked, reply = chat(("u", "<image>q")), {"from": "gpt", "value": "a <image> of it"}
    pair = asked | {"chosen": reply, "rejected": {"from": "gpt", "value": "no"}}
    source = pair if kind == "preference" else chat(("u", "<image>q"), ("a", reply["value"])) | {"kto_tag": True}
    (row,) = compiled(source | {"images": ["a.png"]})
    user = ("user", [image("a.png"), "q"])
    assert columns(row) == sequence(user, ("assistant", ["a <image> of it"]))
    check_references(row)
    if kind == "preference":
        assert (row["rejected_input_ids"], row["rejected_labels"]) == sequence(user, ("assistant", ["no"]))


def test_a_mark_without_its_column_is_text(compiled: Callable[..., list[Row]]) -> None:
    said = "<image> and <video>"
    plain, with_images = compiled(
        chat(("u", said), ("a", said)), chat(("u", said), ("a", said)) | {"images": ["c.png"], "videos": None}
    )
    assert columns(plain) == sequence(("user", [said]), ("assistant", [said]))
    assert columns(with_images) == sequence(("user", [image("c.png"), " and <video>"]), ("assistant", [said]))


def test_marks_of_a_row_without_images_are_counted_where_the_model_takes_images(
    compiled: Callable[..., list[Row]], tmp_path: Path
) -> None:
    listed = chat(("u", "<image>"), ("a", "ok")) | {"images": ["c.png"]}
    compiled(chat(("u", "<image>"), ("a", "ok")), chat(("u", "q"), ("a", "<image>")), listed)
    assert manifest(tmp_path / "out")["datasets"][0]["notes"] == {"warning:mark_without_media": 1}


def test_a_column_called_image_is_the_images(compiled: Callable[..., list[Row]]) -> None:
    """LLaVA calls it that."""
    (row,) = compiled(chat(("u", "<image>\nwhat?"), ("a", "A clock.")) | {"id": "1", "image": "a.png"})
    assert columns(row) == sequence(("user", [image("a.png"), "\nwhat?"]), ("assistant", ["A clock."]))


def test_one_reference_need_not_be_a_list(compiled: Callable[..., list[Row]]) -> None:
    (row,) = compiled({"instruction": "<image>what?", "output": "A clock.", "images": "a.png"})
    assert columns(row) == sequence(("user", [image("a.png"), "what?"]), ("assistant", ["A clock."]))


def test_a_video_may_be_a_list_of_frames(compiled: Callable[..., list[Row]]) -> None:
    source = chat(("u", "<video>, <image>, <video>"), ("a", "ok"))
    (row,) = compiled(source | {"videos": [FRAMES[:2], FRAMES], "images": ["a.png"]})
    content = [video(2), ", ", image("a.png"), ", ", video(3)]
    assert columns(row) == sequence(("user", content), ("assistant", ["ok"]))
    assert [json.loads(entry["uri"]) for entry in row["videos"]] == [list(FRAMES[:2]), list(FRAMES)]
    check_references(row)


# -- OpenAI's parts --


def parts(*content: Row | str) -> Row:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in content]}


def reply(said: str) -> Row:
    return {"role": "assistant", "content": said}


PART_FORMS: list[Row] = [
    {"type": "image_url", "image_url": {"url": "a.png"}},
    {"type": "image_url", "image_url": "a.png"},
    {"type": "image", "image": "a.png"},
]


@pytest.mark.parametrize("part", PART_FORMS)
def test_parts_place_their_images_themselves(compiled: Callable[..., list[Row]], part: Row) -> None:
    (row,) = compiled({"messages": [parts("see ", part, " and <image>"), reply("ok")]})
    assert columns(row) == sequence(("user", ["see ", image("a.png"), " and <image>"]), ("assistant", ["ok"]))
    assert [entry["uri"] for entry in row["images"]] == ["a.png"]
    check_references(row)


def test_parts_and_marks_may_take_turns(compiled: Callable[..., list[Row]]) -> None:
    first, second = parts(PART_FORMS[0]), {"role": "user", "content": "and <image>?"}
    (row,) = compiled({"messages": [first, reply("ok"), second, reply("yes")], "images": ["b.png"]})
    assert [entry["uri"] for entry in row["images"]] == ["a.png", "b.png"]
    check_references(row)


REFUSED_PARTS = [
    ({"messages": [parts("q"), {"role": "assistant", "content": [PART_FORMS[2]]}]}, "/messages/1/content/0"),
    ({"messages": [parts("q", {"type": "image", "image": "https://x/a.png"}), reply("ok")]}, "/messages/0/content/1"),
    ({"messages": [parts({"type": "image", "image": "gone.png"}), reply("ok")]}, "/messages/0/content/0"),
    ({"messages": [parts(PART_FORMS[0], "<image>"), reply("ok")], "images": ["b.png"]}, "/images/0"),
]


def test_a_part_that_cannot_be_used_is_rejected_at_its_place(
    compiled: Callable[..., list[Row]], rejected: Callable[[], list[tuple[int, str, str, str]]]
) -> None:
    good = {"messages": [parts(PART_FORMS[0]), reply("ok")]}
    compiled(good, *(source for source, _ in REFUSED_PARTS))
    assert [(reason, pointer) for _, reason, pointer, _ in rejected()] == [("media", p) for _, p in REFUSED_PARTS]


# -- what cannot be placed --

ASKED = chat(("u", "<image>q"), ("a", "r"))
REFUSED = [
    (ASKED | {"images": []}, "/images", "found 1 mark and 0 images"),
    (ASKED | {"images": ["a.png", "b.png"]}, "/images", "found 1 mark and 2 images"),
    (chat(("u", "<image><image>q"), ("a", "r")) | {"images": ["a.png"]}, "/images", "found 2 marks and 1 image"),
    (chat(("u", "<video>q"), ("a", "<video>")) | {"videos": []}, "/videos", "found 1 mark and 0 videos"),
    (chat(("u", "q"), ("a", "<image>")) | {"images": ["a.png"]}, "/images/0", "found 1 image and no mark; --repair"),
    (chat(("s", "<image>"), ("u", "q"), ("a", "r")) | {"images": ["a.png"]}, "/images/0", "and no mark"),
    (ASKED | {"images": ["gone.png"]}, "/images/0", "no such file"),
    (ASKED | {"images": ["../data/a.png"]}, "/images/0", "it contains '..'"),
    (ASKED | {"images": ["https://example.org/a.png"]}, "/images/0", "references with a scheme are not followed"),
    (ASKED | {"images": ["rows.jsonl"]}, "/images/0", "rows.jsonl"),
    (chat(("u", "<video>q"), ("a", "r")) | {"videos": [["v/0.png", "a.png"]]}, "/videos/0", "frames of one size"),
]


def test_media_that_cannot_be_placed_or_read_are_rejected_with_place_and_reason(
    compiled: Callable[..., list[Row]], rejected: Callable[[], list[tuple[int, str, str, str]]]
) -> None:
    assert [row["row"] for row in compiled(ASKED | {"images": ["a.png"]}, *(source for source, _, _ in REFUSED))] == [0]
    found = rejected()
    assert [(number, reason, pointer) for number, reason, pointer, _ in found] == [
        (number, "media", pointer) for number, (_, pointer, _) in enumerate(REFUSED, start=1)
    ]
    for (*_, message), (_, _, expected) in zip(found, REFUSED, strict=True):
        assert expected in message


def test_media_of_the_wrong_type_do_not_match_the_schema(
    compiled: Callable[..., list[Row]], rejected: Callable[[], list[tuple[int, str, str, str]]]
) -> None:
    compiled(ASKED | {"images": ["a.png"]}, ASKED | {"images": [["a.png"]]}, ASKED | {"images": [""]})
    assert [(reason, pointer) for _, reason, pointer, _ in rejected()] == [("schema", "/images/0")] * 2


def test_media_first_puts_what_no_text_places_before_the_first_user_text(compiled: Callable[..., list[Row]]) -> None:
    loose = chat(("s", "S"), ("u", "q"), ("a", "r"), ("u", "p"), ("a", "s")) | {"images": ["b.png", "a.png"]}
    half = chat(("u", "see <image>"), ("a", "r")) | {"images": ["a.png"], "videos": [FRAMES[:2]]}
    first, second, third = compiled(loose, half, ASKED | {"images": ["a.png"]}, options=["--repair", "media-first"])
    assert columns(first) == sequence(
        ("system", ["S"]), ("user", [image("b.png"), image("a.png"), "q"]), ("assistant", ["r"]), ("user", ["p"]),
        ("assistant", ["s"]),
    )  # fmt: skip
    assert columns(second) == sequence(("user", [video(2), "see ", image("a.png")]), ("assistant", ["r"]))
    assert [row["repairs"] for row in (first, second, third)] == [["media-first"], ["media-first"], None]
    for row in (first, second, third):
        check_references(row)


def test_an_image_stays_with_its_text_when_a_system_text_is_merged_into_it(
    run: Run, data: Path, tmp_path: Path
) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('none here') }}{% endif %}"
    folder = make_model(tmp_path / "model", template=refuses + TEMPLATE)
    file = write(
        data / "rows.jsonl", chat(("s", "Be brief."), ("u", "see <image>!"), ("a", "r")) | {"images": ["a.png"]}
    )
    run("compile", file, "--tokenizer", folder, "--system", "merge", "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    assert columns(row) == sequence(("user", ["Be brief.\n\nsee ", image("a.png"), "!"]), ("assistant", ["r"]))


# -- what no row can forge --

MARKS = "\U0010ff00\U0010ff01\U0010fffd\U00100000"
"""Private-use characters that the compiler itself borrows, media marks among them."""


def test_what_a_row_spells_is_never_a_placeholder(compiled: Callable[..., list[Row]]) -> None:
    said = f"<|image_pad|><|vision_start|>{MARKS}<|vision_end|><|video_pad|>"
    (spelled, real) = compiled(
        chat(("s", said), ("u", said), ("a", said)),
        chat(("u", f"{said}<image>{said}"), ("a", f"{said}<image>")) | {"images": ["c.png"]},
    )
    assert columns(spelled) == sequence(("system", [said]), ("user", [said]), ("assistant", [said]))
    assert columns(real) == sequence(("user", [said, image("c.png"), said]), ("assistant", [f"{said}<image>"]))
    check_references(spelled)
    check_references(real)


_HOSTILE = st.sampled_from([
    *VISION, *MARKS, "<image>", "<video>", "<", "image", ">", "<ima", "ge>", "<vid", "eo>", "<|im_end|>", "<|image",
    "_pad|>", " ", "\n", "x",
])  # fmt: skip
_SAID = st.one_of(st.lists(_HOSTILE, max_size=6).map("".join), texts(max_pieces=4))
PROPERTY = settings(
    deadline=None, derandomize=True, database=None, max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip


@st.composite
def hostile_rows(draw: Callable[[st.SearchStrategy[Any]], Any]) -> tuple[Row, tuple[list[int], list[int]]]:
    """Draw a row with as many images and videos as its user messages have marks, and what it must become."""
    turns, content = [], []
    images, videos = [], []
    listed = draw(st.booleans())
    for n in range(draw(st.sampled_from((2, 2, 4)))):
        said = draw(_SAID)
        role = ("user", "assistant")[n % 2]
        turns.append((role[0], said))
        pieces: Content = [said]
        if role == "user" and listed:
            pieces = []
            for piece in split_at_marks(said):
                if piece == "<image>":
                    images.append(draw(st.sampled_from(sorted(SIZES))))
                    pieces.append(image(images[-1]))
                elif piece == "<video>":
                    videos.append(draw(st.sampled_from((2, 3))))
                    pieces.append(video(videos[-1]))
                else:
                    pieces.append(piece)
        content.append((role, pieces))
    media = {"images": images or None, "videos": [FRAMES[:n] for n in videos] or None} if listed else {}
    return chat(*turns) | media, sequence(*content)


def split_at_marks(said: str) -> Iterator[str]:
    """Yield the pieces of a text, marks among them, by looking for the next one by hand."""
    while said:
        at, mark = min((said.find(m) % (len(said) + 1), m) for m in ("<image>", "<video>"))
        yield from [said[:at]] if at else []
        yield from [mark] if at < len(said) else []
        said = said[at + len(mark) :]


@PROPERTY
@given(drawn=st.lists(hostile_rows(), min_size=5, max_size=5))
def test_vision_tokens_are_exactly_those_of_the_rows_media_whatever_its_texts_spell(
    model: Path, data: Path, tmp_path: Path, drawn: list[tuple[Row, tuple[list[int], list[int]]]]
) -> None:
    file = write(data / "rows.jsonl", *(row for row, _ in drawn))
    options = ["--tokenizer", model, "--format", "sharegpt", "--allow-empty", "--no-shuffle", "--workers", "1"]
    arguments = ["compile", file, *options, "--cache", tmp_path / "cache", "-o", tmp_path / "out"]
    done = runner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    for row, (source, expected) in zip(rows(tmp_path / "out"), drawn, strict=True):
        assert columns(row) == expected
        check_references(row)
        counts = Counter(row["input_ids"])
        media = len(source.get("images") or ()) + len(source.get("videos") or ())
        assert (counts[START], counts[END]) == (media, media)
        assert counts[IMAGE] == sum(TOKENS[name] for name in source.get("images") or ())
        assert counts[VIDEO] == sum(VIDEO_TOKENS[len(frames)] for frames in source.get("videos") or ())


def test_loss_on_a_message_never_trains_its_placeholders(compiled: Callable[..., list[Row]]) -> None:
    asked = [("u", "see <image> it", {"loss": True}), ("a", "A clock.")]
    plain, weighted = compiled(
        chat(*asked) | {"images": ["a.png"]},
        chat(("u", "<image>", {"loss_scale": 2.0}), ("a", "A clock.")) | {"images": ["a.png"]},
    )
    said = [i for i in plain["labels"] if i != IGNORED]
    assert said == ids_of("see ") + ids_of(" it") + ids_of("A clock.", IM_END)
    assert [i for i in weighted["labels"] if i != IGNORED] == ids_of("A clock.", IM_END)
    for row in (plain, weighted):
        check_references(row)


def test_an_image_in_a_tools_result_is_not_trained_where_results_are_text_of_the_reply(
    compiled: Callable[..., list[Row]],
) -> None:
    call = ("c", '{"name": "look", "arguments": {}}')
    turns = [("u", "Look <image>."), call, ("o", "seen: <image>"), ("a", "A clock.")]
    tools = [{"name": "look", "description": "", "parameters": {}}]
    source = chat(*turns) | {"images": ["a.png", "c.png"], "tools": json.dumps(tools)}
    (row,) = compiled(source, options=["--tools", "react"])
    check_references(row)
    assert [entry["uri"] for entry in row["images"]] == ["a.png", "c.png"]
    assert [i for i in row["labels"] if i != IGNORED] == [
        *ids_of("Action: look\nAction Input: {}\nObservation:"), *ids_of("Final Answer: A clock.", IM_END)
    ]  # fmt: skip


# -- lengths --

LONG = chat(("u", "<image>one"), ("a", "ok"), ("u", "two <image>"), ("a", "yes"), ("u", "three"), ("a", "end"))
LONG |= {"images": ["a.png", "b.png"]}
TURNS: list[tuple[str, Content]] = [
    ("user", [image("a.png"), "one"]), ("assistant", ["ok"]), ("user", ["two ", image("b.png")]),
    ("assistant", ["yes"]), ("user", ["three"]), ("assistant", ["end"]),
]  # fmt: skip


@pytest.mark.parametrize("exchanges", [1, 2, 3])
@pytest.mark.parametrize("policy", ["turns", "last-turns"])
def test_turns_are_dropped_with_their_images(compiled: Callable[..., list[Row]], policy: str, exchanges: int) -> None:
    first = 0 if policy == "turns" else 3 - exchanges
    left = TURNS[2 * first : 2 * (first + exchanges)]
    options = ["--overlength", policy, "--max-length"]
    (row,) = compiled(LONG, options=[*options, len(sequence(*left)[0])])
    assert columns(row) == sequence(*left)
    assert [entry["uri"] for entry in row["images"]] == ["a.png", "b.png"][first : first + exchanges]
    check_references(row)


def test_an_image_alone_can_make_a_row_too_long(
    compiled: Callable[..., list[Row]], rejected: Callable[[], list[tuple[int, str, str, str]]]
) -> None:
    limit = len(sequence(("user", ["one"]), ("assistant", ["ok"]))[0])
    compiled(chat(("u", "one"), ("a", "ok")), LONG, options=["--max-length", limit])
    ((number, reason, _, message),) = rejected()
    assert (number, reason) == (1, "too_long")
    assert f"expected at most {limit} tokens, found {len(sequence(*TURNS)[0])};" in message


def loaded(folder: Path, template: str) -> tuple[Compiled, Template]:
    tokenizer = Compiled.load(folder)
    return tokenizer, load_template(template, tokenizer)


def with_images(folder: Path, template: str) -> tuple[Conversation, Encoded]:
    """A conversation with three images in two turns, encoded for the model in a folder."""
    tokenizer, chosen = loaded(folder, template)
    vision = chosen.program.rendering.vision
    assert vision is not None

    def shown(at: int, name: str) -> Media:
        facts = MediaFacts("0" * 64, *SIZES[name])
        return Media("image", name, at, facts=facts, num_tokens=vision.image_tokens(facts))

    messages = [
        Message(Role.USER, "see it", media=[shown(0, "a.png"), shown(4, "c.png")]), Message(Role.ASSISTANT, "ok"),
        Message(Role.USER, "and", media=[shown(3, "b.png")]), Message(Role.ASSISTANT, "yes, a clock"),
    ]  # fmt: skip
    conversation = Conversation(messages)
    return conversation, encode_segments(conversation, chosen.program.joined(conversation), tokenizer)


def check_cuts(conversation: Conversation, whole: Encoded, limits: Sequence[int]) -> None:
    """Check cuts at lengths: the longest beginning that fits, counted as the model counts, with no image in part."""
    ids = whole.ids.tolist()
    inside = {i for one in whole.placed for i in range(one.start + 1, one.end)}
    more = {one.position: one.num_tokens - one.count for one in whole.placed}
    seen = np.cumsum([0] + [1 + more.get(i, 0) for i in range(len(ids))]).tolist()
    for limit in limits:
        _, (cut,) = fit(conversation, [whole], limit, "cut", lambda _: [])
        keep = max(n for n in range(len(ids) + 1) if n not in inside and seen[n] <= limit)
        assert cut.ids.tolist() == ids[:keep]
        assert cut.labels.tolist() == whole.labels.tolist()[:keep]
        assert cut.length == seen[keep] <= limit
        assert [one.position for one in cut.placed] == [one.position for one in whole.placed if one.end <= keep]
        assert sum(stretch.length for stretch in cut.stretches) == keep


def test_a_cut_never_goes_through_an_image(model: Path) -> None:
    conversation, whole = with_images(model, "auto")
    assert whole.length == len(whole.ids)
    check_cuts(conversation, whole, range(1, whole.length + 1))


def test_a_cut_counts_what_one_placeholder_stands_for() -> None:
    conversation, whole = with_images(shared("tokenizers", "glm4"), "cogagent")
    assert whole.length == len(whole.ids) + 3 * 1599
    edges = [n * 1599 + i for n in range(4) for i in range(1, len(whole.ids) + 2)]
    check_cuts(conversation, whole, [limit for limit in edges if limit <= whole.length])


# -- files that change --


def units(run: Run, model: Path, file: Path, out: Path, *options: Any) -> tuple[int, int]:
    """Compile; return the numbers of units compiled and taken from the cache."""
    given_options = ["--tokenizer", model, "--max-rejects", "100%", "--no-shuffle", "--json", *options]
    summary = json.loads(run("compile", file, *given_options, "-o", out).stdout)
    return summary["units_compiled"], summary["units_cached"]


def test_rows_are_compiled_again_when_an_image_changes_appears_or_goes(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    late = chat(("u", "<image>late"), ("a", "r")) | {"images": ["late.png"]}
    file, out = write(data / "rows.jsonl", ASKED | {"images": ["a.png"]}, late), tmp_path / "out"

    def tokens() -> list[list[int]]:
        return [[entry["num_tokens"] for entry in row["images"]] for row in rows(out)]

    assert units(run, model, file, out) == (1, 0)
    assert tokens() == [[8]]
    assert units(run, model, file, out) == (0, 1)
    Image.new("RGB", (56, 56)).save(data / "a.png")
    assert units(run, model, file, out) == (1, 0)
    assert tokens() == [[4]]
    Image.new("RGB", (56, 140)).save(data / "late.png")
    assert units(run, model, file, out) == (1, 0)
    assert tokens() == [[4], [10]]
    assert units(run, model, file, out) == (0, 1)
    (data / "late.png").unlink()
    assert units(run, model, file, out) == (1, 0)
    assert tokens() == [[4]]


def test_images_that_the_machine_which_compiled_did_not_see_end_the_run_and_reject_no_row(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine of a cluster may have the sources and not the folder of the images; here it is hidden."""
    file = write(data / "rows.jsonl", ASKED | {"images": ["a.png"]})
    given = ["compile", file, "--tokenizer", model, "--max-rejects", "100%"]

    def blind(*arguments: Any) -> Any:
        (data / "a.png").rename(data / "moved.png")
        found = list(really(*arguments))
        (data / "moved.png").rename(data / "a.png")
        return found

    really = local.InProcess.run
    with monkeypatch.context() as patch:
        patch.setattr(local.InProcess, "run", blind)
        result = run(*given, "-o", tmp_path / "out", code=4)
    said = "an image or video of it changed meanwhile, or is another one on a machine that looked at it"
    assert f"error: {file}: {said}" in result.stderr
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert units(run, model, file, tmp_path / "out") == (1, 0)
    assert len(rows(tmp_path / "out")) == 1


def test_an_image_that_changes_between_two_rows_ends_the_run(
    run: Run, model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of_it = [chat(("u", f"<image>{i}"), ("a", "r")) | {"images": ["a.png"]} for i in range(3)]
    file = write(data / "rows.jsonl", *rows_of_it)
    probed: list[Path] = []

    def probe(path: Path) -> Any:
        facts = really(path)
        if not probed:
            (data / "b.png").rename(data / "a.png")
        probed.append(path)
        return facts

    really = media.probe_image
    monkeypatch.setattr(media, "probe_image", probe)
    given = ["compile", file, "--tokenizer", model, "--workers", "1", "-o", tmp_path / "out"]
    assert "changed meanwhile" in run(*given, code=4).stderr
    assert len(probed) == 3
    run(*given)
    assert len({image["width"] for row in rows(tmp_path / "out") for image in row["images"]}) == 1


def test_rows_are_compiled_again_when_a_link_leads_to_another_image(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    link, out = data / "link.png", tmp_path / "out"
    link.symlink_to("a.png")
    file = write(data / "rows.jsonl", ASKED | {"images": ["link.png"]})
    units(run, model, file, out)
    link.unlink()
    link.symlink_to("b.png")
    units(run, model, file, out)
    assert [entry["num_tokens"] for row in rows(out) for entry in row["images"]] == [10]


def test_rows_are_compiled_again_for_a_processor_with_other_numbers(run: Run, data: Path, tmp_path: Path) -> None:
    file, out = write(data / "rows.jsonl", ASKED | {"images": ["a.png"]}), tmp_path / "out"
    small, large = (make_model(tmp_path / str(n), PROCESSOR | {"min_pixels": n}) for n in (3136, 25088))
    digests = []
    for folder, tokens in ((small, 8), (large, 32)):
        assert units(run, folder, file, out) == (1, 0)
        assert [entry["num_tokens"] for row in rows(out) for entry in row["images"]] == [tokens]
        digests.append(manifest(out)["media"]["digest"])
    assert digests[0] != digests[1]
    assert units(run, small, file, out) == (0, 1)


def test_the_same_rows_with_other_images_are_other_rows(run: Run, model: Path, tmp_path: Path) -> None:
    files = []
    for name, size in (("one", (56, 56)), ("two", (112, 112))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "a.png")
        files.append(write(tmp_path / name / f"{name}.jsonl", ASKED | {"images": ["a.png"]}))
    options = ["--tokenizer", model, "--no-shuffle", "-o", tmp_path / "out"]
    run("compile", *files, *options)
    assert [row["images"][0]["num_tokens"] for row in rows(tmp_path / "out")] == [4, 16]
    for folder, tokens in (("two", 16), ("one", 4)):
        run("compile", files[0], "--media-dir", tmp_path / folder, *options)
        assert [row["images"][0]["num_tokens"] for row in rows(tmp_path / "out")] == [tokens]


def test_a_set_is_the_same_wherever_its_images_lie(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rejects included: the message about a missing file names no folder of this machine."""
    digests = []
    for name in ("here", "there"):
        draw_images(tmp_path / name)
        monkeypatch.chdir(tmp_path / name)
        write(Path("rows.jsonl"), ASKED | {"images": ["a.png"]}, ASKED | {"images": ["gone.png"]})
        run("compile", "rows.jsonl", "--tokenizer", model, "--max-rejects", "1", "-o", "out")
        assert str(tmp_path) not in Path("out/rejects.jsonl").read_text("utf-8")
        digests.append(manifest(Path("out"))["digest"])
    assert digests[0] == digests[1]


def test_the_media_folder_does_not_matter_to_a_model_of_texts(run: Run, data: Path, tmp_path: Path) -> None:
    file = write(data / "rows.jsonl", chat(("u", "q"), ("a", "r")))
    for folder, expected in ((data, (1, 0)), (tmp_path, (0, 1))):
        assert units(run, registry.DEMO_TOKENIZER, file, tmp_path / "out", "--media-dir", folder) == expected


def test_the_same_picture_under_two_names_is_a_duplicate_and_another_one_is_not(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    shutil.copy(data / "a.png", data / "copy.png")
    file = write(data / "rows.jsonl", *(ASKED | {"images": [name]} for name in ("a.png", "copy.png", "b.png")))
    run("compile", file, "--tokenizer", model, "--dedup", "exact", "--no-shuffle", "-o", tmp_path / "out")
    assert [row["images"][0]["uri"] for row in rows(tmp_path / "out")] == ["a.png", "b.png"]


# -- the set --


def test_the_manifest_says_how_the_model_takes_images_and_the_processor_lies_beside(
    compiled: Callable[..., list[Row]], run: Run, model: Path, tmp_path: Path
) -> None:
    compiled(ASKED | {"images": ["a.png"]})
    out = tmp_path / "out"
    found = manifest(out)
    assert {key: found["media"][key] for key in ("name", "repeats_pad")} == {"name": "qwen2_vl", "repeats_pad": True}
    copied = out / "tokenizer" / "preprocessor_config.json"
    assert copied.read_bytes() == (model / "preprocessor_config.json").read_bytes()
    run("verify", out)
    assert "image a.png 112x56 = 8 tokens" in run("inspect", out).stdout
    run("inspect", out, "--assert", "image:0", "--assert", "user:0")


def test_a_set_for_a_model_of_texts_says_that_it_takes_none(run: Run, tmp_path: Path) -> None:
    run("compile", write(tmp_path / "rows.jsonl", chat(("u", "q"), ("a", "r"))), "-o", tmp_path / "out")
    assert manifest(tmp_path / "out")["media"] is None


def test_images_of_a_model_of_texts_are_rejected_with_the_reason(run: Run, data: Path, tmp_path: Path) -> None:
    file = write(data / "rows.jsonl", chat(("u", "q"), ("a", "r")), ASKED | {"images": ["a.png"]})
    run("compile", file, "--max-rejects", "1", "-o", tmp_path / "out")
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"], reject["pointer"]) == (1, "media", "/images/0")
    assert "neither the tokenizer's folder (preprocessor_config.json) nor the template says how" in reject["message"]


def test_the_certificate_tries_an_image(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    """One more conversation is compared with the chat template's own rendering of parts."""
    text_only = make_model(tmp_path / "text", processor=None)
    file = write(data / "rows.jsonl", chat(("u", "q"), ("a", "r")))
    checks = []
    for folder in (text_only, model):
        run("compile", file, "--tokenizer", folder, "-o", tmp_path / "out")
        checks.append(manifest(tmp_path / "out")["template"]["certificate"]["checks"])
    assert {law: checks[1][law] - checks[0][law] for law in ("text", "ids", "context", "injection")} == {
        "text": 1, "ids": 1, "context": 1, "injection": 1
    }  # fmt: skip


def test_what_a_template_writes_around_images_alone_is_a_reject(run: Run, data: Path, tmp_path: Path) -> None:
    """Our layout would not be what the model saw: a word before every picture, for example. Texts are compiled."""
    numbered = TEMPLATE.replace("<|vision_start|><|image_pad|>", "Picture: <|vision_start|><|image_pad|>")
    folder = make_model(tmp_path / "model", template=numbered)
    file = write(data / "rows.jsonl", chat(("u", "q"), ("a", "r")), ASKED | {"images": ["a.png"]})
    run("compile", file, "--tokenizer", folder, "--max-rejects", "1", "-o", tmp_path / "out")
    assert [columns(row) for row in rows(tmp_path / "out")] == [sequence(("user", ["q"]), ("assistant", ["r"]))]
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["row"], reject["reason"]) == (1, "template_refused")


PROCESSORS = {
    "qwen2_5_vl": PROCESSOR | {"processor_class": "Qwen2_5_VLProcessor"},
    "qwen3_vl": {
        "image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor", "patch_size": 14,
        "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": 3136, "longest_edge": 16777216},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PROCESSORS)
def test_text_is_what_the_official_template_writes_of_parts(run: Run, data: Path, tmp_path: Path, name: str) -> None:
    """With trl's copies of the templates; every picture's placeholders count as the one that the template writes."""
    source = official_source(name)
    folder = make_model(tmp_path / "model", PROCESSORS[name], source)
    picture = [PART_FORMS[2] | {"image": uri} for uri in SIZES]
    messages = [
        {"role": "system", "content": "You see <image>."}, parts(" see\n", picture[0], picture[1], "\n it "),
        reply("a\n"), parts(picture[2]), reply("b"), parts("<image>", picture[1]), reply("c"),
    ]  # fmt: skip
    run("compile", write(data / "rows.jsonl", {"messages": messages}), "--tokenizer", folder, "-o", tmp_path / "out")
    (row,) = rows(tmp_path / "out")
    check_references(row)
    before = zip(row["input_ids"], [-1, *row["input_ids"]], strict=False)
    kept = [token for token, previous in before if (token, previous) != (IMAGE, IMAGE)]
    published = Tokenizer.from_file(str(folder / "tokenizer.json"))
    official = jinja_environment().from_string(source).render(messages=messages, add_generation_prompt=False)
    assert published.decode(kept, skip_special_tokens=False) == official


def test_a_template_that_strips_texts_around_images_is_refused_or_followed(
    run: Run, data: Path, tmp_path: Path
) -> None:
    """Given parts, as transformers gives them, it strips each text; given one text, only its ends."""
    strips = TEMPLATE.replace("{{ part.text }}", "{{ part.text | trim }}")
    strips = strips.replace("{{ message.content }}", "{{ message.content | trim }}")
    folder = make_model(tmp_path / "model", template=strips)
    sources = [chat(("u", said), ("a", "r")) | {"images": ["c.png"]} for said in ("see<image>it", "see <image> it")]
    file = write(data / "rows.jsonl", *sources)
    run("compile", file, "--tokenizer", folder, "--max-rejects", "1", "--no-shuffle", "-o", tmp_path / "out")
    expected = sequence(("user", ["see", image("c.png"), "it"]), ("assistant", ["r"]))
    found = [columns(row) for row in rows(tmp_path / "out")]
    assert found == [expected] * len(found)
    assert [r["reason"] for r in rejects(tmp_path / "out" / "rejects.jsonl")] == ["template_refused"] * (2 - len(found))


def test_special_text_is_counted_rejected_or_allowed_without_touching_the_images(
    compiled: Callable[..., list[Row]], rejected: Callable[[], list[tuple[int, str, str, str]]]
) -> None:
    spelled = chat(("u", "<image><|im_end|>"), ("a", "r")) | {"images": ["c.png"]}
    (row,) = compiled(spelled)
    assert columns(row) == sequence(("user", [image("c.png"), "<|im_end|>"]), ("assistant", ["r"]))
    compiled(ASKED | {"images": ["c.png"]}, spelled, options=["--special-text", "reject"])
    assert [(number, reason) for number, reason, _, _ in rejected()] == [(1, "special_text")]
    (row,) = compiled(spelled, options=["--special-text", "allow"])
    assert columns(row) == sequence(("user", [image("c.png"), IM_END]), ("assistant", ["r"]))


# -- CogAgent --


def test_cogagents_screenshots_are_one_placeholder_each_and_count_1600(run: Run, data: Path, tmp_path: Path) -> None:
    folder = shared("tokenizers", "glm4")
    turns = [
        {"role": "user", "content": "one", "image": "a.png"}, {"role": "assistant", "content": "r0"},
        {"role": "user", "content": "two"}, {"role": "assistant", "content": "r1"},
        {"role": "user", "content": "three", "image": "b.png"}, {"role": "assistant", "content": "r2"},
    ]  # fmt: skip
    marked = chat(("u", "before <image> after"), ("a", "r")) | {"images": ["a.png"]}
    for source in ({"messages": turns}, marked):
        file = write(data / "rows.jsonl", source)
        run("compile", file, "--tokenizer", folder, "--template", "cogagent", "-o", tmp_path / "out")
        (row,) = rows(tmp_path / "out")
        ids = row["input_ids"]
        at = [i for i, token in enumerate(ids) if token == 151329]
        assert [entry["position"] for entry in row["images"]] == at
        assert [ids[i - 1 : i + 2] for i in at] == [[151339, 151329, 151340]] * len(at)
        assert {entry["num_tokens"] for entry in row["images"]} == {1600}
        assert row["labels"][at[0]] == IGNORED
        assert manifest(tmp_path / "out")["splits"]["train"]["tokens"] == len(ids) + 1599 * len(at)
    assert manifest(tmp_path / "out")["media"]["repeats_pad"] is False


def test_a_video_is_rejected_where_the_model_reads_pictures(run: Run, data: Path, tmp_path: Path) -> None:
    folder = shared("tokenizers", "glm4")
    moving = chat(("u", "<video>"), ("a", "r")) | {"videos": [FRAMES[:2]]}
    file = write(data / "rows.jsonl", ASKED | {"images": ["a.png"]}, moving)
    options = ["--tokenizer", folder, "--template", "cogagent", "--max-rejects", "1", "-o", tmp_path / "out"]
    run("compile", file, *options)
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["pointer"]) == ("media", "/videos/0")
    assert "videos are not compiled for cogagent" in reject["message"]


# -- trajectories --


def trajectory(n: int, steps: int, task: str | None = None) -> Row:
    click = f"CLICK(box=[[1,2,3,{4 + n}]], element_info='x')"
    step = {"image": "a.png", "operation": click, "action": f"Click {n}."}
    last = {"image": "b.png", "operation": "END()", "action": "Done."}
    return {"task": task or f"Task {n}", "platform": "Mac", "steps": [*[step] * (steps - 1), last]}


def test_the_steps_of_a_trajectory_stay_on_one_side_of_the_split(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    """So do those of other rows with its task; each step has its own screenshot."""
    sources = [trajectory(n, 2 + n % 3) for n in range(10)] + [trajectory(n, 2, "Task 0") for n in (10, 11)]
    file = write(data / "screens.jsonl", *sources)
    run("compile", file, "--tokenizer", model, "--val-size", "0.3", "-o", tmp_path / "out")
    found = {split: rows(tmp_path / "out", split) for split in ("train", "val")}
    sides = {split: {0 if row["row"] > 9 else row["row"] for row in found[split]} for split in found}
    assert not sides["train"] & sides["val"]
    assert sides["val"]
    steps = Counter((row["row"], row["part"]) for row in chain(*found.values()))
    assert steps == {(n, k): 1 for n, source in enumerate(sources) for k in range(len(source["steps"]))}
    for row in chain(*found.values()):
        last = row["part"] == len(sources[row["row"]]["steps"]) - 1
        assert [entry["uri"] for entry in row["images"]] == ["b.png" if last else "a.png"]
        check_references(row)


def test_a_step_whose_screenshot_is_missing_is_rejected_alone(
    run: Run, model: Path, data: Path, tmp_path: Path
) -> None:
    source = trajectory(1, 3)
    source["steps"][1] = source["steps"][1] | {"image": "gone.png"}
    file = write(data / "screens.jsonl", source, trajectory(2, 2))
    run("compile", file, "--tokenizer", model, "--max-rejects", "1", "--no-shuffle", "-o", tmp_path / "out")
    assert [(row["row"], row["part"]) for row in rows(tmp_path / "out")] == [(0, 0), (0, 2), (1, 0), (1, 1)]
    (reject,) = rejects(tmp_path / "out" / "rejects.jsonl")
    assert (reject["reason"], reject["pointer"]) == ("media", "/steps/1/image")
    balance = manifest(tmp_path / "out")["balance"]
    assert (balance["read"], balance["expanded"], balance["in_shards"], balance["rejected"]) == (2, 3, 4, 1)


def test_images_of_later_rows_are_read_whatever_their_column_is_called(compiled: Callable[..., list[Row]]) -> None:
    """The first rows decide the format; rows with images may come after them, under either name."""
    asked = {"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}]}
    text = {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "a"}]}
    found = compiled(*[text] * 25, asked | {"images": ["a.png"]}, asked | {"image": "a.png"})
    assert [len(row["images"] or []) for row in found[24:]] == [0, 1, 1]
    found = compiled(asked | {"image": "a.png"}, asked | {"images": ["a.png"]})
    assert [len(row["images"] or []) for row in found] == [1, 1]


@pytest.mark.parametrize(("role", "content", "user", "assistant"), [
    ("role", "content", "user", "assistant"), ("from", "value", "user", "assistant"), ("from", "value", "human", "gpt"),
])  # fmt: skip
def test_images_stand_beside_conversations_of_every_naming(
    compiled: Callable[..., list[Row]], role: str, content: str, user: str, assistant: str
) -> None:
    messages = [{role: user, content: "<image>?"}, {role: assistant, content: "a"}]
    (found,) = compiled({"conversations": messages, "images": ["a.png"]})
    assert len(found["images"]) == 1


def test_parts_without_a_file_take_those_of_the_column_in_order(
    compiled: Callable[..., list[Row]], rejected: Callable[[], list[tuple[int, str, str, str]]]
) -> None:
    asked = [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image", "image": None}]
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": "b"}]
    whole = [{"type": "image", "image": "a.png"}, asked[1], {"type": "image", "image": "b.png"}]
    given = [messages[0] | {"content": whole}, messages[1]]
    found = compiled({"messages": messages, "images": ["a.png", "b.png"]}, {"messages": given},
                     {"messages": messages}, {"messages": messages, "images": ["a.png"]})  # fmt: skip
    assert len(found) == 2
    assert found[0]["input_ids"] == found[1]["input_ids"]
    neither, fewer = rejected()
    assert neither[1:3] == ("media", "/messages/0/content/0")
    assert fewer[2:] == (
        "/images",
        "expected as many images as parts of this type that name none, found 2 parts and 1 image",
    )
