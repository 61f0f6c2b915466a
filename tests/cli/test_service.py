"""What a supervisor and a shell are told; the unit that is shipped."""
from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from postcommit._cli import main as cli
from postcommit._cli import run
from postcommit._cli.configuration import Configuration
from postcommit._cli.run import SILENT_AFTER
from postcommit._cli.service import Signals
from postcommit._cli.service import Supervisor
from postcommit._maildir.presence import ring
from postcommit._maildir.store import Store
from tests.support.queues import wait
from tests.support.service import ROOT
from tests.support.service import Running
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay


# The supervisor


@pytest.fixture(params=["path", "abstract"])
def notified(
    request: Any, tmp_path: Path
) -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Return what NOTIFY_SOCKET is, and a function that waits for a datagram."""
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = f"@postcommit-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        unix.settimeout(60)
        unix.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        yield name, lambda: unix.recv(4096).decode().split("\n")


def test_a_service_tells_how_it_is(
    notified: Any, relay: ScriptedRelay, store: Store, tmp_path: Path
) -> None:
    name, hear = notified
    config = tmp_path / "shop.ini"
    config.write_text("[postcommit]\n")
    variables = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "300000"}
    argv = ["run", store.path, *to(relay), "--config", config]
    with Running(*argv, **variables) as service:
        assert hear()[0] == "READY=1"
        assert hear() == ["WATCHDOG=1"]
        service.signal(signal.SIGHUP)
        while (told := hear()) == ["WATCHDOG=1"]:
            pass
        assert told[0] == "RELOADING=1"
        assert int(told[1].removeprefix("MONOTONIC_USEC=")) > 0
        assert hear()[0] == "READY=1"
        service.signal(signal.SIGTERM)
        while (told := hear()) == ["WATCHDOG=1"]:
            pass
        assert told[0] == "STOPPING=1"
        assert service.ended() == 0


def test_a_supervisor_that_does_not_listen_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deaf = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "absent")})
    with caplog.at_level(logging.WARNING):
        deaf.alive()
        deaf.stopping()
    assert len(caplog.records) == 1
    assert "absent" in caplog.text


def test_without_a_supervisor_nothing_is_said(caplog: Any) -> None:
    Supervisor({}).ready("well")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_the_watchdogs_interval(variables: dict[str, str], seconds: Any) -> None:
    assert Supervisor(variables).watchdog_seconds == seconds


def test_the_watchdog_hears_nothing_of_a_processor_that_hangs(
    notified: Any,
    relay: ScriptedRelay,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, hear = notified
    options = cli._parser().parse_args(["run", store.path, *to(relay)])
    supervisor = Supervisor({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000"})
    # Any sign of life is too old, as if the last one were long ago.
    monkeypatch.setattr(run, "SILENT_AFTER", -1.0)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    with Signals(signal.SIGTERM, signal.SIGALRM) as signals:
        service = run.Service(options, signals, supervisor)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        monkeypatch.setattr(run, "_END", (signal.SIGALRM,))
        assert service.run() == 0
    assert [hear()[0], hear()[0]] == ["READY=1", "STOPPING=1"]


# The unit


UNIT = ROOT / "docs" / "postcommit@.service"


def unit() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_the_command_of_the_unit_is_one() -> None:
    [start] = unit()["ExecStart"]
    program, *argv = shlex.split(start.replace("%i", "shop"))
    assert program.endswith("/postcommit")
    options = cli._parser().parse_args(argv)
    assert options.queue_path == "/var/spool/postcommit/shop"
    assert options.config == "/etc/postcommit/shop.ini"


def test_the_unit_fits_what_the_service_does() -> None:
    found = unit()
    assert found["Type"] == ["notify"]
    assert float(found["WatchdogSec"][0]) > 3 * SILENT_AFTER
    assert float(found["TimeoutStopSec"][0]) > 600
    assert found["RestartPreventExitStatus"] == ["2"]
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Its own check knows each setting, and says how far the service is closed."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("Debian's package systemd is not installed")
    text = UNIT.read_text()
    # The command is not where it will be.
    assert "ExecStart=/opt/postcommit/bin/postcommit " in text
    file = tmp_path / "postcommit@shop.service"
    file.write_text(text.replace("/opt/postcommit/bin/postcommit", "/bin/true"))
    for check in (["verify"], ["security", "--offline=yes", "--threshold=15"]):
        done = subprocess.run(
            [program, *check, str(file)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


# The page

PAGE = (ROOT / "docs" / "service.rst").read_text()


def test_the_commands_of_the_page_are_understood() -> None:
    lines = [line.strip() for line in PAGE.splitlines()]
    commands = [line[2:] for line in lines if line.startswith("$ postcommit ")]
    assert len(commands) > 3
    for line in commands:
        cli._parser().parse_args(shlex.split(line)[1:])


def test_the_file_of_the_page_is_understood(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("s3cret\n")
    _, _, rest = PAGE.partition(".. code-block:: ini\n\n")
    text, _, _ = rest.partition("\n\nWith ``--failover")
    lines = [line.strip() for line in text.splitlines()]
    config = tmp_path / "shop.ini"
    config.write_text(
        "\n".join(lines).replace("/etc/postcommit/shop.password", str(password))
    )
    options = cli._parser().parse_args(["run", "--config", str(config)])
    found = Configuration(options, {})
    mailer = found.mailer()
    assert (mailer.port, mailer.password) == (587, "s3cret")
    assert found.processor(mailer).queuePath == "/var/spool/postcommit/shop"
    assert found.log_format == "json"


def test_the_container_of_the_page_begins_with_an_empty_volume(
    relay: ScriptedRelay, tmp_path: Path
) -> None:
    """The folder of the volume is there, and belongs to the user; the queue is not."""
    [line] = [x for x in PAGE.splitlines() if x.strip().startswith("ENTRYPOINT ")]
    program, *argv = json.loads(line.split(maxsplit=1)[1])
    assert program == "postcommit"
    assert "/queues\n" in PAGE
    argv = [word.replace("/queues/", f"{tmp_path}/") for word in argv]
    with Running(*argv, *to(relay)) as service:
        service.wait_for('"message": "drains ')
        wait(Store(f"{tmp_path}/shop"))
        ring(f"{tmp_path}/shop")
        relay.wait_until(lambda: relay.messages, 60)
        service.signal(signal.SIGTERM)
        assert service.ended() == 0
