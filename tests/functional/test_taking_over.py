"""Queues that the older libraries have filled and worked on, and queues given back.

The libraries are the real ones. Their processors are processes of their own, some of
which are killed in the middle of a message.
"""
from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
import transaction
from repoze.sendmail.delivery import QueuedMailDelivery as RepozeDelivery
from tests.support.smtpd import ScriptedRelay
from zope.sendmail.delivery import QueuedMailDelivery as ZopeDelivery

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._mail.message import message_id_of
from postcommit._maildir.item import EntryState
from postcommit._maildir.mending import MaildirOperators
from postcommit.interfaces import Tally


ANN, BOB, SHOP = "ann@example.org", "bob@example.org", "shop@example.org"

HOUR = 3600

# What a processor of theirs is: it sends all there is, and ends.
PROCESSORS = {
    "zope": """
import sys
from zope.sendmail.mailer import SMTPMailer
from zope.sendmail.queue import QueueProcessorThread
thread = QueueProcessorThread()
thread.setMailer(SMTPMailer("127.0.0.1", int(sys.argv[2])))
thread.setQueuePath(sys.argv[1])
thread.run(forever=False)
""",
    "repoze": """
import sys
from repoze.sendmail.mailer import SMTPMailer
from repoze.sendmail.queue import QueueProcessor
mailer = SMTPMailer("127.0.0.1", int(sys.argv[2]), no_tls=True)
QueueProcessor(mailer, sys.argv[1]).send_messages()
""",
}

DELIVERIES: dict[str, Callable[[str], ZopeDelivery | RepozeDelivery]] = {
    "zope": ZopeDelivery,
    "repoze": RepozeDelivery,
}


def text(number: int) -> bytes:
    return (
        b"Message-Id: <%d@x.org>\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
        b"Subject: Your teapot\r\n\r\nIt is on its way.\r\n" % number
    )


class Queue:
    """A queue of an older library's, and what is done to it."""

    def __init__(self, path: Path, library: str, relay: ScriptedRelay) -> None:
        self.path = path
        self.library = library
        self.relay = relay

    def send(self, number: int, *recipients: str) -> None:
        message: object = text(number)
        if self.library == "repoze":
            message = message_from_bytes(text(number))
        delivery = DELIVERIES[self.library](str(self.path))
        delivery.send(SHOP, list(recipients), message)
        transaction.commit()

    def theirs(self) -> subprocess.Popen[bytes]:
        """Start a processor of the library's."""
        command = [sys.executable, "-c", PROCESSORS[self.library]]
        return subprocess.Popen(
            [*command, str(self.path), str(self.relay.port)], stderr=subprocess.PIPE
        )

    def ours(self) -> Tally:
        mailer = SMTPMailer("127.0.0.1", self.relay.port)
        try:
            return QueueProcessor(str(self.path), mailer).flush()
        finally:
            mailer.close()

    def names(self, prefix: str = "") -> list[str]:
        found = sorted(path.name for path in (self.path / "new").iterdir())
        return [name for name in found if name.startswith(prefix)]

    def sent(self) -> list[tuple[str, tuple[str, ...]]]:
        return sorted(
            (message_id_of(message.data), message.recipients)
            for message in self.relay.messages
        )


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture(params=["zope", "repoze"])
def queue(
    tmp_path: Path, relay: ScriptedRelay, request: pytest.FixtureRequest
) -> Queue:
    return Queue(tmp_path / "queue", request.param, relay)


def test_what_it_has_accepted_is_sent(queue: Queue) -> None:
    for number in range(3):
        queue.send(number, ANN, BOB)
    assert queue.ours() == Tally(6, 0, 0)
    assert queue.sent() == [(f"{number}@x.org", (ANN, BOB)) for number in range(3)]
    assert queue.names() == []
    for message in queue.relay.messages:
        assert message.sender == SHOP
        assert b"X-Actually" not in message.data
        assert b"X-Zope" not in message.data
        assert b"\r\nSubject: Your teapot\r\n" in message.data
        assert message.data.endswith(b"\r\n\r\nIt is on its way.\r\n")


def test_what_it_is_sending_is_left_to_it(queue: Queue) -> None:
    for number in range(3):
        queue.send(number, ANN)
    hold = queue.relay.hold("DATA")
    theirs = queue.theirs()
    assert hold.reached.wait(60)
    assert len(queue.names(".sending-")) == 1
    assert queue.ours() == Tally(2, 0, 0)
    hold.release()
    theirs.communicate(timeout=60)
    assert queue.names() == []
    assert [recipients for _, recipients in queue.sent()] == [(ANN,)] * 3
    assert len(set(queue.sent())) == 3


