"""The database wakes a processor by NOTIFY, if it was migrated so."""
from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable
from collections.abc import Iterator
from typing import Any

import pytest
from tests.contract.steps import ANN
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.contract.steps import stage
from tests.support import children
from tests.support.mailers import ScriptedMailer
from tests.support.postgres import cluster
from tests.support.postgresplace import PostgresPlace
from tests.support.proxy import LossyProxy
from tests.support.service import eventually
from tests.support.troubled import start_without_descriptors

from postcommit import QueueProcessor
from postcommit._cli.main import main
from postcommit._config.database import parse_database_url
from postcommit._postgres import consumer as consumers
from postcommit._postgres import listening
from postcommit._postgres.connections import Connection
from postcommit._postgres.connections import Connections
from postcommit._postgres.listening import Listener
from postcommit._postgres.operators import PostgresOperators
from postcommit._postgres.queue import PostgresQueue
from postcommit._postgres.schema import migrate


INSERT = "insert into {schema}.entry (sender, recipients, message) values "
INSERT += f"('', array['{ANN}'], 'Subject: x\n\n')"

# The sessions that listen.
LISTENERS = "from pg_stat_activity where query in ('listen postcommit', 'select')"


@pytest.fixture
def notifying(postgres: PostgresPlace) -> PostgresPlace:
    """A queue that notifies."""
    migrate(parse_database_url(postgres.url), notify=True)
    return postgres


@pytest.fixture
def heard(notifying: PostgresPlace) -> Iterator[Callable[[], list[str]]]:
    """A function that returns the queues that were notified of since the last call."""
    with cluster().connect() as connection:
        connection.execute("listen postcommit")
        found: list[str] = []
        connection.add_notify_handler(lambda notify: found.append(notify.payload))

        def heard() -> list[str]:
            # One of ours comes after all that was committed before.
            with cluster().connect() as other:
                other.execute("select pg_notify('postcommit', 'the end')")
            while "the end" not in found:
                connection.execute("select pg_sleep(0.01)")
            said = [name for name in found if name == notifying.schema]
            found.clear()
            return said

        yield heard


def test_a_row_that_can_be_sent_notifies(
    notifying: PostgresPlace, heard: Callable[[], list[str]]
) -> None:
    queue = notifying.make()
    accept(queue)
    assert heard() == [notifying.schema]
    batch = queue.batch()
    items = [stage(queue)[1] for _ in range(3)]
    batch.prepare(items)
    assert heard() == []
    batch.publish(items)
    assert heard() == [notifying.schema]
    consumer = consume(queue)
    for claim in consumer.take(2):
        claim.read()
        consumer.bury_unreadable(claim, "it is odd")
    consumer.close()
    assert heard() == []
    operators = PostgresOperators(notifying.url)
    [first, *_] = operators.find([consumer_id(notifying)])
    with operators.changes() as changes:
        assert changes.hold(first)
        assert heard() == []
        [held] = operators.find([first.id])
        assert changes.release(held)
    assert heard() == [notifying.schema]


def consumer_id(place: PostgresPlace) -> str:
    queued = "select id from {schema}.entry where state = 'queued'"
    [(id,), *_] = place.execute(queued)
    return str(id)


def is_woken(consumer: Any) -> bool:
    """Let it wait for an hour, and return whether it is woken in the first minute."""
    waiting = threading.Thread(target=consumer.wait, args=(3600.0,), daemon=True)
    waiting.start()
    waiting.join(60)
    return not waiting.is_alive()


def test_a_drain_that_waits_is_woken(
    notifying: PostgresPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumers, "_POLL_SECONDS", 3600.0)
    consumer = consume(notifying.make())
    assert is_woken(consumer)  # it looks once when it has begun to listen
    for _ in range(3):
        notifying.execute(INSERT)  # as another program does
        assert is_woken(consumer)
        assert len(consumer.take(8)) == 1
    consumer.close()
    consumer.close()
    assert "postcommit-listen" not in [each.name for each in threading.enumerate()]


