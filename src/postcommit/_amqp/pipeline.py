"""Publishes messages one behind the other, and waits for the broker's confirms.

==========================================  =======================================
what the broker does                        the message
==========================================  =======================================
confirms it (``basic.ack``)                 sent
returns it, refuses it (``basic.nack``),    the relay failed, for this message and
is blocked, closes, or stays silent         for all that were not confirmed
==========================================  =======================================

A message without a confirm may be with the broker. It is published again under the same
name, by which the receiver recognises a copy that still waits.
"""
from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from typing import Any
from typing import Protocol

from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._maildir.entry import preamble
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.maildir import unique_name
from postcommit._mailers.base import Pipeline
from postcommit.errors import RelayError
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status


if TYPE_CHECKING:
    from postcommit._amqp.link import Link

_CONFIRMED = Reply(250, "2.0.0", "confirmed by the broker")

# What RabbitMQ says when it closes the channel because of a message that is too large.
_TOO_LARGE = re.compile(r"larger than configured max size (\d+)")


class Links(Protocol):
    """Lends connections. `limit` is the number of bytes that the broker takes."""

    window: int
    timeout: float
    limit: int

    def checkout(self) -> Link:
        """Return a link that is ready to publish. Raises `RelayError`."""

    def checkin(self, link: Link) -> None:
        """Take back a link on which nothing waits for its confirm."""


@dataclass(eq=False)
class _Publication:
    """A message that was offered. It is done when it has its `report`."""

    key: Any
    message_id: str
    recipients: tuple[str, ...]
    name: str
    since: float = 0.0
    report: DeliveryReport | None = None

    def settle(self, status: Status, reply: Reply) -> None:
        self.report = DeliveryReport.alike(
            self.message_id, self.recipients, status, reply
        )

    def fail(self, error: RelayError, *, mid_message: bool = False) -> None:
        self.report = DeliveryReport(
            self.message_id,
            self.recipients,
            relay_failure=error,
            failed_mid_message=mid_message,
        )


class AMQPPipeline(Pipeline):
    """Publishes messages over one connection of `links`. See `IPipeline`."""

    def __init__(self, links: Links) -> None:
        self._links = links
        self._link: Link | None = None
        self._failure: RelayError | None = None
        self._all: deque[_Publication] = deque()  # in the order of `offer`
        self._unconfirmed: dict[int, _Publication] = {}  # by their numbers

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if self._unconfirmed:
            said = f"given up before the broker has confirmed: {error or 'interrupted'}"
            self._fail(RelayError(said))
        elif self._link is not None:
            self._links.checkin(self._link)
            self._link = None

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        """Publish `mail`, when fewer than `window` messages wait for their confirms."""
        publication = _Publication(
            key, message_id_of(mail.message), tuple(mail.recipients), name_of(mail)
        )
        self._all.append(publication)
        body = body_of(mail)
        if len(body) > self._links.limit:
            text = f"{len(body)} bytes, and the broker takes {self._links.limit}"
            publication.settle(Status.REJECTED, Reply(0, "5.3.4", text))
            return
        try:
            while self._link and len(self._unconfirmed) >= self._links.window:
                self._wait(self._link)
            if self._failure is None:
                self._publish(publication, body)
        except RelayError as error:
            self._fail(error)
        if self._failure is not None and publication.report is None:
            publication.fail(self._failure)

    def completed(self) -> Iterator[tuple[Any, DeliveryReport]]:
        """Yield the reports that are complete. See `IPipeline`."""
        while self._all and (report := self._all[0].report) is not None:
            yield self._all.popleft().key, report

    def drain(self) -> Iterator[tuple[Any, DeliveryReport]]:
        """Wait for all confirms, and yield the reports. See `IPipeline`."""
        yield from self.completed()
        while self._link and self._unconfirmed:
            try:
                self._wait(self._link)
            except RelayError as error:
                self._fail(error)
            yield from self.completed()

    # The connection

    def _publish(self, publication: _Publication, body: bytes) -> None:
        if self._link is None:
            self._link = link = self._links.checkout()
            link.on_ack, link.on_nack = self._confirmed, self._refused
            link.on_return = self._returned
        link = self._link
        publication.since = time.monotonic()
        # Noted before it is on the wire: an interrupt may come at any moment.
        self._unconfirmed[link.published + 1] = publication
        link.publish(body, publication.name, publication.message_id)
        link.poll()

    def _wait(self, link: Link) -> None:
        """Wait for a confirm. Raises `RelayError` if the oldest is overdue."""
        oldest = next(iter(self._unconfirmed.values()))
        left = oldest.since + self._links.timeout - time.monotonic()
        if left <= 0:
            seconds = f"{self._links.timeout:g} s"
            raise RelayError(
                f"the broker has confirmed nothing for {seconds}; has its queue a"
                " majority of its nodes?"
            )
        link.wait(left)
        link.poll()

    def _confirmed(self, number: int, multiple: bool) -> None:
        for one in self._taken(number, multiple):
            one.settle(Status.SENT, _CONFIRMED)

    def _taken(self, number: int, multiple: bool) -> list[_Publication]:
        """Return what an answer is about, which is not waited for any more."""
        if not multiple:
            one = self._unconfirmed.pop(number, None)
            return [] if one is None else [one]
        numbers = [n for n in self._unconfirmed if n <= number]
        return [self._unconfirmed.pop(n) for n in numbers]

    def _refused(self, number: int, multiple: bool) -> None:
        text = "the broker refuses to take a message; is the queue full?"
        self._end_by(RelayError(text), self._taken(number, multiple))

    def _returned(self, name: str, reason: str) -> None:
        """Fail, because the broker lacks a queue for a message. It confirms it, too."""
        found = [n for n, one in self._unconfirmed.items() if one.name == name]
        taken = [self._unconfirmed.pop(number) for number in found]
        text = f"the broker has no queue for the message: {reason}"
        self._end_by(RelayError(text), taken)

    def _end_by(self, error: RelayError, taken: list[_Publication]) -> None:
        for one in taken:
            one.fail(error)
        # Not in this callback of the link, because it is in use.
        raise error

    def _fail(self, error: RelayError) -> None:
        """Fail all that is not confirmed, and discard the connection."""
        self._failure = error
        link, self._link = self._link, None
        if link is not None:
            link.discard()
        found = _TOO_LARGE.search(error.reason)
        if found is not None:
            self._links.limit = min(self._links.limit, int(found[1]))
        # If it is alone, it may be a message that the broker fails at.
        is_alone = len(self._unconfirmed) == 1
        for one in self._unconfirmed.values():
            one.fail(error, mid_message=is_alone)
        self._unconfirmed.clear()


# The entry


def body_of(mail: Outgoing) -> bytes:
    """Return `mail` as its entry is in a file."""
    if isinstance(mail, Entry):
        return preamble_of(mail) + mail.message
    head = preamble(mail.sender, tuple(mail.recipients), mail.message[:16])
    return head + mail.message


def name_of(mail: Outgoing) -> str:
    """Return the name by which a copy of `mail` is recognised.

    It is the entry's, or a new one if `mail` is not an entry in a queue.
    """
    name: str = getattr(mail, "name", "") or unique_name()
    return name.encode(errors="backslashreplace").decode()
