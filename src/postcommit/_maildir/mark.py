"""Tells a queue from a person's mailbox.

Both are Maildirs. A processor on a mailbox by mistake would bury all its mail. Is a
Maildir a queue? The first of these rules that applies says so:

1. It has the file ``.wakeup``, which every processor makes: it is a queue.
2. It has the file ``maildirfolder``: it is a folder of another Maildir, such as the
   dead letters of a queue, and not a queue.
3. Some of its files are entries of postcommit, zope.sendmail or repoze.sendmail, or
   were claimed or put aside by one of these: it is a queue. Only the first few files
   in ``new``, in ``cur`` and in the waiting rooms are read, so that a large queue costs
   no more.
4. Some of these files are messages without an envelope: it is a mailbox.
5. It has files of a mail server or folders of mail besides: it is a mailbox.
   Otherwise it is empty, or damaged, and a queue.
"""
from __future__ import annotations

import itertools
import os
import re
import stat
from contextlib import suppress

from postcommit._maildir import older
from postcommit._maildir.entry import BEGINNING
from postcommit._maildir.entry import FROM
from postcommit._maildir.entry import is_entry
from postcommit._maildir.files import explained
from postcommit._maildir.maildir import Maildir
from postcommit._maildir.maildir import check_path
from postcommit._maildir.maildir import not_a_folder
from postcommit._maildir.presence import WAKEUP
from postcommit._maildir.presence import open_wakeup
from postcommit._maildir.rooms import ROOMS
from postcommit.errors import NotAQueueError


# Maximum number of files read in each folder, and of bytes read of each file. A longer
# header is read to its end, because repoze.sendmail adds the envelope there.
_SAMPLE = 20
_HEAD = 1 << 16

# How a message begins: with a header field (RFC 5322, 2.2), or as in an mbox file.
_MESSAGE = re.compile(rb"[!-9;-~]+[ \t]*:|>?From ")

_SUBFOLDER = "maildirfolder"

# Files of servers and readers of mail (Dovecot, Courier) beside the folders.
_MAILBOX = re.compile(r"dovecot|courier|subscriptions|maildirsize")

# The dead letters of a queue, and all folders of mail that it has.
FAILED = ".Failed"
SUBFOLDERS = (FAILED, *ROOMS)


def refuse_mailbox(maildir: Maildir) -> None:
    """Raise `NotAQueueError` for a Maildir that is not a queue.

    Raises `NotAMaildirError` if its dead letters or a room are behind a symbolic link.
    """
    path = maildir.path
    for name in SUBFOLDERS:
        if os.path.islink(f"{path}/{name}"):
            raise not_a_folder(path, name, is_link=True)
    if os.path.lexists(f"{path}/{WAKEUP}"):
        return
    reason = ""
    with suppress(OSError):  # a fault of the disk is the processor's to deal with
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
    with explained(path, "adopt the Maildir"):
        open_wakeup(path).close()


def check_queue_path(path: str) -> None:
    """Raise a `QueueError` if there can be no queue at `path`. Creates no folder."""
    check_path(path)
    if os.path.lexists(path):
        refuse_mailbox(Maildir(path))


def _mailbox(maildir: Maildir) -> str:
    """Return why this is a mailbox, or an empty str if it is a queue."""
    if os.path.lexists(f"{maildir.path}/{_SUBFOLDER}"):
        return "it is a folder of another Maildir"
    heads = []
    waiting = (f"{room}/{name}" for room in ROOMS for name in ("new", "cur"))
    for folder in map(maildir.folder, ("new", "cur", *waiting)):
        names = _first_names(folder)
        if any(name.startswith((older.SENDING, older.REJECTED)) for name in names):
            return ""
        heads += [_head(f"{folder}/{n}") for n in names if not n.startswith(".")]
    if any(map(is_entry, heads)):
        return ""
    if any(map(_MESSAGE.match, heads)):
        return "it has mail, but no entry of a queue"
    foreign = _foreign(maildir.path)
    return f"it has {foreign!r}" if foreign else ""


def _first_names(folder: str) -> list[str]:
    try:
        with os.scandir(folder) as found:
            return [entry.name for entry in itertools.islice(found, _SAMPLE)]
    except FileNotFoundError:
        return []  # a room that nothing waits in


def _head(path: str) -> bytes:
    """Return the beginning of a file; nothing if it is not a regular file.

    Also nothing of a file that was sent in the meantime, or that cannot be read.
    """
    with suppress(OSError):
        if stat.S_ISREG(os.lstat(path).st_mode):
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            with open(os.open(path, flags), "rb", buffering=0) as file:
                head = file.read(_HEAD)
                is_other = _MESSAGE.match(head) and not head.startswith(FROM.rstrip())
                if is_other and older.header_of(head) is None:
                    head += file.read(BEGINNING)
                return head
    return b""


def _foreign(path: str) -> str:
    """Return what a mailbox has beside its mail, and a queue has not."""
    with os.scandir(path) as found:
        for entry in found:
            is_subfolder = os.path.exists(f"{entry.path}/{_SUBFOLDER}")
            is_foreign = is_subfolder and entry.name not in SUBFOLDERS
            if _MAILBOX.match(entry.name) or is_foreign:
                return entry.name
    return ""
