"""The surroundings of a service: its queue, signals, and systemd."""
from __future__ import annotations

import errno
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Mapping
from types import FrameType
from typing import Any

from postcommit._cli.owner import act_as_owner
from postcommit._maildir import mark
from postcommit._maildir.files import open_pipe
from postcommit._maildir.looking import refuse_young_claims
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.store import Store
from postcommit.errors import QueueError
from postcommit.interfaces import is_database_url


log = logging.getLogger("postcommit.cli.service")

# The signals that the service handles. `_cli.main` blocks them during the start.
TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def check_queue(path: str, *, create: bool, adopt: bool) -> None:
    """Raise `QueueError` unless the queue at `path` can be drained.

    It must exist, unless `create` is true. It must not be a mailbox, unless `adopt`
    is true. No processor of another library may work on it. As root, act as its owner
    from now on. A queue in a database must be there, and its processor says what is
    wrong with it.
    """
    if is_database_url(path):
        if create:
            raise QueueError(path, "--create is for folders; use 'postcommit migrate'")
        return
    act_as_owner(path, create=create)
    try:
        Maildir(path, create=create)
    except QueueError as error:
        if create or error.errno != errno.ENOENT:
            raise
        reason = "there is no such queue; --create makes it"
        raise QueueError(path, reason) from error
    if adopt:
        mark.adopt(path)
    refuse_young_claims(Store(path))


class Signals:
    """In its ``with`` block, signals interrupt nothing, and `wait` returns them.

    For the main thread. No signal is lost, whatever their number and time. Signals that
    were blocked before arrive when the block begins. They are ignored after its end,
    because the process ends.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self._reader, self._writer = open_pipe()
        self._wakeup_before = signal.set_wakeup_fd(self._writer.descriptor)
        for number in self._signals:
            self._before[number] = signal.signal(number, _do_nothing)
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        for held in (s for s in self._signals if s in blocked):
            self._before[held] = signal.SIG_IGN
        return self

    def __exit__(self, *exc_info: object) -> None:
        # The signals are blocked, because Python prints a traceback for a signal that
        # arrives while its handler is replaced.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self._signals)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout: float) -> list[signal.Signals]:
        """Return the signals that have arrived. Wait at most `timeout` seconds."""
        select.select([self._reader.descriptor], [], [], timeout)
        try:
            arrived = os.read(self._reader.descriptor, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(n) for n in arrived if n in self._signals]


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Do nothing, because Python has written the number into the pipe."""


class Supervisor:
    """The program that has started this process, such as systemd (see sd_notify(3)).

    Messages are datagrams to the socket that ``$NOTIFY_SOCKET`` names. Without it,
    nothing is sent. `watchdog_seconds` is the interval in which the supervisor expects
    `alive`, or None. No method raises.
    """

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds = _watchdog_seconds(environ)
        self._has_failed = False

    def ready(self, status: str) -> None:
        """Report that the service works, also after `reloading`.

        `status` is a text for people.
        """
        self._notify("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report that the configuration is being read again. `ready` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """Report that the process ends after the attempts in flight."""
        self._notify("STOPPING=1", "STATUS=waits for what is in flight")

    def alive(self) -> None:
        """Report to the watchdog that the service works."""
        self._notify("WATCHDOG=1")

    def _notify(self, *lines: str) -> None:
        if not self._address:
            return
        # A name that begins with @ is in the abstract name space.
        address = self._address
        name = f"\0{address[1:]}" if address.startswith("@") else address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
                unix.settimeout(1.0)
                unix.sendto("\n".join(lines).encode(), name)
        except OSError as error:
            if not self._has_failed:
                log.warning("NOTIFY_SOCKET=%s hears nothing: %s", address, error)
            self._has_failed = True


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return the watchdog's interval if it is meant for this process."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    microseconds = environ.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() else None
