"""The door for mailers: whatever they return or raise becomes a report of ours.

Mailers come in three kinds. Ours, and those that implement `IPipelineMailer`, have a
pipeline. Others implement `IMailer`, and have only ``send()``. Those written for other
libraries have a ``send()`` that raises or returns what smtplib does. `pipeline_of`
makes them all alike. No other module looks at the results of smtplib, or at reports
that break their contract.
"""
from __future__ import annotations

import math
import smtplib
import socket
import ssl
import traceback
from collections import deque
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from typing import cast

import zope.event

from postcommit import interfaces
from postcommit._log import Log
from postcommit._mail.address import on_the_wire
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._mail.report import Stage
from postcommit._mail.report import judge
from postcommit._mailers.base import BaseMailer
from postcommit._mailers.base import OneByOne
from postcommit._mailers.base import Pipeline
from postcommit._transaction.event import Notify
from postcommit.errors import DeliveryError
from postcommit.errors import RelayError
from postcommit.errors import text_of
from postcommit.interfaces import IDeliveryReport
from postcommit.interfaces import IReply
from postcommit.interfaces import Outgoing
from postcommit.interfaces import PipelineMailer
from postcommit.interfaces import Status
from postcommit.interfaces import SupportsSend


log = Log("postcommit.mailers.foreign")

# Beginnings of the errors of smtplib's `login` if it cannot try a password.
_NO_LOGIN = ("No suitable authentication method", "Server AUTH mechanism infinite loop")

# Errors that only come before a message: we say so, or the connection is missing.
_BEFORE = (
    RelayError,
    ConnectionRefusedError,
    socket.gaierror,
    ssl.SSLCertVerificationError,
)


def pipeline_of(mailer: SupportsSend) -> Pipeline:
    """Return a pipeline of `mailer`: its own, or a pipeline around its ``send()``.

    A subclass or an instance may have a ``send()`` of its own, and inherit the pipeline
    of a mailer of ours. That pipeline would bypass it. So whichever of the two is
    defined closer to the instance is used. The same holds for ``_transmit()``.

    Raises what ``mailer.pipeline()`` raises.
    """
    own, send = _distance(mailer, "pipeline"), _distance(mailer, "send")
    if own == math.inf or send < own:
        return _Sending(lambda mail: _send(mailer, mail))
    if issubclass(type(mailer), BaseMailer) and _distance(mailer, "_transmit") < own:
        return BaseMailer.pipeline(cast(BaseMailer, mailer))
    pipeline = cast(PipelineMailer, mailer).pipeline()
    if isinstance(pipeline, Pipeline):
        return pipeline
    if _distance(pipeline, "offer") == math.inf:  # that of a mock object, for example
        return _Sending(lambda mail: _send(mailer, mail))
    return _Checked(mailer, pipeline)


def _distance(mailer: object, name: str) -> float:
    """Return how far from `mailer` its attribute `name` is defined.

    -1 is the instance, 0 is its class, and then come the bases. It is infinite if none
    of them has it, or has None. A wrapper with ``__getattr__`` does not count as having
    the attributes of the mailer that it wraps.
    """
    try:
        places = [object.__getattribute__(mailer, "__dict__")]
    except AttributeError:  # it has slots
        places = [{}]
    places += map(vars, type(mailer).__mro__)
    for distance, place in enumerate(places, -1):
        if name in place:
            return math.inf if place[name] is None else distance
    return math.inf


def notify_of(mailer: SupportsSend) -> Notify:
    """Return the function that the events of `mailer` are published with.

    Call it for each report: a mailer may get another one while a processor runs.
    """
    try:
        return cast(Notify, getattr(mailer, "notify", zope.event.notify))
    except Exception:  # of a property
        return cast(Notify, zope.event.notify)


