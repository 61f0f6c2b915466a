"""The mailer that talks to an SMTP relay, and its pipeline.

The pipeline drives the dialogue over connections. Bytes are moved there, and only
there.
"""
from __future__ import annotations

import functools
import re
import ssl
import sys
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import Protocol

import zope.event
from zope.interface import implementer
from zope.schema import getFieldNames

from postcommit._config.options import checked
from postcommit._config.options import checked_notify
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._mailers.base import BaseMailer
from postcommit._mailers.base import Pipeline
from postcommit._smtp.connection import Connection
from postcommit._smtp.connection import Relay
from postcommit._smtp.connection import Timeouts
from postcommit._smtp.credentials import Credentials
from postcommit._smtp.dialogue import Account
from postcommit._smtp.dialogue import Dialogue
from postcommit._smtp.pool import Pool
from postcommit._smtp.pool import shared
from postcommit._smtp.tls import TLS
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.errors import TooManyConnections
from postcommit.interfaces import AuthName
from postcommit.interfaces import ISMTPMailer
from postcommit.interfaces import Outgoing
from postcommit.interfaces import ProtocolName
from postcommit.interfaces import TLSMode
from postcommit.interfaces import TLSName
from postcommit.interfaces import is_ip_address


_check = functools.partial(checked, ISMTPMailer)

# A name or an IPv4 address, an IPv6 address, or the path of a unix socket.
_HOST = re.compile(r"[^\s/:@]+|[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[^\s/@]*|/[^\0]+")

# A domain, and an address in its place (RFC 5321, 4.1.2 and 4.1.3).
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LITERAL = re.compile(r"\[([0-9.]+|IPv6:([0-9A-Fa-f.]*:[0-9A-Fa-f.:]*))\]")

_NO_HOST = (
    "must be a name, an address, or the path of a unix socket; the port is an option of"
    " its own"
)
_NO_HELO_NAME = (
    "must be a name such as 'shop.example.org', in ASCII, or an address such as"
    " '[192.0.2.1]' or '[IPv6:2001:db8::1]'"
)


def _is_helo_name(name: str) -> bool:
    """Return whether `name` is a domain or an address literal."""
    literal = _LITERAL.fullmatch(name)
    if literal is not None:
        return is_ip_address(literal[2] or literal[1])
    return _DOMAIN.fullmatch(name) is not None and not is_ip_address(name)


