"""`FailoverMailer`: which message goes to which mailer, and when a relay is tried."""
from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import transaction
from zope.interface import implementer

from postcommit import DirectMailDelivery
from postcommit import FailoverMailer
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SendmailMailer
from postcommit import SMTPMailer
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._mailers.foreign import pipeline_of
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.errors import TooManyConnections
from postcommit.interfaces import IPipelineMailer
from postcommit.interfaces import IRelayCheck
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from postcommit.testing import FakeClock
from postcommit.testing import RecordingMailer
from tests.support.mailers import BYE
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.mailers import ScriptedPipelineMailer
from tests.support.mailers import Taken
from tests.support.smtpd import ScriptedRelay
from tests.support.smtpd import well_treated


DEAD = RelayError("it is dead")


def mail(number: int, *recipients: str) -> Taken:
    message = b"Message-Id: <%d@x.org>\r\n\r\n" % number
    return Taken("me@x.org", recipients or (f"{number}@x.org",), message)


def transmit(mailer: Any, *mails: Taken) -> dict[int, DeliveryReport]:
    """Return the reports for `mails`, by their numbers, in the order of the reports."""
    reports: dict[int, DeliveryReport] = {}
    with pipeline_of(mailer) as pipeline:
        for number, one in enumerate(mails):
            pipeline.offer(one, key=number)
            reports.update(pipeline.completed())
        reports.update(pipeline.drain())
    assert list(reports) == list(range(len(mails)))
    return reports


def statuses(report: DeliveryReport) -> dict[str, str]:
    return {o.recipient.partition("@")[0]: o.status.value for o in report.outcomes}


def ids(mailer: ScriptedMailer) -> list[int]:
    """The numbers of the messages that `mailer` has taken, in order."""
    return [int(taken.message[13:].partition(b"@")[0]) for taken in mailer.attempts]


@pytest.fixture(params=[ScriptedMailer, ScriptedPipelineMailer, "mixed"])
def pair(request: pytest.FixtureRequest) -> tuple[ScriptedMailer, ScriptedMailer]:
    if request.param == "mixed":
        return ScriptedPipelineMailer(), ScriptedMailer()
    return request.param(), request.param()


@pytest.fixture
def start() -> Iterator[Callable[..., ScriptedRelay]]:
    with well_treated() as start:
        yield start


# Which mailer


def test_the_first_mailer_gets_all_as_long_as_it_works(
    pair: tuple[ScriptedMailer, ScriptedMailer],
) -> None:
    first, second = pair
    reports = transmit(FailoverMailer(pair), *map(mail, range(5)))
    assert all(statuses(reports[n]) == {str(n): "sent"} for n in range(5))
    assert ids(first) == [0, 1, 2, 3, 4]
    assert second.attempts == []


def test_the_next_mailer_takes_over_in_the_middle_of_a_batch(
    pair: tuple[ScriptedMailer, ScriptedMailer],
) -> None:
    first, second = pair

    def before(taken: Taken) -> None:
        if taken.recipients == ("2@x.org",):
            first.failure = DEAD

    first.before = before
    reports = transmit(FailoverMailer(pair), *map(mail, range(5)))
    assert all(statuses(reports[n]) == {str(n): "sent"} for n in range(5))
    assert (ids(first), ids(second)) == ([0, 1], [2, 3, 4])


@pytest.mark.parametrize("recipient", ["later", "never", "lost"])
def test_a_message_with_an_outcome_does_not_go_to_the_next_mailer(
    recipient: str, pair: tuple[ScriptedMailer, ScriptedMailer]
) -> None:
    _, second = pair
    expected = {"later": "deferred", "never": "rejected", "lost": "uncertain"}
    report = transmit(FailoverMailer(pair), mail(1, f"{recipient}@x.org"))[0]
    assert statuses(report) == {recipient: expected[recipient]}
    assert second.attempts == []


def test_a_message_at_which_the_relay_fails_does_not_go_to_the_next_mailer(
    pair: tuple[ScriptedMailer, ScriptedMailer],
) -> None:
    first, second = pair
    mails = mail(0), mail(1, "poison@x.org"), mail(2)
    reports = transmit(FailoverMailer(pair), *mails)
    failure = reports[1].relay_failure
    assert isinstance(failure, RelayError)
    assert (failure.reply, reports[1].failed_mid_message) == (BYE, True)
    assert statuses(reports[2]) == {"2": "sent"}
    assert sorted(ids(first) + ids(second)) == [0, 2]


