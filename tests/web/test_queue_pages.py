"""The pages of queues: overview, list, one entry, actions, and the same as JSON."""
from __future__ import annotations

import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from webob import Request
from webtest import TestApp

from postcommit import EntryState
from postcommit import MailQueue
from postcommit._mail.entry import Entry
from postcommit._maildir.presence import PauseNote
from postcommit._maildir.presence import Wakeup
from postcommit._maildir.store import Store
from postcommit.web import _queue_pages
from postcommit.web import make_app
from tests.support.faults import without_privileges
from tests.support.queues import MESSAGE
from tests.support.queues import RECIPIENTS
from tests.support.queues import SENDER
from tests.support.queues import bury
from tests.support.queues import defer
from tests.support.queues import fill
from tests.support.queues import fill_rooms
from tests.support.queues import leave_in_doubt
from tests.support.queues import schedule
from tests.support.queues import wait
from tests.support.queues import write
from tests.web.conftest import SAME_ORIGIN
from tests.web.conftest import Page


def only(store: Store, state: EntryState) -> str:
    [entry] = MailQueue(store.path).list(state)
    return entry.id


def words(page: Any) -> str:
    """Return the text of a page in one line."""
    return " ".join(re.sub(r"<[^>]*>", " ", page.text).split())


# Overview


def test_the_overview(app: Any, store: Store) -> None:
    fill(store)
    page = app.get("/")
    text = words(page)
    for shown in (
        "1 waiting, never tried",
        "1 deferred most often: 450 4.2.0 Later (1 of 1)",
        "1 dead letter most often: 550 5.1.1 No such user (1 of 1)",
        "1 in doubt",
        "Due now 1, the oldest for",
        "Processor not running",
        "Needs attention 1 in doubt; 'postcommit recover' sends or drops them",
        "processor not running",
        "mails , 0 messages",
    ):
        assert shown in text, text
    assert page.click("1</b> dead letter", verbose=False).status_int == 200


def test_the_overview_of_a_queue_that_pauses(app: Any, store: Store) -> None:
    wait(store)
    wakeup = Wakeup(store.path)
    note = PauseNote(store.path)
    note.post("relay.example.org: connection <refused>", 60)
    try:
        text = words(app.get("/"))
    finally:
        note.clear()
        wakeup.close()
    assert "Processor running, last sign of life 0s ago" in text
    assert re.search(
        r"Paused since 20.* UTC.*, next attempt in .*: relay\.example\.org: connection"
        r" &lt;refused&gt;",
        text,
    )


def test_the_overview_of_a_queue_that_a_person_has_paused(
    app: Any, store: Store
) -> None:
    wait(store)
    with MailQueue(store.path)._operators.changes() as changes:
        changes.stop("olga", "the <relay> moves")
    text = words(app.get("/"))
    assert re.search(r"Paused .*olga.*the &lt;relay&gt; moves.*, since 20", text)


def test_the_overview_as_json(app: Any, store: Store) -> None:
    fill(store)
    found = app.get("/index.json").json
    [queue] = found["queues"]
    assert (queue["name"], queue["queue"]) == ("queue", store.path)
    assert (queue["waiting"], queue["deferred"], queue["failed"]) == (1, 1, 1)
    assert len(queue["attention"]) == 2
    assert queue["problem"] is None
    [box] = found["mailboxes"]
    assert (box["name"], box["messages"]) == ("mails", 0)


def test_a_large_queue_is_not_read_to_its_end(
    app: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_queue_pages, "_SURVEY_SECONDS", 0.0)
    for number in range(300):
        write(store, f"cur/17{number:08d}.M1P1Q1.web:2,")
    assert "0 of the deferred were read, there may be more" in words(app.get("/"))


def test_a_page_without_queues() -> None:
    app = TestApp(make_app(authorize=lambda request: "ann"))
    assert "No queue is shown here." in app.get("/").text


# A list


def test_the_list(app: Any, store: Store) -> None:
    fill(store)
    page = app.get("/queue/queue")
    text = words(page)
    assert text.count("Teapot") == 4
    assert "a@x.org, b@x.org s@x.org deferred in " in text
    assert " 450 4.2.0 Later" in text
    assert page.click("Teapot", index=0).status_int == 200


