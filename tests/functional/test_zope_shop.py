"""A Zope-style application, whose only change is the include."""
from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transaction
from tests.functional import zope_shop
from tests.functional.postfix import Postfix
from tests.functional.zope_shop import OWNER
from tests.functional.zope_shop import Publication
from tests.functional.zope_shop import Shop
from tests.support import children
from tests.support.smtpd import ScriptedRelay
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError
from zope.component import getUtilitiesFor
from zope.component import getUtility
from zope.component import provideHandler
from zope.component.event import dispatch  # noqa: F401
from zope.component.hooks import resetHooks
from zope.component.hooks import setHooks
from zope.component.testing import PlacelessSetup
from zope.configuration import xmlconfig

from postcommit.interfaces import IMailer
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IMailRejectedEvent
from postcommit.interfaces import IMailSentEvent
from postcommit.testing import recording


ANN, BOB = "ann@example.org", "bob@example.org"


@pytest.fixture
def configure(tmp_path: Path) -> Iterator[Callable[[int], Publication]]:
    """A function that starts the site, with a relay at a port."""
    setup = PlacelessSetup()
    setup.setUp()
    setHooks()
    db = DB(FileStorage(str(tmp_path / "Data.fs")))

    def configure(port: int) -> Publication:
        text = zope_shop.SITE.replace("zope.sendmail", "postcommit")
        (tmp_path / "site.zcml").write_text(text.format(port=port))
        xmlconfig.file(str(tmp_path / "site.zcml"))
        publication = Publication(db)
        publication.publish(subscribe)
        return publication

    yield configure
    for _, processor in getUtilitiesFor(IMailQueueProcessor):
        assert processor.stop(30)
    for _, mailer in getUtilitiesFor(IMailer):
        mailer.close()
    resetHooks()
    setup.tearDown()
    db.close()


def subscribe(shop: Shop) -> None:
    shop.getSiteManager().registerHandler(zope_shop.remember, [IMailSentEvent])


@pytest.fixture
def site(
    configure: Callable[[int], Publication], relay: ScriptedRelay
) -> Publication:
    return configure(relay.port)


def seen(site: Publication) -> dict[str, Any]:
    with site.db.transaction() as connection:
        shop = connection.root()["shop"]
        return {"orders": dict(shop.orders), "sent": dict(shop.sent)}


def recipients(relay: ScriptedRelay) -> list[str]:
    return sorted(to for message in relay.messages for to in message.recipients)


@pytest.mark.parametrize("name", ["Mail", "Direct"])
def test_a_request_that_commits(
    site: Publication, relay: ScriptedRelay, name: str
) -> None:
    message_id = site.publish(zope_shop.order, "teapot", ANN, name)
    count = 1 if name == "Mail" else 2
    relay.wait_until(lambda: len(relay.messages) == count)
    assert relay.messages[0].recipients == (ANN,)
    assert f"<{message_id}>".encode() in relay.messages[0].data
    assert seen(site)["orders"] == {"teapot": ANN}


def test_a_request_that_aborts(
    site: Publication, relay: ScriptedRelay, tmp_path: Path
) -> None:
    def view(shop: Shop) -> None:
        for name in ("Mail", "Direct"):
            zope_shop.order(shop, "teapot", ANN, name)
        transaction.abort()

    site.publish(view)
    stopped(site)
    assert relay.messages == []
    assert seen(site) == {"orders": {}, "sent": {}}
    assert files_of(tmp_path) == []


def test_a_view_that_fails(
    site: Publication, relay: ScriptedRelay, tmp_path: Path
) -> None:
    def view(shop: Shop) -> None:
        for name in ("Mail", "Direct"):
            zope_shop.order(shop, "teapot", ANN, name)
        raise RuntimeError("the view fails")

    with pytest.raises(RuntimeError, match="the view fails"):
        site.publish(view)
    stopped(site)
    assert relay.messages == []
    assert seen(site) == {"orders": {}, "sent": {}}
    assert files_of(tmp_path) == []


