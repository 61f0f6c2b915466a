"""A claimed row."""
from __future__ import annotations

import functools
import uuid
from collections.abc import Sequence
from typing import Any

from zope.interface import implementer

from postcommit._drain.contract import IClaim
from postcommit._mail.address import parse_recipients
from postcommit._mail.address import parse_sender
from postcommit._mail.entry import Entry
from postcommit._postgres.connections import Connections
from postcommit._postgres.removal import Removal
from postcommit.errors import AddressError
from postcommit.errors import EntryError
from postcommit.errors import QueueError


# Maximum number of bytes of a message that are read when its entry is claimed.
READ_AHEAD = 1 << 16

# Maximum number of bytes that `Claim.beginning` returns.
_BEGINNING = 1 << 22

# Number of hexadecimal digits of an id for operators.
DIGITS = 12

# Most entries of a queue have the same sender.
_parse_sender = functools.lru_cache(256)(parse_sender)


def place_of(name: str, id: uuid.UUID) -> str:
    """Return the place of an entry for people: the queue's `name` and its id."""
    return f"{name}#{id.hex[:DIGITS]}"


def entry_of(
    sender: str,
    recipients: Sequence[str],
    message: bytes,
    attempts: int,
    last_reply: str,
    uncertain: int,
    doubts: Sequence[Any],
    *,
    not_before: float | None = None,
    expires: float | None = None,
    name: str = "",
) -> Entry:
    """Return the entry of a row. Raises `EntryError` for what is not an entry.

    Other programs may insert rows, and people may edit them.
    """
    if not message:
        raise EntryError("the message is empty")
    try:
        addresses = parse_recipients(recipients)
        return Entry(
            _parse_sender(sender),
            addresses,
            message,
            attempts,
            last_reply,
            uncertain,
            _doubts(doubts, len(addresses)),
            not_before,
            expires,
            name=name,
        )
    except AddressError as error:
        raise EntryError(f"the envelope is damaged: {error}") from error


def _doubts(found: Sequence[Any], count: int) -> tuple[int, ...]:
    """Return the uncertain attempts of each of `count` recipients, empty if unknown."""
    are_numbers = all(type(each) is int and each >= 0 for each in found)
    return tuple(found) if are_numbers and len(found) == count else ()


@implementer(IClaim)
class Claim:
    """The right to send the entry of one row. See `IClaim`.

    `held` is the process row that it refers to. `tries` is how often a settlement was
    tried, and `token` is what shows in the row that one took effect. `removal` is a
    settlement that was begun.
    """

    entry: Entry
    removal: Removal | None = None

    def __init__(
        self, connections: Connections, held: uuid.UUID, row: tuple[Any, ...]
    ) -> None:
        self.key, self.accepted, self.expires, *self._envelope, self._message = row
        self.name = place_of(connections.name, self.key)
        self.held = held
        self.tries = 0
        self.token = uuid.uuid4()
        self._connections = connections

    def read(self) -> Entry:
        """Return the entry and keep it as `entry`. See `IClaim`."""
        message = self._bytes()
        sender, recipients, attempts, uncertain, doubts, last_reply = self._envelope
        self.entry = entry_of(
            sender,
            recipients,
            message,
            attempts,
            last_reply,
            uncertain,
            doubts,
            # As a file's name, which begins with the time.
            name=f"{int(self.accepted):010d}.{self.key.hex}",
        )
        return self.entry

    def _bytes(self) -> bytes:
        if self._message is None:
            found = self._connections.rows(
                "select message from {schema}.entry where id = %(id)s",
                {"id": self.key},
                doing="read the entry",
            )
            if not found:
                raise QueueError(self.name, "was removed")
            return bytes(found[0][0])
        return bytes(self._message)

    def beginning(self) -> bytes:
        """Return the first bytes of the message. See `IClaim`."""
        return self._bytes()[:_BEGINNING]
