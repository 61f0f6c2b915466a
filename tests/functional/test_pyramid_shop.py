"""A Pyramid application: in this process, behind waitress, behind gunicorn."""
from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from tests.functional import pyramid_shop
from tests.support import children
from tests.support.smtpd import ScriptedRelay
from webtest import TestApp as Browser

from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.testing import Outbox
from postcommit.testing import recording


ANN, OWNER = "ann@example.org", pyramid_shop.OWNER


@pytest.fixture
def settings(tmp_path: Path, relay: ScriptedRelay) -> dict[str, Any]:
    return {
        "sqlalchemy.url": f"sqlite:///{tmp_path}/shop.sqlite",
        "mail.host": "127.0.0.1",
        "mail.port": str(relay.port),
    }


@pytest.fixture(params=["direct", "queued", "queued and sent here"])
def shop(
    request: pytest.FixtureRequest, settings: dict[str, Any], tmp_path: Path
) -> Iterator[Browser]:
    if request.param != "direct":
        settings["mail.queue_path"] = str(tmp_path / "queue")
    if request.param == "queued and sent here":
        settings["mail.processor"] = "true"
    app = pyramid_shop.main({}, **settings)
    yield Browser(app)
    processor = app.registry.queryUtility(IMailQueueProcessor)
    if processor is not None:
        assert processor.stop(30)
    app.registry.getUtility(IMailer).close()
    app.registry["engine"].dispose()


@pytest.fixture
def sent(shop: Browser, relay: ScriptedRelay) -> Callable[[], list[str]]:
    """A function that returns the subjects of what was sent, when all is."""

    def sent() -> list[str]:
        registry = shop.app.registry
        processor = registry.queryUtility(IMailQueueProcessor)
        if processor is not None:
            assert processor.stop(30)
            while any(processor.flush()):
                pass
        return sorted(re.findall(r"Subject: (.*)\r\n", str_of(relay)))

    return sent


def str_of(relay: ScriptedRelay) -> str:
    return "".join(message.data.decode() for message in relay.messages)


def rows(folder: Path, table: str, columns: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection:
        statement = f"SELECT {columns} FROM {table} ORDER BY 1"
        return connection.execute(statement).fetchall()


def test_a_request_that_commits_sends_and_a_subscriber_sends_on(
    shop: Browser, sent: Callable[[], list[str]], tmp_path: Path
) -> None:
    message_id = shop.get("/order", {"item": "teapot", "customer": ANN}).text
    assert sent() == [f"Mail to {ANN}", "Your teapot"]
    assert rows(tmp_path, "orders", "item, customer") == [("teapot", ANN)]
    noted = rows(tmp_path, "sent", "recipient, message_id")
    assert noted[0] == (ANN, message_id)
    assert [recipient for recipient, _ in noted] == [ANN, OWNER]


def test_a_request_that_aborts_sends_nothing(
    shop: Browser, sent: Callable[[], list[str]], tmp_path: Path
) -> None:
    shop.get("/order_and_abort", {"item": "teapot", "customer": ANN})
    assert sent() == []
    assert rows(tmp_path, "orders", "item") == []
    assert [path for path in tmp_path.glob("queue/*/*") if path.is_file()] == []


def test_a_view_that_fails_sends_nothing(
    shop: Browser, sent: Callable[[], list[str]], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="the view fails"):
        shop.get("/order_and_fail", {"item": "teapot", "customer": ANN})
    assert sent() == []
    assert rows(tmp_path, "orders", "item") == []


def test_a_request_that_is_retried_sends_once(
    shop: Browser, sent: Callable[[], list[str]], tmp_path: Path
) -> None:
    shop.get("/order", {"item": "teapot", "customer": ANN})
    assert shop.get("/order_again", {"item": "teapot"}).text == "1"
    assert sent() == [
        "6 of your teapot",
        *[f"Mail to {ANN}"] * 2,
        "Your teapot",
    ]
    assert rows(tmp_path, "orders", "pieces") == [(6,)]


# With what applications test with


@pytest.fixture
def recorded(settings: dict[str, Any]) -> Iterator[tuple[Browser, Outbox]]:
    app = pyramid_shop.main({}, **settings)
    with recording(app.registry) as outbox:
        yield Browser(app), outbox
    app.registry["engine"].dispose()


def test_the_outbox_has_the_mail_of_committed_requests(
    recorded: tuple[Browser, Outbox], relay: ScriptedRelay
) -> None:
    shop, outbox = recorded
    shop.get("/order_and_abort", {"item": "kettle", "customer": ANN})
    assert outbox == []
    shop.get("/order", {"item": "teapot", "customer": ANN})
    assert [mail.subject for mail in outbox] == ["Your teapot", f"Mail to {ANN}"]
    assert relay.connections == 0
    assert shop.app.registry.getUtility(IMailDelivery)


# Processes of their own


def get(port: int, view: str, **params: str) -> str:
    url = f"http://127.0.0.1:{port}/{view}?{urlencode(params)}"
    with urllib.request.urlopen(url, timeout=30) as response:
        return str(response.read().decode())


def test_behind_waitress(
    settings: dict[str, Any], relay: ScriptedRelay, tmp_path: Path
) -> None:
    settings["mail.queue_path"] = str(tmp_path / "queue")
    settings["mail.processor"] = "true"
    with children.running(pyramid_shop.serve, settings) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        for number in range(3):
            get(port, "order", item=f"teapot {number}", customer=ANN)
        get(port, "order_again", item="teapot 0")
        relay.wait_until(lambda: len(relay.messages) == 8)
        server.terminate()
        assert server.wait(30) == 0
    assert [path for path in tmp_path.glob("queue/*/*") if path.is_file()] == []
    assert len(rows(tmp_path, "sent", "message_id")) == 8
    assert len(relay.messages) == 8


def test_behind_gunicorn_that_preloads_and_forks(
    settings: dict[str, Any], relay: ScriptedRelay, tmp_path: Path
) -> None:
    settings["mail.queue_path"] = str(tmp_path / "queue")
    settings["mail.processor"] = "true"
    settings["shop.bulk_queue"] = str(tmp_path / "bulk queue")
    app = f"{pyramid_shop.__name__}:{pyramid_shop.from_environment.__name__}()"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2"]
    command += ["--bind", "127.0.0.1:0", "--no-control-socket", app]
    with subprocess.Popen(
        command,
        cwd=children.ROOT,
        env={**os.environ, "POSTCOMMIT_SHOP": json.dumps(settings)},
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            port = listening(server)
            workers = {get(port, "worker")}
            count = 0
            while len(workers) < 2 or count < 4:
                get(port, "order", item=f"teapot {count}", customer=ANN)
                get(port, "news", customer=OWNER)
                workers.add(get(port, "worker"))
                count += 1
            relay.wait_until(lambda: len(relay.messages) == 3 * count, timeout=30)
            # The one that forks has no thread but its own.
            assert len(os.listdir(f"/proc/{server.pid}/task")) == 1
            assert str(server.pid) not in workers
            server.terminate()
            server.communicate(timeout=30)
            assert server.returncode == 0
        finally:
            server.kill()
    assert [path for path in tmp_path.glob("*queue/*/*") if path.is_file()] == []
    assert len(rows(tmp_path, "sent", "message_id")) == 3 * count
    assert len(relay.messages) == 3 * count


def listening(server: subprocess.Popen[str]) -> int:
    assert server.stderr is not None
    said = ""
    for line in server.stderr:
        said += line
        found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", line)
        if found:
            return int(found[1])
    raise AssertionError(said)
