"""Puts mail into a queue on disk, durably.

Beside the least that is durable, in Python (open, write, fsync, rename, fsync the
folder), which is the limit, and beside zope.sendmail and repoze.sendmail, which do
not sync. ``python -m tests.benchmarks.enqueue --help``.
"""
from __future__ import annotations

import argparse
import sys
import tempfile

from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.machine import file_system


NAMES = {
    "postcommit": ("postcommit", OURS),
    "zope": ("zope.sendmail", PEER),
    "repoze": ("repoze.sendmail", PEER),
    "minimal": ("minimal loop", LIMIT),
}


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__)
    made.add_argument("--count", type=int, default=2000, help="messages")
    made.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    made.add_argument("--batch", type=int, default=1000, help="in one transaction")
    made.add_argument(
        "--folders",
        nargs="+",
        default=[".", "/dev/shm"],
        help="one on each file system to measure",
    )
    return made


def run(options: argparse.Namespace) -> list[Result]:
    """Each file system by itself; threads and batches interleaved."""
    count = options.count
    shapes = [(threads, 1) for threads in options.threads] + [(1, options.batch)]
    if options.quick:
        count = 2 * max(options.threads)
        shapes = [(max(options.threads), 2)]
    results: list[Result] = []
    for folder in options.folders:
        # Nothing is removed before all have had their turns: ext4 looks past each
        # file that was removed in the last minutes whenever it makes one.
        with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as kept:
            contestants = [
                _contestant(kind, kept, count, threads, size)
                for threads, size in shapes
                for kind in NAMES
            ]
            rounds = 1 if options.quick else options.rounds
            results += interleave("enqueue", contestants, rounds)
    return results


def _contestant(
    kind: str, folder: str, count: int, threads: int, batch: int
) -> Contestant:
    command = [sys.executable, "-m", "tests.benchmarks.enqueuers", kind]
    command += ["--folder", folder, "--count", str(count)]
    command += ["--threads", str(threads), "--batch", str(batch)]
    name, what = NAMES[kind]
    case: dict[str, float | str] = {"file system": file_system(folder)}
    case |= {"in a transaction": batch, "threads": threads}
    return Contestant(name, lambda: command, what, case)


if __name__ == "__main__":
    program(parser(), run)
