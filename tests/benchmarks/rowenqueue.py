"""Commits one mail at a time into PostgreSQL, durably.

Beside the limits, which are an INSERT with psycopg and the same row by SQLAlchemy, and
beside a queue on disk. The server and the queue are in the folder for temporary files,
on one disk. ``python -m tests.benchmarks.rowenqueue --help``.
"""
from __future__ import annotations

import argparse
import sys
import tempfile

from tests.benchmarks.databases import fill
from tests.benchmarks.databases import server
from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.harness import versions
from tests.benchmarks.section import Section
from tests.support.postgres import Cluster


BARE, ROW = "bare INSERT", "bare INSERT by SQLAlchemy"
UNPREPARED, TWO = "bare INSERT, not prepared", "two bare transactions"

# The contestant, its kind, whether it has a table, and the parameters of the URL.
NAMES: dict[str, tuple[str, str, bool, str]] = {
    BARE: ("bare", LIMIT, True, ""),
    UNPREPARED: ("unprepared", LIMIT, True, ""),
    TWO: ("two", LIMIT, True, ""),
    ROW: ("session", LIMIT, True, ""),
    "PostgreSQL": ("alone", OURS, True, ""),
    "PostgreSQL, postcommit_prepare=1": ("alone", OURS, True, "&postcommit_prepare=1"),
    "PostgreSQL, with another resource": ("prepared", OURS, True, ""),
    "PostgreSQL, outbox": ("outbox", OURS, True, ""),
    "Maildir": ("alone", PEER, False, ""),
    "Maildir, with another resource": ("prepared", PEER, False, ""),
}

SECTION = Section(
    title="How fast is a commit in PostgreSQL?",
    limits="""
The server limits it, which writes a row with five indexes and syncs its log. A
transaction with another resource needs two commits of the server, and SQLAlchemy needs
three round trips for a row.""",
    text="""
``send()`` and commit, one mail of 4 KB in each transaction. The server has the default
settings of Debian, so that each commit is synced. The queue on disk is on the same
disk. The limits write the same row into the same table, without this library.""",
    details="""
*bare INSERT* is one statement of psycopg, which the server has prepared.
*not prepared* is what a pooler in transaction mode allows, and what postcommit does by
default. *two bare transactions* insert a prepared row and then make it a queued one,
each in one round trip. *by SQLAlchemy* is a registered session that inserts the
row.""",
    ours="PostgreSQL",
    peer="Maildir",
    limit=BARE,
    scaled="threads",
    typical={"threads": 8},
    across="threads",
    plots=("rowenqueue",),
)


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__, rounds=8)
    made.add_argument("--count", type=int, default=400, help="messages")
    made.add_argument("--threads", type=int, nargs="+", default=[1, 8])
    made.add_argument("--kinds", nargs="+", default=list(NAMES), choices=NAMES)
    return made


def run(options: argparse.Namespace) -> list[Result]:
    """Each number of threads, one after another."""
    results: list[Result] = []
    with (
        server() as cluster,
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
    ):
        for threads in options.threads:
            count = 2 * threads if options.quick else options.count
            racing = [
                _contestant(name, cluster, folder, count, threads)
                for name in options.kinds
            ]
            racing = versions(racing, options.against)
            rounds = 1 if options.quick else options.rounds
            results += interleave("rowenqueue", racing, rounds)
    return results


def _contestant(
    name: str, cluster: Cluster, folder: str, count: int, threads: int
) -> Contestant:
    kind, what, has_table, parameters = NAMES[name]
    queue = cluster.new_queue() if has_table else ""
    command = [sys.executable, "-m", "tests.benchmarks.rowenqueuers", kind]
    command += ["--count", str(count), "--threads", str(threads)]
    command += ["--queue", queue + parameters] if queue else ["--folder", folder]

    def prepare() -> list[str]:
        if queue:
            fill(cluster, queue, 0)
        return command

    return Contestant(name, prepare, what, {"threads": threads})


if __name__ == "__main__":
    program(parser(), run)
