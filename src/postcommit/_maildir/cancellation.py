"""Calls a mail off: its entries are claimed until the transaction has ended.

A commit removes them, and an abort releases them. While they are claimed, no processor
takes them. If the process dies before it has removed them, the kernel drops the claims,
and the mail is sent.

Only the name of an entry from a waiting room has a digest of the message id. So other
entries are opened: those in ``new`` and ``cur``, about 15 us each.
"""
from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from postcommit._mail.message import message_id_of
from postcommit._maildir import rooms
from postcommit._maildir.entry import parse_beginning
from postcommit._maildir.files import READ_FLAGS
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.maildir import Staged
from postcommit.errors import EntryError


if TYPE_CHECKING:
    from postcommit._maildir.store import Claim


@dataclass(eq=False)
class Cancellation:
    """An item of a batch: what is removed when the batch is published.

    `claims` are entries in the queue, `staged` those of the same transaction.
    """

    claims: list[Claim]
    staged: list[Staged]


def waiting(maildir: Maildir, message_id: str) -> Iterator[str]:
    """Yield the entries of a message that wait in the queue, for whatever it is.

    An entry moves from a room to ``new``, and from there to ``cur``. The folders are
    read in this order, so that it is found wherever it is. Raises OSError.
    """
    for room in rooms.ROOMS:
        for folder in ("new", "cur"):
            with suppress(FileNotFoundError):  # nothing has ever waited there
                yield from _entries_in(maildir.folder(f"{room}/{folder}"), message_id)
    for folder in ("new", "cur"):
        yield from _entries_in(maildir.folder(folder), message_id)


def _entries_in(folder: str, message_id: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        for entry in found:
            if not entry.name.startswith(".") and is_of(entry.path, message_id):
                yield entry.path


def is_of(path: str, message_id: str) -> bool:
    """Return whether the entry at `path` has this message id, as far as it is known.

    Opens the file, unless a digest in its name shows that it has another one.
    """
    if not rooms.may_have(os.path.basename(path), message_id):
        return False
    try:
        with io.FileIO(os.open(path, READ_FLAGS), "rb") as file:
            return message_id_of(parse_beginning(file).message) == message_id
    except (OSError, EntryError):
        return False  # it was sent just now, or is not an entry
