"""`python tools/try_versions.py [oldest] [3.12] ...`: try the core with other versions of what it stands on.

`oldest` installs the lowest version that pyproject.toml allows of every dependency of the core, for the lowest
supported Python of this machine; a number such as `3.12` installs the newest versions for that Python. Without
arguments: `oldest`, and each other supported Python that this machine has. Each gets an environment of its own,
compiles the README's mix, verifies the set and runs `make quick`. torch and the other extras stay out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ("3.11", "3.12", "3.13")
MIX = ["compile", "--mix", "agent:1,bench:2", "--self-cognition", "3000"]


def lowest() -> list[str]:
    """The lowest allowed version of each dependency of the core and of `make quick`, as pip's constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
        match = re.match(r"([\w-]+)>=([\d.]+)", line)
        assert match, f"{line}: has no lower bound"
        found.append(f"{match[1]}=={match[2]}")
    return found


def pythons(version: str) -> dict[tuple[int, ...], str]:
    """The Pythons of a version that run, on PATH or among those of pyenv, by their whole version, lowest first."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    on_path = [shutil.which(f"python{version}", path=folder) for folder in os.get_exec_path()]
    found = {}
    for program in filter(None, [*map(str, pyenv.glob(f"{version}.*/bin/python")), *on_path]):
        asked = [program, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:3])"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
        if ".".join(said[:2]) == version:
            found[tuple(map(int, said))] = program
    return dict(sorted(found.items()))


def attempt(name: str, program: str, wheel: Path, log: IO[str]) -> None:
    """Install, compile, verify and test in an environment of its own; CalledProcessError where one of them fails."""
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text("\n".join(lowest() if name == "oldest" else []), encoding="utf-8")
        own, cli = (str(Path(folder, "env", "bin", name)) for name in ("python", "cli"))
        for command in (
            [program, "-m", "venv", "env"],
            [own, "-m", "pip", "install", "-q", "-c", str(constraints), f"{wheel}[test]"],
            [cli, *MIX, "-o", "set", "--cache", "cache"],
            [cli, "verify", "set"],
            ["make", "-C", str(ROOT), "quick", f"PYTHON={own}"],
        ):
            subprocess.run(command, cwd=folder, env=clean(), stdout=log, stderr=log, check=True)


def report(name: str, wheel: Path) -> bool:
    """Try one set of versions and print how it went, with all output where it failed. Returns whether it worked."""
    found = list(pythons(SUPPORTED[0] if name == "oldest" else name).values())
    if not found:
        print(f"{name}: this machine has no such Python", flush=True)
        return True
    program = found[0] if name == "oldest" else found[-1]
    start = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        try:
            attempt(name, program, wheel, log)
        except subprocess.CalledProcessError as error:
            log.seek(0)
            print(f"{log.read()}\n{name}: FAILS: {error}", flush=True)
            return False
    print(f"{name}: works with {program}, {time.monotonic() - start:.0f} s", flush=True)
    return True


def clean() -> dict[str, str]:
    """The environment, without what would show one Python the packages of another."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def main() -> None:
    """Try what is named, as many at once as there are cores; exit with 1 where something fails."""
    running = "{}.{}".format(*sys.version_info[:2])
    wanted = sys.argv[1:] or ["oldest", *(version for version in SUPPORTED if version != running)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        source = Path(folder, "source")  # a build leaves files beside what it builds
        shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "out", "build", "*.egg-info", "shards"))
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(source)]
        subprocess.run(build, env=clean(), check=True)
        (wheel,) = Path(folder).glob("*.whl")
        worked = list(pool.map(report, wanted, [wheel] * len(wanted)))
    sys.exit(not all(worked))


if __name__ == "__main__":
    main()
