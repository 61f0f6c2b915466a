"""One drain of a queue on disk: what is due is claimed here, and settled.

New entries come first, then deferred entries. Scheduled and bulk entries are let in
when there are no others (see `gate`).

Looking is cheap: two ``stat`` calls tell that nothing has changed. If something has,
the folder is read in parts, so a queue of any size starts at once and costs no memory.

Several processes may work on one queue. If each takes the oldest entry, all but one of
them find it locked or gone, each time: two processes on one queue needed 148 us of
processor time a mail instead of 121. To share the entries by a rank of the processes
would need files that tell who lives. Instead, a process that meets an entry which
another has claimed goes on in the middle of what is left of this part, and returns
to what it has skipped before it reads the next part. So they soon work far from each
other, any number of them, and none has to know of the others. If one dies or stands
still, the others take its entries with the part that they are in.
"""
from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING
from typing import cast
from weakref import WeakValueDictionary

from zope.interface import implementer

from postcommit._drain.contract import IClaim
from postcommit._drain.contract import IConsumer
from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._drain.schedule import Schedule
from postcommit._log import Log
from postcommit._mail.entry import Entry
from postcommit._maildir.entry import stem
from postcommit._maildir.files import FileLock
from postcommit._maildir.files import explained
from postcommit._maildir.files import unable
from postcommit._maildir.gate import Gate
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.maildir import Watch
from postcommit._maildir.presence import STOPPED
from postcommit._maildir.presence import PauseNote
from postcommit._maildir.presence import Wakeup
from postcommit._maildir.presence import ring
from postcommit._maildir.presence import stopped
from postcommit._maildir.rooms import BULK
from postcommit._maildir.rooms import LATER
from postcommit.errors import QueueError


if TYPE_CHECKING:
    from postcommit._maildir.store import Claim
    from postcommit._maildir.store import Store


log = Log("postcommit.maildir.consumer")

# Interval in seconds at which a look at deferred entries looks for new entries, too.
_NEW_EVERY = 0.2

# Seconds of rest for each deferred entry that was looked at. Only its file says when it
# is due, and to look at it takes about 2 us: at most a tenth of the time goes into it.
_REST_FOR_EACH = 2e-5

# Number of seconds between two lines in the log about claims of another library.
_LOG_SECONDS = 3600.0

# Seconds between two looks whether a person has paused the queue: while entries are
# taken, and otherwise. It also looks when somebody rings, as 'pause' does.
_STOPPED_EVERY = 0.2
_STOPPED_SELDOM = 5.0

# Seconds between two searches for a waiting room, while the queue has none. It also
# searches when somebody rings.
_SEARCH_EVERY = 5.0

# Maximum number of seconds for which `take` looks for more, once it has something.
_SECONDS_FOR_MORE = 0.01


