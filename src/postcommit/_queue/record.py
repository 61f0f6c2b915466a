"""Entries and queues as objects for JSON. None stands for an unknown value."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from postcommit._maildir.item import Details
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Reason
from postcommit._maildir.item import Survey
from postcommit._maildir.presence import Pause
from postcommit._maildir.presence import Stopped
from postcommit._maildir.reception import Reception
from postcommit._queue.values import timestamp
from postcommit.interfaces import is_database_url


def record_of_entry(read: Details) -> dict[str, Any]:
    """Return the object for JSON of an entry."""
    return {
        "id": read.id,
        "state": read.state.key,
        "name": read.name,
        key_of(read.place): read.place,
        "message_id": read.message_id or None,
        "accepted": timestamp(read.accepted),
        "due": timestamp(read.due),
        "expires": timestamp(read.expires),
        "attempts": read.attempts,
        "sender": None if read.problem else read.sender,
        "recipients": list(read.recipients),
        "size": read.size,
        "last_reply": read.last_reply or None,
        "problem": read.problem or None,
    }


def record_of_queue(
    queue: str, seen: Survey, now: float, complaints: Sequence[str]
) -> dict[str, Any]:
    """Return the object for JSON of a queue, with what needs attention."""
    return {
        "queue": queue,
        **{state.key: count for state, count in seen.counts.items()},
        "due": seen.due,
        "due_looked_at": seen.looked_at,
        "oldest_due": timestamp(seen.oldest_due),
        "oldest_due_seconds": _seconds(seen.oldest_due, now),
        "next_scheduled": timestamp(seen.next_scheduled),
        "next_scheduled_seconds": _until(seen.next_scheduled, now),
        "deferred_reason": _reason(seen.reasons.get(EntryState.DEFERRED)),
        "failed_reason": _reason(seen.reasons.get(EntryState.FAILED)),
        "foreign_claims": seen.foreign_claims,
        "processor_alive": seen.heartbeat is not None,
        "heartbeat_seconds": _seconds(seen.heartbeat, now),
        "paused": _pause(seen.pause, now),
        "paused_by_hand": _stopped(seen.stopped, now),
        "receivers": [_reception(one, now) for one in seen.receptions],
        "attention": list(complaints),
    }


def key_of(place: str) -> str:
    """Return what JSON calls a place: a path of the disk, or a URL."""
    return "url" if is_database_url(place) else "path"


def _seconds(then: float | None, now: float) -> float | None:
    return None if then is None else round(max(0.0, now - then), 3)


def _until(then: float | None, now: float) -> float | None:
    return None if then is None else round(then - now, 3)


def _reason(reason: Reason | None) -> dict[str, Any] | None:
    if reason is None:
        return None
    return {
        "reply": reason.reply,
        "count": reason.count,
        "looked_at": reason.looked_at,
    }


def _reception(one: Reception, now: float) -> dict[str, Any]:
    return {
        "broker": one.broker,
        "queue": one.queue,
        "process": one.process,
        "connected": one.connected,
        "problem": one.problem or None,
        "received": one.received,
        "began": timestamp(one.began),
        "last_acknowledged": timestamp(one.last_acknowledged),
        "last_acknowledged_seconds": _seconds(one.last_acknowledged, now),
    }


def _pause(notice: Pause | None, now: float) -> dict[str, Any] | None:
    if notice is None:
        return None
    return {
        "since": timestamp(notice.since),
        "seconds": _seconds(notice.since, now),
        "next_attempt": timestamp(notice.next_attempt),
        "reason": notice.reason,
        "process": notice.process,
    }


def _stopped(by_hand: Stopped | None, now: float) -> dict[str, Any] | None:
    if by_hand is None:
        return None
    return {
        "since": timestamp(by_hand.since),
        "seconds": _seconds(by_hand.since, now),
        "who": by_hand.who or None,
        "reason": by_hand.reason or None,
    }
