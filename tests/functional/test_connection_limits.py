"""A real Postfix, and a real Exim, that take two connections of a client at a time."""
from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import transaction
from tests.functional import exim
from tests.functional.postfix import Postfix
from tests.support.service import eventually

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit._smtp.connection import Connection
from postcommit._smtp.pool import Pool
from postcommit.errors import RelayError
from postcommit.interfaces import Tally


# The client is on loopback, which Postfix excepts from its limits by default.
LIMITED = {
    "smtpd_client_connection_count_limit": "2",
    "smtpd_client_event_limit_exceptions": "",
}


@pytest.fixture
def limited(start_postfix: Callable[..., Postfix]) -> Postfix:
    return start_postfix(LIMITED)


def fill(queue: str, number: int) -> None:
    delivery = QueuedMailDelivery(queue)
    with transaction.manager:
        for count in range(number):
            message = f"Subject: number {count}\n\n"
            delivery.send("shop@example.org", "ann@example.org", message)


def drain(port: int, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Drain forty mails with four workers. No outage is logged: there is none."""
    queue = str(folder / "queue")
    fill(queue, 40)
    mailer = SMTPMailer("127.0.0.1", port)
    begin = time.monotonic()
    with caplog.at_level(logging.INFO):
        tally = QueueProcessor(queue, mailer, workers=4).flush()
    assert time.monotonic() - begin < 5
    mailer.close()
    assert tally == Tally(40, 0, 0)
    loud = [r.getMessage() for r in caplog.records if r.levelno > logging.INFO]
    assert loud == []
    fewer = [r for r in caplog.records if "takes no more connections" in r.message]
    assert len(fewer) == 1
    # One, if the relay still counts a connection that has just been closed.
    assert re.search("working with [12] instead of 4", fewer[0].message)


def answers(mailer: SMTPMailer) -> bool:
    """Return whether the relay takes a connection, which `mailer` keeps."""
    try:
        mailer.check()
    except RelayError:
        return False
    return True


def two_of(pool: Pool) -> list[Connection]:
    """Return two connections, as soon as the relay takes them."""
    connections: list[Connection] = []

    def are_there() -> bool:
        try:
            while len(connections) < 2:
                connections.append(pool.checkout())
        except RelayError:
            return False
        return True

    # The relay may still count a connection that has just been closed.
    eventually(are_there)
    return connections


def be_one_too_many(port: int) -> None:
    """While others are in use it is about their number, otherwise about the relay."""
    mailer = SMTPMailer("127.0.0.1", port)
    pool = mailer._pool
    connections = two_of(pool)
    report = mailer.send("shop@example.org", "ann@example.org", "Subject: x\n\n")
    assert report.too_many_connections
    assert report.relay_failure is not None
    assert report.relay_failure.reply.code == 421
    for connection in connections:
        connection.quit()
        pool.discard(connection)
    others = [SMTPMailer("127.0.0.1", port, timeout=n) for n in (98, 99)]
    for other in others:
        # The relay may still count a connection that has just been closed.
        eventually(functools.partial(answers, other))
    report = mailer.send("shop@example.org", "ann@example.org", "Subject: x\n\n")
    assert not report.too_many_connections
    assert report.relay_failure is not None
    for other in others:
        other.close()
    eventually(lambda: mailer.send("a@example.org", "ann@example.org", "\n").sent)
    mailer.close()


def test_fewer_connections_to_postfix(
    limited: Postfix, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    drain(limited.port, tmp_path, caplog)
    assert len(limited.wait_for("ann", 40)) == 40


def test_one_connection_too_many_for_postfix(limited: Postfix) -> None:
    be_one_too_many(limited.port)


@pytest.fixture
def start_exim() -> Iterator[Callable[..., exim.Exim]]:
    """A function that starts an Exim, which is stopped after the test."""
    if reason := exim.why_not():
        pytest.skip(reason)
    with exim.starting() as start:
        yield start


@pytest.mark.parametrize("limit", ["smtp_accept_max_per_host", "smtp_accept_max"])
def test_fewer_connections_to_exim(
    start_exim: Callable[..., exim.Exim],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    limit: str,
) -> None:
    relay = start_exim(**{limit: "2"})
    drain(relay.port, tmp_path, caplog)
    assert relay.received() == [["ann@example.org"]] * 40


def test_one_connection_too_many_for_exim(
    start_exim: Callable[..., exim.Exim],
) -> None:
    be_one_too_many(start_exim(smtp_accept_max_per_host="2").port)