@implementer(ISMTPMailer)
class SMTPMailer(BaseMailer):
    """Transmits through an SMTP relay (RFC 5321). See `ISMTPMailer`.

    `token` is for OAuth, in place of a password: a function without arguments that
    returns an access token, and a fresh token when it is called again. It raises
    OSError if it cannot. `ssl_context` is used as it is, in place of the options that
    say how to make one. `relay` has the options in the form that connections use.

    Threads may share a mailer. Mailers with equal options share their connections.
    Raises `OptionError` for options that can never work. Nothing is connected or read
    before the first message. An option cannot be changed afterwards.
    """

    hostname: str
    port: int
    username: str | None
    password: str | None
    auth: str | None
    tls: str
    cafile: str | None
    verify: bool
    certfile: str | None
    keyfile: str | None
    server_name: str | None
    helo_name: str | None
    source_address: str | None
    protocol: str
    connect_timeout: float
    timeout: float | None
    final_timeout: float
    recipients_per_transaction: int
    messages_per_connection: int
    idle_timeout: float
    pipelining: bool
    dsn: bool
    token: Callable[[], str] | None
    ssl_context: ssl.SSLContext | None
    _pool: Pool

    def __init__(
        self,
        hostname: str = ISMTPMailer["hostname"].default,
        port: int = ISMTPMailer["port"].default,
        username: str | None = ISMTPMailer["username"].default,
        password: str | None = ISMTPMailer["password"].default,
        *,
        token: Callable[[], str] | None = None,
        auth: AuthName | None = ISMTPMailer["auth"].default,
        tls: TLSMode | TLSName = ISMTPMailer["tls"].default,
        cafile: str | None = ISMTPMailer["cafile"].default,
        verify: bool = ISMTPMailer["verify"].default,
        certfile: str | None = ISMTPMailer["certfile"].default,
        keyfile: str | None = ISMTPMailer["keyfile"].default,
        server_name: str | None = ISMTPMailer["server_name"].default,
        ssl_context: ssl.SSLContext | None = None,
        helo_name: str | None = ISMTPMailer["helo_name"].default,
        source_address: str | None = ISMTPMailer["source_address"].default,
        protocol: ProtocolName = ISMTPMailer["protocol"].default,
        connect_timeout: float = ISMTPMailer["connect_timeout"].default,
        timeout: float | None = ISMTPMailer["timeout"].default,
        final_timeout: float = ISMTPMailer["final_timeout"].default,
        recipients_per_transaction: int = ISMTPMailer[
            "recipients_per_transaction"
        ].default,
        messages_per_connection: int = ISMTPMailer["messages_per_connection"].default,
        idle_timeout: float = ISMTPMailer["idle_timeout"].default,
        pipelining: bool = ISMTPMailer["pipelining"].default,
        dsn: bool = ISMTPMailer["dsn"].default,
        notify: Callable[[Any], Any] = zope.event.notify,
    ) -> None:
        given = locals()
        try:
            self._set(given)
        except Exception as error:
            # Frames of a traceback have local variables, and these have the password.
            del given, password
            raise error.with_traceback(None)  # noqa: B904

    def _set(self, given: Mapping[str, Any]) -> None:
        """Check the arguments of the constructor, and make the attributes of them."""
        # Set like this, because an assignment asks each time if it is permitted.
        options = vars(self)
        for name in getFieldNames(ISMTPMailer):
            options[name] = _check(name, given[name])
        options["token"] = given["token"]
        options["ssl_context"] = given["ssl_context"]
        options["notify"] = checked_notify(given["notify"])
        options["_pool"] = shared(
            self._relay(),
            messages=self.messages_per_connection,
            idle_timeout=self.idle_timeout,
            pipelining=self.pipelining,
        )

    def _relay(self) -> Relay:
        """Return the options in the form that connections use.

        Raises `OptionError` for those that can never work, alone or together.
        """
        if not _HOST.fullmatch(self.hostname):
            raise OptionError("hostname", self.hostname, _NO_HOST)
        if self.helo_name is not None and not _is_helo_name(self.helo_name):
            raise OptionError("helo_name", self.helo_name, _NO_HELO_NAME)
        if self.source_address is not None and self.hostname.startswith("/"):
            reason = "must be omitted, because hostname is a unix socket"
            raise OptionError("source_address", self.source_address, reason)
        credentials = None
        if self.username or self.password or self.auth or self.token is not None:
            credentials = Credentials.given(
                self.username, self.password, self.token, self.auth
            )
        timeouts = Timeouts(self.connect_timeout, end=self.final_timeout)
        if self.timeout is not None:
            timeouts = Timeouts.alike(
                self.connect_timeout, self.timeout, self.final_timeout
            )
        tls = TLS(
            TLSMode(self.tls),
            self.cafile,
            self.verify,
            certfile=self.certfile,
            keyfile=self.keyfile,
            server_name=self.server_name,
            ssl_context=self.ssl_context,
        )
        if tls != TLS(tls.mode):  # the defaults do not contradict each other
            tls.check()
        return Relay(
            self.hostname,
            self.port,
            timeouts,
            tls,
            credentials,
            helo_name=self.helo_name,
            source_address=self.source_address,
            protocol=self.protocol,
        )

    def __repr__(self) -> str:
        # A debugger may show a mailer whose constructor has raised.
        pool = vars(self).get("_pool")
        return f"<{type(self).__name__} {pool.relay if pool else 'without options'}>"

    @property
    def relay(self) -> Relay:
        """The options in the form that connections use."""
        return self._pool.relay

    def pipeline(self) -> Pipeline:
        """Return a pipeline over the connections of this mailer.

        It is up to two messages ahead of the reports. See `IPipelineMailer`.
        """
        return SMTPPipeline(
            self._pool, recipients=self.recipients_per_transaction, dsn=self.dsn
        )

    def check(self) -> None:
        """Connect and log in, or raise `RelayError`. See `IRelayCheck`.

        If the relay refuses one more connection, wait for that of another thread, for
        `connect_timeout` seconds at most.
        """
        connection = self._checkout()
        if not connection.is_alive():
            self._pool.discard(connection)
            connection = self._checkout(fresh=True)
        self._pool.checkin(connection)

    def _checkout(self, *, fresh: bool = False) -> Connection:
        try:
            return self._pool.checkout(fresh=fresh)
        except TooManyConnections as refusal:
            return wait_for_another(self._pool, refusal)

    def read_certificates(self) -> None:
        """Read `cafile` and the system's certificates now, and keep them.

        For a process that cannot read them later. Raises `RelayError` if they cannot be
        read.
        """
        self.relay.tls.read_certificates()

    def close(self) -> None:
        """Close the connections. See `ISMTPMailer`."""
        self._pool.close()


# The pipeline


