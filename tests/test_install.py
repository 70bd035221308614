"""What a missing extra is installed with: a command that works the way the project itself was installed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WHEEL = "finetune_data_compiler-0.1.0-py3-none-any.whl"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A small wheel of the project's name that holds the module under test."""
    path = tmp_path / "a folder" / WHEEL
    path.parent.mkdir()
    info = "finetune_data_compiler-0.1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("schemas/__init__.py", "")
        archive.write(ROOT / "schemas" / "install.py", "schemas/install.py")
        metadata = "Metadata-Version: 2.1\nName: finetune-data-compiler\nVersion: 0.1.0\nProvides-Extra: train\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-index", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def site(tmp_path: Path, wheel: Path) -> Path:
    """A folder with the wheel installed by pip, which notes beside it where it came from."""
    pip("install", wheel, "--target", tmp_path / "site")
    return tmp_path / "site"


def said(site: Path, prefix: Path | None = None) -> str:
    """Return the command for [train] that the project installed in `site` gives, in an environment at `prefix`."""
    there = f"sys.prefix = {str(prefix)!r}; " if prefix else ""
    code = f"import sys; sys.path.insert(0, {str(site)!r}); {there}from schemas import install; "
    command = [sys.executable, "-I", "-c", code + "print(install.extra('train'), end='')"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def came_from(site: Path, origin: dict[str, object]) -> None:
    """Note an origin as an installer would."""
    (site / "finetune_data_compiler-0.1.0.dist-info" / "direct_url.json").write_text(json.dumps(origin), "utf-8")


def test_code_that_runs_from_a_clone_names_the_clone() -> None:
    from schemas import install

    assert install.extra("train") == f"pip install -e '{ROOT}[train]'"


def test_an_installed_wheel_is_named_and_pip_takes_the_command(site: Path, wheel: Path) -> None:
    assert said(site) == f"pip install '{wheel}[train]'"
    pip(*shlex.split(said(site))[1:], "--dry-run")


def test_a_wheel_that_is_gone_is_named_without_its_folder(site: Path, wheel: Path) -> None:
    wheel.unlink()
    assert said(site) == f"pip install '{WHEEL}[train]'"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file:///gone/clone", "dir_info": {}}, "pip install '.[train]'"),
        (
            {"url": "https://example.org/a/b.git", "vcs_info": {"vcs": "git", "commit_id": "0" * 40}},
            "pip install 'finetune-data-compiler[train] @ git+https://example.org/a/b.git'",
        ),
        (
            {"url": f"https://example.org/{WHEEL}", "archive_info": {}},
            f"pip install 'finetune-data-compiler[train] @ https://example.org/{WHEEL}'",
        ),
        ({}, f"pip install '{WHEEL}[train]'"),
    ],
)
def test_every_origin_has_its_command(site: Path, origin: dict[str, object], command: str) -> None:
    came_from(site, origin)
    assert said(site) == command


@pytest.mark.parametrize(
    ("mark", "command"), [("pipx_metadata.json", "pipx install"), ("uv-receipt.toml", "uv tool install")]
)
def test_an_environment_that_a_tool_keeps_is_replaced_by_the_tool(
    site: Path, wheel: Path, tmp_path: Path, mark: str, command: str
) -> None:
    (tmp_path / mark).touch()
    assert said(site, tmp_path) == f"{command} --force '{wheel}[train]'"


def test_what_uv_installed_is_added_to_by_uv(site: Path, wheel: Path) -> None:
    (site / "finetune_data_compiler-0.1.0.dist-info" / "INSTALLER").write_text("uv\n", "utf-8")
    assert said(site) == f"uv pip install '{wheel}[train]'"


def test_code_without_any_installation_says_where_the_command_runs(tmp_path: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("schemas/__init__.py", tmp_path / "copied")
        archive.extract("schemas/install.py", tmp_path / "copied")
    code = (
        "import sys; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]; "
        f"sys.path.insert(0, {str(tmp_path / 'copied')!r}); "
        "from schemas import install; print(install.extra('train'))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "pip install '.[train]' in a clone\n"


def test_no_message_names_the_project_as_if_an_index_had_it() -> None:
    for folder in ("compiler", "trainer", "schemas", "registry"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "finetune-data-compiler[" not in path.read_text("utf-8"), path
