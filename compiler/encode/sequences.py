"""Conversations to the sequences of their examples: one, the two of a pair, or one for each reply."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from compiler.conversation import Conversation
from compiler.encode.replies import choose_replies, leaves_out
from compiler.encode.runs import runs_of
from compiler.encode.shapes import Rendered, Shape
from compiler.encode.system import merge_system
from compiler.encode.weigh import Policy
from compiler.formats.turns import unusual_order
from compiler.templates.document import document_segments
from compiler.templates.history import by_reply
from compiler.templates.load import DOCUMENT, Template
from compiler.templates.skeleton import Skeleton
from compiler.templates.thinking import with_reasoning
from compiler.tokenizer.tokenizer import Tokenizer
from schemas.errors import Reason, Reject, RowError

MOST_SHAPES = 1024
"""With more shapes than this all are forgotten, so that memory does not grow with the data."""

Made = list[tuple[Conversation, list[Rendered]]]
"""The examples of a conversation: each as the conversation that it is made of, and its sequences."""


@dataclass
class SequenceMaker:
    """Makes the sequences of conversations: one template, tokenizer and weights policy."""

    tokenizer: Tokenizer
    template: Template
    policy: Policy
    merge_system: bool = False
    _shapes: dict[tuple[Skeleton, tuple[float | None, ...] | None], Shape] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find out whether rows may share shapes: not where control tokens swallow text, or text becomes them."""
        self.rendering = self.template.program.rendering
        self._shared = not self.tokenizer.swallows and self.rendering.special_text != "allow"
        self._leaves_out = leaves_out(self.policy)

    def make(self, conversations: list[Conversation], notes: Counter[str]) -> list[Made | Reject]:
        """The examples of each conversation, or the reject that says why it makes none; what happened is counted."""
        found: list[Made | Reject] = []
        for conversation, token in zip(conversations, self._spelled(conversations), strict=True):
            if token is not None and self.rendering.special_text == "reject":
                found.append(Reject(Reason.SPECIAL_TEXT, f"the text spells the control token {token!r}"))
                continue
            if token is not None:
                notes["special_text"] += 1
            try:
                found.append((self._made if self._leaves_out else self._rendered)(conversation, notes))
            except RowError as error:
                found.append(error.reject)
        return found

    def _spelled(self, conversations: list[Conversation]) -> list[str | None]:
        """The first control token that each conversation spells, in the other reply of a pair too; or None."""
        said = [c if c.rejected is None else replace(c, messages=c.said) for c in conversations]
        if self.rendering.thinks:
            said = list(map(with_reasoning, said))
        return self.rendering.spelled_controls(said)

    def _made(self, conversation: Conversation, notes: Counter[str]) -> Made:
        """The sequences of a conversation without the replies that the policy leaves out."""
        counted: Counter[str] = Counter()  # by the replies of the row, not of each example it makes
        chosen = choose_replies(self.policy, conversation, counted)
        if counted and not chosen.has_trained:
            what = f"no token of it would be trained: the weights policy {self.policy.name} leaves out every reply"
            raise RowError(Reason.NOTHING_TRAINED, what)
        made = self._rendered(chosen, notes)
        notes.update(counted)
        return made

    def _rendered(self, conversation: Conversation, notes: Counter[str]) -> Made:
        """The sequences of a conversation; each trained reply by itself where the template asks for that."""
        try:
            return [(conversation, self.sequences(conversation))]
        except RowError as error:
            if error.reject.reason is not Reason.TEMPLATE_UNSTABLE or conversation.context:
                raise
            parts = by_reply(conversation)
            if not parts:
                raise RowError(Reason.NOTHING_TRAINED, "no token of it would be trained") from error
            made = [(one, self.sequences(one)) for one in parts]
            if self.template.keeps_thinking:  # of history nothing is proven
                what = f"{error.reject.message}; without --thinking keep each reply is an example by itself"
                raise RowError(Reason.TEMPLATE_UNSTABLE, what) from error
            notes["one_example_per_reply"] += 1
            return made

    def sequences(self, conversation: Conversation) -> list[Rendered]:
        """The sequences of one example: one, or the two of a pair."""
        if self.template.name == DOCUMENT:
            segments = document_segments(conversation, self.tokenizer, self.template)
            return [Rendered.of(conversation, segments, self.tokenizer, self.policy)]
        try:
            first = self._sequence(conversation)
        except RowError as error:
            first = self._merged(conversation, error)
        if conversation.rejected is None:
            return [first]
        # Only now: the system text may have been merged into the context of both.
        other = replace(conversation, messages=[*conversation.messages[:-1], conversation.rejected])
        return [first, self._sequence(other)]

    def _sequence(self, conversation: Conversation) -> Rendered:
        """The conversation in its shape: the one that rows share where that is proven, else one of its own."""
        if self.rendering.thinks and (thought := with_reasoning(conversation)) is not conversation:
            segments = self.template.program.segments(thought)
            if not self.rendering.is_published(segments, conversation):
                raise RowError(Reason.TEMPLATE_REFUSED, "the chat template changes the thinking of a reply")
            return Rendered.of(thought, segments, self.tokenizer, self.policy)
        found = self.template.program.proven(conversation)
        if isinstance(found, list):
            return Rendered.of(conversation, found, self.tokenizer, self.policy)
        if not self._shared:
            return Rendered.of(conversation, found.fill(conversation), self.tokenizer, self.policy)
        weights = [message.weight for message in conversation.messages]
        key = (found, tuple(weights) if weights.count(None) < len(weights) else None)
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= MOST_SHAPES:
                self._shapes.clear()
            runs = runs_of(found.segments, self.tokenizer)
            shape = self._shapes[key] = Shape(runs, conversation, self.policy, found.fields)
        return Rendered(shape, conversation)

    def _merged(self, conversation: Conversation, error: RowError) -> Rendered:
        """The sequence with the system text put before the first user message, where the template takes none."""
        if error.reject.reason is not Reason.TEMPLATE_REFUSED:
            raise error
        if self.merge_system and merge_system(conversation):
            conversation.repairs.append("system_merge")
            return self._sequence(conversation)
        if unusual := unusual_order(conversation):
            what = f"{unusual}, or use a template that takes this order (this one: {error.reject.message})"
            raise RowError(Reason.TURN_ORDER, what) from error
        if conversation.messages[0].role == "system" and not self.merge_system:
            hint = "; if it takes no system message, --system merge puts it before the first user message"
            raise RowError(error.reject.reason, error.reject.message + hint) from error
        raise error
