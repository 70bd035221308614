"""Secrets: found as gitleaks finds them, counted by kind, replaced wherever a text may stand, and never left in a set.

No secret stands in this file: they are put together here, so that scanners do not take it for a leak.
"""

from __future__ import annotations

import hashlib
import json
import random
import string
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import registry
from compiler.conversation import Conversation, Media, Message, Role
from compiler.rows.secret_rules import KeyedText, find, from_re2
from compiler.rows.secrets import look, quotes
from tests.support.sets import Row, manifest, rejects, rows, text, write

Run = Callable[..., Result]
GOLDEN = Path(__file__).parent / "golden" / "secrets.jsonl"
"""Texts made from each rule's expression, and what gitleaks 8.30.1 found in them; all of it written backwards."""
EXAMPLE = "[REDACTED:"

_random = random.Random(12)


def chars(length: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(_random.choices(alphabet, k=length))


UPPER, HEX = string.ascii_uppercase + "234567", "0123456789abcdef"
SECRETS = {
    "aws-access-token": "AKIA" + chars(16, UPPER),
    "github-pat": "ghp" + "_" + chars(36),
    "gitlab-pat": "glpat" + "-" + chars(20),
    "openai-api-key": "sk-" + chars(20) + "T3Blbk" + "FJ" + chars(20),
    "anthropic-api-key": "sk-ant-" + "api03-" + chars(93) + "AA",
    "huggingface-access-token": "hf" + "_" + chars(34, string.ascii_letters),
    "slack-bot-token": "xoxb" + "-" + chars(12, string.digits) + "-" + chars(12, string.digits) + chars(24),
    "stripe-access-token": "sk" + "_live_" + chars(24),
    "jwt": "ey" + chars(30) + ".ey" + chars(40) + "." + chars(40),
    "private-key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + chars(64) + "\n-----END RSA PRIVATE " + "KEY-----",
    "email": "ada.lovelace" + "@" + "analytical-engines.org",
    "home-folder": "adalovelace",
}


def said(kind: str, secret: str) -> str:
    """A sentence with the secret."""
    return f"cat /home/{secret}/.netrc now" if kind == "home-folder" else f"It is {secret} today."


def everywhere(sentence: str) -> Row:
    """A row that has the sentence in every text that a row may have."""
    return {
        "messages": [
            {"role": "system", "content": f"System. {sentence}"},
            {"role": "user", "content": f"User. {sentence}"},
            {
                "role": "assistant", "content": f"Text. {sentence}",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "shell", "arguments": json.dumps(
                    {"cmd": sentence, "more": [{"deep": sentence}], "n": 1})}}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": f"Result. {sentence}"},
            {"role": "assistant", "content": f"Reply. {sentence}"},
        ],
        "tools": [{"type": "function", "function": {
            "name": "shell", "description": f"Tool. {sentence}", "parameters": {"type": "object", "properties": {}}}}],
    }  # fmt: skip


def pieces(secret: str) -> set[str]:
    """Every eight characters in a row of a secret."""
    return {secret[i : i + 8] for i in range(len(secret) - 7)}


def files_of(out: Path) -> bytes:
    return b"".join(
        path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file() and "tokenizer" not in str(path)
    )


# -- the rules --


def test_every_rule_finds_what_gitleaks_finds() -> None:
    cases = [json.loads(line) for line in GOLDEN.read_text("utf-8").splitlines()]
    whole = registry.secrets()[1]["gitleaks"]["whole"]
    kinds = set()
    for case in cases:
        said_, expected = case["text"][::-1], {(kind, secret[::-1]) for kind, secret in case["found"]}
        spans = find([KeyedText(said_)]).get(KeyedText(said_), [])
        # findings that overlap are one here, and our own rules are not gitleaks'
        found = [
            (span.kind, said_[span.start : span.end]) for span in spans if span.kind not in ("email", "home-folder")
        ]
        assert all(any(secret in ours for _, ours in found) for _, secret in expected), case
        assert all(any(kind == k or secret in ours for k, ours in found) for kind, secret in expected), case
        assert all(
            (kind, ours) in expected or kind in whole or any(s in ours for _, s in expected) for kind, ours in found
        )
        kinds |= {kind for kind, _ in expected}
    applied = {rule["id"] for rule in registry.secrets()[0]["rules"] if "path" not in rule}
    assert len(kinds) > 200
    assert kinds <= applied


def test_the_rules_of_gitleaks_are_the_file_that_they_are_said_to_be() -> None:
    folder = registry.ROOT / "secrets"
    assert (
        hashlib.sha256((folder / "gitleaks.toml").read_bytes()).hexdigest()
        == registry.secrets()[1]["gitleaks"]["sha256"]
    )
    assert "Copyright (c) 2019 Zachary Rice" in (folder / "gitleaks.LICENSE").read_text("utf-8")


