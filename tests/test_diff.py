"""`cli diff`: sets made by known edits of their sources differ in exactly these rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
from click.testing import Result

from schemas import schema
from tests.support.sets import Row, manifest, one_message, qa, rows, write

Run = Callable[..., Result]

VALIDATOR = jsonschema.Draft202012Validator(schema("diff"))
NOTHING = dict.fromkeys(("added", "removed", "text", "mask", "weights", "split", "order"), 0)


def compare(run: Run, a: Path, b: Path, *more: object) -> Row:
    found: Row = json.loads(run("diff", a, b, "--json", "--limit", 100, *more).stdout)
    VALIDATOR.validate(found)
    return found


def chat(i: int, text: str = "", **more: Any) -> Row:
    said = {"role": "assistant", "content": f"answer {i} {text}"}
    first = [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "hm"}]
    return {"messages": [*first, {"role": "user", "content": "go on"}, said | more]}


def places(found: Row, kind: str) -> list[str]:
    return sorted(row["place"] for row in found["examples"].get(kind, ()))


def test_edits_of_the_sources_are_listed_row_by_row(run: Run, tmp_path: Path) -> None:
    file, out = tmp_path / "x.jsonl", [tmp_path / name for name in ("a", "b", "p", "q")]
    before = [chat(i) for i in range(30)]
    after = [*map(dict, before), chat(30), chat(31)]
    after[3], after[17] = chat(3, "edited"), chat(17, "edited")
    after[5] = chat(5, weight=0)
    after[8] = chat(8, weight=0.5)
    after[29] = {"messages": "no list"}  # the last one: the order hangs on how many examples come before
    write(file, *before)
    run("compile", file, "-o", out[0])
    run("compile", file, "--pack", 128, "-o", out[2])
    write(file, *after)
    run("compile", file, "--max-rejects", 1, "-o", out[1])
    run("compile", file, "--max-rejects", 1, "--pack", 96, "-o", out[3])
    found = compare(run, out[0], out[1])
    assert not found["equal"]
    expected = NOTHING | {"added": 2, "removed": 1, "text": 2, "mask": 1, "weights": 1}
    assert found["counts"] == expected and found["by_dataset"] == {"x": expected}
    assert places(found, "added") == [f"{file}:31", f"{file}:32"]
    assert places(found, "removed") == [f"{file}:30"]
    assert places(found, "text") == [f"{file}:18", f"{file}:4"]
    assert (places(found, "mask"), places(found, "weights")) == ([f"{file}:6"], [f"{file}:9"])
    for kind, column in (("text", "input_ids"), ("mask", "labels"), ("weights", "loss_weights")):
        for row in found["examples"][kind]:
            mine, other = (rows(one)[row[side]["row"]] for one, side in zip(out, "ab", strict=False))
            assert mine["row"] == other["row"]
            first, at = row["first_difference"]["token"], row["first_difference"]["column"]
            assert at == column
            left, right = mine[column] or [], other[column] or []
            assert left[:first] == right[:first] and left[first : first + 1] != right[first : first + 1]
    assert found["datasets"]["x"]["rejected schema"] == [None, 1]
    packed = compare(run, out[2], out[3])
    # which examples share a pack depends on their lengths, and so does their order
    assert packed["counts"] | {"order": 0} == expected
    text = run("diff", out[0], out[1]).stdout.splitlines()
    assert text[0].startswith("different: content_digest ")
    assert "same text, other labels: 1" in text


def test_equal_sets_are_said_to_be_equal_and_options_that_had_no_effect_are_named(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", *(qa(f"q{i}") for i in range(9)))
    run("compile", file, "-o", tmp_path / "a")
    run("compile", file, "--max-rejects", 5, "-o", tmp_path / "b")
    found = compare(run, tmp_path / "a", tmp_path / "b")
    assert found["equal"] and found["counts"] == NOTHING
    assert found["settings"] == {"option max_rejects": ["1%", "5"]}
    assert run("diff", tmp_path / "a", tmp_path / "b").stdout.startswith("equal: content_digest ")


def test_another_order_and_another_split_change_no_text(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", *(qa(f"q{i}") for i in range(12)))
    for name, *more in (("a",), ("seed", "--seed", 1), ("val", "--val-size", 3)):
        run("compile", file, *more, "-o", tmp_path / name)
    order = [[row["row"] for row in rows(tmp_path / name)] for name in ("a", "seed")]
    found = compare(run, tmp_path / "a", tmp_path / "seed")
    moved = sum(x != y for x, y in zip(*order, strict=True))
    assert found["counts"] == NOTHING | {"order": moved} and moved
    assert found["settings"] == {"seed": [0, 1]}
    assert compare(run, tmp_path / "a", tmp_path / "val")["counts"] == NOTHING | {"split": 3}


def test_a_line_put_in_is_remarked_as_what_it_is(run: Run, tmp_path: Path) -> None:
    """Rows are known by their number, so those behind it are all changed."""
    file = tmp_path / "x.jsonl"
    some = [qa(f"q{i}") for i in range(10)]
    run("compile", write(file, *some), "-o", tmp_path / "a")
    run("compile", write(file, *some[:4], qa("new"), *some[4:]), "-o", tmp_path / "b")
    found = compare(run, tmp_path / "a", tmp_path / "b")
    assert (found["counts"]["text"], found["counts"]["added"]) == (6, 1)
    (remark,) = found["remarks"]
    assert remark.startswith("6 of the rows") and "a line was put in" in remark


def test_pairs_and_labels_are_compared_on_both_sides(run: Run, tmp_path: Path) -> None:
    pairs = [{"instruction": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(6)]
    run("compile", write(tmp_path / "p.jsonl", *pairs), "-o", tmp_path / "a")
    pairs[2] = pairs[2] | {"rejected": "never"}
    run("compile", write(tmp_path / "p.jsonl", *pairs), "-o", tmp_path / "b")
    found = compare(run, tmp_path / "a", tmp_path / "b")
    assert found["counts"] == NOTHING | {"text": 1}
    assert found["examples"]["text"][0]["first_difference"]["column"] == "rejected_input_ids"
    labelled = [{"instruction": f"q{i}", "output": "a", "kto_tag": i % 2 == 0} for i in range(6)]
    run("compile", write(tmp_path / "k.jsonl", *labelled), "-o", tmp_path / "c")
    labelled[3]["kto_tag"] = True
    run("compile", write(tmp_path / "k.jsonl", *labelled), "-o", tmp_path / "d")
    assert compare(run, tmp_path / "c", tmp_path / "d")["counts"] == NOTHING | {"mask": 1}
    said = one_message(run("diff", tmp_path / "a", tmp_path / "c", code=2).stderr)
    assert "expected sets of one kind, found preference and kto" in said


def test_what_cannot_be_compared_is_one_message(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", *(qa(f"q{i}") for i in range(9)))
    run("compile", file, "-o", tmp_path / "a")
    run("compile", file, "--seed", 1, "-o", tmp_path / "b")
    assert "found a file" in one_message(run("diff", tmp_path / "a", file, code=2).stderr)
    assert "no such folder" in one_message(run("diff", tmp_path / "none", tmp_path / "a", code=5).stderr)
    shard = tmp_path / "b" / "train" / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[manifest(tmp_path / "b")["splits"]["train"]["shards"][0]["batches"][0]["offset"] + 700] ^= 1
    shard.write_bytes(data)
    assert "shard-00000.arrow: batch 0" in one_message(run("diff", tmp_path / "a", tmp_path / "b", code=4).stderr)
    shutil.rmtree(tmp_path / "b" / "train")
    assert "shard-00000.arrow" in one_message(run("diff", tmp_path / "a", tmp_path / "b", code=4).stderr)


def test_a_report_says_what_changed_since_an_earlier_set(run: Run, tmp_path: Path) -> None:
    name = "chats<b>.jsonl"
    file = write(tmp_path / name, *(chat(i) for i in range(9)))
    run("compile", f"chats={file}", "--format", "openai", "-o", tmp_path / "a")
    write(file, *(chat(i, "another text" if i == 3 else "") for i in range(8)), chat(8), chat(9))
    run("compile", f"chats={file}", "--format", "openai", "--seed", 5, "-o", tmp_path / "b")
    done = run("report", tmp_path / "b", "--against", tmp_path / "a", "-o", tmp_path / "report.html", "--json")
    said = json.loads(done.stdout)
    jsonschema.validate(said, schema("report"))
    assert said["changes"] == compare(run, tmp_path / "a", tmp_path / "b")["counts"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    changes = page[page.index('<section id="changes">') : page.index('<section id="rows">')]
    assert "<h3>only in B: 1</h3>" in changes and "<h3>other text: 1</h3>" in changes
    assert "chats&lt;b&gt;.jsonl:4 (A train row" in changes and name not in changes
    assert "<th>seed<td>0<td>5</tr>" in changes
    run("report", tmp_path / "b", "--against", tmp_path / "b", "-o", tmp_path / "report.html")
    assert "The content of both is equal." in (tmp_path / "report.html").read_text(encoding="utf-8")
