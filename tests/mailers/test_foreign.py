"""The door for mailers: whatever they return or raise becomes a report of ours."""
from __future__ import annotations

import functools
import logging
import os
import smtplib
import socket
import ssl
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
from contextlib import ExitStack
from email import message_from_bytes
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import transaction
import zope.event
from hypothesis import given
from hypothesis import strategies as st
from transaction import TransactionManager
from zope.interface import implementer

from postcommit import DirectMailDelivery
from postcommit import FailoverMailer
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._mail.report import deferring
from postcommit._mailers.foreign import accounting_for
from postcommit._mailers.foreign import from_exception
from postcommit._mailers.foreign import from_result
from postcommit._mailers.foreign import notify_of
from postcommit._mailers.foreign import pipeline_of
from postcommit._transaction.event import MailDeferredEvent
from postcommit._transaction.event import MailRejectedEvent
from postcommit._transaction.event import events_of
from postcommit.errors import DeliveryError
from postcommit.errors import RelayError
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailer
from postcommit.interfaces import IReply
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from postcommit.testing import FakeClock
from postcommit.testing import RecordingMailer
from tests.support.mailers import ScriptedMailer
from tests.support.mailers import ScriptedPipeline
from tests.support.mailers import ScriptedPipelineMailer
from tests.support.mailers import Taken
from tests.support.mailers import mixed
from tests.support.smtpd import ScriptedRelay


ANN, BOB, CAROL = "ann@x.org", "bob@x.org", "carol@x.org"
BOTH = (ANN, BOB)

UMLAUT, ENCODED = "ann@bücher.example", "ann@xn--bcher-kva.example"

OK = Reply(250, "2.0.0", "Queued")


def message(number: int) -> bytes:
    return b"Message-Id: <%d@x.org>\n\n" % number


def to(recipients: Iterable[str], number: int = 1) -> Taken:
    return Taken("me@x.org", tuple(recipients), message(number))


def statuses(report: DeliveryReport) -> dict[str, Status]:
    return {outcome.recipient: outcome.status for outcome in report.outcomes}


def transmit(mailer: Any, *mails: Taken) -> list[tuple[Any, DeliveryReport]]:
    """Return the reports for `mails`, with their numbers."""
    reports = []
    with pipeline_of(mailer) as pipeline:
        for number, mail in enumerate(mails):
            pipeline.offer(mail, key=number)
            reports += pipeline.completed()
        reports += pipeline.drain()
    return reports


@implementer(IMailer)
class TellingMailer:
    """Reports of all recipients as it was told."""

    def __init__(self, outcome: Callable[[str], Any]) -> None:
        self.outcome = outcome

    def send(
        self, fromaddr: str, toaddrs: Sequence[str], message: bytes
    ) -> IDeliveryReport:
        outcomes = tuple(map(self.outcome, toaddrs))
        return DeliveryReport(message_id_of(message), tuple(toaddrs), outcomes)


