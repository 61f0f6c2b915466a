"""The mailer that runs the local ``sendmail`` command."""
from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zope.event
from zope.interface import implementer

from postcommit._config.options import checked
from postcommit._config.options import checked_notify
from postcommit._mail.address import on_the_wire
from postcommit._mail.message import message_id_of
from postcommit._mail.message import to_crlf
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Outcome
from postcommit._mail.report import Reply
from postcommit._mailers.base import BaseMailer
from postcommit._transaction.event import Notify
from postcommit.errors import RelayError
from postcommit.interfaces import ISendmailMailer
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status


_check = functools.partial(checked, ISendmailMailer)

# Exit statuses of sysexits.h. With any other status, the recipients are deferred.
_REJECTED = frozenset({os.EX_DATAERR, os.EX_NOINPUT, os.EX_NOUSER, os.EX_NOHOST})
_BROKEN = frozenset({os.EX_OSFILE, os.EX_NOPERM, os.EX_CONFIG})

_TOO_LONG = "4.4.7"

_MOST_OF_STDERR = 2000

# Seconds to wait for the end of a program that was killed.
_PATIENCE = 1.0


@implementer(ISendmailMailer)
class SendmailMailer(BaseMailer):
    """Runs the local ``sendmail`` command, see `ISendmailMailer`.

    The program is run once for each `recipients_per_transaction` recipients, or less if
    they do not fit into its command line. The recipients of a call share one outcome,
    which the exit status of the program decides (sysexits.h). It is a failure of the
    relay if the program cannot be run, or lacks permission or configuration. Then the
    outcomes of earlier calls stay, and the others get no outcome. The recipients
    are uncertain if the program was killed or took too long. After a call that took too
    long, the others are deferred. A program that runs as another user cannot be killed:
    it is not waited for any longer.
    """

    def __init__(
        self,
        command: str = ISendmailMailer["command"].default,
        *,
        timeout: float = ISendmailMailer["timeout"].default,
        recipients_per_transaction: int = ISendmailMailer[
            "recipients_per_transaction"
        ].default,
        notify: Callable[[Any], Any] = zope.event.notify,
    ) -> None:
        self.command: str = _check("command", command)
        self.timeout: float = _check("timeout", timeout)
        self.recipients_per_transaction: int = _check(
            "recipients_per_transaction", recipients_per_transaction
        )
        self.notify: Notify = checked_notify(notify)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.command}>"

    def _transmit(self, mail: Outgoing) -> DeliveryReport:
        message_id, recipients = message_id_of(mail.message), tuple(mail.recipients)
        # Line ends are those of a local file; dots need no care, because of -i.
        data = to_crlf(mail.message).replace(b"\r\n", b"\n")
        outcomes: list[Outcome] = []
        most = self.recipients_per_transaction
        while len(outcomes) < len(recipients):
            some = recipients[len(outcomes) : len(outcomes) + most]
            try:
                status, reply = self._run(self._arguments(mail.sender, some), data)
            except OSError as error:
                if error.errno == errno.E2BIG and len(some) > 1:
                    most = len(some) // 2
                    continue
                text = f"{self.command} cannot be run: {error}"
                failure = RelayError.of(error, text)
                return DeliveryReport(
                    message_id, recipients, tuple(outcomes), relay_failure=failure
                )
            except BaseException as error:
                # For the pipeline: who may have the message must not get it again.
                error.report = _interrupted(  # type: ignore[attr-defined]
                    message_id, recipients, tuple(outcomes), len(some), error
                )
                raise
            outcomes += [Outcome(recipient, status, reply) for recipient in some]
            if reply.enhanced == _TOO_LONG:
                # The next call would probably take as long. It can wait.
                rest = recipients[len(outcomes) :]
                later = Reply(0, _TOO_LONG, f"Not tried, because {reply.text}")
                outcomes += [Outcome(r, Status.DEFERRED, later) for r in rest]
        return DeliveryReport(message_id, recipients, tuple(outcomes))

    def _arguments(self, sender: str, recipients: tuple[str, ...]) -> list[bytes]:
        path = on_the_wire(sender) if sender else "<>"
        addresses = map(on_the_wire, recipients)
        arguments = [self.command, "-i", "-f", path, "--", *addresses]
        return [argument.encode() for argument in arguments]

    def _run(self, arguments: list[bytes], data: bytes) -> tuple[Status, Reply]:
        """Run the program with the input `data`; raise OSError if it cannot be run."""
        # Files without names, not pipes. A child that the program leaves behind might
        # keep a pipe open. And communicate() has no time-out under gevent once a pipe
        # has taken the message, so a program that hangs would never be killed.
        with tempfile.TemporaryFile() as message, tempfile.TemporaryFile() as errors:
            message.write(data)
            message.seek(0)
            # No shell is involved, and the addresses were checked.
            process = subprocess.Popen(  # noqa: S603
                arguments,
                stdin=message,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
            try:
                process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                text = f"{self.command} took longer than {self.timeout:g} s"
                return Status.UNCERTAIN, Reply(0, _TOO_LONG, text)
            finally:
                _kill(process)
            errors.seek(0)
            said = errors.read(_MOST_OF_STDERR).decode("utf-8", "replace").strip()
        return self._judge(process.returncode, said)

    def _judge(self, code: int, said: str) -> tuple[Status, Reply]:
        text = f"{self.command} exited with {code}: {said}".rstrip(": ")
        if code == os.EX_OK:
            return Status.SENT, Reply(0, "2.0.0", text)
        if code < 0:
            text = f"{self.command} was killed by {_name_of(-code)}"
            return Status.UNCERTAIN, Reply(0, "4.3.0", text)
        if code in _BROKEN:
            raise OSError(text)
        if code in _REJECTED:
            return Status.REJECTED, Reply(0, "5.0.0", text)
        return Status.DEFERRED, Reply(0, "4.0.0", text)


def _interrupted(
    message_id: str,
    recipients: tuple[str, ...],
    done: tuple[Outcome, ...],
    count: int,
    error: BaseException,
) -> DeliveryReport:
    """Return the report after an `error` in a call for `count` recipients.

    These are uncertain, because the program may have taken the message. Those behind
    them are deferred.
    """
    name, rest = type(error).__name__, recipients[len(done) :]
    cut = Reply(0, "4.3.0", f"Interrupted by {name}")
    later = Reply(0, "4.3.0", f"Not tried, because of {name}")
    some = (Outcome(r, Status.UNCERTAIN, cut) for r in rest[:count])
    others = (Outcome(r, Status.DEFERRED, later) for r in rest[count:])
    return DeliveryReport(message_id, recipients, (*done, *some, *others))


def _name_of(number: int) -> str:
    """Return the name of a signal. Most of the real-time signals have only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that has not ended, with all that it has started.

    One that has become another user is left alone, because it cannot be killed. Exim,
    for example, becomes root or its own user.
    """
    if process.poll() is None:
        with suppress(PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        # Without a limit, a process that does not end would keep us.
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
