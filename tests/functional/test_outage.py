"""The relay is away, for a day of the processor's clocks, in every way there is."""
from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest
from tests.support.certificates import Authority
from tests.support.dialogue import Dialogue
from tests.support.service import eventually
from tests.support.smtpd import ScriptedRelay
from transaction import TransactionManager

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._drain.breaker import LONGEST_PAUSE
from postcommit._mail.message import message_id_of
from postcommit._maildir.presence import ring
from postcommit.interfaces import Tally
from postcommit.testing import FakeClock


ANN, BOB = "ann@example.org", "bob@example.org"
POISON = "poison@example.org"

# Entries, and seconds of the processor's clocks.
COUNT = int(os.environ.get("POSTCOMMIT_ENTRIES", "300"))
OUTAGE = int(os.environ.get("POSTCOMMIT_OUTAGE", "1800"))

YESTERDAY = time.time() - 86400

TEXT = "Message-Id: <{}@x.org>\r\nDate: x\r\n\r\nText.\r\n"


def fill(queue: Path, count: int) -> None:
    """Send so many; a third of them are deferred, and due again. All of it is old."""
    manager = TransactionManager()
    delivery = QueuedMailDelivery(str(queue), transaction_manager=manager)
    with manager:
        for number in range(count):
            delivery.send(BOB, ANN, TEXT.format(number))
    for path in sorted((queue / "new").iterdir())[::3]:
        deferred = path.rename(queue / "cur" / f"{path.name}:2,")
        os.utime(deferred, (YESTERDAY, YESTERDAY))
    # Else it would be looked at again for having just changed.
    for folder in ("new", "cur"):
        os.utime(queue / folder, (YESTERDAY, YESTERDAY))


