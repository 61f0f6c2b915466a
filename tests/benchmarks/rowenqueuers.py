"""The contestants that put mail into a table of PostgreSQL, and into a queue on disk.

``python -m tests.benchmarks.rowenqueuers KIND OPTIONS``, see
``tests.benchmarks.rowenqueue``. Each transaction sends one mail.
"""
from __future__ import annotations

import argparse
import os
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import transaction

from postcommit._config.database import parse_database_url
from tests.benchmarks.measured import measured
from tests.benchmarks.message import MESSAGE


FROM, TO = "sender@example.org", "recipient@example.org"

# Sends one mail and commits. One is made for each thread.
Transact = Callable[[], object]

# The values of a row that have no default.
_INSERT = """insert into {schema}.entry (id, sender, recipients, message_id, message)
values (%(id)s, %(sender)s, %(recipients)s, %(message_id)s, %(message)b)"""


def _row() -> dict[str, Any]:
    return {
        "id": uuid.uuid4(),
        "sender": FROM,
        "recipients": [TO],
        "message_id": "1@example.org",
        "message": MESSAGE,
    }


class _Other:
    """Another resource of a transaction. It costs nothing."""

    transaction_manager = transaction.manager

    def pass_by(self, transaction: object) -> None:
        """There is nothing to do."""

    tpc_begin = commit = tpc_vote = tpc_finish = tpc_abort = abort = pass_by

    def sortKey(self) -> str:
        return "other"


def bare(queue: str, **options: Any) -> Transact:
    """One INSERT with psycopg, which commits it."""
    url = parse_database_url(queue)
    connection = psycopg.connect(url.conninfo, autocommit=True, **options)
    insert = _INSERT.replace("{schema}", url.schema).encode()
    return lambda: connection.execute(insert, _row())


def unprepared(queue: str) -> Transact:
    """As `bare`, without prepared statements, so that a pooler may be between."""
    return bare(queue, prepare_threshold=None)


def two(queue: str) -> Transact:
    """Two transactions, each in one round trip: the least that a vote and a finish do.

    The first inserts a prepared row, the second makes it a queued one.
    """
    url = parse_database_url(queue)
    connection = psycopg.connect(url.conninfo, autocommit=True)
    insert = _INSERT.replace("{schema}", url.schema)
    insert = insert.replace("message)", "message, state, batch)", 1)
    insert = insert.replace("%(message)b)", "%(message)b, 'prepared', %(batch)s)")
    batch = f"insert into {url.schema}.batch (id, host, pid) values (%(batch)s, '', 1)"
    accept = f"update {url.schema}.entry set state = 'queued', batch = null"
    accept += " where batch = %(batch)s"
    end = f"delete from {url.schema}.batch where id = %(batch)s"

    def transact() -> None:
        values = {**_row(), "batch": uuid.uuid4()}
        with connection.pipeline(), connection.transaction():
            connection.execute(batch.encode(), values)
            connection.execute(insert.encode(), values)
        with connection.pipeline(), connection.transaction():
            connection.execute(accept.encode(), values)
            connection.execute(end.encode(), values)

    return transact


def alone(queue: str) -> Transact:
    """A transaction without another resource."""
    from postcommit import QueuedMailDelivery

    delivery = QueuedMailDelivery(queue)

    def transact() -> None:
        delivery.send(FROM, TO, MESSAGE)
        transaction.commit()

    return transact


def prepared(queue: str) -> Transact:
    """A transaction with another resource."""
    from postcommit import QueuedMailDelivery

    delivery = QueuedMailDelivery(queue)

    def transact() -> None:
        transaction.get().join(_Other())
        delivery.send(FROM, TO, MESSAGE)
        transaction.commit()

    return transact


def _session(queue: str) -> tuple[Any, Any]:
    """Return a session that is registered with zope.sqlalchemy, and its schema."""
    import sqlalchemy
    import zope.sqlalchemy
    from sqlalchemy import orm

    url = parse_database_url(queue)
    place = url.conninfo.replace("postgresql:", "postgresql+psycopg:")
    session = orm.Session(sqlalchemy.create_engine(place))
    zope.sqlalchemy.register(session)
    return session, url.schema


def outbox(queue: str) -> Transact:
    """A mail in the transaction of a session."""
    from postcommit import OutboxMailDelivery

    session, schema = _session(queue)
    delivery = OutboxMailDelivery(session, schema=schema)

    def transact() -> None:
        delivery.send(FROM, TO, MESSAGE)
        transaction.commit()

    return transact


def session(queue: str) -> Transact:
    """A row in the transaction of a session, without this library."""
    import zope.sqlalchemy
    from sqlalchemy import text

    session, schema = _session(queue)
    insert = text(
        f"insert into {schema}.entry (id, sender, recipients, message_id, message)"
        " values (:id, :sender, :recipients, :message_id, :message)"
    )

    def transact() -> None:
        session.execute(insert, _row())
        zope.sqlalchemy.mark_changed(session)
        transaction.commit()

    return transact


KINDS: dict[str, Callable[[str], Transact]] = {
    one.__name__: one
    for one in (bare, unprepared, two, alone, prepared, outbox, session)
}


def work(transact: Callable[[], Transact], count: int, threads: int) -> None:
    """Send `count` mails, and tell what it took. Each thread has a session."""
    made = [transact() for _ in range(threads)]
    turns = iter(range(count))  # each thread takes the next

    def send(one: Transact) -> None:
        for _ in turns:
            one()

    def warm(one: Transact) -> None:
        for _ in range(10):  # connected, compiled, and prepared where it can be
            one()

    def in_threads(function: Callable[[Transact], None]) -> None:
        running = [threading.Thread(target=function, args=(one,)) for one in made]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    in_threads(warm)
    with measured(count):
        in_threads(send)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--queue", default="", help="a URL; default: a folder")
    parser.add_argument("--folder", help="where a queue on disk is made")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    queue = options.queue
    if not queue:
        queue = str(Path(tempfile.mkdtemp(dir=options.folder)) / "queue")
    work(lambda: KINDS[options.kind](queue), options.count, options.threads)
    accepted = len(os.listdir(f"{queue}/new")) if not options.queue else _rows(queue)
    assert accepted == options.count + 10 * options.threads, accepted


def _rows(queue: str) -> int:
    url = parse_database_url(queue)
    with psycopg.connect(url.conninfo) as connection:
        statement = f"select count(*) from {url.schema}.entry where state = 'queued'"
        [found] = connection.execute(statement.encode()).fetchall()
    return int(found[0])


if __name__ == "__main__":
    main()
