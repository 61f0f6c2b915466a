"""The queue on disk: each transition of an entry is one method.

=============  =====================================================
transition     effect
=============  =====================================================
accept         staged in ``tmp/``, published to ``new/``
claim          locked, wherever it is
finish         removed
defer          rewritten in ``cur/``. Its mtime is when it is due
let in         renamed from a waiting room to ``new/`` (see `rooms`)
bury           copied to ``.Failed/new/``, for some recipients or all
=============  =====================================================

A new version of a file is written and synced first, and takes its place by one
rename. So a crash leaves the entry as it was, or as it will be.
"""
from __future__ import annotations

import errno
import hashlib
import itertools
import math
import os
import stat
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import MutableMapping
from collections.abc import Sequence
from contextlib import closing
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import field
from functools import partial
from typing import Any
from typing import NoReturn

from zope.interface import implementer

from postcommit._drain.contract import IClaim
from postcommit._drain.contract import IQueue
from postcommit._drain.contract import Terms
from postcommit._drain.schedule import Schedule
from postcommit._log import Log
from postcommit._mail.entry import Entry
from postcommit._mail.message import message_id_of
from postcommit._maildir import older
from postcommit._maildir import rooms
from postcommit._maildir import staging
from postcommit._maildir.cancellation import Cancellation
from postcommit._maildir.cancellation import waiting
from postcommit._maildir.consumer import Consumer
from postcommit._maildir.entry import BEGINNING
from postcommit._maildir.entry import PREFIX
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
from postcommit._maildir.files import rename
from postcommit._maildir.files import sync
from postcommit._maildir.files import unable
from postcommit._maildir.files import write
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.maildir import Staged
from postcommit._maildir.maildir import another_name
from postcommit._maildir.maildir import create_maildir
from postcommit._maildir.maildir import not_a_folder
from postcommit._maildir.maildir import try_out
from postcommit._maildir.maildir import unique_name
from postcommit._maildir.mark import FAILED
from postcommit._maildir.mark import SUBFOLDERS
from postcommit._maildir.mark import refuse_mailbox
from postcommit._maildir.presence import ring
from postcommit.errors import EntryError
from postcommit.errors import MaildirError
from postcommit.errors import PublishError
from postcommit.errors import QueueError
from postcommit.interfaces import Batch
from postcommit.interfaces import IBatch


log = Log("postcommit.maildir.store")
_staging_log = Log("postcommit.maildir.staging")  # a logger keeps its name

_DAY = 86400.0

# Queues that this process has opened. They are not examined again.
_known: set[tuple[str, int, int]] = set()

# Maximum number of file syncs that run side by side. The kernel merges them.
_SYNC_THREADS = 16

# Maximum number of places in which an entry is looked for to remove it. It moves from a
# room to another one and to ``new`` at most, and a Maildir reader moves it to ``cur``.
_MOVES = 5

# Number of seconds after which the writer of a file in ``tmp`` is dead, as the Maildir
# format has it.
LEFTOVER_AGE = 36 * 3600.0


