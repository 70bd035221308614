"""Vocabulary files read without their own code give the ids of the libraries they were made for."""

from __future__ import annotations

import base64
import io
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import registry
from compiler.tokenizer.convert import to_spec
from compiler.tokenizer.tokenizer import Tokenizer
from schemas.errors import InputError, UsageError
from tests.support.shared import shared, tools

PIECES = [" ", "  ", "\n", "\t", "\r\n", "▁", "é", "\u200d", "0123", "你好", "🙂", "<|user|>", "</s>", "'ll"]
HOSTILE = st.lists(st.one_of(st.characters(codec="utf-8"), st.sampled_from(PIECES)), min_size=1, max_size=40).map(
    "".join
)


@cache
def reference(name: str) -> Any:
    path = shared("tokenizers", name, "tokenizer.model")
    if name in ("chatglm3", "mistral"):
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
    """qwen.tiktoken has no shared copy: a small one in its form, control tokens numbered after its last id."""
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


# -- sentencepiece models without code of their own: Llama, Yi, Baichuan, InternLM2 --


@cache
def mistral() -> Tokenizer:
    """Return Mistral's tokenizer without its tokenizer.json, so that its tokenizer.model is read."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("tokenizer.model", "tokenizer_config.json"):
            shutil.copy(shared("tokenizers", "mistral", name), folder)
        return Tokenizer.load(Path(folder))


def real_texts() -> list[str]:
    lines = (
        line
        for path in sorted(registry.SAMPLES.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
    )
    return texts_of([json.loads(line) for line in lines])


def test_a_llama_model_file_gives_the_ids_of_sentencepiece_and_of_its_tokenizer_json() -> None:
    ours, published, encode = mistral(), tools("mistral")[0], reference("mistral")
    texts = real_texts()
    assert len(texts) > 500
    ids, lengths = ours.encode(texts, fresh=True)
    theirs, their_lengths = published.encode(texts, fresh=True)
    assert lengths.tolist() == their_lengths.tolist()
    assert ids.tolist() == theirs.tolist() == [i for text in texts for i in encode(text)]
    assert ours.controls == published.controls
    assert ours.official.encode("Hi").ids == published.official.encode("Hi").ids  # <s> first


def test_a_llama_model_file_gives_their_ids_on_long_runs_of_spaces() -> None:
    """Entries for runs of spaces all have one score in Mistral's model."""
    encode = reference("mistral")
    texts = [f"a{' ' * n}b" for n in range(200)]
    assert [mistral().encode([text], fresh=True)[0].tolist() for text in texts] == [encode(text) for text in texts]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=HOSTILE)
def test_a_llama_model_file_gives_their_ids_on_hostile_texts(text: str) -> None:
    ours, published = mistral(), tools("mistral")[0]
    assert ours.encode([text], fresh=True)[0].tolist() == reference("mistral")(text)
    for fresh in (True, False):
        assert ours.encode([text], fresh=fresh)[0].tolist() == published.encode([text], fresh=fresh)[0].tolist()
    official = [tokenizer.official.encode(text, add_special_tokens=False).ids for tokenizer in (ours, published)]
    assert official[0] == official[1]


CORPUS = [
    "the cat sat on the mat  and   the hat",
    "aaa aaaa aa\n\naa",
    "def f(x):\n    return  x\n",
    "你好，世界。你好吗",
    "1234",
]
SETTINGS: dict[str, dict[str, Any]] = {
    "as Llama has it": {},
    "no leading space": {"add_dummy_prefix": False},
    "extra spaces removed": {"remove_extra_whitespaces": True},
    "extra spaces removed, no leading space": {"remove_extra_whitespaces": True, "add_dummy_prefix": False},
    "marks": {"add_dummy_prefix": False, "user_defined_symbols": ["<reserved_106>", "<reserved_10>", "[UNUSED_1]"]},
    "marks after a leading space": {"user_defined_symbols": ["<reserved_106>"]},
    "texts that are never split": {
        "add_dummy_prefix": False,
        "user_defined_symbols": ["▁▁", "▁▁▁▁", "\n\n", "at", "cat▁", "the ", "<reserved_106>"],
    },
}


