"""A server that answers OpenAI's chat requests as `cli chat` does: one model, one reply at a time.

An assistant message in last place is continued: agents send their reply so far with the observation in it. What a
request asks for takes effect or is refused.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import jinja2
import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from schemas import check_config
from schemas.errors import Problem, UsageError
from trainer.use.chat import Chat, ChatReply

_KEY = re.compile(r"^(?:Thought|Action|Action Input|Observation|Final Answer):", re.MULTILINE)


def serve(chat: Chat, name: str) -> Starlette:
    """The server of a model, which it calls `name`. The conversation of `chat` is not used."""
    server = _Server(chat, name)
    routes = [
        Route("/v1/models", server.models), Route("/v1/chat/completions", server.completions, methods=["POST"])
    ]  # fmt: skip
    return Starlette(routes=routes, exception_handlers={Problem: _refusal, HTTPException: _refusal})


def _refusal(_: Request, error: Exception) -> Response:
    """An answer in the form of OpenAI's errors."""
    status, said = (error.status_code, error.detail) if isinstance(error, HTTPException) else (400, str(error))
    where = error.where.partition("#/")[2] if isinstance(error, Problem) else None
    body = {"message": said, "type": "invalid_request_error", "param": where or None, "code": None}
    return JSONResponse({"error": body}, status)


class _ClientGone(Exception):
    """The client has closed the connection."""


@dataclass(frozen=True)
class _Task:
    """A conversation that waits for a reply, and what the client sees of it."""

    chat: Chat
    seed: int | None
    lead: str
    """What the model writes first that messages do not have."""
    begin: str
    """What the reply begins with before the model writes."""

    def visible(self, written: str) -> str:
        """What the client gets of what the model has written: up to the first stop word, and this word."""
        text = "" if self.lead.startswith(written) else written.removeprefix(self.lead)
        ends = [text.index(word) + len(word) for word in self.chat.words if word in text]
        return self.begin + text[: min(ends, default=None)]


