"""What became of a message: outcomes, reports, and the table behind them.

The table from a reply to an outcome stands here once, in `judge`, for the
SMTP dialogue and for exceptions of other mailers alike.
"""
from __future__ import annotations

import enum
import smtplib
from collections.abc import Iterable
from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import replace
from typing import Any

from zope.interface import implementer

from postcommit.address import on_the_wire
from postcommit.errors import DeliveryError
from postcommit.errors import RelayError
from postcommit.errors import text_of
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IOutcome
from postcommit.interfaces import IReply
from postcommit.interfaces import Status
from postcommit.log import one_line


# Maximum number of characters of a reply in one line; a relay may send 64 kB.
_MOST_SHOWN = 2000

# What stands for a character that cannot be printed.
_INSTEAD = "\N{REPLACEMENT CHARACTER}"


@implementer(IReply)
@dataclass(frozen=True)
class Reply:
    """See `IReply`."""

    code: int = 0
    enhanced: str = ""
    text: str = ""

    def __str__(self) -> str:
        """Everything on one line: ``450 4.2.0 Greylisted``."""
        words = [str(self.code) if self.code else "", self.enhanced, self.text]
        return one_line(" ".join(filter(None, words)), _MOST_SHOWN, _INSTEAD)


@implementer(IOutcome)
@dataclass(frozen=True)
class Outcome:
    """See `IOutcome`."""

    recipient: str
    status: Status
    reply: Reply
    given_up: bool = False


@implementer(IDeliveryReport)
@dataclass(frozen=True)
class DeliveryReport:
    """See `IDeliveryReport`."""

    message_id: str
    recipients: tuple[str, ...]
    outcomes: tuple[Outcome, ...] = ()
    relay_failure: Reply | RelayError | None = None
    had_its_turn: bool = False

    @classmethod
    def alike(
        cls, message_id: str, recipients: Iterable[str], status: Status, reply: Reply
    ) -> DeliveryReport:
        """The same became of all recipients."""
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
        """See `IDeliveryReport`."""
        if self.relay_failure is not None:
            raise DeliveryError(self, f"the relay failed: {self.relay_failure}")
        failed = [o for o in self.outcomes if o.status is not Status.SENT]
        if failed:
            told = "; ".join(
                f"{o.recipient}: {o.status.value}, {o.reply}" for o in failed
            )
            raise DeliveryError(self, told)


def blamed(report: IDeliveryReport) -> DeliveryReport:
    """Return `report` for when it is the message that the relay fails at."""
    failure = report.relay_failure
    if not isinstance(failure, Reply):
        failure = Reply(0, "4.4.2", f"The relay fails at this message: {failure}")
    return DeliveryReport.alike(
        report.message_id, report.recipients, Status.DEFERRED, failure
    )


def given_up(report: DeliveryReport) -> DeliveryReport:
    """Return `report` for when what failed for now is not tried again.

    Deferred recipients become rejected; uncertain ones stay so.
    """
    deferred = [
        Outcome(o.recipient, Status.REJECTED, o.reply)
        if o.status is Status.DEFERRED
        else o
        for o in report.outcomes
    ]
    return uncertain_given_up(replace(report, outcomes=tuple(deferred)))


def uncertain_given_up(report: DeliveryReport) -> DeliveryReport:
    """Return `report` for when its uncertain recipients are not tried again."""
    outcomes = tuple(
        replace(o, given_up=True) if o.status is Status.UNCERTAIN else o
        for o in report.outcomes
    )
    return replace(report, outcomes=outcomes)


class Stage(enum.Enum):
    """To which part of the dialogue a reply belongs."""

    SESSION = "session"  # greeting, EHLO, STARTTLS, AUTH
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    END = "end of data"


# RFC 4954, section 6, and RFC 3207, section 4: the relay wants a login or TLS
# first. That is ours to put right, and nothing that a message could help.
_SESSION_CODES = frozenset({421, 530, 534, 535, 538})


def judge(stage: Stage, code: int) -> Status | None:
    """Return the outcome that a reply with `code` means at `stage`.

    None says that the relay itself is in trouble. A code outside of 2xx, 4xx
    and 5xx is no answer to any of these; the recipient is deferred.
    """
    if code in _SESSION_CODES:
        return None
    if 200 <= code <= 299:
        return Status.SENT
    if stage is Stage.SESSION:
        return None
    if stage is Stage.RCPT and code == 552:
        return Status.DEFERRED  # RFC 5321, 4.5.3.1.10: too many recipients
    return Status.REJECTED if 500 <= code <= 599 else Status.DEFERRED


# Mailers written elsewhere: results and exceptions as smtplib has them

# What its `login` says, in no class of its own, when it cannot even try a password.
_NO_LOGIN = ("No suitable authentication method", "Server AUTH mechanism infinite loop")


