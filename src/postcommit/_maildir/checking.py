"""Finds what is wrong with a queue on disk, with advice for each problem."""
from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterator
from contextlib import suppress

from postcommit._maildir.files import explained
from postcommit._maildir.item import Details
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import Finding
from postcommit._maildir.item import Item
from postcommit._maildir.looking import details
from postcommit._maildir.looking import foreign_claims
from postcommit._maildir.looking import items
from postcommit._maildir.looking import mailbox
from postcommit._maildir.looking import shortages
from postcommit._maildir.maildir import FOLDERS
from postcommit._maildir.maildir import try_out
from postcommit._maildir.mark import FAILED
from postcommit._maildir.mark import SUBFOLDERS
from postcommit._maildir.mounts import REMOTE_ADVICE
from postcommit._maildir.mounts import is_read_only
from postcommit._maildir.mounts import mount_of
from postcommit._maildir.mounts import remoteness
from postcommit._maildir.presence import PAUSED
from postcommit._maildir.presence import STOPPED
from postcommit._maildir.presence import WAKEUP
from postcommit._maildir.presence import lacks_pipes
from postcommit._maildir.rooms import is_scheduled
from postcommit._maildir.staging import is_incomplete
from postcommit._maildir.store import LEFTOVER_AGE
from postcommit._maildir.store import Store


# Maximum number of seconds that the time of an entry may be ahead of the clock.
_AHEAD = 86400.0


def check(store: Store, now: float) -> Iterator[Finding]:
    """Yield what is wrong. See `IOperators.check`. `now` is in seconds since the epoch.

    Reads the beginning of every file.
    """
    with explained(store.path, "check the queue"):
        yield from _folders(store)
        yield from _file_system(store)
        yield from _disk(store)
        yield from _as_allowed(_foreign(store, now))
        yield from _as_allowed(_tmp(store, now))
        yield from _as_allowed(_doubts(store))
        if reason := mailbox(store):
            # Each of its messages would be a problem, with the advice to delete it.
            problem, _, advice = reason.partition("; ")
            yield Finding(store.path, problem, advice)
            return
        names: dict[EntryState, set[int]] = {}
        for state in EntryState:
            if state is EntryState.IN_DOUBT:
                continue  # they have findings of their own
            yield from _as_allowed(_entries(store, state, now, names))
        yield from _as_allowed(_twice(store, names))


def _as_allowed(findings: Iterator[Finding]) -> Iterator[Finding]:
    """Yield the findings up to a folder or file that this user may not read.

    That folder has another owner, and so a finding of its own.
    """
    with suppress(PermissionError):
        yield from findings


def _entries(
    store: Store, state: EntryState, now: float, names: dict[EntryState, set[int]]
) -> Iterator[Finding]:
    top = os.stat(store.path)
    for item in items(store, [state]):
        names.setdefault(state, set()).add(hash(item.name))
        read = details(item)
        if read is not None:
            with suppress(FileNotFoundError):  # it has been sent since
                found = os.lstat(item.place)
                if not stat.S_ISREG(found.st_mode):
                    yield _not_a_file(item, found)
                    continue
                yield from _rights(item.place, found, top)
                yield from _entry(store, read, now, found.st_uid == top.st_uid)