class RaisingMailer:
    """As one that smtplib's users write."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, Status.SENT),
        (smtplib.SMTPDataError(450, b"Later"), Status.DEFERRED),
        (ValueError("Never"), Status.REJECTED),
    ],
)
def test_a_mailer_that_raises_is_understood(
    error: Exception | None, status: Status
) -> None:
    [(_, report)] = transmit(RaisingMailer(error), to([ANN]))
    assert [o.status for o in report.outcomes] == [status]
    assert report.message_id == "1@x.org"


class Telling(ScriptedPipeline):
    """Reports as `tell` makes it of the reports and keys that there are."""

    def __init__(self, mailer: ScriptedMailer, tell: Callable[[Any], Any]) -> None:
        super().__init__(mailer)
        self.tell = tell

    def drain(self) -> Any:
        return self.tell(super().drain())


class TellingPipelineMailer(ScriptedPipelineMailer):
    def __init__(self, tell: Callable[[Any], Any]) -> None:
        super().__init__()
        self.tell = tell

    def pipeline(self) -> Telling:
        return Telling(self, self.tell)


def test_a_pipeline_may_take_the_next_before_it_reports() -> None:
    mailer = ScriptedPipelineMailer()
    with pipeline_of(mailer) as pipeline:
        pipeline.offer(to(BOTH, 1), key="one")
        assert list(pipeline.completed()) == []
        pipeline.offer(to([ANN], 2), key="two")
        [(key, report)] = pipeline.completed()
        assert (key, report.message_id, len(report.sent)) == ("one", "1@x.org", 2)
        [(key, report)] = pipeline.drain()
        assert (key, report.message_id, len(report.sent)) == ("two", "2@x.org", 1)


@pytest.mark.parametrize(
    "tell",
    [
        lambda reports: [*reports, *reports],
        lambda reports: [("another", report) for _, report in reports],
    ],
    ids=["too many", "of another"],
)
def test_a_pipeline_that_reports_what_was_not_asked_is_an_error(tell: Any) -> None:
    mailer = TellingPipelineMailer(tell)
    with pytest.raises(RuntimeError, match="a report too many, or out of order"):
        transmit(mailer, to([ANN]))


def test_what_was_sent_before_a_report_too_many_is_not_sent_again(
    queue: Queue,
) -> None:
    class Repeating(ScriptedPipeline):
        def completed(self) -> list[tuple[Any, IDeliveryReport]]:
            return [report for report in super().completed() for _ in range(2)]

    class Mailer(ScriptedPipelineMailer):
        def pipeline(self) -> ScriptedPipeline:
            return Repeating(self)

    queue.send(ANN)
    queue.send(ANN)
    assert queue.flush(Mailer()) == Tally(1, 0, 0)
    assert len(queue.files()) == 1


def test_a_pipeline_that_leaves_one_out_gives_the_others() -> None:
    class Forgetting(ScriptedPipeline):
        def offer(self, mail: Outgoing, key: Any = None) -> None:
            if key != 1:
                super().offer(mail, key)

    class Mailer(ScriptedPipelineMailer):
        def pipeline(self) -> ScriptedPipeline:
            return Forgetting(self)

    found = transmit(Mailer(), *(to([ANN], number) for number in range(3)))
    assert [(key, report.message_id) for key, report in found] == [
        (0, "0@x.org"),
        (2, "2@x.org"),
    ]


def test_the_reports_of_a_pipeline_are_complete() -> None:
    odd = DeliveryReport.alike("1@x.org", [BOB], Status.SENT, Reply(250))
    mailer = TellingPipelineMailer(lambda reports: [(0, odd)])
    [(_, report)] = transmit(mailer, to(BOTH))
    assert statuses(report) == {ANN: Status.UNCERTAIN, BOB: Status.SENT}


def test_events_are_published_as_the_mailer_says_at_that_moment() -> None:
    mailer = ScriptedMailer()
    assert notify_of(mailer) == mailer.notify
    mailer.notify = repr  # type: ignore[method-assign]
    assert notify_of(mailer) is repr
    assert notify_of(RaisingMailer(None)) is zope.event.notify  # type: ignore[arg-type]


def test_whom_a_mailer_says_nothing_of_is_uncertain() -> None:
    report = DeliveryReport.alike("1@x.org", [BOB], Status.REJECTED, Reply(550))
    whole = accounting_for(report, to(BOTH))
    assert [o.recipient for o in whole.outcomes] == [ANN, BOB]
    assert [o.status for o in whole.outcomes] == [Status.UNCERTAIN, Status.REJECTED]
    assert accounting_for(whole, to(BOTH)) is whole
    odd: Any = Outcome(ANN, "delivered", Reply(550))  # no status at all
    report = DeliveryReport("1", (ANN,), (odd,))
    [unclear] = accounting_for(report, to([ANN])).outcomes
    assert unclear.status is Status.UNCERTAIN


def test_a_report_on_some_recipients_only_loses_no_other() -> None:
    """That of a mailer for the domain of one of them, which was tried last."""
    failure = Reply(421, "4.3.2", "Not now")
    some = DeliveryReport("1@x.org", (ANN,), (), failure, failed_mid_message=True)
    report = accounting_for(some, to(BOTH))
    assert (report.recipients, report.undecided) == (BOTH, BOTH)
    assert report.failed_mid_message
    deferred = [outcome.recipient for outcome in deferring(report).deferred]
    assert tuple(deferred) == BOTH


def test_who_was_decided_before_the_relay_failed_keeps_the_outcome() -> None:
    failure, outcome = Reply(421, "4.3.2", "Not now"), Outcome(BOB, Status.SENT, OK)
    some = DeliveryReport("1@x.org", BOTH, (outcome,), failure)
    report = accounting_for(some, to(BOTH))
    assert report.outcomes == (outcome,)
    assert isinstance(report.relay_failure, RelayError)
    assert report.relay_failure.reply == failure
    assert str(report.relay_failure) == "421 4.3.2 Not now"
    assert report.undecided == (ANN,)


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ({}, Reply(0, "", "The mailer gave no reply")),
        ({"reply": None}, Reply(0, "", "The mailer gave no reply")),
        ({"reply": (450, b"Later")}, Reply(0, "", "(450, b'Later')")),
        ({"reply": "Later"}, Reply(0, "", "Later")),
    ],
)
@pytest.mark.parametrize("status", Status)
def test_what_a_mailer_says_without_a_reply_counts_and_gets_one(
    status: Status, said: dict[str, Any], reply: Reply
) -> None:
    odd: Any = SimpleNamespace(recipient=ANN, status=status, **said)
    good = Outcome(BOB, Status.SENT, Reply(250))
    report = DeliveryReport("1@x.org", (BOB, ANN), (good, odd))
    whole = accounting_for(report, to([BOB, ANN]))
    assert whole.outcomes == (good, Outcome(ANN, status, reply))
    assert accounting_for(report, to([BOB])).outcomes == (good,)


def test_an_outcome_without_a_reply_harms_no_commit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    mailer = TellingMailer(
        lambda to: SimpleNamespace(recipient=to, status=Status.DEFERRED)
    )
    manager = TransactionManager()
    delivery = DirectMailDelivery(mailer, transaction_manager=manager)
    delivery.send("me@x.org", ANN, message(1))
    manager.commit()
    assert [r.getMessage() for r in caplog.records] == [
        "<1@x.org> to ann@x.org: deferred: The mailer gave no reply"
    ]


class DelegatingMailer:
    """Has only ``send()``, and hands each message to a mailer of ours."""

    def __init__(self, mailer: RecordingMailer) -> None:
        self.mailer = mailer
        self.notify = mailer.notify

    def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> Any:
        return self.mailer.send(fromaddr, toaddrs, message)


@pytest.mark.parametrize("queued", [False, True])
def test_what_a_mailer_of_ours_has_announced_is_not_announced_again(
    queued: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "postcommit.event")
    events: list[Any] = []
    mailer: Any = DelegatingMailer(RecordingMailer(notify=events.append))
    mailer.mailer.refuse(BOB, "450 4.2.0 Greylisted")
    queue = str(tmp_path / "queue")
    delivery: Any = QueuedMailDelivery(queue) if queued else DirectMailDelivery(mailer)
    with transaction.manager:
        delivery.send("me@x.org", BOTH, message(1))
    if queued:
        assert QueueProcessor(queue, mailer, workers=1).flush() == Tally(1, 1)
    assert [event.recipients for event in events] == [(ANN,), (BOB,)]
    assert [r.getMessage() for r in caplog.records] == [
        "<1@x.org> to ann@x.org: sent: 250 2.0.0 Taken",
        "<1@x.org> to bob@x.org: deferred: 450 4.2.0 Greylisted",
    ]


@pytest.mark.parametrize("interrupt", [SystemExit, KeyboardInterrupt])
def test_an_interrupt_in_a_subscriber_does_not_have_a_message_sent_again(
    queue: Queue, interrupt: type[BaseException]
) -> None:
    def fail(event: Any) -> None:
        raise interrupt

    inner = RecordingMailer(notify=fail)
    queue.send(ANN)
    tally = queue.flush(DelegatingMailer(inner))
    assert (tally, len(inner.outbox)) == (Tally(1, 0), 1)
    assert queue.files() == {}


def test_a_message_stays_if_its_mailer_raises_an_interrupt(queue: Queue) -> None:
    class Leaving:
        def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> Any:
            raise SystemExit

    queue.send(ANN)
    before = queue.files()
    assert queue.flush(Leaving()) == Tally(0, 0)
    assert queue.files() == before != {}


def test_an_interrupt_in_a_subscriber_is_not_another_outcome() -> None:
    events: list[Any] = []

    def fail(event: Any) -> None:
        events.append(event)
        raise SystemExit

    manager = TransactionManager()
    mailer: Any = DelegatingMailer(RecordingMailer(notify=fail))
    delivery = DirectMailDelivery(mailer, transaction_manager=manager)
    delivery.send("me@x.org", ANN, message(1))
    with pytest.raises(SystemExit):
        manager.commit()
    assert [event.recipients for event in events] == [(ANN,)]


def test_an_outcome_that_changes_after_that_is_announced(tmp_path: Path) -> None:
    """A queue gives up what the mailer has announced as deferred."""
    events: list[Any] = []
    mailer: Any = DelegatingMailer(RecordingMailer(notify=events.append))
    mailer.mailer.refuse(BOB, "450 4.2.0 Greylisted")
    queue = str(tmp_path / "queue")
    with transaction.manager:
        QueuedMailDelivery(queue).send("me@x.org", BOB, message(1))
    clock = FakeClock()
    processor = QueueProcessor(queue, mailer, workers=1, clock=clock)
    assert processor.flush() == Tally(0, 1, 0)
    clock.advance(864_000)
    assert processor.flush() == Tally(0, 0, 1)
    deferred, rejected = MailDeferredEvent, MailRejectedEvent
    assert [type(event) for event in events] == [deferred, deferred, rejected]


# Mailers written elsewhere, at a queue


class SmtplibMailer:
    """As one that smtplib's users write; `dialogue` is what it does."""

    def __init__(self, relay: ScriptedRelay, dialogue: Callable[..., Any]) -> None:
        self.relay = relay
        self.dialogue = dialogue

    def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> Any:
        smtp = smtplib.SMTP("127.0.0.1", self.relay.port, "client.example")
        try:
            return self.dialogue(smtp, fromaddr, toaddrs, message)
        finally:
            smtp.close()


