"""A folder of `FileMailer`: the messages of a development, newest first."""
from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from postcommit._log import printable
from postcommit._mail.readable import field_of_header
from postcommit._mail.readable import fields_of_header
from postcommit._mail.readable import header_of
from postcommit._queue.values import timestamp
from postcommit.web._message import MOST


# The id of a message: the name of its file, as `FileMailer` makes it, without ".eml".
_ID = re.compile(r"(\d{1,20})\.[0-9a-f]+", re.ASCII)

# Bytes that are read of each message for the list.
_HEAD = 1 << 16

# Never through a symbolic link, and without waiting for a pipe.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True)
class Letter:
    """A message of the list. `written` is in seconds since the epoch."""

    id: str
    written: float
    subject: str
    sender: str
    recipients: tuple[str, ...]
    size: int

    def as_record(self) -> dict[str, Any]:
        """Return the object for JSON."""
        return {
            "id": self.id,
            "written": timestamp(self.written),
            "subject": self.subject,
            "sender": self.sender,
            "recipients": list(self.recipients),
            "size": self.size,
        }


class Mailbox:
    """The messages in the folder at `path`. Each method may raise OSError."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)

    def ids(self) -> list[str]:
        """Return the ids of all messages, newest first; empty without a folder."""
        try:
            names = os.listdir(self.path)
        except FileNotFoundError:
            return []  # the first message creates it
        ids = [name[:-4] for name in names if name.endswith(".eml")]
        found = [(int(match[1]), id) for id in ids if (match := _ID.fullmatch(id))]
        return [id for _, id in sorted(found, reverse=True)]

    def letters(self, ids: list[str]) -> list[Letter]:
        """Return the messages that have these ids, without those that are gone."""
        found = ((id, self.read(id, _HEAD)) for id in ids)
        return [self._letter(id, *read) for id, read in found if read is not None]

    def read(self, id: str, most: int = MOST + 1) -> tuple[bytes, int] | None:
        """Return the first `most` bytes of a message, and the number of all bytes.

        None if the message is missing.
        """
        if not _ID.fullmatch(id):
            return None
        try:
            descriptor = os.open(f"{self.path}/{id}.eml", _FLAGS)
        except FileNotFoundError:
            return None
        with open(descriptor, "rb") as file:
            return file.read(most), os.fstat(descriptor).st_size

    def _letter(self, id: str, data: bytes, size: int) -> Letter:
        header = header_of(data)
        return Letter(
            id,
            int(id.partition(".")[0]) / 1e9,
            printable(field_of_header(header, "Subject")),
            printable(field_of_header(header, "Return-Path").strip("<>")),
            tuple(
                printable(text)
                for name, text in fields_of_header(header)
                if name == "Delivered-To"
            ),
            size,
        )
