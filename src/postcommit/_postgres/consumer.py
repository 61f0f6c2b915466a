"""One drain of a queue in PostgreSQL: what is due is claimed here, and settled.

An UPDATE with ``for update skip locked`` claims several rows in one step. It locks a
row before it changes it, passes over rows that another drain has locked, and looks
again at rows that have changed in the meantime, which READ COMMITTED does. So no entry
is claimed twice.

If the reply to a claim is lost, rows are held by a drain that does not know of them. So
before the next claim, and at each beat of the lease, those are freed.

A commit of the same process wakes the feeder. A query each second notices others, or a
NOTIFY of the database, which is an option.
"""
from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Hashable
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING
from typing import Any
from typing import cast
from weakref import WeakSet

import psycopg
from zope.interface import implementer

from postcommit._drain.contract import IClaim
from postcommit._drain.contract import IConsumer
from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._drain.schedule import Schedule
from postcommit._log import Log
from postcommit._mail.row import plain
from postcommit._postgres import settling
from postcommit._postgres.claim import READ_AHEAD
from postcommit._postgres.claim import Claim
from postcommit._postgres.lease import Lease
from postcommit._postgres.listening import Listener
from postcommit._postgres.removal import Removal
from postcommit.errors import QueueError
from postcommit.errors import text_of


if TYPE_CHECKING:
    from postcommit._postgres.queue import PostgresQueue


log = Log("postcommit.postgres.consumer")

# Seconds between two looks for entries that other processes have accepted.
_POLL_SECONDS = 1.0

# Seconds until the next look if all due entries are locked, for example by a sender
# that calls them off. The end of its transaction rings only in its own process.
_LOCKED_SECONDS = 0.2

# Maximum length of the reason of a pause. A relay may give one of any length.
_LONGEST = 1000

# A scheduled entry is as old as the time when it was due, for its back-off and its end.
#
# Ranks: 0 is new, 1 scheduled, 2 deferred, 3 bulk, 4 bulk that is scheduled. An entry
# of rank 0 or 3 waits for no time, so it is due whatever the clock says. A deferred
# entry that is due further ahead than any can be is due now: the clock was put back.
_RANKS = """
with at as materialized (
    select coalesce(to_timestamp(%(now)s::float8), clock_timestamp()) as now),
ranks (rank, low, high, is_due) as (
    select 0::smallint, '-infinity'::timestamptz, 'infinity'::timestamptz, true
    union all select 1::smallint, '-infinity', now, false from at
    union all select 2::smallint, '-infinity', now, false from at
    union all select 2::smallint, now + %(far)s::float8 * interval '1 s', 'infinity',
        true from at
    union all select 3::smallint, '-infinity', 'infinity', true
    union all select 4::smallint, '-infinity', now, false from at)"""

_DUE = """{ranks},
due as materialized (
    select e.id from ranks r cross join lateral (
        select id from {schema}.entry
        where state = 'queued' and holder is null and rank = r.rank
            and due > r.low and due <= r.high and id <> all(%(avoid)s::uuid[])
        order by due limit %(most)s for update skip locked) e
    where not exists (select from {schema}.stopped)
    limit %(most)s)
""".replace("{ranks}", _RANKS)

# The same for new entries only. The server plans a statement each time that it executes
# it, and this one in a fraction of the time.
_NEW = """with due as materialized (
    select id from {schema}.entry
    where state = 'queued' and holder is null and rank = 0
        and id <> all(%(avoid)s::uuid[])
        and not exists (select from {schema}.stopped)
    order by due limit %(most)s for update skip locked)
"""

_CLAIM = """update {schema}.entry e set holder = %(me)s from due where e.id = due.id
returning e.rank, e.due, e.id,
    extract(epoch from greatest(e.accepted, e.not_before))::float8,
    extract(epoch from e.expires)::float8, e.sender, e.recipients, e.attempts,
    e.uncertain, e.doubts, e.last_reply,
    case when octet_length(e.message) <= %(ahead)s then e.message end"""