class Partly(ScriptedPipelineMailer):
    """Sends to the first recipient, and then its relay fails."""

    failed_mid_message = False
    too_many_connections = False

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
        self.attempts.append(Taken(fromaddr, tuple(toaddrs), message))
        return DeliveryReport(
            "1@x.org",
            tuple(toaddrs),
            (Outcome(toaddrs[0], Status.SENT, Reply(250)),),
            DEAD,
            self.failed_mid_message,
            self.too_many_connections,
        )


def test_only_recipients_without_an_outcome_go_to_the_next_mailer() -> None:
    first, second = Partly(), ScriptedMailer()
    one = mail(1, "ann@x.org", "never@x.org", "bob@x.org")
    report = transmit(FailoverMailer([first, second]), one)[0]
    assert report.recipients == one.recipients
    assert statuses(report) == {"ann": "sent", "never": "rejected", "bob": "sent"}
    assert report.relay_failure is None
    [taken] = second.attempts
    assert taken == Taken("me@x.org", ("never@x.org", "bob@x.org"), one.message)


def test_three_mailers_each_of_which_sends_to_one_recipient() -> None:
    mailers = Partly(), Partly(), Partly()
    one = mail(1, "a@x.org", "b@x.org", "c@x.org")
    report = transmit(FailoverMailer(mailers), one)[0]
    assert statuses(report) == {"a": "sent", "b": "sent", "c": "sent"}
    assert report.relay_failure is None, "the last one failed after the last recipient"


def test_what_is_left_when_all_mailers_have_failed_has_no_outcome() -> None:
    one = mail(1, "a@x.org", "b@x.org", "c@x.org")
    report = transmit(FailoverMailer([Partly(), Partly()]), one)[0]
    assert statuses(report) == {"a": "sent", "b": "sent"}
    assert report.undecided == ("c@x.org",)
    assert isinstance(report.relay_failure, RelayError)
    assert not report.failed_mid_message


def test_a_failure_in_the_middle_of_the_rest_is_reported_with_all_outcomes() -> None:
    second = Partly()
    second.failed_mid_message = True
    one = mail(1, "a@x.org", "b@x.org", "c@x.org")
    third = ScriptedMailer()
    report = transmit(FailoverMailer([Partly(), second, third]), one)[0]
    assert statuses(report) == {"a": "sent", "b": "sent"}
    assert (report.relay_failure, report.failed_mid_message) == (DEAD, True)
    assert third.attempts == []


def test_the_report_names_each_relay_that_failed(
    pair: tuple[ScriptedMailer, ScriptedMailer],
) -> None:
    first, second = pair
    first.failure, second.failure = DEAD, BYE
    reports = transmit(FailoverMailer(pair), mail(1), mail(2))
    for report in reports.values():
        assert report.outcomes == ()
        assert str(report.relay_failure) == (
            f"all relays failed: {first!r}: it is dead;"
            f" {second!r}: 421 4.7.0 Try again later"
        )
    [alone] = transmit(FailoverMailer([second]), mail(1)).values()
    assert isinstance(alone.relay_failure, RelayError)
    assert alone.relay_failure.reply == BYE


def test_the_first_failure_of_a_relay_is_reported() -> None:
    """Two messages are on their way when it fails."""

    class Failing(ScriptedPipelineMailer):
        def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
            self.attempts.append(Taken(fromaddr, tuple(toaddrs), message))
            failure = RelayError(f"failure {len(self.attempts)}")
            return DeliveryReport("1@x.org", tuple(toaddrs), relay_failure=failure)

        def pipeline(self) -> ScriptedPipeline:
            return ScriptedPipeline(self)

    first, second = Failing(), ScriptedMailer()
    second.failure = DEAD
    reports = transmit(FailoverMailer([first, second]), mail(1), mail(2))
    assert len(first.attempts) == 2
    assert len(reports) == 2
    for report in reports.values():
        assert "failure 1" in str(report.relay_failure)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_a_report_was_announced_if_each_part_of_it_was(
    first: bool, second: bool
) -> None:
    class Announcing(Partly):
        is_announced = False

        def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
            report = super().send(fromaddr, toaddrs, message)
            return replace(report, announced=self.is_announced)

    mailers = Announcing(), Announcing()
    mailers[0].is_announced, mailers[1].is_announced = first, second
    one = mail(1, "a@x.org", "b@x.org")
    report = transmit(FailoverMailer(mailers), one)[0]
    assert statuses(report) == {"a": "sent", "b": "sent"}
    assert report.announced is (first and second)