@implementer(IReply)
class EscapedReply:
    """As of a mailer that decodes what is no UTF-8."""

    code = 450
    enhanced = ""
    text = b"Sp\xe4ter".decode(errors="surrogateescape")

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Queue:
    """A queue, and what is in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.delivery = QueuedMailDelivery(str(path))

    def send(self, *recipients: str) -> None:
        self.delivery.send("me@x.org", recipients or (ANN,), b"Subject: x\n\nx\n")
        transaction.commit()

    def flush(self, mailer: Any) -> Tally:
        return QueueProcessor(str(self.path), mailer, workers=1).flush()

    def files(self) -> dict[Path, tuple[int, int]]:
        found = {path: os.stat(path) for path in self.path.rglob("*.*M*")}
        return {path: (it.st_ino, it.st_mtime_ns) for path, it in found.items()}


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path / "queue")


def starttls(smtp: smtplib.SMTP, *message: Any) -> Any:
    smtp.starttls()


def login(smtp: smtplib.SMTP, *message: Any) -> Any:
    smtp.login("me", "secret")
    return smtp.sendmail(*message)


@pytest.mark.parametrize(
    ("dialogue", "mechanisms", "failure"),
    [
        (starttls, None, "STARTTLS extension not supported by server"),
        (login, None, "SMTP AUTH extension not supported by server"),
        (login, ["XOAUTH2"], "No suitable authentication method found"),
        (login, ["PLAIN"], "Server AUTH mechanism infinite loop"),
    ],
)
def test_a_relay_that_lacks_what_no_message_needs_pauses_the_queue(
    queue: Queue,
    dialogue: Callable[..., Any],
    mechanisms: list[str] | None,
    failure: str,
) -> None:
    queue.send()
    queue.send()
    before = queue.files()
    with ScriptedRelay() as relay:
        if mechanisms is not None:
            relay.users, relay.mechanisms = {"me": "secret"}, mechanisms
        if mechanisms == ["PLAIN"]:
            relay.reply("AUTH", b"334 \r\n" * 9)
        mailer = SmtplibMailer(relay, dialogue)
        [(_, report)] = transmit(mailer, to([ANN]))
        assert failure in str(report.relay_failure)
        assert not report.outcomes
        assert queue.flush(mailer) == Tally(0, 0, 0)
        assert relay.connections == 2  # by the attempt, and for one entry of two
        assert queue.files() == before
        assert len(before) == 2
        relay.script.clear()
        relay.users, relay.mechanisms = {"me": "secret"}, ["PLAIN"]
        assert queue.flush(SmtplibMailer(relay, login)) == Tally(2, 0, 0)


@pytest.mark.parametrize(
    "dialogue",
    [
        lambda smtp, *message: smtp.sendmail(*message, mail_options=["SMTPUTF8"]),
        lambda smtp, sender, to, message: smtp.send_message(
            message_from_bytes(message), sender, to
        ),
    ],
)
def test_a_message_that_needs_what_a_relay_lacks_is_rejected(
    queue: Queue, dialogue: Callable[..., Any]
) -> None:
    queue.send("jörg@x.org")
    with ScriptedRelay(without=["SMTPUTF8"]) as relay:
        assert queue.flush(SmtplibMailer(relay, dialogue)) == Tally(0, 0, 1)
    [dead] = (queue.path / ".Failed" / "new").iterdir()
    assert "SMTPUTF8" in dead.read_text()


def test_who_is_refused_by_an_encoded_address_is_not_taken_for_sent(
    queue: Queue,
) -> None:
    def transmit(
        smtp: smtplib.SMTP, sender: str, to: Sequence[str], message: bytes
    ) -> Any:
        parts = [address.rpartition("@") for address in to]
        encoded = [
            name + at + domain.encode("idna").decode() for name, at, domain in parts
        ]
        return smtp.sendmail(sender, encoded, message)

    queue.send("ann@bücher.example", BOB)
    with ScriptedRelay() as relay:
        relay.reply("RCPT", "550 No", address="ann@xn--bcher-kva.example")
        assert queue.flush(SmtplibMailer(relay, transmit)) == Tally(1, 0, 1)
        assert [message.recipients for message in relay.messages] == [(BOB,)]
    [dead] = (queue.path / ".Failed" / "new").iterdir()
    assert "X-Zope-To: ann@bücher.example\n" in dead.read_text()


@pytest.mark.parametrize(
    ("status", "folder", "tally"),
    [
        (Status.DEFERRED, "cur", Tally(0, 2, 0)),
        (Status.UNCERTAIN, "cur", Tally(0, 2, 0)),
        (Status.REJECTED, ".Failed/new", Tally(0, 0, 2)),
    ],
)
def test_a_reply_that_cannot_be_encoded_does_not_pause_the_queue(
    queue: Queue, status: Status, folder: str, tally: Tally
) -> None:
    queue.send()
    queue.send()
    mailer = TellingMailer(lambda to: Outcome(to, status, EscapedReply()))  # type: ignore[arg-type]
    assert queue.flush(mailer) == tally
    kept = [path.read_text() for path in (queue.path / folder).iterdir()]
    line = "X-Zope-Reply: 450 Sp\N{REPLACEMENT CHARACTER}ter\n"
    assert [line in text for text in kept] == [True, True]


# Results and exceptions of other mailers


@pytest.mark.parametrize("result", [None, {}, "queued as 1", {"id": "1", 2: "sent"}])
def test_who_does_not_raise_has_sent(result: object) -> None:
    report = from_result(result, to(BOTH))
    assert set(statuses(report).values()) == {Status.SENT}


def test_a_report_is_taken_as_it_is() -> None:
    report = mixed()
    assert from_result(report, to(report.recipients)) is report


def test_a_mapping_has_the_refused_recipients() -> None:
    report = from_result({BOB: (550, b"N\xf6 such user")}, to(BOTH))
    assert statuses(report) == {ANN: Status.SENT, BOB: Status.REJECTED}
    assert report.rejected[0].reply.text == "N\ufffd such user"


def test_a_refused_recipient_is_found_by_the_address_that_smtplib_takes() -> None:
    report = from_result({ENCODED: (550, b"No")}, to((UMLAUT, BOB)))
    assert statuses(report) == {UMLAUT: Status.REJECTED, BOB: Status.SENT}
    assert str(report.rejected[0].reply) == "550 No"
    error = smtplib.SMTPRecipientsRefused({ENCODED: (550, b"No"), BOB: (450, b"Later")})
    report = from_exception(error, to((UMLAUT, BOB)))
    assert statuses(report) == {UMLAUT: Status.REJECTED, BOB: Status.DEFERRED}
    error = smtplib.SMTPRecipientsRefused({ENCODED: (421, b"Going down")})
    report = from_exception(error, to((UMLAUT,)))
    assert str(report.relay_failure) == "421 Going down"


def test_when_somebody_is_refused_nobody_knows_who_who_was_sent_is_uncertain() -> None:
    refused = {"ann": (1, 2), "Ann <ann@x.org>": (550, b"No"), CAROL: (450, b"Later")}
    report = from_result(refused, to((ANN, BOB, CAROL)))
    assert statuses(report) == {
        ANN: Status.UNCERTAIN,
        BOB: Status.UNCERTAIN,
        CAROL: Status.DEFERRED,
    }
    assert {str(outcome.reply) for outcome in report.uncertain} == {
        "4.3.0 Somebody who is not a recipient was refused: Ann <ann@x.org>: 550 No"
    }
    assert not any(outcome.reply.code for outcome in report.uncertain)


@pytest.mark.parametrize("code", [421, 530, 535])
def test_who_was_sent_is_not_sent_again_for_what_is_said_of_another(code: int) -> None:
    report = from_result({BOB: (code, "Not now")}, to(BOTH))
    assert report.relay_failure is None
    assert statuses(report) == {ANN: Status.SENT, BOB: Status.DEFERRED}


@pytest.mark.parametrize("odd", ["No", None, (550,), ("550", "No"), (1, 2, 3), {}])
def test_a_refusal_in_another_form_is_one_all_the_same(odd: object) -> None:
    for report in (
        from_result({BOB: odd}, to((BOB,))),
        from_exception(
            smtplib.SMTPRecipientsRefused({BOB: odd}),  # type: ignore[dict-item]
            to((BOB,)),
        ),
    ):
        assert statuses(report) == {BOB: Status.DEFERRED}
        assert str(report.outcomes[0].reply)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (smtplib.SMTPSenderRefused(451, b"Busy", ANN), Status.DEFERRED),
        (smtplib.SMTPSenderRefused(550, b"No", ANN), Status.REJECTED),
        (smtplib.SMTPDataError(452, "Full"), Status.DEFERRED),
        (smtplib.SMTPDataError(554, "Spam"), Status.REJECTED),
        (smtplib.SMTPDataError(250, "What?"), Status.DEFERRED),
        (smtplib.SMTPDataError(450, None), Status.DEFERRED),  # type: ignore[arg-type]
        (smtplib.SMTPDataError("?", b""), Status.DEFERRED),  # type: ignore[arg-type]
        (smtplib.SMTPResponseException(552, "Full"), Status.REJECTED),
        (smtplib.SMTPServerDisconnected("Lost"), Status.UNCERTAIN),
        (smtplib.SMTPNotSupportedError("SMTPUTF8"), Status.REJECTED),
        (smtplib.SMTPException("Anything"), Status.DEFERRED),
        (smtplib.SMTPRecipientsRefused({}), Status.DEFERRED),
        (smtplib.SMTPRecipientsRefused("all"), Status.DEFERRED),  # type: ignore[arg-type]
        (ValueError("An address"), Status.REJECTED),
        (TypeError("A mistake"), Status.DEFERRED),
        (KeyError("A mistake"), Status.DEFERRED),
    ],
)
def test_an_exception_about_the_message(error: Exception, status: Status) -> None:
    report = from_exception(error, to(BOTH))
    assert statuses(report) == {ANN: status, BOB: status}
    assert report.message_id == "1@x.org"
    assert report.relay_failure is None


def test_recipients_that_were_refused_have_their_own_replies() -> None:
    error = smtplib.SMTPRecipientsRefused({ANN: (450, b"Later"), BOB: (550, b"No")})
    report = from_exception(error, to(BOTH))
    assert statuses(report) == {ANN: Status.DEFERRED, BOB: Status.REJECTED}


def test_who_is_not_mentioned_in_a_refusal_was_not_sent_either() -> None:
    """A mailer that rewrites addresses, and smtplib's when the relay hangs up."""
    error = smtplib.SMTPRecipientsRefused({"Ann <ann@x.org>": (550, b"No")})
    report = from_exception(error, to((ANN,)))
    assert statuses(report) == {ANN: Status.DEFERRED}
    assert "550" in str(report.outcomes[0].reply)
    error = smtplib.SMTPRecipientsRefused({ANN: (250, b"Ok"), BOB: (550, b"No")})
    report = from_exception(error, to(BOTH))
    assert statuses(report) == {ANN: Status.DEFERRED, BOB: Status.REJECTED}
    error = smtplib.SMTPRecipientsRefused({BOB: (421, b"Going down")})
    report = from_exception(error, to(BOTH))
    assert str(report.relay_failure) == "421 Going down"
    assert report.outcomes == ()
    assert report.failed_mid_message


