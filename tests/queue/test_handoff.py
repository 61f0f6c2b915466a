"""The handoff between the feeder and its workers."""
from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable

from postcommit.queue.handoff import REVIEW_SECONDS
from postcommit.queue.handoff import Handoff
from postcommit.testing.clock import FakeClock


def in_thread(target: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def is_over(thread: threading.Thread) -> bool:
    thread.join(10)
    return not thread.is_alive()


# For so long, in seconds, it is looked at how the workers get on.
PERIOD = 0.04


class Crew:
    """Workers that begin, take one path each, and keep it until `end`."""

    def __init__(self, handoff: Handoff, count: int) -> None:
        self.handoff = handoff
        self.taken: list[str] = []
        self._may_end = threading.Event()
        self._threads = [in_thread(self._work) for _ in range(count)]

    def _work(self) -> None:
        if self.handoff.begin():
            mine = list(itertools.islice(self.handoff.take(), 1))
            self.taken += mine
            self._may_end.wait(10)
            self.handoff.done(mine)

    def has_taken(self, count: int) -> bool:
        until = time.monotonic() + 10
        while len(self.taken) < count and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.02)  # does another one take more?
        return len(self.taken) == count

    def end(self) -> bool:
        self._may_end.set()
        return all(map(is_over, self._threads))


def test_paths_are_taken_in_order() -> None:
    handoff = Handoff(10, 1)
    handoff.put("abc")
    assert handoff.begin()
    assert list(itertools.islice(handoff.take(), 2)) == ["a", "b"]
    assert list(handoff.take()) == ["c"]
    assert list(handoff.take()) == []


def test_a_worker_waits_for_work() -> None:
    handoff = Handoff(10, 1)
    crew = Crew(handoff, 1)
    assert crew.has_taken(0)
    handoff.put("a")
    assert crew.end()
    assert crew.taken == ["a"]


def test_the_feeder_waits_until_half_of_its_lead_is_used_up() -> None:
    handoff = Handoff(4, 1)
    handoff.put("abcd")
    feeder = in_thread(lambda: handoff.put("e"))
    paths = handoff.take()
    assert next(paths) == "a"
    feeder.join(0.05)
    assert feeder.is_alive()
    assert next(paths) == "b"
    assert is_over(feeder)
    assert list(paths) == ["c", "d", "e"]


def test_join_waits_for_all_that_was_put() -> None:
    handoff = Handoff(10, 1)
    assert handoff.join()
    handoff.put("ab")
    waiting = in_thread(handoff.join)
    for _ in range(2):
        waiting.join(0.05)
        assert waiting.is_alive()
        assert handoff.begin()
        handoff.done([next(handoff.take())])
    assert is_over(waiting)


def test_what_was_put_last_is_waited_for_whatever_was_there_before() -> None:
    handoff = Handoff(10, 3)
    handoff.called = 3
    assert handoff.join_last()
    handoff.put("ab")
    assert handoff.begin()
    assert handoff.begin()
    before = [next(handoff.take()), next(handoff.take())]
    handoff.put("c")
    waiting = in_thread(handoff.join_last)
    assert handoff.begin()
    probe = [next(handoff.take())]
    # That something else ends is no news.
    handoff.done(before[:1])
    waiting.join(0.05)
    assert waiting.is_alive()
    handoff.done(probe)
    assert is_over(waiting)
    assert not handoff.join(0)
    handoff.done(before[1:])
    assert handoff.join(0)


def test_what_a_worker_has_taken_and_lost_is_not_waited_for() -> None:
    handoff = Handoff(10, 1)
    handoff.put("a")
    assert handoff.begin()
    next(handoff.take())
    handoff.done([])
    assert handoff.join_last(0)
    assert handoff.join(0)


def test_the_others_are_called_where_a_worker_does_not_get_on() -> None:
    clock = FakeClock(0)
    handoff = Handoff(10, 3, clock)
    crew = Crew(handoff, 3)
    handoff.put("abcde")
    handoff.review()  # too early to tell
    assert crew.has_taken(1)
    assert handoff.needs_review
    assert not handoff.distribute(0)
    clock.advance(REVIEW_SECONDS)
    handoff.review()
    assert crew.has_taken(3)
    assert handoff.distribute(0)
    assert crew.end()


