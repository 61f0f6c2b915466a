"""What a report means for an entry."""
from __future__ import annotations

from pathlib import Path

import pytest

from postcommit._drain.breaker import Breaker
from postcommit._drain.schedule import Schedule
from postcommit._drain.settle import Settler
from postcommit._drain.settle import part
from postcommit._mail.entry import Entry
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._mail.report import giving_up
from postcommit._maildir.store import Store
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from tests.support.mailers import BYE
from tests.support.mailers import LATER
from tests.support.mailers import LOST
from tests.support.mailers import NEVER
from tests.support.mailers import OK
from tests.support.mailers import ScriptedMailer


FATES = {
    "ann@x.org": (Status.SENT, OK),
    "bob@x.org": (Status.DEFERRED, LATER),
    "carol@x.org": (Status.UNCERTAIN, LOST),
    "dan@x.org": (Status.REJECTED, NEVER),
}

REPORT = DeliveryReport(
    "1@x.org", tuple(FATES), tuple(Outcome(r, *fate) for r, fate in FATES.items())
)

ENTRY = Entry("shop@x.org", tuple(FATES), b"Text.", 2, "before")


@pytest.mark.parametrize(
    ("report", "tally"),
    [(REPORT, Tally(1, 2, 1)), (giving_up(REPORT), Tally(1, 0, 2, 1))],
)
def test_each_recipient_is_counted_once(
    tmp_path: Path, report: DeliveryReport, tally: Tally
) -> None:
    store, schedule = Store(str(tmp_path / "queue")), Schedule(60, 4000, 432000)
    store.stage("shop@x.org", tuple(FATES), [b"Text."]).commit()
    consumer = store.consumer(schedule)
    settler = Settler(consumer, ScriptedMailer(), schedule, Breaker("queue"))
    [claim] = consumer.take(1)
    claim.read()
    settler.settle(claim, report)
    assert settler.tally == tally
    consumer.close()


def test_each_part_has_its_recipients_and_their_replies() -> None:
    assert part(ENTRY, REPORT, lambda o: o.status is Status.REJECTED) == Entry(
        "shop@x.org", ("dan@x.org",), b"Text.", 3, str(NEVER)
    )
    final = (Status.SENT, Status.REJECTED)
    left = part(ENTRY, REPORT, lambda o: o.status not in final)
    assert left is not None
    assert left.uncertain == 1
    assert left.recipients == ("bob@x.org", "carol@x.org")
    assert left.last_reply == f"bob@x.org: {LATER}; carol@x.org: {LOST}"


def test_a_part_without_recipients_is_none() -> None:
    assert part(ENTRY, REPORT, lambda outcome: False) is None


@pytest.mark.parametrize(
    ("status", "reply", "expected"),
    [
        (Status.SENT, OK, True),
        (Status.SENT, Reply(), True),  # of a mailer that shows none
        (Status.DEFERRED, LATER, True),
        (Status.REJECTED, NEVER, True),
        (Status.UNCERTAIN, LOST, False),
        (Status.DEFERRED, Reply(0, "4.4.2", "The dialogue was interrupted"), False),
        (Status.REJECTED, Reply(0, "5.3.4", "The message is too large"), False),
    ],
)
def test_what_the_relay_did_not_say_is_no_answer(
    status: Status, reply: Reply, expected: bool
) -> None:
    report = DeliveryReport.alike("1", ["a@x.org"], status, reply)
    assert Breaker("queue").attribute("1", report) == (report, expected)


def test_an_answer_about_one_recipient_is_an_answer() -> None:
    assert Breaker("queue").attribute("1", REPORT) == (REPORT, True)


def test_a_relay_that_fails_after_its_first_replies_gives_no_answer() -> None:
    first = Outcome("ann@x.org", Status.SENT, OK)
    report = DeliveryReport("1@x.org", tuple(FATES), (first,), BYE, True)
    [_, answered] = Breaker("queue").attribute("1", report)
    assert not answered
