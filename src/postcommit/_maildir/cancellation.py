"""Calls a mail off: its entries are claimed until the transaction has ended.

A commit removes them, and an abort releases them. While they are claimed, no processor
takes them. If the process dies before it has removed them, the kernel drops the claims,
and the mail is sent.

Only the name of an entry from a waiting room has a digest of the message id. So other
entries are opened: those in ``new`` and ``cur``, about 9 us each.
"""
from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from postcommit._mail.message import message_id_of
from postcommit._maildir import rooms
from postcommit._maildir.entry import HEAD
from postcommit._maildir.entry import parse_beginning
from postcommit._maildir.files import READ_FLAGS
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.maildir import Staged
from postcommit.errors import EntryError


if TYPE_CHECKING:
    from postcommit._maildir.store import Claim


# The folders in which an entry waits, in the order in which it moves.
_IN_TURN = [
    *(f"{rooms.HELD}/new", f"{rooms.HELD}/cur"),
    *(f"{rooms.LATER}/new", f"{rooms.BULK}/new", "new", "cur"),
    *(f"{rooms.HELD}/new", f"{rooms.HELD}/cur"),
]

# Errors about a name that is gone, or is a link, a socket or a folder.
_NOT_A_FILE = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EISDIR)


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
    read in this order, so that it is found wherever it is. A person may hold or release
    it in the meantime, so the held entries are looked at first and last. An entry may
    be yielded twice.

    Raises OSError if a folder cannot be read, or, in the end, if nothing was found and
    a file could not be read: it may have been the entry.
    """
    found, failure = False, None
    for folder in _IN_TURN:
        try:
            for path in _files_in(maildir.folder(folder)):
                try:
                    if has_id(path, message_id):
                        found = True
                        yield path
                except OSError as error:
                    failure = failure or error
        except FileNotFoundError:
            if folder in ("new", "cur"):
                raise
            # Nothing has ever waited in this room.
    if failure is not None and not found:
        raise failure


def _files_in(folder: str) -> Iterator[str]:
    with os.scandir(folder) as found:
        for entry in found:
            if not entry.name.startswith("."):
                yield entry.path


def is_of(path: str, message_id: str) -> bool:
    """Return whether the entry at `path` has this message id, as far as it is known.

    False for a file that cannot be read. See `has_id`.
    """
    try:
        return has_id(path, message_id)
    except OSError:
        return False


def has_id(path: str, message_id: str) -> bool:
    """Return whether the entry at `path` has this message id.

    Opens the file, unless a digest in its name shows that it has another one. False if
    it is gone, or is not an entry. Raises OSError if it cannot be read.
    """
    if not rooms.may_have(path.rpartition("/")[2], message_id):
        return False
    try:
        descriptor = os.open(path, READ_FLAGS)
        try:
            # Most entries have another id. To see this in the bytes takes a third of
            # the time that parsing them takes.
            head = os.read(descriptor, HEAD)
            is_whole = len(head) < HEAD or b"\n\n" in head or b"\n\r\n" in head
            if is_whole and message_id.encode(errors="replace") not in head:
                return False
            with io.FileIO(descriptor, "rb", closefd=False) as file:
                return message_id_of(parse_beginning(file, head).message) == message_id
        finally:
            os.close(descriptor)
    except EntryError:
        return False
    except OSError as error:
        if error.errno in _NOT_A_FILE:
            return False
        raise
