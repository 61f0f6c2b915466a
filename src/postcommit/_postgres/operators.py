"""The operators' half of a queue in PostgreSQL; see `IOperators`.

==========  ================================================================
state       rows
==========  ================================================================
waiting     ``queued``, and not ``deferred``
deferred    ``queued`` and ``deferred``
failed      ``failed``
in doubt    ``prepared``, if the row of their batch is not locked, and older
            than ten seconds: it is locked a moment after it is there
==========  ================================================================

A change locks the row, and passes over one that a processor holds or has locked.
"""
from __future__ import annotations

import io
import re
import time
import uuid
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

from psycopg import errors
from zope.interface import implementer

from postcommit._config.database import parse_database_url
from postcommit._mail.entry import Entry
from postcommit._mail.message import bare_id
from postcommit._mail.row import indexed
from postcommit._mail.row import plain
from postcommit._maildir.entry import UNREADABLE
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.item import DIGITS
from postcommit._maildir.item import Details
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Finding
from postcommit._maildir.item import IChanges
from postcommit._maildir.item import IOperators
from postcommit._maildir.item import Item
from postcommit._maildir.item import Step
from postcommit._maildir.item import Survey
from postcommit._maildir.item import no_step
from postcommit._maildir.looking import SAMPLE
from postcommit._maildir.looking import UNKNOWN
from postcommit._maildir.looking import ambiguous
from postcommit._maildir.looking import check_can_be_sent
from postcommit._maildir.looking import check_id
from postcommit._maildir.looking import check_waits
from postcommit._maildir.looking import most_common
from postcommit._maildir.presence import Pause
from postcommit._maildir.presence import Stopped
from postcommit._postgres import checking
from postcommit._postgres import schema
from postcommit._postgres.claim import place_of
from postcommit._postgres.connections import Connections
from postcommit._postgres.consumer import ring
from postcommit._postgres.lease import LEASE_SECONDS
from postcommit._postgres.queue import ACCEPT
from postcommit._postgres.queue import DROP
from postcommit.errors import EntryError
from postcommit.errors import ItemError
from postcommit.errors import QueueError


# Number of seconds after which a batch without a lock is in doubt, and after which one
# is for a role that may not lock.
_LOCKED_SOON = 10.0
_TAKEN_FOR_DEAD = 60.0

# Bytes of a message that are read for its header, first and at most.
_HEAD = 1 << 16
_LONGEST_HEADER = 1 << 20

_END_OF_HEADER = re.compile(rb"\n\r?\n")

_LOCKABLE = """
select id from {schema}.batch
where voted < clock_timestamp() - %(seconds)s::float8 * interval '1 s'"""
_DOUBTS = _LOCKABLE + " for key share skip locked"

_UNTRIED = "state = 'queued' and not deferred"
_IS_LATER = "coalesce(not_before > clock_timestamp(), false)"

_STATES = {
    EntryState.WAITING: f"{_UNTRIED} and not bulk and not {_IS_LATER}",
    EntryState.SCHEDULED: f"{_UNTRIED} and {_IS_LATER}",
    EntryState.DEFERRED: "state = 'queued' and deferred",
    EntryState.BULK: f"{_UNTRIED} and bulk and not {_IS_LATER}",
    EntryState.HELD: "state = 'held'",
    EntryState.FAILED: "state = 'failed'",
    EntryState.IN_DOUBT: "state = 'prepared' and batch = any(%(batches)s::uuid[])",
}

_ITEM = "id, extract(epoch from accepted)::numeric(20, 6)"

#: The state of a row, by the value of an `EntryState`.
STATE = f"""case when state = 'prepared' then 'in doubt'
    when state in ('failed', 'held') then state
    when deferred then 'deferred' when {_IS_LATER} then 'scheduled'
    when bulk then 'bulk' else 'waiting' end"""

