"""The schemas: valid themselves, their examples compile, two validators agree, every message is right and helpful."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import hypothesis.strategies as st
import jsonschema
import jsonschema_rs
import pytest
from click.testing import Result
from hypothesis import given, settings

import registry
from compiler.formats import FORMATS
from compiler.formats.kinds import kind_of_rows
from compiler.rows.validate import Validator
from schemas import ROOT, check_config, schema
from schemas.errors import Reason, UsageError
from schemas.manifest import BALANCE, IF_ASKED, Balance, Manifest
from schemas.reader import CompiledSet

Run = Callable[..., Result]
Row = dict[str, Any]

DATA = Path(__file__).parent / "data"
SCHEMAS = sorted(path.name.removesuffix(".schema.json") for path in ROOT.glob("*.schema.json"))
NEED_IMAGES = ("cogagent", "screen_history", "agentnet", "android_control")
"""Formats whose rows are nothing without their screenshots; tests/test_screens.py and test_recorded.py have them."""
NAMES = tuple(name for name in FORMATS if (DATA / name).is_dir() and name not in NEED_IMAGES)
"""The formats that have data here."""


def load(name: str, file: str) -> list[Any]:
    return [json.loads(line) for line in (DATA / name / file).read_text("utf-8").splitlines()]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def rejects(out: Path) -> list[Row]:
    return [json.loads(line) for line in (out / "rejects.jsonl").read_text("utf-8").splitlines()]


def resolve(row: Any, pointer: str) -> Any:
    """The value at a JSON pointer (RFC 6901); fails where there is nothing."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        assert isinstance(row, dict | list), f"{pointer} leads into a {type(row).__name__}"
        row = row[int(key)] if isinstance(row, list) else row[key]
    return row


# -- the schemas --


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_a_json_schema_of_2020_12(name: str) -> None:
    assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema(name))
    assert schema(name)["title"]
    assert schema(name)["description"]


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from nodes(child)
    elif isinstance(node, list):
        for child in node:
            yield from nodes(child)


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_schema_discriminates_with_one_of(name: str) -> None:
    assert not any("oneOf" in node for node in nodes(schema(name)))


@pytest.mark.parametrize("name", [name for name in SCHEMAS if "examples" in schema(name)])
def test_the_examples_of_a_schema_are_valid(name: str) -> None:
    for example in schema(name)["examples"]:
        jsonschema.Draft202012Validator(schema(name)).validate(example)


def test_every_schema_but_the_manifest_has_examples() -> None:
    assert [name for name in SCHEMAS if not schema(name).get("examples")] in ([], ["manifest"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FORMATS if name not in NEED_IMAGES])
def test_the_example_rows_of_every_format_compile_kind_by_kind(run: Run, tmp_path: Path, name: str) -> None:
    examples: dict[str, list[Any]] = {}
    for example in FORMATS[name].about["examples"]:
        examples.setdefault(kind_of_rows([example]), []).append(example)
    for kind, rows in examples.items():
        lines = rows[0]["lines"] if FORMATS[name].session else rows
        file = tmp_path / "x.json"  # as one array: rows may be lists themselves
        file.write_text(json.dumps(lines), encoding="utf-8")
        run(
            "compile",
            write(tmp_path / "x.jsonl", lines) if FORMATS[name].session else file,
            "--format",
            name,
            "-o",
            tmp_path / "out",
        )
        opened = CompiledSet.open(tmp_path / "out")
        assert opened.manifest["kind"] == kind
        assert set(opened.table("train").column("row").to_pylist()) == set(range(len(rows)))


@pytest.mark.parametrize("name", NAMES)
def test_the_good_rows_of_every_format_compile(run: Run, tmp_path: Path, name: str) -> None:
    run("compile", DATA / name / "rows.jsonl", "--format", name, "--no-shuffle", "-o", tmp_path / "out")
    found = CompiledSet.open(tmp_path / "out").table("train").column("row").to_pylist()
    assert sorted(set(found)) == list(range(len(load(name, "rows.jsonl"))))
    assert found == sorted(found)


# -- bad rows --


