"""The times that `send` takes, and those that it refuses."""
from __future__ import annotations

import math
import time
from datetime import UTC
from datetime import date
from datetime import datetime
from datetime import timedelta
from datetime import timezone
from datetime import tzinfo
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example
from hypothesis import given
from hypothesis import strategies as st

from postcommit._mail.terms import Terms
from postcommit._mail.terms import terms_of
from postcommit.errors import OptionError


NOW = 1_795_435_200.0
YEARS = 10 * 366 * 86400.0

aware = st.datetimes(
    timezones=st.one_of(st.just(UTC), st.timezones(), st.just(ZoneInfo("Europe/Rome")))
)


class Nowhere(tzinfo):
    """A zone that does not know its offset, as PEP 495 allows it."""

    def utcoffset(self, when: datetime | None) -> timedelta | None:
        return None

    def dst(self, when: datetime | None) -> timedelta | None:
        return None


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(NOW + seconds, UTC)


@pytest.mark.parametrize(
    "given",
    [at(900), NOW + 900, int(NOW) + 900, timedelta(minutes=15), at(900).astimezone()],
)
def test_the_forms_of_a_time_mean_the_same(given: Any) -> None:
    assert terms_of(given, None, False, NOW) == Terms(not_before=NOW + 900)
    assert terms_of(None, given, False, NOW) == Terms(expires=NOW + 900)


def test_without_terms_a_mail_is_an_ordinary_one() -> None:
    assert terms_of(None, None, False, NOW) is None


@pytest.mark.parametrize(
    "given", [at(-1), NOW, 0, -1, timedelta(-1), -math.inf, -(10**400)]
)
def test_a_time_in_the_past_is_now(given: Any) -> None:
    assert terms_of(given, None, False, NOW) is None
    assert terms_of(given, None, True, NOW) == Terms(bulk=True)


def test_the_same_wall_clock_is_another_time_in_another_zone() -> None:
    rome = datetime(2026, 12, 1, 8, tzinfo=ZoneInfo("Europe/Rome"))
    terms = terms_of(rome, None, False, NOW)
    assert terms == Terms(datetime(2026, 12, 1, 7, tzinfo=UTC).timestamp())


REFUSED = {
    "no time zone": [datetime(2030, 1, 1), datetime(2030, 1, 1, tzinfo=Nowhere())],
    "a day without a time": [date(2030, 1, 1)],
    "is not a time": [
        *("2030-01-01", "tomorrow", "", b"1", math.nan, True, False, object(), []),
        *(Decimal(int(NOW) + 5), 1j, time.gmtime(), (1, 2)),
    ],
    "more than 10 years ahead": [
        *(NOW * 1000, math.inf, 10**400, timedelta.max),
        datetime.max.replace(tzinfo=UTC),
        datetime.max.replace(tzinfo=timezone(timedelta(hours=-23))),
        NOW + YEARS + 1,
    ],
}


@pytest.mark.parametrize("name", ["not_before", "expires"])
@pytest.mark.parametrize(
    ("reason", "value"),
    [(why, value) for why, values in REFUSED.items() for value in values],
)
def test_what_is_not_a_time_is_refused(name: str, reason: str, value: Any) -> None:
    times = {"not_before": None, "expires": None, name: value}
    with pytest.raises(OptionError, match=reason) as caught:
        terms_of(**times, bulk=False, now=NOW)
    assert caught.value.name == name
    assert str(caught.value).startswith(f"{name}=")


@pytest.mark.parametrize("value", [None, 0, 1, "yes", "", [True]])
def test_bulk_is_true_or_false(value: Any) -> None:
    with pytest.raises(OptionError, match="must be True or False"):
        terms_of(None, None, value, NOW)


@pytest.mark.parametrize("given", [at(-1), NOW, timedelta(0), timedelta(-1), 900, -5])
def test_a_mail_that_has_expired_already_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="in the past") as caught:
        terms_of(None, given, False, NOW)
    is_number = isinstance(given, int | float)
    assert ("pass a timedelta" in str(caught.value)) is is_number


@example(end=1.0, begin=1.2e-07, bulk=False)
@given(st.floats(1, YEARS - 1), st.floats(-YEARS, YEARS - 1), st.booleans())
def test_a_mail_that_expires_before_it_may_be_sent_is_refused(
    end: float, begin: float, bulk: bool
) -> None:
    # A file has microseconds, and to them a time is rounded.
    not_before, expires = round(NOW + begin, 6), round(NOW + end, 6)
    if expires <= not_before:
        with pytest.raises(OptionError, match="is not after not_before="):
            terms_of(not_before, expires, bulk, NOW)
    else:
        terms = terms_of(not_before, expires, bulk, NOW)
        assert terms is not None
        assert terms.expires == pytest.approx(expires, abs=1e-6)
        assert (terms.not_before is None) is (not_before <= NOW)
        assert terms.bulk is bulk


@given(
    st.one_of(
        *(aware, st.datetimes(), st.dates(), st.timedeltas(), st.floats()),
        *(st.integers(), st.text(), st.binary(), st.booleans(), st.decimals()),
    ),
    st.sampled_from(["not_before", "expires"]),
)
def test_any_value_is_a_time_or_refused(value: Any, name: str) -> None:
    times = {"not_before": None, "expires": None, name: value}
    try:
        terms = terms_of(**times, bulk=False, now=NOW)
    except OptionError:
        return
    assert not isinstance(value, bool | str | bytes | Decimal)
    if terms is None:
        assert name == "not_before"
    else:
        seconds = getattr(terms, name)
        assert NOW < seconds <= NOW + YEARS
        assert seconds == round(seconds, 6)
