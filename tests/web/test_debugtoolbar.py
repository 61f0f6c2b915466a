"""The panel of pyramid_debugtoolbar: the mail of each request, in a real toolbar."""
from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from pyramid.config import Configurator
from pyramid.response import Response
from webtest import TestApp

from postcommit import EntryState
from postcommit import MailQueue
from postcommit._maildir.store import Store
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IScheduledMailDelivery
from postcommit.pyramid import get_mail_delivery


HTML = "<html><body>Thank you.</body></html>"

PANELS = [
    {"debugtoolbar.extra_panels": "postcommit.web.debugtoolbar.MailPanel"},
    {"debugtoolbar.includes": "postcommit.web.debugtoolbar"},
]


@pytest.fixture
def served(tmp_path: Path) -> Callable[..., Any]:
    """A function that serves a view beside the toolbar."""

    def serve(view: Callable[[Any], Any], **settings: str) -> Any:
        path = str(tmp_path / "queue")
        Store(path)
        given = {"mail.queue_path": path, **(settings or PANELS[0])}
        config = Configurator(settings=given)
        config.include("pyramid_tm")
        config.include("postcommit.pyramid")
        config.include("pyramid_debugtoolbar")
        config.add_route("view", "/")
        config.add_view(view, route_name="view")
        return TestApp(
            config.make_wsgi_app(), extra_environ={"REMOTE_ADDR": "127.0.0.1"}
        )

    return serve


def message(**fields: str) -> EmailMessage:
    made = EmailMessage()
    given = {"From": "s@x.org", "To": "a@x.org", "Subject": "Your teapot", **fields}
    for name, value in given.items():
        made[name] = value
    made.set_content("Thank <b>you</b>.\n")
    return made


def panel(app: Any, **options: Any) -> str:
    """Load the page, and return the part of its toolbar about mail."""
    page = app.get("/", **options)
    [place] = re.findall(r"https?://[^/]*(/_debug_toolbar/\d\w+)\"", page.text)
    toolbar = app.get(place).text
    _, start, rest = toolbar.partition('id="pDebugPanel-mail-content"')
    assert start or 'id="pDebugPanel-mail">' in toolbar
    return rest.partition('id="pDebugPanel-')[0]


def rows(html: str) -> dict[str, str]:
    return dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", html))


@pytest.mark.parametrize("settings", PANELS)
def test_the_mail_of_a_request(
    served: Callable[..., Any], settings: dict[str, str], tmp_path: Path
) -> None:
    def view(request: Any) -> Response:
        request.mail_delivery.send(None, None, message())
        return Response(HTML)

    shown = panel(served(view, **settings))
    [entry] = MailQueue(str(tmp_path / "queue")).list()
    about = rows(shown)
    assert (about["From"], about["To"]) == ("s@x.org", "a@x.org")
    assert about["Transaction"] == "committed"
    assert about["Message id"] == entry.message_id
    assert "QueuedMailDelivery" in about["Delivery"]
    assert "<h4>Your teapot</h4>" in shown
    assert "Thank &lt;b&gt;you&lt;/b&gt;." in shown


def test_a_request_that_aborts(served: Callable[..., Any], tmp_path: Path) -> None:
    def view(request: Any) -> Response:
        request.mail_delivery.send("s@x.org", iter(["a@x.org", "b@x.org"]), message())
        request.tm.doom()
        return Response(HTML)

    about = rows(panel(served(view)))
    assert about["Transaction"] == "aborted, not sent"
    assert about["To"] == "a@x.org, b@x.org"
    assert list(MailQueue(str(tmp_path / "queue")).list()) == []


def test_a_commit_that_fails(served: Callable[..., Any], tmp_path: Path) -> None:
    def view(request: Any) -> Response:
        request.mail_delivery.send(None, None, message())
        request.tm.get().addBeforeCommitHook(refuse)
        try:
            request.tm.commit()
        except LookupError:
            request.tm.abort()
            request.tm.begin()
        return Response(HTML)

    def refuse() -> None:
        raise LookupError("no room")

    assert rows(panel(served(view)))["Transaction"].endswith("not sent")
    assert list(MailQueue(str(tmp_path / "queue")).list()) == []


def test_a_request_without_mail(served: Callable[..., Any]) -> None:
    shown = panel(served(lambda request: Response(HTML)))
    assert "Message id" not in shown


def test_the_delivery_is_the_same_in_all_other_respects(
    served: Callable[..., Any], tmp_path: Path
) -> None:
    seen: list[Any] = []

    def view(request: Any) -> Response:
        delivery = get_mail_delivery(request, "queued")
        seen.append(IScheduledMailDelivery.providedBy(delivery))
        seen.append(delivery.queuePath)
        delivery.send(None, None, message(), not_before=timedelta(hours=1))
        first = delivery.send(None, None, message())
        seen.append(delivery.cancel(first))
        return Response(HTML)

    shown = panel(served(view))
    path = str(tmp_path / "queue")
    assert seen == [True, path, True]
    assert shown.count("<h4>") == 2
    [entry] = MailQueue(path).list()
    assert entry.state is EntryState.SCHEDULED


def test_an_error_of_the_delivery_reaches_the_view(
    served: Callable[..., Any],
) -> None:
    def view(request: Any) -> Response:
        with pytest.raises(ValueError, match="not an address"):
            request.mail_delivery.send("s@x.org", "not an address", message())
        return Response(HTML)

    assert "Message id" not in panel(served(view))


class Odd:
    """A delivery of another kind, without a transaction, that takes anything."""

    def send(self, fromaddr: object, toaddrs: object, message: object) -> str:
        return "1@odd"


def test_a_delivery_of_another_kind(served: Callable[..., Any]) -> None:
    def view(request: Any) -> Response:
        get_mail_delivery(request, "odd").send("s@x.org", None, b"Subject: x\n\n")
        return Response(HTML)

    app = served(view)
    app.app.registry.registerUtility(Odd(), IMailDelivery, "odd")
    about = rows(panel(app))
    assert (about["Message id"], about["Transaction"]) == ("1@odd", "not decided yet")


def test_a_request_with_much_mail(served: Callable[..., Any]) -> None:
    def view(request: Any) -> Response:
        for number in range(60):
            request.mail_delivery.send(None, None, message(Subject=f"Number {number}"))
        return Response(HTML)

    shown = panel(served(view))
    assert shown.count("<h4>Number ") == 50
    assert "10 more are not shown." in shown


def test_hostile_mail_in_the_panel(served: Callable[..., Any]) -> None:
    hostile = (
        b"From: s@x.org\nTo: a@x.org\nSubject: <script>alert(1)</script>\n"
        b"Content-Type: text/html; charset=nothing\n\n<script>alert(2)</script>\xff"
    )

    def view(request: Any) -> Response:
        request.mail_delivery.send(None, None, hostile)
        return Response(HTML)

    shown = panel(served(view))
    assert "&lt;script&gt;alert(1)" in shown
    assert "<script>alert" not in shown
