"""The operators' half of a queue on disk; `MaildirOperators` is all that commands use.

========  ===================================================================
change    effect
========  ===================================================================
retry     a dead letter is renamed into ``new/``. A deferred entry becomes due
          (see `rooms` for scheduled, bulk and held entries)
cancel    the file is claimed, then removed
delete    the same, also for a dead letter
hold      the file is claimed, then renamed into ``.Held/``
release   renamed back: into ``cur/`` with the time when it is due, into its
          waiting room, or into ``new/``
stop      the file ``.stopped`` is written; resume removes it
recover   the prepared files of a dead transaction are renamed into ``new/``,
          or removed, while the lock of their leader is held
========  ===================================================================
"""
from __future__ import annotations

import os
import time
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager
from contextlib import suppress
from io import FileIO

from zope.interface import implementer

from postcommit._maildir import checking
from postcommit._maildir import looking
from postcommit._maildir import mark
from postcommit._maildir import presence
from postcommit._maildir import rooms
from postcommit._maildir.files import FileLock
from postcommit._maildir.files import explained
from postcommit._maildir.files import remove
from postcommit._maildir.files import rename
from postcommit._maildir.files import sync
from postcommit._maildir.files import unable
from postcommit._maildir.item import Details
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Finding
from postcommit._maildir.item import IChanges
from postcommit._maildir.item import IOperators
from postcommit._maildir.item import Item
from postcommit._maildir.item import Step
from postcommit._maildir.item import Survey
from postcommit._maildir.item import no_step
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.maildir import another_name
from postcommit._maildir.presence import ring
from postcommit._maildir.staging import leader_of
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store
from postcommit.errors import EntryError
from postcommit.errors import QueueError


# The folders of the waiting rooms.
_ROOMS = [f"{room}/{name}" for room in rooms.ROOMS for name in ("new", "cur")]


@implementer(IOperators)
class MaildirOperators:
    """The queue at the path `name`, which must exist.

    Raises `QueueError` for a path that is not a Maildir. `adopt` makes it a queue,
    whatever is in it. Without it, a mailbox can be looked at, but not changed.
    """

    def __init__(self, name: str, *, adopt: bool = False) -> None:
        Maildir(name)  # raises instead of creating it
        if adopt:
            mark.adopt(name)
        self.name = name
        self._store = Store(name, to_look=True)

    def items(
        self,
        states: Collection[EntryState],
        *,
        message_id: str = "",
        step: Step = no_step,
    ) -> Iterator[Item]:
        """Iterate over the entries in these `states`. See `IOperators`."""
        return looking.items(self._store, states, message_id=message_id, step=step)

    def find(self, ids: Sequence[str]) -> list[Item]:
        """Return the entries that `ids` mean. See `IOperators`."""
        return looking.find(self._store, ids)

    def details(self, item: Item, addresses: Collection[str] = ()) -> Details | None:
        """Read the entry, or None if it is gone. See `IOperators`."""
        return looking.details(item, addresses)

    def open(self, item: Item) -> FileIO:
        """Open the file of the entry. See `IOperators`."""
        return looking.open_file(item)

    def survey(self, most_seconds: float = 2.0) -> Survey:
        """Count the entries. See `IOperators`."""
        return looking.survey(self._store, time.time(), most_seconds)

    def check(self) -> Iterator[Finding]:
        """Yield what is wrong with the queue. See `IOperators`."""
        return checking.check(self._store, time.time())

    @contextmanager
    def changes(self) -> Iterator[MaildirChanges]:
        """Begin to change entries. See `IOperators`."""
        mark.refuse_mailbox(self._store.maildir)
        looking.refuse_young_claims(self._store)
        try:
            yield MaildirChanges(self._store)
        finally:
            with explained(self.name, "make the changes durable"):
                maildir = self._store.maildir
                for folder in ("new", "cur", "tmp"):
                    sync(maildir.folder(folder))
                for folder in _ROOMS:
                    # It is missing if nothing waits there. One that cannot be read has
                    # not been changed, and must not keep a person from pausing.
                    with suppress(FileNotFoundError, PermissionError):
                        sync(maildir.folder(folder))
                # Making a deferred entry due does not change its folder. Without a
                # new time of the folder, a processor would not read it again.
                os.utime(maildir.cur)
            ring(self.name)


