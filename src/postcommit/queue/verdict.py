"""What a report means for an entry. Pure functions."""
from __future__ import annotations

from dataclasses import replace

from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import Status
from postcommit.interfaces import Tally
from postcommit.queue.entry import Entry


_FOR_NOW = (Status.DEFERRED, Status.UNCERTAIN)


def tally_of(report: IDeliveryReport) -> Tally:
    """Return how many recipients were sent, failed for now, and were rejected."""
    statuses = [outcome.status for outcome in report.outcomes]
    sent, rejected = map(statuses.count, (Status.SENT, Status.REJECTED))
    return Tally(sent, len(statuses) - sent - rejected, rejected)


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
    """Return the entry with those who were rejected, as a dead letter has it."""
    return _part(entry, report, (Status.REJECTED,))


def part_left(entry: Entry, report: IDeliveryReport) -> Entry:
    """Return the entry with those who failed for now."""
    return _part(entry, report, _FOR_NOW)


def _part(
    entry: Entry, report: IDeliveryReport, statuses: tuple[Status, ...]
) -> Entry:
    outcomes = [o for o in report.outcomes if o.status in statuses]
    recipients = tuple(o.recipient for o in outcomes)
    # The reply that the outcomes share, or each with its recipient.
    replies = dict.fromkeys(str(o.reply) for o in outcomes)
    if len(replies) == 1:
        reply = next(iter(replies))
    else:
        reply = "; ".join(f"{o.recipient}: {o.reply}" for o in outcomes)
    return replace(
        entry, recipients=recipients, attempts=entry.attempts + 1, last_reply=reply
    )
