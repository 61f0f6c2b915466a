"""A PostgreSQL server for benchmarks, and tables with work in them.

The server syncs each commit, as it does by default. All contestants of a run use the
same one.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from postcommit._config.database import parse_database_url
from tests.benchmarks.enqueuers import MESSAGE
from tests.support.postgres import Cluster
from tests.support.postgres import why_not as why_not


_FILL = """
insert into {schema}.entry (sender, recipients, message_id, message)
select 'sender@example.org', array['recipient@example.org'],
    number || '@example.org', %(message)s
from generate_series(1, %(count)s) number"""


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
