"""A fail-over to a synchronous standby loses nothing and sends nothing twice."""
from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Iterator

import pytest
from tests.support.mailers import ScriptedMailer
from tests.support.postgres import Cluster
from tests.support.postgres import why_not
from tests.support.transactions import BEFORE
from tests.support.transactions import Partner
from tests.support.transactions import begun
from tests.support.transactions import mail

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
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


@pytest.fixture
def pair() -> Iterator[tuple[Cluster, Standby]]:
    primary = Cluster()
    primary.start()
    standby = Standby(primary)
    standby.start()
    with primary.connect() as connection:
        connection.execute("alter system set synchronous_standby_names = '*'")
        connection.execute("select pg_reload_conf()")
    yield primary, standby
    for server in (primary, standby):
        server.stop()


@pytest.mark.slow
def test_a_fail_over(
    pair: tuple[Cluster, Standby], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, standby = pair
    schema = primary.new_queue().partition("postcommit_schema=")[2]
    places = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    url = f"postgresql://postgres@{places}/postgres?target_session_attrs=read-write"
    url += f"&postcommit_schema={schema}"
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


