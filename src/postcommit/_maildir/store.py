"""The queue on disk: each transition of an entry is one method.

=============  =====================================================
transition     effect
=============  =====================================================
accept         staged in ``tmp/``, published to ``new/``
claim          locked, wherever it is
finish         removed
defer          rewritten in ``cur/``; its mtime is when it is due
bury           copied to ``.Failed/new/``, for some recipients or all
=============  =====================================================

A new version of a file is written and synced first, and takes its place by one
rename. So a crash leaves the entry as it was, or as it will be.
"""
from __future__ import annotations

import itertools
import math
import os
import stat
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import MutableMapping
from collections.abc import Sequence
from contextlib import suppress

from zope.interface import implementer

from postcommit._drain.contract import IClaim
from postcommit._drain.contract import IQueue
from postcommit._drain.contract import Terms
from postcommit._drain.schedule import Schedule
from postcommit._log import Log
from postcommit._mail.entry import Entry
from postcommit._maildir import older
from postcommit._maildir import staging
from postcommit._maildir.consumer import Consumer
from postcommit._maildir.entry import BEGINNING
from postcommit._maildir.entry import UNREADABLE
from postcommit._maildir.entry import accepted_at
from postcommit._maildir.entry import may_go_on
from postcommit._maildir.entry import parse_entry
from postcommit._maildir.entry import preamble
from postcommit._maildir.entry import preamble_of
from postcommit._maildir.entry import stem
from postcommit._maildir.files import CREATE
from postcommit._maildir.files import FileLock
from postcommit._maildir.files import OpenFile
from postcommit._maildir.files import birth_time
from postcommit._maildir.files import explained
from postcommit._maildir.files import give_to_owner
from postcommit._maildir.files import remove
from postcommit._maildir.files import sync
from postcommit._maildir.files import unable
from postcommit._maildir.files import write
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.maildir import Staged
from postcommit._maildir.maildir import create_maildir
from postcommit._maildir.maildir import unique_name
from postcommit._maildir.mark import FAILED
from postcommit._maildir.mark import refuse_mailbox
from postcommit._maildir.presence import WAKEUP
from postcommit.errors import QueueError
from postcommit.interfaces import Batch


log = Log("postcommit.maildir.store")

_DAY = 86400.0

# Number of seconds after which the writer of a file in ``tmp`` is dead, as the Maildir
# format has it.
LEFTOVER_AGE = 36 * 3600.0


