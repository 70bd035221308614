"""Recipes: what `cli compile` is asked, in a file, and what a set remembers of its own compile."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from click.testing import Result

import registry
from compiler.commands import recipe
from schemas import schema, yaml
from tests.support.sets import manifest, rows

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of rows in a folder of their own, and a weights policy."""
    made = tmp_path / "project"
    (made / "data").mkdir(parents=True)
    chats = [{"q": f"{n}?", "a": f"{n}.", "score": n} for n in range(10)]
    plain = [{"instruction": f"say {n}", "output": f"{n}!"} for n in range(10)]
    for name, found in (("chats", chats), ("plain", plain)):
        (made / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    (made / "mine.json").write_text(json.dumps(registry.weights("react") | {"name": "mine"}))
    return made


RECIPE = """\
datasets:
  chats:
    path: data/chats.jsonl
    rows: 3
    columns: {instruction: q, output: a}
    where: score >= 6
    weights: mine.json
  plain: {path: data/plain.jsonl, share: 1}
  agent: 2
total: 6
seed: 7
val_size: 1
"""


def test_each_dataset_of_a_recipe_has_its_own_columns_condition_and_weights(run: Run, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    out = folder.parent / "out"
    run("compile", folder / "recipe.yaml", "-o", out)
    found = manifest(out)
    by_name = {entry["name"]: entry for entry in found["datasets"]}
    assert {name: (one["share"], one["count"]) for name, one in by_name.items()} == {
        "chats": (None, 3), "plain": (1, None), "agent": (2, None),
    }  # fmt: skip
    assert by_name["chats"]["balance"]["left_out"] == 6
    assert (by_name["chats"]["weights"], by_name["plain"]["weights"]) == ("mine", "none")
    assert by_name["chats"]["files"][0]["file"] == "data/chats.jsonl"
    assert (found["seed"], found["options"]["total"], found["splits"]["val"]["rows"]) == (7, 6, 1)
    assert len(rows(out)) + len(rows(out, "val")) == 9


def test_a_set_is_made_again_as_it_remembers_it_and_so_is_a_saved_recipe(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed in one folder, made again from others: paths start from where the command was typed."""
    monkeypatch.chdir(folder)
    (folder / "save").mkdir()
    (folder / "data" / "more.jsonl").write_bytes((folder / "data" / "chats.jsonl").read_bytes())
    asked = ("data/more.jsonl", "own=data/chats.jsonl", "--columns", "instruction=q,output=a", "--weights",
             "mine.json", "--mix", "own:1,more#4", "--max-length", 64, "--val-size", 1, "--no-shuffle")  # fmt: skip
    run(
        "compile", *asked, "--format", "alpaca", "--ignore", "score", "-o", "sets/first", "--save-recipe", "save/r.yaml"
    )
    first = manifest(folder / "sets" / "first")
    monkeypatch.chdir(folder.parent)
    run("compile", "--from", folder / "sets" / "first", "-o", "again")
    run("compile", folder / "save" / "r.yaml", "-o", "saved")
    for name in ("again", "saved"):
        made = manifest(folder.parent / name)
        assert (made["digest"], made["content_digest"]) == (first["digest"], first["content_digest"])
    os.rename(folder.parent / "again", folder / "moved")  # noqa: PTH104  # a name in another folder
    said = run("compile", "--from", folder / "moved", "-o", "no", code=2).stderr
    assert "#/run/recipe/files" in said or "no such" in said or "cannot be read" in said or "base" in said


def test_the_command_line_goes_before_a_recipe(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "recipe.yaml").write_text(RECIPE + "out: made\nmax_rejects: 5\n")
    monkeypatch.chdir(folder.parent)
    run("compile", folder / "recipe.yaml", "--seed", 8)
    assert manifest(folder / "made")["seed"] == 8
    run("compile", folder / "recipe.yaml", "-o", "here")
    assert manifest(folder.parent / "here")["seed"] == 7
    assert manifest(folder.parent / "here")["options"]["max_rejects"] == "5"
    said = run("compile", folder / "recipe.yaml", "--mix", "plain:1", code=2).stderr
    assert "--mix" in said and "says which datasets are compiled" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_lenght: 4\nfiles: [data/plain.jsonl]\n", "did you mean 'max_length'"),
        ("datasets: {plain: {path: data/plain.jsonl, share: 1, rows: 2}}\n", "#/datasets/plain"),
        ("datasets: {agent: {columns: {q: a}}}\n", "whose entry says it itself"),
        ("datasets: {plain: {path: data/plain.jsonl, weights: mien.json}}\n", "mien.json"),
        ("datasets: {plain: {path: data/none.jsonl}}\n", "data/none.jsonl"),
        ("datasets: {plain: {path: data/plain.jsonl, media_dir: none}}\n", "#/datasets/plain/media_dir: no such"),
        ("files: [data/plain.jsonl]\nseed: x\n", "#/seed"),
        ("files: [data/plain.jsonl]\nseed: 1\nseed: 2\n", "appears twice"),
        ("base: nowhere\nfiles: [data/plain.jsonl]\n", "#/base"),
        ("- data/plain.jsonl\n", "expected keys and values"),
        ("", "expected keys and values"),
        ("seed: 1\n", "nothing to compile"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_is_one_message(run: Run, folder: Path, text: str, said: str) -> None:
    (folder / "recipe.yaml").write_text(text)
    code = 5 if "none.jsonl" in text else 2
    found = run("compile", folder / "recipe.yaml", "-o", folder / "out", code=code).stderr
    assert said in found
    assert not (folder / "out" / "manifest.json").exists()


def test_a_set_that_says_where_to_write_is_not_made_again(run: Run, folder: Path) -> None:
    run("compile", folder / "data" / "plain.jsonl", "-o", folder / "out")
    found = manifest(folder / "out")
    found["run"]["recipe"]["out"] = "../elsewhere"
    (folder / "out" / "manifest.json").write_text(json.dumps(found))  # run is in no digest
    said = run("compile", "--from", folder / "out", "-o", folder / "new", code=2).stderr
    assert "it says out, which no compile leaves there" in said


def test_a_recipe_in_the_place_of_a_file_is_not_written(run: Run, folder: Path) -> None:
    (folder / "r.yaml").write_text("mine")
    said = run("compile", folder / "data" / "plain.jsonl", "--save-recipe", folder / "r.yaml", code=2).stderr
    assert "a file of this name is there" in said
    assert (folder / "r.yaml").read_text() == "mine"


def test_a_recipe_has_every_option_of_the_command_line_with_its_values() -> None:
    known = recipe.options()
    found: dict[str, Any] = schema("recipe")["properties"]
    assert found.keys() - {"base", "datasets", "files"} == known.keys()
    for key, option in known.items():
        assert (option.help or "").startswith(found[key]["description"].rstrip(".")[:40]), key
        if isinstance(option.type, click.Choice):
            assert found[key]["enum"] == list(option.type.choices), key
        if "default" in found[key]:
            is_off = option.is_flag and option.default is not True  # click's own word for it differs by version
            assert found[key]["default"] == (False if is_off else option.default), key


def test_the_example_of_the_schema_is_one_and_what_is_dumped_is_read_back() -> None:
    (example,) = schema("recipe")["examples"]
    jsonschema.Draft202012Validator(schema("recipe")).validate(example)
    assert yaml.parse(yaml.dump(example)) == example
