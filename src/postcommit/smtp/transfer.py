"""One message on its way through a dialogue: commands, replies, account.

No bytes are moved here. Commands are handed out in groups, replies are taken in
in the same order, and in the end each recipient is accounted for exactly once.
"""
from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

from postcommit.address import needs_smtputf8
from postcommit.address import on_the_wire
from postcommit.address import parse_address
from postcommit.errors import AddressError
from postcommit.errors import RelayError
from postcommit.interfaces import Status
from postcommit.report import DeliveryReport
from postcommit.report import Outcome
from postcommit.report import Reply
from postcommit.report import Stage
from postcommit.report import judge
from postcommit.smtp.sevenbit import to_seven_bits
from postcommit.smtp.wire import END_OF_DATA
from postcommit.smtp.wire import complete
from postcommit.smtp.wire import stuffed


_NO_SMTPUTF8 = Reply(0, "5.6.7", "The address needs SMTPUTF8, the relay lacks it")
_NO_8BITMIME = Reply(0, "5.6.3", "The message needs 8BITMIME, the relay lacks it")
_NO_MEMORY = Reply(0, "4.3.0", "Too little memory to do without 8BITMIME")


class Command(NamedTuple):
    """One line of the dialogue."""

    stage: Stage
    line: str
    expected: int = 0  # the code of the reply that raises no question
    recipient: int = 0  # its index


_DATA = Command(Stage.DATA, "DATA\r\n", 354)


