"""Random conversations for the laws: what real rows hold, and what hostile rows could hold.

Nothing here knows the compiler; a strategy says what a row may be, and `spells` what the row spells of a tokenizer's
control tokens. Texts are made of pieces, not of single characters: a bug in masks lives at the seams.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

from hypothesis import strategies as st

from compiler.conversation import Call, Conversation, Message, Role

CONTROLS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "<|vision_start|>", "<|fim_prefix|>",
    "<s>", "</s>", "<unk>",
)  # fmt: skip
"""Texts that are control tokens of at least one tokenizer of the tests."""

FRAGMENTS = (
    "<|im_",
    "end|>",
    "<|",
    "|>",
    "<",
    ">",
    "</",
    "/",
    "tool_call>",
    "s>",
    "</s",
    "[INST]",
    "[/INST]",
    "start|>",
)
"""What could become a control token (or look like a template's own literal) together with its neighbours."""

SPACES = ("\n", "\n\n", " ", "  ", "\t", "\r\n", "\r", "\u3000", "\u00a0", "\u2028", "\x0b")

MARKS = ("\U000f0000", "\U000f0001", "\U000ffffd", "\U00100000", "\U00100001", "\U00100003", "\U0010fffd", "\ue000")
"""Private-use characters. The compiler uses planes 15 and 16 as marks, and rows may hold them all the same."""

WORDS = (
    "Hello", " world", "the", "don't", "x", "A", "1", "42", " 3.14", ".", ",", "?", ")", "]", "}", "{", "{{ x }}",
    "{% if %}", "\"", "'", "\\", "\\n", "\\u0041", "&amp;", "<b>", "`", "```python\n", "# ", "- ", "|", ":", "\0",
    "你好", "，", "世界。", "ß", "é", "e\u0301", "\u0301", "a\u0323\u0307", "\u0338", "\uac00", "\u1100\u1161", "ﬁ",
    "\u212b", "\u0958", "𝒳", "𐍈", "🎉", "👩‍👩‍👧", "👍🏽", "🇩🇪", "\u200b", "\u200d", "\ufeff", "שלום", "مرحبا", "हिन्दी",
    "</think>", "<think>", "<tool_response>", "</tool_response>", "<tools>", "assistant\n", "user", "system\n",
    "Observation:", "Action:", "Final Answer:", "None", "null", "%", "[TOOL_CALLS]",
)  # fmt: skip

# Egyptian hieroglyphs are left to the tests, which put them where a row spells a control token.
_ANY = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters=[chr(i) for i in range(0x13000, 0x13040)] + ["▁"]),
    max_size=8,
)
_KINDS = ((WORDS, 6), (SPACES, 3), (FRAGMENTS, 3), (MARKS, 1), (CONTROLS, 2))
_PIECES = st.sampled_from([piece for pieces, times in _KINDS for piece in pieces * times])

_SPELLED = re.compile("|".join(map(re.escape, sorted(CONTROLS, key=len, reverse=True))))


def defused(text: str) -> str:
    """`text` without the text of any control token, and without one that removing another would leave."""
    while _SPELLED.search(text):
        text = _SPELLED.sub("·", text)
    return text


@cache  # Hypothesis validates every new strategy, which is half the time of a draw
def texts(*, spelled: bool = True, max_pieces: int = 7) -> st.SearchStrategy[str]:
    """Contents of any kind, the empty one included; with `spelled`, control tokens among them."""
    joined = st.lists(_PIECES, max_size=max_pieces).map("".join)
    found = st.one_of(joined, joined, st.sampled_from(("", "Hi.", "\nanswer\n", " padded ", "\r\n")), _ANY)
    return found if spelled else found.map(defused)


@cache
def values(*, spelled: bool = True) -> st.SearchStrategy[Any]:
    """JSON values, nested, with nulls, floats, big integers and keys of any kind."""
    some = texts(spelled=spelled, max_pieces=3)
    leaves: st.SearchStrategy[Any] = st.one_of(
        some,
        st.sampled_from((None, True, False, 0, -1, 2**70, 0.1, -0.0, 1e16, 1.5e-7, [], {}, "", "a\nb", "<", "é")),
    )
    return st.recursive(
        leaves,
        lambda inside: st.one_of(st.lists(inside, max_size=2), st.dictionaries(some, inside, max_size=2)),
        max_leaves=4,
    )


