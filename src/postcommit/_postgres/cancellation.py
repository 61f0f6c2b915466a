"""Calls mail off: its rows are locked until the transaction of the sender has ended.

A take passes over a locked row. The vote deletes the rows, the finish commits that, and
an abort unlocks them. If the connection or the process ends before the vote, the vote
fails. If it ends between the vote and the finish, the server unlocks the rows, and the
mail is sent.

All cancellations of one transaction share a connection. Each begins with a savepoint,
so that the application can roll back to one of its own savepoints.
"""
from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from typing import cast

from postcommit._log import Log
from postcommit._postgres.connections import Connection
from postcommit._postgres.connections import Connections
from postcommit.errors import QueueError


log = Log("postcommit.postgres.cancellation")

_LOCK = """
select id from {schema}.entry
where message_id = %(message_id)s and holder is null and state in ('queued', 'held')
    and id <> all(%(ours)s::uuid[])
for update skip locked"""

_DELETE = "delete from {schema}.entry where id = any(%(ids)s::uuid[])"


class Locks:
    """The locked rows of one transaction.

    There is a savepoint for each call that has found rows. `depth` is their number. The
    connection is kept while there is one.
    """

    def __init__(self, connections: Connections) -> None:
        self._ids: list[list[uuid.UUID]] = []  # by savepoint
        self._connections = connections
        self._process = os.getpid()
        self._held: Connection | None = None

    @property
    def depth(self) -> int:
        return len(self._ids)

    def lock(self, message_id: str) -> list[uuid.UUID]:
        """Lock what waits of a message, and return its rows. Raises `QueueError`.

        Rows that are locked already are left out.
        """
        connections = self._connections
        held = self._held or connections.take()
        try:
            with connections.explained("look for the mail"):
                if self._held is None:
                    held.execute(b"begin isolation level read committed")
                held.execute(f"savepoint s{self.depth}".encode())
                ours = [id for ids in self._ids for id in ids]
                values = {"message_id": message_id, "ours": ours}
                found = held.execute(connections.sql(_LOCK), values).fetchall()
        except BaseException:
            if self._held is None:
                held.close()
            else:
                self._roll_back(self._held)
            raise
        ids = [id for (id,) in found]
        if ids:
            self._held = held
            self._ids.append(ids)
        elif self._held is None:
            self._held = held
            self._end()
        return ids

    def delete(self, ids: Sequence[uuid.UUID]) -> None:
        """Delete rows, which takes effect with `commit`. Raises `QueueError`."""
        held = cast(Connection, self._held)  # there are rows, so it is kept
        with self._connections.explained("remove what was called off"):
            held.execute(self._connections.sql(_DELETE), {"ids": ids})

    def commit(self, ids: Sequence[uuid.UUID]) -> None:
        """Commit. Raises `QueueError`, and logs that the mail may be sent."""
        held, self._held, self._ids = cast(Connection, self._held), None, []
        try:
            with self._connections.explained("remove what was called off"):
                held.execute(b"commit")
        except QueueError as error:
            text = "%s: was called off, but cannot be removed and may be sent: %s"
            log.critical(text, ", ".join(id.hex for id in ids), error)
            raise
        finally:
            self._connections.give_back(held)

    def release(self, depth: int) -> None:
        """Unlock what was locked at this depth, and later. Never raises.

        May be called again.
        """
        if self._held is None or os.getpid() != self._process or depth >= self.depth:
            return
        del self._ids[depth:]
        if depth:
            self._roll_back(self._held)
        else:
            self._end()

    def _roll_back(self, held: Connection) -> None:
        """Roll back to the savepoint of this depth.

        If this fails, the connection is lost, and with it all locks: the vote fails.
        """
        with suppress(QueueError), self._connections.explained("release the entries"):
            held.execute(f"rollback to savepoint s{self.depth}".encode())

    def _end(self) -> None:
        held, self._held = cast(Connection, self._held), None
        explained = self._connections.explained("release the entries")
        with suppress(QueueError), explained:
            held.execute(b"rollback")
        self._connections.give_back(held)


class Cancellation:
    """An item of a batch: rows that are deleted when the batch is published.

    `staged` are rows of the same transaction, which are not inserted then.
    """

    def __init__(
        self, locks: Locks, message_id: str, staged: Sequence[dict[str, Any]]
    ) -> None:
        self.staged = list(staged)
        self.locks = locks
        self._depth = locks.depth
        self.ids = locks.lock(message_id)

    def __bool__(self) -> bool:
        """Return whether anything is called off."""
        return bool(self.ids or self.staged)

    def release(self) -> None:
        """Unlock the rows. Never raises. May be called again."""
        if self.ids:
            self.locks.release(self._depth)


def prepare(cancelled: Iterable[Cancellation]) -> None:
    """Delete the rows, without a commit. Raises `QueueError`."""
    for locks, ids in _by_locks(cancelled).items():
        locks.delete(ids)


def apply(cancelled: Iterable[Cancellation]) -> None:
    """Commit what `prepare` has done. Raises the first error when all were tried."""
    failure: QueueError | None = None
    for locks, ids in _by_locks(cancelled).items():
        try:
            locks.commit(ids)
        except QueueError as error:
            failure = failure or error
    if failure is not None:
        raise failure


def _by_locks(cancelled: Iterable[Cancellation]) -> dict[Locks, list[uuid.UUID]]:
    found: dict[Locks, list[uuid.UUID]] = {}
    for each in cancelled:
        if each.ids:
            found.setdefault(each.locks, []).extend(each.ids)
    return found


def split(
    items: Sequence[Any],
) -> tuple[list[dict[str, Any]], list[Cancellation]]:
    """Return the rows of `items` that are not called off, and the cancellations."""
    cancelled = [item for item in items if isinstance(item, Cancellation)]
    called_off = {row["id"] for each in cancelled for row in each.staged}
    rows = (item for item in items if not isinstance(item, Cancellation))
    return [row for row in rows if row["id"] not in called_off], cancelled
