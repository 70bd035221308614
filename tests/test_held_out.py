"""Files for validation and test: whole files are splits of their own, and what they share with train is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from schemas.arrow import MANIFEST
from schemas.reader import CompiledSet
from tests.support.trained import config, records, save_model, train

Run = Callable[..., Result]


def rows(first: int, after: int) -> str:
    lines = (
        {"messages": [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": f"{i} it is"}]}
        for i in range(first, after)
    )
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """30 rows for training, 8 for validation of which two are trained too, and 4 for the test."""
    monkeypatch.chdir(tmp_path)
    for name, (first, after) in {"train": (0, 30), "dev": (28, 36), "test": (40, 44)}.items():
        Path(f"{name}.jsonl").write_text(rows(first, after), encoding="utf-8")
    return tmp_path


HELD_OUT = ("--val", "dev.jsonl", "--test", "test.jsonl")


def ids(out: Path, split: str) -> list[list[int]]:
    return [row["input_ids"] for row in CompiledSet.open(str(out)).rows(split)]


def places(out: Path, split: str) -> list[tuple[str, int]]:
    return sorted((row["dataset"], row["row"]) for row in CompiledSet.open(str(out)).rows(split))


def test_every_row_of_a_held_out_file_is_in_its_split_and_train_is_as_without_it(files: Path, run: Run) -> None:
    run("compile", "train.jsonl", "-o", "alone")
    said = run("compile", "train.jsonl", *HELD_OUT, "-o", "all").stdout
    assert ids(files / "all", "train") == ids(files / "alone", "train")
    assert places(files / "all", "val") == [("dev", i) for i in range(8)]
    assert places(files / "all", "test") == [("test", i) for i in range(4)]
    assert "test: 4 rows" in said
    assert "dev: 2 of 8 rows are in train as well" in said
    dev = next(one for one in json.loads(Path("all", MANIFEST).read_text())["datasets"] if one["name"] == "dev")
    assert dev["realized"] | {"tokens": 0, "trained_tokens": 0} == {
        "rows": 8, "tokens": 0, "trained_tokens": 0, "val_rows": 8, "in_train": 2,
    }  # fmt: skip
    assert "whole" in run("verify", "all").stdout
    found = json.loads(run("inspect", "all", "--split", "test", "--find", "43 it is", "--json").stdout.splitlines()[0])
    assert (found["dataset"], found["line"]) == ("test", 4)


def test_shares_and_duplicates_are_those_of_the_rows_for_training(files: Path, run: Run) -> None:
    Path("more.jsonl").write_text(rows(60, 80), encoding="utf-8")
    mix = ("--mix", "train:1,more:1", "--dedup", "exact")
    run("compile", "train.jsonl", "more.jsonl", *mix, "-o", "alone")
    run("compile", "train.jsonl", "more.jsonl", *mix, *HELD_OUT, "-o", "all")
    assert ids(files / "all", "train") == ids(files / "alone", "train")
    assert len(ids(files / "all", "val")) == 8, "what train has too is no duplicate in dev"
    lines = run("compile", "train.jsonl", "more.jsonl", *mix, *HELD_OUT, "-o", "all").stdout.splitlines()
    assert [line.split()[:5] for line in lines[1:3]] == [
        ["train", "share", "1", "20", "50.0%"],
        ["more", "share", "1", "20", "50.0%"],
    ]


def test_files_of_one_name_are_told_apart(files: Path, run: Run) -> None:
    Path("held").mkdir()
    Path("held/train.jsonl").write_text(rows(50, 52), encoding="utf-8")
    run("compile", "train.jsonl", "--val", "held/train.jsonl", "-o", "out")
    assert places(files / "out", "val") == [("held/train", 0), ("held/train", 1)]


def test_what_contradicts_a_held_out_file_is_refused(files: Path, run: Run) -> None:
    said = run("compile", "train.jsonl", *HELD_OUT, "--val-size", "3", "-o", "out", code=2).stderr
    assert "--val-size 3: --val dev.jsonl gives the rows for validation already" in said
    assert "nothing to compile" in run("compile", *HELD_OUT, "-o", "out", code=2).stderr
    assert "no such file" in run("compile", "train.jsonl", "--test", "gone.jsonl", "-o", "out", code=5).stderr
    assert not (files / "out").exists()


def test_a_folder_called_test_that_is_no_split_is_left_alone(files: Path, run: Run) -> None:
    run("compile", "train.jsonl", "-o", "out")
    Path("out/test").mkdir()
    Path("out/test/mine.txt").write_text("mine", encoding="utf-8")
    run("compile", "train.jsonl", "--val", "dev.jsonl", "-o", "out")
    assert Path("out/test/mine.txt").read_text(encoding="utf-8") == "mine"
    said = run("compile", "train.jsonl", *HELD_OUT, "-o", "out", code=2).stderr
    assert "its folder test holds something else" in said
    assert Path("out/test/mine.txt").is_file()
    assert len(ids(files / "out", "val")) == 8, "the set is whole"
    run("compile", "train.jsonl", *HELD_OUT, "-o", "other")
    run("compile", "train.jsonl", "-o", "other")
    assert not Path("other/test").exists()


@pytest.mark.filterwarnings("ignore")  # of libraries about their own future
@pytest.mark.usefixtures("one_process")
def test_the_test_split_is_scored_when_the_run_ends(files: Path, run: Run) -> None:
    run("compile", "train.jsonl", *HELD_OUT, "-o", "shards")
    settings = config(
        files / "run.json", save_model(files / "model"), max_steps=2, eval_strategy="steps", eval_steps=1,
        predict_with_generate=True, generation_max_new_tokens=4,
    )  # fmt: skip
    said = train("shards", settings).stderr
    assert "step 2  test loss " in said
    *_, last = records(settings)
    assert (last["step"], list(last["test_loss_by_dataset"])) == (2, ["test"])
    assert "bleu-4" in last["test_scores"]
    assert len((files / "run" / "predictions-test.jsonl").read_text().splitlines()) == 4
    assert len((files / "run" / "predictions-2.jsonl").read_text().splitlines()) == 8