# The seconds until the first of each rank is due. The one whose bounds end now may be
# due later, so its upper bound does not matter.
_NEXT = """{ranks}
select min(case when r.is_due then 0
    else extract(epoch from e.due - at.now)::float8 end)
from at, ranks r cross join lateral (
    select due from {schema}.entry
    where state = 'queued' and holder is null and rank = r.rank and due > r.low
        and id <> all(%(avoid)s::uuid[])
    order by due limit 1) e
where not exists (select from {schema}.stopped)""".replace("{ranks}", _RANKS)

_FREE_UNKNOWN = """
update {schema}.entry set holder = null
where holder = %(me)s and id <> all(%(known)s::uuid[])"""

_RELEASE = """
update {schema}.entry set holder = null
where id = any(%(ids)s::uuid[]) and holder = any(%(held)s::uuid[])"""

# Why a settlement changed nothing: it had taken effect, or the row is gone, or the
# process row of the claim.
_LOOK = """
select e.id is not null, coalesce(e.settlement = %(token)s, false),
    exists (select from {schema}.process where id = %(me)s)
from (select) one left join {schema}.entry e on e.id = %(id)s"""

_RESERVE = """
update {schema}.pace
set ready = greatest(ready, clock_timestamp()) + %(apart)s::float8 * interval '1 s'
returning extract(epoch from ready - clock_timestamp())::float8 - %(apart)s::float8"""

_POST = """
update {schema}.process
set paused_reason = %(reason)s,
    paused_since = coalesce(paused_since, clock_timestamp()),
    paused_until = clock_timestamp() + %(seconds)s::float8 * interval '1 s'
where id = %(me)s"""

_CLEAR = """
update {schema}.process
set paused_since = null, paused_until = null, paused_reason = null where id = %(me)s"""

# The drains of this process, by the name of their queue.
_drains: defaultdict[str, WeakSet[Consumer]] = defaultdict(WeakSet)


def ring(name: str) -> None:
    """Wake the processors of a queue in this process. Never raises."""
    for consumer in list(_drains[name]):
        consumer.ring()


