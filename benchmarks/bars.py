"""`python -m benchmarks.bars`: what was asked of the speed of a compile, with the figures of this machine beside it.

Commands are whole, start included, and run one after the other `--rounds` times; medians are printed. It takes about an
hour and 60 GB of disk; `--scale 0.1` takes a tenth of the rows where there are many. `--against FOLDER` measures whole
commands, and a row, of another version too, by turns.
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
    """The figures. Each method measures one or two bars, of each version, and prints them."""

    def __init__(self, folder: Path, rounds: int, scale: float, roots: list[Path]) -> None:
        self.folder, self.rounds, self.scale = folder, rounds, scale
        self.versions = [Ours(folder / f"version-{n}", tokenizer_folder(), root) for n, root in enumerate(roots)]
        self.ours = self.versions[0]
        self.small = [str(path) for path in corpus.write(folder / "small", 1000)]
        self.middle = [str(path) for path in corpus.write(folder / "middle", 50_000)]

    def rows(self, count: int) -> int:
        """So many rows, scaled."""
        return max(50_000, int(count * self.scale))

    def medians(self, *runs: Callable[[int], Measured]) -> list[float]:
        """The median seconds of each, run by turns."""
        times = [[run(number).seconds for run in runs] for number in range(self.rounds)]
        return [statistics.median(some) for some in zip(*times, strict=True)]

    def cold(self, files: list[str]) -> list[Callable[[int], Measured]]:
        """Compiles with an empty cache, of each version."""
        return [lambda i, one=one: one.cold(files, f"cold-{i}", workers=2) for one in self.versions]

    def against_map(self) -> None:
        """A compile of 50,000 rows, and of 300,000, against `datasets.map`."""
        of_map, *mine = self.medians(
            lambda i: baseline(self.folder / f"map-{i}", tokenizer_folder(), self.middle), *self.cold(self.middle)
        )
        said("50,000 rows against datasets.map, 2 workers", [f"{of_map / one:.1f} x" for one in mine], "9 x")
        count = self.rows(300_000)
        many = [str(path) for path in corpus.write(self.folder / "many", count)]
        found = [run(0) for run in self.cold(many)]
        rates = [of_map / 50_000 / (one.seconds / count) for one in found]
        said(f"{count:,} rows against its rate", [f"{rate:.1f} x" for rate in rates], "14 x")
        said("cpu of the coordinator a row", [f"{one.main / count * 1e6:.1f} us" for one in found], "5 us")
        shutil.rmtree(self.folder / "many")

    def a_row(self) -> None:
        """The time of a row by stage, in one process that has loaded everything."""
        found = []
        for one in self.versions:
            command = [sys.executable, "-m", "benchmarks.stages", str(tokenizer_folder()), *self.middle]
            shown = subprocess.run(command, cwd=one.root, capture_output=True, text=True, check=True).stdout
            found += re.findall(r"^sum +([\d.]+) us", shown, re.MULTILINE)
        said("cpu a row, one process, loaded", [f"{total} us" for total in found], "65 us")

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
        said("first unit under way after", [f"{statistics.median(found):.2f} s"], "1.2 s")

    def small_sets(self) -> None:
        """1,000 rows: with a new cache, and when all is cached."""
        for one in self.versions:
            one.run(self.small, "again")
        new = self.medians(*self.cold(self.small))
        again = [lambda i, one=one: one.run(self.small, "again", seed=i + 1) for one in self.versions]
        cached = self.medians(*again)
        said("1,000 rows, start to finish", [f"{seconds:.2f} s" for seconds in new], "1.2 s")
        said("1,000 rows, all cached", [f"{seconds:.2f} s" for seconds in cached], "0.7 s")

    def relink(self) -> None:
        """A relink against a copy of the set."""
        count = self.rows(1_000_000)
        files = [str(path) for path in corpus.write(self.folder / "large", count)]
        self.ours.run(files, "large")
        again, copy = self.medians(
            lambda i: self.ours.run(files, "large", seed=i + 1),
            lambda i: copied(self.ours.folder / "large-out" / "train", self.folder / f"copy-{i}"),
        )
        said(f"relink of {count:,} rows against a copy, 2 workers", [f"{again / copy:.1f} x"], "2.5 x")
        shutil.rmtree(self.folder / "large")
        for path in ("large-out", "large-cache"):
            shutil.rmtree(self.ours.folder / path)

    def by_size(self) -> None:
        """The time a row of many short rows against fewer."""
        times = {}
        for count in (self.rows(300_000), self.rows(3_000_000)):
            files = [str(path) for path in corpus.write_short(self.folder / "short", count)]
            found = self.ours.cold(files, "short", workers=2)
            times[count] = found.seconds / count
        few, many = times
        what = f"time a row at {many:,} against {few:,} rows"
        said(what, [f"{times[many] / times[few]:.2f} x, {found.peak / 1e6:,.0f} MB"], "1.1 x, 1,000 MB")

    def coordinator(self) -> None:
        """The efficiency with workers that sleep."""
        for given in (["64"], ["4", "--ray", "4"]):
            command = [sys.executable, "-m", "benchmarks.coordinator", str(self.rows(300_000)), *given]
            done = subprocess.run(command, cwd=meter.ROOT, capture_output=True, text=True, check=False)
            [(whole, units)] = re.findall(r"efficiency ([\d.]+), of units alone ([\d.]+)", done.stdout) or [("-", "-")]
            where = f"{given[0]} workers that sleep{', on Ray' if len(given) > 1 else ''}"
            said(f"coordinator efficiency with {where}", [f"{whole}, of units alone {units}"], "0.85")


def said(what: str, measured: list[str], bar: str) -> None:
    """Print a line of the table: what was measured, of the other version too if there is one, and what was asked."""
    print(f"| {what} | {'; before '.join(measured)} | {bar} |", flush=True)


def main() -> None:
    """Measure all bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="the folder of another version")
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as name:
        print("| what | measured | asked |\n|---|---|---|", flush=True)
        roots = [meter.ROOT] if given.against is None else [meter.ROOT, given.against.resolve()]
        bars = Bars(Path(name), given.rounds, given.scale, roots)
        for measure in (
            bars.small_sets, bars.first_unit, bars.a_row, bars.against_map, bars.coordinator, bars.by_size, bars.relink,
        ):  # fmt: skip
            measure()


if __name__ == "__main__":
    main()
