"""The files in ``tmp``: staged, prepared or in doubt, as their names show it.

=============================  =================================================
in ``tmp/``                    what it is
=============================  =================================================
no name                        the first message of a transaction that is running
``NAME``                       being written, or complete, and the transaction
                               is running
``NAME,C=...:prepared=LEADER`` the transaction votes, or has voted: then it is
                               complete and durable
=============================  =================================================

A prepared file is left over if the process dies between the vote and the finish. The
queue cannot know what the other resources did: the file is *in doubt*, and is never
sent or removed by itself. One of the prepared files, the *leader*, is kept open and
locked until the last of them is published, and each names its leader. So its lock
shows whether the transaction is alive, at the cost of one open file for each
transaction.

A file gets its prepared name before it is synced. Then one commit of the file
system's journal covers both, and the sync of ``tmp`` that follows finds little to do.
Therefore a power failure during the vote may leave a prepared name on a file that is
not complete. Its checksum, ``C=``, shows that. Such a file counts as a file that
was never complete.

If no other resource takes part and there is a single entry, it is never in doubt: one
step decides, by which it gets its name in ``new``.
"""
from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence

from postcommit._maildir.files import FileLock


PREPARED = ":prepared="
_CHECKSUM = ",C="

_BLOCK = 1 << 16


def prepared_names(names: Sequence[tuple[str, int]]) -> list[str]:
    """Return the names of the prepared files of one transaction.

    `names` are their original names and their checksums. The first is the leader.
    """
    marked = [f"{name}{_CHECKSUM}{checksum:08x}" for name, checksum in names]
    return [f"{name}{PREPARED}{marked[0]}" for name in marked]


def is_prepared(path: str) -> bool:
    """Return whether the file in ``tmp`` has the name of a prepared file."""
    return PREPARED in os.path.basename(path)


def is_in_doubt(path: str) -> bool:
    """Return whether the prepared file `path` is complete, and its transaction dead.

    False also if it has been published or discarded since.
    """
    return _is_dead(path) and _is_complete(path)


def is_incomplete(path: str) -> bool:
    """Return whether the file in ``tmp`` was never complete, if its writer is dead."""
    return not is_prepared(path) or (_is_dead(path) and not _is_complete(path))


def _is_dead(path: str) -> bool:
    try:
        try:
            lock = FileLock(leader_of(path))
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
            lock = FileLock(leader_of(path), os.O_RDONLY)
    except FileNotFoundError:
        # The leader goes last, so nothing of a living transaction is left.
        return os.path.exists(path)
    try:
        return lock.acquire(shared=True) and os.path.exists(path)
    finally:
        lock.release()


def _is_complete(path: str) -> bool:
    wanted = _original(path)[1]
    try:
        with open(path, "rb") as file:
            found = 0
            while block := file.read(_BLOCK):
                found = zlib.crc32(block, found)
    except FileNotFoundError:
        return False
    return not wanted or wanted == f"{found:08x}"


def leader_of(path: str) -> str:
    """Return the path of the leader of the prepared file `path`."""
    folder, name = os.path.split(path)
    leader = name.partition(PREPARED)[2]
    return f"{folder}/{leader}{PREPARED}{leader}"


def original_name(path: str) -> str:
    """Return the name that the prepared file `path` has when it is published."""
    return _original(path)[0]


def _original(path: str) -> tuple[str, str]:
    """Return the original name of the prepared file `path`, and its checksum."""
    stem = os.path.basename(path).partition(PREPARED)[0]
    name, _, checksum = stem.partition(_CHECKSUM)
    return name, checksum
