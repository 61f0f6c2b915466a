"""When an entry is given up: uncertain too often, or too old."""
from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._cli.main import main
from postcommit._drain.settle import only
from postcommit._mail.entry import Entry
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.item import EntryState
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.store import Store
from postcommit._transaction.event import MailDeferredEvent
from postcommit._transaction.event import MailRejectedEvent
from postcommit._transaction.event import MailSentEvent
from postcommit._transaction.event import MailUncertainEvent
from postcommit.interfaces import Tally
from tests.support.mailers import ScriptedMailer
from tests.support.service import logging_restored
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay


pytestmark = pytest.mark.usefixtures("commands_apart")


MESSAGE = b"Message-Id: <1@x.org>\n\nText.\n"
ANN, LATER, REFUSED, LOST = "ann@x.org", "later@x.org", "never@x.org", "lost@x.org"

DAY = 86400.0


class Queue:
    """A queue; `now` is the time of its processors, of which each attempt has one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(str(path))
        self.mailer = ScriptedMailer()
        self.now = time.time()

    def send(self, *recipients: str, name: str = "") -> None:
        item = self.store.stage("shop@x.org", recipients, [MESSAGE])
        item.commit()
        if name:
            os.rename(item.path, self.path / "new" / name)

    def attempt(self, **options: int) -> Tally:
        """Try what is due with a new processor, as after a restart."""
        processor = QueueProcessor(
            str(self.path), self.mailer, clock=lambda: self.now, **options
        )
        return processor.flush()

    def attempt_later(self, **options: int) -> Tally:
        self.now += 5000
        return self.attempt(**options)

    def files(self, folder: str) -> list[Path]:
        return sorted((self.path / folder).glob("*"))

    def entries(self, folder: str) -> list[Entry]:
        return [parse_entry(path.read_bytes()) for path in self.files(folder)]

    def events(self) -> list[tuple[type, tuple[str, ...]]]:
        return [(type(e), e.recipients) for e in self.mailer.events]  # type: ignore[attr-defined]


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue")


# Uncertain


def test_after_three_uncertain_attempts_it_is_a_dead_letter_that_says_so(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.send(LOST)
    [name] = [path.name for path in queue.files("new")]
    assert queue.attempt() == queue.attempt_later() == Tally(deferred=1)
    assert queue.attempt_later() == Tally(uncertain=1)
    assert queue.attempt_later() == Tally()
    assert len(queue.mailer.attempts) == 3
    [dead] = queue.files(".Failed/new")
    assert dead.name == name  # with it the id that an operator may have noted
    assert b"X-Zope-Attempts: 3 (3 uncertain)\n" in dead.read_bytes()
    said = "uncertain, it may have arrived: 4.4.2 Connection lost"
    assert parse_entry(dead.read_bytes()).last_reply == said
    assert queue.events() == [
        (MailDeferredEvent, (LOST,)),
        (MailDeferredEvent, (LOST,)),
        (MailUncertainEvent, (LOST,)),
    ]
    last = caplog.records[-1]
    assert last.levelname == "ERROR"
    assert "to lost@x.org: uncertain, given up: 4.4.2" in last.getMessage()
    assert last.status == "uncertain"


@pytest.mark.parametrize("most", [1, 2, 5])
def test_the_limit_is_an_option(queue: Queue, most: int) -> None:
    queue.send(LOST)
    tallies = [queue.attempt_later(max_uncertain=most) for _ in range(most + 1)]
    assert tallies == [Tally(deferred=1)] * (most - 1) + [Tally(uncertain=1), Tally()]


def test_other_attempts_do_not_count_but_are_no_new_beginning(queue: Queue) -> None:
    queue.send(LOST)
    queue.attempt()
    lost = queue.mailer.outcomes.pop("lost")
    queue.mailer.outcomes["lost"] = queue.mailer.outcomes["later"]
    for _ in range(4):
        assert queue.attempt_later() == Tally(deferred=1)
    [entry] = queue.entries("cur")
    assert (entry.attempts, entry.uncertain) == (5, 1)
    queue.mailer.outcomes["lost"] = lost
    assert queue.attempt_later() == Tally(deferred=1)
    assert queue.attempt_later() == Tally(uncertain=1)


def test_each_recipient_has_its_own_fate(queue: Queue) -> None:
    queue.send(ANN, LATER, REFUSED, LOST)
    assert queue.attempt(max_uncertain=1) == Tally(1, 1, 1, 1)
    [left] = queue.entries("cur")
    assert (left.recipients, left.attempts, left.uncertain) == ((LATER,), 1, 0)
    rejected, uncertain = queue.entries(".Failed/new")
    assert (rejected.recipients, rejected.uncertain) == ((REFUSED,), 0)
    assert (uncertain.recipients, uncertain.uncertain) == ((LOST,), 1)
    assert set(queue.events()) == {
        (MailSentEvent, (ANN,)),
        (MailDeferredEvent, (LATER,)),
        (MailRejectedEvent, (REFUSED,)),
        (MailUncertainEvent, (LOST,)),
    }


def test_one_that_is_retried_by_a_person_has_one_more_attempt(queue: Queue) -> None:
    queue.send(LOST)
    for _ in range(3):
        queue.attempt_later()
    admin = MaildirOperators(str(queue.path))
    [dead] = admin.items([EntryState.FAILED])
    with admin.changes() as changes:
        assert changes.retry(dead)
    assert queue.attempt_later() == Tally(uncertain=1)
    [dead_again] = queue.entries(".Failed/new")
    assert (dead_again.attempts, dead_again.uncertain) == (4, 4)
    del queue.mailer.outcomes["lost"]
    [dead] = admin.items([EntryState.FAILED])
    with admin.changes() as changes:
        assert changes.retry(dead)
    assert queue.attempt_later() == Tally(sent=1)


def test_a_real_relay_that_never_confirms_gets_three_copies(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "queue")
    with ScriptedRelay() as relay:
        relay.drop("END")
        queue.mailer = SMTPMailer("127.0.0.1", relay.port)  # type: ignore[assignment]
        queue.send(ANN)
        tallies = [queue.attempt_later() for _ in range(5)]
        queue.mailer.close()  # type: ignore[attr-defined]
    assert tallies == [Tally(deferred=1)] * 2 + [Tally(uncertain=1)] + [Tally()] * 2


def test_commands_tell_uncertain_from_rejected(
    queue: Queue, capsys: pytest.CaptureFixture[str]
) -> None:
    queue.send(LOST)
    for _ in range(3):
        queue.attempt_later()
    for command in (["list", "--failed"], ["status"]):
        main([command[0], str(queue.path), *command[1:]])
        assert "uncertain, it may have arrived: 4.4.2" in capsys.readouterr().out
    [dead] = MaildirOperators(str(queue.path)).items([EntryState.FAILED])
    main(["show", str(queue.path), dead.id])
    shown = capsys.readouterr().out
    assert "uncertain, it may have arrived: 4.4.2" in shown
    assert "\nattempts    3 (3 uncertain)\n" in shown
    assert "rejected" not in shown


def test_flush_tells_uncertain_from_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = Queue(tmp_path / "queue")
    with ScriptedRelay() as relay, logging_restored():
        relay.drop("END")
        queue.send(ANN)
        main(["flush", str(queue.path), *to(relay), "--max-uncertain", "1"])
    told = "recipients: 0 sent, 0 deferred, 0 rejected, 1 uncertain"
    assert told in capsys.readouterr().out


def test_an_entry_without_uncertain_attempts_is_written_as_before() -> None:
    entry = Entry("a@x.org", (ANN,), MESSAGE, 2, "450 Later")
    assert preamble_of(entry) == (
        b"X-Zope-From: a@x.org\nX-Zope-To: ann@x.org\n"
        b"X-Zope-Attempts: 2\nX-Zope-Reply: 450 Later\n"
    )


@given(
    st.builds(
        Entry,
        st.just("a@x.org"),
        st.just((ANN, LATER)),
        st.sampled_from(
            [
                MESSAGE,
                b"X-Zope-Attempts: 9 (9 uncertain)\nX-Zope-Reply: no\n" + MESSAGE,
                b"X-Zope-From: a\n" + MESSAGE,
            ]
        ),
        st.integers(0, 999999999),
        st.sampled_from(["", "450 Later", "(3 uncertain)"]),
        st.integers(0, 999999999),
    )
)
def test_what_is_written_is_read(entry: Entry) -> None:
    assert parse_entry(preamble_of(entry) + entry.message) == entry


# Too old


def _of_1970(folder: str) -> str:
    return "0000000123.M000001P1Q1.host"


def _of_1970_by_seconds(folder: str) -> str:
    return "000000123.host"


@pytest.mark.parametrize("name", [_of_1970, _of_1970_by_seconds])
@pytest.mark.parametrize("mtime", [123.0, None])
def test_an_entry_of_1970_is_as_old_as_its_file_or_its_first_attempt(
    queue: Queue, name: Callable[[str], str], mtime: float | None
) -> None:
    queue.send(LATER, name=name(""))
    if mtime is not None:
        os.utime(queue.path / "new" / name(""), (mtime, mtime))
    began = queue.now
    assert queue.attempt() == Tally(deferred=1)
    while queue.attempt_later() == Tally(deferred=1):
        assert queue.now - began < 6 * DAY
    assert queue.now - began >= 5 * DAY
    [dead] = queue.files(".Failed/new")
    assert re.fullmatch(r"\d{10}\.0{6,7}123\..*", dead.name)
    assert queue.events()[-1] == (MailRejectedEvent, (LATER,))


def test_an_entry_of_1970_that_is_tried_in_1970_gets_its_age_later(
    queue: Queue,
) -> None:
    queue.send(LATER, name=_of_1970(""))
    os.utime(queue.path / "new" / _of_1970(""), (123.0, 123.0))
    right, queue.now = queue.now, 200.0
    assert queue.attempt() == Tally(deferred=1)
    queue.now = right
    assert queue.attempt_later() == Tally(deferred=1)
    assert queue.attempt_later() == Tally(deferred=1)


def test_an_entry_is_deferred_once_however_old_it_is(queue: Queue) -> None:
    queue.send(LATER)
    queue.now += 30 * DAY
    assert queue.attempt() == Tally(deferred=1)
    assert queue.attempt_later() == Tally(rejected=1)


def test_a_clock_that_is_wrong_at_the_attempt_does_not_age_it(queue: Queue) -> None:
    queue.send(LATER)
    [before] = queue.files("new")
    right, queue.now = queue.now, 100.0
    assert queue.attempt() == Tally(deferred=1)
    queue.now = right
    assert queue.attempt_later() == Tally(deferred=1)
    [after] = queue.files("cur")
    assert after.name == f"{before.name}:2,"


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_the_numbers_of_each_recipient_survive_the_file(numbers: list[int]) -> None:
    recipients = tuple(f"{index}@x.org" for index in range(len(numbers)))
    doubts = dict(zip(recipients, numbers, strict=True))
    entry = only(Entry("", recipients, MESSAGE, 3, "no"), recipients, doubts)
    assert parse_entry(preamble_of(entry) + entry.message) == entry
    assert entry.uncertain_by_recipient() == doubts
    assert entry.uncertain == max(numbers)


def test_numbers_of_other_recipients_are_those_of_all() -> None:
    """Somebody has removed a recipient by an editor."""
    envelope = b"X-Zope-From: \nX-Zope-To: a@x.org\n"
    tried = b"X-Zope-Attempts: 3 (2 uncertain: 2*1 0*1)\nX-Zope-Reply: no\n"
    entry = parse_entry(envelope + tried + MESSAGE)
    assert (entry.attempts, entry.uncertain, entry.doubts) == (3, 2, ())
    assert entry.last_reply == "no"
