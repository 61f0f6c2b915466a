"""Each row of the page's security: what is refused, and what a response has."""
from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from typing import Any
from urllib.parse import quote

import pytest
from webob import Request
from webob import Response
from webob.exc import HTTPFound
from webtest import TestApp

from postcommit import FileMailer
from postcommit import MailQueue
from postcommit import OptionError
from postcommit._maildir.store import Store
from postcommit.web import make_app
from tests.support.queues import defer
from tests.support.queues import wait
from tests.support.queues import write
from tests.web.conftest import SAME_ORIGIN


HOSTILE = b"""\
X-Zope-From: s@x.org
X-Zope-To: a@x.org
Subject: <script>alert(1)</script>
From: "<img src=x onerror=alert(1)>" <s@x.org>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=B

--B
Content-Type: text/html

<script>alert(1)</script><a href="javascript:alert(1)">Click <b>me</b></a>
<a href="http://tracker.example.org/?id=1">http://bank.example.org</a>
--B
Content-Type: text/html; name="<script>.html"
Content-Disposition: attachment; filename="..\\"/<b>.html\\x0d\\x0aX-Evil: 1"

<script>alert(2)</script>
--B--
"""


def read_only_pages(app: Any, store: Store) -> list[str]:
    [entry] = MailQueue(store.path).list()
    [letter] = app.get("/mailbox/mails.json").json["messages"]
    one = f"/queue/queue/{entry.id}"
    mail = f"/mailbox/mails/{letter['id']}"
    return [
        *("/", "/index.json", "/queue/queue", "/queue/queue.json"),
        *("/mailbox/mails", "/mailbox/mails.json", "/style.css", "/none"),
        *(one, f"{one}.json", f"{one}/html", f"{one}/source", f"{one}/part/1"),
        *(mail, f"{mail}.json", f"{mail}/html", f"{mail}/source"),
    ]


@pytest.fixture
def filled(store: Store, mailbox: Any) -> Store:
    write(store, "new/1700000000.M1P1Q1.web", HOSTILE)
    FileMailer(str(mailbox)).send("a@x.org", "b@x.org", "Subject: x\n\ntext\n")
    return store


FORM = "application/x-www-form-urlencoded"


# Responses


def test_each_response_has_the_headers(app: Any, filled: Store) -> None:
    for path in read_only_pages(app, filled):
        page = app.get(path, status="*")
        assert page.headers["X-Content-Type-Options"] == "nosniff", path
        assert page.headers["Referrer-Policy"] in ("no-referrer", "same-origin")
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["X-Frame-Options"] in ("DENY", "SAMEORIGIN")
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script" not in policy


