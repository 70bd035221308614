"""The floors: which room may import which, what it may depend on, and how large a room and a file may be.

A room is a package directly below `compiler` or `trainer`, or a module that lies flat there; `cli`, `registry` and
`schemas` are rooms of their own. Imports inside functions count; those under `if TYPE_CHECKING` do not.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from compiler.cache.records import DECIDES_BYTES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compiler", "trainer", "registry", "schemas")
FLOORS = [
    line.split()
    for line in """
    cli compiler.api
    compiler.commands                                                       trainer.commands
    compiler.pipeline compiler.questions compiler.convert compiler.report   trainer.train trainer.use trainer.api
    compiler.sets compiler.inspect                                          trainer.run
    compiler.units                                                          trainer.data
    compiler.proof                                        trainer.predict trainer.objectives trainer.follow
    compiler.datasets                               compiler.encode         trainer.models
    compiler.rows                                   compiler.templates      trainer.config trainer.device trainer.doctor
    compiler.formats compiler.media                 compiler.tokenizer      trainer.progress
    compiler.options compiler.read compiler.cache compiler.reference
    registry compiler.conversation
    schemas
    """.strip().splitlines()
]
"""The rooms from the top floor down. A room may import rooms on lower floors, and none on its own floor.
`compiler` and `trainer` do not import each other.
"""
DISTRIBUTIONS = {"PIL": "pillow", "botocore": "boto3", "yaml": "pyyaml"}
"""By the name that is imported: the distribution, where its name is another one."""
UNUSED = {
    "accelerate",  # transformers imports it
}
ASKED_FOR_WHEN_NEEDED = {"bitsandbytes", "liger-kernel", "swanlab", "wandb"}
"""Imported only if a setting of the training configuration asks for it, and in no extra."""
THE_CALLERS = {"datasets"}
"""What a caller of the Python API converts to, and has; in no extra."""
NOT_IN_THE_CORE = {"torch", "transformers", "deepspeed", "peft", "datasets"}


@cache
def modules() -> dict[str, Path]:
    """The product's modules by their names."""
    paths = [ROOT / "cli.py", *(path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py")))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


def run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one, without those that only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from run_nodes(child)


@cache
def imported(name: str) -> frozenset[str]:
    """The imports of a module, in its functions too: our modules by full name, other packages as written."""
    found: set[str] = set()
    for node in run_nodes(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, f"{name}, line {node.lineno}: write relative imports in full"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {module if module in modules() else node.module for module in inner}
    return frozenset(found)


def room(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] in ("compiler", "trainer") else 1])


def file(module: str) -> str:
    return modules()[module].relative_to(ROOT).as_posix()


def test_imports_go_down_the_floors_only() -> None:
    floor_of = {name: floor for floor, names in enumerate(reversed(FLOORS)) for name in names}
    floor_of |= {"compiler": len(FLOORS), "trainer": len(FLOORS)}  # the front pages, which import the API when called
    assert {room(module) for module in modules()} == set(floor_of), "give each room its floor"
    up = set()
    for module in modules():
        here = room(module)
        for other in imported(module) & set(modules()):
            there = room(other)
            crossed = {here.split(".")[0], there.split(".")[0]} == {"compiler", "trainer"}
            if here != there and (floor_of[here] <= floor_of[there] or crossed):
                up.add(f"{file(module)} imports {other}")
    assert not up, "\n".join(sorted(up))
    assert len(FLOORS) <= 12


def test_no_import_goes_in_a_circle() -> None:
    try:
        TopologicalSorter({name: imported(name) & set(modules()) for name in modules()}).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_the_core_needs_no_torch() -> None:
    core = [module for module in modules() if not module.startswith("trainer")]
    heavy = {file(m): found for m in core if (found := {i.split(".")[0] for i in imported(m)} & NOT_IN_THE_CORE)}
    assert heavy.pop("compiler/api.py") == THE_CALLERS
    assert heavy == {}


def test_the_command_line_imports_nothing_heavy_before_it_knows_the_command() -> None:
    heavy = {"pyarrow", "polars", "numpy", "tokenizers", "jinja2", "jsonschema", "rich"} | NOT_IN_THE_CORE
    code = f"import sys, cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_module_registers_anything_when_imported() -> None:
    """Facts are data files: no decorator registers a format, a template or a dataset."""
    for path in modules().values():
        assert "@register" not in path.read_text(encoding="utf-8"), path


def test_every_dependency_is_used_and_everything_used_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: names(lines) for name, lines in project["optional-dependencies"].items()}
    core = names(project["dependencies"])
    optional = extras["video"] | extras["hub"] | extras["s3"] | extras["ray"] | extras["near"] | extras["languages"]
    by_core = used(module for module in modules() if not module.startswith("trainer"))
    by_trainer = used(module for module in modules() if module.startswith("trainer"))
    assert (by_core - core, core - by_core - UNUSED) == (optional | THE_CALLERS, set())
    train = extras["train"] | extras["serve"] - {project["name"]}
    assert (by_trainer - core - train - optional, train - by_trainer - UNUSED) == (ASKED_FOR_WHEN_NEEDED, set())


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", line)[0] for line in requirements}  # type: ignore[index]


def used(some: Iterable[str]) -> set[str]:
    """The distributions that modules import, without the standard library and our own packages."""
    tops = {name.split(".")[0] for module in some for name in imported(module)}
    return {
        DISTRIBUTIONS.get(top, top).replace("_", "-")
        for top in tops - set(sys.stdlib_module_names) - {"cli", "__future__", *PACKAGES}
    }


def test_no_two_classes_share_a_name() -> None:
    homes = defaultdict(list)
    for module in modules():
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(file(module))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_rooms_not_modules_lie_in_the_two_packages() -> None:
    flat = Counter(path.parent.name for path in modules().values() if path.parent.parent == ROOT)
    assert flat["compiler"] <= 6 and flat["trainer"] <= 6


def test_at_most_three_files_are_longer_than_320_lines() -> None:
    lengths = {file(module): len(modules()[module].read_text(encoding="utf-8").splitlines()) for module in modules()}
    long = {name: length for name, length in lengths.items() if length > 320}
    assert len(long) <= 3, long


def test_the_digest_of_the_code_covers_every_module_that_compiles_a_unit_or_certifies_a_template() -> None:
    found, left = set[str](), ["compiler.units.unit", "compiler.proof.certificate"]
    while left:
        module = left.pop()
        if module not in found:
            found.add(module)
            left += imported(module) & set(modules())
    covered = {path for pattern in DECIDES_BYTES for path in ROOT.glob(pattern)}
    assert all(next(ROOT.glob(pattern), None) for pattern in DECIDES_BYTES)
    assert len(found) > 60
    assert {modules()[module] for module in found} <= covered
    for room_ in ("inspect", "questions", "convert", "report", "commands", "sets", "datasets"):
        assert not covered & set((ROOT / "compiler" / room_).rglob("*")), room_
