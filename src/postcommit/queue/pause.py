"""The pause of a whole queue while its relay, or its disk, is in trouble.

=============  ==============================================  ==============
state          when                                            what is tried
=============  ==============================================  ==============
``OPEN``       all is well                                     everything
``PAUSED``     after a failure, for 1 s, 2 s, 4 s… to 5 min    nothing
``PROBING``    the pause is over                               one entry
=============  ==============================================  ==============
"""
from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager

from postcommit.errors import text_of
from postcommit.log import Log
from postcommit.queue.notice import Board
from postcommit.queue.schedule import pause_after


log = Log(__name__)


# So many reasons of one pause are remembered, to be logged only once.
_MOST_REASONS = 1000


class State(enum.Enum):
    OPEN = "open"
    PAUSED = "paused"
    PROBING = "probing"


class Pause:
    """The state of one queue; may be used by several threads at once.

    `clock` returns seconds that only ever grow. The log hears once of each
    trouble, however several take turns, and of their end.
    """

    def __init__(
        self, queue_path: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._queue_path = queue_path
        self._lock = threading.Lock()
        self.count = 0  # pauses, up to now
        self._shortened = 0  # which of them was shortened last
        self._failures = 0
        self._until = 0.0
        self._told: set[str] = set()
        self._board: Board | None = None

    @contextmanager
    def posted(self) -> Iterator[None]:
        """Tell other processes of it, too, as long as the body runs.

        By a `Notice` in the queue's folder.
        """
        board = Board(self._queue_path)
        board.clean()
        self._board = board
        try:
            yield
        finally:
            with self._lock:
                self._board = None
                board.clear()

    @property
    def state(self) -> State:
        if not self._failures:
            return State.OPEN
        return State.PAUSED if self.seconds_left() > 0 else State.PROBING

    def seconds_left(self) -> float:
        """Return for how long the pause lasts; 0 where there is none."""
        return max(0.0, self._until - self._clock())

    def failed(self, reason: object, since: int | None = None) -> None:
        """Begin a pause, or a longer one.

        `since` is what `count` was when that was begun which failed. What was in
        flight with others when the pause began does not make it longer, whether
        it ends during the pause or after it.
        """
        with self._lock:
            is_old = since is not None and since != self.count
            if is_old and self.state is State.OPEN:
                return  # since then, the relay has shown that it is back
            if not is_old and self.state is not State.PAUSED:
                self.count += 1
                self._failures += 1
                seconds = pause_after(self._failures)
                self._until = self._clock() + seconds
                if self._board is not None:
                    self._board.post(reason, seconds)
            reason = text_of(reason)
            if reason not in self._told:
                if len(self._told) >= _MOST_REASONS:
                    self._told.clear()
                self._told.add(reason)
                log.error("%s: the queue pauses: %s", self._queue_path, reason)

    def shorten(self) -> bool:
        """Have a first pause over now; tell whether there is one, once for each."""
        with self._lock:
            if self._failures != 1 or self._shortened == self.count:
                return False
            self._shortened = self.count
            self._until = self._clock()
            return True

    def succeeded(self) -> None:
        """End the pause: it works again."""
        if not self._failures:
            return  # each message comes by here: without the lock
        with self._lock:
            if self._failures:
                log.info("%s: the queue goes on", self._queue_path)
                if self._board is not None:
                    self._board.clear()
            self._failures, self._until = 0, 0.0
            self._told.clear()
