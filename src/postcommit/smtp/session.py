"""One connection to a relay: opened, greeted, encrypted, logged in."""
from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from collections.abc import Sequence

from postcommit.errors import RelayError
from postcommit.interfaces import TLSMode
from postcommit.report import Reply
from postcommit.report import Stage
from postcommit.smtp import sasl
from postcommit.smtp.channel import Channel
from postcommit.smtp.channel import connect
from postcommit.smtp.policy import Credentials
from postcommit.smtp.policy import Relay
from postcommit.smtp.reply import begun
from postcommit.smtp.reply import extensions_of
from postcommit.smtp.reply import take
from postcommit.smtp.reply import take_all


_DOTTED_NAME = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]*"
)


class Session:
    """The connection, and what the relay offers on it.

    `extensions` maps the keywords of EHLO to their parameters. `messages` is
    how many were begun; `is_dirty` says that a mail transaction may be open
    which has to be reset.
    """

    def __init__(self, channel: Channel, relay: Relay) -> None:
        self._channel = channel
        self._relay = relay
        timeouts = relay.timeouts
        self._timeouts = {
            Stage.SESSION: timeouts.command,
            Stage.MAIL: timeouts.command,
            Stage.RCPT: timeouts.command,
            Stage.DATA: timeouts.data,
            Stage.END: timeouts.end,
        }
        self.extensions: dict[str, str] = {}
        self.pipelining = False
        self.messages = 0
        self.is_dirty = False

    @property
    def relay(self) -> Relay:
        return self._relay

    # Bytes and replies

    def write(self, data: bytes) -> None:
        """Write all of `data`; `sent` says how much of it the system took."""
        self._channel.write(data, self._relay.timeouts.block)

    @property
    def sent(self) -> int:
        return self._channel.sent

    @property
    def is_out_of_step(self) -> bool:
        """Whether the relay said something that nobody asked for."""
        return self._channel.unread

    @property
    def stray(self) -> Reply | None:
        """What it said then, if that is a whole reply."""
        taken = take(self._channel.data, self._channel.position)
        return taken[0] if taken else None

    @property
    def begun(self) -> Reply | None:
        """The reply of which a code has come in, but not the end; None without one."""
        return begun(self._channel.data, self._channel.position)

    @property
    def is_quiet(self) -> bool:
        """Whether the relay has neither hung up nor spoken up meanwhile."""
        return self._channel.is_quiet()

    def read(self, stage: Stage) -> Reply:
        """Return the next reply, to a command of `stage`.

        Raises TimeoutError if it is not complete in time, `RelayError` if it is
        no reply, another OSError if the connection is lost.
        """
        channel = self._channel
        taken = take(channel.data, channel.position)
        if taken is None:
            return self._wait(self._timeouts[stage])
        reply, channel.position = taken
        return reply

    def read_each(self, stages: Sequence[Stage]) -> Iterator[Reply]:
        """Return the next replies, to commands of these `stages`, as `read`."""
        channel = self._channel
        replies = take_all(channel.data, channel.position)
        if len(replies) == len(stages):
            channel.discard()
            return iter(replies)
        return map(self.read, stages)

    def read_hastily(self) -> Reply:
        """As `read`, where the connection is broken: what came is there already."""
        return self._wait(self._relay.timeouts.quit)

    def _wait(self, timeout: float) -> Reply:
        """Return a reply that has not come in yet, or not all of it."""
        channel = self._channel
        deadline = time.monotonic() + timeout
        channel.fill(timeout)
        while (taken := take(channel.data, channel.position)) is None:
            # The time-out is for the whole reply, however slow it comes.
            channel.refill(deadline)
        reply, channel.position = taken
        return reply

    def command(self, line: str) -> Reply:
        """Send one command, and return the reply."""
        self._channel.write(f"{line}\r\n".encode(), self._relay.timeouts.command)
        return self.read(Stage.SESSION)

    def is_alive(self) -> bool:
        """Ask the relay whether it is still there."""
        try:
            return self.command("NOOP").code == 250
        except OSError:
            return False

    def quit(self) -> None:
        """Take leave, but insist on nothing, and close."""
        try:
            self._channel.write(b"QUIT\r\n", self._relay.timeouts.quit)
            self._wait(self._relay.timeouts.quit)
        except OSError:
            pass  # it makes no difference to anybody
        self.close()

    def close(self) -> None:
        """Close the connection without a word."""
        self._channel.close()

    # Opening

    def greet(self) -> None:
        """Go through all that comes before the first message."""
        tls = self._relay.tls
        if tls.mode is TLSMode.IMPLICIT:
            self._start_tls()
        self._expect(220, self._wait(self._relay.timeouts.greeting), "greeting")
        self._ehlo()
        if tls.mode in (TLSMode.AUTO, TLSMode.STARTTLS):
            self._upgrade()
        if self._relay.credentials is not None:
            try:
                self._log_in(self._relay.credentials)
            except OSError as error:
                # Frames of a traceback have local variables, those had secrets.
                raise error.with_traceback(None)  # noqa: B904

    def _expect(self, code: int, reply: Reply, what: str) -> None:
        if reply.code != code:
            raise RelayError(f"{self._relay}: {what} refused: {reply}", reply)

    def _ehlo(self) -> None:
        reply = self.command(f"EHLO {self._own_name()}")
        self._expect(250, reply, "EHLO")
        self.extensions = extensions_of(reply)
        self.pipelining = "PIPELINING" in self.extensions

    def _own_name(self) -> str:
        """Return a name for EHLO without asking DNS for it, which may take long."""
        name = socket.gethostname()
        if _DOTTED_NAME.fullmatch(name):
            return name
        address = self._channel.local_address
        return f"[IPv6:{address}]" if ":" in address else f"[{address}]"

    def _upgrade(self) -> None:
        if "STARTTLS" in self.extensions:
            self._expect(220, self.command("STARTTLS"), "STARTTLS")
            self._start_tls()
            self._ehlo()
        elif self._relay.tls.is_required:
            raise RelayError(
                f"{self._relay} offers no STARTTLS; set tls to 'implicit' if it"
                " speaks TLS from the start (port 465), to 'none' to do without"
            )

    def _start_tls(self) -> None:
        relay = self._relay
        context = relay.tls.context(loopback=self._channel.is_loopback)
        name = relay.hostname.rstrip(".")
        try:
            # RFC 3207, 4.2: whatever was known or received before is forgotten,
            # or else somebody on the way could have put it there.
            self._channel.start_tls(context, name, relay.timeouts.connect)
        except ssl.SSLCertVerificationError as error:
            raise RelayError(
                f"the certificate of {relay} cannot be trusted:"
                f" {error.verify_message}; set cafile to the certificate of its"
                " authority, and hostname to the name in it"
            ) from error
        except (OSError, ValueError) as error:
            raise RelayError(
                f"{relay} does not speak TLS as expected: {error}; is it the port"
                f" for tls={relay.tls.mode.value!r}?"
            ) from error

    # Logging in

    def _log_in(self, credentials: Credentials) -> None:
        if not (self._channel.is_encrypted or self._channel.is_loopback):
            raise RelayError(
                f"{self._relay} offers no TLS here, and credentials are not sent in"
                " clear; set tls to 'starttls' or 'implicit', or omit the username"
            )
        known = sasl.WITH_PASSWORD if credentials.token is None else sasl.WITH_TOKEN
        offered = self.extensions.get("AUTH", "").upper().split()
        usable = [name for name in known if name in offered]
        if not usable:
            raise RelayError(
                f"{self._relay} offers AUTH {' '.join(offered) or 'not at all'};"
                f" {' or '.join(known)} is needed to log in"
            )
        reply = Reply()
        for name in usable:
            reply = self._authenticate(name, known[name], credentials)
            if reply.code == 235:
                return
            if reply.code == 421 or (reply.code == 535 and name != "CRAM-MD5"):
                break  # the others say the same in other words
        credentials.forget()
        raise RelayError(f"{self._relay}: login refused: {reply}", reply)

    def _authenticate(
        self, name: str, mechanism: sasl.Mechanism, credentials: Credentials
    ) -> Reply:
        reply = self._exchange(name, mechanism, credentials)
        if reply.code in (235, 421) or credentials.token is None:
            return reply
        credentials.forget()
        return self._exchange(name, mechanism, credentials)

    def _exchange(
        self, name: str, mechanism: sasl.Mechanism, credentials: Credentials
    ) -> Reply:
        exchange = mechanism(credentials.username, credentials.secret())
        line = f"AUTH {name}"
        waiting = next(exchange)
        if waiting is not None and len(waiting) <= sasl.MAX_INITIAL:
            line, waiting = f"{line} {sasl.encode(waiting)}", None
        reply = self.command(line)
        while reply.code == 334 and line != sasl.CANCEL:
            if waiting is None:
                line = sasl.respond(exchange, reply.text)
            else:
                line, waiting = sasl.encode(waiting), None
            reply = self.command(line)
        return reply


def open_session(relay: Relay) -> Session:
    """Connect to `relay`, and get ready for the first message.

    Raises `RelayError` where that fails, for whatever reason.
    """
    session = Session(dial(relay), relay)
    is_open = False
    try:
        begin(session)
        is_open = True
    finally:
        if not is_open:
            session.close()
    return session


def dial(relay: Relay) -> Channel:
    """Connect to `relay`. Raises `RelayError`."""
    try:
        return connect(relay.hostname, relay.port, relay.timeouts.connect)
    except (OSError, ValueError) as error:
        raise RelayError(f"no connection to {relay}: {error}") from error


def begin(session: Session) -> None:
    """Have `session` ready for the first message.

    Raises `RelayError` where that fails, for whatever reason.
    """
    try:
        session.greet()
    except RelayError:
        raise
    except OSError as error:
        relay = session.relay
        raise RelayError(f"{relay} hung up or fell silent: {error}") from error