def test_what_it_was_sending_when_it_was_killed_is_sent_three_hours_later(
    queue: Queue,
) -> None:
    queue.send(1, ANN)
    hold = queue.relay.hold("DATA")
    theirs = queue.theirs()
    assert hold.reached.wait(60)
    theirs.kill()
    theirs.communicate()
    hold.release()
    [sending, name] = queue.names()
    assert sending == f".sending-{name}"
    assert queue.ours() == Tally(0, 0, 0)
    for hours, tally in [(2.9, Tally(0, 0, 0)), (3.1, Tally(1, 0, 0))]:
        long_ago = time.time() - hours * HOUR
        os.utime(queue.path / "new" / name, (long_ago, long_ago))
        assert queue.ours() == tally
    assert queue.sent() == [("1@x.org", (ANN,))]
    assert queue.names() == [], "the claim of the dead one is left"


def test_what_failed_for_now_with_it_is_sent_three_hours_later(queue: Queue) -> None:
    """It leaves its claim behind whenever a relay says no for now."""
    queue.send(1, ANN)
    queue.relay.reply("DATA", "451 4.3.0 Later", times=1)
    queue.theirs().communicate(timeout=60)
    [sending, name] = queue.names()
    assert sending == f".sending-{name}"
    assert queue.ours() == Tally(0, 0, 0)
    long_ago = time.time() - 4 * HOUR
    os.utime(queue.path / "new" / name, (long_ago, long_ago))
    assert queue.ours() == Tally(1, 0, 0)
    assert queue.sent() == [("1@x.org", (ANN,))]


def test_what_it_has_rejected_is_a_dead_letter(queue: Queue) -> None:
    queue.send(1, ANN)
    queue.send(2, BOB)
    queue.relay.reply("DATA", "554 5.7.1 Looks like spam", times=1)
    theirs = queue.theirs()
    _, errors = theirs.communicate(timeout=60)
    assert re.search(rb"permanent error", errors)
    [rejected] = queue.names()
    assert rejected.startswith(".rejected-")
    assert queue.ours() == Tally(0, 0, 0)
    assert queue.names() == [rejected]
    admin = MaildirOperators(str(queue.path))
    [dead] = admin.items([EntryState.FAILED])
    assert dead.place.endswith(rejected)
    with admin.changes() as changes:
        assert changes.retry(dead)
    assert queue.ours() == Tally(1, 0, 0)
    assert queue.sent() == [("1@x.org", (ANN,)), ("2@x.org", (BOB,))]
    assert queue.names() == []


def test_a_queue_of_ours_is_given_back_to_zope_sendmail(
    tmp_path: Path, relay: ScriptedRelay
) -> None:
    queue = Queue(tmp_path / "queue", "zope", relay)
    delivery = QueuedMailDelivery(str(queue.path))
    with transaction.manager:
        delivery.send(SHOP, [ANN, BOB], text(1))
        delivery.send(SHOP, [ANN, "never@example.org"], text(2))
    # Both were tried: of the second, a dead letter stays here.
    relay.reply("RCPT", "450 4.2.0 Greylisted", times=None, address=ANN)
    relay.reply("RCPT", "550 5.1.1 Nobody", times=None, address="never@example.org")
    assert queue.ours() == Tally(1, 2, 1)
    relay.script.rules.clear()
    with transaction.manager:
        delivery.send(SHOP, [BOB], text(3))
    queue.theirs().communicate(timeout=60)
    assert queue.sent() == [
        ("1@x.org", (ANN,)),
        ("1@x.org", (BOB,)),
        ("2@x.org", (ANN,)),
        ("3@x.org", (BOB,)),
    ]
    for message in relay.messages:
        assert message.data.endswith(b"\r\n\r\nIt is on its way.\r\n")
    admin = MaildirOperators(str(queue.path))
    assert [item.state for item in admin.items(EntryState)] == [EntryState.FAILED]


def test_its_processor_leaves_what_waits_in_a_room(queue: Queue) -> None:
    """It knows neither the time of a mail nor that a person holds it."""
    queue.send(1, ANN)
    delivery = QueuedMailDelivery(str(queue.path))
    delivery.send(SHOP, BOB, text(2), not_before=2e9)
    delivery.send(SHOP, BOB, text(3), bulk=True)
    transaction.commit()
    before = sorted(queue.path.glob(".*/new/*"))
    assert len(before) == 2
    with queue.theirs() as process:
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert queue.sent() == [("1@x.org", (ANN,))]
    assert sorted(queue.path.glob(".*/new/*")) == before
