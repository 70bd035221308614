"""Model families: our cards write what the official templates write, and official templates are lowered rightly.

The official chat templates are those in the `trl` package (see families.py). What a reply must train is told from
them alone: what follows the generation prompt, up to the family's stop, which is stated here by hand.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import registry
from compiler.conversation import Call, Conversation, Message, Role
from compiler.encode.batch import Encoded
from compiler.proof.template import certify
from compiler.templates.history import by_reply
from compiler.templates.load import Template, load_template
from compiler.tokenizer.tokenizer import Tokenizer
from schemas.errors import IntegrityError, Reason, RowError
from tests.support.conversations import conversations
from tests.support.encoded import encode_segments
from tests.support.families import (
    FAMILIES,
    Family,
    card_tools,
    family_folder,
    official_names,
    official_source,
    official_text,
)
from tests.support.shared import shared

USER, ASSISTANT, SYSTEM, TOOL = Role.USER, Role.ASSISTANT, Role.SYSTEM, Role.TOOL
LAWS = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


def chat(*contents: str, system: str | None = None, tools: Any = None) -> Conversation:
    """User and assistant in turn."""
    messages = [Message((USER, ASSISTANT)[i % 2], text) for i, text in enumerate(contents)]
    return Conversation([Message(SYSTEM, system)] * (system is not None) + messages, tools)


def parts(template: Template, conversation: Conversation) -> list[Conversation]:
    """Return the conversation, or one for each reply where the template is not stable, as a compile makes them."""
    try:
        template.program.joined(conversation)
    except RowError as error:
        if error.reject.reason is not Reason.TEMPLATE_UNSTABLE:
            raise
        return by_reply(conversation)
    return [conversation]


def compiled(tools: tuple[Tokenizer, Template], conversation: Conversation) -> tuple[str, Encoded]:
    """Return the text and the columns of a conversation."""
    tokenizer, template = tools
    segments = template.program.joined(conversation)
    return "".join(segment.text for segment in segments), encode_segments(conversation, segments, tokenizer)


# -- cards --


@dataclass(frozen=True)
class Against:
    """A card, the official template it equals, and where it does not."""

    card: str
    official: str
    system: str = "anywhere"
    after_last: str = ""
    """What the official template writes after the last turn, which nobody generates."""

    def __str__(self) -> str:
        return f"{self.card}-{self.official}"


CARDS = [
    Against("llama3", "llama3"),
    Against("gemma", "gemma", system="none"),
    Against("phi3", "phi3", after_last="<|endoftext|>"),
    Against("phi3", "phi3_5", after_last="<|endoftext|>"),
]


@pytest.mark.parametrize("against", CARDS, ids=str)
@LAWS
@given(data=st.data())
def test_a_card_writes_what_the_official_template_writes(against: Against, data: st.DataObject) -> None:
    source, family = official_source(against.official), FAMILIES[against.card]
    conversation = data.draw(conversations(system=against.system, tools=False, spelled=False, weights=False))
    if against.official == "phi3_5":  # it leaves out an empty system message; decision 4: rendered as given
        assume(all(message.content for message in conversation.messages if message.role is SYSTEM))
    text, encoded = compiled(card_tools(against.card), conversation)
    official = official_text(source, conversation, family)
    assert text + against.after_last == official
    check_masks(
        card_tools(against.card)[0], conversation, encoded, text, CARD_STOPS[against.card], prompts(source, family)
    )


Prompt = Callable[[Conversation, int], str]


def prompts(source: str, family: Family) -> Prompt:
    """Return a function that gives the official generation prompt before a message."""
    return lambda conversation, message: official_text(source, conversation, family, stop=message, prompt=True)


def check_masks(
    tokenizer: Tokenizer, conversation: Conversation, encoded: Encoded, text: str, stop: str, prompt_of: Prompt
) -> None:
    """Check that exactly what follows each generation prompt is trained, up to the stop, and encoded as published."""
    expected, first = [], ""
    for i, message in enumerate(conversation.messages):
        if message.role is ASSISTANT and i >= conversation.context:
            prompt = prompt_of(conversation, i)
            assert text.startswith(prompt)
            first = first or prompt
            end = text.index(stop, len(prompt)) + len(stop)
            expected.append(text[len(prompt) : end])
    trained = encoded.labels[encoded.labels >= 0].tolist()
    assert tokenizer.normalize(tokenizer.decode(trained)) == tokenizer.normalize("".join(expected))
    start = int(np.argmax(encoded.labels >= 0))
    assert encoded.ids[:start].tolist() == tokenizer.official.encode(first, add_special_tokens=False).ids
    if not any(reply[0].isspace() for reply in expected):
        assert encoded.ids.tolist() == tokenizer.official.encode(text, add_special_tokens=False).ids


CARD_STOPS = {
    "llama2": "</s>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "phi3": "<|end|>",
    "deepseek": "<｜end▁of▁sentence｜>",
    "deepseek_llm": "<｜end▁of▁sentence｜>",
    "llava": "</s>",
    "internlm2": "<|im_end|>",
    "yi": "<|im_end|>",
    "baichuan2": "</s>",
}


@pytest.mark.parametrize("card", CARD_STOPS)
def test_a_card_is_certified_with_its_stop_and_refuses_tools_by_naming_the_way_out(card: str) -> None:
    tokenizer, template = card_tools(card)
    certificate = certify(template, tokenizer)
    assert certificate["stops"] == [CARD_STOPS[card]]
    refused = {"tools", "parallel calls"} | ({"system", "empty system"} if card == "gemma" else set())
    assert set(certificate["refuses"]) == refused
    assert "--tools react" in certificate["refuses"]["tools"]


@pytest.mark.parametrize("card", CARD_STOPS)
def test_what_ends_a_document_is_a_token_of_the_family(card: str) -> None:
    tokenizer, template = card_tools(card)
    end = registry.template(card).get("document_end", FAMILIES[card].eos)
    assert end in tokenizer.controls
    assert template.document_end == end


@pytest.mark.parametrize("card", ["gemma", "llama2", "baichuan2", "deepseek"])
def test_a_system_message_where_the_family_has_none_is_refused(card: str) -> None:
    conversation = chat("Hi", "Hello", "Go on", "No")
    conversation.messages.insert(2, Message(SYSTEM, "Be brief."))
    with pytest.raises(RowError, match="system message") as caught:
        card_tools(card)[1].program.joined(conversation)
    assert caught.value.reject.reason is Reason.TEMPLATE_REFUSED


CALLING = Conversation(
    [
        Message(SYSTEM, "You may call clock."),
        Message(USER, "Time?"),
        Message(ASSISTANT, "Let me look.", [Call("clock", {"city": "北京"}), Call("clock", {"city": "Oslo"})]),
        Message(TOOL, "14:05"),
        Message(TOOL, "07:05"),
        Message(ASSISTANT, "14:05 and 07:05."),
        Message(USER, "Thanks"),
        Message(ASSISTANT, "Welcome."),
    ]
)


@LAWS
@given(data=st.data())
def test_deepseek_writes_turns_as_the_official_template_does(data: st.DataObject) -> None:
    """Its thinking aside: the official one begins replies with <think> and leaves out what is before </think>."""
    source = official_source("deepseekv3")
    conversation = data.draw(conversations(system="first", tools=False, spelled=False, weights=False))
    assume(not any("</think>" in message.content for message in conversation.messages))
    text, encoded = compiled(card_tools("deepseek"), conversation)
    assert text == official_text(source, conversation, FAMILIES["deepseek"])

    def prompt_of(conversation: Conversation, message: int) -> str:
        official = official_text(source, conversation, FAMILIES["deepseek"], stop=message, prompt=True)
        return official.removesuffix("<think>\n")

    check_masks(card_tools("deepseek")[0], conversation, encoded, text, CARD_STOPS["deepseek"], prompt_of)


def test_deepseek_writes_calls_and_their_results_as_the_official_template_does() -> None:
    official = official_text(official_source("deepseekv3"), CALLING, FAMILIES["deepseek"], arguments_as_text=True)
    text, encoded = compiled(card_tools("deepseek"), CALLING)
    assert text == official
    tokenizer = card_tools("deepseek")[0]
    trained = encoded.labels[encoded.labels >= 0].tolist()
    call = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>clock\n```json\n{}\n```<｜tool▁call▁end｜>"
    calls = "\n".join(call.replace("{}", f'{{"city": "{city}"}}') for city in ("北京", "Oslo"))
    assert tokenizer.decode(trained) == (
        f"Let me look.<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
        "14:05 and 07:05.<｜end▁of▁sentence｜>Welcome.<｜end▁of▁sentence｜>"
    )


def test_deepseek_opens_calls_and_results_in_every_turn_and_the_official_template_only_in_the_first() -> None:
    """The one difference: from the second round of calls on, the official text lacks its opening tokens."""
    again = [replace(message) for message in CALLING.messages[2:6]]
    twice = Conversation([*CALLING.messages, Message(USER, "Again?"), *again])
    official = official_text(official_source("deepseekv3"), twice, FAMILIES["deepseek"], arguments_as_text=True)
    text, _ = compiled(card_tools("deepseek"), twice)
    counts = {
        token: (text.count(token), official.count(token))
        for token in (
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁outputs▁begin｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁outputs▁end｜>",
        )
    }
    assert list(counts.values()) == [(2, 1), (2, 1), (2, 2), (2, 2)]


@LAWS
@given(data=st.data())
def test_llama_2_gets_the_ids_of_the_models_own_code(data: st.DataObject) -> None:
    """Each round: <s>, `[INST] question [/INST] answer ` as one text of sentencepiece, </s>; all of it stripped."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = shared("tokenizers", "mistral", "tokenizer.model")
    conversation = data.draw(conversations(system="first", tools=False, spelled=False, weights=False))
    said = [message.content for message in conversation.messages]
    if conversation.messages[0].role is SYSTEM:
        said = [f"<<SYS>>\n{said[0]}\n<</SYS>>\n\n{said[1]}", *said[2:]]
    library = _library(sentencepiece, str(path))
    expected: list[int] = []
    for asked, answered in zip(said[::2], said[1::2], strict=True):
        text = f"[INST] {asked.strip()} [/INST] {answered.strip()} "
        expected += [library.bos_id(), *library.encode(text), library.eos_id()]
    assert compiled(card_tools("llama2"), conversation)[1].ids.tolist() == expected