class _Tags(HTMLParser):
    """Collects the names and attributes of all tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_pages_need_no_script(app: Any, filled: Store) -> None:
    for path in read_only_pages(app, filled):
        page = app.get(path, status="*")
        if page.content_type != "text/html" or path.endswith("/html"):
            continue
        assert "unsafe" not in page.headers["Content-Security-Policy"]
        for tag, attributes in _Tags(page.text).found:
            assert tag not in ("script", "style", "object", "embed", "base", "img")
            for name, value in attributes.items():
                assert name != "style"
                assert not name.startswith("on")
                if name in ("href", "src", "action"):
                    assert re.match("[/#]", value or ""), (tag, value)
                    assert "//" not in (value or "")


def test_the_html_of_a_message(app: Any, filled: Store) -> None:
    [entry] = MailQueue(filled.path).list()
    page = app.get(f"/queue/queue/{entry.id}")
    assert page.text.count("<iframe ") == 1
    [frame] = re.findall(r"<iframe [^>]*>", page.text)
    assert ' sandbox=""' in frame
    assert f'src="/queue/queue/{entry.id}/html"' in frame
    html = app.get(f"/queue/queue/{entry.id}/html")
    assert html.headers["Content-Security-Policy"] == (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    )
    assert html.headers["Referrer-Policy"] == "no-referrer"
    assert html.content_type == "text/html"
    assert "<script>alert(1)</script>" in html


def test_links_are_text_beside_their_target(app: Any, filled: Store) -> None:
    [entry] = MailQueue(filled.path).list()
    page = app.get(f"/queue/queue/{entry.id}")
    for text, target in (
        ("Click me", "javascript:alert(1)"),
        ("http://bank.example.org", "http://tracker.example.org/?id=1"),
    ):
        assert f'<td data-label="Text">{text}</td>' in page
        assert f"<code>{target}</code>" in page
        assert f'href="{target}' not in page


def test_attachments_are_downloads(app: Any, filled: Store) -> None:
    [entry] = MailQueue(filled.path).list()
    page = app.get(f"/queue/queue/{entry.id}")
    [place] = re.findall(r'href="(/queue/queue/\w+/part/\d+)"', page.text)
    part = app.get(place)
    assert part.content_type == "application/octet-stream"
    disposition = part.headers["Content-Disposition"]
    assert disposition.startswith('attachment; filename="')
    assert re.fullmatch(
        r"attachment; filename=\"\w+\"; filename\*=UTF-8''[\w%.~-]+", disposition
    )
    assert "X-Evil" not in part.headers
    source = app.get(f"/queue/queue/{entry.id}/source")
    assert source.headers["Content-Disposition"].startswith("attachment;")


def test_at_most_2_mib_of_a_message(app: Any, store: Store) -> None:
    head = b"X-Zope-From: s@x.org\nX-Zope-To: a@x.org\nSubject: long\n\n"
    write(store, "new/1700000000.M1P1Q1.web", head + b"x" * (3 << 20))
    [entry] = MailQueue(store.path).list()
    page = app.get(f"/queue/queue/{entry.id}?view=text")
    assert "Only the first 2.0M of the message are shown." in page
    assert (2 << 20) - 100 < page.text.count("x") < (2 << 20) + 100
    assert len(app.get(f"/queue/queue/{entry.id}/source").body) <= (2 << 20) + 1


# Requests


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example.org", "evil.example.org:80", "localhost.evil.org", ""),
        *("[::1", "::", "::1", "[::2]", "localhost..", ".localhost", "localhost:x"),
        *("evil@localhost", "localhost@evil.org", "localhost/evil", "localhost#evil"),
        *("localhost?x", "localhost, evil.org", "localhost evil", "127.0.0.1.evil.org"),
        *("127.1", "2130706433", "localhos\u0442", "localhost:80:80", " localhost"),
        *("localhost\\evil", "[localhost]", "[127.0.0.1]:80.evil", "x" * 70_000),
    ],
)
def test_a_host_that_is_not_in_the_list(
    app: Any, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    page = Request.blank("/", headers={"Host": host}).get_response(app.app)
    assert page.status_int == 403
    assert "hosts" in page.text
    assert len(caplog.records) == 1
    assert "was refused with 403" in caplog.text


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST:8025", "localhost.", "localhost.:8025", "localhost:"),
        *("127.0.0.1:1", "[::1]:8025", "[::1]"),
    ],
)
def test_a_host_of_this_machine(app: Any, host: str) -> None:
    app.get("/", headers={"Host": host})


def test_a_host_that_is_added(store: Store) -> None:
    Store(store.path)
    hosts = ["shop.Example.org"]
    app = TestApp(
        make_app(store.path, authorize=lambda request: "ann", hosts=hosts)
    )
    app.get("/", headers={"Host": "shop.example.org"})
    app.get("/", headers={"Host": "localhost"}, status=403)


def test_a_request_without_a_host(app: Any) -> None:
    status: list[str] = []
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "wsgi.url_scheme": "http",
    }
    app.app(environ, lambda line, headers: status.append(line))
    assert status == ["403 Forbidden"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://evil.example.org"},
        {"Origin": "null"},
        {"Origin": "http://localhost:81"},
        {"Origin": "file://localhost:80"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:80"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example.org"},
    ],
)
def test_a_form_of_another_site(
    app: Any, store: Store, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    defer(store, due=5000)
    [entry] = MailQueue(store.path).list()
    form = app.get("/queue/queue").forms[1]
    form["id"].checked = True
    page = form.submit("action", value="retry", headers=headers, status=403)
    assert "Origin" in page or "another site" in page
    assert len(caplog.records) == 1
    assert next(MailQueue(store.path).list()).due == entry.due


@pytest.mark.parametrize(
    "headers",
    [
        SAME_ORIGIN,
        {"Origin": "http://localhost:80"},
        {"Origin": "https://localhost:80"},
        {"Sec-Fetch-Site": "same-origin"},
    ],
)
def test_a_form_of_the_page(app: Any, store: Store, headers: dict[str, str]) -> None:
    defer(store, due=5000)
    form = app.get("/queue/queue").forms[1]
    form["id"].checked = True
    form.submit("action", value="retry", headers=headers, status=303)


@pytest.mark.parametrize("token", ["", "x", "ä"])
def test_a_form_without_the_token(
    app: Any, store: Store, caplog: pytest.LogCaptureFixture, token: str
) -> None:
    defer(store, due=5000)
    [entry] = MailQueue(store.path).list()
    form = app.get("/queue/queue").forms[1]
    form["id"].checked = True
    form["token"] = token
    page = form.submit("action", value="retry", headers=SAME_ORIGIN, status=403)
    assert "token" in page
    assert len(caplog.records) == 1
    assert next(MailQueue(store.path).list()).due == entry.due


def test_a_form_without_the_cookie(app: Any, store: Store) -> None:
    wait(store)
    form = app.get("/queue/queue").forms[1]
    app.reset()
    form["token"] = ""
    form.submit("action", value="delete", headers=SAME_ORIGIN, status=403)


def posted(
    app: Any, body: bytes, cookie: str = "postcommit_form=1", **environ: Any
) -> Any:
    """Send a form as a program does, which chooses the token itself."""
    headers = {**SAME_ORIGIN, "Cookie": cookie}
    request = Request.blank("/queue/queue", headers=headers, method="POST", body=body)
    request.content_type = "application/x-www-form-urlencoded"
    request.environ.update(environ)
    return request.get_response(app.app)


_CUT_OFF = {"CONTENT_LENGTH": "5000", "webob.is_body_seekable": False}
_MULTIPART = (
    b'--B\r\nContent-Disposition: form-data; name="token"\r\n\r\n1\r\n'
    b'--B\r\nContent-Disposition: form-data; name="action"\r\n\r\nretry\r\n'
    b'--B\r\nContent-Disposition: form-data; name="id"; filename="x"\r\n\r\n%b\r\n'
    b"--B--\r\n"
)


@pytest.mark.parametrize(
    ("body", "environ", "status"),
    [
        (b"token=1&action=retry&id=%b", {}, 303),
        (b"token=1&token=1&action=retry&id=%b", {}, 403),
        (b"token=2&token=1&action=retry&id=%b", {}, 403),
        (b"action=retry&id=%b", {"QUERY_STRING": "token=1"}, 403),
        (b"token=%%ff&action=retry&id=%b", {}, 403),
        (b"token=1&action=retry&action=delete&id=%b&confirmed=1", {}, 400),
        (b"token=1&action=retry&id=%%ff%%fe&x=%b", {}, 404),
        (_MULTIPART, {"CONTENT_TYPE": "multipart/form-data; boundary=B"}, 415),
        (_MULTIPART, {"CONTENT_TYPE": "multipart/form-data"}, 415),
        (b'{"token": "1", "id": "%b"}', {"CONTENT_TYPE": "application/json"}, 415),
        (b"token=1&action=retry&id=%b", {"CONTENT_TYPE": "text/plain"}, 415),
        (b"token=1&action=retry&id=%b", {"CONTENT_TYPE": ""}, 415),
        *(
            (b"token=1&action=retry&id=%b", {"CONTENT_TYPE": f"{FORM}; charset={c}"}, s)
            for c, s in (("utf-16", 415), ("nothing", 415), ("UTF-8", 303))
        ),
        (b"token=1&action=retry&id=%b", {"CONTENT_LENGTH": ""}, 411),
        (b"token=1&action=retry&id=%b", {"CONTENT_LENGTH": "many"}, 411),
        (b"token=1&action=retry&id=%b", {"CONTENT_LENGTH": "-1"}, 413),
        (b"token=1&action=retry&id=%b", {"CONTENT_LENGTH": "65537"}, 413),
        (b"token=1&action=retry&id=%b", _CUT_OFF, 400),
        (
            b"token=1&action=retry&id=%b",
            {"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
            411,
        ),
    ],
)
def test_the_content_of_a_form(
    app: Any, store: Store, body: bytes, environ: dict[str, Any], status: int
) -> None:
    defer(store, due=5000)
    [entry] = MailQueue(store.path).list()
    answer = posted(app, body % entry.id.encode(), **environ)
    assert answer.status_int == status
    is_due = next(MailQueue(store.path).list()).due != entry.due
    assert is_due == (status == 303)


@pytest.mark.parametrize(
    "cookie",
    [
        *("session=x; postcommit_form=1", "postcommit_form=1; ;;=; b"),
        'session="a\\"; postcommit_form=1',
    ],
)
def test_the_cookies_of_another_application(
    app: Any, store: Store, cookie: str
) -> None:
    defer(store, due=5000)
    [entry] = MailQueue(store.path).list()
    body = b"token=1&action=retry&id=%b" % entry.id.encode()
    assert posted(app, body, cookie).status_int == 303


def test_a_refusal_does_not_repeat_a_long_request(
    app: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/queue/queue/" + "x" * 9000, "/queue/queue?state=" + "x" * 9000):
        assert len(app.get(path, status="*").body) < 4000
    long = "x" * 9000
    page = Request.blank(f"/{long}", headers={"Host": long}).get_response(app.app)
    assert len(page.body) < 4000
    assert len(caplog.text) < 4000


def test_a_form_that_is_too_large(app: Any, store: Store) -> None:
    app.post("/queue/queue", {"x": "y" * 70_000}, headers=SAME_ORIGIN, status=413)


def test_the_cookie(app: Any, store: Store) -> None:
    wait(store)
    cookie = app.get("/queue/queue").headers["Set-Cookie"]
    for attribute in ("HttpOnly", "SameSite=Strict", "Path=/"):
        assert attribute in cookie
    assert "secure" not in cookie.lower()
    app.reset()
    page = app.get("/queue/queue", extra_environ={"wsgi.url_scheme": "https"})
    assert "secure" in page.headers["Set-Cookie"].lower()


@pytest.mark.parametrize("mount", ["/a b", "/m\xc3\xa4il", "/a;b, c", '/"<x>', "/a/b/"])
def test_a_mount_with_odd_characters(app: Any, store: Store, mount: str) -> None:
    """The cookie and the links have the path as a browser has it in its address."""
    wait(store)
    page = app.get("/queue/queue", extra_environ={"SCRIPT_NAME": mount})
    path = quote(mount.encode("latin-1").rstrip(b"/"), safe="/")
    [place] = re.findall(r'Path=([^;]*)', page.headers["Set-Cookie"])
    assert place == path
    for link in re.findall(r'(?:href|action)="(/[^"]*)"', page.text):
        assert link.startswith(f"{path}/")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_another_method(app: Any, method: str) -> None:
    page = app.request("/", method=method, status=405)
    assert page.headers["Allow"] == "GET, HEAD, POST"


def test_head_is_get_without_its_body(app: Any, store: Store) -> None:
    assert app.head("/").body == b""


# Users


def test_authorize_has_no_default(store: Store) -> None:
    with pytest.raises(TypeError, match="authorize"):
        make_app(store.path)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="authorize"):
        make_app(store.path, authorize=None)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="hosts"):
        make_app(store.path, authorize=lambda request: "x", hosts="localhost")


@pytest.mark.parametrize(
    "host",
    ["shop.example.org:8025", "a:80", "http://x.example.org", "*", "", "a b", "ö.de"],
)
def test_a_host_that_no_request_can_have(store: Store, host: str) -> None:
    with pytest.raises(OptionError, match="hosts"):
        make_app(store.path, authorize=lambda request: "x", hosts=[host])


@pytest.mark.parametrize("nobody", [None, "", False])
def test_a_user_who_may_not_see_it(
    store: Store, caplog: pytest.LogCaptureFixture, nobody: Any
) -> None:
    wait(store)
    app = TestApp(make_app(store.path, authorize=lambda request: nobody))
    [entry] = MailQueue(store.path).list()
    for path in ("/", "/queue/queue", f"/queue/queue/{entry.id}/html", "/index.json"):
        assert "Teapot" not in app.get(path, status=403)
    assert len(caplog.records) == 4
    app.post("/queue/queue", headers=SAME_ORIGIN, status=403)
    app.get("/style.css")


def test_what_is_not_the_name_of_a_user(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    yes: Any = lambda request: True  # noqa: E731
    TestApp(make_app(store.path, authorize=yes)).get("/", status=500)
    assert "authorize must return the name of the user" in caplog.text


def test_authorize_may_answer(store: Store) -> None:
    def authorize(request: Any) -> str:
        raise HTTPFound(location="/login")

    answer = TestApp(make_app(store.path, authorize=authorize)).get("/", status=302)
    assert answer.headers["Location"].endswith("/login")
    assert answer.headers["Cache-Control"] == "no-store"
    assert isinstance(answer, Response)


def test_the_user_cannot_begin_a_line_of_the_log(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wait(store)
    app = TestApp(make_app(store.path, authorize=lambda request: "ann\nroot: yes"))
    page = app.get("/queue/queue")
    page.forms[1]["id"].checked = True
    question = page.forms[1].submit("action", value="delete", headers=SAME_ORIGIN)
    question.forms[0].submit("action", value="delete", headers=SAME_ORIGIN)
    [record] = [r for r in caplog.records if "deleted" in r.getMessage()]
    assert record.getMessage().startswith(r"ann\nroot: yes: entry ")


# Names


def test_names_are_parts_of_a_url(tmp_path: Any) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Store(str(tmp_path / name / "queue"))
    paths = [str(tmp_path / name / "queue") for name in ("a", "b")]
    app = TestApp(make_app(paths, authorize=lambda request: "ann"))
    names = [queue["name"] for queue in app.get("/index.json").json["queues"]]
    assert names == ["queue", "queue-2"]
    for name in names:
        app.get(f"/queue/{name}")
    named = {"Order mail/é?": paths[0], "..": paths[1]}
    app = TestApp(make_app(named, authorize=lambda request: "ann"))
    found = [queue["name"] for queue in app.get("/index.json").json["queues"]]
    assert found == ["Order-mail", "queue"]
    with pytest.raises(OptionError, match="mailboxes"):
        make_app(mailboxes=[""], authorize=lambda request: "ann")
