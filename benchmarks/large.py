"""`python -m benchmarks.large [FOLDER]`: what opening a large set costs, from `cli train` to its first step.

Compiles a corpus of 10,000 rows and puts its one shard 10,000 times into another set, as links to one file: 100M rows
that can be trained, in the disk space of the first set. Runs `cli train` of this Python on both, for one step of the
demo model, and prints the seconds and the memory of the whole process. Links have other names and are mapped apart, so
that a run opens what it would open of real shards; only the disk is spared. With FOLDER, the sets are made there once
and kept, to compare a change with what was before.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import corpus
from schemas.arrow import MANIFEST, TRAIN
from schemas.manifest import sealed

SHARDS = ROWS = 10_000
"""Shards of the large set, and rows of each."""
CONFIG: dict[str, Any] = {
    "model_name_or_path": "demo", "use_cpu": True, "tuning": "full", "max_steps": 1, "save_strategy": "no",
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4, "plot_loss": False,
    "overwrite_output_dir": True,
}  # fmt: skip


def make(folder: Path) -> tuple[Path, Path]:
    """Make the small set and the large one in a folder; return theirs."""
    small, large = folder / "small", folder / "large"
    if not (small / MANIFEST).exists():
        files = map(str, corpus.write(folder / "corpus", ROWS))
        given = ["compile", *files, "--val-size", "0", "--cache", str(folder / "cache"), "-o", str(small)]
        subprocess.run(["cli", *given], check=True, stdout=subprocess.DEVNULL)
    if not (large / MANIFEST).exists():
        _many(small, large)
    return small, large


def _many(small: Path, large: Path) -> None:
    """Write the set that has every shard of a small one many times."""
    manifest = json.loads((small / MANIFEST).read_bytes())
    for name in manifest["files"]:
        (large / name).parent.mkdir(parents=True, exist_ok=True)
        (large / name).write_bytes((small / name).read_bytes())
    (large / TRAIN).mkdir()
    train = manifest["splits"][TRAIN]
    once = train["shards"]
    train["shards"] = []
    for number in range(SHARDS):
        entry = copy.deepcopy(once[number % len(once)])
        os.link(small / entry["file"], large / (name := f"{TRAIN}/shard-{number:05}.arrow"))
        train["shards"].append(entry | {"file": name})
    for key in ("rows", "tokens", "trained_tokens"):
        train[key] = sum(one[key] for one in train["shards"])
    (large / MANIFEST).write_bytes(sealed(manifest))


def trained(out: Path, config: Path) -> tuple[float, float, int]:
    """Run `cli train` on a set: seconds from start to finish, those of a processor, and the most memory (RSS)."""
    began = time.perf_counter()
    process = subprocess.Popen(
        ["cli", "train", str(out), str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(said)
    return time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024


def main() -> None:
    """Print a line for each set."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else made)
        sets = make(folder)
        config = folder / "run.yaml"
        config.write_text(json.dumps(CONFIG | {"output_dir": str(folder / "run")}))
        for out in sets:
            seconds, cpu, peak = trained(out, config)
            size = (out / MANIFEST).stat().st_size
            said = f"manifest {size / 1e6:.1f} MB, one step in {seconds:.1f} s ({cpu:.1f} s of cpu)"
            print(f"{out.name}: {said}, at most {peak / 1e6:,.0f} MB", flush=True)


if __name__ == "__main__":
    main()
