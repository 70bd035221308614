"""The fast encoder gives the ids of the reference or is not used; where a token stands follows from its bytes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HFTokenizer

import registry
from compiler.conversation import Conversation, Message, Role
from compiler.encode.places import by_place
from compiler.encode.runs import Run as EncodedRun
from compiler.encode.runs import RunPart
from compiler.encode.shapes import Rendered, Shape
from compiler.encode.tokens import encode
from compiler.encode.weigh import EVEN
from compiler.proof.encoders import Choice, Trial, choose, judge, refuse, try_fast
from compiler.tokenizer import encoders
from compiler.tokenizer.ahead import begin_fast
from compiler.tokenizer.files import TokenizerFiles
from compiler.tokenizer.spec import Forms, Specs
from compiler.tokenizer.tokenizer import Tokenizer
from tests.support.conversations import texts
from tests.support.encoders import long_files, use_wrong
from tests.support.sets import manifest
from tests.support.shared import SHARED, tools

Run = Callable[..., Result]

TOKENIZERS = {"demo": "auto", "qwen2.5": "auto", "mistral": "auto", "chatglm3": "chatglm3", "glm4": "glm4"}


def encoded(out: Path) -> dict[str, dict[str, int]]:
    """The encoders of a set's units, with their counts."""
    return dict(json.loads((out / "encoders.json").read_text("utf-8"))["encoders"])


def same_ids(tokenizer: Tokenizer, some: list[str]) -> bool:
    """Return whether both encoders give the same ids, for texts of their own and for those that go on."""
    assert not isinstance(tokenizer.fast, str)
    both = [[one.encode(some, fresh=fresh) for fresh in (True, False)] for one in (tokenizer.fast, tokenizer.reference)]
    return all(map(encoders.same, *both))


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_fast_encoder_takes_every_tokenizer_of_the_tests(tmp_path: Path, name: str) -> None:
    tokenizer = tools(name, TOKENIZERS[name])[0]
    assert judge(tmp_path, tokenizer, try_fast(tokenizer)) == Choice(encoders.FAST)
    assert choose(tmp_path, tokenizer, many=True) == Choice(encoders.FAST)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_fast_encoder_gives_the_ids_of_tokenizers_on_real_texts(name: str) -> None:
    tokenizer, _ = tools(name, TOKENIZERS[name])
    files = [*sorted((SHARED / "data").rglob("*.jsonl")), *sorted(registry.SAMPLES.glob("*.jsonl"))]
    lines = [line for path in files for line in path.read_text("utf-8").split("\n")]
    assert same_ids(tokenizer, lines)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_fast_encoder_gives_the_ids_of_tokenizers_on_any_text(name: str) -> None:
    tokenizer, _ = tools(name, TOKENIZERS[name])

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(st.lists(texts(), max_size=5))
    def agree(some: list[str]) -> None:
        assert same_ids(tokenizer, some)

    agree()


def in_pieces(pieces: list[tuple[str, float]], fresh: bool) -> Rendered:
    """One run of a text in pieces of these weights, each a message of its own."""
    messages = [Message(Role.USER, text, weight=weight) for text, weight in pieces]
    parts = [RunPart((text,), i, generated=False) for i, (text, _) in enumerate(pieces)]
    conversation = Conversation(messages)
    return Rendered(Shape([EncodedRun(parts, fresh=fresh)], conversation, EVEN), conversation)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_where_a_token_stands_is_the_same_by_bytes_and_by_characters(name: str) -> None:
    tokenizer, _ = tools(name, TOKENIZERS[name])
    by_bytes = 0

    piece = st.tuples(texts(), st.sampled_from((0.0, 1.0, 2.0)))

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(st.lists(st.tuples(st.lists(piece, min_size=2, max_size=5), st.booleans()), min_size=1, max_size=3))
    def agree(rows: list[tuple[list[tuple[str, float]], bool]]) -> None:
        nonlocal by_bytes
        runs = [([(text, weight) for text, weight in pieces if text], fresh) for pieces, fresh in rows]
        batch = [in_pieces(pieces, fresh) for pieces, fresh in runs if pieces]
        for row, encoded in zip(batch, encode(batch, tokenizer), strict=True):
            [text], fresh, pieces = row.texts, bool(row.shape.fresh[0]), row.pieces.get(0)
            ids, offsets = tokenizer.encode_with_offsets(text, fresh=fresh)
            assert encoded.ids.tolist() == ids.tolist()
            if pieces:
                widths, given = pieces[0], [row.shape.origins[number].weight for number in pieces[1]]
                weights, owners = by_place(np.array(given, np.float32), offsets[:, 0], offsets[:, 1], widths)
                assert encoded.weights.tolist() == weights.tolist()
                counts = [int((owners == i).sum()) for i in range(len(widths))]
                assert [stretch.length for stretch in encoded.stretches] == [count for count in counts if count]
            by_bytes += tokenizer.reads_as_is(text)

    agree()
    assert by_bytes > 50


