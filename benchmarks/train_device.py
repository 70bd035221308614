"""`python -m benchmarks.train --device cuda`: how fast the trainer is on an accelerator, within some minutes in all.

Each configuration is a process of its own with a limit of time, and its figures are printed as soon as it ends: what a
machine that is lent for minutes has given is never lost. First a model of 0.5B with each attention, with and without
recomputing layers, then one of 7B with the fastest two (train_one.py); last, where DeepSpeed is installed, the whole
`cli train`. `--device cpu` tries the same script with tiny models.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import corpus, meter

NEEDS = {"flash_attention_2": "flash_attn"}
"""What an attention of Transformers needs beside torch."""
KEPT = 0.4
"""The part of the time that is kept for the large model and `cli train`."""
STEPS, WARM = 30, 5
COLUMNS = ("tokens/s", "of the peak", "memory, GB", "loss against fp32", "a token's loss", "s in all")


@dataclass(frozen=True)
class Scale:
    """The models, the attentions, the tokens of a pack, and the seconds of each process."""

    models: dict[str, str]
    attentions: tuple[str, ...]
    length: int
    timed: float
    """Seconds of steps whose time is taken."""
    limits: dict[str, float]


CUDA = Scale(
    {"small": "0.5B", "large": "7B"}, ("sdpa", "flex_attention", "flash_attention_2"), 4096, 6.0,
    {"small": 75, "large": 90, "whole": 80},
)  # fmt: skip
TRIAL = Scale(  # flex_attention has no backward pass on a CPU
    {"small": "tiny", "large": "tiny"}, ("sdpa", "eager", "flash_attention_2"), 256, 0.5,
    {"small": 60, "large": 60, "whole": 90},
)  # fmt: skip


def has_cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


class Measuring:
    """The measurements of one device."""

    def __init__(self, device: str, minutes: float) -> None:
        self.device, self.scale = device, CUDA if device == "cuda" else TRIAL
        self.seconds = 60 * minutes
        self.until = time.monotonic() + self.seconds

    def left(self) -> float:
        """Seconds left."""
        return self.until - time.monotonic()

    def process(self, *arguments: object, limit: float) -> tuple[list[str], str]:
        """The lines that `python -m ...` prints, or why there are none. All that it started ends with it."""
        limit = min(limit, self.left())
        if limit < 1:
            return [], "left out: the minutes are over"
        command = [sys.executable, "-m", *map(str, arguments)]
        with subprocess.Popen(
            command, cwd=meter.ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True,
        ) as running:  # fmt: skip
            try:
                printed, said = running.communicate(timeout=limit)
            except subprocess.TimeoutExpired:
                return [], f"stopped after {limit:.0f} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)
        if running.returncode:
            lines = said.strip().splitlines() or [f"exit code {running.returncode}"]
            why = next((line for line in lines if line.startswith("error:")), lines[-1])
            return [], why.strip()[:200].replace("|", "/")
        return printed.splitlines(), ""

    def one(self, size: str, attention: str, *, checkpointing: bool) -> float:
        """Measure one configuration and print its line; return the tokens a second, 0 where there are none."""
        model, began = self.scale.models[size], time.monotonic()
        name = f"{model}, {attention}{', recomputing' if checkpointing else ''}"
        needed = NEEDS.get(attention)
        if needed and importlib.util.find_spec(needed) is None:
            return line(name, f"left out: {needed} is not installed")
        if size == "small" and self.left() < KEPT * self.seconds:
            return line(name, "left out: the rest of the time is for the larger model")
        task = {
            "model": model, "attention": attention, "checkpointing": checkpointing, "device": self.device,
            "length": self.scale.length, "seconds": self.scale.timed,
        }  # fmt: skip
        lines, why = self.process("benchmarks.train_one", json.dumps(task), limit=self.scale.limits[size])
        if why:
            return line(name, why)
        found = json.loads(lines[-1])
        memory = None if found["memory"] is None else found["memory"] / 1e9
        line(
            name, f"{found['tokens_per_second']:,.0f}", shown(found["share"], ".1%"), shown(memory, ".1f"),
            shown(found["loss_apart"], ".1e"), shown(found["apart"], ".1e"), f"{time.monotonic() - began:.0f}",
        )  # fmt: skip
        return float(found["tokens_per_second"])

    def whole(self, attention: str, out: Path | None) -> None:
        """Run `cli train` of the small model and print its line."""
        name, began = f"{self.scale.models['small']}, {attention}, `cli train`", time.monotonic()
        if importlib.util.find_spec("deepspeed") is None:
            line(name, "left out: deepspeed is not installed")
            return
        with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as made:
            records, why = self._trained(Path(made), attention, out)
        if why:
            line(name, why)
            return
        last, ends = records[-1], [record["tokens"] for record in records[WARM - 1 :]]
        counts = [end - start for start, end in itertools.pairwise(ends)]
        seconds = sum(n / one["tokens_per_second"] for n, one in zip(counts, records[WARM:], strict=True))
        memory = last.get("memory_peak") if self.device == "cuda" else None
        share = last.get("share_of_peak")
        line(
            name, f"{sum(counts) / seconds:,.0f}", shown(share, ".1%"), shown(memory and memory / 1e9, ".1f"), "", "",
            f"{time.monotonic() - began:.0f}",
        )  # fmt: skip

    def _trained(self, folder: Path, attention: str, out: Path | None) -> tuple[list[dict[str, Any]], str]:
        """What `cli train` logs of each step, or why there is nothing."""
        limit = self.scale.limits["whole"]
        task = {"model": self.scale.models["small"], "device": self.device, "save": str(folder / "model")}
        _, why = self.process("benchmarks.train_one", json.dumps(task), limit=limit)
        if out is None and not why:
            out = folder / "set"
            files = corpus.write(folder / "corpus", 800)
            options = ["--pack", self.scale.length, "--overlength", "cut", "--max-rejects", "100%", "--workers", 1]
            places = ["--tokenizer", folder / "model", "--cache", folder / "cache", "-o", out]
            _, why = self.process("cli", "compile", *files, *options, *places, limit=limit)
        config = {
            "model_name_or_path": str(folder / "model"), "output_dir": str(folder / "run"), "bf16": True,
            "attn_implementation": attention, "lora": {"r": 16}, "max_steps": STEPS, "plot_loss": False,
            "save_strategy": "no", "use_cpu": self.device == "cpu",
        }  # fmt: skip
        path = folder / "run.yaml"
        path.write_text(json.dumps(config))
        if not why:
            _, why = self.process("cli", "train", out, path, limit=limit)
        if why:
            return [], why
        lines = (folder / "run" / "log.jsonl").read_text().splitlines()
        return [json.loads(one) for one in lines], ""


def measure(device: str, minutes: float, out: Path | None) -> None:
    """Measure all configurations that there is time for, the most telling first."""
    measuring = Measuring(device, minutes)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    print(f"{name_of(device)}; {versions}; packs of {measuring.scale.length:,}, LoRA r 16 on all linear layers, bf16\n")
    line("", *COLUMNS)
    line("---", *["---"] * len(COLUMNS))
    scale = measuring.scale
    speeds = {
        (attention, checkpointing): measuring.one("small", attention, checkpointing=checkpointing)
        for checkpointing in (False, True)
        for attention in scale.attentions
    }
    best = [key for key in sorted(speeds, key=lambda key: -speeds[key]) if speeds[key]][:2]
    for attention, checkpointing in best:
        measuring.one("large", attention, checkpointing=checkpointing)
    if best:
        measuring.whole(best[0][0], out)


def name_of(device: str) -> str:
    """The device in words."""
    if device == "cpu":
        return "cpu"
    import torch

    return torch.cuda.get_device_name()


def line(name: str, *cells: str) -> float:
    """Print a line of the table at once; 0, for where there is no figure."""
    print(f"| {' | '.join([name, *cells, *[''] * (len(COLUMNS) - len(cells))])} |", flush=True)
    return 0.0


def shown(value: float | None, form: str) -> str:
    """A number, or nothing where there is none."""
    return "" if value is None else format(value, form)