def from_result(
    result: object, message_id: str, recipients: tuple[str, ...]
) -> IDeliveryReport:
    """Return the report for what a mailer's ``send()`` returned.

    That is a report, a mapping of the refused recipients, as
    `smtplib.SMTP.sendmail` returns it, or anything else: it did not raise, so
    all was sent. But where somebody else was refused, nobody knows whom that
    was meant to be, and who is not mentioned is uncertain.
    """
    if IDeliveryReport.providedBy(result):
        return result
    refused = result if isinstance(result, Mapping) else {}
    names = _names(recipients, refused)
    unmentioned = (Status.SENT, Reply(250))
    others = _refused_others(refused, set(names.values()))
    if others:
        reply = Reply(0, "4.3.0", f"Refused was who is no recipient: {others}")
        unmentioned = (Status.UNCERTAIN, reply)
    outcomes = []
    for recipient in recipients:
        status, reply = unmentioned
        if names[recipient] in refused:
            reply = _reply(refused[names[recipient]])
            # Others may have been sent: whatever the reply, it is not about them.
            status = judge(Stage.RCPT, reply.code) or Status.DEFERRED
        outcomes.append(Outcome(recipient, status, reply))
    return DeliveryReport(message_id, recipients, tuple(outcomes))


def _names(recipients: tuple[str, ...], refused: Mapping[Any, Any]) -> dict[str, str]:
    """Return by which address each of `recipients` may be among the `refused`.

    smtplib takes a domain in ASCII only.
    """
    return {r: r if r in refused else on_the_wire(r) for r in recipients}


def _refused_others(refused: Mapping[Any, Any], names: set[str]) -> str:
    """Return who else was refused, and why.

    An answer of another kind may be a mapping, too, but not of addresses.
    """
    return "; ".join(
        f"{text_of(address)}: {_reply(said)}"
        for address, said in refused.items()
        if address not in names and "@" in text_of(address)
    )


def from_exception(
    error: Exception, message_id: str, recipients: tuple[str, ...]
) -> IDeliveryReport:
    """Return the report for an exception out of a mailer's ``send()``."""
    if isinstance(error, DeliveryError):
        return error.report
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return _from_refusals(error, message_id, recipients)
    if isinstance(error, smtplib.SMTPServerDisconnected):
        # Raised in each phase alike: it may be that the relay has the message.
        reply = Reply(0, "4.4.2", f"Connection lost: {text_of(error)}")
        return DeliveryReport.alike(message_id, recipients, Status.UNCERTAIN, reply)
    if isinstance(error, smtplib.SMTPResponseException):
        return _from_response(error, message_id, recipients)
    if isinstance(error, OSError) and _is_the_relays(error):
        return DeliveryReport(message_id, recipients, relay_failure=_failure(error))
    final = isinstance(error, ValueError | smtplib.SMTPNotSupportedError)
    status = Status.REJECTED if final else Status.DEFERRED
    reply = Reply(0, "5.6.0" if final else "4.3.0", _named(error))
    return DeliveryReport.alike(message_id, recipients, status, reply)


def _is_the_relays(error: OSError) -> bool:
    """Tell whether `error` came before any message: of the network, or of a login.

    What smtplib finds missing is STARTTLS or AUTH, or else SMTPUTF8, for a message.
    """
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "SMTPUTF8" not in text_of(error)
    if isinstance(error, smtplib.SMTPException):
        return text_of(error).startswith(_NO_LOGIN)
    return True


def _named(error: BaseException) -> str:
    """Return the class of `error` and its text, if it has one."""
    name, text = type(error).__name__, text_of(error)
    return name if text == name else f"{name}: {text}"


def _failure(error: OSError) -> RelayError:
    if isinstance(error, RelayError):
        return error
    failure = RelayError(one_line(_named(error), _MOST_SHOWN, _INSTEAD))
    failure.__cause__ = error
    return failure


def _from_response(
    error: smtplib.SMTPResponseException, message_id: str, recipients: tuple[str, ...]
) -> DeliveryReport:
    session = (
        smtplib.SMTPAuthenticationError,
        smtplib.SMTPConnectError,
        smtplib.SMTPHeloError,
    )
    stage = Stage.SESSION if isinstance(error, session) else Stage.END
    reply = _reply((error.smtp_code, error.smtp_error))
    status = None if stage is Stage.SESSION else judge(stage, reply.code)
    if status is None:
        turn = stage is not Stage.SESSION
        return DeliveryReport(
            message_id, recipients, relay_failure=reply, had_its_turn=turn
        )
    if status is Status.SENT:
        status = Status.DEFERRED  # an exception, whatever its code, is no success
    return DeliveryReport.alike(message_id, recipients, status, reply)


def _from_refusals(
    error: smtplib.SMTPRecipientsRefused, message_id: str, recipients: tuple[str, ...]
) -> DeliveryReport:
    """Nobody got the message, also who is not mentioned.

    That is so if a mailer has rewritten an address, or if the relay hung up.
    """
    refused = error.recipients if isinstance(error.recipients, Mapping) else {}
    outcomes = []
    for recipient, name in _names(recipients, refused).items():
        reply = _reply(refused.get(name, f"Not sent: {text_of(error)}"))
        status = judge(Stage.RCPT, reply.code)
        if status is None:
            return DeliveryReport(
                message_id, recipients, relay_failure=reply, had_its_turn=True
            )
        if status is Status.SENT:
            status = Status.DEFERRED
        outcomes.append(Outcome(recipient, status, reply))
    return DeliveryReport(message_id, recipients, tuple(outcomes))


def _reply(said: object) -> Reply:
    """Return what smtplib has as a code and a text; anything else is text."""
    code, text = 0, said
    if isinstance(said, tuple) and len(said) == 2 and isinstance(said[0], int):
        code, text = said
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return Reply(code, "", "" if text == "" else text_of(text))
