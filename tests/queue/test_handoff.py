"""The handoff between the feeder and its workers."""
from __future__ import annotations

import threading
from collections.abc import Callable

from postcommit.queue.handoff import Handoff


def in_thread(target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    return thread


def is_over(thread: threading.Thread) -> bool:
    thread.join(10)
    return not thread.is_alive()


def test_paths_are_taken_in_order() -> None:
    handoff = Handoff(10)
    for path in "abc":
        handoff.put(path)
    assert handoff.take() == "a"
    assert list(handoff.take_more(5)) == ["b", "c"]
    assert list(handoff.take_more(5)) == []


def test_no_more_are_taken_than_wanted() -> None:
    handoff = Handoff(10)
    for path in "abc":
        handoff.put(path)
    assert list(handoff.take_more(2)) == ["a", "b"]


def test_a_worker_waits_for_work() -> None:
    handoff = Handoff(10)
    taken: list[str | None] = []
    worker = in_thread(lambda: taken.append(handoff.take()))
    handoff.put("a")
    assert is_over(worker)
    assert taken == ["a"]


def test_the_feeder_waits_until_half_of_its_lead_is_used_up() -> None:
    handoff = Handoff(4)
    for path in "abcd":
        handoff.put(path)
    feeder = in_thread(lambda: handoff.put("e"))
    assert handoff.take() == "a"
    feeder.join(0.05)
    assert feeder.is_alive()
    assert handoff.take() == "b"
    assert is_over(feeder)
    assert list(handoff.take_more(9)) == ["c", "d", "e"]


def test_join_waits_for_all_that_was_put() -> None:
    handoff = Handoff(10)
    handoff.join()
    for path in "ab":
        handoff.put(path)
    waiting = in_thread(handoff.join)
    assert handoff.take() == "a"
    handoff.done(1)
    waiting.join(0.05)
    assert waiting.is_alive()
    assert handoff.take() == "b"
    handoff.done(1)
    assert is_over(waiting)


def test_closing_lets_everybody_go_and_forgets_what_was_not_taken() -> None:
    full, empty = Handoff(1), Handoff(1)
    full.put("a")
    taken: list[str | None] = []
    waiting = [
        in_thread(lambda: full.put("b")),
        in_thread(full.join),
        in_thread(lambda: taken.append(empty.take())),
        in_thread(lambda: empty.wait_closed(3600)),
    ]
    full.close()
    empty.close()
    assert all(map(is_over, waiting))
    assert taken == [None]
    full.put("c")
    assert full.take() is None
    assert list(full.take_more(1)) == []


def test_a_wait_for_the_end_has_an_end() -> None:
    assert not Handoff(1).wait_closed(0.001)


def test_waiting_for_a_while_only() -> None:
    handoff = Handoff(1)
    assert handoff.join(0.001)
    assert handoff.put("a", 0.001)
    assert not handoff.put("b", 0.001)
    assert not handoff.join(0.001)
    handoff.close()
    assert handoff.put("b", 0.001)
    assert handoff.join(0.001)
