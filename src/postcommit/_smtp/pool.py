"""The connections of a mailer: used by one message after the other."""
from __future__ import annotations

import threading
import time
from collections import deque

from postcommit import _forks as forks
from postcommit._smtp.connection import Connection
from postcommit._smtp.connection import Relay
from postcommit._smtp.connection import connect


class Pool:
    """Connections to `relay`, kept for `idle_timeout` seconds while they are idle.

    A connection is closed after `messages` messages. Threads may share a pool. A
    connection is lent to one thread at a time. A child process starts with an empty
    pool, because the connections belong to its parent.
    """

    def __init__(
        self, relay: Relay, *, messages: int, idle_timeout: float, pipelining: bool
    ) -> None:
        self.messages = messages
        self.pipelining = pipelining
        self._relay = relay
        self._idle_timeout = idle_timeout
        self._begin()
        forks.register(self, Pool._forget)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._idle: deque[tuple[float, Connection]] = deque()
        self._busy: set[Connection] = set()
        self._sweeper: threading.Thread | None = None

    def checkout(self, *, fresh: bool = False) -> Connection:
        """Return a connection. With `fresh`, it was never used.

        The connection that was used last is used next, so that the others grow old.
        Raises `RelayError` if the relay cannot be reached.
        """
        connection = None
        while connection is None and not fresh:
            with self._changed:
                if not self._idle:
                    break
                since, connection = self._idle.pop()
                self._busy.add(connection)
            is_overdue = time.monotonic() - since >= self._idle_timeout
            if is_overdue or not connection.is_quiet:
                self.discard(connection)
                connection = None
        if connection is None:
            connection = connect(self._relay)
            try:
                connection.greet()
            except BaseException:
                connection.close()
                raise
            with self._changed:
                self._busy.add(connection)
        # It may have been switched off since the connection was opened.
        connection.pipelining &= self.pipelining
        return connection

    def checkin(self, connection: Connection) -> None:
        """Take back a connection between two messages."""
        with self._changed:
            was_closed = connection not in self._busy  # by close()
            self._busy.discard(connection)
            is_used_up = connection.messages >= self.messages
            keep = not (was_closed or is_used_up) and self._idle_timeout > 0
            if keep:
                self._idle.append((time.monotonic(), connection))
                if self._sweeper is None:
                    sweeper = threading.Thread(target=self._sweep, daemon=True)
                    try:
                        sweeper.start()
                    except RuntimeError:
                        # No thread to be had, as when the interpreter exits. The
                        # message was sent, and `checkout` looks at the age as well.
                        pass
                    else:
                        self._sweeper = sweeper
        if not keep:
            connection.quit()

    def discard(self, connection: Connection) -> None:
        """Take back a connection that cannot be used any more."""
        with self._changed:
            self._busy.discard(connection)
        connection.close()

    def close(self) -> None:
        """Close the idle connections now, the others when they are taken back."""
        with self._changed:
            idle = [connection for _, connection in self._idle]
            self._idle.clear()
            self._busy.clear()
            self._changed.notify()
        for connection in idle:
            connection.quit()

    def _sweep(self) -> None:
        """Close connections that were idle for long, until none is left (a thread)."""
        changed = self._changed  # `_forget` makes another condition
        while True:
            with changed:
                if not self._idle:
                    self._sweeper = None
                    return
                since, connection = self._idle[0]
                wait = since + self._idle_timeout - time.monotonic()
                if wait > 0:
                    changed.wait(wait)
                    continue
                self._idle.popleft()
            connection.quit()

    def _forget(self) -> None:
        """Forget all connections, in a child process.

        Closing them here says nothing on the wire, and leaves them to the parent. The
        lock may have been held by a thread that does not exist here.
        """
        connections = [*(connection for _, connection in self._idle), *self._busy]
        self._begin()
        for connection in connections:
            connection.close()
