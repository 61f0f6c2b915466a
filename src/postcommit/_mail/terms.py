"""When a mail may be sent: not before a time, not after one, or after all other mail.

`send` takes the terms as keywords, never as header fields, because headers come from
templates and users.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC
from datetime import date
from datetime import datetime
from datetime import timedelta
from typing import Any

from postcommit.errors import OptionError
from postcommit.interfaces import Moment


# Maximum number of seconds between now and a time. A time that is further ahead is in
# milliseconds by mistake.
_FARTHEST = 10 * 366 * 86400.0

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_FORMS = (
    "pass a datetime with a time zone, seconds since the epoch, or a timedelta from now"
)


@dataclass(frozen=True)
class Terms:
    """When an entry may be sent. Times are in seconds since the epoch.

    It is not sent before `not_before`, and not after `expires`. With `bulk` it comes
    after all entries that are due without it.
    """

    not_before: float | None = None
    expires: float | None = None
    bulk: bool = False


#: Those of an ordinary mail.
NO_TERMS: Terms = Terms()


def in_utc(seconds: float | None) -> datetime | None:
    """Return a time of the terms as a datetime."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def terms_of(
    not_before: Moment | None, expires: Moment | None, bulk: bool, now: float
) -> Terms | None:
    """Return the terms that `send` was given, or None for an ordinary mail.

    `now` is in seconds since the epoch. A `not_before` in the past is left out, because
    the mail may be sent at once. Raises `OptionError` for what is not a time, and for
    terms under which the mail could never be sent.
    """
    if not isinstance(bulk, bool):
        raise OptionError("bulk", bulk, "must be True or False")
    now = round(now, 6)  # as precise as the times of an entry on disk
    begin = _seconds("not_before", not_before, now)
    end = _seconds("expires", expires, now)
    if end is not None and end <= now:
        reason = "is in the past, so it could never be sent"
        if not isinstance(expires, timedelta | datetime):
            reason += "; for seconds from now pass a timedelta"
        raise OptionError("expires", expires, reason)
    if begin is not None and end is not None and end <= begin:
        reason = f"is not after not_before={not_before!r}; it could never be sent"
        raise OptionError("expires", expires, reason)
    if begin is not None and begin <= now:
        begin = None
    if begin is None and end is None and not bulk:
        return None
    return Terms(begin, end, bulk)


def _seconds(name: str, moment: Moment | None, now: float) -> float | None:
    """Return `moment` in seconds since the epoch. Raises `OptionError`."""
    if moment is None:
        return None
    seconds = _since_the_epoch(name, moment, now)
    if math.isnan(seconds):
        raise OptionError(name, moment, f"is not a time; {_FORMS}")
    if seconds > now + _FARTHEST:
        reason = "is more than 10 years ahead; a number is in seconds, not milliseconds"
        raise OptionError(name, moment, reason)
    return round(seconds, 6)


def _since_the_epoch(name: str, moment: Any, now: float) -> float:
    if isinstance(moment, timedelta):
        return now + moment.total_seconds()
    if isinstance(moment, datetime):
        if moment.utcoffset() is None:
            reason = "has no time zone; pass datetime.now(UTC) or tzinfo=, for example"
            raise OptionError(name, moment, reason)
        return (moment - _EPOCH).total_seconds()
    if isinstance(moment, date):
        reason = "is a day without a time; pass a datetime with a time zone"
        raise OptionError(name, moment, reason)
    if isinstance(moment, bool) or not isinstance(moment, int | float):
        raise OptionError(name, moment, f"is not a time; {_FORMS}")
    try:
        return float(moment)
    except OverflowError:
        return -math.inf if moment < 0 else math.inf
