"""A conversation with a model in its own chat template, in which the user can play the tools.

A reply that stops at a stop word (`Observation:`) is not finished: the user's next line becomes the observation, in the
same reply, and the model continues. The reply is then encoded again as one text, as in training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from schemas.errors import InputError, Problem, UsageError
from schemas.stores import AnyPath
from trainer.data.images import upright
from trainer.data.vision.eyes import Eyes
from trainer.data.vision.find import eyes_of
from trainer.models.prefix import generate
from trainer.models.pretrained import load_model, load_tokenizer
from trainer.predict.generate import stop_ids
from trainer.use.checkpoint import check_whole, open_checkpoint
from trainer.use.tokenizer import card_template, copy_tokenizer


@dataclass(frozen=True)
class ChatReply:
    """What the model wrote before it stopped. `ended` by: "stop" (a stop token), "word" (a stop word) or "length"."""

    content: str
    ended: str
    prompt_tokens: int
    new_tokens: int


@dataclass
class Chat:
    """A conversation. `words`: stop words; temperature 0 is greedy; sampling uses torch's generator."""

    model: Any
    tokenizer: Any
    stops: Sequence[int]
    words: Sequence[str] = ()
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    eyes: Callable[[], Eyes] | None = None
    """The model's eyes, asked for when the first picture is shown."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)
    """The pictures of all messages, in order; those of the next message come last."""
    attached: int = 0
    """How many of them are for the next message."""
    partial: str = ""
    """The unfinished reply, while it waits for an observation."""

    @property
    def waits(self) -> bool:
        """Whether the reply waits for an observation."""
        return bool(self.partial)

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages, self.partial = [m for m in self.messages if m["role"] == "system"], ""
        self.pictures, self.attached = [], 0

    def system(self, text: str) -> None:
        """Start over with this system message; "" = none."""
        self.messages, self.partial = [{"role": "system", "content": text}] if text else [], ""
        self.pictures, self.attached = [], 0

    def attach(self, path: Path) -> None:
        """Attach a picture to the next message, before its text; a Problem where that cannot be."""
        if self.waits:
            what = "an observation is text; a picture goes with a message"
            raise UsageError(f"/image {path}", what, "Type the observation first.")
        self._eyes(f"/image {path}")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"/image {path}", f"cannot be read: {error.strerror}", "Give an image file.") from error
        self.pictures.append(upright(data, f"/image {path}"))
        self.attached += 1

    def _eyes(self, where: str) -> Eyes:
        if self.eyes is None:
            raise UsageError(where, "this model has no eyes", "Chat with a vision model, or leave pictures out.")
        try:
            return self.eyes()
        except UsageError as error:
            raise UsageError(where, error.what, "Chat with a vision model, or leave pictures out.") from error

    def say(self, text: str, show: Callable[[str], object] = lambda _: None) -> ChatReply:
        """The model's reply to a user message or an awaited observation; `show` gets its text piece by piece."""
        if self.waits:
            self.partial += f"{'' if self.partial[-1].isspace() else ' '}{text}\n"
        else:
            content: Any = text
            if self.attached:
                content = [*({"type": "image"} for _ in range(self.attached)), {"type": "text", "text": text}]
            self.messages.append({"role": "user", "content": content})
            self.attached = 0
        return self.write(show)

    def write(self, show: Callable[[str], object] = lambda _: None) -> ChatReply:
        """The model's reply to the conversation as it stands, or the rest of an unfinished one."""
        ids, seen = self._prompt()
        stream = _Stream(self.tokenizer, self.stops, show)
        draw = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.no_grad():
            written = generate(
                self.model, torch.tensor([ids], device=self.model.device),
                torch.ones(1, len(ids), dtype=torch.long, device=self.model.device),
                max_new_tokens=self.max_new_tokens, eos_token_id=list(self.stops), pad_token_id=self.stops[0],
                streamer=stream, **seen, **(draw if self.temperature else greedy),
                **({"stop_strings": list(self.words), "tokenizer": self.tokenizer} if self.words else {}),
            )[0, len(ids) :].tolist()  # fmt: skip
        content = stream.text
        if written[-1] in self.stops:
            ended = "stop"
        else:  # the last token of a stop word may extend beyond it
            cut = len(written) == self.max_new_tokens and not content.rstrip().endswith(tuple(self.words))
            ended = "length" if cut or not self.words else "word"
        self.partial += content
        if ended != "word":
            # ChatGLM3 and GLM-4 write the line break after their role themselves; the template writes it in a history.
            self.messages.append({"role": "assistant", "content": self.partial.lstrip("\n ")})
            self.partial = ""
        return ChatReply(content, ended, len(ids), len(written))

    def _prompt(self) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The ids of the conversation, and what the model takes of its pictures."""
        if not self.tokenizer.chat_template:
            raise UsageError("the tokenizer", "it has no chat template", "Chat with an exported folder: cli export.")
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(self.messages, add_generation_prompt=True, tokenize=False)
        except jinja2.TemplateError as error:
            raise UsageError("the chat template", f"it refuses this conversation: {error}") from error
        ids, seen = self._with_pictures(text)
        if self.partial:
            ids = ids + self.tokenizer(self.partial, add_special_tokens=False)["input_ids"]
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and len(ids) + self.max_new_tokens > limit:
            raise UsageError(
                "the conversation", f"{len(ids):,} tokens and up to {self.max_new_tokens:,} new ones are more than the "
                f"model's {limit:,}", "Start over (/clear), or allow fewer new tokens (--max-new-tokens).",
            )  # fmt: skip
        if seen:
            seen |= self._eyes("a picture").types(torch.tensor([ids]))
        return ids, {name: value.to(self.model.device) for name, value in seen.items()}

    def _with_pictures(self, text: str) -> tuple[list[int], dict[str, torch.Tensor]]:
        """The ids of a rendered text with all placeholders, and what the model takes of the pictures in it."""
        if not self.pictures:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]), {}
        eyes = self._eyes("a picture")
        ids = np.asarray(self.tokenizer(eyes.written(text), add_special_tokens=False)["input_ids"])
        if (places := int(eyes.places(ids).sum())) != len(self.pictures):
            what = f"expected placeholders of {len(self.pictures)} pictures in the conversation, found {places}"
            hint = "The chat template must write pictures, and no text their placeholder; export the model again."
            raise UsageError("the chat template", what, hint)
        seen = eyes.pictures(self.pictures)
        return np.repeat(ids, eyes.spread(ids, seen.tokens)).tolist(), dict(seen.inputs)


def open_chat(model: Path, adapter: Path | None, data: AnyPath | None, *, seed: int = 0, **settings: Any) -> Chat:
    """Load a model for a chat; with an adapter, the tokenizer, template and stops are those it was trained with.

    `data` says where the adapter's set is if it has moved; `settings` are those of `Chat`.
    """
    check_whole(model)
    trained = open_checkpoint(adapter, data=data, base=model) if adapter else None
    loaded = load_model(model, adapter)
    with TemporaryDirectory() as copy:  # the set may be in an object store
        if trained:
            copy_tokenizer(trained, Path(copy))
        tokenizer = load_tokenizer(Path(copy) if trained else model)
    if trained and (template := card_template(trained.manifest)[0]) is not None:
        tokenizer.chat_template = template
    stops = stop_ids(trained.manifest) if trained else loaded.generation_config.eos_token_id
    stops = [stops] if isinstance(stops, int) else list(stops or [])
    if not stops:
        raise UsageError(str(model), "no eos_token_id in its generation_config.json: replies would not end")
    if torch.accelerator.is_available():
        loaded.to(torch.accelerator.current_accelerator())
    torch.manual_seed(seed)
    eyes = functools.cache(lambda: eyes_of(loaded.config, model))
    return Chat(loaded, tokenizer, stops, eyes=eyes, **settings)


class _Stream:
    """Takes ids from `generate` one by one and shows text once its characters are complete, without stop tokens."""

    def __init__(self, tokenizer: Any, stops: Sequence[int], show: Callable[[str], object]) -> None:
        self._tokenizer, self._stops, self._show = tokenizer, set(stops), show
        self._ids: list[int] | None = None
        self._shown = 0

    @property
    def text(self) -> str:
        return self._tokenizer.decode(self._ids or [], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def put(self, ids: torch.Tensor) -> None:
        if self._ids is None:  # the first call brings the prompt
            self._ids = []
            return
        self._ids += [token for token in ids.flatten().tolist() if token not in self._stops]
        text = self.text
        if not text.endswith("\ufffd"):  # half a character
            self._show(text[self._shown :])
            self._shown = len(text)

    def end(self) -> None:
        self._show(self.text[self._shown :])


def converse(
    chat: Chat,
    lines: Iterable[str],
    show: Callable[[str], object],
    done: Callable[[ChatReply], object],
    wrong: Callable[[Problem], object] | None = None,
) -> None:
    """Answer lines until they end or one is /exit. A line that ends in a backslash continues on the next one.

    `/system TEXT` starts over with a system message (`\\n` in it is a line break), `/clear` with the same one.
    `/image PATH` attaches a picture to the next message; `wrong` gets the problem of one, which else ends the chat.
    """
    held = ""
    for line in lines:
        text = held + line.rstrip("\r\n")
        if text.endswith("\\"):
            held = text[:-1] + "\n"
            continue
        held = ""
        command, _, rest = text.partition(" ")
        if command == "/exit":
            return
        if command == "/clear":
            chat.clear()
        elif command == "/system":
            chat.system(rest.replace("\\n", "\n"))
        elif command == "/image":
            try:
                chat.attach(Path(rest.strip()).expanduser())
            except Problem as problem:
                if wrong is None:
                    raise
                wrong(problem)
        elif text.strip() or chat.waits:
            done(chat.say(text, show))
    if held:
        done(chat.say(held.rstrip("\n"), show))
