"""The circuit breaker of a queue: is it the relay, the message or the disk?

==============================================  ======================================
what happens                                    what follows
==============================================  ======================================
the relay fails                                 the queue pauses, no attempt counts
... in the middle of a message                  the same, and the message is suspect: it
                                                is tried after all others
... again at a suspect, after an answer to      it is a poison message: it is deferred,
another message                                 and the queue does not pause
the mailer raises instead of reporting          the queue pauses, and each message
                                                without a report is suspect
the relay answers, and the entry is settled     the pause is over
one entry cannot be read                        it is logged once, and skipped
no entry can be read                            the queue pauses
an entry cannot be settled                      the queue pauses, and the entry is
                                                settled later
==============================================  ======================================

A pause has three states:

==============  ==============================================  ==============
state           when                                            what is tried
==============  ==============================================  ==============
``CLOSED``      all is well                                     everything
``OPEN``        after a failure, for 1 s, 2 s, 4 s… to 5 min    nothing
``HALF_OPEN``   the pause is over                               one entry
==============  ==============================================  ==============
"""
from __future__ import annotations

import enum
import math
import threading
import time
from collections.abc import Callable
from collections.abc import Hashable
from dataclasses import dataclass
from dataclasses import field

from postcommit._drain.contract import IClaim
from postcommit._drain.contract import IConsumer
from postcommit._log import Log
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import deferring
from postcommit.errors import text_of
from postcommit.interfaces import Status


log = Log("postcommit.drain.breaker")

# Seconds of the first and of the longest pause. Each failure in a row doubles it.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 300.0

# Maximum number of reasons of one pause that are remembered, to log each once.
_MOST_REASONS = 1000

# Maximum number of suspects. The suspect that failed longest ago is dropped first.
_MOST_SUSPECTS = 1000

# Maximum number of entries remembered as failing, and for how many seconds.
_MOST_FAILING = 1000
_REMEMBERED = 3600.0


