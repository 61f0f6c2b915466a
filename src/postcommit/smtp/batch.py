"""Many messages over few connections: who speaks when, and the point of no return.

With pipelining (RFC 2920) the end of one message and the envelope of the next go
out in one write, so that each message costs one round trip. A message is in one
of these states:

=========  ==================================================================
upcoming   taken from the caller, nothing of it is on the wire
offered    its envelope is on the wire (or about to be), not its content
ended      its final dot is on the wire: the relay may have it
done       accounted for
=========  ==================================================================

At most one is offered and at most one has ended. Whatever breaks the connection,
`Batch._lose` knows from the state what became of each.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Iterator
from types import TracebackType
from typing import Protocol

from postcommit.errors import RelayError
from postcommit.log import Log
from postcommit.report import DeliveryReport
from postcommit.report import Stage
from postcommit.smtp.session import Session
from postcommit.smtp.transfer import Transfer
from postcommit.smtp.transfer import silence


log = Log(__name__)

# RFC 2920, 3.1: replies to commands in one write must not fill the windows of
# both sides, or both would wait for the other one to read.
_GROUP = 100


class Sessions(Protocol):
    """Where sessions come from, and go to."""

    pipelining: bool

    def checkout(self, *, fresh: bool = False) -> Session:
        """Return a session, one that was never used if `fresh`; `RelayError`."""

    def checkin(self, session: Session) -> None:
        """Take back a session between two messages."""

    def discard(self, session: Session) -> None:
        """Take back a session that is of no use any more."""

    def is_full(self, session: Session) -> bool:
        """Whether the session has had its share of messages."""


class Batch:
    """See `IBatchMailer.send_batch`; to be iterated over once."""

    def __init__(self, sessions: Sessions, transfers: Iterable[Transfer]) -> None:
        self._sessions = sessions
        self._session: Session | None = None
        self._source = _Source(transfers)
        self._offered: Transfer | None = None
        self._ended: Transfer | None = None
        self._point_of_no_return = 0  # in the last write: the end of its final dot
        self._failure: RelayError | None = None

    def __iter__(self) -> Iterator[DeliveryReport]:
        try:
            is_going_on = True
            while is_going_on:
                is_going_on = self._go_on()
                while (report := self._source.report()) is not None:
                    yield report
        finally:
            if self._session is not None:  # the caller lost interest
                self._sessions.discard(self._session)
        self._source.reraise()

    def _go_on(self) -> bool:
        """As `_advance`; an error of the program waits for the reports, too.

        What is not reported would be sent again.
        """
        try:
            return self._advance()
        except Exception as error:
            if self._ended is not None:
                self._ended.doubt(error)
            self._source.fail(error)
            return False

    def _advance(self) -> bool:
        """Go on for about one round trip; return whether there was anything to do."""
        upcoming = self._source.peek()  # here the relay is busy: time to prepare
        session = self._session
        if session is not None:
            self._converse(session)
        elif upcoming is None:
            return False
        elif self._failure is not None:
            self._source.take().fail(self._failure)
        else:
            self._open(fresh=upcoming.retried)
        return True

    def _open(self, *, fresh: bool) -> None:
        try:
            self._session = self._sessions.checkout(fresh=fresh)
        except RelayError as error:
            # The others of this batch would fare alike, and take as long.
            self._failure = error

    def _converse(self, session: Session) -> None:
        try:
            if self._ended is not None:
                self._read_end(session, self._ended)
            if self._offered is not None:
                self._read_envelope(session, self._offered)
            self._check_step(session)
            self._speak(session)
        except OSError as error:
            self._lose(session, error)
        else:
            if self._offered is None and self._ended is None:
                self._session = None
                self._sessions.checkin(session)

    # Listen

    def _read_end(self, session: Session, ended: Transfer) -> None:
        try:
            reply = session.read(Stage.END)
        except OSError:
            # The code decides, even if the reply then breaks off or never ends. An
            # uncertain outcome here would make the relay get the message again.
            if session.begun is not None:
                ended.finish(session.begun)
            raise
        ended.finish(reply)
        self._ended = None
        if reply.code >= 400 and self._offered is None:
            session.is_dirty = True

    def _read_envelope(self, session: Session, offered: Transfer) -> None:
        size = _GROUP if session.pipelining else 1
        while True:
            for reply in session.read_each(offered.unanswered()):
                offered.take(reply)
            group = offered.next_group(size)
            if not group:
                return
            self._check_step(session)
            session.write(group)

    def _check_step(self, session: Session) -> None:
        """Raise `RelayError` if the relay has sent more replies than commands came.

        To be called before each write. Afterwards, a reply too many could not be told
        from the reply to the next command.
        """
        if session.is_out_of_step:
            stray = session.stray or "incomplete"
            raise RelayError(f"the relay is out of step: a reply too many: {stray}")

    # Speak

    def _speak(self, session: Session) -> None:
        """Send the content of what is offered, and the next envelope with it."""
        leaving, content = self._offered, b""
        if leaving is not None:
            content = leaving.content()
            session.is_dirty = leaving.is_done
        self._offered = None
        envelope = b""
        if session.pipelining or not content:
            self._offered = self._next(session)
            if self._offered is not None:
                envelope = self._offered.next_group(_GROUP if session.pipelining else 1)
        data = content + envelope
        if content:
            self._ended = leaving
            self._point_of_no_return = len(content)
        if data:
            session.write(data)

    def _next(self, session: Session) -> Transfer | None:
        """Return the next message that `session` can take."""
        while self._source.peek() and not self._sessions.is_full(session):
            transfer = self._source.take()
            transfer.is_first = session.messages == 0
            transfer.prepare(session.extensions, reset=session.is_dirty)
            if not transfer.is_done:
                session.is_dirty = False
                session.messages += 1
                return transfer
        return None

    # Trouble

    def _lose(self, session: Session, error: OSError) -> None:
        """The connection is of no use any more: account for what was on it."""
        ended, offered = self._ended, self._offered
        if ended is not None:
            if session.sent < self._point_of_no_return:
                self._interrupt(session, ended, error)
            else:
                ended.doubt(error)
            self._failure = ended.relay_failure
        self._sessions.discard(session)
        self._session = self._ended = self._offered = None
        if offered is None:
            if ended is None and not session.messages:
                # A new connection, of no use before anything was offered: the next
                # one would be, too.
                self._failure = RelayError(str(error))
            return
        if ended is not None and isinstance(error, TimeoutError):
            # The relay has not come to what is offered, so it is not its turn.
            self._failure = self._failure or silence(error)
        if self._failure is not None:
            offered.fail(self._failure)
        elif self._may_retry(session, offered, error):
            offered.begin_again()
            self._source.give_back(offered)
        else:
            offered.interrupt(error)
            self._failure = offered.relay_failure

    def _interrupt(self, session: Session, ended: Transfer, error: OSError) -> None:
        """The final dot did not get out; the relay may have said why."""
        try:
            reply = session.read_hastily()
            if reply.code >= 400:
                ended.finish(reply)
        except OSError:
            pass  # it said nothing, or what `finish` has accounted for
        ended.interrupt(error)

    def _may_retry(self, session: Session, offered: Transfer, error: OSError) -> bool:
        """Whether `offered` is sent again, on a new connection.

        There are two reasons. The connection had been used before, and turned out to
        be closed when the message was offered; this counts once for each message. Or
        the relay is out of step with pipelining. Then pipelining is no longer used, so
        that this can happen once only, even to a message that has moved before.
        """
        if _is_out_of_step(error):
            if not session.pipelining:
                return False
            log.warning("%s; from now on without pipelining", error)
            self._sessions.pipelining = False
            return True
        moved = offered.retried or offered.is_first or offered.heard
        return not (moved or isinstance(error, TimeoutError))


class _Source:
    """The transfers as they come from the caller, and go back as reports."""

    def __init__(self, transfers: Iterable[Transfer]) -> None:
        self._transfers = iter(transfers)
        self._is_dry = False
        self._error: BaseException | None = None
        self._waiting: deque[Transfer] = deque()
        self._unreported: deque[Transfer] = deque()

    def peek(self) -> Transfer | None:
        """Return the next one, None if there is none; it can still be taken."""
        while not self._waiting and not self._is_dry:
            self._is_dry = True
            with self:
                for transfer in self._transfers:
                    self._is_dry = False
                    self._unreported.append(transfer)
                    if not transfer.is_done:
                        self._waiting.append(transfer)
                        break
        return self._waiting[0] if self._waiting else None

    def take(self) -> Transfer:
        """Return what `peek` showed, and let go of it."""
        return self._waiting.popleft()

    def give_back(self, transfer: Transfer) -> None:
        """Undo `take`."""
        self._waiting.appendleft(transfer)

    def report(self) -> DeliveryReport | None:
        """Return the next report, in the order of the transfers, if it is complete."""
        if self._unreported and self._unreported[0].is_done:
            return self._unreported.popleft().report()
        return None

    # An error out of the transfers has to wait for the reports before it.

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        self._error = error
        return isinstance(error, Exception)

    def fail(self, error: Exception) -> None:
        """Have `error` raised as if it came out of the transfers."""
        self._error = error

    def reraise(self) -> None:
        """Raise the error, if there was one."""
        if self._error is not None:
            raise self._error


def _is_out_of_step(error: OSError) -> bool:
    return isinstance(error, RelayError) and error.reply is None
