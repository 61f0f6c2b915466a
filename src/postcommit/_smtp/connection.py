"""One connection to a relay: bytes, replies, and all that comes before a message.

Every wait is bounded by `socket.settimeout`. The kernel's own time-outs (SO_RCVTIMEO)
would save one system call for each read and write, but a socket that does not block
ignores them, and every socket that gevent has replaced is such a socket.

A reply (RFC 5321, 4.2) is read leniently, because a strict reader would send a message
again that the relay has already taken. Three digits that no digit follows are a code,
whatever comes then: ``250ok``, a tab, two carriage returns, bytes that are not ASCII. A
line ends with LF, and any CRs before it belong to the line end. Postfix reads replies
in the same way, except that it skips a line whose code is not followed by a space, a
hyphen or the line end.
"""
from __future__ import annotations

import enum
import ipaddress
import itertools
import os
import re
import select
import socket
import ssl
import stat
import sys
import time
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from functools import lru_cache
from typing import Any
from typing import NamedTuple

from postcommit._log import printable
from postcommit._mail.report import Reply
from postcommit._mail.report import Stage
from postcommit._smtp.credentials import Credentials
from postcommit._smtp.tls import NEED_TLS
from postcommit._smtp.tls import TLS
from postcommit._smtp.tls import about_client
from postcommit._smtp.tls import remedy
from postcommit.errors import RelayError
from postcommit.interfaces import TLSMode


# Bytes that may take one time-out to write.
_BLOCK = 1 << 16

# Maximum bytes for one call of send() under TLS: one record (RFC 8446, 5.1). With more,
# send() can write some records, fail, and not say how many.
_RECORD = 1 << 14

# Maximum bytes that one call of recv() returns.
_READ_SIZE = 1 << 16

# Maximum bytes of all lines of a reply. RFC 5321, 4.5.3.1.5 allows 512 for each line. A
# relay shall not fill our memory.
MAX_REPLY = 1 << 16

# Events of a socket that the other side has closed. Not every system has the second.
_HUNG_UP = select.POLLHUP | getattr(select, "POLLRDHUP", 0)

# Seconds to wait for bytes that are already there.
_AT_ONCE = 0.001

# Maximum bytes of a reply that is cached when it was parsed: those to an envelope are
# mostly the same for each message.
_SHORT = 128

# Replaces a character that could act on the terminal that shows the log.
_INSTEAD = "\N{REPLACEMENT CHARACTER}"

_CODE = re.compile(rb"([2-5][0-9][0-9])(?![0-9])[ \t-]?")

# A whole reply. Its last line has a code without a hyphen. Between the first line and
# the last, a line without a code is text.
_LAST = rb"[2-5][0-9][0-9](?![0-9-])"
_BEFORE = rb"[2-5][0-9][0-9]-[^\n]*\n(?:(?!" + _LAST + rb")[^\n]*\n)*"
_WHOLE = re.compile(rb"(?:" + _BEFORE + rb")?" + _LAST + rb"[^\n]*\n")
_OLD_AUTH = re.compile("AUTH=", re.IGNORECASE)
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: +|\Z)")

_DOTTED_NAME = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z][A-Za-z0-9-]*"
)


@dataclass(frozen=True)
class Timeouts:
    """Seconds to wait. The defaults are those of RFC 5321, 4.5.3.2."""

    connect: float = 30.0
    greeting: float = 300.0
    command: float = 300.0
    data: float = 120.0  # the reply to DATA
    block: float = 180.0  # a part of the message itself
    end: float = 600.0  # the reply to the final dot
    quit: float = 1.0  # nothing depends on it

    @classmethod
    def alike(cls, connect: float, timeout: float, end: float = end) -> Timeouts:
        """Return the same `timeout` for each phase after `connect`, but not for `end`.

        What is cut off at the end of a message is sent again.
        """
        limit = min(timeout, cls.quit)
        return cls(connect, timeout, timeout, timeout, timeout, end, limit)


# The time-out of the reply to a command of each stage.
TIMEOUT_OF = {
    Stage.SESSION: "command",
    Stage.MAIL: "command",
    Stage.RCPT: "command",
    Stage.DATA: "data",
    Stage.END: "end",
}


