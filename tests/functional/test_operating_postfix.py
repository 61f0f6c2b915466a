"""What goes wrong at night, as the page about operating has it, with a real relay.

One Postfix serves most of the nights. It offers AUTH, and asks `Passwords` whether
one is good, for neither Cyrus SASL's nor Dovecot's daemon is installed.
"""
from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path

import pytest
import transaction
from tests.functional.passwords import Passwords
from tests.functional.postfix import Postfix
from tests.functional.postfix import starting
from tests.functional.postfix import why_not
from tests.support import queues
from tests.support.certificates import Authority
from tests.support.faults import full_disk
from tests.support.service import Running
from tests.support.service import command
from tests.support.service import eventually
from tests.support.terminal import on_terminal

from postcommit import QueuedMailDelivery
from postcommit._maildir.store import Store
from postcommit.errors import QueueError


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


def untried(queue: Path) -> dict[str, tuple[int, int]]:
    """Return the files of what was never tried; they are others once rewritten."""
    found = {path.name: path.stat() for path in (queue / "new").iterdir()}
    return {name: (file.st_ino, file.st_mtime_ns) for name, file in found.items()}


PASSWORDS = Passwords({"shop": "right"})


@pytest.fixture(scope="module")
def relay() -> Iterator[Postfix]:
    if reason := why_not():
        pytest.skip(reason)
    with PASSWORDS, starting() as start:
        yield start(PASSWORDS.settings)


@pytest.fixture
def postfix(relay: Postfix) -> Iterator[Postfix]:
    yield relay
    relay.empty_mailboxes()


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    return tmp_path / "queue"


def status(queue: Path) -> str:
    """Return what ``postcommit status QUEUE`` prints."""
    return command("status", queue).stdout


