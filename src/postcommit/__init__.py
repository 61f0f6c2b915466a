"""Mail that leaves when, and only when, the transaction commits.

The public names are handed out on first use, so that importing the package
stays cheap.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any


if TYPE_CHECKING:
    from postcommit._delivery import DirectMailDelivery
    from postcommit._delivery import QueuedMailDelivery
    from postcommit._maildir.maildir import Maildir
    from postcommit._mailers.failover import FailoverMailer
    from postcommit._mailers.file import FileMailer
    from postcommit._mailers.sendmail import SendmailMailer
    from postcommit._processor import QueueProcessor
    from postcommit._smtp.mailer import SMTPMailer
    from postcommit._transaction.event import MailDeferredEvent
    from postcommit._transaction.event import MailErrorEvent
    from postcommit._transaction.event import MailRejectedEvent
    from postcommit._transaction.event import MailSentEvent
    from postcommit._transaction.event import MailUncertainEvent


_HOMES = {
    "DirectMailDelivery": "postcommit._delivery",
    "QueuedMailDelivery": "postcommit._delivery",
    "MailDeferredEvent": "postcommit._transaction.event",
    "MailErrorEvent": "postcommit._transaction.event",
    "MailRejectedEvent": "postcommit._transaction.event",
    "MailUncertainEvent": "postcommit._transaction.event",
    "MailSentEvent": "postcommit._transaction.event",
    "Maildir": "postcommit._maildir.maildir",
    "QueueProcessor": "postcommit._processor",
    "SendmailMailer": "postcommit._mailers.sendmail",
    "FailoverMailer": "postcommit._mailers.failover",
    "FileMailer": "postcommit._mailers.file",
    "SMTPMailer": "postcommit._smtp.mailer",
}

__all__ = [
    "DirectMailDelivery",
    "QueuedMailDelivery",
    "QueueProcessor",
    "SMTPMailer",
    "FailoverMailer",
    "FileMailer",
    "SendmailMailer",
    "Maildir",
    "MailSentEvent",
    "MailErrorEvent",
    "MailDeferredEvent",
    "MailRejectedEvent",
    "MailUncertainEvent",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
