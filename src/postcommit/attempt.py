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

from postcommit.errors import RelayError
from postcommit.errors import text_of
from postcommit.event import Announcement
from postcommit.event import hold
from postcommit.interfaces import IBatchMailer
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IMailer
from postcommit.interfaces import IReply
from postcommit.interfaces import Status
from postcommit.log import Log
from postcommit.message import message_id_of
from postcommit.report import DeliveryReport
from postcommit.report import Outcome
from postcommit.report import Reply
from postcommit.report import from_exception
from postcommit.report import from_result


log = Log(__name__)


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

    report: DeliveryReport
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
            yield Attempt(report, tuple(held))
        return
    taken: deque[Transmission] = deque()
    for told in mailer.send_batch(_noting(transmissions, taken)):
        if not taken:
            raise RuntimeError(f"{mailer!r} gave a report too many: {told!r}")
        one = taken.popleft()
        yield Attempt(accounting_for(told, one.recipients, one.message_id))
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
    """Return what is to be announced once `attempt` was `settled`. Never raises.

    `settled` is the attempt's report, or what the caller made of it. The
    mailer's own announcements of this message give way to it; those of other
    messages, which a mailer may have sent along, stay.
    """
    notify = _attribute(mailer, "notify", zope.event.notify)
    others = []
    for announcement in attempt.announcements:
        if _attribute(announcement.report, "message_id", "") == settled.message_id:
            notify = announcement.notify
        else:
            others.append(announcement)
    return [*others, Announcement(settled, notify)]


def _single(mailer: IMailer, transmission: Transmission) -> DeliveryReport:
    message_id, recipients = transmission.message_id, transmission.recipients
    report: object = None
    try:
        try:
            result = mailer.send(*transmission)
        except Exception as error:  # whatever a mailer raises is an outcome
            report = from_exception(error, message_id, recipients)
        else:
            report = from_result(result, message_id, recipients)
    except Exception as error:  # it cannot even be read
        log.warning("%r: its answer cannot be read", type(mailer), exc_info=error)
    return accounting_for(report, recipients, message_id)


def accounting_for(
    report: object, recipients: tuple[str, ...], message_id: str = ""
) -> DeliveryReport:
    """Return `report` as one of ours: an outcome for each of `recipients`.

    This is the only door for the reports of mailers written elsewhere. Whatever they
    have in them, it raises nothing, and afterwards every reply can be shown, compared
    and hashed. A recipient with no valid status is uncertain. The report has
    `message_id` if it has none itself.
    """
    if type(report) is DeliveryReport and _is_sound(report, recipients):
        return report
    said = _attribute(report, "message_id", message_id)
    message_id = said if isinstance(said, str) else message_id
    failure = _attribute(report, "relay_failure", None)
    if failure is not None:
        return DeliveryReport(
            message_id,
            recipients,
            relay_failure=_sound_failure(failure),
            had_its_turn=_attribute(report, "had_its_turn", False) is True,
        )
    silence = Reply(0, "4.3.0", "The mailer did not report on this recipient")
    known = {outcome.recipient: outcome for outcome in _sound_outcomes(report)}
    outcomes = tuple(
        known.get(recipient) or Outcome(recipient, Status.UNCERTAIN, silence)
        for recipient in recipients
    )
    return DeliveryReport(message_id, recipients, outcomes)


def _is_sound(report: DeliveryReport, recipients: tuple[str, ...]) -> bool:
    """Tell whether `report` has nothing in it that is not ours.

    Its recipients may be others if a mailer hands on the report of another one. Whoever
    is missing would be lost.
    """
    if report.recipients != recipients or type(report.message_id) is not str:
        return False
    failure = report.relay_failure
    if failure is not None:
        return type(failure) is RelayError or _is_sound_reply(failure)
    if type(report.outcomes) is not tuple or len(report.outcomes) != len(recipients):
        return False
    return all(
        type(outcome) is Outcome
        and outcome.recipient == recipient
        and isinstance(outcome.status, Status)
        and _is_sound_reply(outcome.reply)
        and not outcome.given_up  # which is for the queue to decide
        for outcome, recipient in zip(report.outcomes, recipients, strict=True)
    )


def _is_sound_reply(reply: object) -> bool:
    return (
        type(reply) is Reply
        and type(reply.code) is int
        and type(reply.enhanced) is type(reply.text) is str
    )


def _attribute(thing: object, name: str, default: Any) -> Any:
    try:
        return getattr(thing, name, default)
    except Exception:
        return default


def _sound_outcomes(report: object) -> Iterator[Outcome]:
    """Yield the outcomes of `report` that have a recipient and a status."""
    try:
        outcomes = list(_attribute(report, "outcomes", ()))
    except Exception:
        return
    for outcome in outcomes:
        recipient = _attribute(outcome, "recipient", None)
        status = _attribute(outcome, "status", None)
        if isinstance(recipient, str) and isinstance(status, Status):
            reply = _sound_reply(_attribute(outcome, "reply", None))
            yield Outcome(str(recipient), status, reply)


def _sound_reply(said: object) -> Reply:
    """Return `said` as a `Reply`; anything that is not a reply becomes its text."""
    try:
        is_reply = IReply.providedBy(said)
    except Exception:
        is_reply = False
    if not is_reply:
        nothing = said is None or (isinstance(said, str | bytes) and not said)
        return Reply(0, "", "The mailer gave no reply" if nothing else text_of(said))
    code = _attribute(said, "code", 0)
    enhanced = _attribute(said, "enhanced", "")
    text = _attribute(said, "text", "")
    return Reply(
        int(code) if isinstance(code, int) else 0,
        str(enhanced) if isinstance(enhanced, str) else "",
        str(text) if isinstance(text, str) else text_of(text),
    )


def _sound_failure(failure: object) -> Reply | RelayError:
    if isinstance(failure, RelayError) and text_of(failure) != type(failure).__name__:
        return failure
    if isinstance(failure, BaseException):
        sound = RelayError(text_of(failure))
        sound.__cause__ = failure
        return sound
    return _sound_reply(failure)
