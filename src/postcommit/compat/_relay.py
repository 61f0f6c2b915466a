"""The mailer behind the SMTP mailers of both libraries.

Applications that were written for the older libraries make a mailer for each message.
So mailers with the same options share one of ours, and its connections.
"""
from __future__ import annotations

import os
import re
import smtplib
import ssl
from abc import ABC
from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import replace
from email.header import Header
from functools import lru_cache
from typing import Any

import zope.event

from postcommit._build import build
from postcommit._config.options import Given
from postcommit._config.sources import PREFIX
from postcommit._config.sources import from_environment
from postcommit._mail.address import split_addresses
from postcommit._mail.as_smtplib import cause_of
from postcommit._mail.as_smtplib import raise_as_smtplib
from postcommit._mail.report import DeliveryReport
from postcommit._mailers.base import BaseMailer
from postcommit._mailers.base import Pipeline
from postcommit._mailers.foreign import notify_of
from postcommit._mailers.foreign import pipeline_of
from postcommit._smtp.mailer import SMTPMailer
from postcommit._transaction.event import Notify
from postcommit.errors import AddressError
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.errors import masked
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import Outgoing
from postcommit.interfaces import TLSMode


# Options that the older libraries lack, by their names in the environment. For example,
# ``POSTCOMMIT_CAFILE`` has the option `cafile`.
ENVIRONMENT = {
    f"{PREFIX}{name.upper()}": name
    for name in (
        "auth",
        "cafile",
        "verify",
        "certfile",
        "keyfile",
        "server_name",
        "helo_name",
        "source_address",
        "final_timeout",
    )
}

# Options that mean nothing without TLS.
_OF_TLS = frozenset({"cafile", "certfile", "keyfile", "server_name"})

_HINT = (
    f"set {PREFIX}CAFILE in the environment to the file with the certificate of the"
    f" relay's authority, or {PREFIX}VERIFY to false to trust any certificate"
)

# The number of recipients of one transmission is not an option of the older libraries.
_MOST_RECIPIENTS: int = ISMTPMailer["recipients_per_transaction"].default

# Maximum number of relays, each with its options, of which connections are kept.
_MOST_RELAYS = 64


def check_environment() -> None:
    """Raise `OptionError` for a variable of `ENVIRONMENT` that can never work."""
    login = {name: Given("", name, "x") for name in ("username", "password")}
    Relay({**login, **_from_environment()})


def _from_environment() -> dict[str, Given]:
    environ = {v: os.environ[v] for v in ENVIRONMENT if v in os.environ}
    return from_environment(environ, ENVIRONMENT.values())


# Errors


class RefusedOptionError(smtplib.SMTPServerDisconnected, ValueError):
    """An option with which no mail can ever be sent.

    It is a ValueError, as elsewhere in postcommit. smtplib finds such an option when it
    connects, and callers catch the OSError. A queue pauses, and loses nothing.
    """


class RefusedSenderError(smtplib.SMTPSenderRefused, ValueError):
    """A sender that no relay was asked about, because it can never work."""

    def __init__(self, error: AddressError) -> None:
        self.address: object = error.address
        super().__init__(*_reply_of(error), str(error.address))
        self._text = str(error)

    def __str__(self) -> str:
        return self._text


class RefusedAddressError(smtplib.SMTPRecipientsRefused, ValueError):
    """An address that no relay was asked about, because it can never work.

    It is a ValueError, as elsewhere in postcommit. It is an error of smtplib, too: the
    older libraries left the address to the relay, and their callers catch such errors.
    `recipients` is empty without a recipient.
    """

    def __init__(self, error: AddressError) -> None:
        self.address: object = error.address
        is_missing = error.address is None
        super().__init__({} if is_missing else {str(error.address): _reply_of(error)})
        self._text = str(error)

    def __str__(self) -> str:
        return self._text


def _reply_of(error: AddressError) -> tuple[int, bytes]:
    return 553, f"5.1.3 {error}".encode()


@contextmanager
def addresses_refused(sender: Any) -> Iterator[None]:
    """Raise an error of smtplib in place of `AddressError`."""
    try:
        yield
    except AddressError as error:
        is_sender = error.address is not None and error.address == sender
        kind = RefusedSenderError if is_sender else RefusedAddressError
        raise kind(error) from error


