"""The mailer behind the SMTP mailers of both libraries.

Applications that were written for the older libraries make a mailer for each message.
So mailers with the same options share one of ours, and its connections.
"""
from __future__ import annotations

import os
import smtplib
import ssl
from abc import ABC
from abc import abstractmethod
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
from postcommit._build import may_be_loopback
from postcommit._config.options import Given
from postcommit._config.sources import PREFIX
from postcommit._config.sources import from_environment
from postcommit._mail.as_smtplib import cause_of
from postcommit._mail.report import DeliveryReport
from postcommit._mailers.base import BaseMailer
from postcommit._mailers.base import Pipeline
from postcommit._mailers.foreign import pipeline_of
from postcommit._smtp.mailer import SMTPMailer
from postcommit._transaction.event import Notify
from postcommit.errors import AddressError
from postcommit.errors import RelayError
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
    )
}

_HINT = (
    f"set {PREFIX}CAFILE in the environment to the file with the certificate of the"
    f" relay's authority, or {PREFIX}VERIFY to false to trust any certificate"
)

# Maximum number of relays, each with its options, of which connections are kept.
_MOST_RELAYS = 64


class StandIn(ABC):
    """The base of the SMTP mailers of both libraries.

    The attributes may be set at any time before a message is sent. `send` raises what
    smtplib raises. Deliveries and processors of ours use `pipeline`, unless a subclass
    has another `send`.
    """

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

    def __init_subclass__(cls) -> None:
        """Let `pipeline` decide, also for a subclass that has a `send` of its own."""
        cls.pipeline = cls.pipeline  # type: ignore[method-assign]

    @property
    @abstractmethod
    def _is_implicit(self) -> bool:
        """Whether TLS is spoken from the first byte."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.hostname}:{self.port}>"

    def send(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
        """Transmit `message`; raise as smtplib does if no recipient was sent.

        The report is logged and announced in any case, see `IMailer.send`.
        """
        taken = self._taken(message)
        with addresses_refused():
            report = self._relay().send(address(fromaddr), addresses(toaddrs), taken)
        report.raise_as_smtplib()

    def _taken(self, message: Any) -> Any:
        """Return a message that `send` was given; raise if it is of another type."""
        return message

    def _given(self, message: bytes) -> Any:
        """Return a message as `send` takes it."""
        return message

    def pipeline(self) -> Pipeline:
        """Return a pipeline, see `IPipelineMailer`."""
        if type(self).send is not StandIn.send:
            return pipeline_of(_OnlySend(self))
        return self._relay().pipeline()

    def _ask(self) -> None:
        """Connect and log in; raise as smtplib does if that fails."""
        try:
            self._relay().mailer.check()
        except RelayError as error:
            failed = DeliveryReport("", (), relay_failure=_explained(error))
            failed.raise_as_smtplib()

    def _relay(self) -> Relay:
        options = {
            "hostname": self.hostname,
            "port": self.port,
            "tls": self._tls().value,
            "certfile": self.certfile,
            "keyfile": self.keyfile,
        }
        if self.username and self.password:
            options |= {"username": self.username, "password": self.password}
        if self.timeout is not None:
            options |= {"connect_timeout": self.timeout, "timeout": self.timeout}
        given = ((n, v) for n, v in options.items() if v not in (None, ""))
        environ = ((v, os.environ[v]) for v in ENVIRONMENT if v in os.environ)
        return _relay_of(tuple(given), tuple(environ))

    def _tls(self) -> TLSMode:
        """Return the mode for the switches of the older library.

        A login is not sent in clear to another machine, whatever `no_tls` says. Then
        STARTTLS is used where it is offered.
        """
        if self._is_implicit:
            return TLSMode.IMPLICIT
        if self.force_tls:
            return TLSMode.STARTTLS
        has_login = self.username and self.password
        if self.no_tls and (not has_login or may_be_loopback(str(self.hostname))):
            return TLSMode.NONE
        return TLSMode.AUTO


class RefusedAddressError(smtplib.SMTPRecipientsRefused, ValueError):
    """An address that no relay was asked about, because it can never work.

    It is a ValueError, as elsewhere in postcommit. It is an error of smtplib, too: the
    older libraries left the address to the relay, and their callers catch such errors.
    """

    def __init__(self, error: AddressError) -> None:
        self.address = error.address
        super().__init__({str(error.address): (553, f"5.1.3 {error}".encode())})


@contextmanager
def addresses_refused() -> Iterator[None]:
    """Raise `RefusedAddressError` in place of `AddressError`."""
    try:
        yield
    except AddressError as error:
        raise RefusedAddressError(error) from error


class _OnlySend:
    """A mailer with the ``send()`` of a subclass, and no pipeline that bypasses it."""

    def __init__(self, mailer: StandIn) -> None:
        self._mailer = mailer
        self.notify = mailer.notify

    def send(self, sender: str, recipients: tuple[str, ...], message: bytes) -> Any:
        mailer = self._mailer
        return mailer.send(sender, recipients, mailer._given(message))


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


def address(value: Any) -> Any:
    """Return an address as str or bytes. A header field's value may be a `Header`."""
    return str(value) if isinstance(value, Header) else value


def addresses(values: Any) -> Any:
    """Return the addresses of a list as str or bytes."""
    if isinstance(values, Header):
        return str(values)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return values
    return [address(value) for value in values]
