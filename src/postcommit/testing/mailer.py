"""A mailer that transmits nothing and records everything."""
from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zope.event
from zope.interface import implementer

from postcommit._mail.message import message_id_of
from postcommit._mail.message import to_crlf
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._mail.report import Stage
from postcommit._mail.report import judge
from postcommit._mail.terms import NO_TERMS
from postcommit._mail.terms import in_utc
from postcommit._mailers.base import BaseMailer
from postcommit._smtp.connection import parse
from postcommit._transaction.event import Notify
from postcommit.errors import RelayError
from postcommit.interfaces import IPipelineMailer
from postcommit.interfaces import IRelayCheck
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status
from postcommit.testing.outbox import Mail
from postcommit.testing.outbox import Outbox


_TAKEN = Reply(250, "2.0.0", "Taken")
_LOST = Reply(0, "4.4.2", "Connection lost: it may have been sent or not")


@dataclass
class _Rule:
    """An answer to one recipient or all (None), several times or always (None)."""

    outcome: Reply | RelayError
    recipient: str | None
    times: int | None

    def applies(self, recipient: str | None) -> bool:
        return self.recipient == recipient and self.times != 0

    def take(self) -> Reply | RelayError:
        if self.times is not None:
            self.times -= 1
        return self.outcome


@implementer(IPipelineMailer, IRelayCheck)
class RecordingMailer(BaseMailer):
    """Records messages, see `IPipelineMailer`.

    It checks its arguments, reports and announces as `SMTPMailer` does. The messages
    that it accepts are in its `outbox`. It accepts all messages until `refuse`, `lose`
    or `fail` adds a rule. The first rule that applies decides.
    """

    def __init__(
        self,
        outbox: Outbox | None = None,
        *,
        notify: Callable[[Any], Any] = zope.event.notify,
    ) -> None:
        self.outbox: Outbox = Outbox(self) if outbox is None else outbox
        self.notify: Notify = notify
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self.outbox)} mails>"

    # The script

    def refuse(self, recipient: str, reply: str, *, times: int | None = None) -> None:
        """Answer `recipient` with `reply`, `times` times or always (None).

        `reply` is a line of SMTP, for example ``"450 4.2.0 Greylisted"``. Raises
        `RelayError` for another text.
        """
        self._rules.append(_Rule(_reply(reply), recipient, times))

    def refuse_message(self, reply: str, *, times: int | None = None) -> None:
        """Answer each message with `reply`, `times` times or always (None)."""
        self._rules.append(_Rule(_reply(reply), None, times))

    def lose(self, *, times: int | None = None) -> None:
        """Lose the connection between a message and the reply to it.

        The recipients are uncertain, and the outbox has the message. This happens
        `times` times or always (None).
        """
        self._rules.append(_Rule(_LOST, None, times))

    def fail(self, reason: str = "it is down", *, times: int | None = None) -> None:
        """Fail as a relay in trouble, `times` times or always (None)."""
        self._rules.append(_Rule(RelayError(reason), None, times))

    def recover(self) -> None:
        """Remove all rules, so that every message is accepted again."""
        self._rules.clear()

    # The mailer

    def check(self) -> None:
        """Raise `RelayError` if `fail` says so, see `IRelayCheck`."""
        with self._lock:
            failed = self._find(None, RelayError)
        if failed is not None:
            raise failed

    def close(self) -> None:
        """Do nothing. `SMTPMailer` has this method to close connections."""

    def _transmit(self, mail: Outgoing) -> DeliveryReport:
        message_id, recipients = message_id_of(mail.message), mail.recipients
        with self._lock:
            verdict = self._find(None, (Reply, RelayError)) or _TAKEN
            if isinstance(verdict, RelayError):
                return DeliveryReport(message_id, recipients, relay_failure=verdict)
            outcomes = []
            for recipient in recipients:
                reply = self._find(recipient, Reply) or verdict
                status = _status(reply, verdict)
                if status is None:
                    failed = RelayError(str(reply), reply)
                    return DeliveryReport(message_id, recipients, relay_failure=failed)
                outcomes.append(Outcome(recipient, status, reply))
        self._record(mail, outcomes, message_id)
        return DeliveryReport(message_id, recipients, tuple(outcomes))

    def _find(self, recipient: str | None, kind: Any) -> Any:
        for rule in self._rules:
            if rule.applies(recipient) and isinstance(rule.outcome, kind):
                return rule.take()
        return None

    def _record(
        self, mail: Outgoing, outcomes: list[Outcome], message_id: str
    ) -> None:
        has_it = (Status.SENT, Status.UNCERTAIN)
        taken = tuple(o.recipient for o in outcomes if o.status in has_it)
        if taken:
            message = to_crlf(mail.message)
            terms = getattr(mail, "terms", None) or NO_TERMS
            begin, end = in_utc(terms.not_before), in_utc(terms.expires)
            times = begin, end, terms.bulk
            self.outbox.add(Mail(mail.sender, taken, message_id, message, *times))


def _reply(text: str) -> Reply:
    return parse(f"{text}\r\n".encode())


def _status(reply: Reply, verdict: Reply) -> Status | None:
    """Return the outcome of a recipient, or None if the relay is in trouble."""
    if reply is _LOST:
        return Status.UNCERTAIN
    return judge(Stage.END if reply is verdict else Stage.RCPT, reply.code)
