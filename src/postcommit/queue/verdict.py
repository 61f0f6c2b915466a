"""What a report means for an entry. Pure functions."""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import replace

from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IOutcome
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from postcommit.queue.entry import Entry


# The beginning of the last reply of a dead letter that may have been delivered.
UNCERTAIN = "uncertain, it may have arrived"


def tally_of(report: IDeliveryReport) -> Tally:
    """Return how many recipients have which fate."""
    statuses = [outcome.status for outcome in report.outcomes]
    sent, rejected = map(statuses.count, (Status.SENT, Status.REJECTED))
    given_up = sum(outcome.given_up for outcome in report.outcomes)
    left = len(statuses) - sent - rejected - given_up
    return Tally(sent, left, rejected, given_up)


def is_answer(report: IDeliveryReport) -> bool:
    """Tell whether the relay had an answer to the message.

    Silence, a lost connection, and what was refused without asking it are none.
    """
    # A mailer written elsewhere may have sent it without a reply to show.
    return any(
        outcome.status is Status.SENT or getattr(outcome.reply, "code", 0) != 0
        for outcome in report.outcomes
    )


def rejected_part(entry: Entry, report: IDeliveryReport) -> Entry:
    """Return the dead letter for the recipients that were rejected."""
    return _part(entry, report, lambda o: o.status is Status.REJECTED)


def uncertain_part(entry: Entry, report: IDeliveryReport) -> Entry:
    """Return the dead letter for the recipients that may have the message."""
    part = _part(entry, report, lambda o: o.given_up)
    return replace(part, last_reply=f"{UNCERTAIN}: {part.last_reply}")


def part_left(entry: Entry, report: IDeliveryReport) -> Entry:
    """Return the entry with the recipients that are tried again."""
    final = (Status.SENT, Status.REJECTED)
    return _part(entry, report, lambda o: o.status not in final and not o.given_up)


def uncertain_attempts(entry: Entry, report: IDeliveryReport) -> int:
    """Return the number of uncertain attempts of the entry, with this one."""
    return _with_this(entry, report.outcomes)


def _with_this(entry: Entry, outcomes: Iterable[IOutcome]) -> int:
    return entry.uncertain + any(o.status is Status.UNCERTAIN for o in outcomes)


def _part(
    entry: Entry, report: IDeliveryReport, belongs: Callable[[IOutcome], bool]
) -> Entry:
    outcomes = [o for o in report.outcomes if belongs(o)]
    recipients = tuple(o.recipient for o in outcomes)
    # The reply that the outcomes share, or each with its recipient.
    replies = dict.fromkeys(str(o.reply) for o in outcomes)
    if len(replies) == 1:
        reply = next(iter(replies))
    else:
        reply = "; ".join(f"{o.recipient}: {o.reply}" for o in outcomes)
    return replace(
        entry,
        recipients=recipients,
        attempts=entry.attempts + 1,
        last_reply=reply,
        uncertain=_with_this(entry, outcomes),
    )
