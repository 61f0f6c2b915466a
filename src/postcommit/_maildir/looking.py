"""Reads a queue on disk for operators: its entries, and how it is as a whole.

Only the file of an entry has its addresses and its message id, so a search for them
opens each file. Parsing each envelope takes 17 us an entry. So a search
first looks for the longest fixed part of the pattern in the bytes of the envelope, and
parses only a file that has it: 10 us.
"""
from __future__ import annotations

import io
import math
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from postcommit._mail.message import bare_id
from postcommit._maildir import rooms
from postcommit._maildir.cancellation import is_of
from postcommit._maildir.entry import FROM
from postcommit._maildir.entry import HEAD
from postcommit._maildir.entry import UNREADABLE
from postcommit._maildir.entry import accepted_at
from postcommit._maildir.entry import parse_beginning
from postcommit._maildir.entry import stem
from postcommit._maildir.files import READ_FLAGS
from postcommit._maildir.files import explained
from postcommit._maildir.files import unable
from postcommit._maildir.item import DIGITS
from postcommit._maildir.item import Details
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Item
from postcommit._maildir.item import Reason
from postcommit._maildir.item import Step
from postcommit._maildir.item import Survey
from postcommit._maildir.item import id_of
from postcommit._maildir.item import is_whole_id
from postcommit._maildir.item import known_names
from postcommit._maildir.item import no_step
from postcommit._maildir.mark import FAILED
from postcommit._maildir.mark import refuse_mailbox
from postcommit._maildir.older import CLAIM_AGE
from postcommit._maildir.older import REJECTED
from postcommit._maildir.older import SENDING
from postcommit._maildir.presence import heartbeat
from postcommit._maildir.presence import pause_of
from postcommit._maildir.presence import stopped
from postcommit._maildir.reception import receptions
from postcommit._maildir.staging import original_name
from postcommit._maildir.store import Store
from postcommit.errors import EntryError
from postcommit.errors import ItemError
from postcommit.errors import MaildirError
from postcommit.errors import NotAQueueError
from postcommit.errors import QueueError


# Minimum number of characters of an id.
_FEWEST = 4

# Text of an error about an id without an entry.
UNKNOWN = "is not in this queue; it may have been sent or deleted"

# Maximum number of candidates that an error names.
_MOST_NAMED = 5

# Maximum number of files that are read to find the most common reply.
SAMPLE = 300

# Minimum of free bytes, and of files that can be created, on a disk.
_LEAST_FREE = 64 << 20
_LEAST_FILES = 1000

# Where the entries of a state are, below the path of the queue, in the order in which
# an entry moves. Entries in doubt and dead letters are elsewhere.
_FOLDERS = {
    EntryState.SCHEDULED: (f"{rooms.LATER}/new",),
    EntryState.BULK: (f"{rooms.BULK}/new",),
    EntryState.HELD: (f"{rooms.HELD}/new", f"{rooms.HELD}/cur"),
    EntryState.WAITING: ("new",),
    EntryState.DEFERRED: ("cur",),
}

# Each folder with the state of its entries, except for those in doubt. Names that begin
# with `REJECTED` are dead letters of another library, in `_REJECTING`.
_STATES = (
    *((state, folder) for state, folders in _FOLDERS.items() for folder in folders),
    (EntryState.FAILED, f"{FAILED}/new"),
    (EntryState.FAILED, f"{FAILED}/cur"),
)
_REJECTING = ("new", "cur")
_REJECTED = os.fsencode(REJECTED)

# An id, or its beginning.
_DIGITS = re.compile(rf"[0-9a-f]{{{_FEWEST},{DIGITS}}}")

# The parts that differ between replies that mean the same: addresses, numbers, ids.
_PARTICULAR = re.compile(r"\S*@\S*|\S*\d\S*")


# Entries


def items(
    store: Store,
    states: Iterable[EntryState],
    *,
    message_id: str = "",
    step: Step = no_step,
) -> Iterator[Item]:
    """Iterate over the entries. See `IOperators.items`.

    Without `message_id` no file is read. Only a few thousand names are in memory.
    """
    wanted = set(states)
    for state in EntryState:
        for path in _paths(store, state) if state in wanted else ():
            step()
            item = item_at(path, state)
            if not message_id or is_of(item.place, message_id):
                yield item


def item_at(path: str, state: EntryState) -> Item:
    """Return the item for the file of an entry.

    Its name is that which the entry has, had, or will have in ``new``.
    """
    if state is EntryState.IN_DOUBT:
        name = original_name(path)
    else:
        name = stem(path).removeprefix(REJECTED)
    return Item(name, state, path)