@pytest.mark.parametrize("name", ["demo", "qwen2.5"])
def test_every_token_of_a_composed_character_weighs_what_the_lightest_part_of_it_weighs(name: str) -> None:
    tokenizer, _ = tools(name)
    (encoded,) = encode([in_pieces([("a>", 2.0), ("\u0338 b", 0.0)], fresh=True)], tokenizer)  # NFC makes them one
    assert len(encoded.ids) > 3
    assert encoded.weights.tolist() == [2.0] + [0.0] * (len(encoded.ids) - 1)


# -- the choice --


def test_an_encoder_whose_ids_differ_on_awkward_texts_is_not_chosen_and_that_is_kept(tmp_path: Path) -> None:
    tokenizer = tools("demo")[0]
    [(ids, lengths)] = try_fast(tokenizer).ids
    wrong = Trial([(np.append(ids[:-1], ids[-1] + 1), lengths)])
    refused = Choice(encoders.REFERENCE, "its ids are not those of tokenizers on texts that were tried")
    assert choose(tmp_path, tokenizer, many=True) is None
    assert judge(tmp_path, tokenizer, wrong) == refused
    assert choose(tmp_path, tokenizer, many=True) == refused


def test_for_a_few_units_the_reference_is_chosen_without_a_trial(tmp_path: Path) -> None:
    assert choose(tmp_path, tools("demo")[0], many=False) == Choice(encoders.REFERENCE)


def test_why_the_fast_encoder_could_not_be_loaded_is_said(tmp_path: Path) -> None:
    trial = Trial(why_not="it does not take this tokenizer: no")
    assert judge(tmp_path, tools("demo")[0], trial) == Choice(encoders.REFERENCE, trial.why_not)


# -- a run --


def test_a_set_is_the_same_with_either_encoder(run: Run, tmp_path: Path) -> None:
    files = long_files(tmp_path, 1000)
    run("compile", *files, "-o", tmp_path / "fast")
    [(encoder, counts)] = encoded(tmp_path / "fast").items()
    assert encoder.startswith("fastokens ") and counts["texts_compared"] >= counts["units"] > 2

    (tmp_path / "cache").rename(tmp_path / "other")
    refuse(tmp_path / "cache", tools("demo")[0])
    run("compile", *files, "-o", tmp_path / "slow")
    assert next(iter(encoded(tmp_path / "slow"))).startswith("tokenizers ")
    assert manifest(tmp_path / "slow")["digest"] == manifest(tmp_path / "fast")["digest"]


def test_what_is_said_to_have_encoded_did_in_a_second_run_of_the_process_too(run: Run, tmp_path: Path) -> None:
    files = long_files(tmp_path, 1000)
    for seed in (0, 1):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        run("compile", *files, "--workers", 1, "--seed", seed, "-o", tmp_path / "out")
        [(encoder, counts)] = encoded(tmp_path / "out").items()
        assert encoder.startswith("fastokens ") and counts["texts_compared"] >= counts["units"]


def test_a_little_is_encoded_without_loading_another_encoder(run: Run, tmp_path: Path) -> None:
    run("compile", long_files(tmp_path, 3)[0], "-o", tmp_path / "out")
    assert next(iter(encoded(tmp_path / "out"))).startswith("tokenizers ")