def test_every_expression_of_the_rules_compiles_without_a_warning() -> None:
    import re

    published, own = registry.secrets()
    lists = [published["allowlist"], *(a for rule in published["rules"] for a in rule.get("allowlists", ()))]
    found = [rule["regex"] for rule in published["rules"] if "regex" in rule]
    found += [regex for one in lists for regex in one.get("regexes", ())]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(re.compile(from_re2(regex)[0], re.ASCII) for regex in found)
        assert all(re.compile(rule["regex"]) for rule in own["rules"])


@pytest.mark.parametrize(
    ("re2", "python"),
    [
        ("a(?i)b|c", "a(?i:b)|(?i:c)"),
        ("(a(?i)b|c)d$", r"(a(?i:b)|(?i:c))d\Z"),
        (r"[[:alnum:]$]\z\s[\s]", "[a-zA-Z0-9$]\\Z[\\t\\n\\f\\r ][\\t\\n\\f\\r ]"),
        (r"[^]a]\[(?i:b)", r"[^]a]\[(?i:b)"),
    ],
)
def test_an_expression_of_re2_means_the_same_in_python(re2: str, python: str) -> None:
    assert from_re2(re2)[0] == python


HARMLESS = (
    "user@example.com, test@sub.example.org and root@box.local",
    "git@github.com:org/repo.git, noreply@github.com",
    "/home/user/x, /home/ubuntu, /Users/username/y, /Users/Shared, C:\\Users\\Public\\z, /home/runner/work",
    "https://example.com/home/index, docs/home/page, /homework/ada, $HOME/x, ~/x, /home/$USER/x, /home/<name>",
    "react@18.2.0, @scope/pkg, a@b, x @ y.z, decorators: @app.route",
    "AKIAIOSFODNN7" + "EXAMPLE",
    "password = changeme, token: ${TOKEN}, api_key = os.environ['KEY'], secret: '********************'",
)


@pytest.mark.parametrize("harmless", HARMLESS)
def test_what_stands_for_a_secret_in_examples_is_none(harmless: str) -> None:
    assert find([KeyedText(harmless)]) == {}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/{}/x.py", "ada"), ("/Users/{}", "ada.l"), ("file:///home/{}/", "ada"), ("/mnt/c/Users/{}/x", "ada"),
        ("C:\\Users\\{}\\x", "Ada Lovelace"), ('"C:\\\\Users\\\\{}\\\\x"', "ada"), ("C:/Users/{}/x", "ada"),
        ("~/.claude/projects/-home-{}-src/1.jsonl", "ada"), ("in /home/{}.", "ada"), ("/home/{}\\n", "ada-2"),
    ],
)  # fmt: skip
def test_the_name_of_a_home_folder_is_found_and_the_path_stays(path: str, name: str) -> None:
    conversation = Conversation([Message(Role.USER, path.format(name))])
    made = look(conversation, redact=True)
    assert made.messages[0].content == path.format("[REDACTED:home-folder]")


# -- rows --


@pytest.mark.slow
@pytest.mark.parametrize("kind", SECRETS)
def test_a_secret_is_counted_and_replaced_wherever_a_text_stands(run: Run, tmp_path: Path, kind: str) -> None:
    secret = SECRETS[kind]
    clean = everywhere("Nothing here.")
    source = write(tmp_path / "x.jsonl", clean, everywhere(said(kind, secret)), clean | {"id": 3})
    for option in ("--scan-secrets", "--redact"):
        out = tmp_path / option
        result = run("compile", source, option, "--no-shuffle", "-o", out)
        (entry,) = manifest(out)["datasets"]
        assert entry["secrets"] == {kind: {"rows": 1, "first": [f"{source}:2"]}}
        assert entry["notes"][f"secrets:{kind}"] == 1
        verb = "found" if option == "--scan-secrets" else f"replaced by {EXAMPLE}{kind}]"
        line = f"in 1 row, {kind} was {verb} ({source}:2)"
        assert f"x: {line}" in " ".join(result.stdout.split())
        assert line in (out / "README.md").read_text("utf-8")
        assert not pieces(secret) & pieces(result.stdout)
        before, found, after = (text(out, row) for row in rows(out))
        assert before == after
        assert EXAMPLE not in before
        if option == "--scan-secrets":
            assert rows(out)[1]["repairs"] is None
            continue
        assert not any(piece in found for piece in pieces(secret))
        placeholder = f"{EXAMPLE}{kind}]"
        for place in ("Tool.", "System.", "User.", "Text.", "Result.", "Reply.", '"cmd": "', '"deep": "'):
            assert f"{place}{'' if place.endswith(chr(34)) else ' '}{said(kind, placeholder)}" in found, place
        assert found.count(placeholder) == 8
        assert rows(out)[1]["repairs"] == ["redact"]
        assert "repaired: redact" in run("inspect", out, "--row", f"{source}:2").stdout
        assert not any(piece.encode() in files_of(out) for piece in pieces(secret))


