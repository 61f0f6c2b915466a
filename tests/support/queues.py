"""Queues with entries in each state, as a processor or a crash leaves them."""
from __future__ import annotations

import os
import time
from pathlib import Path

from postcommit._mail.entry import Entry
from postcommit._mail.terms import Terms
from postcommit._maildir.maildir import MaildirMessageWriter
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.store import Claim
from postcommit._maildir.store import Store


MESSAGE = b"Message-Id: <1@x.org>\nSubject: Teapot\n\nText.\n"

SENDER = "s@x.org"
RECIPIENTS = ("a@x.org", "b@x.org")

ENTRY = b"X-Zope-From: s@x.org\nX-Zope-To: a@x.org, b@x.org\n" + MESSAGE


def stage(store: Store) -> MaildirMessageWriter:
    return store.stage(SENDER, RECIPIENTS, [MESSAGE])


def wait(store: Store) -> str:
    """Have an entry wait; return its name."""
    item = stage(store)
    item.commit()
    return item.name


def defer(store: Store, reply: str = "450 4.2.0 Later", due: float = 50.0) -> str:
    """Defer the first entry that waits, or a new one; `due` is in seconds from now."""
    claim = _claimed(store)
    entry = Entry(SENDER, RECIPIENTS, MESSAGE, 1, reply)
    store.defer(claim, entry, time.time() + due)
    claim.release()
    return claim.key


def bury(store: Store, reply: str = "550 5.1.1 No such user") -> str:
    """Make a dead letter of the first entry that waits, or of a new one."""
    claim = _claimed(store)
    store.bury(claim, Entry(SENDER, RECIPIENTS, MESSAGE, 1, reply))
    store.finish(claim)
    claim.release(removed=True)
    return f"{claim.key}.R1"


def _claimed(store: Store) -> Claim:
    path = next(store.maildir.paths("new"), None)
    claim = store.claim(path or f"{store.path}/new/{wait(store)}")
    assert claim is not None
    return claim


def leave_in_doubt(store: Store, count: int = 2) -> list[str]:
    """Prepare entries as a process that dies then; return their names."""
    batch = store.batch()
    items = [stage(store) for _ in range(count)]
    batch.prepare(items)
    leader = batch._leader  # type: ignore[attr-defined]
    leader.release()
    return [item.name for item in items]


def fill(store: Store) -> None:
    """Leave an entry in each state."""
    defer(store)
    bury(store)
    wait(store)
    leave_in_doubt(store, 1)


def schedule(store: Store, due: float = 3600.0, *, bulk: bool = False) -> str:
    """Schedule an entry, in seconds from now; return its name."""
    terms = Terms(time.time() + due, time.time() + due + 900, bulk)
    item = store.stage(SENDER, RECIPIENTS, [MESSAGE], terms=terms)
    item.commit()
    return item.name


def wait_behind(store: Store) -> str:
    """Have a bulk entry wait; return its name."""
    item = store.stage(SENDER, RECIPIENTS, [MESSAGE], terms=Terms(bulk=True))
    item.commit()
    return item.name


def hold(store: Store, name: str) -> None:
    """Hold the entry of this name."""
    queue = MaildirOperators(store.path)
    [item] = queue.find([name])
    with queue.changes() as changes:
        assert changes.hold(item)


def fill_rooms(store: Store) -> None:
    """Leave an entry in each state that has a room of its own."""
    schedule(store)
    wait_behind(store)
    hold(store, wait(store))


def write(store: Store, name: str, data: bytes = ENTRY) -> Path:
    """Write a file into the queue, as somebody else might."""
    path = Path(store.path, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.chmod(path, 0o600)
    return path