# Too many connections


class Full(ScriptedPipelineMailer):
    """Its relay refuses one more connection."""

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
        self.attempts.append(Taken(fromaddr, tuple(toaddrs), message))
        return DeliveryReport(
            "1@x.org",
            tuple(toaddrs),
            relay_failure=BYE,
            too_many_connections=len(self.attempts) == 1,
        )


def test_a_relay_that_refuses_one_more_connection_has_not_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "postcommit")
    first, second = Full(), ScriptedMailer()
    mailer = FailoverMailer([first, second])
    report = transmit(mailer, mail(1))[0]
    assert statuses(report) == {"1": "sent"}, "otherwise a direct delivery loses it"
    assert caplog.messages == []
    transmit(mailer, mail(2))
    assert len(first.attempts) == 2, "it is asked again at once"


def test_the_report_says_if_a_relay_refused_one_more_connection() -> None:
    second = ScriptedMailer()
    second.failure = DEAD
    report = transmit(FailoverMailer([Full(), second]), mail(1))[0]
    assert report.relay_failure is not None
    assert report.too_many_connections, "a drain goes on with fewer workers"


# When a relay is tried again


def test_a_relay_that_failed_is_tried_with_one_message_after_a_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "postcommit.mailers.failover")
    clock = FakeClock()
    first, second = ScriptedPipelineMailer(), ScriptedPipelineMailer()
    asked: list[Taken] = []
    first.before, first.failure = asked.append, DEAD
    mailer = FailoverMailer([first, second], retry_after=30, monotonic=clock)
    transmit(mailer, mail(0))
    assert caplog.messages == [
        f"{first!r} failed, mail goes through {second!r}: it is dead"
    ]
    clock.advance(29)
    transmit(mailer, mail(1))
    assert len(asked) == 1
    clock.advance(1)
    transmit(mailer, mail(2), mail(3), mail(4))
    assert [taken.recipients for taken in asked] == [("0@x.org",), ("2@x.org",)]
    assert len(caplog.messages) == 1, "it is no news that it still fails"
    first.failure = None
    clock.advance(30)
    transmit(mailer, mail(5), mail(6), mail(7))
    assert (ids(first), ids(second)) == ([5, 6, 7], [0, 1, 2, 3, 4])
    assert caplog.messages[1:] == [f"{first!r} works again"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_the_trial_waits_for_its_reply_before_the_next_message() -> None:
    clock = FakeClock()
    first, second = ScriptedPipelineMailer(), ScriptedPipelineMailer()
    first.failure = DEAD
    mailer = FailoverMailer([first, second], monotonic=clock)
    transmit(mailer, mail(0), mail(1))
    first.failure = None
    clock.advance(60)
    with mailer.pipeline() as pipeline:
        pipeline.offer(mail(2), key=2)
        [(key, report)] = pipeline.completed()
        assert (key, statuses(report)) == (2, {"2": "sent"})
        pipeline.offer(mail(3), key=3)
        assert list(pipeline.completed()) == []
        assert [key for key, _ in pipeline.drain()] == [3]
    assert ids(first) == [2, 3]


def test_while_one_thread_tries_a_relay_the_others_use_the_next() -> None:
    clock = FakeClock()
    first, second = ScriptedMailer(), ScriptedMailer()
    first.failure = DEAD
    mailer = FailoverMailer([first, second], monotonic=clock)
    transmit(mailer, mail(0))
    clock.advance(60)
    first.failure = None
    reached, release = threading.Event(), threading.Event()

    def before(taken: Taken) -> None:
        reached.set()
        assert release.wait(60)

    first.before = before
    thread = threading.Thread(target=transmit, args=(mailer, mail(1)))
    thread.start()
    assert reached.wait(60)
    transmit(mailer, mail(2))
    release.set()
    thread.join(60)
    assert (ids(first), ids(second)) == ([1], [0, 2])


def test_a_relay_without_an_answer_does_not_count_as_working() -> None:
    clock = FakeClock()
    first, second = ScriptedMailer(), ScriptedMailer()
    first.failure = DEAD
    mailer = FailoverMailer([first, second], monotonic=clock)
    transmit(mailer, mail(0))
    clock.advance(60)
    first.failure = None
    report = transmit(mailer, mail(1, "lost@x.org"))[0]
    assert statuses(report) == {"lost": "uncertain"}
    transmit(mailer, mail(2))
    assert (ids(first), ids(second)) == ([1], [0, 2])


def test_if_all_have_failed_each_is_tried_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "postcommit.mailers.failover")
    first, second = ScriptedMailer(), ScriptedMailer()
    first.failure = second.failure = DEAD
    mailer = FailoverMailer([first, second], monotonic=FakeClock())
    for _ in range(3):
        assert transmit(mailer, mail(0))[0].relay_failure is not None
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "WARNING"]
    assert caplog.messages[1] == f"{second!r} failed, and no other works: it is dead"
    second.failure = None
    assert statuses(transmit(mailer, mail(1))[0]) == {"1": "sent"}
    assert caplog.messages[2:] == [f"{second!r} works again"]


