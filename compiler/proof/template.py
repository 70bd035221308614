"""The certificate: a template's laws, checked with this tokenizer on probe conversations before any row is compiled.

| law | says |
|---|---|
| text | our text equals the official rendering |
| agree | the two derivations (by rendering, by skeleton) give the same segments |
| ids | our ids equal the official encoding of the whole text, where no text could merge across a generation boundary |
| context | what precedes a reply is encoded as the generation prompt would be at inference |
| stop | every trained reply ends with a trained stop token |
| injection | control tokens spelled in a text stay text: the control tokens out are those the template wrote |
| decode | the ids of each run decode to its text |

A law that fails stops the compile with the two token strings side by side. What a template refuses (a system message,
tools) is not a failure; it is recorded.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from compiler.conversation import Call, Conversation, Media, MediaFacts, Message, Role, Segment
from compiler.encode.shapes import Rendered
from compiler.encode.tokens import Encoded, encode
from compiler.encode.weigh import EVEN
from compiler.templates.cut import merge
from compiler.templates.guard import CUT
from compiler.templates.history import by_reply
from compiler.templates.load import Template
from compiler.tokenizer.tokenizer import Tokenizer
from schemas.errors import IntegrityError, Reason, RowError

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
    """A conversation to try. `plain`: no reply begins with white space, so no merge can cross into it."""

    name: str
    conversation: Conversation
    plain: bool = True


def certify(template: Template, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the certificate: checks made by law, what the template refuses, merges across generation boundaries."""
    checks: Counter[str] = Counter()
    refused: dict[str, str] = {}
    crossing = 0
    stops: set[str] = set()
    split = 0
    for probe in [*probes(), *_probes_of(template)]:
        try:
            found, by_itself = _stable(probe, template)
        except RowError as error:
            refused[probe.name] = str(error)
            continue
        split += by_itself
        for one, rendered in found:
            crossing += _check(one, rendered, template, tokenizer, checks)
            stops |= {s.text for s, after in zip(rendered, [*rendered[1:], None], strict=True) if _is_stop(s, after)}
            if (spelling := _spelling_probe(one, template, tokenizer)) is not None:
                try:
                    _check_injection(one, spelling, template, tokenizer, checks)
                except RowError as error:
                    refused[f"{one.name}, control tokens spelled"] = str(error)
    if not checks:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise IntegrityError(f"template {template.name}", f"it refuses every conversation ({reasons})")
    return {
        "checks": dict(sorted(checks.items())),
        "refuses": refused,
        "stops": sorted(stops),
        "merges_across_generation_boundary": crossing,
        "one_example_per_reply": split,
    }


def _stable(probe: Probe, template: Template) -> tuple[list[tuple[Probe, list[Segment]]], bool]:
    """Return the probe with its rendering, or one for each reply (then True) where the template is not stable."""
    rendering = template.program.rendering
    try:
        return [(probe, rendering.segments(probe.conversation))], False
    except RowError as error:
        if error.reject.reason is not Reason.TEMPLATE_UNSTABLE:
            raise
    parts = [replace(probe, conversation=part) for part in by_reply(probe.conversation)]
    return [(part, rendering.segments(part.conversation)) for part in parts], True


def _probes_of(template: Template) -> list[Probe]:
    """Return the probes for what not every template takes: thinking apart from the reply, images."""
    rendering, found = template.program.rendering, []
    user, reply = Role.USER, Role.ASSISTANT
    if rendering.thinks:
        thought = Message(reply, "It is 7.", reasoning="3 + 4, so 7.")
        asked = [Message(user, "3 + 4 = ?"), thought, Message(user, "And 4 + 4?"), replace(thought, content="8.")]
        found = [Probe("thinking", Conversation(asked[:2])), Probe("thinking, twice", Conversation(asked))]
    if rendering.vision is not None:
        facts = MediaFacts("0" * 64, 640, 480)
        tokens = rendering.vision.image_tokens(facts)
        image = Media("image", "probe.png", at=0, facts=facts, num_tokens=tokens)
        asked = [Message(user, "Who is this?", media=[image]), Message(reply, "Goethe.")]
        found.append(Probe("image", Conversation(asked)))
    return found