class Connections(Protocol):
    """Lends connections. `messages` is the maximum number of messages for each."""

    relay: Relay
    messages: int
    pipelining: bool

    def checkout(self, *, fresh: bool = False) -> Connection:
        """Return a connection. With `fresh`, it was never used.

        Raises `RelayError` if the relay cannot be reached.
        """

    def checkin(self, connection: Connection, *, keep: bool = True) -> None:
        """Take back a connection between two messages. Without `keep`, close it."""

    def discard(self, connection: Connection, *, is_lost: bool = True) -> None:
        """Take back a connection that cannot be used any more.

        `is_lost` says that this is due to the relay.
        """

    def wait(self, deadline: float) -> bool:
        """Wait until `deadline` for a connection that is lent to another thread.

        Return whether it is worth trying to get one.
        """


def wait_for_another(pool: Connections, refusal: TooManyConnections) -> Connection:
    """Return a connection of another thread, after the relay has refused one more.

    Wait for it as long as connecting may take. It need not be fresh. Raises the last
    refusal if there is none.
    """
    deadline = time.monotonic() + pool.relay.timeouts.connect
    while pool.wait(deadline):
        try:
            return pool.checkout()
        except TooManyConnections as error:
            refusal = error
    raise refusal


class SMTPPipeline(Pipeline):
    """Transmits messages over connections of a pool. See `IPipeline`.

    `recipients` is the maximum number for one transmission. A message with more of
    them is transmitted several times, each time to others. With `dsn`, the relay is
    asked for notifications with the header only, and with the message id (RFC 3461).
    """

    def __init__(
        self, pool: Connections, *, recipients: int = sys.maxsize, dsn: bool = False
    ) -> None:
        self._pool = pool
        self._connection: Connection | None = None
        self._dsn = dsn
        self._dialogue = Dialogue(messages=pool.messages, recipients=recipients)

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._connection is not None or self._dialogue.upcoming:
            self._give_up(error or InterruptedError("given up"))

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        """Wait until `mail` is on the wire, or has its report. See `IPipeline`."""
        self._dialogue.offer(Account(mail, key, dsn=self._dsn))
        while self._dialogue.upcoming:
            self._advance()

    def completed(self) -> Iterator[tuple[Any, DeliveryReport]]:
        """Yield the reports that are complete. See `IPipeline`."""
        return self._dialogue.completed()

    def drain(self) -> Iterator[tuple[Any, DeliveryReport]]:
        """Wait for all replies, and yield the reports. See `IPipeline`."""
        yield from self._dialogue.completed()
        while self._connection is not None or self._dialogue.upcoming:
            self._advance()
            yield from self._dialogue.completed()

    def _advance(self) -> None:
        """Go on for about one round trip."""
        dialogue = self._dialogue
        try:
            if dialogue.failure is not None:
                dialogue.failed(dialogue.failure)
            elif self._connection is None:
                fresh = dialogue.upcoming[0].has_moved
                try:
                    try:
                        connection = self._pool.checkout(fresh=fresh)
                    except TooManyConnections as refusal:
                        if not self.waits:
                            raise
                        connection = wait_for_another(self._pool, refusal)
                    self._connection = dialogue.link = connection
                except RelayError as error:
                    dialogue.failed(error)
            else:
                self._converse(self._connection)
        except Exception as error:
            self._give_up(error)
            raise

    def _converse(self, connection: Connection) -> None:
        """Listen, then speak."""
        dialogue = self._dialogue
        is_lost, data = True, b""
        try:
            for stage in dialogue.awaited():
                dialogue.receive(connection.read(stage))
                if dialogue.link is None:
                    break
            else:
                if stray := connection.stray:
                    text = f"the relay is out of step: a reply too many: {stray}"
                    raise RelayError(text)
                data = dialogue.data_to_send()
                if data:
                    connection.write(data)
                is_lost = dialogue.link is not None  # otherwise it has ended this
        except OSError as error:
            dialogue.lost(error, connection.sent, self._last_words(connection))
        if dialogue.link is None:
            if not dialogue.pipelining:
                self._pool.pipelining = False
            self._pool.discard(connection, is_lost=is_lost)
            self._connection = None
        elif not data:
            dialogue.link = self._connection = None
            # The relay may take fewer messages on a connection than the pool allows.
            is_used_up = connection.messages >= dialogue.most_messages
            self._pool.checkin(connection, keep=not is_used_up)

    def _last_words(self, connection: Connection) -> Reply | None:
        """Return what has come of the reply to the final dot, if anything.

        The relay may have said why it cut off a final dot, or its reply may have
        broken off in the text.
        """
        if not self._dialogue.ends_early(connection.sent):
            return connection.begun
        try:
            return connection.read_hastily()
        except OSError:
            return None

    def _give_up(self, error: BaseException) -> None:
        """Account for what is under way, and close its connection."""
        self._dialogue.broken(error)
        if self._connection is not None:
            self._pool.discard(self._connection, is_lost=False)
            self._connection = None
