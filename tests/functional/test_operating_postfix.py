"""What goes wrong at night, as the page about operating has it, with a real relay."""
from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import transaction
from tests.functional.postfix import Postfix
from tests.support import queues
from tests.support.certificates import Authority
from tests.support.service import Running
from tests.support.service import command
from tests.support.service import eventually

from postcommit import QueuedMailDelivery
from postcommit.queue.store import Store


ANN, NOBODY = "ann@example.org", "nobody@example.org"


def send(queue: Path, *recipients: str, count: int = 1) -> None:
    delivery = QueuedMailDelivery(str(queue))
    with transaction.manager:
        for number in range(count):
            text = f"Subject: number {number}\n\nIt is yours.\n"
            delivery.send("shop@example.org", recipients, text)


def via(postfix: Postfix) -> list[str]:
    return ["--hostname", "127.0.0.1", "--port", str(postfix.port)]


def counts(queue: Path) -> tuple[int, int, int, int]:
    """Return how many are waiting, deferred, failed and in doubt."""
    told = json.loads(command("status", "--json", queue).stdout)
    waiting, deferred = told["waiting"], told["deferred"]
    return waiting, deferred, told["failed"], told["in_doubt"]


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


def test_one_recipient_bounces(postfix: Postfix, queue: Path) -> None:
    send(queue, ANN, NOBODY)
    assert command("flush", queue, *via(postfix)).returncode == 0
    assert len(postfix.wait_for("ann", 1)) == 1
    listed = command("list", queue, "--failed", "--to", NOBODY, "--json").stdout
    [dead] = [json.loads(line) for line in listed.splitlines()]
    assert dead["recipients"] == [NOBODY]
    assert dead["last_reply"].startswith("550 5.1.1 ")
    assert command("retry", queue, dead["id"][:8]).returncode == 0
    assert counts(queue) == (1, 0, 0, 0)
    assert command("flush", queue, *via(postfix)).returncode == 0
    assert counts(queue) == (0, 0, 1, 0)
    [dead] = command("list", queue, "--failed", "--json").stdout.splitlines()
    assert command("delete", queue, json.loads(dead)["id"]).returncode == 0
    assert counts(queue) == (0, 0, 0, 0)
    assert len(postfix.mailbox("ann")) == 1


def test_the_relay_is_away_and_comes_back(postfix: Postfix, queue: Path) -> None:
    send(queue, ANN, count=3)
    away = ["--hostname", "127.0.0.1", "--port", "1"]
    left = command("flush", queue, *away)
    assert left.returncode == 1
    assert "postcommit test-relay" in left.stderr + left.stdout
    assert command("test-relay", *away).returncode == 1
    assert counts(queue) == (3, 0, 0, 0)
    assert command("test-relay", *via(postfix)).returncode == 0
    assert command("flush", queue, *via(postfix)).returncode == 0
    assert len(postfix.wait_for("ann", 3)) == 3


def test_the_certificate_cannot_be_trusted(
    start_postfix: Callable[..., Postfix], queue: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    chain = tmp_path / "relay.pem"
    authority.write_chain(chain, "localhost")
    postfix = start_postfix(
        {"smtpd_tls_chain_files": str(chain), "smtpd_tls_security_level": "encrypt"}
    )
    send(queue, ANN)
    where = ["--hostname", "localhost", "--port", str(postfix.port)]
    where += ["--tls", "starttls"]
    assert command("flush", queue, *where).returncode == 1
    told = command("test-relay", *where)
    assert told.returncode == 1
    assert "cafile" in told.stdout + told.stderr
    assert counts(queue) == (1, 0, 0, 0)
    trusting = [*where, "--cafile", str(authority.cafile)]
    assert command("test-relay", *trusting).returncode == 0
    assert command("flush", queue, *trusting).returncode == 0
    assert len(postfix.wait_for("ann", 1)) == 1


def test_mail_is_in_doubt_after_a_crash(postfix: Postfix, queue: Path) -> None:
    queues.leave_in_doubt(Store(str(queue)), 2)
    assert command("status", queue).returncode == 1
    listed = command("list", queue, "--in-doubt", "--json").stdout.splitlines()
    first, second = (json.loads(line)["id"] for line in listed)
    assert command("recover", "--send", queue, first).returncode == 0
    assert command("recover", "--drop", queue, second).returncode == 0
    assert counts(queue) == (1, 0, 0, 0)
    assert command("status", queue).returncode == 0


def test_two_processors(postfix: Postfix, queue: Path) -> None:
    send(queue, ANN, count=40)
    with (
        Running("run", queue, *via(postfix)) as one,
        Running("run", queue, *via(postfix)) as other,
    ):
        delivered = postfix.wait_for("ann", 40)
        eventually(lambda: counts(queue) == (0, 0, 0, 0))
        for processor in (one, other):
            processor.signal(signal.SIGTERM)
            assert processor.ended() == 0
    assert set(Counter(m["Subject"] for m in delivered).values()) == {1}
    assert len(delivered) == 40


def test_the_queue_moves_and_a_back_up_is_put_back(
    postfix: Postfix, queue: Path, tmp_path: Path
) -> None:
    send(queue, ANN, count=2)
    there = tmp_path / "there"
    shutil.copytree(queue, there)
    assert command("check", there).returncode == 0
    assert command("flush", there, *via(postfix)).returncode == 0
    assert len(postfix.wait_for("ann", 2)) == 2
    # The one that was left behind is the back-up: what was sent is in it again.
    assert counts(queue) == (2, 0, 0, 0)
    assert command("delete", queue, "ALL", "--older", "0s", "--yes").returncode == 0
    assert counts(queue) == (0, 0, 0, 0)
    assert command("flush", queue, *via(postfix)).returncode == 0
    assert len(postfix.mailbox("ann")) == 2


def test_permissions(postfix: Postfix, queue: Path) -> None:
    send(queue, ANN)
    [entry] = (queue / "new").iterdir()
    os.chmod(entry, 0o644)
    told = command("check", queue)
    assert told.returncode == 1
    assert entry.name in told.stdout
    assert "chmod" in told.stdout
    os.chmod(entry, 0o600)
    assert command("check", queue).returncode == 0
    assert command("flush", queue, *via(postfix)).returncode == 0
    assert len(postfix.wait_for("ann", 1)) == 1
