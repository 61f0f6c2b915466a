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
from typing import Any
from typing import NamedTuple

import zope.event

from postcommit.event import Announcement
from postcommit.event import hold
from postcommit.interfaces import IBatchMailer
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailer
from postcommit.interfaces import IOutcome
from postcommit.interfaces import IReply
from postcommit.interfaces import Status
from postcommit.message import message_id_of
from postcommit.report import DeliveryReport
from postcommit.report import Outcome
from postcommit.report import Reply
from postcommit.report import from_exception
from postcommit.report import from_result


class Transmission(NamedTuple):
    """What a mailer is to transmit, as `IBatchMailer.send_batch` takes it."""

    sender: str
    recipients: tuple[str, ...]
    message: bytes

    @property
    def message_id(self) -> str:
        return message_id_of(self.message)


class Attempt(NamedTuple):
    """What came of a transmission, and what the mailer wanted to announce."""

    report: IDeliveryReport
    announcements: tuple[Announcement, ...] = ()


def attempt_all(
    mailer: IMailer, transmissions: Iterable[Transmission]
) -> Iterator[Attempt]:
    """Yield an attempt for each of `transmissions`, in order.

    The next one may be taken before the attempt of the one before is yielded.
    Raises what `transmissions` raises, and RuntimeError for a mailer that has
    not one report for each of them.
    """
    if not IBatchMailer.providedBy(mailer):
        for transmission in transmissions:
            # Not around the yield: what the caller announces is not ours to hold.
            with hold() as held:
                report = _single(mailer, transmission)
            yield Attempt(accounting_for(report, transmission.recipients), tuple(held))
        return
    taken: deque[Transmission] = deque()
    for report in mailer.send_batch(_noting(transmissions, taken)):
        if not taken:
            raise RuntimeError(f"{mailer!r} gave a report too many: {report!r}")
        yield Attempt(accounting_for(report, taken.popleft().recipients))
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


def _single(mailer: IMailer, transmission: Transmission) -> IDeliveryReport:
    message_id, recipients = transmission.message_id, transmission.recipients
    try:
        result = mailer.send(*transmission)
    except Exception as error:  # whatever a mailer raises is an outcome
        return from_exception(error, message_id, recipients)
    return from_result(result, message_id, recipients)


def accounting_for(
    report: IDeliveryReport, recipients: tuple[str, ...]
) -> IDeliveryReport:
    """Return `report` with an outcome, and in it a reply, for each of `recipients`.

    Of whom a mailer, against its contract, says nothing, or nothing that is a
    status, nobody knows.
    """
    if report.relay_failure is not None:
        return report
    known: dict[str, Any] = {
        o.recipient: _with_reply(o)
        for o in report.outcomes
        if isinstance(o.status, Status)
    }
    silence = Reply(0, "4.3.0", "The mailer did not report on this recipient")
    outcomes = tuple(
        known.get(recipient) or Outcome(recipient, Status.UNCERTAIN, silence)
        for recipient in recipients
    )
    if outcomes == report.outcomes:
        return report
    return DeliveryReport(report.message_id, recipients, outcomes)


def _with_reply(outcome: IOutcome) -> IOutcome:
    """Return `outcome`; what it has instead of a reply becomes the text of one.

    What became of the recipient, it has said all the same.
    """
    said = getattr(outcome, "reply", None)
    if IReply.providedBy(said):
        return outcome
    reply = Reply(0, "", str(said or "The mailer gave no reply"))
    return Outcome(outcome.recipient, outcome.status, reply)
