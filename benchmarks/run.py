"""`python -m benchmarks.run`: cold compile, relink and the raw tokenizer on the same text, interleaved.

Prints medians and ratios. The limit is the time the raw engine needs for the rendered text alone.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer

import registry
from benchmarks import corpus
from compiler.shards import ShardSet

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Run everything `--rounds` times, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, default=_tokenizer())
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = [str(path) for path in corpus.write(folder / "corpus", given.rows)]
        base = [*files, "--tokenizer", str(given.tokenizer)]
        _cli(base, folder, "warm", seed=0)
        manifest = ShardSet.open(folder / "warm-out").manifest
        tokens = manifest["splits"]["train"]["tokens"]
        texts = list(corpus.rendered(folder / "warm-out"))
        engine = HFTokenizer.from_file(str(given.tokenizer / "tokenizer.json"))
        runs: dict[str, Callable[[int], None]] = {
            "raw tokenizers encode_batch, 1 thread": lambda _: _raw(engine, texts),
            "compile cold, 1 worker": lambda i: _cli(base, folder, f"one-{i}", seed=0, workers=1),
            "compile cold, 2 workers": lambda i: _cli(base, folder, f"two-{i}", seed=0, workers=2),
            "relink, another seed": lambda i: _cli(base, folder, "warm", seed=i + 1),
        }
        times: dict[str, list[float]] = {what: [] for what in runs}
        for number in range(given.rounds):
            for what, run in runs.items():
                start = time.perf_counter()
                run(number)
                times[what].append(time.perf_counter() - start)
    _print(times, given.rows, tokens)


def _tokenizer() -> Path:
    real = ROOT.parent / "shared" / "tokenizers" / "qwen2.5"
    return real if real.is_dir() else registry.DEMO_TOKENIZER


def _raw(engine: HFTokenizer, texts: list[str]) -> None:
    for start in range(0, len(texts), 512):
        engine.encode_batch_fast(texts[start : start + 512], add_special_tokens=False)


def _cli(base: list[str], folder: Path, name: str, *, seed: int, workers: int = 2) -> None:
    """Run the real command, start-up included."""
    out, cache = folder / f"{name}-out", folder / f"{name}-cache"
    command = [sys.executable, "-m", "cli", "compile", *base, "-o", str(out), "--cache", str(cache)]
    command += ["--seed", str(seed), "--workers", str(workers), "--json"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    if not name.startswith("warm"):
        shutil.rmtree(out)
        shutil.rmtree(cache)


def _print(times: dict[str, list[float]], rows: int, tokens: int) -> None:
    limit = statistics.median(next(iter(times.values())))
    print(f"{rows:,} rows, {tokens:,} tokens, {len(next(iter(times.values())))} rounds")
    print(f"{'':38} {'median s':>9} {'rows/s':>9} {'tokens/s':>11} {'x raw':>6}")
    for what, seconds in times.items():
        median = statistics.median(seconds)
        print(f"{what:38} {median:9.2f} {rows / median:9,.0f} {tokens / median:11,.0f} {median / limit:6.2f}")


if __name__ == "__main__":
    main()
