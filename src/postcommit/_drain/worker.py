"""The worker's loop: claim, offer, attribute, settle, announce, note."""
from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field

from postcommit._drain.breaker import Breaker
from postcommit._drain.breaker import CircuitState
from postcommit._drain.contract import IClaim
from postcommit._drain.contract import IConsumer
from postcommit._drain.settle import Settler
from postcommit._drain.settle import is_sent
from postcommit._log import Log
from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mailers.foreign import pipeline_of
from postcommit.errors import EntryError
from postcommit.errors import QueueError
from postcommit.errors import RelayError
from postcommit.errors import text_of
from postcommit.interfaces import SupportsSend


log = Log("postcommit.drain.worker")

# Read-ahead: while each message takes less than `IConsumer.quick_seconds`, several
# entries are claimed and read at a time, which is quicker than each between two
# replies. These are the maximum number of entries, and of bytes that are read.
_MOST_AHEAD = 8
_BYTES_AHEAD = 1 << 16

# Maximum number of removals without an answer. As many messages are on the wire.
_MOST_REMOVALS = 2

# An entry to many recipients is tried in parts of a few seconds, so that a stop soon
# ends, and a crash makes few of them get it again. These are the maximum number of
# transmissions of a part, and how many seconds let the next part have more or fewer.
_MOST_AT_A_TIME = 10
_SHORT, _LONG = 1.0, 5.0

# `IConsumer.take`, or what a runner makes of it.
Take = Callable[[int, Collection[Hashable]], list[IClaim]]


