"""The crew of a drain: how many workers are called, and when nothing is left."""
from __future__ import annotations

import threading
import time
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from postcommit._drain import runner
from postcommit._drain.runner import REVIEW_SECONDS
from postcommit._drain.runner import Crew
from postcommit.testing.clock import FakeClock
from tests.support.service import eventually


# Seconds over which it is looked at how the workers get on.
PERIOD = 0.04


class Due:
    """A consumer with entries that are due."""

    def __init__(self, entries: str = "") -> None:
        self.entries = list(entries)
        self.released: list[str] = []
        self.looks = 0
        self.signs = 0
        self.avoided: Collection[Any] = ()

    def take(self, most: int, avoid: Collection[Any] = ()) -> list[Any]:
        self.looks += 1
        self.avoided = avoid
        taken, self.entries = self.entries[:most], self.entries[most:]
        return taken

    def reserve(self, rate: float) -> float:
        return 1 / rate

    def release(self, claims: list[Any]) -> None:
        self.released += claims

    def give_sign(self) -> None:
        self.signs += 1


def crew_of(workers: int, due: Due, *clocks: FakeClock) -> Crew:
    return Crew(due, workers, None, *clocks)  # type: ignore[arg-type]


def in_thread(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def is_over(thread: threading.Thread) -> bool:
    thread.join(60)
    return not thread.is_alive()


class Workers:
    """Workers that begin, take one entry each, and keep it until `end`."""

    def __init__(self, crew: Crew, count: int) -> None:
        self.crew = crew
        self.taken: list[Any] = []
        self._may_end = threading.Event()
        self._threads = [in_thread(self._work) for _ in range(count)]

    def _work(self) -> None:
        if call := self.crew.begin():
            self.taken += self.crew.take(1)
            self._may_end.wait(60)
            self.crew.done(call, False)

    def has_taken(self, count: int) -> bool:
        until = time.monotonic() + 10
        while len(self.taken) < count and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.02)  # does another one take more?
        return len(self.taken) == count

    def end(self) -> bool:
        self._may_end.set()
        return all(map(is_over, self._threads))


def test_a_worker_waits_until_it_is_called() -> None:
    due = Due("a")
    crew = crew_of(1, due)
    workers = Workers(crew, 1)
    assert workers.has_taken(0)
    crew.call()
    assert workers.has_taken(1)
    assert workers.end()


def waiting(crew: Crew, *, until_idle: bool = False) -> threading.Thread:
    """Return a feeder that waits."""
    return in_thread(lambda: crew.wait(until_idle=until_idle))


def test_the_feeder_waits_until_nothing_is_left_to_take() -> None:
    due = Due("ab")
    crew = crew_of(2, due)
    crew.wait(until_idle=False)
    crew.call()
    feeder = waiting(crew)
    assert crew.begin()
    assert crew.take(2) == ["a", "b"]
    feeder.join(0.05)
    assert feeder.is_alive()
    assert due.signs
    assert crew.take(2) == []
    assert is_over(feeder)


def test_the_feeder_wakes_as_soon_as_a_single_worker_finds_nothing() -> None:
    crew = crew_of(1, Due())
    crew.call()
    assert crew.begin()
    feeder = waiting(crew)
    feeder.join(0.05)
    assert crew.take(1) == []
    feeder.join(60)
    assert not feeder.is_alive()


def test_a_flush_waits_also_until_no_worker_is_busy() -> None:
    due = Due("a")
    crew = crew_of(2, due)
    crew.wait(until_idle=True)
    crew.call()
    call = crew.begin()
    assert crew.take(1) == ["a"]
    assert crew.take(1) == []
    flush = waiting(crew, until_idle=True)
    flush.join(0.05)
    assert flush.is_alive()
    assert due.signs == 0  # it sleeps
    crew.done(call, False)
    assert is_over(flush)


