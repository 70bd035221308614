"""Tiny models in folders, small sets of short rows, and runs of `cli train` in this process and in others."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import torch
import transformers
import xxhash
from click.testing import Result

import registry
from cli import main
from schemas.arrow import MANIFEST
from schemas.manifest import Manifest, sealed
from tests.support import command
from tests.support.command import runner

VOCABULARY = 8005
"""Of the demo tokenizer, control tokens included."""
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
NO_SPACE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


def save_model(
    folder: Path, kind: str = "qwen2", tokenizer: Path = registry.DEMO_TOKENIZER, scale: float = 1, **settings: Any
) -> Path:
    """Save a model with random weights and the tokenizer's files. Returns the folder."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **settings})
    if "vision_config" in settings:
        model = transformers.AutoModelForImageTextToText.from_config(config)
    else:
        model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= scale
    model.save_pretrained(folder)
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)
    return folder


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Short chats of different lengths; some replies count twice."""
    words = [
        "red",
        "green",
        "blue",
        "seven",
        "eleven",
        "moon",
        "sun",
        "river",
        "stone",
        "bird",
        "春",
        "眠",
        "不",
        "觉",
        "晓",
    ]
    made = []
    for i in range(count):
        said = [words[(seed + i * k) % len(words)] for k in range(1, 3 + i % 7)]
        reply: dict[str, Any] = {"role": "assistant", "content": " ".join(reversed(said))}
        twice = {"loss_scale": 2.0} if i % 3 else {}
        made.append({"messages": [{"role": "user", "content": " ".join(said)}, reply | twice]})
    return made


def write(path: Path, lines: Sequence[Any]) -> Path:
    """Write JSON Lines."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def compile_set(out: Path, *arguments: object) -> Path:
    """Compile with the real command. Returns the folder of the set."""
    given = ["compile", *map(str, arguments), "-o", str(out), "--cache", str(out.parent / "cache"), "--workers", "1"]
    result = runner().invoke(main, given, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return out


def small_set(folder: Path, *options: object, count: int = 20) -> Path:
    """Compile two datasets of short chats with a validation split."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [write(folder / f"{name}.jsonl", rows(count, seed)) for name, seed in (("plain", 1), ("other", 5))]
    return compile_set(folder / "shards", *files, "--val-size", 6, *options)


def rewrite(out: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change every row of a set, and adapt its manifest."""
    manifest = json.loads((out / MANIFEST).read_text())
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            table = pa.ipc.open_file(str(out / shard["file"])).read_all()
            changed = pa.Table.from_pylist([change(row) for row in table.to_pylist()], table.schema)
            shard |= _write_shard(out / shard["file"], changed)
    write_manifest(out, manifest)


def in_shards(out: Path, count: int, *, batch_rows: int = 5) -> Path:
    """Write the rows of a set's training split into so many shards instead of its own. Returns the folder."""
    manifest = json.loads((out / MANIFEST).read_text())
    split = manifest["splits"]["train"]
    table = pa.concat_tables(pa.ipc.open_file(str(out / one["file"])).read_all() for one in split["shards"])
    edges = [len(table) * n // count for n in range(count + 1)]
    split["shards"] = []
    for number, (first, end) in enumerate(itertools.pairwise(edges)):
        part, name = table.slice(first, end - first).combine_chunks(), f"train/shard-{number:05}.arrow"
        entry = {
            "file": name, "rows": len(part), "trained_tokens": pc.sum(part["num_trained"]).as_py(),
            "tokens": sum(len(part[name].combine_chunks().flatten()) for name in _TOKENS if name in part.schema.names),
        }  # fmt: skip
        if "packing" in manifest:
            entry["sequences"] = len(part["seq_lens"].combine_chunks().flatten())
        split["shards"].append(entry | _write_shard(out / name, part, batch_rows))
    return write_manifest(out, manifest)


_TOKENS = ("input_ids", "rejected_input_ids")


def write_manifest(out: Path, manifest: dict[str, Any]) -> Path:
    """Write a manifest with its digests."""
    (out / MANIFEST).write_bytes(sealed(cast("Manifest", manifest)))
    return out


def _write_shard(path: Path, table: pa.Table, batch_rows: int = 5) -> dict[str, Any]:
    batches = []
    with path.open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=batch_rows):
            start = file.tell()
            writer.write_batch(batch)
            batches.append({"offset": start, "length": file.tell() - start, "rows": batch.num_rows})
    data = path.read_bytes()
    header = 16 + int.from_bytes(data[12:16], "little")  # magic and schema are written with the first batch
    batches[0] |= {"offset": header, "length": batches[0]["length"] - header}
    for entry in batches:
        part = data[entry["offset"] : entry["offset"] + entry["length"]]
        entry["xxh3"] = xxhash.xxh3_128_hexdigest(part)
    return {"batches": batches, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# -- runs --


def config(path: Path, model: Path, **settings: Any) -> Path:
    """Write a configuration for this machine: few steps, the output beside the file."""
    values = {
        "model_name_or_path": str(model), "output_dir": str(path.with_suffix("")), "use_cpu": True, "max_steps": 4,
        "per_device_train_batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "dataloader_num_workers": 1,
        "plot_loss": False, "save_strategy": "no", "lora": {"r": 4},
    } | settings  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    return path


def train(data: Path | str, config_file: Path, *arguments: object, code: int = 0) -> Result:
    """Run `cli train` in this process."""
    given = ["train", str(data), str(config_file), *map(str, arguments)]
    result = runner().invoke(main, given, catch_exceptions=False)
    assert result.exit_code == code, f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


SPEEDS = (
    "tokens_per_second", "trained_tokens_per_second", "seconds", "data_seconds", "memory_peak", "share_of_peak",
)  # fmt: skip
"""What a line of the log says that is another in every run."""


def records(config_file: Path) -> list[dict[str, Any]]:
    """The lines of the log, without the speeds."""
    lines = (config_file.with_suffix("") / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in SPEEDS} for line in lines]


def losses(config_file: Path) -> dict[int, float]:
    """The losses in the log, by step."""
    return {record["step"]: record["loss"] for record in records(config_file) if "loss" in record}


def outside() -> dict[str, str]:
    """The same as `command.outside`, for processes that share this machine with tests."""
    return command.outside() | NO_SPACE


@contextlib.contextmanager
def started(processes: int, *arguments: object, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """Give `torchrun --no-python cli train ...` running, as the documents start it; none of its processes is left."""
    scripts = Path(sys.executable).parent
    command = [str(scripts / "torchrun"), "--standalone", "--nproc-per-node", str(processes), "--no-python"]
    running = subprocess.Popen(
        [*command, str(scripts / "cli"), "train", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=cwd,
        env=outside(),
    )  # fmt: skip
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait(30)


def run_to_end(processes: int, *arguments: object, code: int = 0, cwd: Path | None = None) -> str:
    """Run `torchrun --no-python cli train ...` and return what it printed."""
    with started(processes, *arguments, cwd=cwd) as running:
        printed, _ = running.communicate(timeout=120)
        assert running.returncode == code, printed
        return printed


def kill_after(step: int, processes: int, *arguments: object, output: Path) -> None:
    """Kill all processes of a run with SIGKILL as soon as its log has a step."""
    log = output / "log.jsonl"
    with started(processes, *arguments) as running:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if log.is_file() and f'{{"step": {step}, "epoch"' in log.read_text():
                return  # leaving the block kills it
            assert running.poll() is None, running.stdout.read() if running.stdout else ""
            time.sleep(0.02)
        raise AssertionError(f"step {step} was not reached in time")
