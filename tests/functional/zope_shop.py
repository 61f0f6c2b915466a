"""A Zope-style application: a ZODB, ZCML, a local site and its subscribers.

What it knows of the mail library are the interfaces that it looks up by. These
are zope.sendmail's: it was written for that, and has not been changed. Only the
test of a fork wants to stop a processor.
"""
from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import transaction
from persistent import Persistent
from persistent.mapping import PersistentMapping
from transaction.interfaces import TransientError
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage
from zope.component import getGlobalSiteManager
from zope.component import getUtility
from zope.component.hooks import getSite
from zope.component.hooks import setSite
from zope.component.interfaces import ISite
from zope.component.persistentregistry import PersistentComponents
from zope.configuration import xmlconfig
from zope.interface import implementer
from zope.sendmail.interfaces import IMailDelivery

from postcommit.interfaces import IMailQueueProcessor


SHOP, OWNER = "shop@example.org", "owner@example.org"

# The ZCML of the site; the name of the mail library is in its one include.
SITE = """\
<configure
    xmlns="http://namespaces.zope.org/zope"
    xmlns:mail="http://namespaces.zope.org/mail"
    i18n_domain="shop">

  <include package="zope.component" file="meta.zcml" />
  <include package="zope.security" file="meta.zcml" />
  <include package="zope.sendmail" file="meta.zcml" />

  <permission id="shop.SendMail" title="Send mail to customers" />

  <mail:smtpMailer
      name="relay"
      hostname="127.0.0.1"
      port="{port}"
      implicit_tls="false"
      timeout="30"
      />

  <mail:queuedDelivery
      permission="shop.SendMail"
      queuePath="./queue"
      mailer="relay"
      />

  <mail:directDelivery
      name="Direct"
      mailer="relay"
      />

</configure>
"""


@implementer(ISite)
class Shop(Persistent):
    """The site: orders, and components of its own."""

    def __init__(self) -> None:
        self.orders = PersistentMapping()
        self.sent = PersistentMapping()
        self._components = PersistentComponents("shop", (getGlobalSiteManager(),))

    def getSiteManager(self) -> Any:
        return self._components

    def setSiteManager(self, components: Any) -> None:
        self._components = components


class Publication:
    """Runs views: each in a transaction, within the site, again after a conflict."""

    def __init__(self, db: DB) -> None:
        self.db = db
        with db.transaction() as connection:
            connection.root()["shop"] = Shop()

    def publish(self, view: Callable[..., Any], *args: Any, attempts: int = 3) -> Any:
        for attempt in range(1, attempts + 1):
            connection = self.db.open()
            setSite(connection.root()["shop"])
            try:
                with transaction.manager:
                    result = view(getSite(), *args)
                return result
            except TransientError:
                if attempt == attempts:
                    raise
            finally:
                setSite(None)
                connection.close()


# Views


def order(shop: Shop, item: str, customer: str, name: str = "Mail") -> str:
    shop.orders[item] = customer
    return send(customer, f"Your {item}", name)


def send(to: str, subject: str, name: str = "Mail") -> str:
    delivery = getUtility(IMailDelivery, name)
    message = f"Subject: {subject}\n\nThank you.\n"
    message_id: str = delivery.send(SHOP, [to], message.encode())
    return message_id


# Subscribers


def remember(event: Any) -> None:
    """Note in the site what was sent; for each mail to a customer, tell the owner."""
    getSite().sent[event.messageId] = event.recipients
    if event.recipients != (OWNER,):
        send(OWNER, f"Mail to {', '.join(event.recipients)}", "Direct")


def remember_in(db: DB) -> Callable[[Any], None]:
    """Return `remember` for where there is no site: the threads of a processor.

    It opens a connection of its own, which its transaction commits.
    """

    def remember_elsewhere(event: Any) -> None:
        if getSite() is None:
            connection = db.open()
            transaction.get().addAfterCommitHook(lambda _: connection.close())
            setSite(connection.root()["shop"])
            try:
                remember(event)
            finally:
                setSite(None)

    return remember_elsewhere


# Processes of their own


class ViewFailed(Exception):
    """The view of an order that is not to be sent."""


def sell(folder: str, url: str, count: int) -> None:
    """Take `count` orders with their mail in the queue at `url`.

    Print the subject of each mail that is committed. Of three transactions, one fails
    and one has two mails.
    """
    path = Path(folder) / "site.zcml"
    queue = f'"{url}"\n      processorThread="false"'
    text = SITE.replace('"./queue"', queue).replace("zope.sendmail", "postcommit")
    path.write_text(text.format(port=1))
    xmlconfig.file(str(path))
    site = Publication(DB(FileStorage(f"{folder}/Data.fs")))

    def view(shop: Shop, number: int) -> list[str]:
        subjects = [f"Your zope {number}"]
        order(shop, f"zope {number}", "ann@example.org")
        if number % 3 == 1:
            raise ViewFailed
        if number % 3 == 2:
            subjects.append(f"Bill of zope {number}")
            send("ann@example.org", subjects[-1])
        return subjects

    for number in range(count):
        with suppress(ViewFailed):
            print(*site.publish(view, number), sep="\n", flush=True)
    site.db.close()


def send_from_a_child(folder: str, port: int) -> None:
    """Fork when the site is configured; the parent sends what the child commits."""
    path = Path(folder) / "site.zcml"
    path.write_text(SITE.replace("zope.sendmail", "postcommit").format(port=port))
    xmlconfig.file(str(path))
    processor = getUtility(IMailQueueProcessor, "Mail")
    child = os.fork()
    if not child:
        with transaction.manager:
            send("ann@example.org", "From a child")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert processor.stop(30)
    processor.flush()
