"""What is the matter with entries, logged once."""
from __future__ import annotations

import errno

import pytest

from postcommit.queue.troubles import Troubles


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
    troubles = Troubles("queue")
    for reason in ["no", "no", "never", "never"]:
        troubles.log("queue/new/1", ValueError(reason))
    assert lines(caplog) == ["queue/new/1: left in the queue"] * 2
    troubles.forget("queue/new/1")
    troubles.forget("queue/new/2")
    troubles.log("queue/new/1", ValueError("never"))
    assert lines(caplog) == ["queue/new/1: left in the queue"]


def test_of_very_many_a_thousand_are_named_and_not_again_at_the_next_look(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    troubles = Troubles("queue", clock)

    def look() -> list[str]:
        for number in range(1500):
            troubles.log(f"queue/new/{number}", ValueError("no"))
        return lines(caplog)

    first = look()
    assert len(first) == 1001
    assert first[-1] == (
        "queue: more than 1000 entries are left in the queue; no more are named"
    )
    assert look() == look() == []
    clock.now += 3601
    assert len(look()) == 1001


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOLCK, errno.EMFILE])
def test_what_every_entry_meets_is_trouble_of_the_queue(number: int) -> None:
    trouble = Troubles("queue").of_all(OSError(number, "why", "queue/new/1"))
    assert trouble is not None
    assert trouble.errno == number
    assert str(trouble) == "queue: cannot work on the entries: why"


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "no", "queue/new/1"), MemoryError()]
)
def test_what_one_entry_meets_is_not(error: Exception) -> None:
    assert Troubles("queue").of_all(error) is None
