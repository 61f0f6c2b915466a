"""A queue in PostgreSQL in which very many entries wait.

``python -m tests.benchmarks.depth --entries 1000000`` fills a queue of a server of its
own, and prints the seconds until the first mail is sent, the claims and the mails per
second at this depth, the growth of the processor's memory in MiB, and the dead rows
that each mail leaves.
"""
from __future__ import annotations

import argparse
import resource
import threading
import time
from typing import Any
from typing import NamedTuple

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
from tests.support.postgres import Cluster


# Number of bytes of a message.
SIZE = 1024

_OK = Reply(250, "2.0.0", "OK")

_INSERT = """
insert into {schema}.entry (sender, recipients, message_id, message)
select 'shop@example.org', array['ann@example.org'], number || '@example.org',
    convert_to(E'Message-Id: <' || number || E'@example.org>\n\n'
        || repeat('x', %(size)s), 'UTF8')
from generate_series(1, %(count)s) number"""


class Figures(NamedTuple):
    """What was measured. The memory is in MiB, the first mail in seconds."""

    fill_per_second: float
    first_mail: float
    claims_per_second: float
    mails_per_second: float
    growth: float
    dead_per_mail: float


@implementer(IMailer)
class Counter:
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


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(server: Cluster, entries: int, mails: int) -> Figures:
    """Fill a new queue of `server` with `entries`, and send some `mails` of them."""
    url = server.new_queue()
    schema = parse_database_url(url).schema
    with server.connect() as connection:
        table = f"{schema}.entry"
        off = f"alter table {table} set (autovacuum_enabled = off)"
        connection.execute(off.encode())
        began = time.monotonic()
        values = {"count": entries, "size": SIZE}
        connection.execute(_INSERT.replace("{schema}", schema).encode(), values)
        filled = entries / (time.monotonic() - began)
        connection.execute(f"analyze {table}".encode())
        before = memory()
        first, rate, sent = _send(url, mails)
        growth = memory() - before
        dead = _dead_rows(connection, schema, sent)
        claims = _claim(url, mails)
    return Figures(filled, first, claims, rate, growth, dead / sent)


def _claim(url: str, count: int) -> float:
    """Return how many entries per second are claimed. They are released again."""
    consumer = PostgresQueue(url).consumer(Schedule(60.0, 4000.0, 5 * 86400.0))
    began, claimed = time.monotonic(), 0
    while claimed < count and (claims := consumer.take(8)):
        claimed += len(claims)
    rate = claimed / (time.monotonic() - began)
    consumer.close()
    return rate


def _send(url: str, count: int) -> tuple[float, float, int]:
    """Return the seconds until the first mail, the mails per second, and how many."""
    mailer = Counter(count)
    processor = QueueProcessor(url, mailer, workers=2)
    began = time.monotonic()
    processor.start()
    assert mailer.first.wait(600)
    first = time.monotonic() - began
    assert mailer.last.wait(3600)
    rate = mailer.count / (time.monotonic() - began - first)
    assert processor.stop(60)
    return first, rate, mailer.count


def _dead_rows(connection: Any, schema: str, sent: int) -> int:
    """Return how many dead rows the table has, when the server has counted `sent`."""
    counts = "select n_dead_tup, n_tup_del from pg_stat_user_tables"
    counts += f" where schemaname = '{schema}' and relname = 'entry'"
    pause = threading.Event()
    for _ in range(600):
        [(dead, removed)] = connection.execute(counts.encode())
        if removed >= sent:
            return int(dead)
        pause.wait(0.1)  # a backend reports after its end
    raise AssertionError(f"{removed} of {sent} were removed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--mails", type=int, default=10_000)
    options = parser.parse_args()
    server = Cluster(is_durable=True)
    server.start()
    try:
        figures = run(server, options.entries, options.mails)
    finally:
        server.stop()
    for name, value in figures._asdict().items():
        print(f"{name:18} {value:.3f}")


if __name__ == "__main__":
    main()
