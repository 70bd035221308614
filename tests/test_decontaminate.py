"""`--decontaminate`: exactly the rows go that share text with a benchmark, by a count that is made here otherwise."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from compiler.rows.overlap import benchmarks
from tests.support.sets import Row, entry, manifest, one_message, qa, rejects, rows, write

Run = Callable[..., Result]

GSM8K = {
    "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "answer": "Natalia sold 48/2 = 24 clips in May.\n#### 72",
}
CHINESE = {
    "question": "小明有十二个苹果，他给了小红三个，又从商店买了五个苹果，请问小明现在一共有多少个苹果？",
    "answer": "14",
}
MMLU = {
    "question": "Which one is it?",
    "choices": [
        "a short one",
        "the one of which the treaty says that it must never be sold to a stranger",
        "no",
        "both",
    ],
    "answer": 1,
}


def words(text: str) -> list[str]:
    """Words of lower-case English and single Chinese characters, as these tests have them."""
    return re.findall(r"[\u4e00-\u9fff]|[a-z0-9]+", text.lower())


def runs(text: str, size: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + size]) for i in range(len(found) - size + 1)}


def shared_part(text: str, row: str, size: int) -> float:
    """The part of the words of a benchmark's text that are in runs which the row has too, word by word."""
    mine, found = runs(row, size), words(text)
    covered = set()
    for i in range(len(found) - size + 1):
        if tuple(found[i : i + size]) in mine:
            covered |= {*range(i, i + size)}
    return len(covered) / len(found)


@pytest.mark.parametrize(
    ("options", "size", "threshold"),
    [((), 8, 0.5), (("--decontaminate-threshold", 0.2), 8, 0.2), (("--decontaminate-ngram", 13), 13, 0.0)],
)
def test_exactly_the_rows_that_share_so_much_text_go(
    run: Run, tmp_path: Path, options: tuple[object, ...], size: int, threshold: float
) -> None:
    chance = random.Random(4)
    known = [f"w{i}" for i in range(400)] + list("天地人你我他大小上下来去年月日时分")
    texts = [" ".join(chance.choices(known, k=chance.randint(3, 40))) for _ in range(40)]
    told = []
    for _ in range(150):
        source = chance.choice(texts).split()
        low = chance.randrange(len(source))
        piece = source[low : low + chance.randint(1, 30)]
        told.append(" ".join([*chance.choices(known, k=10), *piece, *chance.choices(known, k=10)]))
    benchmark = write(tmp_path / "bench.jsonl", *({"question": one, "n": 3} for one in texts))
    file = write(tmp_path / "a.jsonl", *(qa(one, "ok") for one in told))
    out = tmp_path / "out"
    run("compile", file, "--decontaminate", benchmark, *options, "-o", out)
    parts = [max(shared_part(text, f"{row} ok", size) for text in texts) for row in told]
    gone = {i for i, part in enumerate(parts) if part > threshold}
    assert 10 < len(gone) < 140
    assert {row["row"] for row in rows(out)} == {*range(150)} - gone
    listed = rejects(out / "rejects.jsonl")
    assert {one["row"] for one in listed} == gone
    for one in listed:
        found = re.fullmatch(
            rf"(\d+)% of the words of a text of {re.escape(str(benchmark))}:(\d+) are in it, in runs of (\d+) such as "
            "'(.*)'",
            one["message"],
        )
        assert found and int(found[3]) == size
        text, run_ = texts[int(found[2]) - 1], tuple(words(found[4]))
        assert run_ in runs(text, size) and run_ in runs(told[one["row"]], size)
        part = shared_part(text, f"{told[one['row']]} ok", size)
        assert part == max(parts[one["row"]], part) and f"{part:.0%}" == f"{found[1]}%"