_FIND = """
select {item}, {case} from {schema}.entry
where (state in ('queued', 'failed', 'held')
    or (state = 'prepared' and batch = any(%(batches)s::uuid[])))
    and (id between %(low)s and %(high)s or message_id = %(message_id)s)
order by accepted, id""".replace("{item}", _ITEM).replace("{case}", STATE)

_DETAILS = """
select octet_length(message), extract(epoch from due)::float8, sender, recipients,
    attempts, uncertain, last_reply, problem, extract(epoch from expires)::float8,
    substring(message for %(most)s)
from {schema}.entry where id = %(id)s"""

_OPEN = """
select sender, recipients, message, attempts, last_reply, uncertain, doubts,
    extract(epoch from not_before)::float8, extract(epoch from expires)::float8, problem
from {schema}.entry where id = %(id)s"""

_COUNTS = """
select {case}, count(*),
    count(*) filter (where rank in (0, 3) or due <= clock_timestamp()),
    extract(epoch from clock_timestamp() - min(due))::float8
from {schema}.entry where state in ('queued', 'failed', 'held') group by 1
""".replace("{case}", STATE)

_REPLIES = """
select case when problem = '' then last_reply else problem end from {schema}.entry
where state = %(state)s and deferred = %(deferred)s limit %(most)s"""

_PROCESSORS = """
select extract(epoch from clock_timestamp() - alive)::float8, pid,
    extract(epoch from clock_timestamp() - paused_since)::float8,
    extract(epoch from paused_until - clock_timestamp())::float8, paused_reason
from {schema}.process
where beat > clock_timestamp() - %(seconds)s::float8 * interval '1 s'
order by paused_since desc nulls last"""

# Entries that an operator may change: they are not held or changed just now.
_FREE = """id in (
    select id from {schema}.entry
    where id = %(id)s and holder is null and state in ('queued', 'failed', 'held')
    for update skip locked)"""

# What is due now waits for nothing else. It is as old as before, but a scheduled entry
# is not older than the time for which it waited.
_NOW = """due = clock_timestamp(), not_before = null, bulk = false,
    accepted = least(greatest(accepted, not_before), clock_timestamp())"""

_RETRY = """
update {schema}.entry set {now}
where state = 'queued' and {free}""".replace("{now}", _NOW).replace("{free}", _FREE)

_HOLD = """
update {schema}.entry set state = 'held' where state in ('queued', 'held') and {free}
""".replace("{free}", _FREE)

_RELEASE = """
update {schema}.entry set state = 'queued' where state = 'held' and {free}
""".replace("{free}", _FREE)

_STOP = """
insert into {schema}.stopped (who, reason) values (%(who)s, %(reason)s)
on conflict do nothing"""

_STOPPED = """
select extract(epoch from clock_timestamp() - since)::float8, who, reason
from {schema}.stopped"""

_NEXT = """
select extract(epoch from min(not_before) - clock_timestamp())::float8
from {schema}.entry where {scheduled}
""".replace("{scheduled}", _STATES[EntryState.SCHEDULED])

_REVIVE = """
update {schema}.entry set state = 'queued', deferred = false, {now}
where state = 'failed' and {free}""".replace("{now}", _NOW).replace("{free}", _FREE)

_CANCEL = """
delete from {schema}.entry where state in ('queued', 'held') and {free}
""".replace("{free}", _FREE)

_DELETE = "delete from {schema}.entry where {free}".replace("{free}", _FREE)

# States in which an entry is tried when it is due.
_TRIED = (EntryState.WAITING, EntryState.SCHEDULED, EntryState.DEFERRED)

#: The states by what `STATE` is.
STATES = {state.value: state for state in EntryState}


class RowItem(Item):
    """An entry in a row. Its name is what its file would have."""

    __slots__ = ()

    @property
    def key(self) -> uuid.UUID:
        """The primary key of the row."""
        return uuid.UUID(self.name.rpartition(".")[2])

    @property
    def id(self) -> str:
        """The id for operators: the beginning of the key."""
        return self.key.hex[:DIGITS]


