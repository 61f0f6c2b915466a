"""A PostgreSQL server for benchmarks, and tables with work in them.

The server syncs each commit, as it does by default. All contestants of a run use the
same one.
"""
from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from postcommit._config.database import parse_database_url
from tests.benchmarks.message import MESSAGE
from tests.support.postgres import Cluster
from tests.support.postgres import why_not as why_not


_FILL = """
insert into {schema}.entry (sender, recipients, message_id, message)
select 'sender@example.org', array['recipient@example.org'],
    number || '@example.org', %(message)s
from generate_series(1, %(count)s) number"""

_OTHERS = """
select count(*) from pg_stat_activity
where backend_type = 'client backend' and pid <> pg_backend_pid()"""

# A row is dead when it was updated or deleted. All tables of a queue count.
_NUMBERS = """
select sum(n_tup_upd + n_tup_del),
    sum(n_tup_upd + n_tup_del) filter (where relname = 'entry'),
    pg_current_wal_insert_lsn() - '0/0', ({syncs})
from pg_stat_user_tables where schemaname = %(schema)s"""

# How often the log was synced, since PostgreSQL 18 and before.
_SYNCS = "select sum(fsyncs) from pg_stat_io where object = 'wal'"
_SYNCS_BEFORE = "select wal_sync from pg_stat_wal"


@contextmanager
def server() -> Iterator[Cluster]:
    """Run a server that is as durable as one of Debian."""
    if reason := why_not():
        raise SystemExit(f"{reason}: apt-get install postgresql")
    cluster = Cluster(is_durable=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def fill(cluster: Cluster, queue: str, count: int) -> None:
    """Replace all entries of a queue by `count` new ones, of 4 KB each."""
    schema = parse_database_url(queue).schema
    with cluster.connect() as connection:
        connection.execute(f"truncate {schema}.entry".encode())
        text = _FILL.replace("{schema}", schema).encode()
        connection.execute(text, {"message": MESSAGE, "count": count})
        connection.execute(f"vacuum analyze {schema}.entry".encode())
        connection.execute(b"checkpoint")


def left(cluster: Cluster, queue: str) -> int:
    """Return the number of rows of a queue."""
    schema = parse_database_url(queue).schema
    with cluster.connect() as connection:
        found = connection.execute(f"select count(*) from {schema}.entry".encode())
        return int((found.fetchone() or (0,))[0])


class Account:
    """Counts what the server does from now on, for each of `count` mails."""

    def __init__(self, queue: str, count: int) -> None:
        self._url = parse_database_url(queue)
        self._count = count
        self._before = self._numbers()

    def figures(self) -> dict[str, tuple[str, float]]:
        """Return the figures when all others have disconnected."""
        dead, entries, log, syncs = (
            (after - before) / self._count
            for after, before in zip(self._numbers(), self._before, strict=True)
        )
        return {
            "dead_rows": ("each", dead),
            "dead_entries": ("each", entries),
            "server_log": ("KiB", log / 1024),
            "syncs": ("each", syncs),
        }

    def _numbers(self) -> tuple[float, ...]:
        with psycopg.connect(self._url.conninfo, autocommit=True) as connection:
            until = time.monotonic() + 60
            while connection.execute(_OTHERS).fetchone() != (0,):
                assert time.monotonic() < until, "somebody stays connected"
                time.sleep(0.01)  # they write their numbers at their end
            is_new = connection.info.server_version >= 180_000
            text = _NUMBERS.replace("{syncs}", _SYNCS if is_new else _SYNCS_BEFORE)
            found = connection.execute(text.encode(), {"schema": self._url.schema})
            return tuple(map(float, found.fetchone() or ()))
