"""The page in a Pyramid application: its settings, its policy, and what it shows."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pyramid.authentication import AuthTktAuthenticationPolicy
from pyramid.authorization import ACLAuthorizationPolicy
from pyramid.authorization import ACLHelper
from pyramid.authorization import Allow
from pyramid.config import Configurator
from pyramid.exceptions import ConfigurationError
from pyramid.security import Allowed
from pyramid.security import Denied
from webtest import TestApp

from postcommit import EntryState
from postcommit import FileMailer
from postcommit import MailQueue
from postcommit import QueuedMailDelivery
from postcommit._maildir.store import Store
from tests.support.queues import bury
from tests.support.queues import fill
from tests.web.conftest import SAME_ORIGIN


class Policy:
    """Permits `postcommit.manage` to a user whom a header names."""

    def authenticated_userid(self, request: Any) -> str | None:
        return request.headers.get("X-User")

    def permits(self, request: Any, context: Any, permission: str) -> Any:
        is_operator = self.authenticated_userid(request) == "olga"
        if permission == "postcommit.manage" and is_operator:
            return Allowed("the operator")
        return Denied("not the operator")


def configured(store: Store, **settings: str) -> Configurator:
    given = {"mail.queue_path": store.path, "mail.web_path": "/mail"}
    given |= {f"mail.{name}": value for name, value in settings.items()}
    config = Configurator(settings=given)
    config.include("postcommit.web.pyramid")
    return config


def served(store: Store, **settings: str) -> Any:
    config = configured(store, **settings)
    config.set_security_policy(Policy())
    config.set_default_csrf_options(require_csrf=True)
    config.add_route("mailing", "/mailing")
    config.add_view(lambda r: "the list", route_name="mailing", renderer="string")
    return TestApp(config.make_wsgi_app())


OLGA = {"X-User": "olga"}


def test_the_operator_sees_the_page(store: Store) -> None:
    fill(store)
    app = served(store)
    for path in ("/mail", "/mail/"):
        page = app.get(path, headers=OLGA)
        assert 'href="/mail/queue/queue?state=failed"' in page
        assert 'href="/mail/style.css"' in page
        assert '<p class="user">olga</p>' in page
    assert "Teapot" in app.get("/mail/queue/queue", headers=OLGA)
    app.get("/mail/style.css", headers=OLGA)


def test_others_do_not(store: Store) -> None:
    fill(store)
    app = served(store)
    for path in ("/mail", "/mail/", "/mail/queue/queue", "/mail/style.css"):
        for headers in ({}, {"X-User": "ann"}):
            assert "Teapot" not in app.get(path, headers=headers, status=403)


def test_the_operator_changes_an_entry(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    bury(store)
    app = served(store)
    page = app.get("/mail/queue/queue", headers=OLGA)
    assert "Path=/mail;" in page.headers["Set-Cookie"]
    form = page.forms[1]
    form["id"].checked = True
    answer = form.submit("action", value="retry", headers={**SAME_ORIGIN, **OLGA})
    assert "1 entry retried." in answer.follow(headers=OLGA)
    [entry] = MailQueue(store.path).list(EntryState.WAITING)
    assert f"olga: entry {entry.id} of {store.path} was retried" in caplog.text
    form.submit("action", value="retry", headers=OLGA, status=403)


def test_another_path_of_the_application(store: Store) -> None:
    assert served(store).get("/mailing").text == "the list"


def test_a_slash_at_the_end_of_the_path(store: Store) -> None:
    app = served(store, web_path="/admin/mail/")
    assert 'href="/admin/mail/queue/queue?' in app.get("/admin/mail", headers=OLGA)


def test_without_a_policy(store: Store) -> None:
    config = configured(store)
    with pytest.raises(ConfigurationError, match=r"no security policy.*web_insecure"):
        config.make_wsgi_app()


def test_insecure(store: Store) -> None:
    app = TestApp(configured(store, web_insecure="true").make_wsgi_app())
    assert '<p class="user">anonymous</p>' in app.get("/mail")


def test_insecure_with_a_policy(store: Store) -> None:
    config = configured(store, web_insecure="true")
    config.set_security_policy(Policy())
    app = TestApp(config.make_wsgi_app())
    assert '<p class="user">ann</p>' in app.get("/mail", headers={"X-User": "ann"})


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_the_policies_of_older_applications(store: Store) -> None:
    config = configured(store)
    config.set_authentication_policy(AuthTktAuthenticationPolicy("secret"))
    config.set_authorization_policy(ACLAuthorizationPolicy())
    TestApp(config.make_wsgi_app()).get("/mail", status=403)


def test_hosts(store: Store) -> None:
    app = served(store, web_hosts="shop.example.org, admin.example.org")
    for host in ("shop.example.org", "admin.example.org:8443"):
        app.get("/mail", headers={**OLGA, "Host": host})
    app.get("/mail", headers={**OLGA, "Host": "localhost"}, status=403)
    app = served(store)
    page = app.get("/mail", headers={**OLGA, "Host": "x.example.org"}, status=403)
    assert "hosts" in page


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("web_path", "mail"),
        ("web_path", "/"),
        ("web_path", "/mail/{id}"),
        ("web_path", "/mail*x"),
        ("web_path", "http://x.org/mail"),
        ("web_insecure", "perhaps"),
        ("web_hosts", "http://shop.example.org"),
        ("web_hosts", "*"),
        ("web_hosts", ","),
        ("web_pth", "/mail"),
    ],
)
def test_a_setting_that_can_never_work(store: Store, name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"mail.{name}"):
        configured(store, **{name: value})


def test_the_path_is_needed() -> None:
    with pytest.raises(ConfigurationError, match=r"mail\.web_path.* is needed"):
        Configurator().include("postcommit.web.pyramid")


def test_a_path_without_the_page(store: Store) -> None:
    settings = {"mail.queue_path": store.path, "mail.web_path": "/mail"}
    config = Configurator(settings=settings)
    config.include("postcommit.pyramid")
    with pytest.raises(ConfigurationError, match=r"mail\.web_path.* has no effect"):
        config.make_wsgi_app()


def test_a_configurator_that_commits_at_once(store: Store) -> None:
    settings = {"mail.queue_path": store.path, "mail.web_path": "/mail"}
    config = Configurator(settings=settings, autocommit=True)
    config.set_security_policy(Policy())
    config.include("postcommit.pyramid")
    config.include("postcommit.web.pyramid")
    TestApp(config.make_wsgi_app()).get("/mail", headers=OLGA)


def test_it_shows_each_queue_and_mailbox(store: Store, tmp_path: Path) -> None:
    config = configured(store, mailer="file", folder=str(tmp_path / "mails"))
    config.set_security_policy(Policy())
    other = str(tmp_path / "news")
    Store(other)
    config.add_mail_delivery(QueuedMailDelivery(other), "news")
    config.add_mailer(FileMailer(str(tmp_path / "mails")), "again")
    app = TestApp(config.make_wsgi_app())
    found = app.get("/mail/index.json", headers=OLGA).json
    assert {queue["queue"] for queue in found["queues"]} == {store.path, other}
    assert [box["path"] for box in found["mailboxes"]] == [str(tmp_path / "mails")]


def test_including_it_beside_postcommit_pyramid(store: Store) -> None:
    settings = {"mail.queue_path": store.path, "mail.web_path": "/mail"}
    for first, second in [
        ("postcommit.pyramid", "postcommit.web.pyramid"),
        ("postcommit.web.pyramid", "postcommit.pyramid"),
    ]:
        config = Configurator(settings=settings)
        config.include(first)
        config.include(second)
        config.set_security_policy(Policy())
        TestApp(config.make_wsgi_app()).get("/mail", headers=OLGA)


def test_behind_a_proxy_that_serves_it_below_a_path(store: Store) -> None:
    """The application is at ``/shop``, and browsers speak HTTPS with the proxy."""
    bury(store)
    app = served(store, web_hosts="shop.example.org")
    behind = {
        **{"SCRIPT_NAME": "/shop", "wsgi.url_scheme": "https"},
        **{"HTTP_HOST": "shop.example.org", "HTTP_X_FORWARDED_HOST": "evil.org"},
    }
    page = app.get("/mail/queue/queue", headers=OLGA, extra_environ=behind)
    assert "Path=/shop/mail;" in page.headers["Set-Cookie"]
    assert "secure" in page.headers["Set-Cookie"]
    for link in re.findall(r'(?:href|action)="([^"#]+)"', page.text):
        assert link.startswith("/shop/mail/"), link
    cookie = page.headers["Set-Cookie"].partition(";")[0]
    token = cookie.partition("=")[2]
    [id] = re.findall(r'name="id" value="(\w+)"', page.text)
    origin = {"Origin": "https://shop.example.org", "Cookie": cookie, **OLGA}
    form = {"token": token, "action": "retry", "id": id}
    answer = app.post(
        "/mail/queue/queue", form, headers=origin, extra_environ=behind, status=303
    )
    assert answer.headers["Location"].startswith("/shop/mail/queue/queue?did=retry")
    head = app.head("/mail/", headers=OLGA, extra_environ=behind)
    assert (head.status_int, head.body) == (200, b"")


class Root(dict[str, Any]):
    """A tree of resources: views are found by traversal."""

    __name__ = __parent__ = None


def test_an_application_with_traversal(store: Store) -> None:
    config = configured(store)
    config.set_security_policy(Policy())
    config.set_root_factory(lambda request: Root(mail=Root(), shop=Root()))
    config.add_view(lambda c, r: f"view of {r.path}", context=Root, renderer="string")
    app = TestApp(config.make_wsgi_app())
    assert app.get("/shop").text == "view of /shop"
    assert app.get("/").text == "view of /"
    app.get("/mail", status=403)
    assert 'href="/mail/queue/queue"' in app.get("/mail/", headers=OLGA)


def test_a_permission_of_the_root_is_enough(store: Store) -> None:
    """An ACL of the root factory, as in the tutorials of Pyramid."""
    config = configured(store)
    config.set_security_policy(ACLPolicy())
    config.set_root_factory(Guarded)
    app = TestApp(config.make_wsgi_app())
    app.get("/mail/", headers=OLGA)
    app.get("/mail/", headers={"X-User": "ann"}, status=403)


class Guarded:
    __acl__ = ((Allow, "olga", "postcommit.manage"),)

    def __init__(self, request: Any) -> None:
        pass


class ACLPolicy(Policy):
    def permits(self, request: Any, context: Any, permission: str) -> Any:
        users = [self.authenticated_userid(request)]
        return ACLHelper().permits(context, users, permission)