def _paths(store: Store, state: EntryState) -> Iterator[str]:
    if state is EntryState.IN_DOUBT:
        yield from store.in_doubt()
    elif state in _FOLDERS:
        for folder in _FOLDERS[state]:
            with suppress(FileNotFoundError):  # nothing has waited in this room yet
                yield from store.maildir.paths(folder)
    else:
        for folder in ("new", "cur"):
            yield from _beginning_with(f"{store.path}/{FAILED}/{folder}", "")
            yield from _beginning_with(store.maildir.folder(folder), REJECTED)


def _message_id(item: Item) -> str:
    read = details(item)
    return "" if read is None else read.message_id


def _beginning_with(folder: str, prefix: str) -> Iterator[str]:
    """Yield the files with this `prefix`; without it, those that are not hidden."""
    try:
        with os.scandir(folder) as found:
            for entry in found:
                hidden = entry.name.startswith(".")
                if entry.name.startswith(prefix) and hidden == bool(prefix):
                    yield entry.path
    except FileNotFoundError:
        return  # no dead letter was kept yet


# Claims of other libraries


def foreign_claims(store: Store, now: float) -> Iterator[tuple[str, float]]:
    """Yield the claims of other libraries' processors, and their age in seconds."""
    for name in ("new", "cur"):
        for path in _beginning_with(store.maildir.folder(name), SENDING):
            try:
                yield path, max(0.0, now - os.stat(path).st_mtime)
            except FileNotFoundError:
                continue  # it has been sent since


def young_claims(store: Store, now: float) -> Iterator[str]:
    """Yield the claims that are so young that their processor may be running."""
    for path, age in foreign_claims(store, now):
        if age < CLAIM_AGE:
            yield path


def refuse_young_claims(store: Store) -> None:
    """Raise `QueueError` if another library's processor drains the queue.

    It does not look at our locks, so it would send what we are sending.
    """
    for claim in young_claims(store, time.time()):
        reason = "another library's processor drains this queue: stop it first;"
        reason += " if it is stopped, remove this file"
        raise QueueError(claim, reason)


# The file of an entry


def details(item: Item, addresses: Collection[str] = ()) -> Details | None:
    """Read the beginning of the file. See `IOperators.details`.

    If it cannot be read, the reason is its `problem`.
    """
    if addresses and _lacks_address(_glance(item), addresses):
        return None
    try:
        with open_file(item) as file:
            return _details(item, file, os.fstat(file.fileno()))
    except FileNotFoundError:
        return None
    except OSError as error:
        changed, problem = item.accepted or 0.0, f"cannot be read: {error.strerror}"
        return Details(item, 0, changed, _due(item, changed), problem=problem)


def open_file(item: Item) -> io.FileIO:
    """Open the file of `item` to read it. Raises OSError."""
    return io.FileIO(os.open(item.place, READ_FLAGS), "rb")


def _details(item: Item, file: io.FileIO, found: os.stat_result) -> Details:
    changed, due = found.st_mtime, _due(item, found.st_mtime)
    if not stat.S_ISREG(found.st_mode):
        return Details(item, 0, changed, due, problem="is no regular file")
    head = file.read(HEAD) or b""
    try:
        entry = parse_beginning(file, head)
    except EntryError as error:
        problem = _problem(head, error)
        return Details(item, found.st_size, changed, due, problem=problem)
    return Details(
        item,
        found.st_size,
        changed,
        due,
        entry.sender,
        entry.recipients,
        entry.attempts,
        entry.uncertain,
        entry.last_reply,
        head=entry.message,
        expires=entry.expires,
    )


def check_can_be_sent(read: Details | None) -> None:
    """Raise `EntryError` for a dead letter that would be one again at once."""
    if read is None or read.problem:
        problem = "it is gone" if read is None else read.problem
        raise EntryError(f"it cannot be sent: {problem}")
    if read.expires is not None and read.expires <= time.time():
        moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(read.expires))
        raise EntryError(f"it cannot be sent: it expired at {moment}")


def check_waits(item: Item) -> None:
    """Raise `EntryError` for a dead letter: nothing is left to call off."""
    if item.state is EntryState.FAILED:
        raise EntryError("it is a dead letter, which is not sent; delete it")


def _due(item: Item, changed: float) -> float | None:
    if item.state in (EntryState.WAITING, EntryState.SCHEDULED):
        return item.accepted or changed
    return changed if item.state is EntryState.DEFERRED else None


