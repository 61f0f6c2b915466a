"""An entry to so many recipients that one attempt has several transmissions."""
from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from postcommit import FailoverMailer
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._cli.progress import WatchedMailer
from postcommit._drain.breaker import Breaker
from postcommit._drain.schedule import Schedule
from postcommit._drain.settle import Settler
from postcommit._drain.worker import Worker
from postcommit._drain.worker import size_of
from postcommit._mail.entry import Entry
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.store import Store
from postcommit.compat import repoze_sendmail
from postcommit.compat import zope_sendmail
from postcommit.interfaces import Status
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import Tally
from tests.drain.test_memory_queue import Claim
from tests.drain.test_memory_queue import Consumer
from tests.support.mailers import ScriptedMailer
from tests.support.smtpd import ScriptedRelay


MESSAGE = b"Message-Id: <1@x.org>\n\nText.\n"

SCHEDULE = Schedule(60, 4000, 5 * 86400)

BYE = b"421 4.3.2 Shutting down\r\n"


def many(count: int) -> tuple[str, ...]:
    return tuple(f"r{number}@x.org" for number in range(count))


def send(queue: Path, count: int) -> None:
    Store(str(queue)).stage("shop@x.org", many(count), [MESSAGE]).commit()


def left_in(queue: Path) -> list[Entry]:
    """Return the entries that are left, after making them due."""
    paths = sorted([*queue.glob("new/*"), *queue.glob("cur/*")])
    for path in paths:
        os.utime(path, (1, 1))
    return [parse_entry(path.read_bytes()) for path in paths]


def flush(queue: Path, mailer: SupportsSend, **options: Any) -> Tally:
    return QueueProcessor(str(queue), mailer, **options).flush()


def mailer(relay: ScriptedRelay, **options: Any) -> SMTPMailer:
    return SMTPMailer("127.0.0.1", relay.port, **options)


def got(*relays: ScriptedRelay) -> Counter[str]:
    messages = [message for relay in relays for message in relay.messages]
    return Counter(r for message in messages for r in message.recipients)


def shut_down(relay: ScriptedRelay, stage: str, after: int, ending: bytes) -> None:
    """Have `relay` end at `stage`, after so many commands, and take no connections."""
    seen = [0]

    def act(dialogue: Any, usual: str) -> int:
        seen[0] += 1
        if seen[0] <= after:
            return int(dialogue.say(usual.encode() + b"\r\n"))
        relay.reply("CONNECT", "554 5.3.2 Not now")
        dialogue.closing = "close"
        return int(dialogue.say(ending)) if ending else 0

    relay.on(stage, act)


ENDS = pytest.mark.parametrize(
    ("stage", "after", "ending"),
    [
        ("MAIL", 1, BYE),
        ("RCPT", 60, BYE),
        ("RCPT", 60, b""),
        ("DATA", 1, BYE),
        ("END", 1, BYE),
    ],
)


@ENDS
def test_a_relay_that_shuts_down_uses_up_no_attempt(
    tmp_path: Path, stage: str, after: int, ending: bytes
) -> None:
    with ScriptedRelay() as relay:
        shut_down(relay, stage, after, ending)
        send(tmp_path / "q", 200)
        assert flush(tmp_path / "q", mailer(relay)) == Tally(50)
        [entry] = left_in(tmp_path / "q")
        assert (entry.recipients, entry.attempts) == (many(200)[50:], 0)


@ENDS
def test_the_next_relay_takes_the_others(
    tmp_path: Path, stage: str, after: int, ending: bytes
) -> None:
    with ScriptedRelay() as relay, ScriptedRelay() as other:
        shut_down(relay, stage, after, ending)
        send(tmp_path / "q", 200)
        both = FailoverMailer([mailer(relay), mailer(other)])
        assert flush(tmp_path / "q", both) == Tally(200)
        assert got(relay).total() == 50
        assert got(relay, other) == Counter(many(200))


