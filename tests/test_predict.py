"""`cli predict`: a model's replies to the rows of a set or a file, scored, and two models side by side."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from tests.support.agent import CHATS, FIRE, Agent
from tests.support.tiny import qwen2

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries about their own future
Run = Callable[..., Result]


@pytest.fixture
def model(agent: Agent, tmp_path: Path) -> Path:
    """The model with the set's tokenizer beside it, as an export has it."""
    shutil.copytree(agent.model, tmp_path / "model")
    for path in (agent.set / "tokenizer").iterdir():
        shutil.copy(path, tmp_path / "model")
    return tmp_path / "model"


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_model_that_knows_the_rows_is_scored_100(agent: Agent, model: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "answers.jsonl"
    said = json.loads(run("predict", model, agent.set, "-o", out, "--json").stdout)
    (scored,) = said["models"]
    found = lines(out)
    assert said["split"] == "train"
    assert said["replies"] == scored["stopped"] == len(found) == 5
    assert scored["scores"]["action_match"] == scored["scores"]["argument_match"] == 100
    assert all(line["prediction"] == line["reference"] for line in found)
    assert {line["prediction"] for line in found} >= {FIRE[0], FIRE[2], "4, of course."}


def test_two_models_stand_side_by_side(agent: Agent, model: Path, tmp_path: Path, run: Run) -> None:
    shutil.copytree(model, tmp_path / "random")
    qwen2(8005, eos_token_id=8000).save_pretrained(tmp_path / "random")
    out = tmp_path / "answers.jsonl"
    asked = ("--max-new-tokens", 30, "--limit", 3)
    said = run("predict", model, agent.set, "--compare", tmp_path / "random", "-o", out, *asked).stdout
    assert said.splitlines()[0].split() == ["model", "random"]
    assert f"3 replies of train: {out}" in said
    assert [line["compared"] != line["prediction"] for line in lines(out)] == [True] * 3


def test_a_file_of_rows_is_compiled_first(model: Path, tmp_path: Path, run: Run) -> None:
    chats = [[{"from": who, "value": text} for who, text in chat] for chat in CHATS[1:]]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"conversations": chat}) + "\n" for chat in chats), encoding="utf-8")
    run("predict", model, rows, "-o", tmp_path / "answers.jsonl")
    assert sorted(str(line["prediction"]) for line in lines(tmp_path / "answers.jsonl")) == [
        "4, of course.", "我是一个小模型。",
    ]  # fmt: skip
    rows.write_text("no rows\n", encoding="utf-8")
    said = run("predict", model, rows, "-o", tmp_path / "other.jsonl", code=5).stderr
    assert "rows.jsonl: cannot be compiled for" in said
    assert not (tmp_path / "other.jsonl").exists()


def test_what_cannot_be_predicted_is_one_message(agent: Agent, model: Path, tmp_path: Path, run: Run) -> None:
    out = ("-o", tmp_path / "answers.jsonl")
    assert "split test: it is empty" in run("predict", model, agent.set, "--split", "test", *out, code=2).stderr
    assert "no such folder" in run("predict", tmp_path / "gone", agent.set, *out, code=5).stderr
    (model / "tokenizer.json").write_text("{}")
    assert "not the tokenizer that the set was compiled with" in run("predict", model, agent.set, *out, code=4).stderr
    assert not (tmp_path / "answers.jsonl").exists()


def test_a_file_that_holds_no_predictions_is_not_replaced(agent: Agent, model: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "answers.jsonl"
    for theirs in ('{"question": "theirs"}\n', "theirs", "[]\n", "\x00"):
        out.write_text(theirs)
        said = run("predict", model, agent.set, "-o", out, code=2).stderr
        assert f"-o {out}: it is there already, and holds no predictions" in said
        assert out.read_text() == theirs
    out.unlink()
    for _ in range(2):  # predictions are replaced by predictions
        run("predict", model, agent.set, "-o", out, "--limit", 1, "--max-new-tokens", 1)
    assert len(lines(out)) == 1
