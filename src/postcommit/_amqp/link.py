"""One connection to a broker, with one channel. The only module that uses py-amqp.

A connection belongs to one thread at a time: two threads that wait for it would take
each other's answers, and hang. After any error it must be discarded. py-amqp would
connect again by itself, without the rules of this module.
"""
from __future__ import annotations

import ipaddress
import os
import select
import ssl
import struct
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from typing import TYPE_CHECKING
from typing import Any

import amqp  # type: ignore[import-untyped]
from amqp import spec
from amqp.exceptions import AccessRefused  # type: ignore[import-untyped]
from amqp.exceptions import AMQPError
from amqp.exceptions import NotAllowed
from amqp.exceptions import NotFound
from amqp.exceptions import PreconditionFailed
from amqp.method_framing import frame_handler  # type: ignore[import-untyped]
from amqp.sasl import EXTERNAL  # type: ignore[import-untyped]
from amqp.sasl import PLAIN
from amqp.transport import SSLTransport  # type: ignore[import-untyped]
from amqp.transport import TCPTransport

from postcommit._amqp.place import NAME
from postcommit._log import Log
from postcommit._smtp.tls import about_client
from postcommit._smtp.tls import remedy
from postcommit.errors import RelayError
from postcommit.errors import text_of


if TYPE_CHECKING:
    from postcommit._amqp.broker import Broker

log = Log("postcommit.amqp")

# All that py-amqp raises if the broker or the network is in trouble. Bytes that are not
# AMQP fail in its parser, with one of the others.
TROUBLE = (
    AMQPError,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
    struct.error,
)

QUORUM = {"x-queue-type": "quorum"}

# Persistent, as AMQP has it.
_PERSISTENT = 2

# Brokers and queues of which the log already says that the type cannot be seen.
_logged: set[tuple[str, str]] = set()

# Maximum seconds of one wait, so that heartbeats are sent in time.
_STEP = 1.0

# The type of the frame that has the size and the properties of a message. The
# properties begin after 12 bytes, and a message without any has 2 zeros there.
_HEADER, _PROPERTIES, _NONE = 2, 12, bytes(2)

# The types of the arguments of basic.publish.
_PUBLISH = "Bssbb"

_MISSING = "create it by: postcommit receive --declare"


class LoginRefused(RelayError):
    """The broker refuses the user, its password, or its right to the vhost."""


# py-amqp leaves time-outs to the kernel, and then reads in an endless loop if the rest
# of a frame does not come. So each socket has a time-out of its own.


class _Plain(TCPTransport):  # type: ignore[misc]
    """A connection without TLS."""

    sock: Any

    def _setup_transport(self) -> None:
        check_is_loopback(self.sock)
        self.sock.settimeout(self.read_timeout)
        super()._setup_transport()


class _Encrypted(SSLTransport):  # type: ignore[misc]
    """A connection with TLS, as our options have it."""

    sock: Any

    def __init__(self, host: str, *, broker: Broker, name: str, **others: Any) -> None:
        self._broker, self._name = broker, name
        super().__init__(host, **others)

    def _setup_transport(self) -> None:
        # A broker always gets a login, so its name is always checked.
        context = self._broker._tls.context(loopback=False, login=True)
        self.sock.settimeout(self.connect_timeout)
        self.sock = context.wrap_socket(self.sock, server_hostname=self._name)
        self.sock.settimeout(self.read_timeout)
        self._quick_recv = self.sock.read
        self._broker._tls.log_unverified(str(self._broker._place), context)

    def _shutdown_transport(self) -> None:
        """Do not wait for the broker's last word, which may never come."""


def _tolerant(connection: Any, callback: Callable[..., Any]) -> Callable[..., Any]:
    """Return py-amqp's handler of frames, which also takes foreign properties.

    Anybody may publish a message with properties that py-amqp cannot read, such as a
    timestamp in milliseconds. The broker would deliver it again and again, and nothing
    after it. So such a message is read without its properties.
    """
    handle: Callable[..., Any] = frame_handler(connection, callback)

    def handle_tolerantly(frame: tuple[int, int, bytes]) -> Any:
        kind, channel, data = frame
        if kind == _HEADER:
            try:
                amqp.Message().inbound_header(data)
            except TROUBLE:
                data = data[:_PROPERTIES] + _NONE
        return handle((kind, channel, data))

    return handle_tolerantly


class _Channel(amqp.Channel):  # type: ignore[misc]
    def _do_revive(self) -> None:
        """Do not open the channel again: after an error, the link is discarded."""


