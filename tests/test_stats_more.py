"""`cli stats --near` and `--languages`: of files and of sets, with and without the extras that they need."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from click.testing import Result

from schemas import schema
from tests.support.sets import Row, entry, one_message, qa, write

Run = Callable[..., Result]

VALIDATOR = jsonschema.Draft202012Validator(schema("stats"))
ENGLISH = (
    "The kettle stands on the stove and will whistle soon.",
    "Which of these rivers is longer, and where does it begin?",
    "Please write a short letter to the landlord about the broken window.",
)
CHINESE = (
    "水壶放在炉子上，很快就会响。", "这两条河哪一条更长，从什么地方开始？", "请给房东写一封短信，说窗户坏了。",
)  # fmt: skip
GERMAN = (
    "Der Kessel steht auf dem Herd und wird pfeifen.",
    "Welcher dieser Flüsse ist länger, und wo beginnt er?",
)


@pytest.fixture
def stats(run: Run, tmp_path: Path) -> Callable[..., Row]:
    """A function that gives the figures of a set or of files."""

    def figures(*given: object) -> Row:
        found: Row = json.loads(run("stats", *given, "--json", "--cache", tmp_path / "cache").stdout)
        VALIDATOR.validate(found)
        return found

    return figures


def repetitive(tmp_path: Path) -> Path:
    """Sixty rows, of which one in three is told up to four times, with another last word each."""
    chance = random.Random(2)
    told = [" ".join(f"word{chance.randrange(900)}" for _ in range(60)) for _ in range(30)]
    rows = [qa(told[i % 30] + f" end{i // 30}" * (i % 3 == 0), "an answer") for i in range(100)]
    return write(tmp_path / "a.jsonl", *(row for i, row in enumerate(rows) if i < 30 or i % 3 == 0))


def test_near_duplicates_of_files_are_those_that_a_compile_would_drop(
    run: Run, stats: Callable[..., Row], tmp_path: Path
) -> None:
    pytest.importorskip("rensa")
    file, out = repetitive(tmp_path), tmp_path / "out"
    (found,) = stats(file, "--near", 0.8, "--sample", 0)["datasets"]
    run("compile", file, "--dedup", "near:0.8", "-o", out)
    dropped, read = entry(out)["balance"]["duplicates"], entry(out)["balance"]["read"]
    assert (found["near"]["rows"], found["near"]["repeated"]) == (read, dropped) and dropped > 20
    assert found["near"] == {
        "threshold": 0.8, "rows": read, "repeated": dropped, "groups": 10, "share": round(dropped / read, 6),
    }  # fmt: skip
    done = json.loads(run("compile", file, "--dedup", "near:0.7", "--json", "-o", out).stdout)
    assert done["units_compiled"] == 0, "stats compiled them"
    assert f"{dropped / read:.1%}" in run("stats", file, "--near", 0.8, "--cache", tmp_path / "cache").stdout


@pytest.mark.parametrize("pack", [(), ("--pack", 512)], ids=["rows", "packs"])
def test_near_duplicates_of_a_set_are_counted_by_its_tokens_and_without_the_repeats_of_the_mix(
    run: Run, stats: Callable[..., Row], tmp_path: Path, pack: tuple[object, ...]
) -> None:
    pytest.importorskip("rensa")
    file, out = repetitive(tmp_path), tmp_path / "out"
    (of_file,) = stats(file, "--near", 0.8)["datasets"]
    rows = of_file["near"]["rows"]
    run("compile", file, "--mix", f"a#{2 * rows}", "--max-repeats", 1, "-o", out, *pack)
    found = stats(out, "--near", 0.8)
    assert found["near"] == {"a": of_file["near"]}
    assert "repeat another" in run("stats", out, "--near", 0.8).stdout


def test_the_languages_of_files_and_of_a_set_are_those_of_their_rows(
    run: Run, stats: Callable[..., Row], tmp_path: Path
) -> None:
    pytest.importorskip("py3langid")
    told = [*ENGLISH * 2, *CHINESE, *GERMAN]
    file, out = write(tmp_path / "a.jsonl", *(qa(one, f"{one} {one}") for one in told)), tmp_path / "out"
    (found,) = stats(file, "--languages", "--sample", 0)["datasets"]
    languages = found["languages"]
    assert (languages["sample"], languages["exact"]) == (11, True)
    counted = {one["language"]: (one["rows"], one["share"], one["error"]) for one in languages["shares"]}
    assert counted == {"en": (6, 0.545455, 0.0), "zh": (3, 0.272727, 0.0), "de": (2, 0.181818, 0.0)}
    run("compile", file, "-o", out)
    assert stats(out, "--languages")["languages"] == {"a": languages}
    assert "a: zh" in run("stats", out, "--languages").stdout
    many = write(tmp_path / "b.jsonl", *(qa(told[i % 11], told[i % 11]) for i in range(1500)))
    (sampled,) = stats(many, "--languages", "--sample", 0)["datasets"]
    share = {one["language"]: one for one in sampled["languages"]["shares"]}
    assert sampled["languages"]["sample"] == 1000 and not sampled["languages"]["exact"]
    assert abs(share["zh"]["share"] - 3 / 11) <= 1.5 * share["zh"]["error"] < 0.05


def test_what_near_and_languages_cannot_be_is_one_message(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.jsonl", qa("q"))
    for option in ("--seed", "--tokenizer"):
        said = one_message(run("stats", file, option, 3, "--sample", 0, code=2).stderr)
        assert "it is about tokens, and --sample 0 counts none" in said
    said = one_message(run("stats", file, "--near", 8, code=2).stderr)
    assert "--near 8: expected a similarity from 0.3 to 1, found '8'" in said
    for module, option, extra in (("rensa", ("--near", 0.8), "near"), ("py3langid", ("--languages",), "languages")):
        monkeypatch.setitem(sys.modules, module, None)
        said = one_message(run("stats", file, *option, code=2).stderr)
        assert module in said and f"[{extra}]" in said