def _problem(head: bytes, error: EntryError) -> str:
    """Say why a file is not an entry; a file that was set aside says so itself."""
    if head.startswith(UNREADABLE):
        return head[len(UNREADABLE) :].split(b"\n")[0].decode("utf-8", "replace")
    return error.reason


def _glance(item: Item) -> bytes:
    """Read how the file begins, or nothing if it cannot be read."""
    try:
        descriptor = os.open(item.place, READ_FLAGS)
    except OSError:
        return b""
    try:
        return os.read(descriptor, HEAD)
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _lacks_address(head: bytes, patterns: Collection[str]) -> bool:
    """Tell whether the envelope lacks an address for one of the patterns."""
    end = head.find(b"\n", head.find(b"\n") + 1)
    envelope = head[: max(end, 0)]
    # Other entries, and letters that become ASCII in lower case, need a closer look.
    if not envelope.startswith(FROM.rstrip()) or not envelope.isascii():
        return False
    lowered = envelope.lower()
    return any(_literal(pattern) not in lowered for pattern in patterns)


def _literal(pattern: str) -> bytes:
    """Return the longest part of a pattern that every match has, in lower case."""
    # A bracket begins a set of characters, or a domain that is an IP address.
    parts = re.split("[*?]", pattern.partition("[")[0].lower())
    longest = max(parts, key=len)
    return longest.encode() if longest.isascii() else b""


# Ids that an operator gives


def find(store: Store, ids: Sequence[str]) -> list[Item]:
    """Return the entries that `ids` mean. See `IOperators.find`.

    An id is compared with those of all names, 1 us an entry. If the name is known, it
    is looked up in each folder instead, in 50 us, however large the queue is.
    """
    wanted = dict.fromkeys(ids)
    for given in wanted:
        check_id(given)
    found = {
        given: _at_name(store, given, known_names.get(given) or given)
        for given in wanted
    }
    left = [given for given in wanted if not found[given]]
    found |= _with_ids(store, [given for given in left if _DIGITS.fullmatch(given)])
    # A name that has an @ is possible, and so is a message id without it.
    others = [given for given in left if not (found[given] or is_whole_id(given))]
    found |= _of_messages(store, [given for given in others if "@" in given])
    found |= _named(store, [given for given in others if not found[given]])
    found |= _of_messages(store, [given for given in others if not found[given]])
    for given, known in found.items():
        if not known:
            raise ItemError(given, UNKNOWN)
    return list(dict.fromkeys(item for given in wanted for item in found[given]))


def check_id(given: str) -> None:
    """Raise `ItemError` for an id that can mean no entry."""
    if not given.strip():
        raise ItemError(given, "is not an id; 'postcommit list' shows the ids")
    if len(bare_id(given)) < _FEWEST and "@" not in given:
        raise ItemError(given, f"is too short, give at least {_FEWEST} digits")


def _of_messages(store: Store, wanted: Sequence[str]) -> dict[str, list[Item]]:
    """Return the entries of each message id, with or without angle brackets."""
    found: dict[str, list[Item]] = {bare_id(given): [] for given in wanted}
    for item in items(store, EntryState) if found else ():
        id = _message_id(item)
        if id in found:
            found[id].append(item)
    return {given: found[bare_id(given)] for given in wanted}


def _at_name(store: Store, given: str, name: str) -> list[Item]:
    """Return the only entry with a `name`, which was `given`, or none if none has it.

    An entry in doubt is not found, nor a file with other flags than ours.
    """
    name = name.removesuffix(":2,")
    found: list[Item] = []
    if "/" in name or name.startswith("."):
        return found  # no entry has such a name, and it could lead out of the queue
    places = [(state, f"{folder}/{name}") for state, folder in _STATES]
    for folder in _REJECTING:
        places.append((EntryState.FAILED, f"{folder}/{REJECTED}{name}"))
    for state, place in places:
        for path in (f"{store.path}/{place}", f"{store.path}/{place}:2,"):
            if os.path.lexists(path):
                found.append(item_at(path, state))
    return _one(given, found)


def _with_ids(store: Store, wanted: Collection[str]) -> dict[str, list[Item]]:
    """Return the only entry of which each is the id, or its beginning."""
    found: dict[str, list[Item]] = {given: [] for given in wanted}
    whole = set(filter(is_whole_id, wanted))
    left = len(found)
    for given, item in _beginning_like(store, found):
        if given in whole:
            # No other name has this id, but two folders may have the name.
            found[given] = _at_name(store, given, item.name) or [item]
            left -= 1
            if not left:
                break
        else:
            found[given].append(item)
    return {given: _one(given, known) for given, known in found.items()}


