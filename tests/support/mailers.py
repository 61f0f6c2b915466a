"""Mailers that do as a test tells them: the contract, without a network."""
from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

from zope.interface import implementer

from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailer
from postcommit.interfaces import IPipeline
from postcommit.interfaces import IPipelineMailer
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status


OK = Reply(250, "2.0.0", "Queued")
LATER = Reply(450, "4.2.0", "Greylisted")
NEVER = Reply(550, "5.1.1", "No such user")
LOST = Reply(0, "4.4.2", "Connection lost")
BYE = Reply(421, "4.7.0", "Try again later")

OUTCOMES = {
    "later": (Status.DEFERRED, LATER),
    "never": (Status.REJECTED, NEVER),
    "lost": (Status.UNCERTAIN, LOST),
}


def mixed() -> DeliveryReport:
    """Return a report with each outcome once."""
    statuses = {
        "ann@x.org": (Status.SENT, OK),
        "bob@x.org": (Status.DEFERRED, LATER),
        "carol@x.org": (Status.REJECTED, NEVER),
        "dave@x.org": (Status.UNCERTAIN, LOST),
    }
    outcomes = tuple(Outcome(r, *outcome) for r, outcome in statuses.items())
    return DeliveryReport("1@x.org", tuple(statuses), outcomes)


class Taken(NamedTuple):
    sender: str
    recipients: tuple[str, ...]
    message: bytes


@implementer(IMailer)
class ScriptedMailer:
    """Decides by the local part of a recipient, as `OUTCOMES` has it.

    At a message to `poison` its relay fails, in the middle of it. `failure` is that
    of its relay while it is set, `before` is called with each message. `attempts` has
    what it was asked to send, `events` those that were published.
    """

    def __init__(self) -> None:
        self.failure: object = None
        self.before: Callable[[Taken], None] = lambda taken: None
        self.attempts: list[Taken] = []
        self.events: list[object] = []
        self.outcomes = dict(OUTCOMES)
        self._lock = threading.Lock()

    @property
    def sent(self) -> list[tuple[str, str]]:
        """Message ids and recipients that were sent."""
        return [
            (message_id_of(taken.message), recipient)
            for taken in self.attempts
            for recipient in taken.recipients
            if recipient.partition("@")[0] not in OUTCOMES
        ]

    def notify(self, event: object) -> None:
        self.events.append(event)

    def send(
        self, fromaddr: str, toaddrs: Sequence[str], message: bytes
    ) -> IDeliveryReport:
        taken = Taken(fromaddr, tuple(toaddrs), message)
        self.before(taken)
        message_id = message_id_of(message)
        if self.failure is not None:
            return DeliveryReport(message_id, taken.recipients, (), self.failure)  # type: ignore[arg-type]
        if any(r.startswith("poison@") for r in taken.recipients):
            return DeliveryReport(message_id, taken.recipients, (), BYE, True)
        with self._lock:
            self.attempts.append(taken)
        outcomes = (
            Outcome(r, *self.outcomes.get(r.partition("@")[0], (Status.SENT, OK)))
            for r in taken.recipients
        )
        return DeliveryReport(message_id, taken.recipients, tuple(outcomes))


@implementer(IPipelineMailer)
class ScriptedPipelineMailer(ScriptedMailer):
    """As `ScriptedMailer`, with a pipeline that is one message ahead of its reports."""

    def pipeline(self) -> ScriptedPipeline:
        return ScriptedPipeline(self)


@implementer(IPipeline)
class ScriptedPipeline:
    """The pipeline of a `ScriptedPipelineMailer`."""

    def __init__(self, mailer: Any) -> None:
        self.mailer = mailer
        self.done: list[tuple[object, IDeliveryReport]] = []
        self.behind: list[tuple[object, IDeliveryReport]] = []

    def __enter__(self) -> ScriptedPipeline:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        pass

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        self.done += self.behind
        report = self.mailer.send(mail.sender, mail.recipients, mail.message)
        self.behind = [(key, report)]

    def completed(self) -> list[tuple[Any, IDeliveryReport]]:
        done, self.done = self.done, []
        return done

    def drain(self) -> list[tuple[Any, IDeliveryReport]]:
        self.done, self.behind = self.done + self.behind, []
        return self.completed()


def send_all(
    mailer: IPipelineMailer, messages: Iterable[tuple[str, Sequence[str], bytes]]
) -> Iterator[Any]:
    """Send `messages` through the pipeline of `mailer`, and yield the reports.

    An exception out of `messages` is raised after the reports of those before it.
    """
    error = None
    with mailer.pipeline() as pipeline:
        taken = iter(messages)
        while error is None:
            try:
                sender, recipients, message = next(taken)
            except StopIteration:
                break
            except Exception as caught:
                error = caught
                break
            pipeline.offer(Taken(sender, tuple(recipients), message))
            for _, report in pipeline.completed():
                yield report
        for _, report in pipeline.drain():
            yield report
    if error is not None:
        raise error