@pytest.mark.parametrize("name", NAMES)
def test_every_bad_row_is_rejected_with_the_message_that_helps(run: Run, tmp_path: Path, name: str) -> None:
    bad = load(name, "bad.jsonl")
    good = load(name, "rows.jsonl")[0]
    file = write(tmp_path / "x.jsonl", [case["row"] for case in bad] + [good])
    run("compile", file, "--format", name, "--max-rejects", "100%", "-o", tmp_path / "out")
    keys = ("reason", "pointer", "message")
    found = [{"row": json.loads(r["raw"])} | {key: r[key] for key in keys} for r in rejects(tmp_path / "out")]
    assert found == bad


@pytest.mark.parametrize("name", NAMES)
def test_the_pointer_of_a_reject_leads_to_something_in_the_row(run: Run, tmp_path: Path, name: str) -> None:
    cases = [case["row"] for case in load(name, "bad.jsonl")]
    file = write(tmp_path / "x.jsonl", [*cases, load(name, "rows.jsonl")[0]])
    run("compile", file, "--format", name, "--max-rejects", "100%", "-o", tmp_path / "out")
    data = file.read_bytes()
    found = rejects(tmp_path / "out")
    assert [reject["row"] for reject in found] == list(range(len(cases)))
    for reject, row in zip(found, cases, strict=True):
        resolve(row, reject["pointer"])
        assert data[reject["offset"] : reject["offset"] + reject["length"]].decode() == reject["raw"]
        assert json.loads(reject["raw"]) == row
        assert reject["reason"] in set(Reason)


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize(
    ("inner", "where"),
    [
        ('{"name": "f", "arguments": {"a": NaN}}', "NaN"),
        ('{"name": "f", "arguments": {"a": 1e999}}', "a number beyond all floats"),
        ('{"name": "f", "arguments": {"a": 1, "a": 2}}', "a key twice"),
        ('{"name": "f", "arguments": {"a": "\\ud800"}}', "half a character"),
        (f'{{"name": "f", "arguments": {{"a": {DEEP}}}}}', "deep nesting"),
        ('{"name": "f", "arguments": {}} {}', "two values"),
    ],
    ids=lambda value: value if len(value) < 30 else "",
)
def test_json_inside_text_is_as_strict_as_the_row_around_it(run: Run, tmp_path: Path, inner: str, where: str) -> None:
    """Otherwise a call read in part, or rendered differently from the row, would be trained."""
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": inner},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "r"},
    ]
    good = {"conversations": [turns[0], turns[3]]}
    arguments = inner[inner.index("{", 1) : -1] if not inner.endswith("{}") else "{} {}"
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    messages = [
        {"role": "user", "content": "q"},
        call,
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "r"},
    ]
    for name, rows, pointer in (
        ("sharegpt", [{"conversations": turns}, good], "/conversations/1/value"),
        ("sharegpt", [good | {"tools": f"[{inner}]"}, good], "/tools"),
        (
            "openai",
            [{"messages": messages}, {"messages": [messages[0], messages[3]]}],
            "/messages/1/tool_calls/0/function/arguments",
        ),
    ):
        write(tmp_path / "x.jsonl", rows)
        run("compile", tmp_path / "x.jsonl", "--format", name, "--max-rejects", 1, "-o", tmp_path / "out")
        (reject,) = rejects(tmp_path / "out")
        assert (reject["row"], reject["pointer"]) == (0, pointer), where
        assert reject["reason"] in ("tools", "tool_arguments")


# -- two validators --

ROLES = ["system", "user", "assistant", "human", "gpt", "tool", "function", "function_call", "observation"]
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, 1.0, 0.5, -0.0, 1e300, 2**70]),
    st.text(max_size=3),
    st.sampled_from([*ROLES, "text"]),
    st.lists(st.text(max_size=2), max_size=3),
    st.just({}),
    st.just([["q", "a"]]),
    st.just({"name": "f", "arguments": "{}"}),
    st.just([{"type": "text", "text": "x"}]),
).map(copy.deepcopy)
RENAMED = ["role", "from", "value", "content", "weight", "loss", "input"]
ADDED = ["loss", "loss_scale", "weight", "tool_calls", "function_call", "tools", "system", "history"]


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Yield the path of every value in a row, the row's own first."""
    yield path
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in pairs:
        yield from places(child, (*path, key))


