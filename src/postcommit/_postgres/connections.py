"""Connections to the database of a queue, and how its errors look to callers.

No state of a session is used: no settings, no advisory locks, and no prepared
statements unless the URL asks for them. So a pooler in transaction mode may be between.

A child of ``fork(2)`` takes no part in a connection of its parent. It replaces the
sockets of its copies by ``/dev/null``. Otherwise the server would not see the death of
the parent as long as the child lives.
"""
from __future__ import annotations

import errno
import functools
import os
import select
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import psycopg
from psycopg import conninfo
from psycopg.pq import TransactionStatus

from postcommit import _forks as forks
from postcommit._config.database import DatabaseURL
from postcommit._log import one_line
from postcommit.errors import QueueError


Values = Mapping[str, Any]

# Maximum number of idle connections that are kept.
_MOST_IDLE = 16

# Parameters of libpq, unless the URL has others. A server that was cut off is noticed
# after half a minute, instead of a quarter of an hour.
_PARAMETERS: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # milliseconds
    "fallback_application_name": "postcommit",
}

# SQLSTATE of a full disk, and the classes of those that concern one entry only: bad
# data, and broken constraints.
_DISK_FULL = "53100"
_OF_ONE_ENTRY = ("22", "23")

# Beginnings of the SQLSTATE of a connection that has ended: the reply may be lost.
_LOST = ("08", "57P0")

# Number of times that a prepared statement is used before the server prepares it.
_PREPARE_THRESHOLD = 5


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that closes itself when it is dropped, in its own process only."""

    process = -1

    def __del__(
        self,
        *_: Any,
        getpid: Callable[[], int] = os.getpid,
        suppress: type[suppress] = suppress,
    ) -> None:
        # Arguments, because modules may be gone at the end of the interpreter.
        with suppress(Exception):
            if self.process == getpid():
                self.close()


class Connections:
    """The connections of one queue in this process. Any thread may use them.

    `begins` says that each statement needs a BEGIN with its isolation level, because
    the role has another default than READ COMMITTED.
    """

    def __init__(self, url: DatabaseURL) -> None:
        self.name = url.name
        self.begins = False
        self._prepare_threshold = _PREPARE_THRESHOLD if url.prepares else None
        try:
            given = conninfo.conninfo_to_dict(url.conninfo)
        except psycopg.Error:
            # The text of the error may show a password.
            given = None
        if given is None:
            reason = "is not a URL of libpq; special characters are written as %XX"
            raise QueueError(url.name, reason)
        self._parameters: dict[str, Any] = {**_PARAMETERS, **given}
        self._free: list[Connection] = []
        self._all: WeakSet[Connection] = WeakSet()
        self.sql = functools.partial(_qualified, url.quoted)
        forks.register(self, Connections._forget)

    def _forget(self) -> None:
        """Drop the copies of a forked child, without a word to the server."""
        inherited = list(self._all)
        self._free, self._all = [], WeakSet()
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for connection in inherited:
            with suppress(psycopg.Error, OSError):
                os.dup2(null, connection.fileno(), inheritable=False)
        os.close(null)

    def take(self) -> Connection:
        """Return a connection that nobody else uses. Raises `QueueError`."""
        while self._free:
            with suppress(IndexError):  # another thread has taken it
                connection = self._free.pop()
                if not has_ended(connection):
                    return connection
                connection.close()
        with self.explained("connect"):
            connection = Connection.connect(
                autocommit=True,
                prepare_threshold=self._prepare_threshold,
                **self._parameters,
            )
        connection.process = os.getpid()
        connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        self._all.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next one who needs it. Never raises."""
        is_idle = connection.info.transaction_status == TransactionStatus.IDLE
        if is_idle and len(self._free) < _MOST_IDLE:
            self._free.append(connection)
        else:
            connection.close()

    @contextmanager
    def one(self, doing: str) -> Iterator[Connection]:
        """Have a connection for the body. `doing` is for the text of an error.

        Raises `QueueError` for what the database refuses.
        """
        connection = self.take()
        try:
            with self.explained(doing):
                yield connection
        finally:
            self.give_back(connection)

    @contextmanager
    def transaction(self, doing: str) -> Iterator[Connection]:
        """Have a transaction for the body, at the level READ COMMITTED."""
        with self.one(doing) as connection, connection.transaction():
            yield connection

    def rows(
        self, statement: str, values: Values | None = None, *, doing: str
    ) -> list[tuple[Any, ...]]:
        """Execute a statement in a transaction of its own, and return its rows."""
        cursor = self._execute(statement, values, doing)
        with self.explained(doing):  # a value may be none of Python
            return cursor.fetchall()

    def count(
        self, statement: str, values: Values | None = None, *, doing: str
    ) -> int:
        """Execute a statement in a transaction of its own. Return how many rows."""
        return self._execute(statement, values, doing).rowcount

    def _execute(
        self, statement: str, values: Values | None, doing: str
    ) -> psycopg.Cursor[tuple[Any, ...]]:
        sql = self.sql(statement)
        if self.begins:
            with self.transaction(doing) as connection:
                return connection.execute(sql, values, binary=True)
        with self.one(doing) as connection:
            return connection.execute(sql, values, binary=True)

    @contextmanager
    def explained(self, doing: str) -> Iterator[None]:
        """Raise `QueueError` instead of an error of psycopg, or of a socket."""
        try:
            yield
        except QueueError:
            raise
        except (psycopg.Error, OSError) as error:  # OSError: no descriptor is left
            raise failure(self.name, doing, error) from error

    def close(self) -> None:
        """Close what is idle. A later call connects again."""
        while self._free:
            with suppress(IndexError):
                self._free.pop().close()


@functools.cache
def _qualified(schema: str, statement: str) -> bytes:
    """Return a statement with the name of its schema."""
    return statement.replace("{schema}", schema).encode()


def has_ended(connection: Connection) -> bool:
    """Return whether the server has ended an idle connection."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    # The server says nothing to an idle connection, except for its end.
    return bool(poll.poll(0))


def failure(name: str, doing: str, error: psycopg.Error | OSError) -> QueueError:
    """Return the `QueueError` for an error of psycopg, or of a socket."""
    if isinstance(error, OSError):
        reason = f"cannot {doing}: {error.strerror or error}"
        return QueueError(name, reason, error, scope="queue")
    state = error.sqlstate or ""
    # The details of a server may have a whole row, with addresses and the message.
    said = one_line(error.diag.message_primary or str(error).strip())
    text = f"cannot {doing}: {said or type(error).__name__}"
    cause = OSError(errno.ENOSPC, text) if state == _DISK_FULL else None
    if state.startswith(_OF_ONE_ENTRY):
        return QueueError(name, text, cause, scope="entry")
    return QueueError(name, text, cause, scope="queue")


def is_reply_lost(error: QueueError) -> bool:
    """Return whether the statement may have taken effect, although it failed."""
    cause = error.__cause__
    if isinstance(cause, OSError):
        return True
    if not isinstance(cause, psycopg.OperationalError):
        return False
    return cause.sqlstate is None or cause.sqlstate.startswith(_LOST)
