"""Flipped bits: one bit of one file of a real checkpoint is flipped, and a command is to name the file.

The checkpoints are those of two runs: LoRA in one process, and all parameters under ZeRO-3 in two processes. A file is
drawn first, then a bit of it, so that small files are hit as often as large ones. Every trial runs `cli verify`; every
40th also `cli train --resume N` or, for a file that it reads, `cli export`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import meter
from schemas import checkpoint

GOOD = frozenset({"named", "refused by a resume", "refused by an export"})
"""What may come of a flip."""
_USED = 40
"""Of so many trials, one runs the commands that use a checkpoint."""


def run(trials: int = 400, seed: int = 0) -> Counter[str]:
    """Flip; count what came of it."""
    found: Counter[str] = Counter()
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        mix = ("--mix", "agent:0.2", "--workers", "1", "--cache", folder / "cache")
        must(cli("compile", *mix, "-o", folder / "set"))
        runs = [_trained(folder, "lora", 1, tuning="lora"), _trained(folder, "full", 2, tuning="full", zero_stage=3)]
        for number in range(trials):
            config, path = runs[number % 2]
            file = draw.choice([*checkpoint.files(path), checkpoint.COMPLETE])
            data = bytearray((path / file).read_bytes())
            at = draw.randrange(8 * len(data))
            data[at // 8] ^= 1 << at % 8
            whole = (path / file).read_bytes()
            (path / file).write_bytes(data)
            said = cli("verify", path)
            outcomes = {"named" if _names(said, file) else f"verify: exit {said.returncode}"}
            if number % _USED == _USED - 1:
                outcomes |= _used(folder, config, path, file)
            (path / file).write_bytes(whole)
            found.update(outcomes)
            for outcome in sorted(outcomes - GOOD):
                print(f"flips: bit {at} of {file}: {outcome}", file=sys.stderr)
        for _, path in runs:
            must(cli("verify", path))  # every bit is back
    return found


def _used(folder: Path, config: Path, path: Path, file: str) -> set[str]:
    """What the commands do that use a checkpoint."""
    processes = 1 if config.stem == "lora" else 2
    resumed = _train(folder, config, processes, "--resume", "2")
    refused = resumed.returncode != 0 and f"{file}: " in resumed.stdout + resumed.stderr
    outcomes = {"refused by a resume" if refused else f"resume: exit {resumed.returncode}"}
    if not file.startswith(f"{checkpoint.STATE}/"):
        said = cli("export", path, folder / "out")
        outcomes.add("refused by an export" if said.returncode == 4 and f"{file}: " in said.stderr else "exported")
    return outcomes


def _trained(folder: Path, name: str, processes: int, **settings: object) -> tuple[Path, Path]:
    """(the configuration, the checkpoint) of a run of two steps of the embedded model."""
    config = folder / f"{name}.json"
    every = {
        "model_name_or_path": "demo", "output_dir": str(folder / name), "use_cpu": True, "max_steps": 2,
        "save_strategy": "no", "plot_loss": False,
    }  # fmt: skip
    config.write_text(json.dumps(every | settings), encoding="utf-8")
    must(_train(folder, config, processes))
    return config, folder / name / "checkpoint-2"


def _train(folder: Path, config: Path, processes: int, *options: str) -> subprocess.CompletedProcess[str]:
    if processes == 1:
        return cli("train", folder / "set", config, *options)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "cli"]
    return _python(*launch, "train", str(folder / "set"), str(config), *options)


def cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return _python("-m", "cli", *map(str, arguments))


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=meter.ROOT, env=environment, capture_output=True, text=True, check=False
    )


def _names(said: subprocess.CompletedProcess[str], file: str) -> bool:
    """Whether `cli verify` names the file, and nothing else."""
    return said.returncode == 4 and said.stderr.startswith(f"{file}: ") and said.stderr.count("\n") == 1


def must(said: subprocess.CompletedProcess[str]) -> None:
    """Raise unless a command ended well."""
    if said.returncode:
        raise RuntimeError(f"exit {said.returncode}\n{said.stdout}\n{said.stderr}")