@st.composite
def mutated(draw: st.DrawFn, name: str) -> Any:
    """A good row with one to three places replaced, removed, renamed, doubled or added."""
    originals = load(name, "rows.jsonl") + [case["row"] for case in load(name, "bad.jsonl")]
    row = draw(st.sampled_from(originals))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(row))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                row = draw(JUNK)
            continue
        parent = row
        for part in path[:-1]:
            parent = parent[part]
        change = draw(st.sampled_from(["replace", "remove", "rename", "double", "add"]))
        if change == "replace":
            parent[path[-1]] = draw(JUNK)
        elif change == "remove":
            del parent[path[-1]]
        elif isinstance(parent, list):
            new = draw(JUNK) if change == "add" else copy.deepcopy(parent[path[-1]])
            parent.insert(draw(st.integers(0, len(parent))), new)
        elif change == "rename":
            parent[draw(st.sampled_from(RENAMED))] = parent.pop(path[-1])
        else:
            parent[draw(st.sampled_from(ADDED))] = draw(JUNK)
    return row


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_jsonschema_rs_and_jsonschema_agree_on_every_row(name: str) -> None:
    format_ = FORMATS[name]
    mine = Validator(format_, dict(format_.columns), dict(format_.tags), name)
    fast, slow = jsonschema_rs.validator_for(mine.schema), jsonschema.Draft202012Validator(mine.schema)
    outcomes = set()

    @settings(max_examples=400, deadline=None)
    @given(mutated(name))
    def agree(row: Any) -> None:
        valid = slow.is_valid(row)
        assert fast.is_valid(row) == valid
        reject = mine.check(row)
        assert (reject is None) == valid
        if reject is not None:
            resolve(row, reject.pointer)
            assert 10 < len(reject.message) <= 500
            assert reject.pointer in {"".join(f"/{part}" for part in e.absolute_path) for e in slow.iter_errors(row)}
        outcomes.add(valid)

    agree()
    assert outcomes == {True, False}


@pytest.mark.parametrize("name", [name for name in NAMES if FORMATS[name].columns])
def test_names_of_the_user_are_specialised_into_a_schema_that_is_one_too(name: str) -> None:
    format_ = FORMATS[name]
    columns = {key: f"my {key}" for key in format_.columns}
    tags = {key: f"my {key}" for key in format_.tags}
    specialised = Validator(format_, dict(columns), dict(tags), name).schema
    jsonschema.Draft202012Validator.check_schema(specialised)
    required = specialised["required"]
    assert required
    assert all(key.startswith("my ") for key in required)


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        (
            "sharegpt",
            "messages",
            "x: 'columns' is given but does not name 'messages'\n  Add \"messages\": \"...\" to columns.",
        ),
        (
            "alpaca",
            "response",
            "x: 'columns' is given but does not name 'response'\n  Add \"response\": \"...\" to columns.",
        ),
        (
            "sharegpt",
            "role_tag",
            "x: 'tags' is given but does not name 'role_tag'\n  Add \"role_tag\": \"...\" to tags.",
        ),
    ],
)
def test_a_name_that_a_format_needs_and_was_not_given_is_an_error(name: str, missing: str, message: str) -> None:
    format_ = FORMATS[name]
    columns = {key: None if key == missing else value for key, value in format_.columns.items()}
    tags = {key: None if key == missing else value for key, value in format_.tags.items()}
    with pytest.raises(UsageError) as error:
        Validator(format_, columns, tags, "x")
    assert str(error.value) == message


# -- the registry --

CARDS = [
    ("datasets", "dataset_card"),
    ("templates", "template_card"),
    ("weights", "weights"),
    ("vision", "vision"),
    ("action_spaces", "action_space"),
]


@pytest.mark.parametrize(
    ("path", "kind"),
    [(path, kind) for folder, kind in CARDS for path in sorted((registry.ROOT / folder).glob("*.json"))],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)  # fmt: skip