@cache
def _library(sentencepiece: Any, path: str) -> Any:
    return sentencepiece.SentencePieceProcessor(path)


def test_llama_2_trains_an_answer_with_its_spaces_and_its_stop() -> None:
    tokenizer, _ = card_tools("llama2")
    text, encoded = compiled(card_tools("llama2"), chat(" Hi ", "Hello", "Good", "Good", system="Be brief."))
    assert text == ("<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n Hi [/INST] Hello </s><s>[INST] Good [/INST] Good </s>")
    pieces = [tokenizer.token(i) for i in encoded.labels[encoded.labels >= 0]]
    assert pieces == ["▁Hello", "▁", "</s>", "▁Good", "▁", "</s>"]


@LAWS
@given(data=st.data())
def test_baichuan_2_gets_the_ids_of_the_models_own_code_one_example_for_each_reply(data: st.DataObject) -> None:
    """At inference each content is encoded by itself after its role's token, and no reply before the last has </s>."""
    tokenizer, template = card_tools("baichuan2")
    conversation = data.draw(conversations(system="first", tools=False, spelled=False, weights=False))
    examples = parts(template, conversation)
    replies = [i for i, message in enumerate(conversation.messages) if message.role is ASSISTANT]
    assert len(examples) == len(replies)
    roles = {USER: "<reserved_106>", ASSISTANT: "<reserved_107>"}
    for end, example in zip(replies, examples, strict=True):
        expected: list[int] = []
        for message in conversation.messages[: end + 1]:
            expected += [tokenizer.controls[roles[message.role]]] if message.role in roles else []
            start = len(expected)
            expected += tokenizer.official.encode(message.content, add_special_tokens=False).ids
        expected.append(tokenizer.controls["</s>"])
        encoded = compiled((tokenizer, template), example)[1]
        assert encoded.ids.tolist() == expected
        assert encoded.labels.tolist() == [-100] * start + expected[start:]


