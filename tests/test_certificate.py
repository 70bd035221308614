"""A certificate holds only where every law does; a fault in what renders or encodes is found before any row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

import registry
from compiler.proof.documents import certify_documents
from compiler.proof.laws import must_be_equal
from compiler.proof.template import certify
from compiler.templates.load import load_template
from compiler.tokenizer.encoders import REFERENCE, Ids
from compiler.tokenizer.files import TokenizerFiles
from compiler.tokenizer.tokenizer import Tokenizer
from schemas.errors import IntegrityError

FILES = TokenizerFiles.find(registry.DEMO_TOKENIZER)


class LosesTheLastToken(Tokenizer):
    """A tokenizer that drops the last token of every text of several tokens."""

    def encode(self, texts: Sequence[str], *, fresh: bool, encoder: str = REFERENCE) -> Ids:
        ids, lengths = super().encode(texts, fresh=fresh, encoder=encoder)
        ends = np.cumsum(lengths)[lengths > 1] - 1
        return np.delete(ids, ends), lengths - (lengths > 1)


class ReadsControls(Tokenizer):
    """A tokenizer that takes control tokens spelled in a text for control tokens."""

    def encode(self, texts: Sequence[str], **_how: object) -> Ids:
        found = [self.official.encode(text, add_special_tokens=False).ids for text in texts]
        return np.array([i for ids in found for i in ids], np.int32), np.array([len(ids) for ids in found], np.int64)


@pytest.mark.parametrize(("kind", "law"), [(LosesTheLastToken, "decode"), (ReadsControls, "injection")])
def test_a_tokenizer_with_a_fault_gets_no_certificate(kind: type[Tokenizer], law: str) -> None:
    tokenizer = kind(FILES, FILES.spec())
    with pytest.raises(IntegrityError, match=f"law '{law}' fails on the probe 'one turn'"):
        certify(load_template("auto", tokenizer), tokenizer)


@pytest.mark.parametrize(("kind", "law"), [(LosesTheLastToken, "ids"), (ReadsControls, "injection")])
def test_a_tokenizer_with_a_fault_gets_no_certificate_of_documents(kind: type[Tokenizer], law: str) -> None:
    tokenizer = kind(FILES, FILES.spec())
    with pytest.raises(IntegrityError, match=f"law '{law}' fails on the probe 'one turn'"):
        certify_documents(load_template("auto", tokenizer, documents=True), tokenizer)


def test_a_law_that_fails_shows_both_sides_around_the_first_difference() -> None:
    tokens = [f"t{i}" for i in range(100)]
    checks = Counter[str]()
    must_be_equal(checks, "ids", "one turn", tokens, tokens)
    with pytest.raises(IntegrityError) as raised:
        must_be_equal(checks, "ids", "one turn", [*tokens[:50], "x", *tokens[51:]], tokens)
    shown = str(raised.value)
    assert "'t44', 't45', 't46', 't47', 't48', 't49', 'x', 't51'" in shown and "'t49', 't50', 't51'" in shown
    assert "t43" not in shown and "t62" not in shown
    assert checks == {"ids": 2}
