"""`--dedup near`: what goes is as similar as was asked, by a similarity that is computed here in another way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import jsonschema
import pyarrow as pa
import pytest
from click.testing import Result

from schemas import schema
from tests.support.command import outside
from tests.support.sets import entry, manifest, one_message, qa, rejects, rows, write
from tests.support.shared import shared

Run = Callable[..., Result]
Pairs = dict[tuple[int, int], float]

pytest.importorskip("rensa", reason="near duplicates need the extra near")

ROOT = Path(__file__).resolve().parent.parent
SYLLABLES = ["ka", "lo", "mi", "ru", "se", "ta", "vo", "ne", "pi", "du", "ga", "fe", "xo", "zi", "bu", "wa"]
HAN = "天地人你我他大小上下来去年月日时分水火山石田土木金花草鸟鱼虫马牛羊车船路门窗书笔纸字文学校生老师朋友家国城市村"


def by_hand(text: str) -> frozenset[tuple[str, ...]]:
    """The shingles of a text, character by character: three words in a row, and each Chinese character is a word."""
    found, word = [], ""
    for sign in unicodedata.normalize("NFKC", text).casefold():
        han = unicodedata.name(sign, "").startswith("CJK UNIFIED")
        if sign.isalnum() and not han:
            word += sign
            continue
        found += [word] * bool(word) + [sign] * han
        word = ""
    found += [word] * bool(word)
    size = min(3, len(found))
    return frozenset(tuple(found[i : i + size]) for i in range(len(found) - size + 1))


def similar(texts: list[str], threshold: float) -> Pairs:
    """The pairs of texts with at least this Jaccard similarity, each with each."""
    sets = list(map(by_hand, texts))
    found = {}
    for i, j in combinations(range(len(sets)), 2):
        both = len(sets[i] & sets[j])
        similarity = both / (len(sets[i]) + len(sets[j]) - both)
        if similarity >= threshold:
            found[i, j] = similarity
    return found


def english(chance: random.Random, count: int) -> str:
    words = ("".join(chance.choices(SYLLABLES, k=chance.randint(1, 3))) for _ in range(count))
    return " ".join(word.title() if chance.random() < 0.1 else word for word in words)


def chinese(chance: random.Random, count: int) -> str:
    return "".join(chance.choice(HAN) + ("，" if chance.random() < 0.1 else "") for _ in range(count))


def edited(text: str, edits: int, chance: random.Random) -> str:
    """The text with words or characters replaced, removed and put in, and with other punctuation and case."""
    han = " " not in text
    words = list(text) if han else text.split(" ")
    for _ in range(edits):
        at = chance.randrange(len(words))
        new = chance.choice(HAN) if han else english(chance, 1)
        words[at : at + chance.randint(0, 1)] = [new] if chance.random() < 0.7 else []
    return "".join(words).replace("，", "。") if han else " ".join(words).upper() + " !"


def gone_of(out: Path, count: int) -> tuple[set[int], set[int]]:
    """The rows of the only dataset that are in the set, and those that are not."""
    there = {row["row"] for row in rows(out)}
    return there, set(range(count)) - there


def check(texts: list[str], out: Path, threshold: float) -> int:
    """Every row that is gone is similar to one that is there; no two that are there are similar. How many are gone."""
    pairs = similar(texts, threshold)
    there, gone = gone_of(out, len(texts))
    for row in gone:
        assert any(row in pair and (there & {*pair}) for pair in pairs), texts[row]
    assert [pair for pair in pairs if there >= {*pair}] == []
    return len(gone)


@pytest.mark.parametrize("make", [english, chinese])
def test_rows_with_small_edits_go_and_unlike_ones_stay_in_english_and_chinese(
    run: Run, tmp_path: Path, make: Callable[[random.Random, int], str]
) -> None:
    chance = random.Random(5)
    pairs = [(make(chance, 20), make(chance, chance.randint(5, 120))) for _ in range(120)]
    pairs += [(q, edited(a, chance.randint(1, 6), chance)) for q, a in chance.sample(pairs, 60)]
    chance.shuffle(pairs)
    texts = [f"{q}\n{a}" for q, a in pairs]
    file = write(tmp_path / "a.jsonl", *(qa(q, a) for q, a in pairs))
    found = {}
    for threshold in (0.5, 0.8, 0.95):
        out = tmp_path / f"{threshold}"
        run("compile", file, "--dedup", f"near:{threshold}", "-o", out)
        found[threshold] = check(texts, out, threshold)
        assert entry(out)["near_duplicates"] == entry(out)["balance"]["duplicates"] == found[threshold]
        run("verify", out)
    assert 60 >= found[0.5] > found[0.8] > found[0.95] > 0


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.6, 0.8])
def test_duplicates_planted_in_real_rows_are_found_and_no_others(run: Run, tmp_path: Path, threshold: float) -> None:
    chance = random.Random(11)
    alpaca = json.loads(shared("data", "llamafactory", "alpaca_en_demo.json").read_text("utf-8"))[:250]
    pairs = [(f"{row['instruction']}\n{row['input']}", row["output"]) for row in alpaca]
    for line in shared("data", "advertisegen", "dev.jsonl").read_text("utf-8").splitlines()[:250]:
        row = json.loads(line)
        pairs.append((row["content"], row["summary"]))
    for q, a in chance.sample(pairs, 120):
        pairs.append((q, edited(a, max(1, len(a) // 100), chance)))
    texts = [f"{q}\n{a}" for q, a in pairs]
    run("compile", write(tmp_path / "a.jsonl", *(qa(*one) for one in pairs)), "--dedup", f"near:{threshold}", "-o",
        tmp_path / "out", "--max-rejects", "5%")  # fmt: skip
    assert rejects(tmp_path / "out" / "rejects.jsonl") == []
    assert check(texts, tmp_path / "out", threshold) > 40


LONG = english(random.Random(1), 60)


def test_the_row_that_stays_is_named_with_the_similarity_of_the_two(run: Run, tmp_path: Path) -> None:
    texts = [LONG, f"{LONG} and more", "another", LONG.lower(), LONG]
    file = write(tmp_path / "a.jsonl", *(qa(one, "a") for one in texts))
    out = tmp_path / "out"
    run("compile", file, "--dedup", "near", "-o", out)
    (stays,) = {0, 1, 3} & gone_of(out, 5)[0]
    pairs = similar([f"{one}\na" for one in texts], 0.8)
    assert gone_of(out, 5)[1] == {0, 1, 3, 4} - {stays}
    for row in {0, 1, 3, 4} - {stays}:
        done = json.loads(run("why", out, f"{file}:{row + 1}", "--json", "--cache", tmp_path / "cache").stdout)
        jsonschema.Draft202012Validator(schema("why")).validate(done)
        (absent,) = done["rows"][0]["absent"]
        assert (absent["outcome"], absent["of"]) == ("duplicate", f"{file}:{stays + 1}")
        assert absent["similarity"] == pytest.approx(pairs[min(row, stays), max(row, stays)], abs=1e-5)
    said = run("why", out, f"{file}:5", "--cache", tmp_path / "cache").stdout
    assert f"dropped as a duplicate of {file}:{stays + 1} (similarity" in said
    balance, found = entry(out)["balance"], entry(out)
    assert (balance["read"], balance["in_shards"], balance["duplicates"], found["near_duplicates"]) == (5, 2, 3, 2)
    assert "2 of 3 duplicates are near ones" in run("compile", file, "--dedup", "near", "-o", out).stdout


def test_the_first_dataset_of_the_mix_keeps_its_rows_and_within_one_the_seed_decides(run: Run, tmp_path: Path) -> None:
    chance = random.Random(3)
    first = [english(chance, 50) for _ in range(12)]
    a = write(tmp_path / "a.jsonl", *(qa(one) for one in first))
    b = write(tmp_path / "b.jsonl", *(qa(f"{one} {word}") for one in first for word in ("more", "less")))
    run("compile", a, b, "--dedup", "near:0.7", "-o", tmp_path / "both")
    assert {row["dataset"] for row in rows(tmp_path / "both")} == {"a"}
    stay = []
    for seed in (0, 1):
        run("compile", b, "--dedup", "near:0.7", "--seed", seed, "-o", tmp_path / "b")
        stay.append({row["row"] for row in rows(tmp_path / "b")})
        assert {row // 2 for row in stay[-1]} == set(range(12)) and len(stay[-1]) == 12
    assert stay[0] != stay[1]


def test_what_no_text_shows_keeps_rows_apart_and_a_shared_system_text_does_not_join_them(
    run: Run, tmp_path: Path
) -> None:
    kto = [
        {"conversations": [{"from": "human", "value": LONG}, {"from": "gpt", "value": "a"}], "kto_tag": tag}
        for tag in (True, False)
    ]
    run("compile", write(tmp_path / "kto.jsonl", *kto), "--dedup", "near", "-o", tmp_path / "kto")
    assert len(rows(tmp_path / "kto")) == 2
    systems = [qa(f"short question {i}", f"reply number {i}", system=LONG) for i in range(4)]
    run("compile", write(tmp_path / "s.jsonl", *systems), "--dedup", "near", "-o", tmp_path / "system")
    assert len(rows(tmp_path / "system")) == 4
    splits = [write(tmp_path / f"{name}.jsonl", qa(LONG)) for name in ("train", "held")]
    run("compile", splits[0], "--test", splits[1], "--dedup", "near", "-o", tmp_path / "split")
    assert len(rows(tmp_path / "split")) == len(rows(tmp_path / "split", "test")) == 1


@pytest.mark.slow
def test_workers_the_cache_and_the_seed_of_pythons_hashes_change_nothing(tmp_path: Path) -> None:
    chance = random.Random(8)
    texts = [english(chance, 200) for _ in range(1500)]
    texts += [edited(one, 3, chance) for one in texts[:300]]
    file = write(tmp_path / "a.jsonl", *(qa(one, "an answer") for one in texts))
    assert file.stat().st_size > 3 << 19, "of several units"
    found = set()
    for workers, cache, seed in (("1", "x", "1"), ("2", "y", "2"), ("2", "x", "3")):
        command = [sys.executable, str(ROOT / "cli.py"), "compile", str(file), "--dedup", "near", "--json"]
        command += ["--workers", workers, "--cache", str(tmp_path / cache), "-o", str(tmp_path / "out")]
        environment = outside() | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "RAYON_NUM_THREADS": workers}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
        found.add(json.loads(done.stdout)["digest"])
    assert len(found) == 1
    assert entry(tmp_path / "out")["near_duplicates"] > 200


def test_other_thresholds_use_the_same_objects_and_a_compile_without_them_keeps_nothing_for_them(
    run: Run, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.jsonl", *(qa(f"{LONG} {i}") for i in range(3)))

    def made(*more: object) -> tuple[int, int]:
        done = json.loads(run("compile", file, "--json", "-o", tmp_path / "out", *more).stdout)
        return done["units_compiled"], done["units_cached"]

    assert made() == (1, 0)
    (plain,) = (tmp_path / "cache" / "objects").glob("??/*.arrow")
    assert not {"signature", "shingles"} & set(pa.ipc.open_file(plain).schema.names)
    assert made("--dedup", "exact") == (0, 1)
    assert made("--dedup", "near") == (1, 0)
    assert made("--dedup", "near:0.5") == (0, 1)
    assert manifest(tmp_path / "out")["options"]["dedup"] == "near:0.5"
    assert manifest(tmp_path / "out")["options"]["minhash"].startswith("rensa ")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("nearly", "did you mean 'near'? known: exact, near"),
        ("near:", "expected a similarity from 0.3 to 1, found ''"),
        ("near:80", "found '80'"),
        ("near:0.1", "found '0.1'"),
        ("near:nan", "found 'nan'"),
        ("exact:0.8", "known: exact, near"),
    ],
)
def test_what_dedup_cannot_be_is_one_message(run: Run, tmp_path: Path, asked: str, said: str) -> None:
    file = write(tmp_path / "a.jsonl", qa("q"))
    assert said in one_message(run("compile", file, "--dedup", asked, "-o", tmp_path / "out", code=2).stderr)


def test_without_the_library_the_message_says_how_to_install_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    file = write(tmp_path / "a.jsonl", qa("q"))
    said = one_message(run("compile", file, "--dedup", "near", "-o", tmp_path / "out", code=2).stderr)
    assert "rensa" in said and "[near]" in said
    run("compile", file, "--dedup", "exact", "-o", tmp_path / "out")


def test_why_without_the_library_says_that_it_is_missing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = write(tmp_path / "a.jsonl", qa(LONG), qa(f"{LONG} more")), tmp_path / "out"
    run("compile", file, "--dedup", "near", "-o", out)
    (gone,) = gone_of(out, 2)[1]
    monkeypatch.setitem(sys.modules, "rensa", None)
    said = run("why", out, f"{file}:{gone + 1}", "--cache", tmp_path / "cache").stdout
    assert "dropped as a duplicate" in said and "near duplicates are found with rensa" in said


def test_a_recipe_and_the_set_itself_remember_it(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", qa(LONG), qa(f"{LONG} more"))
    out, again = tmp_path / "out", tmp_path / "again"
    run("compile", file, "--dedup", "near:0.9", "-o", out, "--save-recipe", tmp_path / "r.yaml")
    for asked in ((tmp_path / "r.yaml",), ("--from", out)):
        run("compile", *asked, "-o", again)
        assert manifest(again)["digest"] == manifest(out)["digest"]
    (tmp_path / "r.yaml").write_text(f"files: [{os.path.relpath(file, tmp_path)}]\ndedup: near:2\n")
    assert "dedup" in one_message(run("compile", tmp_path / "r.yaml", "-o", again, code=2).stderr)
