"""`cli why`: what became of every source row of a set agrees with the balance of its manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import Result

from schemas import schema
from tests.support.sets import Row, manifest, one_message, qa, rows, write

Run = Callable[..., Result]

VALIDATOR = jsonschema.Draft202012Validator(schema("why"))


@pytest.fixture
def ask(run: Run, tmp_path: Path) -> Callable[..., Row]:
    """A function that gives the answer about one place."""

    def answer(out: Path, place: str, *more: str) -> Row:
        done = json.loads(run("why", out, place, "--json", "--cache", tmp_path / "cache", *more).stdout)
        VALIDATOR.validate(done)
        (found,) = done["rows"]
        return dict(found)

    return answer


def mixed(tmp_path: Path) -> tuple[Path, Path, Path]:
    """Three files: rows with duplicates within and across files, broken ones, documents of several examples' length."""
    first = [qa(f"question {i % 17}", f"answer {i % 17} " * 3, score=i % 4) for i in range(40)]
    bad: list[Row | str] = [{"instruction": 3, "score": 3}, "no JSON", qa("question 99", " ", score=2)]
    second = [{"messages": [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "r"}],
               "score": 3} for i in range(12)]  # fmt: skip
    second[5]["messages"][0]["content"] = second[4]["messages"][0]["content"]
    held = [qa(f"held {i % 3}", "answer", score=3) for i in range(4)]
    return (
        write(tmp_path / "a.jsonl", *first, *bad),
        write(tmp_path / "b.jsonl", *second),
        write(tmp_path / "held.jsonl", *held),
    )


@pytest.mark.parametrize("pack", [(), ("--pack", 64)], ids=["rows", "packs"])
def test_what_became_of_every_source_row_adds_up_to_the_balance(
    run: Run, ask: Callable[..., Row], tmp_path: Path, pack: tuple[Any, ...]
) -> None:
    a, b, held = mixed(tmp_path)
    out = tmp_path / "out"
    run(
        "compile", a, b, "--mix", "a:1,b:3", "--max-repeats", 1, "--dedup", "exact", "--where", "score > 0",
        "--test", held, "--val-size", 2, "--max-rejects", 5, "-o", out, *pack,
    )  # fmt: skip
    uses = Counter[tuple[str, int]]()
    for split in ("train", "val", "test"):
        for row in rows(out, split):
            numbers = row["row"] if pack else [row["row"]]
            names = row["dataset"] if pack else [row["dataset"]]
            uses.update(zip(names, numbers, strict=True))
    for entry in manifest(out)["datasets"]:
        found = Counter[str]()
        (file,) = entry["files"]
        for row in range(file["rows"]):
            answer = ask(out, f"{file['file']}:{row + 1}")
            assert answer["row"] == row and answer["possible"] == []
            assert len(answer["examples"]) == uses[entry["name"], row]
            found["in_shards"] += len(answer["examples"])
            found["repeats"] += max(0, len(answer["examples"]) - 1)
            found["rejected"] += len(answer["rejects"])
            found.update(one["outcome"] for one in answer["absent"])
        balance = entry["balance"]
        assert found["in_shards"] == balance["in_shards"] > 0
        assert (found["repeats"], found["rejected"]) == (balance["repeats"], balance["rejected"])
        assert (found["sampled_out"], found["left_out"]) == (balance["sampled_out"], balance["left_out"])
        assert found["duplicate"] == balance["duplicates"]
    total = manifest(out)["balance"]
    assert all(total[key] for key in ("repeats", "rejected", "sampled_out", "left_out", "duplicates"))


def test_a_duplicate_is_answered_with_the_first_row_that_says_the_same_also_of_another_file(
    run: Run, ask: Callable[..., Row], tmp_path: Path
) -> None:
    a = write(tmp_path / "a.jsonl", qa("q0"), qa("q1"), qa("q0"))
    b = write(tmp_path / "b.jsonl", {"messages": [
        {"role": "user", "content": "q1"}, {"role": "assistant", "content": "an answer"}]}, {"messages": [
        {"role": "user", "content": "q2"}, {"role": "assistant", "content": "an answer"}]})  # fmt: skip
    out = tmp_path / "out"
    run("compile", a, b, "--dedup", "exact", "-o", out)
    assert ask(out, f"{a}:3")["absent"] == [{"part": 0, "outcome": "duplicate", "of": f"{a}:1"}]
    assert ask(out, f"{b}:1")["absent"] == [{"part": 0, "outcome": "duplicate", "of": f"{a}:2"}]
    assert ask(out, f"{b}:2")["outcomes"] == ["in_shards"]
    a.unlink()  # the manifest alone still says that it can only be a duplicate
    answer = ask(out, f"{b}:1")
    assert answer["absent"] == [{"part": None, "outcome": "duplicate", "of": None}]
    assert f"{a} is not there" in " ".join(answer["remarks"])


