"""Reports of mailers written elsewhere, with anything in them.

Whatever a report has in it, each message goes out once, each recipient has an
outcome, and the next message follows.
"""
from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from zope.interface import implementer

from postcommit import QueueProcessor
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.store import Store
from postcommit.errors import RelayError
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailer
from postcommit.interfaces import IOutcome
from postcommit.interfaces import IPipelineMailer
from postcommit.interfaces import IReply
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from tests.support.mailers import ScriptedPipeline


@implementer(IReply)
class Plain:
    """A reply that is a correct one."""

    code = 250
    enhanced = "2.0.0"
    text = "Queued"

    def __str__(self) -> str:
        return "250 2.0.0 Queued"


class Unhashable(Plain):
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


class Unspeakable(Plain):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Incomparable(Plain):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = Plain.__hash__


class Odd(Plain):
    code = "250"  # type: ignore[assignment]
    enhanced = None  # type: ignore[assignment]
    text = 7  # type: ignore[assignment]


class Faulty(Plain):
    @property
    def text(self) -> str:  # type: ignore[override]
        raise RuntimeError("no text")


class Unprovable:
    """Something that raises when it is asked what it is."""

    @property
    def __providedBy__(self) -> object:
        raise RuntimeError("no interfaces")


class OddError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


REPLIES: list[Any] = [
    Plain(),
    Unhashable(),
    Unspeakable(),
    Incomparable(),
    Odd(),
    Faulty(),
    Reply(250, "", ["unhashable"]),  # type: ignore[arg-type]
    Reply(250, "", Unspeakable()),  # type: ignore[arg-type]
    None,
    "250 Queued",
    b"250 Queued",
    (250, "Queued"),
    {"code": 250},
    OddError(),
    Unprovable(),
]


@implementer(IOutcome)
class ForeignOutcome:
    def __init__(self, recipient: str, status: Status, reply: object) -> None:
        self.recipient = recipient
        self.status = status
        self.reply = reply


@implementer(IDeliveryReport)
class ForeignReport:
    relay_failure: Any = None

    def __init__(self, message_id: str, outcomes: Sequence[Any]) -> None:
        self.message_id = message_id
        self.outcomes = outcomes


class FaultyReport(ForeignReport):
    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError("no attribute")


class Mailer:
    """Says of each message what `report` makes of it and its recipients."""

    def __init__(self, report: Any) -> None:
        self.report = report
        self.sent: list[str] = []
        self.events: list[object] = []

    def notify(self, event: object) -> None:
        self.events.append(event)

    def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> Any:
        self.sent.append(message_id_of(message))
        return self.report(self.sent[-1], tuple(toaddrs))


@implementer(IMailer)
class SingleMailer(Mailer):
    """Takes one message at a time."""


@implementer(IPipelineMailer)
class PipelineMailer(Mailer):
    """Takes all that there are before it reports, as a mailer may."""

    def pipeline(self) -> Pipeline:
        return Pipeline(self)


class Pipeline(ScriptedPipeline):
    def completed(self) -> list[tuple[Any, Any]]:
        return []

    def drain(self) -> list[tuple[Any, Any]]:
        return [*self.done, *self.behind]


KINDS = [SingleMailer, PipelineMailer]


def send(queue: Path, count: int = 6) -> list[str]:
    store = Store(str(queue))
    ids = [f"{number}@x.org" for number in range(count)]
    for message_id in ids:
        message = f"Message-Id: <{message_id}>\n\nText.\n".encode()
        store.stage("shop@x.org", ("ann@x.org", "bob@x.org"), [message]).commit()
    return ids


def flush(queue: Path, mailer: Mailer) -> Tally:
    return QueueProcessor(str(queue), mailer, workers=1).flush()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outcome", [Outcome, ForeignOutcome])
@pytest.mark.parametrize("report", [DeliveryReport, ForeignReport])
@pytest.mark.parametrize("status", Status)
def test_whatever_the_replies_are_each_mail_goes_out_once(
    tmp_path: Path, kind: Any, outcome: Any, report: Any, status: Status
) -> None:
    """One mail for each of `REPLIES`."""

    def made(message_id: str, recipients: tuple[str, ...]) -> Any:
        reply = REPLIES[int(message_id.partition("@")[0])]
        outcomes = tuple(outcome(r, status, reply) for r in recipients)
        if report is ForeignReport:
            return ForeignReport(message_id, outcomes)
        return DeliveryReport(message_id, recipients, outcomes)

    queue = tmp_path / "queue"
    ids = send(queue, len(REPLIES))
    mailer = kind(made)
    tally = flush(queue, mailer)
    assert sorted(mailer.sent) == sorted(ids)
    assert sum(tally) == 2 * len(REPLIES)
    left = [*(queue / "cur").iterdir(), *(queue / ".Failed" / "new").glob("*")]
    assert len(left) == (0 if status is Status.SENT else len(REPLIES))
    assert all(parse_entry(path.read_bytes()).attempts == 1 for path in left)
    assert {event.messageId for event in mailer.events} == set(ids)
    assert {hash(getattr(event, "reply", None)) for event in mailer.events}
    assert flush(queue, mailer) == Tally()
    assert sorted(mailer.sent) == sorted(ids)