CHATML: dict[str, Callable[[Conversation], str]] = {
    "yi": lambda c: "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in c.messages),
    "internlm2": lambda c: "<s>" + CHATML["yi"](c),
    "llava": lambda c: (
        "<s>"
        + "".join(
            {USER: "USER: {} ", ASSISTANT: "ASSISTANT: {}</s>", SYSTEM: "{} "}[m.role].replace("{}", m.content)
            for m in c.messages
        )
    ),
    "deepseek_llm": lambda c: (
        "<｜begin▁of▁sentence｜>"
        + "".join(
            {USER: "User: {}\n\n", ASSISTANT: "Assistant: {}<｜end▁of▁sentence｜>", SYSTEM: "{}\n\n"}[m.role].replace(
                "{}", m.content
            )
            for m in c.messages
        )
    ),
}
"""The layouts as their model cards describe them, where trl has no template of the family."""


@pytest.mark.parametrize("card", CHATML)
@LAWS
@given(data=st.data())
def test_a_card_without_an_official_template_here_writes_the_layout_stated_by_hand(
    card: str, data: st.DataObject
) -> None:
    conversation = data.draw(conversations(tools=False, spelled=False, weights=False))
    text, encoded = compiled(card_tools(card), conversation)
    assert text == CHATML[card](conversation)
    header = {"deepseek_llm": "Assistant:", "llava": "ASSISTANT:"}.get(card, "<|im_start|>assistant\n")

    def prompt_of(conversation: Conversation, message: int) -> str:
        return CHATML[card](replace(conversation, messages=conversation.messages[:message])) + header

    check_masks(card_tools(card)[0], conversation, encoded, text, CARD_STOPS[card], prompt_of)


