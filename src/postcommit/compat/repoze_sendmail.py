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

import email
import subprocess
from abc import ABC
from abc import abstractmethod
from collections.abc import Sequence
from email.message import Message
from email.utils import formatdate
from email.utils import make_msgid
from typing import Any

import transaction
from zope.interface import implementer

from postcommit import _delivery
from postcommit._mailers import sendmail
from postcommit._mailers.base import Pipeline
from postcommit._mailers.foreign import pipeline_of
from postcommit.compat._queued import queued_delivery
from postcommit.compat._relay import StandIn
from postcommit.compat._relay import address
from postcommit.compat._relay import addresses
from postcommit.compat._relay import addresses_refused
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


def _checked(message: Any) -> Message:
    if not isinstance(message, Message):
        raise NotAnEmailMessage()
    return message


# Mailers


class SMTPMailer(StandIn):
    """Transmits through an SMTP relay, with the arguments of repoze.sendmail.

    A user name without a password does not log in. `debug_smtp` has no effect; set the
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

    def _taken(self, message: Any) -> Message:
        return _checked(message)

    def _given(self, message: bytes) -> Message:
        return email.message_from_bytes(message)


class SendmailMailer:
    """Runs the local ``sendmail`` command, with the arguments of repoze.sendmail.

    `sendmail_template` has the arguments of the command, in which ``{sendmail_app}``,
    ``{sender}`` and ``{recipients}`` are replaced. The recipients follow. Without a
    template they are the only recipients: addresses in the header are ignored.
    """

    sendmail_app: str = "/usr/sbin/sendmail"
    sendmail_template: Sequence[str] | None = None

    def __init_subclass__(cls) -> None:
        """Let `pipeline` decide, also for a subclass that has a `send` of its own."""
        cls.pipeline = cls.pipeline  # type: ignore[method-assign]

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
        program = self._program()
        to = addresses(toaddrs) or None
        with addresses_refused():
            report = program.send(address(fromaddr), to, _checked(message))
        failure = report.relay_failure
        if isinstance(failure, RelayError) and program.returncode is None:
            raise failure.__cause__ or failure
        if failure is not None or any(
            outcome.status is not Status.SENT for outcome in report.outcomes
        ):
            said = str(failure or report.outcomes[0].reply)
            code = program.returncode or -1
            raise SendmailCommandReturnedNonZero(code, program.arguments, said)

    def pipeline(self) -> Pipeline:
        """Return a pipeline, see `IPipelineMailer`."""
        if type(self).send is not SendmailMailer.send:
            return pipeline_of(_TakingMessages(self))
        return self._program().pipeline()

    def _program(self) -> _Program:
        return _Program(self.sendmail_app, self.sendmail_template)


class _Program(sendmail.SendmailMailer):
    """One run of the program. Notes its arguments and its exit status."""

    def __init__(self, command: str, template: Sequence[str] | None) -> None:
        super().__init__(command)
        self._template = template
        self.arguments: list[str] = []
        self.returncode: int | None = None

    def _arguments(self, sender: str, recipients: tuple[str, ...]) -> list[bytes]:
        arguments = super()._arguments(sender, recipients)
        if self._template is not None:
            bare = arguments[arguments.index(b"--") + 1 :]
            # An address that begins with a hyphen must not be an option.
            end = [b"--"] if any(one.startswith(b"-") for one in bare) else []
            places = {
                "sendmail_app": self.command,
                "sender": sender or "<>",
                "recipients": list(recipients),
            }
            given = [word.format(**places).encode() for word in self._template]
            arguments = [*given, *end, *bare]
        self.arguments = [argument.decode() for argument in arguments]
        return arguments

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
    def _ours(self) -> Any:
        """Return the delivery of ours."""

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> str:
        """Send `message` when the transaction commits, see `IMailDelivery`.

        Adds Message-Id and Date to `message` if they are missing. Returns the message
        id with its angle brackets.
        """
        _checked(message)
        sender = address(fromaddr)
        if message["Message-Id"] is None:
            domain = str(sender or "").rpartition("@")[2].strip(" >")
            message["Message-Id"] = make_msgid("postcommit", domain or None)
        if message["Date"] is None:
            message["Date"] = formatdate()
        bound = self._ours().bind(self.transaction_manager)
        with addresses_refused():
            message_id: str = bound.send(sender, addresses(toaddrs), message)
        return f"<{message_id}>"


@implementer(IMailDelivery)
class DirectMailDelivery(_Delivery):
    """Transmits through `mailer` while the transaction commits.

    A mailer of another library gets an `email.message.Message`, as in repoze.sendmail.
    """

    def __init__(self, mailer: Any, transaction_manager: Any = None) -> None:
        super().__init__(transaction_manager)
        self.mailer = mailer
        self._delivery: _delivery.DirectMailDelivery | None = None

    def _ours(self) -> _delivery.DirectMailDelivery:
        if self._delivery is None:
            mailer = self.mailer
            # A mailer with a pipeline, and an `IMailer`, take bytes.
            is_new = hasattr(type(mailer), "pipeline") or IMailer.providedBy(mailer)
            taking: Any = mailer if is_new else _TakingMessages(mailer)
            self._delivery = _delivery.DirectMailDelivery(taking)
        return self._delivery


class _TakingMessages:
    """A mailer around `mailer`, which takes messages as objects only."""

    def __init__(self, mailer: Any) -> None:
        self._mailer = mailer

    def __repr__(self) -> str:
        return repr(self._mailer)

    def send(self, sender: str, recipients: tuple[str, ...], message: bytes) -> Any:
        return self._mailer.send(sender, recipients, email.message_from_bytes(message))


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

    def _ours(self) -> _delivery.QueuedMailDelivery:
        return queued_delivery(self.queuePath)
