"""One run through a queue: a feeder, which looks, and workers, which transmit.

The feeder is the calling thread. It sleeps until a commit rings, an entry is
due, a pause is over or the polling interval has passed; then it looks for
entries and hands them to the workers. A worker takes as many at a time as are
there, and the mailer transmits them one behind the other.
"""
from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from postcommit.interfaces import Tally
from postcommit.log import Log
from postcommit.queue.handoff import REVIEW_SECONDS
from postcommit.queue.handoff import Handoff
from postcommit.queue.pause import Pause
from postcommit.queue.pause import State
from postcommit.queue.processor import Processor
from postcommit.queue.processor import Result
from postcommit.queue.scan import Scan
from postcommit.queue.store import Store
from postcommit.queue.wakeup import BEAT_SECONDS
from postcommit.queue.wakeup import Bell
from postcommit.queue.wakeup import ring


log = Log(__name__)

# What a worker hands to its mailer at a time, at most.
_BATCH = 50

# What is found is handed over after so long, also where finding more takes time.
_PORTION_SECONDS = 0.01

# How often it is looked for what was half written and given up long ago.
_CLEANING_SECONDS = 3600.0


@dataclass(frozen=True)
class Pace:
    """How a drain works: threads, messages per second, seconds between looks."""

    workers: int
    rate_limit: float | None
    polling_seconds: float