def _beginning_like(
    store: Store, wanted: Collection[str]
) -> Iterator[tuple[str, Item]]:
    """Yield each entry whose id begins like one of `wanted`, after this beginning.

    Each name is hashed as the disk has it, and an item is made only for those.
    """
    lengths = {len(given) for given in wanted}
    if not lengths:
        return
    for state, folder in _STATES:
        with (
            suppress(FileNotFoundError),  # nothing has waited in this room yet
            os.scandir(os.fsencode(f"{store.path}/{folder}")) as entries,
        ):
            for entry in entries:
                name = entry.name.removeprefix(_REJECTED).partition(b":2,")[0]
                id = id_of(name)
                for length in lengths:
                    if id[:length] in wanted and not name.startswith(b"."):
                        is_dead = entry.name.startswith(_REJECTED)
                        path = f"{store.path}/{folder}/{os.fsdecode(entry.name)}"
                        actual = EntryState.FAILED if is_dead else state
                        yield id[:length], item_at(path, actual)
    for item in items(store, [EntryState.IN_DOUBT]):
        for length in lengths:
            if item.id[:length] in wanted:
                yield item.id[:length], item


def _named(store: Store, wanted: Collection[str]) -> dict[str, list[Item]]:
    """Return the only entry that has each as name or path; none if none has."""
    found: dict[str, list[Item]] = {given: [] for given in wanted}
    for item in items(store, EntryState) if found else ():
        for key in {item.place, item.name, item.place.rpartition("/")[2]}:
            if key in found:
                found[key].append(item)
    return {given: _one(given, known) for given, known in found.items()}


def _one(given: str, found: list[Item]) -> list[Item]:
    """Return `found`. Raises `ItemError` if there are several."""
    if len(found) > 1:
        # An entry that has moved while we looked was seen twice.
        found = [item for item in found if os.path.lexists(item.place)]
    if len(found) > 1:
        raise ambiguous(given, found)
    return found


def ambiguous(given: str, found: Sequence[Item]) -> ItemError:
    """Return the error for an id that means several entries."""
    choices = tuple(dict.fromkeys(item.id for item in found))
    if len({item.id for item in found}) == 1:
        # A crash while an entry was buried leaves it in two folders for a while.
        told = " and ".join(item.place for item in found)
        return ItemError(given, f"is there twice; give the path: {told}", choices)
    named = [f"{item.id} ({item.state.value})" for item in found[:_MOST_NAMED]]
    if len(found) > _MOST_NAMED:
        named.append(f"and {len(found) - _MOST_NAMED} more")
    reason = f"is ambiguous: {', '.join(named)}; give more of it"
    return ItemError(given, reason, choices)


# The whole queue


def survey(store: Store, now: float, most_seconds: float) -> Survey:
    """Look at the whole queue. See `IOperators.survey`.

    Counts names, and opens a few hundred files. Only the file of a deferred entry
    says when it is due. These are read for `most_seconds` from now, but at least for a
    quarter of that time after the waiting entries were counted.
    """
    until = time.monotonic() + most_seconds
    with explained(store.path, "look through the queue"):
        hidden: Counter[str] = Counter()
        due = _new(store.maildir.new, hidden)
        waiting = due.count
        until = max(until, time.monotonic() + most_seconds / 4)
        scheduled, next_scheduled = _scheduled(store, now, due)
        deferred, looked_at = _deferred(store, hidden, now, due, until)
        failed = hidden[REJECTED]
        for name in ("new", "cur"):
            failed += sum(1 for _ in _names(f"{store.path}/{FAILED}/{name}", hidden))
        bulk = _new(f"{store.path}/{rooms.BULK}/new", Counter())
        counts = {
            EntryState.WAITING: waiting,
            EntryState.SCHEDULED: scheduled,
            EntryState.DEFERRED: deferred,
            EntryState.BULK: bulk.count,
            EntryState.HELD: _held(store),
            EntryState.FAILED: failed,
            EntryState.IN_DOUBT: sum(1 for _ in items(store, [EntryState.IN_DOUBT])),
        }
        return Survey(
            counts,
            _reasons(store),
            due.count,
            due.oldest,
            looked_at,
            sum(1 for _ in young_claims(store, now)) if hidden[SENDING] else 0,
            heartbeat(store.path),
            pause_of(store.path),
            mailbox(store),
            tuple(shortages(store.path)),
            next_scheduled,
            stopped(store.path),
            tuple(receptions(store.path)),
            bulk.oldest,
        )