@pytest.mark.parametrize("state", list(EntryState))
def test_a_list_of_one_state(app: Any, store: Store, state: EntryState) -> None:
    fill(store)
    fill_rooms(store)
    [entry] = app.get(f"/queue/queue.json?state={state.key}").json["entries"]
    assert (entry["id"], entry["state"]) == (only(store, state), state.key)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("search=C@x.org", 1),
        ("search=2@x", 1),
        ("search=teek%C3%A4nnchen", 1),
        ("search=nothing", 0),
        ("to=c@x.org", 1),
        ("from=@y.org", 1),
        ("message_id=<2@x.org>", 1),
        ("older=1d", 1),
        ("newer=1d", 1),
        ("newer=1d&search=2@x", 0),
        ("", 2),
    ],
)
def test_a_search(app: Any, store: Store, query: str, count: int) -> None:
    wait(store)
    other = (
        b"X-Zope-From: t@y.org\nX-Zope-To: c@x.org\nMessage-Id: <2@x.org>\n"
        b"Subject: =?utf-8?q?Ihr_Teek=C3=A4nnchen?=\n\nteapot\n"
    )
    write(store, "new/1700000000.M1P1Q1.web", other)
    page = app.get(f"/queue/queue?{query}")
    assert page.text.count('<tr>\n<td class="choose">') == count
    assert len(app.get(f"/queue/queue.json?{query}").json["entries"]) == count
    form = page.forms[0]
    assert form.submit().text.count('<td class="choose">') == count


def test_the_age_of_scheduled_mail_begins_when_it_was_sent(
    app: Any, store: Store
) -> None:
    for seconds in (432000, 7200):
        name = schedule(store, 90000.0)
        os.utime(f"{store.path}/.Later/new/{name}", (time.time() - seconds,) * 2)
    for query, age in (("older=1d", "5d"), ("newer=1d", "2h")):
        page = app.get(f"/queue/queue?state=scheduled&{query}")
        assert page.text.count('<td class="choose">') == 1
        assert f" {age} " in words(page)


def test_a_page_has_200_rows_and_leads_to_the_next(app: Any, store: Store) -> None:
    names = [f"17{number:08d}.M1P1Q1.web" for number in range(450)]
    for name in names:
        write(store, f"new/{name}")
    found = []
    url = "/queue/queue.json?to=a@x.org"
    counts = []
    while url:
        answer = app.get(url).json
        counts.append(len(answer["entries"]))
        found += [entry["name"] for entry in answer["entries"]]
        url = answer["next"] and f"/queue/queue.json{answer['next']}"
    assert counts == [200, 200, 50]
    assert found == names
    page = app.get("/queue/queue?to=a@x.org")
    assert page.text.count('<td class="choose">') == 200
    second = page.click("Next page")
    assert "First page" in second
    last = second.click("Next page")
    assert "Next page" not in last
    assert last.click("First page").text.count('<td class="choose">') == 200