@pytest.mark.parametrize("name", ["Mail", "Direct"])
def test_a_conflict_and_the_retry_send_one_mail(
    site: Publication, relay: ScriptedRelay, name: str
) -> None:
    attempts = []

    def view(shop: Shop) -> None:
        attempts.append(dict(shop.orders))
        zope_shop.order(shop, "teapot", ANN, name)
        if len(attempts) == 1:
            somebody_else = threading.Thread(
                target=lambda: site.publish(zope_shop.order, "teapot", BOB, "Direct")
            )
            # In a thread, for it has a site and a transaction of its own.
            somebody_else.start()
            somebody_else.join()

    site.publish(view)
    assert attempts == [{}, {"teapot": BOB}]
    stopped(site)
    told = [ANN, BOB, OWNER] if name == "Mail" else [ANN, BOB, OWNER, OWNER]
    assert recipients(relay) == told


def test_conflicts_without_end_send_nothing(
    site: Publication, relay: ScriptedRelay, tmp_path: Path
) -> None:
    def view(shop: Shop) -> None:
        zope_shop.order(shop, "teapot", ANN)
        raise ConflictError("once more")

    with pytest.raises(ConflictError):
        site.publish(view)
    stopped(site)
    assert relay.messages == []
    assert files_of(tmp_path) == []


def test_a_subscriber_of_the_site_writes_to_it_and_sends(
    site: Publication, relay: ScriptedRelay
) -> None:
    message_id = site.publish(zope_shop.order, "teapot", ANN, "Direct")
    assert recipients(relay) == [ANN, OWNER]
    sent = seen(site)["sent"]
    assert sent[message_id] == (ANN,)
    assert sorted(sent.values()) == [(ANN,), (OWNER,)]


def test_a_global_subscriber_hears_of_what_a_processor_sends(
    site: Publication, relay: ScriptedRelay
) -> None:
    provideHandler(zope_shop.remember_in(site.db), [IMailSentEvent])
    message_id = site.publish(zope_shop.order, "teapot", ANN)
    relay.wait_until(lambda: len(relay.messages) == 2)
    stopped(site)
    assert recipients(relay) == [ANN, OWNER]
    assert seen(site)["sent"][message_id] == (ANN,)


def test_a_refusal_is_told_to_the_site(
    site: Publication, relay: ScriptedRelay
) -> None:
    relay.reply("RCPT", "550 5.1.1 Unknown", address=ANN)
    told: list[Any] = []
    provideHandler(told.append, [IMailRejectedEvent])
    site.publish(zope_shop.order, "teapot", ANN, "Direct")
    [event] = told
    assert event.recipients == (ANN,)
    assert seen(site)["orders"] == {"teapot": ANN}


def test_a_forked_child_leaves_its_mail_to_the_parent(
    relay: ScriptedRelay, tmp_path: Path
) -> None:
    children.call(zope_shop.send_from_a_child, str(tmp_path), relay.port)
    [message] = relay.messages
    assert b"Subject: From a child" in message.data
    assert files_of(tmp_path) == []


def test_the_outbox(site: Publication, relay: ScriptedRelay) -> None:
    with recording() as outbox:
        site.publish(zope_shop.order, "teapot", ANN)
    assert [mail.subject for mail in outbox] == ["Your teapot", f"Mail to {ANN}"]
    assert relay.messages == []


def test_through_postfix_to_the_mailboxes(
    configure: Callable[[int], Publication], start_postfix: Callable[..., Postfix]
) -> None:
    """The site's only change is its include."""
    postfix = start_postfix(users=("ann", "bob", "owner"))
    site = configure(postfix.port)
    site.publish(zope_shop.order, "teapot", ANN)
    site.publish(zope_shop.order, "kettle", BOB, "Direct")
    [message] = postfix.wait_for("ann", 1)
    assert message["Subject"] == "Your teapot"
    assert message["Return-Path"] == "<shop@example.org>"
    assert message.get_payload() == "Thank you.\n"
    assert postfix.wait_for("bob", 1)[0]["Subject"] == "Your kettle"
    assert postfix.wait_for("owner", 1)[0]["Subject"] == f"Mail to {BOB}"


def stopped(site: Publication) -> None:
    processor = getUtility(IMailQueueProcessor, "Mail")
    assert processor.stop(30)
    while any(processor.flush()):
        pass


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.glob("queue/*/*") if path.is_file()]
