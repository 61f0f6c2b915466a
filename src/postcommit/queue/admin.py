"""A queue in an operator's hands: how it is, and what may be done to its entries.

=============  ======================================================
what is done   how
=============  ======================================================
retry          a dead letter is renamed into ``new/``; what is deferred
               becomes due now
delete         removed, once it is claimed
recover        prepared files of a dead transaction are renamed into
               ``new/``, or removed, under their leader's lock
=============  ======================================================

What somebody works on is never touched.
"""
from __future__ import annotations

import os
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import contextmanager

from postcommit.errors import EntryError
from postcommit.errors import QueueError
from postcommit.files import explained
from postcommit.files import remove
from postcommit.files import sync
from postcommit.maildir import Maildir
from postcommit.queue import mark
from postcommit.queue.entry import Claim
from postcommit.queue.item import Details
from postcommit.queue.item import Item
from postcommit.queue.item import State
from postcommit.queue.item import details
from postcommit.queue.item import items
from postcommit.queue.item import refuse_young_claims
from postcommit.queue.lock import FileLock
from postcommit.queue.search import find
from postcommit.queue.staging import leader_of
from postcommit.queue.store import Store
from postcommit.queue.wakeup import ring


class Admin:
    """Looks after the queue at `path`, which must exist.

    Raises `QueueError` for a path that is not a Maildir. With `adopt` it becomes a
    queue, whatever is in it; otherwise a mailbox may be looked at, but not changed.
    """

    def __init__(self, path: str, *, adopt: bool = False) -> None:
        Maildir(path)  # which is not created here
        if adopt:
            mark.adopt(path)
        self.store = Store(path, to_look=True)
        self.path = path

    # Looking

    def items(self, *states: State) -> Iterator[Item]:
        """Iterate over the items in these `states`; see `postcommit.queue.item`."""
        return items(self.store, states)

    def find(self, ids: Sequence[str]) -> list[Item]:
        """Return the items that `ids` mean: ids, names, paths or message ids.

        Raises `ItemError`; see `postcommit.queue.search`.
        """
        return find(self.store, ids)

    def details(self, of: Item) -> Details | None:
        """Read what the file says; None if it is gone."""
        return details(of)

    # Changing

    @contextmanager
    def changes(self) -> Iterator[None]:
        """Make what the body has changed durable, and wake a processor.

        Raises `QueueError`, before anything is changed, where another library's
        processor drains the queue, and for a mailbox.
        """
        mark.refuse_mailbox(self.store.maildir)
        refuse_young_claims(self.store)
        try:
            yield
        finally:
            with explained(self.path, "make the changes durable"):
                maildir = self.store.maildir
                for name in ("new", "cur", "tmp"):
                    sync(maildir.folder(name))
                # By the folder's time a processor knows that something in it
                # has become due.
                os.utime(maildir.folder("cur"))
            ring(self.path)

    def retry(self, chosen: Item) -> bool:
        """Have it tried at the next look; False if it is gone, or worked on.

        Raises `EntryError` for a dead letter that is no entry, or that is in the
        queue already; `QueueError` for what is in doubt or cannot be moved.
        """
        if chosen.state is State.IN_DOUBT:
            raise QueueError(chosen.path, "is in doubt; use 'postcommit recover'")
        if chosen.state is State.WAITING:
            return os.path.exists(chosen.path)  # it is due already
        claim = self._claim(chosen)
        if claim is None:
            return False
        try:
            if chosen.state is State.DEFERRED:
                now = time.time()
                with explained(chosen.path, "make the entry due"):
                    os.utime(chosen.path, (now, now))
            else:
                self._revive(chosen)
        finally:
            claim.release()
        return True

    def _revive(self, dead: Item) -> None:
        read = details(dead)
        if read is None or read.problem:
            problem = "it is gone" if read is None else read.problem
            raise EntryError(f"{dead.id} cannot be sent: {problem}")
        places = [f"{self.store.maildir.folder('new')}/{dead.name}"]
        places.append(f"{self.store.maildir.folder('cur')}/{dead.name}:2,")
        if any(map(os.path.lexists, places)):
            raise EntryError(f"{dead.id} is in the queue already, under this name")
        with explained(dead.path, "move the dead letter into the queue"):
            os.rename(dead.path, places[0])

    def delete(self, chosen: Item) -> bool:
        """Remove it; False if it is gone, or worked on.

        Raises `QueueError` for what is in doubt or cannot be removed.
        """
        if chosen.state is State.IN_DOUBT:
            reason = "is in doubt; use 'postcommit recover --drop'"
            raise QueueError(chosen.path, reason)
        claim = self._claim(chosen)
        if claim is None:
            return False
        try:
            self.store.finish(claim)
        finally:
            claim.release(removed=True)
        return True

    def _claim(self, chosen: Item) -> Claim | None:
        with explained(chosen.path, "claim the entry"):
            return self.store.claim(chosen.path)

    # What is in doubt

    def recover(self, chosen: Iterable[Item], *, send: bool) -> Iterator[Item]:
        """Accept these entries in doubt, or remove them; yield each when done.

        Those that somebody else recovers just now are left to him.
        """
        settle = self._send if send else self._drop
        transactions: dict[str, list[Item]] = {}
        for one in chosen:
            if one.state is not State.IN_DOUBT:
                raise QueueError(one.path, "is not in doubt")
            transactions.setdefault(leader_of(one.path), []).append(one)
        for leader, members in transactions.items():
            with _held(leader) as is_ours:
                # The leader last: as long as any is prepared, so is the leader.
                members.sort(key=lambda one: one.path == leader)
                for one in members if is_ours else ():
                    settle(one)
                    yield one

    def _send(self, doubt: Item) -> None:
        target = f"{self.store.maildir.folder('new')}/{doubt.name}"
        with explained(doubt.path, "accept the entry"):
            os.rename(doubt.path, target)

    def _drop(self, doubt: Item) -> None:
        with explained(doubt.path, "remove the entry"):
            remove(doubt.path)


@contextmanager
def _held(leader: str) -> Iterator[bool]:
    """Hold the lock of a transaction's leader; False if somebody else does."""
    try:
        lock = FileLock(leader)
    except FileNotFoundError:
        yield True  # it went last: there is nothing left to lock, and nobody alive
        return
    try:
        yield lock.acquire()
    finally:
        lock.release()
