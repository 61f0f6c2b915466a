"""The mailer that uses the next mailer if the relay of the first one fails."""
from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace
from typing import Any
from typing import cast

import zope.event
from zope.interface import implementer

from postcommit import _forks as forks
from postcommit._config.options import checked
from postcommit._config.options import checked_mailers
from postcommit._config.options import checked_notify
from postcommit._log import Log
from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mailers.base import BaseMailer
from postcommit._mailers.base import Pipeline
from postcommit._mailers.foreign import pipeline_of
from postcommit._transaction.event import Notify
from postcommit.errors import RelayError
from postcommit.errors import TooManyConnections
from postcommit.errors import masked
from postcommit.interfaces import IFailoverMailer
from postcommit.interfaces import IRelayCheck
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status
from postcommit.interfaces import SupportsSend


log = Log("postcommit.mailers.failover")

_check = functools.partial(checked, IFailoverMailer)


@dataclass(slots=True, eq=False)
class _Member:
    """One of the mailers, and whether its relay works.

    `retry_at` is the time at which a relay that failed is tried again, None if it
    works. `turn` is the number of its last turn, for the round robin.
    """

    mailer: Any
    retry_at: float | None = None
    turn: int = 0

    @property
    def name(self) -> str:
        """The mailer as a log may show it, without a password."""
        return repr(masked("mailer", self.mailer))


