"""Values as people read them: durations, times, sizes, and times for programs."""
from __future__ import annotations

import re
from datetime import UTC
from datetime import datetime
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from postcommit.interfaces import QueueEntry


_UNITS = (("d", 86400, 1_000_000), ("h", 3600, 24), ("m", 60, 60), ("s", 1, 60))

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

# Bounds of a time, in seconds since the epoch: those of `datetime`, less a day for the
# offset of a time zone.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC).timestamp()
_LATEST = datetime(9999, 12, 30, tzinfo=UTC).timestamp()


def duration(seconds: float) -> str:
    """Return a number of seconds as «3d4h», «12m» or «7s»: two units at most."""
    left = round(abs(seconds))
    parts = [(name, left // length % most) for name, length, most in _UNITS]
    while len(parts) > 1 and not parts[0][1]:
        parts.pop(0)
    told = "".join(f"{count}{name}" for name, count in parts[:2] if count)
    return ("-" if seconds < 0 else "") + (told or "0s")


def age(entry: QueueEntry, now: float) -> float:
    """Return for how many seconds an entry has been in the queue.

    If it is unknown when the entry was accepted, this is since it was written last.
    """
    return now - (entry.changed if entry.accepted is None else entry.accepted)


def seconds_of(text: str) -> float:
    """Return the seconds of a duration such as ``90``, ``15m``, ``2h`` or ``3d``.

    Raises ValueError for another text.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r}: must be a duration such as 90, 15m, 2h or 3d")
    return float(match[1]) * _SECONDS[match[2]]


def _at(seconds: float) -> datetime:
    """Return a time since the epoch in UTC, from the year 1 to the year 9999.

    A file may have another time. It becomes the nearest time in these years.
    """
    within = min(max(seconds, _EARLIEST), _LATEST)
    return datetime.fromtimestamp(within, UTC)


def moment(seconds: float) -> str:
    """Return a time since the epoch for people: in UTC, and in local time beside it."""
    if not _EARLIEST <= seconds <= _LATEST:
        return f"{seconds:.0f} s after 1970"  # a file can have any time
    utc = _at(seconds)
    local = utc.astimezone()
    shown = f"{utc.year:04}-{utc:%m-%d %H:%M:%S} UTC"
    if not local.utcoffset():
        return shown
    day = "" if local.date() == utc.date() else f"{local.year:04}-{local:%m-%d} "
    return f"{shown} ({day}{local:%H:%M:%S %Z})"


def ago(then: float, now: float) -> str:
    """Return a moment, and how long ago it was."""
    return f"{moment(then)}, {duration(now - then)} ago"


def timestamp(seconds: float | None) -> str | None:
    """Return a time since the epoch for programs: ISO 8601, UTC."""
    if seconds is None:
        return None
    return _at(seconds).isoformat()


def size(count: int) -> str:
    """Return a number of bytes as «734», «12K» or «1.5M»."""
    if count < 1000:
        return str(count)
    number, power = count / 1024, 0
    while number >= 1000 and power < 2:
        number, power = number / 1024, power + 1
    return f"{number:.{1 if number < 10 else 0}f}{'KMG'[power]}"


def entries(count: int) -> str:
    """Return «1 entry» or «7 entries»."""
    return f"{count} entry" if count == 1 else f"{count} entries"
