"""Where the one who looks for work hands it to those who do it."""
from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from operator import sub


# How often it is looked at how the workers get on, and over how long a time.
REVIEW_SECONDS = 0.005
_PERIOD = 0.02

# Where they take so many paths a second, it is not the relay that they wait for;
# where this process uses so much of a processor, more of them do not help; and
# where it uses so little, they wait for certain.
_QUICK = 1000
_BUSY = 0.8
_IDLE = 0.5


class Handoff:
    """Paths on their way from one feeder to several workers.

    The feeder waits when it is `capacity` ahead, and goes on when half of that
    is left: woken for each single path, the two would mostly wait for each
    other.

    One worker begins. If it does not get on quickly, because it waits for the
    relay, all `workers` are called; and fewer of them where they only contend for
    the interpreter's lock, which costs more than it brings.

    `called` is how many may work now. What may wait takes a time-out, in seconds,
    and tells whether what it waited for came true; for ever is None. It comes true
    when this is closed, too.
    """

    def __init__(
        self,
        capacity: int,
        workers: int,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._capacity = capacity
        self._workers = workers
        self._clock = clock
        self._processor_clock = processor_clock
        self._paths: deque[str] = deque()
        self._busy = 0
        self.called = 1
        self._closed = False
        self._put = 0  # paths, in all
        self._reviewed = self._progress()
        self._last: str | None = None  # of what was put, until it is worked on
        # With so many left, the feeder wants to be woken.
        self._waits_for = -1
        # Reentrant: a signal handler that stops the queue may interrupt us.
        lock = threading.RLock()
        self._work_there = threading.Condition(lock)
        self._feeder = threading.Condition(lock)

    # The feeder

    def put(self, paths: Sequence[str], timeout: float | None = None) -> bool:
        """Add `paths`, when there is room. Once closed, they are forgotten."""
        half = self._capacity // 2
        with self._feeder:
            if len(self._paths) >= self._capacity and not self._wait_for_left(
                half, lambda: len(self._paths) <= half, timeout
            ):
                return False
            if self._closed:
                return True
            if self._is_idle():
                self._reviewed = self._progress()
            self._paths.extend(paths)
            self._last = paths[-1]
            self._put += len(paths)
            self._work_there.notify(max(0, min(len(paths), self.called - self._busy)))
            return True

    def distribute(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is taken, or all workers are called."""
        with self._feeder:
            return self._wait_for_left(
                0,
                lambda: not self._paths or self.called == self._workers,
                timeout,
            )

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all that was put is worked on."""
        with self._feeder:
            return self._wait_for_left(-1, self._is_idle, timeout)

    def _is_idle(self) -> bool:
        # Not a count of paths: one that a worker has lost, by an error, between
        # taking it and working on it, would be waited for in vain.
        return not self._paths and not self._busy

    def join_last(self, timeout: float | None = None) -> bool:
        """Wait until what was put last is worked on, whatever else is not."""
        with self._feeder:
            return self._wait_for_left(-1, lambda: self._last is None, timeout)

    def wait_closed(self, timeout: float) -> bool:
        """Sleep, unless this is closed."""
        with self._feeder:
            return self._wait_for_left(-1, lambda: False, timeout)

    def _wait_for_left(
        self, left: int, is_true: Callable[[], bool], timeout: float | None
    ) -> bool:
        self._waits_for = left
        try:
            return self._feeder.wait_for(lambda: self._closed or is_true(), timeout)
        finally:
            self._waits_for = -1

    def review(self) -> None:
        """See how the workers get on, and whether there should be more or less."""
        with self._work_there:
            progress = self._progress()
            seconds, busy, taken = map(sub, progress, self._reviewed)
            is_quick = taken >= _QUICK * seconds
            is_idle = busy < _IDLE * seconds and not is_quick
            if seconds < (REVIEW_SECONDS if is_idle else _PERIOD):
                return
            self._reviewed = progress
            if is_quick:
                if busy > _BUSY * seconds:
                    self.called = max(1, self.called - 1)
            elif self._paths:
                self.called = self._workers
                self._work_there.notify_all()

    def _progress(self) -> tuple[float, float, float]:
        """Return the time, that of the processor, and the number of paths taken."""
        taken = self._put - len(self._paths)
        return self._clock(), self._processor_clock(), taken

    @property
    def needs_review(self) -> bool:
        """Whether there is work, and a choice of who does it."""
        return self._workers > 1 and bool(self._paths)

    # The workers

    def begin(self) -> bool:
        """Wait until there is work, and it is one's turn; False when closed.

        Others may be faster, and nothing be left to take. Then comes `done`.
        """
        with self._work_there:
            self._work_there.wait_for(self._is_it_time)
            self._busy += not self._closed
            return not self._closed

    def _is_it_time(self) -> bool:
        return self._closed or (bool(self._paths) and self._busy < self.called)

    def take(self) -> Iterator[str]:
        """Take paths, as long as there are any."""
        # Without the lock: each method of a deque is one step.
        try:
            while True:
                path = self._paths.popleft()
                if len(self._paths) <= self._waits_for:
                    with self._feeder:
                        self._feeder.notify()
                yield path
        except IndexError:
            pass

    def done(self, taken: Sequence[str]) -> None:
        """Tell that one ends what one did `begin`, and took these paths."""
        with self._feeder:
            self._busy -= 1
            if self._is_idle():
                self.called = 1
                self._last = None
            elif self._last in taken:
                self._last = None
            if self._last is None:
                self._feeder.notify()

    # Both

    def close(self) -> None:
        """Let everybody go who waits; what was not taken is forgotten."""
        with self._feeder:
            self._closed = True
            self._paths.clear()
            self._work_there.notify_all()
            self._feeder.notify_all()
