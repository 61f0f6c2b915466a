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

A prepared file is left over if the process dies between the vote and the
finish, and nobody here can know what the other resources did: it is *in
doubt*, never sent or removed by itself. One of the prepared files, the
*leader*, is kept open and locked until the last of them is published, and each
names its leader; so whoever finds one can tell whether its transaction is
alive, at the cost of one open file for each transaction.

A file gets that name before it is synced, for then one commit of the file
system's journal covers both; the sync of ``tmp`` that follows finds little to do.
So a power failure during the vote may leave a prepared name on a file that is
not all there. Its checksum, ``C=``, tells: such a file is no more than one that
was never complete.

Where no other resource takes part, and there is a single entry, nobody can
come to doubt: what decides is one step, by which it gets its name in ``new``.
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

from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.files import explained
from postcommit.files import sync
from postcommit.files import unable
from postcommit.interfaces import IBatch
from postcommit.log import Log
from postcommit.maildir import Maildir
from postcommit.maildir import MaildirMessage
from postcommit.queue.lock import FileLock
from postcommit.queue.wakeup import ring


log = Log(__name__)

_CHECKSUM = ",C="
_PREPARED = ":prepared="

# File syncs that run side by side; the kernel merges them.
_SYNC_THREADS = 16

_BLOCK = 1 << 16


@implementer(IBatch)
class Staging:
    """See `IBatch`; the items are messages in ``tmp``."""

    def __init__(self, maildir: Maildir) -> None:
        self._maildir = maildir
        self._leader: FileLock | None = None
        # After ordinary storages, so that their locks are gone when we
        # publish; before «~sqlalchemy:», which commits in its vote.
        self.sort_key = f"~mail:queued:{maildir.path}"

    def prepare(
        self, items: Sequence[MaildirMessage], *, alone: bool = False
    ) -> None:
        if not items:
            return
        with explained(self._maildir.path, "make the entries durable"):
            if alone and len(items) == 1:
                items[0].sync()
            else:
                self._prepare(items)

    def _prepare(self, items: Sequence[MaildirMessage]) -> None:
        leader = self._mark(items)
        syncs = [item.sync for item in items[1:]]
        _do_all([partial(os.fsync, leader.descriptor), *syncs])
        sync(self._maildir.folder("tmp"))
        _check_writable(self._maildir.folder("new"))

    def _mark(self, items: Sequence[MaildirMessage]) -> FileLock:
        """Give the items their prepared names; return the lock of the leader."""
        items[0].reveal()
        self._leader = leader = FileLock(items[0].path)
        if not leader.acquire():
            raise QueueError(items[0].path, "is locked by another process")
        mark = f"{_PREPARED}{_with_checksum(items[0].name, items[0])}"
        for item in items:
            item.move(f"{_with_checksum(item.path, item)}{mark}")
        return leader

    def publish(self, items: Sequence[MaildirMessage]) -> None:
        if not items:
            return
        left: list[str] = []
        causes: list[OSError] = []
        try:
            if self._leader is None:
                self._decide(items[0])
            else:
                self._move(items, left, causes)
            try:
                sync(self._maildir.folder("new"))
            except OSError as error:
                causes.append(error)
        finally:
            # Also should this be interrupted: then what is left is in doubt.
            self._release()
            ring(self._maildir.path)
        if causes:
            failure = PublishError(self._maildir.path, tuple(left), causes[0])
            log.critical("%s; in tmp: %s", failure, ", ".join(left) or "none")
            raise failure from causes[0]

    def _decide(self, item: MaildirMessage) -> None:
        """Accept the only entry of a transaction; if that fails, it is aborted."""
        try:
            item.move(item.target)
        except OSError as error:
            self.discard([item])
            raise unable(self._maildir.path, "accept the entry", error) from error

    def _move(
        self,
        items: Sequence[MaildirMessage],
        left: list[str],
        causes: list[OSError],
    ) -> None:
        """Accept the items; add to `left` what could not be, and why to `causes`."""
        # The leader comes last: as long as any is prepared, so is the leader.
        for item in reversed(items):
            try:
                item.move(item.target)
            except OSError as error:
                left.append(os.path.basename(item.path))
                causes.append(error)

    def discard(self, items: Sequence[MaildirMessage]) -> None:
        for item in reversed(items):
            try:
                item.abort()
            except OSError as error:
                log.error("Left behind: %s", error)
        self._release()

    def abandon(self, items: Sequence[MaildirMessage]) -> None:
        """Leave what is prepared in doubt; discard what is not; see `IBatch`."""
        left = [os.path.basename(i.path) for i in items if is_prepared(i.path)]
        if not left:
            self.discard(items)
            return
        self._release()
        log.critical(
            "%s: the commit was interrupted; in doubt, for 'postcommit recover': %s",
            self._maildir.path,
            ", ".join(left),
        )

    def _release(self) -> None:
        if self._leader is not None:
            self._leader.release()
            self._leader = None

    def __del__(self) -> None:
        # An interrupt may come before anything here can see to it; what is in doubt
        # since then must not look as if its transaction was alive.
        self._release()


def _do_all(syncs: Sequence[Callable[[], object]]) -> None:
    """Call each of `syncs`, side by side; raise what one of them raises."""
    left = iter(list(syncs))  # each thread takes the next one
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for one in left:
                one()
        except BaseException as error:  # none may pass for a sync
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


# What is found in ``tmp``


def is_prepared(path: str) -> bool:
    """Tell whether the file in ``tmp`` has the name of a prepared one."""
    return _PREPARED in os.path.basename(path)


def is_in_doubt(path: str) -> bool:
    """Tell whether the prepared file `path` is complete, and its transaction dead.

    False also where it was published or discarded meanwhile.
    """
    return _is_dead(path) and _is_complete(path)


def is_incomplete(path: str) -> bool:
    """Tell whether the file in ``tmp``, if nobody writes it, never was complete."""
    return not is_prepared(path) or (_is_dead(path) and not _is_complete(path))


def _is_dead(path: str) -> bool:
    try:
        lock = FileLock(leader_of(path))
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
    """Return the path of the file whose lock tells of the prepared file `path`."""
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


def _with_checksum(name: str, item: MaildirMessage) -> str:
    return f"{name}{_CHECKSUM}{item.checksum:08x}"
