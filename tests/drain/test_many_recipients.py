"""An entry to so many recipients that one attempt has several transmissions."""
from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from postcommit import FailoverMailer
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._mail.entry import Entry
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.store import Store
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import Tally
from tests.support.smtpd import ScriptedRelay


MESSAGE = b"Message-Id: <1@x.org>\n\nText.\n"

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
        assert flush(queue, by_20) == Tally(deferred=60)
        [entry] = left_in(queue)
        assert (entry.uncertain, entry.doubts) == (1, (1,) * 20 + (0,) * 40)
        attempt = 1
        assert flush(queue, by_20) == Tally(sent=20, deferred=40)
        [entry] = left_in(queue)
        assert (entry.uncertain, entry.doubts) == (1, (1,) * 20 + (0,) * 20)
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
