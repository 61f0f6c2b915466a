"""Bytes to and from a relay, with a bound on every wait."""
from __future__ import annotations

import ipaddress
import select
import socket
import ssl
import struct
import time
from typing import Any
from typing import TypeAlias


# No single call of send() is handed more, so that the time-out is for so much.
_BLOCK = 1 << 16

# Nor, under TLS, more than a record has (RFC 8446, 5.1). Of several records, send()
# may have some on their way, and fail without telling how many.
_RECORD = 1 << 14

_READ_SIZE = 1 << 16

_AddressInfo: TypeAlias = tuple[int, int, int, str, Any]


def connect(hostname: str, port: int, timeout: float) -> Channel:
    """Connect to the first address of `hostname` that answers.

    `timeout`, in seconds, is for all addresses together: each gets its share of
    what is left. Raises OSError, or ValueError for what can be no host name.
    """
    deadline = time.monotonic() + timeout
    found = socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM)
    failure = OSError("the name has no address")
    for number, info in enumerate(found):
        share = (deadline - time.monotonic()) / (len(found) - number)
        try:
            return Channel(_connected(info, max(share, 0.001)))
        except OSError as error:
            failure = error
    raise failure


def _connected(info: _AddressInfo, timeout: float) -> socket.socket:
    family, kind, protocol, _, address = info
    connection = socket.socket(family, kind, protocol)
    try:
        connection.settimeout(timeout)
        connection.connect(address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(None)
    except OSError:
        connection.close()
        raise
    return connection


class Channel:
    """A connected socket, and what was received of it but not yet read.

    `data` from `position` on is unread. `sent` is how many bytes of the last
    `write` the system has taken: they may have reached the relay. Time-outs are
    in seconds; TimeoutError, another OSError, and ConnectionError for an end of
    the connection are raised as they come.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._timeout: float | None = None
        self._most = _BLOCK
        self.data = b""
        self.position = 0
        self.sent = 0

    def write(self, data: bytes, timeout: float) -> None:
        """Send all of `data`; each block of 64 KiB may take `timeout`."""
        self.sent = 0
        if len(data) <= self._most:
            # It hardly ever waits here. The time-out of the last reply is as good
            # a bound, and setting one is a system call for each message.
            self.sent = self._send(data)
            if self.sent == len(data):
                return
        view = memoryview(data)
        while self.sent < len(data):
            self._write_block(view[self.sent : self.sent + _BLOCK], timeout)

    def _write_block(self, block: memoryview, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while block:
            self._bound(_remaining(deadline))
            taken = self._send(block[: self._most])
            self.sent += taken
            block = block[taken:]

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            raise TimeoutError("timed out") from None

    def fill(self, timeout: float) -> None:
        """Wait until there is more in `data`."""
        self._bound(timeout)
        try:
            received = self._socket.recv(_READ_SIZE)
        except BlockingIOError:
            raise TimeoutError("timed out") from None
        if not received:
            raise ConnectionResetError("the relay closed the connection")
        self.data = self.data[self.position :] + received
        self.position = 0

    def refill(self, deadline: float) -> None:
        """Wait until there is more in `data`, or until `deadline`.

        That is a time of `time.monotonic`.
        """
        self.fill(_remaining(deadline))

    def _bound(self, timeout: float) -> None:
        """Let no call of the socket take longer than `timeout`."""
        if timeout == self._timeout:
            return  # setting it is a system call
        self._timeout = timeout
        if self.is_encrypted:
            self._socket.settimeout(timeout)
            return
        # By settimeout(), each call would be two system calls: Python has the
        # socket polled first.
        interval = _interval(timeout)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, interval)

    @property
    def unread(self) -> bool:
        """Whether something was received that nobody asked for yet."""
        return self.position < len(self.data)

    def discard(self) -> None:
        """Forget what was received."""
        self.data = b""
        self.position = 0

    def is_quiet(self) -> bool:
        """Whether the connection stands, as far as one can see, and is silent."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return not self.unread and not poll.poll(0)

    def start_tls(
        self, context: ssl.SSLContext, hostname: str, timeout: float
    ) -> None:
        """Speak TLS from here on, with a relay that is called `hostname`."""
        self.discard()
        self._timeout = timeout
        self._socket.settimeout(timeout)
        self._socket = context.wrap_socket(self._socket, server_hostname=hostname)
        self._most = _RECORD

    @property
    def is_encrypted(self) -> bool:
        return isinstance(self._socket, ssl.SSLSocket)

    @property
    def certificate(self) -> bytes | None:
        """The certificate that the relay has shown (DER); None without TLS."""
        if isinstance(self._socket, ssl.SSLSocket):
            return self._socket.getpeercert(binary_form=True)
        return None

    @property
    def tls_version(self) -> str | None:
        """The version of TLS that is spoken, like «TLSv1.3»; None without TLS."""
        if isinstance(self._socket, ssl.SSLSocket):
            return self._socket.version()
        return None

    @property
    def is_loopback(self) -> bool:
        """Whether the relay's address is one of this host's loopback."""
        address = ipaddress.ip_address(self._socket.getpeername()[0].partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None)
        return (mapped or address).is_loopback

    @property
    def local_address(self) -> str:
        """This host's own address, without a zone."""
        address: str = self._socket.getsockname()[0]
        return address.partition("%")[0]

    def close(self) -> None:
        """Close the socket, and say nothing."""
        self._socket.close()


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError("timed out")
    return remaining


def _interval(seconds: float) -> bytes:
    """Return `seconds` as a ``struct timeval``; nothing is too short for one."""
    microseconds = max(1, round(seconds * 1e6))
    return struct.pack("@ll", *divmod(microseconds, 1_000_000))
