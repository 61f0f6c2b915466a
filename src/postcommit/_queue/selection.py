"""Chooses entries of a queue by their states, addresses, age, message or text."""
from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from postcommit._maildir.item import Details
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import IOperators
from postcommit._maildir.item import Item
from postcommit._maildir.item import Step
from postcommit._maildir.item import no_step
from postcommit._maildir.rooms import is_scheduled
from postcommit._queue.values import age


@dataclass(frozen=True)
class Selection:
    """The entries in some `states` to which all other conditions apply.

    `recipient` and `sender` are an address, a domain such as ``@example.org``, or a
    pattern with ``*``. `message_id` has no angle brackets. `search` is a part of an
    address, of the message id or of the subject, in any case. An entry was accepted
    more than `older` and less than `newer` seconds ago, also if it is scheduled.
    """

    states: tuple[EntryState, ...]
    recipient: str = ""
    sender: str = ""
    message_id: str = ""
    search: str = ""
    older: float | None = None
    newer: float | None = None

    @property
    def addresses(self) -> list[str]:
        """The patterns of addresses. Each has to match an address of the entry."""
        return [pattern for pattern in (self.recipient, self.sender) if pattern]

    def items(
        self, queue: IOperators, step: Step = no_step, start: int = 0
    ) -> Iterator[Item]:
        """Yield the entries as they are found.

        `step` is called once for each entry that was looked at. The first `start` of
        them are passed over.
        """
        if self.addresses or self.search:
            yield from (read.item for read in self.details(queue, step, start))
        else:
            yield from self._of_age(queue, step, start)

    def details(
        self, queue: IOperators, step: Step = no_step, start: int = 0
    ) -> Iterator[Details]:
        """Yield the details of the entries. The arguments are those of `items`."""
        for item in self._of_age(queue, step, start):
            read = queue.details(item, self.addresses)
            if read is not None and self._has_addresses(read) and self._has_text(read):
                yield read

    def _of_age(self, queue: IOperators, step: Step, start: int) -> Iterator[Item]:
        looked_at = 0

        def count() -> None:
            nonlocal looked_at
            looked_at += 1
            step()

        for item in queue.items(self.states, message_id=self.message_id, step=count):
            if looked_at > start and self._has_age(queue, item):
                yield item

    def _has_age(self, queue: IOperators, item: Item) -> bool:
        if self.older is None and self.newer is None:
            return True
        now = time.time()
        if item.accepted is None or is_scheduled(item.name):
            # The name does not say when the entry was accepted, but its file does. A
            # file for each entry would be slow in a large queue. These are few: what is
            # in ``.Later`` or was there, and what other programs have named.
            read = queue.details(item)
            if read is None:
                return False
            seconds = age(read, now)
        else:
            seconds = now - item.accepted
        return (self.older is None or seconds > self.older) and (
            self.newer is None or seconds < self.newer
        )

    def _has_addresses(self, read: Details) -> bool:
        return (not self.sender or _like(read.sender, self.sender)) and (
            not self.recipient
            or any(_like(address, self.recipient) for address in read.recipients)
        )

    def _has_text(self, read: Details) -> bool:
        wanted = self.search.casefold()
        if not wanted:
            return True
        texts = (read.sender, *read.recipients, read.message_id)
        return any(wanted in text.casefold() for text in texts) or (
            wanted in read.subject.casefold()
        )


def _like(address: str, wanted: str) -> bool:
    """Return whether `wanted` is `address`, its domain, or a pattern of it."""
    address, wanted = address.lower(), wanted.lower()
    if wanted.startswith("@"):
        wanted = f"*{wanted}"
    # In a domain such as [192.0.2.1], the brackets are not those of a pattern.
    return address == wanted or fnmatchcase(address, wanted)
