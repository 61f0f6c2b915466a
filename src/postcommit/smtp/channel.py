"""Bytes to and from a relay, with a time-out for each wait.

Every wait is bounded by `socket.settimeout`. The kernel's own time-outs (SO_RCVTIMEO)
would save one system call for each read and write, but they have no effect on a socket
that does not block, and every socket that gevent has replaced is one.
"""
from __future__ import annotations

import ipaddress
import select
import socket
import ssl
import time
from typing import Any
from typing import TypeAlias


# Bytes that may take one time-out to write.
_BLOCK = 1 << 16

# Maximum bytes for one call of send() under TLS: one record (RFC 8446, 5.1). With more,
# send() can write some records, fail, and not say how many.
_RECORD = 1 << 14

# Maximum bytes that one call of recv() returns.
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
    except OSError:
        connection.close()
        raise
    return connection


class Channel:
    """A connected socket, and the bytes that were received and not read yet.

    `data` from `position` on is unread. `sent` is the number of bytes of the last
    `write` that the system has taken, and that may have reached the relay. Time-outs
    are in seconds. Methods that wait raise TimeoutError, ConnectionResetError when the
    relay has closed the connection, and another OSError for other failures.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._timeout: float | None = None
        self._most = _BLOCK
        self.data = b""
        self.position = 0
        self.sent = 0

    def write(self, data: bytes, timeout: float) -> None:
        """Send all of `data`. Each block of 64 KiB may take `timeout` seconds."""
        self.sent = 0
        view = memoryview(data)
        while self.sent < len(data):
            self._write_block(view[self.sent : self.sent + _BLOCK], timeout)

    def _write_block(self, block: memoryview, timeout: float) -> None:
        self._bound(timeout)
        deadline = time.monotonic() + timeout
        while True:
            taken = self._socket.send(block[: self._most])
            self.sent += taken
            block = block[taken:]
            if not block:
                return
            self._bound(_remaining(deadline))

    def fill(self, timeout: float) -> None:
        """Wait until more was received, at most `timeout` seconds."""
        self._bound(timeout)
        received = self._socket.recv(_READ_SIZE)
        if not received:
            raise ConnectionResetError("the relay closed the connection")
        self.data = self.data[self.position :] + received
        self.position = 0

    def refill(self, deadline: float) -> None:
        """Wait until more was received, until `deadline` (`time.monotonic`)."""
        self.fill(_remaining(deadline))

    def _bound(self, timeout: float) -> None:
        """Set the time-out of each call of the socket; a system call if it changes."""
        if timeout != self._timeout:
            self._timeout = timeout
            self._socket.settimeout(timeout)

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
        self._bound(timeout)
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
