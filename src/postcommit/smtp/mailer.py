"""The mailer that talks to an SMTP relay."""
from __future__ import annotations

import functools
import re
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any

import zope.event
from zope.interface import implementer

from postcommit.errors import OptionError
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import TLSMode
from postcommit.mailer import BaseMailer
from postcommit.message import message_id_of
from postcommit.options import checked
from postcommit.report import DeliveryReport
from postcommit.smtp.batch import Batch
from postcommit.smtp.policy import TLS
from postcommit.smtp.policy import Credentials
from postcommit.smtp.policy import Relay
from postcommit.smtp.policy import Timeouts
from postcommit.smtp.pool import Pool
from postcommit.smtp.session import open_session
from postcommit.smtp.transfer import Transfer


_check = functools.partial(checked, ISMTPMailer)

# A name or an IPv4 address, or an IPv6 address.
_HOST = re.compile(r"[^\s/:@]+|[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[^\s/@]*")


@implementer(ISMTPMailer)
class SMTPMailer(BaseMailer):
    """See `ISMTPMailer`.

    `token` is for OAuth, in place of a password: a function without arguments
    that returns an access token, and a fresh one when it is called again. It
    raises OSError where it cannot.

    Threads may share a mailer. Raises `OptionError` for options that can never
    work; nothing is connected or read before the first message.
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
        self._tls = TLS(TLSMode(self.tls), self.cafile, self.verify)
        self._pool = Pool(
            functools.partial(open_session, self._relay()),
            messages=self.messages_per_connection,
            idle_timeout=self.idle_timeout,
            pipelining=self.pipelining,
        )

    def _relay(self) -> Relay:
        return Relay(
            self.hostname,
            self.port,
            Timeouts.of(self.connect_timeout, self.timeout),
            self._tls,
            Credentials.of(self.username, self.password, self.token),
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.hostname}:{self.port}>"

    def _transmit(
        self, sender: str, recipients: tuple[str, ...], message: bytes, message_id: str
    ) -> DeliveryReport:
        [report] = Batch(
            self._pool, [Transfer(sender, recipients, message, message_id)]
        )
        return report

    def send_batch(
        self, messages: Iterable[tuple[str, Sequence[str], bytes]]
    ) -> Iterator[IDeliveryReport]:
        """See `IBatchMailer`.

        Is up to two messages ahead of the reports. Once the relay has failed,
        the messages that remain are not tried any more, and fail alike.
        """
        return iter(
            Batch(
                self._pool,
                (
                    Transfer(sender, recipients, message, message_id_of(message))
                    for sender, recipients, message in messages
                ),
            )
        )

    def check(self) -> None:
        """See `IRelayCheck`."""
        session = self._pool.checkout()
        if not session.is_alive():
            self._pool.discard(session)
            session = self._pool.checkout(fresh=True)
        self._pool.checkin(session)

    def read_certificates(self) -> None:
        """Read `cafile` and the system's certificates now, and keep them.

        For a process that cannot read them later. Raises `RelayError` where they cannot
        be read.
        """
        self._tls.read_certificates()

    def close(self) -> None:
        """See `ISMTPMailer`."""
        self._pool.close()
