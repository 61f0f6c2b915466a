"""Finds entries: by id, file name or path, and by what is in their files.

Only its file has the addresses and the message id of an entry, so a search opens each
file. The obvious solution parses each envelope and header. With 200,000 entries this
takes twice as long as an operator likes to wait. So a search first looks for the bytes
that it needs in the beginning of the file, and parses only a file that has them.
"""
from __future__ import annotations

import os
import re
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence

from postcommit.errors import ItemError
from postcommit.queue.entry import FROM
from postcommit.queue.item import DIGITS
from postcommit.queue.item import READ_FLAGS
from postcommit.queue.item import Details
from postcommit.queue.item import Item
from postcommit.queue.item import State
from postcommit.queue.item import details
from postcommit.queue.item import items
from postcommit.queue.store import Store


# Bytes that are read of each file first. Most headers end before.
_GLANCE = 4096

_END_OF_HEADER = re.compile(rb"\n\r?\n")

# Fewest characters of an id that may be given for the whole.
_FEWEST = 4

# Maximum number of candidates that an error names.
_MOST_NAMED = 5


def with_addresses(
    found: Iterable[Item], wanted: Collection[str]
) -> Iterator[Details | None]:
    """Yield for each item what its file says, or None if it cannot be meant.

    It may be meant if each of the patterns `wanted` could match an address in its
    envelope. The caller compares the addresses themselves.
    """
    literals = [literal for pattern in wanted if (literal := _literal(pattern))]
    for item in found:
        if literals and _lacks_address(_glance(item), literals):
            yield None
        else:
            yield details(item)


def with_message_ids(
    found: Iterable[Item], wanted: Collection[str]
) -> Iterator[Details | None]:
    """Yield for each item what its file says, or None.

    None unless its message has one of the ids `wanted`, without angle brackets.
    """
    ids = set(wanted)
    literals = [id.encode(errors="replace") for id in ids]
    for item in found:
        if _lacks_id(_glance(item), literals):
            yield None
            continue
        read = details(item)
        yield read if read is not None and read.message_id in ids else None


def _literal(pattern: str) -> bytes:
    """Return the longest part of a pattern that every match has, in lower case."""
    # A bracket begins a set of characters, or a domain that is an IP address.
    parts = re.split("[*?]", pattern.partition("[")[0].lower())
    longest = max(parts, key=len)
    return longest.encode() if longest.isascii() else b""


def _glance(item: Item) -> bytes:
    """Read how the file begins; nothing where it cannot be read."""
    try:
        descriptor = os.open(item.path, READ_FLAGS)
    except OSError:
        return b""
    try:
        return os.read(descriptor, _GLANCE)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _lacks_address(head: bytes, literals: Iterable[bytes]) -> bool:
    """Tell whether the envelope, at the beginning of `head`, lacks one of these."""
    end = head.find(b"\n", head.find(b"\n") + 1)
    envelope = head[: max(end, 0)]
    # Other entries, and letters that become ASCII in lower case, need a closer look.
    if not envelope.startswith(FROM.rstrip()) or not envelope.isascii():
        return False
    lowered = envelope.lower()
    return any(literal not in lowered for literal in literals)


def _lacks_id(head: bytes, literals: Iterable[bytes]) -> bool:
    """Tell whether the header, which ends in `head`, has none of these ids."""
    if any(literal in head for literal in literals):
        return False
    return _END_OF_HEADER.search(head) is not None


# By what an operator gives


def bare_id(message_id: str) -> str:
    """Return a message id without its angle brackets, and without space around it."""
    return message_id.strip().removeprefix("<").removesuffix(">")


def find(store: Store, ids: Sequence[str]) -> list[Item]:
    """Return the items that `ids` mean, in their order, each once.

    Each of `ids` is an id or the beginning of one, a file's name or path, or a message
    id. A message id means every entry of that message: there are several if some
    recipients were rejected and others are tried again.

    Raises `ItemError` for one that is too short, that nothing in the queue has, or that
    is the beginning of several ids.
    """
    wanted = dict.fromkeys(ids)
    for given in wanted:
        _check(given)
    # A name that has an @ is possible, and so is a message id that has none.
    likely = [given for given in wanted if "@" in given]
    found = _of_messages(store, likely)
    found |= _named(store, [given for given in wanted if not found.get(given)])
    others = [given for given in wanted if not found[given] and given not in likely]
    found |= _of_messages(store, others)
    for given in wanted:
        if not found[given]:
            reason = "is not in this queue; it may have been sent or deleted"
            raise ItemError(given, reason)
    return list(dict.fromkeys(item for given in wanted for item in found[given]))


def _check(given: str) -> None:
    if not given.strip():
        raise ItemError(given, "is not an id; 'postcommit list' shows the ids")
    if len(bare_id(given)) < _FEWEST and "@" not in given:
        raise ItemError(given, f"is too short, give at least {_FEWEST} digits")


def _of_messages(store: Store, wanted: Sequence[str]) -> dict[str, list[Item]]:
    """Return the items of each message id, with or without angle brackets."""
    found: dict[str, list[Item]] = {bare_id(given): [] for given in wanted}
    if found:
        for read in with_message_ids(items(store, State), found):
            if read is not None:
                found[read.message_id].append(read.item)
    return {given: found[bare_id(given)] for given in wanted}


def _named(store: Store, wanted: Iterable[str]) -> dict[str, list[Item]]:
    """Return the only item that has each as id, name or path; none if none has."""
    found: dict[str, list[Item]] = {given: [] for given in wanted}
    lengths = {len(given) for given in found if len(given) <= DIGITS}
    for item in items(store, State) if found else ():
        for key in _keys(item, lengths):
            if key in found and item not in found[key]:
                found[key].append(item)
    for given, known in found.items():
        if len(known) > 1:
            raise _ambiguous(given, known)
    return found


def _keys(item: Item, lengths: Iterable[int]) -> Iterator[str]:
    """Yield by what `item` may be looked up."""
    yield item.path
    yield item.name
    yield os.path.basename(item.path)
    for length in lengths:
        yield item.id[:length]


def _ambiguous(given: str, found: list[Item]) -> ItemError:
    if len({item.id for item in found}) == 1:
        # A crash while an entry was buried leaves it in two folders for a while.
        told = " and ".join(item.path for item in found)
        return ItemError(given, f"is there twice; give the path: {told}")
    named = [f"{item.id} ({item.state.value})" for item in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        named.append(f"and {len(found) - _MOST_NAMED} more")
    return ItemError(given, f"is ambiguous: {', '.join(named)}; give more of it")
