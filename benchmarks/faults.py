"""`python -m benchmarks.faults`: faults put into real files and processes, many times; what came of them, counted.

    python -m benchmarks.faults                         all, with their own numbers of trials
    python -m benchmarks.faults --only flips --trials 40

Prints a line for each kind of fault: its tries, what came of them, and how many of them are failures. The exit code is
1 if there is one. `--seed` draws other places and moments.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from benchmarks import faults_flips, faults_kills, faults_mutations, faults_operations


class Bench(NamedTuple):
    """A kind of fault: what runs `trials` with a seed and counts outcomes, and the outcomes that are no failure."""

    run: Callable[[int, int], Counter[str]]
    trials: int
    good: frozenset[str]


BENCHES = {
    "flips": Bench(faults_flips.run, 400, faults_flips.GOOD),
    "mutations": Bench(faults_mutations.run, 2000, faults_mutations.GOOD),
    "operations": Bench(faults_operations.run, 300, faults_operations.GOOD),
    "kills": Bench(faults_kills.run, 200, faults_kills.GOOD),
}


def main() -> None:
    """Run what is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(BENCHES), metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--trials", type=int, metavar="N", help="trials of each, instead of its own number")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    failures = 0
    for name in given.only or BENCHES:
        bench, began = BENCHES[name], time.monotonic()
        found: Counter[str] = bench.run(given.trials or bench.trials, given.seed)
        failed = sum(count for outcome, count in found.items() if outcome not in bench.good)
        failures += failed
        outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in found.most_common())
        print(
            f"{name:12} {found.total():,} trials in {time.monotonic() - began:,.0f} s: {outcomes}; {failed:,} failures"
        )
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
