"""`QueueProcessor`: drains a queue in threads, until it is told to stop."""
from __future__ import annotations

import atexit
import functools
import os
import threading
import time
from collections.abc import Callable

from zope.interface import implementer

from postcommit.errors import OptionError
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import Tally
from postcommit.options import checked
from postcommit.options import checked_mailer
from postcommit.options import checked_queue_path
from postcommit.queue.drain import Drain
from postcommit.queue.drain import Pace
from postcommit.queue.pause import Pause
from postcommit.queue.processor import Processor
from postcommit.queue.scan import Scan
from postcommit.queue.schedule import Schedule
from postcommit.queue.store import Store


# At exit, attempts in flight get so many seconds. What is cut off then was
# not settled, and is sent again.
_EXIT_SECONDS = 10.0

_checked = functools.partial(checked, IMailQueueProcessor)


@implementer(IMailQueueProcessor)
class QueueProcessor:
    """See `IMailQueueProcessor`, also for the arguments, units and defaults.

    `clock` returns the seconds since the epoch, by which entries are due;
    `monotonic` those by which the queue pauses, which only ever grow. Raises
    `OptionError` for an option that can never work; the folder is opened, or
    created, by the first method that works on it, and raises `QueueError` there.
    """

    def __init__(
        self,
        queuePath: str,
        mailer: IMailer,
        pollingInterval: int = IMailQueueProcessor["pollingInterval"].default,
        *,
        workers: int = IMailQueueProcessor["workers"].default,
        rate_limit: float | None = IMailQueueProcessor["rate_limit"].default,
        min_backoff: float = IMailQueueProcessor["min_backoff"].default,
        max_backoff: float = IMailQueueProcessor["max_backoff"].default,
        max_age: float = IMailQueueProcessor["max_age"].default,
        max_uncertain: int = IMailQueueProcessor["max_uncertain"].default,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queuePath: str = checked_queue_path(IMailQueueProcessor, queuePath)
        self.mailer = checked_mailer(mailer)
        self.pollingInterval: int = _checked("pollingInterval", pollingInterval)
        self.workers: int = _checked("workers", workers)
        self.rate_limit: float | None = _checked("rate_limit", rate_limit)
        self.min_backoff: float = _checked("min_backoff", min_backoff)
        self.max_backoff: float = _checked("max_backoff", max_backoff)
        self.max_age: float = _checked("max_age", max_age)
        self.max_uncertain: int = _checked("max_uncertain", max_uncertain)
        if self.min_backoff > self.max_backoff:
            reason = f"must not be less than min_backoff={self.min_backoff!r}"
            raise OptionError("max_backoff", self.max_backoff, reason)
        self._clock = clock
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._drains: dict[Drain, int] = {}
        self._background: tuple[threading.Thread, Drain] | None = None

    def run(self) -> None:
        self._run(self._new_drain())

    def start(self) -> None:
        with self._lock:
            if self._is_started():
                return
            # Made here, so that the caller hears of a folder that is no queue.
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
        """See `IMailQueueProcessor`.

        It does not wait, and returns False, where that would be for ever: in a
        subscriber to an event, or in a signal handler that interrupts `run`.
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
        drain = self._new_drain()
        try:
            return drain.once()
        finally:
            del self._drains[drain]

    @property
    def last_beat(self) -> float | None:
        """When it last gave a sign of life, a time of `time.monotonic`.

        None where nothing runs. Half a minute without one is a long time.
        """
        return max((drain.last_beat for drain in self._own_drains()), default=None)

    def _own_drains(self) -> list[Drain]:
        # A forked child has no part in what its parent runs.
        return [d for d, pid in list(self._drains.items()) if pid == os.getpid()]

    def _run(self, drain: Drain) -> None:
        try:
            drain.until_stopped()
        finally:
            del self._drains[drain]

    def _new_drain(self) -> Drain:
        store = Store(self.queuePath)
        schedule = Schedule(
            self.min_backoff, self.max_backoff, self.max_age, self.max_uncertain
        )
        processor = Processor(store, self.mailer, schedule, self._clock)
        scan = Scan(store.maildir, schedule, self._clock)
        pace = Pace(self.workers, self.rate_limit, self.pollingInterval / 1000)
        pause = Pause(store.path, self._monotonic)
        drain = Drain(store, processor, scan, pace, pause)
        self._drains[drain] = os.getpid()
        return drain