def test_a_mailer_may_raise_the_failure_of_another_ones_report() -> None:
    """One refused recipient does not pause the queue."""
    with pytest.raises(DeliveryError) as caught:
        mixed().raise_for_failure()
    report = mixed()
    assert from_exception(caught.value, to(report.recipients)) == report


@pytest.mark.parametrize(
    "error",
    [
        smtplib.SMTPAuthenticationError(535, b"Expired"),
        smtplib.SMTPConnectError(554, "No service"),
        smtplib.SMTPHeloError(550, "Who?"),
        smtplib.SMTPSenderRefused(530, b"Log in first", ANN),
        smtplib.SMTPDataError(421, "Going down"),
    ],
)
def test_a_reply_about_the_relay_is_its_failure(
    error: smtplib.SMTPResponseException,
) -> None:
    report = from_exception(error, to(BOTH))
    assert report.outcomes == ()
    assert isinstance(report.relay_failure, RelayError)
    assert report.relay_failure.reply is not None
    assert report.relay_failure.reply.code == error.smtp_code
    in_the_middle = (smtplib.SMTPSenderRefused, smtplib.SMTPDataError)
    assert report.failed_mid_message is isinstance(error, in_the_middle)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError("No"),
        socket.gaierror("No such name"),
        ssl.SSLCertVerificationError("Bad"),
        smtplib.SMTPNotSupportedError("STARTTLS extension not supported by server."),
        smtplib.SMTPException("No suitable authentication method found."),
    ],
)
def test_an_error_before_any_message_is_the_relays_failure(error: OSError) -> None:
    report = from_exception(error, to(BOTH))
    assert report.outcomes == ()
    assert isinstance(report.relay_failure, RelayError)
    assert report.relay_failure.__cause__ is error
    assert type(error).__name__ in str(report.relay_failure)