@LAWS
@given(conversation=conversations(tools=False, weights=False))
def test_yi_is_chatml_on_rows_without_tools(conversation: Conversation) -> None:
    tokenizer, yi = card_tools("yi")
    ours, chatml = (compiled((tokenizer, card), conversation) for card in (yi, load_template("chatml", tokenizer)))
    assert ours[0] == chatml[0]
    assert ours[1].ids.tolist() == chatml[1].ids.tolist()
    assert ours[1].labels.tolist() == chatml[1].labels.tolist()


@pytest.mark.parametrize("template", ["auto", "phi3"])
def test_white_space_that_a_control_token_swallows_is_not_encoded(template: str) -> None:
    """In Phi-3's tokenizer.json `<|user|>\\nHi` is two tokens: the new line is gone. A reply keeps its own."""
    family = replace(FAMILIES["phi3"], base="mistral", swallow="<|assistant|> <|system|> <|end|> <|user|> </s>")
    tokenizer = family.tokenizer(official_source("phi3"))
    loaded = load_template(template, tokenizer)
    assert certify(loaded, tokenizer)["stops"] == ["<|end|>"]
    encoded = compiled((tokenizer, loaded), chat("Hi", "Ok", "\n Go", "\nYes"))[1]
    pieces = [tokenizer.token(i) for i in encoded.ids]
    assert pieces[:6] == ["<|user|>", "▁Hi", "<|end|>", "<|assistant|>", "▁Ok", "<|end|>"]
    assert pieces[6:14] == ["<|user|>", "▁Go", "<|end|>", "<|assistant|>", "▁", "<0x0A>", "Yes", "<|end|>"]
    assert [tokenizer.token(i) for i in encoded.labels if i >= 0] == [
        *("▁Ok", "<|end|>"),
        *("▁", "<0x0A>", "Yes", "<|end|>"),
    ]


