"""Tells a queue from a person's mailbox.

Both are Maildirs. A processor on a mailbox by mistake would bury all its mail. Is a
Maildir a queue? The first of these rules that applies says so:

1. It has the file ``.wakeup``, which every processor makes: it is a queue.
2. It has the file ``maildirfolder``: it is a folder of another Maildir, such as the
   dead letters of a queue, and not a queue.
3. Some of its files are entries of postcommit, zope.sendmail or repoze.sendmail, or
   were claimed or put aside by one of these: it is a queue. Only the first few files
   in ``new`` and in ``cur`` are read, so that a large queue costs no more.
4. It has other files in ``new`` or ``cur`` that are not empty: it is a mailbox.
5. It has files of a mail server or folders of mail besides: it is a mailbox.
   Otherwise it is empty, and a queue.
"""
from __future__ import annotations

import itertools
import os
import re
import stat
from contextlib import suppress

from postcommit.errors import NotAQueueError
from postcommit.files import explained
from postcommit.maildir import FOLDERS
from postcommit.maildir import Maildir
from postcommit.maildir import check_folder
from postcommit.maildir import check_path
from postcommit.queue.entry import is_entry
from postcommit.queue.wakeup import WAKEUP


# Maximum number of files read in each folder, and of bytes in each file.
_SAMPLE = 20
_HEAD = 1 << 16

# How the names begin by which an older library claims an entry, or puts one aside.
_OLDER = (".sending-", ".rejected-")

_SUBFOLDER = "maildirfolder"

# What servers and readers of mail (Dovecot, Courier) have beside the folders.
_MAILBOX = re.compile(r"dovecot|courier|subscriptions|maildirsize|maildirfolder")

# The dead letters of a queue.
FAILED = ".Failed"

_OURS = {*FOLDERS, FAILED}


def refuse_mailbox(maildir: Maildir) -> None:
    """Raise `NotAQueueError` for a Maildir that is not a queue.

    Raises `NotAMaildirError` if its dead letters are behind a symbolic link.
    """
    path = maildir.path
    if os.path.lexists(f"{path}/{FAILED}"):
        check_folder(path, FAILED)
    if os.path.lexists(f"{path}/{WAKEUP}"):
        return
    with explained(path, "look whether this is a queue"):
        reason = _mailbox(maildir)
    if reason:
        raise NotAQueueError(
            path,
            f"{reason}, so this may be a person's mailbox; name another folder, or"
            " 'postcommit flush --adopt', if all that is in it is to be sent",
        )


def adopt(path: str) -> None:
    """Make the Maildir at `path` a queue, whatever is in it."""
    Maildir(path)
    with explained(path, "adopt the Maildir"), suppress(FileExistsError):
        os.mkfifo(f"{path}/{WAKEUP}", 0o600)


def check_queue_path(path: str) -> None:
    """Raise a `QueueError` if there can be no queue at `path`. Creates no folder."""
    check_path(path)
    if os.path.lexists(path):
        refuse_mailbox(Maildir(path))


def _mailbox(maildir: Maildir) -> str:
    """Return why this is a mailbox; an empty str if it is a queue."""
    if os.path.lexists(f"{maildir.path}/{_SUBFOLDER}"):
        return "it is a folder of another Maildir"
    is_empty = True
    for name in ("new", "cur"):
        has_entries = _has_entries(maildir.folder(name))
        if has_entries:
            return ""
        is_empty = is_empty and has_entries is None
    if not is_empty:
        return "it has mail, but no entry of a queue"
    foreign = _foreign(maildir.path)
    return f"it has {foreign!r}" if foreign else ""


def _has_entries(folder: str) -> bool | None:
    """Tell whether one of the first few files is a queue's; None if all are empty."""
    with os.scandir(folder) as found:
        if any(e.name.startswith(_OLDER) for e in itertools.islice(found, _SAMPLE)):
            return True
    has_mail = False
    with os.scandir(folder) as found:
        files = (entry.path for entry in found if not entry.name.startswith("."))
        for head in map(_head, itertools.islice(files, _SAMPLE)):
            if is_entry(head):
                return True
            has_mail = has_mail or bool(head)
    return False if has_mail else None


def _head(path: str) -> bytes:
    """Return the beginning of a file; nothing if it is gone or not a regular file."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return b""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return b""
    try:
        return os.read(descriptor, _HEAD)
    finally:
        os.close(descriptor)


def _foreign(path: str) -> str:
    """Return what a mailbox has beside its mail, and a queue has not."""
    with os.scandir(path) as found:
        for entry in found:
            is_subfolder = entry.name.startswith(".") and entry.is_dir()
            if _MAILBOX.match(entry.name) or (is_subfolder and entry.name not in _OURS):
                return entry.name
    return ""