def probes() -> list[Probe]:
    """Return the conversations every template is tried with; texts hold no control tokens."""
    user, system = Role.USER, Role.SYSTEM

    def talk(*texts: str) -> list[Message]:
        roles = (Role.USER, Role.ASSISTANT)
        return [Message(roles[i % 2], text) for i, text in enumerate(texts)]

    call = Message(Role.ASSISTANT, "", [Call("get_weather", {"city": "北京", "days": 2, "units": None})])
    both = Message(
        Role.ASSISTANT,
        "Let me look.",
        [Call("get_weather", {"city": "Paris"}), Call("get_weather", {"city": "Rome"})],
    )
    result = Message(Role.TOOL, '{"t": 21.5}', name="get_weather")
    many = ["问题 one?", "回答 1.", "And two?\n\n- a\n- b", "Answer **2**.", "3 + 4 = ?", "7"]
    return [
        Probe("one turn", Conversation(talk("Hello, who wrote Faust?", "Goethe did, over sixty years."))),
        Probe("many turns", Conversation(talk(*many))),
        Probe("system", Conversation([Message(system, "You answer in one line."), *talk("Hi!", "Hello.")])),
        Probe("empty system", Conversation([Message(system, ""), *talk("Hi!", "Hello.")])),
        Probe(
            "unicode",
            Conversation(talk("naïve café 你好 👩‍👩‍👧 ½ {x} <b>&amp;</b>", "当然 🎉 “quoted” \\n `code`")),
        ),
        Probe("code", Conversation(talk("Write a loop.", "```python\nfor i in range(3):\n\tprint(i)\n```"))),
        Probe("inner space", Conversation(talk("a  b\t\tc\n\n\nd", "e   f\r\ng"))),
        Probe("white space", Conversation(talk("  padded \n", "\n\nstarts on a new line\n")), plain=False),
        Probe("empty reply", Conversation(talk("Say nothing.", ""))),
        Probe(
            "tools",
            Conversation([Message(user, "Weather?"), call, result, Message(Role.ASSISTANT, "Sunny.")], [_TOOL]),
        ),
        Probe(
            "parallel calls",
            Conversation(
                [Message(user, "Weather?"), both, result, result, Message(Role.ASSISTANT, "Both warm.")],
                [_TOOL],
            ),
        ),
    ]


def _is_stop(segment: Segment, after: Segment | None) -> bool:
    return segment.generated and (after is None or not after.generated or after.message != segment.message)


def _check(
    probe: Probe, rendered: list[Segment], template: Template, tokenizer: Tokenizer, checks: Counter[str]
) -> int:
    """Check every law but injection on one probe; return the merges that cross a generation boundary."""
    conversation, rendering = probe.conversation, template.program.rendering
    filled = template.program.joined(conversation)
    must("agree", probe.name, _texts(filled), _texts(rendered), checks)
    official_text = rendering.published(conversation, len(conversation.messages))
    must("text", probe.name, [segment.text for segment in merge(rendered)], [official_text.replace(CUT, "")], checks)

    row = Rendered.of(conversation, rendered, tokenizer, EVEN)
    encoded = encode([row], tokenizer)[0]
    _check_stops(probe, encoded, template, tokenizer, checks)
    _check_decode(probe, row, tokenizer, checks)
    ours = encoded.ids.tolist()
    official = _official_ids(rendered, tokenizer)
    if not probe.plain:
        return int(ours != official)
    # Qwen3.5's prompt ends with a new line and its replies begin with one: such a merge is counted (decision 23).
    pairs = zip([None, *rendered], rendered, strict=False)
    crosses = any(s.boundary and not s.fresh and p and p.control < 0 and s.text[:1].isspace() for p, s in pairs)
    if not crosses:
        must("ids", probe.name, _tokens(ours, tokenizer), _tokens(official, tokenizer), checks)
    last = enumerate(conversation.messages[conversation.context :], start=conversation.context)
    replies = [i for i, message in last if message.role is Role.ASSISTANT]
    first = next((i for i, weight in enumerate(encoded.weights) if weight > 0), 0)
    prompt = rendering.published(conversation, replies[0], generation_prompt=True)
    at_inference = _official(_with_placeholders(prompt, conversation, template).split(CUT), tokenizer)
    must("context", probe.name, _tokens(ours[:first], tokenizer), _tokens(at_inference, tokenizer), checks)
    return int(crosses and ours != official)


def _with_placeholders(text: str, conversation: Conversation, template: Template) -> str:
    """Return a rendered text with as many placeholders as the image has."""
    rendering = template.program.rendering
    for media in conversation.media():
        _, (pad, count), _ = rendering.layout(media.kind, media.num_tokens)
        text = text.replace(rendering.names[pad], rendering.names[pad] * count)
    return text


