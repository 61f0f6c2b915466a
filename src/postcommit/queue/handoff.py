"""Where the one who looks for work hands it to those who do it."""
from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator


class Handoff:
    """Paths on their way from one feeder to several workers."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._paths: deque[str] = deque()
        self._unfinished = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, path: str) -> None:
        """Add `path`, when there is room. Once closed, it is forgotten."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or len(self._paths) < self._capacity
            )
            if not self._closed:
                self._paths.append(path)
                self._unfinished += 1
                self._changed.notify_all()

    def take(self) -> str | None:
        """Wait for a path, and take it; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._paths)
            return self._take()

    def take_more(self, most: int) -> Iterator[str]:
        """Take up to `most` paths, as long as there are any without waiting."""
        for _ in range(most):
            with self._changed:
                path = self._take()
            if path is None:
                return
            yield path

    def _take(self) -> str | None:
        if self._closed or not self._paths:
            return None
        self._changed.notify_all()
        return self._paths.popleft()

    def done(self, count: int) -> None:
        """Tell that so many of the paths that were taken are worked on."""
        with self._changed:
            self._unfinished -= count
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until all that was put is worked on, or this is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._unfinished)

    def close(self) -> None:
        """Let everybody go who waits; what was not taken is forgotten."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