def test_the_text_of_a_network_error_is_one_line() -> None:
    report = from_exception(ConnectionRefusedError("a\nb\x1b"), to(BOTH))
    assert str(report.relay_failure) == "ConnectionRefusedError: a b�"


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("Read timed out"),
        ConnectionResetError("Reset by peer"),
        BrokenPipeError("Broken pipe"),
        ssl.SSLError("Bad record"),
        type("ReadTimeout", (OSError,), {})("Read timed out"),
    ],
)
def test_a_network_error_that_may_come_behind_the_message_is_uncertain(
    error: OSError,
) -> None:
    report = from_exception(error, to(BOTH))
    assert report.relay_failure is None
    assert statuses(report) == {ANN: Status.UNCERTAIN, BOB: Status.UNCERTAIN}
    assert str(error) in str(report.outcomes[0].reply)
    assert not report.outcomes[0].reply.code


class HandingOverMailer:
    """As one for an API over HTTP, whose answer does not come in time."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> None:
        self.taken += toaddrs
        raise TimeoutError("Read timed out. (read timeout=10)")


def test_a_message_that_was_handed_over_does_not_go_to_the_next_relay() -> None:
    first, second = HandingOverMailer(), RecordingMailer()
    report = FailoverMailer([first, second]).send("me@x.org", ANN, message(1))
    assert statuses(report) == {ANN: Status.UNCERTAIN}
    assert (first.taken, second.outbox) == ([ANN], [])


def test_a_message_that_was_handed_over_is_not_sent_for_ever(queue: Queue) -> None:
    queue.send(ANN)
    mailer, clock = HandingOverMailer(), FakeClock()
    processor = QueueProcessor(
        str(queue.path), mailer, workers=1, clock=clock, max_uncertain=2
    )
    tallies = []
    for _ in range(4):
        tallies.append(processor.flush())
        clock.advance(86_400)
    assert mailer.taken == [ANN, ANN]
    assert tallies[0].uncertain == 0
    assert tallies[1].uncertain == 1


@pytest.mark.parametrize("kind", [smtplib.SMTP, smtplib.SMTP_SSL])
def test_what_smtplib_raises_while_it_connects_comes_before_the_message(
    kind: type[smtplib.SMTP], queue: Queue
) -> None:
    """TimeoutError from connect(), and SSLError from the handshake."""

    class Mailer:
        def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> None:
            kind("127.0.0.1", port, timeout=0.2).sendmail(fromaddr, toaddrs, message)

    queue.send(ANN)
    before = queue.files()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server:
        port = server.getsockname()[1]
        with ExitStack() as waiting:
            if kind is smtplib.SMTP:
                fill(server, waiting)
            [(_, report)] = transmit(Mailer(), to([ANN]))
            assert isinstance(report.relay_failure, RelayError)
            assert isinstance(report.relay_failure.__cause__, TimeoutError)
            assert queue.flush(Mailer()) == Tally(0, 0, 0)
    assert queue.files() == before


def fill(server: socket.socket, waiting: ExitStack) -> None:
    """Fill the backlog of `server`, so that one more connect() is not answered."""
    for _ in range(4):
        client = waiting.enter_context(socket.socket())
        client.setblocking(False)
        client.connect_ex(server.getsockname())


def test_a_relay_error_keeps_its_reply() -> None:
    error = RelayError("Away", Reply(421))
    assert from_exception(error, to(BOTH)).relay_failure is error


def test_a_relay_error_with_another_reply_gets_one() -> None:
    odd: Any = "421 Bye"
    failure = from_exception(RelayError("Away", odd), to(BOTH)).relay_failure
    assert isinstance(failure, RelayError)
    assert (str(failure), failure.reply) == ("Away", Reply(0, "", "421 Bye"))


EVERY_ERROR = [
    smtplib.SMTPRecipientsRefused({ANN: (450, b"Later")}),
    smtplib.SMTPServerDisconnected("Lost"),
    smtplib.SMTPResponseException(550, "No"),
    smtplib.SMTPSenderRefused(550, b"No", ANN),
    smtplib.SMTPDataError(550, "No"),
    smtplib.SMTPConnectError(550, "No"),
    smtplib.SMTPHeloError(550, "No"),
    smtplib.SMTPAuthenticationError(535, "No"),
    smtplib.SMTPNotSupportedError("No"),
    smtplib.SMTPException("No"),
]


def test_no_exception_of_smtplib_says_that_anything_was_sent() -> None:
    known = {
        kind
        for kind in vars(smtplib).values()
        if isinstance(kind, type) and issubclass(kind, smtplib.SMTPException)
    }
    assert {type(error) for error in EVERY_ERROR} == known
    for error in EVERY_ERROR:
        report = from_exception(error, to(BOTH))
        assert not report.sent
        assert bool(report.relay_failure) != bool(report.outcomes)


@given(
    st.lists(st.sampled_from([ANN, BOB, CAROL]), unique=True, min_size=1),
    st.dictionaries(
        st.sampled_from([ANN, BOB, CAROL]), st.tuples(st.integers(0, 999), st.text())
    ),
)
def test_each_recipient_is_accounted_for_once(
    recipients: list[str], refused: dict[str, tuple[int, str]]
) -> None:
    for report in (
        from_result(refused, to(tuple(recipients))),
        from_exception(
            smtplib.SMTPRecipientsRefused(refused), to(recipients)
        ),
    ):
        assert report.recipients == tuple(recipients)
        if report.relay_failure is None:
            assert [o.recipient for o in report.outcomes] == recipients


# What no mailer should do


class Unspeakable:
    """Cannot be shown, compared or hashed."""

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        raise KeyError("no text")

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise KeyError("no comparison")

    def __bool__(self) -> bool:
        raise KeyError("no truth")


@implementer(IReply)
class OddReply(Unspeakable):
    """A reply of which each part is something else."""

    def __init__(self, odd: Any) -> None:
        self.code = self.enhanced = self.text = odd


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


class UnspeakableRelayError(RelayError):
    def __str__(self) -> str:
        raise KeyError("no text")


@implementer(IDeliveryReport)
class OddReport:
    """A report with these attributes, and no others."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


