"""The classes of repoze.sendmail 4, on top of postcommit.

====================================  ================================================
class                                 is in repoze.sendmail
====================================  ================================================
`SMTPMailer`, `SendmailMailer`        ``repoze.sendmail.mailer``
`NotAnEmailMessage`                   ``repoze.sendmail.mailer``, and ``.delivery``
`SendmailCommandReturnedNonZero`      ``repoze.sendmail.mailer``
`DirectMailDelivery`                  ``repoze.sendmail.delivery``
`QueuedMailDelivery`                  ``repoze.sendmail.delivery``
====================================  ================================================
"""
from __future__ import annotations

import copy
import email
import subprocess
from abc import ABC
from abc import abstractmethod
from collections.abc import Sequence
from email.message import Message
from typing import Any

import transaction
from zope.interface import implementer

from postcommit._delivery import direct
from postcommit._delivery import queued
from postcommit._mail.message import compose
from postcommit._mailers import sendmail
from postcommit.compat._deliveries import Direct
from postcommit.compat._deliveries import queued_delivery
from postcommit.compat._relay import OlderMailer
from postcommit.compat._relay import SendOnly
from postcommit.compat._relay import StandIn
from postcommit.compat._relay import address
from postcommit.compat._relay import addresses
from postcommit.compat._relay import addresses_refused
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import Status


class NotAnEmailMessage(ValueError):
    """A message that is not an `email.message.Message`."""

    def __init__(self) -> None:
        super().__init__("Message must be instance of email.message.Message")


class SendmailCommandReturnedNonZero(subprocess.CalledProcessError):
    """The program failed; `returncode` is its exit status, `cmd` its arguments."""

    def __init__(self, returncode: int, args: Sequence[str], said: str = "") -> None:
        super().__init__(returncode, args, stderr=said)


# Makes the messages that mailers of repoze.sendmail take.
_converted = staticmethod(email.message_from_bytes)


def _checked(given: Any) -> Message:
    """Return `given`, or a copy in which texts that are not ASCII are encoded.

    They are in ISO-8859-1 if possible, as in repoze.sendmail. Raises
    `NotAnEmailMessage`.
    """
    if not isinstance(given, Message):
        raise NotAnEmailMessage()
    message: Message = given
    if any(map(_charset_of, message.walk())):
        message = copy.deepcopy(message)
        for part in message.walk():
            charset = _charset_of(part)
            if charset:
                part.set_payload(part.get_payload(), charset)
    return message


def _charset_of(part: Message) -> str:
    """Return the character set for a text that is not encoded; empty for others."""
    # `get_payload` would decode the bytes of a message that was parsed from bytes.
    text = vars(part).get("_payload")
    if not isinstance(text, str) or text.isascii():
        return ""
    for charset in ("iso-8859-1", "utf-8"):
        try:
            text.encode(charset)
        except UnicodeEncodeError:
            continue
        return charset
    return ""  # bytes that are kept as surrogates


# Mailers


class SMTPMailer(StandIn):
    """Transmits through an SMTP relay, with the arguments of repoze.sendmail.

    A user name without a password does not log in. `debug_smtp` is ignored: set the
    level of the logger ``postcommit`` instead.
    """

    def __init__(
        self,
        hostname: str = "localhost",
        port: int | str = 25,
        username: str | None = None,
        password: str | None = None,
        no_tls: bool = False,
        force_tls: bool = False,
        ssl: bool = False,
        debug_smtp: bool | int = False,
    ) -> None:
        self.hostname = hostname
        self.port = port
        self.username = username
        self.password = password
        self.no_tls = no_tls
        self.force_tls = force_tls
        self.ssl = ssl
        self.debug_smtp = debug_smtp

    @property
    def _is_implicit(self) -> bool:
        return bool(self.ssl)

    _converted = _converted

    def _checked(self, message: Any) -> Message:
        return _checked(message)


class SendmailMailer(OlderMailer):
    """Runs the local ``sendmail`` command, with the arguments of repoze.sendmail.

    `sendmail_template` has the arguments of the command, in which ``{sendmail_app}``,
    ``{sender}`` and ``{recipients}`` are replaced. The recipients follow. Without a
    template they are the only recipients: addresses in the header are ignored.
    """

    sendmail_app: str = "/usr/sbin/sendmail"
    sendmail_template: Sequence[str] | None = None

    _converted = _converted

    def __init__(
        self,
        sendmail_app: str | None = None,
        sendmail_template: Sequence[str] | None = None,
    ) -> None:
        if sendmail_app:
            self.sendmail_app = sendmail_app
        if sendmail_template:
            self.sendmail_template = sendmail_template

    def send(
        self, fromaddr: Any = None, toaddrs: Any = None, message: Any = None
    ) -> None:
        """Run the command. Without `toaddrs`, the recipients are in the header.

        Raises `SendmailCommandReturnedNonZero` if it fails, and OSError if it cannot be
        run.
        """
        program: _Program = self._mailer()
        sender, to = address(fromaddr), addresses(toaddrs) or None
        checked = _checked(message)
        with addresses_refused(sender):
            report = program.send(sender, to, checked)
        failure = report.relay_failure
        if isinstance(failure, RelayError) and program.returncode is None:
            raise failure.__cause__ or failure
        if failure is not None or any(
            outcome.status is not Status.SENT for outcome in report.outcomes
        ):
            said = str(failure or report.outcomes[0].reply)
            code = program.returncode or -1
            raise SendmailCommandReturnedNonZero(code, program.arguments, said)

    _send = send

    def _made(self) -> _Program:
        return _Program(self.sendmail_app, self.sendmail_template)


