"""A drain: its feeder, and the workers that the feeder calls.

The feeder is the calling thread. It sleeps until a commit rings, an entry is due, a
pause is over or the polling interval has passed. Then it calls the workers, which are
threads of their own: each claims entries and transmits them until nothing is due.
"""
from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import sub

from postcommit._drain.breaker import FIRST_PAUSE
from postcommit._drain.breaker import Breaker
from postcommit._drain.breaker import CircuitState
from postcommit._drain.contract import IClaim
from postcommit._drain.contract import IConsumer
from postcommit._drain.contract import IQueue
from postcommit._drain.schedule import Schedule
from postcommit._drain.settle import Settler
from postcommit._drain.worker import Worker
from postcommit._log import Log
from postcommit.errors import QueueError
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import Tally


log = Log("postcommit.drain.runner")

# Maximum number of entries that a worker takes before others may take its place.
_ROUND = 50

# Maximum number of seconds between two signs of life.
SIGN_SECONDS = 10.0

# Number of seconds between two looks for what senders that died have left.
_SWEEP_SECONDS = 3600.0

# Maximum number of seconds between two attempts to settle what could not be settled.
_SETTLE_SECONDS = 1.0

# Least seconds between two looks while a single entry is tried after a pause.
_PROBE_SECONDS = 1.0

# Seconds between two reviews of the workers: while some of them are not called, when
# all are, and when all of them wait. And the least time that a review looks back on.
REVIEW_SECONDS = 0.005
_SELDOM_SECONDS = 0.05
_WAITING_SECONDS = 1.0
_PERIOD = 0.02

# If the workers take this many entries per second, they do not wait for the relay. If
# this process uses this share of a processor, more workers do not help. If it uses this
# little, they wait for certain.
_QUICK = 1000
_BUSY = 0.8
_IDLE = 0.5

# Seconds for which a drain works with fewer workers after the relay has refused one
# more connection; and seconds without another refusal until their number is logged.
FEWER_SECONDS = 300.0
_CALM_SECONDS = 1.0


@dataclass(frozen=True)
class Pace:
    """How a drain works: threads, messages per second, seconds between looks."""

    workers: int
    rate_limit: float | None
    polling_seconds: float