ODD = st.sampled_from(
    [
        None,
        Unspeakable(),
        OddReply(Unspeakable()),
        OddReply(["a list"]),
        OddReply(450),
        OddReply("text"),
        Reply(450, "4.2.0", ["a list"]),  # type: ignore[arg-type]
        Reply(Unspeakable()),  # type: ignore[arg-type]
        (450, b"Later"),
        ["a list"],
        RelayError("mute"),
        RelayError("mute", OddReply(450)),
        UnspeakableRelayError("mute"),
        UnspeakableError(),
        Status.SENT,
        Status.REJECTED,
        ANN,
        "sent",
        450,
        True,
    ]
)

OUTCOMES = st.lists(
    st.one_of(
        ODD,
        st.builds(
            lambda **found: SimpleNamespace(**found),
            recipient=st.one_of(st.sampled_from(BOTH), ODD),
            status=st.one_of(st.sampled_from(Status), ODD),
            reply=ODD,
        ),
        st.builds(Outcome, st.sampled_from(BOTH), st.sampled_from(Status), ODD),
    ),
    max_size=3,
)

REPORTS = st.one_of(
    st.builds(
        OddReport,
        outcomes=st.one_of(OUTCOMES, ODD),
        relay_failure=ODD,
        message_id=ODD,
        failed_mid_message=ODD,
    ),
    st.builds(OddReport),
    st.builds(DeliveryReport, ODD, st.just(BOTH), OUTCOMES.map(tuple), ODD, ODD),
)


