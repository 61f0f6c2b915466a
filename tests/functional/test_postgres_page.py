"""The page, and `MailQueue`, on a queue in PostgreSQL."""
from __future__ import annotations

import pytest
import transaction
from tests.support.mailers import ScriptedMailer
from tests.support.postgresplace import PostgresPlace
from tests.web.conftest import SAME_ORIGIN
from webtest import TestApp

from postcommit import ChangeStatus
from postcommit import EntryState
from postcommit import MailQueue
from postcommit import OptionError
from postcommit import QueuedMailDelivery
from postcommit import QueueProcessor
from postcommit.web import make_app


def fill(place: PostgresPlace) -> None:
    """Have a dead letter, and an entry that waits."""
    delivery = QueuedMailDelivery(place.url)
    with transaction.manager:
        delivery.send("s@x.org", "never@x.org", "Subject: Teapot\n\nText.\n")
    assert QueueProcessor(place.url, ScriptedMailer()).flush().rejected == 1
    with transaction.manager:
        delivery.send("s@x.org", "bob@x.org", "Subject: Kettle\n\nText.\n")


def test_the_page(postgres: PostgresPlace) -> None:
    fill(postgres)
    app = TestApp(make_app({"shop": postgres.url}, authorize=lambda request: "ann"))
    page = app.get("/")
    assert "1</b> dead letter" in page
    assert "1</b> waiting" in page
    assert "Kettle" in app.get("/queue/shop?search=BOB@")
    [dead] = app.get("/queue/shop.json?state=failed").json["entries"]
    page = app.get(f"/queue/shop/{dead['id']}")
    assert "550 " in page
    assert "Text." in page
    form = page.forms[0]
    form.submit("action", value="retry", headers=SAME_ORIGIN, status=303)
    assert app.get("/queue/shop.json?state=failed").json["entries"] == []


def test_the_queue_from_python(postgres: PostgresPlace) -> None:
    fill(postgres)
    queue = MailQueue(postgres.url)
    assert queue.status().counts[EntryState.FAILED] == 1
    [dead] = queue.list(EntryState.FAILED)
    assert queue.message(dead).endswith(b"\n\nText.\n")
    [change] = queue.delete(dead)
    assert change.done
    [change] = queue.delete(dead)
    assert change.status is ChangeStatus.GONE
    assert queue._operators is queue._operators


def test_a_database_that_is_away() -> None:
    url = "postgresql://ann@127.0.0.1:1/shop?connect_timeout=1"
    app = TestApp(make_app(url, authorize=lambda request: "ann"))
    for path in ("/", "/index.json", "/queue/shop", "/queue/shop.json"):
        assert "127.0.0.1" in app.get(path, status=503)


def test_no_password_is_shown() -> None:
    url = "postgresql://ann:se-cret@127.0.0.1/shop"
    with pytest.raises(OptionError) as caught:
        make_app(url, authorize=lambda request: "ann")
    assert "se-cret" not in str(caught.value)
