"""A shop with SQLAlchemy and one with a ZODB share a queue, and its processors."""
from __future__ import annotations

import re
import signal
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen
from typing import Any
from urllib.parse import urlencode

import pytest
import transaction
from tests.functional import pyramid_shop
from tests.functional import zope_shop
from tests.support import children
from tests.support.postgresplace import PostgresPlace
from tests.support.service import Running
from tests.support.service import eventually
from tests.support.service import to
from tests.support.smtpd import ScriptedRelay
from tests.support.smtpd import well_treated
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage


ANN = "ann@example.org"

# Number of orders of each shop, and of kills of processors in one test.
_ORDERS = 60
_KILLS = 4

# Number of workers of a processor. Each has at most two messages between the reply of
# the relay and the removal of the entry.
_WORKERS = 2
_MOST_TWICE = 2 * _WORKERS


def sell_by_pyramid(server: Popen[str], count: int) -> Iterator[str]:
    """Order `count` things over HTTP, and yield the subjects of what is committed."""
    assert server.stdout is not None
    port = int(server.stdout.readline())

    def get(view: str, item: str) -> None:
        query = urlencode({"item": item, "customer": ANN})
        url = f"http://127.0.0.1:{port}/{view}?{query}"
        urllib.request.urlopen(url, timeout=60).close()

    for number in range(count):
        item = f"pyramid {number}"
        if number % 4 == 1:
            get("order_and_abort", item)
        elif number % 4 == 2:
            with pytest.raises(urllib.error.HTTPError, match="500") as caught:
                get("order_and_fail", item)
            caught.value.close()
        else:
            get("order", item)
            yield f"Your {item}"
    get("order_again", "pyramid 0")  # the first attempt is rolled back
    yield "6 of your pyramid 0"


def settings_of(postgres: PostgresPlace) -> dict[str, str]:
    """Return settings of a shop whose orders are in the database of the queue."""
    place = postgres.url.partition("?")[0].replace("postgresql", "postgresql+psycopg")
    path = f"options=-csearch_path%3D{postgres.schema}"
    return {
        "sqlalchemy.url": f"{place}?{path}",
        "mail.session": "dbsession",
        "mail.queue_path": postgres.url,
    }


class Processors:
    """Two commands that drain a queue. One that is killed is replaced by another."""

    def __init__(self, stack: ExitStack, postgres: PostgresPlace, *options: str):
        self._stack = stack
        self._postgres = postgres
        self._command = ("run", postgres.url, *options, "--workers", str(_WORKERS))
        self._running = [self._start() for _ in range(2)]
        self.kills = 0

    def _start(self) -> Running:
        return self._stack.enter_context(Running(*self._command))

    def kill_the_first(self) -> None:
        """Kill one, and let its lease end, for which 60 seconds would have to pass."""
        dead = self._running.pop(0)
        dead.signal(signal.SIGKILL)
        assert dead.ended() == -signal.SIGKILL
        self._postgres.execute(
            "update {schema}.process set beat = beat - interval '1 hour'"
            " where pid = %(pid)s",
            {"pid": dead._process.pid},
        )
        self._running.append(self._start())  # it frees the claims of the dead
        self.kills += 1

    def stop(self) -> None:
        for each in self._running:
            each.signal(signal.SIGTERM)
        assert [each.ended() for each in self._running] == [0, 0]


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    """A relay that a killed processor may leave in the middle of a message."""
    with well_treated() as start:
        yield start(provoked=True)


def subjects(relay: ScriptedRelay) -> Counter[str]:
    found = (re.findall(rb"Subject: (.*)\r\n", each.data) for each in relay.messages)
    return Counter(subject.decode() for one in found for subject in one)


@pytest.mark.parametrize("kills", [0, _KILLS])
def test_two_shops_and_two_processors(
    postgres: PostgresPlace, relay: ScriptedRelay, tmp_path: Path, kills: int
) -> None:
    committed: list[str] = []
    with ExitStack() as stack:
        processors = Processors(stack, postgres, *to(relay))
        args = str(tmp_path), postgres.url, _ORDERS
        zope = stack.enter_context(children.running(zope_shop.sell, *args))
        settings: Any = settings_of(postgres)
        serving = children.running(pyramid_shop.serve, settings)
        pyramid = stack.enter_context(serving)

        def read() -> None:
            assert zope.stdout is not None
            committed.extend(line.rstrip("\n") for line in zope.stdout)

        reader = threading.Thread(target=read)
        reader.start()
        for number, subject in enumerate(sell_by_pyramid(pyramid, _ORDERS)):
            committed.append(subject)
            if number % 5 == 4 and processors.kills < kills:
                processors.kill_the_first()
        reader.join()
        assert zope.wait(60) == 0
        assert processors.kills == kills
        eventually(lambda: not postgres.execute("select from {schema}.entry").rowcount)
        processors.stop()
    sent = subjects(relay)
    assert set(sent) == set(committed)
    # A kill between the reply of the relay and the removal sends a mail again.
    assert sum(sent.values()) - len(sent) <= kills * _MOST_TWICE
    assert sold_by_zope(tmp_path) | sold_by_pyramid(postgres) == {
        subject.removeprefix("Your ") for subject in sent if subject.startswith("Your ")
    }


def sold_by_zope(folder: Path) -> set[str]:
    db = DB(FileStorage(str(folder / "Data.fs"), read_only=True))
    with db.transaction() as connection:
        items = set(connection.root()["shop"].orders)
    transaction.abort()
    db.close()
    return items


def sold_by_pyramid(postgres: PostgresPlace) -> set[str]:
    return {item for (item,) in postgres.execute("select item from {schema}.orders")}
