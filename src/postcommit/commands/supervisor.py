"""What the supervisor of a service is told, as sd_notify(3) has it.

Datagrams to the socket that ``$NOTIFY_SOCKET`` names. Without one nobody wants to
know.
"""
from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping


log = logging.getLogger(__name__)


class Supervisor:
    """Whoever has started this process.

    `watchdog_seconds` is how often it wants to hear that all is well, or None.
    Telling it something never raises.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds = _watchdog_seconds(environ)
        self._is_deaf = False

    def ready(self, status: str) -> None:
        """All is well, also after `reloading`; `status` is for people."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The configuration is read again; `ready` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """It will end when what is in flight has ended."""
        self._tell("STOPPING=1", "STATUS=waits for what is in flight")

    def alive(self) -> None:
        """For the watchdog."""
        self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        # A name that begins with @ is one of the abstract name space.
        address = self._address
        name = f"\0{address[1:]}" if address.startswith("@") else address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
                unix.settimeout(1.0)
                unix.sendto("\n".join(lines).encode(), name)
        except OSError as error:
            if not self._is_deaf:
                log.warning("NOTIFY_SOCKET=%s hears nothing: %s", address, error)
            self._is_deaf = True


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return the interval that is meant for this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() else None