class CircuitState(enum.Enum):
    """Whether entries are tried."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(eq=False, repr=False)
class Breaker:
    """The breaker of the queue called `name`. Several threads may use it.

    `clock` returns seconds that only ever grow. `count` is the number of pauses so far.
    Each reason of a pause is logged once, even if several take turns, and so is the end
    of the pause.

    `suspects` has the keys of possible poison messages: entries at which a healthy
    relay fails. A relay can answer 421, or stop answering, in the middle of one message
    and accept all others. The failure itself does not show whether the relay or the
    message is the cause. The obvious solution is a counter: blame a message after its
    third failure. It also blames innocent messages, because each of them fails while
    the relay is in trouble. So we compare. An entry becomes a suspect when the relay
    fails in the middle of it, and suspects are tried after all other due entries. A
    suspect is to blame if the relay has answered for another entry since, and then
    fails at the suspect again.

    `is_probed` says that a single entry is tried now, after a pause.

    `skipped` has the keys of entries that cannot be read now. `failing` has the last
    error of each entry that fails, by its name, to log it once.
    """

    name: str
    _clock: Callable[[], float] = time.monotonic
    count: int = 0
    suspects: dict[Hashable, int] = field(default_factory=dict)
    skipped: frozenset[Hashable] = frozenset()
    failing: dict[str, str] = field(default_factory=dict)
    is_probed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _showing: threading.Lock = field(default_factory=threading.Lock)
    _pause: tuple[object, float] = (None, 0.0)  # its reason and seconds
    _failures: int = 0  # in a row
    _until: float = 0.0
    _shortened: int = 0  # the pause that was shortened last
    _logged: set[str] = field(default_factory=set)
    _answers: int = 0
    _failing_since: float = -math.inf
    _has_logged_that_more_fail: bool = False
    _consumer: IConsumer | None = None

    def show_to(self, consumer: IConsumer) -> None:
        """Show pauses to others, and wake the feeder, through `consumer`.

        A flush does not call this, because it does not wait for the end of a pause.
        """
        self._consumer = consumer

    @property
    def state(self) -> CircuitState:
        """The state now."""
        if not self._failures:
            return CircuitState.CLOSED
        is_open = self.seconds_left() > 0
        return CircuitState.OPEN if is_open else CircuitState.HALF_OPEN

    def seconds_left(self) -> float:
        """Return for how long the breaker stays open, or 0 if it is not."""
        return max(0.0, self._until - self._clock())

    # Before the attempt

    def begin_probe(self) -> bool:
        """Return True if the caller may try one entry: the breaker is half open.

        Then the caller has to call `end_probe`. One thread at a time may do so.
        """
        with self._lock:
            if self.is_probed or self.state is not CircuitState.HALF_OPEN:
                return False
            self.is_probed = True
            return True

    def end_probe(self) -> None:
        """Let another thread try the next entry."""
        self.is_probed = False

    def avoided(self) -> set[Hashable]:
        """Return the keys of the suspects and of what is skipped."""
        with self._lock:
            return {*self.suspects, *self.skipped}

    # After the attempt

    def attribute(
        self, key: Hashable, report: DeliveryReport
    ) -> tuple[DeliveryReport, bool]:
        """Return `report`, with the failure attributed to a poison message.

        Return also whether the relay gave an answer to the message. Silence, a lost
        connection and a refusal without asking the relay are not answers. The reply by
        which a relay fails is not an answer, either.

        A message is poison if the relay fails in the middle of it for the second time,
        and has answered for other messages since the first time. `key` is the key of
        the claim.
        """
        # A mailer written elsewhere may have sent it without a reply to show.
        answered = report.relay_failure is None and any(
            outcome.status is Status.SENT or outcome.reply.code != 0
            for outcome in report.outcomes
        )
        if answered:
            self._answers += 1  # not exact if threads collide, which does no harm
            if self.suspects:
                with self._lock:
                    self.suspects.pop(key, None)
        elif report.relay_failure is not None and report.failed_mid_message:
            with self._lock:
                # The number of answers when the relay failed at the entry first.
                before = self.suspects.pop(key, self._answers)
                self.suspects[key] = before
                if len(self.suspects) > _MOST_SUSPECTS:
                    del self.suspects[next(iter(self.suspects))]
                if self._answers > before:
                    report = deferring(report)
        return report, answered

    def note(
        self, trouble: object, *, answered: bool = False, since: int | None = None
    ) -> None:
        """Note that an attempt is over, and its entry settled.

        `trouble` is why the relay or the disk failed, None if they did not. `answered`
        says that the relay gave an answer. `since` is that of `failed`.
        """
        if trouble is not None:
            self.failed(trouble, since)
        elif answered and self._failures:
            self.succeeded()

    def failed(self, reason: object, since: int | None = None) -> None:
        """Open, or stay open for longer.

        `since` is the `count` of the time when the failed attempt began. What was in
        flight when a pause began does not make it longer, whether it ends during the
        pause or after it.
        """
        text = text_of(reason)
        with self._lock:
            is_old = since is not None and since != self.count
            if is_old and self.state is CircuitState.CLOSED:
                return  # since then, the relay has shown that it is back
            is_news = text not in self._logged
            if is_news and len(self._logged) >= _MOST_REASONS:
                self._logged.clear()
            self._logged.add(text)
            is_longer = not is_old and self.state is not CircuitState.OPEN
            if is_longer:
                self.count += 1
                self._failures += 1
                seconds = pause_after(self._failures)
                self._until = self._clock() + seconds
                self._pause = reason, seconds
        # Not while the lock is held: a slow disk or handler would keep workers waiting.
        if is_news:
            log.error("%s: the queue pauses: %s", self.name, text)
        if is_longer:
            self._show()

    def _show(self) -> None:
        """Show others the present state, which another thread may have changed."""
        if self._consumer is None:
            return
        with self._showing:
            if self._failures:
                self._consumer.post(*self._pause)
            else:
                self._consumer.clear()
        self._consumer.ring()  # if it is over, there is work for all workers again

    def succeeded(self) -> None:
        """Close: it works again."""
        with self._lock:
            was_closed = not self._failures
            self._failures, self._until = 0, 0.0
            self._logged.clear()
        if not was_closed:
            log.info("%s: the queue goes on", self.name)
            self._show()

    def shorten(self) -> bool:
        """End the pause now if it is the first. Return True once for each pause."""
        with self._lock:
            if self._failures != 1 or self._shortened == self.count:
                return False
            self._shortened = self.count
            self._until = self._clock()
            return True


    # Entries that fail

    def skip(self, claim: IClaim, error: Exception) -> None:
        """Log the `error` of a claimed entry. Skip it until `skipped` is emptied."""
        self.log_failing(claim.name, error)
        with self._lock:
            self.skipped |= {claim.key}

    def log_failing(self, entry: str, error: Exception) -> None:
        """Log the `error` of the entry with this name, unless that was done.

        Its name in `failing` is removed when it works again: its next error is news.
        """
        if self._clock() - self._failing_since > _REMEMBERED:
            self.failing.clear()
            self._has_logged_that_more_fail = False
            self._failing_since = self._clock()
        text = text_of(error)
        if self.failing.get(entry) == text:
            return
        if entry in self.failing or len(self.failing) < _MOST_FAILING:
            self.failing[entry] = text
            log.error("%s: left in the queue", entry, exc_info=error)
        elif not self._has_logged_that_more_fail:
            self._has_logged_that_more_fail = True
            log.error(
                "%s: more than %d entries are left in the queue; no more are named",
                self.name,
                _MOST_FAILING,
            )


def pause_after(failures: int) -> float:
    """Return the seconds of a pause after this number of `failures` in a row."""
    return float(min(FIRST_PAUSE * 2 ** min(failures - 1, 16), LONGEST_PAUSE))
