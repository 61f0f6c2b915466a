"""For Zope and Plone: ``<include package="postcommit.mailhost" />``.

The include puts our classes in the place of the five names that Products.MailHost has
from zope.sendmail, in the module ``Products.MailHost.MailHost``. Mail hosts and their
settings stay as they are. Their form also counts deferred mail and dead letters.
Nothing is stored in the ZODB. `restore` undoes it, and so does a start without the
include.

zope.sendmail stays installed. Its own directives and utilities work as before. Other
packages may include them, before or after ours.
"""
from __future__ import annotations

import logging
from typing import Any

import zope.sendmail.mailer
from Products.MailHost import MailHost as older

from postcommit.compat import zope_sendmail
from postcommit.compat._relay import check_environment
from postcommit.compat._replaced import Replacement
from postcommit.mailhost._length import queue_length


log: logging.Logger = logging.getLogger("postcommit.mailhost")

# Attributes of a mailer of zope.sendmail, which are also its arguments.
_OPTIONS = (
    "hostname",
    "port",
    "username",
    "password",
    "no_tls",
    "force_tls",
    "implicit_tls",
    "timeout",
)


class SMTPMailer(zope_sendmail.SMTPMailer):
    """Transmits through the relay that a mail host, or Plone, has in its settings.

    Plone puts a function around ``zope.sendmail.mailer.SMTPMailer.__init__``, which
    replaces the arguments by the settings in its registry. So a mailer of zope.sendmail
    is made, and never used, and its attributes are taken. An older version has fewer of
    them.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        settings = vars(zope.sendmail.mailer.SMTPMailer(*args, **options))
        super().__init__(**{n: settings[n] for n in _OPTIONS if n in settings})


def _send_with_the_transaction(
    self: Any, mfrom: Any, mto: Any, messageText: Any, immediate: bool = False
) -> None:
    """Send with the commit of the transaction, also if `immediate` is true."""
    _immediate.older("_send")(self, mfrom, mto, messageText, immediate=False)


_classes = Replacement(
    older,
    {
        "SMTPMailer": SMTPMailer,
        "DirectMailDelivery": zope_sendmail.DirectMailDelivery,
        "QueuedMailDelivery": zope_sendmail.QueuedMailDelivery,
        "QueueProcessorThread": zope_sendmail.QueueProcessorThread,
        "Maildir": zope_sendmail.Maildir,
    },
)

_form = Replacement(older.MailBase, {"queueLength": queue_length})

_immediate = Replacement(older.MailBase, {"_send": _send_with_the_transaction})


def replace(*, immediate: bool = True) -> None:
    """Let mail hosts send through postcommit.

    If `immediate` is false, no mail is sent before the transaction commits, although
    its caller asks for it by ``immediate=True``. For example, a request that is retried
    after a conflict would send it again.

    Raises `OptionError` for a variable in the environment that can never work.
    """
    check_environment()
    _classes.replace()
    _form.replace()
    if immediate:
        _immediate.restore()
    else:
        _immediate.replace()
    log.info("The mail hosts of Products.MailHost send through postcommit")


def restore() -> None:
    """Undo `replace`. Threads that drain a queue go on until they are stopped."""
    _immediate.restore()
    _form.restore()
    _classes.restore()
