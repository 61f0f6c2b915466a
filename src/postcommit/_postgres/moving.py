"""Entries that leave a queue in PostgreSQL for another one, or come from there."""
from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zope.interface import implementer

from postcommit._config.database import parse_database_url
from postcommit._mail.row import plain
from postcommit._mail.row import row
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Item
from postcommit._maildir.moving import IMoving
from postcommit._maildir.moving import Moving
from postcommit._postgres import schema
from postcommit._postgres.claim import entry_of
from postcommit._postgres.connections import Connections
from postcommit._postgres.consumer import ring
from postcommit._postgres.operators import STATE
from postcommit._postgres.operators import STATES
from postcommit._postgres.operators import key_of
from postcommit.errors import EntryError


# The ids of entries that come from a folder are made of their names.
_NAMESPACE = uuid.UUID("6d0a37c4-9a0f-4f0e-8f0c-0c1c3d0a5b11")

# The name of an entry that was a row before.
_OF_ROW = re.compile(r"\d+\.M\d{6}\.([0-9a-f]{32})(,.*)?")

_LOCK = """
select {case}, extract(epoch from accepted)::float8, extract(epoch from due)::float8,
    deferred, bulk, extract(epoch from not_before)::float8,
    extract(epoch from expires)::float8, sender, recipients, message, attempts,
    last_reply, uncertain, doubts
from {schema}.entry
where id = %(id)s and holder is null and state in ('queued', 'held', 'failed')
    and problem = ''
for update skip locked""".replace("{case}", STATE)

_DELETE = "delete from {schema}.entry where id = %(id)s"

# An entry that is neither deferred nor dead is due at its time. Without a time it is
# due now, although the clock of the other machine may be ahead.
_INSERT = """
insert into {schema}.entry (id, state, accepted, due, deferred, not_before, expires,
    bulk, sender, recipients, message_id, message, attempts, last_reply, uncertain,
    doubts)
values (%(id)s, %(state)s, to_timestamp(%(accepted)s),
    case when %(has_due)s then to_timestamp(%(due)s)
        else coalesce(to_timestamp(%(not_before)s::float8), least(to_timestamp(%(due)s),
            clock_timestamp())) end,
    %(deferred)s, to_timestamp(%(not_before)s::float8),
    to_timestamp(%(expires)s::float8), %(bulk)s, %(sender)s, %(recipients)s::text[],
    %(message_id)s, %(message)b, %(attempts)s, %(last_reply)s, %(uncertain)s,
    %(doubts)s::int[])
on conflict do nothing"""

# The states that a column has the name of. The others are queued.
_KEPT = (EntryState.FAILED, EntryState.HELD)


@implementer(IMoving)
class PostgresMoving:
    """The queue at `url`, whose tables must be there. Raises `QueueError`."""

    def __init__(self, url: str) -> None:
        parsed = parse_database_url(url)
        self._name = parsed.name
        self._connections = Connections(parsed)
        schema.check(self._connections, parsed, schema.PROCESSOR)

    @contextmanager
    def leaving(self, item: Item) -> Iterator[Moving | None]:
        """Lock the entry for the body, which keeps it elsewhere. Then remove it.

        None if it is gone, being sent, or not an entry: then it stays.
        """
        values = {"id": key_of(item)}
        sql = self._connections.sql
        with self._connections.transaction("move the entry") as connection:
            found = connection.execute(sql(_LOCK), values, binary=True).fetchone()
            moving = None if found is None else _moving(item.name, *found)
            yield moving
            if moving is not None:
                connection.execute(sql(_DELETE), values)

    def arrive(self, moving: Moving) -> None:
        """Keep an entry, durably, unless it is here. Raises `QueueError`."""
        entry, state = moving.entry, moving.state
        of_row = _OF_ROW.fullmatch(moving.name)
        values = {
            **row(self._name, entry.sender, entry.recipients, entry.message),
            "id": uuid.UUID(of_row[1])
            if of_row
            else uuid.uuid5(_NAMESPACE, moving.name),
            "state": state.value if state in _KEPT else "queued",
            "deferred": moving.is_deferred,
            "has_due": moving.is_deferred or state is EntryState.FAILED,
            "accepted": moving.accepted,
            "due": moving.due,
            "not_before": entry.not_before,
            "expires": entry.expires,
            "bulk": moving.is_bulk,
            "attempts": entry.attempts,
            "last_reply": plain(entry.last_reply),
            "uncertain": entry.uncertain,
            "doubts": list(entry.doubts),
        }
        self._connections.count(_INSERT, values, doing="keep an entry")
        ring(self._name)


def _moving(
    name: str,
    state: str,
    accepted: float,
    due: float,
    deferred: bool,
    bulk: bool,
    not_before: float | None,
    expires: float | None,
    *of_entry: Any,
) -> Moving | None:
    """Return what a row is when it moves, or None for what is not an entry.

    A processor makes the latter a dead letter.
    """
    try:
        entry = entry_of(*of_entry, not_before=not_before, expires=expires)
    except EntryError:
        return None
    return Moving(
        name,
        STATES[state],
        accepted,
        due,
        entry,
        is_deferred=deferred,
        is_bulk=bulk,
    )