@implementer(IConsumer)
class Consumer:
    """Takes and settles the entries of a queue in PostgreSQL. See `IConsumer`."""

    # A claim is a commit, which may take longer than the relay.
    quick_seconds = 0.05

    def __init__(
        self,
        store: PostgresQueue,
        schedule: Schedule,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._name = store.name
        self._connections = store.connections
        self._far = 2 * schedule.max_backoff
        self._clock = clock
        self._process = os.getpid()
        # A signal handler may put while the feeder gets, which a condition forbids.
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_stopped = self._is_closed = False
        self._held: dict[Hashable, Claim] = {}
        self._avoided: list[Hashable] = []
        self._is_in_vain = False  # the last look has found nothing
        # Around a claim, and around what frees those of which the reply was lost.
        self._taking = threading.Lock()
        self._are_new = False  # all that the last look has found
        self._may_hold_unknown = False
        self._listener: Listener | None = store.listener(self.ring)
        self._lease = Lease(store.own_connections(), store.lease_seconds, self._on_beat)
        if self._listener is not None:
            try:
                self._listener.start()
            except BaseException:
                self._lease.close()
                self._connections.close()
                raise
        _drains[self._name].add(self)

    @property
    def last_sign(self) -> float:
        """When the feeder last gave a sign of life, in `time.monotonic`."""
        return self._lease.last_sign

    def now(self) -> float:
        """Return the server's time. See `IConsumer`."""
        return self._clock() if self._clock else time.time() + self._lease.offset

    def is_sure(self, claim: IClaim) -> bool:
        """Return whether no other processor can have the entry. See `IConsumer`."""
        held = cast(Claim, claim).held
        return held == self._lease.id and self._lease.is_sure

    # Take

    def let_in(self) -> bool:
        """Return False: `take` finds all entries itself. See `IConsumer`."""
        return False

    def _bounds(self) -> dict[str, Any]:
        return {"now": self._clock() if self._clock else None, "far": self._far}

    def take(self, most: int, avoid: Collection[Hashable] = ()) -> list[IClaim]:
        """Claim up to `most` due entries. See `IConsumer`."""
        if os.getpid() != self._process or self._is_stopped:
            return []
        if not self._lease.is_sure:
            reason = "the lease is not renewed: others may take what this one claims"
            raise QueueError(self._name, reason, scope="queue")
        values = {**self._bounds(), "most": most, "ahead": READ_AHEAD}
        values["avoid"] = list(avoid)
        with self._taking:
            me = values["me"] = self._lease.id
            try:
                self._free_unknown()
                found = self._find(values)
                claims = [Claim(self._connections, me, row[2:]) for row in found]
                self._held.update((claim.key, claim) for claim in claims)
            except BaseException:
                self._may_hold_unknown = True
                self._lease.renew_soon()  # it may have been lost
                raise
        self._avoided = [] if claims else list(avoid)
        self._is_in_vain = not claims
        return list(claims)

    def _find(self, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Claim rows, and return them in the order in which they are sent.

        If the last look has found as many as it may, and new ones only, it looks for
        new ones first.
        """
        statements = (_NEW, _DUE) if self._are_new else (_DUE,)
        found: list[tuple[Any, ...]] = []
        for statement in statements:
            if not found:
                found = self._connections.rows(
                    statement + _CLAIM, values, doing="claim entries"
                )
        found.sort(key=lambda row: row[:2])
        self._are_new = len(found) == values["most"] and found[-1][0] == 0
        return found

    def _free_unknown(self) -> None:
        """Free what is held by us and was not returned. `_taking` must be held."""
        if self._may_hold_unknown:
            values = {"me": self._lease.id, "known": list(self._held)}
            count = self._connections.count(
                _FREE_UNKNOWN, values, doing="free claims whose reply was lost"
            )
            self._may_hold_unknown = False
            if count:
                text = "%s: %d claims were freed, the replies to them were lost"
                log.warning(text, self._name, count)

    def _on_beat(self) -> None:
        """Free what is not known, if nobody takes just now."""
        if self._may_hold_unknown and self._taking.acquire(blocking=False):
            try:
                self._free_unknown()
            finally:
                self._taking.release()
            self.ring()

    # Settle

    def begin_removal(self, claim: IClaim) -> bool:
        """Begin to remove an entry that was sent. See `IConsumer`."""
        claim = cast(Claim, claim)
        if self._connections.begins:
            return False  # the statement needs a BEGIN, and another round trip
        try:
            claim.removal = Removal(self._connections, claim.key, claim.held)
        except (QueueError, psycopg.Error):
            return False  # `settle` raises it
        return True

    def _end_removal(self, claim: Claim) -> bool:
        """Return whether a removal that was begun has taken effect."""
        removal, claim.removal = claim.removal, None
        if removal is None:
            return False
        count = removal.end()
        if count is None:
            claim.tries += 1  # it may have taken effect
        return bool(count)

    def settle(self, claim: IClaim, settlement: Settlement) -> Settled:
        """Apply `settlement` and end the claim. See `IConsumer`."""
        if self._end_removal(cast(Claim, claim)):
            self._held.pop(claim.key, None)
            return Settled.DONE
        statement, values = settling.statement(settlement)
        return self._apply(claim, statement, values, "settle the entry")

    def _apply(
        self, claim: IClaim, statement: str, values: dict[str, Any], doing: str
    ) -> Settled:
        claim = cast(Claim, claim)
        claim.tries += 1
        values |= {"id": claim.key, "me": claim.held, "token": claim.token}
        settled = Settled.DONE
        if not self._connections.count(statement, values, doing=doing):
            found = self._connections.rows(_LOOK, values, doing=doing)
            [(is_there, has_taken_effect, has_process)] = found
            if has_taken_effect:
                settled = Settled.DONE  # the reply to an earlier try was lost
            elif is_there or not has_process:
                settled = Settled.TAKEN
            else:
                settled = Settled.DONE if claim.tries > 1 else Settled.REMOVED
        self._held.pop(claim.key, None)
        return settled

    def postpone(self, claim: IClaim, due: float) -> None:
        """Make the entry due at `due`, and end the claim. See `IConsumer`."""
        self._apply(claim, settling.POSTPONE, {"due": due}, "postpone the entry")

    def bury_unreadable(self, claim: IClaim, reason: str) -> None:
        """Make what is not an entry a dead letter. See `IConsumer`."""
        values = {"problem": plain(reason)}
        try:
            self._apply(claim, settling.SET_ASIDE, values, "keep a dead letter")
        except BaseException:
            self.release([claim])
            raise

    def release(self, claims: Iterable[IClaim]) -> None:
        """End `claims`. The entries stay as they are. See `IConsumer`."""
        if os.getpid() != self._process:
            return
        ours = [
            claim
            for claim in cast("Iterable[Claim]", claims)
            if self._held.get(claim.key) is claim
        ]
        if not ours:
            return
        values = {"ids": [c.key for c in ours], "held": [c.held for c in ours]}
        try:
            self._connections.count(_RELEASE, values, doing="release entries")
        except QueueError as error:
            # What we do not know is freed before the next claim.
            self._may_hold_unknown = True
            log.error("%s: not released: %s", ", ".join(c.name for c in ours), error)
        for claim in ours:
            self._held.pop(claim.key, None)

    # The feeder

    def seconds_to_wait(self) -> float:
        """Return for how many seconds nothing becomes due. See `IConsumer`.

        What the last look was to avoid does not count, because it would be avoided
        again. What it could not claim is locked, and is looked at again a little later.
        """
        seconds = self._seconds_until_due()
        return _LOCKED_SECONDS if self._is_in_vain and not seconds else seconds

    def _seconds_until_due(self) -> float:
        values = {**self._bounds(), "avoid": self._avoided}
        [(seconds,)] = self._connections.rows(_NEXT, values, doing="look for entries")
        return math.inf if seconds is None else max(0.0, float(seconds))

    def reserve(self, rate: float) -> float:
        """Take the next slot of all processors of the queue. See `IConsumer`."""
        found = self._connections.rows(
            _RESERVE, {"apart": 1 / rate}, doing="take a slot of the rate limit"
        )
        return max(0.0, float(found[0][0])) if found else 0.0

    def wait(self, timeout: float) -> None:
        """Sleep until the bell rings, or an entry is due. See `IConsumer`."""
        until = time.monotonic() + max(0.0, timeout)
        while True:
            left = max(0.0, until - time.monotonic())
            has_rung = self._has_rung(min(left, _POLL_SECONDS))
            self.give_sign()
            if has_rung or left <= _POLL_SECONDS or self._is_one_due():
                return

    def _has_rung(self, seconds: float) -> bool:
        try:
            self._bell.get(timeout=seconds)
        except queue.Empty:
            return False
        with suppress(queue.Empty):  # several rings wake once
            while True:
                self._bell.get_nowait()
        return True

    def _is_one_due(self) -> bool:
        try:
            return self._seconds_until_due() == 0.0
        except QueueError:
            return False  # the next look raises it

    def give_sign(self) -> None:
        """Show that the feeder does not hang. The lease writes it down."""
        self._lease.last_sign = time.monotonic()

    def ring(self) -> None:
        """Wake the feeder. See `IConsumer`."""
        self._bell.put(None)

    def stop(self) -> None:
        """Make `take` return nothing any more, and wake the feeder."""
        self._is_stopped = True
        self.ring()

    def post(self, reason: object, seconds: float) -> None:
        """Show others that the drain pauses. See `IConsumer`."""
        told = plain(text_of(reason))[:_LONGEST]
        self._note(_POST, {"reason": told, "seconds": seconds})

    def clear(self) -> None:
        """Show that the drain does not pause any more. See `IConsumer`."""
        self._note(_CLEAR, {})

    def _note(self, statement: str, values: dict[str, Any]) -> None:
        if self._is_closed or os.getpid() != self._process:
            return
        values["me"] = self._lease.id
        try:
            self._connections.count(statement, values, doing="show a pause")
        except QueueError:
            pass  # the lease says that the database is away

    def sweep(self) -> None:
        """Do nothing: a sender that died has left nothing but what is in doubt."""

    def close(self) -> None:
        """End the lease, which releases all claims. See `IConsumer`."""
        if self._is_closed or os.getpid() != self._process:
            return
        self._is_closed = self._is_stopped = True
        _drains[self._name].discard(self)
        if self._listener is not None:
            self._listener.close()
        self._lease.close()
        self._held.clear()
        self._connections.close()
        # The last ring may have woken only us, and we do nothing more.
        ring(self._name)
