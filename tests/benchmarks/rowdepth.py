"""A queue in PostgreSQL in which very many entries wait.

Told is how long until the first mail is sent, the mails and the claims per second at
this depth, the memory of the processor, and the dead rows that each mail leaves. The
mailer only counts. A queue is filled once, so each round begins a little less deep.
``python -m tests.benchmarks.rowdepth --help``; a million entries take 3 GB of disk.
"""
from __future__ import annotations

import argparse
import sys
import threading
import time
from functools import partial
from typing import Any

from zope.interface import implementer

from postcommit import DeliveryReport
from postcommit import QueueProcessor
from postcommit._config.database import parse_database_url
from postcommit._drain.schedule import Schedule
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._postgres.queue import PostgresQueue
from postcommit.interfaces import IMailer
from postcommit.interfaces import Status
from tests.benchmarks.databases import Account
from tests.benchmarks.databases import server
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.harness import versions
from tests.benchmarks.measured import peak_memory
from tests.benchmarks.measured import tell
from tests.benchmarks.section import Section
from tests.support.postgres import Cluster


# Number of bytes of a message.
_SIZE = 1024

_OK = Reply(250, "2.0.0", "OK")

_INSERT = """
insert into {schema}.entry (sender, recipients, message_id, message)
select 'shop@example.org', array['ann@example.org'], number || '@example.org',
    convert_to(E'Message-Id: <' || number || E'@example.org>\n\n'
        || repeat('x', %(size)s), 'UTF8')
from generate_series(1, %(count)s) number"""

SECTION = Section(
    title="What if a million entries wait in PostgreSQL?",
    limits="""
One query by an index finds the next entries, however many wait. The memory is that of a
processor whose queue is short.""",
    text="""
A mailer that only counts is called for some thousands of many entries of 1 KB.
*first send* is how long it takes from the start of the processor until the first mail.
*claims* are taken by one thread, eight at a time, and released at the end.""",
    ours="PostgreSQL",
    peer="",
    main="first send",
    split=("depth",),
    typical={"depth": 1_000_000},
    across="depth",
    plots=("rowdepth",),
)


@implementer(IMailer)
class _Counter:
    """A mailer that sends nothing, and tells when it was asked for the last of some."""

    def __init__(self, most: int) -> None:
        self.count = 0
        self.first = threading.Event()
        self.last = threading.Event()
        self._most = most
        self._lock = threading.Lock()

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> DeliveryReport:
        self.first.set()
        with self._lock:
            self.count += 1
            if self.count >= self._most:
                self.last.set()
        outcomes = tuple(Outcome(to, Status.SENT, _OK) for to in toaddrs)
        return DeliveryReport("", tuple(toaddrs), outcomes)


def contest(options: argparse.Namespace) -> None:
    account = Account(options.queue, options.count)
    mailer = _Counter(options.count)
    processor = QueueProcessor(options.queue, mailer, workers=2)
    began = time.perf_counter()
    processor.start()
    assert mailer.first.wait(600)
    first = time.perf_counter() - began
    assert mailer.last.wait(3600)
    rate = mailer.count / (time.perf_counter() - began - first)
    assert processor.stop(60)
    memory = peak_memory()
    figures = account.figures()
    tell(
        first_send=("ms", 1000 * first),
        rate=("1/s", rate),
        claims=("1/s", _claims(options.queue, options.count)),
        peak_memory=("MiB", memory),
        dead_entries=figures["dead_entries"],
    )


def _claims(url: str, count: int) -> float:
    """Return how many entries per second are claimed. They are released again."""
    consumer = PostgresQueue(url).consumer(Schedule(60.0, 4000.0, 5 * 86400.0))
    began, claimed = time.perf_counter(), 0
    while claimed < count and (claims := consumer.take(8)):
        claimed += len(claims)
    rate = claimed / (time.perf_counter() - began)
    consumer.close()
    return rate


def fill(cluster: Cluster, entries: int) -> str:
    """Return the URL of a new queue with so many entries."""
    url = cluster.new_queue()
    table = f"{parse_database_url(url).schema}.entry"
    insert = _INSERT.replace("{schema}.entry", table)
    with cluster.connect() as connection:
        connection.execute(insert.encode(), {"count": entries, "size": _SIZE})
        connection.execute(f"vacuum analyze {table}".encode())
        connection.execute(b"checkpoint")
    return url


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__, rounds=3)
    made.add_argument("--count", type=int, default=10_000, help="messages")
    depths = [20_000, 100_000, 1_000_000]
    made.add_argument("--depth", type=int, nargs="+", default=depths)
    made.add_argument("--queue", help=argparse.SUPPRESS)
    return made


def run(options: argparse.Namespace) -> list[Result]:
    """Each depth, one after another."""
    results: list[Result] = []
    with server() as cluster:
        for depth in options.depth:
            count = min(options.count, depth // 8)  # there is enough for each round
            command = [sys.executable, "-m", "tests.benchmarks.rowdepth"]
            command += ["--contestant", "PostgreSQL", "--count", str(count)]
            command += ["--queue", fill(cluster, depth)]
            case: dict[str, float | str] = {"depth": depth}
            ours = Contestant("PostgreSQL", partial(list, command), OURS, case)
            racing = versions([ours], options.against)
            rounds = 1 if options.quick else options.rounds
            results += interleave("rowdepth", racing, rounds)
    return results


if __name__ == "__main__":
    program(parser(), run, contest)
