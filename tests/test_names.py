"""The top-level names are common: a stranger's `schemas` or `registry` is one message and is never run.

Every test runs the installed command `cli` in an environment of its own, beside real folders and distributions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compiler", "registry", "schemas", "trainer")
TRAP = "raise SystemExit('the stranger was run')\n"


def write_wheel(folder: Path, name: str, version: str, files: dict[str, bytes], *, script: str = "") -> Path:
    """Write a wheel of these files, with a console script where one is given."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for file, data in files.items():
            archive.writestr(file, data)
        shown = name.replace("_", "-")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {shown}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{script}\n" if script else "")
        archive.writestr(f"{info}/RECORD", "")
    return path


def pip(python: Path, *arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "-q", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def install(python: Path, *wheels: Path) -> None:
    pip(python, "install", "--no-deps", "--no-index", "--no-compile", "--force-reinstall", *wheels)


class Environment:
    """A virtual environment with the project installed from a wheel; its dependencies are those of the tests."""

    def __init__(self, folder: Path) -> None:
        self.python = folder / "env" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        (self.site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", "utf-8")
        files = {"cli.py": (ROOT / "cli.py").read_bytes()}
        for package in PACKAGES:
            for path in (ROOT / package).rglob("*"):
                if path.suffix in (".py", ".json", ".jsonl", ".jinja"):
                    files[path.relative_to(ROOT).as_posix()] = path.read_bytes()
        self.wheel = write_wheel(folder, "finetune_data_compiler", "0.1.0", files, script="cli = cli:run")
        install(self.python, self.wheel)

    @property
    def site(self) -> Path:
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        return self.python.parent.parent / "lib" / version / "site-packages"

    def run(self, folder: Path, *command: str, pythonpath: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment in a folder."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if pythonpath is not None:
            environment["PYTHONPATH"] = pythonpath
        return subprocess.run(
            [self.python.parent / command[0], *command[1:]],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def shared_environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """For tests that install nothing."""
    return Environment(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's folder with packages and a module that have our names."""
    for name in ("schemas", "compiler"):
        (tmp_path / "project" / name).mkdir(parents=True)
        (tmp_path / "project" / name / "__init__.py").write_text(TRAP, "utf-8")
    (tmp_path / "project" / "cli.py").write_text(TRAP, "utf-8")
    return tmp_path / "project"


def test_a_folder_of_ones_own_with_our_names_does_no_harm(shared_environment: Environment, project: Path) -> None:
    done = shared_environment.run(project, "cli", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0.1.0\n", "")


@pytest.mark.parametrize("name", PACKAGES)
def test_a_folder_on_pythonpath_that_hides_a_package_is_named(
    shared_environment: Environment, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text(TRAP, "utf-8")
    done = shared_environment.run(tmp_path, "cli", "--version", pythonpath=".")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {name}: expected the package in {shared_environment.site}, found {tmp_path}/{name}\n"
        f"  PYTHONPATH has {tmp_path}: run `env -u PYTHONPATH cli ...`, or take that folder out of it.\n"
    )


def test_a_module_instead_of_a_package_is_named_too(shared_environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(TRAP, "utf-8")
    done = shared_environment.run(tmp_path, "cli", "--version", pythonpath=".")
    assert done.returncode == 2
    assert f"found {tmp_path}/trainer.py\n  PYTHONPATH has {tmp_path}: " in done.stderr


def test_python_m_in_a_folder_with_our_names_says_what_to_run(shared_environment: Environment, project: Path) -> None:
    (project / "cli.py").unlink()
    done = shared_environment.run(project, "python", "-m", "cli", "--version")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"found {project}/compiler\n  python -m looks into this folder first: run `cli ...`" in done.stderr


def test_another_distribution_in_front_of_ours_is_named(shared_environment: Environment, tmp_path: Path) -> None:
    wheel = write_wheel(tmp_path, "model_zoo", "2.5", {"registry/__init__.py": TRAP.encode()})
    pip(shared_environment.python, "install", "--no-deps", "--no-index", "--target", tmp_path / "first", wheel)
    done = shared_environment.run(tmp_path, "cli", "--version", pythonpath=str(tmp_path / "first"))
    assert (done.returncode, done.stdout) == (2, "")
    found = f"found {tmp_path}/first/registry (distribution model-zoo 2.5)\n"
    assert done.stderr.startswith(f"error: registry: expected the package in {shared_environment.site}, {found}")


def test_a_distribution_installed_over_ours_is_named_and_so_is_the_hole_that_it_leaves(tmp_path: Path) -> None:
    environment = Environment(tmp_path)
    install(
        environment.python,
        write_wheel(tmp_path, "model_zoo", "2.5", {"registry/__init__.py": TRAP.encode(), "registry/zoo.py": b""}),
    )
    done = environment.run(tmp_path, "cli", "--version")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: registry: expected the package of finetune-data-compiler, found another one installed over it "
        "(distribution model-zoo 2.5)\n"
        "  Install this project again, in an environment of its own: with pipx install, with uv tool install, "
        "or in a new venv.\n"
    )
    pip(environment.python, "uninstall", "-y", "model-zoo")
    done = environment.run(tmp_path, "cli", "--version")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"error: registry: expected {environment.site}/registry/__init__.py, found none\n"
        "  It was removed together with another package of that name; install this project again, "
    )
    install(environment.python, environment.wheel)
    assert environment.run(tmp_path, "cli", "--version").stdout == "0.1.0\n"


def test_every_package_has_the_projects_name_in_its_first_file() -> None:
    for name in PACKAGES:
        assert "finetune-data-compiler" in (ROOT / name / "__init__.py").read_text("utf-8")