class Transfer:
    """One message: the commands for it, and the account of its recipients.

    `is_done` is whether there is a report, `heard` whether the relay has replied to
    one of its commands, `retried` whether it has moved to another connection, and
    `is_first` whether it is the first message of its connection.
    """

    def __init__(
        self, sender: str, recipients: Sequence[str], message: bytes, message_id: str
    ) -> None:
        self.sender = sender
        self.recipients = tuple(recipients)
        self.message_id = message_id
        self.retried = False
        self.is_first = False
        self._message = complete(message)
        self._reset()
        self._is_plain = "".join((sender, *self.recipients)).isascii()
        self._check()

    def _check(self) -> None:
        """Reject addresses that would be something else, or nothing, on the wire."""
        faults = {index: _fault_of(r) for index, r in enumerate(self.recipients)}
        self._faulty = {index: fault for index, fault in faults.items() if fault}
        for index, fault in self._faulty.items():
            self._account(index, Status.REJECTED, fault)
        if self.sender and (impossible := _fault_of(self.sender)):
            self._settle(Status.REJECTED, impossible)

    def _reset(self) -> None:
        self.heard = False
        self.is_done = not self.recipients
        self._commands: list[Command] = []
        self._written = 0
        self._answered = 0
        self._data = b""
        self._go_ahead = False
        self._accepted: list[int] = []
        self._outcomes: dict[int, Outcome] = {}
        self._failure: RelayError | None = None
        self._had_its_turn = False

    def begin_again(self) -> None:
        """Forget all replies, so that the message can go over another connection.

        The outcomes so far are void, because the recipients will be offered again. For
        example, a recipient that was refused by a relay out of step may be accepted.
        """
        self.retried = True
        self._reset()

    # What is to be said

    def prepare(self, extensions: Mapping[str, str], *, reset: bool = False) -> None:
        """Get ready for a relay with these `extensions`; RSET first with `reset`.

        What the relay cannot take is refused here, without trying: a message
        larger than SIZE, or of 8 bits where these can be neither sent nor
        re-encoded; all recipients if the sender needs SMTPUTF8 in vain, or else
        those that do.
        """
        message = self._fitting(extensions)
        sender = self._spelled(self.sender, extensions)
        if message is None or isinstance(sender, Reply):
            if isinstance(sender, Reply):
                self._settle(Status.REJECTED, sender)
            return
        parameters = f" SIZE={len(message)}" if "SIZE" in extensions else ""
        if not message.isascii():
            parameters += " BODY=8BITMIME"
        recipients = self._spell_recipients(extensions)
        if not recipients:
            return
        if not (self._is_plain or "".join((sender, *recipients.values())).isascii()):
            parameters += " SMTPUTF8"
        self._commands = [
            *([Command(Stage.SESSION, "RSET\r\n")] if reset else []),
            Command(Stage.MAIL, f"MAIL FROM:<{sender}>{parameters}\r\n", 250),
            *[
                Command(Stage.RCPT, f"RCPT TO:<{address}>\r\n", 250, index)
                for index, address in recipients.items()
            ],
            _DATA,
        ]
        self._data = stuffed(message)

    def _fitting(self, extensions: Mapping[str, str]) -> bytes | None:
        """Return the message as the relay can take it, or refuse it."""
        message: bytes | None = self._message
        if not self._message.isascii() and "8BITMIME" not in extensions:
            message = self._in_seven_bits()
        if message is None:
            return None
        limit = extensions.get("SIZE", "")
        if limit.isdecimal() and 0 < int(limit) < len(message):
            text = f"The message has {len(message)} bytes, the relay takes {limit}"
            self._settle(Status.REJECTED, Reply(0, "5.3.4", text))
            return None
        return message

    def _in_seven_bits(self) -> bytes | None:
        """Return the message with ASCII characters only, or refuse it."""
        try:
            message = complete(to_seven_bits(self._message))
        except MemoryError:
            self._settle(Status.DEFERRED, _NO_MEMORY)
            return None
        except Exception as error:
            # An error of any kind is about this message. The others go on.
            text = f"{_NO_8BITMIME.text}, and {type(error).__name__}: {error}"
            self._settle(Status.REJECTED, Reply(0, "5.6.3", text))
            return None
        return message

    def _spell_recipients(self, extensions: Mapping[str, str]) -> dict[int, str]:
        """Return the recipients that can be sent to the relay; reject the others."""
        if self._is_plain and not self._faulty:
            return dict(enumerate(self.recipients))
        spelled = {}
        for index, recipient in enumerate(self.recipients):
            address = self._faulty.get(index) or self._spelled(recipient, extensions)
            if isinstance(address, Reply):
                self._account(index, Status.REJECTED, address)
            else:
                spelled[index] = address
        return spelled

    @staticmethod
    def _spelled(address: str, extensions: Mapping[str, str]) -> str | Reply:
        """Return an address for the wire, or the reply that refuses it."""
        if needs_smtputf8(address) and "SMTPUTF8" not in extensions:
            return _NO_SMTPUTF8
        return on_the_wire(address)

    def next_group(self, size: int) -> bytes:
        """Return the next commands, at most `size`; none where they are no use."""
        if self.is_done or self._written == len(self._commands):
            return b""
        group = self._commands[self._written : self._written + size]
        self._written += len(group)
        return "".join([command.line for command in group]).encode()

    def content(self) -> bytes:
        """Return what follows the reply to DATA: the message, with its final dot.

        A lone dot if no recipient was accepted, nothing if DATA was refused.
        """
        if not self._go_ahead:
            return b""
        return self._data if self._accepted else END_OF_DATA

    # What was replied

    def unanswered(self) -> Sequence[Stage]:
        """Return the stages of the commands that are handed out, but not answered."""
        waiting = self._commands[self._answered : self._written]
        return [command.stage for command in waiting]

    def take(self, reply: Reply) -> None:
        """Take the reply to the oldest command that has none yet.

        Raises `RelayError` where it is not about this message: the relay is in
        trouble, and has `reply`, or it is out of step, and has none.
        """
        stage, _, expected, index = self._commands[self._answered]
        self._answered += 1
        if reply.code == expected:
            self.heard = True
            if stage is Stage.RCPT:
                self._accept(index)
            elif stage is Stage.DATA:
                self._go_ahead = True
            return
        status = judge(stage, reply.code)
        if status is None:
            raise RelayError(str(reply), reply)
        if stage is Stage.SESSION:
            return
        self._check_step(stage, reply)
        self.heard = True
        if status is not Status.SENT and stage is not Stage.RCPT:
            self._settle(status, reply)
        elif status is not Status.SENT:
            self._account(index, status, reply)
        elif stage is Stage.RCPT:
            self._accept(index)

    def _accept(self, index: int) -> None:
        if index not in self._outcomes:
            self._accepted.append(index)

    def _check_step(self, stage: Stage, reply: Reply) -> None:
        """Raise `RelayError` for a reply that belongs to another command."""
        go_ahead = 354 if stage is Stage.DATA else 250
        other = 200 <= reply.code <= 399 and reply.code // 100 != go_ahead // 100
        # The end of the message before, or RSET, must have made way for MAIL.
        nested = stage is Stage.MAIL and reply.code == 503 and not self.is_first
        if other or nested:
            raise RelayError(f"the relay is out of step: {reply} to {stage.value}")

    def finish(self, reply: Reply) -> None:
        """Take the reply to the final dot; raises as `take`."""
        status = judge(Stage.END, reply.code)
        if status is None:
            error = RelayError(str(reply), reply)
            self.interrupt(error)
            raise error
        if 300 <= reply.code <= 399:
            raise RelayError(f"the relay is out of step: {reply} to the final dot")
        self._settle(status, reply)

    # What came of it

    def interrupt(self, error: OSError) -> None:
        """The dialogue broke off with `error` before the final dot was sent.

        Trouble of the relay is no outcome. But where the relay has refused
        recipients of this very message already, that is kept, and the others are
        deferred: it may hang up because of these (too many errors), and would do
        so for ever.
        """
        failure = _trouble(error)
        refusals = any(outcome.reply.code for outcome in self._outcomes.values())
        if failure is not None and not refusals:
            self._had_its_turn = True
            self.fail(failure)
        elif isinstance(said := getattr(failure, "reply", None), Reply):
            self._settle(Status.DEFERRED, said)
        else:
            text = f"The dialogue was interrupted: {error}"
            self._settle(Status.DEFERRED, Reply(0, "4.4.2", text))

    def doubt(self, error: Exception) -> None:
        """The final dot was sent, and no reply came but `error`."""
        text = f"No reply to the end of the message: {error}"
        self._settle(Status.UNCERTAIN, Reply(0, "4.4.2", text))

    def fail(self, failure: RelayError) -> None:
        """The relay is in trouble."""
        self._failure = failure
        self.is_done = True

    def _account(self, index: int, status: Status, reply: Reply) -> None:
        if index not in self._outcomes:
            self._outcomes[index] = Outcome(self.recipients[index], status, reply)
            self.is_done = len(self._outcomes) == len(self.recipients)

    def _settle(self, status: Status, reply: Reply) -> None:
        """Account for all recipients that are not."""
        for index, recipient in enumerate(self.recipients):
            if index not in self._outcomes:
                self._outcomes[index] = Outcome(recipient, status, reply)
        self.is_done = True

    @property
    def relay_failure(self) -> RelayError | None:
        """Why the relay is in trouble, if it is."""
        return self._failure

    def report(self) -> DeliveryReport:
        """Return the account."""
        failure = self._failure
        if failure is None:
            order = range(len(self.recipients))
            outcomes = tuple(map(self._outcomes.__getitem__, order))
            return DeliveryReport(self.message_id, self.recipients, outcomes)
        said = failure.reply if isinstance(failure.reply, Reply) else failure
        return DeliveryReport(
            self.message_id,
            self.recipients,
            relay_failure=said,
            had_its_turn=self._had_its_turn,
        )


def _fault_of(address: str) -> Reply | None:
    """Return why `address` is not a bare address that can work, or None."""
    try:
        if parse_address(address) == address:
            return None
        return Reply(0, "5.1.3", f"Not a bare address: {address!r}")
    except AddressError as error:
        return Reply(0, "5.1.3", str(error))


def silence(error: TimeoutError) -> RelayError:
    """Return the trouble of a relay that does not answer in time."""
    return RelayError(f"the relay fell silent: {error}")


def _trouble(error: OSError) -> RelayError | None:
    """Return the trouble of the relay that `error` tells of, None for a loss."""
    if isinstance(error, TimeoutError):
        return silence(error)
    return error if isinstance(error, RelayError) else None