class _Sending(OneByOne):
    """A pipeline around the ``send()`` of a mailer."""

    def _known(
        self, report: DeliveryReport | None, mail: Outgoing
    ) -> DeliveryReport | None:
        # It came in a subscriber of a mailer of ours, to which this one delegates.
        return None if report is None else accounting_for(report, mail)


class _Checked(Pipeline):
    """A pipeline written elsewhere, with reports that keep their contract."""

    def __init__(self, mailer: SupportsSend, pipeline: interfaces.Pipeline) -> None:
        self._mailer = mailer
        self._pipeline = pipeline
        self._offered: deque[tuple[Outgoing, Any]] = deque()

    def __enter__(self) -> _Checked:
        self._pipeline = self._pipeline.__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._pipeline.__exit__(kind, error, traceback)

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        self._offered.append((mail, key))
        self._pipeline.offer(mail, key)

    def completed(self) -> Iterator[tuple[Any, DeliveryReport]]:
        for key, report in self._pipeline.completed():
            yield self._checked(key, report)

    def drain(self) -> Iterator[tuple[Any, DeliveryReport]]:
        for key, report in self._pipeline.drain():
            yield self._checked(key, report)

    def _checked(self, key: Any, report: Any) -> tuple[Any, DeliveryReport]:
        while self._offered:
            mail, offered = self._offered.popleft()
            if offered is key:
                return key, accounting_for(report, mail)
        raise RuntimeError(f"{self._mailer!r} gave a report too many, or out of order")


def _send(mailer: SupportsSend, mail: Outgoing) -> DeliveryReport:
    try:
        result = mailer.send(mail.sender, mail.recipients, mail.message)
    except Exception as error:  # whatever a mailer raises is an outcome
        return from_exception(error, mail)
    return from_result(result, mail)


# Reports


def accounting_for(report: object, mail: Outgoing) -> DeliveryReport:
    """Return `report` as one of ours, with an outcome for each recipient of `mail`.

    It never raises, and afterwards every reply can be shown, compared and hashed. A
    recipient for whom the mailer reports no valid status is uncertain, or has no
    outcome if the relay failed.
    """
    recipients = mail.recipients
    with suppress(Exception):  # that of a comparison, for example
        if _is_sound(report, recipients):
            return report  # type: ignore[return-value]
    message_id = _attribute(report, "message_id", None)
    failure = _attribute(report, "relay_failure", None)
    known = {outcome.recipient: outcome for outcome in _sound_outcomes(report)}
    if failure is None:
        silence = Reply(0, "4.3.0", "The mailer did not report on this recipient")
        for recipient in recipients:
            known.setdefault(recipient, Outcome(recipient, Status.UNCERTAIN, silence))
    return DeliveryReport(
        message_id if type(message_id) is str else message_id_of(mail.message),
        recipients,
        tuple(known[recipient] for recipient in recipients if recipient in known),
        None if failure is None else _sound_failure(failure),
        failed_mid_message=_attribute(report, "failed_mid_message", False) is True,
        too_many_connections=_attribute(report, "too_many_connections", False) is True,
        announced=_attribute(report, "announced", False) is True,
    )


def _is_sound(report: Any, recipients: tuple[str, ...]) -> bool:
    """Return whether `report` is one of ours, and no relay has failed.

    Its recipients may be others if a mailer hands on the report of another.
    """
    return (
        type(report) is DeliveryReport
        and type(report.message_id) is str
        and report.relay_failure is None
        and report.recipients == recipients
        and type(report.outcomes) is tuple
        and len(report.outcomes) == len(recipients)
        and all(
            type(outcome) is Outcome
            and outcome.recipient == recipient
            and isinstance(outcome.status, Status)
            and _is_sound_reply(outcome.reply)
            and not outcome.given_up  # which is for the queue to decide
            for outcome, recipient in zip(report.outcomes, recipients, strict=True)
        )
    )


def _is_sound_reply(reply: Any) -> bool:
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


