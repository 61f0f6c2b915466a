"""A fail-over to a synchronous standby loses nothing and sends nothing twice.

One to another standby loses the last commits, as the documentation says in bold.
"""
from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
import sqlalchemy
import transaction
import zope.sqlalchemy
from sqlalchemy import orm
from tests.support.mailers import ScriptedMailer
from tests.support.postgres import Cluster
from tests.support.postgres import why_not
from tests.support.service import eventually
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner
from tests.support.transactions import begun
from tests.support.transactions import mail
from ZODB.DB import DB
from ZODB.MappingStorage import MappingStorage

from postcommit import OutboxMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._config.database import parse_database_url
from postcommit._maildir.item import EntryState
from postcommit._postgres import checking
from postcommit._postgres.operators import PostgresOperators
from postcommit.errors import PublishError
from postcommit.errors import QueueError


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())


class Standby(Cluster):
    """A copy of a running server, which follows it."""

    def __init__(self, primary: Cluster) -> None:
        super().__init__()
        shutil.rmtree(self.data)
        place = primary.conninfo.removesuffix("/postgres")
        self.run("pg_basebackup", "-R", "-D", self.data, "-d", place)

    def promote(self) -> None:
        self.run("pg_ctl", "promote", "-w", "-D", self.data)


    def fall_behind(self) -> None:
        """Receive nothing more from the primary."""
        with self.connect() as connection:
            connection.execute("alter system set primary_conninfo = ''")
            connection.execute("select pg_reload_conf()")
            receivers = "select from pg_stat_wal_receiver"
            eventually(lambda: not connection.execute(receivers).fetchall())


@pytest.fixture
def servers() -> Iterator[tuple[Cluster, Standby]]:
    """A server, and a standby that it does not wait for."""
    primary = Cluster()
    primary.start()
    standby = Standby(primary)
    standby.start()
    yield primary, standby
    for server in (primary, standby):
        server.stop()


@pytest.fixture
def pair(servers: tuple[Cluster, Standby]) -> tuple[Cluster, Standby]:
    """A server, and a standby that each of its commits waits for."""
    with servers[0].connect() as connection:
        connection.execute("alter system set synchronous_standby_names = '*'")
        connection.execute("select pg_reload_conf()")
    return servers


def url_of(primary: Cluster, standby: Cluster, schema: str) -> str:
    """Return the URL of a queue on the server of both that takes writes."""
    places = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    url = f"postgresql://postgres@{places}/postgres?target_session_attrs=read-write"
    return f"{url}&postcommit_schema={schema}"