@implementer(IQueue)
class Store:
    """The queue at `path`, a Maildir. It is created if it is missing.

    Raises `QueueError`, such as `NotAQueueError` for a mailbox. With `to_look` it also
    opens a mailbox, and nothing may be changed in it.
    """

    def __init__(self, path: str, *, to_look: bool = False) -> None:
        self.maildir = Maildir(path, create=True)
        self.path = self.name = self.maildir.path
        # Time when the queue's folder was created, if the file system says it.
        self._created: float | None = None
        # Paths of entries that an older library's processor had claimed when we came.
        self.held: dict[str, None] = {}
        if to_look:
            return
        is_known = self.maildir.identity in _known or self.maildir.is_new
        links = (os.path.islink(f"{self.path}/{name}") for name in SUBFOLDERS)
        if not is_known or any(links):
            refuse_mailbox(self.maildir)
        if not is_known:
            lacks, _ = try_out(self.maildir.tmp)
            if lacks:
                raise MaildirError(self.path, lacks)
        _known.add(self.maildir.identity)

    def consumer(
        self, schedule: Schedule, clock: Callable[[], float] | None = None
    ) -> Consumer:
        """Begin a drain. See `IQueue`."""
        return Consumer(self, schedule, clock or time.time)

    # Accept

    def batch(self) -> Batch:
        """Return the batch by which one transaction's entries are accepted."""
        return Staging(self.maildir)

    def stage(
        self,
        sender: str,
        recipients: tuple[str, ...],
        message: Sequence[bytes | memoryview],
        *,
        terms: Terms | None = None,
        is_first: bool = False,
    ) -> Staged:
        """Write an entry to ``tmp``, as an item for a `batch`. See `IQueue`.

        The first item of a batch costs an open file and saves work on the disk.
        """
        beginning = bytes(message[0][:PREFIX])
        if terms is None:
            lines = (preamble(sender, recipients, beginning), *message)
            item = self.maildir.add(lines, nameless=is_first)
            item.head = message[0]
            return item
        first = preamble(sender, recipients, beginning, terms=terms)
        name = unique_name(terms.not_before)
        name += rooms.mark(terms, message_id_of(bytes(message[0])))
        folder = self.folder_for(name)
        item = self.maildir.add(
            (first, *message), nameless=is_first, name=name, folder=folder
        )
        item.head = message[0]
        return item

    def folder_for(self, name: str) -> str:
        """Return the folder that an entry of this name is accepted into.

        A path below that of the queue. A waiting room is made if it is missing.
        """
        room = rooms.room_of(name)
        if not room:
            return "new"
        with explained(f"{self.path}/{room}", "use the waiting room"):
            self.subfolder(room)
        return f"{room}/new"

    def cancel(
        self, message_id: str, staged: Sequence[Any] = ()
    ) -> Cancellation | None:
        """Claim what waits of a message, as an item for a `batch`. See `IQueue`."""
        found = Cancellation([], [])
        for item in _sorted(staged)[0]:
            if message_id_of(bytes(item.head)) == message_id:
                found.staged.append(item)
        try:
            for path in waiting(self.maildir, message_id):
                claim = self.claim(path)
                if claim is not None:
                    found.claims.append(claim)
        except BaseException as error:
            for claim in found.claims:
                claim.release()
            if isinstance(error, OSError) and not isinstance(error, QueueError):
                place = error.filename or self.path
                raise unable(place, "look for the mail", error) from error
            raise
        return found if found.claims or found.staged else None

    # Claim

    def claim(
        self, path: str, locks: MutableMapping[str, FileLock] | None = None
    ) -> Claim | None:
        """Claim the entry at `path`, or None if it is claimed, or gone.

        Its lock is in `locks`, by its key, before it is taken, so that no claim can be
        lost.
        """
        claim = Claim.take(path, locks)
        # An older library claims by a second name of the file.
        if claim is not None and claim.links > 1:
            until = older.claimed_until(path)
            if until is not None:
                claim.release()
                self.held[path] = None
                return None
        if claim is not None:
            claim.store = self
        return claim

    def held_until(self) -> list[float]:
        """Return until when an older library's processor has claimed each entry.

        In seconds since the epoch. The entries are looked at, and forgotten if they
        are gone or not claimed any more.
        """
        found = []
        for path in self.held.copy():  # other threads add to it
            until = None
            with suppress(OSError):
                if os.path.lexists(path):
                    until = older.claimed_until(path)
            if until is None:
                self.held.pop(path, None)
            else:
                found.append(until)
        return found

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
        for _ in range(_MOVES):
            try:
                os.unlink(claim.path)
                return
            except FileNotFoundError:
                if not self.still_has(claim):
                    return
            except OSError as error:
                raise unable(claim.path, "remove the entry", error) from error
        reason = "cannot be removed, another program moves it again and again"
        raise QueueError(claim.path, reason)

    def still_has(self, claim: Claim) -> bool:
        """Return whether the entry was not removed. If it was moved, follow it.

        A claim does not keep a feeder from letting the entry into the queue.
        """
        folders = [self.maildir.new, self.maildir.cur]
        room = self.maildir.folder(f"{rooms.BULK}/new")
        if rooms.is_scheduled(claim.key) and os.path.isdir(room):
            folders.insert(0, room)
        with explained(claim.path, "look for the entry"):
            return claim.find(folders)

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

    def sync_rooms(self, claim: Claim) -> None:
        """Sync the rooms that the entry has left, before it is moved on or removed.

        Without this, a power failure after a second rename could leave the entry at
        the first of three places, and at the last.
        """
        folders = [f"{room}/new" for room in rooms.rooms_of(claim.key)]
        if folders:
            self._sync("new")
        for name in folders:
            if os.path.isdir(self.maildir.folder(name)):
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
            # is limited to what a name can have: otherwise each deferral would add a
            # prefix.
            accepted = min(max(accepted, 0.0), time.time())
            name = f"{int(accepted):010d}.{name}"
        elif os.path.dirname(claim.path) == self.maildir.cur:
            return
        target = f"{self.maildir.cur}/{name}:2,"
        if not claim.is_deferred:
            self.sync_rooms(claim)
        try:
            rename(claim.path, target)
        except FileExistsError:
            if os.path.isdir(target):
                raise  # somebody has to look at the queue
            # Another entry of this name was deferred.
            target = f"{another_name(target.removesuffix(':2,'))}:2,"
            rename(claim.path, target)
        claim.path = target

    def _sync(self, name: str) -> None:
        """Sync a folder after a rename that cannot be repeated. Log an error.

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

        A large file is moved as it is, without the reason: it may be sparse, and larger
        than the disk.
        """
        with explained(f"{self.path}/{FAILED}", "keep a dead letter"):
            if claim.size > BEGINNING:
                failed = self.subfolder(FAILED).new
                target = f"{failed}/{claim.key}"
                try:
                    rename(claim.path, target)
                except FileExistsError:
                    rename(claim.path, another_name(target))
                sync(failed)
                return
        self.bury_bytes(claim.key, claim.read_bytes(), reason)
        self.finish(claim)

    def bury_bytes(self, name: str, data: bytes, reason: str) -> None:
        """Keep what is not an entry as a dead letter. Raises `QueueError`."""
        said = " ".join(reason.split()).encode(errors="replace")
        with explained(f"{self.path}/{FAILED}", "keep a dead letter"):
            self._bury(name, [UNREADABLE, said, b"\n", data])

    def _bury(self, name: str, lines: Sequence[bytes]) -> None:
        folder = self.subfolder(FAILED).new
        written, target = self._write(FAILED, lines, time.time()), f"{folder}/{name}"
        try:
            rename(written, target)
        except FileExistsError:
            # It is this letter, if a crash came before the next step, and is replaced.
            # Otherwise it is that of another entry of this name, or of other recipients
            # in the same attempt, which a relay failure has cut in two. Both are kept.
            mail = _mail_in(written)
            if mail != _mail_in(target):
                target += f".{hashlib.blake2b(mail, digest_size=8).hexdigest()}"
            os.rename(written, target)
        sync(folder)

    def add(self, path: str, lines: Sequence[bytes], mtime: float) -> None:
        """Keep a new file at `path` below the queue, durably.

        Raises FileExistsError if there is one, and `OSError`.
        """
        target = f"{self.path}/{path}"
        subfolder = path.partition("/")[0]
        if subfolder in SUBFOLDERS:
            self.subfolder(subfolder)
        written = self._write("", lines, mtime)
        try:
            rename(written, target)
        except OSError:
            remove(written)
            raise
        sync(os.path.dirname(target))

    def subfolder(self, name: str) -> Maildir:
        """Return the Maildir of the dead letters or of a room. Make it if missing."""
        path = f"{self.path}/{name}"
        if not os.path.lexists(path):
            create_maildir(path, owner_of=self.path)
        elif os.path.islink(path):
            raise not_a_folder(self.path, name, is_link=True)
        folder = Maildir(path)
        # Maildir++ readers recognise a subfolder by this file.
        mark = f"{path}/maildirfolder"
        if not os.path.lexists(mark):
            with suppress(FileExistsError), closing(OpenFile(mark, CREATE)) as file:
                give_to_owner(file.descriptor, self.path)
        return folder

    def _write(self, subfolder: str, lines: Sequence[bytes], mtime: float) -> str:
        """Write a durable file to ``tmp``, and return its path."""
        path = os.path.join(self.path, subfolder, "tmp", unique_name())
        try:
            with closing(OpenFile(path, CREATE)) as file:
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