def test_a_listener_that_was_cut_off_comes_back(
    notifying: PostgresPlace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(consumers, "_POLL_SECONDS", 3600.0)
    monkeypatch.setattr(listening, "_PAUSE", 0.05)
    consumer = consume(notifying.make())
    assert is_woken(consumer)
    notifying.execute(f"select pg_terminate_backend(pid) {LISTENERS}")
    notifying.execute(INSERT)
    assert is_woken(consumer)  # it looks once more when it listens again
    assert len(consumer.take(8)) == 1
    assert "does not listen until the database is back" in caplog.text
    consumer.close()


class Counted(Connections):
    """Connections that count how often one was asked for."""

    count = 0

    def take(self) -> Connection:
        self.count += 1
        return super().take()


def test_trouble_is_logged_once(
    notifying: PostgresPlace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(listening, "_PAUSE", 0.01)
    rung = threading.Event()
    with LossyProxy(cluster().port) as proxy:
        url = notifying.url.replace(f":{cluster().port}/", f":{proxy.port}/")
        connections = Counted(parse_database_url(url))
        listener = Listener(connections, notifying.schema, rung.set)
        listener.start()
        assert rung.wait(60)
        proxy.go_away()
        eventually(lambda: connections.count > 4)
        assert caplog.text.count("does not listen until the database is back") == 1
        rung.clear()
        proxy.is_away = False
        assert rung.wait(60)
        listener.close()


def test_a_drain_is_not_woken_for_another_queue(notifying: PostgresPlace) -> None:
    rings = queue.SimpleQueue[None]()
    connections = Connections(parse_database_url(notifying.url))
    listener = Listener(connections, notifying.schema, lambda: rings.put(None))
    listener.start()
    rings.get(timeout=60)  # it has begun
    notifying.execute("select pg_notify('postcommit', 'another')")
    notifying.execute(INSERT)
    rings.get(timeout=60)
    listener.close()
    assert rings.empty()


def test_nobody_listens_by_default(postgres: PostgresPlace) -> None:
    consumer = consume(postgres.make())
    assert "postcommit-listen" not in [each.name for each in threading.enumerate()]
    consumer.close()


def test_a_sender_needs_no_more_rights(notifying: PostgresPlace) -> None:
    name = f"sender_{notifying.schema}"
    notifying.execute(f"create role {name} login")
    for grant in (
        "usage on schema {schema}",
        "select on {schema}.version",
        "insert on {schema}.entry",
        "select on {schema}.removed",
    ):
        notifying.execute(f"grant {grant} to {name}")
    accept(PostgresQueue(notifying.url.replace("//postgres@", f"//{name}@")))
    assert len(notifying.look().queued) == 1
    notifying.execute(f"drop owned by {name}")
    notifying.execute(f"drop role {name}")


@pytest.mark.usefixtures("commands_apart")
def test_a_command_switches_it(
    postgres: PostgresPlace, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = postgres.make()
    for options, is_on, said in (
        ([], False, "nothing to do"),
        (["--notify"], True, "notifies its processors"),
        (["--notify"], True, "notifies its processors"),
        ([], True, "nothing to do"),
        (["--no-notify"], False, "does not notify its processors"),
        (["--no-notify"], False, "does not notify its processors"),
    ):
        assert main(["migrate", *options, postgres.url]) == 0
        assert said in capsys.readouterr().out
        assert listening.is_on(queue.connections) == is_on
    accept(queue)
    assert QueueProcessor(postgres.url, ScriptedMailer()).flush().sent == 1


def test_a_running_processor_listens_and_stops(notifying: PostgresPlace) -> None:
    mailer = ScriptedMailer()
    processor = QueueProcessor(notifying.url, mailer, pollingInterval=3_600_000)
    processor.start()
    eventually(lambda: notifying.execute(f"select {LISTENERS}").rowcount)
    notifying.execute(INSERT)
    eventually(lambda: mailer.sent)
    assert processor.stop(30)
    eventually(lambda: not notifying.execute(f"select {LISTENERS}").rowcount)


def test_a_start_without_descriptors_is_refused_and_leaves_nothing(
    notifying: PostgresPlace,
) -> None:
    name = notifying.make().name
    told = children.call(start_without_descriptors, notifying.url)
    *refused, last = json.loads(told)
    assert not last
    assert any("cannot listen: Too many open files" in text for text in refused)
    assert all(text.startswith(name) for text in refused)
    assert not notifying.execute("select from {schema}.process").fetchall()
