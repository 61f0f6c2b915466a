"""Where the one who looks for work hands it to those who do it."""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator


class Handoff:
    """Paths on their way from one feeder to several workers.

    The feeder waits when it is `capacity` ahead, and goes on when half of that
    is left: woken for each single path, the two would mostly wait for each
    other.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._paths: deque[str] = deque()
        self._unfinished = 0
        self._closed = False
        # Reentrant: a signal handler that stops the queue may interrupt us.
        lock = threading.RLock()
        self._work_there = threading.Condition(lock)
        self._room_there = threading.Condition(lock)
        self._all_done = threading.Condition(lock)

    def put(self, path: str, timeout: float | None = None) -> bool:
        """Add `path`, when there is room. Once closed, it is forgotten.

        Returns False where there was no room for `timeout` seconds.
        """
        with self._room_there:
            if len(self._paths) >= self._capacity and not self._room_there.wait_for(
                lambda: self._closed or len(self._paths) <= self._capacity // 2,
                timeout,
            ):
                return False
            if not self._closed:
                self._paths.append(path)
                self._unfinished += 1
                self._work_there.notify()
            return True

    def take(self) -> str | None:
        """Wait for a path, and take it; None when closed."""
        with self._work_there:
            self._work_there.wait_for(lambda: self._closed or self._paths)
            return self._take()

    def take_more(self, most: int) -> Iterator[str]:
        """Take up to `most` paths, as long as there are any without waiting."""
        for _ in range(most):
            with self._work_there:
                path = self._take()
            if path is None:
                return
            yield path

    def _take(self) -> str | None:
        if self._closed or not self._paths:
            return None
        path = self._paths.popleft()
        if len(self._paths) <= self._capacity // 2:
            self._room_there.notify()
        return path

    def done(self, count: int) -> None:
        """Tell that so many of the paths that were taken are worked on."""
        with self._all_done:
            self._unfinished -= count
            if not self._unfinished:
                self._all_done.notify_all()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is worked on, or this is closed.

        Returns False where neither came true for `timeout` seconds.
        """
        with self._all_done:
            return self._all_done.wait_for(
                lambda: self._closed or not self._unfinished, timeout
            )

    def wait_closed(self, timeout: float) -> bool:
        """Sleep for `timeout` seconds, or until this is closed; tell if it is."""
        with self._room_there:
            return self._room_there.wait_for(lambda: self._closed, timeout)

    def close(self) -> None:
        """Let everybody go who waits; what was not taken is forgotten."""
        with self._work_there:
            self._closed = True
            for condition in (self._work_there, self._room_there, self._all_done):
                condition.notify_all()