def test_uncertain_attempts_are_those_of_the_recipient(tmp_path: Path) -> None:
    """Each attempt has another part that is uncertain, and one that is deferred."""
    with ScriptedRelay() as relay:
        attempt = 0

        def part_of(address: str) -> int:
            return int(address.partition("@")[0].strip("<r")) // 20

        def rcpt(dialogue: Any, usual: str) -> int:
            address = relay.commands[-1].partition("<")[2]
            said = b"450 4.2.0 Later" if part_of(address) > attempt else b"250 Ok"
            return int(dialogue.say(said + b"\r\n"))

        def end(dialogue: Any, usual: str) -> int:
            if part_of(dialogue.recipients[0]) == attempt:
                dialogue.closing = "close"
                return 0
            return int(dialogue.say(b"250 Ok\r\n"))

        relay.on("RCPT", rcpt)
        relay.on("END", end)
        queue = tmp_path / "q"
        send(queue, 60)
        by_20 = mailer(relay, recipients_per_transaction=20)
        # If nobody of a part of 40 is sent, the others wait as well, and come first.
        assert flush(queue, by_20) == Tally(deferred=40)
        [entry] = left_in(queue)
        assert entry.recipients == many(60)[40:] + many(60)[:40]
        assert (entry.attempts, entry.uncertain) == (1, 1)
        assert entry.doubts == (0,) * 20 + (1,) * 20 + (0,) * 20
        attempt = 1
        assert flush(queue, by_20) == Tally(sent=20, deferred=40)
        [entry] = left_in(queue)
        assert entry.recipients == many(60)[40:] + many(60)[20:40]
        assert (entry.uncertain, entry.doubts) == (1, (0,) * 20 + (1,) * 20)
        attempt = 2
        assert flush(queue, by_20) == Tally(sent=20, deferred=20)
        [entry] = left_in(queue)
        assert entry.recipients == many(60)[40:]
        assert (entry.attempts, entry.uncertain, entry.doubts) == (3, 1, ())
        attempt = 3
        assert flush(queue, by_20) == Tally(sent=20)


def test_dead_letters_of_an_attempt_that_a_relay_failure_cuts_in_two(
    tmp_path: Path,
) -> None:
    """No attempt is counted for the others, and their dead letter has its own name."""
    refused = (many(60)[3], many(60)[33])
    with ScriptedRelay() as relay, ScriptedRelay() as other:
        relay.reply("RCPT", "550 5.1.1 Unknown", address=refused[0])
        other.reply("RCPT", "550 5.1.1 Unknown", address=refused[1])
        shut_down(relay, "MAIL", 1, BYE)
        queue = tmp_path / "q"
        send(queue, 60)
        by_20 = mailer(relay, recipients_per_transaction=20)
        assert flush(queue, by_20) == Tally(sent=19, rejected=1)
        # One more that is left, so that the dead letter has a name of its own again.
        other.reply("RCPT", "450 4.2.0 Later", address=many(60)[59])
        assert flush(queue, mailer(other)) == Tally(sent=38, deferred=1, rejected=1)
    dead = [parse_entry(p.read_bytes()) for p in queue.glob(".Failed/new/*")]
    assert {entry.recipients for entry in dead} == {(r,) for r in refused}


def test_parts_of_a_long_entry_are_one_attempt(tmp_path: Path) -> None:
    """Nobody is tried twice in one flush, and each dead letter is kept."""
    with ScriptedRelay() as relay:
        for number in (7, 707):
            relay.reply("RCPT", "450 4.2.0 Later", address=f"r{number}@x.org")
        for number in (3, 703):
            relay.reply("RCPT", "550 5.1.1 No", address=f"r{number}@x.org")
        queue = tmp_path / "q"
        send(queue, 1200)
        before = os.times().elapsed
        assert flush(queue, mailer(relay)) == Tally(1196, 2, 2)
        assert os.times().elapsed - before < 30
        named = Counter(c for c in relay.commands if c.startswith("RCPT"))
        assert (len(named), named.total()) == (1200, 1200)
        assert set(got(relay).values()) == {1}
        [path] = queue.glob("cur/*")
        assert path.stat().st_mtime > time.time() + 30
        [entry] = left_in(queue)
        assert entry.recipients == ("r7@x.org", "r707@x.org")
        assert (entry.attempts, entry.last_reply) == (1, "450 4.2.0 Later")
    dead = [parse_entry(p.read_bytes()) for p in queue.glob(".Failed/new/*")]
    assert {e.recipients for e in dead} == {("r3@x.org",), ("r703@x.org",)}


