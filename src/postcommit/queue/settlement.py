"""The settlement of an entry after an attempt: finish, defer or bury it."""
from __future__ import annotations

import errno
from typing import NamedTuple

from postcommit.event import Announcement
from postcommit.interfaces import Tally
from postcommit.log import Log
from postcommit.queue.entry import Claim
from postcommit.queue.entry import Entry
from postcommit.queue.store import Store
from postcommit.queue.verdict import part_left
from postcommit.queue.verdict import rejected_part
from postcommit.queue.verdict import uncertain_part
from postcommit.report import DeliveryReport


log = Log(__name__)

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Settlement(NamedTuple):
    """The entry, the report of its attempt, and what follows from it.

    `due` is the time of the next attempt, None if there is none. `accepted` is the time
    when the entry was accepted. Both are seconds since the epoch. `silent` is true if
    the relay did not answer.
    """

    claim: Claim
    entry: Entry
    report: DeliveryReport
    tally: Tally
    due: float | None
    accepted: float
    announcements: list[Announcement]
    silent: bool

    def write(self, store: Store) -> None:
        """Do to the entry what the report says. May be called again if it raises."""
        rejected, uncertain = self.tally.rejected, self.tally.uncertain
        is_last = self.due is None and not (rejected and uncertain)
        if rejected:
            dead = rejected_part(self.entry, self.report)
            store.bury(self.claim, dead, is_last=is_last)
        if uncertain:
            dead = uncertain_part(self.entry, self.report)
            store.bury_uncertain(self.claim, dead, is_last=is_last)
        if self.due is None:
            store.finish(self.claim)
            return
        if not store.still_has(self.claim):
            log.warning(
                "%s: somebody has removed it during the attempt; it is not tried again",
                self.claim.path,
            )
            return
        left = part_left(self.entry, self.report)
        try:
            store.defer(self.claim, left, self.due, self.accepted)
        except OSError as error:
            # Without space, nothing can be written down: not who is left, nor that the
            # relay may have the message. Then the claim is kept until there is space.
            before = (self.entry.recipients, self.entry.uncertain)
            if not is_full(error) or (left.recipients, left.uncertain) != before:
                raise
            store.postpone(self.claim, self.due, self.accepted)


def is_full(trouble: object) -> bool:
    """Return whether the disk is full. Finished entries will make room."""
    return isinstance(trouble, OSError) and trouble.errno in _FULL
