"""Messages to many recipients through real relays with limits, and to a mail store."""
from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import transaction
from tests.functional import dovecot
from tests.functional import exim
from tests.functional.dovecot import Dovecot
from tests.functional.exim import Exim
from tests.functional.postfix import Postfix

from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit.interfaces import Tally


SENDER = "shop@example.org"
MANY = [f"customer{number}@example.org" for number in range(2500)]
MESSAGE = "Subject: Our new teapots\n\nThey are on their way.\n"

# A relay that has a mailbox for each of example.org, and forgets the messages.
TAKES_ALL = {"virtual_mailbox_maps": "static:all", "virtual_transport": "discard"}

_ACCEPTED = re.compile(r"qmgr.*: from=<\S+>, size=\d+, nrcpt=(\d+) ")


@pytest.fixture
def start_exim() -> Iterator[Callable[..., Exim]]:
    """A function that starts an Exim, which is stopped after the test."""
    if reason := exim.why_not():
        pytest.skip(reason)
    with exim.starting() as start:
        yield start


@pytest.fixture
def mail_store() -> Iterator[Dovecot]:
    """A Dovecot that speaks LMTP."""
    if reason := dovecot.why_not():
        pytest.skip(reason)
    with dovecot.starting() as start:
        yield start()


def queue(folder: Path, recipients: list[str]) -> QueuedMailDelivery:
    """Return a queue with one message to all `recipients`."""
    delivery = QueuedMailDelivery(str(folder / "queue"))
    with transaction.manager:
        delivery.send(SENDER, recipients, MESSAGE)
    return delivery


def flush(delivery: QueuedMailDelivery, port: int, most: int) -> tuple[Tally, float]:
    """Send what is in the queue; return the tally and the seconds that it took."""
    mailer = SMTPMailer("127.0.0.1", port, recipients_per_transaction=most)
    began = time.monotonic()
    tally = QueueProcessor(delivery.queuePath, mailer).flush()
    seconds = time.monotonic() - began
    mailer.close()
    return tally, seconds


def accepted(postfix: Postfix) -> list[int]:
    """Return the number of recipients of each message that `postfix` has queued."""
    return [int(number) for number in _ACCEPTED.findall(postfix.log)]


def wait_for_all(postfix: Postfix, count: int) -> None:
    until = time.monotonic() + 60
    pause = threading.Event()
    while sum(accepted(postfix)) < count:
        assert time.monotonic() < until, postfix.log[-5000:]
        pause.wait(0.01)


@pytest.mark.parametrize("most", [50, 1000, 2500])
def test_2500_recipients_through_postfix_as_it_is_installed(
    start_postfix: Callable[..., Postfix], tmp_path: Path, most: int
) -> None:
    """It takes 1000 at a time, and hangs up after too many errors."""
    # The last two are the defaults.
    postfix = start_postfix(
        TAKES_ALL | {"smtpd_error_sleep_time": "1s", "smtpd_recipient_limit": "1000"}
    )
    delivery = queue(tmp_path, MANY)
    tally, _ = flush(delivery, postfix.port, most)
    assert tally == Tally(2500, 0, 0)
    wait_for_all(postfix, 2500)
    expected = [50] * 50 if most == 50 else [500, 1000, 1000]
    assert sorted(accepted(postfix)) == expected
    assert "too many errors" not in postfix.log


def test_a_postfix_that_takes_few(
    start_postfix: Callable[..., Postfix], tmp_path: Path
) -> None:
    postfix = start_postfix(
        TAKES_ALL
        | {"smtpd_recipient_limit": "20", "smtpd_recipient_overshoot_limit": "100"}
    )
    tally, _ = flush(queue(tmp_path, MANY[:500]), postfix.port, 50)
    assert tally == Tally(500, 0, 0)
    wait_for_all(postfix, 500)
    # The limit is learned once: the first 50 are 20, 20 and 10.
    assert max(accepted(postfix)) == 20
    assert len(accepted(postfix)) <= 27


