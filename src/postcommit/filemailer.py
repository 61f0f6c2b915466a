"""A mailer for development: each message becomes a file that mail readers open."""
from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import zope.event
from zope.interface import implementer

from postcommit.errors import QueueError
from postcommit.errors import RelayError
from postcommit.files import create_file
from postcommit.files import explained
from postcommit.interfaces import IFileMailer
from postcommit.interfaces import Status
from postcommit.maildir import unique_name
from postcommit.mailer import BaseMailer
from postcommit.message import to_crlf
from postcommit.options import checked
from postcommit.report import DeliveryReport
from postcommit.report import Reply


_check = functools.partial(checked, IFileMailer)


@implementer(IFileMailer)
class FileMailer(BaseMailer):
    """See `IFileMailer`.

    The files end in ``.eml``, and sort by time. The envelope stands above the
    header, as the last relay on the way writes it: ``Return-Path`` has the
    sender, a ``Delivered-To`` for each recipient follows. A file that cannot be
    written is the relay's failure.
    """

    def __init__(
        self, folder: str, *, notify: Callable[[Any], Any] = zope.event.notify
    ) -> None:
        self.folder: str = _check("folder", folder)
        self.notify = notify

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.folder}>"

    def _transmit(
        self, sender: str, recipients: tuple[str, ...], message: bytes, message_id: str
    ) -> DeliveryReport:
        path = os.path.join(self.folder, f"{unique_name()}.eml")
        try:
            with explained(path, "write the message"):
                os.makedirs(self.folder, exist_ok=True)
                _write(path, _envelope(sender, recipients) + to_crlf(message))
        except QueueError as error:
            failure = RelayError(str(error))
            failure.__cause__ = error
            return DeliveryReport(message_id, recipients, relay_failure=failure)
        reply = Reply(0, "2.0.0", f"Written to {path}")
        return DeliveryReport.alike(message_id, recipients, Status.SENT, reply)


def _envelope(sender: str, recipients: tuple[str, ...]) -> bytes:
    lines = [f"Return-Path: <{sender}>\r\n"]
    lines += [f"Delivered-To: {recipient}\r\n" for recipient in recipients]
    return "".join(lines).encode()


def _write(path: str, data: bytes) -> None:
    """Write `data`, so that `path` is complete as soon as it is there."""
    part = f"{path}.part"
    with create_file(part) as file:
        file.write(data)
    os.rename(part, path)
