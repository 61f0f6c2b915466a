"""What is the matter with entries, logged once."""
from __future__ import annotations

import pytest

from postcommit._drain.breaker import Breaker


class Clock:
    """A monotonic clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    told = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return told


def test_a_trouble_is_logged_once_and_again_when_it_is_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    breaker = Breaker("queue")
    for reason in ["no", "no", "never", "never"]:
        breaker.log_failing("queue/new/1", ValueError(reason))
    assert lines(caplog) == ["queue/new/1: left in the queue"] * 2
    breaker.failing.pop("queue/new/1")
    breaker.log_failing("queue/new/1", ValueError("never"))
    assert lines(caplog) == ["queue/new/1: left in the queue"]


def test_of_very_many_a_thousand_are_named_and_not_again_at_the_next_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    breaker = Breaker("queue", clock)

    def look() -> list[str]:
        for number in range(1500):
            breaker.log_failing(f"queue/new/{number}", ValueError("no"))
        return lines(caplog)

    first = look()
    assert len(first) == 1001
    assert first[-1] == (
        "queue: more than 1000 entries are left in the queue; no more are named"
    )
    assert look() == look() == []
    breaker.log_failing("queue/new/0", ValueError("never"))
    assert lines(caplog) == ["queue/new/0: left in the queue"]
    breaker.log_failing("queue/new/0", ValueError("no"))
    lines(caplog)
    clock.now += 3600
    assert look() == []
    clock.now += 1
    assert len(look()) == 1001
    clock.now += 3600
    assert look() == []