def test_a_long_search_goes_on_where_it_was(
    app: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        write(store, f"new/17{number:08d}.M1P1Q1.web")
    other = b"X-Zope-From: t@y.org\nX-Zope-To: c@x.org\nSubject: last\n\ntext\n"
    write(store, "new/1799999999.M1P1Q1.web", other)
    monkeypatch.setattr(_queue_pages, "SEARCH_SECONDS", -1.0)
    page = app.get("/queue/queue?search=c@x.org")
    looked = 0
    while "Search on" in page:
        [looked] = map(int, re.findall(r"has looked at (\d+) entries", page.text))
        page = page.click("Search on")
    assert looked > 10
    assert "last" in page


@pytest.mark.parametrize(
    "query",
    ["older=soon", "newer=1x", "state=lost", "start=-1", "start=x", "start=%C2%B2"],
)
def test_a_filter_that_can_never_work(app: Any, store: Store, query: str) -> None:
    page = app.get(f"/queue/queue?{query}", status=400)
    name, _, value = unquote(query).partition("=")
    assert name in page.text
    assert value in page.text


# One entry


def test_an_entry(app: Any, store: Store) -> None:
    fill(store)
    id = only(store, EntryState.DEFERRED)
    page = app.get(f"/queue/queue/{id}")
    text = words(page)
    for shown in (
        f"Id {id}",
        "State deferred",
        "Attempts 1",
        "Last reply 450 4.2.0 Later",
        "Message id 1@x.org",
        "Envelope from s@x.org",
        "Envelope to a@x.org, b@x.org",
        "Next attempt in",
        "Text.",
    ):
        assert shown in text, text
    assert "Subject Teapot" in words(page.click("Header"))
    assert "Message-Id: &lt;1@x.org&gt;" in words(page.click("Source"))
    assert app.get(f"/queue/queue/{id}/source").body == MESSAGE


def test_an_entry_as_json(app: Any, store: Store) -> None:
    bury(store)
    id = only(store, EntryState.FAILED)
    found = app.get(f"/queue/queue/{id}.json").json
    assert (found["id"], found["subject"], found["state"]) == (id, "Teapot", "failed")
    assert found["message"]["text"] == "Text.\n"
    assert found["message"]["header"][1] == ["Subject", "Teapot"]


def test_an_entry_in_each_state(app: Any, store: Store) -> None:
    fill(store)
    fill_rooms(store)
    buttons = {}
    for state in EntryState:
        page = app.get(f"/queue/queue/{only(store, state)}")
        buttons[state.key] = re.findall(r'name="action" value="(\w+)"', page.text)
    assert buttons == {
        "waiting": ["hold", "cancel", "delete"],
        "scheduled": ["retry", "hold", "cancel", "delete"],
        "deferred": ["retry", "hold", "cancel", "delete"],
        "bulk": ["retry", "hold", "cancel", "delete"],
        "held": ["release", "cancel", "delete"],
        "failed": ["retry", "delete"],
        "in_doubt": ["send", "drop"],
    }


def test_what_is_not_an_entry(app: Any, store: Store) -> None:
    write(store, "new/what", b"no <envelope>")
    [entry] = app.get("/queue/queue.json").json["entries"]
    page = app.get(f"/queue/queue/{entry['id']}")
    text = words(page)
    assert "Problem there is no envelope" in text
    assert "no &lt;envelope&gt;" in text


def test_an_entry_without_a_subject_and_sender(app: Any, store: Store) -> None:
    many = ", ".join(f"u{number}@x.org" for number in range(5))
    head = f"X-Zope-From: \nX-Zope-To: {many}\n".encode()
    write(store, "new/1700000000.M1P1Q1.web", head + b"\ntext\n")
    text = words(app.get("/queue/queue"))
    assert "(no subject)" in text
    assert "u0@x.org, u1@x.org, u2@x.org +2 &lt;&gt;" in text


def test_a_beginning_and_a_message_id_are_ids(app: Any, store: Store) -> None:
    wait(store)
    id = only(store, EntryState.WAITING)
    assert id in app.get(f"/queue/queue/{id[:6]}")
    assert id in app.get("/queue/queue/1@x.org")


def test_a_very_long_subject_and_many_recipients(app: Any, store: Store) -> None:
    """The rows of 200 such entries were 200 MB, and took minutes."""
    many = ", ".join(f"u{number}@x.org" for number in range(20_000))
    subject = "=?utf-8?q?=E2=98=95?= " * 30_000
    head = f"X-Zope-From: s@x.org\nX-Zope-To: {many}\nSubject: {subject}\n"
    write(store, "new/1700000000.M1P1Q1.web", head.encode() + b"\ntext\n")
    page = app.get("/queue/queue")
    assert "☕☕" in page
    assert "u2@x.org +19997" in page
    assert len(page.text) < 10_000
    [entry] = app.get("/queue/queue.json").json["entries"]
    assert len(entry["recipients"]) == 20_000
    assert len(entry["subject"]) < 1000
    page = app.get(f"/queue/queue/{entry['id']}")
    assert "u99@x.org +19900" in page
    assert len(page.text) < 20_000


# Bad input


def test_an_unknown_id(app: Any, store: Store) -> None:
    wait(store)
    page = app.get("/queue/queue/0123456789ab", status=404)
    assert "is not in this queue; it may have been sent or deleted" in page
    answer = app.get("/queue/queue/0123456789ab.json", status=404)
    assert "is not in this queue" in answer.json["error"]


def test_an_ambiguous_id(app: Any, store: Store) -> None:
    fill(store)
    page = app.get("/queue/queue/1@x.org", status=300)
    ids = [entry.id for entry in MailQueue(store.path).list()]
    for id in ids:
        assert f'href="/queue/queue/{id}"' in page
    assert page.click(ids[0]).status_int == 200
    answer = app.get("/queue/queue/1@x.org.json", status=300).json
    assert sorted(answer["choices"]) == sorted(ids)


@pytest.mark.parametrize(
    "path",
    [
        "/queue/queue/1700000000.M1P1Q1.web",
        "/queue/queue/..%2f..%2fetc%2fpasswd",
        "/queue/queue/%2e%2e",
        "/queue/queue/ZZZZ",
        "/queue/queue/{id}/nothing",
        "/queue/queue/{id}/part/9",
        "/queue/queue/{id}/part/x",
        "/queue/other",
        "/other",
        "/queue",
        "/queue/queue/{id}/html/more",
    ],
)
def test_a_path_that_means_nothing(app: Any, store: Store, path: str) -> None:
    write(store, "new/1700000000.M1P1Q1.web")
    path = path.format(id=only(store, EntryState.WAITING))
    page = app.get(path, status=404)
    assert "root:" not in page


@pytest.mark.parametrize(
    ("name", "text"),
    [("PATH_INFO", "/queue/queue/\xff"), ("QUERY_STRING", "search=%ff&state=%ff")],
)
def test_a_url_that_is_not_utf_8(app: Any, store: Store, name: str, text: str) -> None:
    request = Request.blank("/queue/queue", {name: text})
    assert request.get_response(app.app).status_int in (400, 404)


def test_a_queue_that_is_missing(tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    app = TestApp(make_app(path, authorize=lambda request: "ann"))
    for url in ("/", "/queue/none", "/queue/none/0123456789ab"):
        page = app.get(url, status=503)
        assert path in page
    answer = app.get("/queue/none.json", status=503)
    assert path in answer.json["error"]
    [queue] = app.get("/index.json", status=503).json["queues"]
    assert path in queue["problem"]
    assert not os.path.exists(path)


def test_a_queue_without_permission(tmp_path: Path, store: Store) -> None:
    fill(store)
    os.chmod(f"{store.path}/cur", 0o000)
    app = TestApp(make_app(store.path, authorize=lambda request: "ann"))
    try:
        for url in ("/", "/queue/queue"):
            pages: list[Any] = []
            without_privileges(
                lambda url=url, pages=pages: pages.append(app.get(url, status=503))
            )
            assert "Permission denied" in pages[0]
            assert "Run this page as the user that owns the queue." in pages[0]
    finally:
        os.chmod(f"{store.path}/cur", 0o700)


def test_a_queue_that_cannot_be_checked_either(store: Store) -> None:
    """The page says both what it could not do, and why the check ended."""
    fill(store)
    folder = Path(store.path, ".Failed", "cur")
    shutil.rmtree(folder)
    folder.touch()
    app = TestApp(make_app(store.path, authorize=lambda request: "ann"))
    text = words(app.get("/", status=503))
    assert f"{folder}: cannot look through the folder: Not a directory" in text
    assert f"{folder}: is a file; put the folder itself there" in text
    assert f"{store.path}: cannot check the queue: Not a directory" in text


def test_another_queue_is_shown_beside_one_that_is_missing(
    store: Store, tmp_path: Path
) -> None:
    wait(store)
    paths = [store.path, str(tmp_path / "none")]
    app = TestApp(make_app(paths, authorize=lambda request: "ann"))
    page = app.get("/", status=503)
    assert "1</b> waiting" in page


def test_a_failure_of_the_page_is_logged(
    app: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object, **options: object) -> None:
        raise LookupError("where was I?")

    monkeypatch.setattr(_queue_pages, "overview", fails)
    page = app.get("/", status=500)
    assert "The log says why" in page
    assert "where was I" not in page
    assert "where was I?" in caplog.text


# Actions


def test_retry_a_dead_letter(
    browser: Page, app: Any, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bury(store)
    id = only(store, EntryState.FAILED)
    answer = browser.act(app.get(f"/queue/queue/{id}"), "retry")
    assert answer.status_int == 303
    assert "1 entry retried." in answer.follow()
    assert only(store, EntryState.WAITING) == id
    assert f"ann: entry {id} of {store.path} was retried" in caplog.text


def test_hold_and_release(browser: Page, app: Any, store: Store) -> None:
    wait(store)
    id = only(store, EntryState.WAITING)
    answer = browser.act(app.get("/queue/queue"), "hold", id)
    assert "1 entry held." in answer.follow()
    assert only(store, EntryState.HELD) == id
    answer = browser.act(app.get(f"/queue/queue/{id}"), "release")
    assert "1 entry released." in answer.follow()
    assert only(store, EntryState.WAITING) == id


def test_delete_a_selection_after_a_question(
    browser: Page, app: Any, store: Store
) -> None:
    ids = []
    for _ in range(3):
        wait(store)
    ids = [entry.id for entry in MailQueue(store.path).list()]
    question = browser.act(app.get("/queue/queue"), "delete", *ids[:2])
    assert "2 entries of queue will be deleted" in words(question)
    assert len(list(MailQueue(store.path).list())) == 3
    answer = browser.act(question, "delete")
    assert "2 entries deleted." in answer.follow()
    assert [entry.id for entry in MailQueue(store.path).list()] == ids[2:]


@pytest.mark.parametrize(("action", "left"), [("send", 2), ("drop", 0)])
def test_recover(
    browser: Page, app: Any, store: Store, action: str, left: int
) -> None:
    leave_in_doubt(store)
    ids = [entry.id for entry in MailQueue(store.path).list()]
    answer = browser.act(app.get("/queue/queue"), action, *ids)
    if action == "drop":
        answer = browser.act(answer, action)
    assert answer.status_int == 303
    assert len(list(MailQueue(store.path).list(EntryState.WAITING))) == left
    assert list(MailQueue(store.path).list(EntryState.IN_DOUBT)) == []


def test_an_entry_that_is_claimed_meanwhile(
    browser: Page, app: Any, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    defer(store)
    id = only(store, EntryState.DEFERRED)
    page = app.get(f"/queue/queue/{id}")
    [path] = store.maildir.paths("cur")
    claim = store.claim(path)
    assert claim is not None
    answer = browser.act(page, "retry", status=409)
    claim.release()
    assert "a processor is sending it now" in answer
    assert "was not retried, because a processor is sending it now" in caplog.text


def test_an_entry_that_is_sent_meanwhile(
    browser: Page, app: Any, store: Store
) -> None:
    defer(store)
    page = app.get("/queue/queue")
    id = only(store, EntryState.DEFERRED)
    [path] = store.maildir.paths("cur")
    os.unlink(path)
    answer = browser.act(page, "retry", id, status=410)
    assert "it is not in the queue any more; it was sent or deleted" in answer


def test_a_selection_of_which_one_is_gone(
    browser: Page, app: Any, store: Store
) -> None:
    names = [defer(store), defer(store)]
    page = app.get("/queue/queue")
    ids = [entry.id for entry in MailQueue(store.path).list()]
    os.unlink(f"{store.path}/cur/{names[0]}:2,")
    answer = browser.act(page, "retry", *ids)
    assert answer.status_int == 200
    assert "1 entry retried, 1 skipped" in words(answer)


def test_a_second_copy_is_announced(browser: Page, app: Any, store: Store) -> None:
    wait(store)
    [path] = store.maildir.paths("new")
    claim = store.claim(path)
    assert claim is not None
    store.bury(claim, Entry(SENDER, RECIPIENTS, MESSAGE, 1, "lost", 1))
    store.finish(claim)
    claim.release(removed=True)
    id = only(store, EntryState.FAILED)
    page = app.get(f"/queue/queue/{id}")
    assert "1 (1 uncertain)" in words(page)
    answer = browser.act(page, "retry")
    assert "a second copy may arrive" in answer


def test_a_mailbox_is_not_changed(browser: Page, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "Maildir"))
    write(store, "new/1.mail", b"From: a@x.org\n\nprivate\n")
    app = TestApp(make_app(store.path, authorize=lambda request: "ann"))
    page = app.get("/queue/Maildir")
    id = only(store, EntryState.WAITING)
    question = browser.act(page, "delete", id)
    answer = browser.act(question, "delete", status=503)
    assert "may be a person's mailbox" in words(answer)
    assert os.path.exists(f"{store.path}/new/1.mail")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([("action", "explode"), ("id", "{id}")], 400),
        ([("id", "{id}")], 400),
        ([("action", "retry")], 400),
        ([("action", "retry"), ("id", "..")], 404),
        ([("action", "retry"), ("id", "{name}")], 404),
        ([("action", "retry"), ("id", "{id}x")], 404),
        ([("action", "retry"), ("id", "0123456789ab")], 410),
        ([("action", "retry"), *[("id", f"{n:012x}") for n in range(201)]], 400),
    ],
)
def test_a_form_that_no_page_has(
    app: Any, store: Store, fields: list[tuple[str, str]], status: int
) -> None:
    defer(store, due=5000)
    [entry] = MailQueue(store.path).list()
    token = app.get("/queue/queue").forms[1]["token"].value
    form = [(k, v.format(id=entry.id, name=entry.name)) for k, v in fields]
    app.post(
        "/queue/queue", [*form, ("token", token)], headers=SAME_ORIGIN, status=status
    )
    [after] = MailQueue(store.path).list()
    assert after.due == entry.due


def test_a_form_goes_to_a_queue_only(app: Any, store: Store) -> None:
    wait(store)
    token = app.get("/queue/queue").forms[1]["token"].value
    id = only(store, EntryState.WAITING)
    for path in ("/", "/mailbox/mails", f"/queue/queue/{id}", "/queue/queue/x/y"):
        app.post(path, {"token": token}, headers=SAME_ORIGIN, status=404)


@pytest.mark.parametrize(
    "query",
    [
        *("did=retry&count=x", "did=x&count=1", "count=12345"),
        *("did=retry&count=%C2%B2", "did=retry&count=12345"),
    ],
)
def test_no_text_of_a_url_becomes_a_message(app: Any, query: str) -> None:
    assert 'role="status"' not in app.get(f"/queue/queue?{query}")


def test_cancel_a_selection(
    browser: Page, app: Any, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fill(store)
    fill_rooms(store)
    states = {entry.id: entry.state for entry in MailQueue(store.path).list()}
    [dead] = (id for id, state in states.items() if state is EntryState.FAILED)
    ids = [id for id, state in states.items() if state is not EntryState.IN_DOUBT]
    question = browser.act(app.get("/queue/queue"), "cancel", *ids)
    assert "Mail that still waits is removed and not sent." in question
    assert len(list(MailQueue(store.path).list())) == len(states)
    answer = browser.act(question, "cancel", status=200)
    text = words(answer)
    assert f"{len(ids) - 1} entries cancelled, 1 skipped" in text
    assert f"{dead} skipped it is a dead letter, which is not sent; delete it" in text
    assert {entry.state for entry in MailQueue(store.path).list()} == {
        *(EntryState.FAILED, EntryState.IN_DOUBT)
    }
    assert caplog.text.count("was cancelled") == len(ids) - 1
    assert caplog.text.count("was not cancelled") == 1


def test_cancel_one_entry(browser: Page, app: Any, store: Store) -> None:
    schedule(store)
    page = app.get(f"/queue/queue/{only(store, EntryState.SCHEDULED)}")
    answer = browser.act(browser.act(page, "cancel"), "cancel")
    assert "1 entry cancelled." in answer.follow()
    assert list(MailQueue(store.path).list()) == []


# Actions as JSON


def post_json(app: Any, action: str, *ids: str, status: int = 200) -> Any:
    """Send an action as a program does, which chooses the token itself."""
    headers = {**SAME_ORIGIN, "Cookie": "postcommit_form=1"}
    form = [("action", action), ("token", "1"), *[("id", id) for id in ids]]
    return app.post("/queue/queue.json", form, headers=headers, status=status).json


@pytest.mark.parametrize("action", ["hold", "retry", "cancel", "delete"])
def test_an_action_as_json(app: Any, store: Store, action: str) -> None:
    defer(store, due=5000)
    defer(store, due=5000)
    before = list(MailQueue(store.path).list())
    ids = [entry.id for entry in before]
    found = post_json(app, action, *ids)
    assert found["queue"] == store.path
    assert found["changes"] == [
        {"id": id, "status": "done", "problem": None, "warning": None} for id in ids
    ]
    assert list(MailQueue(store.path).list()) != before


def test_an_action_as_json_that_is_not_possible(app: Any, store: Store) -> None:
    bury(store)
    dead = only(store, EntryState.FAILED)
    [change] = post_json(app, "cancel", dead, status=409)["changes"]
    assert (change["id"], change["status"]) == (dead, "refused")
    assert "dead letter" in change["problem"]
    [change] = post_json(app, "retry", "0123456789ab", status=410)["changes"]
    assert change["status"] == "gone"
    assert "error" in post_json(app, "explode", dead, status=400)
    assert "error" in post_json(app, "retry", status=400)


def test_an_old_entry_is_shown_with_its_times(app: Any, store: Store) -> None:
    write(store, f"new/{time.time() - 7200:.0f}.M1P1Q1.web")
    text = words(app.get(f"/queue/queue/{only(store, EntryState.WAITING)}"))
    assert re.search(r"Accepted 20.* UTC.*, 2h ago", text)
    assert "Next attempt now, 20" in text