@implementer(IChanges)
class MaildirChanges:
    """Changes in one queue. See `IChanges`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def retry(self, item: Item) -> bool:
        """Make the entry due now. See `IChanges`."""
        if item.state is EntryState.IN_DOUBT:
            raise QueueError(item.place, "is in doubt; use 'postcommit recover'")
        if item.state is EntryState.WAITING:
            return os.path.exists(item.place)  # it is due already
        if item.state is EntryState.HELD:
            raise EntryError("it is held; use 'postcommit release'")
        claim = self._claim(item)
        if claim is None:
            return False
        try:
            if item.state is EntryState.DEFERRED:
                now = time.time()
                with explained(item.place, "make the entry due"):
                    os.utime(item.place, (now, now))
            elif item.state is EntryState.FAILED:
                self._revive(item)
            else:
                self._move(claim, f"{self._store.maildir.new}/{item.name}")
        finally:
            claim.release()
        return True

    def _revive(self, dead: Item) -> None:
        looking.check_can_be_sent(looking.details(dead))
        maildir = self._store.maildir
        target = f"{maildir.new}/{dead.name}"
        there = "it is in the queue already, under this name"
        if os.path.lexists(f"{maildir.cur}/{dead.name}:2,"):
            raise EntryError(there)
        try:
            rename(dead.place, target)
        except FileExistsError as error:
            raise EntryError(there) from error
        except OSError as error:
            doing = "move the dead letter into the queue"
            raise unable(dead.place, doing, error) from error

    def _move(self, claim: Claim, target: str) -> None:
        """Rename the file of a claimed entry, from or to a waiting room."""
        with explained(claim.path, "move the entry"):
            self._store.sync_rooms(claim)
            try:
                rename(claim.path, target)
            except FileExistsError:
                rename(claim.path, another_name(target))

    def hold(self, item: Item) -> bool:
        """Keep the entry from being tried. See `IChanges`."""
        if item.state is EntryState.IN_DOUBT:
            raise QueueError(item.place, "is in doubt; use 'postcommit recover'")
        if item.state is EntryState.FAILED:
            raise EntryError("it is a dead letter, which is never tried")
        if item.state is EntryState.HELD:
            return os.path.exists(item.place)
        is_deferred = item.state is EntryState.DEFERRED
        claim = self._claim(item)
        if claim is None:
            return False
        try:
            with explained(f"{self._store.path}/{rooms.HELD}", "hold the entry"):
                held = self._store.subfolder(rooms.HELD)
            name = f"cur/{item.name}:2," if is_deferred else f"new/{item.name}"
            self._move(claim, f"{held.path}/{name}")
        finally:
            claim.release()
        return True

    def release(self, item: Item) -> bool:
        """Let a held entry be tried again. See `IChanges`."""
        if item.state is not EntryState.HELD:
            raise EntryError(f"it is not held but {item.state.value}")
        claim = self._claim(item)
        if claim is None:
            return False
        try:
            folder, name = self._store.folder_for(item.name), item.name
            if claim.is_deferred:
                folder, name = "cur", f"{item.name}:2,"
            elif folder != "new" and (item.accepted or 0.0) <= time.time():
                # The time of a scheduled entry may be over by now.
                folder = "new"
                if rooms.is_bulk(item.name):
                    self._store.subfolder(rooms.BULK)
                    folder = f"{rooms.BULK}/new"
            self._move(claim, f"{self._store.path}/{folder}/{name}")
        finally:
            claim.release()
        return True

    def stop(self, who: str, reason: str = "") -> bool:
        """Pause the whole queue. See `IChanges`."""
        with explained(self._store.path, "pause the queue"):
            return presence.stop(self._store.path, who, reason)

    def resume(self) -> bool:
        """End a pause by hand. See `IChanges`."""
        with explained(self._store.path, "resume the queue"):
            return presence.resume(self._store.path)

    def cancel(self, item: Item) -> bool:
        """Remove an entry that waits. See `IChanges`."""
        looking.check_waits(item)
        return self.delete(item)

    def delete(self, item: Item) -> bool:
        """Remove the entry. See `IChanges`."""
        if item.state is EntryState.IN_DOUBT:
            reason = "is in doubt; use 'postcommit recover --drop'"
            raise QueueError(item.place, reason)
        claim = self._claim(item)
        if claim is None:
            return False
        try:
            self._store.finish(claim)
        finally:
            claim.release(removed=True)
        return True

    def _claim(self, item: Item) -> Claim | None:
        with explained(item.place, "claim the entry"):
            return self._store.claim(item.place)

    def recover(self, items: Iterable[Item], *, send: bool) -> Iterator[Item]:
        """Accept these entries in doubt, or remove them. See `IChanges`."""
        settle = self._send if send else self._drop
        transactions: dict[str, list[Item]] = {}
        for item in items:
            if item.state is not EntryState.IN_DOUBT:
                raise QueueError(item.place, "is not in doubt")
            transactions.setdefault(leader_of(item.place), []).append(item)
        for leader, members in transactions.items():
            with _held(leader) as is_ours:
                # The leader last: as long as any is prepared, so is the leader.
                members.sort(key=lambda item: item.place == leader)
                for item in members if is_ours else ():
                    settle(item)
                    yield item

    def _send(self, doubt: Item) -> None:
        folder = self._store.folder_for(doubt.name)
        target = f"{self._store.path}/{folder}/{doubt.name}"
        with explained(doubt.place, "accept the entry"):
            try:
                rename(doubt.place, target)
            except FileExistsError:
                rename(doubt.place, another_name(target))

    def _drop(self, doubt: Item) -> None:
        with explained(doubt.place, "remove the entry"):
            remove(doubt.place)


@contextmanager
def _held(leader: str) -> Iterator[bool]:
    """Hold the lock of a transaction's leader. Return False if another process does."""
    try:
        lock = FileLock(leader)
    except FileNotFoundError:
        yield True  # it went last: nothing is left to lock, and no process alive
        return
    try:
        yield lock.acquire()
    finally:
        lock.release()