class _Connection(amqp.Connection):  # type: ignore[misc]
    Channel = _Channel

    def __init__(self, broker: Broker, host: str, port: int) -> None:
        self._broker = broker
        self._name = (broker.server_name or host).rstrip(".")
        login = broker.login
        super().__init__(
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
            authentication=(EXTERNAL() if login is None else PLAIN(*login),),
            virtual_host=broker._place.vhost,
            connect_timeout=broker.connect_timeout,
            read_timeout=broker.timeout,
            write_timeout=broker.timeout,
            heartbeat=broker.heartbeat,
            client_properties={"connection_name": f"postcommit {os.getpid()}"},
            frame_handler=_tolerant,
        )

    def Transport(
        self,
        host: str,
        connect_timeout: float,
        ssl: Any = False,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
        socket_settings: Any = None,
    ) -> TCPTransport | SSLTransport:
        """Return the transport for the URL. py-amqp calls this."""
        others: Any = {
            "connect_timeout": connect_timeout,
            "read_timeout": read_timeout,
            "write_timeout": write_timeout,
        }
        if not self._broker._place.is_tls:
            return _Plain(host, **others)
        return _Encrypted(host, broker=self._broker, name=self._name, **others)


def check_is_loopback(sock: Any) -> None:
    """Raise `RelayError` if the peer of `sock` is not on this machine."""
    address = ipaddress.ip_address(sock.getpeername()[0].partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if not (mapped or address).is_loopback:
        raise RelayError(
            f"{address} is not this machine, and a login is never sent in clear; use"
            " amqps:// in the URL"
        )


class Link:
    """A connection to the broker at `host`, and a channel. Raises `RelayError`.

    Set `on_ack`, `on_nack` and `on_return` before the first message is published.
    """

    def __init__(self, broker: Broker, host: str, port: int) -> None:
        self.broker = broker
        self._host = host, port
        #: The process that has made it. A forked child has a useless copy.
        self.process: int = os.getpid()
        self.idle_since: float = 0.0
        self.published: int = 0
        self.blocked: str = ""
        self.on_ack: Callable[[int, bool], None]
        self.on_nack: Callable[[int, bool], None]
        self.on_return: Callable[[str, str], None]
        self._connection = _Connection(broker, host, port)
        self._connection.on_blocked = self._note_blocked
        try:
            self._connection.connect()
            self._poll = select.poll()
            self._poll.register(self._connection.sock, select.POLLIN)
            self._channel = self._open_channel()
        except RelayError:
            self.discard()
            raise
        except TROUBLE as error:
            self.discard()
            raise _connecting_failed(broker, error) from error

    def _open_channel(self) -> amqp.Channel:
        channel = self._connection.channel()
        channel.auto_decode = False
        return channel

    def _note_blocked(self, reason: str) -> None:
        self.blocked = reason

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RelayError:
            raise
        except NotFound as error:
            raise RelayError(f"{doing}: {error}; {_MISSING}") from error
        except TROUBLE as error:
            text = f"{type(error).__name__}: {text_of(error)}"
            raise RelayError(f"{doing}: {text}") from error

    # The queue

    def check_queue(self) -> None:
        """Raise `RelayError` if the queue is missing, or is not a quorum queue.

        A user without the right to configure the queue cannot ask for its type. Then
        this is logged.
        """
        queue = self.broker.queue
        with self._explained(f"queue {queue!r}"):
            self._channel.queue_declare(queue, passive=True)
            try:
                self._declare()
            except AccessRefused:
                if (self.broker.name, queue) not in _logged:
                    _logged.add((self.broker.name, queue))
                    told = "%s: cannot see whether the queue %r is a quorum queue"
                    log.info(told, self.broker.name, queue)
                self._channel.collect()
                self._channel = self._open_channel()

    def declare_queue(self) -> None:
        """Create the quorum queue, unless it is there. Raises `RelayError`."""
        with self._explained(f"queue {self.broker.queue!r}"):
            self._declare()

    def _declare(self) -> None:
        queue = self.broker.queue
        try:
            self._channel.queue_declare(
                queue, durable=True, auto_delete=False, arguments=QUORUM
            )
        except PreconditionFailed as error:
            said = str(error)
            if "x-queue-type" in said or "durable" in said or "'auto_delete'" in said:
                reason = "is not a quorum queue; name another, or delete it"
                raise RelayError(f"queue {queue!r}: {reason}: {said}") from error
            # It has more arguments than we know, such as a limit.
            self._channel.collect()
            self._channel = self._open_channel()

    # Publish

    def begin_publishing(self) -> None:
        """Check the queue, and have the broker confirm each message."""
        self.check_queue()
        with self._explained("confirm.select"):
            self._channel.confirm_select()
        self._channel.events["basic_ack"].add(lambda *a: self.on_ack(*a))
        self._channel.events["basic_nack"].add(lambda *a: self.on_nack(*a))
        self._channel.events["basic_return"].add(
            lambda error, exchange, key, message: self.on_return(
                message.properties["application_headers"][NAME],
                text_of(error),
            )
        )

    def publish(self, body: bytes, name: str, message_id: str) -> int:
        """Publish an entry, and return its number on this link. Raises `RelayError`."""
        message = amqp.Message(
            body,
            message_id=message_id.encode()[:255].decode(errors="ignore"),
            application_headers={NAME: name},
            delivery_mode=_PERSISTENT,
            timestamp=int(time.time()),
            content_type="message/rfc822",
            type="postcommit",
        )
        with self._explained("publish"):
            # Not basic_publish, which looks for an answer each time, as `poll` does.
            to = (0, "", self.broker.queue, True, False)  # mandatory, not immediate
            self._channel.send_method(spec.Basic.Publish, _PUBLISH, to, message)
        self.published += 1
        return self.published

    # Receive

    def consume(self, prefetch: int, deliver: Callable[[Any], None]) -> None:
        """Have `deliver` called for each message of the queue."""
        self.check_queue()
        with self._explained(f"queue {self.broker.queue!r}"):
            self._channel.basic_qos(0, prefetch, False)
            self._channel.basic_consume(
                self.broker.queue, callback=deliver, on_cancel=self._cancelled
            )

    def _cancelled(self, tag: str) -> None:
        raise RelayError(f"queue {self.broker.queue!r}: was deleted; {_MISSING}")

    def acknowledge(self, number: int) -> None:
        """Acknowledge all messages up to that with this delivery tag."""
        with self._explained("acknowledge"):
            self._channel.basic_ack(number, multiple=True)

    # Listen

    def poll(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Handle what has come, until `is_enough`. Raises `RelayError`.

        Waits for the rest of a frame only.
        """
        with self._explained("listen"), suppress(TimeoutError):
            while self._has_come() and not is_enough():
                self._connection.blocking_read(_STEP)
        self._check_blocked()

    def _has_come(self) -> bool:
        """Return whether there is something to read, or the connection has ended."""
        sock = self._connection.sock
        has_decrypted = isinstance(sock, ssl.SSLSocket) and sock.pending()
        return bool(has_decrypted or self._poll.poll(0))

    def wait(self, seconds: float) -> None:
        """Wait for something to come, and send heartbeats. Raises `RelayError`."""
        with self._explained("listen"):
            try:
                self._connection.blocking_read(max(0.001, min(seconds, _STEP)))
            except TimeoutError:
                self._connection.heartbeat_tick()
        self._check_blocked()

    def _check_blocked(self) -> None:
        if self.blocked:
            raise RelayError(
                "the broker takes no messages, because it is short of memory or disk"
                f" ({self.blocked})"
            )

    # The end

    def close(self) -> None:
        """Say goodbye, do not wait for an answer, and close."""
        with suppress(*TROUBLE):
            self._connection.send_method(
                spec.Connection.Close, "BsBB", (200, "done", 0, 0)
            )
        self._close()

    def discard(self) -> None:
        """Close the connection without a word, and avoid its host for the next."""
        self.broker.avoid(*self._host)
        self._close()

    def _close(self) -> None:
        with suppress(*TROUBLE):
            if self.process == os.getpid():
                self._connection.collect()


def _connecting_failed(broker: Broker, error: BaseException) -> RelayError:
    """Return the error that says what to do about `error`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        broker._tls.read_again()
        reason = error.verify_message.rstrip(".")
        text = f"its certificate cannot be trusted: {reason}"
        return RelayError(f"{text}; {remedy(error)}")
    text = f"{type(error).__name__}: {text_of(error)}"
    if isinstance(error, AccessRefused | NotAllowed):
        return LoginRefused(f"{broker.name}: login refused: {text}")
    hint = ""
    if broker._place.is_tls and isinstance(error, OSError):
        broker._tls.read_again()
        hint = about_client(error, shown=broker._tls.shows_certificate)
    return RelayError(f"{text}{hint}")