# Mailers


class OlderMailer(ABC):
    """The base of the mailers of both libraries, each in front of a mailer of ours.

    The attributes may be set at any time before a message is sent. Deliveries and
    processors of ours use `pipeline`, unless a subclass has another `send`.
    """

    # `send` of the class in this package, and what makes the message that it takes.
    _send: Any
    _converted: Callable[[bytes], Any] = bytes

    def __init_subclass__(cls) -> None:
        """Let `pipeline` decide, also for a subclass that has a `send` of its own."""
        cls.pipeline = cls.pipeline  # type: ignore[method-assign]

    @abstractmethod
    def _made(self) -> BaseMailer:
        """Return the mailer of ours. Raises `OptionError`."""

    def _mailer(self) -> Any:
        try:
            return self._made()
        except OptionError as error:
            raise RefusedOptionError(str(error)) from error

    def check_options(self) -> None:
        """Raise `RefusedOptionError` for an option that can never work."""
        if not self._has_other_send:
            self._mailer()

    def pipeline(self) -> Pipeline:
        """Return a pipeline, see `IPipelineMailer`."""
        if self._has_other_send:
            return pipeline_of(SendOnly(self, self._converted))
        made: Pipeline = self._mailer().pipeline()
        return made

    @property
    def recipients_per_transaction(self) -> int | None:
        """How many recipients it has in one transmission, None with another `send`."""
        return None if self._has_other_send else _MOST_RECIPIENTS

    @property
    def _has_other_send(self) -> bool:
        kind: Any = type(self)
        return kind.send is not kind._send


class SendOnly:
    """A mailer with the ``send()`` of `mailer`, and no pipeline that bypasses it.

    `converted` makes the message that ``send()`` takes out of bytes.
    """

    def __init__(self, mailer: Any, converted: Callable[[bytes], Any]) -> None:
        self._mailer = mailer
        self._converted = converted
        self.notify: Notify = notify_of(mailer)

    def __repr__(self) -> str:
        return repr(self._mailer)

    def send(self, sender: str, recipients: tuple[str, ...], message: bytes) -> Any:
        return self._mailer.send(sender, recipients, self._converted(message))


class StandIn(OlderMailer):
    """The base of the SMTP mailers of both libraries. `send` raises as smtplib does."""

    hostname: Any
    port: Any
    username: Any
    password: Any
    no_tls: Any
    force_tls: Any
    timeout: Any = 10
    certfile: Any = None
    keyfile: Any = None

    notify: Notify = staticmethod(zope.event.notify)

    @property
    @abstractmethod
    def _is_implicit(self) -> bool:
        """Whether TLS is spoken from the first byte."""

    def __repr__(self) -> str:
        host = masked("hostname", self.hostname)
        return f"<{type(self).__name__} {host}:{self.port}>"

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
        """Transmit `message`; raise as smtplib does if no recipient was sent.

        The report is logged and announced in any case, see `IMailer.send`.
        """
        sender, checked = address(fromaddr), self._checked(message)
        with addresses_refused(sender):
            report = self._mailer().send(sender, addresses(toaddrs), checked)
        raise_as_smtplib(report, str(sender or ""))

    _send = send

    def _checked(self, message: Any) -> Any:
        """Return a message that `send` was given; raise if it is of another type."""
        return message

    def _ask(self) -> None:
        """Connect and log in; raise as smtplib does if that fails."""
        try:
            self._mailer().mailer.check()
        except RelayError as error:
            failed = DeliveryReport("", (), relay_failure=_explained(error))
            raise_as_smtplib(failed)

    def _made(self) -> Relay:
        if not self.hostname:
            raise OptionError("hostname", self.hostname, "the relay is missing")
        tls = self._tls()
        options = {
            "hostname": self.hostname,
            "port": self.port,
            "tls": tls.value,
            "certfile": self.certfile,
            "keyfile": self.keyfile,
        }
        if self._has_login:
            options |= {"username": self.username, "password": self.password}
        if self.timeout is not None:
            options |= {"connect_timeout": self.timeout, "timeout": self.timeout}
        unused = set() if self._has_login else {"auth"}
        if tls is TLSMode.NONE:
            unused |= _OF_TLS
        if self.certfile or self.keyfile:
            # A certificate and a key of two sources do not belong together.
            unused |= {"certfile", "keyfile"}
        if str(self.hostname).startswith("/"):
            unused.add("source_address")
        environ = tuple(
            (variable, os.environ[variable])
            for variable, name in ENVIRONMENT.items()
            if variable in os.environ and name not in unused
        )
        given = {n: v for n, v in options.items() if v not in (None, "")}
        return _relay_of(tuple(given.items()), environ)

    @property
    def _has_login(self) -> bool:
        return bool(self.username and self.password)

    def _tls(self) -> TLSMode:
        """Return the mode for the switches of the older library.

        With a login, STARTTLS is used where it is offered, whatever `no_tls` says,
        because a password is not sent in clear to another machine.
        """
        if self._is_implicit:
            return TLSMode.IMPLICIT
        if self.force_tls:
            return TLSMode.STARTTLS
        if self.no_tls and not self._has_login:
            return TLSMode.NONE
        return TLSMode.AUTO


