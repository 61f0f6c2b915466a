"""Drains a table of PostgreSQL into Postfix's smtp-sink.

Beside a queue on disk, beside procrastinate (one task for each mail, with smtplib), and
beside the least that Python can do with psycopg and a socket. For a table, the rows
that each mail leaves dead, and the bytes of the server's log, are counted.
``python -m tests.benchmarks.rowdrain --help``.
"""
from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import drain
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
from tests.benchmarks.relays import sink
from tests.benchmarks.section import Section
from tests.support.postgres import Cluster


_TASKS = "tasks"  # the database of procrastinate

# The contestant, its kind, and where its mail waits.
NAMES = {
    "PostgreSQL": ("postcommit", OURS, "table"),
    "PostgreSQL, postcommit_prepare=1": ("postcommit", OURS, "prepared"),
    "Maildir": ("postcommit", PEER, "folder"),
    "procrastinate": ("procrastinate", PEER, "tasks"),
    "procrastinate, connection kept": ("keeping", PEER, "tasks"),
    "psycopg and a socket": ("raw", LIMIT, "table"),
}

SECTION = Section(
    title="How fast is a queue in PostgreSQL drained?",
    limits="""
The commits of the server limit it, because each mail has one of its own, so that a
processor that is killed sends at most the messages on the wire again. Where the server
has processors to spare, it is the interpreter.""",
    text="""
Mails of 4 KB are sent to ``smtp-sink`` on the loopback interface. All contestants use
the same server, which syncs each commit. *procrastinate* has a task for each mail,
which sends it with smtplib, and eight tasks at a time in each process. *psycopg and a
socket* claims eight rows in a statement, pipelines the messages, and removes each row
by a statement that it waits for.""",
    details="""
postcommit sends the next message while the server commits the removal of the one
before. A removal is on its way as soon as the reply of the relay is there, and the
report is announced when the removal has taken effect.""",
    ours="PostgreSQL",
    peer="procrastinate",
    limit="psycopg and a socket",
    typical={"processes": 1},
    across="processes",
    plots=("rowdrain",),
)


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__, rounds=5)
    made.add_argument("--count", type=int, default=4000, help="messages of ours")
    made.add_argument("--few", type=int, default=600, help="messages of procrastinate")
    made.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    made.add_argument("--kinds", nargs="+", default=list(NAMES), choices=NAMES)
    made.add_argument(
        "--procrastinate",
        default=os.environ.get("PROCRASTINATE_PYTHON", sys.executable),
        metavar="PYTHON",
        help="an interpreter that has procrastinate; default: $PROCRASTINATE_PYTHON,"
        " or this one",
    )
    return made


def run(options: argparse.Namespace) -> list[Result]:
    """Each number of processes, one after another."""
    results: list[Result] = []
    kinds = _kinds(options)
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
        server() as cluster,
        sink() as port,
    ):
        queue = cluster.new_queue()
        for processes in options.processes[: 1 if options.quick else None]:
            made = _Contestants(options, cluster, Path(folder), queue, port, processes)
            racing = versions([made.named(name) for name in kinds], options.against)
            rounds = 1 if options.quick else options.rounds
            results += interleave("rowdrain", racing, rounds)
    return results


def _kinds(options: argparse.Namespace) -> list[str]:
    """Return the names to measure: without procrastinate, if it is not installed."""
    is_here = options.procrastinate == sys.executable
    if not is_here or importlib.util.find_spec("procrastinate"):
        return list(options.kinds)
    print("rowdrain: procrastinate is not installed", file=sys.stderr)
    return [name for name in options.kinds if NAMES[name][2] != "tasks"]


class _Contestants:
    """Makes contestants with so many `processes`."""

    def __init__(
        self,
        options: argparse.Namespace,
        cluster: Cluster,
        folder: Path,
        queue: str,
        port: int,
        processes: int,
    ) -> None:
        self._options = options
        self._cluster = cluster
        self._folder = folder / "queue"
        self._queue = queue
        self._port = port
        self._processes = processes

    def named(self, name: str) -> Contestant:
        kind, what, place = NAMES[name]
        case: dict[str, float | str] = {"processes": self._processes}
        return Contestant(name, lambda: self._prepare(kind, place), what, case)

    def _prepare(self, kind: str, place: str) -> list[str]:
        options = self._options
        count = options.few if place == "tasks" else options.count
        count = 2 * self._processes if options.quick else count
        at = self._fill(place, count)
        python = options.procrastinate if place == "tasks" else sys.executable
        return self._command(python, kind, count, at)

    def _command(
        self, python: str, kind: str, count: int, at: Sequence[str]
    ) -> list[str]:
        return [
            *(python, "-m", "tests.benchmarks.rowdrainers", kind),
            *("--port", str(self._port), "--count", str(count)),
            *("--processes", str(self._processes), *at),
        ]

    def _fill(self, place: str, count: int) -> list[str]:
        """Put `count` mails there, and return how a contestant is told where."""
        if place == "folder":
            drain.fill(self._folder, count, 4 * drain.KIB)
            return ["--queue", str(self._folder)]
        if place != "tasks":
            fill(self._cluster, self._queue, count)
            prepare = "&postcommit_prepare=1" if place == "prepared" else ""
            return ["--queue", self._queue + prepare]
        with self._cluster.connect() as connection:
            drop = f"drop database if exists {_TASKS} with (force)"
            connection.execute(drop.encode())
            connection.execute(f"create database {_TASKS}".encode())
            connection.execute(b"checkpoint")
        conninfo = self._cluster.conninfo.removesuffix("postgres") + _TASKS
        at = ["--conninfo", conninfo]
        python = self._options.procrastinate
        subprocess.run(self._command(python, "tasks", count, at), check=True)
        return at


if __name__ == "__main__":
    program(parser(), run)