def test_a_relay_in_its_time_off_is_tried_if_the_others_fail() -> None:
    first, second = ScriptedMailer(), ScriptedMailer()
    first.failure = DEAD
    mailer = FailoverMailer([first, second], monotonic=FakeClock())
    transmit(mailer, mail(0))
    first.failure, second.failure = None, DEAD
    assert statuses(transmit(mailer, mail(1))[0]) == {"1": "sent"}
    assert ids(first) == [1]


# Round robin


def test_messages_take_turns_among_those_that_work() -> None:
    mailers = [ScriptedPipelineMailer() for _ in range(3)]
    mailer = FailoverMailer(mailers, round_robin=True, monotonic=FakeClock())
    transmit(mailer, *map(mail, range(5)))
    transmit(mailer, mail(5))
    assert [ids(m) for m in mailers] == [[0, 3], [1, 4], [2, 5]]
    mailers[0].failure = DEAD
    transmit(mailer, *map(mail, range(6, 10)))
    transmit(mailer, *map(mail, range(10, 12)))
    assert [ids(m) for m in mailers] == [[0, 3], [1, 4, 6, 8, 10], [2, 5, 7, 9, 11]]


# Pipelines that break


class Broken(ScriptedPipelineMailer):
    """Raises in a method of its pipeline."""

    def __init__(self, method: str, error: type[BaseException] = LookupError) -> None:
        super().__init__()
        self.method, self.error = method, error

    def pipeline(self) -> ScriptedPipeline:
        pipeline = super().pipeline()

        def fail(*args: Any, **kwargs: Any) -> Any:
            pipeline.done += pipeline.behind
            raise self.error

        setattr(pipeline, self.method, fail)
        return pipeline


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
@pytest.mark.parametrize("method", ["offer", "drain"])
def test_after_an_error_the_reports_that_exist_are_returned(
    method: str, error: type[BaseException]
) -> None:
    first, second = Partly(), Broken(method, error)
    pipeline = FailoverMailer([first, second]).pipeline()
    reports: dict[int, DeliveryReport] = {}

    def run() -> None:
        with pipeline:
            for number in range(2):
                pipeline.offer(mail(number, "ann@x.org", "bob@x.org"), key=number)
            for key, report in pipeline.drain():
                reports[key] = report

    with pytest.raises(error):
        run()
    reports.update(pipeline.completed())
    # Without a report, each would be sent again to its first recipient.
    assert list(reports) == ([0] if method == "offer" else [0, 1])
    assert all(statuses(report)["ann"] == "sent" for report in reports.values())
    assert list(pipeline.completed()) == []


def test_a_message_without_a_report_is_not_in_the_way_of_the_others() -> None:
    class Forgetful(ScriptedPipelineMailer):
        def pipeline(self) -> ScriptedPipeline:
            pipeline = super().pipeline()
            pipeline.completed = list  # type: ignore[method-assign]
            pipeline.drain = list  # type: ignore[method-assign]
            return pipeline

    mailer = FailoverMailer([Forgetful(), ScriptedMailer()])
    with mailer.pipeline() as pipeline:
        pipeline.offer(mail(0), key=0)
        assert list(pipeline.drain()) == []
    with pytest.raises(RuntimeError, match="no report"):
        mailer.send("a@x.org", "b@x.org", b"\r\n")