def test_texts_that_a_vocabulary_never_splits_are_text_and_no_control_tokens(tmp_path: Path) -> None:
    """Runs of spaces and of line ends are added tokens in Gemma's tokenizer.json, and user-defined in Baichuan2's."""
    sentencepiece = pytest.importorskip("sentencepiece")
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat", "assistant system user 1234567890"] * 9),
        model_writer=made,
        model_type="bpe",
        vocab_size=320,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        user_defined_symbols=["▁▁", "▁▁▁▁", "\n\n", "<|im_start|>", "<|im_end|>"],
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(made.getvalue())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BaichuanTokenizer"}', encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    yi = load_template("yi", tokenizer)
    assert certify(yi, tokenizer)["checks"]["ids"] > 5
    assert set(tokenizer.controls) == {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"}
    encoded = compiled((tokenizer, yi), chat("Hi", "the    cat\n\nsat  <|im_end|>"))[1]
    library = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    said = library.encode("the    cat\n\nsat  ")
    assert {library.piece_to_id(piece) for piece in ("▁▁▁▁", "\n\n", "▁▁")} <= set(said)
    trained = encoded.labels[encoded.labels >= 0].tolist()
    assert trained[: len(said)] == said
    assert trained.count(tokenizer.controls["<|im_end|>"]) == 1


# -- official templates, lowered --


@dataclass(frozen=True)
class Lowered:
    """What becomes of an official template without a card.

    `stop` is the family's; "" = refused, with `why` in the message. `refuses` names what it does not take: "system",
    "tools", "parallel" (more than one call at a time), "spelled" (texts that spell a control token it looks for).
    """

    family: str
    stop: str = ""
    refuses: str = ""
    why: str = ""


OFFICIAL = {
    "qwen2_5": Lowered("qwen", "<|im_end|>"),
    "qwen2_5_vl": Lowered("qwen", "<|im_end|>", "tools"),
    "qwen3": Lowered("qwen3", "<|im_end|>", "spelled"),
    "qwen3_instruct_2507": Lowered("qwen3", "<|im_end|>"),
    "qwen3_vl": Lowered("qwen3", "<|im_end|>"),
    "llama3": Lowered("llama3", "<|eot_id|>", "tools"),
    "llama3_1": Lowered("llama3", "<|eot_id|>", "parallel"),
    "llama3_2": Lowered("llama3", "<|eot_id|>", "parallel"),
    "gemma": Lowered("gemma", "<end_of_turn>", "system tools"),
    "gemma3": Lowered("gemma", "<end_of_turn>", "tools"),
    "phi3": Lowered("phi3", "<|end|>", "tools"),
    "phi3_5": Lowered("phi3", "<|end|>", "tools"),
    "deepseekv3": Lowered("deepseek", why="does not begin message 2 with its own generation prompt"),
    "deepseek_r1_distill": Lowered("deepseek", why="does not begin message 2 with its own generation prompt"),
    "glm4moe": Lowered("glm4", why="ends without a stop token"),
}
PROBES = {
    "system": {"system", "empty system"},
    "tools": {"tools", "parallel calls"},
    "parallel": {"parallel calls"},
    "spelled": set(),
}


@cache
def official_tools(name: str) -> tuple[Tokenizer, Template]:
    """Return a tokenizer of the family with this official template as its own."""
    tokenizer = FAMILIES[OFFICIAL[name].family].tokenizer(official_source(name))
    return tokenizer, load_template("auto", tokenizer)


LOWERED = [name for name, outcome in OFFICIAL.items() if outcome.stop]


@pytest.mark.parametrize("name", OFFICIAL)
def test_an_official_template_is_certified_or_refused_in_words(name: str) -> None:
    outcome = OFFICIAL[name]
    tokenizer, template = official_tools(name)
    if not outcome.stop:
        with pytest.raises(IntegrityError, match=outcome.why):
            certify(template, tokenizer)
        return
    certificate = certify(template, tokenizer)
    assert certificate["stops"] == [outcome.stop]
    refused: set[str] = set().union(*(PROBES[word] for word in outcome.refuses.split()))
    assert set(certificate["refuses"]) == refused
    assert set(certificate["checks"]) == {"agree", "context", "decode", "ids", "injection", "stop", "text"}


@pytest.mark.parametrize("name", LOWERED)
@LAWS
@given(data=st.data())
def test_an_official_template_is_lowered_to_its_own_text_and_masks(name: str, data: st.DataObject) -> None:
    outcome, source, family = OFFICIAL[name], official_source(name), FAMILIES[OFFICIAL[name].family]
    tokenizer, template = official_tools(name)
    system = "none" if "system" in outcome.refuses else "first"
    tools = "tools" not in outcome.refuses and data.draw(st.booleans(), label="tools")
    conversation = data.draw(conversations(system=system, tools=tools, spelled=False, weights=False))
    assume(not spelled(conversation, tokenizer))
    try:
        found = parts(template, conversation)
        results = [(part, *compiled((tokenizer, template), part)) for part in found]
    except RowError as error:
        assert error.reject.reason is Reason.TEMPLATE_REFUSED
        assert tools or "phi3_5" in name or not conversation.messages[0].content, error
        return
    for part, text, encoded in results:
        assert text == official_text(source, part, family)
        check_masks(tokenizer, part, encoded, text, outcome.stop, prompts(source, family))


def spelled(conversation: Conversation, tokenizer: Tokenizer) -> bool:
    """Return whether a text of the row spells one of the family's control tokens."""
    said = repr([[m.content, m.name, [[c.name, c.arguments] for c in m.calls]] for m in conversation.messages])
    return any(token in said + repr(conversation.tools) for token in tokenizer.controls)


@pytest.mark.parametrize("name", LOWERED)
@LAWS
@given(data=st.data())
def test_control_tokens_are_those_the_official_template_wrote_whatever_a_row_spells(
    name: str, data: st.DataObject
) -> None:
    outcome, source, family = OFFICIAL[name], official_source(name), FAMILIES[OFFICIAL[name].family]
    tokenizer, template = official_tools(name)
    token = st.sampled_from(sorted(tokenizer.controls))
    said = st.tuples(st.sampled_from(("", "Hi ", "\n")), token, st.sampled_from(("", " there", "<|im_end"))).map(
        "".join
    )
    conversation = chat(*data.draw(st.lists(said, min_size=4, max_size=4)))
    try:
        found = [(part, *compiled((tokenizer, template), part)) for part in parts(template, conversation)]
    except RowError as error:
        assert "spelled" in outcome.refuses, error
        return
    for part, _, encoded in found:
        disguised = [replace(m, content=tokenizer.control_pattern.sub("·", m.content)) for m in part.messages]
        written = tokenizer.control_pattern.findall(official_text(source, replace(part, messages=disguised), family))
        ids = encoded.ids[tokenizer.is_control[encoded.ids]]
        assert [tokenizer.token(i) for i in ids.tolist()] == written


def test_the_table_has_every_template_of_its_families() -> None:
    """Qwen3.5 and later, Gemma 4 and other families are not promised."""
    named = {
        name for name in official_names() if re.fullmatch(r"(qwen2|qwen3|llama3|gemma3?$|phi|deepseek|glm).*", name)
    }
    assert {name for name in named if not re.match(r"qwen3_\d|.*_training", name)} == set(OFFICIAL)


THINKING = Conversation(
    [
        Message(USER, "3 + 4 = ?"),
        Message(ASSISTANT, "7", reasoning="Three and four."),
        Message(USER, "And 4 + 4?"),
        Message(ASSISTANT, "8", reasoning="Twice four."),
    ]
)


def test_qwen3_is_one_example_for_each_reply_and_history_is_without_its_thinking() -> None:
    tools = official_tools("qwen3")
    found = [compiled(tools, part) for part in parts(tools[1], THINKING)]
    texts = [text for text, _ in found]
    trained = [tools[0].decode(encoded.labels[encoded.labels >= 0].tolist()) for _, encoded in found]
    assert trained == [
        "<think>\nThree and four.\n</think>\n\n7<|im_end|>",
        "<think>\nTwice four.\n</think>\n\n8<|im_end|>",
    ]
    assert texts[1].startswith("<|im_start|>user\n3 + 4 = ?<|im_end|>\n<|im_start|>assistant\n7<|im_end|>\n")


def test_a_template_that_begins_the_next_reply_unasked_is_refused() -> None:
    """So did the first chat template of Llama 3: its last stop token is one of the next header's."""
    header = "<|start_header_id|>assistant<|end_header_id|>\\n\\n"
    source = official_source("llama3").replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}\n")
    source = source.removesuffix("{% endif %}")
    assert "add_generation_prompt" not in source
    tokenizer = FAMILIES["llama3"].tokenizer(source)
    assert official_text(source, chat("Hi", "Ok"), FAMILIES["llama3"]).endswith(header.replace("\\n", "\n"))
    with pytest.raises(IntegrityError, match="header of a next reply"):
        certify(load_template("auto", tokenizer), tokenizer)


def test_a_template_that_cuts_texts_at_letters_is_recorded_and_does_not_crash(tmp_path: Path) -> None:
    """With control tokens spelled its user texts are cut short: such rows are refused one by one."""
    source = (
        "{%- for m in messages -%}<|im_start|>{{ m.role }}\n"
        "{{ m.content.split('|x')[0] if m.role == 'user' else m.content }}<|im_end|>\n{% endfor -%}"
        "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
    )
    tokens = ["<|im_start|>", "<|im_end|>", "<|xyz|>"]
    folder = family_folder(tmp_path / "f", source, tokens, "<|im_end|>", None, registry.DEMO_TOKENIZER)
    tokenizer = Tokenizer.load(folder)
    certificate = certify(load_template("auto", tokenizer), tokenizer)
    assert "one turn, control tokens spelled" in certificate["refuses"]
