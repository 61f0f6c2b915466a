"""Wakes a drain by NOTIFY, if ``postcommit migrate --notify`` has asked for it.

A trigger on the table of entries notifies, whoever accepts an entry: a delivery, an
outbox, or another program. It is off by default, because commits with a NOTIFY wait for
each other: each takes a lock of the whole cluster, that is all databases of the server.
A drain looks once a second, with or without it.

LISTEN is state of a session. So a thread has a connection of its own for it. Behind a
pooler it does not listen, and logs a warning. A pooler is recognised by the process id:
the client was told another number at its login than the server says.
"""
from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from postcommit._log import Log
from postcommit._postgres.connections import Connection
from postcommit._postgres.connections import Connections
from postcommit.errors import QueueError


log = Log("postcommit.postgres.listening")

# The channel of all queues of a database. The payload is the schema of a queue.
_CHANNEL = "postcommit"

# Seconds between two attempts to listen, and for which `close` waits for the thread.
_PAUSE = 5.0
_PATIENCE = 5.0

ON = """
create or replace function {schema}.notify() returns trigger language plpgsql as $$
begin
    perform pg_notify('postcommit', tg_table_schema::text);
    return null;
end $$;
drop trigger if exists notify on {schema}.entry;
create trigger notify after insert or update of state on {schema}.entry
    for each row when (new.state = 'queued') execute function {schema}.notify()"""

OFF = """
drop trigger if exists notify on {schema}.entry;
drop function if exists {schema}.notify()"""

_IS_ON = """
select exists (select from pg_trigger
    where tgrelid = '{schema}.entry'::regclass and tgname = 'notify')"""


def is_on(connections: Connections) -> bool:
    """Return whether the queue notifies of its entries."""
    [(found,)] = connections.rows(_IS_ON, doing="look for the trigger")
    return bool(found)


class Listener:
    """Calls `ring` when an entry of the queue with this `schema` is accepted.

    It uses a connection from `start` to `close`. Trouble is logged.
    """

    def __init__(
        self, connections: Connections, schema: str, ring: Callable[[], None]
    ) -> None:
        self._connections = connections
        self._schema = schema
        self._ring = ring
        self._is_over = threading.Event()
        self._is_failing = False
        self._thread = threading.Thread(
            target=self._run, name="postcommit-listen", daemon=True
        )

    def start(self) -> None:
        """Begin to listen, in a thread. Raises `QueueError`, or RuntimeError."""
        with self._connections.explained("listen"):
            # A byte in this pair ends the wait for the server.
            self._waiting, self._ending = socket.socketpair()
        self._thread.start()

    def _run(self) -> None:
        with self._waiting, self._ending:
            while not self._is_over.is_set() and self._listens():
                self._is_over.wait(_PAUSE)

    def _listens(self) -> bool:
        """Listen until the end, or until the connection is lost.

        Return False if it is not possible.
        """
        try:
            return self._listen()
        except QueueError as error:
            if not self._is_failing:
                self._is_failing = True
                log.warning("does not listen until the database is back: %s", error)
            return True

    def _listen(self) -> bool:
        """Listen until the end. Return False if it is not possible.

        Raises `QueueError` if the connection is lost.
        """
        connection = self._connections.take()
        try:
            with self._connections.explained("listen"):
                if _is_behind_pooler(connection):
                    text = "%s: LISTEN does not work behind a pooler; new entries are"
                    text += " looked for once a second"
                    log.warning(text, self._connections.name)
                    return False
                connection.add_notify_handler(self._on_notify)
                connection.execute(f"listen {_CHANNEL}".encode())
                self._is_failing = False
                self._ring()  # for what was accepted before
                self._wait(connection)
        finally:
            connection.close()
        return True

    def _wait(self, connection: Connection) -> None:
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        poll.register(self._waiting.fileno(), select.POLLIN)
        while not self._is_over.is_set():
            poll.poll()
            if not self._is_over.is_set():
                connection.execute(b"select")  # calls the handler

    def _on_notify(self, notify: Any) -> None:
        if notify.payload == self._schema:
            self._ring()

    def close(self) -> None:
        """End the thread and its connection. Never raises."""
        self._is_over.set()
        with suppress(OSError):  # it may have ended
            self._ending.send(b"\0")
        self._thread.join(_PATIENCE)
        self._connections.close()


def _is_behind_pooler(connection: Connection) -> bool:
    [pid] = connection.execute(b"select pg_backend_pid()").fetchone() or (0,)
    return bool(pid != connection.info.backend_pid)
