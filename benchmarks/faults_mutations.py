"""Mutated files: one change in one file that a command reads; the command ends with a message or does its work.

A trial takes a file, changes it, and runs a command that reads it in a forked process, with everything imported. It
fails on a traceback, an exit code that is not documented, a signal, or more than 20 seconds. Half of the changes are of
bytes (a bit, a cut, a doubled piece, odd bytes); the others put an odd value, a nested one, or nothing in the place of
a value of JSON. A manifest is sealed again after such a change, so that its digest fits.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.faults_flips import cli, must

GOOD = frozenset(f"exit {code}" for code in (0, 2, 3, 4, 5, 6))
"""What a command may come to."""
SECONDS = 20
_ODD: Sequence[Any] = (
    None, True, False, 0, -1, 2**31, 2**63, -(2**70), 1e308, float("nan"), float("inf"), "", "x",
    "\0", "\ud800", "../..",
    "/dev/zero", "a" * 100_000, [], {}, [[]], {"": None}, ["x"], {"a": {"b": []}},
)  # fmt: skip


class Case(NamedTuple):
    """A file, and the commands that read it."""

    file: Path
    commands: tuple[tuple[str, ...], ...]
    sealed: bool = False
    """Whether it is a manifest, whose digest is made to fit."""


def run(trials: int = 2000, seed: int = 0) -> Counter[str]:
    """Mutate; count what came of it."""
    found: Counter[str] = Counter()
    draw = random.Random(seed)
    for module in ("compiler.pipeline", "trainer.run.plan", "trainer.use.export", "trainer.follow.plan", "peft", "cli"):
        importlib.import_module(module)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        cases = _cases(Path(name))
        for number in range(trials):
            case = cases[number % len(cases)]
            whole = case.file.read_bytes()
            changed = _changed(draw, case, whole)
            case.file.write_bytes(changed)
            command = draw.choice(case.commands)
            came, said = outcome(command)
            case.file.write_bytes(whole)
            found[came] += 1
            if came not in GOOD:
                print(f"mutations: {case.file.name} by {' '.join(command)}: {came}\n{said}", file=sys.stderr)
                if keep := os.environ.get("BENCH_KEEP"):
                    (Path(keep) / f"{number}-{case.file.name}").write_bytes(changed)
    return found


def _cases(folder: Path) -> list[Case]:
    """Real files of every kind that is read, in a folder of their own."""
    import registry

    config, checkpoint, tokenizer = folder / "run.json", folder / "out" / "checkpoint-1", folder / "tokenizer"
    place, cache = folder / "set", ("--workers", "1", "--cache", str(folder / "cache"))
    settings = {
        "model_name_or_path": "demo", "output_dir": str(folder / "out"), "use_cpu": True, "max_steps": 1,
        "save_strategy": "no", "plot_loss": False, "lora": {"r": 2},
    }  # fmt: skip
    config.write_text(json.dumps(settings), encoding="utf-8")
    shutil.copytree(registry.DEMO_TOKENIZER, tokenizer)
    rows = [{"instruction": f"q{n}", "input": "", "output": "a", "system": "s"} for n in range(5)]
    chats = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}] * 3
    files = {
        "rows.json": json.dumps(rows), "chats.jsonl": "".join(json.dumps(one) + "\n" for one in chats),
        "rows.csv": "instruction,output\na,b\nc,d\n",
        "dataset_info.json": json.dumps({"rows": {"file_name": "rows.json", "columns": {"prompt": "instruction"}}}),
        "weights.json": json.dumps(registry.weights("react") | {"name": "mine"}),
        "lora.yaml": "stage: sft\nmodel_name_or_path: demo\ndataset: rows\ntemplate: qwen\ncutoff_len: 99\n"
        "lora_rank: 4\noutput_dir: o\nlearning_rate: 1.0e-4\nval_size: 0.1\nbf16: false\n",
        "run.sh": "N=2\nswift sft --model demo --tuner_type lora --dataset rows.json --lora_rank $N --output_dir o\n",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    # In processes of their own: after the threads of libraries, forks would hang.
    must(cli("compile", "--mix", "agent:0.1", *cache, "-o", place, "--val-size", "2"))
    must(cli("train", place, config))

    def compiling(*arguments: object) -> tuple[str, ...]:
        return ("compile", *map(str, arguments), *cache, "-o", str(folder / "new"))

    planned = ("train", str(place), str(config), "--dry-run")
    own = compiling(folder / "chats.jsonl", "--tokenizer", tokenizer)
    looked = (("verify", str(place)), ("inspect", str(place)), planned)
    used = (("verify", str(checkpoint)), ("export", str(checkpoint), str(folder / "exported")))
    shards = sorted(place.rglob("*.arrow"))
    kept = sorted(path for path in (folder / "cache" / "objects").glob("??/*") if path.suffix in (".json", ".arrow"))
    cached = (*(("cache", what, *cache[2:]) for what in ("list", "verify")), compiling("--mix", "agent:0.1"))
    return [
        Case(place / "manifest.json", looked, sealed=True),
        Case(place / "manifest.json", looked),
        Case(shards[0], looked),
        Case(place / "lines.jsonl", (("inspect", str(place), "--row", "agent.jsonl:1"), *looked[:1])),
        Case(place / "rejects.jsonl", (("inspect", str(place), "--rejected"),)),
        Case(config, (planned,)),
        Case(folder / "lora.yaml", (("train", str(place), str(folder / "lora.yaml"), "--dry-run"),)),
        Case(folder / "run.sh", (("follow", "--print", str(folder / "run.sh")),)),
        Case(checkpoint / "run.json", used),
        Case(checkpoint / "COMPLETE", used),
        Case(checkpoint / "adapter_config.json", used),
        Case(checkpoint / "adapter_model.safetensors", used),
        Case(folder / "rows.json", (compiling(folder / "rows.json"),)),
        Case(folder / "chats.jsonl", (compiling(folder / "chats.jsonl"),)),
        Case(folder / "rows.csv", (compiling(folder / "rows.csv"),)),
        Case(folder / "dataset_info.json", (compiling("--registry", folder, "--mix", "rows"),)),
        Case(folder / "weights.json", (compiling("--mix", "agent:0.1", "--weights", folder / "weights.json"),)),
        Case(tokenizer / "tokenizer.json", (own,)),
        Case(tokenizer / "tokenizer_config.json", (own,)),
        *(Case(path, (own,)) for path in sorted(tokenizer.glob("chat_template*"))),
        *(Case(next(path for path in kept if path.suffix == kind), cached) for kind in (".json", ".arrow")),
    ]


def _changed(draw: random.Random, case: Case, data: bytes) -> bytes:
    """The bytes of a file with one change."""
    if draw.random() < 0.5:
        with contextlib.suppress(ValueError):
            value = json.loads(data)
            _replace(draw, value)
            if case.sealed and isinstance(value, dict):
                from schemas.manifest import sealed

                with contextlib.suppress(Exception):  # what cannot be sealed is written as it is
                    made: Any = value
                    return sealed(made)
            return json.dumps(value).encode("utf-8", "surrogatepass")
    at, some = draw.randrange(len(data) + 1), draw.randrange(1, 400)
    odd = draw.choice([b"\0", b"\xff\xfe", b"{", b"]", b'"', b"\n\n", b": ", b"&a *a", b"9" * 5000, b"[" * 3000, b"-"])
    return draw.choice([
        data[:at], data[:at] + data[at + some :], data[:at] + data[max(0, at - some) : at] + data[at:],
        data[:at] + odd + data[at:], b"", data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        if at < len(data) else data + odd,
    ])  # fmt: skip


def _replace(draw: random.Random, value: Any) -> None:
    """Replace, remove or add one value, somewhere in a parsed JSON value."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(value)
    if not places:
        return
    # The first keys of a file are drawn as often as the thousands of an inner list.
    node, key = draw.choice(places if draw.random() < 0.5 else places[:60])
    way = draw.randrange(4)
    if way == 0:
        del node[key]
    elif way == 1 and isinstance(node, dict):
        node["an unknown key"] = draw.choice(_ODD)
    else:
        node[key] = draw.choice(_ODD)


def outcome(command: Sequence[str], prepare: Callable[[], object] = lambda: None) -> tuple[str, str]:
    """(what a command came to in a forked process, the end of what it said); `prepare` is called there before it."""
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            prepare()
            os._exit(_in_child(command, said.fileno()))
        began = time.monotonic()
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.005)
            if time.monotonic() - began > SECONDS:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "slow", ""
        said.seek(0)
        text = said.read()
    code, _, text = text.partition("\n")
    if not code:
        return "ended by a signal", text
    if "Traceback" in text:
        return "traceback", text[-3000:]
    return f"exit {code}", text[-500:]


def _in_child(command: Sequence[str], out: int) -> int:
    """Run a command, and write its exit code and what it said."""
    from click.testing import CliRunner

    from cli import main

    done = CliRunner().invoke(main, list(command))
    bug = done.exception is not None and not isinstance(done.exception, SystemExit)
    text = "".join(traceback.format_exception(done.exception)) if bug else done.output
    with io.FileIO(out, "w", closefd=False) as file:
        file.write(f"{done.exit_code}\n{text}".encode("utf-8", "replace"))
    return 0