def test_as_fast_as_postfix_is_as_a_client(
    start_postfix: Callable[..., Postfix],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """Both send 2,500 recipients to the same relay. The figures are in the report."""
    relay = start_postfix(TAKES_ALL)
    _, ours = flush(queue(tmp_path, MANY), relay.port, 50)
    wait_for_all(relay, 2500)
    client = start_postfix(
        {
            "relayhost": f"[127.0.0.1]:{relay.port}",
            "virtual_mailbox_domains": "",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "smtpd_recipient_restrictions": "permit",
            "mynetworks": "127.0.0.0/8",
            "smtpd_recipient_limit": "5000",
        }
    )
    mailer = SMTPMailer("127.0.0.1", client.port, recipients_per_transaction=5000)
    began = time.monotonic()
    assert len(mailer.send(SENDER, MANY, MESSAGE).sent) == 2500
    mailer.close()
    wait_for_all(relay, 5000)
    theirs = time.monotonic() - began
    record_property("seconds of postcommit", round(ours, 2))
    record_property("seconds of Postfix", round(theirs, 2))
    print(f"2,500 recipients: postcommit {ours:.2f} s, Postfix {theirs:.2f} s")
    assert accepted(relay)[:50] == [50] * 50


@pytest.mark.parametrize("rejects", ["false", "true"])
@pytest.mark.parametrize("most", [50, 1000])
def test_an_exim_with_a_limit(
    start_exim: Callable[..., Exim], tmp_path: Path, rejects: str, most: int
) -> None:
    """With `recipients_max_reject`, it refuses the whole message at DATA."""
    relay = start_exim(recipients_max="30", recipients_max_reject=rejects)
    tally, _ = flush(queue(tmp_path, MANY[:500]), relay.port, most)
    assert tally == Tally(500, 0, 0)
    received = relay.received()
    assert sorted(r for message in received for r in message) == sorted(MANY[:500])
    assert max(map(len, received)) == 30


@pytest.mark.parametrize("rejects", ["false", "true"])
def test_an_exim_that_counts_those_it_has_refused(
    start_exim: Callable[..., Exim], tmp_path: Path, rejects: str
) -> None:
    """The others follow at once, even if it has refused all before them."""
    relay = start_exim(recipients_max="10", recipients_max_reject=rejects)
    unknown = [f"nobody{number}@example.org" for number in range(25)]
    tally, _ = flush(queue(tmp_path, [*unknown, *MANY[:75]]), relay.port, 50)
    assert tally == Tally(75, 0, 25)
    received = relay.received()
    assert sorted(r for message in received for r in message) == sorted(MANY[:75])
    assert max(map(len, received)) == 10


@pytest.mark.parametrize("way", ["unix", "TCP"])
def test_lmtp_to_dovecot(mail_store: Dovecot, way: str) -> None:
    hostname = mail_store.path if way == "unix" else "127.0.0.1"
    mailer = SMTPMailer(hostname, mail_store.port, protocol="lmtp")
    users = ["ann", "nobody", "eve", "bob"]
    for number in range(3):
        report = mailer.send(
            SENDER,
            [f"{user}@example.org" for user in users],
            f"Subject: {number}\n\nIt is yours.\n",
        )
        statuses = [outcome.status.value for outcome in report.outcomes]
        assert statuses == ["sent", "rejected", "deferred", "sent"], mail_store.log
    mailer.close()
    for user in ("ann", "bob"):
        subjects = sorted(m["Subject"] for m in mail_store.mailbox(user))
        assert subjects == ["0", "1", "2"]


def test_a_queue_drains_into_dovecot(mail_store: Dovecot, tmp_path: Path) -> None:
    delivery = QueuedMailDelivery(str(tmp_path / "queue"))
    to = ["ann@example.org", "bob@example.org"]
    with transaction.manager:
        for number in range(100):
            delivery.send(SENDER, to, f"Subject: {number}\n\n")
    mailer = SMTPMailer(mail_store.path, protocol="lmtp")
    assert QueueProcessor(delivery.queuePath, mailer).flush() == Tally(200, 0, 0)
    mailer.close()
    for user in ("ann", "bob"):
        assert len({m["Subject"] for m in mail_store.mailbox(user)}) == 100


def test_postfix_understands_the_parameters_of_dsn(postfix: Postfix) -> None:
    message = "Message-Id: <a+b=c@example.org>\nSubject: x\n\nx\n"
    mailer = SMTPMailer("127.0.0.1", postfix.port, dsn=True)
    report = mailer.send(SENDER, ["ann@example.org", "bob@example.org"], message)
    mailer.close()
    assert len(report.sent) == 2, report
    assert len(postfix.wait_for("ann", 1)) == 1
