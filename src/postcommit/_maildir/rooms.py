"""The waiting rooms of a queue: entries that no processor tries for now.

Each room is a subfolder of the queue, a Maildir of its own (Maildir++):

===========  ========================================================================
room         what waits there
===========  ========================================================================
``.Later``   scheduled entries, in ``new``. The name begins with the time when the entry
             is due, in seconds since the epoch
``.Bulk``    bulk entries, in ``new``
``.Held``    entries that a person has put there: in ``cur`` if they were deferred, and
             otherwise in ``new``
===========  ========================================================================

A staged file in ``tmp`` has to say where it belongs when it is published, also after a
crash. So the name of an entry for a room ends in a *mark*: ``,L=`` for a scheduled
entry, ``,B=`` for a bulk entry, and ``,LB=`` for a bulk entry that is scheduled. A
digest of the message id follows, by which an entry is found without opening all files.
The entry keeps its name, and with it the id for operators, when it leaves the room.
"""
from __future__ import annotations

import hashlib
import re

from postcommit._mail.terms import Terms


LATER = ".Later"
BULK = ".Bulk"
HELD = ".Held"
ROOMS = (LATER, BULK, HELD)

# Number of bytes of a digest. A match is always compared with the file as well.
_DIGEST_SIZE = 5

_MARK = re.compile(r",(L|B|LB)=([0-9a-f]{10})(?![0-9a-f])")


def mark(terms: Terms, message_id: str) -> str:
    """Return the end of the name of an entry with these terms.

    Empty for an entry that does not wait in a room.
    """
    letters = "B" if terms.bulk else ""
    if terms.not_before is not None:
        letters = f"L{letters}"
    return f",{letters}={_digest(message_id)}" if letters else ""


def _digest(message_id: str) -> str:
    data = message_id.encode(errors="surrogateescape")
    return hashlib.blake2b(data, digest_size=_DIGEST_SIZE).hexdigest()


def is_scheduled(name: str) -> bool:
    """Return whether an entry of this name is or was scheduled: it begins with when."""
    found = _MARK.search(name)
    return found is not None and "L" in found[1]


def is_bulk(name: str) -> bool:
    """Return whether an entry of this name is or was a bulk entry."""
    found = _MARK.search(name)
    return found is not None and "B" in found[1]


def room_of(name: str) -> str:
    """Return the room that an entry is accepted into, or '' for ``new`` itself."""
    if is_scheduled(name):
        return LATER
    return BULK if is_bulk(name) else ""


def rooms_of(name: str) -> list[str]:
    """Return the rooms that an entry of this name has been in, or is in."""
    found = _MARK.search(name)
    letters = found[1] if found else ""
    return [room for letter, room in (("L", LATER), ("B", BULK)) if letter in letters]


def may_have(name: str, message_id: str) -> bool:
    """Return whether an entry of this name may have the message id.

    False only if its digest is another one.
    """
    found = _MARK.search(name)
    return found is None or found[2] == _digest(message_id)
