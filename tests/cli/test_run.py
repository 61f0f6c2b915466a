"""``postcommit run`` as a process: signals, relays, what is in flight."""
from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postcommit._cli import main as cli
from postcommit._cli import run
from postcommit._cli.main import main
from postcommit._cli.run import SILENT_AFTER
from postcommit._cli.run import Drainer
from postcommit._cli.run import Service
from postcommit._cli.service import Signals
from postcommit._cli.service import Supervisor
from postcommit._maildir.looking import young_claims
from postcommit._maildir.presence import ring
from postcommit._maildir.store import Store
from postcommit._processor import QueueProcessor
from postcommit._smtp.mailer import SMTPMailer
from postcommit.testing import EmbeddedRelay
from tests.support.queues import RECIPIENTS
from tests.support.queues import wait
from tests.support.queues import write
from tests.support.service import Running
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay


def entries(store: Store) -> list[str]:
    return [*os.listdir(f"{store.path}/new"), *os.listdir(f"{store.path}/cur")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_what_is_in_flight_has_finished(
    number: int, relay: ScriptedRelay, store: Store
) -> None:
    hold = relay.hold("END")
    wait(store)
    with Running("run", store.path, *to(relay)) as service:
        assert hold.reached.wait(60)
        wait(store)
        service.signal(number)
        service.wait_for("ending")
        service.signal(number)
        service.wait_for("still waits")
        assert not relay.messages
        hold.release()
        assert service.ended() == 0
        assert "Traceback" not in service.log
    assert len(relay.messages) == 1
    assert len(entries(store)) == 1


def test_hangup_rereads_the_configuration_while_the_old_one_finishes(
    start: Callable[..., ScriptedRelay], store: Store, tmp_path: Path
) -> None:
    old, new = start(), start()
    hold = old.hold("END")
    config = tmp_path / "shop.ini"

    def configure(port: object) -> None:
        config.write_text(
            f"[postcommit]\nhostname = 127.0.0.1\nport = {port}\n"
            f"queue_path = {store.path}\nlog_format = json\n"
        )

    configure(old.port)
    wait(store)
    with Running("run", "--config", config) as service:
        assert hold.reached.wait(60)
        configure("0")
        service.signal(signal.SIGHUP)
        service.wait_for("the old configuration stays")
        assert "port='0'" in service.log
        configure(new.port)
        service.signal(signal.SIGHUP)
        service.wait_for(f"through <SMTPMailer 127.0.0.1:{new.port}>")
        wait(store)
        ring(store.path)
        new.wait_until(lambda: new.messages, 60)
        assert not old.messages
        hold.release()
        old.wait_until(lambda: old.messages and not old.open, 60)
        service.signal(signal.SIGTERM)
        assert service.ended() == 0
    assert (len(old.messages), len(new.messages)) == (1, 1)
    assert entries(store) == []


def test_a_storm_of_signals_loses_nothing_and_sends_nothing_twice(
    relay: ScriptedRelay, store: Store
) -> None:
    for _ in range(30):
        wait(store)
    with Running("run", store.path, *to(relay)) as service:
        relay.wait_until(lambda: relay.messages, 60)
        for number in [signal.SIGHUP] * 20 + [signal.SIGTERM, signal.SIGINT] * 5:
            service.signal(number)
        assert service.ended() == 0
        assert "Traceback" not in service.log
    assert len(relay.messages) + len(entries(store)) == 30


def test_a_relay_that_comes_back(relay: ScriptedRelay, store: Store) -> None:
    relay.down()
    wait(store)
    with Running("run", store.path, *to(relay)) as service:
        service.wait_for("the queue pauses")
        relay.up()
        relay.wait_until(lambda: relay.messages, 60)
        service.signal(signal.SIGTERM)
        assert service.ended() == 0


def test_a_relay_of_another_make(store: Store) -> None:
    wait(store)
    with EmbeddedRelay() as relay:
        argv = ["--hostname", relay.host, "--port", relay.port]
        with Running("run", store.path, *argv) as service:
            service.wait_for(": sent: 250", 2)
            service.signal(signal.SIGINT)
            assert service.ended() == 0
        assert [letter.recipients for letter in relay.mailbox] == [RECIPIENTS]
    assert entries(store) == []


# What is refused, and changes nothing


def refused(capsys: Any, *argv: object) -> str:
    assert main([str(arg) for arg in argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("postcommit: ")
    assert err.count("\n") == 1
    return str(err)


@pytest.mark.parametrize("command", ["run", "flush"])
def test_a_queue_that_is_none(command: str, tmp_path: Path, capsys: Any) -> None:
    missing, file = tmp_path / "missing", tmp_path / "file"
    file.write_text("")
    assert "--create makes it" in refused(capsys, command, missing)
    assert "is no folder" in refused(capsys, command, file)
    assert "no tmp" in refused(capsys, command, tmp_path)
    deep = tmp_path / "missing" / "queue"
    assert "missing" in refused(capsys, command, deep, "--create")
    assert os.listdir(tmp_path) == ["file"]


def test_a_queue_of_another_librarys_processor(store: Store, capsys: Any) -> None:
    name = wait(store)
    claim = Path(store.path, "new", f".sending-{name}")
    os.link(Path(store.path, "new", name), claim)
    err = refused(capsys, "run", store.path)
    assert err.startswith(f"postcommit: {claim}: another library's processor drains")
    assert "stop it first" in err
    hours_ago = time.time() - 4 * 3600
    os.utime(claim, (hours_ago, hours_ago))
    with ScriptedRelay() as relay:
        assert main(["flush", store.path, *to(relay)]) == 0


def test_a_claim_that_goes_away_is_none(store: Store) -> None:
    both = {str(write(store, f"new/.sending-{number}")) for number in (1, 2)}
    claims = young_claims(store, time.time())
    left = both - {next(claims)}
    os.unlink(left.pop())
    assert list(claims) == []


# The service, here in this process


@pytest.fixture
def service(
    relay: ScriptedRelay, store: Store, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    options = cli._parser().parse_args(["run", store.path, *to(relay)])
    with Signals(signal.SIGTERM, signal.SIGHUP) as signals:
        # It looks after its processor three times as often as its watchdog wants.
        yield Service(options, signals, Supervisor({"WATCHDOG_USEC": "300000"}))


def test_it_ends_if_its_processor_does(service: Service, caplog: Any) -> None:
    service._drainer.processor.stop()
    assert service.run() == 1
    assert "the processor has died" in caplog.text


def test_the_death_of_a_thread_is_logged(service: Service, caplog: Any) -> None:
    def die() -> None:
        raise LookupError("of something")

    thread = threading.Thread(target=die)
    thread.start()
    thread.join()
    service._drainer.processor.stop()
    assert "LookupError: of something" in caplog.text


def test_it_is_alive_as_long_as_it_gives_signs_of_life(
    relay: ScriptedRelay, store: Store
) -> None:
    mailer = SMTPMailer("127.0.0.1", relay.port)
    processor = QueueProcessor(store.path, mailer)
    drainer = Drainer(processor, mailer)
    assert not drainer.is_alive(time.monotonic())
    processor.start()
    last = processor.last_sign
    assert last is not None
    assert drainer.is_alive(last + SILENT_AFTER - 1)
    signs = processor.last_sign
    assert signs is not None
    assert not drainer.is_alive(signs + SILENT_AFTER + 11)
    assert processor.stop()
    assert not drainer.is_alive(time.monotonic())
    assert drainer.is_over()


def test_a_hangup_and_the_end_at_once(service: Service, relay: ScriptedRelay) -> None:
    signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGTERM)
    assert service.run() == 0


def test_signals_are_waited_for_and_then_as_they_were() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with Signals(signal.SIGHUP) as signals:
        assert signals.wait(0) == []
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert signals.wait(60) == [signal.SIGHUP, signal.SIGHUP]
    assert signal.getsignal(signal.SIGHUP) is before


def test_the_docstring_says_what_signals_do() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        assert number.name in str(run.__doc__)
