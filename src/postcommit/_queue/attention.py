"""The things in a queue that need a person's attention, and what to do."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from postcommit._log import printable
from postcommit._maildir.item import EntryState
from postcommit._queue.values import duration
from postcommit.interfaces import QueueStatus


# Seconds without a sign of life, given every ten seconds, after which a processor
# counts as hanging.
HANGS_AFTER = 120.0

_START = "'postcommit run' or 'postcommit flush'"


@dataclass(frozen=True)
class Limits:
    """The limits from which on something needs attention.

    An entry may be due for `age` seconds, and a bulk entry may wait for as long if no
    processor runs. The queue may pause for `paused` seconds while something is due.
    There may be `failed` dead letters, None is without limit.
    `needs_processor` is false if a timer runs ``postcommit flush``.
    """

    age: float = 900.0
    paused: float = 300.0
    failed: int | None = None
    needs_processor: bool = True


def attention(seen: QueueStatus, now: float, limits: Limits) -> Iterator[str]:
    """Yield a sentence, with advice, for each thing that needs attention."""
    if in_doubt := seen.counts[EntryState.IN_DOUBT]:
        yield f"{in_doubt} in doubt; 'postcommit recover' sends or drops them"
    if seen.foreign_claims:
        yield "another library's processor drains this queue; stop one of the two"
    if seen.heartbeat is not None and now - seen.heartbeat > HANGS_AFTER:
        silent = duration(now - seen.heartbeat)
        yield f"the processor hangs, no sign of life for {silent}; restart it"
    paused = seen.pause
    if paused and seen.due and now - paused.since > limits.paused:
        text = f"{duration(now - paused.since)}: {printable(paused.reason)}"
        hint = "'postcommit test-relay' or 'postcommit check' shows more"
        yield f"the queue has paused for {text}; {hint}"
    by_hand = seen.stopped
    if by_hand and seen.due and now - by_hand.since > limits.paused:
        ago = duration(now - by_hand.since)
        yield f"{printable(str(by_hand))}, {ago} ago; 'postcommit resume' ends that"
    for one in seen.receptions:
        if one.problem:
            yield f"nothing is received from {one.broker}: {printable(one.problem)}"
    if seen.mailbox:
        yield seen.mailbox  # its mail must not be sent, however old it is
    else:
        yield from _late(seen, now, limits)
    for problem in seen.shortages:
        yield f"the queue {problem}; make room before the next commit fails"
    failed = seen.counts[EntryState.FAILED]
    if limits.failed is not None and failed > limits.failed:
        dead = EntryState.FAILED.title_of(failed)
        yield f"{failed} {dead}; 'postcommit list --failed'"


def _late(seen: QueueStatus, now: float, limits: Limits) -> Iterator[str]:
    """Yield why mail is not sent that is due, or bulk mail without a processor.

    While a processor runs, bulk mail may wait for all other mail, for any time.
    """
    # A processor locks the note of its pause, so the note shows that it runs.
    is_running = seen.heartbeat is not None or seen.pause is not None
    if seen.pause or seen.stopped:
        hint = "the queue pauses"
    elif is_running:
        hint = "the processor's log says why; 'postcommit test-relay'"
    else:
        hint = f"processor not running; {_START}"
    due, bulk = seen.oldest_due, seen.oldest_bulk
    if due is not None and now - due > limits.age:
        yield f"an entry is due for {duration(now - due)}: {hint}"
    elif seen.due and not is_running and limits.needs_processor:
        yield f"{seen.due} due, processor not running; {_START}"
    elif not (seen.due or is_running) and bulk is not None and now - bulk > limits.age:
        yield f"a bulk entry waits for {duration(now - bulk)}: {hint}"
