"""Several processes drain one queue, beside as many that have a queue each.

Both have the same mail to send to ``smtp-sink``: what it costs to share a queue is
the difference. ``python -m tests.benchmarks.together --help``.
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.drain import fill
from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.measured import measured
from tests.benchmarks.relays import sink
from tests.benchmarks.section import Section


ONE, EACH = "one queue", "a queue each"

SECTION = Section(
    title="Do several processes help?",
    limits="""
The number of processors limits it, because ``smtp-sink`` shares them with the
processes. A process that meets an entry of another process goes on in another part of
the folder, so they seldom meet again.""",
    text="""
Processes that drain one queue are compared with the same number of processes that
have a queue each, with the same mail in all. Messages of 4 KB go to
``smtp-sink``.""",
    ours=ONE,
    limit=EACH,
    split=("processes",),
    across="processes",
    plots=("together",),
)


def contest(options: argparse.Namespace) -> None:
    """Drain the queues, each by a process of its own; tell how long all of it took."""
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    begin, go = os.pipe()
    children = []
    for queue in options.queues:
        child = os.fork()
        if not child:
            os.close(go)
            processor = QueueProcessor(queue, SMTPMailer("127.0.0.1", options.port))
            os.read(begin, 1)  # until all are there
            processor.flush()
            os._exit(0)
        children.append(child)
    with measured(options.count, by_child=True):
        os.close(go)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0
    for queue in options.queues:
        assert not os.listdir(f"{queue}/new"), "entries were not sent"


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__)
    made.add_argument("--processes", type=int, nargs="+", default=[2, 3])
    made.add_argument("--count", type=int, default=3000, help="messages a process")
    made.add_argument("--size", type=int, default=4096)
    made.add_argument("--port", type=int, help=argparse.SUPPRESS)
    made.add_argument("--queues", nargs="+", help=argparse.SUPPRESS)
    return made


def contestant(
    name: str, folder: Path, processes: int, count: int, size: int, port: int
) -> Contestant:
    queues = [folder / str(n) for n in range(processes)]

    def prepare() -> list[str]:
        if name == ONE:
            fill(queues[0], processes * count, size)
        else:
            for queue in queues:
                fill(queue, count, size)
        drained = [queues[0]] * processes if name == ONE else queues
        return [
            *(sys.executable, "-m", "tests.benchmarks.together"),
            *("--contestant", name, "--port", str(port)),
            *("--count", str(processes * count)),
            *("--queues", *map(str, drained)),
        ]

    kind = OURS if name == ONE else LIMIT
    return Contestant(name, prepare, kind, {"processes": processes})


def run(options: argparse.Namespace) -> list[Result]:
    """Each number of processes, one after another."""
    results: list[Result] = []
    count = 8 if options.quick else options.count
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
        sink() as port,
    ):
        for processes in options.processes:
            racing = [
                contestant(name, Path(folder), processes, count, options.size, port)
                for name in (ONE, EACH)
            ]
            rounds = 1 if options.quick else options.rounds
            results += interleave("together", racing, rounds)
    return results


if __name__ == "__main__":
    program(parser(), run, contest)
