"""Messages, and how reports are told in few words."""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


SENDER = "a@example.org"
B = "b@example.org"
C = "c@example.org"

MESSAGE = b"Message-Id: <1@example.org>\r\nDate: x\r\nSubject: x\r\n\r\nHello\r\n"


def side_by_side(function: Callable[..., Any], cases: Sequence[tuple]) -> list[Any]:
    """Call `function` with the words of each case, all at once: they wait together."""
    with ThreadPoolExecutor(len(cases)) as pool:
        return list(pool.map(function, *zip(*cases, strict=True)))


def message(number: int | str) -> bytes:
    return MESSAGE.replace(b"<1@", f"<{number}@".encode())


def told(report) -> str | list[str]:
    """Return the statuses of a report, or "relay"."""
    if report.relay_failure is not None:
        assert report.outcomes == ()
        return "relay"
    assert [o.recipient for o in report.outcomes] == list(report.recipients)
    return [outcome.status.value for outcome in report.outcomes]
