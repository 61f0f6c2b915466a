"""A relay that takes few connections: the drain works with fewer workers."""
from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from postcommit._drain import runner
from postcommit._drain.runner import Drain
from postcommit._drain.runner import Pace
from postcommit._drain.schedule import Schedule
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._maildir.store import Store
from postcommit._smtp.mailer import SMTPMailer
from postcommit.errors import TooManyConnections
from postcommit.interfaces import IMailer
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from tests.support.mailers import OK
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.mailers import ScriptedPipelineMailer
from tests.support.service import eventually
from tests.support.smtpd import well_treated


HOUR = 3600.0
REFUSAL = Reply(421, "4.7.0", "Too many connections")

# Seconds that a message takes, so that one worker is not enough.
SLOW = 0.01


class Relay:
    """Takes `limit` connections at a time, and counts those that it refuses."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused = 0
        self.connected: list[object] = []
        self.most = 0
        self._lock = threading.Lock()

    def connect(self, connection: object) -> bool:
        with self._lock:
            if connection not in self.connected:
                if len(self.connected) >= self.limit:
                    self.refused += 1
                    return False
                self.connected.append(connection)
                self.most = max(self.most, len(self.connected))
            return True

    def disconnect(self, connection: object) -> None:
        with self._lock:
            if connection in self.connected:
                self.connected.remove(connection)


class Narrow(ScriptedPipelineMailer):
    """A mailer with a connection to `relay` for each pipeline."""

    def __init__(self, relay: Relay) -> None:
        super().__init__()
        self.relay = relay

    def pipeline(self) -> NarrowPipeline:
        return NarrowPipeline(self)


class NarrowPipeline(ScriptedPipeline):
    def offer(self, mail: Outgoing, key: Any = None) -> None:
        if self.mailer.relay.connect(self):
            time.sleep(SLOW)
            super().offer(mail, key)
            return
        self.done += [*self.behind, (key, self.refusal(mail))]
        self.behind = []

    def refusal(self, mail: Outgoing) -> DeliveryReport:
        return DeliveryReport(
            message_id_of(mail.message),
            mail.recipients,
            relay_failure=TooManyConnections(str(REFUSAL), REFUSAL),
            too_many_connections=True,
        )

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.mailer.relay.disconnect(self)


class Queue:
    def __init__(self, path: Path) -> None:
        self.store = Store(str(path))
        self.count = 0

    def send(self, count: int) -> None:
        batch = self.store.batch()
        items = [
            self.store.stage("", ("ann@x.org",), [b"Message-Id: <%d@x.org>\n\n" % n])
            for n in range(self.count, self.count + count)
        ]
        self.count += count
        batch.prepare(items)
        batch.publish(items)

    def drain(self, mailer: IMailer, workers: int = 4) -> Drain:
        schedule = Schedule(HOUR, HOUR, 1e6)
        return Drain(self.store, mailer, schedule, Pace(workers, None, 0.1))

    def left(self) -> int:
        return sum(1 for _ in self.store.maildir)


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue")


@contextmanager
def running(drain: Drain) -> Iterator[None]:
    thread = threading.Thread(target=drain.until_stopped)
    thread.start()
    try:
        yield
    finally:
        drain.stop()
        thread.join(60)
    assert not thread.is_alive()


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    """Return level and text of what draining has logged."""
    return [
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name.startswith("postcommit.drain")
    ]


def is_counted_once(mailer: ScriptedMailer, count: int) -> bool:
    return sorted(mailer.sent) == sorted(
        (f"{n}@x.org", "ann@x.org") for n in range(count)
    )


@pytest.mark.parametrize(("limit", "workers"), [(1, 2), (2, 4), (3, 8)])
def test_a_flush_goes_on_with_fewer_workers(
    queue: Queue, caplog: pytest.LogCaptureFixture, limit: int, workers: int
) -> None:
    caplog.set_level("INFO")
    mailer = Narrow(Relay(limit))
    queue.send(100)
    assert queue.drain(mailer, workers).once() == Tally(100, 0, 0)
    assert is_counted_once(mailer, 100)
    assert mailer.relay.most == limit
    assert 1 <= mailer.relay.refused < workers
    [(level, text)] = lines(caplog)
    assert level == "INFO"
    assert re.search(
        rf"queue: the relay takes no more connections:"
        rf" working with {limit} instead of {workers} for 5 minutes$",
        text,
    )


def test_a_drain_goes_on_with_fewer_workers_and_then_tries_more(
    queue: Queue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FEWER_SECONDS", 0.5)
    caplog.set_level("INFO", "postcommit.drain")
    mailer = Narrow(Relay(2))
    queue.send(200)
    with running(queue.drain(mailer)):
        eventually(lambda: mailer.relay.refused)
        mailer.relay.limit = 4
        eventually(lambda: mailer.relay.most == 4)
        eventually(lambda: not queue.left())
    assert is_counted_once(mailer, 200)
    assert {level for level, _ in lines(caplog)} <= {"INFO"}


def test_a_drain_has_all_its_workers_after_a_restart_of_the_relay(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "postcommit.drain")
    queue.send(300)
    with well_treated() as start:
        relay = start()
        hold = relay.hold("END", times=None)
        drain = queue.drain(SMTPMailer("127.0.0.1", relay.port), workers=8)
        with running(drain):
            relay.wait_until(lambda: relay.open == 8)
            hold.release()
            relay.down()
            eventually(lambda: "the queue pauses" in caplog.text)
            relay.up()
            eventually(lambda: queue.left() <= 16)  # those in flight are uncertain
            assert drain._crew.most == 8
    assert "no more connections" not in caplog.text


def test_if_the_last_connection_is_refused_the_queue_pauses(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that are in use belong to others, such as another drain."""
    caplog.set_level("INFO")
    mailer = Narrow(Relay(0))
    queue.send(10)
    assert queue.drain(mailer).once() == Tally(0, 0, 0)
    assert queue.left() == 10
    assert mailer.relay.refused <= 4
    texts = [text for level, text in lines(caplog) if level == "ERROR"]
    assert texts == [f"{queue.store.name}: the queue pauses: {REFUSAL}"]