def test_a_secret_is_replaced_in_reasoning_pairs_and_documents(run: Run, tmp_path: Path) -> None:
    for kind, secret in SECRETS.items():
        sentence = said(kind, secret)
        message = Message(Role.ASSISTANT, "Yes.", reasoning=sentence)
        made = look(Conversation([message], rejected=Message(Role.ASSISTANT, sentence)), redact=True)
        assert made.rejected is not None
        assert made.messages[0].reasoning == made.rejected.content == said(kind, f"{EXAMPLE}{kind}]")
        assert message.reasoning == sentence, "the conversation of another example may share the message"
    pair = {"instruction": "x", "chosen": said("jwt", SECRETS["jwt"]), "rejected": said("email", SECRETS["email"])}
    run("compile", write(tmp_path / "pair.jsonl", pair), "--redact", "-o", tmp_path / "pair")
    (row,) = rows(tmp_path / "pair")
    assert f"{EXAMPLE}jwt]" in text(tmp_path / "pair", row)
    assert f"{EXAMPLE}email]" in text(tmp_path / "pair", {"input_ids": row["rejected_input_ids"]})
    (tmp_path / "docs.jsonl").write_text(json.dumps({"text": said("jwt", SECRETS["jwt"])}) + "\n", "utf-8")
    run("compile", tmp_path / "docs.jsonl", "--redact", "-o", tmp_path / "docs")
    assert f"It is {EXAMPLE}jwt] today." in text(tmp_path / "docs", rows(tmp_path / "docs")[0])
    assert manifest(tmp_path / "docs")["datasets"][0]["secrets"]["jwt"]["rows"] == 1


def test_one_secret_has_one_placeholder_and_others_of_its_kind_are_numbered() -> None:
    first, second = "ghp" + "_" + chars(36), "ghp" + "_" + chars(36)
    made = look(
        Conversation([Message(Role.USER, f"{first} {second}"), Message(Role.ASSISTANT, f"{second} {first}")]),
        redact=True,
    )
    one, two = "[REDACTED:github-pat]", "[REDACTED:github-pat-2]"
    assert [message.content for message in made.messages] == [f"{one} {two}", f"{two} {one}"]


def test_a_key_of_a_call_tells_that_its_value_is_a_secret_and_keys_stay(run: Run, tmp_path: Path) -> None:
    secret, mail = chars(28), SECRETS["email"]
    row = everywhere("Nothing.")
    call = row["messages"][2]["tool_calls"][0]["function"]
    call["arguments"] = json.dumps({"api_key": secret, mail: ["x"]})
    row["messages"][4]["content"] = f"I used {secret}."
    run("compile", write(tmp_path / "x.jsonl", row), "--redact", "-o", tmp_path / "out")
    found = text(tmp_path / "out", rows(tmp_path / "out")[0])
    assert f'"api_key": "{EXAMPLE}generic-api-key]"' in found
    assert f"I used {EXAMPLE}generic-api-key]." in found, "found once, replaced wherever it stands"
    assert f'"{mail}": ["x"]' in found


def test_an_image_stays_where_it_stood_between_texts() -> None:
    mail = SECRETS["email"]
    message = Message(Role.USER, f"{mail} see and {mail}", media=[Media("image", "a.png", at=len(mail) + 5)])
    made = look(Conversation([message]), redact=True).messages[0]
    assert made.content == "[REDACTED:email] see and [REDACTED:email]"
    assert made.content[: made.media[0].at] == "[REDACTED:email] see "


