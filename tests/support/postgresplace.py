"""A queue in PostgreSQL, for the tests of every queue."""
from __future__ import annotations

import time
from typing import Any

import psycopg

from postcommit._config.database import parse_database_url
from postcommit._postgres.queue import PostgresQueue
from tests.contract.places import Look
from tests.contract.places import Seen
from tests.contract.steps import consume
from tests.support.postgres import cluster
from tests.support.service import eventually


_LOOK = """
select state, message_id, recipients, attempts, uncertain, last_reply,
    case when deferred then extract(epoch from due)::float8 else 0 end, batch
from {schema}.entry"""

_UNLOCKED = "select id from {schema}.batch for key share skip locked"


class PostgresPlace:
    """A queue in a schema of its own."""

    def __init__(self) -> None:
        self.url = cluster().new_queue()
        self.schema = parse_database_url(self.url).schema
        self.connection = cluster().connect()

    def execute(self, statement: str, values: Any = None) -> Any:
        text = statement.replace("{schema}", self.schema)
        return self.connection.execute(text.encode(), values)

    def make(self) -> PostgresQueue:
        return PostgresQueue(self.url)

    def look(self) -> Look:
        unlocked = {id for (id,) in self.execute(_UNLOCKED)}
        look = Look([], [], [])
        for state, name, recipients, *rest, batch in self.execute(_LOOK):
            seen = Seen(name, tuple(recipients), *rest)
            if state == "prepared":
                look.in_doubt.extend([seen] * (batch in unlocked))
            else:
                (look.failed if state == "failed" else look.queued).append(seen)
        return look

    def die_with_batch(self, batch: Any) -> None:
        batch._held.close()
        # The server needs a moment to notice.
        until = time.monotonic() + 10
        while (batch._id,) not in self.execute(_UNLOCKED).fetchall():
            assert time.monotonic() < until

    def die_with_claims(self, consumer: Any) -> None:
        lease = consumer._lease
        lease._over = True
        lease._wanted.set()
        lease._thread.join()
        lease._connections.close()
        self._let_end("where id = %(id)s", {"id": lease.id})

    def let_leases_end(self) -> None:
        self._let_end("", {})

    def _let_end(self, which: str, values: Any) -> None:
        past = "update {schema}.process set beat = beat - interval '1 hour'"
        self.execute(f"{past} {which}", values)
        consume(self.make()).close()  # it finds the dead

    def age(self, seconds: float) -> None:
        self.execute(
            "update {schema}.batch set voted = voted - %(s)s * interval '1 s'"
            " where id in (select id from {schema}.batch for update skip locked)",
            {"s": seconds},
        )

    def end(self) -> None:
        # The server may still execute a statement of a process that was killed.
        eventually(self._is_dropped)
        self.connection.close()

    def _is_dropped(self) -> bool:
        """Drop the schema. Return False if a statement was in the way."""
        try:
            self.execute("drop schema {schema} cascade")
        except psycopg.errors.DeadlockDetected:
            return False
        return True