@lru_cache(_MOST_RELAYS)
def _relay_of(
    options: tuple[tuple[str, Any], ...], environ: tuple[tuple[str, str], ...]
) -> Relay:
    given = from_environment(dict(environ), ENVIRONMENT.values())
    return Relay({**given, **{name: Given("", name, v) for name, v in options}})


class Relay(BaseMailer):
    """One of our mailers, whose failures say how to trust a certificate."""

    notify = staticmethod(zope.event.notify)

    def __init__(self, given: Mapping[str, Given]) -> None:
        self.mailer: SMTPMailer = build(ISMTPMailer, given)

    def pipeline(self) -> Pipeline:
        """Return the pipeline of the mailer, with explained failures."""
        return _Explaining(self.mailer.pipeline())


class _Explaining(Pipeline):
    """A pipeline around one of ours, with explained failures."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def __enter__(self) -> _Explaining:
        self._pipeline.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._pipeline.__exit__(kind, error, traceback)

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        self._pipeline.waits = self.waits
        self._pipeline.offer(mail, key)

    def completed(self) -> Iterator[tuple[Any, DeliveryReport]]:
        return map(_with_explanation, self._pipeline.completed())

    def drain(self) -> Iterator[tuple[Any, DeliveryReport]]:
        return map(_with_explanation, self._pipeline.drain())


def _with_explanation(
    completed: tuple[Any, DeliveryReport],
) -> tuple[Any, DeliveryReport]:
    key, report = completed
    failure = report.relay_failure
    if failure is not None:
        report = replace(report, relay_failure=_explained(failure))
    return key, report


def _explained(failure: RelayError) -> RelayError:
    """Return `failure`, with the remedy if it is a certificate."""
    cause = cause_of(failure)
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return failure
    explained = RelayError(f"{failure}; {_HINT}", failure.reply)
    explained.__cause__ = cause
    return explained


# Addresses


_FOLD = re.compile(r"\r?\n(?=[ \t])")


def address(value: Any) -> Any:
    """Return an address as str or bytes.

    The value of a header field may be a `Header`. A text may be folded as in a header
    (RFC 5322, 2.2.3). For example, Plone folds the name of a site if it is long.
    """
    if isinstance(value, Header):
        value = str(value)
    return _FOLD.sub("", value) if isinstance(value, str) else value


def addresses(values: Any) -> Any:
    """Return the addresses of a list as str or bytes, without empty ones.

    A text with a comma at its end, for example, makes an empty address in the lists of
    callers. If no other address is there, the value is returned as it is.
    """
    values = address(values)
    if isinstance(values, str):
        pieces = split_addresses(values)
        is_list = "," in values and len(pieces) > 0
        return pieces if is_list else values
    if isinstance(values, bytes) or not isinstance(values, Iterable):
        return values
    found = [address(value) for value in values]
    kept = [a for a in found if not isinstance(a, str | bytes) or a.strip()]
    return kept or found
