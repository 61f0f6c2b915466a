"""Works on entries: claim, transmit, settle, tell. No thread and no sleep.

What a report means for an entry:

=======================  ==================================================
report                   the entry
=======================  ==================================================
every recipient sent     removed
some failed for now      rewritten with just those; due by the schedule
some were rejected       those go to ``.Failed``; the rest goes on
the relay failed         left as it is, no attempt counted; but where it fails
                         at this one again, and not at others, all are deferred
uncertain for the third  those may have the message: they go to ``.Failed``, too,
time (``max_uncertain``) but are not called rejected
too old                  what failed for now is rejected; but never at the first
                         attempt
unreadable               to ``.Failed``, with the reason
=======================  ==================================================
"""
from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field
from typing import NamedTuple

import transaction
import zope.event

from postcommit.attempt import Attempt
from postcommit.attempt import Transmission
from postcommit.attempt import announcements
from postcommit.attempt import attempt_all
from postcommit.errors import EntryError
from postcommit.event import MailRejectedEvent
from postcommit.event import dispatch
from postcommit.event import dispatch_events
from postcommit.interfaces import IMailer
from postcommit.interfaces import Tally
from postcommit.log import Log
from postcommit.message import message_id_of
from postcommit.queue.entry import Claim
from postcommit.queue.entry import Entry
from postcommit.queue.schedule import Schedule
from postcommit.queue.settlement import Settlement
from postcommit.queue.settlement import is_full
from postcommit.queue.store import Store
from postcommit.queue.suspects import Suspects
from postcommit.queue.troubles import Troubles
from postcommit.queue.verdict import is_answer
from postcommit.queue.verdict import tally_of
from postcommit.queue.verdict import uncertain_attempts
from postcommit.report import DeliveryReport
from postcommit.report import blamed
from postcommit.report import given_up
from postcommit.report import uncertain_given_up


log = Log(__name__)

# As long as messages go out in so many seconds each, so many of them are read in one
# go, which is quicker than each for itself between two replies; but not more once they
# have so many bytes.
_QUICK = 0.002
_MOST_AHEAD = 8
_BYTES_AHEAD = 1 << 16

_NOTHING = Tally()

# A single entry may be to blame itself if it cannot be settled; so many are not.
_SEVERAL = 2


class Result(NamedTuple):
    """What came of one entry, for whoever schedules the work.

    `due` is when it is tried again; `stayed`, that it is where it was, though
    it is due; `trouble`, that relay or disk are in trouble, and every other
    entry would fare alike; `silent`, that the relay had no answer to it.
    """

    tally: Tally = _NOTHING
    due: float | None = None
    stayed: bool = False
    trouble: object = None
    silent: bool = False


class _Job(NamedTuple):
    """A claimed entry, and what was transmitted of it."""

    claim: Claim
    entry: Entry


@dataclass(slots=True)
class _Round:
    """One call of `work`: what is claimed, what was passed over, any trouble."""

    jobs: deque[_Job] = field(default_factory=deque)
    passed_over: list[Result] = field(default_factory=list)
    is_in_trouble: bool = False


