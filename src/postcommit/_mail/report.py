"""Replies, outcomes and reports of transmissions.

`judge` says which outcome a reply means, for mailers without a dialogue of their own.
The table of the SMTP dialogue is in `postcommit._smtp.dialogue`.
"""
from __future__ import annotations

import enum
from collections.abc import Collection
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace

from zope.interface import implementer

from postcommit._log import one_line
from postcommit._mail.as_smtplib import raise_as_smtplib
from postcommit.errors import DeliveryError
from postcommit.errors import RelayError
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IOutcome
from postcommit.interfaces import IReply
from postcommit.interfaces import Status


# Maximum number of characters of a reply in one line. A relay may send 64 kB.
_MOST_SHOWN = 2000

# Shown in place of a character that cannot be printed.
_INSTEAD = "\N{REPLACEMENT CHARACTER}"


@implementer(IReply)
@dataclass(frozen=True)
class Reply:
    """The reply of an SMTP server, see `IReply`.

    `command` is what a refusal answers, if that is known: ``greeting``, a command such
    as ``MAIL``, or ``end of data``.
    """

    code: int = 0
    enhanced: str = ""
    text: str = ""
    command: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        """Everything on one line: ``450 4.2.0 Greylisted``."""
        words = [str(self.code) if self.code else "", self.enhanced, self.text]
        return one_line(" ".join(filter(None, words)), _MOST_SHOWN, _INSTEAD)


@implementer(IOutcome)
@dataclass(frozen=True)
class Outcome:
    """The outcome of one recipient in one attempt, see `IOutcome`."""

    recipient: str
    status: Status
    reply: Reply
    given_up: bool = False


@implementer(IDeliveryReport)
@dataclass(frozen=True)
class DeliveryReport:
    """The outcomes of one message in one attempt, see `IDeliveryReport`.

    `too_many_connections` is True if the relay refused one more connection while others
    of this mailer were in use. It is set only with `relay_failure`. `announced` is True
    if `IMailer.send` has already logged the report and published its events, so that
    its caller does not do so again.
    """

    message_id: str
    recipients: tuple[str, ...]
    outcomes: tuple[Outcome, ...] = ()
    relay_failure: RelayError | None = None
    failed_mid_message: bool = False
    too_many_connections: bool = False
    announced: bool = field(default=False, compare=False, repr=False)

    @classmethod
    def alike(
        cls, message_id: str, recipients: Iterable[str], status: Status, reply: Reply
    ) -> DeliveryReport:
        """Return a report with the same outcome for all recipients."""
        recipients = tuple(recipients)
        outcomes = tuple(Outcome(recipient, status, reply) for recipient in recipients)
        return cls(message_id, recipients, outcomes)

    @property
    def sent(self) -> tuple[Outcome, ...]:
        return self._having(Status.SENT)

    @property
    def deferred(self) -> tuple[Outcome, ...]:
        return self._having(Status.DEFERRED)

    @property
    def rejected(self) -> tuple[Outcome, ...]:
        return self._having(Status.REJECTED)

    @property
    def uncertain(self) -> tuple[Outcome, ...]:
        return self._having(Status.UNCERTAIN)

    def _having(self, status: Status) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status is status)

    def raise_for_failure(self) -> None:
        """Raise `DeliveryError` unless every recipient was sent."""
        if self.relay_failure is not None:
            raise DeliveryError(self, f"the relay failed: {self.relay_failure}")
        failed = [o for o in self.outcomes if o.status is not Status.SENT]
        if failed:
            outcomes = (f"{o.recipient}: {o.status.value}, {o.reply}" for o in failed)
            raise DeliveryError(self, "; ".join(outcomes))

    def raise_as_smtplib(self) -> None:
        """Raise what smtplib would raise, unless at least one recipient was sent.

        For code that was written for smtplib. `postcommit._mail.as_smtplib` has the
        exceptions.
        """
        raise_as_smtplib(self)

    @property
    def undecided(self) -> tuple[str, ...]:
        """The recipients without an outcome, because the relay failed."""
        if self.relay_failure is None:
            return ()
        decided = {outcome.recipient for outcome in self.outcomes}
        return tuple(r for r in self.recipients if r not in decided)


