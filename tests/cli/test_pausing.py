"""``postcommit status`` while a processor waits for its relay, or after its death."""
from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from postcommit._cli.main import main
from postcommit._maildir.presence import PauseNote
from postcommit._maildir.store import Store
from tests.support.queues import defer
from tests.support.queues import wait
from tests.support.service import Running
from tests.support.service import eventually
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay


@pytest.fixture
def status(store: Store, capsys: Any) -> Callable[[], dict[str, Any]]:
    """Return a function that tells what ``status --json`` does."""

    def look() -> dict[str, Any]:
        main(["status", "--json", store.path])
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    return look


# A processor, and its relay


def test_a_relay_that_is_away_is_told_until_it_is_back(
    relay: ScriptedRelay, store: Store, status: Callable[[], dict[str, Any]]
) -> None:
    relay.down()
    wait(store)
    with Running("run", store.path, *to(relay)) as service:
        eventually(lambda: status()["paused"])
        paused = status()["paused"]
        assert "Connection refused" in paused["reason"]
        assert paused["seconds"] >= 0
        assert paused["since"] < paused["next_attempt"]
        relay.up()
        relay.wait_until(lambda: relay.messages, 60)
        eventually(lambda: status()["paused"] is None)
        assert ".paused" not in os.listdir(store.path)
        service.signal(signal.SIGTERM)
        assert service.ended() == 0


def test_a_refused_login_is_told_and_no_password(
    start: Callable[..., ScriptedRelay],
    store: Store,
    status: Callable[[], dict[str, Any]],
) -> None:
    relay = start(users={"shop": "the right one"})
    wait(store)
    argv = ["run", store.path, *to(relay), "--username", "shop"]
    with Running(*argv, POSTCOMMIT_PASSWORD="open sesame") as service:
        eventually(lambda: status()["paused"])
        assert "535" in status()["paused"]["reason"]
        assert "sesame" not in Path(store.path, ".paused").read_text()
        relay.users["shop"] = "open sesame"
        relay.wait_until(lambda: relay.messages, 60)
        eventually(lambda: status()["paused"] is None)
        assert "sesame" not in service.log


def test_one_that_was_killed_says_nothing_and_the_next_one_begins_again(
    relay: ScriptedRelay, store: Store, status: Callable[[], dict[str, Any]]
) -> None:
    relay.down()
    wait(store)
    with Running("run", store.path, *to(relay)) as service:
        eventually(lambda: status()["paused"])
        before = status()["paused"]
        service.signal(signal.SIGKILL)
        assert service.ended() == -signal.SIGKILL
    assert ".paused" in os.listdir(store.path)
    assert status()["paused"] is None
    with Running("run", store.path, *to(relay)) as service:
        eventually(lambda: status()["paused"])
        after = status()["paused"]
        assert after["since"] > before["since"]
        assert after["process"] != before["process"]
        service.signal(signal.SIGTERM)
        assert service.ended() == 0
    assert ".paused" not in os.listdir(store.path)


# What is printed


@pytest.fixture
def pause(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float, float], None]]:
    """Return a function: the queue pauses since, and for so many seconds more."""
    board = PauseNote(store.path)
    now = time.time()

    def begin(ago: float, left: float) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: now - ago)
            board.post("535 5.7.8 \x1b refused", ago + left)

    yield begin
    board.clear()


def test_a_pause_is_shown(store: Store, pause: Any, capsys: Any) -> None:
    wait(store)
    pause(5.0, 30.0)
    assert main(["status", store.path]) == 0
    out = capsys.readouterr().out
    shown = r"\npaused since 20\S+ \S+ UTC.*, next attempt in (30|29|2\d)s, because:\n"
    assert re.search(shown + r" {10}535 5\.7\.8 \\x1b refused\n$", out)


def test_a_pause_that_is_over_waits_for_an_entry(
    store: Store, pause: Any, capsys: Any
) -> None:
    pause(3600.0, -5.0)
    assert main(["status", store.path]) == 0
    out = capsys.readouterr().out
    assert ", next attempt with the first entry that is due, because:\n" in out
    assert "attention" not in out


def test_a_long_pause_wants_attention_if_something_is_due(
    store: Store, pause: Any, capsys: Any
) -> None:
    argv = ["status", store.path]
    pause(600.0, 30.0)
    defer(store, due=50)
    assert main(argv) == 0
    defer(store, due=-1000)
    capsys.readouterr()
    assert main(argv) == 1
    out = capsys.readouterr().out
    assert "attention: the queue has paused for 10m: 535 5.7.8 \\x1b refused; " in out
    assert "'postcommit test-relay'" in out
    assert "attention: an entry is due for 16m40s: the queue pauses\n" in out
    assert main([*argv, "--warn-paused", "1h", "--warn-age", "1h"]) == 0
    assert main([*argv, "--warn-paused", "9m", "--warn-age", "1h"]) == 1


def test_a_pause_for_programs(store: Store, pause: Any, capsys: Any) -> None:
    pause(600.0, 30.0)
    assert main(["status", "--json", store.path]) == 0
    paused = json.loads(capsys.readouterr().out)["paused"]
    assert re.fullmatch(r"20.*\+00:00", paused.pop("since"))
    assert re.fullmatch(r"20.*\+00:00", paused.pop("next_attempt"))
    assert 600 <= paused.pop("seconds") < 700
    assert paused == {"reason": "535 5.7.8 \x1b refused", "process": os.getpid()}
    assert main(["status", "--prometheus", store.path]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^postcommit_queue_paused\{.*\} 1$", out, re.MULTILINE)
    seconds = r"^postcommit_queue_paused_seconds\{.*\} 6\d\d\."
    assert re.search(seconds, out, re.MULTILINE)
