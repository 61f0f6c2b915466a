"""One attempt by any of the three kinds of mailers."""
from __future__ import annotations

import os
import smtplib
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from email import message_from_bytes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transaction
import zope.event
from transaction import TransactionManager
from zope.interface import implementer

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit.attempt import Attempt
from postcommit.attempt import Transmission
from postcommit.attempt import accounting_for
from postcommit.attempt import announcements
from postcommit.attempt import attempt_all
from postcommit.event import Announcement
from postcommit.event import announce
from postcommit.interfaces import IBatchMailer
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailer
from postcommit.interfaces import IReply
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from postcommit.message import message_id_of
from postcommit.report import DeliveryReport
from postcommit.report import Outcome
from postcommit.report import Reply
from tests.support.smtpd import ScriptedRelay


ANN, BOB = "ann@x.org", "bob@x.org"
OK = (Status.SENT, Reply(250))


def transmission(number: int, *recipients: str) -> Transmission:
    return Transmission("me@x.org", recipients or (ANN,), message(number))


def message(number: int) -> bytes:
    return b"Message-Id: <%d@x.org>\n\n" % number


def sent(number: int, *recipients: str) -> DeliveryReport:
    return DeliveryReport.alike(f"{number}@x.org", recipients or (ANN,), *OK)


@implementer(IBatchMailer)
class BatchMailer:
    """Reports as it was told, one message behind; tells of its steps."""

    def __init__(self, reports: Sequence[DeliveryReport], steps: list[str]) -> None:
        self.reports = reports
        self.steps = steps

    def notify(self, event: object) -> None:
        self.steps.append(f"notify {event!r}")

    def send_batch(
        self, messages: Iterable[tuple[str, Sequence[str], bytes]]
    ) -> Iterator[IDeliveryReport]:
        behind: list[IDeliveryReport] = []
        for message, report in zip(messages, self.reports, strict=False):
            assert len(message) == 3
            self.steps.append(f"take {report.message_id}")
            yield from behind
            behind = [report]
        yield from behind


@implementer(IMailer)
class AnnouncingMailer:
    """Announces what it reports, and something else as well."""

    def __init__(self, notified: list[object]) -> None:
        self.notify = notified.append

    def send(
        self, fromaddr: str, toaddrs: Sequence[str], message: bytes
    ) -> IDeliveryReport:
        announce(sent(99), self.notify)
        report = sent(1)
        announce(report, self.notify)
        return report


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


def test_a_batch_mailer_may_take_the_next_before_it_reports() -> None:
    steps: list[str] = []
    mailer = BatchMailer([sent(1), sent(2)], steps)
    for attempt in attempt_all(mailer, [transmission(1), transmission(2)]):
        steps.append(f"got {attempt.report.message_id}")
    assert steps == ["take 1@x.org", "take 2@x.org", "got 1@x.org", "got 2@x.org"]


def test_a_batch_mailer_that_reports_too_little_is_an_error() -> None:
    mailer = BatchMailer([sent(1)], [])
    attempts = attempt_all(mailer, [transmission(1), transmission(2)])
    assert next(attempts).report == sent(1)
    with pytest.raises(RuntimeError, match=r"no report for <2@x\.org>"):
        next(attempts)


def test_a_batch_mailer_that_reports_too_much_is_an_error() -> None:
    @implementer(IBatchMailer)
    class Chatty(BatchMailer):
        def send_batch(
            self, messages: Iterable[tuple[str, Sequence[str], bytes]]
        ) -> Iterator[IDeliveryReport]:
            yield from super().send_batch(messages)
            yield sent(2)

    attempts = attempt_all(Chatty([sent(1)], []), [transmission(1)])
    assert next(attempts).report == sent(1)
    with pytest.raises(RuntimeError, match="a report too many"):
        next(attempts)


def test_a_recipient_that_a_mailer_is_silent_on_is_uncertain() -> None:
    mailer = BatchMailer([sent(1, BOB)], [])
    [attempt] = attempt_all(mailer, [transmission(1, ANN, BOB)])
    assert [o.status for o in attempt.report.outcomes] == [
        Status.UNCERTAIN,
        Status.SENT,
    ]


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
    [attempt] = attempt_all(RaisingMailer(error), [transmission(1)])
    assert [o.status for o in attempt.report.outcomes] == [status]
    assert attempt.report.message_id == "1@x.org"


def test_what_a_mailer_announces_is_held_until_the_attempt_is_settled() -> None:
    notified: list[object] = []
    mailer = AnnouncingMailer(notified)
    [attempt] = attempt_all(mailer, [transmission(1)])
    assert notified == []
    settled = DeliveryReport.alike("1@x.org", [ANN], Status.REJECTED, Reply(550))
    told = announcements(attempt, mailer, settled)
    assert told == [
        Announcement(sent(99), mailer.notify),
        Announcement(settled, mailer.notify),
    ]


def test_what_the_caller_announces_between_two_attempts_is_not_held() -> None:
    notified: list[object] = []
    for _ in attempt_all(RaisingMailer(None), [transmission(1), transmission(2)]):
        announce(sent(3), notified.append)
    assert len(notified) == 2


def test_a_mailer_that_announces_nothing_is_announced_for() -> None:
    attempt = Attempt(sent(1), ())
    [told] = announcements(attempt, RaisingMailer(None), attempt.report)
    assert told == Announcement(sent(1), zope.event.notify)
    mailer = BatchMailer([], [])
    [told] = announcements(attempt, mailer, attempt.report)
    assert told.notify == mailer.notify


def test_an_error_out_of_the_transmissions_is_the_callers() -> None:
    def broken() -> Iterator[Transmission]:
        yield transmission(1)
        raise KeyError("no more")

    for mailer in (RaisingMailer(None), BatchMailer([sent(1)], [])):
        attempts = attempt_all(mailer, broken())
        with pytest.raises(KeyError, match="no more"):
            list(attempts)


def test_whom_a_mailer_says_nothing_of_is_uncertain() -> None:
    report = DeliveryReport.alike("1@x.org", [BOB], Status.REJECTED, Reply(550))
    whole = accounting_for(report, (ANN, BOB))
    assert [o.recipient for o in whole.outcomes] == [ANN, BOB]
    assert [o.status for o in whole.outcomes] == [Status.UNCERTAIN, Status.REJECTED]
    assert accounting_for(whole, (ANN, BOB)) is whole
    odd: Any = Outcome(ANN, "delivered", Reply(550))  # no status at all
    [unclear] = accounting_for(DeliveryReport("1", (ANN,), (odd,)), (ANN,)).outcomes
    assert unclear.status is Status.UNCERTAIN


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
    whole = accounting_for(report, (BOB, ANN))
    assert whole.outcomes == (good, Outcome(ANN, status, reply))
    assert accounting_for(report, (BOB,)).outcomes == (good,)


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
        [attempt] = attempt_all(mailer, [transmission(1)])
        assert failure in str(attempt.report.relay_failure)
        assert not attempt.report.outcomes
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
