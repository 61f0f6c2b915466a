"""When a deferred entry is tried again, and when it is given up.

Pure functions of time. After Postfix: the next attempt is as far away as the
entry is old, within bounds; so the schedule needs to know nothing but when
the entry was accepted.
"""
from __future__ import annotations

import random
from dataclasses import dataclass


JITTER = 0.1

# A relay in trouble is asked again after so many seconds, and then after
# twice as many each time, up to the longest.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0


@dataclass(frozen=True)
class Schedule:
    """The bounds; see `IMailQueueProcessor` for their units and defaults."""

    min_backoff: float
    max_backoff: float
    max_age: float
    max_uncertain: int = 3

    def next_attempt(self, accepted: float, now: float) -> float:
        """Return when an entry that was just deferred is due again.

        With a jitter of 10 %, so that what failed together does not come back
        together.
        """
        age = now - accepted
        backoff = min(max(age, self.min_backoff), self.max_backoff)
        return now + backoff * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311

    def seconds_until(self, due: float, now: float) -> float:
        """Return for how long what was deferred until `due` waits; 0 if it is due.

        It is also due where that lies further ahead than anything is deferred: the
        clock was put back since, or the bounds were narrowed.
        """
        wait = due - now
        return wait if 0 < wait <= 2 * self.max_backoff else 0.0

    def is_too_old(self, accepted: float, now: float) -> bool:
        """Tell whether an entry that failed for now is given up."""
        return now - accepted >= self.max_age


def pause_after(failures: int) -> float:
    """Return for how many seconds the queue pauses after so many `failures`."""
    return float(min(FIRST_PAUSE * 2 ** min(failures - 1, 16), LONGEST_PAUSE))