def _sound_failure(failure: object) -> RelayError:
    """Return `failure` as an error that has a text. It may be a reply only."""
    if not isinstance(failure, BaseException):
        return _of_reply(_sound_reply(failure))
    text = text_of(failure)
    reply = _attribute(failure, "reply", None)
    is_told = reply is None or _is_sound_reply(reply)
    if isinstance(failure, RelayError) and is_told and text != type(failure).__name__:
        return failure
    sound = RelayError(text, None if reply is None else _sound_reply(reply))
    sound.__cause__ = failure
    return sound


# Results and exceptions as smtplib has them


def from_result(result: object, mail: Outgoing) -> DeliveryReport:
    """Return the report for what a mailer's ``send()`` returned. Never raises.

    `result` is a report, or a mapping of the refused recipients, as
    `smtplib.SMTP.sendmail` returns it. Anything else means that all was sent, because
    ``send()`` did not raise. If the mapping refuses somebody who is not a recipient, we
    do not know who was meant, and the recipients that it does not name are uncertain.
    """
    return _read(lambda: _from_result(result, mail), mail)


def from_exception(error: Exception, mail: Outgoing) -> DeliveryReport:
    """Return the report for an exception out of a mailer's ``send()``. Never raises."""
    return _read(lambda: _from_exception(error, mail), mail)


def _read(read: Callable[[], object], mail: Outgoing) -> DeliveryReport:
    report = None
    try:
        report = read()
    except Exception as error:
        message_id = message_id_of(mail.message)
        log.warning("<%s>: the mailer's answer is unclear", message_id, exc_info=error)
    return accounting_for(report, mail)


def _from_result(result: object, mail: Outgoing) -> object:
    if IDeliveryReport.providedBy(result):
        return result
    refused: Mapping[Any, Any] = result if isinstance(result, Mapping) else {}
    names = _names(mail.recipients, refused)
    unmentioned = (Status.SENT, Reply(250))
    others = _refused_others(refused, set(names.values()))
    if others:
        text = f"Somebody who is not a recipient was refused: {others}"
        unmentioned = (Status.UNCERTAIN, Reply(0, "4.3.0", text))
    outcomes = []
    for recipient in mail.recipients:
        status, reply = unmentioned
        if names[recipient] in refused:
            reply = _reply(refused[names[recipient]])
            # Others may have been sent: whatever the reply, it is not about them.
            status = judge(Stage.RCPT, reply.code) or Status.DEFERRED
        outcomes.append(Outcome(recipient, status, reply))
    return DeliveryReport(
        message_id_of(mail.message), mail.recipients, tuple(outcomes)
    )


def _names(recipients: tuple[str, ...], refused: Mapping[Any, Any]) -> dict[str, str]:
    """Return the name that each of `recipients` may have among the `refused`.

    smtplib takes a domain in ASCII only.
    """
    return {r: r if r in refused else on_the_wire(r) for r in recipients}


def _refused_others(refused: Mapping[Any, Any], names: set[str]) -> str:
    """Return the others that were refused, with the reasons.

    A result of another kind may be a mapping, too, but not of addresses.
    """
    return "; ".join(
        f"{text_of(address)}: {_reply(said)}"
        for address, said in refused.items()
        if address not in names and "@" in text_of(address)
    )


def _from_exception(error: Exception, mail: Outgoing) -> object:
    if isinstance(error, DeliveryError):
        return error.report
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return _from_refusals(error, mail)
    if isinstance(error, smtplib.SMTPServerDisconnected):
        # Raised in each phase alike: the relay may have the message.
        reply = Reply(0, "4.4.2", f"Connection lost: {text_of(error)}")
        return _alike(mail, Status.UNCERTAIN, reply)
    if isinstance(error, smtplib.SMTPResponseException):
        return _from_response(error, mail)
    if isinstance(error, OSError) and _is_the_relays(error):
        on_one_line = str(Reply(0, "", _described(error)))
        return _failed(mail, RelayError.of(error, on_one_line))
    if isinstance(error, OSError) and not isinstance(error, smtplib.SMTPException):
        # For example the read time-out of an HTTP request with the message in it.
        text = f"The message may have been sent: {_described(error)}"
        return _alike(mail, Status.UNCERTAIN, Reply(0, "4.4.2", text))
    final = isinstance(error, ValueError | smtplib.SMTPNotSupportedError)
    status = Status.REJECTED if final else Status.DEFERRED
    reply = Reply(0, "5.6.0" if final else "4.3.0", _described(error))
    return _alike(mail, status, reply)