def test_every_card_of_the_registry_is_valid_and_named_as_its_file(path: Path, kind: str) -> None:
    card = json.loads(path.read_text("utf-8"))
    jsonschema.Draft202012Validator(schema(kind)).validate(card)
    assert card["name"] == path.stem


def test_every_card_names_things_that_exist() -> None:
    for card in registry.datasets().values():
        assert card["format"] in FORMATS
        assert card.get("weights", "none") in registry.weights_names()
        assert all((registry.ROOT / file).is_file() for file in card.get("files", ()))
    for name in registry.template_names():
        assert (registry.ROOT / "templates" / registry.template(name)["chat_template"]).is_file()


def test_the_embedded_samples_are_as_many_and_as_varied_as_promised() -> None:
    texts = [(registry.SAMPLES / f"{name}.jsonl").read_text("utf-8") for name in ("agent", "bench")]
    agent, bench = ([json.loads(line) for line in text.splitlines()] for text in texts)
    assert len(agent) >= 60
    assert len(bench) >= 200
    for rows in (agent, bench):
        assert len({json.dumps(row["conversations"]) for row in rows}) == len(rows)
        chinese = sum(any("\u4e00" <= c <= "\u9fff" for c in row["conversations"][-1]["value"]) for row in rows)
        assert len(rows) / 4 < chinese < len(rows) * 3 / 4
    assert sum("Action:" in row["conversations"][-1]["value"] for row in agent) > 30
    assert sum(len(row["conversations"]) > 3 for row in bench) > 100


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ({"name": "x", "description": "y"}, "dataset_card", "card#: 'format' is a required property"),
        (
            {"name": "x", "description": "y", "format": "alpaca", "files": ["a"], "licence": "MIT"}, "dataset_card",
            "card#: Additional properties are not allowed ('licence' was unexpected)\n"
            "  'licence': did you mean 'license'?",
        ),
        (
            {"name": "x", "description": "y", "keywords": {"A:": {"keyword": -1, "content": 0}}}, "weights",
            "card#/keywords/A:/keyword: -1 is less than the minimum of 0",
        ),
    ],
)  # fmt: skip
def test_a_card_with_a_mistake_is_named_with_its_place(value: Any, kind: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_config(value, kind, "card")
    assert str(error.value).startswith(message)


def _named(kind: Any, node: dict[str, Any], where: str) -> Iterator[tuple[str, set[str], set[str], set[str], set[str]]]:
    """Yield, of every object of the manifest, its keys and the required ones: in Python, then in the JSON Schema."""
    node = {**schema("manifest")["$defs"][node["$ref"].rpartition("/")[2]], **node} if "$ref" in node else node
    if is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        required = {key for key, hint in hints.items() if get_origin(hint) is not NotRequired}
        yield where, set(hints), required, set(node["properties"]), set(node.get("required", ()))
        for key, hint in hints.items():
            inner = get_args(hint)[0] if get_origin(hint) is NotRequired else hint
            yield from _named(inner, node["properties"][key], f"{where}/{key}")
    elif get_origin(kind) is list:
        yield from _named(get_args(kind)[0], node["items"], where)
    elif get_origin(kind) is dict and is_typeddict(get_args(kind)[1]):
        yield from _named(get_args(kind)[1], node["additionalProperties"], where)
    elif get_origin(kind) in (Union, UnionType):
        for one in get_args(kind):
            yield from _named(one, node, where)


def test_the_manifest_has_the_same_keys_for_python_as_in_its_schema() -> None:
    found = list(_named(Manifest, schema("manifest"), ""))
    assert {"", "/template/certificate", "/datasets/balance", "/splits/shards/batches", "/media"} <= {
        one[0] for one in found
    }
    for where, keys, required, in_schema, required_by_schema in found:
        assert (where, keys, required) == (where, in_schema, required_by_schema)
    hints = get_type_hints(Balance, include_extras=True)
    assert set(BALANCE) == {key for key, hint in hints.items() if get_origin(hint) is not NotRequired}
    assert set(hints) - set(BALANCE) == set(IF_ASKED)
