"""`QueueProcessor`: joins a queue, a mailer and the drain."""
from __future__ import annotations

import atexit
import functools
import os
import threading
import time
from collections.abc import Callable

from zope.interface import implementer

from postcommit import _forks as forks
from postcommit._config.options import checked
from postcommit._config.options import checked_mailer
from postcommit._config.options import checked_queue_path
from postcommit._config.readonly import ReadOnlyOptions
from postcommit._drain.runner import Drain
from postcommit._drain.runner import Pace
from postcommit._drain.schedule import Schedule
from postcommit._kinds.queue import open_queue
from postcommit.errors import OptionError
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import Tally


# Number of seconds that attempts in flight get when the interpreter exits. What is cut
# off then was not settled, and is sent again.
_EXIT_SECONDS = 10.0

_checked = functools.partial(checked, IMailQueueProcessor)


@implementer(IMailQueueProcessor)
class QueueProcessor(ReadOnlyOptions):
    """Drains a queue through a mailer.

    The arguments, with units and defaults, are those of `IMailQueueProcessor`.
    `clock` returns the seconds since the epoch by which entries are due, by default the
    queue's own time. `monotonic` returns those by which the queue pauses, which only
    ever grow. Raises `OptionError` for an option that can never work. The folder is
    opened, or created, by the first method that works on it, and raises `QueueError`
    there.
    """

    queuePath: str
    mailer: SupportsSend
    pollingInterval: int
    workers: int
    rate_limit: float | None
    min_backoff: float
    max_backoff: float
    max_age: float
    max_uncertain: int
    _clock: Callable[[], float] | None
    _monotonic: Callable[[], float]
    _lock: threading.Lock
    _drains: dict[Drain, int]  # the process that each belongs to
    _background: tuple[threading.Thread, Drain] | None

    def __init__(
        self,
        queuePath: str,
        mailer: SupportsSend,
        pollingInterval: int = IMailQueueProcessor["pollingInterval"].default,
        *,
        workers: int = IMailQueueProcessor["workers"].default,
        rate_limit: float | None = IMailQueueProcessor["rate_limit"].default,
        min_backoff: float = IMailQueueProcessor["min_backoff"].default,
        max_backoff: float = IMailQueueProcessor["max_backoff"].default,
        max_age: float = IMailQueueProcessor["max_age"].default,
        max_uncertain: int = IMailQueueProcessor["max_uncertain"].default,
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        # Set like this, because an assignment asks each time whether it is permitted.
        vars(self).update(
            queuePath=checked_queue_path(IMailQueueProcessor, queuePath),
            mailer=checked_mailer(mailer),
            pollingInterval=_checked("pollingInterval", pollingInterval),
            workers=_checked("workers", workers),
            rate_limit=_checked("rate_limit", rate_limit),
            min_backoff=_checked("min_backoff", min_backoff),
            max_backoff=_checked("max_backoff", max_backoff),
            max_age=_checked("max_age", max_age),
            max_uncertain=_checked("max_uncertain", max_uncertain),
            _clock=clock,
            _monotonic=monotonic,
            _lock=threading.Lock(),
            _drains={},
            _background=None,
        )
        if self.min_backoff > self.max_backoff:
            reason = f"must not be less than min_backoff={self.min_backoff!r}"
            raise OptionError("max_backoff", self.max_backoff, reason)
        forks.register(self, QueueProcessor._renew_lock)

    def _renew_lock(self) -> None:
        # In a forked child, a thread that does not exist there may have held it.
        self._lock = threading.Lock()

    def run(self) -> None:
        """Drain the queue in this thread, until `stop`."""
        with self._lock:
            started = self._background if self._is_started() else None
        if started is None:
            self._run(self._new_drain())
        else:
            started[1].wait(None)

    def start(self) -> None:
        """Drain the queue in a daemon thread, until `stop` or exit."""
        with self._lock:
            if self._is_started():
                return
            # Made here, so that a folder that is not a queue is the caller's error.
            drain = self._new_drain()
            thread = threading.Thread(
                target=self._run, args=(drain,), name="postcommit", daemon=True
            )
            try:
                # Also the workers: whether there are threads is known at the end.
                drain.begin()
                thread.start()
            except BaseException:
                del self._drains[drain]
                drain.cancel()
                raise
            self._background = thread, drain
        atexit.register(self.stop, _EXIT_SECONDS)

    def _is_started(self) -> bool:
        if self._background is None:
            return False
        thread, drain = self._background
        # A thread lives a moment longer than its drain goes on; and after a fork,
        # a drain seems to go on whose thread is not here.
        return thread.is_alive() and drain.is_going_on

    def stop(self, timeout: float | None = None) -> bool:
        """Let the attempts in flight finish; return whether all has come to rest.

        `timeout` is the maximum number of seconds to wait; None is without limit.
        Returns False without waiting if the wait could never end: in a subscriber to
        an event, or in a signal handler that interrupts `run`.
        """
        atexit.unregister(self.stop)
        drains = self._own_drains()
        for drain in drains:
            drain.stop()
        until = None if timeout is None else time.monotonic() + timeout
        for drain in drains:
            if drain.is_run_by(threading.current_thread()):
                return False
            left = None if until is None else max(0.0, until - time.monotonic())
            if not drain.wait(left):
                return False
        return True

    def flush(self) -> Tally:
        """Try once all that is due; return the counts of the recipients."""
        drain = self._new_drain()
        try:
            return drain.once()
        finally:
            del self._drains[drain]

    @property
    def is_running(self) -> bool:
        """Whether `run`, `start` or `flush` of this object drains the queue."""
        return any(drain.is_going_on for drain in self._own_drains())

    @property
    def last_sign(self) -> float | None:
        """When it last gave a sign of life, a time of `time.monotonic`.

        None if nothing runs. A processor that hangs gives none: see `SIGN_SECONDS`.
        """
        return max((drain.last_sign for drain in self._own_drains()), default=None)

    def _own_drains(self) -> list[Drain]:
        # A forked child must not stop the drains of its parent.
        return [d for d, pid in list(self._drains.items()) if pid == os.getpid()]

    def _run(self, drain: Drain) -> None:
        try:
            drain.until_stopped()
        finally:
            del self._drains[drain]

    def _new_drain(self) -> Drain:
        schedule = Schedule(
            self.min_backoff, self.max_backoff, self.max_age, self.max_uncertain
        )
        pace = Pace(self.workers, self.rate_limit, self.pollingInterval / 1000)
        queue = open_queue(self.queuePath)
        drain = Drain(
            queue, self.mailer, schedule, pace, self._clock, self._monotonic
        )
        self._drains[drain] = os.getpid()
        return drain
