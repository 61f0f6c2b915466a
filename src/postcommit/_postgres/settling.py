"""What a settlement is in SQL: one statement, so that nothing can come between.

====================================  ==============================================
settlement                            statement
====================================  ==============================================
all are sent                          DELETE
some are left                         UPDATE
dead letters for all of the entry     UPDATE: the row becomes the first dead letter
dead letters for some of it           INSERT of each from the row, and one of these
====================================  ==============================================

Each has ``holder = me``, so it does nothing for a claim that was lost, and nothing when
it is repeated. The value of ``settlement`` shows later that it has taken effect.
"""
from __future__ import annotations

import uuid
from typing import Any

from postcommit._drain.contract import Settlement
from postcommit._mail.entry import Entry
from postcommit._mail.row import plain


_MINE = """mine as materialized (
    select * from {schema}.entry where id = %(id)s and holder = %(me)s for update)"""

_LETTER = """letter{n} as (
    insert into {schema}.entry (id, state, accepted, expires, bulk, sender, message_id,
        message, recipients, attempts, uncertain, doubts, last_reply)
    select %(id{n})s, 'failed', greatest(accepted, not_before), expires, bulk, sender,
        message_id, message, %(recipients{n})s::text[], %(attempts{n})s,
        %(uncertain{n})s, %(doubts{n})s::int[], %(last_reply{n})s
    from mine)"""

_UPDATE = """update {schema}.entry e set holder = null, settlement = %(token)s,
    recipients = %(recipients)s::text[], attempts = %(attempts)s,
    uncertain = %(uncertain)s, doubts = %(doubts)s::int[], last_reply = %(last_reply)s,
    """
_DEFER = f"{_UPDATE} due = to_timestamp(%(due)s), deferred = true"
_BURY = f"{_UPDATE} state = 'failed', due = clock_timestamp(), deferred = false"

_ALONE = " where id = %(id)s and holder = %(me)s"

POSTPONE = """update {schema}.entry set holder = null, settlement = %(token)s,
    due = to_timestamp(%(due)s), deferred = true
    where id = %(id)s and holder = %(me)s"""

SET_ASIDE = """update {schema}.entry set holder = null, settlement = %(token)s,
    state = 'failed', due = clock_timestamp(), problem = %(problem)s
    where id = %(id)s and holder = %(me)s"""


def statement(settlement: Settlement) -> tuple[str, dict[str, Any]]:
    """Return the statement for `settlement`, and its values.

    Missing are the entry's ``id``, its holder ``me``, and the ``token`` to recognise
    the settlement by.
    """
    values: dict[str, Any] = {"due": settlement.due}
    letters = [one for one in (settlement.rejected, settlement.uncertain) if one]
    if settlement.left is not None:
        change = _DEFER
        values |= _columns(settlement.left)
    elif letters:
        change = _BURY
        values |= _columns(letters.pop(0))
    else:
        change = "delete from {schema}.entry"
    if not letters:
        return change + _ALONE, values
    parts = [_MINE]
    for number, letter in enumerate(letters):
        parts.append(_LETTER.replace("{n}", str(number)))
        values |= _columns(letter, str(number))
        values[f"id{number}"] = uuid.uuid4()
    return f"with {', '.join(parts)} {change} from mine where e.id = mine.id", values


def _columns(entry: Entry, suffix: str = "") -> dict[str, Any]:
    return {
        f"recipients{suffix}": list(entry.recipients),
        f"attempts{suffix}": entry.attempts,
        f"uncertain{suffix}": entry.uncertain,
        f"doubts{suffix}": list(entry.doubts),
        f"last_reply{suffix}": plain(entry.last_reply),
    }