@pytest.mark.parametrize("is_read", [True, False])
def test_a_caller_that_gives_up_gets_the_reports_of_what_was_sent(
    is_read: bool, start: Callable[..., ScriptedRelay]
) -> None:
    relay = start()
    smtp = SMTPMailer("127.0.0.1", relay.port)
    pipeline = FailoverMailer([smtp, ScriptedMailer()]).pipeline()
    seen: list[int] = []

    def run() -> None:
        with pipeline:
            for number in range(3):
                pipeline.offer(mail(number), key=number)
                if is_read:
                    seen.extend(key for key, _ in pipeline.completed())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    seen += [key for key, _ in pipeline.completed()]
    # The end of the second message has left, and its reply may have come or not.
    assert seen == [0, 1]
    smtp.close()


# The other methods


def test_the_mailer_is_good_if_one_is() -> None:
    first, second = RecordingMailer(), RecordingMailer()
    mailer = FailoverMailer([first, second])
    first.fail("421 4.3.2 Closing")
    mailer.check()
    second.fail("421 4.3.2 Closing")
    with pytest.raises(RelayError, match="all relays failed: <RecordingMailer"):
        mailer.check()
    FailoverMailer([first, ScriptedMailer()]).check()


def test_a_check_that_raises_another_error_counts_as_a_failure() -> None:
    @implementer(IRelayCheck)
    class Odd(ScriptedMailer):
        def check(self) -> None:
            raise ConnectionResetError("reset")

    with pytest.raises(RelayError, match="ConnectionResetError: reset"):
        FailoverMailer([Odd()]).check()


def test_a_relay_that_refuses_the_connection_of_a_check_has_not_failed() -> None:
    class Crowded(RecordingMailer):
        def check(self) -> None:
            raise TooManyConnections("421 Too many")

    first, second = Crowded(), RecordingMailer()
    mailer = FailoverMailer([first, second])
    mailer.check()
    transmit(mailer, mail(1))[0].raise_for_failure()
    assert (len(first.outbox), len(second.outbox)) == (1, 0)


def test_a_relay_whose_check_failed_is_not_tried_again_by_the_commit() -> None:
    first, second = RecordingMailer(), RecordingMailer()
    first.fail("421 4.3.2 Closing", times=1)
    delivery = DirectMailDelivery(FailoverMailer([first, second]), check_relay=True)
    with transaction.manager:
        delivery.send("a@x.org", "b@x.org", b"Subject: x\r\n\r\n")
    assert (len(first.outbox), len(second.outbox)) == (0, 1)


def test_a_check_does_not_take_the_place_of_the_trial() -> None:
    clock = FakeClock()
    first, second = RecordingMailer(), RecordingMailer()
    mailer = FailoverMailer([first, second], monotonic=clock)
    delivery = DirectMailDelivery(mailer, check_relay=True)
    first.fail("421 4.3.2 Closing", times=1)
    for _ in range(3):
        with transaction.manager:
            delivery.send("a@x.org", "b@x.org", b"Subject: x\r\n\r\n")
        clock.advance(30)
    assert (len(first.outbox), len(second.outbox)) == (1, 2)


def test_a_relay_whose_check_is_good_gets_the_message() -> None:
    first, second = RecordingMailer(), RecordingMailer()
    first.fail("421 4.3.2 Closing")
    second.fail("421 4.3.2 Closing", times=1)
    mailer = FailoverMailer([first, second], monotonic=FakeClock())
    assert transmit(mailer, mail(1))[0].relay_failure is not None
    mailer.check()
    transmit(mailer, mail(2))[0].raise_for_failure()
    assert len(second.outbox) == 1


def test_each_mailer_is_closed_and_reads_its_certificates() -> None:
    called: list[str] = []

    class Closable(ScriptedMailer):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def close(self) -> None:
            called.append(f"close {self.name}")

        def read_certificates(self) -> None:
            called.append(f"read {self.name}")
            raise RelayError(self.name)

    mailer = FailoverMailer([Closable("1"), ScriptedMailer(), Closable("2")])
    mailer.close()
    with pytest.raises(RelayError):
        mailer.read_certificates()
    assert called == ["close 1", "close 2", "read 1", "read 2"]