def _alike(mail: Outgoing, status: Status, reply: Reply) -> DeliveryReport:
    message_id = message_id_of(mail.message)
    return DeliveryReport.alike(message_id, mail.recipients, status, reply)


def _failed(
    mail: Outgoing, failure: RelayError, *, mid_message: bool = False
) -> DeliveryReport:
    return DeliveryReport(
        message_id_of(mail.message),
        mail.recipients,
        relay_failure=failure,
        failed_mid_message=mid_message,
    )


def _is_the_relays(error: OSError) -> bool:
    """Return whether `error` came before any message: of the network, or of a login.

    If smtplib misses STARTTLS or AUTH, it is the relay's. SMTPUTF8 is for a message.
    smtplib replaces the errors of a socket that is connected, so that those which it
    lets out are of the connection itself, or of TLS.
    """
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return "SMTPUTF8" not in text_of(error)
    if isinstance(error, smtplib.SMTPException):
        return text_of(error).startswith(_NO_LOGIN)
    frames = traceback.walk_tb(error.__traceback__)
    return isinstance(error, _BEFORE) or any(
        frame.f_globals.get("__name__") == "smtplib" for frame, _ in frames
    )


def _described(error: BaseException) -> str:
    """Return the class of `error` and its text, if it has one."""
    name, text = type(error).__name__, text_of(error)
    return name if text == name else f"{name}: {text}"


def _of_reply(reply: Reply) -> RelayError:
    return RelayError(str(reply), reply)


def _from_response(
    error: smtplib.SMTPResponseException, mail: Outgoing
) -> DeliveryReport:
    session = (
        smtplib.SMTPAuthenticationError,
        smtplib.SMTPConnectError,
        smtplib.SMTPHeloError,
    )
    stage = Stage.SESSION if isinstance(error, session) else Stage.END
    reply = _reply((error.smtp_code, error.smtp_error))
    status = None if stage is Stage.SESSION else judge(stage, reply.code)
    if status is None:
        is_early = stage is Stage.SESSION
        return _failed(mail, _of_reply(reply), mid_message=not is_early)
    if status is Status.SENT:
        status = Status.DEFERRED  # an exception, whatever its code, is not a success
    return _alike(mail, status, reply)


def _from_refusals(
    error: smtplib.SMTPRecipientsRefused, mail: Outgoing
) -> DeliveryReport:
    """Return the report for a message that no recipient got.

    Some may not be named, if the mailer rewrote an address or the relay hung up.
    """
    refused = error.recipients if isinstance(error.recipients, Mapping) else {}
    outcomes = []
    for recipient, name in _names(mail.recipients, refused).items():
        reply = _reply(refused.get(name, f"Not sent: {text_of(error)}"))
        status = judge(Stage.RCPT, reply.code)
        if status is None:
            return _failed(mail, _of_reply(reply), mid_message=True)
        if status is Status.SENT:
            status = Status.DEFERRED
        outcomes.append(Outcome(recipient, status, reply))
    message_id = message_id_of(mail.message)
    return DeliveryReport(message_id, mail.recipients, tuple(outcomes))


def _reply(said: object) -> Reply:
    """Return what smtplib has as a code and a text. Anything else is text."""
    code, text = 0, said
    if isinstance(said, tuple) and len(said) == 2 and isinstance(said[0], int):
        code, text = said
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return Reply(code, "", "" if text == "" else text_of(text))