@pytest.mark.slow
def test_a_fail_over(
    pair: tuple[Cluster, Standby], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standby = pair
    schema = primary.new_queue().partition("postcommit_schema=")[2]
    url = url_of(primary, standby, schema)
    monkeypatch.setattr(checking, "_BEHIND", -1)
    found = [finding.problem for finding in PostgresOperators(url).check()]
    assert any("has a standby" in problem for problem in found)
    accepted: list[str] = []
    is_over, pause = threading.Event(), threading.Event()

    def send() -> None:
        with begun("explicit") as manager:
            delivery = QueuedMailDelivery(url, transaction_manager=manager)
            number = 0
            while not is_over.is_set():
                number += 1
                if number % 2:
                    manager.get().join(Partner(BEFORE))
                try:
                    delivery.send("", "bob@example.org", mail(f"{number}@x.org"))
                    manager.commit()
                    accepted.append(f"{number}@x.org")
                except PublishError:
                    accepted.append(f"{number}@x.org")
                    manager.abort()
                except QueueError:
                    manager.abort()
                    pause.wait(0.05)
                manager.begin()

    mailer = ScriptedMailer()
    processor = QueueProcessor(url, mailer, workers=2)
    processor.start()
    sender = threading.Thread(target=send)
    sender.start()
    pause.wait(1.0)
    before = len(accepted)
    primary.kill()
    standby.promote()
    with standby.connect() as connection:
        connection.execute("alter system set synchronous_standby_names = ''")
        connection.execute("select pg_reload_conf()")
    pause.wait(1.5)
    is_over.set()
    sender.join()
    assert len(accepted) > before > 5
    with standby.connect() as connection:
        old = f"update {schema}.batch set voted = voted - interval '1 minute'"
        connection.execute(old.encode())
        operators = PostgresOperators(url)
        with operators.changes() as changes:
            doubts = list(operators.items([EntryState.IN_DOUBT]))
            list(changes.recover(doubts, send=True))
        left = f"select count(*) from {schema}.entry".encode()
        for _ in range(600):
            if connection.execute(left).fetchone() == (0,):
                break
            pause.wait(0.05)
    assert processor.stop(30)
    sent = Counter(name for name, _ in mailer.sent)
    assert set(accepted) <= set(sent), "lost"
    assert max(sent.values()) == 1, "twice"


def test_a_standby_is_seen_with_the_right_to_see_it_only(
    servers: tuple[Cluster, Standby],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(checking, "_BEHIND", -1)
    primary = servers[0]
    url = primary.new_queue()
    schema = parse_database_url(url).schema
    url = url.replace("//postgres@", "//drainer@")

    def sees_it() -> bool:
        found = [finding.problem for finding in PostgresOperators(url).check()]
        return any("has a standby" in problem for problem in found)

    with primary.connect() as connection:
        for statement in (
            "create role drainer login",
            f"grant usage on schema {schema} to drainer",
            f"grant all on all tables in schema {schema} to drainer",
        ):
            connection.execute(statement.encode())
        assert not sees_it()
        assert "standbys that are behind, cannot be seen" in caplog.text
        connection.execute("grant pg_read_all_stats to drainer")
        eventually(sees_it)


def test_a_standby_that_is_behind_loses_the_last_mails(
    servers: tuple[Cluster, Standby],
) -> None:
    """Those of the outbox together with their data, those of a ZODB without them."""
    primary, standby = servers
    schema = primary.new_queue().partition("postcommit_schema=")[2]
    url = url_of(primary, standby, schema)
    db = DB(MappingStorage())
    engine = sqlalchemy.create_engine(primary.conninfo.replace(":", "+psycopg:", 1))
    session = orm.Session(engine)
    zope.sqlalchemy.register(session)
    queued = QueuedMailDelivery(url)
    outbox = OutboxMailDelivery(session, schema=schema)
    orders = f"{schema}.orders"
    with primary.connect() as connection:
        connection.execute(f"create table {orders} (name text)".encode())

    def order(number: int) -> None:
        with transaction.manager:
            connection = db.open()
            connection.root()[f"zodb {number}"] = True
            queued.send("", "bob@example.org", mail(f"zodb.{number}@x.org"))
        connection.close()
        with transaction.manager:
            insert = sqlalchemy.text(f"insert into {orders} values (:name)")
            session.execute(insert, {"name": f"sql {number}"})
            outbox.send("", "bob@example.org", mail(f"sql.{number}@x.org"))

    def found(server: Cluster) -> tuple[list[str], list[str]]:
        with server.connect() as connection:
            names = f"select name from {orders} order by 1".encode()
            mails = f"select message_id from {schema}.entry order by 1".encode()
            return (
                [name for (name,) in connection.execute(names)],
                [name for (name,) in connection.execute(mails)],
            )

    order(1)
    first = (["sql 1"], ["sql.1@x.org", "zodb.1@x.org"])
    eventually(lambda: found(standby) == first)
    standby.fall_behind()
    order(2)
    assert len(found(primary)[1]) == 4
    primary.kill()
    standby.promote()
    assert found(standby) == first
    with db.transaction() as connection:
        assert sorted(connection.root()) == ["zodb 1", "zodb 2"]
    mailer = ScriptedMailer()
    assert QueueProcessor(url, mailer).flush().sent == 2
    assert sorted(name for name, _ in mailer.sent) == first[1]
    engine.dispose()
    db.close()
