"""Signals as something to wait for."""
from __future__ import annotations

import os
import select
import signal
from types import FrameType
from typing import Any

from postcommit.openfile import open_pipe


# The signals that the service takes.
TAKEN = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def hold_back() -> None:
    """Let the signals of the service wait until `Signals` is entered.

    For the main thread of a process that does nothing else: when `Signals` is left,
    they are ignored, because the process ends.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN)


class Signals:
    """While it is entered, these signals interrupt nothing, but can be waited for.

    For the main thread. None is lost, however many arrive and whenever.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self._reader, self._writer = open_pipe()
        self._wakeup_before = signal.set_wakeup_fd(self._writer.descriptor)
        for number in self._signals:
            self._before[number] = signal.signal(number, _do_nothing)
        # Those that were held back arrive now.
        blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._signals)
        for held in (s for s in self._signals if s in blocked):
            self._before[held] = signal.SIG_IGN
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout: float) -> list[signal.Signals]:
        """Return what has arrived; wait for it for `timeout` seconds at most."""
        select.select([self._reader.descriptor], [], [], timeout)
        try:
            arrived = os.read(self._reader.descriptor, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(n) for n in arrived if n in self._signals]


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Python has written the number into the pipe."""
