"""What the documents say about installing and launching is true, and they link to what is there."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from compiler.formats import FORMATS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md"))
    if "out" not in path.relative_to(ROOT).parts
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_link_leads_to_a_file(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert link.startswith("http") or (path.parent / link).exists(), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_every_file_of_the_code_that_a_document_names_is_there(path: Path) -> None:
    rooms = "|".join(("compiler", "trainer", "registry", "schemas", "tests", "benchmarks", "tools"))
    for name in re.findall(rf"`((?:{rooms})/[\w./*-]+)`", path.read_text(encoding="utf-8")):
        if "NAME" not in name and "dialogue" not in name:  # to be written by the reader
            assert list(ROOT.glob(name)), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_no_document_installs_from_an_index(path: Path) -> None:
    """The project is on none: what works is a clone or a wheel."""
    name = PROJECT["project"]["name"]
    assert re.findall(rf"install '?\"?{name}", path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=named)
def test_several_processes_are_launched_with_the_installed_command(path: Path) -> None:
    """`torchrun -m cli` would run a cli.py in the current folder."""
    launched = re.findall(r"^(?:torchrun|deepspeed) .*", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert [line for line in launched if not re.search(r" --no[-_]python .*?cli train ", line)] == []


def test_the_document_on_installing_names_every_extra() -> None:
    table = (ROOT / "docs" / "install.md").read_text(encoding="utf-8").partition("| extra |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == set(PROJECT["project"]["optional-dependencies"])


def test_the_container_is_built_from_every_package() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    tools = PROJECT["tool"]["setuptools"]
    packages = {name.partition(".")[0] for name in tools["packages"]}
    modules = {f"{name}.py" for name in tools["py-modules"]}
    assert packages | modules | {"pyproject.toml", "README.md", "LICENSE"} == set(" ".join(copied).split())


def test_decisions_are_numbered_without_gaps_and_say_what_would_change_them() -> None:
    text = (ROOT / "DECISIONS.md").read_text(encoding="utf-8")
    numbered = re.findall(r"^\*\*(\d+)\. (.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert [int(number) for number, _ in numbered] == list(range(1, 37))
    assert [number for number, said in numbered if "*Would change it:*" not in " ".join(said.split())] == []


def test_the_walk_of_one_row_prints_what_the_architecture_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands and the Python of the page run in order; what a block of Python prints stands below it."""
    walk = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## One row")[2]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    printed = shown = ""
    for language, block in re.findall(r"^```(bash|python|text)\n(.*?)^```$", walk, re.MULTILINE | re.DOTALL):
        if language == "bash":
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            subprocess.run(["bash", "-euc", block], env=os.environ | {"PATH": path}, check=True, capture_output=True)
        elif language == "python":
            exec(compile(block, "architecture.md", "exec"), names)
            printed += capsys.readouterr().out
        else:
            shown += block
    assert printed == shown


def test_the_format_that_contributing_adds_works(tmp_path: Path) -> None:
    """Its files are written into a copy, and its good and bad rows become what it says."""
    for name in ("compiler", "registry", "schemas", "trainer"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "cli.py", tmp_path)
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(?:python|jsonl?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    data = "tests/data/dialogue"
    places = ("compiler/formats/dialogue.py", "schemas/dialogue.schema.json", f"{data}/rows.jsonl", f"{data}/bad.jsonl")
    for place, block in zip(places, blocks, strict=True):
        assert f"`{place}`" in text
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(block, encoding="utf-8")
    package = tmp_path / "compiler" / "formats" / "__init__.py"
    listed = package.read_text(encoding="utf-8").replace("    hermes,", "    dialogue,\n    hermes,", 1)
    package.write_text(listed.replace("hermes.FORMAT,", "dialogue.FORMAT, hermes.FORMAT,", 1), encoding="utf-8")
    bad = [json.loads(line) for line in blocks[3].splitlines()]
    rows = [*blocks[2].splitlines(), *(json.dumps(case["row"]) for case in bad)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    command = [sys.executable, "-m", "cli", "compile", "rows.jsonl", "--format", "dialogue", "--max-rejects", "2"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([*command, "-o", "out"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects.jsonl").read_text("utf-8").splitlines()]
    keys = ("reason", "pointer", "message")
    assert [{"row": json.loads(r["raw"])} | {key: r[key] for key in keys} for r in rejects] == bad


def test_contributing_shows_the_floors_that_are_tested() -> None:
    tested = re.search(
        r'in """\n(.*?)\n    """\.strip', (ROOT / "tests" / "test_imports.py").read_text("utf-8"), re.DOTALL
    )
    assert tested is not None
    assert f"```\n{textwrap.dedent(tested[1])}\n```" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    sorted(path for name in ("compiler", "trainer", "schemas") for path in (ROOT / name).rglob("__init__.py")),
    ids=named,
)
def test_the_front_page_of_a_room_names_its_modules(page: Path) -> None:
    """The source formats are left out: they are listed in the code below their page."""
    shown = ast.get_docstring(ast.parse(page.read_text(encoding="utf-8"))) or ""
    here = {path.name for path in page.parent.glob("*.py")} - {"__init__.py"}
    formats = {f"{name}.py" for name in FORMATS} if page.parent.name == "formats" else set()
    assert sorted(name for name in here - formats if not re.search(rf"\b{name.removesuffix('.py')}\b", shown)) == []