@dataclass(frozen=True)
class Relay:
    """A relay, with time-outs, TLS, credentials and the name to say in EHLO.

    If `hostname` begins with a slash, it is the path of a unix socket, and `port` is
    ignored. Without `credentials`, connections do not log in. With a
    `source_address`, only addresses of its family are used.
    """

    hostname: str
    port: int
    timeouts: Timeouts
    tls: TLS
    credentials: Credentials | None = None
    helo_name: str | None = None
    source_address: str | None = None
    protocol: str = "smtp"

    @property
    def is_unix(self) -> bool:
        """Whether the relay listens on a unix socket."""
        return self.hostname.startswith("/")

    def __str__(self) -> str:
        if self.is_unix:
            return self.hostname
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{host}:{self.port}"


class Address(NamedTuple):
    """One address of a relay, as the functions of sockets take it."""

    family: int
    name: Any

    def __str__(self) -> str:
        if self.family == socket.AF_UNIX:
            return str(self.name)
        host: str = self.name[0]
        return f"[{host}]" if ":" in host else host


def addresses_of(relay: Relay) -> list[Address]:
    """Return the addresses of `relay`, IPv6 and IPv4 in turns (RFC 8305, 4).

    The name is looked up each time. Raises `RelayError` without an address.
    """
    if relay.is_unix:
        return [Address(socket.AF_UNIX, relay.hostname)]
    family, needed = socket.AF_UNSPEC, ""
    if relay.source_address is not None:
        is_new = ":" in relay.source_address
        family = socket.AF_INET6 if is_new else socket.AF_INET
        needed = f" (only {'IPv6' if is_new else 'IPv4'}, because of source_address)"
    try:
        found = socket.getaddrinfo(
            relay.hostname, relay.port, family, socket.SOCK_STREAM
        )
    except (OSError, ValueError) as error:  # ValueError if it cannot be a host name
        raise RelayError(f"no connection to {relay}: {error}{needed}") from error
    if not found:
        raise RelayError(f"no connection to {relay}: the name has no address{needed}")
    families: dict[int, dict[Address, None]] = {}
    for family, _, _, _, name in found:
        families.setdefault(family, {})[Address(family, name)] = None
    turns = itertools.zip_longest(*families.values())
    return [address for turn in turns for address in turn if address is not None]


def connect(relay: Relay, address: Address) -> Connection:
    """Connect to `address` of `relay`. Raises `RelayError`."""
    try:
        opened = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            opened.settimeout(relay.timeouts.connect)
            if relay.source_address is not None:
                _bind(opened, relay.source_address)
            opened.connect(address.name)
            if address.family != socket.AF_UNIX:
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            opened.close()
            raise
    except OSError as error:
        reason = str(error)
        if relay.is_unix and _is_something_else(relay.hostname):
            reason = "it is not a socket"
        raise RelayError(f"no connection to {relay}: {reason}") from error
    return Connection(opened, relay, address)


def _bind(opened: socket.socket, source: str) -> None:
    """Connect from `source`, an IP address, and a port that the system chooses."""
    try:
        [(*_, name)] = socket.getaddrinfo(
            source, 0, opened.family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
        )
        opened.bind(name)
    except OSError as error:
        text = f"source_address={source!r} cannot be used on this host"
        raise OSError(f"{text}: {error.strerror}") from error


def _is_something_else(path: str) -> bool:
    """Return True if `path` exists and is not a socket."""
    try:
        return not stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


class Phase(enum.Enum):
    """How far a connection has come on its way to the first message."""

    GREETING = "the relay has not welcomed us yet"
    HELLO = "EHLO and STARTTLS"
    LOGIN = "AUTH"
    READY = "messages"