def test_a_single_worker_that_is_refused_lets_the_queue_pause(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    mailer = Narrow(Relay(0))
    queue.send(3)
    assert queue.drain(mailer, workers=1).once() == Tally(0, 0, 0)
    assert mailer.relay.refused == 1
    assert lines(caplog) == [
        ("ERROR", f"{queue.store.name}: the queue pauses: {REFUSAL}")
    ]


def test_after_a_pause_a_refusal_makes_the_pause_longer(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise one worker after the other would try, without a rest."""
    caplog.set_level("INFO", "postcommit.drain")
    relay = Relay(0)
    mailer = Narrow(relay)
    queue.send(10)
    with running(queue.drain(mailer)):
        eventually(lambda: relay.refused >= 2)
        refused = relay.refused
        time.sleep(0.8)
        assert relay.refused - refused <= 1
        relay.limit = 4
        eventually(lambda: not queue.left())
    assert is_counted_once(mailer, 10)


def test_two_drains_share_the_connections_of_a_relay(
    queue: Queue, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "postcommit.drain")
    relay = Relay(3)
    other = Queue(tmp_path / "other")
    mailers = [Narrow(relay), Narrow(relay)]
    for one in (queue, other):
        one.send(100)
    with running(queue.drain(mailers[0])), running(other.drain(mailers[1])):
        eventually(lambda: not (queue.left() or other.left()))
    assert all(is_counted_once(mailer, 100) for mailer in mailers)
    assert relay.most == 3


def test_a_stop_ends_a_drain_whose_connections_are_refused(queue: Queue) -> None:
    mailer = Narrow(Relay(1))
    queue.send(100)
    drain = queue.drain(mailer)
    with running(drain):
        eventually(lambda: mailer.relay.refused)
        drain.stop()
        assert drain.wait(60)
    assert len(set(mailer.sent)) == len(mailer.sent)
    assert queue.left() == 100 - len(mailer.sent)


class Half(NarrowPipeline):
    """Has an outcome for the first of two recipients, and is refused after it."""

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        if len(mail.recipients) == 1:
            super().offer(mail, key)
            return
        first = Outcome(mail.recipients[0], Status.SENT, OK)
        self.done.append((key, replace(self.refusal(mail), outcomes=(first,))))


def test_recipients_that_were_decided_before_the_refusal_are_settled(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    mailer = Narrow(Relay(4))
    mailer.pipeline = lambda: Half(mailer)  # type: ignore[method-assign]
    recipients = ("ann@x.org", "bob@x.org")
    queue.store.stage("", recipients, [b"Message-Id: <1@x.org>\n\n"]).commit()
    assert queue.drain(mailer).once() == Tally(2, 0, 0)
    assert [taken.recipients for taken in mailer.attempts] == [("bob@x.org",)]
    assert not queue.left()
    assert {level for level, _ in lines(caplog)} == {"INFO"}
