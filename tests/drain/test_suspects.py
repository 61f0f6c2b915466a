"""Entries that may be what the relay fails at: possible poison messages."""
from __future__ import annotations

import pytest

from postcommit._drain import breaker as module
from postcommit._drain.breaker import Breaker
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit.interfaces import Status
from tests.support.mailers import BYE
from tests.support.mailers import LOST
from tests.support.mailers import OK


ONE, TWO = "1.x", "2.x"


class Suspects(Breaker):
    """The breaker, and what becomes of a report."""

    def __init__(self) -> None:
        super().__init__("queue")

    def answered(self, key: str) -> None:
        report = DeliveryReport.alike("1@x.org", ["a@x.org"], Status.SENT, OK)
        assert self.attribute(key, report) == (report, True)

    def failed_at(self, key: str) -> bool:
        """Return whether the message is to blame for the failure of the relay."""
        report = DeliveryReport("1@x.org", ("a@x.org",), (), BYE, True)
        attributed, answered = self.attribute(key, report)
        assert not answered
        assert (attributed is report) == (attributed.relay_failure is not None)
        return attributed.relay_failure is None


def test_at_first_nobody_is_suspected() -> None:
    assert not Suspects().suspects


def test_as_long_as_others_fare_alike_it_is_the_relay() -> None:
    suspects = Suspects()
    for _ in range(3):
        assert not suspects.failed_at(ONE)
        assert not suspects.failed_at(TWO)
    assert suspects.suspects.keys() == {ONE, TWO}


def test_one_that_fails_again_while_others_do_not_is_to_blame() -> None:
    suspects = Suspects()
    assert not suspects.failed_at(ONE)
    suspects.answered(TWO)
    assert suspects.failed_at(ONE)
    assert suspects.failed_at(ONE)
    assert not suspects.failed_at(TWO)


def test_a_failure_before_any_message_is_the_relays() -> None:
    suspects = Suspects()
    report = DeliveryReport("1@x.org", ("a@x.org",), (), BYE, False)
    for _ in range(2):
        assert suspects.attribute(ONE, report) == (report, False)
        suspects.answered(TWO)
    assert not suspects.suspects


def test_without_a_failure_of_the_relay_nothing_is_suspected() -> None:
    """A mailer written elsewhere may say that it failed, and name no failure."""
    suspects = Suspects()
    outcome = Outcome("a@x.org", Status.UNCERTAIN, LOST)
    report = DeliveryReport("1@x.org", ("a@x.org",), (outcome,), None, True)
    assert suspects.attribute(ONE, report) == (report, False)
    assert not suspects.suspects


def test_what_was_answered_before_a_first_failure_tells_nothing() -> None:
    suspects = Suspects()
    suspects.answered(TWO)
    assert not suspects.failed_at(ONE)
    assert not suspects.failed_at(ONE)


def test_an_answer_ends_the_suspicion() -> None:
    suspects = Suspects()
    suspects.failed_at(ONE)
    suspects.answered(ONE)
    assert not suspects.suspects
    assert not suspects.failed_at(ONE)


def test_of_very_many_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_SUSPECTS", 2)
    suspects = Suspects()
    for number in range(4):
        suspects.failed_at(f"{number}.x")
    assert suspects.suspects.keys() == {"2.x", "3.x"}
