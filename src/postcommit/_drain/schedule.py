"""When a deferred entry is tried again, and when it is given up.

Pure functions of time. As in Postfix, the next attempt is as far away as the entry is
old, within bounds. So the schedule needs nothing but the time of acceptance.
"""
from __future__ import annotations

import random
from dataclasses import dataclass


# Share of a back-off by which it varies at random.
JITTER = 0.1


@dataclass(frozen=True)
class Schedule:
    """The bounds. See `IMailQueueProcessor` for their units and defaults."""

    min_backoff: float
    max_backoff: float
    max_age: float
    max_uncertain: int = 3

    def next_attempt(self, accepted: float, now: float) -> float:
        """Return when an entry that was just deferred is due again.

        The jitter of 10 % spreads entries that failed together.
        """
        age = now - accepted
        backoff = min(max(age, self.min_backoff), self.max_backoff)
        return now + backoff * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311

    def seconds_until(self, due: float, now: float) -> float:
        """Return for how long an entry deferred until `due` waits, or 0 if it is due.

        It is also due if `due` lies further ahead than an entry can be deferred. Then
        the clock was put back, or the bounds were narrowed.
        """
        wait = due - now
        return wait if 0 < wait <= 2 * self.max_backoff else 0.0

    def is_too_old(self, accepted: float, now: float) -> bool:
        """Return whether an entry that failed for now is given up."""
        return now - accepted >= self.max_age
