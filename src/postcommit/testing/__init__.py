"""For the tests of applications: what was sent, without a relay.

`setUp` (or the pytest fixture ``mail_outbox``) replaces the deliveries and mailers of a
registry, and collects the mail of committed transactions. `RecordingMailer` is a mailer
whose answers a test chooses.

The names are imported on first use, because pytest imports this package in each run for
its fixtures.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any


if TYPE_CHECKING:
    from postcommit.testing.clock import FakeClock
    from postcommit.testing.mailer import RecordingMailer
    from postcommit.testing.outbox import Mail
    from postcommit.testing.outbox import Outbox
    from postcommit.testing.registry import recording
    from postcommit.testing.registry import setUp
    from postcommit.testing.registry import tearDown


_HOMES = {
    "FakeClock": "postcommit.testing.clock",
    "RecordingMailer": "postcommit.testing.mailer",
    "Mail": "postcommit.testing.outbox",
    "Outbox": "postcommit.testing.outbox",
    "recording": "postcommit.testing.registry",
    "setUp": "postcommit.testing.registry",
    "tearDown": "postcommit.testing.registry",
}

__all__ = [
    "FakeClock",
    "Mail",
    "Outbox",
    "RecordingMailer",
    "recording",
    "setUp",
    "tearDown",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