@dataclass(eq=False, repr=False)
class Connection:
    """A connected socket, the bytes that were received, and what the relay offers.

    `extensions` maps the keywords of EHLO, in upper case, to their parameters.
    `is_encrypted` says that TLS is spoken. `messages` is the number of messages that
    were begun. `is_dirty` says that a mail transaction may be open, so that RSET has to
    come first. `most_recipients` is the number that the relay accepts for one
    transmission, as far as is known. `phase` is how far `greet` has come, or failed.
    `is_proven` says that a pool has lent the connection before, `borrower` to which
    thread it is lent, and `is_lost` that it could not be used any more.

    `sent` is the number of bytes of the last `write` that the system has taken, and
    that may have reached the relay. Time-outs are in seconds. Methods that wait raise
    TimeoutError, ConnectionResetError when the relay has closed the connection, and
    another OSError for other failures.
    """

    _socket: socket.socket
    relay: Relay
    address: Address | None = None
    phase: Phase = Phase.GREETING
    is_proven: bool = False
    is_lost: bool = False
    borrower: int | None = None
    extensions: dict[str, str] = field(default_factory=dict)
    is_encrypted: bool = False
    pipelining: bool = False
    messages: int = 0
    is_dirty: bool = False
    most_recipients: int = sys.maxsize
    sent: int = 0
    _timeout: float | None = None
    _most: int = _BLOCK
    _data: bytes = b""  # received, and unread from `_position` on
    _position: int = 0

    # Bytes and replies

    def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send all of `data`. Each block of 64 KiB may take `timeout` seconds.

        The default is the time-out for a part of a message.
        """
        limit = self.relay.timeouts.block if timeout is None else timeout
        view = memoryview(data)
        self.sent = end = 0
        deadline = 0.0
        while self.sent < len(data):
            if self.sent == end:  # a block begins
                end += _BLOCK
                deadline = time.monotonic() + limit
                self._bound(limit)
            else:
                self._bound(deadline - time.monotonic())
            block = view[self.sent : min(end, self.sent + self._most)]
            self.sent += self._socket.send(block)

    def read(
        self, stage: Stage = Stage.SESSION, timeout: float | None = None
    ) -> Reply:
        """Return the next reply, to a command of `stage`.

        `timeout` replaces that of the stage. Each is for the whole reply, however
        slowly it comes. Raises TimeoutError if the reply is not complete in time,
        `RelayError` if it is not a reply, another OSError if the connection is lost.
        """
        taken = take(self._data, self._position)
        if taken is None:
            limit = timeout
            if limit is None:
                limit = getattr(self.relay.timeouts, TIMEOUT_OF[stage])
            deadline = time.monotonic() + limit
            while taken is None:
                self._bound(limit)
                received = self._socket.recv(_READ_SIZE)
                if not received:
                    raise ConnectionResetError("the relay closed the connection")
                self._data = self._data[self._position :] + received
                self._position = 0
                taken = take(self._data, 0)
                limit = deadline - time.monotonic()
        reply, self._position = taken
        if reply.code < 400 or stage is Stage.SESSION:
            return reply
        return replace(reply, command=stage.value)

    def read_hastily(self) -> Reply:
        """Read as `read` does, but wait briefly: the connection is broken."""
        return self.read(timeout=self.relay.timeouts.quit)

    def _bound(self, timeout: float) -> None:
        """Set the time-out of each call of the socket. A change costs a system call."""
        if timeout <= 0:
            raise TimeoutError("timed out")
        if timeout != self._timeout:
            self._timeout = timeout
            self._socket.settimeout(timeout)

    @property
    def stray(self) -> str:
        """The unread reply that no command asked for; empty without such a reply.

        Look at it before each write. After a write, a reply too many cannot be
        distinguished from the reply to the next command.
        """
        if self._position == len(self._data):
            return ""
        taken = take(self._data, self._position)
        return str(taken[0]) if taken else "incomplete"

    @property
    def begun(self) -> Reply | None:
        """The beginning of a reply, if its code has come in, otherwise None."""
        return begun(self._data, self._position)

    def command(self, line: str) -> Reply:
        """Send one command, and return the reply."""
        self.write(f"{line}\r\n".encode(), self.relay.timeouts.command)
        return self.read(Stage.SESSION)

    @property
    def is_quiet(self) -> bool:
        """Whether the connection seems to be open, and nothing was received."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return self._position == len(self._data) and not poll.poll(0)

    @property
    def is_hung_up(self) -> bool:
        """Whether the relay has closed it. Any thread may ask, at any time."""
        poll = select.poll()
        try:
            poll.register(self._socket, _HUNG_UP)
            return bool(poll.poll(0))
        except (OSError, ValueError):  # it is being closed
            return False

    def is_alive(self) -> bool:
        """Ask the relay whether it is still there."""
        try:
            return self.command("NOOP").code == 250
        except OSError:
            return False

    def quit(self, *, in_haste: bool = False) -> None:
        """Say QUIT, do not insist on a reply, and close. `in_haste`: do not wait."""
        limit = _AT_ONCE if in_haste else self.relay.timeouts.quit
        try:
            self.write(b"QUIT\r\n", limit)
            if not in_haste:
                self.read(timeout=limit)
        except OSError:
            pass  # nothing depends on it
        self._socket.close()

    def close(self) -> None:
        """Close the socket, and say nothing."""
        self._socket.close()

    # Before the first message

    def greet(self) -> None:
        """Do all that comes before the first message: greeting, EHLO, TLS, login.

        Raises `RelayError` if that fails, for whatever reason.
        """
        relay = self.relay
        mode = relay.tls.mode
        needs_tls = any(getattr(relay.tls, name) is not None for name in NEED_TLS)
        try:
            if mode is TLSMode.IMPLICIT:
                self._start_tls()
            reply = self.read(timeout=relay.timeouts.greeting)
            if reply.code != 220:
                raise self._refusal("greeting", reply)
            self.phase = Phase.HELLO
            self._hello()
            if mode is TLSMode.STARTTLS or (
                mode is TLSMode.AUTO
                and ("STARTTLS" in self.extensions or needs_tls)
                and not relay.is_unix
            ):
                self._upgrade()
            if relay.credentials is not None:
                self.phase = Phase.LOGIN
                self._log_in(relay.credentials)
            if not self.is_quiet:
                self._expect_silence()
            if not (self.is_encrypted or self.is_loopback):
                relay.tls.log_clear(str(relay))
            self.phase = Phase.READY
        except RelayError:
            raise
        except OSError as error:
            text = f"{relay} hung up or fell silent: {error}"
            raise RelayError(f"{text}{self._about_client(error)}") from error

    def _hello(self) -> None:
        """Say EHLO, or LHLO. Say HELO if EHLO is unknown (RFC 5321, 3.2).

        DNS is not asked for the name of this host, because it may take long.
        """
        relay = self.relay
        name = relay.helo_name or socket.gethostname()
        if relay.helo_name is None and not _DOTTED_NAME.fullmatch(name):
            name = "localhost"
            if not relay.is_unix:
                address: str = self._socket.getsockname()[0].partition("%")[0]
                name = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
        verb = "LHLO" if relay.protocol == "lmtp" else "EHLO"
        reply = self.command(f"{verb} {name}")
        self.extensions = {}
        for line in reply.text.split("\n")[1:] if reply.code == 250 else ():
            # Some old servers have AUTH=LOGIN instead of AUTH LOGIN.
            word, _, parameters = _OLD_AUTH.sub("AUTH ", line).partition(" ")
            parameters = f"{self.extensions.get(word.upper(), '')} {parameters}"
            self.extensions[word.upper()] = parameters.strip()
        if reply.code in (500, 502) and verb == "EHLO":
            if relay.tls.mode is TLSMode.STARTTLS or relay.credentials is not None:
                need = "a login" if relay.credentials is not None else "STARTTLS"
                text = f"EHLO refused: {reply}; HELO is not enough for {need}"
                raise RelayError(f"{relay}: {text}", reply)
            verb = "HELO"
            reply = self.command(f"HELO {name}")
        if reply.code != 250:
            raise self._refusal(verb, reply, name)
        self.pipelining = "PIPELINING" in self.extensions

    def _expect_silence(self) -> None:
        """Raise RelayError if the relay has already said more than it was asked for.

        For example, 421 right behind its reply to EHLO. Nothing was begun on this
        connection, so that another address of the relay can be tried.
        """
        try:
            reply = self.read(timeout=_AT_ONCE)
        except TimeoutError:
            if self._position == len(self._data):
                return  # TLS has said something to itself, such as a session ticket
            raise
        if reply.code >= 400:
            raise self._refusal("connection", reply)
        raise RelayError(f"the relay is out of step: a reply too many: {reply}")

    def _refusal(self, what: str, reply: Reply, name: str | None = None) -> RelayError:
        """Return the error for `reply` to `what`. `name` is what a hello has said."""
        hint = ""
        if what in ("HELO", "LHLO") and reply.code in (500, 502):
            speaks = "lmtp" if what == "HELO" else "smtp"
            hint = f"; set protocol to {speaks!r} if it speaks {speaks.upper()}"
        elif name is not None and reply.code in (501, 504):
            hint = f"; set helo_name to a name that the relay accepts, it is {name!r}"
        reply = replace(reply, command=what)
        return RelayError(f"{self.relay}: {what} refused: {reply}{hint}", reply)

    def _upgrade(self) -> None:
        tls = self.relay.tls
        if "STARTTLS" not in self.extensions:
            hint = "set tls to 'none'"
            if not self.relay.is_unix:
                hint = (
                    "set tls to 'implicit' if it speaks TLS from the start (port 465),"
                    " to 'none' to do without"
                )
            if tls.mode is TLSMode.AUTO:
                given = [name for name in NEED_TLS if getattr(tls, name) is not None]
                hint += f", and omit {' and '.join(given)}"
            raise _lack(f"{self.relay} offers no STARTTLS; {hint}")
        reply = self.command("STARTTLS")
        if reply.code != 220:
            raise self._refusal("STARTTLS", reply)
        self._start_tls()
        self._hello()

    def _start_tls(self) -> None:
        """Speak TLS from here on, with a context that fits. Raises `RelayError`."""
        relay, tls = self.relay, self.relay.tls
        loopback = self.is_loopback
        context = tls.context(loopback=loopback, login=relay.credentials is not None)
        name = tls.server_name or relay.hostname
        if relay.is_unix and not tls.server_name:
            name = "localhost"
        try:
            self.encrypt(context, name.rstrip("."), relay.timeouts.connect)
        except ssl.SSLCertVerificationError as error:
            tls.read_again()
            start = "" if tls.mode is TLSMode.IMPLICIT else " -starttls smtp"
            start += f" -servername {tls.server_name}" if tls.server_name else ""
            place = "-unix" if relay.is_unix else "-connect"
            reason = error.verify_message.rstrip(".")
            raise RelayError(
                f"the certificate of {relay} cannot be trusted: {reason};"
                f" {remedy(error)}; to see it: openssl s_client{start} {place}"
                f" {relay} </dev/null | openssl x509 -noout -text"
            ) from error
        except (OSError, ValueError) as error:
            tls.read_again()
            hint = about_client(error, shown=tls.shows_certificate)
            hint = hint or f"; is it the port for tls={tls.mode.value!r}?"
            raise RelayError(
                f"{relay} does not speak TLS as expected: {error}{hint}"
            ) from error
        if not loopback:
            tls.log_unverified(str(relay), context)

    def _about_client(self, error: OSError) -> str:
        """Return a hint if the connection is lost before the first reply under TLS."""
        is_first = self.is_encrypted and not self.extensions
        if isinstance(error, TimeoutError) or not is_first:
            return ""
        tls = self.relay.tls
        tls.read_again()
        try:
            self.read_hastily()  # the alert may be behind what made a write fail
        except ssl.SSLError as said:
            error = said
        except OSError:
            pass
        return about_client(error, shown=tls.shows_certificate)

    def _log_in(self, credentials: Credentials) -> None:
        relay = self.relay
        if not (self.is_encrypted or self.is_loopback):
            is_off = relay.tls.mode is TLSMode.NONE
            reason = "tls='none' allows no TLS" if is_off else "it offers no STARTTLS"
            text = (
                f"{relay}: {reason}, and credentials are not sent in clear; set tls to"
                " 'starttls', or 'implicit' (port 465), or omit the username"
            )
            raise RelayError(text) if is_off else _lack(text)
        known = credentials.mechanisms(encrypted=self.is_encrypted)
        offered = self.extensions.get("AUTH", "").upper().split()
        usable = [name for name in known if name in offered]
        if not usable:
            choice = credentials.mechanism
            offer = f"AUTH {' '.join(offered)}" if offered else "no AUTH"
            raise _lack(
                f"{relay} offers {offer};"
                f" {' or '.join(known)} is needed to log in"
                + (f", because of auth={choice!r}" if choice else "")
            )
        try:
            reply = credentials.log_in(self.command, usable)
        except BaseException as error:
            # Frames of a traceback have local variables, and those had secrets.
            raise error.with_traceback(None)  # noqa: B904
        if reply.code != 235:
            reply = replace(reply, command="AUTH")
            raise RelayError(f"{relay}: login refused: {reply}", reply)

    def encrypt(self, context: ssl.SSLContext, hostname: str, timeout: float) -> None:
        """Speak TLS from here on, with a relay that is called `hostname`.

        Data received in clear is forgotten, and so are the extensions, because an
        attacker on the way could have put them there (RFC 3207, 4.2).
        """
        self._data, self._position = b"", 0
        self._bound(timeout)
        self._socket = context.wrap_socket(self._socket, server_hostname=hostname)
        self.is_encrypted = True
        self.extensions = {}
        self._most = _RECORD

    @property
    def tls_socket(self) -> ssl.SSLSocket | None:
        """The socket if TLS is spoken, to ask for the version and the certificate."""
        return self._socket if isinstance(self._socket, ssl.SSLSocket) else None

    @property
    def is_loopback(self) -> bool:
        """Whether the relay's address is one of this host's loopback, or a path."""
        if self.relay.is_unix:
            return True
        address = ipaddress.ip_address(self._socket.getpeername()[0].partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback


# Replies: pure functions


def take(data: bytes, start: int) -> tuple[Reply, int] | None:
    """Return the reply that begins at `start`, and where it ends.

    None if it is not complete yet. Raises `RelayError` if its first line lacks a code,
    or if it is longer than `MAX_REPLY`.
    """
    found = _WHOLE.match(data, start)
    end = len(data) if found is None else found.end()
    if end - start > MAX_REPLY:
        raise RelayError(f"the relay's reply is longer than {MAX_REPLY} bytes")
    if found is not None:
        return (parse if end - start > _SHORT else _parse_short)(found[0]), end
    first = data.find(b"\n", start) + 1
    if first and not _CODE.match(data, start):
        raise _not_smtp(data[start:first])
    return None


def parse(data: bytes) -> Reply:
    """Return the reply `data` as an object.

    If its lines have several codes, the last one counts (RFC 5321, 4.2.1). A line
    without a code that is not the first is text. Raises `RelayError` if the first line
    lacks a code.
    """
    code, texts = 0, []
    for line in data.removesuffix(b"\n").split(b"\n"):
        found = _CODE.match(line)
        if found is not None:
            code = int(found[1])
            line = line[found.end() :]
        elif not code:
            raise _not_smtp(line)
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        text = text.replace("\t", " ")
        texts.append(text if text.isprintable() else printable(text, _INSTEAD))
    for text in reversed(texts):
        enhanced = _ENHANCED.match(text)
        if enhanced is not None and enhanced[1][0] == str(code)[0]:
            # RFC 2034, 4: the enhanced code is repeated on each line. If there are
            # several, the last one counts, like the code.
            texts = [text.removeprefix(enhanced[0]) for text in texts]
            return Reply(code, enhanced[1], "\n".join(texts))
    return Reply(code, "", "\n".join(texts))


_parse_short = lru_cache(256)(parse)


def begun(data: bytes, start: int) -> Reply | None:
    """Return the beginning of the reply at `start`, or None if it lacks a code.

    For a connection that is lost before the reply is complete.
    """
    try:
        return parse(data[start : start + MAX_REPLY])
    except RelayError:
        return None


def _not_smtp(line: bytes) -> RelayError:
    shown = line[:80].decode("ascii", "backslashreplace").strip()
    return RelayError(f"the relay's reply is not SMTP: {shown!r}")


def _lack(text: str) -> RelayError:
    error = RelayError(text)
    error.is_lack = True
    return error
