"""Exceptions as smtplib raises them, for code that was written for it.

=============================================  =======================================
in the report                                  exception
=============================================  =======================================
a recipient was sent                           none
the relay refused the login                    `smtplib.SMTPAuthenticationError`
the relay refused to work                      `smtplib.SMTPResponseException`
no connection, no name, a bad certificate      the OSError of the system, for example
                                               ConnectionRefusedError
the relay lacks TLS or a login                 `NotOfferedError`
the relay failed without saying why            `smtplib.SMTPServerDisconnected`
the connection was lost in the message         `smtplib.SMTPServerDisconnected`
one reply for all recipients                   `RefusedError`, which is both classes
                                               that smtplib may raise
several replies                                `smtplib.SMTPRecipientsRefused`
=============================================  =======================================
"""
from __future__ import annotations

import smtplib
from typing import TYPE_CHECKING

from postcommit.errors import RelayError


if TYPE_CHECKING:
    from postcommit._mail.report import DeliveryReport
    from postcommit.interfaces import Reply


# Codes of replies that only AUTH has (RFC 4954, section 6).
_LOGIN_CODES = frozenset({432, 454, 530, 534, 535, 538})


class NotOfferedError(smtplib.SMTPNotSupportedError, RuntimeError):
    """The relay does not offer what is required: STARTTLS, or a login.

    It is a RuntimeError as in zope.sendmail, and an SMTPNotSupportedError as in
    smtplib.
    """


class RefusedError(  # type: ignore[misc]
    smtplib.SMTPRecipientsRefused, smtplib.SMTPResponseException
):
    """The relay refused the message for all its recipients, with the same reply.

    smtplib raises SMTPRecipientsRefused if the reply was about the recipients, and an
    SMTPResponseException if it was about the sender or the message. `recipients`,
    `smtp_code` and `smtp_error` are those of these classes.
    """

    def __init__(self, recipients: dict[str, tuple[int, bytes]]) -> None:
        smtplib.SMTPRecipientsRefused.__init__(self, recipients)
        self.smtp_code, self.smtp_error = next(iter(recipients.values()))


def as_smtplib(report: DeliveryReport) -> Exception | None:
    """Return the exception that smtplib would raise, or None if it would raise nothing.

    smtplib raises nothing if at least one recipient was sent.
    """
    if report.sent:
        return None
    failure = report.relay_failure
    if failure is None:
        return _of_refusals(report)
    return _of_error(failure) if failure.reply is None else _of_reply(failure.reply)


def cause_of(failure: RelayError) -> BaseException | None:
    """Return the error behind `failure`, and behind that of the last address tried."""
    cause = failure.__cause__
    while isinstance(cause, RelayError):
        cause = cause.__cause__
    return cause


def _of_error(failure: RelayError) -> Exception:
    cause = cause_of(failure)
    # An error without a number is ours: the relay has closed the connection.
    if isinstance(cause, OSError) and (cause.errno or isinstance(cause, TimeoutError)):
        return _with_text(cause, str(failure))
    if failure.is_lack:
        return NotOfferedError(str(failure))
    return smtplib.SMTPServerDisconnected(str(failure))


def _with_text(cause: OSError, text: str) -> Exception:
    """Return an error of the class of `cause`, with its number and another text."""
    return type(cause)(text) if cause.errno is None else type(cause)(cause.errno, text)


def _of_reply(reply: Reply) -> Exception:
    kind: type[smtplib.SMTPResponseException] = smtplib.SMTPResponseException
    if reply.code in _LOGIN_CODES:
        kind = smtplib.SMTPAuthenticationError
    return kind(*_pair(reply))


def _of_refusals(report: DeliveryReport) -> Exception:
    replies = {outcome.recipient: outcome.reply for outcome in report.outcomes}
    answered = any(reply.code for reply in replies.values())
    if report.uncertain or (report.deferred and not answered):
        text = "; ".join(sorted({str(reply) for reply in replies.values()}))
        return smtplib.SMTPServerDisconnected(text)
    refused = {recipient: _pair(reply) for recipient, reply in replies.items()}
    if len(set(refused.values())) == 1:
        return RefusedError(refused)
    return smtplib.SMTPRecipientsRefused(refused)


def _pair(reply: Reply) -> tuple[int, bytes]:
    """Return `reply` as smtplib has it: the code, and all lines of the text.

    If the text is ours and not the relay's, the code is 451 or 554.
    """
    code = reply.code or (451 if reply.enhanced.startswith("4") else 554)
    prefix = f"{reply.enhanced} " if reply.enhanced else ""
    lines = [prefix + line for line in reply.text.split("\n")]
    return code, "\n".join(lines).encode("utf-8", "replace")