def test_an_encoder_that_errs_while_it_runs_is_found_out_and_nothing_of_it_is_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = long_files(tmp_path, 1000)
    run("compile", *files, "-o", tmp_path / "right")
    (tmp_path / "cache").rename(tmp_path / "other")
    use_wrong(monkeypatch)
    result = run("compile", *files, "-o", tmp_path / "out")
    assert "fastokens and tokenizers gave different ids for a text of the data; what it encoded is" in result.stderr
    found = manifest(tmp_path / "out")
    assert [name.split()[0] for name in encoded(tmp_path / "out")] == ["tokenizers"]
    assert found["digest"] == manifest(tmp_path / "right")["digest"]


def test_an_encoder_that_does_not_take_a_tokenizer_is_not_used_and_why_is_said() -> None:
    found = encoders.load_fast(Specs(Forms({}, {}, None), b'{"type": "Unigram"}'))
    assert isinstance(found, str) and found.startswith("it does not take this tokenizer: ")


def test_workers_encode_with_the_reference_where_the_fast_encoder_does_not_take_the_tokenizer(
    run: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "unigram"
    shutil.copytree(registry.DEMO_TOKENIZER, folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made = HFTokenizer(models.Unigram([("<unk>", 0.0), *((letter, -1.0) for letter in sorted(alphabet))], 0))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    controls = [one["content"] for one in spec["added_tokens"]]
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in controls])
    made.save(str(folder / "tokenizer.json"))
    files, digests = long_files(tmp_path, 1000), []
    for workers in (2, 1):
        result = run("compile", *files, "-o", tmp_path / "out", "--tokenizer", folder, "--workers", workers)
        assert "fastokens is not used: it does not take this tokenizer: " in result.stderr
        digests.append(manifest(tmp_path / "out")["digest"])
        (tmp_path / "cache").rename(tmp_path / f"cache-{workers}")
    assert digests[0] == digests[1]


def test_workers_load_no_reference() -> None:
    files = TokenizerFiles.find(registry.DEMO_TOKENIZER)
    tokenizer = Tokenizer(files, files.spec())
    tokenizer.encode(["Hello"], fresh=True, encoder=encoders.FAST)
    assert "reference" not in tokenizer.__dict__


def test_what_the_cache_keeps_of_a_tokenizer_says_what_its_files_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def loaded(cache: Path | None) -> Tokenizer:
        monkeypatch.setattr("compiler.tokenizer.tokenizer._LOADED", {})
        return Tokenizer.load(registry.DEMO_TOKENIZER, cache, encodes=True)

    def facts(tokenizer: Tokenizer) -> dict[str, Any]:
        tables = {name: getattr(tokenizer, name) for name in ("is_control", "byte_lengths")}
        known = {name: value for name, value in vars(tokenizer).items() if name[0] != "_" and name != "reference"}
        return known | {name: None if table is None else table.tolist() for name, table in tables.items()}

    plain, first, kept = loaded(None), loaded(tmp_path), loaded(tmp_path)
    assert "reference" in vars(first) and not {"reference", "_specs"} & vars(kept).keys(), "it was not parsed again"
    assert facts(first) == facts(kept) == facts(plain)
    for encoder in (encoders.REFERENCE, encoders.FAST):
        one, other, third = (
            t.encode(["Hi <|im_end|> \n 你好"], fresh=True, encoder=encoder) for t in (plain, first, kept)
        )
        assert encoders.same(one, other) and encoders.same(one, third)
    assert plain.official.to_str() == first.official.to_str() == kept.official.to_str()


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("written", ["as it is", "as texts", "as pairs"])
def test_a_tokenizer_built_of_its_parsed_file_is_the_one_that_tokenizers_loads(name: str, written: str) -> None:
    spec = tools(name, TOKENIZERS[name])[0].files.spec()
    merges = spec["model"]["merges"]
    if written != "as it is":
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
        spec["model"]["merges"] = pairs if written == "as pairs" else [" ".join(pair) for pair in pairs]
    loaded = HFTokenizer.from_str(json.dumps(spec))
    loaded.no_truncation()
    loaded.no_padding()
    assert encoders.official_of(spec).to_str() == loaded.to_str()


