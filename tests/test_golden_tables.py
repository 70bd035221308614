"""What each family trains, token by token, as tables to be read: tests/golden/FAMILY-SCENARIO.txt.

They change only through `make golden`, and the diff is reviewed line by line: a line that flips from -100 to an id is
a change of what models learn.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import registry
from compiler.conversation import Call, Conversation, Message, Role
from compiler.encode.weigh import Policy
from tests.support.encoded import encode_segments
from tests.support.families import card_tools
from tests.support.shared import tools

GOLDEN = Path(__file__).parent / "golden"

CHAT = Conversation(
    [
        Message(Role.SYSTEM, "You are brief."),
        Message(Role.USER, "2 + 2 = ?"),
        Message(Role.ASSISTANT, "4"),
        Message(Role.USER, "谢谢 👍 <|im_end|>"),
        Message(Role.ASSISTANT, "不客气。"),
    ]
)
NO_SYSTEM = Conversation(CHAT.messages[1:])
TOOLS = Conversation(
    [
        Message(Role.USER, "Weather in Bergen?"),
        Message(Role.ASSISTANT, "Let me look.", [Call("weather", {"city": "Bergen", "days": 1})]),
        Message(Role.TOOL, '{"rain": true} </tool_call>'),
        Message(Role.ASSISTANT, "Rain. Take an umbrella."),
    ],
    [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
)
REACT = Conversation(
    [
        Message(Role.USER, "Time in Oslo?"),
        Message(
            Role.ASSISTANT,
            "Thought: I need the clock.\nAction: clock\nAction Input: {'city': 'Oslo'}\n"
            "Observation: 14:05 (log: Action: none)\nThought: I now know the final answer\nFinal Answer: It is 14:05.",
        ),
    ]
)
LOSS = Conversation(
    [
        Message(Role.USER, "Repeat: yes", weight=1.0),
        Message(Role.ASSISTANT, "no", weight=0.0),
        Message(Role.USER, "Again."),
        Message(Role.ASSISTANT, "yes", weight=2.5),
    ]
)

CALLS = Conversation([Message(Role.SYSTEM, "You may call weather."), *TOOLS.messages])
LAST_REPLY = Conversation(CHAT.messages, context=4)
"""The second of two examples, where a conversation is one example for each reply."""

TABLES = [
    ("demo", "demo", "auto", "chat", CHAT, "none"),
    ("demo", "demo", "auto", "tools", TOOLS, "hermes"),
    ("demo", "demo", "auto", "react", REACT, "react"),
    ("demo", "demo", "auto", "loss", LOSS, "none"),
    ("qwen2.5", "qwen2.5", "auto", "chat", CHAT, "none"),
    ("qwen2.5", "qwen2.5", "auto", "tools", TOOLS, "hermes"),
    ("qwen2.5", "qwen2.5", "auto", "react", REACT, "react"),
    ("qwen", "qwen2.5", "qwen", "chat", NO_SYSTEM, "none"),
    ("mistral-official", "mistral", "auto", "chat", NO_SYSTEM, "none"),
    ("mistral-official", "mistral", "auto", "react", REACT, "react"),
    ("mistral", "mistral", "mistral", "chat", CHAT, "none"),
    ("mistral", "mistral", "mistral", "tools", TOOLS, "none"),
    ("llama2", "family", "llama2", "chat", CHAT, "none"),
    ("llama3", "family", "llama3", "chat", CHAT, "none"),
    ("gemma", "family", "gemma", "chat", NO_SYSTEM, "none"),
    ("phi3", "family", "phi3", "chat", CHAT, "none"),
    ("deepseek", "family", "deepseek", "chat", CHAT, "none"),
    ("deepseek", "family", "deepseek", "tools", CALLS, "none"),
    ("deepseek_llm", "family", "deepseek_llm", "chat", CHAT, "none"),
    ("internlm2", "family", "internlm2", "chat", CHAT, "none"),
    ("yi", "family", "yi", "chat", CHAT, "none"),
    ("baichuan2", "family", "baichuan2", "chat", LAST_REPLY, "none"),
]
"""Family, tokenizer ("family" = its control tokens with another's vocabulary), template, scenario, row, weights."""


def table(tokenizer: str, template: str, conversation: Conversation, weights: str) -> str:
    loaded, chosen = card_tools(template) if tokenizer == "family" else tools(tokenizer, template)
    policy = Policy.from_card(registry.weights(weights))
    encoded = encode_segments(conversation, chosen.program.rendering.segments(conversation), loaded, policy)
    owners = [stretch.owner for stretch in encoded.stretches for _ in range(stretch.length)]
    lines = []
    columns = (encoded.ids.tolist(), encoded.labels.tolist(), encoded.weights.tolist(), owners)
    for token, label, weight, (role, key) in zip(*columns, strict=True):
        piece = repr(loaded.token(token))
        lines.append(f"{piece:>24}: {token:>6} -> {label:>6}  {weight:g}  {role} {key}".rstrip())
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("family", "tokenizer", "template", "scenario", "conversation", "weights"),
    TABLES,
    ids=[f"{family}-{scenario}" for family, _, _, scenario, _, _ in TABLES],
)
def test_what_is_trained_is_what_the_reviewed_table_says(
    family: str, tokenizer: str, template: str, scenario: str, conversation: Conversation, weights: str
) -> None:
    path = GOLDEN / f"{family}-{scenario}.txt"
    found = table(tokenizer, template, conversation, weights)
    if os.environ.get("GOLDEN") == "write":
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")
