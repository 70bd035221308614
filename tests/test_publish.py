"""Publishing, killed or failing before each of its operations: a reader finds the old set or the new one, never none.

Each trial is a process of its own, which publishes a compiled set over another and is killed by the audit hook of
Python before its k-th operation on files. All trials are made twice: where the system exchanges two folders, and where
it does not.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import main
from compiler.sets.folder import Output
from compiler.sets.own import LOCK, is_scratch, make_scratch
from compiler.sets.verify import find_damage
from schemas import disk, own
from schemas.errors import InputError, UsageError
from schemas.reader import CompiledSet
from tests.support.command import runner
from tests.support.sets import manifest

OPERATIONS = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.utime"}
MODES = pytest.mark.parametrize("exchanges", [True, False], ids=["exchanged", "moved"])


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sets; the second has no split val, and fewer rows."""
    folder = tmp_path_factory.mktemp("sets")
    made = []
    for number, options in enumerate((["--val-size", "3"], ["--seed", "5"])):
        rows = [json.dumps({"instruction": f"{n}", "output": "b"}) for n in range(9 - number)]
        (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
        made.append(folder / f"set{number}")
        arguments = ["compile", folder / "rows.jsonl", *options, "--cache", folder / "cache", "-o", made[-1]]
        done = runner().invoke(main, [*map(str, arguments)])
        assert done.exit_code == 0, done.stderr
    return made


def no_exchange(*_: Any) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


def publish(new: Path, out: Path) -> list[str]:
    """Publish a copy of a set; return what was said."""
    said: list[str] = []
    with Output(out, lambda text: said.append(str(text))) as output:
        shutil.copytree(new, output.partial, dirs_exist_ok=True)
        output.publish(json.loads((new / "manifest.json").read_text()))
    return said


def apart(do: Callable[[], None], *, exchanges: bool, number: int, then: Callable[[], None]) -> int:
    """Do something in a process of its own, and something else before its operation of that number; its status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    seen = 0

    def hook(event: str, _: Any) -> None:
        nonlocal seen
        seen += event in OPERATIONS
        if event in OPERATIONS and seen == number:
            then()

    try:
        if not exchanges:
            disk.exchange = no_exchange
        sys.addaudithook(hook)
        do()
        os._exit(0 if seen < number else 3)
    except InputError as error:
        os._exit(5 if "Nothing was published." in str(error) else 6 if "is published" in str(error) else 7)
    except OSError:
        os._exit(8)
    finally:
        os._exit(9)


def names(out: Path) -> set[str]:
    return {path.name for path in (*out.iterdir(), *out.parent.iterdir())}


@pytest.mark.slow
@MODES
def test_a_publication_that_is_killed_before_any_operation_leaves_the_old_set_or_the_new_one(
    sets: list[Path], tmp_path: Path, exchanges: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = (manifest(one)["digest"] for one in sets)
    ends: Counter[str] = Counter()
    for number in range(1, 200):
        out = tmp_path / f"out{number}" / "out"
        out.parent.mkdir()
        shutil.copytree(sets[0], out)
        status = apart(
            lambda out=out: publish(sets[1], out) and None, exchanges=exchanges, number=number,
            then=lambda: os.kill(os.getpid(), signal.SIGKILL),
        )  # fmt: skip
        if status == 0:
            break
        assert status == signal.SIGKILL
        opened = CompiledSet.open(out)
        assert find_damage(opened) == [], number
        ends["old" if opened.manifest["digest"] == old else "new"] += 1
        assert opened.manifest["digest"] in (old, new)
        with Output(out, print):  # the next run puts back what is aside, and leaves nothing of the killed one
            pass
        assert manifest(out)["digest"] == opened.manifest["digest"]
        assert find_damage(CompiledSet.open(out)) == []
        kept = sets[0] if opened.manifest["digest"] == old else sets[1]
        assert names(out) == {path.name for path in kept.iterdir()} | {"out"}
    assert number > 20
    assert ends["old"] > 10
    assert ends["new"] > 5
    if not exchanges:
        assert "read is the old set" in capsys.readouterr().err


@pytest.mark.slow
@MODES
def test_a_publication_in_which_any_operation_fails_says_what_is_true(
    sets: list[Path], tmp_path: Path, exchanges: bool
) -> None:
    old, new = (manifest(one)["digest"] for one in sets)

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    codes: Counter[tuple[int, bool]] = Counter()
    for number in range(1, 200):
        out = tmp_path / f"out{number}" / "out"
        out.parent.mkdir()
        shutil.copytree(sets[0], out)
        status = apart(lambda out=out: publish(sets[1], out) and None, exchanges=exchanges, number=number, then=fail)
        code = os.waitstatus_to_exitcode(status)
        assert code != 9
        opened = CompiledSet.open(out)
        assert find_damage(opened) == [], number
        found = opened.manifest["digest"]
        assert found == {0: new, 3: new, 5: old, 6: new, 8: old}[code], number
        codes[code, found == new] += 1
        with Output(out, print):
            pass
        assert manifest(out)["digest"] == found
        if code == 0:
            break
    assert sum(codes.values()) > 20


def test_the_old_set_of_a_late_failure_is_named(
    sets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(sets[0], out)
    really = os.unlink

    def unlink(path: Any, *rest: Any, **more: Any) -> None:
        if str(path).endswith(".arrow"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        really(path, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        (said,) = publish(sets[1], out)
    assert ".out.partial/train/shard-00000.arrow: what is not needed any more cannot be removed (Input/output" in said
    assert said.endswith("The set is published.")
    assert find_damage(CompiledSet.open(out)) == []
    publish(sets[0], out)
    assert names(out) == {path.name for path in sets[0].iterdir()} | {"out"}


@pytest.mark.parametrize("name", [".partial", ".old", ".replaced"])
def test_a_folder_of_another_with_such_a_name_is_refused_and_kept(sets: list[Path], tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    shutil.copytree(sets[0], out)
    (out / name).mkdir()
    (out / name / "train").write_text("mine")
    with pytest.raises(UsageError, match="what is there has no mark of one"):
        publish(sets[1], out)
    assert (out / name / "train").read_text() == "mine"
    assert not (out / ".lock").exists()
    assert find_damage(CompiledSet.open(out)) == []


def test_files_of_others_in_the_folder_stay(sets: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(sets[0], out)
    for name in ("notes.txt", "val/mine.txt", "tokenizer/mine.txt", "sub/x"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "y").touch()
    publish(sets[1], out)
    assert [(out / name).read_text() for name in ("notes.txt", "val/mine.txt", "tokenizer/mine.txt", "sub/x")]
    assert (tmp_path / ".out.partial" / "y").exists()
    assert manifest(out)["digest"] == manifest(sets[1])["digest"]
    assert not names(out) & {".old", ".replaced", ".partial", ".lock"}


def test_a_folder_that_is_reached_by_a_link_stays_a_link(sets: list[Path], tmp_path: Path) -> None:
    shutil.copytree(sets[0], tmp_path / "real")
    (tmp_path / "out").symlink_to("real")
    (tmp_path / "real").chmod(0o2750)
    publish(sets[1], tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real").stat().st_mode & 0o7777 == 0o2750
    assert manifest(tmp_path / "real")["digest"] == manifest(sets[1])["digest"]
    assert {path.name for path in tmp_path.iterdir()} == {"real", "out"}


def test_the_folder_in_which_the_process_is_is_not_exchanged(
    sets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sets[0], tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    before = (tmp_path / "out").stat().st_ino
    publish(sets[1], Path())
    assert (tmp_path / "out").stat().st_ino == before
    assert manifest(Path())["digest"] == manifest(sets[1])["digest"]


# -- what lies where the lock is put --


def test_a_lock_file_that_is_a_link_a_pipe_or_not_ours_is_refused_and_kept(sets: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(sets[0], out)
    (tmp_path / "target").write_text("precious")
    lock = out / ".lock"
    for put in (lambda: lock.symlink_to(tmp_path / "target"), lambda: os.mkfifo(lock), lambda: lock.mkdir()):
        put()
        with pytest.raises(InputError, match="expected a lock file, found a link, a folder or a special file"):
            publish(sets[1], out)
        lock.rmdir() if lock.is_dir() and not lock.is_symlink() else lock.unlink()
    lock.write_text("of another program")
    with pytest.raises(UsageError, match="expected a lock file of a compile"):
        publish(sets[1], out)
    assert lock.read_text() == "of another program"
    assert (tmp_path / "target").read_text() == "precious"
    assert find_damage(CompiledSet.open(out)) == []


@pytest.mark.parametrize("left", [[], [".lock"]])
def test_a_scratch_folder_that_was_only_begun_is_a_runs_own(tmp_path: Path, left: list[str]) -> None:
    """The process was killed before the mark was written."""
    folder = tmp_path / ".partial"
    folder.mkdir()
    for name in left:
        (folder / name).touch()
    assert is_scratch(folder)
    own.remove(folder, LOCK)
    assert not folder.exists()


def test_the_mark_of_a_scratch_folder_is_removed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ".partial"
    os.close(make_scratch(folder, tmp_path))
    (folder / "train").mkdir()
    (folder / "train" / "a").touch()
    (folder / "z").touch()
    left: list[bool] = []
    unlink = Path.unlink

    def look(self: Path, missing_ok: bool = False) -> None:
        left.append(is_scratch(folder))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", look)
    own.remove(folder, LOCK)
    assert left and all(left) and not folder.exists()
