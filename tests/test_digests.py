"""What identifies a set: the digest of its manifest, and the digest of what it holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from cli import main
from compiler.cache.records import library_versions
from compiler.proof.encoders import refuse
from schemas.digests import manifest_digest
from tests.support.command import runner
from tests.support.encoders import long_files
from tests.support.sets import manifest
from tests.support.shared import tools

Run = Callable[..., Result]
Digests = Callable[..., tuple[str, str]]


def test_the_bytes_of_a_manifest_do_not_depend_on_what_the_cache_had(run: Run, tmp_path: Path) -> None:
    """One cache knows that the fast encoder is not to be used, so the reference makes the set."""
    files = long_files(tmp_path, 1000)
    run("compile", *files, "-o", tmp_path / "fast")
    (tmp_path / "cache").rename(tmp_path / "other")
    refuse(tmp_path / "cache", tools("demo")[0])
    run("compile", *files, "-o", tmp_path / "slow")
    fast, slow = ({name: (tmp_path / out / name).read_bytes() for name in NAMES} for out in ("fast", "slow"))
    assert fast["encoders.json"] != slow["encoders.json"]
    assert fast["manifest.json"] == slow["manifest.json"]


NAMES = ("encoders.json", "manifest.json")


@pytest.fixture
def digests(run: Run, tmp_path: Path) -> Digests:
    """Compile some rows with options; return the digests of content and manifest."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"{n}?", "output": f"{n}."}) + "\n" for n in range(20)))

    def compile_(*options: object) -> tuple[str, str]:
        found = json.loads(run("compile", rows, "-o", tmp_path / "out", "--json", *options).stdout)
        return found["content_digest"], found["digest"]

    return compile_


def test_versions_and_options_without_effect_leave_the_digest_of_the_content(
    digests: Digests, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, own = digests()
    idle = digests("--max-rejects", "2%")
    newer = library_versions() | {"numpy": "99.0"}
    monkeypatch.setattr("compiler.cache.records.library_versions", lambda: newer)
    monkeypatch.setattr("compiler.sets.manifest.library_versions", lambda: newer)
    updated = digests()
    assert (idle[0], updated[0]) == (content, content)
    assert len({own, idle[1], updated[1]}) == 3


@pytest.mark.parametrize(
    "options",
    [("--seed", 1), ("--val-size", 1), ("--mix", "rows:1", "--total", 7), ("--mix", "rows:1", "--self-cognition", 2),
     ("--pack", 64)],
)  # fmt: skip
def test_what_changes_the_rows_changes_the_digest_of_the_content(digests: Digests, options: tuple[object, ...]) -> None:
    assert digests()[0] != digests(*options)[0]


def test_half_a_character_in_a_manifest_is_one_message(digests: Digests, tmp_path: Path) -> None:
    digests()
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps(manifest(tmp_path / "out") | {"kind": "\ud800"}))
    done = runner().invoke(main, ["verify", str(tmp_path / "out")])
    assert done.exit_code == 4
    assert f"error: {path}: not a manifest" in done.stderr


def test_a_manifest_whose_content_digest_is_another_set_s_is_refused(digests: Digests, tmp_path: Path) -> None:
    digests()
    found: Any = manifest(tmp_path / "out") | {"content_digest": "0" * 64}
    found["digest"] = manifest_digest(found)
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(found), encoding="utf-8")
    done = runner().invoke(main, ["verify", str(tmp_path / "out")])
    assert done.exit_code == 4
    assert "content_digest is not that of its shards and sources" in done.stderr