def test_send_reports_and_announces() -> None:
    first, second = RecordingMailer(), RecordingMailer()
    first.fail("421 4.3.2 Closing")
    events: list[object] = []
    mailer = FailoverMailer([first, second], notify=events.append)
    report = mailer.send("a@x.org", "b@x.org", b"Subject: x\r\n\r\n")
    report.raise_for_failure()
    [event] = events
    assert "MailSentEvent" in repr(event)
    assert len(second.outbox) == 1


def test_the_repr_names_the_mailers_and_no_password() -> None:
    class Loud(ScriptedMailer):
        def __repr__(self) -> str:
            return "<Loud me:secret@mx.example.org>"

    mailer = FailoverMailer([SMTPMailer("mx.x.org", 587), SendmailMailer(), Loud()])
    text = repr(mailer)
    assert "<FailoverMailer <SMTPMailer mx.x.org:587>, <SendmailMailer " in text
    assert "secret" not in text


@pytest.mark.parametrize(
    ("mailers", "reason"),
    [
        ([], "must have at least one mailer"),
        (SMTPMailer(), "must be several mailers, such as"),
        (None, "must be several mailers, such as"),
        ("smtp", "number 1 must have a method send()"),
        ([SMTPMailer(), object()], "number 2 must have a method send()"),
        ([SMTPMailer()] * 2, "is there twice"),
        ([SMTPMailer], "number 1 must be a mailer, not its class"),
    ],
)
def test_mailers_that_can_never_work_are_refused(mailers: Any, reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        FailoverMailer(mailers)
    assert caught.value.name == "mailers"
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"retry_after": -1}, {"retry_after": "60"}, {"round_robin": 1}]
)
def test_options_that_can_never_work_are_refused(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(OptionError, match=name):
        FailoverMailer([ScriptedMailer()], **options)


def test_a_generator_of_mailers_is_taken() -> None:
    mailer = FailoverMailer(ScriptedMailer() for _ in range(2))
    assert len(mailer.mailers) == 2
    assert IPipelineMailer.providedBy(mailer)


def test_a_failover_mailer_may_be_a_part_of_another() -> None:
    mailers = [ScriptedMailer() for _ in range(3)]
    mailers[0].failure = mailers[1].failure = DEAD
    mailer = FailoverMailer([FailoverMailer(mailers[:2]), mailers[2]])
    reports = transmit(mailer, mail(1), mail(2))
    assert all(report.relay_failure is None for report in reports.values())
    assert ids(mailers[2]) == [1, 2]


def test_a_forked_child_goes_on_though_a_thread_had_the_lock() -> None:
    mailer = FailoverMailer([RecordingMailer()])
    with mailer._lock:
        child = os.fork()
        if not child:
            code = 1
            try:
                report = mailer.send("a@x.org", "b@x.org", b"Subject: x\r\n\r\n")
                code = 0 if report.sent else 2
            finally:
                os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


# With real relays


def test_the_rest_of_a_batch_follows_when_the_relay_crashes(
    start: Callable[..., ScriptedRelay], tmp_path: Path
) -> None:
    relays = start(), start()
    queue = str(tmp_path / "queue")
    delivery = QueuedMailDelivery(queue)
    with transaction.manager:
        for number in range(20):
            delivery.send("a@x.org", f"{number}@x.org", b"Subject: x\r\n\r\nx\r\n")

    def crash(dialogue: Any, usual: str) -> int:
        code = dialogue.say(usual.encode() + b"\r\n")
        if len(relays[0].completed) == 5:
            relays[0].refuse()
            dialogue.closing = "close"
        return int(code)

    relays[0].on("END", crash)
    smtp = [SMTPMailer("127.0.0.1", relay.port, timeout=5) for relay in relays]
    tally = QueueProcessor(queue, FailoverMailer(smtp), min_backoff=0).flush()
    taken = [m.recipients[0] for relay in relays for m in relay.messages]
    assert sorted(taken) == sorted(f"{n}@x.org" for n in range(20))
    assert tally == Tally(sent=20)
    for mailer in smtp:
        mailer.close()
