"""The entries of one transaction, on their way into the queue.

====================  ==========================================================
in ``tmp/``           what it is
====================  ==========================================================
``NAME``              being written, or complete, and the transaction is running
``NAME:prepared=...`` complete and durable; the transaction has voted
====================  ==========================================================

A prepared file is left over if the process dies between the vote and the
finish, and nobody here can know what the other resources did: it is *in
doubt*, never sent or removed by itself. One of the prepared files, the
*leader*, is kept open and locked until the last of them is published, and each
names its leader; so whoever finds one can tell whether its transaction is
alive, at the cost of one open file for each transaction.
"""
from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from zope.interface import implementer

from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.interfaces import IBatch
from postcommit.maildir import Maildir
from postcommit.maildir import MaildirMessageWriter
from postcommit.maildir import explained
from postcommit.maildir import sync
from postcommit.queue.lock import FileLock
from postcommit.queue.wakeup import ring


log = logging.getLogger(__name__)

_PREPARED = ":prepared="

# File syncs that run side by side; the kernel merges them.
_SYNC_THREADS = 16


@implementer(IBatch)
class Staging:
    """See `IBatch`; the items are closed writers of files in ``tmp``."""

    def __init__(self, maildir: Maildir) -> None:
        self._maildir = maildir
        self._leader: FileLock | None = None
        # After ordinary storages, so that their locks are gone when we
        # publish; before «~sqlalchemy:», which commits in its vote.
        self.sort_key = f"~mail:queued:{maildir.path}"

    def prepare(self, items: Sequence[MaildirMessageWriter]) -> None:
        if not items:
            return
        leader = items[0].name
        with explained(self._maildir.path, "make the entries durable"):
            self._leader = FileLock(items[0].path)
            if not self._leader.acquire():
                raise QueueError(items[0].path, "is locked by another process")
            _sync_all([item.path for item in items])
            for item in items:
                item.move(f"{item.path}{_PREPARED}{leader}")
            sync(self._maildir.folder("tmp"))
            _check_writable(self._maildir.folder("new"))

    def publish(self, items: Sequence[MaildirMessageWriter]) -> None:
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
                    left.append(os.path.basename(item.path))
                    causes.append(error)
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

    def discard(self, items: Sequence[MaildirMessageWriter]) -> None:
        for item in reversed(items):
            try:
                item.abort()
            except OSError as error:
                log.error("Left behind: %s", error)
        self._release()

    def _release(self) -> None:
        if self._leader is not None:
            self._leader.release()
            self._leader = None


def stage(
    maildir: Maildir, lines: Iterable[bytes | memoryview]
) -> MaildirMessageWriter:
    """Write an entry to ``tmp`` and close it.

    Raises `QueueError` where it cannot be written; then nothing is left.
    """
    writer = maildir.newMessage()
    try:
        writer.writelines(lines)
        writer.close()
    except BaseException:
        writer.abort()
        raise
    return writer


def _sync_all(paths: Sequence[str]) -> None:
    if len(paths) == 1:
        sync(paths[0])
        return
    with ThreadPoolExecutor(min(_SYNC_THREADS, len(paths))) as pool:
        try:
            results = pool.map(sync, paths)
        except RuntimeError:
            # No more threads, as in an exit handler of the interpreter.
            results = map(sync, paths)
        for _ in results:
            pass  # reading the results raises what a sync raised


def _check_writable(folder: str) -> None:
    """Raise OSError if `folder` has vanished, or nothing can be moved there."""
    os.stat(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)


def is_prepared(path: str) -> bool:
    """Tell whether the file in ``tmp`` is a prepared one."""
    return _PREPARED in os.path.basename(path)


def is_in_doubt(path: str) -> bool:
    """Tell whether the transaction of the prepared file `path` is dead.

    False also where it was published or discarded meanwhile.
    """
    try:
        lock = FileLock(leader_of(path))
    except FileNotFoundError:
        # The leader goes last, so nothing of a living transaction is left.
        return os.path.exists(path)
    try:
        return lock.acquire(shared=True) and os.path.exists(path)
    finally:
        lock.release()


def leader_of(path: str) -> str:
    """Return the path of the file whose lock tells of the prepared file `path`."""
    folder, name = os.path.split(path)
    leader = name.partition(_PREPARED)[2]
    return f"{folder}/{leader}{_PREPARED}{leader}"


def original_name(path: str) -> str:
    """Return the name that the prepared file `path` has when it is published."""
    return os.path.basename(path).partition(_PREPARED)[0]
