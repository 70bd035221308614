"""Commands that are killed, or find the disk full or broken, before their n-th change of a file.

A trial begins with what an earlier command has left: a set, an exported model, a checkpoint. Another command of the
kind replaces it or adds to it, in a forked process that is killed before its n-th operation (a file opened for writing,
made, renamed or removed, a folder made or removed), or gets ENOSPC or EIO there. Then the earlier result or the new one
must be there, whole, and the same command, undisturbed, must bring the new one.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults_flips import cli, must
from benchmarks.faults_mutations import outcome

KILL, WAYS = "kill", ("kill", "ENOSPC", "EIO")
GOOD = frozenset(f"{way}: the {which}" for way in WAYS for which in ("earlier one", "new one"))
"""What must be there after a trial."""
_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Case(NamedTuple):
    """A command, and what it is about in a trial's folder; `state` names what is there: "old", "new", or a fault."""

    name: str
    command: Callable[[Path], list[str]]
    state: Callable[[Path], str]


def run(trials: int = 300, seed: int = 0) -> Counter[str]:
    """Disturb; count what came of it."""
    found: Counter[str] = Counter()
    draw = random.Random(seed)
    for module in (
        "compiler.pipeline",
        "trainer.run.plan",
        "trainer.use.export",
        "trainer.train",
        "deepspeed",
        "peft",
        "cli",
    ):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name).resolve()
        cases = _cases(folder / "trial")
        shutil.copytree(folder / "trial", folder / "earlier")
        operations = {case.name: _operations(case, folder) for case in cases}
        for number in range(trials):
            case, way = cases[number % len(cases)], WAYS[number // len(cases) % len(WAYS)]
            at = draw.randrange(operations[case.name])
            came = _trial(case, folder, way, at)
            found[came] += 1
            if came not in GOOD:
                print(f"operations: {case.name}, {way} before {at}: {came}", file=sys.stderr)
    return found


def _cases(at: Path) -> list[Case]:
    """Make what earlier commands left, and say what comes next."""
    at.mkdir()
    cache = ("--workers", "1", "--cache", str(at / "cache"))
    mix = ("--mix", "agent:0.1", "--val-size", "2")
    settings = {
        "model_name_or_path": "demo", "output_dir": str(at / "out"), "use_cpu": True, "save_strategy": "steps",
        "save_steps": 1, "plot_loss": False, "lora": {"r": 2},
    }  # fmt: skip
    for steps in (1, 2):
        (at / f"run{steps}.json").write_text(json.dumps(settings | {"max_steps": steps}), encoding="utf-8")
    must(cli("compile", *mix, *cache, "-o", at / "set"))
    must(cli("compile", *mix, *cache, "--seed", "1", "-o", at / "other"))
    digests = {_digest(at / "set"): "old", _digest(at / "other"): "new"}
    shutil.rmtree(at / "other")
    must(cli("train", at / "set", at / "run1.json"))
    checkpoint = at / "out" / "checkpoint-1"
    must(cli("export", checkpoint, at / "model"))
    must(cli("export", checkpoint, at / "half", "--dtype", "bf16"))
    trees = {_tree(at / "model"): "old", _tree(at / "half"): "new"}
    shutil.rmtree(at / "half")

    def of_set(folder: Path) -> str:
        return _verified(folder / "set") or digests.get(_digest(folder / "set"), "another set")

    def of_run(folder: Path) -> str:
        from trainer.run import checkpoints

        there = [one.path for one in checkpoints.complete(folder / "out")]
        wrong = next(filter(None, map(_verified, there)), "")
        return wrong or {1: "old", 2: "new"}.get(len(there), f"{len(there)} checkpoints")

    def of_model(folder: Path) -> str:
        return trees.get(_tree(folder / "model"), "another model")

    own = ("--workers", "1", "--cache")
    return [
        Case(
            "compile",
            lambda place: ["compile", *mix, *own, str(place / "cache"), "--seed", "1", "-o", str(place / "set")],
            of_set,
        ),
        Case(
            "export",
            lambda place: ["export", str(place / "out" / "checkpoint-1"), str(place / "model"), "--dtype", "bf16"],
            of_model,
        ),
        Case("train", lambda place: ["train", str(place / "set"), str(place / "run2.json"), "--resume", "yes"], of_run),
    ]


def _operations(case: Case, folder: Path) -> int:
    """How many operations the command has when nothing disturbs it."""
    at = _begin(folder)
    counter = folder / "count"
    came, said = outcome(case.command(at), _counting(at, counter))
    if came != "exit 0" or case.state(at) != "new":
        raise RuntimeError(f"{case.name}: {came}\n{said}")
    return len(counter.read_bytes())


def _trial(case: Case, folder: Path, way: str, number: int) -> str:
    at = _begin(folder)
    came, said = outcome(case.command(at), _disturbing(at, way, number))
    if came == "traceback" or (came.startswith("exit") and came not in ("exit 0", "exit 2", "exit 4", "exit 5")):
        return f"{came}: {said[-300:]}"
    state = case.state(at)
    if state not in ("old", "new"):
        return state
    came, said = outcome(case.command(at))
    if came != "exit 0" or case.state(at) != "new":
        return f"the next run: {came}: {said[-300:]}"
    if left := [path.name for path in (*at.iterdir(), *(at / "out").iterdir()) if path.name not in _NAMES]:
        return f"left over: {left}"
    return f"{way}: the {'earlier one' if state == 'old' else 'new one'}"


_NAMES = {
    "cache", "set", "model", "out", "run1.json", "run2.json", "checkpoint-1", "checkpoint-2", "log.jsonl", ".lock",
}  # fmt: skip


def _begin(folder: Path) -> Path:
    """A folder with what earlier commands left, at the place where they left it."""
    at = folder / "trial"
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(folder / "earlier", at, symlinks=True)
    return at


def _changes(at: Path) -> Callable[[str, tuple[Any, ...]], bool]:
    """Whether an audit event of Python is a change of a file in a folder."""
    top = str(at)

    def is_change(event: str, given: tuple[Any, ...]) -> bool:
        if event == "open":
            return (
                isinstance(given[0], str | os.PathLike) and bool(given[2] & _WRITES) and str(given[0]).startswith(top)
            )
        return event in _CHANGES and any(
            isinstance(one, str | os.PathLike) and str(one).startswith(top) for one in given
        )

    return is_change


def _counting(at: Path, counter: Path) -> Callable[[], None]:
    is_change = _changes(at)

    def prepare() -> None:
        file = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sys.addaudithook(lambda event, given: os.write(file, b".") and None if is_change(event, given) else None)

    return prepare


def _disturbing(at: Path, way: str, number: int) -> Callable[[], None]:
    is_change, left = _changes(at), number

    def disturb(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        if not is_change(event, given):
            return
        left -= 1
        if left == -1:
            if way == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            code = getattr(errno, way)
            raise OSError(code, os.strerror(code), str(given[0]))

    return lambda: sys.addaudithook(disturb)


def _verified(folder: Path) -> str:
    """ "" where `cli verify` finds a set or a checkpoint whole, else what it says."""
    came, said = outcome(["verify", str(folder)])
    return "" if came == "exit 0" else f"{folder.name}: {came}: {said[-200:]}"


def _digest(folder: Path) -> str:
    return str(json.loads((folder / "manifest.json").read_bytes())["digest"])


def _tree(folder: Path) -> str:
    """A digest of all files in a folder, by name."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.update(f"{path.relative_to(folder)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
