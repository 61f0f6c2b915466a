"""One attempt by any mailer, as a report.

Mailers come in three kinds: ours transmit in batches; others implement
`IMailer`; and there are those that have only ``send()``, and raise. Here they
all look alike, and nothing that they announce gets out before the caller has
settled the matter.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Iterator
from typing import NamedTuple

import zope.event

from postcommit import report
from postcommit.event import Announcement
from postcommit.event import hold
from postcommit.interfaces import IBatchMailer
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailer
from postcommit.report import accounting_for


class Transmission(NamedTuple):
    """What a mailer is to transmit."""

    sender: str
    recipients: tuple[str, ...]
    message: bytes
    message_id: str


class Attempt(NamedTuple):
    """What came of a transmission, and what the mailer wanted to announce."""

    report: IDeliveryReport
    announcements: tuple[Announcement, ...]


def attempt_all(
    mailer: IMailer, transmissions: Iterable[Transmission]
) -> Iterator[Attempt]:
    """Yield an attempt for each of `transmissions`, in order.

    The next one may be taken before the attempt of the one before is yielded.
    Raises what `transmissions` raises, and RuntimeError for a mailer that has
    not one report for each of them.
    """
    taken: deque[Transmission] = deque()
    reports = _reports(mailer, _noting(transmissions, taken))
    while True:
        # Not around the yield: what the caller announces is not ours to hold.
        with hold() as held:
            report = next(reports, None)
        if report is None:
            break
        if not taken:
            raise RuntimeError(f"{mailer!r} gave a report too many: {report!r}")
        transmission = taken.popleft()
        told = accounting_for(report, transmission.recipients)
        yield Attempt(told, tuple(held))
    if taken:
        raise RuntimeError(f"{mailer!r} gave no report for <{taken[0].message_id}>")


def _noting(
    transmissions: Iterable[Transmission], taken: deque[Transmission]
) -> Iterator[Transmission]:
    for transmission in transmissions:
        taken.append(transmission)
        yield transmission


def announcements(
    attempt: Attempt, mailer: IMailer, settled: IDeliveryReport
) -> list[Announcement]:
    """Return what is to be announced once `attempt` was `settled`.

    `settled` is the attempt's report, or what the caller made of it. The
    mailer's own announcements of this message give way to it; those of other
    messages, which a mailer may have sent along, stay.
    """
    notify = getattr(mailer, "notify", zope.event.notify)
    others = []
    for announcement in attempt.announcements:
        if announcement.report.message_id == settled.message_id:
            notify = announcement.notify
        else:
            others.append(announcement)
    return [*others, Announcement(settled, notify)]


def _reports(
    mailer: IMailer, transmissions: Iterable[Transmission]
) -> Iterator[IDeliveryReport]:
    if IBatchMailer.providedBy(mailer):
        return iter(mailer.send_batch(t[:3] for t in transmissions))
    return (_single(mailer, transmission) for transmission in transmissions)


def _single(mailer: IMailer, transmission: Transmission) -> IDeliveryReport:
    sender, recipients, message, message_id = transmission
    try:
        result = mailer.send(sender, recipients, message)
    except Exception as error:  # whatever a mailer raises is an outcome
        return report.from_exception(error, message_id, recipients)
    return report.from_result(result, message_id, recipients)
