"""Through a real Postfix, to its mailboxes."""
from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import transaction
from tests.functional.postfix import Postfix
from tests.support.certificates import Authority

from postcommit import DirectMailDelivery
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit import SMTPMailer
from postcommit.interfaces import Tally


ANN, BOB, NOBODY = "ann@example.org", "bob@example.org", "nobody@example.org"

SENDER = """
import sys
import transaction
from postcommit import QueuedMailDelivery

delivery = QueuedMailDelivery(sys.argv[1])
for number in range(3):
    with transaction.manager:
        delivery.send("shop@example.org", "ann@example.org",
                      f"Subject: number {number}\\n\\nIt is yours.\\n")
"""


def test_a_mail_sent_in_one_process_is_delivered_by_another(
    postfix: Postfix, tmp_path: Path
) -> None:
    queue = str(tmp_path / "queue")
    processor = QueueProcessor(
        queue, SMTPMailer("127.0.0.1", postfix.port), pollingInterval=3_600_000
    )
    processor.start()
    try:
        subprocess.run([sys.executable, "-c", SENDER, queue], check=True, timeout=60)
        delivered = postfix.wait_for("ann", 3)
    finally:
        assert processor.stop(30)
    subjects = sorted(message["Subject"] for message in delivered)
    assert subjects == ["number 0", "number 1", "number 2"]
    assert {m.get_payload() for m in delivered} == {"It is yours.\n"}


def test_it_leaves_no_process_behind(postfix: Postfix) -> None:
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    assert mailer.send("shop@example.org", ANN, "Subject: x\n\n").sent
    assert len(postfix.processes()) > 2
    postfix.stop()
    assert postfix.processes() == []
    mailer.close()


def test_unknown_recipients_among_known_ones(postfix: Postfix) -> None:
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    report = mailer.send("shop@example.org", [ANN, NOBODY, BOB], "Subject: x\n\nx\n")
    mailer.close()
    assert [o.recipient for o in report.sent] == [ANN, BOB]
    [rejected] = report.rejected
    assert rejected.recipient == NOBODY
    assert (rejected.reply.code, rejected.reply.enhanced) == (550, "5.1.1")
    assert len(postfix.wait_for("ann", 1)) == len(postfix.wait_for("bob", 1)) == 1


def test_a_direct_delivery_leaves_with_the_commit(postfix: Postfix) -> None:
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    delivery = DirectMailDelivery(mailer, check_relay=True)
    with transaction.manager:
        delivery.send("shop@example.org", BOB, "Subject: direct\n\nx\n")
        assert postfix.mailbox("bob") == []
    mailer.close()
    [message] = postfix.wait_for("bob", 1)
    assert message["Subject"] == "direct"
    assert message["Return-Path"] == "<shop@example.org>"


def test_a_message_arrives_whole_whatever_its_line_ends(postfix: Postfix) -> None:
    body = "a\r.\r\nb\n.\nc\r\n.\r\n..\n.d\rMAIL FROM:<eve@example.org>\n"
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    report = mailer.send("shop@example.org", ANN, f"Subject: dots\n\n{body}")
    mailer.close()
    assert len(report.sent) == 1
    [message] = postfix.wait_for("ann", 1)
    assert message.get_payload() == body.replace("\r\n", "\n").replace("\r", "\n")


def test_a_relay_that_refuses_bare_line_ends_has_nothing_to_refuse(
    start_postfix: Callable[..., Postfix],
) -> None:
    postfix = start_postfix({"smtpd_forbid_bare_newline": "reject"})
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    for body in ("a\nb\n", "a\rb\r", "a\n.\r\nb", "a\r\n.\nb"):
        report = mailer.send("shop@example.org", ANN, f"Subject: x\n\n{body}")
        assert len(report.sent) == 1, report
    mailer.close()
    postfix.wait_for("ann", 4)