def test_a_call_while_a_worker_looks_in_vain_is_not_forgotten() -> None:
    """What was accepted during its look may have escaped it."""
    due = Due()
    crew = crew_of(1, due)
    crew.call()
    call = crew.begin()
    look = due.take

    def look_and_be_late(most: int, avoid: Collection[Any] = ()) -> list[Any]:
        found = look(most)
        due.entries.append("new")
        crew.call()
        return found

    due.take = look_and_be_late  # type: ignore[method-assign]
    assert crew.take(1) == []
    due.take = look  # type: ignore[method-assign]
    crew.done(call, False)
    feeder = waiting(crew)
    feeder.join(0.05)
    assert feeder.is_alive()
    assert crew.begin()
    assert crew.take(1) == ["new"]
    crew.close()
    assert is_over(feeder)


def test_a_worker_that_may_find_more_calls_the_others() -> None:
    crew = crew_of(1, Due("ab"))
    crew.call()
    call = crew.begin()
    assert crew.take(1) == ["a"]
    crew.done(call, True)
    assert crew.begin() == call + 1


def test_the_others_are_called_if_a_worker_does_not_get_on() -> None:
    clock = FakeClock(0)
    crew = crew_of(3, Due("abcde"), clock)
    workers = Workers(crew, 3)
    crew.call()
    crew.review()  # too early to tell
    assert workers.has_taken(1)
    clock.advance(REVIEW_SECONDS)
    crew.review()
    assert workers.has_taken(3)
    assert workers.end()


@pytest.mark.parametrize("state", ["called", "at work", "at work, nothing left"])
def test_another_call_does_not_put_off_the_call_of_the_others(state: str) -> None:
    """Each commit calls the workers, which may be often."""
    clock = FakeClock(0)
    due = Due("a")
    crew = crew_of(3, due, clock, FakeClock(0))
    crew.call()
    if state != "called":
        crew.begin()
        assert crew.take(1) == ["a"]
    if state == "at work, nothing left":
        assert crew.take(1) == []
    clock.advance(0.6 * REVIEW_SECONDS)
    crew.call()
    clock.advance(0.6 * REVIEW_SECONDS)
    crew.review()
    assert crew.called == 3


class Course:
    """Lets a worker take so many entries in each period, and reviews it."""

    def __init__(self, workers: int) -> None:
        self.clock = FakeClock(0)
        self.processor_clock = FakeClock(0)
        self.due = Due()
        self.crew = crew_of(workers, self.due, self.clock, self.processor_clock)

    def go_on(self, taken: int, busy: float) -> int:
        """Return how many workers may work now."""
        self.due.entries += ["entry"] * (taken + 1)
        self.crew.call()
        assert len(self.crew.take(taken)) == taken
        self.processor_clock.advance(busy * PERIOD)
        self.clock.advance(PERIOD)
        self.crew.review()
        return self.crew.called


def test_a_worker_that_gets_on_quickly_is_left_alone() -> None:
    course = Course(workers=3)
    assert course.go_on(taken=45, busy=0.5) == 1


def test_it_takes_a_while_to_tell_unless_nothing_happens_at_all() -> None:
    course = Course(workers=3)
    course.crew.call()
    course.clock.advance(REVIEW_SECONDS)
    course.processor_clock.advance(REVIEW_SECONDS)
    course.crew.review()
    assert course.crew.called == 1  # it is busy with something
    course.clock.advance(2 * REVIEW_SECONDS)
    course.crew.review()
    assert course.crew.called == 3


def test_a_break_before_is_no_slowness() -> None:
    course = Course(workers=3)
    course.clock.advance(3600)
    assert course.go_on(taken=45, busy=0.5) == 1


def test_nobody_is_called_if_nothing_is_left() -> None:
    course = Course(workers=3)
    course.crew.call()
    assert course.crew.take(1) == []
    course.clock.advance(PERIOD)
    course.crew.review()
    assert course.crew.called == 1


