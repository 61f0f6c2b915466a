"""Ports for servers that are given their number before they start."""
from __future__ import annotations

import random
import socket


# Below those that Linux gives to connections, and to servers that ask for port 0.
# Such a port could be given away between the choice and the use.
_PORTS = range(10_000, 32_000)

_chance = random.SystemRandom()


def free_port() -> int:
    """Return a port of 127.0.0.1 at which no server listens."""
    while True:
        port = _chance.choice(_PORTS)
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return port
