"""A clock that stands still until a test moves it."""
from __future__ import annotations

import time


class FakeClock:
    """For `QueueProcessor(clock=...)`: called, it returns what time it is.

    In seconds since the epoch, by default those of its making.
    """

    def __init__(self, now: float | None = None) -> None:
        self.now: float = time.time() if now is None else now

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.now:.3f}>"

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.now += seconds
