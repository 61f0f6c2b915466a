"""The classes of zope.sendmail 7, on top of postcommit.

====================================  ================================================
class                                 is in zope.sendmail
====================================  ================================================
`SMTPMailer`                          ``zope.sendmail.mailer``
`DirectMailDelivery`                  ``zope.sendmail.delivery``
`QueuedMailDelivery`                  ``zope.sendmail.delivery``
`QueueProcessorThread`                ``zope.sendmail.queue``, and ``.delivery``
`Maildir`                             ``zope.sendmail.maildir``
====================================  ================================================
"""
from __future__ import annotations

import smtplib
import threading
from typing import Any

from zope.interface import implementer

from postcommit._delivery import direct
from postcommit._maildir.maildir import Maildir
from postcommit._processor import QueueProcessor
from postcommit.compat._deliveries import Direct
from postcommit.compat._deliveries import queued_delivery
from postcommit.compat._relay import StandIn
from postcommit.compat._relay import address
from postcommit.compat._relay import addresses
from postcommit.compat._relay import addresses_refused
from postcommit.interfaces import IMailDelivery
from postcommit.interfaces import IRelayCheck
from postcommit.interfaces import SupportsSend


__all__ = [
    "DirectMailDelivery",
    "Maildir",
    "QueueProcessorThread",
    "QueuedMailDelivery",
    "SMTPMailer",
]


# Number of seconds that attempts in flight get when a thread stops. Products.MailHost
# holds a lock that long, which each request with queued mail needs.
_STOP_SECONDS = 10.0


class SMTPMailer(StandIn):
    """Transmits through an SMTP relay, with the arguments of zope.sendmail.

    `port` may be a text. `timeout` is in seconds, and for each step of the dialogue,
    except for the reply to the end of the message. A user name without a password does
    not log in. `send` raises what smtplib raises. `smtp` is a class of smtplib, for
    code that looks at it. It is not used.
    """

    def __init__(
        self,
        hostname: str = "localhost",
        port: int | str = 25,
        username: str | None = None,
        password: str | None = None,
        no_tls: bool = False,
        force_tls: bool = False,
        implicit_tls: bool = False,
        timeout: float | None = 10,
    ) -> None:
        self.hostname = hostname
        self.port = port
        self.username = username
        self.password = password
        self.no_tls = no_tls
        self.force_tls = force_tls
        self.implicit_tls = implicit_tls
        self.timeout = timeout
        self.smtp: type[smtplib.SMTP] = smtplib.SMTP
        if implicit_tls:
            self.smtp = smtplib.SMTP_SSL

    @property
    def _is_implicit(self) -> bool:
        return bool(self.implicit_tls)

    def vote(self, fromaddr: Any, toaddrs: Any, message: Any) -> None:
        """Connect and log in; raise what smtplib raises if that fails."""
        self._ask()

    def abort(self) -> None:
        """Do nothing: the connection of `vote` is kept for the next message."""


@implementer(IMailDelivery)
class DirectMailDelivery(Direct):
    """Transmits while the transaction commits.

    At the vote, it asks the relay, or calls ``vote()`` of the mailer if it has one. An
    exception aborts the transaction.
    """

    def __init__(self, mailer: Any) -> None:
        super().__init__(mailer)
        self._direct()  # raises if it is not a mailer

    def _made(self, mailer: Any) -> direct.DirectMailDelivery:
        can_vote = callable(getattr(mailer, "vote", None))
        is_asked = can_vote or IRelayCheck(mailer, None) is not None
        return direct.DirectMailDelivery(mailer, check_relay=is_asked)

    def send(self, fromaddr: Any, toaddrs: Any, message: Any, **terms: Any) -> str:
        """Send `message` when the transaction commits, see `IMailDelivery`.

        Raises ValueError for options of the mailer that can never work, and for
        `terms`, which need a queue.
        """
        self._check_mailer()
        sender = address(fromaddr)
        with addresses_refused(sender):
            return self._direct().send(sender, addresses(toaddrs), message, **terms)


@implementer(IMailDelivery)
class QueuedMailDelivery:
    """Accepts messages into the queue at `queuePath` when the transaction commits."""

    def __init__(self, queuePath: str) -> None:
        self._path = queuePath

    @property
    def queuePath(self) -> str:
        """The path of the queue, as it was given."""
        return self._path

    def send(self, fromaddr: Any, toaddrs: Any, message: Any, **terms: Any) -> str:
        """Send `message` when the transaction commits, see `IMailDelivery`.

        `terms` are the keywords of `IScheduledMailDelivery`.
        """
        delivery = queued_delivery(self.queuePath)
        sender = address(fromaddr)
        with addresses_refused(sender):
            return delivery.send(sender, addresses(toaddrs), message, **terms)


class QueueProcessorThread(threading.Thread):
    """A thread that drains a queue, with the methods of zope.sendmail.

    `interval` is in seconds. Mail of this machine is sent at once, so it matters only
    if a wake-up is lost. `stop` waits for the attempts in flight, up to ten seconds. It
    may be called at any time. A thread that was stopped before its start ends at once.
    """

    def __init__(self, interval: float = 3.0) -> None:
        super().__init__(name="postcommit.compat.QueueProcessorThread", daemon=True)
        self.interval = interval
        self.mailer: SupportsSend | None = None
        self.maildir: Maildir | None = None
        self._changing = threading.Lock()
        self._stopped = False
        self._ended = threading.Event()
        self._processor: QueueProcessor | None = None

    def setMailer(self, mailer: SupportsSend) -> None:
        """Transmit through `mailer`."""
        self.mailer = mailer

    def setQueuePath(self, path: str) -> None:
        """Drain the queue at `path`, which is created if it is missing.

        Raises ValueError if there is something else.
        """
        self.maildir = Maildir(path, True)

    def run(self, forever: bool = True) -> None:
        """Drain the queue until `stop`; only once if `forever` is false."""
        with self._changing:
            if self._stopped:
                return
            processor = self._processor = self._made()
            if forever:
                # From here on, `stop` knows the threads of the processor.
                processor.start()
        if forever:
            self._ended.wait()
        else:
            processor.flush()

    def _made(self) -> QueueProcessor:
        if self.maildir is None or self.mailer is None:
            raise ValueError("call setMailer() and setQueuePath() first")
        interval = max(1, round(self.interval * 1000))
        return QueueProcessor(self.maildir.path, self.mailer, interval)

    def stop(self) -> None:
        """Let the attempts in flight finish, and end.

        An attempt that takes longer than ten seconds goes on in the background.
        """
        with self._changing:
            self._stopped = True
            processor = self._processor
        if processor is not None:
            processor.stop(_STOP_SECONDS)
        self._ended.set()
