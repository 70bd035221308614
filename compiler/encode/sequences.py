"""A conversation as the sequences of its example: one, the two of a pair, or one for each reply; weighed, in runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from compiler.conversation import Conversation
from compiler.encode.runs import Runs, runs_of
from compiler.encode.shapes import Lowering
from compiler.encode.system import merge_system
from compiler.encode.weigh import Policy, last_round
from compiler.options import UnitOptions
from compiler.templates.document import document_segments
from compiler.templates.history import by_reply
from compiler.templates.load import DOCUMENT, Template
from compiler.templates.thinking import with_reasoning
from compiler.tokenizer.tokenizer import Tokenizer
from schemas.errors import Reason, RowError


@dataclass
class Sequences:
    """Makes the sequences of one dataset's conversations; `notes` counts what happened to them."""

    options: UnitOptions
    tokenizer: Tokenizer
    template: Template
    policy: Policy
    notes: Counter[str]

    def __post_init__(self) -> None:
        """Look up what every conversation needs."""
        self.rendering = self.template.program.rendering
        self.lowering = Lowering(self.template.program, self.tokenizer, self.policy)

    def of(self, conversation: Conversation) -> list[tuple[Conversation, list[Runs]]]:
        """Return the conversation with its sequences; each trained reply by itself where the template asks for that."""
        if self.policy.last_round:  # the row's, not that of each example it makes
            conversation = last_round(conversation)
        try:
            return [(conversation, self.sides(conversation))]
        except RowError as error:
            if error.reject.reason is not Reason.TEMPLATE_UNSTABLE or conversation.context:
                raise
            parts = by_reply(conversation)
            if not parts:
                raise RowError(Reason.NOTHING_TRAINED, "no token of it would be trained") from error
            made = [(one, self.sides(one)) for one in parts]
            self.notes["one_example_per_reply"] += 1
            return made

    def sides(self, conversation: Conversation) -> list[Runs]:
        """Return the weighed runs of the conversation's sequences: one, or the two of a pair."""
        if self.template.name == DOCUMENT:
            segments = document_segments(conversation, self.tokenizer, self.template)
            return [runs_of(conversation, segments, self.tokenizer)]
        sides = [self._runs_or_merged(conversation)]
        if conversation.rejected is not None:  # after the first side, which may merge the system text into the context
            other = replace(conversation, messages=[*conversation.messages[:-1], conversation.rejected])
            sides.append(self.runs(other))
        return sides

    def _with_reasoning(self, conversation: Conversation) -> Conversation:
        return with_reasoning(conversation) if self.rendering.thinks else conversation

    def runs(self, conversation: Conversation) -> Runs:
        """Return the weighed runs of one sequence."""
        thought = self._with_reasoning(conversation)
        if thought is conversation:
            return self.lowering.runs(conversation)
        segments = self.template.program.segments(thought)
        if not self.rendering.is_published(segments, conversation):
            raise RowError(Reason.TEMPLATE_REFUSED, "the chat template changes the thinking of a reply")
        return self.lowering.of_segments(thought, segments)

    def _runs_or_merged(self, conversation: Conversation) -> Runs:
        try:
            return self.runs(conversation)
        except RowError as error:
            refused = error.reject.reason is Reason.TEMPLATE_REFUSED
            if not (refused and self.options.system == "merge" and merge_system(conversation)):
                if refused and conversation.messages[0].role == "system" and self.options.system != "merge":
                    hint = "; if it takes no system message, --system merge puts it before the first user message"
                    raise RowError(error.reject.reason, error.reject.message + hint) from error
                raise
            conversation.repairs.append("system_merge")
            return self.runs(conversation)

    def look_for_controls(self, conversation: Conversation) -> None:
        """Count a conversation that spells a control token, or raise where such are rejected."""
        said = conversation
        if conversation.rejected is not None:
            said = replace(conversation, messages=[*conversation.messages, conversation.rejected])
        found = self.rendering.spells_control(self._with_reasoning(said))
        if found is None:
            return
        if self.options.special_text == "reject":
            raise RowError(Reason.SPECIAL_TEXT, f"the text spells the control token {found!r}")
        self.notes["special_text"] += 1
