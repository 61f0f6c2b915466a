"""The contestants that drain a table of PostgreSQL, or a queue on disk.

``python -m tests.benchmarks.rowdrainers KIND OPTIONS``, see
``tests.benchmarks.rowdrain``. Each has one or more processes of its own.
"""
from __future__ import annotations

import argparse
import os
import smtplib
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from contextlib import contextmanager
from typing import Any

from tests.benchmarks.measured import measured


# Sends all that is in the queue, with one process of several.
Drain = Callable[[], object]

# Number of tasks that a worker of procrastinate has at once.
_CONCURRENCY = 8

# Maximum number of rows that the limit claims at once, as postcommit does.
_MOST = 8


def postcommit(options: argparse.Namespace) -> Drain:
    """A processor on a URL or a folder."""
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    mailer = SMTPMailer("127.0.0.1", options.port)
    processor = QueueProcessor(options.queue, mailer, workers=options.workers)
    return processor.flush


# procrastinate


def app(conninfo: str, port: int, *, keeps: bool) -> Any:
    """Return an application with the task ``send``.

    Each task connects to the relay, or each thread `keeps` its connection.
    """
    import procrastinate

    connector = procrastinate.PsycopgConnector(conninfo=conninfo)
    made = procrastinate.App(connector=connector)
    threads = threading.local()

    @made.task(name="send")
    def send(sender: str, recipient: str, message: str) -> None:
        if not keeps:
            with smtplib.SMTP("127.0.0.1", port) as connection:
                connection.sendmail(sender, [recipient], message)
            return
        if not hasattr(threads, "connection"):
            threads.connection = smtplib.SMTP("127.0.0.1", port)
        threads.connection.sendmail(sender, [recipient], message)

    return made


def procrastinate(options: argparse.Namespace, *, keeps: bool = False) -> Drain:
    """A worker of procrastinate, which connects to the relay for each mail."""
    made = app(options.conninfo, options.port, keeps=keeps)

    def drain() -> None:
        with made.open():
            made.run_worker(
                concurrency=_CONCURRENCY, wait=False, install_signal_handlers=False
            )

    return drain


def tasks(options: argparse.Namespace) -> None:
    """Make the tables of procrastinate, and a task for each mail."""
    from tests.benchmarks.message import MESSAGE

    made = app(options.conninfo, options.port, keeps=False)
    values = {"sender": "sender@example.org", "recipient": "recipient@example.org"}
    with made.open():
        made.schema_manager.apply_schema()
        made.tasks["send"].batch_defer(
            *({**values, "message": MESSAGE.decode()} for _ in range(options.count))
        )


def keeping(options: argparse.Namespace) -> Drain:
    """The same with a connection that is kept."""
    return procrastinate(options, keeps=True)


# The limits


_TAKE = """with due as materialized (
    select id from {schema}.entry where state = 'queued' and holder is null and rank = 0
    order by due limit %(most)s for update skip locked)
update {schema}.entry e set holder = %(me)s from due where e.id = due.id
returning e.id, e.sender, e.recipients, e.message"""

_FINISH = "delete from {schema}.entry where id = %(id)s and holder = %(me)s"

_ENVELOPE = "MAIL FROM:<{}>\r\nRCPT TO:<{}>\r\nDATA\r\n"

_REGISTER = "insert into {schema}.process (id, host, pid) values (%(me)s, '', 0)"


class _Pouring:
    """Claims, sends in a pipeline, and removes each row when its reply is there."""

    def __init__(self, options: argparse.Namespace) -> None:
        import uuid

        import psycopg

        from postcommit._config.database import parse_database_url

        url = parse_database_url(options.queue)
        self._schema = url.schema
        self._database = psycopg.connect(
            url.conninfo, autocommit=True, prepare_threshold=None
        )
        self.me = uuid.uuid4()
        self._port = options.port
        self.execute(_REGISTER)

    def execute(self, statement: str, **values: Any) -> Any:
        text = statement.replace("{schema}", self._schema).encode()
        return self._database.execute(text, {"me": self.me, **values}, binary=True)

    def drain(self) -> None:
        relay = socket.create_connection(("127.0.0.1", self._port))
        with closing(relay), closing(self._database):
            relay.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            replies = relay.makefile("rb")
            _expect(replies, b"2")
            relay.sendall(b"HELO x\r\n")
            before, expected = b"", b"2223"
            accepted: list[Any] = []
            while rows := self.execute(_TAKE, most=_MOST).fetchall():
                for id, sender, [recipient], message in rows:
                    envelope = _ENVELOPE.format(sender, recipient).encode()
                    relay.sendall(before + envelope)
                    _expect(replies, expected)
                    self._finish(accepted)
                    accepted = [id]
                    before = message.replace(b"\n", b"\r\n") + b"\r\n.\r\n"
            relay.sendall(before)
            _expect(replies, b"2")
            self._finish(accepted)

    def _finish(self, ids: list[Any]) -> None:
        for id in ids:
            self.execute(_FINISH, id=id)


def _expect(replies: Any, digits: bytes) -> None:
    """Read replies of one line each; their first digits are `digits`."""
    for digit in digits:
        line = replies.readline()
        assert line[:1] == bytes([digit]), line


def raw(options: argparse.Namespace) -> Drain:
    """The least that Python does with psycopg and a socket."""
    return _Pouring(options).drain


KINDS: dict[str, Callable[[argparse.Namespace], Drain]] = {
    one.__name__: one for one in (postcommit, procrastinate, keeping, raw)
}


def work(options: argparse.Namespace) -> None:
    """Drain with several processes, and tell how long all of it took."""
    also = _account(options)
    begin = in_processes(lambda: KINDS[options.kind](options), options.processes)
    with measured(options.count, by_child=True, also=also):
        begin()


def in_processes(make: Callable[[], Drain], count: int) -> Callable[[], None]:
    """Make work in each of `count` processes. Return what lets it begin, and waits."""
    begin, go = os.pipe()
    ready, is_ready = os.pipe()
    children = []
    for _ in range(count):
        child = os.fork()
        if not child:
            os.close(go)
            with _ending():
                drain = make()
                os.write(is_ready, b"x")
                os.read(begin, 1)  # until all are there
                drain()
        children.append(child)
    os.close(is_ready)
    for _ in children:
        assert os.read(ready, 1), "a process did not begin"

    def run() -> None:
        os.close(go)
        for child in children:
            assert os.waitpid(child, 0)[1] == 0

    return run


def _account(
    options: argparse.Namespace,
) -> Callable[[], dict[str, tuple[str, float]]]:
    """Return what tells about a table, at the end; nothing about other places."""
    if not options.queue.startswith("postgresql:"):
        return dict
    from tests.benchmarks.databases import Account

    return Account(options.queue, options.count).figures


@contextmanager
def _ending() -> Iterator[None]:
    """End this process after the body."""
    status = 1
    try:
        yield
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=[*KINDS, tasks.__name__])
    parser.add_argument("--queue", default="", help="a URL or a folder")
    parser.add_argument("--conninfo", default="", help="of the database of tasks")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.kind == tasks.__name__:
        tasks(options)
    else:
        work(options)


if __name__ == "__main__":
    main()