class Course:
    """Lets a worker take so many paths in each period, and reviews it."""

    def __init__(self, workers: int) -> None:
        self.clock = FakeClock(0)
        self.processor_clock = FakeClock(0)
        self.handoff = Handoff(10**6, workers, self.clock, self.processor_clock)

    def go_on(self, taken: int, busy: float) -> int:
        """Return how many workers may work now."""
        self.handoff.put(["path"] * (taken + 1))
        assert len(list(itertools.islice(self.handoff.take(), taken))) == taken
        self.processor_clock.advance(busy * PERIOD)
        self.clock.advance(PERIOD)
        self.handoff.review()
        return self.handoff.called


def test_a_worker_that_gets_on_quickly_is_left_alone() -> None:
    course = Course(workers=3)
    assert course.go_on(taken=45, busy=0.5) == 1


def test_it_takes_a_while_to_tell_unless_nothing_happens_at_all() -> None:
    course = Course(workers=3)
    course.handoff.put(["path"] * 10)
    course.clock.advance(REVIEW_SECONDS)
    course.processor_clock.advance(REVIEW_SECONDS)
    course.handoff.review()
    assert course.handoff.called == 1  # it is busy with something
    course.clock.advance(2 * REVIEW_SECONDS)
    course.handoff.review()
    assert course.handoff.called == 3


def test_a_break_before_is_no_slowness() -> None:
    course = Course(workers=3)
    course.clock.advance(3600)
    assert course.go_on(taken=45, busy=0.5) == 1


def test_there_are_fewer_where_they_contend_for_the_processor() -> None:
    course = Course(workers=3)
    assert course.go_on(taken=4, busy=1.0) == 3
    assert course.go_on(taken=45, busy=0.5) == 3
    assert course.go_on(taken=45, busy=1.0) == 2
    assert course.go_on(taken=45, busy=1.0) == 1
    assert course.go_on(taken=45, busy=1.0) == 1


def test_when_all_is_done_one_worker_begins_anew() -> None:
    clock = FakeClock(0)
    handoff = Handoff(10, 2, clock)
    crew = Crew(handoff, 2)
    handoff.put("ab")
    assert crew.has_taken(1)
    clock.advance(1)
    handoff.review()
    assert crew.has_taken(2)
    assert crew.end()
    assert handoff.join(10)
    crew = Crew(handoff, 2)
    handoff.put("cd")
    assert crew.has_taken(1)
    handoff.close()
    assert crew.end()


def test_the_feeder_hears_that_all_is_taken() -> None:
    handoff = Handoff(10, 2)
    handoff.put("ab")
    feeder = in_thread(handoff.distribute)
    assert list(handoff.take()) == ["a", "b"]
    assert is_over(feeder)


def test_closing_lets_everybody_go_and_forgets_what_was_not_taken() -> None:
    full, empty = Handoff(1, 1), Handoff(1, 1)
    full.put("a")
    began: list[bool] = []
    waiting = [
        in_thread(lambda: full.put("b")),
        in_thread(full.join),
        in_thread(lambda: began.append(empty.begin())),
        in_thread(lambda: empty.wait_closed(3600)),
    ]
    full.close()
    empty.close()
    assert all(map(is_over, waiting))
    assert began == [False]
    full.put("c")
    assert not full.begin()
    assert list(full.take()) == []


def test_a_wait_for_the_end_has_an_end() -> None:
    assert not Handoff(1, 1).wait_closed(0.001)


def test_waiting_for_a_while_only() -> None:
    handoff = Handoff(1, 2)
    assert handoff.join(0.001)
    assert handoff.distribute(0.001)
    assert handoff.put("a", 0.001)
    assert not handoff.put("b", 0.001)
    assert not handoff.join(0.001)
    assert not handoff.distribute(0.001)
    handoff.close()
    assert handoff.put("b", 0.001)
    assert handoff.join(0.001)
    assert handoff.distribute(0.001)
