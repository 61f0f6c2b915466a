"""Exceptions as smtplib raises them, for code that was written for it.

=============================================  =======================================
in the report                                  exception
=============================================  =======================================
a recipient was sent                           none
the relay refused its greeting                 `smtplib.SMTPConnectError`
the relay refused EHLO                         `smtplib.SMTPHeloError`
the relay refused the login                    `smtplib.SMTPAuthenticationError`
the relay refused to work otherwise            `smtplib.SMTPResponseException`
no connection, no name, a bad certificate      the OSError of the system, for example
                                               ConnectionRefusedError
the relay fell silent                          `SilentError`
the relay lacks TLS or a login                 `NotOfferedError`
the relay hung up, or does not speak SMTP      `smtplib.SMTPServerDisconnected`
the sender was refused                         `smtplib.SMTPSenderRefused`
all recipients were refused                    `smtplib.SMTPRecipientsRefused`
the message was refused                        `smtplib.SMTPDataError`
=============================================  =======================================
"""
from __future__ import annotations

import smtplib
from typing import TYPE_CHECKING
from typing import cast

from postcommit.errors import RelayError


if TYPE_CHECKING:
    from postcommit._mail.report import DeliveryReport
    from postcommit._mail.report import Reply


# Codes of replies that only AUTH has (RFC 4954, section 6).
_LOGIN_CODES = frozenset({432, 454, 530, 534, 535, 538})

# The exceptions for a refusal that is not about the recipients, by the command.
_REFUSALS: dict[str, type[smtplib.SMTPResponseException]] = {
    "greeting": smtplib.SMTPConnectError,
    "EHLO": smtplib.SMTPHeloError,
    "HELO": smtplib.SMTPHeloError,
    "AUTH": smtplib.SMTPAuthenticationError,
    "DATA": smtplib.SMTPDataError,
    "end of data": smtplib.SMTPDataError,
}

# Errors of a connection that was there. smtplib raises an error of its own for them.
_HUNG_UP = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)


class NotOfferedError(smtplib.SMTPNotSupportedError, RuntimeError):
    """The relay does not offer what is required: STARTTLS, or a login.

    It is a RuntimeError as in zope.sendmail, and an SMTPNotSupportedError as in
    smtplib.
    """


class SilentError(smtplib.SMTPServerDisconnected, TimeoutError):
    """The relay did not answer in time.

    smtplib raises a TimeoutError while it connects, and an SMTPServerDisconnected
    afterwards.
    """


def raise_as_smtplib(report: DeliveryReport, sender: str = "") -> None:
    """Raise what smtplib would raise, unless at least one recipient was sent.

    `sender` is the address for an error about it.
    """
    failure = report.relay_failure
    if report.sent:
        return
    if failure is not None and failure.reply is None:
        raise _of_error(failure) from failure
    if failure is not None:
        # The recipient at which the relay stops to work is not refused.
        reply = cast("Reply", failure.reply)
        command = reply.command if reply.command != "RCPT" else ""
        raise _of_refusal(reply, command, report, sender) from failure
    if report.outcomes:
        raise _of_outcomes(report, sender)


def cause_of(failure: RelayError) -> BaseException | None:
    """Return the error behind `failure`, and behind that of the last address tried."""
    cause = failure.__cause__
    while isinstance(cause, RelayError):
        cause = cause.__cause__
    return cause


def _of_error(failure: RelayError) -> Exception:
    cause, text = cause_of(failure), str(failure)
    if isinstance(cause, TimeoutError):
        return SilentError(text)
    # An error without a number is ours: the relay has closed the connection.
    if isinstance(cause, OSError) and cause.errno and not isinstance(cause, _HUNG_UP):
        return type(cause)(cause.errno, text)
    if failure.is_lack:
        return NotOfferedError(text)
    return smtplib.SMTPServerDisconnected(text)


def _of_outcomes(report: DeliveryReport, sender: str) -> Exception:
    replies = [outcome.reply for outcome in report.outcomes]
    if report.uncertain or (report.deferred and not any(r.code for r in replies)):
        text = "; ".join(sorted({str(reply) for reply in replies}))
        return smtplib.SMTPServerDisconnected(text)
    # A recipient may be refused before the message is refused for the others.
    refusals = [(_command_of(reply), reply) for reply in replies]
    others = [(command, reply) for command, reply in refusals if command != "RCPT"]
    command, reply = others[0] if others else refusals[0]
    return _of_refusal(reply, command, report, sender)


def _command_of(reply: Reply) -> str:
    """Return the command that the reply of an outcome answers."""
    # A reply without a code is ours. Those about an address have an enhanced code x.1.z
    # (RFC 3463, section 2).
    is_about_message = not reply.code and reply.enhanced[1:3] not in ("", ".1")
    return reply.command or ("DATA" if is_about_message else "RCPT")


def _of_refusal(
    reply: Reply, command: str, report: DeliveryReport, sender: str
) -> Exception:
    pair = _pair(reply)
    if command == "MAIL":
        return smtplib.SMTPSenderRefused(*pair, sender)
    if command == "RCPT":
        refused = {outcome.recipient: outcome.reply for outcome in report.outcomes}
        return smtplib.SMTPRecipientsRefused(
            {recipient: _pair(reply) for recipient, reply in refused.items()}
        )
    if not command and reply.code in _LOGIN_CODES:
        return smtplib.SMTPAuthenticationError(*pair)
    return _REFUSALS.get(command, smtplib.SMTPResponseException)(*pair)


def _pair(reply: Reply) -> tuple[int, bytes]:
    """Return `reply` as smtplib has it: the code, and all lines of the text.

    If the text is ours and not the relay's, the code is 451 or 554.
    """
    code = reply.code or (451 if reply.enhanced.startswith("4") else 554)
    prefix = f"{reply.enhanced} " if reply.enhanced else ""
    lines = [prefix + line for line in reply.text.split("\n")]
    return code, "\n".join(lines).encode("utf-8", "replace")