def test_sources_that_changed_are_not_believed(run: Run, ask: Callable[..., Row], tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", *(qa(f"q{i % 4}") for i in range(8)))
    out = tmp_path / "out"
    run("compile", a, "--mix", "a#2", "--dedup", "exact", "-o", out)
    write(a, *(qa(f"other {i % 4}") for i in range(8)))
    gone = next(i for i in range(8) if i not in {row["row"] for row in rows(out)})
    answer = ask(out, f"{a}:{gone + 1}")
    assert answer["outcomes"] == ["unknown"] and answer["possible"] == ["sampled_out", "duplicate"]
    assert f"{a} is not the file that was compiled" in " ".join(answer["remarks"])
    for left in ([qa("one row")], [], ["no row of any format"]):
        write(a, *left)
        answer = ask(out, f"{a}:{gone + 1}")
        assert answer["outcomes"] == ["unknown"] and str(a) in " ".join(answer["remarks"])


def test_a_row_of_several_examples_is_answered_with_all_of_them(
    run: Run, ask: Callable[..., Row], tmp_path: Path
) -> None:
    texts = [" ".join(f"word{i}of{n}" for i in range(60)) for n in range(4)]
    documents = write(tmp_path / "d.jsonl", *({"text": text} for text in texts))
    out = tmp_path / "out"
    run("compile", documents, "--max-length", 50, "--mix", "d#9", "-o", out)
    found = [ask(out, f"{documents}:{n + 1}", "--sources") for n in range(4)]
    balance = manifest(out)["balance"]
    assert balance["expanded"] and balance["sampled_out"]
    assert sum(len(one["examples"]) for one in found) == 9
    assert sum(len(one["absent"]) for one in found) == balance["sampled_out"]
    for one in found:
        parts = [example["part"] for example in (*one["examples"], *one["absent"])]
        assert sorted(parts) == list(range(len(parts)))
    remark = next(r for n in range(4) for r in ask(out, f"{documents}:{n + 1}")["remarks"])
    assert "--sources tells" in remark


def test_datasets_of_a_recipe_are_read_again_each_with_its_own_columns_and_condition(
    run: Run, ask: Callable[..., Row], tmp_path: Path
) -> None:
    chats = write(tmp_path / "chats.jsonl", *({"q": f"q{n % 8}", "a": "a", "score": n} for n in range(12)))
    plain = write(tmp_path / "plain.jsonl", *(qa(f"q{n}") for n in range(6)))
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(
        f"datasets:\n  chats:\n    path: {chats}\n    columns: {{instruction: q, output: a}}\n    where: score >= 3\n"
        f"    rows: 2\n  plain: {{path: {plain}, rows: 4}}\ndedup: exact\n"
    )
    run("compile", recipe, "-o", out)
    for entry in manifest(out)["datasets"]:
        (file,) = entry["files"]
        answers = [ask(out, f"{file['file']}:{row + 1}") for row in range(file["rows"])]
        found = Counter(outcome for answer in answers for outcome in answer["outcomes"])
        balance = entry["balance"]
        assert found["left_out"] == balance.get("left_out", 0)
        assert (found["sampled_out"], found["duplicate"]) == (balance["sampled_out"], balance["duplicates"])
    assert manifest(out)["balance"]["left_out"] == 3
    assert "--where 'score >= 3' left out 3 rows of chats" in ask(out, f"{chats}:1")["remarks"]


def test_a_pair_is_answered_with_the_tokens_of_both_sides(run: Run, ask: Callable[..., Row], tmp_path: Path) -> None:
    pairs = write(
        tmp_path / "p.jsonl", *({"instruction": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(3))
    )
    out = tmp_path / "out"
    run("compile", pairs, "-o", out)
    (example,) = ask(out, f"{pairs}:2")["examples"]
    (row,) = [row for row in rows(out) if row["row"] == 1]
    sides = [row["labels"], row["rejected_labels"]]
    assert example["tokens"] == sum(map(len, sides))
    assert example["trained_tokens"] == sum(label != -100 for side in sides for label in side)


def test_what_cannot_be_answered_is_one_message(run: Run, tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", *(qa(f"q{i % 4}") for i in range(8)))
    out = tmp_path / "out"
    run("compile", a, "--mix", "a#2", "-o", out)
    assert "expected FILE:LINE or FILE#/ROW" in one_message(run("why", out, "7", code=2).stderr)
    said = one_message(run("why", out, f"{a}:99", code=2).stderr)
    assert f"no row begins on this line\n  The nearest: {a}:8" in said
    assert "no such file in the set" in one_message(run("why", out, "b.jsonl:1", code=2).stderr)
    assert "expected the folder of a compiled set" in one_message(run("why", a, f"{a}:1", code=2).stderr)
    assert "no such folder" in one_message(run("why", tmp_path / "none", f"{a}:1", code=5).stderr)
    gone = next(i for i in range(8) if i not in {row["row"] for row in rows(out)})
    shard = out / "train" / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[manifest(out)["splits"]["train"]["shards"][0]["batches"][0]["offset"] + 700] ^= 1
    shard.write_bytes(data)
    assert "train/shard-00000.arrow: batch 0" in one_message(run("why", out, f"{a}:{gone + 1}", code=4).stderr)
    (out / "manifest.json").unlink()
    assert "no manifest.json" in one_message(run("why", out, f"{a}:1", code=5).stderr)