def test_an_ordinary_entry_is_not_in_parts(tmp_path: Path) -> None:
    with ScriptedRelay() as relay:
        queue = tmp_path / "q"
        send(queue, 100)
        changed: list[float] = []

        def end(dialogue: Any, usual: str) -> int:
            changed.append((queue / "tmp").stat().st_mtime_ns)
            return int(dialogue.say(usual.encode() + b"\r\n"))

        relay.on("END", end)
        assert flush(queue, mailer(relay)) == Tally(100)
        assert [len(message.recipients) for message in relay.messages] == [50, 50]
        # Nothing was written.
        assert changed == [(queue / "tmp").stat().st_mtime_ns] * 2


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_end_in_the_middle_of_a_long_entry(tmp_path: Path, how: str) -> None:
    """A stop waits for one part of the entry. A kill doubles no more than that."""
    queue = tmp_path / "q"
    code = """if True:
        import sys, signal
        from postcommit import QueueProcessor, SMTPMailer
        mailer = SMTPMailer("127.0.0.1", int(sys.argv[2]))
        processor = QueueProcessor(sys.argv[1], mailer)
        signal.signal(signal.SIGTERM, lambda *args: processor.stop())
        processor.flush()
        """
    with ScriptedRelay() as relay:
        ends = [0]

        def end(dialogue: Any, usual: str) -> int:
            ends[0] += 1
            time.sleep(0.1)
            return int(dialogue.say(usual.encode() + b"\r\n"))

        relay.on("END", end)
        send(queue, 2000)
        command = [sys.executable, "-c", code, str(queue), str(relay.port)]
        child = subprocess.Popen(command)
        relay.wait_until(lambda: ends[0] >= 9)
        child.terminate() if how == "stop" else child.kill()
        child.wait(20)
        first = got(relay).total()
        assert first < 2000
        [entry] = left_in(queue)
        assert entry.attempts == 0
        doubled = first + len(entry.recipients) - 2000
        assert doubled == 0 if how == "stop" else doubled <= 10 * 50
        assert flush(queue, mailer(relay)).sent == len(entry.recipients)
        assert len(got(relay)) == 2000


def test_each_transmission_has_a_slot_of_the_rate(tmp_path: Path) -> None:
    with ScriptedRelay() as relay:
        send(tmp_path / "q", 500)
        began = time.monotonic()
        assert flush(tmp_path / "q", mailer(relay), rate_limit=10).sent == 500
        assert time.monotonic() - began > 0.8
        assert len(relay.messages) == 10


def test_the_size_of_a_transmission() -> None:
    one = SMTPMailer("127.0.0.1", recipients_per_transaction=20)
    two = SMTPMailer("127.0.0.1", recipients_per_transaction=30)
    assert size_of(one) == 20
    assert size_of(FailoverMailer([one, two])) == 30
    assert size_of(FailoverMailer([one, ScriptedMailer()])) is None
    assert size_of(ScriptedMailer()) is None
    assert size_of(WatchedMailer(one, print)) == 20
    assert size_of(WatchedMailer(ScriptedMailer(), print)) is None


class OwnSend(zope_sendmail.SMTPMailer):
    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("older", "size"),
    [
        (zope_sendmail.SMTPMailer(), 50),
        (repoze_sendmail.SMTPMailer(), 50),
        (repoze_sendmail.SendmailMailer(), 50),
        (OwnSend(), None),
    ],
)
def test_the_size_of_a_transmission_of_an_older_mailer(
    older: SupportsSend, size: int | None
) -> None:
    assert size_of(older) == size


def in_memory() -> tuple[Consumer, Settler, Worker]:
    consumer: Any = Consumer()
    breaker = Breaker("memory")
    settler = Settler(consumer, ScriptedMailer(), SCHEDULE, breaker)
    return consumer, settler, Worker(consumer, ScriptedMailer(), breaker, settler)


def claim_of(entry: Entry) -> Any:
    claim = Claim(1, lambda: entry)
    claim.read()
    return claim


def test_a_recipient_that_waits_for_others_whom_another_processor_tried() -> None:
    consumer, settler, _ = in_memory()
    entry = Entry("s@x.org", many(3), MESSAGE)
    deferred = Outcome(many(3)[0], Status.DEFERRED, Reply(450))
    failed = DeliveryReport("1", many(3), (deferred,), Reply(421))
    settler.settle(claim_of(entry), failed)
    [(_, settlement)] = consumer.settled
    left = settlement.left
    assert left is not None
    assert left.recipients == many(3)[1:] + many(1)
    assert settlement.due == consumer.now()
    # It waits for the others, until somebody else has tried them.
    assert settler.part_of(claim_of(left), 50).recipients == many(3)[1:]
    alone = claim_of(Entry("s@x.org", many(1), MESSAGE))
    assert settler.part_of(alone, 50).recipients == many(1)
    assert settler.part_of(alone, 50) is alone.entry


@pytest.mark.parametrize(("seconds", "count"), [(0.0, 4), (2.0, 2), (9.0, 1)])
def test_the_number_of_transmissions_follows_the_seconds(
    seconds: float, count: int
) -> None:
    _, _, worker = in_memory()
    claim = claim_of(Entry("s@x.org", many(1000), MESSAGE))
    worker._mailer = SMTPMailer("127.0.0.1")
    assert len(worker._part_of(claim).recipients) == 100
    worker._began[claim] -= seconds
    worker._note_part(claim)
    assert len(worker._part_of(claim).recipients) == count * 50
