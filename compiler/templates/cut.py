"""A rendered conversation cut into segments: at generation prompts, stops and control tokens, and around contents."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import takewhile
from typing import Any

from compiler.conversation import Conversation, Role, Segment
from compiler.templates.guard import CUT, MAX_SLOTS, SLOT_PATTERN, slot, slot_number
from compiler.templates.markup import Markup
from schemas.errors import IntegrityError, Reason, RowError


def cut(markup: Markup, messages: list[dict[str, Any]], tools: list[Any] | None, source: Conversation) -> list[Segment]:
    """The rendered text cut at generation prompts, stops and control tokens."""
    full = markup.render(messages, tools, generation_prompt=False)
    segments: list[Segment] = []
    done = 0
    for i, message in enumerate(source.messages):
        if message.role is not Role.ASSISTANT or source.is_history(i):
            continue
        prompt = markup.render(messages[:i], tools, generation_prompt=True)
        so_far = messages[: i + 1]
        rendered = full if len(so_far) == len(messages) else markup.render(so_far, tools, generation_prompt=False)
        reply_end = _reply_end(markup, full, _without_closing(markup, rendered, so_far, tools, prompt))
        if not reply_end.startswith(prompt):
            raise RowError(
                Reason.TEMPLATE_UNSTABLE,
                f"the chat template does not begin message {i + 1} with its own generation prompt",
            )
        if not (full.startswith(reply_end) and len(prompt) >= done):
            raise RowError(
                Reason.TEMPLATE_UNSTABLE,
                f"the chat template renders the turns before message {i + 1} differently once later ones follow",
            )
        segments += markup.split(full[done : len(prompt)])
        reply = markup.split(full[len(prompt) : len(reply_end)])
        stop = max((j for j, part in enumerate(reply) if part.control in markup.stops), default=None)
        if stop is None:
            raise IntegrityError(
                "chat template", f"the reply of message {i + 1} ends without a stop token",
                "A model trained on it would never stop. Use a template card that declares the stop.",
            )  # fmt: skip
        reply[0].boundary, reply[0].fresh = True, reply[0].fresh or markup.reply_fresh
        for part in reply[: stop + 1]:
            part.generated, part.message = True, i
        segments += reply
        done = len(reply_end)
    return segments + markup.split(full[done:])


def _without_closing(
    markup: Markup, rendered: str, messages: list[dict[str, Any]], tools: list[Any] | None, prompt: str
) -> str:
    """Take off what is written only because nothing follows: Phi-3's last <|endoftext|>.

    A reply has one stop. Where several follow it, what the template writes before a further message tells which
    one it is; a template that begins the next reply unasked (the first one of Llama 3) is refused.
    """
    if markup.final_stop is not None or len(markup.stops_in(rendered.removeprefix(prompt))) < 2:
        return rendered
    ends = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(rendered), reversed(prompt), strict=False))
    if len(markup.stops_in("".join(character for character, _ in ends)[::-1])) > 1:
        raise IntegrityError(
            "chat template", "it writes the header of a next reply after every reply, asked for or not",
            "Its masks are ambiguous. Use a template card, or a newer chat template of the model.",
        )  # fmt: skip
    mark = slot(0)
    marked = [*messages[:-1], messages[-1] | {"content": mark}]
    alone, followed = (
        markup.split_controls((markup.rendered_or_none(said, tools) or "").removeprefix(prompt.replace(CUT, "")))
        for said in (marked, [*marked, {"role": "user", "content": "x"}])
    )
    shared = next((n for n, (a, b) in enumerate(zip(alone, followed, strict=False)) if a != b), len(alone))
    closing, rest = ("".join(part.text for part in parts[shared:]) for parts in (alone, followed))
    known = mark not in closing + rest and any(part.control in markup.stops for part in alone[:shared])
    return rendered.removesuffix(closing) if known else rendered


def _reply_end(markup: Markup, full: str, rendered: str) -> str:
    """The rendering up to the end of its last reply, the stop included.

    Where the next role token is the stop, it takes the place of the final stop that the rendering ends with.
    """
    if markup.final_stop is None or not rendered.endswith(markup.final_stop):
        return rendered
    body = rendered.removesuffix(markup.final_stop)
    following = markup.control_pattern.match(full, len(body))
    return body + following[0] if following else rendered


def owners_of(
    markup: Markup, plain: list[dict[str, Any]], tools: list[Any] | None, text: str
) -> tuple[list[tuple[int, int, int]], set[int]]:
    """(start, end, message) of every content in the rendered text, and the messages whose content is certainly gone.

    Found by rendering once more with a mark before and after each content. Where the marks change what the
    template writes, a content's place is not known: it stays "template text", which is right for ids and
    masks and only less telling for `inspect`; but a content that must be trained then is a reject.
    """
    marked = [
        message | {"content": slot(2 * i) + message["content"] + slot(2 * i + 1)} if message["content"] else message
        for i, message in enumerate(plain[: MAX_SLOTS // 2])
    ] + plain[MAX_SLOTS // 2 :]
    owners: list[tuple[int, int, int]] = []
    seen: set[int] = set()
    pieces = SLOT_PATTERN.split(markup.rendered_or_none(marked, tools) or "")
    rendered = "".join(pieces[::2])
    if rendered == text:
        position, open_at = 0, dict[int, int]()
        for piece, mark in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
            position += len(piece)
            if mark:
                seen.add(slot_number(mark) // 2)
            if mark and (number := slot_number(mark)) % 2 == 0:
                open_at[number // 2] = position
            elif mark and number // 2 in open_at:
                owners.append((open_at[number // 2], position, number // 2))
    return owners, {i for i in range(len(plain)) if i not in seen} if rendered == text else set()


def place(segments: list[Segment], owners: list[tuple[int, int, int]]) -> list[Segment]:
    """Cut segments where a content begins or ends, and give context texts to their message."""
    cuts = sorted({edge for start, end, _ in owners for edge in (start, end)})
    starts = {start: (end, message) for start, end, message in owners if end > start}
    placed: list[Segment] = []
    position, inside = 0, (0, -1)
    for segment in segments:
        end = position + len(segment.text)
        edges = cuts[bisect_right(cuts, position) : bisect_left(cuts, end)] if segment.control < 0 else []
        for left, right in zip([position, *edges], [*edges, end], strict=True):
            inside = starts.get(left, inside)
            owner = inside[1] if left < inside[0] else -1
            text = segment.text[left - position : right - position]
            message = segment.message if segment.generated or owner == -1 else owner
            first = left == position
            boundary, fresh = segment.boundary and first, segment.fresh and first
            placed.append(Segment(text, segment.control, message, segment.generated, boundary, fresh))
        position = end
    return merge(placed)


def merge(segments: list[Segment]) -> list[Segment]:
    """Join neighbouring segments of one kind, so that two derivations can be compared."""
    merged: list[Segment] = []
    for segment in segments:
        if merged and are_one(merged[-1], segment):
            merged[-1].text += segment.text
        else:
            merged.append(segment)
    return merged


def are_one(first: Segment, second: Segment) -> bool:
    """Whether neighbours are texts of one kind, so that they can be one segment."""
    return (
        first.control < 0
        and second.control < 0
        and (first.message, first.generated) == (second.message, second.generated)
        and not second.boundary
    )
