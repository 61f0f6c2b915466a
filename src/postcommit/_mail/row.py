"""A message with its envelope, as a row of a queue in PostgreSQL."""
from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from postcommit._mail.message import message_id_of
from postcommit.errors import QueueError


# The version of the tables that this code works with.
VERSION = 1

# Maximum number of bytes of a message. A dump of the database writes two digits for
# each byte, and a value has 1 GB at most.
MOST_BYTES = 500_000_000

# Maximum number of bytes of a message id in its column. A key of an index has about
# 2,700 at most.
_MOST_OF_ID = 2000


def row(
    name: str, sender: str, recipients: Sequence[str], message: bytes
) -> dict[str, Any]:
    """Return the values of a new row, by column.

    `name` is that of the queue. Raises `QueueError` for a message that is too large.
    """
    if len(message) > MOST_BYTES:
        reason = f"a message has {len(message)} bytes, {MOST_BYTES} at most fit in it"
        raise QueueError(name, reason)
    return {
        "id": uuid.uuid4(),
        "sender": sender,
        "recipients": list(recipients),
        "message_id": indexed(message_id_of(message)),
        "message": message,
    }


def check_version(name: str, number: int, url: str = "URL") -> None:
    """Raise `QueueError` if the tables have not our `VERSION` but this `number`.

    `name` is that of the queue, and `url` the argument for ``postcommit migrate``.
    """
    if number > VERSION:
        reason = f"has tables of version {number}, and this postcommit knows"
        raise QueueError(name, f"{reason} {VERSION}; install a newer postcommit")
    if number < VERSION:
        reason = f"has tables of version {number} instead of {VERSION}"
        raise QueueError(name, f"{reason}; run 'postcommit migrate {url}'")


def indexed(message_id: str) -> str:
    """Return a message id as its column has it."""
    return plain(message_id).encode()[:_MOST_OF_ID].decode(errors="ignore")


def plain(text: str) -> str:
    """Return `text` in one line, as a column can have it: without NUL and halves."""
    one = " ".join(text.replace("\0", " ").split())
    return one.encode("utf-8", "replace").decode()