def is_sound(report: DeliveryReport) -> bool:
    """Tell whether nobody behind the door can stumble over `report`."""
    list(map(hash, report.outcomes))
    assert type(report) is DeliveryReport
    assert report.recipients == BOTH
    decided = [outcome.recipient for outcome in report.outcomes]
    assert (*decided, *report.undecided) == BOTH or report.undecided
    for outcome in report.outcomes:
        assert type(outcome.status) is Status
        assert type(outcome.reply) is Reply
        assert type(outcome.reply.code) is int
    for word in (report, report.relay_failure, *report.outcomes):
        assert isinstance(f"{word} {word!r}", str)
    assert isinstance(report.failed_mid_message, bool)
    events = events_of(report)
    assert sorted(r for e in events for r in e.recipients) == sorted(BOTH)
    return True


@given(REPORTS)
def test_a_report_that_breaks_the_contract_is_sound_behind_the_door(
    report: Any,
) -> None:
    assert is_sound(accounting_for(report, to(BOTH)))
    assert is_sound(from_result(report, to(BOTH)))
    assert is_sound(from_exception(DeliveryError(report, "failed"), to(BOTH)))


def test_recipients_that_cannot_be_compared_are_those_of_the_mail() -> None:
    report = DeliveryReport("1@x.org", Unspeakable(), ())  # type: ignore[arg-type]
    assert is_sound(accounting_for(report, to(BOTH)))


@given(
    st.one_of(
        ODD,
        st.dictionaries(st.sampled_from([ANN, BOB, "x@x.org", 1, None]), ODD),
    )
)
def test_a_result_that_cannot_be_read_is_sound_behind_the_door(odd: Any) -> None:
    assert is_sound(from_result(odd, to(BOTH)))
    assert is_sound(
        from_exception(smtplib.SMTPRecipientsRefused(odd), to(BOTH))
    )
    assert is_sound(from_exception(smtplib.SMTPDataError(odd, odd), to(BOTH)))


@pytest.mark.parametrize(
    "error",
    [
        UnspeakableError(),
        UnspeakableRelayError("mute"),
        type("Value", (UnspeakableError, ValueError), {})(),
        type("Network", (UnspeakableError, OSError), {})(),
        type("Smtp", (UnspeakableError, smtplib.SMTPException), {})(),
        type("Data", (UnspeakableError, smtplib.SMTPDataError), {})(450, "x"),
        type("Unsupported", (UnspeakableError, smtplib.SMTPNotSupportedError), {})(),
        type("Closed", (UnspeakableError, smtplib.SMTPServerDisconnected), {})(),
        type("Refused", (smtplib.SMTPRecipientsRefused,), {"recipients": 1})(2),
    ],
)
def test_an_error_without_a_text_is_sound_behind_the_door(error: Exception) -> None:
    assert is_sound(from_exception(error, to(BOTH)))


def test_a_broken_report_does_not_stop_a_queue(queue: Queue) -> None:
    """One worker, several entries, and a mailer that reports nonsense of each."""

    class Nonsense:
        def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> Any:
            reply = OddReply(Unspeakable())
            outcomes = [Outcome(to, Status.DEFERRED, reply) for to in toaddrs]  # type: ignore[arg-type]
            return OddReport(outcomes=outcomes, relay_failure=None)

    for _ in range(3):
        queue.send(ANN, BOB)
    assert queue.flush(Nonsense()) == Tally(0, 6, 0)


# A send() of one's own


class Prefixing(SMTPMailer):
    """As an application may change each message before it is sent."""

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
        return super().send(fromaddr, toaddrs, b"X-Seen: yes\r\n" + bytes(message))


class Mixin:
    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
        message = b"X-Seen: yes\r\n" + bytes(message)
        return super().send(fromaddr, toaddrs, message)  # type: ignore[misc]


