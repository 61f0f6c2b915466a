"""The page of a queue in PostgreSQL: the same pages and actions as on disk."""
from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
from tests.contract.steps import ANN
from tests.contract.steps import BOB
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.contract.steps import stage
from tests.support.postgresplace import PostgresPlace
from tests.web.conftest import SAME_ORIGIN
from tests.web.conftest import Page
from webtest import TestApp

from postcommit import EntryState
from postcommit import MailQueue
from postcommit._drain.contract import Settlement
from postcommit._mail.terms import Terms
from postcommit.web import make_app


BUTTONS = {
    "waiting": ["hold", "cancel", "delete"],
    "scheduled": ["retry", "hold", "cancel", "delete"],
    "deferred": ["retry", "hold", "cancel", "delete"],
    "bulk": ["retry", "hold", "cancel", "delete"],
    "held": ["release", "cancel", "delete"],
    "failed": ["retry", "delete"],
    "in_doubt": ["send", "drop"],
}


@pytest.fixture
def queue(postgres: PostgresPlace) -> MailQueue:
    """A queue with an entry in each state."""
    rows = postgres.make()
    dead, _ = accept(rows, ANN), accept(rows, ANN, BOB)
    consumer = consume(rows)
    for claim in consumer.take(2):
        entry = replace(claim.read(), attempts=1, last_reply="450 4.2.0 Later")
        if dead in entry.message.decode():
            consumer.settle(claim, Settlement(rejected=entry))
        else:
            due = consumer.now() + 300
            consumer.settle(claim, Settlement(left=entry, due=due))
    consumer.close()
    queue = MailQueue(postgres.url)
    queue.hold(accept(rows, BOB))
    accept(rows, BOB)
    accept(rows, BOB, terms=Terms(not_before=4e9))
    accept(rows, BOB, terms=Terms(bulk=True))
    _, item = stage(rows, ANN)
    batch = rows.batch()
    batch.prepare([item])
    postgres.die_with_batch(batch)
    postgres.age(60)
    return queue


@pytest.fixture
def app(queue: MailQueue) -> Any:
    given = {"shop": queue.queuePath}
    return TestApp(make_app(given, authorize=lambda request: "ann"))


def ids_of(queue: MailQueue) -> dict[str, str]:
    return {entry.state.key: entry.id for entry in queue.list()}


def test_each_page(app: Any, queue: MailQueue) -> None:
    assert "s3cret" not in app.get("/").text
    [found] = app.get("/index.json").json["queues"]
    for state, id in ids_of(queue).items():
        assert found[state] == 1
        [entry] = app.get(f"/queue/shop.json?state={state}").json["entries"]
        assert entry["id"] == id
        page = app.get(f"/queue/shop/{id}")
        for button in BUTTONS[state]:
            assert f'value="{button}"' in page
        assert app.get(f"/queue/shop/{id}.json").json["message"]["header"]
        assert app.get(f"/queue/shop/{id}/source").body
    assert len(ids_of(queue)) == 7
    assert app.get(f"/queue/shop?search={BOB}").status_int == 200
    app.get("/queue/shop/0123456789ab", status=404)


def test_each_action(
    app: Any, queue: MailQueue, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    browser, ids = Page(app), ids_of(queue)
    for state, action, after in [
        ("deferred", "retry", EntryState.DEFERRED),
        ("failed", "retry", EntryState.WAITING),
        ("held", "release", EntryState.WAITING),
        ("bulk", "hold", EntryState.HELD),
        ("in_doubt", "send", EntryState.WAITING),
    ]:
        answer = browser.act(app.get(f"/queue/shop/{ids[state]}"), action)
        assert answer.status_int == 303
        assert queue.show(ids[state]).state is after
    for state, action in [("scheduled", "cancel"), ("waiting", "delete")]:
        page = app.get(f"/queue/shop/{ids[state]}")
        assert browser.act(browser.act(page, action), action).status_int == 303
        app.get(f"/queue/shop/{ids[state]}", status=404)
    assert caplog.text.count("ann: entry") == 7


def test_a_dead_letter_is_not_cancelled_with_a_selection(
    app: Any, queue: MailQueue
) -> None:
    ids = ids_of(queue)
    headers = {**SAME_ORIGIN, "Cookie": "postcommit_form=1"}
    form = [("action", "cancel"), ("token", "1"), *[("id", i) for i in ids.values()]]
    answer = app.post("/queue/shop.json", form, headers=headers).json
    refused = {c["id"] for c in answer["changes"] if c["status"] == "refused"}
    assert refused == {ids["failed"], ids["in_doubt"]}
    assert ids_of(queue).keys() == {"failed", "in_doubt"}


def test_an_entry_that_is_claimed_or_sent_meanwhile(
    app: Any, queue: MailQueue, postgres: PostgresPlace
) -> None:
    page = app.get(f"/queue/shop/{ids_of(queue)['waiting']}")
    rows = postgres.make()
    consumer = consume(rows)
    [claim] = consumer.take(1)
    for action in ("hold", "cancel", "delete"):
        asked = Page(app).act(page, action) if action != "hold" else page
        answer = Page(app).act(asked, action, status=409)
        assert "a processor is sending it now" in answer
    consumer.settle(claim, Settlement())
    consumer.close()
    assert "sent or deleted" in Page(app).act(page, "hold", status=410)
