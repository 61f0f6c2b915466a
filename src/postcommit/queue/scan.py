"""What is due in a queue: new entries first, then deferred ones.

Looking is cheap: two ``stat`` calls tell that nothing has changed. Where
something has, the folder is read and what is due is yielded at once, so that
a queue of any size starts sending immediately, and costs no memory.
"""
from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator

from postcommit.maildir import Maildir
from postcommit.queue.schedule import Schedule


# A folder's time of change may be as coarse as two seconds. One that changed
# so recently may change again without its time telling.
_COARSENESS = 3.0

# While deferred entries are looked through, new ones are looked for so often.
_NEW_EVERY = 0.2

# When a deferred entry is due, only its file tells. To look at one takes about
# two microseconds; so at most a tenth of the time goes into it.
_SECONDS_FOR_EACH_LOOK = 2e-5


class Scan:
    """The due entries of a queue. One thread iterates; any may give notes."""

    def __init__(
        self,
        maildir: Maildir,
        schedule: Schedule,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._maildir = maildir
        self._schedule = schedule
        self._clock = clock
        self._monotonic = monotonic
        self._seen: dict[str, float | None] = {"new": None, "cur": None}
        self._next_due = math.inf
        self._lock = threading.Lock()  # around what is read and then set
        self._not_before = -math.inf
        self._is_put_off = False

    def look_again(self) -> None:
        """Learn that an entry stayed where it was, though it is due.

        It was claimed by somebody, or the relay failed: the folder will not
        tell of a change when it can be tried again.
        """
        self._seen = {"new": None, "cur": None}

    def note_due(self, due: float) -> None:
        """Learn that an entry was deferred until then."""
        with self._lock:
            self._next_due = min(self._next_due, due)

    def seconds_to_wait(self) -> float:
        """Return for how long, as far as is known, nothing will be due."""
        rest = max(0.0, self._not_before - self._monotonic())
        if self._is_put_off:
            return rest
        if self._next_due == math.inf:
            return math.inf
        return max(self._wait(self._next_due), rest)

    def due(self, patience: float = math.inf) -> Iterator[str | None]:
        """Yield the paths of what is due, as far as anything has changed.

        And None, after each `patience` seconds of looking in vain.
        """
        yield from self._new()
        if not self._is_deferred_worth_a_look():
            return
        looked_for_new = self._monotonic()
        for path in self._deferred(patience):
            if self._monotonic() - looked_for_new > _NEW_EVERY:
                yield from self._new()
                looked_for_new = self._monotonic()
            yield path

    def _new(self) -> Iterator[str]:
        changed = self._changed_at("new")
        if changed == self._seen["new"]:
            return
        self._seen["new"] = _if_settled(changed)
        yield from self._maildir.paths("new")

    def _is_deferred_worth_a_look(self) -> bool:
        is_one_due = self._next_due < math.inf and not self._wait(self._next_due)
        is_worth = is_one_due or self._changed_at("cur") != self._seen["cur"]
        # Whoever rang will not do so again when the rest is over.
        self._is_put_off = is_worth and self._monotonic() < self._not_before
        return is_worth and not self._is_put_off

    def _deferred(self, patience: float) -> Iterator[str | None]:
        self._seen["cur"] = _if_settled(self._changed_at("cur"))
        self._next_due = math.inf
        looks = 0
        since = self._monotonic()
        for path in self._maildir.paths("cur"):
            looks += 1
            try:
                due = os.stat(path).st_mtime
            except FileNotFoundError:
                continue  # another processor was faster
            if not self._wait(due):
                yield path
                since = self._monotonic()
                continue
            self.note_due(due)
            if self._monotonic() - since > patience:
                yield None
                since = self._monotonic()
        self._not_before = self._monotonic() + looks * _SECONDS_FOR_EACH_LOOK

    def _wait(self, due: float) -> float:
        return self._schedule.seconds_until(due, self._clock())

    def _changed_at(self, folder: str) -> float:
        return os.stat(self._maildir.folder(folder)).st_mtime


def _if_settled(changed: float) -> float | None:
    return changed if time.time() - changed > _COARSENESS else None