def test_there_are_fewer_if_they_contend_for_the_processor() -> None:
    course = Course(workers=3)
    assert course.go_on(taken=4, busy=1.0) == 3
    assert course.go_on(taken=45, busy=0.5) == 3
    assert course.go_on(taken=45, busy=1.0) == 2
    assert course.go_on(taken=45, busy=1.0) == 1
    assert course.go_on(taken=45, busy=1.0) == 1


def test_refused_workers_are_not_called_for_five_minutes() -> None:
    clock = FakeClock(0)
    crew = crew_of(4, Due("abcdef"), clock)
    crew.call()
    crew.called = 4
    calls = [crew.begin() for _ in range(4)]
    crew.done(calls.pop(), True, True)
    assert (crew.called, crew.most) == (3, 3)
    crew.done(calls.pop(), True, True)
    assert (crew.called, crew.most) == (2, 2)
    clock.advance(299)
    crew.review()
    assert (crew.called, crew.most) == (2, 2)
    # Another refusal begins the five minutes again. One worker is always left.
    crew.done(calls.pop(), True, True)
    crew.done(calls.pop(), True, True)
    assert crew.most == 1
    clock.advance(299)
    crew.review()
    assert (crew.called, crew.most) == (1, 1)
    clock.advance(1)
    crew.review()
    assert (crew.called, crew.most) == (4, 4)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return told


def test_the_workers_that_are_left_are_logged_when_no_more_of_them_are_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    clock = FakeClock(0)
    crew = Crew(Due(), 4, None, clock, name="queue")  # type: ignore[arg-type]
    crew.call()
    crew.called = 4
    calls = [crew.begin() for _ in range(4)]
    for _ in range(2):
        clock.advance(0.9)
        crew.done(calls.pop(), False, True)
        crew.wait(until_idle=False)
    clock.advance(0.9)
    crew.wait(until_idle=False)
    assert lines(caplog) == []
    clock.advance(0.2)
    crew.wait(until_idle=False)
    [line] = lines(caplog)
    assert line.startswith("queue: ")
    assert line.endswith("working with 2 instead of 4 for 5 minutes")
    clock.advance(60)
    crew.wait(until_idle=False)
    assert lines(caplog) == []
    # If none of them is at work, nothing more can be refused.
    crew.done(calls.pop(), False, True)
    crew.done(calls.pop(), False)
    crew.wait(until_idle=False)
    [line] = lines(caplog)
    assert line.endswith("working with 1 instead of 4 for 5 minutes")


def test_refusals_before_a_pause_were_not_about_the_number() -> None:
    crew = crew_of(4, Due("abcdef"), FakeClock(0))
    crew.call()
    crew.called = 4
    calls = [crew.begin() for _ in range(4)]
    crew.done(calls.pop(), True, True)
    crew.done(calls.pop(), True, True)
    assert crew.most == 2
    crew.done(calls.pop(), True, False, True)
    assert crew.most == 4
    crew.done(calls.pop(), True, True, True)
    assert crew.most == 4


def test_when_all_is_done_one_worker_begins_again() -> None:
    clock = FakeClock(0)
    due = Due("ab")
    crew = crew_of(2, due, clock)
    workers = Workers(crew, 2)
    crew.call()
    assert workers.has_taken(1)
    clock.advance(1)
    crew.review()
    assert workers.has_taken(2)
    assert crew.take(1) == []
    assert workers.end()
    crew.wait(until_idle=True)
    due.entries += "cd"
    workers = Workers(crew, 2)
    crew.call()
    assert workers.has_taken(1)
    crew.close()
    assert workers.end()


def test_while_one_is_at_work_the_others_stay_called() -> None:
    clock = FakeClock(0)
    crew = crew_of(3, Due(), clock, FakeClock(0))
    crew.call()
    clock.advance(1)
    crew.review()
    first = crew.begin()
    assert crew.begin()
    assert crew.take(1) == []
    crew.done(first, False)
    crew.call()
    began: list[int] = []
    another = in_thread(lambda: began.append(crew.begin()))
    another.join(60)
    crew.close()
    assert began == [2]