REFUSED: dict[str, dict[str, Any]] = {
    "never split, with a leading space": {"user_defined_symbols": ["at"]},
    "spaces after words": {"treat_whitespace_as_suffix": True},
    "a table of characters": {"normalization_rule_name": "nmt_nfkc"},
    "no byte fallback": {"byte_fallback": False},
}
LLAMA: dict[str, Any] = {
    "model_type": "bpe",
    "vocab_size": 1500,
    "byte_fallback": True,
    "character_coverage": 1.0,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "minloglevel": 2,
}


@cache
def trained(what: str) -> tuple[Any, bytes]:
    """Return a small sentencepiece model of this kind, as its library reads it and as its file."""
    sentencepiece = pytest.importorskip("sentencepiece")
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 5 + real_texts()[:120]),
        model_writer=made,
        **(LLAMA | (SETTINGS | REFUSED)[what]),
    )
    return sentencepiece.SentencePieceProcessor(model_proto=made.getvalue()), made.getvalue()


@cache
def loaded(what: str) -> Tokenizer:
    """Return the same model read as Baichuan's are."""
    with tempfile.TemporaryDirectory() as folder:
        return read_model(Path(folder), trained(what)[1], "BaichuanTokenizer")


def read_model(folder: Path, data: bytes, kind: str, **config: Any) -> Tokenizer:
    (folder / "tokenizer.model").write_bytes(data)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind} | config), encoding="utf-8")
    return Tokenizer.load(folder)


SPACED = [
    "the ",
    "cat",
    " at",
    "▁",
    "▁▁▁",
    "      ",
    "\n\n\n",
    "aaaaa",
    "<reserved_106>",
    "<reserved_107>",
    "[UNUSED_1]",
    "ñ",
]
NOISY = st.lists(st.one_of(st.sampled_from(SPACED + PIECES[:-2]), st.characters(codec="utf-8")), max_size=12).map(
    "".join
)


