"""Queues that several processes drain, and that were another library's."""
from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import transaction
from repoze.sendmail.delivery import QueuedMailDelivery as RepozeDelivery
from tests.support.smtpd import ScriptedRelay
from transaction import TransactionManager
from zope.sendmail.delivery import QueuedMailDelivery as ZopeDelivery
from zope.sendmail.mailer import SMTPMailer as ZopeMailer
from zope.sendmail.queue import QueueProcessorThread

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit.interfaces import Tally
from postcommit.message import message_id_of


ANN, BOB = "ann@example.org", "bob@example.org"
MESSAGE = b"Message-Id: <1@x.org>\r\nDate: x\r\nSubject: x\r\n\r\nText.\r\n"


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


def fill(queue: Path, numbers: range) -> None:
    manager = TransactionManager()
    delivery = QueuedMailDelivery(str(queue), transaction_manager=manager)
    with manager:
        for number in numbers:
            delivery.send(BOB, ANN, f"Message-Id: <{number}@x.org>\n\nx\n")


def touched(queue: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for folder in ("new", "cur")
        for path in (queue / folder).iterdir()
    }


def flush(queue: Path, port: int, **options: Any) -> Tally:
    mailer = SMTPMailer("127.0.0.1", port, **options)
    try:
        return QueueProcessor(str(queue), mailer).flush()
    finally:
        mailer.close()


# Several processes, some of them killed

DRAINER = """
import sys
from postcommit import QueueProcessor, SMTPMailer
mailer = SMTPMailer("127.0.0.1", int(sys.argv[2]))
print("begun", flush=True)
QueueProcessor(sys.argv[1], mailer, workers=4, pollingInterval=50).run()
"""


def test_four_processes_drain_a_queue_that_grows_and_two_are_killed(
    tmp_path: Path, relay: ScriptedRelay
) -> None:
    queue = tmp_path / "queue"
    count = int(os.environ.get("POSTCOMMIT_ENTRIES", "1500"))
    fill(queue, range(count // 2))
    command = [sys.executable, "-c", DRAINER, str(queue), str(relay.port)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    fill(queue, range(count // 2, count))
    dice = random.Random(count)
    in_flight = 0
    for process in processes[:2]:
        goal = dice.randrange(count // 10, count // 2)
        relay.wait_until(lambda goal=goal: len(relay.messages) > goal, 120)
        process.kill()
        process.wait()
        # Each of its workers had two messages between reply and removal, at most:
        # the relay may have taken the next before the one before was settled.
        in_flight += 2 * 4
    relay.wait_until(lambda: len(ids(relay)) == count, 240)
    until(lambda: not touched(queue))
    for process in processes:
        process.kill()
        process.communicate()
    times = Counter(ids(relay).values())
    # The second one to be killed may have just taken up what the first one left.
    assert set(times) <= {1, 2, 3}
    assert times[2] + 2 * times[3] <= in_flight


def ids(relay: ScriptedRelay) -> Counter[str]:
    return Counter(message_id_of(message.data) for message in list(relay.messages))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end


# Queues of the older libraries


def test_a_queue_of_zope_sendmail_is_taken_over_in_place(
    tmp_path: Path, relay: ScriptedRelay
) -> None:
    queue = tmp_path / "queue"
    old = ZopeDelivery(str(queue))
    for number in range(4):
        old.send(BOB, [ANN, BOB], MESSAGE.replace(b"<1@", b"<%d@" % number))
        transaction.commit()
    first, second, third, _ = sorted((queue / "new").iterdir())
    # One is being sent by it, one was when it died, one was rejected.
    os.link(first, queue / "new" / f".sending-{first.name}")
    os.link(second, queue / "new" / f".sending-{second.name}")
    os.utime(queue / "new" / f".sending-{second.name}", (time.time() - 4 * 3600,) * 2)
    os.rename(third, queue / "new" / f".rejected-{third.name}")
    assert flush(queue, relay.port) == Tally(4, 0, 0)
    left = sorted(path.name for path in (queue / "new").iterdir())
    assert first.name in left
    assert second.name not in left
    assert f".rejected-{third.name}" in left
    assert {m.recipients for m in relay.messages} == {(ANN, BOB)}
    assert all(m.data.endswith(b"\r\n\r\nText.\r\n") for m in relay.messages)


def test_a_queue_of_repoze_sendmail_is_taken_over_in_place(
    tmp_path: Path, relay: ScriptedRelay
) -> None:
    queue = tmp_path / "queue"
    message = EmailMessage()
    message["Message-Id"] = "<1@x.org>"
    message["Subject"] = "x"
    message.set_content("Text.\n")
    RepozeDelivery(str(queue)).send(BOB, [ANN, BOB], message)
    transaction.commit()
    assert flush(queue, relay.port) == Tally(2, 0, 0)
    [taken] = relay.messages
    assert (taken.sender, taken.recipients) == (BOB, (ANN, BOB))
    assert b"X-Actually" not in taken.data
    assert b"Subject: x\r\n" in taken.data


def test_zope_sendmail_drains_a_queue_of_ours(
    tmp_path: Path, relay: ScriptedRelay
) -> None:
    queue = tmp_path / "queue"
    delivery = QueuedMailDelivery(str(queue))
    with transaction.manager:
        delivery.send(BOB, [ANN, BOB], MESSAGE)
    # One of them was tried.
    relay.reply("RCPT", "450 4.2.0 Greylisted", times=2)
    assert flush(queue, relay.port) == Tally(0, 2, 0)
    with transaction.manager:
        delivery.send(BOB, [ANN], MESSAGE)
    thread = QueueProcessorThread()
    thread.setMailer(ZopeMailer("127.0.0.1", relay.port))
    thread.setQueuePath(str(queue))
    thread.run(forever=False)
    assert not touched(queue)
    assert sorted(m.recipients for m in relay.messages) == [(ANN,), (ANN, BOB)]
    assert [m.data for m in relay.messages if m.recipients == (ANN,)] == [MESSAGE]
