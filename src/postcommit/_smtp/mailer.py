"""The mailer that talks to an SMTP relay."""
from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import zope.event
from zope.interface import implementer

from postcommit._config.options import checked
from postcommit._mail.report import DeliveryReport
from postcommit._mailers.base import BaseMailer
from postcommit._smtp.connection import Relay
from postcommit._smtp.connection import Timeouts
from postcommit._smtp.credentials import Credentials
from postcommit._smtp.pipeline import SMTPPipeline
from postcommit._smtp.pool import Pool
from postcommit._smtp.tls import TLS
from postcommit.errors import OptionError
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import Outgoing
from postcommit.interfaces import TLSMode


_check = functools.partial(checked, ISMTPMailer)

# A name or an IPv4 address, or an IPv6 address.
_HOST = re.compile(r"[^\s/:@]+|[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[^\s/@]*")


@implementer(ISMTPMailer)
class SMTPMailer(BaseMailer):
    """Transmits through an SMTP relay (RFC 5321). See `ISMTPMailer`.

    `token` is for OAuth, in place of a password: a function without arguments that
    returns an access token, and a fresh token when it is called again. It raises
    OSError if it cannot. `relay` has the options in the form that connections use.

    Threads may share a mailer. Raises `OptionError` for options that can never work.
    Nothing is connected or read before the first message.
    """

    def __init__(
        self,
        hostname: str = ISMTPMailer["hostname"].default,
        port: int = ISMTPMailer["port"].default,
        username: str | None = ISMTPMailer["username"].default,
        password: str | None = ISMTPMailer["password"].default,
        *,
        token: Callable[[], str] | None = None,
        tls: str = ISMTPMailer["tls"].default,
        cafile: str | None = ISMTPMailer["cafile"].default,
        verify: bool = ISMTPMailer["verify"].default,
        connect_timeout: float = ISMTPMailer["connect_timeout"].default,
        timeout: float | None = ISMTPMailer["timeout"].default,
        messages_per_connection: int = ISMTPMailer["messages_per_connection"].default,
        idle_timeout: float = ISMTPMailer["idle_timeout"].default,
        pipelining: bool = ISMTPMailer["pipelining"].default,
        notify: Callable[[Any], Any] = zope.event.notify,
    ) -> None:
        self.hostname: str = _check("hostname", hostname)
        if not _HOST.fullmatch(self.hostname):
            reason = "must be a name or an address; the port is an option of its own"
            raise OptionError("hostname", hostname, reason)
        self.port: int = _check("port", port)
        self.username: str | None = _check("username", username)
        self.password: str | None = _check("password", password)
        self.token = token
        self.tls: str = _check("tls", tls)
        self.cafile: str | None = _check("cafile", cafile)
        self.verify: bool = _check("verify", verify)
        self.connect_timeout: float = _check("connect_timeout", connect_timeout)
        self.timeout: float | None = _check("timeout", timeout)
        self.messages_per_connection: int = _check(
            "messages_per_connection", messages_per_connection
        )
        self.idle_timeout: float = _check("idle_timeout", idle_timeout)
        self.pipelining: bool = _check("pipelining", pipelining)
        self.notify = notify
        self.relay = self._relay()
        self._pool = Pool(
            self.relay,
            messages=self.messages_per_connection,
            idle_timeout=self.idle_timeout,
            pipelining=self.pipelining,
        )

    def _relay(self) -> Relay:
        """Return the options in the form that connections use."""
        credentials = None
        if self.username or self.token is not None:
            credentials = Credentials(self.username or "", self.password, self.token)
        timeouts = Timeouts(self.connect_timeout)
        if self.timeout is not None:
            timeouts = Timeouts.alike(self.connect_timeout, self.timeout)
        tls = TLS(TLSMode(self.tls), self.cafile, self.verify)
        return Relay(self.hostname, self.port, timeouts, tls, credentials)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.hostname}:{self.port}>"

    def pipeline(self) -> SMTPPipeline:
        """Return a pipeline over the connections of this mailer.

        It is up to two messages ahead of the reports. See `IPipelineMailer`.
        """
        return SMTPPipeline(self._pool)

    def _transmit(self, mail: Outgoing) -> DeliveryReport:
        with self.pipeline() as pipeline:
            pipeline.offer(mail)
            [(_, report)] = pipeline.drain()
        return report

    def check(self) -> None:
        """Connect and log in, or raise `RelayError`. See `IRelayCheck`."""
        connection = self._pool.checkout()
        if not connection.is_alive():
            self._pool.discard(connection)
            connection = self._pool.checkout(fresh=True)
        self._pool.checkin(connection)

    def read_certificates(self) -> None:
        """Read `cafile` and the system's certificates now, and keep them.

        For a process that cannot read them later. Raises `RelayError` if they cannot be
        read.
        """
        self.relay.tls.read_certificates()

    def close(self) -> None:
        """Close the connections. See `ISMTPMailer`."""
        self._pool.close()
