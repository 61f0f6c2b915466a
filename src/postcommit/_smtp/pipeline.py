"""Drives the SMTP dialogue over connections. Bytes are moved here, and only here."""
from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any
from typing import Protocol

from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._mailers.base import Pipeline
from postcommit._smtp.connection import Connection
from postcommit._smtp.connection import Relay
from postcommit._smtp.dialogue import Account
from postcommit._smtp.dialogue import Dialogue
from postcommit.errors import RelayError
from postcommit.errors import TooManyConnections
from postcommit.interfaces import Outgoing


class Connections(Protocol):
    """Lends connections. `messages` is the maximum number of messages for each."""

    relay: Relay
    messages: int
    pipelining: bool

    def checkout(self, *, fresh: bool = False) -> Connection:
        """Return a connection. With `fresh`, it was never used.

        Raises `RelayError` if the relay cannot be reached.
        """

    def checkin(self, connection: Connection, *, keep: bool = True) -> None:
        """Take back a connection between two messages. Without `keep`, close it."""

    def discard(self, connection: Connection, *, is_lost: bool = True) -> None:
        """Take back a connection that cannot be used any more.

        `is_lost` says that this is due to the relay.
        """

    def wait(self, deadline: float) -> bool:
        """Wait until `deadline` for a connection that is lent to another thread.

        Return whether it is worth trying to get one.
        """


def checkout(pool: Connections, *, fresh: bool, waits: bool) -> Connection:
    """Return a connection, see `Connections.checkout`.

    If the relay refuses one more and `waits` is true, wait for another thread's
    connection as long as connecting may take. One that has just come back need not be
    `fresh`.
    """
    deadline = None
    while True:
        try:
            return pool.checkout(fresh=fresh and deadline is None)
        except TooManyConnections:
            if not waits:
                raise
            if deadline is None:
                deadline = time.monotonic() + pool.relay.timeouts.connect
            if not pool.wait(deadline):
                raise


class SMTPPipeline(Pipeline):
    """Transmits messages over connections of a pool. See `IPipeline`.

    `recipients` is the maximum number for one transmission. A message with more of
    them is transmitted several times, each time to others. With `dsn`, the relay is
    asked for notifications with the header only, and with the message id (RFC 3461).
    """

    def __init__(
        self, pool: Connections, *, recipients: int = sys.maxsize, dsn: bool = False
    ) -> None:
        self._pool = pool
        self._connection: Connection | None = None
        self._dsn = dsn
        self._dialogue = Dialogue(messages=pool.messages, recipients=recipients)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._connection is not None or self._dialogue.upcoming:
            self._give_up(error or InterruptedError("given up"))

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        """Wait until `mail` is on the wire, or has its report. See `IPipeline`."""
        self._dialogue.offer(Account(mail, key, dsn=self._dsn))
        while self._dialogue.upcoming:
            self._advance()

    def completed(self) -> Iterator[tuple[Any, DeliveryReport]]:
        """Yield the reports that are complete. See `IPipeline`."""
        return self._dialogue.completed()

    def drain(self) -> Iterator[tuple[Any, DeliveryReport]]:
        """Wait for all replies, and yield the reports. See `IPipeline`."""
        yield from self._dialogue.completed()
        while self._connection is not None or self._dialogue.upcoming:
            self._advance()
            yield from self._dialogue.completed()

    def _advance(self) -> None:
        """Go on for about one round trip."""
        dialogue = self._dialogue
        try:
            if dialogue.failure is not None:
                dialogue.failed(dialogue.failure)
            elif self._connection is None:
                fresh = dialogue.upcoming[0].has_moved
                try:
                    self._connection = checkout(
                        self._pool, fresh=fresh, waits=self.waits
                    )
                    dialogue.link = self._connection
                except RelayError as error:
                    dialogue.failed(error)
            else:
                self._converse(self._connection)
        except Exception as error:
            self._give_up(error)
            raise

    def _converse(self, connection: Connection) -> None:
        """Listen, then speak."""
        dialogue = self._dialogue
        is_lost = True
        try:
            for stage in dialogue.awaited():
                dialogue.receive(connection.read(stage))
                if dialogue.link is None:
                    break
            else:
                if stray := connection.stray:
                    text = f"the relay is out of step: a reply too many: {stray}"
                    raise RelayError(text)
                data = dialogue.data_to_send()
                if data:
                    connection.write(data)
                is_lost = dialogue.link is not None  # otherwise it has ended this
        except OSError as error:
            dialogue.lost(error, connection.sent, self._last_words(connection))
        if dialogue.link is None:
            if not dialogue.pipelining:
                self._pool.pipelining = False
            self._pool.discard(connection, is_lost=is_lost)
            self._connection = None
        elif not dialogue.awaited():
            dialogue.link = self._connection = None
            # The relay may take fewer messages on a connection than the pool allows.
            is_used_up = connection.messages >= dialogue.most_messages
            self._pool.checkin(connection, keep=not is_used_up)

    def _last_words(self, connection: Connection) -> Reply | None:
        """Return what has come of the reply to the final dot, if anything.

        The relay may have said why it cut off a final dot, or its reply may have
        broken off in the text.
        """
        if not self._dialogue.ends_early(connection.sent):
            return connection.begun
        try:
            return connection.read_hastily()
        except OSError:
            return None

    def _give_up(self, error: BaseException) -> None:
        """Account for what is under way, and close its connection."""
        self._dialogue.broken(error)
        if self._connection is not None:
            self._pool.discard(self._connection, is_lost=False)
            self._connection = None
