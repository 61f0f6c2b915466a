"""Settles an entry: does what the report of an attempt means for it.

==========================  ==================================================
report                      the entry
==========================  ==================================================
every recipient sent        is removed
some deferred or uncertain  is rewritten with just those, due by the schedule
some rejected               those are kept as a dead letter, the rest goes on
the relay failed            is left as it is, and no attempt counts; recipients
                            that were decided before are settled
about a part of a long one  is rewritten without those that were decided, due at
                            once, and no attempt counts until the last part
uncertain for the third     those recipients may have the message: they are kept as
time (``max_uncertain``)    a dead letter, but are not called rejected
too old                     what would be deferred is rejected, but never after
                            the first attempt
expired                     is kept as a dead letter, without an attempt; also if
                            it would expire before the next attempt
unreadable                  is kept as a dead letter, with the reason
==========================  ==================================================

The claim ends when the entry is settled, and the report is announced after that. An
entry that cannot be settled keeps its claim, so that it is not sent again.
"""
from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from dataclasses import replace
from operator import add
from typing import NamedTuple

import transaction

from postcommit._drain.breaker import Breaker
from postcommit._drain.contract import IClaim
from postcommit._drain.contract import IConsumer
from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._drain.schedule import Schedule
from postcommit._log import Log
from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._mail.report import EXPIRED
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import expiring
from postcommit._mail.report import giving_up
from postcommit._mail.report import giving_up_uncertain
from postcommit._mailers.foreign import notify_of
from postcommit._transaction.event import MailRejectedEvent
from postcommit._transaction.event import announce
from postcommit._transaction.event import dispatch_events
from postcommit.errors import EntryError
from postcommit.errors import QueueError
from postcommit.interfaces import Status
from postcommit.interfaces import SupportsSend
from postcommit.interfaces import Tally


log = Log("postcommit.drain.settle")

# The beginning of the last reply of a dead letter that may have been delivered.
UNCERTAIN = "uncertain, it may have arrived"

# Number of entries that cannot be settled from which on the disk is to blame. A single
# entry may be to blame itself, and does not stop the others: its file may be immutable,
# for example.
_SEVERAL = 2

_FOR_NOW = (Status.DEFERRED, Status.UNCERTAIN)

# All recipients got the mail, so the entry is removed.
_REMOVE = Settlement()