def test_merges_of_parts_with_a_space_stay_pairs() -> None:
    vocab = {"a": 0, "b": 1, " ": 2, " b": 3, "a b": 4, "ab": 5}
    merges = [[" ", "b"], ["a", " b"], ["a", "b"]]
    spec = {"model": {"type": "BPE", "vocab": vocab, "merges": merges}, "added_tokens": []}
    specs = Specs.of(spec, [])
    assert encoders.ReferenceEncoder.of(specs).encode(["a b", "ab"], fresh=True)[0].tolist() == [4, 5]
    fast = encoders.load_fast(specs)
    assert isinstance(fast, encoders.FastEncoder)
    assert fast.encode(["a b", "ab"], fresh=True)[0].tolist() == [4, 5]


def test_a_fast_encoder_that_was_loaded_ahead_is_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("compiler.tokenizer.tokenizer._LOADED", {})
    begin_fast(str(registry.DEMO_TOKENIZER), str(tmp_path))
    tokenizer = Tokenizer.load(registry.DEMO_TOKENIZER, tmp_path)
    tokenizer.wait()
    assert {"fast", "reference"} <= vars(tokenizer).keys(), "the reference was built beside it"
    assert same_ids(tokenizer, ["Hi <|im_end|> \n 你好", " a", ""])
    assert not tokenizer.load_fast() and "reference" not in vars(tokenizer), "workers load no reference"


def test_what_begins_the_fast_encoder_imports_little() -> None:
    code = "import sys, compiler.tokenizer.ahead; print({'numpy', 'pyarrow', 'tokenizers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_encoder_is_loaded_ahead_where_the_cache_knows_the_tokenizer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for _ in range(2):
        monkeypatch.setattr("compiler.tokenizer.tokenizer._LOADED", {})
        begin_fast(str(registry.DEMO_TOKENIZER), str(tmp_path))
        tokenizer = Tokenizer.load(registry.DEMO_TOKENIZER, tmp_path)
    tokenizer.wait()
    assert "fast" not in vars(tokenizer)


def test_texts_that_are_equal_have_the_ids_of_each(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(registry.DEMO_TOKENIZER, tmp_path)
    some = ["You are a helpful assistant.", "", "Hi", "You are a helpful assistant.", "Hi", ""]
    ids, lengths = tokenizer.encode(some, fresh=True)
    alone = [tokenizer.official.encode(text, add_special_tokens=False).ids for text in some]
    assert ids.tolist() == [i for one in alone for i in one] and lengths.tolist() == [len(one) for one in alone]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(["", "Hi", " 你好" * 9, "Answer. " * 200, "One of the tools " * 90, "你好！" * 400])))
def test_the_fast_encoder_gives_texts_that_stand_there_again_the_same_ids(some: list[str]) -> None:
    assert same_ids(tools("demo", "auto")[0], some)


@pytest.mark.parametrize("change", ["damaged", "of another version"])
def test_what_the_cache_keeps_of_a_tokenizer_is_not_used_when_it_is(
    change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = Tokenizer.load(registry.DEMO_TOKENIZER).controls
    monkeypatch.setattr("compiler.tokenizer.tokenizer._LOADED", {})
    if change == "of another version":
        with monkeypatch.context() as other:
            other.setattr("compiler.cache.records.code_digest", lambda: "0" * 64)
            Tokenizer.load(registry.DEMO_TOKENIZER, tmp_path)
    else:
        Tokenizer.load(registry.DEMO_TOKENIZER, tmp_path)
    (record,) = (tmp_path / "objects").glob("??/*.json")
    checksum, data = record.read_bytes().split(b"\n", 1)
    wrong = data.replace(b"<|im_end|>", b"<|IM_END|>")
    assert wrong != data
    digest = checksum if change == "damaged" else xxhash.xxh3_128_hexdigest(wrong).encode()
    record.write_bytes(digest + b"\n" + wrong)
    monkeypatch.setattr("compiler.tokenizer.tokenizer._LOADED", {})
    assert Tokenizer.load(registry.DEMO_TOKENIZER, tmp_path).controls == expected