def test_the_relay_refuses_the_password(
    postfix: Postfix, queue: Path, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("expired\n")
    login = [*via(postfix), "--username", "shop", "--password-file", password]
    send(queue, ANN, count=2)
    before = untried(queue)
    with Running("run", queue, *login) as service:
        eventually(lambda: "paused since" in status(queue))
        assert "login refused: 535 5.7.8 Error: auth" in status(queue)
        told = command("test-relay", *login)
        assert told.returncode == 1
        assert "535 5.7.8" in told.stdout
        assert untried(queue) == before
        password.write_text("right\n")
        assert command("test-relay", *login).returncode == 0
        service.signal(signal.SIGTERM)
        assert service.ended() == 0
    with Running("run", queue, *login):
        assert len(postfix.wait_for("ann", 2)) == 2
        eventually(lambda: counts(queue) == (0, 0, 0, 0))
        assert "paused" not in status(queue)


def test_the_disk_is_full(postfix: Postfix, tmp_path: Path) -> None:
    with full_disk(tmp_path, 512) as disk:
        if not os.path.ismount(disk):
            pytest.skip("no file system may be mounted here")
        queue = disk / "queue"
        send(queue, NOBODY)
        old = queues.write(Store(str(queue)), ".Failed/new/1700000000.M1P1Q1.web1.R1")
        for name in ("tmp", "cur"):
            (queue / ".Failed" / name).mkdir()
        old.write_bytes(old.read_bytes() + bytes(65536))
        with pytest.raises(OSError, match="No space"):
            (disk / "filler").write_bytes(bytes(1 << 20))
        with pytest.raises(QueueError, match="No space"):
            send(queue, ANN)
        assert list((queue / "tmp").iterdir()) == []
        told = command("check", queue)
        assert told.returncode == 1
        assert f"{queue}: is on a disk with 0 MiB left; " in told.stdout
        # There is no room for another dead letter; it is tried again later.
        assert command("flush", queue, *via(postfix)).returncode == 1
        assert counts(queue) == (0, 1, 1, 0)
        argv = ("delete", queue, "ALL", "--failed", "--older", "30d")
        assert on_terminal(*argv, answer="y\n")[0] == 0
        assert command("retry", queue, "ALL").returncode == 0
        send(queue, ANN)
        assert command("flush", queue, *via(postfix)).returncode == 0
        assert len(postfix.wait_for("ann", 1)) == 1
        assert counts(queue) == (0, 0, 1, 0)


def test_the_queue_grows(
    start_postfix: Callable[..., Postfix], queue: Path, tmp_path: Path
) -> None:
    """The relay is slow; then it is sent too much, by two processors."""
    postfix = start_postfix(
        {
            "smtpd_recipient_restrictions": "sleep 1, permit",
            "smtpd_client_message_rate_limit": "12",
            "smtpd_client_event_limit_exceptions": "",
            "anvil_rate_time_unit": "1h",
        }
    )
    config = tmp_path / "shop.ini"
    options = f"[postcommit]\nhostname = 127.0.0.1\nport = {postfix.port}\n"
    config.write_text(f"{options}workers = 1\n")
    send(queue, ANN, count=12)
    argv = ["run", queue, "--config", config]
    with Running(*argv) as one:
        postfix.wait_for("ann", 1)
        told = json.loads(command("status", "--json", queue).stdout)
        assert told["waiting"] > 0
        assert told["processor_alive"]
        assert told["paused"] is None
        assert command("test-relay", "--config", config).returncode == 0
        before = len(postfix.log)
        config.write_text(f"{options}workers = 12\n")
        one.signal(signal.SIGHUP)
        postfix.wait_for("ann", 12)
        assert most_at_once(postfix.log[before:]) > 2
        with Running(*argv) as other:
            other.wait_for("drains")
            send(queue, ANN, count=3)
            eventually(lambda: counts(queue) == (0, 3, 0, 0))
    shown = "3  deferred; most often (3 of 3): 450 4.7.1 Error: too much mail"
    assert shown in status(queue)
    assert command("status", queue).returncode == 0  # they are not due


def most_at_once(log: str) -> int:
    """Return how many connections were open at a time."""
    most = now = 0
    for line in log.splitlines():
        now += (": connect from" in line) - (": disconnect from" in line)
        most = max(most, now)
    return most


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


def test_the_certificate_has_expired(
    start_postfix: Callable[..., Postfix], queue: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    chain = tmp_path / "relay.pem"
    authority.write_chain(chain, "localhost", expired=True)
    postfix = start_postfix(
        {"smtpd_tls_chain_files": str(chain), "smtpd_tls_security_level": "encrypt"}
    )
    send(queue, ANN)
    where = ["--hostname", "localhost", "--port", str(postfix.port)]
    where += ["--tls", "starttls"]
    told = command("test-relay", *where)
    assert told.returncode == 1
    assert "cafile" in told.stdout + told.stderr
    where += ["--cafile", str(authority.cafile)]
    with Running("run", queue, *where) as service:
        eventually(lambda: "paused since" in status(queue))
        assert "certificate has expired" in status(queue)
        told = command("test-relay", *where)
        assert told.returncode == 1
        assert "to see it: openssl s_client" in told.stdout
        assert counts(queue) == (1, 0, 0, 0)
        authority.write_chain(chain, "localhost")
        postfix.reload()
        assert command("test-relay", *where).returncode == 0
        assert len(postfix.wait_for("ann", 1)) == 1
        service.signal(signal.SIGTERM)
        assert service.ended() == 0


def test_mail_is_in_doubt_after_a_crash(postfix: Postfix, queue: Path) -> None:
    queues.leave_in_doubt(Store(str(queue)), 2)
    assert command("status", queue).returncode == 1
    listed = command("list", queue, "--in-doubt", "--json").stdout.splitlines()
    first, second = (json.loads(line)["id"] for line in listed)
    assert command("recover", "--send", queue, first).returncode == 0
    assert command("recover", "--drop", queue, second).returncode == 0
    assert counts(queue) == (1, 0, 0, 0)
    # One entry is due, and this site sends by a timer.
    assert command("status", queue, "--no-processor").returncode == 0


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
    subprocess.run(["cp", "-a", queue, there], check=True)
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