def mailbox(store: Store) -> str:
    """Return why this is probably a person's mailbox; empty for a queue."""
    try:
        refuse_mailbox(store.maildir)
    except NotAQueueError as error:
        return error.reason
    except MaildirError:
        pass  # a symbolic link, for which `check` has a finding
    return ""


def shortages(path: str) -> Iterator[str]:
    """Yield what the disk of the queue at `path` has too little of."""
    disk = os.statvfs(path)
    free = disk.f_bavail * disk.f_frsize
    if free < _LEAST_FREE:
        yield f"is on a disk with {free >> 20} MiB left"
    if disk.f_files and disk.f_favail < _LEAST_FILES:  # 0: without a limit
        yield f"is on a disk with room for {disk.f_favail} more files"


@dataclass
class _Due:
    count: int = 0
    oldest: float | None = None


def _names(folder: str, hidden: Counter[str]) -> Iterator[str]:
    """Yield the names of the entries. Count what other libraries have hidden."""
    try:
        found = os.scandir(folder)
    except FileNotFoundError:
        return  # no dead letter was kept yet
    except OSError as error:
        raise unable(folder, "look through the folder", error) from error
    with found:
        for entry in found:
            name = entry.name
            if not name.startswith("."):
                yield name
            else:
                hidden.update(p for p in (REJECTED, SENDING) if name.startswith(p))


def _held(store: Store) -> int:
    folders = map(store.maildir.folder, _FOLDERS[EntryState.HELD])
    return sum(1 for folder in folders for _ in _names(folder, Counter()))


def _scheduled(store: Store, now: float, due: _Due) -> tuple[int, float | None]:
    """Note what is due. Return how many are scheduled, and when the next is due."""
    count, first, late = 0, math.inf, math.inf
    for name in _names(f"{store.path}/{rooms.LATER}/new", Counter()):
        count += 1
        time = accepted_at(name) or 0.0
        if time > now:
            first = min(first, time)
        else:
            due.count += 1
            late = min(late, time)
    if late < math.inf:
        due.oldest = min(late, math.inf if due.oldest is None else due.oldest)
    return count, None if first == math.inf else first


def _new(folder: str, hidden: Counter[str]) -> _Due:
    """Return what waits in ``new``: all of it, since the first name was given."""
    due, first = _Due(), ""
    for name in _names(folder, hidden):
        due.count += 1
        first = min(first or name, name)
    due.oldest = accepted_at(first)
    return due


def _deferred(
    store: Store, hidden: Counter[str], now: float, due: _Due, until: float
) -> tuple[int, int]:
    """Note what is due. Return how many are deferred, and how many were read."""
    path = store.maildir.cur
    count = looked_at = 0
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in _names(path, hidden):
            if looked_at == count and (count % 256 or time.monotonic() < until):
                looked_at += 1
                changed = _changed(name, folder)
                if changed <= now:
                    due.count += 1
                    if due.oldest is None or changed < due.oldest:
                        due.oldest = changed
            count += 1
    finally:
        os.close(folder)
    return count, looked_at


def _changed(name: str, folder: int) -> float:
    try:
        # By its name alone: half as much work as by the whole path.
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return math.inf  # it has been sent since


def _reasons(store: Store) -> dict[EntryState, Reason]:
    """Return the most common reply of each state."""
    folder = store.maildir.cur
    # In no order: a better sample than the oldest entries, and at once.
    names = _names(folder, Counter())
    samples = {
        EntryState.DEFERRED: (
            item_at(f"{folder}/{name}", EntryState.DEFERRED) for name in names
        ),
        EntryState.FAILED: items(store, [EntryState.FAILED]),
    }
    reasons = ((state, _reason(sample)) for state, sample in samples.items())
    return {state: reason for state, reason in reasons if reason is not None}


def _reason(found: Iterator[Item]) -> Reason | None:
    """Return the most common reply of the first few hundred."""
    reads = [read for read in map(details, islice(found, SAMPLE)) if read]
    return most_common([read.last_reply or read.problem for read in reads])


def most_common(replies: Sequence[str]) -> Reason | None:
    """Return the most common of `replies`. An empty one counts as looked at."""
    alike: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for reply in replies:
        if reply:
            key = reply[:4] + _PARTICULAR.sub("*", reply[4:])
            alike[key] += 1
            examples.setdefault(key, reply)
    if not alike:
        return None
    [(key, count)] = alike.most_common(1)
    return Reason(examples[key], count, len(replies))