@implementer(IConsumer)
class Consumer:
    """Takes and settles the entries of a Maildir. See `IConsumer`."""

    quick_seconds = 0.002

    def __init__(
        self, store: Store, schedule: Schedule, clock: Callable[[], float] = time.time
    ) -> None:
        self.now = clock
        self._store = store
        self._schedule = schedule
        self._scan = Scan(store.maildir, schedule, clock)
        self._gate: Gate | None = None  # as long as the queue has no waiting room
        self._next_search = -math.inf
        self._wakeup = Wakeup(store.path)
        self._note = PauseNote(store.path)
        # By name, of all claims, also of those that were forgotten after an exception.
        self._locks: WeakValueDictionary[str, FileLock] = WeakValueDictionary()
        self._lock = threading.Lock()  # around the slot, and what is news
        self._slot = time.monotonic()
        self._next_log = -math.inf
        self._is_paused = False  # by hand, as the last look has shown
        self._next_look = -math.inf
        self.give_sign = self._wakeup.give_sign
        self.ring = self._wakeup.ring
        self.post = self._note.post
        self.clear = self._note.clear

    @property
    def last_sign(self) -> float:
        """When the feeder last gave a sign of life, in `time.monotonic`."""
        return self._wakeup.last_sign

    def is_sure(self, claim: IClaim) -> bool:
        """Return True: the kernel keeps a lock for as long as its holder lives."""
        return True

    # Take

    def take(self, most: int, avoid: Collection[Hashable] = ()) -> list[IClaim]:
        """Claim up to `most` due entries. See `IConsumer`."""
        if self._is_paused_by_hand():
            return []
        taken: list[IClaim] = []
        until = math.inf
        wakes = self._scan.wakes
        try:
            while len(taken) < most:
                path = self._scan.next(avoid, until)
                if path is None:
                    # A look that began before the feeder woke may have missed the
                    # reason. What comes later rings, and the feeder wakes again.
                    if taken or self._scan.ended >= wakes or self._scan.is_stopped:
                        break
                    continue
                claim = self._claim(path)
                if claim is not None:
                    taken.append(claim)
                    until = min(until, time.monotonic() + _SECONDS_FOR_MORE)
        except BaseException as error:
            self.release(taken)
            self._scan.look_again()  # an entry that was found may not be claimed
            if isinstance(error, OSError) and not isinstance(error, QueueError):
                raise unable(self._store.path, "look for entries", error) from error
            raise
        if taken:
            soon = time.monotonic() + _STOPPED_EVERY
            self._next_look = min(self._next_look, soon)
        return taken

    def let_in(self) -> bool:
        """Let the next scheduled or bulk entries in. See `IConsumer`."""
        if self._is_paused_by_hand():
            return False
        if self._gate is None:
            now, path = time.monotonic(), self._store.path
            if now < self._next_search:
                return False
            self._next_search = now + _SEARCH_EVERY
            if not any(os.path.isdir(f"{path}/{room}/new") for room in (LATER, BULK)):
                return False
            self._gate = Gate(self._store, self.now)
        return self._gate.let_in()

    def _is_paused_by_hand(self) -> bool:
        """Return whether a person has paused the queue. Looks if that is worth it."""
        now = time.monotonic()
        if not self._is_paused and now < self._next_look:
            return False
        self._next_look = now + _STOPPED_SELDOM
        is_paused = os.path.lexists(f"{self._store.path}/{STOPPED}")
        with self._lock:
            is_news, self._is_paused = is_paused != self._is_paused, is_paused
        if is_news and is_paused:
            text = "%s: %s; 'postcommit resume' ends that"
            log.warning(text, self._store.path, stopped(self._store.path))
        elif is_news:
            log.warning("%s: goes on, it was resumed by hand", self._store.path)
        return is_paused

    def _claim(self, path: str) -> IClaim | None:
        """Claim the entry at `path`, or None if it is not due, gone, or claimed."""
        held = self._locks.get(stem(path))
        if held is not None and held.descriptor != -1:
            return None  # it is ours
        try:
            claim = self._store.claim(path, self._locks)
        except OSError as error:
            failure = (
                error
                if isinstance(error, QueueError)
                else unable(path, "open the entry", error)
            )
            if failure.scope == "queue":
                raise unable(self._store.path, "work on the entries", error) from error
            return Unopened(path, failure)
        if claim is None:
            self._scan.passed_over(path)
            return None
        # It may have been deferred again between being found and being claimed. A new
        # entry always was due, also if the clock was put back.
        if claim.is_deferred and self._schedule.seconds_until(
            claim.changed, self.now()
        ):
            claim.release()
            self._scan.note_due(claim.changed)  # the folder may not have changed
            return None
        claim.clock = self.now
        return claim

    # Settle

    def begin_removal(self, claim: IClaim) -> bool:
        """Return False: `settle` removes a file at once. See `IConsumer`."""
        return False

    def settle(self, claim: IClaim, settlement: Settlement) -> Settled:
        """Do to the entry what `settlement` says, and release it. See `IConsumer`."""
        claim = cast("Claim", claim)
        rejected, uncertain = settlement.rejected, settlement.uncertain
        left = settlement.left
        # A dead letter that is all that remains of the entry keeps its name.
        is_last = left is None and not (rejected and uncertain)
        if rejected:
            self._store.bury(claim, rejected, is_last=is_last)
        if uncertain:
            self._store.bury_uncertain(claim, uncertain, is_last=is_last)
        if left is None:
            self._store.finish(claim)
            claim.release(removed=True)
            return Settled.DONE
        if not self._store.still_has(claim):
            claim.release()
            return Settled.REMOVED
        self._store.defer(claim, left, settlement.due, claim.accepted)
        claim.release()
        self._note_due(settlement.due)
        if settlement.is_part:
            self._scan.released(claim.path)  # it comes last in this look
        return Settled.DONE

    def postpone(self, claim: IClaim, due: float) -> None:
        """Make the entry due at `due` without writing it, and release it."""
        claim = cast("Claim", claim)
        self._store.postpone(claim, due, claim.accepted)
        claim.release()
        self._note_due(due)

    def _note_due(self, due: float) -> None:
        self._scan.note_due(due)
        self._wakeup.ring()  # the feeder may have to wake earlier

    def bury_unreadable(self, claim: IClaim, reason: str) -> None:
        """Make what is not an entry a dead letter, and release it."""
        claim = cast("Claim", claim)
        try:
            self._store.bury_unreadable(claim, reason)
        finally:
            claim.release()

    def release(self, claims: Iterable[IClaim]) -> None:
        """Release `claims`. The entries stay as they are."""
        for claim in claims:
            cast("Claim", claim).release()
            self._scan.released(claim.name)

    # The feeder

    def seconds_to_wait(self) -> float:
        """Return for how many seconds, as far as is known, nothing becomes due."""
        if self._store.held:
            self._log_held()
        if self._is_paused:
            return math.inf  # 'resume' rings
        wait = self._scan.seconds_to_wait()
        return wait if self._gate is None else min(wait, self._gate.seconds_to_wait())

    def _log_held(self) -> None:
        """Log, once an hour, how many entries are left to another library."""
        if time.monotonic() < self._next_log:
            return
        held = self._store.held_until()
        if held:
            self._next_log = time.monotonic() + _LOG_SECONDS
            log.warning(
                "%s: a processor of another library has claimed entries (%d, by"
                " .sending- files); each is left to it for three hours, the last one"
                " until %s",
                self._store.path,
                len(held),
                time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(max(held))),
            )

    def wait(self, timeout: float) -> None:
        """Sleep until the bell rings, `timeout` seconds at most."""
        if self._wakeup.wait(timeout):
            self._next_look = -math.inf  # a person may have paused the queue
            self._next_search = -math.inf  # or a sender has made a waiting room
        self._scan.wakes += 1

    def reserve(self, rate: float) -> float:
        """Take the next slot of `rate` per second. Return the seconds until it."""
        with self._lock:
            now = time.monotonic()
            slot = max(self._slot, now)
            self._slot = slot + 1 / rate
            return slot - now

    def stop(self) -> None:
        """Make `take` return nothing any more, and wake the feeder."""
        self._scan.is_stopped = True
        self._wakeup.ring()

    def sweep(self) -> None:
        """Remove what was half written more than 36 hours ago."""
        self._note.clean()
        with explained(self._store.path, "clean up"):
            self._store.remove_leftovers()

    def close(self) -> None:
        """Release all claims, and leave no note."""
        if self._store.held:
            self._log_held()
        self._scan.is_stopped = True
        for lock in list(self._locks.values()):
            lock.release()
        if self._note.lock is not None:
            self._note.clear()
        if self._gate is not None:
            self._gate.close()
        self._wakeup.close()
        # The last ring may have woken only us, and we do nothing more.
        ring(self._store.path)


