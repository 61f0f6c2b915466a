"""A relay and mailers for it."""
from __future__ import annotations

import socket

import pytest

from postcommit._smtp.mailer import SMTPMailer
from tests.support.certificates import Authority
from tests.support.mailers import send_all
from tests.support.smtpd import ScriptedRelay
from tests.support.smtpd import well_treated


class Mailer(SMTPMailer):
    """An `SMTPMailer` with a short way to send several messages."""

    def send_all(self, messages):
        return send_all(self, messages)


@pytest.fixture
def start():
    """See `well_treated`."""
    with well_treated() as start:
        yield start


@pytest.fixture
def relay(start):
    return start()


@pytest.fixture
def connect():
    """Make mailers, whose events go to their list `events`.

    `timeout` is that of the final reply as well, if there is no `final_timeout`.
    """
    mailers = []

    def connect(relay: ScriptedRelay, **options) -> Mailer:
        events = []
        options.setdefault("timeout", 5)
        # By default 600 s, which no test can wait for.
        options.setdefault("final_timeout", options["timeout"] or 600)
        options.setdefault("hostname", "127.0.0.1")
        options.setdefault("notify", events.append)
        mailer = Mailer(port=relay.port, **options)
        mailer.events = events
        mailers.append(mailer)
        return mailer

    yield connect
    for mailer in mailers:
        mailer.close()


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def outside():
    """An address of this host that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]