@implementer(IQueue)
class Store:
    """The queue at `path`, a Maildir; it is created if it is missing.

    Raises `QueueError`, such as `NotAQueueError` for a mailbox. With `to_look` it also
    opens a mailbox, and nothing may be changed in it.
    """

    def __init__(self, path: str, *, to_look: bool = False) -> None:
        self.maildir = Maildir(path, create=True)
        self.path = self.name = self.maildir.path
        # Time when the queue's folder was created, if the file system says it.
        self._created: float | None = None
        if not (to_look or self.maildir.is_new):
            is_link = os.path.islink(f"{self.path}/{FAILED}")
            if is_link or not os.path.lexists(f"{self.path}/{WAKEUP}"):
                refuse_mailbox(self.maildir)

    def consumer(
        self, schedule: Schedule, clock: Callable[[], float] | None = None
    ) -> Consumer:
        """Begin a drain; see `IQueue`."""
        return Consumer(self, schedule, clock or time.time)

    # Accept

    def batch(self) -> Batch:
        """Return the batch by which one transaction's entries are accepted."""
        return staging.Staging(self.maildir)

    def stage(
        self,
        sender: str,
        recipients: tuple[str, ...],
        message: Sequence[bytes | memoryview],
        *,
        terms: Terms | None = None,
        is_first: bool = False,
    ) -> Staged:
        """Write an entry to ``tmp``, as an item for a `batch`; see `IQueue`.

        The first item of a batch costs an open file and saves work on the disk.
        """
        if terms is not None:
            reason = "a queue on disk cannot keep terms; leave them out"
            raise QueueError(self.path, reason)
        lines = (preamble(sender, recipients, bytes(message[0][:16])), *message)
        return self.maildir.add(lines, nameless=is_first)

    # Claim

    def claim(
        self, path: str, locks: MutableMapping[str, FileLock] | None = None
    ) -> Claim | None:
        """Claim the entry at `path`; None if it is claimed, or gone.

        Its lock is in `locks`, by its key, before it is taken, so that no claim can be
        lost.
        """
        claim = Claim.take(path, locks)
        # An older library claims by a second name of the file.
        if claim is not None and claim.links > 1 and older.is_claimed(path):
            claim.release()
            return None
        if claim is not None:
            claim.store = self
        return claim

    # Settle

    def accepted(self, claim: Claim, now: float | None = None) -> float:
        """Return when the entry was accepted, in seconds since the epoch.

        The name says it, otherwise the file's time of modification. A time more than a
        day before the queue was created comes from a clock that was wrong: for example,
        it was 1970 before the first synchronisation. If both are wrong, the answer is
        `now`.
        """
        now = time.time() if now is None else now
        told = accepted_at(claim.key)
        if self._created is None:
            self._created = birth_time(self.path) or -math.inf
        for seconds in (told, claim.changed, now):
            if seconds is not None and seconds > self._created - _DAY:
                return seconds
        return claim.changed if told is None else told  # the clock is still wrong

    def finish(self, claim: Claim) -> None:
        """Remove the entry: nothing is left to do for it."""
        try:
            os.unlink(claim.path)
        except FileNotFoundError:
            if self.still_has(claim):
                with explained(claim.path, "remove the entry"):
                    os.unlink(claim.path)
        except OSError as error:
            raise unable(claim.path, "remove the entry", error) from error

    def still_has(self, claim: Claim) -> bool:
        """Return whether the entry was not removed; if it was moved, follow it."""
        with explained(claim.path, "look for the entry"):
            return claim.find([self.maildir.folder("new"), self.maildir.folder("cur")])

    def defer(
        self, claim: Claim, entry: Entry, due: float, accepted: float | None = None
    ) -> None:
        """Replace the entry by `entry`, and make it due then.

        Its new name says when it was `accepted`, by default the time that the old name
        or the file says. All times are in seconds since the epoch. May be called again
        if it raises: then the entry is as it was, in its old place or in ``cur``, and
        still claimed.
        """
        with explained(claim.path, "defer the entry"):
            rewritten = self._write("", [preamble_of(entry), entry.message], due)
            try:
                # Two renames, and never two names: a crash between them would leave
                # two entries otherwise.
                self._move_to_cur(claim, accepted)
                os.rename(rewritten, claim.path)
            except OSError:
                remove(rewritten)
                raise
        for name in ("cur", "new"):
            self._sync(name)

    def postpone(
        self, claim: Claim, due: float, accepted: float | None = None
    ) -> None:
        """Make the entry due then, as `defer`, but without writing.

        For a full disk.
        """
        with explained(claim.path, "postpone the entry"):
            os.utime(claim.path, (due, due))
            self._move_to_cur(claim, accepted)

    def _move_to_cur(self, claim: Claim, accepted: float | None) -> None:
        name = stem(claim.path)
        told = accepted_at(name)
        if accepted is None:
            accepted = claim.changed if told is None else told
        if accepted != told:
            # Otherwise the entry would always be as young as its last attempt. The time
            # is one that a name can have: otherwise each deferral would add a prefix.
            accepted = min(max(accepted, 0.0), time.time())
            name = f"{int(accepted):010d}.{name}"
        elif os.path.dirname(claim.path) == self.maildir.folder("cur"):
            return
        target = f"{self.maildir.folder('cur')}/{name}:2,"
        os.rename(claim.path, target)
        claim.path = target

    def _sync(self, name: str) -> None:
        """Sync a folder after a rename that cannot be repeated; log an error.

        If this fails, and then the power, the entry is as it was before.
        """
        try:
            sync(self.maildir.folder(name))
        except OSError as error:
            log.error("%s: cannot be synced: %s", self.maildir.folder(name), error)

    def bury(self, claim: Claim, entry: Entry, *, is_last: bool = False) -> None:
        """Keep `entry` as a dead letter, of rejected recipients.

        If it `is_last`, nothing of the claimed entry stays in the queue, and the dead
        letter keeps its name, and with it the id that an operator may have noted.
        Otherwise the number of the attempt is added to the name. In both cases, doing
        it again after a crash changes nothing.
        """
        self._keep(claim, entry, "" if is_last else f".R{entry.attempts}")

    def bury_uncertain(
        self, claim: Claim, entry: Entry, *, is_last: bool = False
    ) -> None:
        """Keep `entry` as a dead letter, of recipients that may have the message.

        `is_last` is that of `bury`.
        """
        self._keep(claim, entry, "" if is_last else f".U{entry.attempts}")

    def _keep(self, claim: Claim, entry: Entry, suffix: str) -> None:
        name = f"{claim.key}{suffix}"
        with explained(f"{self.path}/{FAILED}", "keep a dead letter"):
            self._bury(name, [preamble_of(entry), entry.message])

    def bury_unreadable(self, claim: Claim, reason: str) -> None:
        """Keep a file that is not an entry as a dead letter, and remove it.

        A large file is moved as it is, without the reason: it may be a sparse one,
        larger than the disk.
        """
        said = " ".join(reason.split()).encode()
        with explained(f"{self.path}/{FAILED}", "keep a dead letter"):
            if claim.is_large:
                failed = self._failed().folder("new")
                os.rename(claim.path, f"{failed}/{claim.key}")
                sync(failed)
                return
            self._bury(claim.key, [UNREADABLE, said, b"\n", claim.read_bytes()])
        self.finish(claim)

    def _bury(self, name: str, lines: Sequence[bytes]) -> None:
        failed = self._failed()
        written = self._write(FAILED, lines, time.time())
        os.rename(written, f"{failed.folder('new')}/{name}")
        sync(failed.folder("new"))

    def _failed(self) -> Maildir:
        path = f"{self.path}/{FAILED}"
        if not os.path.lexists(path):
            create_maildir(path, owner_of=self.path)
        failed = Maildir(path)
        # Maildir++ readers recognise a subfolder by this file.
        mark = f"{path}/maildirfolder"
        if not os.path.lexists(mark):
            with suppress(FileExistsError), OpenFile(mark, CREATE) as file:
                give_to_owner(file.descriptor, self.path)
        return failed

    def _write(self, subfolder: str, lines: Sequence[bytes], mtime: float) -> str:
        """Write a durable file to ``tmp``, and return its path."""
        path = os.path.join(self.path, subfolder, "tmp", unique_name())
        try:
            with OpenFile(path, CREATE) as file:
                give_to_owner(file.descriptor, self.path)
                write(file.descriptor, lines)
                os.utime(file.descriptor, (mtime, mtime))
                os.fsync(file.descriptor)
        except OSError:
            remove(path)
            raise
        return path

    # Leftovers of a crash

    def in_doubt(self) -> Iterator[str]:
        """Yield the prepared files of transactions that are dead."""
        for path in self.maildir.paths("tmp"):
            if staging.is_prepared(path) and staging.is_in_doubt(path):
                yield path

    def remove_leftovers(self) -> None:
        """Remove files that were not complete 36 hours ago."""
        for subfolder in ("", FAILED):
            folder = os.path.join(self.path, subfolder, "tmp")
            try:
                names = os.listdir(folder)
            except FileNotFoundError:
                continue
            for path in (f"{folder}/{name}" for name in names):
                if _age(path) > LEFTOVER_AGE and staging.is_incomplete(path):
                    log.warning("%s: removed, it was never complete", path)
                    remove(path)