class OddMapping(dict[Any, Any]):
    def items(self) -> Any:
        raise RuntimeError("no items")


ODD_RESULTS: list[Any] = [
    lambda message_id, to: FaultyReport(message_id, ()),
    lambda message_id, to: ForeignReport(message_id, None),  # type: ignore[arg-type]
    lambda message_id, to: ForeignReport(message_id, [None, 1, Plain()]),
    lambda message_id, to: ForeignReport(None, ()),  # type: ignore[arg-type]
    lambda message_id, to: OddMapping({"eve@x.org": (550, "No")}),
    lambda message_id, to: {to[0]: Unspeakable(), Unspeakable(): 1},
]


@pytest.mark.parametrize("result", ODD_RESULTS)
def test_a_result_that_cannot_be_read_is_uncertain(tmp_path: Path, result: Any) -> None:
    queue = tmp_path / "queue"
    mailer = SingleMailer(result)
    ids = send(queue)
    assert sum(flush(queue, mailer)) == 12
    assert sorted(mailer.sent) == ids
    assert {event.messageId for event in mailer.events} == set(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "failure",
    [
        OddError(),
        RelayError(""),
        RelayError("it is away"),
        "away",
        Unspeakable(),
        Unhashable(),
        Unprovable(),
    ],
)
def test_a_failure_without_a_text_pauses_the_queue_and_is_named(
    tmp_path: Path, kind: Any, failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def made(message_id: str, recipients: tuple[str, ...]) -> Any:
        report = ForeignReport(message_id, ())
        report.relay_failure = failure
        return report

    queue = tmp_path / "queue"
    send(queue)
    assert flush(queue, kind(made)) == Tally()
    assert len(list((queue / "new").iterdir())) == 6
    [pause] = [r.getMessage() for r in caplog.records if "pauses" in r.getMessage()]
    assert not pause.endswith(": ")


@pytest.mark.parametrize(
    "error", [MemoryError(), OddError(), RelayError(""), KeyError(), OSError()]
)
def test_an_error_without_a_text_is_named_by_its_class(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    class Raising(PipelineMailer):
        def pipeline(self) -> Pipeline:
            return super().pipeline()  # closer than a new send()

        def send(self, fromaddr: str, toaddrs: Sequence[str], message: bytes) -> Any:
            raise error

    queue = tmp_path / "queue"
    send(queue)
    assert flush(queue, Raising(None)) == Tally()
    assert f"the queue pauses: {type(error).__name__}" in caplog.text


def test_a_mailer_whose_notify_fails_is_settled(tmp_path: Path) -> None:
    class Silent(SingleMailer):
        @property
        def notify(self) -> Any:  # type: ignore[override]
            raise RuntimeError("nobody to tell")

    queue = tmp_path / "queue"
    ids = send(queue)
    mailer = Silent(lambda message_id, to: None)
    assert flush(queue, mailer) == Tally(12)
    assert sorted(mailer.sent) == ids


class FaultyClock:
    """A clock that fails one time, when all six mails were sent."""

    def __init__(self, mailer: Mailer) -> None:
        self.mailer = mailer
        self.failed = False

    def __call__(self) -> float:
        if len(self.mailer.sent) == 6 and not self.failed:
            self.failed = True
            raise MemoryError
        return time.time()


def test_an_error_between_report_and_settling_is_that_of_one_entry(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = tmp_path / "queue"
    send(queue)
    mailer = PipelineMailer(lambda message_id, to: None)
    clock = FaultyClock(mailer)
    processor = QueueProcessor(str(queue), mailer, workers=1, clock=clock)  # type: ignore[arg-type]
    processor.flush()
    assert clock.failed
    assert "the queue could not note" in caplog.text
    assert len(set(mailer.sent)) == len(mailer.sent) == 6
    assert flush(queue, mailer) == Tally()  # it is not tried again at once


@pytest.mark.parametrize("seed", range(20))
def test_any_mixture_is_settled_once(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)

    def made(message_id: str, recipients: tuple[str, ...]) -> Any:
        some = [r for r in recipients if chance.random() < 0.8]
        kind = chance.choice([Outcome, ForeignOutcome])
        outcomes = [
            kind(r, chance.choice([*Status, None, "sent"]), chance.choice(REPLIES))
            for r in [*some, *chance.choices(["eve@x.org", None, 7], k=1)]
        ]
        chance.shuffle(outcomes)
        if chance.random() < 0.3:
            return DeliveryReport(message_id, recipients, tuple(outcomes))
        return ForeignReport(chance.choice([message_id, None, 3]), outcomes)  # type: ignore[arg-type]

    queue = tmp_path / "queue"
    mailer = chance.choice(KINDS)(made)
    ids = send(queue)
    assert sum(flush(queue, mailer)) == 12
    assert sorted(mailer.sent) == ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outcomes", [None, iter(()), 7])
def test_outcomes_that_are_no_tuple_are_uncertain(
    tmp_path: Path, kind: Any, outcomes: Any
) -> None:
    queue = tmp_path / "queue"
    ids = send(queue)
    mailer = kind(lambda id, recipients: DeliveryReport(id, recipients, outcomes))
    assert flush(queue, mailer).deferred == 2 * len(ids)
    assert sorted(mailer.sent) == ids