def _folders(store: Store) -> Iterator[Finding]:
    top = os.stat(store.path)
    yield from _rights(store.path, top, top)
    yield from _access(store.path, top, top)
    below = (f"{name}/{folder}" for name in SUBFOLDERS for folder in FOLDERS)
    for name in (*FOLDERS, *SUBFOLDERS, *below):
        path = f"{store.path}/{name}"
        try:
            found = os.lstat(path)
        except PermissionError:
            continue  # the folder that it is in has a finding
        except FileNotFoundError:
            parent = os.path.dirname(name)
            is_part = name in FOLDERS or parent in SUBFOLDERS
            if is_part and os.path.exists(f"{store.path}/{parent}"):
                yield Finding(path, "is missing", "create it, with mode 0700")
            continue
        if not stat.S_ISDIR(found.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "a file"
            yield Finding(path, f"is {kind}", "put the folder itself there")
            continue
        yield from _rights(path, found, top)
        if found.st_dev != top.st_dev:
            problem = "is on another file system, so nothing can be renamed to it"
            yield Finding(path, problem, "move it onto that of the queue")
        yield from _access(path, found, top)
    marks = (f"{name}/maildirfolder" for name in SUBFOLDERS)
    for name in (WAKEUP, PAUSED, STOPPED, *marks):
        path = f"{store.path}/{name}"
        with suppress(FileNotFoundError, PermissionError):
            yield from _rights(path, os.lstat(path), top)


def _access(path: str, found: os.stat_result, top: os.stat_result) -> Iterator[Finding]:
    # The effective ids: as root we act as the owner.
    wanted = os.R_OK | os.W_OK | os.X_OK
    if is_read_only(path):
        wanted = os.R_OK | os.X_OK  # nobody may write, and that is another finding
    if os.access(path, wanted, effective_ids=True):
        return
    problem = "may not be read and written by this user"
    if top.st_uid != os.geteuid():
        yield Finding(path, problem, "run as the user that owns the queue")
    elif found.st_uid == top.st_uid:
        yield Finding(path, problem, f"'chmod u=rwx {quoted(path)}'")
    # Otherwise it has another owner, for which `_rights` has a finding.


def _rights(path: str, found: os.stat_result, top: os.stat_result) -> Iterator[Finding]:
    """Yield what is wrong with mode and owner of a folder or a regular file.

    The advice may be followed as root, so it must not change a file that a user has
    linked into the queue. `found` is the status of the folder or file itself.
    """
    if stat.S_ISLNK(found.st_mode):
        return  # it is without rights of its own, and chmod would follow it
    advice = ""
    if not stat.S_ISDIR(found.st_mode) and found.st_nlink > 1:
        # Each of its names would change, and it may be /etc/shadow.
        look = f"find / -xdev -inum {found.st_ino}"
        advice = f"it has {found.st_nlink} names, so look first what it is: '{look}'"
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        problem = f"has mode {mode:04o}, so others can read the mail"
        yield Finding(path, problem, advice or f"'chmod go= {quoted(path)}'")
    if found.st_uid != top.st_uid:
        problem = f"belongs to user {found.st_uid}, the queue to user {top.st_uid}"
        # Never the target of a symbolic link; and all that a folder has.
        options = "-hR" if stat.S_ISDIR(found.st_mode) else "-h"
        owner = f"{top.st_uid}:{top.st_gid}"
        change = f"as root, run 'chown {options} {owner} {quoted(path)}'"
        yield Finding(path, problem, advice or change)


def quoted(path: str) -> str:
    """Return `path` as a word for a shell, in characters that can be printed."""
    if path.isprintable():
        return shlex.quote(path)
    # POSIX.1-2024, 2.2.4; bash, zsh and ksh have had it for long.
    plain = (chr(b) if 32 <= b < 127 else f"\\{b:03o}" for b in os.fsencode(path))
    words = "".join(f"\\{c}" if c in ("'", "\\") else c for c in plain)
    return f"$'{words}'"


def _file_system(store: Store) -> Iterator[Finding]:
    if is_read_only(store.path):
        mount = mount_of(store.path)
        where = mount.point if mount else store.path
        advice = f"as root, run 'mount -o remount,rw {quoted(where)}'; after an error"
        advice += " of the disk, 'dmesg' tells the reason"
        yield Finding(store.path, "is on a file system that is read-only", advice)
    if problem := remoteness(store.path):
        yield Finding(store.path, problem, REMOTE_ADVICE)
    if not mailbox(store):  # in which nothing may be created, not even for a moment
        tmp = store.maildir.tmp
        lacks, _ = try_out(tmp)
        if lacks:
            yield Finding(store.path, *lacks.split("; "))
        if lacks_pipes(tmp):
            problem = "is on a file system without named pipes"
            advice = "none: commits cannot wake the processor, it only polls"
            yield Finding(store.path, problem, advice)


def _disk(store: Store) -> Iterator[Finding]:
    for problem in shortages(store.path):
        yield Finding(store.path, problem, "make room before the next commit fails")


def _foreign(store: Store, now: float) -> Iterator[Finding]:
    for path, age in foreign_claims(store, now):
        problem = f"another library has claimed this entry {age:.0f} s ago"
        advice = "stop its processor; if it is stopped, remove this file"
        yield Finding(path, problem, advice)


def _tmp(store: Store, now: float) -> Iterator[Finding]:
    top = os.stat(store.path)
    for subfolder in ("", FAILED):
        folder = os.path.join(store.path, subfolder, "tmp")
        if not os.path.isdir(folder):
            continue
        for entry in os.scandir(folder):
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if found.st_uid != top.st_uid:
                yield from _rights(entry.path, found, top)
            elif now - found.st_mtime > LEFTOVER_AGE and is_incomplete(entry.path):
                problem = "was half written more than 36 hours ago"
                yield Finding(entry.path, problem, "none: a processor removes it")


def _doubts(store: Store) -> Iterator[Finding]:
    for item in items(store, [EntryState.IN_DOUBT]):
        problem = "is in doubt: its process died between vote and finish"
        advice = f"{_command(store, 'recover --send', item)}, or --drop"
        yield Finding(item.place, problem, advice)


def _command(store: Store, name: str, item: Item) -> str:
    return f"'postcommit {name} {quoted(store.path)} {item.id}'"


def _entry(
    store: Store, read: Details, now: float, is_own: bool
) -> Iterator[Finding]:
    item = read.item
    if read.problem and is_own:
        advice = f"{_command(store, 'show --raw', item)}, then repair or delete it"
        yield Finding(item.place, f"is no entry: {read.problem}", advice)
    accepted = item.accepted
    if accepted is None:
        problem = "has a name that does not tell when it was accepted"
        advice = "none: its file's time is taken instead"
        if item.state is EntryState.SCHEDULED:
            problem = "has a name that does not begin with the time when it is due"
            advice = "none: a processor sends it at once"
        yield Finding(item.place, problem, advice)
    elif accepted > now + _AHEAD and not is_scheduled(item.name):
        problem = "was accepted in the future"
        yield Finding(item.place, problem, "set the clock of this machine")
    if item.state is EntryState.DEFERRED and read.changed > now + _AHEAD:
        problem = "is due more than a day from now"
        yield Finding(item.place, problem, _command(store, "retry", item))


def _not_a_file(item: Item, found: os.stat_result) -> Finding:
    advice = f"'rm {quoted(item.place)}'"
    if stat.S_ISLNK(found.st_mode):
        problem = "is a symbolic link, which is never followed"
    elif stat.S_ISDIR(found.st_mode):
        problem, advice = "is a folder", "move it out of the queue"
    else:
        problem = "is not a regular file"
    return Finding(item.place, f"{problem}, so it is no entry", advice)


def _twice(store: Store, names: dict[EntryState, set[int]]) -> Iterator[Finding]:
    both = names.get(EntryState.WAITING, set()) & names.get(EntryState.DEFERRED, set())
    if both:
        for item in items(store, [EntryState.DEFERRED]):
            twin = f"{store.maildir.new}/{item.name}"
            if hash(item.name) in both and os.path.exists(twin):
                problem = f"is also there as {twin}: it would be sent twice"
                yield Finding(item.place, problem, "delete one of them")