def files(queue: Path) -> dict[str, tuple[int, int, bytes]]:
    """Path, inode, time of modification and bytes of each entry."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for folder in ("new", "cur")
        for path in (queue / folder).iterdir()
    }


# The ways in which a relay can be away


@dataclass
class Scene:
    """A relay and what its mailer is told; `mend` has what brings it back."""

    relay: ScriptedRelay
    authority: Authority
    options: dict[str, Any] = field(default_factory=dict)
    mend: ExitStack = field(default_factory=ExitStack)

    def say(self, stage: str, reply: str) -> None:
        self.relay.reply(stage, reply)
        self.mend.callback(self.relay.script.rules.clear)

    def drop(self, stage: str) -> None:
        self.relay.drop(stage)
        self.mend.callback(self.relay.script.rules.clear)

    def show(self, *names: str, expired: bool = False) -> None:
        """Offer STARTTLS with a certificate for these `names`, and want it."""
        self.want_tls()
        self.relay.tls = self.authority.server(*names, expired=expired)

    def want_tls(self) -> None:
        self.options = {"tls": "starttls", "cafile": self.authority.cafile}
        good = self.authority.server()
        self.mend.callback(lambda: setattr(self.relay, "tls", good))


def nobody_listens(scene: Scene) -> None:
    scene.relay.down()
    scene.mend.callback(scene.relay.up)


def connecting_takes_for_ever(scene: Scene) -> None:
    """A listener that accepts nobody, whose backlog is full."""
    scene.relay.down()
    full = socket.socket()
    full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    full.bind(("127.0.0.1", scene.relay.port))
    full.listen(0)
    waiting = [socket.socket() for _ in range(3)]
    for one in waiting:
        one.setblocking(False)
        one.connect_ex(("127.0.0.1", scene.relay.port))
    scene.options = {"connect_timeout": 1.0}
    scene.mend.callback(scene.relay.up)
    for one in (full, *waiting):
        scene.mend.callback(one.close)


def silence(scene: Scene) -> None:
    hold = scene.relay.hold("CONNECT", times=None)
    scene.options = {"timeout": 1.0}
    scene.mend.callback(hold.release)
    scene.mend.callback(scene.relay.script.rules.clear)


def handshake_fails(scene: Scene) -> None:
    def act(dialogue: Dialogue, usual: str) -> int:
        dialogue.say(b"220 2.0.0 Go on\r\n")
        dialogue.flush()
        dialogue.say(b"this is no TLS\r\n" * 10)
        return 0

    scene.show()
    scene.relay.on("STARTTLS", act)
    scene.mend.callback(scene.relay.script.rules.clear)


def starttls_is_refused(scene: Scene) -> None:
    scene.show()
    scene.say("STARTTLS", "454 4.7.0 TLS not available")


def password_is_refused(scene: Scene) -> None:
    scene.options = {"username": "shop", "password": "old"}
    scene.relay.users["shop"] = "new"
    scene.mend.callback(lambda: scene.relay.users.update(shop="old"))


OUTAGES: dict[str, Callable[[Scene], object]] = {
    "nobody listens": nobody_listens,
    "connecting takes for ever": connecting_takes_for_ever,
    "hangs up": lambda scene: scene.drop("CONNECT"),
    "silence": silence,
    "421 greeting": lambda scene: scene.say("CONNECT", "421 4.3.2 Overloaded"),
    "554 greeting": lambda scene: scene.say("CONNECT", "554 5.3.2 No service"),
    "EHLO refused": lambda scene: scene.say("EHLO", "550 5.7.1 Go away"),
    "421 at MAIL": lambda scene: scene.say("MAIL", "421 4.3.2 Going down"),
    "421 at RCPT": lambda scene: scene.say("RCPT", "421 4.3.2 Going down"),
    "no STARTTLS": Scene.want_tls,
    "STARTTLS refused": starttls_is_refused,
    "no handshake": handshake_fails,
    "expired": lambda scene: scene.show(expired=True),
    "another name": lambda scene: scene.show("other.example"),
    "password refused": password_is_refused,
    "login wanted": lambda scene: scene.say("MAIL", "530 5.7.0 Log in first"),
}

# Each attempt takes a second of the real clock.
SLOW = ("connecting takes for ever", "silence")


class Outage:
    """A processor at work, whose two clocks are moved from pause to pause."""

    def __init__(self, queue: Path, mailer: SMTPMailer) -> None:
        self.queue = queue
        self.clock = FakeClock()
        self.attempts = 0
        self.processor = QueueProcessor(
            str(queue), mailer, 3_600_000, clock=self.clock, monotonic=self.clock
        )
        self._posted = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        self.processor.start()
        try:
            yield
        finally:
            assert self.processor.stop(60)

    def wait_for_attempt(self) -> None:
        """Wait until it has failed again, and has put it on its notice."""
        end = time.monotonic() + 60
        while (posted := self._notice()) in (0, self._posted):
            assert time.monotonic() < end, "it tries no more"
            time.sleep(0.001)
        self._posted = posted
        self.attempts += 1

    def _notice(self) -> int:
        try:
            return (self.queue / ".paused").stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        ring(str(self.queue))


@pytest.mark.parametrize("kind", OUTAGES)
def test_an_outage_touches_no_entry_and_ends_within_a_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    queue = tmp_path / "queue"
    fill(queue, COUNT)
    before = files(queue)
    seconds = 3.0 if kind in SLOW and OUTAGE < 86400 else OUTAGE
    with ScriptedRelay() as relay:
        scene = Scene(relay, Authority(tmp_path))
        OUTAGES[kind](scene)
        mailer = SMTPMailer("127.0.0.1", relay.port, **scene.options)
        outage = Outage(queue, mailer)
        with outage.running():
            began = outage.clock()
            outage.wait_for_attempt()
            step = 1.0
            while outage.clock() - began < seconds:
                outage.advance(step)
                outage.wait_for_attempt()
                step = min(2 * step, LONGEST_PAUSE)
            assert files(queue) == before
            assert not relay.messages
            scene.mend.close()
            outage.advance(step)
            end = time.monotonic() + 240
            while len(relay.messages) < COUNT:
                assert time.monotonic() < end, "it is not sent"
                # The clocks stand still: all of it goes out in what is one step of
                # them. Only where an attempt takes long, one may fail still.
                if kind in SLOW:
                    outage.advance(1.0)
                time.sleep(0.05)
        mailer.close()
    assert not files(queue)
    sent = Counter(message_id_of(message.data) for message in relay.messages)
    assert sent == {f"{number}@x.org": 1 for number in range(COUNT)}
    assert outage.attempts >= 3 + (seconds - 3) // LONGEST_PAUSE
    # Whatever it was, it is told once.
    told = [text for text in caplog.messages if "the queue pauses" in text]
    assert told
    assert len(told) == len(set(told))


def test_a_name_that_nobody_knows_touches_no_entry(tmp_path: Path) -> None:
    queue = tmp_path / "queue"
    fill(queue, 20)
    before = files(queue)
    # A reserved name (RFC 2606), which no later look finds either.
    for _ in range(3):
        mailer = SMTPMailer("relay.invalid")
        assert QueueProcessor(str(queue), mailer).flush() == Tally(0, 0, 0)
    assert files(queue) == before
    with ScriptedRelay() as relay:
        mailer = SMTPMailer("127.0.0.1", relay.port)
        assert QueueProcessor(str(queue), mailer).flush() == Tally(20, 0, 0)
        mailer.close()


def hangs_up(relay: ScriptedRelay) -> None:
    relay.drop("RCPT", after="421 4.7.0 Try again later", address=POISON)


def falls_silent(relay: ScriptedRelay) -> None:
    relay.hold("RCPT", times=None, address=POISON)


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("fail", [hangs_up, falls_silent])
def test_a_relay_that_fails_at_one_message_is_not_away(
    tmp_path: Path, fail: Callable[[ScriptedRelay], None], workers: int
) -> None:
    queue = tmp_path / "queue"
    with ScriptedRelay() as relay:
        fail(relay)
        mailer = SMTPMailer("127.0.0.1", relay.port, timeout=1.0)
        manager = TransactionManager()
        delivery = QueuedMailDelivery(str(queue), transaction_manager=manager)
        with manager:
            delivery.send(BOB, POISON, TEXT.format("poison"))
            for number in range(20):
                delivery.send(BOB, ANN, TEXT.format(number))
        processor = QueueProcessor(str(queue), mailer, 100, workers=workers)
        processor.start()
        eventually(lambda: len(relay.messages) == 20)
        eventually(lambda: os.listdir(queue / "cur"))
        assert processor.stop(60)
        mailer.close()
    assert {message.recipients for message in relay.messages} == {(ANN,)}
    [deferred] = (queue / "cur").iterdir()
    assert b"X-Zope-Attempts: 1" in deferred.read_bytes().splitlines()
    assert not list((queue / "new").iterdir())
