"""A mailer for development: each message becomes a file that mail readers open."""
from __future__ import annotations

import functools
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import zope.event
from zope.interface import implementer

from postcommit._config.options import checked
from postcommit._config.options import checked_notify
from postcommit._mail.message import message_id_of
from postcommit._mail.message import to_crlf
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._mailers.base import BaseMailer
from postcommit._transaction.event import Notify
from postcommit.errors import RelayError
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import Outgoing
from postcommit.interfaces import Status


_check = functools.partial(checked, IFileMailer)


@implementer(IFileMailer)
class FileMailer(BaseMailer):
    """Writes each message into a file, see `IFileMailer`.

    The files end in ``.eml``, and sort by time. The envelope is above the header, as
    the last relay writes it: ``Return-Path`` with the sender, and a ``Delivered-To``
    for each recipient. A file that cannot be written is the relay's failure.
    """

    def __init__(
        self, folder: str, *, notify: Callable[[Any], Any] = zope.event.notify
    ) -> None:
        self.folder: str = _check("folder", folder)
        self.notify: Notify = checked_notify(notify)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.folder}>"

    def _transmit(self, mail: Outgoing) -> DeliveryReport:
        message_id, recipients = message_id_of(mail.message), mail.recipients
        name = f"{time.time_ns()}.{secrets.token_hex(4)}.eml"
        path = os.path.join(self.folder, name)
        try:
            os.makedirs(self.folder, exist_ok=True)
            _write(path, _envelope(mail) + to_crlf(mail.message))
        except OSError as error:
            reason = error.strerror or error
            failure = RelayError(f"{path}: cannot write the message: {reason}")
            failure.__cause__ = error
            return DeliveryReport(message_id, recipients, relay_failure=failure)
        reply = Reply(0, "2.0.0", f"Written to {path}")
        return DeliveryReport.alike(message_id, recipients, Status.SENT, reply)


# Opens a file that only its owner may read: it is mail.
_for_the_owner = functools.partial(os.open, mode=0o600)


def _write(path: str, data: bytes) -> None:
    """Write a file, which is complete when it gets its name. Leave nothing else."""
    part = f"{path}.part"
    try:
        with open(part, "xb", opener=_for_the_owner) as file:
            file.write(data)
        os.rename(part, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(part)
        raise


def _envelope(mail: Outgoing) -> bytes:
    lines = [f"Return-Path: <{mail.sender}>\r\n"]
    lines += [f"Delivered-To: {recipient}\r\n" for recipient in mail.recipients]
    return "".join(lines).encode()
