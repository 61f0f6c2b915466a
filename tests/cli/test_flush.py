"""``postcommit flush``: what is due is tried once, and what remains is told."""
from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from postcommit._cli.main import main
from postcommit._cli.progress import Progress
from postcommit._cli.progress import WatchedMailer
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._maildir.store import Store
from postcommit._processor import QueueProcessor
from postcommit._smtp.mailer import SMTPMailer
from postcommit.interfaces import IPipelineMailer
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from tests.support.mailers import send_all
from tests.support.queues import defer
from tests.support.queues import wait
from tests.support.service import COMMAND
from tests.support.service import ROOT
from tests.support.service import command
from tests.support.service import environment
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay


def flushed(store: Store, relay: ScriptedRelay, *argv: str) -> int:
    return main(["flush", store.path, *to(relay), *argv])


def test_an_empty_queue(relay: ScriptedRelay, tmp_path: Path, capsys: Any) -> None:
    queue = tmp_path / "queue"
    assert main(["flush", str(queue), *to(relay), "--create"]) == 0
    assert capsys.readouterr() == ("recipients: 0 sent, 0 deferred, 0 rejected\n", "")
    assert sorted(os.listdir(queue / "new")) == []


def test_all_is_sent_or_rejected(
    relay: ScriptedRelay, store: Store, capsys: Any
) -> None:
    relay.reply("RCPT", "550 5.1.1 Unknown", address="b@x.org")
    wait(store)
    assert flushed(store, relay) == 0
    out, err = capsys.readouterr()
    assert out == "recipients: 1 sent, 0 deferred, 1 rejected\n"
    assert "b@x.org: rejected: 550" in err
    assert "a@x.org" not in err
    assert len(os.listdir(f"{store.path}/.Failed/new")) == 1


def test_something_remains(relay: ScriptedRelay, store: Store, capsys: Any) -> None:
    relay.reply("RCPT", "450 4.2.0 Later", address="b@x.org")
    defer(store, due=3600.0)
    wait(store)
    assert flushed(store, relay, "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "sent": 1,
        "deferred": 1,
        "rejected": 0,
        "uncertain": 0,
        "left": 2,
        "relay_failure": None,
    }
    assert flushed(store, relay) == 1
    assert "2 left in the queue; see 'postcommit list'" in capsys.readouterr().out


def test_the_relay_fails(relay: ScriptedRelay, store: Store) -> None:
    relay.down()
    wait(store)
    wait(store)
    done = command("flush", store.path, *to(relay), "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["left"] == 2
    assert "Connection refused" in told["relay_failure"]
    done = command("flush", store.path, *to(relay))
    assert done.returncode == 1
    assert "the relay failed: no connection" in done.stdout
    assert "test-relay" in done.stdout


def test_interrupted_it_finishes_what_is_in_flight(
    relay: ScriptedRelay, store: Store, capsys: Any
) -> None:
    hold = relay.hold("END")
    wait(store)

    def interrupt() -> None:
        assert hold.reached.wait(60)
        wait(store)
        signal.raise_signal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        hold.release()

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert flushed(store, relay) == 130
    thread.join()
    assert len(relay.messages) == 1
    assert "1 left in the queue" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_bar_on_a_terminal_only(relay: ScriptedRelay, store: Store) -> None:
    relay.reply("RCPT", "450 4.2.0 Later", address="b@x.org")
    wait(store)
    wait(store)
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "flush", store.path, *to(relay)],
        cwd=ROOT,
        env=environment(TERM="xterm", COLUMNS="60"),
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=60,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "0 of 2" in shown
    assert "[" not in shown.rpartition("\r\x1b[K")[2]
    for line in shown.splitlines():
        # The log has lines of its own.
        assert "deferred" not in line or line.rpartition("\x1b[K")[2].startswith("20")
    assert shown.count("b@x.org: deferred") == 2
    assert done.stdout.startswith(b"recipients: 2 sent, 2 deferred, 0 rejected\n")
    assert done.returncode == 1


# The parts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def report(**options: Any) -> DeliveryReport:
    return DeliveryReport.alike("1@x.org", ["a@x.org"], Status.SENT, Reply(250))


def test_the_bar_grows_and_is_wiped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr("postcommit._cli.output.INTERVAL", 0.0)
    stream = Terminal()
    with Progress(2, stream) as progress:
        for _ in range(3):
            progress.note(report())
    assert stream.getvalue().split("\r\x1b[K") == [
        "",
        "[          ] 0 of 2",
        "[#####     ] 1 of 2",
        "[##########] 2 of 2",
        "[##########] 3 of 3",
        "",
    ]


def test_the_bar_is_not_drawn_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("postcommit._cli.output.INTERVAL", 3600.0)
    stream = Terminal()
    with Progress(1, stream) as progress:
        progress.note(report())
    assert "1 of 1" not in stream.getvalue()


def test_a_terminal_that_goes_away_takes_no_report_with_it(
    relay: ScriptedRelay, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("postcommit._cli.output.INTERVAL", 0.0)
    wait(store)
    wait(store)
    ours, theirs = pty.openpty()
    stream = os.fdopen(theirs, "w")
    mailer = SMTPMailer("127.0.0.1", relay.port)
    with Progress(2, stream) as progress:
        os.close(ours)
        processor = QueueProcessor(store.path, WatchedMailer(mailer, progress.note))
        tally = processor.flush()
    mailer.close()
    with pytest.raises(OSError, match="Input/output error"):
        stream.close()  # what could not be shown is still there
    assert tally == Tally(4, 0, 0)
    assert len(relay.messages) == 2
    assert list(store.maildir) == []


def test_a_watched_mailer_is_as_the_one_it_watches(
    start: Callable[..., ScriptedRelay],
) -> None:
    relay = start()
    seen: list[Any] = []
    mailer = SMTPMailer("127.0.0.1", relay.port)
    watched = WatchedMailer(mailer, seen.append)
    assert verifyObject(IPipelineMailer, watched)
    assert watched.notify is mailer.notify
    message = b"Subject: x\r\n\r\nx\r\n"
    single = watched.send("s@x.org", ["a@x.org"], message)
    [batch] = send_all(watched, [("s@x.org", ["a@x.org"], message)])
    mailer.close()
    assert seen == [single, batch]
    assert [len(r.sent) for r in seen] == [1, 1]
