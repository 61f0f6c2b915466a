"""Signals to ``postcommit run`` at its edges: as it starts, reloads and ends."""
from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from postcommit._maildir.presence import ring
from postcommit._maildir.store import Store
from tests.support.queues import wait
from tests.support.service import Running
from tests.support.service import command
from tests.support.service import environment
from tests.support.service import eventually
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay


HANGUPS = 20


def status(service: Running, field: str) -> str:
    text = Path(f"/proc/{service._process.pid}/status").read_text()
    found = re.search(rf"^{field}:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else "0"


def takes(service: Running, number: int) -> bool:
    """Tell whether `number` does not kill the process any more."""
    mask = int(status(service, "SigBlk"), 16) | int(status(service, "SigCgt"), 16)
    return bool(mask >> (number - 1) & 1)


def threads(service: Running) -> int:
    return len(os.listdir(f"/proc/{service._process.pid}/task"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("times", [1, 50])
def test_a_signal_in_the_first_moment_ends_it_well(
    relay: ScriptedRelay, store: Store, number: int, times: int
) -> None:
    wait(store)
    with Running("run", store.path, *to(relay)) as service:
        # SIGHUP, which Python itself does not handle, tells when it is taken.
        eventually(lambda: takes(service, signal.SIGHUP))
        for _ in range(times):
            service.signal(number)
        assert service.ended() == 0
        assert "Traceback" not in service.log
    assert len(relay.messages) + len(os.listdir(f"{store.path}/new")) == 1


def test_a_hangup_in_the_first_moment_does_not_end_it(
    relay: ScriptedRelay, store: Store
) -> None:
    with Running("run", store.path, *to(relay)) as service:
        eventually(lambda: takes(service, signal.SIGHUP))
        service.signal(signal.SIGHUP)
        service.wait_for("drains", 2)
        service.signal(signal.SIGTERM)
        assert service.ended() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_last_moment_changes_nothing(
    relay: ScriptedRelay, store: Store, number: int
) -> None:
    with Running("run", store.path, *to(relay)) as service:
        service.wait_for("drains")
        service.signal(signal.SIGTERM)
        service.wait_for("ended")
        while service._process.poll() is None:
            service.signal(number)
        assert service.ended() == 0
        assert "Traceback" not in service.log


def test_a_service_that_cannot_start_still_says_so(store: Store) -> None:
    done = command("run", store.path, "--port", "0")
    assert done.returncode == 2
    assert "port" in done.stderr


def test_of_many_reloads_at_most_one_predecessor_is_left(
    start: Callable[..., ScriptedRelay], store: Store
) -> None:
    relay = start()
    hold = relay.hold("END")
    wait(store)
    with Running("run", store.path, *to(relay)) as service:
        assert hold.reached.wait(60)
        before = threads(service)
        service.signal(signal.SIGHUP)
        service.wait_for("drains", 2)
        for number in range(HANGUPS):
            service.signal(signal.SIGHUP)
            service.wait_for("reloads when the processor before this", number + 1)
            assert threads(service) <= 2 * before
        assert service.log.count("drains") == 2
        hold.release()
        service.wait_for("drains", 3)
        eventually(lambda: threads(service) <= before)
        service.signal(signal.SIGTERM)
        assert service.ended() == 0
    assert len(relay.messages) == 1


def test_without_a_thread_to_be_had_a_reload_leaves_the_old_one(
    relay: ScriptedRelay, store: Store
) -> None:
    with Running("run", store.path, *to(relay)) as service:
        service.wait_for("drains")
        process = service._process.pid
        before = threads(service)
        limits = resource.prlimit(process, resource.RLIMIT_AS)
        # No room for the stack of one more thread, 8 MB, but enough to go on.
        room = int(status(service, "VmSize")) * 1024 + (6 << 20)
        resource.prlimit(process, resource.RLIMIT_AS, (room, limits[1]))
        for number in range(3):
            service.signal(signal.SIGHUP)
            service.wait_for("the old configuration stays", number + 1)
        assert threads(service) == before
        resource.prlimit(process, resource.RLIMIT_AS, limits)
        wait(store)
        ring(store.path)
        relay.wait_until(lambda: relay.messages, 60)
        service.signal(signal.SIGHUP)
        service.wait_for("drains", 2)
        service.signal(signal.SIGTERM)
        assert service.ended() == 0


EARLY = """
import os, signal, sys
from postcommit._cli import main as cli

parse = cli._parser

def interrupted(words):
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    return parse(words)

cli._parser = interrupted
sys.exit(cli.main())
"""


def test_a_signal_while_the_arguments_are_read_waits_for_the_service(
    relay: ScriptedRelay, store: Store
) -> None:
    argv = ["run", store.path, *to(relay)]
    done = subprocess.run(
        [sys.executable, "-c", EARLY, *argv],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "ended" in done.stderr