def deferring(report: DeliveryReport) -> DeliveryReport:
    """Return `report` with the undecided recipients deferred, not a relay failure."""
    failure = report.relay_failure
    reply = failure.reply if failure is not None else None
    if not isinstance(reply, Reply):
        reply = Reply(0, "4.4.2", f"The relay fails at this message: {failure}")
    decided = {outcome.recipient: outcome for outcome in report.outcomes}
    outcomes = tuple(
        decided.get(recipient) or Outcome(recipient, Status.DEFERRED, reply)
        for recipient in report.recipients
    )
    return DeliveryReport(report.message_id, report.recipients, outcomes)


def giving_up(report: DeliveryReport) -> DeliveryReport:
    """Return `report` for the last attempt.

    Deferred recipients are rejected. Uncertain ones stay uncertain, and are given up.
    """
    outcomes = tuple(
        replace(outcome, status=Status.REJECTED)
        if outcome.status is Status.DEFERRED
        else outcome
        for outcome in report.outcomes
    )
    return giving_up_uncertain(_with_outcomes(report, outcomes))


#: The reply to a mail that was not sent in time. The status is that of RFC 3463, 3.5:
#: "delivery time expired".
EXPIRED = Reply(0, "4.4.7", "it expired before it was sent")


def expiring(report: DeliveryReport) -> DeliveryReport:
    """Return `report` for the last attempt before the mail expires, as `giving_up`."""
    outcomes = tuple(
        replace(outcome, reply=_expired_after(outcome.reply))
        if outcome.status is Status.DEFERRED
        else outcome
        for outcome in report.outcomes
    )
    return giving_up(_with_outcomes(report, outcomes))


def _expired_after(reply: Reply) -> Reply:
    return replace(EXPIRED, text=f"{EXPIRED.text}; the last reply was: {reply}")


def giving_up_uncertain(
    report: DeliveryReport, recipients: Collection[str] | None = None
) -> DeliveryReport:
    """Return `report` with its uncertain recipients given up, or just `recipients`."""
    given_up = report.recipients if recipients is None else recipients
    outcomes = tuple(
        replace(outcome, given_up=True)
        if outcome.status is Status.UNCERTAIN and outcome.recipient in given_up
        else outcome
        for outcome in report.outcomes
    )
    return _with_outcomes(report, outcomes)


def _with_outcomes(
    report: DeliveryReport, outcomes: tuple[Outcome, ...]
) -> DeliveryReport:
    """Return `report` with other outcomes, which are announced again."""
    if outcomes == report.outcomes:
        return report
    return replace(report, outcomes=outcomes, announced=False)


class Stage(enum.Enum):
    """The part of the dialogue that a reply belongs to."""

    SESSION = "session"  # greeting, EHLO, STARTTLS, AUTH
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    END = "end of data"


# Codes by which the relay refuses to work at all, whatever the command: it shuts down
# (421), or wants a login or TLS first (RFC 4954, section 6, and RFC 3207, section 4).
RELAY_CODES = frozenset({421, 530, 534, 535, 538})


def judge(stage: Stage, code: int) -> Status | None:
    """Return the outcome that a reply with `code` means at `stage`.

    None says that the relay itself is in trouble. A code outside of 2xx, 4xx
    and 5xx does not answer any of these commands. The recipient is deferred.
    """
    if code in RELAY_CODES:
        return None
    if 200 <= code <= 299:
        return Status.SENT
    if stage is Stage.SESSION:
        return None
    if stage is Stage.RCPT and code == 552:
        return Status.DEFERRED  # RFC 5321, 4.5.3.1.10: too many recipients
    return Status.REJECTED if 500 <= code <= 599 else Status.DEFERRED
