"""Receives entries from a RabbitMQ broker into a queue on disk.

====================================  ================================================
what happens                          the entry
====================================  ================================================
received, accepted, synced            is acknowledged, and the broker removes it
the receiver is killed before that    is delivered again
killed before the acknowledgement     is delivered again, and recognised by its name
the disk is in trouble                stays with the broker, also
====================================  ================================================
"""
from __future__ import annotations

import functools
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING
from typing import Any

from zope.interface import implementer

from postcommit._amqp.broker import Broker
from postcommit._amqp.place import NAME
from postcommit._config.options import checked
from postcommit._config.options import checked_queue_path
from postcommit._log import Log
from postcommit._maildir.arrivals import Arrival
from postcommit._maildir.arrivals import Arrivals
from postcommit._maildir.reception import Reception
from postcommit._maildir.reception import ReceptionNote
from postcommit._maildir.reception import remove_dead
from postcommit._maildir.store import Store
from postcommit.errors import OptionError
from postcommit.errors import QueueError
from postcommit.errors import RelayError
from postcommit.interfaces import IMailQueueProcessor
from postcommit.interfaces import IQueueReceiver
from postcommit.interfaces import is_database_url


if TYPE_CHECKING:
    from postcommit._amqp.link import Link

log = Log("postcommit.amqp")

_check = functools.partial(checked, IQueueReceiver)

# Bytes after which no more is read before they are accepted.
_MOST_BYTES = 8 << 20

# Seconds between two looks whether to stop.
_LOOK = 0.25

# Seconds until the next try after trouble of the broker or the disk: it doubles.
_LEAST_WAIT, _MOST_WAIT = 0.5, 30.0


@implementer(IQueueReceiver)
class QueueReceiver(Broker):
    """Receives entries from a broker into the queue at `queuePath`.

    See `IQueueReceiver`. The queue is created where it is missing. Any number of
    receivers may work on a broker's queue, and on a queue on disk.
    """

    prefetch: int
    queuePath: str

    def __init__(
        self,
        url: str,
        queue: str,
        queuePath: str,
        *,
        password: str | None = IQueueReceiver["password"].default,
        prefetch: int = IQueueReceiver["prefetch"].default,
        cafile: str | None = IQueueReceiver["cafile"].default,
        verify: bool = IQueueReceiver["verify"].default,
        certfile: str | None = IQueueReceiver["certfile"].default,
        keyfile: str | None = IQueueReceiver["keyfile"].default,
        server_name: str | None = IQueueReceiver["server_name"].default,
        connect_timeout: float = IQueueReceiver["connect_timeout"].default,
        timeout: float = IQueueReceiver["timeout"].default,
        heartbeat: int = IQueueReceiver["heartbeat"].default,
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
        self.prefetch = _check("prefetch", given["prefetch"])
        self.queuePath = checked_queue_path(IMailQueueProcessor, given["queuePath"])
        if is_database_url(self.queuePath):
            reason = "must be a folder; mail nodes that share a database need no broker"
            raise OptionError("queuePath", self.queuePath, reason)
        self._stopping = threading.Event()
        #: When `run` gave its last sign of life, in `time.monotonic`.
        self.last_sign: float = time.monotonic()
        self._batch: list[Arrival] = []
        self._size = self._last = 0

    def declare(self) -> None:
        """Create the quorum queue on the broker. See `IQueueReceiver`."""
        link = self.connect()
        try:
            link.declare_queue()
        finally:
            link.close()

    def stop(self) -> None:
        """Let `run` return. See `IQueueReceiver`."""
        self._stopping.set()

    def run(self) -> None:
        """Receive in this thread, until `stop`. Raises `QueueError` at the start."""
        self._store = Store(self.queuePath)
        self._arrivals = Arrivals(self._store)
        remove_dead(self._store.path)
        reception = Reception(self.name, self.queue)
        self._note = ReceptionNote(self._store.path, reception)
        try:
            self._run()
        finally:
            self._note.close()

    def _run(self) -> None:
        wait, said = _LEAST_WAIT, ""
        while not self._stopping.is_set():
            before = self._note.reception.received
            try:
                if self._batch:
                    # The disk was in trouble. These are with the broker, too, and it is
                    # not asked for them again before they can be accepted.
                    self._accept()
                self._receive()
            except (RelayError, QueueError) as error:
                if self._note.reception.received > before:
                    wait, said = _LEAST_WAIT, ""
                if said != (said := self._text_of(error)):
                    log.error("%s: cannot receive: %s", self.name, said)
                self._rest(wait, said)
                wait = min(2 * wait, _MOST_WAIT)

    def _text_of(self, error: RelayError | QueueError) -> str:
        """Return the text for `error`, without a file name that is new each time."""
        is_disk = isinstance(error, QueueError)
        return f"{self.queuePath}: {error.reason}" if is_disk else error.reason

    def _rest(self, seconds: float, problem: str) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._stopping.is_set():
            self._note.show(connected=False, problem=problem)
            self.last_sign = time.monotonic()
            self._stopping.wait(min(left, 1.0))

    def _receive(self) -> None:
        """Receive over one connection until `stop`, or an error."""
        link = self.connect()
        try:
            link.consume(self.prefetch, self._deliver)
            log.info("%s: receives from the queue %r", self.name, self.queue)
            self._note.show(connected=True)
            while not self._stopping.is_set():
                self._work(link)
        except RelayError:
            self._forget()  # the broker delivers these again
            raise
        finally:
            link.close()

    def _work(self, link: Link) -> None:
        """Accept what comes in a moment, and acknowledge it."""
        self.last_sign = time.monotonic()
        link.wait(_LOOK)
        link.poll(self._is_full)
        if self._batch:
            last = self._last
            self._accept()
            link.acknowledge(last)
            self._note.reception.last_acknowledged = time.time()
        self._note.show(connected=True)

    def _deliver(self, message: Any) -> None:
        name = (message.properties.get("application_headers") or {}).get(NAME, "")
        body = message.body
        data = body.encode() if isinstance(body, str) else bytes(body)
        self._batch.append(Arrival(name if isinstance(name, str) else "", data))
        self._size += len(data)
        self._last = message.delivery_info["delivery_tag"]

    def _is_full(self) -> bool:
        return self._size >= _MOST_BYTES or len(self._batch) >= self.prefetch

    def _accept(self) -> None:
        """Accept the batch. Raises `QueueError`, and keeps it for another try."""
        self._note.reception.received += self._arrivals.accept(self._batch)
        self._forget()

    def _forget(self) -> None:
        self._batch.clear()
        self._size = 0
