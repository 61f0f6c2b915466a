"""A queue in PostgreSQL: `IQueue`, and how a transaction's entries get into it.

==================  ===========================================================
phase               statements
==================  ===========================================================
stage               none: the entry is kept in memory
prepare             INSERT of a batch and its entries in the state ``prepared``,
                    COMMIT; then a transaction that locks the row of the batch
publish             UPDATE of the entries, DELETE of the batch, COMMIT
publish, alone      one INSERT, with an id that was chosen before
discard             DELETE of the entries and the batch
==================  ===========================================================

The lock of the batch shows that its transaction lives. The server drops it when the
connection ends. A batch without a lock is *in doubt*.

If the connection is lost before the reply to a COMMIT, the same is done again: an
INSERT with the same id, or an UPDATE of the same batch, changes nothing if it was done.
An entry that was alone may have been sent and removed since. Its id is then in the
table ``removed`` for a minute.
"""
from __future__ import annotations

import math
import os
import socket
import time
import uuid
from collections.abc import Callable
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from psycopg import Rollback
from zope.interface import implementer

from postcommit._config.database import parse_database_url
from postcommit._drain.contract import IQueue
from postcommit._drain.contract import Terms
from postcommit._drain.schedule import Schedule
from postcommit._log import Log
from postcommit._mail.row import indexed
from postcommit._mail.row import row
from postcommit._postgres import cancellation
from postcommit._postgres import listening
from postcommit._postgres import schema
from postcommit._postgres.cancellation import Cancellation
from postcommit._postgres.cancellation import Locks
from postcommit._postgres.cancellation import split
from postcommit._postgres.connections import Connection
from postcommit._postgres.connections import Connections
from postcommit._postgres.connections import has_ended
from postcommit._postgres.connections import is_reply_lost
from postcommit._postgres.consumer import Consumer
from postcommit._postgres.consumer import ring
from postcommit._postgres.lease import LEASE_SECONDS
from postcommit._postgres.listening import Listener
from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.interfaces import Batch
from postcommit.interfaces import IBatch


log = Log("postcommit.postgres.queue")

# Number of seconds for which a decided commit is tried again after its connection was
# lost, and the pause between two attempts.
_PATIENCE = 10.0
_PAUSE = 0.2

# Seconds after which an INSERT is not repeated. After a minute the database may have
# forgotten that it has removed the entry.
_TOO_LATE = 45.0

# An ordinary entry. The other columns have defaults.
_INSERT = """
insert into {schema}.entry (id, sender, recipients, message_id, message)
values (%(id)s, %(sender)s, %(recipients)s::text[], %(message_id)s, %(message)b)
on conflict do nothing"""

# More columns and their values: of an entry that is alone, or in a batch, and of terms.
_ALONE = "alone, ", "true, "
_IN_BATCH = "state, batch, ", "'prepared', %(batch)s, "
_TERMS = (
    "due, not_before, expires, bulk, ",
    """coalesce(to_timestamp(%(not_before)s::float8), clock_timestamp()),
    to_timestamp(%(not_before)s::float8), to_timestamp(%(expires)s::float8),
    %(bulk)s, """,
)

_NEW_BATCH = """
insert into {schema}.batch (id, host, pid) values (%(batch)s, %(host)s, %(pid)s)"""

# After the INSERT was repeated, so that a removal that it has waited for is seen.
_WAS_REMOVED = "select from {schema}.removed where id = %(id)s"

# Without parameters: the server executes several statements in one round trip.
_BEGIN = "begin isolation level read committed; "
_LOCK = "select from {schema}.batch where id = '{batch}' for update"
_END = """with ended as (delete from {schema}.batch where id = '{batch}')
{change}; commit"""

ACCEPT = """
update {schema}.entry set state = 'queued', batch = null where batch = %(batch)s"""

DROP = "delete from {schema}.entry where batch = %(batch)s"


