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

import logging
import os
import time
from collections.abc import Iterator
from collections.abc import Sequence

from postcommit.interfaces import IBatch
from postcommit.maildir import Maildir
from postcommit.maildir import MaildirMessageWriter
from postcommit.maildir import create_file
from postcommit.maildir import explained
from postcommit.maildir import remove
from postcommit.maildir import sync
from postcommit.maildir import unique_name
from postcommit.queue import staging
from postcommit.queue.entry import UNREADABLE
from postcommit.queue.entry import Claim
from postcommit.queue.entry import Entry
from postcommit.queue.entry import accepted_at
from postcommit.queue.entry import preamble
from postcommit.queue.lock import FileLock


log = logging.getLogger(__name__)

FAILED = ".Failed"

# As the Maildir format has it: who needs longer to write a message is dead.
LEFTOVER_AGE = 36 * 3600.0

# A processor of an older library claims NAME by a file .sending-NAME, for so
# many seconds.
_FOREIGN_CLAIM_AGE = 3 * 3600.0


class Store:
    """The queue at `path`, a Maildir; it is created where it is missing."""

    def __init__(self, path: str) -> None:
        self.maildir = Maildir(path, create=True)
        self.path = self.maildir.path

    # Accept

    def batch(self) -> IBatch:
        """Return the batch by which one transaction's entries are accepted."""
        return staging.Staging(self.maildir)

    def stage(
        self,
        sender: str,
        recipients: tuple[str, ...],
        message: Sequence[bytes | memoryview],
    ) -> MaildirMessageWriter:
        """Write an entry to ``tmp``, an item for the `batch`.

        `message` is in pieces, which are not copied. Raises `QueueError` where
        it cannot be written; then nothing is left behind.
        """
        lines = [preamble(sender, recipients, bytes(message[0][:16])), *message]
        return staging.stage(self.maildir, lines)

    # Claim

    def claim(self, path: str) -> Claim | None:
        """Claim the entry at `path`; None if somebody has it, or it is gone."""
        folder, name = os.path.split(path)
        try:
            foreign = os.stat(f"{folder}/.sending-{name}").st_mtime
        except FileNotFoundError:
            return Claim.take(path)
        if time.time() - foreign < _FOREIGN_CLAIM_AGE:
            return None
        return Claim.take(path)

    # Settle

    def accepted(self, claim: Claim) -> float:
        """Return when the entry was accepted, in seconds since the epoch."""
        accepted = accepted_at(claim.stem)
        return os.stat(claim.path).st_mtime if accepted is None else accepted

    def finish(self, claim: Claim) -> None:
        """Remove the entry: nothing is left to do for it."""
        with explained(claim.path, "remove the entry"):
            remove(claim.path)

    def defer(self, claim: Claim, entry: Entry, due: float) -> None:
        """Replace the entry by `entry`, and make it due then."""
        with explained(claim.path, "defer the entry"):
            name = f"{claim.stem}:2,"
            in_new = os.path.basename(os.path.dirname(claim.path)) == "new"
            target = f"{self.maildir.folder('cur')}/{name}" if in_new else claim.path
            rewritten = self._write("", [entry.preamble(), entry.message], due)
            # Locked before it is there, lest another one claims it half way.
            lock = FileLock(rewritten)
            lock.acquire()
            try:
                # Two steps, both in place of the same entry: had it two names
                # for a moment, a crash in between would send it twice.
                os.rename(rewritten, claim.path)
                if in_new:
                    os.rename(claim.path, target)
                    sync(self.maildir.folder("new"))
                sync(self.maildir.folder("cur"))
            finally:
                lock.release()

    def postpone(self, claim: Claim, due: float) -> None:
        """Make the entry due then, without writing: for a disk that is full."""
        with explained(claim.path, "postpone the entry"):
            os.utime(claim.path, (due, due))
            if os.path.basename(os.path.dirname(claim.path)) == "new":
                target = f"{self.maildir.folder('cur')}/{claim.stem}:2,"
                os.rename(claim.path, target)

    def bury(self, claim: Claim, entry: Entry) -> None:
        """Keep `entry` as a dead letter.

        Its name is that of the claimed entry and the number of the attempt,
        so that doing it again, after a crash, changes nothing.
        """
        name = f"{claim.stem}.R{entry.attempts}"
        with explained(f"{self.path}/{FAILED}", "keep a dead letter"):
            self._bury(name, [entry.preamble(), entry.message])

    def bury_unreadable(self, claim: Claim, reason: str) -> None:
        """Keep a file that is no entry as a dead letter, and remove it."""
        said = " ".join(reason.split()).encode()
        with explained(f"{self.path}/{FAILED}", "keep a dead letter"):
            self._bury(claim.stem, [UNREADABLE, said, b"\n", claim.read_bytes()])
        self.finish(claim)

    def _bury(self, name: str, lines: Sequence[bytes]) -> None:
        failed = self._failed()
        written = self._write(FAILED, lines, time.time())
        os.rename(written, f"{failed.folder('new')}/{name}")
        sync(failed.folder("new"))

    def _failed(self) -> Maildir:
        path = f"{self.path}/{FAILED}"
        existed = os.path.isdir(path)
        failed = Maildir(path, create=True)
        if not existed:
            # By this file, Maildir++ readers know a subfolder.
            create_file(f"{path}/maildirfolder").close()
        return failed

    def _write(self, subfolder: str, lines: Sequence[bytes], mtime: float) -> str:
        """Write a durable file to ``tmp``, and return its path."""
        path = os.path.join(self.path, subfolder, "tmp", unique_name())
        try:
            with create_file(path) as file:
                file.writelines(lines)
                file.flush()
                os.utime(file.fileno(), (mtime, mtime))
                os.fsync(file.fileno())
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
                if not staging.is_prepared(path) and _age(path) > LEFTOVER_AGE:
                    log.warning("%s: removed, it was never complete", path)
                    remove(path)


def _age(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


