"""Ports for servers that are given their number before they start."""
from __future__ import annotations

import random
import socket
from contextlib import ExitStack


# Below those that Linux gives to connections, and to servers that ask for port 0.
# Such a port could be given away between the choice and the use.
_PORTS = range(10_000, 32_000)

_chance = random.SystemRandom()


def free_port(*addresses: str) -> int:
    """Return a port at which no server listens.

    It is free at each of `addresses`, or by default at 127.0.0.1.
    """
    while True:
        port = _chance.choice(_PORTS)
        with ExitStack() as stack:
            try:
                for address in addresses or ("127.0.0.1",):
                    stack.enter_context(socket.create_server((address, port)))
            except OSError:
                continue
            return port