class _Server:
    def __init__(self, chat: Chat, name: str) -> None:
        self._chat, self._name = chat, name
        self._thread = ThreadPoolExecutor(1)

    async def models(self, _: Request) -> Response:
        one = {"id": self._name, "object": "model", "created": 0, "owned_by": "cli serve"}
        return JSONResponse({"object": "list", "data": [one]})

    async def completions(self, request: Request) -> Response:
        try:
            asked = _without_nulls(json.loads(await request.body()))
        except ValueError as error:
            raise UsageError("the request", f"expected JSON: {error}") from error
        check_config(asked, "chat_request", "the request")
        if asked["model"] != self._name:
            raise HTTPException(404, f"expected the model {self._name!r}, found {asked['model']!r}")
        pieces = self._pieces(self._task(asked))
        first = await anext(pieces)  # so that a conversation that cannot be answered is an error, not a broken stream
        about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self._name}
        if asked.get("stream"):
            events = _events(about, first, pieces, asked.get("stream_options", {}).get("include_usage", False))
            return StreamingResponse(events, media_type="text/event-stream")
        *texts, reply = [first, *[piece async for piece in pieces]]
        message = {"role": "assistant", "content": "".join(texts)}
        choice = {"index": 0, "message": message, "finish_reason": _reason(reply), "logprobs": None}
        return JSONResponse(about | {"object": "chat.completion", "choices": [choice], "usage": _usage(reply)})

    def _task(self, asked: dict[str, Any]) -> _Task:
        lengths = {asked[key] for key in ("max_tokens", "max_completion_tokens") if key in asked}
        if len(lengths) > 1:
            raise UsageError("the request#/max_completion_tokens", "max_tokens has another value", "Give one of them.")
        default, stop = self._chat, asked.get("stop", [])
        drawn = {"temperature": default.temperature, "top_p": default.top_p} | asked
        if asked.get("top_p", 1) < 1 and not drawn["temperature"]:
            raise UsageError("the request#/top_p", "nothing is drawn at temperature 0", "Add a temperature.")
        messages = [{"role": one["role"], "content": _text(one["content"])} for one in asked["messages"]]
        said = messages.pop()["content"] if messages[-1]["role"] == "assistant" else ""
        if not messages:
            raise UsageError("the request#/messages", "expected a message before the reply, found none")
        lead, begin = self._lead(messages), "\n" if _ends_in_observation(said) else ""
        chat = replace(
            default, messages=messages, pictures=[], partial=said and lead + said + begin,
            temperature=float(drawn["temperature"]), top_p=float(drawn["top_p"]),
            max_new_tokens=max(lengths, default=default.max_new_tokens),
            words=[*default.words, *([stop] if isinstance(stop, str) else stop)],
        )  # fmt: skip
        return _Task(chat, asked.get("seed"), "" if said else lead, begin)

    def _lead(self, messages: list[dict[str, Any]]) -> str:
        """The white space before a reply that a template writes in a history and a model writes itself, as ChatGLM3."""
        render = self._chat.tokenizer.apply_chat_template
        try:
            asked = render(messages, add_generation_prompt=True, tokenize=False)
            whole = render([*messages, {"role": "assistant", "content": "|"}], tokenize=False)
        except (jinja2.TemplateError, ValueError):
            return ""  # whether the conversation can be rendered is said when it is
        between = whole.removeprefix(asked).partition("|")[0] if whole.startswith(asked) else ""
        return between if between.isspace() else ""

    async def _pieces(self, task: _Task) -> AsyncIterator[Any]:
        """The reply's text piece by piece, and at last the ChatReply."""
        loop, pieces, gone = asyncio.get_running_loop(), asyncio.Queue[str | None](), threading.Event()
        written = sent = ""

        def show(text: str) -> None:
            nonlocal written, sent
            if gone.is_set():
                raise _ClientGone
            written += text
            if (seen := task.visible(written)) != sent:
                loop.call_soon_threadsafe(pieces.put_nowait, seen[len(sent) :])
                sent = seen

        def write() -> ChatReply:
            if task.seed is not None:
                torch.manual_seed(task.seed)
            return task.chat.write(show)

        def end(done: asyncio.Future[ChatReply]) -> None:
            pieces.put_nowait(None)
            _ = done.cancelled() or done.exception()  # nobody else asks once the client has gone

        done = loop.run_in_executor(self._thread, write)
        done.add_done_callback(end)
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            yield await done
        finally:
            gone.set()


async def _events(about: dict[str, Any], first: Any, rest: AsyncIterator[Any], counts: bool) -> AsyncIterator[str]:
    """The events of a stream. Every one but the last, which is asked for, has a choice with a text."""

    def event(text: str, reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": {"content": text, **more}, "finish_reason": reason}
        return f"data: {json.dumps(about | {'object': 'chat.completion.chunk', 'choices': [choice]})}\n\n"

    yield event("", role="assistant")
    piece = first
    while not isinstance(piece, ChatReply):
        yield event(piece)
        piece = await anext(rest)
    yield event("", _reason(piece))
    if counts:
        last = about | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(piece)}
        yield f"data: {json.dumps(last)}\n\n"
    yield "data: [DONE]\n\n"


def _reason(reply: ChatReply) -> str:
    return "length" if reply.ended == "length" else "stop"


def _usage(reply: ChatReply) -> dict[str, int]:
    counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.new_tokens}
    return counts | {"total_tokens": sum(counts.values())}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _text(content: str | list[dict[str, str]]) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _ends_in_observation(reply: str) -> bool:
    """Whether a ReAct reply ends in an observation whose line is not ended. The model goes on in the next line."""
    last = next(reversed(list(_KEY.finditer(reply))), None)
    return last is not None and last[0] == "Observation:" and reply[last.end() :].strip() != "" and reply[-1] != "\n"
