"""`python -m benchmarks.run`: a compile against `datasets.map`, the encoders alone and a copy; and by size.

Everything is run `--rounds` times, one after the other, start-up included; medians and ratios are printed. Machines are
shared and noisy: only ratios of interleaved runs count. `--scale` measures time and memory by size, once each, and
draws them as benchmarks/scale.png.
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
from collections.abc import Callable, Iterable
from pathlib import Path

import registry
from benchmarks import corpus, meter
from benchmarks.meter import Measured
from compiler.tokenizer.encoders import Encoder, ReferenceEncoder, load_fast
from compiler.tokenizer.files import TokenizerFiles
from compiler.tokenizer.spec import Specs
from schemas.reader import CompiledSet

BATCH = 512
PICTURE = meter.ROOT / "benchmarks" / "scale.png"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokenizer", type=Path, default=tokenizer_folder())
    parser.add_argument(
        "--scale", default="", metavar="ROWS,...", help="sizes to measure, such as 10000,50000,300000,1000000"
    )
    parser.add_argument("--without-reference", action="store_true", help="leave out the encoder that takes minutes")
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        folder = Path(name)
        if given.rounds:
            compare(folder, given.tokenizer, given.rows, given.rounds, given.without_reference)
        if given.scale:
            by_size(folder, given.tokenizer, [int(size) for size in given.scale.split(",")])


def compare(folder: Path, tokenizer: Path, rows: int, rounds: int, without_reference: bool) -> None:
    """Print the table of interleaved runs."""
    files = [str(path) for path in corpus.write(folder / "corpus", rows)]
    small = [str(path) for path in corpus.write(folder / "small", 1000)]
    mine = Ours(folder, tokenizer)
    mine.run(files, "warm")
    manifest = CompiledSet.open(folder / "warm-out").manifest
    texts = list(corpus.rendered(folder / "warm-out"))
    runs: dict[str, Callable[[int], Measured]] = {
        "datasets.map, 2 processes": lambda i: baseline(folder / f"map-{i}", tokenizer, files),
        "compile cold, 1 worker": lambda i: mine.cold(files, f"one-{i}", workers=1),
        "compile cold, 2 workers": lambda i: mine.cold(files, f"two-{i}", workers=2),
        "relink, another seed": lambda i: mine.run(files, "warm", seed=i + 1),
        "a plain copy of the set": lambda i: copied(folder / "warm-out" / "train", folder / f"copy-{i}"),
        "fastokens alone, load included": lambda _: _alone(load_fast, tokenizer, texts),
        "1,000 rows, new cache": lambda i: mine.cold(small, f"small-{i}", workers=2),
        "1,000 rows, certificate kept": lambda _: mine.again(small, "again"),
    }
    if not without_reference:
        runs["tokenizers alone, load included"] = lambda _: _alone(ReferenceEncoder.of, tokenizer, texts)
    mine.run(small, "again")
    times: dict[str, list[Measured]] = {what: [] for what in runs}
    for number in range(rounds):
        for what, run in runs.items():
            times[what].append(run(number))
            print(f"round {number + 1}: {what}: {times[what][-1].seconds:.2f} s", flush=True)
    tokens = manifest["splits"]["train"]["tokens"]
    subprocess.run([sys.executable, "-m", "benchmarks.stages", str(tokenizer), *files], cwd=meter.ROOT, check=False)
    print(f"\n{rows:,} rows, {tokens:,} tokens, medians of {rounds}")
    print(f"{'':34} {'seconds':>9} {'rows/s':>9} {'MB at most':>11} {'times cold, 2 workers':>22}")
    ours = statistics.median(one.seconds for one in times["compile cold, 2 workers"])
    for what, found in times.items():
        median, count = statistics.median(one.seconds for one in found), 1000 if "1,000" in what else rows
        peak = max(one.peak for one in found) / 1e6
        print(f"{what:34} {median:9.2f} {count / median:9,.0f} {peak:11,.0f} {median / ours:22.2f}")


def by_size(folder: Path, tokenizer: Path, sizes: list[int]) -> None:
    """Measure cold compiles, relinks and copies by size, and draw them."""
    found = []
    print(
        f"{'rows':>9} {'cold s':>8} {'us/row':>7} {'MB':>6} {'relink s':>9} {'MB':>6} {'copy s':>7} {'relink/copy':>11}"
    )
    for size in sizes:
        files = [str(path) for path in corpus.write(folder / f"corpus-{size}", size)]
        mine = Ours(folder, tokenizer)
        cold = mine.run(files, f"size-{size}")
        relink = mine.run(files, f"size-{size}", seed=1)
        copy = copied(folder / f"size-{size}-out" / "train", folder / "copy")
        found.append((size, cold, relink, copy))
        mine_said = f"{size:9,} {cold.seconds:8.1f} {cold.seconds / size * 1e6:7.1f} {cold.peak / 1e6:6,.0f}"
        again = f"{relink.seconds:9.1f} {relink.peak / 1e6:6,.0f}"
        print(f"{mine_said} {again} {copy.seconds:7.2f} {relink.seconds / copy.seconds:11.1f}", flush=True)
        for path in (f"corpus-{size}", f"size-{size}-out", f"size-{size}-cache"):
            shutil.rmtree(folder / path)
    _draw(found)


class Ours:
    """The real command, start-up included; `root` is the folder of the version."""

    def __init__(self, folder: Path, tokenizer: Path, root: Path = meter.ROOT) -> None:
        self.folder, self.tokenizer, self.root = folder, tokenizer, root
        folder.mkdir(exist_ok=True)

    def run(self, files: list[str], name: str, *, seed: int = 0, workers: int = 2) -> Measured:
        """Compile with the cache and the output of this name."""
        places = ["-o", self.folder / f"{name}-out", "--cache", self.folder / f"{name}-cache"]
        options = ["--tokenizer", self.tokenizer, "--seed", seed, "--workers", workers, "--json"]
        return meter.run("cli", "compile", *files, *places, *options, root=self.root)

    def cold(self, files: list[str], name: str, *, workers: int) -> Measured:
        """Compile with an empty cache, and delete the result."""
        found = self.run(files, name, workers=workers)
        shutil.rmtree(self.folder / f"{name}-out")
        shutil.rmtree(self.folder / f"{name}-cache")
        return found

    def again(self, files: list[str], name: str) -> Measured:
        """Compile with a cache that has the certificate and the verdict on the encoder, but no object."""
        for path in (self.folder / f"{name}-cache").rglob("*.arrow"):
            path.unlink()
        return self.run(files, name)


def tokenizer_folder() -> Path:
    """A real tokenizer where it is beside the project, else the embedded one."""
    real = meter.ROOT.parent / "shared" / "tokenizers" / "qwen2.5"
    return real if real.is_dir() else registry.DEMO_TOKENIZER


def baseline(out: Path, tokenizer: Path, files: list[str]) -> Measured:
    """What `datasets.map` takes with two processes."""
    found = meter.run("benchmarks.baseline", tokenizer, 2, out, *files)
    shutil.rmtree(out)
    return found


def copied(source: Path, target: Path) -> Measured:
    """What a plain copy of a folder takes."""
    start = time.perf_counter()
    shutil.copytree(source, target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return Measured(seconds, 0)


def _alone(load: Callable[[Specs], Encoder | str], tokenizer: Path, texts: list[str]) -> Measured:
    """Encode the same texts with an encoder alone, in one thread."""
    specs = Specs.of(TokenizerFiles.find(tokenizer).spec(), [])
    start = time.perf_counter()
    loaded = load(specs)
    assert not isinstance(loaded, str), loaded
    for at in range(0, len(texts), BATCH):
        loaded.encode(texts[at : at + BATCH], fresh=True)
    return Measured(time.perf_counter() - start, 0)


def _draw(found: Iterable[tuple[int, Measured, Measured, Measured]]) -> None:
    from matplotlib import pyplot

    sizes, *columns = zip(*found, strict=True)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    for name, column in zip(("compile, cold, 2 workers", "relink", "plain copy"), columns, strict=True):
        left.loglog(sizes, [one.seconds for one in column], marker="o", label=name)
        if column[0].peak:
            right.semilogx(sizes, [one.peak / 1e6 for one in column], marker="o", label=name)
    left.set(xlabel="rows", ylabel="seconds")
    right.set(xlabel="rows", ylabel="MB of all processes (PSS)", ylim=(0, None))
    for axes in (left, right):
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