class _Program(sendmail.SendmailMailer):
    """One run of the program. Notes its arguments and its exit status."""

    def __init__(self, command: str, template: Sequence[str] | None) -> None:
        super().__init__(command)
        self._template = template
        self.arguments: list[str] = []
        self.returncode: int | None = None
        try:
            self._begin("", ())
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {error}; these can be replaced:"
            places = "{sendmail_app}, {sender} and {recipients}"
            raise OptionError(
                "sendmail_template", template, f"{reason} {places}"
            ) from error

    def _arguments(self, sender: str, recipients: tuple[str, ...]) -> list[bytes]:
        arguments = super()._arguments(sender, recipients)
        if self._template is not None:
            bare = arguments[arguments.index(b"--") + 1 :]
            # An address that begins with a hyphen must not be an option.
            end = [b"--"] if any(one.startswith(b"-") for one in bare) else []
            arguments = [*self._begin(sender, recipients), *end, *bare]
        self.arguments = [argument.decode() for argument in arguments]
        return arguments

    def _begin(self, sender: str, recipients: tuple[str, ...]) -> list[bytes]:
        """Return the words of the template."""
        places = {
            "sendmail_app": self.command,
            "sender": sender or "<>",
            "recipients": list(recipients),
        }
        return [word.format(**places).encode() for word in self._template or ()]

    def _judge(self, code: int, said: str) -> Any:
        self.returncode = code
        return super()._judge(code, said)


# Deliveries


class _Delivery(ABC):
    """The base of both deliveries.

    `transaction_manager` may be anything: it is looked at with the first `send`.
    """

    def __init__(self, transaction_manager: Any) -> None:
        if transaction_manager is None:
            transaction_manager = transaction.manager
        self.transaction_manager = transaction_manager

    @abstractmethod
    def _delivery(self) -> Any:
        """Return the delivery of ours. Raises ValueError if it can never work."""

    def send(self, fromaddr: Any, toaddrs: Any, message: Any, **terms: Any) -> str:
        """Send `message` when the transaction commits, see `IMailDelivery`.

        `terms` are the keywords of `IScheduledMailDelivery`, which need a queue. Adds
        Message-Id and Date to `message` if they are missing, unless it is refused.
        Returns the message id with its angle brackets.
        """
        checked, sender = _checked(message), address(fromaddr)
        bound = self._delivery().bind(self.transaction_manager)
        with addresses_refused(sender):
            composed = compose(sender, addresses(toaddrs), checked)
        bound.send(composed.sender, composed.recipients, composed.message, **terms)
        header = email.message_from_bytes(composed.header)
        for name in ("Message-Id", "Date"):
            if message[name] is None:
                message[name] = header[name]
        return f"<{composed.message_id}>"


@implementer(IMailDelivery)
class DirectMailDelivery(_Delivery, Direct):
    """Transmits through `mailer` while the transaction commits.

    A mailer of another library gets an `email.message.Message`, as in repoze.sendmail.
    """

    def __init__(self, mailer: Any, transaction_manager: Any = None) -> None:
        _Delivery.__init__(self, transaction_manager)
        Direct.__init__(self, mailer)

    def _made(self, mailer: Any) -> direct.DirectMailDelivery:
        # A mailer with a pipeline, and an `IMailer`, take bytes.
        is_new = hasattr(type(mailer), "pipeline") or IMailer.providedBy(mailer)
        takes_bytes = mailer if is_new else SendOnly(mailer, email.message_from_bytes)
        return direct.DirectMailDelivery(takes_bytes)

    def _delivery(self) -> direct.DirectMailDelivery:
        self._check_mailer()
        return self._direct()


@implementer(IMailDelivery)
class QueuedMailDelivery(_Delivery):
    """Accepts messages into the queue at `queuePath` when the transaction commits."""

    def __init__(self, queuePath: str, transaction_manager: Any = None) -> None:
        super().__init__(transaction_manager)
        self._path = queuePath

    @property
    def queuePath(self) -> str:
        """The path of the queue, as it was given."""
        return self._path

    def _delivery(self) -> queued.QueuedMailDelivery:
        return queued_delivery(self.queuePath)
