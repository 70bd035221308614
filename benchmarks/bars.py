"""`python -m benchmarks.bars`: what was asked of the speed of a compile, with the figures of this machine beside it.

Commands are whole, start included, and run one after the other `--rounds` times; medians are printed. It takes about an
hour and 60 GB of disk; `--scale 0.1` takes a tenth of the rows where there are many.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import corpus, meter
from benchmarks.meter import Measured
from benchmarks.run import Ours, baseline, copied, tokenizer_folder

_NOTED = """
from unittest.mock import patch
import cli
from benchmarks.sleepers import noted_unit
with patch("compiler.units.run.settle", noted_unit):
    cli.main()
"""


class Bars:
    """The figures. Each method measures one or two bars and prints them."""

    def __init__(self, folder: Path, rounds: int, scale: float) -> None:
        self.folder, self.rounds, self.scale = folder, rounds, scale
        self.ours = Ours(folder, tokenizer_folder())
        self.small = [str(path) for path in corpus.write(folder / "small", 1000)]
        self.middle = [str(path) for path in corpus.write(folder / "middle", 50_000)]

    def rows(self, count: int) -> int:
        """So many rows, scaled."""
        return max(50_000, int(count * self.scale))

    def medians(self, *runs: Callable[[int], Measured]) -> list[float]:
        """The median seconds of each, run by turns."""
        times = [[run(number).seconds for run in runs] for number in range(self.rounds)]
        return [statistics.median(some) for some in zip(*times, strict=True)]

    def against_map(self) -> None:
        """A compile of 50,000 rows, and of 300,000, against `datasets.map`."""
        of_map, mine = self.medians(
            lambda i: baseline(self.folder / f"map-{i}", tokenizer_folder(), self.middle),
            lambda i: self.ours.cold(self.middle, f"cold-{i}", workers=2),
        )
        said("50,000 rows against datasets.map, 2 workers", f"{of_map / mine:.1f} x", "9 x")
        count = self.rows(300_000)
        many = [str(path) for path in corpus.write(self.folder / "many", count)]
        found = self.ours.cold(many, "many", workers=2)
        said(f"{count:,} rows against its rate", f"{of_map / 50_000 / (found.seconds / count):.1f} x", "14 x")
        said("cpu of the coordinator a row", f"{found.main / count * 1e6:.1f} us", "5 us")
        shutil.rmtree(self.folder / "many")

    def a_row(self) -> None:
        """The time of a row by stage, in one process that has loaded everything."""
        command = [sys.executable, "-m", "benchmarks.stages", str(tokenizer_folder()), *self.middle]
        shown = subprocess.run(command, cwd=meter.ROOT, capture_output=True, text=True, check=True).stdout
        [total] = re.findall(r"^sum +([\d.]+) us", shown, re.MULTILINE)
        said("cpu a row, one process, loaded", f"{total} us", "65 us")

    def first_unit(self) -> None:
        """The time from the start of the command to the first unit in a worker."""
        found = []
        for number in range(self.rounds):
            note = self.folder / f"first-{number}"
            places = ["-o", self.folder / "first-out", "--cache", self.folder / "first-cache", "--workers", "2"]
            command = [
                sys.executable,
                "-c",
                _NOTED,
                "compile",
                *self.middle,
                *places,
                "--tokenizer",
                tokenizer_folder(),
            ]
            start = time.time()
            subprocess.run(
                [str(one) for one in command], cwd=meter.ROOT, env=os.environ | {"FIRST_UNIT": str(note)},
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
            )  # fmt: skip
            found.append(float(note.read_text()) - start)
            shutil.rmtree(self.folder / "first-out")
            shutil.rmtree(self.folder / "first-cache")
        said("first unit under way after", f"{statistics.median(found):.2f} s", "1.2 s")

    def small_sets(self) -> None:
        """1,000 rows: with a new cache, and when all is cached."""
        self.ours.run(self.small, "again")
        new, cached = self.medians(
            lambda i: self.ours.cold(self.small, f"small-{i}", workers=2),
            lambda i: self.ours.run(self.small, "again", seed=i + 1),
        )
        said("1,000 rows, start to finish", f"{new:.2f} s", "1.2 s")
        said("1,000 rows, all cached", f"{cached:.2f} s", "0.7 s")

    def relink(self) -> None:
        """A relink against a copy of the set."""
        count = self.rows(1_000_000)
        files = [str(path) for path in corpus.write(self.folder / "large", count)]
        self.ours.run(files, "large")
        again, copy = self.medians(
            lambda i: self.ours.run(files, "large", seed=i + 1),
            lambda i: copied(self.folder / "large-out" / "train", self.folder / f"copy-{i}"),
        )
        said(f"relink of {count:,} rows against a copy, 2 workers", f"{again / copy:.1f} x", "2.5 x")
        for path in ("large", "large-out", "large-cache"):
            shutil.rmtree(self.folder / path)

    def by_size(self) -> None:
        """The time a row of many short rows against fewer."""
        times = {}
        for count in (self.rows(300_000), self.rows(3_000_000)):
            files = [str(path) for path in corpus.write_short(self.folder / "short", count)]
            found = self.ours.cold(files, "short", workers=2)
            times[count] = found.seconds / count
        few, many = times
        what = f"time a row at {many:,} against {few:,} rows"
        said(what, f"{times[many] / times[few]:.2f} x, {found.peak / 1e6:,.0f} MB", "1.1 x, 1,000 MB")

    def coordinator(self) -> None:
        """The efficiency with workers that sleep."""
        for given in (["64"], ["4", "--ray", "4"]):
            command = [sys.executable, "-m", "benchmarks.coordinator", str(self.rows(300_000)), *given]
            done = subprocess.run(command, cwd=meter.ROOT, capture_output=True, text=True, check=False)
            [(whole, units)] = re.findall(r"efficiency ([\d.]+), of units alone ([\d.]+)", done.stdout) or [("-", "-")]
            where = f"{given[0]} workers that sleep{', on Ray' if len(given) > 1 else ''}"
            said(f"coordinator efficiency with {where}", f"{whole}, of units alone {units}", "0.85")


def said(what: str, measured: str, bar: str) -> None:
    """Print a line of the table."""
    print(f"| {what} | {measured} | {bar} |", flush=True)


def main() -> None:
    """Measure all bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        print("| what | measured | asked |\n|---|---|---|", flush=True)
        bars = Bars(Path(name), given.rounds, given.scale)
        for measure in (
            bars.small_sets, bars.first_unit, bars.a_row, bars.against_map, bars.coordinator, bars.by_size, bars.relink,
        ):  # fmt: skip
            measure()


if __name__ == "__main__":
    main()
