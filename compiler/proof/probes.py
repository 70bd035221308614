"""The probes: conversations that a template is tried with before any row is compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compiler.conversation import Call, Conversation, Media, MediaFacts, Message, Role
from compiler.templates.load import Template

SPELLED = 40
"""How many control tokens a probe spells in its texts: some vocabularies have hundreds that nobody uses."""
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city, 城市天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@dataclass(frozen=True)
class Probe:
    """A conversation to try. `plain`: no reply begins with white space, so no token merges across into it."""

    name: str
    conversation: Conversation
    plain: bool = True


def probes() -> list[Probe]:
    """The probes of every template. Their texts spell no control tokens."""
    call = Call("get_weather", {"city": "北京", "days": 2, "units": None})
    called = Message(Role.ASSISTANT, "", [call])
    calls = [Call("get_weather", {"city": "Paris"}), Call("get_weather", {"city": "Rome"})]
    called_twice = Message(Role.ASSISTANT, "Let me look.", calls)
    result = Message(Role.TOOL, '{"t": 21.5}', name="get_weather")
    with_tools = [*_talk("Weather?"), called, result, Message(Role.ASSISTANT, "Sunny.")]
    parallel = [*_talk("Weather?"), called_twice, result, result, Message(Role.ASSISTANT, "Both warm.")]
    many = _talk("问题 one?", "回答 1.", "And two?\n\n- a\n- b", "Answer **2**.", "3 + 4 = ?", "7")
    greeting = _talk("Hi!", "Hello.")
    unicode = _talk("naïve café 你好 👩‍👩‍👧 ½ {x} <b>&amp;</b>", "当然 🎉 “quoted” \\n `code`")
    return [
        Probe("one turn", Conversation(_talk("Hello, who wrote Faust?", "Goethe did, over sixty years."))),
        Probe("many turns", Conversation(many)),
        Probe("system", Conversation([Message(Role.SYSTEM, "You answer in one line."), *greeting])),
        Probe("empty system", Conversation([Message(Role.SYSTEM, ""), *greeting])),
        Probe("unicode", Conversation(unicode)),
        Probe("code", Conversation(_talk("Write a loop.", "```python\nfor i in range(3):\n\tprint(i)\n```"))),
        Probe("inner space", Conversation(_talk("a  b\t\tc\n\n\nd", "e   f\r\ng"))),
        Probe("white space", Conversation(_talk("  padded \n", "\n\nstarts on a new line\n")), plain=False),
        Probe("empty reply", Conversation(_talk("Say nothing.", ""))),
        Probe("tools", Conversation(with_tools, [_TOOL])),
        Probe("parallel calls", Conversation(parallel, [_TOOL])),
    ]


def probes_of(template: Template) -> list[Probe]:
    """The probes of this template: the common ones, and those for what not every template takes."""
    found = probes()
    if template.program.rendering.thinks:
        ask, reply, ask_again, reply_again = _talk("3 + 4 = ?", "It is 7.", "And 4 + 4?", "8.")
        reply.reasoning = reply_again.reasoning = "3 + 4, so 7."
        found.append(Probe("thinking", Conversation([ask, reply])))
        found.append(Probe("thinking, twice", Conversation([ask, reply, ask_again, reply_again])))
    vision = template.program.rendering.vision
    if vision is not None:
        facts = MediaFacts("0" * 64, 640, 480)
        image = Media("image", "probe.png", at=0, facts=facts, num_tokens=vision.image_tokens(facts))
        asked = Message(Role.USER, "Who is this?", media=[image])
        found.append(Probe("image", Conversation([asked, Message(Role.ASSISTANT, "Goethe.")])))
    return found


def with_controls_spelled(probe: Probe, template: Template, controls: Sequence[str]) -> Conversation:
    """The probe with control tokens spelled at the end of every content that is not empty.

    A reply does not spell those that the template looks for (`</think>`): rows that do are refused, not compiled.
    """
    rendering = template.program.rendering
    source = rendering.template.source + rendering.tool_template.source
    spelled = sorted(controls, key=lambda text: text not in source)[:SPELLED]  # those that the template writes first
    in_replies = [text for text in spelled if not any(found in text for found in rendering.looked_for)]
    messages = [
        replace(message, content=f"{message.content} {' '.join(texts)}.") if message.content else message
        for message in probe.conversation.messages
        for texts in [in_replies if message.role is Role.ASSISTANT else spelled]
    ]
    return replace(probe.conversation, messages=messages)


def _talk(*texts: str) -> list[Message]:
    """Messages with these texts, by the user and the assistant in turn."""
    return [Message(Role.ASSISTANT if i % 2 else Role.USER, text) for i, text in enumerate(texts)]
