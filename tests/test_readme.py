"""What the README says works: its commands run as they stand, and CI calls its two first ones."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import pytest

import cli
from schemas.arrow import SHARD
from tests.support.command import outside

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)


def test_ci_calls_the_two_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    install, tests = BLOCKS[0].strip(), BLOCKS[1].strip()
    assert install.startswith("pip install . && cli compile --mix agent:1,bench:2 --self-cognition 3000")
    assert "&& cli compile --mix agent:1,bench:2 --self-cognition 3000" in script
    assert tests.replace("pip install -e", "pip install -q -e") in script


def test_the_tour_runs_as_it_stands(tmp_path: Path) -> None:
    tour = "\n".join(BLOCKS[2:])
    assert tour.count("cli ") >= 6
    environment = outside() | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    shutil.copy(ROOT / "config.yaml", tmp_path)  # as in a clone
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", tour],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rejects = (tmp_path / "chats" / "rejects.jsonl").read_text(encoding="utf-8")
    assert '"row": 3' in rejects
    assert '"turn_order"' in rejects
    assert "tool:0 holds" in done.stdout
    assert "are whole" in done.stdout
    assert "trained 100 steps" in done.stdout
    assert (tmp_path / "output" / "loss.png").is_file()


@pytest.mark.parametrize("name", sorted(cli.main.commands))
def test_every_command_is_in_the_readme_and_has_examples(name: str) -> None:
    assert f"`cli {name}`" in README
    assert f"cli {name}" in (cli.main.commands[name].help or "").partition("Example")[2]


def test_the_chinese_readme_has_the_commands_options_names_and_links_of_the_english_one() -> None:
    chinese = (ROOT / "README.zh.md").read_text(encoding="utf-8")
    assert re.findall(r"```bash\n(.*?)```", chinese, re.DOTALL) == BLOCKS
    for pattern in (
        r"(?<!`)`([^`\n]+)`(?!`)",
        r"\]\((?!README)([^)]+)\)",
        r"(?m)^(?:- |\| |#+ |\*\*)",
        r"(?m)^  \S+(?=  )",
    ):
        ours, theirs = (Counter(re.findall(pattern, text)) for text in (README, chinese))
        assert ours == theirs, pattern


def test_every_column_of_a_shard_is_in_the_readme() -> None:
    table = README.partition("| column | content |")[2].partition("\n\n")[0]
    assert {name for name in SHARD.names if f"`{name}`" not in table} == set()


def test_no_document_and_no_heading_is_linked_that_is_not_there() -> None:
    for page in (ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert link.startswith("http") or target.exists(), f"{page.name}: {link}"
            if anchor and target.suffix == ".md":
                headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
                assert anchor in slugs, f"{page.name}: {link}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_commands_in_the_documents_exist_with_their_options(path: Path) -> None:
    for name, rest in re.findall(r"^(?:`|.*? `)?cli ([\w-]+)([^`\n]*)", path.read_text(encoding="utf-8"), re.MULTILINE):
        command = cli.main.commands[name]
        if isinstance(command, click.Group):
            command = command.commands[rest.split()[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, f"cli {name}{rest}"
