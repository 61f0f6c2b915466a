"""The disk of the database is full: no accepted mail is lost, and none is sent twice.

Either the tables have no room, and single statements fail. Or the log has none, and the
server goes down. Most transactions fail before anything is decided. The finish writes
rows, too, so it may fail when others have committed. Then the entries are in doubt.
"""
from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from tests.functional.servers import public_folder
from tests.support.mailers import ScriptedMailer
from tests.support.postgres import Cluster
from tests.support.postgres import cluster
from tests.support.postgres import why_not
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner
from tests.support.transactions import begun
from tests.support.transactions import mail

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._config.database import parse_database_url
from postcommit._maildir.item import EntryState
from postcommit._postgres import queue as module
from postcommit._postgres.operators import PostgresOperators
from postcommit._postgres.schema import migrate
from postcommit.errors import PublishError
from postcommit.errors import QueueError


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

# Number of bytes of a message: a dozen of them need a new segment of the log.
_LARGE = 1 << 20

# Number of mails that a test sends at most until the disk is full.
_MOST = 200


@contextmanager
def disk(megabytes: int) -> Iterator[Path]:
    """Yield a folder for the server, on a file system of this size."""
    with public_folder("disk") as folder:
        options = ["-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "none"]
        if subprocess.run(["mount", *options, str(folder)], check=False).returncode:
            pytest.skip("may not mount a file system")
        try:
            shutil.chown(folder, "postgres", "postgres")
            yield folder
        finally:
            subprocess.run(["umount", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=400m", str(folder)], check=True)


class Sender:
    """Sends large mails, half of them beside another resource."""

    def __init__(self, url: str) -> None:
        self.accepted: list[str] = []
        self.failed: list[str] = []
        self.unknown: list[str] = []
        self._url = url

    def send(self) -> QueueError | None:
        """Send one in a transaction. Return why it failed, or None."""
        sent = self.accepted + self.failed + self.unknown
        name = f"{len(sent)}@x.org"
        decided: list[str] = []
        with begun("explicit") as manager:
            delivery = QueuedMailDelivery(self._url, transaction_manager=manager)
            if len(sent) % 2:
                partner = Partner(BEFORE, tpc_finish=lambda: decided.append(name))
                manager.get().join(partner)
            try:
                delivery.send("", "bob@example.org", mail(name) + b"x" * _LARGE)
                manager.commit()
            except PublishError:
                self.accepted.append(name)  # the others have committed
                return None
            except QueueError as error:
                manager.abort()
                assert not decided
                is_known = "may have been" not in str(error)
                (self.failed if is_known else self.unknown).append(name)
                return error
        self.accepted.append(name)
        return None

    def fill(self) -> QueueError:
        """Send until one fails, and return its error."""
        for _ in range(_MOST):
            if error := self.send():
                return error
        raise AssertionError("the disk is not full")


def drained(url: str, place: str) -> Counter[str]:
    """Send all that is in the queue, also what is in doubt."""
    with psycopg.connect(place, autocommit=True) as connection:
        schema = parse_database_url(url).schema
        old = f"update {schema}.batch set voted = voted - interval '1 minute'"
        connection.execute(old.encode())
    operators = PostgresOperators(url)
    with operators.changes() as changes:
        doubts = list(operators.items([EntryState.IN_DOUBT]))
        assert list(changes.recover(doubts, send=True)) == doubts
    mailer = ScriptedMailer()
    QueueProcessor(url, mailer).flush()
    return Counter(name for name, _ in mailer.sent)


def check(sender: Sender, sent: Counter[str]) -> None:
    assert sender.accepted
    assert sender.failed or sender.unknown
    assert set(sender.accepted) <= set(sent), "lost"
    assert not set(sent) & set(sender.failed)
    assert max(sent.values()) == 1, "twice"


def test_no_room_for_the_tables() -> None:
    server = cluster()
    place = server.conninfo.removesuffix("postgres") + "small"
    with disk(40) as folder, server.connect() as connection:
        connection.execute(f"create tablespace full_disk location '{folder}'".encode())
        try:
            connection.execute("create database small tablespace full_disk")
            migrate(parse_database_url(place))
            sender = Sender(place)
            for _ in range(6):
                error = sender.fill()
                assert error.is_full
                assert error.scope == "queue"
            with psycopg.connect(place) as other:
                [(count,)] = other.execute("select count(*) from postcommit.entry")
            assert count == len(sender.accepted)
            with suppress(QueueError):  # a claim writes, too
                QueueProcessor(place, ScriptedMailer()).flush()
            enlarge(folder)
            sent = drained(place, place)
            assert not sender.unknown
            check(sender, sent)
        finally:
            connection.execute("drop database if exists small with (force)")
            connection.execute("drop tablespace full_disk")


def test_no_room_for_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 1.0)
    server = Cluster()
    log = server.data / "pg_wal"
    with disk(64) as folder:
        shutil.copytree(log, folder, dirs_exist_ok=True)
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, "postgres", "postgres")
        shutil.rmtree(log)
        log.symlink_to(folder)
        server.start()
        try:
            url = server.new_queue()
            sender = Sender(url)
            sender.fill()
            for _ in range(3):
                sender.send()  # the server is down, or starts again
            server.kill()
            enlarge(folder)
            server.start()
            check(sender, drained(url, server.conninfo))
            assert "No space left" in (server.folder / "log").read_text()
        finally:
            server.stop()
