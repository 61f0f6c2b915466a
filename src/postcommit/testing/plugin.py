"""Fixtures for pytest, which finds them by the entry point of the package.

pytest imports this module in every run, also without mail. So the fixtures import what
they need themselves.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from zope.interface.interfaces import IComponents


if TYPE_CHECKING:
    from postcommit.testing.outbox import Outbox


@pytest.fixture
def mail_registry() -> IComponents | None:
    """The registry whose mail `mail_outbox` collects, by default the global.

    An application with a registry of its own overrides this fixture. For Pyramid it
    returns ``app.registry``.
    """
    return None


@pytest.fixture
def mail_outbox(mail_registry: IComponents | None) -> Iterator[Outbox]:
    """The mails that committed transactions have sent. None leaves the process.

    ``mail_outbox.mailer`` is the `RecordingMailer` that collects them.
    """
    from postcommit.testing.registry import recording

    with recording(mail_registry) as outbox:
        yield outbox