@contextmanager
def all_waiting(due: Due) -> Iterator[tuple[Crew, threading.Thread]]:
    """A crew of two, called and busy, and its feeder, which has seen them wait."""
    crew = crew_of(2, due)
    workers = Workers(crew, 2)
    crew.call()
    feeder = waiting(crew)
    assert workers.has_taken(2)
    eventually(lambda: crew._is_dozing)
    yield crew, feeder
    crew.close()
    assert workers.end()
    assert is_over(feeder)


def test_the_feeder_sleeps_while_all_workers_wait() -> None:
    """For a relay that is slow, or a slot of the rate limit."""
    due = Due("abc")
    with all_waiting(due) as (_, feeder):
        signs, began = due.signs, time.monotonic()
        feeder.join(0.6)
        assert feeder.is_alive()
        seconds = time.monotonic() - began
        assert due.signs - signs <= 1 + seconds / runner.SIGN_SECONDS
        eventually(lambda: due.signs - signs > 1)


def test_the_feeder_wakes_when_a_worker_gets_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise too many workers would contend until it looks again."""
    monkeypatch.setattr(runner, "_WAITING_SECONDS", 1000.0)
    due = Due("abc")
    with all_waiting(due) as (crew, _):
        signs, began = due.signs, time.monotonic()
        assert crew.take(1) == ["c"]
        eventually(lambda: due.signs > signs)
        assert time.monotonic() - began < 30, "not before the workers had ended"


def test_the_feeder_gives_signs_of_life_while_a_single_worker_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "SIGN_SECONDS", 0.05)
    due = Due("a")
    crew = crew_of(1, due)
    crew.call()
    assert crew.begin()
    feeder = waiting(crew)
    eventually(lambda: due.signs >= 3)
    crew.close()
    assert is_over(feeder)


def test_closing_lets_everybody_go() -> None:
    crew = crew_of(1, Due("a"))
    began: list[int] = []
    crew.call()
    call = crew.begin()
    threads = [
        waiting(crew, until_idle=True),
        waiting(crew),
        in_thread(lambda: began.append(crew.begin())),
    ]
    crew.close()
    assert all(map(is_over, threads))
    assert began == [0]
    crew.call()
    assert crew.begin() == 0
    crew.done(call, True)
    crew.wait(until_idle=True)


def test_at_a_rate_limit_one_entry_waits_for_its_slot_or_goes_back() -> None:
    due = Due("abc")
    crew = Crew(due, 2, 1000.0)  # type: ignore[arg-type]
    assert crew.take(8, {"d"}) == ["a"]
    assert due.avoided == {"d"}
    crew = Crew(due, 2, 0.001)  # type: ignore[arg-type]
    taken: list[list[Any]] = []
    threads = [in_thread(lambda: taken.append(crew.take(8))) for _ in range(2)]
    until = time.monotonic() + 10
    while due.entries != ["c"] and time.monotonic() < until:
        time.sleep(0.001)
    crew.close()
    due.entries = []  # as when the consumer is stopped
    assert all(map(is_over, threads))
    assert taken == [[], []]
    assert due.released == ["b"]


class WithoutSlots(Due):
    """A consumer that cannot say when the next slot is."""

    def reserve(self, rate: float) -> float:
        raise OSError("the database is away")


def test_an_entry_goes_back_if_no_slot_can_be_reserved_for_it() -> None:
    due = WithoutSlots("ab")
    crew = Crew(due, 2, 1000.0)  # type: ignore[arg-type]
    for released in (["a"], ["a", "b"]):
        with pytest.raises(OSError, match="the database is away"):
            crew.take(8)
        assert due.released == released, "the next worker may take one"


def test_where_nothing_is_due_no_slot_is_waited_for() -> None:
    crew = Crew(Due(), 2, 0.001)  # type: ignore[arg-type]
    taken: list[list[Any]] = []
    looking = in_thread(lambda: taken.append(crew.take(8)))
    looking.join(60)
    crew.close()
    assert taken == [[]]
