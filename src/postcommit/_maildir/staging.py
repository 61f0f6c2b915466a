"""The entries of one transaction, on their way into the queue.

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
not complete. Its checksum, ``C=``, shows that. Such a file counts as one that was
never complete.

If no other resource takes part and there is a single entry, it is never in doubt: one
step decides, by which it gets its name in ``new``.
"""
from __future__ import annotations

import errno
import os
import threading
import zlib
from collections.abc import Callable
from collections.abc import Sequence
from functools import partial

from zope.interface import implementer

from postcommit._log import Log
from postcommit._maildir.files import FileLock
from postcommit._maildir.files import explained
from postcommit._maildir.files import sync
from postcommit._maildir.files import unable
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.maildir import Staged
from postcommit._maildir.presence import ring
from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.interfaces import IBatch


log = Log("postcommit.maildir.staging")

_CHECKSUM = ",C="
_PREPARED = ":prepared="

# Maximum number of file syncs that run side by side; the kernel merges them.
_SYNC_THREADS = 16

_BLOCK = 1 << 16


@implementer(IBatch)
class Staging:
    """The entries of one transaction, in ``tmp``; see `IBatch`."""

    def __init__(self, maildir: Maildir) -> None:
        self._maildir = maildir
        self._path = maildir.path
        # An interrupt may come at any moment. With this object its leader's lock is
        # dropped, so what is in doubt since then does not look alive.
        self._leader: FileLock | None = None
        # After ordinary storages, so that their locks are gone when we
        # publish; before «~sqlalchemy:», which commits in its vote.
        self.sort_key = f"~mail:queued:{maildir.path}"

    def prepare(
        self, items: Sequence[Staged], *, alone: bool = False
    ) -> None:
        if not items:
            return
        with explained(self._path, "make the entries durable"):
            if alone and len(items) == 1:
                items[0].sync()
            else:
                self._prepare(items)

    def _prepare(self, items: Sequence[Staged]) -> None:
        leader = self._mark(items)
        syncs = [item.sync for item in items[1:]]
        _do_all([partial(os.fsync, leader.descriptor), *syncs])
        sync(self._maildir.folder("tmp"))
        _check_writable(self._maildir.folder("new"))

    def _mark(self, items: Sequence[Staged]) -> FileLock:
        """Give the items their prepared names; return the lock of the leader."""
        items[0].reveal()
        self._leader = leader = FileLock(items[0].path)
        if not leader.acquire():
            raise QueueError(items[0].path, "is locked by another process")
        mark = f"{_PREPARED}{_with_checksum(items[0].name, items[0])}"
        for item in items:
            item.move(f"{_with_checksum(item.path, item)}{mark}")
        return leader

    def publish(self, items: Sequence[Staged]) -> None:
        if not items:
            return
        left: list[str] = []
        causes: list[OSError] = []
        try:
            # The leader comes last: as long as any is prepared, so is the leader.
            for item in reversed(items):
                try:
                    item.move(item.target)
                except OSError as error:
                    if self._leader is None:
                        # The only entry of a transaction, which is aborted by this.
                        self.discard([item])
                        raise unable(self._path, "accept the entry", error) from error
                    left.append(os.path.basename(item.path))
                    causes.append(error)
            try:
                sync(f"{self._path}/new")
            except OSError as error:
                causes.append(error)
        finally:
            # Also if this is interrupted: then what is left is in doubt.
            if self._leader is not None:
                self._release()
            ring(self._path)
        if causes:
            failure = PublishError(self._path, tuple(left), causes[0])
            log.critical("%s; in tmp: %s", failure, ", ".join(left) or "none")
            raise failure from causes[0]

    def discard(self, items: Sequence[Staged]) -> None:
        for item in reversed(items):
            try:
                item.abort()
            except OSError as error:
                log.error("Left behind: %s", error)
        self._release()

    def abandon(self, items: Sequence[Staged]) -> None:
        """Leave what is prepared in doubt; discard what is not; see `IBatch`."""
        left = [os.path.basename(i.path) for i in items if is_prepared(i.path)]
        if not left:
            self.discard(items)
            return
        self._release()
        log.critical(
            "%s: the commit was interrupted; in doubt, for 'postcommit recover': %s",
            self._path,
            ", ".join(left),
        )

    def _release(self) -> None:
        if self._leader is not None:
            self._leader.release()
            self._leader = None


def _do_all(syncs: Sequence[Callable[[], object]]) -> None:
    """Call each of `syncs`, side by side; raise what one of them raises."""
    left = iter(list(syncs))  # each thread takes the next one
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for one in left:
                one()
        except BaseException as error:  # otherwise it would pass for a sync
            errors.append(error)

    helpers = []
    try:
        for _ in range(min(_SYNC_THREADS, len(syncs)) - 1):
            helper = threading.Thread(target=work)
            helper.start()
            helpers.append(helper)
    except RuntimeError:
        pass  # no more threads, as in an exit handler of the interpreter
    work()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]


def _check_writable(folder: str) -> None:
    """Raise OSError if `folder` has vanished, or nothing can be moved there."""
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        os.stat(folder)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)


# Files in ``tmp``


def is_prepared(path: str) -> bool:
    """Return whether the file in ``tmp`` has the name of a prepared one."""
    return _PREPARED in os.path.basename(path)


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
    leader = name.partition(_PREPARED)[2]
    return f"{folder}/{leader}{_PREPARED}{leader}"


def original_name(path: str) -> str:
    """Return the name that the prepared file `path` has when it is published."""
    return _original(path)[0]


def _original(path: str) -> tuple[str, str]:
    """Return the original name of the prepared file `path`, and its checksum."""
    stem = os.path.basename(path).partition(_PREPARED)[0]
    name, _, checksum = stem.partition(_CHECKSUM)
    return name, checksum


def _with_checksum(name: str, item: Staged) -> str:
    return f"{name}{_CHECKSUM}{item.checksum:08x}"
