"""The circuit breaker of a queue: pauses."""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from postcommit._drain import breaker as module
from postcommit._drain.breaker import Breaker
from postcommit._drain.breaker import CircuitState
from postcommit._drain.breaker import pause_after
from postcommit._drain.runner import Crew


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(logging.Handler):
    """Asks for a lock in another thread, whenever something is logged."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__()
        self.ask = ask
        self.got: list[bool] = []

    def emit(self, record: object) -> None:
        thread = threading.Thread(target=self.ask, daemon=True)
        thread.start()
        thread.join(2)
        self.got.append(not thread.is_alive())

    post = ring = clear = lambda self, *arguments: self.emit(None)


def test_no_lock_is_held_while_it_logs_and_shows_a_pause() -> None:
    breaker = Breaker("queue")
    slow = Slow(breaker.avoided)
    breaker.show_to(slow)  # type: ignore[arg-type]
    logger = logging.getLogger("postcommit.drain.breaker")
    logger.addHandler(slow)
    logger.setLevel("INFO")
    try:
        breaker.failed("away")
        breaker.succeeded()
    finally:
        logger.removeHandler(slow)
        logger.setLevel("NOTSET")
    assert slow.got == [True] * 6


def test_no_lock_is_held_while_the_number_of_workers_is_logged() -> None:
    class Consumer:
        def beat(self) -> None:
            """Nothing to do."""

    crew = Crew(Consumer(), 2)  # type: ignore[arg-type]
    slow = Slow(crew.call)
    crew.call()
    crew.done(crew.begin(), False, True)
    logger = logging.getLogger("postcommit.drain.runner")
    logger.addHandler(slow)
    logger.setLevel("INFO")
    try:
        crew.wait(until_idle=True)
    finally:
        logger.removeHandler(slow)
        logger.setLevel("NOTSET")
    assert slow.got == [True]


def test_a_new_queue_is_not_paused() -> None:
    breaker = Breaker("queue", Clock())
    assert breaker.state is CircuitState.CLOSED
    assert breaker.seconds_left() == 0


def test_after_a_failure_nothing_is_tried_then_one() -> None:
    clock = Clock()
    breaker = Breaker("queue", clock)
    breaker.failed("away")
    assert breaker.state is CircuitState.OPEN
    assert breaker.seconds_left() == 1
    clock.now += 0.5
    assert breaker.seconds_left() == 0.5
    clock.now += 0.5
    assert breaker.state is CircuitState.HALF_OPEN
    assert breaker.seconds_left() == 0


def test_each_failure_of_a_probe_doubles_the_pause_up_to_five_minutes() -> None:
    clock = Clock()
    breaker = Breaker("queue", clock)
    pauses = []
    for _ in range(11):
        breaker.failed("away")
        pauses.append(breaker.seconds_left())
        clock.now += breaker.seconds_left()
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_a_pause_doubles_from_one_second_to_five_minutes() -> None:
    pauses = [pause_after(failures) for failures in range(1, 12)]
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    assert pause_after(100_000) == 300


def test_what_was_in_flight_when_a_pause_began_does_not_make_it_longer() -> None:
    clock = Clock()
    breaker = Breaker("queue", clock)
    for _ in range(16):
        breaker.failed("away")
    assert breaker.seconds_left() == 1


def test_what_began_before_a_pause_and_fails_after_it_does_not_make_it_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    breaker = Breaker("queue", clock)
    before = breaker.count
    breaker.failed("away", before)
    clock.now += 1
    assert breaker.state is CircuitState.HALF_OPEN
    breaker.failed("timed out", before)
    assert breaker.state is CircuitState.HALF_OPEN
    assert "timed out" in caplog.text
    breaker.failed("away", breaker.count)
    assert breaker.seconds_left() == 2


def test_what_began_before_a_pause_and_fails_when_all_is_well_begins_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaker = Breaker("queue", Clock())
    before = breaker.count
    breaker.failed("away", before)
    breaker.succeeded()
    breaker.failed("timed out", before)
    assert breaker.state is CircuitState.CLOSED
    assert "timed out" not in caplog.text
    breaker.failed("away", breaker.count)
    assert breaker.state is CircuitState.OPEN


def test_a_success_ends_the_pause_and_the_next_one_is_short_again() -> None:
    clock = Clock()
    breaker = Breaker("queue", clock)
    for _ in range(5):
        breaker.failed("away")
        clock.now += 100
    breaker.succeeded()
    assert breaker.state is CircuitState.CLOSED
    assert breaker.seconds_left() == 0
    breaker.failed("away")
    assert breaker.seconds_left() == 1


def test_the_pause_is_over_at_once_when_the_relay_works_again() -> None:
    breaker = Breaker("queue", Clock())
    breaker.failed("away")
    breaker.succeeded()
    assert breaker.seconds_left() == 0


def test_the_log_hears_of_each_trouble_once_and_of_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, module.log.name)
    clock = Clock()
    breaker = Breaker("queue", clock)
    for reason in ["away", "away", "login refused", "login refused"]:
        breaker.failed(reason)
        clock.now += 1000
    breaker.succeeded()
    breaker.succeeded()
    breaker.failed("away")
    assert [record.getMessage() for record in caplog.records] == [
        "queue: the queue pauses: away",
        "queue: the queue pauses: login refused",
        "queue: the queue goes on",
        "queue: the queue pauses: away",
    ]


def test_two_troubles_by_turns_are_each_told_once_and_do_not_fill_the_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaker = Breaker("queue", Clock())
    for _ in range(5):
        breaker.failed("the disk is full")
        breaker.failed("no permission")
    assert caplog.text.count("the disk is full") == 1
    assert caplog.text.count("no permission") == 1
    for number in range(2000):
        breaker.failed(number)
    assert len(breaker._logged) <= 1000


def test_of_two_successes_at_once_the_log_hears_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, module.log.name)
    breaker = Breaker("queue", Clock())
    lock = breaker._lock

    class Late:
        """The lock, for one who is overtaken on his way to it."""

        def __enter__(self) -> None:
            breaker._lock = lock
            breaker.succeeded()
            lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            lock.release()

    breaker.failed("away")
    breaker._lock = Late()  # type: ignore[assignment]
    breaker.succeeded()
    assert caplog.text.count("the queue goes on") == 1
    assert breaker.state is CircuitState.CLOSED


def test_a_first_pause_can_be_shortened_once() -> None:
    clock = Clock()
    breaker = Breaker("queue", clock)
    assert not breaker.shorten()
    breaker.failed("away")
    assert breaker.shorten()
    assert breaker.state is CircuitState.HALF_OPEN
    assert not breaker.shorten()
    breaker.failed("still away")
    assert not breaker.shorten()
    assert breaker.seconds_left() == 2
    breaker.succeeded()
    assert not breaker.shorten()
    breaker.failed("away again")
    assert breaker.shorten()


class Screen:
    """What a breaker shows to others, and how often it rings."""

    def __init__(self) -> None:
        self.shown: tuple[object, float] | None = None
        self.rings = 0

    def post(self, reason: object, seconds: float) -> None:
        self.shown = reason, seconds

    def clear(self) -> None:
        self.shown = None

    def ring(self) -> None:
        self.rings += 1


def test_others_see_a_pause_and_the_feeder_wakes_when_it_begins_and_ends() -> None:
    clock, screen = Clock(), Screen()
    breaker = Breaker("queue", clock)
    breaker.show_to(screen)  # type: ignore[arg-type]
    breaker.note(None, answered=True)
    assert (screen.shown, screen.rings) == (None, 0)
    breaker.note("away")
    breaker.note("still away")
    assert (screen.shown, screen.rings) == (("away", 1), 1)
    clock.now += 1
    breaker.note("still away")
    assert (screen.shown, screen.rings) == (("still away", 2), 2)
    breaker.note(None)  # the relay gave no answer
    assert (screen.shown, screen.rings) == (("still away", 2), 2)
    breaker.note(None, answered=True)
    assert (screen.shown, screen.rings) == (None, 3)


def test_one_thread_at_a_time_tries_an_entry_when_the_pause_is_over() -> None:
    clock = Clock()
    breaker = Breaker("queue", clock)
    assert not breaker.begin_probe()
    breaker.failed("away")
    assert not breaker.begin_probe()
    clock.now += 1
    assert breaker.begin_probe()
    assert not breaker.begin_probe()
    breaker.end_probe()
    assert breaker.begin_probe()