class Drain:
    """One run through a queue, `until_stopped` or `once`."""

    def __init__(
        self,
        queue: IQueue,
        mailer: SupportsSend,
        schedule: Schedule,
        pace: Pace,
        clock: Callable[[], float] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = queue.name
        self._pace = pace
        self._consumer = queue.consumer(schedule, clock)
        self._crew = Crew(
            self._consumer, pace.workers, pace.rate_limit, name=queue.name
        )
        self._breaker = Breaker(queue.name, monotonic)
        self._settler = Settler(self._consumer, mailer, schedule, self._breaker)
        self._next_sweep = time.monotonic()
        self._stopping = False
        self._over = threading.Event()
        self._feeder: threading.Thread | None = None
        shared = self._consumer, mailer, self._breaker, self._settler, self._crew.take
        self._workers = [Worker(*shared) for _ in range(pace.workers)]
        if pace.rate_limit is not None:
            for worker in self._workers:
                worker.most_at_a_time = 1  # each one has a slot of its own
        self._threads = [
            threading.Thread(
                target=self._work, args=(worker,), name=f"postcommit-{n}", daemon=True
            )
            for n, worker in enumerate(self._workers)
        ]
        self._started: list[threading.Thread] = []

    # For other threads

    def stop(self) -> None:
        """Let the attempts in flight finish, and then end.

        Does not wait, and may be called in a signal handler.
        """
        self._stopping = True
        for worker in self._workers:
            worker.is_stopping = True
        self._crew.close()
        self._consumer.stop()

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is over. Return whether it is."""
        return self._over.wait(timeout)

    @property
    def is_going_on(self) -> bool:
        """Whether it has neither ended nor been stopped."""
        return not self._stopping and not self._over.is_set()

    def is_run_by(self, thread: threading.Thread) -> bool:
        """Return whether `thread` is its feeder or one of its workers."""
        return thread is self._feeder or thread in self._threads

    @property
    def last_sign(self) -> float:
        """When its feeder last gave a sign of life, a time of `time.monotonic`."""
        return self._consumer.last_sign

    def begin(self) -> None:
        """Start the workers, or fewer of them if the system gives no more threads.

        Raises RuntimeError or MemoryError if it gives no thread at all. Then nothing
        has begun.
        """
        for thread in self._threads:
            try:
                thread.start()
            except (RuntimeError, MemoryError) as error:
                if not self._started:
                    raise
                text = "%s: %d of %d workers could be started: %s"
                most = len(self._threads)
                log.warning(text, self._name, len(self._started), most, error)
                return
            self._started.append(thread)

    def cancel(self) -> None:
        """End it, also before it has begun."""
        self._crew.close()
        self._consumer.close()
        self._over.set()

    # The feeder

    def until_stopped(self) -> None:
        """Work until `stop`."""
        self._breaker.show_to(self._consumer)
        process = os.getpid()
        with self._running():
            while not self._stopping:
                try:
                    self._feed()
                except Exception as error:
                    if os.getpid() != process:
                        return  # gevent goes on in a forked child, without our files
                    self._feeder_failed(error)

    def _feed(self) -> None:
        """Call the workers, and sleep until there may be work again."""
        self._sweep()
        # Asked once: a pause that ends now must not be taken for none below. One that
        # begins later rings, so that `wait` returns at once.
        if self._breaker.state is CircuitState.OPEN:
            self._consumer.wait(self._breaker.seconds_left())
        else:
            self._breaker.skipped = frozenset()  # they are tried again
            self._crew.call()
            self._crew.wait(until_idle=False)
            is_more = self._let_in()
            self._consumer.wait(0.0 if is_more else self._seconds_to_sleep())

    def _let_in(self) -> bool:
        """Let scheduled and bulk entries in, unless the queue pauses.

        Not while one entry is tried after a pause, but if none is left to be tried.
        """
        breaker = self._breaker
        if self._stopping or breaker.is_probed or breaker.state is CircuitState.OPEN:
            return False
        return self._consumer.let_in()

    def _feeder_failed(self, error: Exception) -> None:
        """Pause after an unexpected error. The thread must not end."""
        if self._breaker.state is not CircuitState.OPEN:
            log.error("%s: the feeder failed", self._name, exc_info=error)
        self._breaker.failed(error)
        time.sleep(FIRST_PAUSE)  # also if the consumer cannot wait

    def once(self) -> Tally:
        """Try once all that is due. End early if the relay is in trouble."""
        for worker in self._workers:
            worker.tries_suspects = False  # that is for a drain that has waited
        with self._running():
            may_get_further = True
            while may_get_further and not self._stopping:
                pauses = self._breaker.count
                self._breaker.skipped = frozenset()
                self._crew.call()
                self._crew.wait(until_idle=True)
                if self._let_in():
                    continue
                # If the reason was one message, or one entry that cannot be settled, a
                # second pass gets further. If the relay or the disk fails again at
                # once, this ends.
                may_get_further = (
                    self._breaker.count != pauses
                    and bool(self._breaker.suspects or self._settler.unsettled)
                    and (
                        self._breaker.state is CircuitState.CLOSED
                        or self._breaker.shorten()
                    )
                )
        return self._settler.tally

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._feeder = threading.current_thread()
        try:
            if not self._started:
                self.begin()
            yield
        finally:
            self._crew.close()
            try:
                for thread in self._started:
                    thread.join()
            finally:
                # Also if an interrupt ends the wait for the threads.
                try:
                    if self._settler.unsettled:
                        self._settler.abandon()
                finally:
                    self._consumer.close()
                    self._over.set()

    def _seconds_to_sleep(self) -> float:
        try:
            wait = min(self._pace.polling_seconds, self._consumer.seconds_to_wait())
        except QueueError as error:
            self._breaker.failed(error)
            return self._breaker.seconds_left()
        if self._settler.unsettled:
            wait = min(wait, _SETTLE_SECONDS)
        if self._breaker.is_probed:
            # What is due waits for the outcome, which may take long and rings.
            wait = max(wait, min(self._pace.polling_seconds, _PROBE_SECONDS))
        return wait

    def _sweep(self) -> None:
        if time.monotonic() >= self._next_sweep:
            self._next_sweep = time.monotonic() + _SWEEP_SECONDS
            try:
                self._consumer.sweep()
            except OSError as error:
                log.error("%s: cannot clean up: %s", self._name, error)

    # The workers

    def _work(self, worker: Worker) -> None:
        """Have `worker` work whenever it is called, in a thread of its own."""
        most = _ROUND if self._pace.rate_limit is None else 1
        while call := self._crew.begin():
            is_more = False
            since = self._breaker.count
            worker.is_alone = self._crew.most == 1
            try:
                try:
                    is_more = worker.work(most)
                except BaseException as error:
                    # A mailer that breaks its contract must not end the loop, nor this
                    # thread, whatever it raises.
                    self._breaker.failed(error, since)
                    is_more = self._breaker.state is not CircuitState.OPEN
                    log.exception("%s: a worker failed", self._name)
                finally:
                    is_paused = since != self._breaker.count
                    self._crew.done(call, is_more, worker.was_refused, is_paused)
            except BaseException:  # the thread must live: others wait for its work
                log.exception("%s: a worker failed at its end", self._name)


class Crew:
    """The workers of a drain: how many of them may work now, and whether there is work.

    One worker begins. If it is not quick, because it waits for the relay, all `workers`
    are called. There are fewer of them again if they only contend for the interpreter's
    lock, which costs more than it brings.

    If the relay refuses one more connection, no more workers are called for
    `FEWER_SECONDS` than were busy besides the worker that was refused.

    `called` is how many may work now, and `most` how many may be called. After `close`,
    no method waits.
    """

    def __init__(
        self,
        consumer: IConsumer,
        workers: int,
        rate_limit: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        processor_clock: Callable[[], float] = time.process_time,
        *,
        name: str = "",
    ) -> None:
        self.called = 1
        self.most = workers
        self._name = name
        self._refused = 0.0  # the time of the last refusal
        self._is_fewer_logged = True
        self._consumer = consumer
        self._workers = workers
        self._rate_limit = rate_limit
        self._clock = clock
        self._processor_clock = processor_clock
        self._calls = 0  # so far
        self._is_work = False
        self._busy = 0
        self._taken = 0  # entries so far
        self._is_dozing = False  # the feeder, until a worker takes an entry
        self._closed = False
        # The time, that of the processor, and the number of entries taken.
        self._reviewed: tuple[float, float, int] = (clock(), processor_clock(), 0)
        # Reentrant: a signal handler that stops the queue may interrupt us.
        lock = threading.RLock()
        self._work_there = threading.Condition(lock)
        self._feeder = threading.Condition(lock)
        self._end = threading.Condition(lock)
        self._slot = threading.Lock()

    # The feeder

    def call(self) -> None:
        """There may be work: call the workers."""
        with self._work_there:
            if not self._is_work and not self._busy:
                self._reviewed = self._clock(), self._processor_clock(), self._taken
            self._is_work = not self._closed
            self._calls += 1
            self._work_there.notify(max(0, self.called - self._busy))

    def wait(self, *, until_idle: bool) -> None:
        """Wait until nothing is left to take, with `until_idle` also for busy workers.

        Meanwhile the workers are reviewed, and `IConsumer.give_sign` is called.
        """
        while True:
            with self._feeder:
                is_busy = self._is_work or (until_idle and self._busy)
                is_over = self._closed or not is_busy
                seconds = SIGN_SECONDS
                if self._is_work and self._workers > 1:
                    seconds = REVIEW_SECONDS
                    if self.called == self.most:
                        # Nobody has got on since the last review.
                        dozes = self._is_dozing = self._taken == self._reviewed[2]
                        seconds = _WAITING_SECONDS if dozes else _SELDOM_SECONDS
                if not is_over:
                    self._feeder.wait(seconds)
            if not self._is_fewer_logged:
                self._log_fewer()
            if is_over:
                return
            self.review()
            self._consumer.give_sign()

    def _log_fewer(self) -> None:
        """Log once how many workers are left, when no more of them are refused.

        Not while the lock is held: a slow handler would keep the workers waiting.
        """
        with self._feeder:
            is_calm = self._clock() - self._refused >= _CALM_SECONDS
            if self._is_fewer_logged or (self._busy and not is_calm):
                return
            self._is_fewer_logged, most = True, self.most
        log.info(
            "%s: the relay takes no more connections: working with %d instead of"
            " %d for %d minutes",
            self._name,
            most,
            self._workers,
            FEWER_SECONDS // 60,
        )

    def review(self) -> None:
        """Call more workers if they wait, or fewer if they contend."""
        with self._work_there:
            if self._clock() - self._refused >= FEWER_SECONDS:
                self.most = self._workers
            progress = self._clock(), self._processor_clock(), self._taken
            seconds, busy, taken = map(sub, progress, self._reviewed)
            is_quick = taken >= _QUICK * seconds
            is_idle = busy < _IDLE * seconds and not is_quick
            if seconds < (REVIEW_SECONDS if is_idle else _PERIOD):
                return
            self._reviewed = progress
            if is_quick:
                if busy > _BUSY * seconds:
                    self.called = max(1, self.called - 1)
            elif self._is_work:
                self.called = self.most
                self._work_there.notify_all()

    # The workers

    def begin(self) -> int:
        """Wait until a worker is called. Return the number of the call, 0 when closed.

        The worker may find nothing, because others are faster. It ends with `done`.
        """
        with self._work_there:
            self._work_there.wait_for(
                lambda: self._closed or (self._is_work and self._busy < self.called)
            )
            self._busy += not self._closed
            return 0 if self._closed else self._calls

    def take(self, most: int, avoid: Collection[Hashable] = ()) -> list[IClaim]:
        """Claim entries for a worker. See `IConsumer`. Keeps to the rate limit."""
        call = self._calls
        if self._rate_limit is None:
            claims = self._consumer.take(most, avoid)
        else:
            claims = self._take_at_rate(self._rate_limit, avoid)
        with self._feeder:
            self._taken += len(claims)
            is_end = not claims and call == self._calls
            if is_end:
                self._is_work = False
            if is_end or (claims and self._is_dozing):
                self._is_dozing = False
                self._feeder.notify()
        return claims

    def _take_at_rate(
        self, rate_limit: float, avoid: Collection[Hashable]
    ) -> list[IClaim]:
        """Claim one entry and wait for its slot; one worker does so at a time."""
        with self._slot:
            claims = self._consumer.take(1, avoid)
            if claims:
                try:
                    wait = self._consumer.reserve(rate_limit)
                except BaseException:
                    self._consumer.release(claims)
                    raise
                with self._end:
                    if self._end.wait_for(lambda: self._closed, wait):
                        self._consumer.release(claims)
                        return []
            return claims

    def done(
        self,
        call: int,
        is_more: bool,
        is_refused: bool = False,
        is_paused: bool = False,
    ) -> None:
        """End what `begin` began. `is_more` says that there may be more to take.

        `is_refused` says that the relay took no connection of this worker, while others
        were in use. `is_paused` says that a pause began during the work: the relay is
        away, and has not refused connections because of their number.
        """
        with self._feeder:
            self._busy -= 1
            if is_paused:
                self.most, self._is_fewer_logged = self._workers, True
            elif is_refused:
                self.most = max(1, self._busy)
                self.called = min(self.called, self.most)
                self._refused = self._clock()
                self._is_fewer_logged = False
            if is_more:
                self.call()
            elif call == self._calls:
                self._is_work = False
            if not self._is_work and not self._busy:
                self.called = 1
            self._feeder.notify()

    # Both

    def close(self) -> None:
        """End all waits. No worker is called any more."""
        with self._feeder:
            self._closed = True
            for waiting in (self._work_there, self._feeder, self._end):
                waiting.notify_all()