@dataclass(eq=False, repr=False)
class Settler:
    """Settles the entries of one drain. Several threads may use it.

    `tally` counts the recipients of the entries that were settled.
    """

    _consumer: IConsumer
    _mailer: SupportsSend
    _schedule: Schedule
    _breaker: Breaker
    tally: Tally = field(default_factory=Tally)
    unsettled: dict[IClaim, _Unsettled] = field(default_factory=dict)
    # By the key of an entry: the outcomes in its earlier parts of recipients that are
    # tried again. They wait for the last part, because an entry has one time.
    _kept: dict[Hashable, tuple[Outcome, ...]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # around the tally
    _is_settling_again: threading.Lock = field(default_factory=threading.Lock)

    def part_of(self, claim: IClaim, most: int) -> Entry:
        """Return the claimed entry, with the next recipients to try: `most` at most."""
        entry = claim.entry
        kept = {o.recipient for o in self._kept.get(claim.key, ())}
        if not kept and len(entry.recipients) <= most:
            return entry
        left = tuple(r for r in entry.recipients if r not in kept)
        if not left:  # another processor has tried the others
            self._kept.pop(claim.key, None)
            left = entry.recipients
        some = left[:most]
        # A part is another message than the whole. A mailer that hands both over under
        # one name would lose one of them.
        name = f"{entry.name}.P{zlib.crc32(','.join(some).encode()):08x}"
        return replace(entry, recipients=some, doubts=(), name=name)

    def settle(
        self, claim: IClaim, report: DeliveryReport, *, answered: bool = False
    ) -> None:
        """Settle the claimed entry as `report` says, and announce it.

        Raises an exception, such as `QueueError`, if the entry cannot be settled now.
        Then it is one of the `unsettled`. `answered` is kept for `settle_again`. If an
        error of the program prevents a decision, the entry is tried later.
        """
        settlement = _REMOVE
        try:
            if not is_sent(claim, report):
                report, settlement = self._decide(claim, report)
        except Exception as error:
            # An error of the program, or no memory: it concerns this entry only.
            self._postpone(claim)
            _log_lost_report(claim, report, error)
        else:
            self._apply(_Unsettled(claim, report, settlement, answered))

    def _decide(
        self, claim: IClaim, report: DeliveryReport
    ) -> tuple[DeliveryReport, Settlement]:
        """Decide what is done to the entry, without doing anything."""
        entry, now = claim.entry, self._consumer.now()
        # An entry is not given up after its first attempt, because the clock may have
        # been wrong, or the relay away. Recipients without an outcome are not given up
        # either, because the relay failed.
        next_attempt = self._schedule.next_attempt(claim.accepted, now)
        if claim.expires is not None and claim.expires <= next_attempt:
            report = expiring(report)
        elif entry.attempts and self._schedule.is_too_old(claim.accepted, now):
            report = giving_up(report)
        elif report.uncertain:
            most = self._schedule.max_uncertain
            numbers = uncertain_attempts(entry, report.outcomes)
            given_up = {r for r, number in numbers.items() if number >= most}
            report = giving_up_uncertain(report, given_up)
        has_failed = report.relay_failure is not None
        if has_failed:
            report = replace(
                report,
                relay_failure=None,
                failed_mid_message=False,
                too_many_connections=False,
            )
        uncertain = part(entry, report.outcomes, lambda o: o.given_up)
        if uncertain is not None:
            reply = f"{UNCERTAIN}: {uncertain.last_reply}"
            uncertain = replace(uncertain, last_reply=reply)
        left = self._left(claim, report, has_failed=has_failed)
        is_part = left is not None and left.attempts == entry.attempts
        due = now if is_part else next_attempt
        rejected = _rejected(entry, report)
        return report, Settlement(rejected, uncertain, left, due, is_part)

    def _left(
        self, claim: IClaim, report: DeliveryReport, *, has_failed: bool
    ) -> Entry | None:
        """Return what is left of the entry.

        No attempt counts while there are recipients that were not tried, because the
        relay has failed, or because this was a part of the entry. Those that are tried
        again wait for them, unless this process ends. If a part has no recipient less,
        the others wait as well: the relay may defer them, too, or fail at the message.
        """
        entry = claim.entry
        new = {outcome.recipient for outcome in report.outcomes}
        old = set(entry.recipients) - new
        earlier = [o for o in self._kept.pop(claim.key, ()) if o.recipient in old]
        kept = (*earlier, *filter(_is_left, report.outcomes))
        names = {outcome.recipient for outcome in earlier} | new
        rest = tuple(r for r in entry.recipients if r not in names)
        recipients = (*rest, *(outcome.recipient for outcome in kept))
        if not recipients:
            return None
        left = only(entry, recipients, uncertain_attempts(entry, report.outcomes))
        if rest and (has_failed or not all(map(_is_left, report.outcomes))):
            if kept:
                self._kept[claim.key] = kept
            return left
        return replace(left, attempts=entry.attempts + 1, last_reply=_reply_of(kept))

    def _apply(self, settling: _Unsettled) -> None:
        claim, report, settlement = settling.claim, settling.report, settling.settlement
        try:
            try:
                settled = self._consumer.settle(claim, settlement)
            except QueueError as error:
                if not (error.is_full and _is_as_before(claim.entry, settlement)):
                    raise
                self._consumer.postpone(claim, settlement.due)
                settled = Settled.DONE
        except Exception as error:
            # It may have been sent. The claim is kept, so that it is not sent again,
            # until the disk has recovered.
            self._breaker.log_failing(claim.name, error)
            self.unsettled[claim] = settling._replace(error=error)
            raise
        self.unsettled.pop(claim, None)
        if settled is not Settled.DONE:
            _log_loss(claim, report, settled)
        sent = deferred = rejected = given_up = 0
        for outcome in report.outcomes:
            if outcome.status is Status.SENT:
                sent += 1
            elif outcome.status is Status.REJECTED:
                rejected += 1
            elif outcome.given_up:
                given_up += 1
            else:
                deferred += 1
        counts = sent, deferred, rejected, given_up
        with self._lock:
            self.tally = Tally(*map(add, self.tally, counts))
        announce(report, notify_of(self._mailer), transaction.manager)

    def expire(self, claim: IClaim) -> None:
        """Make an entry that has expired a dead letter, and announce it.

        No attempt is counted. Raises an exception as `settle` does.
        """
        entry = claim.entry
        self._kept.pop(claim.key, None)
        report = DeliveryReport.alike(
            message_id_of(entry.message), entry.recipients, Status.REJECTED, EXPIRED
        )
        dead = replace(entry, last_reply=str(EXPIRED))
        self._apply(_Unsettled(claim, report, Settlement(rejected=dead), False))

    def bury_unreadable(self, claim: IClaim, error: EntryError) -> None:
        """Make what is not an entry a dead letter, and announce it.

        Raises an exception, such as `QueueError`, if it cannot be kept.
        """
        message_id = message_id_of(claim.beginning())
        self._consumer.bury_unreadable(claim, error.reason)
        log.error("%s: unreadable, now a dead letter: %s", claim.name, error.reason)
        event = MailRejectedEvent(message_id, f"unreadable: {error.reason}")
        dispatch_events([event], notify_of(self._mailer), transaction.manager)

    # Entries that could not be settled

    def settle_again(self) -> list[bool]:
        """Settle what could not be settled before, unless another thread does so now.

        Returns for each entry that is settled whether the relay gave an answer.
        """
        answered = []
        if self._is_settling_again.acquire(blocking=False):
            try:
                for settling in list(self.unsettled.values()):
                    with suppress(Exception):  # it is one of the `unsettled` again
                        self._apply(settling)
                        answered.append(settling.answered)
            finally:
                self._is_settling_again.release()
        return answered

    @property
    def disk_error(self) -> Exception | None:
        """Why several entries cannot be settled, if the disk is to blame.

        A full disk is not, because entries that are removed make room.
        """
        errors = [settling.error for settling in list(self.unsettled.values())]
        broken = [e for e in errors if not (isinstance(e, QueueError) and e.is_full)]
        return broken[-1] if len(broken) >= _SEVERAL else None

    def abandon(self) -> None:
        """Settle for the last time, and release what still cannot be settled."""
        self.settle_again()
        while self.unsettled:
            claim, settling = self.unsettled.popitem()
            self._postpone(claim)
            _log_lost_report(claim, settling.report, settling.error)

    def _postpone(self, claim: IClaim) -> None:
        """Have the entry tried later, and not at the next look. Never raises.

        If that is not possible, it is released as it is.
        """
        try:
            now = self._consumer.now()
            due = self._schedule.next_attempt(claim.accepted, now)
            self._consumer.postpone(claim, due)
        except Exception as error:
            self._breaker.log_failing(claim.name, error)
            self._consumer.release([claim])


class _Unsettled(NamedTuple):
    """A settlement that could not be applied. It is tried again later."""

    claim: IClaim
    report: DeliveryReport
    settlement: Settlement
    answered: bool
    error: Exception | None = None


# What is logged


def _log_lost_report(
    claim: IClaim, report: DeliveryReport, error: Exception | None
) -> None:
    """Log that the entry stays as it was before the attempt."""
    if report.sent:
        log.critical(
            "%s: sent to %s, but the queue could not note that; it will be sent again",
            claim.name,
            ", ".join(outcome.recipient for outcome in report.sent),
            exc_info=error,
        )
    else:
        log.error(
            "%s: the queue could not note the attempt; it will be tried again: %s",
            claim.name,
            "; ".join(f"{o.recipient}: {o.status.value}" for o in report.outcomes),
            exc_info=error,
        )


def _log_loss(claim: IClaim, report: DeliveryReport, settled: Settled) -> None:
    """Log that a person or another processor took the entry during the attempt."""
    if settled is Settled.REMOVED:
        log.warning(
            "%s: somebody has removed it during the attempt; it is not tried again",
            claim.name,
        )
    elif report.sent or report.uncertain:
        log.critical(
            "%s: this process stood still and has lost the entry to another processor;"
            " it may be sent twice",
            claim.name,
        )
    else:
        log.warning(
            "%s: this process stood still and has lost the entry to another processor,"
            " which tries it; nothing was sent here",
            claim.name,
        )


# Pure functions


def is_sent(claim: IClaim, report: DeliveryReport) -> bool:
    """Return whether the message was sent to all recipients of the entry."""
    outcomes = report.outcomes
    return len(outcomes) == len(claim.entry.recipients) and all(
        outcome.status is Status.SENT for outcome in outcomes
    )


def _is_as_before(entry: Entry, settlement: Settlement) -> bool:
    """Return True if the entry needs a later time only, and need not be written.

    Without space nothing can be written: not the recipients that are left, nor that the
    relay may have the message.
    """
    left = settlement.left
    return left is not None and (left.recipients, left.uncertain, left.doubts) == (
        entry.recipients,
        entry.uncertain,
        entry.doubts,
    )


def uncertain_attempts(entry: Entry, outcomes: Iterable[Outcome]) -> dict[str, int]:
    """Return the number of uncertain attempts by recipient, with these `outcomes`."""
    numbers = entry.uncertain_by_recipient()
    for outcome in outcomes:
        if outcome.status is Status.UNCERTAIN:
            numbers[outcome.recipient] += 1
    return numbers


def only(entry: Entry, recipients: tuple[str, ...], numbers: dict[str, int]) -> Entry:
    """Return the entry with some of its recipients.

    `numbers` are those of their uncertain attempts.
    """
    doubts = tuple(map(numbers.__getitem__, recipients))
    most = max(doubts)
    if min(doubts) == most:
        doubts = ()
    return replace(entry, recipients=recipients, uncertain=most, doubts=doubts)


def part(
    entry: Entry, outcomes: Iterable[Outcome], belongs: Callable[[Outcome], bool]
) -> Entry | None:
    """Return the entry with those recipients whose outcome belongs to the part.

    Return None if the part is without recipients.
    """
    outcomes = [outcome for outcome in outcomes if belongs(outcome)]
    if not outcomes:
        return None
    recipients = tuple(outcome.recipient for outcome in outcomes)
    rest = only(entry, recipients, uncertain_attempts(entry, outcomes))
    reply = _reply_of(outcomes)
    return replace(rest, attempts=entry.attempts + 1, last_reply=reply)


def _reply_of(outcomes: Collection[Outcome]) -> str:
    """Return the reply that the outcomes share, or each with its recipient."""
    replies = dict.fromkeys(str(outcome.reply) for outcome in outcomes)
    if len(replies) == 1:
        return next(iter(replies))
    return "; ".join(f"{o.recipient}: {o.reply}" for o in outcomes)


def _is_left(outcome: Outcome) -> bool:
    return outcome.status in _FOR_NOW and not outcome.given_up


def _rejected(entry: Entry, report: DeliveryReport) -> Entry | None:
    return part(entry, report.outcomes, lambda o: o.status is Status.REJECTED)