@implementer(IQueue)
class PostgresQueue:
    """The queue at `url`, such as ``postgresql://host/db``. See `IQueue`.

    Its tables must be there. `lease_seconds` is the length of the lease of a drain.
    Raises `OptionError` for a URL that can never work, and `QueueError` if there is no
    queue, or it cannot be reached, or the role lacks the `rights`.
    """

    def __init__(
        self,
        url: str,
        *,
        rights: schema.Rights = schema.SENDER,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self._url = parse_database_url(url)
        self.name = self._url.name
        self.lease_seconds = lease_seconds
        self.connections = Connections(self._url)
        schema.check(self.connections, self._url, rights)

    def own_connections(self) -> Connections:
        """Return connections that nobody else uses."""
        own = Connections(self._url)
        own.begins = self.connections.begins
        return own

    def listener(self, ring: Callable[[], None]) -> Listener | None:
        """Return what calls `ring` for entries of others, if the queue notifies."""
        if not listening.is_on(self.connections):
            return None
        return Listener(self.own_connections(), self._url.schema, ring)

    def consumer(
        self, schedule: Schedule, clock: Callable[[], float] | None = None
    ) -> Consumer:
        """Begin a drain. See `IQueue`."""
        schema.check(self.connections, self._url, schema.PROCESSOR)
        return Consumer(self, schedule, clock)

    def batch(self) -> Batch:
        """Return the batch by which one transaction's entries are accepted."""
        return RowBatch(self.name, self.connections)

    def stage(
        self,
        sender: str,
        recipients: tuple[str, ...],
        message: Sequence[bytes | memoryview],
        *,
        terms: Terms | None = None,
        is_first: bool = False,
    ) -> dict[str, Any]:
        """Return a new row, which is in memory only. See `IQueue`."""
        new = row(self.name, sender, recipients, b"".join(message))
        if terms is not None:
            new["not_before"] = terms.not_before
            new["expires"] = terms.expires
            new["bulk"] = terms.bulk
        return new

    def cancel(
        self, message_id: str, staged: Sequence[Any] = ()
    ) -> Cancellation | None:
        """Lock what waits of a message, as an item for a `batch`. See `IQueue`.

        Keeps a connection until the transaction ends, the same for all its items.
        """
        wanted = indexed(message_id)
        rows, earlier = split(staged)
        rows = [row for row in rows if row["message_id"] == wanted]
        locks = earlier[-1].locks if earlier else Locks(self.connections)
        found = Cancellation(locks, wanted, rows)
        return found if found else None


@implementer(IBatch)
class RowBatch:
    """The entries of one transaction. See `IBatch`."""

    def __init__(self, name: str, connections: Connections) -> None:
        self._name = name
        self._connections = connections
        self._process = os.getpid()
        self._id: uuid.UUID | None = None  # of the row, while it may be there
        self._held: Connection | None = None  # has the lock of the row
        # After ordinary storages; before «~sqlalchemy:», which commits in its vote.
        self.sort_key = f"~mail:queued:{name}"

    # Vote

    def prepare(self, items: Sequence[Any], *, alone: bool = False) -> None:
        """Prepare what is not called off. See `IBatch`."""
        rows, cancelled = split(items)
        cancellation.prepare(cancelled)
        self._prepare(rows, alone=alone)

    def _prepare(self, items: Sequence[Any], *, alone: bool) -> None:
        """Insert the entries as prepared ones, and lock their batch.

        A single entry of a transaction without other resources is decided by one
        INSERT, in `publish`.
        """
        if not items or (alone and len(items) == 1):
            return
        held = self._connections.take()
        try:
            self._insert_batch(held, items)
            with self._connections.explained("lock the entries"):
                held.execute(self._sql(_BEGIN + _LOCK), prepare=False)
        except BaseException:
            held.close()
            raise
        self._held = held

    def _insert_batch(self, held: Connection, items: Sequence[Any]) -> None:
        """Insert the batch and its entries. Forget its id if the server refuses them.

        Any other failure, such as an interrupt, may come after they were inserted.
        """
        self._id = uuid.uuid4()
        try:
            with self._connections.explained("make the entries durable"):
                self._insert_all(held, items)
        except QueueError as error:
            if not is_reply_lost(error):
                self._id = None
            raise

    def _insert_all(self, held: Connection, items: Sequence[Any]) -> None:
        """Insert the batch and its entries in one transaction."""
        sql = self._connections.sql
        values = {"batch": self._id, "host": socket.gethostname(), "pid": os.getpid()}
        first, *others = items
        together = f"with batch as ({_NEW_BATCH}) {_insert(first, in_batch=True)}"
        if not (others or self._connections.begins):
            held.execute(sql(together), {**first, **values})
            return
        with held.pipeline():  # one round trip
            held.execute(_BEGIN.encode(), prepare=False)
            held.execute(sql(together), {**first, **values})
            for item in others:
                held.execute(sql(_insert(item, in_batch=True)), {**item, **values})
            held.execute(b"commit")

    def _sql(self, text: str, change: str = "") -> bytes:
        """Return statements about the batch that have no parameters."""
        change = change.replace("%(batch)s", "'{batch}'")
        sql = self._connections.sql(text.replace("{change}", change))
        return sql.replace(b"{batch}", str(self._id).encode())

    # Finish

    def publish(self, items: Sequence[Any]) -> None:
        """Let the entries be sent. See `IBatch`."""
        if not items or os.getpid() != self._process:
            return
        rows, cancelled = split(items)
        try:
            if self._id is not None:
                self._accept(rows)
            elif rows:
                self._insert(rows[0])
        except PublishError:
            with suppress(QueueError):  # it is logged, and this error names the entries
                cancellation.apply(cancelled)  # the commit is decided all the same
            raise
        except QueueError:
            self.discard(items)
            raise
        finally:
            ring(self._name)
        cancellation.apply(cancelled)

    def _insert(self, item: dict[str, Any]) -> None:
        """Insert the only entry of a transaction, and nothing else decides it."""
        until = time.monotonic() + _TOO_LATE
        may_be_there = False
        sql = self._connections.sql(_insert(item))
        while True:
            try:
                connection = self._connections.take()
                try:
                    with self._connections.explained("accept the entry"):
                        if may_be_there:
                            self._repeat(connection, sql, item)
                        else:
                            connection.execute(sql, item)
                        return
                except QueueError as error:
                    may_be_there |= is_reply_lost(error)
                    raise
                finally:
                    self._connections.give_back(connection)
            except QueueError as error:
                if not may_be_there or not is_reply_lost(error):
                    raise
                until = min(until, time.monotonic() + _PATIENCE)
                time.sleep(_PAUSE)
                if time.monotonic() > until:
                    reason = "the reply of the database was lost: the entry may have"
                    reason += f" been accepted, or not: {error.reason}"
                    raise QueueError(self._name, reason, scope="queue") from error

    def _repeat(
        self, connection: Connection, sql: bytes, item: dict[str, Any]
    ) -> None:
        """Insert an entry whose INSERT may have taken effect.

        It may have been sent and removed since. Then nothing is inserted.
        """
        with connection.transaction():
            connection.execute(sql, item)
            removed = self._connections.sql(_WAS_REMOVED)
            if connection.execute(removed, item).rowcount:
                raise Rollback

    def _accept(self, items: Sequence[dict[str, Any]]) -> None:
        """Make the prepared entries queued ones: all resources have voted."""
        until = math.inf
        may_be_done = False
        while True:
            try:
                connection, is_open = self._connection()
                try:
                    count = self._end(connection, is_open, ACCEPT)
                    break
                except QueueError as error:
                    may_be_done |= is_reply_lost(error)
                    raise
            except QueueError as error:
                until = min(until, time.monotonic() + _PATIENCE)
                if not is_reply_lost(error) or time.monotonic() > until:
                    raise self._failed(items, error) from error
                time.sleep(_PAUSE)
        if count == 0 and not may_be_done:
            cause = OSError("the batch was recovered by hand")
            reason = f"its entries are gone from the vote: {cause}"
            raise self._failed(items, cause, reason)

    def _connection(self) -> tuple[Connection, bool]:
        """Return a connection, and whether it has the transaction with our lock."""
        held, self._held = self._held, None
        if held is not None:
            if not has_ended(held):
                return held, True
            held.close()
        return self._connections.take(), False

    def _end(self, connection: Connection, is_open: bool, change: str) -> int:
        """Change the entries and remove the batch. Return how many were changed."""
        sql = self._sql(_END if is_open else _BEGIN + _END, change)
        try:
            with self._connections.explained("change the entries of a batch"):
                done = connection.execute(sql, prepare=False)
                if not is_open:
                    done.nextset()
                return done.rowcount
        except BaseException:
            connection.close()
            raise
        finally:
            self._connections.give_back(connection)

    def _failed(
        self, items: Sequence[Any], cause: OSError, reason: str | None = None
    ) -> PublishError:
        names = tuple(item["id"].hex for item in items)
        failure = PublishError(self._name, names, cause, reason=reason)
        text = "%s; the batch: %s; the entries: %s"
        log.critical(text, failure, self._id, ", ".join(names))
        return failure

    # Abort

    def discard(self, items: Sequence[Any]) -> None:
        """Remove the entries, if any were prepared. See `IBatch`."""
        self._release(items)
        if self._id is None or os.getpid() != self._process:
            return
        try:
            self._end(*self._connection(), DROP)
        except QueueError as error:
            log.error("Left behind, and in doubt: batch %s: %s", self._id, error)
        self._id = None

    def abandon(self, items: Sequence[Any]) -> None:
        """Leave what is prepared in doubt. See `IBatch`."""
        rows, cancelled = split(items)
        ids = [id.hex for each in cancelled for id in each.ids]
        if ids and os.getpid() == self._process:
            text = "%s: the commit was interrupted; called off, but may be sent: %s"
            log.critical(text, self._name, ", ".join(ids))
        self._release(items)
        if self._id is None or os.getpid() != self._process:
            return
        held, self._held = self._held, None
        if held is not None:
            with suppress(QueueError), self._connections.explained("abandon a batch"):
                held.rollback()  # the lock is gone when this returns
            self._connections.give_back(held)
        log.critical(
            "%s: the commit was interrupted; in doubt, for 'postcommit recover': %s",
            self._name,
            ", ".join(row["id"].hex for row in rows),
        )
        self._id = None

    def _release(self, items: Sequence[Any]) -> None:
        """Let what was called off be sent again."""
        cancelled = [item for item in items if isinstance(item, Cancellation)]
        for item in cancelled:
            item.release()
        if cancelled:
            ring(self._name)


def _insert(item: dict[str, Any], *, in_batch: bool = False) -> str:
    """Return the statement that inserts `item`."""
    names, values = _IN_BATCH if in_batch else _ALONE
    if "bulk" in item:
        names, values = names + _TERMS[0], values + _TERMS[1]
    text = _INSERT.replace("(id,", f"({names}id,", 1)
    return text.replace("(%(id)s", f"({values}%(id)s", 1)
