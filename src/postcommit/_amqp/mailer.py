"""The mailer that hands messages over to a RabbitMQ broker."""
from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any

import zope.event
from zope.interface import implementer

from postcommit import _forks as forks
from postcommit._amqp.broker import Broker
from postcommit._amqp.pipeline import AMQPPipeline
from postcommit._config.options import checked
from postcommit._config.options import checked_notify
from postcommit._mailers.base import BaseMailer
from postcommit._mailers.base import Pipeline
from postcommit._transaction.event import Notify
from postcommit.errors import RelayError
from postcommit.interfaces import IAMQPMailer


if TYPE_CHECKING:
    from postcommit._amqp.link import Link

_check = functools.partial(checked, IAMQPMailer)

# Seconds for which an unused connection is kept, if heartbeats are not more frequent.
_IDLE_SECONDS = 30.0


@implementer(IAMQPMailer)
class AMQPMailer(Broker, BaseMailer):
    """Hands messages over to a RabbitMQ broker. See `IAMQPMailer`.

    The broker's answer is about the whole message, so all recipients share one outcome.
    Threads may share a mailer: each uses a connection of its own. An option cannot be
    changed afterwards.
    """

    window: int
    max_size: int

    def __init__(
        self,
        url: str,
        queue: str = IAMQPMailer["queue"].default,
        *,
        password: str | None = IAMQPMailer["password"].default,
        window: int = IAMQPMailer["window"].default,
        max_size: int = IAMQPMailer["max_size"].default,
        cafile: str | None = IAMQPMailer["cafile"].default,
        verify: bool = IAMQPMailer["verify"].default,
        certfile: str | None = IAMQPMailer["certfile"].default,
        keyfile: str | None = IAMQPMailer["keyfile"].default,
        server_name: str | None = IAMQPMailer["server_name"].default,
        connect_timeout: float = IAMQPMailer["connect_timeout"].default,
        timeout: float = IAMQPMailer["timeout"].default,
        heartbeat: int = IAMQPMailer["heartbeat"].default,
        notify: Callable[[Any], Any] = zope.event.notify,
    ) -> None:
        given = locals()
        try:
            self._set(given)
        except Exception as error:
            # Frames of a traceback have local variables, and these have the password.
            del given, password, url
            raise error.with_traceback(None)  # noqa: B904

    def _set(self, given: Mapping[str, Any]) -> None:
        self._set_broker(given)
        self.window = _check("window", given["window"])
        self.max_size = _check("max_size", given["max_size"])
        self.notify: Notify = checked_notify(given["notify"])
        #: What the broker takes, as far as is known.
        self.limit: int = self.max_size
        self._idle: list[Link] = []
        self._sweeper: threading.Timer | None = None
        forks.register(self, AMQPMailer._forget)

    def pipeline(self) -> Pipeline:
        """Return a pipeline that is up to `window` messages ahead of the confirms."""
        return AMQPPipeline(self)

    def check(self) -> None:
        """Connect, log in and look at the queue, or raise `RelayError`."""
        self.checkin(self.checkout())

    def close(self) -> None:
        """Close the idle connections. See `IAMQPMailer`."""
        while (link := self._take()) is not None:
            link.close()

    # Connections

    def checkout(self) -> Link:
        """Return a link that is ready to publish. Raises `RelayError`."""
        while (link := self._take()) is not None:
            try:
                # The broker may have closed it since, or be blocked.
                link.poll()
            except RelayError:
                link.discard()
            else:
                return link
        link = self.connect()
        try:
            link.begin_publishing()
        except BaseException:
            link.discard()
            raise
        return link

    def checkin(self, link: Link) -> None:
        """Keep a link for the next pipeline, for a while."""
        link.idle_since = time.monotonic()
        self._idle.append(link)
        if self._sweeper is None or not self._sweeper.is_alive():
            self._sweep_later()

    @property
    def _idle_seconds(self) -> float:
        return min(_IDLE_SECONDS, self.heartbeat / 2)

    def _take(self) -> Link | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _sweep_later(self) -> None:
        self._sweeper = sweeper = threading.Timer(self._idle_seconds, self._sweep)
        sweeper.daemon = True
        sweeper.start()

    def _sweep(self) -> None:
        """Close what was idle for long: heartbeats are sent only while it is used."""
        latest = time.monotonic() - self._idle_seconds
        kept = []
        while (link := self._take()) is not None:
            if link.idle_since > latest:
                kept.append(link)
            else:
                link.close()
        if kept:
            self._idle += reversed(kept)
            self._sweep_later()

    def _forget(self) -> None:
        """Drop the connections of the parent, in a forked child."""
        self._idle.clear()
