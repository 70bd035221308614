"""The certificate of a chat template: its laws, checked with the run's tokenizer before any row is compiled.

Each probe (`probes.py`) is compiled as a row is, and compared with what the official rendering and the official
tokenizer make of it. The laws, in the order in which they are checked:

| law | says |
|---|---|
| agree | the two ways to get the segments, by skeleton and by rendering, give the same ones |
| text | our text equals the official rendering |
| stop | every reply ends with a stop token, which is trained |
| decode | the ids of each run decode to its text |
| ids | our ids equal the official ids of the whole text, if no token can merge across a generation boundary |
| context | the ids before the first trained token equal those of the prompt at inference |
| injection | control tokens spelled in a text stay text: the only control tokens are those that the template wrote |

A law that fails ends the compile, and both sides are shown. A probe that the template refuses, because it takes no
system message or no tools, is recorded and is no failure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from compiler.conversation import Conversation, Role, Segment
from compiler.encode.batch import Encoded
from compiler.encode.shapes import Rendered
from compiler.encode.tokens import encode
from compiler.encode.weigh import EVEN
from compiler.proof.laws import must_be_equal
from compiler.proof.probes import Probe, probes_of, with_controls_spelled
from compiler.templates.guard import CUT
from compiler.templates.history import by_reply
from compiler.templates.load import Template
from compiler.tokenizer.tokenizer import Tokenizer
from schemas.errors import IntegrityError, Reason, RowError


def certify(template: Template, tokenizer: Tokenizer) -> dict[str, Any]:
    """Check every law on every probe.

    The certificate has the number of checks by law, what the template refuses, its stops, how many probes have a merge
    across a generation boundary, and how many need an example for each reply.
    """
    certifier = _Certifier(template, tokenizer)
    refused: dict[str, str] = {}
    for probe in probes_of(template):
        try:
            parts = certifier.stable_parts(probe)
        except RowError as error:
            refused[probe.name] = str(error)
            continue
        for part, segments in parts:
            certifier.check(part, segments)
            try:
                certifier.check_injection(part)
            except RowError as error:
                refused[f"{part.name}, control tokens spelled"] = str(error)
    if not certifier.checks:
        reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
        raise IntegrityError(f"template {template.name}", f"it refuses every conversation ({reasons})")
    return {
        "checks": dict(sorted(certifier.checks.items())),
        "refuses": refused,
        "stops": sorted(certifier.stops),
        "merges_across_generation_boundary": certifier.crossing,
        "one_example_per_reply": certifier.split,
    }


class _Certifier:
    """The laws, and what is counted while they are checked."""

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.rendering = template.program.rendering
        self.checks: Counter[str] = Counter()
        """Checks made, by law."""
        self.stops: set[str] = set()
        """The stop tokens that end the probes' replies."""
        self.crossing = 0
        """Probes in which a token merges across a generation boundary."""
        self.split = 0
        """Probes that are compiled as one example for each reply."""

    def stable_parts(self, probe: Probe) -> list[tuple[Probe, list[Segment]]]:
        """The probe with its segments; where the template changes earlier turns, one such pair for each reply."""
        try:
            return [(probe, self.rendering.segments(probe.conversation))]
        except RowError as error:
            if error.reject.reason is not Reason.TEMPLATE_UNSTABLE:
                raise
        parts = [replace(probe, conversation=part) for part in by_reply(probe.conversation)]
        found = [(part, self.rendering.segments(part.conversation)) for part in parts]
        self.split += 1
        return found

    def check(self, probe: Probe, segments: list[Segment]) -> None:
        """Check every law but injection."""
        self._check_text(probe, segments)
        row = Rendered.of(probe.conversation, segments, self.tokenizer, EVEN)
        encoded = encode([row], self.tokenizer)[0]
        self._check_stops(probe, encoded)
        self._check_decode(probe, row)
        self._check_ids(probe, segments, encoded)

    def _equal(self, law: str, probe: Probe, ours: list[str], official: list[str]) -> None:
        must_be_equal(self.checks, law, probe.name, ours, official)

    def _check_text(self, probe: Probe, segments: list[Segment]) -> None:
        """Laws agree and text."""
        by_skeleton = self.template.program.joined(probe.conversation)
        self._equal("agree", probe, _described(by_skeleton), _described(segments))
        official = self.rendering.published(probe.conversation, len(probe.conversation.messages))
        ours = "".join(segment.text for segment in segments)
        self._equal("text", probe, [ours], [official.replace(CUT, "")])

    def _check_stops(self, probe: Probe, encoded: Encoded) -> None:
        """Law stop."""
        end = 0
        for stretch in encoded.stretches:
            end += stretch.length
            if stretch.generated:
                last = int(encoded.ids[end - 1])
                is_stop = last in self.rendering.stops and encoded.weights[end - 1] > 0
                text = self.tokenizer.token(last)
                self._equal("stop", probe, [text], [text] if is_stop else ["a trained stop token"])
                self.stops.add(text)

    def _check_decode(self, probe: Probe, row: Rendered) -> None:
        """Law decode, up to the normalization that the tokenizer declares.

        Some tokenizers drop the leading space of what they decode, so each run is decoded after a control token.
        """
        tokenizer = self.tokenizer
        before = list(tokenizer.controls.values())[:1]
        skip = len(tokenizer.decode(before))
        all_fresh = row.shape.fresh[row.shape.control < 0].tolist()
        for text, fresh in zip(row.texts, all_fresh, strict=True):
            ids, _ = tokenizer.encode([text], fresh=fresh)
            decoded = tokenizer.decode([*before, *ids.tolist()])[skip:]
            if fresh and tokenizer.has_prefix:
                decoded = decoded.removeprefix(" ")
            self._equal("decode", probe, [tokenizer.normalize(decoded)], [tokenizer.normalize(text)])

    def _check_ids(self, probe: Probe, segments: list[Segment], encoded: Encoded) -> None:
        """Laws ids and context; a probe whose tokens may merge across a generation boundary is counted if they do."""
        ours, official = encoded.ids.tolist(), self._official_ids(segments)
        if not probe.plain:
            self.crossing += ours != official
            return
        if _may_cross(segments):
            self.crossing += ours != official
        else:
            self._equal("ids", probe, self._tokens(ours), self._tokens(official))
        first = next((i for i, weight in enumerate(encoded.weights) if weight > 0), 0)
        self._equal("context", probe, self._tokens(ours[:first]), self._tokens(self._prompt_ids(probe.conversation)))

    def check_injection(self, probe: Probe) -> None:
        """Law injection; RowError where the template refuses a conversation that spells control tokens."""
        if not probe.plain or not self.tokenizer.controls:
            return
        spelling = with_controls_spelled(probe, self.template, list(self.tokenizer.controls))
        if self.rendering.special_text != "allow":
            ours, official = self._controls_in(spelling), self._controls_in(probe.conversation)
            self._equal("injection", probe, ours, official)

    def _controls_in(self, conversation: Conversation) -> list[str]:
        """The control tokens among a conversation's ids, sorted."""
        row = Rendered.of(conversation, self.rendering.segments(conversation), self.tokenizer, EVEN)
        ids = encode([row], self.tokenizer)[0].ids
        return sorted(self._tokens(ids[self.tokenizer.is_control[ids]].tolist()))

    # -- official ids --

    def _official_ids(self, segments: list[Segment]) -> list[int]:
        """The official ids of the whole text; a card may say that replies are encoded apart, as texts of their own."""
        texts = [""]
        for segment in segments:
            if segment.boundary and segment.fresh:
                texts.append("")
            texts[-1] += segment.text * segment.repeat
        return self._encoded_officially(texts)

    def _prompt_ids(self, conversation: Conversation) -> list[int]:
        """The official ids of the prompt at inference for the first reply that may be trained."""
        own = range(conversation.context, len(conversation.messages))
        first = next(i for i in own if conversation.messages[i].role is Role.ASSISTANT)
        prompt = self.rendering.published(conversation, first, generation_prompt=True)
        for media in conversation.media():  # as many placeholders as the image has
            for control, count in self.rendering.layout(media.kind, media.num_tokens):
                prompt = prompt.replace(self.rendering.names[control], self.rendering.names[control] * count)
        return self._encoded_officially(prompt.split(CUT))

    def _encoded_officially(self, texts: list[str]) -> list[int]:
        return [i for text in texts for i in self.tokenizer.official.encode(text, add_special_tokens=False).ids]

    def _tokens(self, ids: list[int]) -> list[str]:
        return [self.tokenizer.token(i) for i in ids]


def _may_cross(segments: list[Segment]) -> bool:
    """Whether a reply begins with white space after a prompt that ends with text, as Qwen3.5's do.

    Then an official token may merge across the generation boundary, as no prompt at inference does (decision 23).
    """
    pairs = zip([None, *segments], segments, strict=False)
    return any(
        after.boundary and not after.fresh and before and before.control < 0 and after.text[:1].isspace()
        for before, after in pairs
    )


def _described(segments: list[Segment]) -> list[str]:
    return [f"{segment.message}:{segment.generated}:{segment.text}" for segment in segments]