@pytest.mark.parametrize("what", SETTINGS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(text=NOISY)
def test_every_setting_of_a_model_gives_the_ids_of_sentencepiece(what: str, text: str) -> None:
    (library, _), tokenizer = trained(what), loaded(what)
    expected = library.encode(text)
    if "user_defined_symbols" not in SETTINGS[what]:
        assert tokenizer.encode([text], fresh=True)[0].tolist() == expected
    if what == "marks after a leading space":  # what stands between marks is a text of its own, as in Baichuan's chats
        mark = library.piece_to_id("<reserved_106>")
        expected = [i for part in text.split("<reserved_106>") for i in (*library.encode(part), mark)][:-1]
    assert tokenizer.official.encode(text, add_special_tokens=False).ids == expected


def test_each_setting_makes_a_difference() -> None:
    """The models of these tests do what they are named for."""
    said = "  the  cat  "
    pieces = {what: trained(what)[0].encode(said, out_type=str) for what in SETTINGS}
    assert "".join(pieces["as Llama has it"]) == "▁▁▁the▁▁cat▁▁"
    assert "".join(pieces["no leading space"]) == "▁▁the▁▁cat▁▁"
    assert "".join(pieces["extra spaces removed"]) == "▁the▁cat"
    assert "".join(pieces["extra spaces removed, no leading space"]) == "the▁cat"
    assert pieces["texts that are never split"][0] == "▁▁"
    assert trained("marks")[0].encode("a<reserved_106>", out_type=str)[-1] == "<reserved_106>"
    assert trained("as Llama has it")[0].encode("ñ", out_type=str)[-2:] == ["<0xC3>", "<0xB1>"]


def test_marks_of_a_model_are_control_tokens_and_stay_text_in_a_text(tmp_path: Path) -> None:
    library, data = trained("marks")
    tokenizer = read_model(tmp_path, data, "BaichuanTokenizer")
    assert tokenizer.controls["<reserved_106>"] == library.piece_to_id("<reserved_106>")
    ids = tokenizer.encode(["a<reserved_106>b[UNUSED_1]"], fresh=True)[0]
    assert not tokenizer.is_control[ids].any()
    assert library.decode(ids.tolist()) == "a<reserved_106>b[UNUSED_1]"


def test_spare_entries_get_their_names_from_the_configuration(tmp_path: Path) -> None:
    """InternLM2's <|im_start|> is number 92543, [UNUSED_TOKEN_146] in its tokenizer.model."""
    library, data = trained("marks")
    spare, end = library.piece_to_id("[UNUSED_1]"), library.get_piece_size()
    declared = {
        str(spare): {"content": "<|im_start|>", "special": True},
        str(end): {"content": "<tool>", "special": False, "rstrip": True},
    }
    tokenizer = read_model(tmp_path, data, "InternLM2Tokenizer", added_tokens_decoder=declared)
    assert (tokenizer.controls["<|im_start|>"], tokenizer.controls["<tool>"]) == (spare, end)
    assert "[UNUSED_1]" not in tokenizer.controls
    official = tokenizer.official.encode("<|im_start|>a<tool>  cat", add_special_tokens=False).ids
    assert official == [spare, *library.encode("a"), end, *library.encode("cat")]
    assert {spare, end} & tokenizer.stops == {spare}


@pytest.mark.parametrize(
    ("legacy", "pieces"),
    [
        ({}, ["▁the", "</s>", "▁the", "▁cat"]),
        ({"legacy": True}, ["▁the", "</s>", "▁the", "▁cat"]),
        ({"legacy": False}, ["▁the", "</s>", "the", "▁cat"]),
        ({"legacy": False, "add_prefix_space": False}, ["the", "</s>", "the", "▁cat"]),
    ],
)
def test_legacy_decides_which_texts_of_a_llama_model_get_a_leading_space(
    tmp_path: Path, legacy: dict[str, bool], pieces: list[str]
) -> None:
    library, data = trained("as Llama has it")
    tokenizer = read_model(tmp_path, data, "LlamaTokenizer", **legacy)
    ids = tokenizer.official.encode("the</s>the cat", add_special_tokens=False).ids
    assert "".join(map(library.id_to_piece, ids)) == "".join(pieces)


@pytest.mark.parametrize(
    ("kind", "config", "first"),
    [
        ("LlamaTokenizer", {}, [1]),
        ("LlamaTokenizer", {"add_bos_token": False}, []),
        ("BaichuanTokenizer", {"bos_token": {"content": "</s>"}}, [2]),
        ("InternLM2Tokenizer", {}, [1]),
    ],
)
def test_the_first_token_of_a_text_of_its_own_is_the_one_that_the_family_puts_there(
    tmp_path: Path, kind: str, config: dict[str, Any], first: list[int]
) -> None:
    library, data = trained("no leading space")
    assert read_model(tmp_path, data, kind, **config).official.encode("the").ids == [*first, *library.encode("the")]


@pytest.mark.parametrize(
    ("what", "declared", "message"),
    [
        ("as Llama has it", {9000: "<pad>"}, "no token has the id 1500"),
        ("as Llama has it", {1500: "</s>"}, "'</s>' has the id 2 in it, and 1500 in tokenizer_config.json"),
        ("never split, with a leading space", {}, "'at' is plain text, and texts get a leading space"),
        ("spaces after words", {}, "spaces after words"),
        ("a table of characters", {}, "without their own normalization"),
        ("no byte fallback", {}, "BPE models with byte fallback"),
    ],
)
def test_a_model_that_is_not_read_says_why(what: str, declared: dict[int, str], message: str) -> None:
    _, data = trained(what)
    config = {"added_tokens_decoder": {str(i): {"content": text} for i, text in declared.items()}}
    with pytest.raises(InputError, match=message):
        to_spec(registry.tokenizer_families()["LlamaTokenizer"], data, config, "x/tokenizer.model")
