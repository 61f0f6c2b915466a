"""A real Postfix that takes two connections of a client at a time."""
from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import transaction
from tests.functional.postfix import Postfix

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
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


def test_fewer_workers_and_no_pause(
    limited: Postfix, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Forty mails, four workers. All leave, and no outage is logged that is none."""
    queue = str(tmp_path / "queue")
    fill(queue, 40)
    mailer = SMTPMailer("127.0.0.1", limited.port)
    begin = time.monotonic()
    with caplog.at_level(logging.INFO):
        tally = QueueProcessor(queue, mailer, workers=4).flush()
    assert time.monotonic() - begin < 5
    mailer.close()
    assert tally == Tally(40, 0, 0)
    assert len(limited.wait_for("ann", 40)) == 40
    loud = [r.getMessage() for r in caplog.records if r.levelno > logging.INFO]
    assert loud == []
    fewer = [r for r in caplog.records if "takes no more connections" in r.message]
    assert len(fewer) == 1
    assert "working with 2 instead of 4" in fewer[0].message


def test_one_connection_too_many(limited: Postfix) -> None:
    """While others are in use it is about their number, otherwise about the relay."""
    mailer = SMTPMailer("127.0.0.1", limited.port)
    pool = mailer._pool
    connections = [pool.checkout(), pool.checkout()]
    report = mailer.send("shop@example.org", "ann@example.org", "Subject: x\n\n")
    assert report.too_many_connections
    assert report.relay_failure is not None
    assert report.relay_failure.code == 421
    for connection in connections:
        connection.quit()
        pool.discard(connection)
    others = [SMTPMailer("127.0.0.1", limited.port, timeout=n) for n in (98, 99)]
    for other in others:
        other.check()
    report = mailer.send("shop@example.org", "ann@example.org", "Subject: x\n\n")
    assert not report.too_many_connections
    assert report.relay_failure is not None
    for other in others:
        other.close()
    report = mailer.send("shop@example.org", "ann@example.org", "Subject: x\n\n")
    assert report.sent
    mailer.close()
