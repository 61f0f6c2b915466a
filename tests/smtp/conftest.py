"""A relay and mailers for it."""
from __future__ import annotations

import contextlib

import pytest

from postcommit.smtp.mailer import SMTPMailer
from tests.support.certificates import Authority
from tests.support.smtpd import ScriptedRelay


@pytest.fixture
def start():
    """Start relays; in the end they must not have seen a breach of the protocol.

    But those with ``provoked=True``, whose own script has led to one.
    """
    relays = []
    with contextlib.ExitStack() as stack:

        def start(*, provoked: bool = False, **options) -> ScriptedRelay:
            relay = stack.enter_context(ScriptedRelay(**options))
            if not provoked:
                relays.append(relay)
            return relay

        yield start
    assert [relay.violations for relay in relays] == [[] for _ in relays]


@pytest.fixture
def relay(start):
    return start()


@pytest.fixture
def connect():
    """Make mailers, whose events go to their list `events`."""
    mailers = []

    def connect(relay: ScriptedRelay, **options) -> SMTPMailer:
        events = []
        options.setdefault("timeout", 5)
        options.setdefault("hostname", "127.0.0.1")
        options.setdefault("notify", events.append)
        mailer = SMTPMailer(port=relay.port, **options)
        mailer.events = events
        mailers.append(mailer)
        return mailer

    yield connect
    for mailer in mailers:
        mailer.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))
