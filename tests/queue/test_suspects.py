"""Entries that may be what the relay fails at."""
from __future__ import annotations

from postcommit.queue import suspects as module
from postcommit.queue.suspects import Suspects


ONE, TWO = "queue/new/1.x", "queue/new/2.x"


def test_at_first_nobody_is_suspected() -> None:
    suspects = Suspects()
    assert not suspects
    assert ONE not in suspects


def test_as_long_as_others_fare_alike_it_is_the_relay() -> None:
    suspects = Suspects()
    for _ in range(3):
        assert not suspects.failed(ONE)
        assert not suspects.failed(TWO)
    assert suspects
    assert ONE in suspects
    assert TWO in suspects


def test_who_fails_again_while_others_do_not_is_to_blame() -> None:
    suspects = Suspects()
    assert not suspects.failed(ONE)
    suspects.answered(TWO)
    assert suspects.failed(ONE)
    assert suspects.failed(ONE)
    assert not suspects.failed(TWO)


def test_what_was_answered_before_a_first_failure_tells_nothing() -> None:
    suspects = Suspects()
    suspects.answered(TWO)
    assert not suspects.failed(ONE)
    assert not suspects.failed(ONE)


def test_an_answer_ends_the_suspicion() -> None:
    suspects = Suspects()
    suspects.failed(ONE)
    suspects.answered(ONE)
    assert ONE not in suspects
    assert not suspects.failed(ONE)


def test_an_entry_is_the_same_in_new_and_in_cur() -> None:
    suspects = Suspects()
    suspects.failed(ONE)
    assert "queue/cur/1.x:2," in suspects
    suspects.answered("queue/cur/1.x:2,")
    assert not suspects


def test_of_very_many_the_oldest_are_forgotten(monkeypatch) -> None:
    monkeypatch.setattr(module, "_MOST", 2)
    suspects = Suspects()
    for number in range(4):
        suspects.failed(f"queue/new/{number}.x")
    found = [number for number in range(4) if f"queue/new/{number}.x" in suspects]
    assert found == [2, 3]
