"""Runs contestants in turn, and compares medians.

A contestant is a command that does a piece of work in a process of its own and
prints one line of JSON: how much it did, and the seconds of wall and processor
time that this took. They run interleaved, A B C A B C, because the speed of a
shared machine drifts.
"""
from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field


@dataclass
class Contestant:
    """`prepare` makes the work, out of the measured time, and gives the command."""

    name: str
    prepare: Callable[[], list[str]]
    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)

    def run(self) -> None:
        command = self.prepare()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        told = json.loads(done.stdout.splitlines()[-1])
        self.rates.append(told["count"] / told["seconds"])
        self.cpu.append(1000 * told["cpu"] / told["count"])
        self.peaks.append(told["peak"])


@contextmanager
def measured(count: int) -> Iterator[None]:
    """In a contestant: measure the body, which does `count`, and tell."""
    cpu, wall = time.process_time(), time.perf_counter()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"count": count, "seconds": wall, "cpu": cpu, "peak": peak}))


def compare(contestants: list[Contestant], rounds: int) -> None:
    """Run all of them in turn, `rounds` times, and print a table."""
    for number in range(1, rounds + 1):
        for contestant in contestants:
            contestant.run()
        print(f"round {number} of {rounds}", file=sys.stderr)
    first = statistics.median(contestants[0].rates)
    row = "{:34} {:>9} {:>7} {:>9} {:>9}"
    print(row.format("", "per s", "ratio", "ms cpu", "MiB peak"))
    for contestant in contestants:
        rate = statistics.median(contestant.rates)
        print(
            row.format(
                contestant.name,
                f"{rate:.0f}",
                f"{rate / first:.2f}",
                f"{statistics.median(contestant.cpu):.3f}",
                f"{statistics.median(contestant.peaks):.1f}",
            )
        )
