"""Mailers that do as a test tells them: the contract, without a network."""
from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple

from zope.interface import implementer

from postcommit.interfaces import IBatchMailer
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailer
from postcommit.interfaces import Status
from postcommit.message import message_id_of
from postcommit.report import DeliveryReport
from postcommit.report import Outcome
from postcommit.report import Reply


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


@implementer(IBatchMailer)
class ScriptedBatchMailer(ScriptedMailer):
    """As `ScriptedMailer`, and one message ahead of its reports."""

    def send_batch(
        self, messages: Iterable[tuple[str, Sequence[str], bytes]]
    ) -> Iterator[IDeliveryReport]:
        behind: list[IDeliveryReport] = []
        for message in messages:
            yield from behind
            behind = [self.send(*message)]
        yield from behind