def test_rejected_rows_and_their_messages_hold_no_secret_either(run: Run, tmp_path: Path) -> None:
    secret = SECRETS["github-pat"]
    broken = '{"messages": [{"role": "user", "content": "' + secret + '" oops}]}'
    source = write(tmp_path / "x.jsonl", everywhere("Good."), broken, {"messages": [{"role": secret, "content": "x"}]})
    run("compile", source, "--max-rejects", "100%", "-o", tmp_path / "plain")
    assert all(secret in reject["raw"] for reject in rejects(tmp_path / "plain" / "rejects.jsonl"))
    result = run("compile", source, "--redact", "--max-rejects", "100%", "-o", tmp_path / "out")
    found = rejects(tmp_path / "out" / "rejects.jsonl")
    assert [(reject["row"], reject["raw_left_out"], "raw" in reject) for reject in found] == [
        (n, "--redact", False) for n in (1, 2)
    ]
    assert not any(piece.encode() in files_of(tmp_path / "out") for piece in pieces(secret))
    assert not any(piece in result.stdout + result.stderr for piece in pieces(secret))
    assert "(left out by --redact)" in run("inspect", tmp_path / "out", "--rejected").stdout
    run("report", tmp_path / "out", "-o", tmp_path / "report.html")
    assert "(left out by --redact)" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_message_that_quotes_a_part_of_a_secret_is_known() -> None:
    secret = SECRETS["openai-api-key"]
    assert quotes(f"expected x, found {secret[:20]!r}", {"a": [f"key {secret}"]})
    assert not quotes("expected x, found 'key '", {"a": [f"key {secret}"]})


# -- off, and without secrets --


def test_a_set_without_the_options_says_nothing_of_them(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", everywhere(said("jwt", SECRETS["jwt"])))
    run("compile", source, "-o", tmp_path / "off")
    run("compile", source, "--scan-secrets", "-o", tmp_path / "on")
    off, on = manifest(tmp_path / "off"), manifest(tmp_path / "on")
    assert rows(tmp_path / "off") == rows(tmp_path / "on")
    assert "secrets" not in off["datasets"][0]
    assert {"scan_secrets", "redact", "secret_rules"}.isdisjoint(off["options"])
    assert on["options"]["secret_rules"] == "gitleaks 8.30.1"


def test_a_redacted_compile_reuses_no_unit_that_is_not_and_the_other_way_round(run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "x.jsonl", everywhere(said("jwt", SECRETS["jwt"])))
    for options in ((), ("--scan-secrets",), ("--redact",)):
        for compiled, cached in ((1, 0), (0, 1)):
            result = run("compile", source, *options, "--json", "-o", tmp_path / "out")
            summary = json.loads(result.stdout)
            assert (summary["units_compiled"], summary["units_cached"]) == (compiled, cached)
            assert (EXAMPLE in text(tmp_path / "out", rows(tmp_path / "out")[0])) == (options == ("--redact",))
    assert summary["datasets"][0]["secrets"]["jwt"]["rows"] == 1


_WORDS = st.lists(
    st.sampled_from(["the", "cat", " ", "\n", "é", "你好", "<b>", "{", "}", '"', "\\", "#", "1", "-", "x"]), max_size=30
)
_TEXTS = st.one_of(_WORDS.map("".join), st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), _TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)), max_leaves=6,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents=st.lists(_TEXTS, min_size=1, max_size=4), tools=_VALUES, reasoning=st.none() | _TEXTS)
def test_texts_without_secrets_are_left_as_they_are(contents: list[str], tools: Any, reasoning: str | None) -> None:
    messages = [Message(Role.ASSISTANT, content, reasoning=reasoning) for content in contents]
    conversation = Conversation(messages, tools=tools)
    made = look(conversation, redact=True)
    assert made == Conversation([Message(Role.ASSISTANT, c, reasoning=reasoning) for c in contents], tools=tools)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(kinds=st.lists(st.sampled_from(sorted(SECRETS)), min_size=1, max_size=4), before=_TEXTS, after=_TEXTS)
def test_a_redacted_text_has_nothing_left_to_redact(kinds: list[str], before: str, after: str) -> None:
    sentence = " and ".join(said(kind, SECRETS[kind]) for kind in kinds)
    made = look(Conversation([Message(Role.USER, f"{before} {sentence} {after}")]), redact=True)
    assert {note.removeprefix("secrets:") for note in made.notes} >= set(kinds)
    again = look(Conversation([Message(Role.USER, made.messages[0].content)]), redact=True)
    assert again.notes == []


def test_sessions_are_told_how_to_look_for_secrets(run: Run, tmp_path: Path) -> None:
    question = {"type": "user", "uuid": "1", "parentUuid": None, "message": {"role": "user", "content": "Hi"}}
    reply = {"role": "assistant", "id": "m", "content": "Yes."}
    session = [question, {"type": "assistant", "uuid": "2", "parentUuid": "1", "message": reply}]
    file = write(tmp_path / "s.jsonl", *session)
    hint = "--scan-secrets counts, --redact replaces them"
    assert hint in " ".join(run("compile", file, "--format", "claude_code", "-o", tmp_path / "out").stdout.split())
    scanned = run("compile", file, "--format", "claude_code", "--scan-secrets", "-o", tmp_path / "out").stdout
    assert hint not in " ".join(scanned.split())
    assert "s: no secrets were found" in scanned