# The entries of one transaction


@implementer(IBatch)
class Staging:
    """The entries of one transaction, in ``tmp``. See `IBatch` and `staging`.

    Its items are those of `Store.stage` and `Store.cancel`.
    """

    def __init__(self, maildir: Maildir) -> None:
        self._maildir = maildir
        self._path = maildir.path
        # An interrupt may come at any moment. With this object its leader's lock is
        # dropped, so what is in doubt since then does not look alive.
        self._leader: FileLock | None = None
        # After ordinary storages, so that their locks are gone when we
        # publish; before «~sqlalchemy:», which commits in its vote.
        self.sort_key = f"~mail:queued:{maildir.path}"

    def prepare(self, items: Sequence[Any], *, alone: bool = False) -> None:
        staged, _, claims = _sorted(items)
        for claim in claims:
            with explained(claim.path, "remove the entry"):
                if claim.store.still_has(claim):
                    _check_writable(os.path.dirname(claim.path))
        if not staged:
            return
        with explained(self._path, "make the entries durable"):
            if alone and len(staged) == 1:
                staged[0].sync()
            else:
                self._prepare(staged)

    def _prepare(self, items: Sequence[Staged]) -> None:
        leader = self._mark(items)
        syncs = [item.sync for item in items[1:]]
        do_all([partial(os.fsync, leader.descriptor), *syncs])
        sync(self._maildir.tmp)
        for folder in {item.folder for item in items}:
            _check_writable(folder)

    def _mark(self, items: Sequence[Staged]) -> FileLock:
        """Give the items their prepared names. Return the lock of the leader."""
        items[0].give_name()
        self._leader = leader = FileLock(items[0].path)
        if not leader.acquire():
            raise QueueError(items[0].path, "is locked by another process")
        names = staging.prepared_names([(item.name, item.checksum) for item in items])
        for item, name in zip(items, names, strict=True):
            item.move(f"{self._maildir.tmp}/{name}")
        return leader

    def publish(self, items: Sequence[Any]) -> None:
        """Move the entries into the queue, with the leader as the last one.

        As long as any is prepared, so is the leader. See `IBatch`.
        """
        if not items:
            return
        staged, called_off, claims = _sorted(items)
        left: list[str] = []
        failure: OSError | None = None
        try:
            for item in reversed(staged):
                try:
                    item.move(item.target)
                except OSError as error:
                    if self._leader is None:
                        # The only entry of a transaction, which is aborted by this.
                        self.discard(items)
                        raise unable(self._path, "accept the entry", error) from error
                    left.append(os.path.basename(item.path))
                    failure = failure or error
            for folder in {item.folder for item in staged}:
                try:
                    sync(folder)
                except OSError as error:
                    failure = failure or error
        finally:
            if self._leader is not None:
                self._release()
            ring(self._path)
        if failure is not None:
            self._fail(claims, tuple(left), failure)
        if claims:
            self._remove(claims)
        if called_off:
            _discard(called_off)

    def _fail(
        self, claims: Sequence[Claim], left: tuple[str, ...], cause: OSError
    ) -> NoReturn:
        """Raise `PublishError`. The commit is decided, so what was called off goes."""
        failure = PublishError(self._path, left, cause)
        _staging_log.critical("%s; in tmp: %s", failure, ", ".join(left) or "none")
        self._remove(claims)
        raise failure from cause

    def _remove(self, claims: Sequence[Claim]) -> None:
        """Remove what was called off, so that it is also gone after a power failure."""
        failure: OSError | None = None
        for claim in claims:
            try:
                claim.store.sync_rooms(claim)
                claim.store.finish(claim)
                sync(os.path.dirname(claim.path))
                claim.release(removed=True)
            except OSError as error:
                text = "%s: was called off, but cannot be removed and may be sent: %s"
                _staging_log.critical(text, claim.path, error)
                claim.release()
                failure = failure or error
        if failure is not None:
            raise failure

    def discard(self, items: Sequence[Any]) -> None:
        _, _, claims = _sorted(items)
        # Not what only a cancellation has: it is rolled back, and the mail waits again.
        _discard([item for item in items if isinstance(item, Staged)])
        self._release()
        self._give_back(claims)

    def _give_back(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            claim.release()
        if claims:
            ring(self._path)  # they may be due

    def abandon(self, items: Sequence[Any]) -> None:
        """Leave what is prepared in doubt; discard what is not. See `IBatch`."""
        staged, called_off, claims = _sorted(items)
        left = [os.path.basename(i.path) for i in staged if staging.is_prepared(i.path)]
        for claim in claims:
            text = "%s: the commit was interrupted; it was called off, but may be sent"
            _staging_log.critical(text, claim.path)
        if not left:
            self.discard(items)
            return
        self._release()
        _discard(called_off)
        self._give_back(claims)
        _staging_log.critical(
            "%s: the commit was interrupted; in doubt, for 'postcommit recover': %s",
            self._path,
            ", ".join(left),
        )

    def _release(self) -> None:
        if self._leader is not None:
            self._leader.release()
            self._leader = None


def _sorted(
    items: Sequence[Any],
) -> tuple[Sequence[Staged], list[Staged], list[Claim]]:
    """Return what is accepted, what was staged and called off, and what is removed."""
    if Cancellation not in map(type, items):
        return items, [], []
    cancelled = [item for item in items if isinstance(item, Cancellation)]
    staged = (item for item in items if isinstance(item, Staged))
    called_off = [item for each in cancelled for item in each.staged]
    accepted = [item for item in staged if item not in called_off]
    claims = [claim for each in cancelled for claim in each.claims]
    return accepted, called_off, claims


def _discard(staged: Sequence[Staged]) -> None:
    for item in reversed(staged):
        try:
            item.abort()
        except OSError as error:
            _staging_log.error("Left behind: %s", error)


def do_all(syncs: Sequence[Callable[[], object]]) -> None:
    """Call each of `syncs`, side by side; raise what one of them raises."""
    left = iter(list(syncs))  # each thread takes the next
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


# A claimed entry


@implementer(IClaim)
@dataclass(eq=False, repr=False)
class Claim:
    """The right to send one entry. See `IClaim`.

    `path` is where it is, `key` its name without the flags that it has in ``cur``,
    `links` the number of its names, `changed` its time of modification when it was
    claimed, `size` its number of bytes. `entry` is what it says, once it was read.

    No claim outlives the process that took it.
    """

    path: str
    key: str
    is_deferred: bool
    links: int
    changed: float
    size: int
    _lock: FileLock
    #: Let others claim what is left of the entry. See `FileLock.release`.
    release: Callable[..., None]
    entry: Entry = field(init=False)
    #: Known when the entry was read.
    expires: float | None = None
    #: The queue, and the clock for `accepted`.
    store: Store = field(init=False)
    clock: Callable[[], float] = time.time

    @classmethod
    def take(
        cls, path: str, locks: MutableMapping[str, FileLock] | None = None
    ) -> Claim | None:
        """Claim the entry at `path`, or None if it is claimed, or gone.

        Its lock is in `locks`, by its key, before it is taken, so that no claim can be
        lost.
        Raises OSError if it cannot be opened, or is not a regular file.
        """
        try:
            lock = FileLock(path)
        except FileNotFoundError:
            return None
        claim, key = None, stem(path)
        try:
            if locks is not None:
                locks[key] = lock
            if lock.acquire():
                locked = os.fstat(lock.descriptor)
                if not stat.S_ISREG(locked.st_mode):
                    reason = "is no regular file; remove it from the queue"
                    raise QueueError(path, reason)
                # Between our opening and locking it, its holder may have settled the
                # entry: then ours was removed, or replaced by another file.
                if os.path.samestat(os.stat(path), locked):
                    claim = cls(
                        path=path,
                        key=key,
                        is_deferred=path.rpartition("/")[0].endswith("/cur"),
                        links=locked.st_nlink,
                        changed=locked.st_mtime,
                        size=locked.st_size,
                        _lock=lock,
                        release=lock.release,
                    )
        except FileNotFoundError:
            pass
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
        """When the entry was accepted. See `Store.accepted`."""
        return self.store.accepted(self, self.clock())

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
        if self.size > BEGINNING:
            head = self.beginning()
            if not may_go_on(head):
                parse_entry(head)
        self.entry = parse_entry(self.read_bytes())
        self.expires = self.entry.expires
        self.entry.name = self.key
        return self.entry

    def beginning(self) -> bytes:
        """Read the first `BEGINNING` bytes of the file."""
        return os.pread(self._lock.descriptor, BEGINNING, 0)

    def read_bytes(self) -> bytes:
        """Read the file as it is."""
        # One byte more than there are: then a short answer says that this is all.
        data = piece = os.pread(self._lock.descriptor, self.size + 1, 0)
        while piece and len(data) != self.size:
            piece = os.pread(self._lock.descriptor, self.size + 1, len(data))
            data += piece
        return data


def _mail_in(path: str) -> bytes:
    """Return the recipients and the message of a dead letter.

    The whole file if it is not an entry, and nothing if it cannot be read.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        with closing(OpenFile(path, flags)) as file:
            data = os.read(file.descriptor, os.fstat(file.descriptor).st_size)
        entry = parse_entry(data)
        return ", ".join(entry.recipients).encode() + b"\n" + entry.message
    except EntryError:
        return data
    except OSError:
        return b""


def _age(path: str) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except FileNotFoundError:
        return 0.0


