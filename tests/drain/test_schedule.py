"""The schedule: pure functions of time."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postcommit._drain.schedule import JITTER
from postcommit._drain.schedule import Schedule


SCHEDULE = Schedule(min_backoff=60, max_backoff=4000, max_age=432000)

AGES = st.floats(-1000, 500000)


@pytest.mark.parametrize(
    ("age", "backoff"),
    [(-5, 60), (0, 60), (60, 60), (300, 300), (4000, 4000), (90_000, 4000)],
)
def test_the_next_attempt_is_as_far_away_as_the_entry_is_old(
    age: float, backoff: float
) -> None:
    now = 1_800_000_000.0
    for _ in range(50):
        wait = SCHEDULE.next_attempt(now - age, now) - now
        assert backoff * (1 - JITTER) - 0.01 <= wait <= backoff * (1 + JITTER) + 0.01


@given(AGES)
def test_the_next_attempt_is_in_the_future_and_within_bounds(age: float) -> None:
    wait = SCHEDULE.next_attempt(-age, 0.0)
    assert 60 * (1 - JITTER) <= wait <= 4000 * (1 + JITTER)


def test_what_failed_together_does_not_come_back_together() -> None:
    assert len({SCHEDULE.next_attempt(0, 1000) for _ in range(20)}) > 1


@pytest.mark.parametrize(
    ("due", "seconds"), [(-1e9, 0), (0, 0), (0.5, 0.5), (8000, 8000), (8001, 0)]
)
def test_nothing_waits_for_longer_than_anything_is_deferred(
    due: float, seconds: float
) -> None:
    assert SCHEDULE.seconds_until(1e6 + due, 1e6) == seconds


@given(AGES)
def test_what_was_just_deferred_waits(age: float) -> None:
    due = SCHEDULE.next_attempt(1e6 - age, 1e6)
    assert SCHEDULE.seconds_until(due, 1e6) == due - 1e6


@pytest.mark.parametrize(
    ("age", "too_old"), [(0, False), (431999, False), (432000, True), (1e9, True)]
)
def test_it_is_given_up_after_five_days(age: float, too_old: bool) -> None:
    assert SCHEDULE.is_too_old(1000.0, 1000.0 + age) is too_old
