"""The pause of a queue."""
from __future__ import annotations

import logging

import pytest

from postcommit.queue import pause as module
from postcommit.queue.pause import Pause
from postcommit.queue.pause import State


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_new_queue_is_open() -> None:
    pause = Pause("queue")
    assert pause.state is State.OPEN
    assert pause.seconds_left() == 0


def test_after_a_failure_nothing_is_tried_then_one() -> None:
    clock = Clock()
    pause = Pause("queue", clock)
    pause.failed("away")
    assert pause.state is State.PAUSED
    assert pause.seconds_left() == 1
    clock.now += 0.5
    assert pause.seconds_left() == 0.5
    clock.now += 0.5
    assert pause.state is State.PROBING
    assert pause.seconds_left() == 0


def test_each_failure_of_a_probe_doubles_the_pause_up_to_five_minutes() -> None:
    clock = Clock()
    pause = Pause("queue", clock)
    pauses = []
    for _ in range(11):
        pause.failed("away")
        pauses.append(pause.seconds_left())
        clock.now += pause.seconds_left()
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_what_was_in_flight_when_a_pause_began_does_not_make_it_longer() -> None:
    clock = Clock()
    pause = Pause("queue", clock)
    for _ in range(16):
        pause.failed("away")
    assert pause.seconds_left() == 1


def test_what_began_before_a_pause_and_fails_after_it_does_not_make_it_longer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    pause = Pause("queue", clock)
    before = pause.count
    pause.failed("away", before)
    clock.now += 1
    assert pause.state is State.PROBING
    pause.failed("timed out", before)
    assert pause.state is State.PROBING
    assert "timed out" in caplog.text
    pause.failed("away", pause.count)
    assert pause.seconds_left() == 2


def test_what_began_before_a_pause_and_fails_when_all_is_well_begins_none(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pause = Pause("queue", Clock())
    before = pause.count
    pause.failed("away", before)
    pause.succeeded()
    pause.failed("timed out", before)
    assert pause.state is State.OPEN
    assert "timed out" not in caplog.text
    pause.failed("away", pause.count)
    assert pause.state is State.PAUSED


def test_a_success_ends_the_pause_and_the_next_one_is_short_again() -> None:
    clock = Clock()
    pause = Pause("queue", clock)
    for _ in range(5):
        pause.failed("away")
        clock.now += 100
    pause.succeeded()
    assert pause.state is State.OPEN
    pause.failed("away")
    assert pause.seconds_left() == 1


def test_the_log_hears_of_each_trouble_once_and_of_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, module.__name__)
    clock = Clock()
    pause = Pause("queue", clock)
    for reason in ["away", "away", "login refused", "login refused"]:
        pause.failed(reason)
        clock.now += 1000
    pause.succeeded()
    pause.succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        "queue: the queue pauses: away",
        "queue: the queue pauses: login refused",
        "queue: the queue goes on",
    ]


def test_two_troubles_by_turns_are_each_told_once_and_do_not_fill_the_memory(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pause = Pause("queue", Clock())
    for _ in range(5):
        pause.failed("the disk is full")
        pause.failed("no permission")
    assert caplog.text.count("the disk is full") == 1
    assert caplog.text.count("no permission") == 1
    for number in range(2000):
        pause.failed(number)
    assert len(pause._told) <= 1000


def test_of_two_successes_at_once_the_log_hears_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, module.__name__)
    pause = Pause("queue", Clock())
    lock = pause._lock

    class Late:
        """The lock, for one who is overtaken on his way to it."""

        def __enter__(self) -> None:
            pause._lock = lock
            pause.succeeded()
            lock.acquire()

        def __exit__(self, *exc_info: object) -> None:
            lock.release()

    pause.failed("away")
    pause._lock = Late()  # type: ignore[assignment]
    pause.succeeded()
    assert caplog.text.count("the queue goes on") == 1
    assert pause.state is State.OPEN


def test_a_first_pause_can_be_shortened_once() -> None:
    clock = Clock()
    pause = Pause("queue", clock)
    assert not pause.shorten()
    pause.failed("away")
    assert pause.shorten()
    assert pause.state is State.PROBING
    assert not pause.shorten()
    pause.failed("still away")
    assert not pause.shorten()
    assert pause.seconds_left() == 2
    pause.succeeded()
    assert not pause.shorten()
    pause.failed("away again")
    assert pause.shorten()