def test_benchmarks_of_any_shape_are_read_and_what_goes_is_counted_listed_and_explained(
    run: Run, tmp_path: Path
) -> None:
    asked, other, chosen = GSM8K["question"], CHINESE["question"], MMLU["choices"][1]
    bench = write(tmp_path / "gsm8k.jsonl", GSM8K, CHINESE)
    mmlu = tmp_path / "mmlu.json"
    mmlu.write_text(json.dumps([{"question": "no"}, MMLU]), "utf-8")
    lines = tmp_path / "lines.txt"
    lines.write_text("a line\nIt was the best of times, it was the worst of times, it was the age of wisdom\n", "utf-8")
    told: list[Row] = [
        qa(asked.upper(), "72"), qa(f"请回答：{other}", "十四"), qa("Say it.", f"It is {chosen}."), qa("plain", "row"),
        qa("x", "y", system="it was the best of times it was the worst of times it was the age of wisdom and so on"),
        qa("How many clips did she sell altogether in April and May?", "none"),
    ]  # fmt: skip
    file, out = write(tmp_path / "a.jsonl", *told), tmp_path / "out"
    options = ("--decontaminate", bench, "--decontaminate", mmlu, "--decontaminate", lines)
    done = run("compile", file, *options, "--max-rejects", 0, "--no-shuffle", "-o", out)
    assert "--decontaminate: 6 benchmark rows, 5 different texts; 2 rows have no text of 8 words" in done.stderr
    assert "a: 4 rows dropped, because a benchmark has the text (see rejects.jsonl)" in done.stdout
    assert [row["row"] for row in rows(out)] == [3, 5]
    found = entry(out)
    assert (found["balance"]["contaminated"], found["balance"]["rejected"], found["rejected"]) == (4, 0, {})
    assert manifest(out)["balance"]["contaminated"] == 4
    places = [re.search(r"of a text of (\S+) are", one["message"]) for one in rejects(out / "rejects.jsonl")]
    assert [one and one[1] for one in places] == [f"{bench}:1", f"{bench}:2", f"{mmlu}#/1", f"{lines}:2"]
    assert {one["reason"] for one in rejects(out / "rejects.jsonl")} == {"contaminated"}
    run("verify", out)
    said = run("why", out, f"{file}:2").stdout
    assert "dropped by --decontaminate" in said and f"{bench}:2" in said and "'小明有十二个苹果'" in said
    assert json.loads(run("why", out, f"{file}:2", "--json").stdout)["rows"][0]["outcomes"] == ["contaminated"]
    run("report", out, "-o", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "contaminated" in page and f"{mmlu}#/1" in page


def test_a_benchmark_is_part_of_what_a_set_is_and_the_same_one_is_not_looked_through_twice(
    run: Run, tmp_path: Path
) -> None:
    file, bench = write(tmp_path / "a.jsonl", qa(GSM8K["question"]), qa("plain")), tmp_path / "bench.jsonl"
    out, again = tmp_path / "out", tmp_path / "again"

    def made(*more: object) -> tuple[str, int]:
        done = json.loads(run("compile", file, *more, "--json", "-o", out).stdout)
        return done["digest"], done["units_compiled"]

    plain = made()
    write(bench, GSM8K)
    first = made("--decontaminate", bench, "--dedup", "exact")
    assert (first[1], len(rows(out))) == (1, 1)
    assert made("--decontaminate", bench, "--dedup", "exact") == (first[0], 0)
    run("compile", "--from", out, "-o", again)
    assert manifest(again)["digest"] == first[0]
    write(bench, {"question": "of other words than any row that there is here"})
    second = made("--decontaminate", bench, "--dedup", "exact")
    assert second[1] == 1 and second[0] not in (first[0], plain[0]) and len(rows(out)) == 2
    said = run("why", again, f"{file}:1", "--sources", "--cache", tmp_path / "cache").stdout
    assert "dropped by --decontaminate" in said


def test_a_recipe_says_it_with_paths_from_its_own_folder(run: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out"
    folder.mkdir()
    write(folder / "bench.jsonl", GSM8K)
    write(folder / "a.jsonl", qa(GSM8K["question"]), qa("plain"))
    (folder / "r.yaml").write_text("files: [a.jsonl]\ndecontaminate: [bench.jsonl]\ndecontaminate_ngram: 13\n")
    run("compile", folder / "r.yaml", "-o", out)
    assert manifest(out)["options"]["decontaminate_ngram"] == 13 and len(rows(out)) == 1
    run("compile", "--from", out, "--save-recipe", tmp_path / "again.yaml", "-o", tmp_path / "again")
    assert manifest(tmp_path / "again")["digest"] == manifest(out)["digest"]
    run("compile", tmp_path / "again.yaml", "-o", tmp_path / "third")
    assert manifest(tmp_path / "third")["digest"] == manifest(out)["digest"]


def test_where_a_row_went_is_not_guessed_with_another_benchmark(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", qa(GSM8K["question"]), *(qa(f"plain {i % 3}") for i in range(6)))
    bench, out = write(tmp_path / "bench.jsonl", GSM8K), tmp_path / "out"
    run("compile", file, "--mix", "a#2", "--dedup", "exact", "--decontaminate", bench, "-o", out)
    gone = next(row for row in range(1, 7) if row not in {row["row"] for row in rows(out)})
    cache = ("--cache", tmp_path / "cache")
    known = json.loads(run("why", out, f"{file}:{gone + 1}", "--json", *cache).stdout)["rows"][0]
    assert known["outcomes"] in (["duplicate"], ["sampled_out"])
    write(bench, CHINESE)
    assert json.loads(run("why", out, f"{file}:{gone + 1}", "--json", *cache).stdout)["rows"] == [known]
    new = ("--cache", tmp_path / "new")
    benchmarks.cache_clear()  # as in another process
    (answer,) = json.loads(run("why", out, f"{file}:{gone + 1}", "--json", *new).stdout)["rows"]
    assert answer["outcomes"] == ["unknown"] and "bench.jsonl" in " ".join(answer["remarks"])


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--decontaminate", "nowhere.jsonl"), 5, "nowhere.jsonl: cannot be read: No such file"),
        (("--decontaminate", "short.jsonl"), 2, "no text of its rows has 8 words, so nothing could be found"),
        (("--decontaminate", "broken.jsonl"), 5, "broken.jsonl:2: "),
        (("--decontaminate-ngram", "13"), 2, "it is only used with --decontaminate"),
        (("--decontaminate-threshold", "0.5"), 2, "it is only used with --decontaminate"),
        (
            ("--decontaminate", "good.jsonl", "--decontaminate-ngram", "13", "--decontaminate-threshold", "0.5"), 2,
            "it is about runs of 8 words; of 13 one is enough",
        ),
        (("--decontaminate", "good.jsonl", "--decontaminate-threshold", "1"), 2, "at least 0 and below 1, found 1"),
        (("--decontaminate", "good.jsonl", "--decontaminate-ngram", "10"), 2, "expected 8 or 13"),
        (("--decontaminate", "all.jsonl"), 3, "contaminated: 100% of the words of a text of all.jsonl:1"),
    ],
)  # fmt: skip
def test_a_benchmark_that_cannot_be_used_is_one_message(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "short.jsonl", {"question": "too short"})
    write(tmp_path / "broken.jsonl", GSM8K, "{")
    write(tmp_path / "good.jsonl", GSM8K)
    question = "a question of nine words that is in it"
    write(tmp_path / "all.jsonl", {"question": question})
    file = write(tmp_path / "a.jsonl", qa(question))
    assert said in one_message(run("compile", file, *options, "-o", tmp_path / "out", code=code).stderr)
    assert not (tmp_path / "out").exists()