@cache
def names(*, spelled: bool = True) -> st.SearchStrategy[str]:
    """Names of tools; half of them plain. Never empty: no source format lets such a call through."""
    plain = st.sampled_from(("search", "get_weather", "a", "ns.tool-2", "x/y:z"))
    odd = texts(spelled=spelled, max_pieces=2).filter(bool)
    return st.one_of(plain, plain, odd)


@cache
def calls(*, spelled: bool = True) -> st.SearchStrategy[Call]:
    """Tool calls, with and without ids."""
    arguments = st.dictionaries(texts(spelled=spelled, max_pieces=2), values(spelled=spelled), max_size=2)
    return st.builds(Call, names(spelled=spelled), arguments, st.none() | st.sampled_from(("call_0", "c1")))


@cache
def tool_lists(*, spelled: bool = True) -> st.SearchStrategy[list[Any]]:
    """Lists of tools in OpenAI's layout, the empty list included."""
    function = st.fixed_dictionaries(
        {"name": names(spelled=spelled), "description": texts(spelled=spelled, max_pieces=3)},
        optional={"parameters": values(spelled=spelled)},
    )
    return st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": function}), max_size=2)


@cache
def _some_calls(spelled: bool) -> st.SearchStrategy[list[Call]]:
    return st.lists(calls(spelled=spelled), min_size=1, max_size=2)


_ASKED = {
    Role.ASSISTANT: st.sampled_from((None, None, None, None, 0.0, 2.5, 1.0)),
    Role.USER: st.sampled_from((None, None, None, None, 0.0, 1.0)),
}
_ASKED_RARELY = st.sampled_from((None, None, None, None, None, 1.0, 0.5))
_TURNS = st.sampled_from((1, 1, 2, 2, 3, 4, 5))
_ONE_IN_FOUR, _ONE_IN_EIGHT = (st.sampled_from((True, *[False] * n)) for n in (3, 7))


@st.composite
def conversations(
    draw: Callable[[st.SearchStrategy[Any]], Any],
    *,
    system: str = "anywhere",
    tools: bool = True,
    spelled: bool = True,
    weights: bool = True,
    replies: st.SearchStrategy[str] | None = None,
) -> Conversation:
    """Conversations in an order that every source format accepts.

    `system`: "none", "first" or "anywhere". `tools`: lists of tools, calls and results may occur. `weights`: messages
    may ask for a weight of their own. `replies`: what replies say, if not any text.
    """
    text = texts(spelled=spelled)
    said = text if replies is None else replies
    messages: list[Message] = []

    def add(role: Role, content: str, **more: Any) -> None:
        messages.append(
            Message(role, content, weight=draw(_ASKED.get(role, _ASKED_RARELY)) if weights else None, **more)
        )

    if system != "none" and draw(st.booleans()):
        add(Role.SYSTEM, draw(text))
    for turn in range(draw(_TURNS)):
        if system == "anywhere" and turn and draw(_ONE_IN_EIGHT):
            add(Role.SYSTEM, draw(text))
        add(Role.USER, draw(text))
        while tools and draw(_ONE_IN_FOUR) and len(messages) < 14:
            made = draw(_some_calls(spelled))
            add(Role.ASSISTANT, draw(said) if draw(st.booleans()) else "", calls=made)
            if turn and draw(_ONE_IN_EIGHT):
                break  # no result: the next user message follows the call
            for call in made:
                add(Role.TOOL, draw(text), name=call.name if draw(st.booleans()) else None, call_id=call.id)
        if messages[-1].role is not Role.ASSISTANT:
            add(Role.ASSISTANT, draw(said))
    return Conversation(messages, draw(tool_lists(spelled=spelled)) if tools and draw(st.booleans()) else None)


_KEYWORDS = ("Action:", "Action Input:", "Thought:", "Final Answer:", "Observation:")


@cache
def react_texts() -> st.SearchStrategy[str]:
    """Replies in ReAct's layout, with all that blurs it: keywords in mid-line, side by side, in observations, empty."""
    keyword = st.sampled_from(_KEYWORDS)
    filler = st.sampled_from(
        ("", " ", " I should search.", ' {"q": "北京"}', " see Action: not one", " Observation: quoted", "\n\n",
         "\nmore text", " done\n ", ":", "\t", "🎉", "e\u0301", " <tool_call>x</tool_call>", "\n Thought: indented",
         "Observation", " A\x0bAction: b", " \u2028Thought: c", " a\rAction: d")
    )  # fmt: skip
    end = st.sampled_from(("\n", "\n", "\n", "\r\n", "", "\n\n"))
    line = st.tuples(st.one_of(keyword, keyword, st.just("")), filler, end).map("".join)
    return st.lists(line, max_size=7).map("".join)
