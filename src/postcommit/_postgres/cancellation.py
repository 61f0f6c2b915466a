"""Calls a mail off: its rows are locked until the transaction of the sender has ended.

A take passes over a locked row. The commit deletes the rows, and an abort unlocks them.
If the connection or the process ends before, the server unlocks them, and the mail is
sent.
"""
from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from postcommit._log import Log
from postcommit._postgres.connections import Connection
from postcommit._postgres.connections import Connections
from postcommit.errors import QueueError


log = Log("postcommit.postgres.cancellation")

_LOCK = """
select id from {schema}.entry
where message_id = %(message_id)s and holder is null and state in ('queued', 'held')
for update skip locked"""

_DELETE = "delete from {schema}.entry where id = any(%(ids)s::uuid[])"


class Cancellation:
    """An item of a batch: rows that are deleted when the batch is published.

    `staged` are rows of the same transaction, which are not inserted then.
    """

    def __init__(
        self,
        connections: Connections,
        message_id: str,
        staged: Sequence[dict[str, Any]],
    ) -> None:
        self.staged = list(staged)
        self._connections = connections
        self._process = os.getpid()
        self._ids: list[uuid.UUID] = []
        self._held: Connection | None = None  # has the locks
        connection = connections.take()
        try:
            with connections.explained("look for the mail"):
                connection.execute(b"begin isolation level read committed")
                found = connection.execute(
                    connections.sql(_LOCK), {"message_id": message_id}
                )
                self._ids = [id for (id,) in found]
                if not self._ids:
                    connection.execute(b"rollback")
        except BaseException:
            connection.close()
            raise
        if self._ids:
            self._held = connection
        else:
            connections.give_back(connection)

    def __bool__(self) -> bool:
        """Return whether anything is called off."""
        return bool(self._ids or self.staged)

    def apply(self) -> None:
        """Delete the rows. Raises `QueueError`, and logs that the mail may be sent."""
        held, self._held = self._held, None
        if held is None or os.getpid() != self._process:
            return
        connections = self._connections
        try:
            with connections.explained("remove what was called off"):
                held.execute(connections.sql(_DELETE), {"ids": self._ids})
                held.execute(b"commit")
        except QueueError as error:
            text = "%s: was called off, but cannot be removed and may be sent: %s"
            log.critical(text, ", ".join(id.hex for id in self._ids), error)
            raise
        finally:
            connections.give_back(held)

    def release(self) -> None:
        """Unlock the rows. Never raises. May be called again."""
        held, self._held = self._held, None
        if held is None or os.getpid() != self._process:
            return
        connections = self._connections
        with suppress(QueueError), connections.explained("release the entries"):
            held.execute(b"rollback")
        connections.give_back(held)


def split(
    items: Sequence[Any],
) -> tuple[list[dict[str, Any]], list[Cancellation]]:
    """Return the rows of `items` that are not called off, and the cancellations."""
    cancelled = [item for item in items if isinstance(item, Cancellation)]
    called_off = {row["id"] for each in cancelled for row in each.staged}
    rows = (item for item in items if not isinstance(item, Cancellation))
    return [row for row in rows if row["id"] not in called_off], cancelled