def _official_ids(segments: list[Segment], tokenizer: Tokenizer) -> list[int]:
    """Return what the published tokenizer makes of the text: whole, but for what a card says is encoded apart."""
    pieces = [""]
    for segment in segments:
        if segment.boundary and segment.fresh:
            pieces.append("")
        pieces[-1] += segment.text * segment.repeat
    return _official(pieces, tokenizer)


def _official(pieces: list[str], tokenizer: Tokenizer) -> list[int]:
    return [i for piece in pieces for i in tokenizer.official.encode(piece, add_special_tokens=False).ids]


def _check_stops(
    probe: Probe, encoded: Encoded, template: Template, tokenizer: Tokenizer, checks: Counter[str]
) -> None:
    """Check that the last token of every reply is a stop, and trained."""
    end = 0
    for stretch in encoded.stretches:
        end += stretch.length
        if stretch.generated:
            last = int(encoded.ids[end - 1])
            trained = last in template.program.rendering.stops and encoded.weights[end - 1] > 0
            found = tokenizer.token(last)
            must("stop", probe.name, [found], [found] if trained else ["a trained stop token"], checks)


def _check_decode(probe: Probe, row: Rendered, tokenizer: Tokenizer, checks: Counter[str]) -> None:
    """Check that each run's ids decode to its text, up to the normalization the tokenizer itself declares."""
    anchor = next(iter(tokenizer.controls.values()), None)
    prefix = [] if anchor is None else [anchor]
    skip = len(tokenizer.decode(prefix))
    all_fresh = row.shape.fresh[row.shape.control < 0].tolist()
    for text, fresh in zip(row.texts, all_fresh, strict=True):
        ids, _ = tokenizer.encode([text], fresh=fresh)
        decoded = tokenizer.decode([*prefix, *ids.tolist()])[skip:]
        if fresh and tokenizer.has_prefix and decoded.startswith(" "):
            decoded = decoded[1:]
        must("decode", probe.name, [tokenizer.normalize(decoded)], [tokenizer.normalize(text)], checks)


def _spelling_probe(probe: Probe, template: Template, tokenizer: Tokenizer) -> Conversation | None:
    """Return the probe with control tokens spelled in every content that is not empty.

    A reply does not spell those that the template looks for (`</think>`): rows that do are refused, not compiled.
    """
    if not probe.plain or not tokenizer.controls:
        return None
    rendering = template.program.rendering
    looked_for, source = rendering.looked_for, rendering.template.source + rendering.tool_template.source
    # Those that the template writes first: some vocabularies have hundreds that nobody uses.
    spelled = sorted(tokenizer.controls, key=lambda text: text not in source)[:40]
    in_replies = [text for text in spelled if not any(found in text for found in looked_for)]
    messages = [
        replace(m, content=f"{m.content} {' '.join(in_replies if m.role is Role.ASSISTANT else spelled)}.")
        if m.content
        else m
        for m in probe.conversation.messages
    ]
    return replace(probe.conversation, messages=messages)


def _check_injection(
    probe: Probe, spelling: Conversation, template: Template, tokenizer: Tokenizer, checks: Counter[str]
) -> None:
    if template.program.rendering.special_text == "allow":
        return
    wanted, found = Counter[str](), Counter[str]()
    for conversation, count in ((probe.conversation, wanted), (spelling, found)):
        segments = template.program.rendering.segments(conversation)
        ids = encode([Rendered.of(conversation, segments, tokenizer, EVEN)], tokenizer)[0].ids
        count.update(tokenizer.token(i) for i in ids[tokenizer.is_control[ids]].tolist())
    must("injection", probe.name, sorted(found.elements()), sorted(wanted.elements()), checks)


def _texts(segments: list[Segment]) -> list[str]:
    return [f"{segment.message}:{segment.generated}:{segment.text}" for segment in segments]


def _tokens(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token(i) for i in ids]


def must(law: str, probe: str, ours: list[str], official: list[str], checks: Counter[str]) -> None:
    """Count a check; raise with both sides where they first differ."""
    checks[law] += 1
    if law == "text":
        ours, official = ["".join(ours)], ["".join(official)]
    if ours == official:
        return
    at = next(
        (i for i, (a, b) in enumerate(zip(ours, official, strict=False)) if a != b),
        min(len(ours), len(official)),
    )
    low = max(0, at - 6)
    raise IntegrityError(
        "chat template", f"law {law!r} fails on the probe {probe!r}",
        f"ours:     {ours[low : at + 12]!r}\n  official: {official[low : at + 12]!r}\n"
        "  Nothing was compiled. Use a template card (--template NAME), or report the tokenizer.",
    )  # fmt: skip