def test_a_limit_on_the_size_is_respected_without_trying(
    start_postfix: Callable[..., Postfix],
) -> None:
    postfix = start_postfix({"message_size_limit": "2000"})
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    large = "Subject: large\n\n" + "x" * 70 + "\n" * 3000
    [rejected] = mailer.send("shop@example.org", ANN, large).rejected
    assert rejected.reply.enhanced == "5.3.4"
    assert mailer.send("shop@example.org", ANN, "Subject: small\n\n").sent
    mailer.close()
    [message] = postfix.wait_for("ann", 1)
    assert message["Subject"] == "small"


def test_an_error_limit_does_not_lose_the_good_recipients(
    start_postfix: Callable[..., Postfix], tmp_path: Path
) -> None:
    postfix = start_postfix({"smtpd_hard_error_limit": "3"})
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    delivery = QueuedMailDelivery(str(tmp_path / "queue"))
    unknown = [f"unknown{n}@example.org" for n in range(5)]
    with transaction.manager:
        delivery.send("shop@example.org", [*unknown, ANN], "Subject: x\n\n")
    sent = rejected = 0
    for hours in range(1, 6):
        later = time.time() + 4 * 3600 * hours
        clock = functools.partial(float, later)
        tally = QueueProcessor(delivery.queuePath, mailer, clock=clock).flush()
        sent, rejected = sent + tally.sent, rejected + tally.rejected
    mailer.close()
    assert (sent, rejected) == (1, 5)
    assert len(postfix.wait_for("ann", 1)) == 1


def test_addresses_that_are_not_ascii(start_postfix: Callable[..., Postfix]) -> None:
    postfix = start_postfix({"smtputf8_enable": "yes"}, users=("jörg",))
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    report = mailer.send("shop@example.org", "jörg@example.org", "Subject: x\n\nx\n")
    mailer.close()
    assert [o.recipient for o in report.sent] == ["jörg@example.org"]
    assert len(postfix.wait_for("jörg", 1)) == 1


@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_tls_with_a_private_authority(
    start_postfix: Callable[..., Postfix], tls: str, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate = tmp_path / "relay.pem"
    authority.write_chain(certificate, "localhost")
    postfix = start_postfix(
        {
            "smtpd_tls_chain_files": str(certificate),
            "smtpd_tls_security_level": "encrypt" if tls == "starttls" else "may",
        },
        implicit_tls=tls == "implicit",
    )
    trusting = SMTPMailer("localhost", postfix.port, tls=tls, cafile=authority.cafile)
    assert trusting.send("shop@example.org", ANN, "Subject: x\n\n").sent
    trusting.close()
    suspicious = SMTPMailer("localhost", postfix.port, tls=tls)
    report = suspicious.send("shop@example.org", ANN, "Subject: x\n\n")
    assert "cannot be trusted" in str(report.relay_failure)
    postfix.wait_for("ann", 1)


def test_a_queue_of_some_hundred_is_drained(postfix: Postfix, tmp_path: Path) -> None:
    delivery = QueuedMailDelivery(str(tmp_path / "queue"))
    with transaction.manager:
        for number in range(300):
            message = f"Subject: number {number}\n\n"
            delivery.send("shop@example.org", [ANN, BOB], message)
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    tally = QueueProcessor(delivery.queuePath, mailer).flush()
    mailer.close()
    assert tally == Tally(600, 0, 0)
    for user in ("ann", "bob"):
        subjects = {m["Subject"] for m in postfix.wait_for(user, 300)}
        assert len(subjects) == 300


def test_a_postfix_with_many_settings_of_its_own(
    start_postfix: Callable[..., Postfix],
) -> None:
    """None stands twice: its log would block, and with it the whole relay."""
    postfix = start_postfix(
        {
            "alias_maps": "static:ann",
            "compatibility_level": "3.5",
            "local_recipient_maps": "static:ann",
            "mydestination": "localhost",
            "myhostname": "mail.example.org",
            "smtpd_error_sleep_time": "1s",
            "smtpd_recipient_restrictions": "permit",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "virtual_mailbox_domains": "example.org",
            "virtual_uid_maps": "static:65534",
        }
    )
    mailer = SMTPMailer("127.0.0.1", postfix.port)
    assert mailer.send("shop@example.org", ANN, "Subject: x\n\n").sent
    mailer.close()
    assert "overriding" not in postfix.log