@implementer(IClaim)
class Claim:
    """The right to send one entry; see `IClaim`.

    `path` is where it is, `key` its name without the flags that it has in ``cur``,
    `links` the number of its names, `changed` its time of modification when it was
    claimed. `entry` is what it says, once it was read.

    No claim outlives the process that took it.
    """

    entry: Entry
    expires = None
    #: The queue, and the clock for `accepted`.
    store: Store
    clock = staticmethod(time.time)

    def __init__(self, path: str, lock: FileLock, status: os.stat_result) -> None:
        self.path = path
        self.key = stem(path)
        self.is_deferred = os.path.dirname(path).endswith("/cur")
        self.links = status.st_nlink
        self.changed = status.st_mtime
        self._size = status.st_size
        self._lock = lock

    @classmethod
    def take(
        cls, path: str, locks: MutableMapping[str, FileLock] | None = None
    ) -> Claim | None:
        """Claim the entry at `path`; None if it is claimed, or gone.

        Its lock is in `locks`, by its key, before it is taken, so that no claim can be
        lost.
        Raises OSError if it cannot be opened, or is not a regular file.
        """
        try:
            lock = FileLock(path)
        except FileNotFoundError:
            return None
        claim = None
        try:
            if locks is not None:
                locks[stem(path)] = lock
            if lock.acquire():
                status = os.fstat(lock.descriptor)
                if _is_still(status, path):
                    claim = cls(path, lock, status)
        finally:
            if claim is None:
                lock.release()
        return claim

    @property
    def name(self) -> str:
        """The path, for logs."""
        return self.path

    @property
    def accepted(self) -> float:
        """When the entry was accepted; see `Store.accepted`."""
        return self.store.accepted(self, self.clock())

    @property
    def is_large(self) -> bool:
        """Whether the file has more than `BEGINNING` bytes."""
        return self._size > BEGINNING

    def find(self, folders: Sequence[str]) -> bool:
        """Return whether the file is still there, and follow it to where it is now.

        A Maildir reader moves a file that it has seen from ``new`` to ``cur``, and
        changes the flags of its name. A file that is in none of `folders` was removed.
        Raises OSError if that is not known: if one of the folders is gone, it may come
        back with the file in it.
        """
        locked = os.fstat(self._lock.descriptor)
        for path in itertools.chain((self.path,), self._namesakes(folders)):
            try:
                is_here = os.path.samestat(os.lstat(path), locked)
            except FileNotFoundError:
                continue
            if is_here:
                self.path = path
                return True
        return False

    def _namesakes(self, folders: Sequence[str]) -> Iterator[str]:
        for folder in folders:
            for name in os.listdir(folder):
                if stem(name) == self.key:
                    yield f"{folder}/{name}"

    def read(self) -> Entry:
        """Read the entry. Raises `EntryError` if the file is not an entry.

        Reads no more than the beginning of such a file, however large it is.
        """
        if self.is_large:
            head = self.beginning()
            if not may_go_on(head):
                parse_entry(head)
        self.entry = parse_entry(self.read_bytes())
        return self.entry

    def beginning(self) -> bytes:
        """Read the first `BEGINNING` bytes of the file."""
        return os.pread(self._lock.descriptor, BEGINNING, 0)

    def read_bytes(self) -> bytes:
        """Read the file as it is."""
        # One byte more than there are: then a short answer says that this is all.
        data = piece = os.pread(self._lock.descriptor, self._size + 1, 0)
        while piece and len(data) != self._size:
            piece = os.pread(self._lock.descriptor, self._size + 1, len(data))
            data += piece
        return data

    def release(self, *, removed: bool = False) -> None:
        """Let others claim what is left of the entry. May be called again.

        With `removed` nothing is left.
        """
        self._lock.release(removed=removed)


def _is_still(locked: os.stat_result, path: str) -> bool:
    """Return whether the file that we have `locked` is the one at `path`.

    Between our opening and locking it, its holder may have settled the entry:
    then ours was removed, or replaced by another file.
    """
    if not stat.S_ISREG(locked.st_mode):
        raise QueueError(path, "is no regular file; remove it from the queue")
    try:
        return os.path.samestat(os.stat(path), locked)
    except FileNotFoundError:
        return False


def _age(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