class Mixed(Mixin, SMTPMailer):
    pass


class Transmitting(SMTPMailer):
    def _transmit(self, mail: Any) -> DeliveryReport:
        mail = Taken(mail.sender, mail.recipients, b"X-Seen: yes\r\n" + mail.message)
        return super()._transmit(mail)


class Wrapper:
    """As a wrapper that a library makes of any object."""

    def __init__(self, mailer: Any) -> None:
        self._mailer = mailer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mailer, name)

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
        message = b"X-Seen: yes\r\n" + bytes(message)
        return self._mailer.send(fromaddr, toaddrs, message)


class WithoutPipeline(Wrapper):
    pipeline = None


def with_attribute(port: int) -> SMTPMailer:
    mailer = SMTPMailer("127.0.0.1", port)
    mailer.send = Wrapper(SMTPMailer("127.0.0.1", port)).send  # type: ignore[method-assign]
    return mailer


def with_partial(port: int) -> SMTPMailer:
    mailer = SMTPMailer("127.0.0.1", port)
    own = functools.partial(Prefixing.send, Prefixing("127.0.0.1", port))
    mailer.send = own  # type: ignore[method-assign]
    return mailer


def with_class_attribute(port: int) -> SMTPMailer:
    own = functools.partial(Prefixing.send, Prefixing("127.0.0.1", port))
    kind = type("Special", (SMTPMailer,), {"send": staticmethod(own)})
    return kind("127.0.0.1", port)  # type: ignore[no-any-return]


def with_spec(port: int) -> Any:
    mailer = mock.Mock(spec=SMTPMailer)
    mailer.send.side_effect = Prefixing("127.0.0.1", port).send
    return mailer


def with_autospec(port: int) -> Any:
    mailer = mock.create_autospec(SMTPMailer, instance=True)
    mailer.send.side_effect = Prefixing("127.0.0.1", port).send
    return mailer


def of_a_namespace(port: int) -> Any:
    return SimpleNamespace(send=Prefixing("127.0.0.1", port).send)


OWN = {
    "subclass": lambda port: Prefixing("127.0.0.1", port),
    "mixin": lambda port: Mixed("127.0.0.1", port),
    "transmit": lambda port: Transmitting("127.0.0.1", port),
    "no pipeline": lambda port: WithoutPipeline(SMTPMailer("127.0.0.1", port)),
    "subclass of a subclass": lambda port: type("Sub", (Prefixing,), {})(
        "127.0.0.1", port
    ),
    "wrapper": lambda port: Wrapper(SMTPMailer("127.0.0.1", port)),
    "attribute": with_attribute,
    "partial": with_partial,
    "class attribute": with_class_attribute,
    "spec": with_spec,
    "autospec": with_autospec,
    "namespace": of_a_namespace,
}


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("way", ["queued", "direct", "failover"])
def test_a_send_of_ones_own_is_not_bypassed(
    kind: str, way: str, tmp_path: Path
) -> None:
    events: list[object] = []
    delivery: Any
    with ScriptedRelay() as relay:
        mailer = OWN[kind](relay.port)
        if way == "queued":
            delivery = QueuedMailDelivery(str(tmp_path / "queue"))
        else:
            parts = FailoverMailer([mailer], notify=events.append)
            delivery = DirectMailDelivery(parts if way == "failover" else mailer)
        with transaction.manager:
            delivery.send(ANN, BOB, message(1))
            delivery.send(ANN, CAROL, message(2))
        if way == "queued":
            processor = QueueProcessor(delivery.queuePath, mailer)
            assert processor.flush() == Tally(sent=2)
        # With several workers, the second one may be faster.
        assert sorted(m.recipients for m in relay.messages) == [(BOB,), (CAROL,)]
        assert all(b"X-Seen: yes" in m.data for m in relay.messages)


class Piped(SMTPMailer):
    """Has both, and so it decides by itself what a pipeline does."""

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> Any:
        raise AssertionError

    def pipeline(self) -> Any:
        return super().pipeline()


class PipedOnce(Mixed):
    def pipeline(self) -> Any:
        return super().pipeline()


def with_a_pipeline(port: int) -> SMTPMailer:
    mailer = Prefixing("127.0.0.1", port)
    mailer.pipeline = SMTPMailer("127.0.0.1", port).pipeline  # type: ignore[method-assign]
    return mailer


@pytest.mark.parametrize(
    "make",
    [
        lambda port: SMTPMailer("127.0.0.1", port),
        lambda port: Piped("127.0.0.1", port),
        lambda port: PipedOnce("127.0.0.1", port),
        lambda port: type("Sub", (SMTPMailer,), {"check": None})("127.0.0.1", port),
        with_a_pipeline,
    ],
)
def test_a_pipeline_that_is_as_close_as_send_is_used(make: Any) -> None:
    with ScriptedRelay() as relay:
        reports = transmit(make(relay.port), to([ANN]), to([BOB], 2))
        assert all(report.sent for _, report in reports)
        begun = [[command[:4] for command in group][:2] for group in relay.groups]
        assert [".", "MAIL"] in begun
        assert not any(b"X-Seen" in m.data for m in relay.messages)


def test_a_mailer_with_slots_is_sent_to() -> None:
    class Slots:
        __slots__ = ("sent",)

        def __init__(self) -> None:
            self.sent: list[Any] = []

        def send(self, fromaddr: str, toaddrs: Any, message: bytes) -> None:
            self.sent.append(toaddrs)

    mailer = Slots()
    [(_, report)] = transmit(mailer, to([ANN]))
    assert (mailer.sent, statuses(report)) == ([(ANN,)], {ANN: Status.SENT})
