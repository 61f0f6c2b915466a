"""Reports, and the table from replies to outcomes."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._mail.report import Stage
from postcommit._mail.report import deferring
from postcommit._mail.report import giving_up
from postcommit._mail.report import judge
from postcommit.errors import DeliveryError
from postcommit.errors import RelayError
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import Status
from tests.support.mailers import mixed


ANN, BOB, CAROL = "ann@x.org", "bob@x.org", "carol@x.org"
BOTH = (ANN, BOB)

LATER = Reply(450, "4.2.0", "Greylisted")


def statuses(report: IDeliveryReport) -> dict[str, Status]:
    return {outcome.recipient: outcome.status for outcome in report.outcomes}


# Replies


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (Reply(), ""),
        (Reply(250), "250"),
        (LATER, "450 4.2.0 Greylisted"),
        (Reply(0, "4.4.2", "Connection lost"), "4.4.2 Connection lost"),
        (Reply(550, "", "two\nlines\r\n\tand more"), "550 two lines and more"),
        (Reply(550, "", "a\x1b[2Jb\0c\x9bd\u202ee\ud800"), "550 a�[2Jb�c�d�e�"),
        (Reply(550, "", "a\u2028b\x85c"), "550 a b c"),
        (Reply(550, "", "\x1b" * 70_000), f"550 {'�' * 1996}..."),
        (Reply(550, "", "x " * 70_000), f"550 {'x ' * 998}..."),
    ],
)
def test_a_reply_is_one_line(reply: Reply, line: str) -> None:
    assert str(reply) == line


@given(st.text(st.characters()))
def test_no_text_of_a_relay_disturbs_the_log(text: str) -> None:
    line = str(Reply(550, "5.1.1", text))
    assert line.isprintable()
    assert line.encode()
    assert line.startswith("550 5.1.1")


@pytest.mark.parametrize(
    ("stage", "code", "status"),
    [
        (Stage.SESSION, 250, Status.SENT),
        (Stage.SESSION, 450, None),
        (Stage.SESSION, 554, None),
        (Stage.MAIL, 250, Status.SENT),
        (Stage.MAIL, 451, Status.DEFERRED),
        (Stage.MAIL, 552, Status.REJECTED),
        (Stage.RCPT, 251, Status.SENT),
        (Stage.RCPT, 450, Status.DEFERRED),
        (Stage.RCPT, 550, Status.REJECTED),
        (Stage.RCPT, 552, Status.DEFERRED),
        (Stage.DATA, 354, Status.DEFERRED),
        (Stage.DATA, 554, Status.REJECTED),
        (Stage.END, 250, Status.SENT),
        (Stage.END, 452, Status.DEFERRED),
        (Stage.END, 552, Status.REJECTED),
        (Stage.END, 199, Status.DEFERRED),
        (Stage.END, 600, Status.DEFERRED),
    ],
)
def test_the_table_from_replies_to_outcomes(
    stage: Stage, code: int, status: Status | None
) -> None:
    assert judge(stage, code) is status


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("code", [421, 530, 534, 535, 538])
def test_some_replies_are_the_relays_trouble_at_each_stage(
    stage: Stage, code: int
) -> None:
    assert judge(stage, code) is None


# Reports


def test_a_report_sorts_its_outcomes() -> None:
    report = mixed()
    sorted_ = (report.sent, report.deferred, report.rejected, report.uncertain)
    assert tuple(outcome for (outcome,) in sorted_) == report.outcomes


def test_a_report_without_failures_does_not_raise() -> None:
    DeliveryReport.alike("1@x.org", BOTH, Status.SENT, Reply(250)).raise_for_failure()


def test_a_report_with_failures_raises_and_names_them() -> None:
    with pytest.raises(DeliveryError, match=r"bob@x\.org: deferred, 450") as caught:
        mixed().raise_for_failure()
    assert caught.value.report == mixed()
    assert isinstance(caught.value, OSError)
    assert ANN not in str(caught.value)


def test_a_relay_failure_raises() -> None:
    report = DeliveryReport("1@x.org", BOTH, relay_failure=RelayError("no connection"))
    with pytest.raises(DeliveryError, match="the relay failed: no connection"):
        report.raise_for_failure()
    assert report.outcomes == report.sent == ()


def test_what_is_given_up_keeps_its_last_reply_and_uncertain_stays_so() -> None:
    report = giving_up(mixed())
    for before, after in zip(mixed().outcomes, report.outcomes, strict=True):
        is_deferred = before.status is Status.DEFERRED
        assert after.status is (Status.REJECTED if is_deferred else before.status)
        assert after.given_up is (before.status is Status.UNCERTAIN)
    assert report.uncertain
    assert [o.reply for o in report.outcomes] == [o.reply for o in mixed().outcomes]


def test_a_relay_failure_leaves_the_decided_recipients_and_defers_the_others() -> None:
    sent = Outcome(BOB, Status.SENT, Reply(250))
    failure = RelayError("silence")
    report = DeliveryReport("1@x.org", (ANN, BOB, CAROL), (sent,), failure)
    assert report.undecided == (ANN, CAROL)
    deferred = deferring(report)
    assert statuses(deferred) == {
        ANN: Status.DEFERRED,
        BOB: Status.SENT,
        CAROL: Status.DEFERRED,
    }
    assert deferred.undecided == ()
    assert deferred.relay_failure is None


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (RelayError("mx: full", Reply(421, "4.7.0", "Later")), "421 4.7.0 Later"),
        (RelayError("mute"), "4.4.2 The relay fails at this message: mute"),
    ],
)
def test_a_message_that_is_to_blame_is_deferred(
    failure: RelayError, said: str
) -> None:
    report = deferring(DeliveryReport("1@x.org", BOTH, (), failure, True))
    assert statuses(report) == dict.fromkeys(BOTH, Status.DEFERRED)
    assert {str(outcome.reply) for outcome in report.outcomes} == {said}
    assert report.message_id == "1@x.org"
    assert report.relay_failure is None