@implementer(IFailoverMailer)
class FailoverMailer(BaseMailer):
    """Transmits through the first of several mailers whose relay works.

    See `IFailoverMailer`. Each of `mailers` is used as a delivery would use it. Events
    are published with `notify` of this mailer, unless a part has a ``send()`` that
    publishes them itself. `monotonic` returns the seconds by which `retry_after` is
    measured.

    Threads may share a mailer. Raises `OptionError` for options that can never work.
    """

    def __init__(
        self,
        mailers: Iterable[SupportsSend],
        *,
        retry_after: float = IFailoverMailer["retry_after"].default,
        round_robin: bool = IFailoverMailer["round_robin"].default,
        notify: Callable[[Any], Any] = zope.event.notify,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.mailers: tuple[SupportsSend, ...] = checked_mailers(mailers)
        self.retry_after: float = _check("retry_after", retry_after)
        self.round_robin: bool = _check("round_robin", round_robin)
        self.notify: Notify = checked_notify(notify)
        self._monotonic = monotonic
        self._members = [_Member(mailer) for mailer in self.mailers]
        self._turns = itertools.count(1)
        self._renew_lock()
        forks.register(self, FailoverMailer._renew_lock)

    def _renew_lock(self) -> None:
        # In a forked child, a thread that does not exist there may have held it.
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        names = ", ".join(member.name for member in self._members)
        return f"<{type(self).__name__} {names}>"

    def pipeline(self) -> FailoverPipeline:
        """Return a pipeline over those of the mailers. See `IPipelineMailer`."""
        return FailoverPipeline(self)

    def check(self) -> None:
        """Return if a relay answers; raise `RelayError` if none does.

        If a mailer cannot check its relay, the relay counts as answering.
        """
        failures: dict[_Member, RelayError] = {}
        # Those that work come first. A check is not the one message of a trial.
        for member in sorted(self._members, key=lambda one: one.retry_at is not None):
            checker: Any = cast(Any, IRelayCheck)(member.mailer, None)
            try:
                if checker is not None:
                    checker.check()
            except OSError as error:
                failures[member] = RelayError.of(error)
                if not isinstance(error, TooManyConnections):  # it works
                    self.note(member, failures[member])
            else:
                with self._lock:
                    if member.retry_at is not None:
                        member.retry_at = self._monotonic()  # the next message tries it
                return
        raise _all_failed(failures)

    def read_certificates(self) -> None:
        """Have each mailer read its certificates now. See `SMTPMailer`."""
        self._call_each("read_certificates")

    def close(self) -> None:
        """Close the connections of the mailers. See `IFailoverMailer`."""
        self._call_each("close")

    def _call_each(self, name: str) -> None:
        """Call a method of each mailer that has it, also if one raises."""
        with ExitStack() as stack:
            for mailer in reversed(self.mailers):
                method = getattr(mailer, name, None)
                if callable(method):
                    stack.callback(method)

    # For the pipelines

    def choose(self, without: Collection[_Member]) -> _Member | None:
        """Return the mailer to transmit the next message with, None if none is left.

        `without` are those that have failed at it. The first mailer whose relay works
        is chosen. A relay that failed is tried after `retry_after`, with one message:
        for the other threads that time begins again. If no relay works, all are tried,
        because it is not for a mailer to decide when to pause.
        """
        with self._lock:
            now = self._monotonic()
            left = [member for member in self._members if member not in without]
            good = [m for m in left if m.retry_at is None or m.retry_at <= now] or left
            if not good:
                return None
            chosen = good[0]
            if self.round_robin:
                chosen = min(good, key=lambda member: member.turn)
                chosen.turn = next(self._turns)
            if chosen.retry_at is not None:
                chosen.retry_at = now + self.retry_after
            return chosen

    def note(self, member: _Member, failure: RelayError | None) -> None:
        """Note that the relay of `member` works, or has failed. Log the change."""
        if member.retry_at is None and failure is None:
            return
        with self._lock:
            has_worked = member.retry_at is None
            member.retry_at = None
            if failure is not None:
                member.retry_at = self._monotonic() + self.retry_after
            good = [m for m in self._members if m.retry_at is None]
        good = good if self.round_robin else good[:1]
        if failure is None and not has_worked:
            log.info("%s works again", member.name)
        elif failure is not None and has_worked and good:
            text = "%s failed, mail goes through %s: %s"
            log.warning(text, member.name, " and ".join(m.name for m in good), failure)
        elif failure is not None and has_worked:
            log.warning("%s failed, and no other works: %s", member.name, failure)


@dataclass(slots=True, eq=False)
class _Flight:
    """A message on its way: offered by the caller, and not reported yet.

    `rest` is what is to be transmitted: the message, with the recipients that have no
    outcome. `is_waiting` says that no mailer has it now. `earlier` is the report of the
    mailers before, `report` the last one.
    """

    key: Any
    mail: Outgoing
    rest: Outgoing
    is_waiting: bool = True
    earlier: DeliveryReport | None = None
    report: DeliveryReport | None = None

    def merged(self, report: DeliveryReport) -> DeliveryReport:
        """Return `report` on the rest, together with that of the mailers before."""
        earlier = self.earlier
        if earlier is not None and earlier.outcomes:
            found = {o.recipient: o for o in (*earlier.outcomes, *report.outcomes)}
            report = replace(
                report,
                message_id=earlier.message_id,
                recipients=earlier.recipients,
                outcomes=tuple(found[r] for r in earlier.recipients if r in found),
                announced=report.announced and earlier.announced,
            )
        if report.relay_failure is not None and not report.undecided:
            # The relay's trouble does not concern the message any more.
            report = replace(report, relay_failure=None, too_many_connections=False)
        return report

    def wait(self, report: DeliveryReport) -> None:
        """Wait for the next mailer, with the recipients without an outcome."""
        self.earlier, self.is_waiting = report, True
        if report.outcomes:
            mail = self.mail
            self.rest = Entry(mail.sender, report.undecided, mail.message)


class FailoverPipeline(Pipeline):
    """A pipeline over those of several mailers. See `IPipeline`.

    A message goes to the next mailer if its report is a relay failure, and the relay
    did not fail in the middle of this message. Recipients with an outcome keep it, and
    only the others go on. So no recipient gets a message twice.

    One pipeline is open at a time. It is drained before another opens, so that
    at most two messages are in flight. A relay that failed before gets one message in
    a pipeline of its own. With a round robin, that is so for each message.

    A relay that refuses one more connection is not waited for, because the next mailer
    can take the message. If no mailer is left, and the caller `waits`, it is tried once
    more, and waited for.
    """

    def __init__(self, mailer: FailoverMailer) -> None:
        self._mailer = mailer
        self._flights: deque[_Flight] = deque()
        self._failures: dict[_Member, RelayError] = {}
        # Those of them that work, and have refused one more connection.
        self._crowded: dict[_Member, None] = {}
        self._too_many_connections = False
        self._member: _Member | None = None
        self._open: Pipeline | None = None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._give_up(error)

    def offer(self, mail: Outgoing, key: Any = None) -> None:
        """Wait until `mail` is on the wire, or has its report. See `IPipeline`."""
        self._flights.append(_Flight(key, mail, mail))
        with self._guarded():
            self._advance()

    def completed(self) -> Iterator[tuple[Any, DeliveryReport]]:
        """Yield the reports that are complete. See `IPipeline`."""
        if self._open is not None:
            self._collect(self._open.completed())
        yield from self._reported()

    def drain(self) -> Iterator[tuple[Any, DeliveryReport]]:
        """Wait for all replies, and yield the reports. See `IPipeline`."""
        while True:
            with self._guarded():
                self._advance()
            yield from self.completed()
            if (pipeline := self._open) is None:
                return
            with self._guarded():
                reports = iter(pipeline.drain())
            while True:
                with self._guarded():
                    found = next(reports, None)
                if found is None:
                    break
                self._note(*found)
                yield from self._reported()
            with self._guarded():
                self._close(pipeline)

    def _reported(self) -> Iterator[tuple[Any, DeliveryReport]]:
        while self._flights and (report := self._flights[0].report) is not None:
            yield self._flights.popleft().key, report

    def _advance(self) -> None:
        """Offer each message that waits to a mailer, until none waits."""
        while flight := next((f for f in self._flights if f.is_waiting), None):
            member = self._mailer.choose(self._failures)
            waits = member is None and self.waits and bool(self._crowded)
            if waits:
                member = next(iter(self._crowded))
            if member is None:
                flight.is_waiting = False
                flight.report = self._failed(flight)
                continue
            is_alone = self._mailer.round_robin or member.retry_at is not None
            pipeline = self._open
            if pipeline is None or member is not self._member or is_alone or waits:
                self._finish()
                pipeline = self._begin(member, waits=waits)
            flight.is_waiting = False
            pipeline.offer(flight.rest, key=flight)
            if is_alone:
                self._finish()
            else:
                self._collect(pipeline.completed())

    def _begin(self, member: _Member, *, waits: bool) -> Pipeline:
        """Open a pipeline of `member`. With `waits`, it may wait for a connection."""
        self._member = member
        if waits:
            del self._crowded[member], self._failures[member]
        self._open = pipeline_of(member.mailer).__enter__()
        self._open.waits = waits
        return self._open

    def _failed(self, flight: _Flight) -> DeliveryReport:
        """Return the report on a message that no mailer is left for."""
        mail, report = flight.mail, flight.earlier
        if report is None:
            report = DeliveryReport(message_id_of(mail.message), tuple(mail.recipients))
        return replace(
            report,
            relay_failure=_all_failed(self._failures),
            too_many_connections=self._too_many_connections,
        )

    def _finish(self) -> None:
        """Wait for the replies to what is in flight, and close the open pipeline."""
        if self._open is not None:
            self._collect(self._open.drain())
            self._close(self._open)

    def _close(self, pipeline: Pipeline) -> None:
        """Close the open pipeline, in which no message is in flight."""
        self._open = None
        pipeline.__exit__(None, None, None)
        self._drop(lambda flight: not flight.is_waiting)

    def _collect(self, reports: Iterable[tuple[Any, DeliveryReport]]) -> None:
        for flight, report in reports:
            self._note(flight, report)

    def _note(self, flight: _Flight, report: DeliveryReport) -> None:
        """Take the report of the open pipeline on a message."""
        member, failure = self._member, report.relay_failure
        if member is not None and failure is not None:
            self._failures.setdefault(member, failure)
            if not report.too_many_connections:  # while others are in use, it works
                self._mailer.note(member, failure)
            elif self._open is not None and not self._open.waits:
                self._crowded[member] = None
            self._too_many_connections |= report.too_many_connections
        elif member is not None and any(map(_is_answer, report.outcomes)):
            self._mailer.note(member, None)
        report = flight.merged(report)
        if report.relay_failure is None or report.failed_mid_message:
            flight.report = report
        else:
            flight.wait(report)

    # After an error

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._give_up(error)
            raise

    def _give_up(self, error: BaseException | None) -> None:
        """Close what is open, keep the reports that exist, and try nothing more."""
        pipeline, self._open = self._open, None
        try:
            if pipeline is not None:
                kind = None if error is None else type(error)
                pipeline.__exit__(kind, error, error and error.__traceback__)
                self._collect(pipeline.completed())
        finally:
            self._drop(lambda flight: True)

    def _drop(self, is_lost: Callable[[_Flight], bool]) -> None:
        """Drop messages without a report, which are not sent.

        If an earlier mailer has sent it to some recipients, that report is kept, so
        that they do not get it again.
        """
        for flight in list(self._flights):
            if flight.report is None and is_lost(flight):
                flight.is_waiting = False
                if flight.earlier is not None and flight.earlier.outcomes:
                    flight.report = flight.earlier
                else:
                    self._flights.remove(flight)


def _is_answer(outcome: Outcome) -> bool:
    """Return True unless the relay was silent, or was not asked."""
    return outcome.status is Status.SENT or outcome.reply.code != 0


def _all_failed(failures: Mapping[_Member, RelayError]) -> RelayError:
    """Return the failure of the only mailer, or an error that names each of them."""
    if len(failures) == 1:
        return next(iter(failures.values()))
    reasons = (f"{member.name}: {failure}" for member, failure in failures.items())
    return RelayError(f"all relays failed: {'; '.join(reasons)}")
