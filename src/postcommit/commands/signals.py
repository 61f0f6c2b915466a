"""Signals as something to wait for."""
from __future__ import annotations

import os
import select
import signal
from types import FrameType
from typing import Any

from postcommit.files import open_pipe


class Signals:
    """While it is entered, these signals interrupt nothing, but can be waited for.

    For the main thread. None is lost, however many arrive and whenever.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        self._reader, self._writer = open_pipe()
        self._wakeup_before = signal.set_wakeup_fd(self._writer)
        for number in self._signals:
            self._before[number] = signal.signal(number, _do_nothing)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self._reader)
        os.close(self._writer)

    def wait(self, timeout: float) -> list[signal.Signals]:
        """Return what has arrived; wait for it for `timeout` seconds at most."""
        select.select([self._reader], [], [], timeout)
        try:
            arrived = os.read(self._reader, 4096)
        except BlockingIOError:
            return []
        return [signal.Signals(n) for n in arrived if n in self._signals]


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Python has written the number into the pipe."""
