"""Vocabulary files read without their own code give the ids of the libraries they were made for."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from conftest import shared, tools
from hypothesis import given, settings
from hypothesis import strategies as st

import registry
from compiler.convert import to_spec
from compiler.tokenizer import Tokenizer
from schemas.errors import InputError, UsageError

PIECES = [" ", "  ", "\n", "\t", "\r\n", "▁", "é", "\u200d", "0123", "你好", "🙂", "<|user|>", "</s>", "'ll"]
HOSTILE = st.lists(st.one_of(st.characters(codec="utf-8"), st.sampled_from(PIECES)), min_size=1, max_size=40).map(
    "".join
)


@cache
def reference(name: str) -> Any:
    path = shared("tokenizers", name, "tokenizer.model")
    if name == "chatglm3":
        sentencepiece = pytest.importorskip("sentencepiece")
        return sentencepiece.SentencePieceProcessor(str(path)).encode
    tiktoken = pytest.importorskip("tiktoken")
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines() if line)
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    pattern = registry.tokenizer_families()["ChatGLM4Tokenizer"]["pattern"]
    return tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}).encode_ordinary


def texts_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value] if value else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in items for text in texts_of(item)]


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
def test_real_texts_get_the_librarys_ids(name: str) -> None:
    tokenizer, _ = tools(name, name)
    encode = reference(name)
    rows = [
        json.loads(line)
        for path in sorted(registry.SAMPLES.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    rows += json.loads(shared("data", "llamafactory", "identity.json").read_text(encoding="utf-8"))
    texts = texts_of(rows)
    assert len(texts) > 1000
    ids, lengths = tokenizer.encode(texts, fresh=True)
    at = 0
    for text, length in zip(texts, lengths.tolist(), strict=True):
        assert ids[at : at + length].tolist() == encode(text), text
        at += length


@pytest.mark.parametrize("name", ["chatglm3", "glm4"])
@settings(max_examples=400, deadline=None, derandomize=True)
@given(text=HOSTILE)
def test_hostile_texts_get_the_librarys_ids(name: str, text: str) -> None:
    tokenizer, _ = tools(name, name)
    assert tokenizer.encode([text], fresh=True)[0].tolist() == reference(name)(text)


def test_control_tokens_have_the_ids_of_the_model() -> None:
    chatglm3, glm4 = tools("chatglm3", "chatglm3")[0].controls, tools("glm4", "glm4")[0].controls
    assert (chatglm3["[gMASK]"], chatglm3["sop"], chatglm3["<|observation|>"], chatglm3["</s>"]) == (
        64790,
        64792,
        64797,
        2,
    )
    assert (glm4["[gMASK]"], glm4["<sop>"], glm4["<|user|>"], glm4["<|endoftext|>"]) == (151331, 151333, 151336, 151329)


def test_the_first_qwen_is_read_from_its_ranks(tmp_path: Path) -> None:
    """qwen.tiktoken has no shared copy: a small one in its form, control tokens numbered on from its end."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello"]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (tmp_path / "qwen.tiktoken").write_text("\n".join(lines) + "\n", encoding="ascii")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "QWenTokenizer"}', encoding="utf-8")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode(["hello hell"], fresh=True)[0].tolist() == [259, 32, 258]
    assert [tokenizer.controls[text] for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>")] == [
        260,
        261,
        262,
        263,
    ]
    assert len(tokenizer.controls) == 208


@pytest.mark.parametrize("data", [b"", b"\x0a\xff", b"not a model", b"AAAA x\n"])
@pytest.mark.parametrize("family", ["ChatGLMTokenizer", "ChatGLM4Tokenizer"])
def test_a_damaged_vocabulary_is_one_message(family: str, data: bytes) -> None:
    with pytest.raises(InputError, match=r"not a (sentencepiece|tiktoken) vocabulary"):
        to_spec(registry.tokenizer_families()[family], data, {}, "x/tokenizer.model")


def test_a_folder_without_a_known_vocabulary_says_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "NewTokenizer"}', encoding="utf-8")
    with pytest.raises(UsageError, match=r"expected a tokenizer\.json"):
        Tokenizer.load(tmp_path)