class Processor:
    """Works on the entries of `store`; may be used by several threads at once."""

    def __init__(
        self,
        store: Store,
        mailer: IMailer,
        schedule: Schedule,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._mailer = mailer
        self._schedule = schedule
        self._clock = clock
        self._unsettled: deque[Settlement] = deque()
        self._troubles = Troubles(store.path)
        self.suspects = Suspects()

    def work(self, paths: Iterable[str]) -> Iterator[Result]:
        """Work on the entries at `paths`, and yield a result for each.

        A path is only taken when the mailer is ready for it, or will be within
        milliseconds; and none more once relay or disk are in trouble, so perhaps
        none at all. Raises what `paths` raises, and what a mailer does against its
        contract; no claim is left then.
        """
        stuck = 0
        for result in self._settle_again():
            stuck += result.trouble is not None and not is_full(result.trouble)
            yield result
        if stuck >= _SEVERAL:
            return  # what is transmitted now could not be settled, either
        this = _Round()
        try:
            for attempt in attempt_all(self._mailer, self._take_all(paths, this)):
                # It stays in the list until it is settled: whatever comes between
                # releases its claim.
                result = self._concluded(this.jobs[0], attempt)
                this.jobs.popleft()
                if result.trouble is not None:
                    this.is_in_trouble = True
                yield result
            yield from this.passed_over
        finally:
            for job in this.jobs:
                job.claim.release()

    def abandon(self) -> list[Result]:
        """Settle what could not be settled, for the last time, and let go of it.

        Return a result for each, as `work` does.
        """
        try:
            results = list(self._settle_again())
            for settlement in self._take_unsettled():
                self._let_go(settlement)
            return results
        finally:
            self._store.release_claims()

    def _settle_again(self) -> Iterator[Result]:
        for settlement in self._take_unsettled():
            yield self._settle(settlement)

    def _take_unsettled(self) -> Iterator[Settlement]:
        for _ in range(len(self._unsettled)):
            try:
                settlement = self._unsettled.popleft()
            except IndexError:
                return  # another worker was here
            yield settlement

    def _let_go(self, settlement: Settlement) -> None:
        claim, report = settlement.claim, settlement.report
        self._postpone(claim)
        log.critical(
            "%s: transmitted, but it could not be removed from the queue;"
            " it will be sent again: %s",
            claim.path,
            report,
        )
        claim.release()

    def _postpone(self, claim: Claim) -> float | None:
        """Have the entry tried again, but not at the next look; return when."""
        now = self._clock()
        accepted = self._store.accepted(claim, now)
        due = self._schedule.next_attempt(accepted, now)
        try:
            self._store.postpone(claim, due, accepted)
        except OSError as error:
            self._troubles.log(claim.path, error)
            return None
        return due

    # Take

    def _take_all(self, paths: Iterable[str], this: _Round) -> Iterator[Transmission]:
        paths, most = iter(paths), 1
        for path in paths:
            began = time.monotonic()
            some = itertools.chain((path,), itertools.islice(paths, most - 1))
            taken = self._take_some(some, this)
            for job in taken:
                if this.is_in_trouble:
                    break
                entry = job.entry
                yield Transmission(entry.sender, entry.recipients, entry.message)
            if this.is_in_trouble:
                return
            is_quick = time.monotonic() - began < _QUICK * len(taken)
            most = min(2 * most, _MOST_AHEAD) if is_quick else 1

    def _take_some(self, paths: Iterable[str], this: _Round) -> list[_Job]:
        """Take `paths`, or the first ones of them, where they are large."""
        taken = []
        size = 0
        for path in paths:
            try:
                job = self._take(path)
            except Exception as error:
                trouble = self._troubles.of_all(error)
                if trouble is not None:
                    this.is_in_trouble = True
                    this.passed_over.append(Result(trouble=trouble))
                    break
                # Whatever else it is, it is about one entry, and the loop goes on.
                self._troubles.log(path, error)
                job = None
            if job is None:
                this.passed_over.append(Result(stayed=True))
                continue
            this.jobs.append(job)
            taken.append(job)
            size += len(job.entry.message)
            if size > _BYTES_AHEAD:
                break
        return taken

    def _take(self, path: str) -> _Job | None:
        claim = self._store.claim(path)
        if claim is None:
            return None
        try:
            # It may have been deferred again between being found and being claimed.
            if self._schedule.seconds_until(self._store.due(claim), self._clock()):
                claim.release()
                return None
            entry = claim.read()
        except EntryError as error:
            self._bury_unreadable(claim, error)
            return None
        except BaseException:
            claim.release()
            raise
        self._troubles.forget(path)
        return _Job(claim, entry)

    def _bury_unreadable(self, claim: Claim, error: EntryError) -> None:
        try:
            message_id = message_id_of(claim.beginning())
            self._store.bury_unreadable(claim, error.reason)
        finally:
            claim.release()
        log.error("%s: unreadable, now a dead letter: %s", claim.path, error.reason)
        notify = getattr(self._mailer, "notify", zope.event.notify)
        event = MailRejectedEvent(message_id, f"unreadable: {error.reason}")
        dispatch_events([event], notify, transaction.manager)

    # Settle

    def _concluded(self, job: _Job, attempt: Attempt) -> Result:
        try:
            return self._conclude(job, attempt)
        except Exception:
            # An error of the program, or no memory: that of one entry only.
            log.exception("%s: what became of it is unclear", job.claim.path)
            due = self._postpone(job.claim)
            job.claim.release()
            return Result(due=due, stayed=due is None)

    def _conclude(self, job: _Job, attempt: Attempt) -> Result:
        report = attempt.report
        answered = report.relay_failure is None and is_answer(report)
        if answered:
            self.suspects.answered(job.claim.path)
        if report.relay_failure is not None:
            if not self._is_to_blame(job, report):
                job.claim.release()
                return Result(stayed=True, trouble=report.relay_failure)
            report = blamed(report)
        now = self._clock()
        accepted = self._store.accepted(job.claim, now)
        # Not at the first attempt: the clock may have been wrong, or the relay away.
        if job.entry.attempts and self._schedule.is_too_old(accepted, now):
            report = given_up(report)
        elif uncertain_attempts(job.entry, report) >= self._schedule.max_uncertain:
            report = uncertain_given_up(report)
        tally, due = tally_of(report), None
        if tally.deferred:
            due = self._schedule.next_attempt(accepted, now)
        told = announcements(attempt, self._mailer, report)
        return self._settle(
            Settlement(*job, report, tally, due, accepted, told, not answered)
        )

    def _is_to_blame(self, job: _Job, report: DeliveryReport) -> bool:
        return report.had_its_turn and self.suspects.failed(job.claim.path)

    def _settle(self, settlement: Settlement) -> Result:
        claim = settlement.claim
        try:
            settlement.write(self._store)
        except Exception as error:
            # It may have been sent: the claim is kept, so that nobody sends
            # it again, until the disk has recovered.
            self._troubles.log(claim.path, error)
            self._unsettled.append(settlement)
            return Result(trouble=error)
        claim.release(removed=settlement.due is None)
        for announcement in settlement.announcements:
            dispatch(announcement, transaction.manager)
        return Result(settlement.tally, settlement.due, silent=settlement.silent)
