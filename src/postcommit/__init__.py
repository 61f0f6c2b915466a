"""Mail that leaves when, and only when, the transaction commits.

The public names are handed out on first use, so that importing the package
stays cheap.
"""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from typing import Any


if TYPE_CHECKING:
    from postcommit.delivery import DirectMailDelivery
    from postcommit.delivery import QueuedMailDelivery
    from postcommit.event import MailDeferredEvent
    from postcommit.event import MailErrorEvent
    from postcommit.event import MailRejectedEvent
    from postcommit.event import MailSentEvent
    from postcommit.event import MailUncertainEvent
    from postcommit.maildir import Maildir
    from postcommit.queue.runner import QueueProcessor
    from postcommit.smtp.mailer import SMTPMailer


_HOMES = {
    "DirectMailDelivery": "postcommit.delivery",
    "QueuedMailDelivery": "postcommit.delivery",
    "MailDeferredEvent": "postcommit.event",
    "MailErrorEvent": "postcommit.event",
    "MailRejectedEvent": "postcommit.event",
    "MailUncertainEvent": "postcommit.event",
    "MailSentEvent": "postcommit.event",
    "Maildir": "postcommit.maildir",
    "QueueProcessor": "postcommit.queue.runner",
    "SMTPMailer": "postcommit.smtp.mailer",
}

__all__ = [
    "DirectMailDelivery",
    "QueuedMailDelivery",
    "QueueProcessor",
    "SMTPMailer",
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