@implementer(IClaim)
class Unopened:
    """An entry that cannot be opened: `read` raises the reason."""

    entry: Entry
    expires = None

    def __init__(self, path: str, error: QueueError) -> None:
        self.key = stem(path)
        self.name = path
        self.accepted = 0.0
        self._error = error

    def read(self) -> Entry:
        """Raise the error."""
        raise self._error

    def beginning(self) -> bytes:
        """Raise the error."""
        raise self._error

    def release(self) -> None:
        """Do nothing, because nothing is locked."""


class Scan:
    """The due entries of a queue, in turn. Any thread may call it."""

    def __init__(
        self,
        maildir: Maildir,
        schedule: Schedule,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._maildir = maildir
        self._schedule = schedule
        self._clock = clock
        self._monotonic = monotonic
        self._of_new, self._of_cur = Watch(maildir.new), Watch(maildir.cur)
        # The first time at which an entry is due, as far as it was noted since the last
        # pass over the deferred entries began. The other is that noted before, until
        # the pass ends.
        self._next_due = self._last_due = math.inf
        self._lock = threading.Lock()  # around what is read and then set
        self._not_before = -math.inf
        self._is_put_off = False
        self.is_stopped = False
        # How often the feeder has woken: so far, when the last look began, and when the
        # last look began that is over.
        self.wakes = self._began = 0
        self.ended = -1
        # The passes left of the last look, in reverse order.
        self._looking = threading.Lock()
        self._passes: list[_Pass] = []
        self._looked_for_new = -math.inf
        self._released: deque[str] = deque()
        self._avoided: dict[str, str] = {}  # paths by name

    def next(
        self, avoid: Collection[Hashable] = (), until: float = math.inf
    ) -> str | None:
        """Return the path of the next due entry, or None at the end of a look.

        The call after that begins another look, at what has changed. Passes over the
        entries whose names are in `avoid`. They come last in a look that does not avoid
        them. Also returns None after the moment `until`, a time of `monotonic`, or if
        another thread has been looking for so long. Raises OSError.
        """
        patience = -1.0 if until == math.inf else max(0.0, until - self._monotonic())
        if not self._looking.acquire(timeout=patience):
            return None
        try:
            if not self._passes:
                # A new look. It begins with the new entries, see `_find`.
                self._began = self.wakes
                self._looked_for_new = -math.inf
                due = min(self._next_due, self._last_due)
                is_one_due = due < math.inf and not self._wait(due)
                is_worth = self._of_cur.has_changed() or is_one_due
                # Nobody rings again when the rest is over.
                self._is_put_off = is_worth and self._monotonic() < self._not_before
                if self._is_put_off:
                    self._of_cur.forget()
                elif is_worth:
                    with self._lock:
                        self._last_due = min(self._next_due, self._last_due)
                        self._next_due = math.inf
                    deferred = self._maildir.parts("cur")
                    self._passes.append(_Pass(deferred, is_deferred=True))
            while self._released:
                path = self._released.popleft()
                if stem(path) not in avoid:
                    return path
                self._avoided[stem(path)] = path
            return self._find(avoid, until)
        except BaseException:
            self._passes.clear()
            raise
        finally:
            self._looking.release()

    def _find(self, avoid: Collection[Hashable], until: float) -> str | None:
        while not self.is_stopped:
            now = self._monotonic()
            if now > until:
                return None
            # New entries come first, also those that come during a long pass over the
            # deferred entries.
            is_new = bool(self._passes) and not self._passes[-1].is_deferred
            if not is_new and now - self._looked_for_new > _NEW_EVERY:
                self._looked_for_new = now
                if self._of_new.has_changed():
                    self._passes.append(_Pass(self._maildir.parts("new")))
            if not self._passes:
                break
            this = self._passes[-1]
            path = this.next()
            if path is None:
                self._passes.pop()
                if this.is_deferred:
                    self._last_due = math.inf
                    self._not_before = self._monotonic() + this.count * _REST_FOR_EACH
            elif not this.is_deferred or self._is_due(path):
                if not (avoid and stem(path) in avoid):
                    if self._avoided:
                        self._avoided.pop(stem(path), None)
                    return path
                self._avoided[stem(path)] = path
        for name, path in list(self._avoided.items()):
            if name not in avoid and not self.is_stopped:
                del self._avoided[name]
                if self._is_due(path):
                    return path
        self.ended = self._began
        return None

    def _is_due(self, path: str) -> bool:
        if os.path.dirname(path) == self._maildir.new:
            return True
        try:
            due = os.stat(path).st_mtime
        except FileNotFoundError:
            return False  # another processor was faster
        if self._wait(due):
            self.note_due(due)
            return False
        return True

    def released(self, path: str) -> None:
        """Note that the entry at `path` was released as it was.

        A new one comes next, so that the oldest is tried first after a pause. One that
        was deferred comes last. An entry that a Maildir reader has renamed was passed
        by at its new place, so the next look has to find it there.
        """
        if not os.path.lexists(path):
            self.look_again()
        elif os.path.dirname(path) == f"{self._maildir.path}/new":
            self._released.append(path)
        else:
            self._avoided[stem(path)] = path

    def passed_over(self, path: str) -> None:
        """Note that the entry at `path` could not be claimed.

        It stays where it is although it is due, so the folder will not change when it
        can be tried. If another process works here, this one goes on elsewhere.
        """
        with self._looking:
            if self._passes:
                self._passes[-1].avoid_others(path)
        self.look_again()

    def look_again(self) -> None:
        """Begin the next look even if no folder has changed."""
        self._of_new.forget()
        self._of_cur.forget()

    def note_due(self, due: float) -> None:
        """Note that an entry was deferred until `due`."""
        with self._lock:
            self._next_due = min(self._next_due, due)

    def seconds_to_wait(self) -> float:
        """Return for how many seconds, as far as is known, nothing becomes due."""
        rest = max(0.0, self._not_before - self._monotonic())
        if self._is_put_off:
            return rest
        with self._lock:
            due = min(self._next_due, self._last_due)
        return math.inf if due == math.inf else max(self._wait(due), rest)

    def _wait(self, due: float) -> float:
        return self._schedule.seconds_until(due, self._clock())


@dataclass(eq=False, repr=False)
class _Pass:
    """One pass over a folder, part by part, each in the order of the names."""

    _parts: Iterator[list[str]]
    is_deferred: bool = False
    count: int = field(default=0, init=False)
    _paths: Sequence[str] = field(default=(), init=False)
    _at: int = field(default=0, init=False)
    _end: int = field(default=0, init=False)
    # The beginnings and ends of what was passed over, because another process is there.
    _skipped: deque[tuple[int, int]] = field(default_factory=deque, init=False)
    _is_crowded: bool = field(default=False, init=False)

    def next(self) -> str | None:
        """Return the next path, or None at the end."""
        while True:
            while self._at < self._end:
                path = self._paths[self._at]
                self._at += 1
                # Cheaper than to try to open what another process has removed.
                if not self._is_crowded or os.access(path, os.F_OK):
                    self.count += 1
                    return path
            if self._skipped:
                self._at, self._end = self._skipped.popleft()
                continue
            self._paths = next(self._parts, [])
            self._at, self._end, self._is_crowded = 0, len(self._paths), False
            if not self._paths:
                return None

    def avoid_others(self, path: str) -> None:
        """Go on elsewhere if another process has claimed `path`."""
        self._is_crowded = True
        middle = (self._at + self._end) // 2
        if middle > self._at and os.access(path, os.F_OK):
            self._skipped.append((self._at, middle))
            self._at = middle
