"""Imports go down the floors only: cli -> compiler | trainer -> registry -> schemas; torch is nowhere in the core."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BELOW = {
    "schemas": set[str](),
    "registry": {"schemas"},
    "compiler": {"registry", "schemas"},
    "trainer": {"registry", "schemas"},
    "cli": {"compiler", "trainer", "registry", "schemas"},
}
NOT_IN_THE_CORE = {"torch", "transformers", "deepspeed", "peft", "datasets"}


def modules() -> list[Path]:
    return [
        ROOT / "cli.py",
        *(p for name in BELOW if name != "cli" for p in sorted((ROOT / name).rglob("*.py"))),
    ]


def imported(path: Path, *, at_module_level: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_module_level else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_its_own_floor_and_those_below(path: Path) -> None:
    floor = path.relative_to(ROOT).parts[0].removesuffix(".py")
    above = imported(path) & set(BELOW) - BELOW[floor] - {floor}
    assert not above, f"{floor} must not import {sorted(above)}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_core_needs_no_torch(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] != "trainer":
        assert not imported(path) & NOT_IN_THE_CORE


def test_the_command_line_imports_nothing_heavy_before_it_knows_the_command() -> None:
    heavy = {"pyarrow", "polars", "numpy", "tokenizers", "jinja2", "jsonschema", "rich"} | NOT_IN_THE_CORE
    code = f"import sys, cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_module_registers_anything_when_imported() -> None:
    """Facts are data files: no decorator registers a format, a template or a dataset."""
    for path in modules():
        assert "@register" not in path.read_text(encoding="utf-8"), path
