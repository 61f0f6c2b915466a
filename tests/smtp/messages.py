"""Messages, and how reports are told in few words."""
from __future__ import annotations


SENDER = "a@example.org"
B = "b@example.org"
C = "c@example.org"

MESSAGE = b"Message-Id: <1@example.org>\r\nDate: x\r\nSubject: x\r\n\r\nHello\r\n"


def message(number: int | str) -> bytes:
    return MESSAGE.replace(b"<1@", f"<{number}@".encode())


def told(report) -> str | list[str]:
    """Return the statuses of a report, or "relay"."""
    if report.relay_failure is not None:
        assert report.outcomes == ()
        return "relay"
    assert [o.recipient for o in report.outcomes] == list(report.recipients)
    return [outcome.status.value for outcome in report.outcomes]