class Drain:
    """Runs one time, `until_stopped` or `once`."""

    def __init__(
        self,
        store: Store,
        processor: Processor,
        scan: Scan,
        pace: Pace,
        pause: Pause,
    ) -> None:
        self._store = store
        self._processor = processor
        self._scan = scan
        self._pace = pace
        self._next_slot = time.monotonic()
        self._next_cleaning = time.monotonic()
        self._pause = pause
        self._handoff = Handoff(pace.workers * _BATCH, pace.workers)
        self._bell = Bell(store.path)
        self._probes_suspects = True
        self._stopping = False
        self._over = threading.Event()
        self._tally = Tally()
        self._tally_lock = threading.Lock()
        self._feeder: threading.Thread | None = None
        self._started: list[threading.Thread] = []
        self._workers = [
            threading.Thread(target=self._work, name=f"postcommit-{n}", daemon=True)
            for n in range(pace.workers)
        ]

    # For other threads

    def stop(self) -> None:
        """Let the attempts in flight finish, and then end.

        Does not wait, and may be called in a signal handler.
        """
        self._stopping = True
        self._handoff.close()
        self._bell.ring()

    def wait(self, timeout: float | None) -> bool:
        """Wait until it is over; tell whether it is."""
        return self._over.wait(timeout)

    @property
    def is_going_on(self) -> bool:
        """Whether it has not ended, and is not told to."""
        return not self._stopping and not self._over.is_set()

    def is_run_by(self, thread: threading.Thread) -> bool:
        """Tell whether `thread` is its feeder or one of its workers."""
        return thread is self._feeder or thread in self._workers

    @property
    def last_beat(self) -> float:
        """When its feeder last gave a sign of life, a time of `time.monotonic`."""
        return self._bell.last_beat

    def begin(self) -> None:
        """Start the workers: fewer, if the system has no more threads.

        Raises RuntimeError or MemoryError if it has none; then nothing has begun.
        """
        for worker in self._workers:
            try:
                worker.start()
            except (RuntimeError, MemoryError) as error:
                if not self._started:
                    raise
                told = "%s: %d of %d workers could be started: %s"
                path, most = self._store.path, len(self._workers)
                log.warning(told, path, len(self._started), most, error)
                return
            self._started.append(worker)

    def cancel(self) -> None:
        """Have it over, also before it has begun."""
        self._handoff.close()
        self._bell.close()
        self._over.set()

    # The feeder

    def until_stopped(self) -> None:
        """Work until `stop`."""
        with self._pause.posted(), self._running():
            while not self._stopping:
                self._clean()
                self._feed()
                self._patiently(self._handoff.distribute)
                self._bell.wait(self._seconds_to_sleep())
            # Who rang last may have woken nobody but us, who do no more.
            ring(self._store.path)

    def once(self) -> Tally:
        """Try once all that is due; end early if the relay is in trouble."""
        self._probes_suspects = False  # that is for whoever has waited
        with self._running():
            for _ in self._passes():
                self._feed()
                self._patiently(self._handoff.join)
        return self._tally

    def _passes(self) -> Iterator[None]:
        """Yield once; and again, as long as one more may get further.

        That is so where the relay failed in the middle of a message, for the first
        time in a row: that message may be all that it fails at.
        """
        while not self._stopping:
            pauses = self._pause.count
            yield
            if self._pause.count == pauses or not self._processor.suspects:
                return
            if self._pause.state is not State.OPEN and not self._pause.shorten():
                return

    @contextmanager
    def _running(self) -> Iterator[None]:
        self._feeder = threading.current_thread()
        try:
            if not self._started:
                self.begin()
            yield
        finally:
            self._handoff.close()
            try:
                for worker in self._started:
                    worker.join()
            finally:
                # Also where somebody does not want to wait for them.
                self._count(self._processor.abandon())
                self.cancel()

    def _feed(self) -> None:
        """Hand all that is due to the workers, unless there is trouble."""
        try:
            for paths in self._portions():
                self._bell.beat()
                if self._stopping or self._pause.state is State.PAUSED:
                    self._scan.look_again()
                    return
                if paths:
                    self._keep_pace()
                    self._patiently(functools.partial(self._handoff.put, paths))
                self._handoff.review()
                if self._pause.state is State.PROBING:
                    # Not for what was in flight before: that may take very long.
                    self._patiently(self._handoff.join_last)
        except OSError as error:
            self._pause.failed(error)
            self._scan.look_again()

    def _portions(self) -> Iterator[list[str]]:
        """Yield what is due, a few at a time; none where looking takes long."""
        paths: list[str] = []
        until = time.monotonic() + _PORTION_SECONDS
        for path in self._suspects_last():
            if path is not None:
                paths.append(path)
            if path is None or self._is_portion(paths, until):
                yield paths
                paths, until = [], time.monotonic() + _PORTION_SECONDS
        if paths:
            yield paths

    def _suspects_last(self) -> Iterator[str | None]:
        """Yield what is due; last of all, what the relay has failed at."""
        suspects = []
        for path in self._scan.due(_PORTION_SECONDS):
            if path is not None and path in self._processor.suspects:
                suspects.append(path)
            else:
                yield path
        if self._pause.state is not State.PROBING or self._probes_suspects:
            yield from suspects

    def _is_portion(self, paths: list[str], until: float) -> bool:
        one_by_one = self._pace.rate_limit or self._pause.state is State.PROBING
        return bool(one_by_one) or len(paths) == _BATCH or time.monotonic() > until

    def _keep_pace(self) -> None:
        if self._pace.rate_limit is not None:
            now = time.monotonic()
            while (left := self._next_slot - time.monotonic()) > 0:
                if self._handoff.wait_closed(min(left, BEAT_SECONDS)):
                    return
                self._bell.beat()
            self._next_slot = max(self._next_slot, now) + 1 / self._pace.rate_limit

    def _patiently(self, wait: Callable[[float], bool]) -> None:
        """Wait for as long as it takes; see to the workers, give signs of life."""
        while not wait(self._seconds_to_review()):
            self._handoff.review()
            self._bell.beat()

    def _seconds_to_review(self) -> float:
        return REVIEW_SECONDS if self._handoff.needs_review else BEAT_SECONDS

    def _seconds_to_sleep(self) -> float:
        if self._pause.state is State.PAUSED:
            return self._pause.seconds_left()
        return min(self._pace.polling_seconds, self._scan.seconds_to_wait())

    def _clean(self) -> None:
        if time.monotonic() >= self._next_cleaning:
            self._next_cleaning = time.monotonic() + _CLEANING_SECONDS
            try:
                self._store.remove_leftovers()
            except OSError as error:
                log.error("%s: cannot clean up: %s", self._store.path, error)

    # The workers

    def _work(self) -> None:
        while self._handoff.begin():
            try:
                self._work_on_some()
            except BaseException:  # the thread must live: others wait for its work
                log.exception("%s: a worker failed at its end", self._store.path)

    def _work_on_some(self) -> None:
        taken: list[str] = []
        results: list[Result] = []
        since = self._pause.count
        try:
            paths = self._paths(taken)
            first = iter(list(itertools.islice(paths, 1)))
            for result in self._processor.work(itertools.chain(first, paths)):
                self._note(result, since)
                results.append(result)
            troubled = any(result.trouble is not None for result in results)
            if next(first, None) is not None and not troubled:
                raise RuntimeError("the mailer took none of its messages")
        except BaseException as error:
            # A mailer that keeps no contract must not end the loop, nor this
            # thread, whatever it raises.
            self._note(Result(trouble=error), since)
            taken.extend(self._handoff.take())
            log.exception("%s: a worker failed", self._store.path)
        finally:
            try:
                self._count(results)
            finally:
                self._handoff.done(taken)

    def _paths(self, taken: list[str]) -> Iterator[str]:
        """Yield what there is to do, as long as all is well."""
        for path in itertools.islice(self._handoff.take(), _BATCH):
            taken.append(path)
            if self._pause.state is State.PAUSED:
                self._scan.look_again()
                return
            yield path

    def _note(self, result: Result, since: int) -> None:
        if result.trouble is not None:
            self._pause.failed(result.trouble, since)
            self._scan.look_again()
        elif result.stayed:
            self._scan.look_again()
            return
        elif not result.silent:
            self._pause.succeeded()
        if result.due is not None:
            self._scan.note_due(result.due)
        if result.trouble is not None or result.due is not None:
            self._bell.ring()  # the feeder has to reckon anew when to wake

    def _count(self, results: list[Result]) -> None:
        tallies = [result.tally for result in results]
        with self._tally_lock:
            self._tally = Tally(*map(sum, zip(self._tally, *tallies, strict=True)))
