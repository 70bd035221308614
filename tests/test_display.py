"""What a user watches: progress on stderr, drawn in 80 columns or line by line in a log, and tables that fit."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from compiler.commands.terminal import figures_of
from compiler.units.progress import Done

CLI = [sys.executable, "-m", "cli"]
FAST = "from compiler.commands import terminal; terminal.EVERY = {every}; from cli import main; main()"
"""The command line with lines of progress as often as that: a test does not take minutes."""


@pytest.fixture(scope="module")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that takes some seconds to compile."""
    path = tmp_path_factory.mktemp("long") / "chats.jsonl"
    words = ["tide", "harbour", "lamp", "snow", "river", "stone", "bird", "north", "seven", "quiet"]
    with path.open("w", encoding="utf-8") as file:
        for number in range(20_000):
            answer = " ".join(words[(number * k) % 10] for k in range(1, 90))
            file.write(json.dumps({"instruction": f"Tell me about number {number}.", "output": answer}) + "\n")
    return path


def logged(every: float, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line with its output in pipes."""
    command = [sys.executable, "-c", FAST.format(every=every), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)


def test_a_log_has_a_line_with_share_rate_and_time_left_every_few_seconds(long_file: Path, tmp_path: Path) -> None:
    options = ("compile", long_file, "--cache", "cache", "-o", "out", "--workers", 1)
    done = logged(0.02, *options, cwd=tmp_path)
    assert "compiling" not in done.stdout
    lines = done.stderr.splitlines()
    compiling = (
        r"compiling: \d+%, chats: [\d,]+ rows, [\d,]+ rows/s, [\d.]+ MB/s, \d+ units compiled, 0 cached, \d+:\d\d left"
    )
    assert any(re.fullmatch(compiling, line) for line in lines), done.stderr[:2000]
    writing = r"writing train: \d+%, [\d,]+ of 20,000 examples, [\d,]+/s(, \d+:\d\d left)?"
    assert any(re.fullmatch(writing, line) for line in lines), done.stderr[-2000:]
    done = logged(0.001, "verify", "out", cwd=tmp_path)
    assert re.search(r"^verifying: \d+%, 0 of 1 files, 0.0 files/s$", done.stderr, re.MULTILINE), done.stderr
    assert done.stdout == "out: 1 shard and 5 files are whole\n"


def test_the_lines_keep_coming_while_one_piece_of_work_takes_long(tmp_path: Path) -> None:
    code = (
        "import time; from compiler.commands import terminal; terminal.EVERY = 0.1\n"
        "for _ in terminal.track(['a', 'b', 'c', 'd']): time.sleep(0.5)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stderr.splitlines()
    assert len(lines) >= 8
    assert lines[0] == "checking: 0%, 0 of 4 files, 0.0 files/s"
    assert re.fullmatch(r"checking: 75%, 3 of 4 files, [\d.]+ files/s, 0:0[01] left", lines[-1])


def test_short_work_says_nothing(tmp_path: Path) -> None:
    assert logged(10, "compile", "--mix", "agent:1", "--cache", "c", "-o", "out", cwd=tmp_path).stderr == ""


def on_terminal(*arguments: object, cwd: Path, columns: int = 80) -> str:
    """Run the command line on a terminal of that many columns; return everything that it wrote there."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "CI")}
    with subprocess.Popen(
        [*CLI, *map(str, arguments)],
        cwd=cwd, env=environment | {"TERM": "xterm-256color"}, stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        parts = []
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # the last process with this terminal is gone
                break
            parts.append(data)
    os.close(ours)
    assert process.returncode == 0
    return b"".join(parts).decode("utf-8")


def frames(written: str) -> list[str]:
    """Return the lines that were on the screen, without colours and movements."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\n", re.sub(r"\x1b\[[0-9;]*m", "", written))
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def test_a_terminal_of_80_columns_has_room_for_rows_rate_bar_share_and_time_left(
    long_file: Path, tmp_path: Path
) -> None:
    options = ("compile", long_file, "--cache", "cache", "-o", "out", "--workers", 1)
    shown = frames(on_terminal(*options, cwd=tmp_path))
    assert max(map(len, shown)) <= 80
    drawn = r". chats: [\d,]+ rows, [\d,]+ rows/s.* [━╸╺]+ +\d+% \d+:\d\d left"
    assert any(re.fullmatch(drawn, line) for line in shown), shown[:40]


def test_formats_fit_80_columns_and_no_word_is_split(tmp_path: Path) -> None:
    described = json.loads(
        subprocess.run([*CLI, "formats", "--json"], capture_output=True, text=True, check=True).stdout
    )
    shown = frames(on_terminal("formats", cwd=tmp_path))
    assert max(map(len, shown)) <= 80
    assert any(re.fullmatch("alpaca +an instruction and its reply +sft, preference, kto", line) for line in shown)
    words = set(" ".join(shown).split())
    assert all(word in words for one in described for word in [one["name"], *one["title"].split()])
    assert max(len(line) for line in frames(on_terminal("formats", "alpaca", cwd=tmp_path))) <= 80


def test_figures_that_matter_most_come_first() -> None:
    done = Done(dataset="chats", cached=3, compiled=1200, rows=50_000, rejected=7, bytes=94_000_000)
    assert figures_of(done, 10.0) == [
        "chats: 50,000 rows", "5,000 rows/s", "7 rejected", "9.4 MB/s", "1,200 units compiled", "3 cached"
    ]  # fmt: skip


def test_the_summary_fits_80_columns_and_splits_no_word(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3 + '{"instruction": "a"}\n', "utf-8")
    options = ("compile", "bad.jsonl", "--mix", "bad:1,agent:1,bench:2", "--mix-unit", "tokens", "--max-rejects", 1)
    shown = frames(on_terminal(*options, "--self-cognition", 3000, "--cache", "c", "-o", "out", cwd=tmp_path))
    assert max(map(len, shown)) <= 80
    words = " ".join(shown).split()
    for word in ("dataset", "asked", "trained", "tokens", "repeats", "rejected", "sampled", "self-cognition"):
        assert word in words, shown
    assert any(re.fullmatch(r"bad +0 +1 +\d+ +\d+", line) for line in shown), shown


SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(_CLI_COMPLETE=bash_source cli)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u; eval "$(_CLI_COMPLETE=zsh_source cli)"'),
    "fish": (["fish", "--no-config"], "_CLI_COMPLETE=fish_source cli | source"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_options_names_and_files(shell: str, tmp_path: Path) -> None:
    """The three lines are those of the documents; what TAB makes of a command line is read from a real terminal."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "harbour-rows.jsonl").write_text("{}\n", "utf-8")
    command, setup = SHELLS[shell]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    with subprocess.Popen(
        ["setsid", "--ctty", *command], cwd=tmp_path, env=environment | {"TERM": "dumb"},
        stdin=theirs, stdout=theirs, stderr=theirs,
    ) as process:  # fmt: skip
        os.close(theirs)
        typed_until(ours, f"{setup}; echo set-up-is-done\n", r"\nset-up-is-done")
        for typed, completed in (
            ("cli form", "cli formats "),
            ("cli compile --overl", "cli compile --overlength "),
            ("cli formats shareg", "cli formats sharegpt"),
            ("cli compile harb", "cli compile harbour-rows.jsonl"),
            ("cli inspect harb", "cli inspect harbour-rows.jsonl"),
        ):
            typed_until(ours, f"{typed}\t", completed)
            os.write(ours, b"\x15")  # away with the line
        process.kill()
    os.close(ours)


def typed_until(terminal: int, text: str, wanted: str, seconds: float = 60) -> str:
    """Type a text; return what the terminal shows until it has the wanted pattern."""
    os.write(terminal, text.encode())
    shown, end = "", time.monotonic() + seconds
    while not re.search(wanted, shown):
        ready, _, _ = select.select([terminal], [], [], max(end - time.monotonic(), 0))
        assert ready, f"after {text!r} the terminal shows {shown!r}"
        shown += os.read(terminal, 65536).decode("utf-8", "replace")
    return shown
