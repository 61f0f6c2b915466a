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

What replaces a file is complete and durable first, and takes its place by one
rename; so a crash leaves the entry as it was, or as it will be.
"""
from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from collections.abc import Sequence
from weakref import WeakSet

from postcommit.files import CREATE
from postcommit.files import birth_time
from postcommit.files import explained
from postcommit.files import remove
from postcommit.files import sync
from postcommit.files import unable
from postcommit.files import write
from postcommit.interfaces import IBatch
from postcommit.log import Log
from postcommit.maildir import Maildir
from postcommit.maildir import MaildirMessage
from postcommit.maildir import unique_name
from postcommit.openfile import OpenFile
from postcommit.queue import staging
from postcommit.queue.entry import UNREADABLE
from postcommit.queue.entry import Claim
from postcommit.queue.entry import Entry
from postcommit.queue.entry import accepted_at
from postcommit.queue.entry import preamble
from postcommit.queue.lock import FileLock
from postcommit.queue.mark import FAILED
from postcommit.queue.mark import refuse_mailbox


log = Log(__name__)

# As the Maildir format has it: who needs longer to write a message is dead.
_DAY = 86400.0

LEFTOVER_AGE = 36 * 3600.0

# A processor of an older library claims NAME by a link .sending-NAME to it,
# for so many seconds.
FOREIGN_CLAIM_AGE = 3 * 3600.0


class Store:
    """The queue at `path`, a Maildir; it is created where it is missing.

    Raises `QueueError`, such as `NotAQueueError` for a mailbox. `to_look` opens one
    as well: then nothing may be changed in it.
    """

    def __init__(self, path: str, *, to_look: bool = False) -> None:
        self.maildir = Maildir(path, create=True)
        self.path = self.maildir.path
        self._locks: WeakSet[FileLock] = WeakSet()
        # When the queue's folder was created, as far as the file system says it.
        self._created: float | None = None
        if not to_look:
            refuse_mailbox(self.maildir)

    # Accept

    def batch(self) -> IBatch:
        """Return the batch by which one transaction's entries are accepted."""
        return staging.Staging(self.maildir)

    def stage(
        self,
        sender: str,
        recipients: tuple[str, ...],
        message: Sequence[bytes | memoryview],
        *,
        is_first: bool = False,
    ) -> MaildirMessage:
        """Write an entry to ``tmp``, an item for the `batch`.

        `message` is in pieces, which are not copied. That it `is_first` in its
        batch makes it cheaper, at the cost of an open file. Raises `QueueError`
        where it cannot be written; then nothing is left behind.
        """
        lines = (preamble(sender, recipients, bytes(message[0][:16])), *message)
        return self.maildir.add(lines, nameless=is_first)

    # Claim

    def claim(self, path: str) -> Claim | None:
        """Claim the entry at `path`; None if somebody has it, or it is gone."""
        claim = Claim.take(path, self._locks)
        # Theirs is a second name of the file, so most need no closer look.
        if claim is not None and claim.links > 1 and _is_foreign(path):
            claim.release()
            return None
        return claim

    def release_claims(self) -> None:
        """Release every claim that is still held, whoever has forgotten it."""
        for lock in list(self._locks):
            lock.release()

    def due(self, claim: Claim) -> float:
        """Return until when the entry is deferred, in seconds since the epoch.

        What is new always was due, also where the clock was put back.
        """
        is_deferred = claim.path.startswith(f"{self.maildir.folder('cur')}/")
        return claim.changed if is_deferred else -math.inf

    # Settle

    def accepted(self, claim: Claim, now: float | None = None) -> float:
        """Return when the entry was accepted, in seconds since the epoch.

        The name tells, or else the file's time of modification. A time more than a
        day before the queue was created comes from a clock that was wrong, such as
        1970 before its first synchronisation. If both are wrong, the entry is taken
        for accepted `now`.
        """
        now = time.time() if now is None else now
        told = accepted_at(claim.stem)
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
        """Tell whether nobody has removed the entry; if it was moved, follow it."""
        with explained(claim.path, "look for the entry"):
            return claim.find([self.maildir.folder("new"), self.maildir.folder("cur")])

    def defer(
        self, claim: Claim, entry: Entry, due: float, accepted: float | None = None
    ) -> None:
        """Replace the entry by `entry`, and make it due then.

        From now on its name tells that it was `accepted` at that time, by default
        when the name or the file says. All times are in seconds since the epoch.
        May be called again if it raises: then the entry is as it was, in its
        old place or in ``cur``, and still claimed.
        """
        with explained(claim.path, "defer the entry"):
            rewritten = self._write("", [entry.preamble(), entry.message], due)
            try:
                # Two steps, but one name: had it two of them for a moment, a
                # crash in between would leave two entries.
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

        For a disk that is full.
        """
        with explained(claim.path, "postpone the entry"):
            os.utime(claim.path, (due, due))
            self._move_to_cur(claim, accepted)

    def _move_to_cur(self, claim: Claim, accepted: float | None) -> None:
        name = claim.stem
        told = accepted_at(name)
        if accepted is None:
            accepted = claim.changed if told is None else told
        if accepted != told:
            # Otherwise it would be as young as its last attempt for ever. A time that
            # no name can have would get one more prefix with each deferral.
            accepted = min(max(accepted, 0.0), time.time())
            name = f"{int(accepted):010d}.{name}"
        elif os.path.dirname(claim.path) == self.maildir.folder("cur"):
            return
        target = f"{self.maildir.folder('cur')}/{name}:2,"
        os.rename(claim.path, target)
        claim.path = target

    def _sync(self, name: str) -> None:
        """Sync a folder where what is done cannot be done again.

        The entry is not ours any more. If this fails and then the power does,
        the entry may be found as it was.
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
        name = f"{claim.stem}{suffix}"
        with explained(f"{self.path}/{FAILED}", "keep a dead letter"):
            self._bury(name, [entry.preamble(), entry.message])

    def bury_unreadable(self, claim: Claim, reason: str) -> None:
        """Keep a file that is not an entry as a dead letter, and remove it.

        A large file is moved as it is, without the reason: it may be a sparse one,
        larger than the disk.
        """
        said = " ".join(reason.split()).encode()
        with explained(f"{self.path}/{FAILED}", "keep a dead letter"):
            if claim.is_large:
                failed = self._failed().folder("new")
                os.rename(claim.path, f"{failed}/{claim.stem}")
                sync(failed)
                return
            self._bury(claim.stem, [UNREADABLE, said, b"\n", claim.read_bytes()])
        self.finish(claim)

    def _bury(self, name: str, lines: Sequence[bytes]) -> None:
        failed = self._failed()
        written = self._write(FAILED, lines, time.time())
        os.rename(written, f"{failed.folder('new')}/{name}")
        sync(failed.folder("new"))

    def _failed(self) -> Maildir:
        failed = Maildir(f"{self.path}/{FAILED}", create=True)
        # By this file, Maildir++ readers know a subfolder.
        mark = f"{failed.path}/maildirfolder"
        if not os.path.exists(mark):
            OpenFile(mark, os.O_CREAT | os.O_WRONLY).close()
        return failed

    def _write(self, subfolder: str, lines: Sequence[bytes], mtime: float) -> str:
        """Write a durable file to ``tmp``, and return its path."""
        path = os.path.join(self.path, subfolder, "tmp", unique_name())
        try:
            with OpenFile(path, CREATE) as file:
                write(file.descriptor, lines)
                os.utime(file.descriptor, (mtime, mtime))
                os.fsync(file.descriptor)
        except OSError:
            remove(path)
            raise
        return path

    # What a crash left behind

    def in_doubt(self) -> Iterator[str]:
        """Yield the prepared files of transactions that are dead."""
        for path in self.maildir.paths("tmp"):
            if staging.is_prepared(path) and staging.is_in_doubt(path):
                yield path

    def remove_leftovers(self) -> None:
        """Remove what was half written more than 36 hours ago."""
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


def _is_foreign(path: str) -> bool:
    """Tell whether an older library has claimed the entry at `path`."""
    folder, name = os.path.split(path)
    sending = f"{folder}/.sending-{name}"
    return os.path.exists(sending) and _age(sending) < FOREIGN_CLAIM_AGE


def _age(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