@implementer(IOperators)
class PostgresOperators:
    """The queue at `url`, whose tables must be there. Raises `QueueError`."""

    def __init__(self, url: str) -> None:
        parsed = parse_database_url(url)
        self.name = parsed.name
        self._url = parsed
        self._connections = Connections(parsed)
        schema.check(self._connections, parsed, schema.READER)

    def _rows(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        return self._connections.rows(statement, values, doing="look into the queue")

    def _item(self, state: EntryState, id: uuid.UUID, accepted: Any) -> RowItem:
        seconds, _, fraction = f"{accepted:017.6f}".partition(".")
        name = f"{seconds}.M{fraction}.{id.hex}"
        return RowItem(name, state, place_of(self.name, id))

    def _batches(self) -> list[uuid.UUID]:
        """Return the batches in doubt."""
        try:
            found = self._rows(_DOUBTS, seconds=_LOCKED_SOON)
        except QueueError as error:
            cannot_lock = errors.InsufficientPrivilege | errors.ReadOnlySqlTransaction
            if not isinstance(error.__cause__, cannot_lock):
                raise
            found = self._rows(_LOCKABLE, seconds=_TAKEN_FOR_DEAD)
        return [id for (id,) in found]

    # Entries

    def items(
        self,
        states: Collection[EntryState],
        *,
        message_id: str = "",
        step: Step = no_step,
    ) -> Iterator[Item]:
        """Iterate over the entries in these `states`. See `IOperators`."""
        for state in EntryState:
            if state not in states or state not in _STATES:
                continue
            batches = self._batches() if state is EntryState.IN_DOUBT else []
            statement = f"select {_ITEM} from {{schema}}.entry where {_STATES[state]}"  # noqa: S608
            if message_id:
                statement += " and message_id = %(message_id)s"
            values = {"batches": batches, "message_id": indexed(message_id)}
            found = self._rows(f"{statement} order by due, id", **values)
            for id, accepted in found:
                step()
                yield self._item(state, id, accepted)

    def find(self, ids: Sequence[str]) -> list[Item]:
        """Return the entries that `ids` mean. See `IOperators`."""
        for given in ids:
            check_id(given)
        batches = self._batches()
        found: dict[Item, None] = {}
        for given in dict.fromkeys(ids):
            found.update(dict.fromkeys(self._found(given, batches)))
        return list(found)

    def _found(self, given: str, batches: list[uuid.UUID]) -> list[RowItem]:
        low, high = _range(given.removeprefix(f"{self.name}#"))
        rows = self._rows(
            _FIND,
            low=low,
            high=high,
            message_id=indexed(bare_id(given)),
            batches=batches,
        )
        items = [self._item(STATES[state], *row) for *row, state in rows]
        named = [item for item in items if low <= item.key <= high]
        if len(named) > 1:
            raise ambiguous(given, named)
        if not items:
            raise ItemError(given, UNKNOWN)
        return named or items

    def details(self, item: Item, addresses: Collection[str] = ()) -> Details | None:
        """Read the entry, or None if it is gone. See `IOperators`."""
        id = key_of(item)
        for most in (_HEAD, _LONGEST_HEADER):
            found = self._rows(_DETAILS, id=id, most=most)
            if not found:
                return None
            [(size, due, sender, recipients, attempts, uncertain, *last)] = found
            last_reply, problem, expires, head = last
            if size <= most or _END_OF_HEADER.search(head):
                break
        is_tried = item.state in _TRIED
        return Details(
            item,
            size,
            due,
            due if is_tried else None,
            sender,
            tuple(recipients),
            attempts,
            uncertain,
            last_reply,
            problem,
            head,
            expires,
        )

    def open(self, item: Item) -> io.BytesIO:
        """Return the entry as its file in a Maildir would be. See `IOperators`."""
        found = self._rows(_OPEN, id=key_of(item))
        if not found:
            raise FileNotFoundError(item.place)
        sender, recipients, message, *tried, problem = found[0]
        attempts, last_reply, uncertain, doubts, not_before, expires = tried
        if problem:
            return io.BytesIO(b"%b%b\n%b" % (UNREADABLE, problem.encode(), message))
        entry = Entry(
            sender,
            tuple(recipients),
            message,
            attempts,
            last_reply,
            uncertain,
            tuple(doubts),
            not_before,
            expires,
        )
        return io.BytesIO(preamble_of(entry) + message)

    # The whole queue

    def survey(self, most_seconds: float = 2.0) -> Survey:
        """Count the entries. See `IOperators`. All of them are looked at."""
        counts = dict.fromkeys(EntryState, 0)
        due, ages = 0, {}
        for name, count, due_now, age in self._rows(_COUNTS):
            state = STATES[name]
            counts[state] = count
            if due_now:
                ages[state] = age
                due += due_now if state in _TRIED else 0
        counts[EntryState.IN_DOUBT] = sum(1 for _ in self.items([EntryState.IN_DOUBT]))
        now = time.time()  # ages were taken, so the clocks may differ
        since = {state: now - age for state, age in ages.items()}
        reasons = {
            EntryState.DEFERRED: self._replies("queued", deferred=True),
            EntryState.FAILED: self._replies("failed", deferred=False),
        }
        found = self._rows(_PROCESSORS, seconds=LEASE_SECONDS)
        return Survey(
            counts,
            {state: reason for state, reason in reasons.items() if reason},
            due,
            min((since[state] for state in _TRIED if state in since), default=None),
            counts[EntryState.DEFERRED],
            0,
            max((now - silent for silent, *_ in found), default=None),
            next(
                (
                    Pause(now - since, now + until, reason, pid)
                    for _, pid, since, until, reason in found
                    if since is not None
                ),
                None,
            ),
            next_scheduled=self._next_scheduled(now),
            stopped=self.stopped(now),
            oldest_bulk=since.get(EntryState.BULK),
        )

    def _next_scheduled(self, now: float) -> float | None:
        [(seconds,)] = self._rows(_NEXT)
        return None if seconds is None else now + seconds

    def stopped(self, now: float) -> Stopped | None:
        """Return who has paused the queue by hand, or None."""
        for since, who, reason in self._rows(_STOPPED):
            return Stopped(now - since, who, reason)
        return None

    def _replies(self, state: str, *, deferred: bool) -> Any:
        rows = self._rows(_REPLIES, state=state, deferred=deferred, most=SAMPLE)
        return most_common([reply for (reply,) in rows])

    def check(self) -> Iterator[Finding]:
        """Yield what is wrong with the queue. See `IOperators`."""
        yield from checking.check(self._connections, self._url)
        for item in self.items([EntryState.IN_DOUBT]):
            problem = "is in doubt: its process died between vote and finish"
            advice = f"'postcommit recover --send {self.name} {item.id}', or --drop"
            yield Finding(item.place, problem, advice)

    # Changes

    @contextmanager
    def changes(self) -> Iterator[PostgresChanges]:
        """Begin to change entries. See `IOperators`."""
        schema.check(self._connections, self._url, schema.PROCESSOR)
        try:
            yield PostgresChanges(self, self._connections)
        finally:
            ring(self.name)


def key_of(item: Item) -> uuid.UUID:
    """Return the primary key of the row of an item."""
    return RowItem(*item).key


def _range(given: str) -> tuple[uuid.UUID, uuid.UUID]:
    """Return the first and the last key that begin with `given`.

    It may be a name, of which the key is the last part. Without a key, the range is
    empty.
    """
    digits = given.rpartition(".")[2].replace("-", "").lower()
    if not re.fullmatch(r"[0-9a-f]{4,32}", digits):
        return uuid.UUID(int=1), uuid.UUID(int=0)
    return uuid.UUID(digits.ljust(32, "0")), uuid.UUID(digits.ljust(32, "f"))


@implementer(IChanges)
class PostgresChanges:
    """Changes in one queue. See `IChanges`."""

    def __init__(self, queue: PostgresOperators, connections: Connections) -> None:
        self._queue = queue
        self._connections = connections

    def _change(self, statement: str, item: Item) -> bool:
        values = {"id": key_of(item)}
        return self._connections.count(statement, values, doing="change the entry") > 0

    def retry(self, item: Item) -> bool:
        """Make the entry due now. See `IChanges`."""
        if item.state is EntryState.IN_DOUBT:
            raise QueueError(item.place, "is in doubt; use 'postcommit recover'")
        if item.state is EntryState.HELD:
            raise EntryError("it is held; use 'postcommit release'")
        if item.state is not EntryState.FAILED:
            return self._change(_RETRY, item)
        check_can_be_sent(self._queue.details(item))
        return self._change(_REVIVE, item)

    def hold(self, item: Item) -> bool:
        """Keep the entry from being tried. See `IChanges`."""
        if item.state is EntryState.IN_DOUBT:
            raise QueueError(item.place, "is in doubt; use 'postcommit recover'")
        if item.state is EntryState.FAILED:
            raise EntryError("it is a dead letter, which is never tried")
        return self._change(_HOLD, item)

    def release(self, item: Item) -> bool:
        """Let a held entry be tried again. See `IChanges`."""
        if item.state is not EntryState.HELD:
            raise EntryError(f"it is not held but {item.state.value}")
        return self._change(_RELEASE, item)

    def stop(self, who: str, reason: str = "") -> bool:
        """Pause the whole queue. See `IChanges`."""
        values = {"who": who, "reason": plain(reason)}
        doing = "pause the queue"
        return self._connections.count(_STOP, values, doing=doing) > 0

    def resume(self) -> bool:
        """End a pause by hand. See `IChanges`."""
        statement, doing = "delete from {schema}.stopped", "resume the queue"
        return self._connections.count(statement, doing=doing) > 0

    def cancel(self, item: Item) -> bool:
        """Remove an entry that waits. See `IChanges`."""
        check_waits(item)
        return self._remove(_CANCEL, item)

    def delete(self, item: Item) -> bool:
        """Remove the entry. See `IChanges`."""
        return self._remove(_DELETE, item)

    def _remove(self, statement: str, item: Item) -> bool:
        if item.state is EntryState.IN_DOUBT:
            reason = "is in doubt; use 'postcommit recover --drop'"
            raise QueueError(item.place, reason)
        return self._change(statement, item)

    def recover(self, items: Iterable[Item], *, send: bool) -> Iterator[Item]:
        """Accept these entries in doubt, or remove them. See `IChanges`."""
        wanted = list(items)
        for item in wanted:
            if item.state is not EntryState.IN_DOUBT:
                raise QueueError(item.place, "is not in doubt")
        keys = {key_of(item): item for item in wanted}
        statement = "select batch, array_agg(id) from {schema}.entry"
        statement += " where id = any(%(ids)s::uuid[]) and batch is not null group by 1"
        found = self._connections.rows(
            statement, {"ids": list(keys)}, doing="look into the queue"
        )
        for batch, ids in found:
            if self._recover(batch, ids, send=send):
                yield from (keys[id] for id in ids)

    def _recover(self, batch: uuid.UUID, ids: list[uuid.UUID], *, send: bool) -> bool:
        """Change the entries of a batch. Return False if another process has it."""
        sql = self._connections.sql
        values = {"batch": batch, "ids": ids}
        change = (ACCEPT if send else DROP) + " and id = any(%(ids)s::uuid[])"
        lock = "select from {schema}.batch where id = %(batch)s for update skip locked"
        end = "delete from {schema}.batch b where id = %(batch)s"
        end += " and not exists (select from {schema}.entry where batch = b.id)"
        with self._connections.transaction("recover the entries") as connection:
            if connection.execute(sql(lock), values).fetchone() is None:
                return False
            connection.execute(sql(change), values)
            connection.execute(sql(end), values)
        return True
