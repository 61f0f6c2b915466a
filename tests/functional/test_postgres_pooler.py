"""Behind PgBouncer in transaction mode, clients share the server's connections."""
from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.contract.steps import stage
from tests.functional.servers import Program
from tests.functional.servers import public_folder
from tests.support.mailers import ScriptedMailer
from tests.support.postgres import as_postgres
from tests.support.postgres import cluster
from tests.support.postgresplace import PostgresPlace
from tests.support.service import eventually
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner
from tests.support.transactions import begun
from tests.support.transactions import mail

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit._config.database import parse_database_url
from postcommit._maildir.item import EntryState
from postcommit._postgres.operators import PostgresOperators
from postcommit._postgres.queue import PostgresQueue
from postcommit._postgres.schema import migrate


ANN, BOB = "ann@example.org", "bob@example.org"

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")


class PgBouncer(Program):
    """A pooler before the server of the tests, with five connections to it."""

    def command(self) -> list[Any]:
        users = self.folder / "users"
        users.write_text('"postgres" ""\n')
        config = self.folder / "pgbouncer.ini"
        config.write_text(
            f"""
[databases]
* = host=127.0.0.1 port={cluster().port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {self.port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = 5
max_client_conn = 200
"""
        )
        for path in (users, config):
            path.chmod(0o644)
        return as_postgres(str(PROGRAM), config)


@pytest.fixture(scope="module")
def pooler() -> Iterator[PgBouncer]:
    if PROGRAM is None:
        pytest.skip("PgBouncer is not installed")
    with public_folder("pgbouncer") as folder, PgBouncer(Path(folder)) as running:
        yield running


@pytest.fixture
def url(postgres: PostgresPlace, pooler: PgBouncer) -> str:
    return postgres.url.replace(f":{cluster().port}/", f":{pooler.port}/")


def test_senders_and_processors_share_few_connections(
    postgres: PostgresPlace, url: str
) -> None:
    names: list[str] = []

    def send(part: int) -> None:
        with begun("explicit") as manager:
            manager.abort()
            delivery = QueuedMailDelivery(url, transaction_manager=manager)
            for number in range(25):
                manager.begin()
                if number % 2:
                    manager.get().join(Partner(BEFORE))
                for name in (f"{part}.{number}.{n}@x.org" for n in range(part + 1)):
                    names.append(delivery.send(ANN, BOB, mail(name)))
                manager.commit()
            manager.begin()

    mailers = [ScriptedMailer() for _ in range(2)]
    processors = [QueueProcessor(url, mailer, workers=4) for mailer in mailers]
    for processor in processors:
        processor.start()
    senders = [threading.Thread(target=send, args=(part,)) for part in range(3)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    for processor in processors:
        assert processor.stop(30)
    last = ScriptedMailer()
    QueueProcessor(url, last).flush()
    sent = Counter(name for m in (*mailers, last) for name, _ in m.sent)
    assert sent == Counter(names)
    assert len(names) == 25 * 6
    assert postgres.look().failed == []


def test_a_sender_that_dies_between_vote_and_finish_is_in_doubt(
    postgres: PostgresPlace, url: str
) -> None:
    queue = PostgresQueue(url)
    alive, dead = queue.batch(), queue.batch()
    staged = [stage(queue) for _ in range(2)]
    for batch, (_, item) in zip((alive, dead), staged, strict=True):
        batch.prepare([item])
    postgres.die_with_batch(dead)
    postgres.age(60)
    operators = PostgresOperators(url)
    doubts = list(operators.items([EntryState.IN_DOUBT]))
    assert len(doubts) == 1
    with operators.changes() as changes:
        assert list(changes.recover(doubts, send=True)) == doubts
    alive.publish([staged[0][1]])
    assert {seen.message_id for seen in postgres.look().queued} == {
        name for name, _ in staged
    }


def test_claims_end_with_their_drain(postgres: PostgresPlace, url: str) -> None:
    queue = PostgresQueue(url)
    accept(queue)
    consumer, other = consume(queue), consume(PostgresQueue(url))
    assert len(consumer.take(1)) == 1
    assert other.take(1) == []
    consumer.close()
    assert len(other.take(1)) == 1
    other.close()


def test_nobody_listens_behind_it(
    postgres: PostgresPlace, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """LISTEN is state of a session. A sender notifies, and others may listen."""
    migrate(parse_database_url(postgres.url), notify=True)
    mailer = ScriptedMailer()
    processor = QueueProcessor(url, mailer)
    processor.start()
    eventually(lambda: "does not work behind a pooler" in caplog.text)
    name = accept(PostgresQueue(url))
    eventually(lambda: mailer.sent)  # found by a look each second
    assert [each for each, _ in mailer.sent] == [name]
    assert processor.stop(30)