@dataclass(eq=False, repr=False)
class Worker:
    """Works on the due entries of one drain, in one thread.

    `take` claims entries; by default it is that of `consumer`. With `tries_suspects` a
    suspect may be the single entry that is tried after a pause. Set `is_stopping` to
    have `work` return early.

    `was_refused` says after `work` that the relay takes no more connections: it refused
    one while others of the mailer were in use. That is not its failure, unless
    `is_alone` says that no other worker is called.

    `most_at_a_time` is the maximum number of transmissions of one claim.
    """

    _consumer: IConsumer
    _mailer: SupportsSend
    _breaker: Breaker
    _settler: Settler
    _take: Take | None = None
    tries_suspects: bool = True
    is_stopping: bool = False
    is_alone: bool = True
    was_refused: bool = False
    most_at_a_time: int = _MOST_AT_A_TIME
    _claimed: deque[IClaim] = field(default_factory=deque)  # not read
    _ready: deque[IClaim] = field(default_factory=deque)  # read, not offered
    _in_flight: deque[IClaim] = field(default_factory=deque)  # offered, not settled
    _looked: float = -math.inf
    _portion: int = 1  # the number of entries to claim at a time
    _was_large: bool = False
    _transmissions: int = 2  # of a part
    # Reports whose entries are being removed. They are not announced.
    _removing: deque[tuple[IClaim, DeliveryReport, bool]] = field(default_factory=deque)
    # When a part of an entry was offered.
    _began: dict[IClaim, float] = field(default_factory=dict)

    def work(self, most: int) -> bool:
        """Work on up to `most` entries. Return True if there may be more to do now.

        Ends early if nothing is due, or the relay or the disk fails. Raises what a
        mailer raises against its contract, and no claim is left then.
        """
        breaker = self._breaker
        self._is_probe = self.was_refused = False
        if breaker.state is not CircuitState.CLOSED:
            if not breaker.begin_probe():
                return False
            self._is_probe = True
        try:
            self._since = breaker.count
            self._left = 1 if self._is_probe else most
            self._failed = self._found_nothing = False
            if self._settler.unsettled:
                for answered in self._settler.settle_again():
                    breaker.note(None, answered=answered)
            # If the disk is broken, what is sent now could not be settled, either.
            error = self._settler.disk_error if self._settler.unsettled else None
            if error is None:
                self._run()
            else:
                breaker.note(error, since=self._since)
        finally:
            if self._is_probe:
                breaker.end_probe()
        return not self._found_nothing and breaker.state is not CircuitState.OPEN

    def _run(self) -> None:
        """Send what is due through one pipeline of the mailer."""
        pipeline = pipeline_of(self._mailer)
        mistake = None
        try:
            with pipeline:
                while claim := self._next():
                    mail = claim.entry
                    if len(mail.recipients) > 1:
                        mail = self._part_of(claim)
                    pipeline.offer(mail, key=claim)
                    self._conclude(pipeline.completed())
                self._conclude(pipeline.drain())
            if self._removing:
                self._end_removals()
            if self._in_flight:
                name = self._in_flight[0].name
                raise RuntimeError(f"{self._mailer!r} gave no report for {name}")
        except Exception as error:
            mistake = error
        finally:
            try:
                # After an error: what was sent must not be sent again.
                self._conclude(pipeline.completed())
            finally:
                try:
                    if self._removing:
                        self._end_removals()
                    if mistake is not None:
                        self._suspect(mistake)
                finally:
                    if self._in_flight or self._ready or self._claimed:
                        self._release_all()

    def _release_all(self) -> None:
        """Release what is left of all that was claimed."""
        left = [*self._in_flight, *self._ready, *self._claimed]
        for claims in (self._in_flight, self._ready, self._claimed):
            claims.clear()
        self._began.clear()
        self._removing.clear()
        self._release(left)

    def _suspect(self, mistake: Exception) -> None:
        """Suspect the messages that a mailer made a mistake at instead of a report.

        It may make it at one of them each time. Then the others must not wait for it.
        So it counts as a failure of the relay in the middle of the message. Raises
        `mistake`, unless it is known which message was the reason.
        """
        failure = RelayError.of(mistake, text_of(mistake))
        failed = [
            (
                claim,
                DeliveryReport(
                    message_id_of(claim.entry.message),
                    claim.entry.recipients,
                    relay_failure=failure,
                    failed_mid_message=True,
                ),
            )
            for claim in self._in_flight
        ]
        self._conclude(failed)
        if self._failed or not failed:
            raise mistake
        names = ", ".join(claim.name for claim, _ in failed)
        log.error("%r failed again at %s", self._mailer, names, exc_info=mistake)

    def _part_of(self, claim: IClaim) -> Entry:
        """Return the claimed entry, with as many recipients as are tried at a time."""
        size = size_of(self._mailer)
        if size is None:
            return self._settler.part_of(claim, sys.maxsize)
        count = min(self._transmissions, self.most_at_a_time)
        part = self._settler.part_of(claim, size * count)
        if part is not claim.entry:
            self._began[claim] = time.monotonic()
        return part

    def _note_part(self, claim: IClaim) -> None:
        """Adapt the size of the next part to the seconds that this one took."""
        self._found_nothing = False  # the next part is due
        seconds = time.monotonic() - self._began.pop(claim)
        if seconds < _SHORT:
            self._transmissions = min(2 * self._transmissions, _MOST_AT_A_TIME)
        elif seconds > _LONG:
            self._transmissions = max(self._transmissions // 2, 1)

    def _release(self, claims: list[IClaim]) -> None:
        """Release entries that may be tried again at once."""
        self._consumer.release(claims)
        # Another worker may have looked and found nothing while we had them.
        self._found_nothing = False

    def _conclude(self, reports: Iterable[tuple[IClaim, DeliveryReport]]) -> None:
        """Attribute each report, settle and announce it, and note it in the breaker."""
        for claim, report in reports:
            # The next message follows at once, so the announcement is not late.
            is_followed = self._portion > 1 and (self._ready or self._left)
            goes_on = bool(is_followed) and is_sent(claim, report)
            if self._removing:
                self._end_removals(_MOST_REMOVALS - 1 if goes_on else 0)
            if claim in self._began:
                self._note_part(claim)
            report, answered = self._breaker.attribute(claim.key, report)
            if goes_on and self._consumer.begin_removal(claim):
                self._removing.append((claim, report, answered))
                continue
            if self._removing:
                self._end_removals()
            self._settle(claim, report, answered)

    def _end_removals(self, most: int = 0) -> None:
        """Settle and announce reports whose entries are being removed.

        The last ones, `most` of them, stay as they are.
        """
        while len(self._removing) > most:
            self._settle(*self._removing.popleft())

    def _settle(self, claim: IClaim, report: DeliveryReport, answered: bool) -> None:
        """Settle the entry, announce the report, and note it in the breaker.

        If the removal of the entry has begun, this ends it.
        """
        trouble: object = report.relay_failure
        is_refused = report.too_many_connections and not (
            self.is_alone or self._is_probe
        )
        if trouble is not None and not report.outcomes:
            self._release([claim])  # no attempt counts
        else:
            try:
                # And announce it, when the entry is settled.
                self._settler.settle(claim, report, answered=answered)
            except Exception as error:
                trouble, is_refused = error, False
        self._in_flight.remove(claim)
        self._failed |= trouble is not None
        if is_refused:
            self.was_refused, self._found_nothing = True, False
        else:
            self._breaker.note(trouble, answered=answered, since=self._since)

    # Claim

    def _next(self) -> IClaim | None:
        """Return the next claimed entry, read.

        None if nothing is due, or the queue pauses, or the drain stops.
        """
        # The look may have taken long, with a rate limit for example, so this is asked
        # again after it.
        while not (self._failed or self.is_stopping) and (
            self._is_probe or self._breaker.state is CircuitState.CLOSED
        ):
            if self._ready:
                # If another processor may have the entry, all that was claimed is
                # released. Then the next look raises the error, and the queue pauses.
                if not self._consumer.is_sure(self._ready[0]):
                    return None
                claim = self._ready.popleft()
                if claim.expires is not None and claim.expires <= self._consumer.now():
                    self._expire(claim)
                    continue
                self._in_flight.append(claim)
                return claim
            if not (self._claimed or self._look_ahead()):
                return None
            size = 0
            while self._claimed and not self._failed and size <= _BYTES_AHEAD:
                claim = self._claimed[0]
                try:
                    size += len(claim.read().message)
                except Exception as error:
                    self._set_aside(claim, error)
                else:
                    self._ready.append(claim)
                    if self._breaker.failing:
                        self._breaker.failing.pop(claim.name, None)
                self._claimed.popleft()
            self._was_large = size > _BYTES_AHEAD
        return None

    def _expire(self, claim: IClaim) -> None:
        """Make an entry that has expired a dead letter."""
        try:
            self._settler.expire(claim)
        except Exception as error:
            self._failed = True
            self._breaker.note(error, since=self._since)

    def _look_ahead(self) -> bool:
        """Claim the next entries, several at a time if the relay is quick.

        Suspects are claimed if nothing else is due. Returns False if there is nothing.
        """
        if not self._left:
            return False
        now = time.monotonic()
        if now - self._looked >= self._consumer.quick_seconds * self._portion:
            self._portion = 1
        elif self._was_large:
            self._portion = max(self._portion // 2, 1)
        else:
            self._portion = min(2 * self._portion, _MOST_AHEAD)
        self._looked = now
        most = min(self._portion, self._left)
        breaker, take = self._breaker, self._take or self._consumer.take
        try:
            if not breaker.suspects:
                claims = take(most, breaker.skipped)
            else:
                claims = take(most, breaker.avoided())
                if not claims and (self.tries_suspects or not self._is_probe):
                    claims = take(most, breaker.skipped)
        except QueueError as error:
            breaker.note(error, since=self._since)
            return False
        self._found_nothing = not claims
        self._left -= len(claims)
        self._claimed.extend(claims)
        return bool(claims)

    def _set_aside(self, claim: IClaim, error: Exception) -> None:
        """Bury what is not an entry, and release an entry that cannot be read now."""
        try:
            if isinstance(error, EntryError):
                self._settler.bury_unreadable(claim, error)
                return
        except Exception as other:
            error = other
        self._consumer.release([claim])
        if isinstance(error, QueueError) and error.scope == "queue":
            self._failed = True
            self._breaker.note(error, since=self._since)
        else:
            # Any other error concerns this entry only, and the loop goes on.
            self._breaker.skip(claim, error)


def size_of(mailer: object) -> int | None:
    """Return how many recipients `mailer` has in one transmission.

    The largest number, if it uses several mailers. None if they are not split.
    """
    mailers = getattr(mailer, "mailers", None)
    if isinstance(mailers, tuple):
        sizes = [size_of(each) for each in mailers]
        known = [size for size in sizes if size is not None]
        return max(known) if known and len(known) == len(sizes) else None
    size = getattr(mailer, "recipients_per_transaction", None)
    return size if isinstance(size, int) else None
