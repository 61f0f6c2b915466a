"""The user that owns a queue, and how a command that root runs acts as that user.

A file that root creates in a queue belongs to root and has the mode 0600. The
processor of the owner can then neither read nor lock it. The obvious solution is to
change the owner of each file after it was written, but a processor may look at the file
before. So the process itself acts as the owner: then every file belongs to the right
user from its beginning.

Only the effective ids change (seteuid(2), in all threads), so that the process can be
root again when the command is done.

The process opens files by their paths. So a user who can rename the queue, because they
can write into the folder around it, can make root act as the queue's owner in another
folder. A queue that was replaced before the process became its owner is refused. This
is not checked later, so the folder around the queue must belong to its owner or root.
"""
from __future__ import annotations

import os
import pkgutil
import pwd
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib import invalidate_caches

from postcommit._maildir.maildir import FOLDERS
from postcommit._maildir.mark import SUBFOLDERS
from postcommit.errors import QueueError


_ROOT = 0

# Packages of which Python, or idna, imports some modules late.
_LATE = ("encodings", "email", "idna")


@dataclass(frozen=True)
class Owner:
    """A user. The name may be missing, for example in a container."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str = ""

    def __str__(self) -> str:
        return f"user {self.name} ({self.uid})" if self.name else f"user {self.uid}"


def owner_of(found: os.stat_result) -> Owner:
    """Return the owner of the file or folder that has this status.

    Without an entry in the password database, its only group is that of the file.
    """
    try:
        user = pwd.getpwuid(found.st_uid)
    except KeyError:
        return Owner(found.st_uid, found.st_gid, (found.st_gid,))
    groups = tuple(os.getgrouplist(user.pw_name, user.pw_gid))
    return Owner(found.st_uid, user.pw_gid, groups, user.pw_name)


def is_root() -> bool:
    """Return whether this process has the rights of root now."""
    return os.geteuid() == _ROOT


def act_as_owner(queue_path: str, *, create: bool = False) -> None:
    """As root, act as the owner of the queue from now on, and say so on stderr.

    A queue that is missing and may be created will belong to the owner of the folder
    that it is created in. Nothing changes if the process is not root, if the queue
    belongs to root, or if the path does not exist. Configuration, passwords and
    certificates that only root can read must be read before.

    Raises `QueueError` if the process may not become that user, or acts as the owner of
    another queue already.
    """
    if os.getuid() != _ROOT:
        return
    path, found = _status(queue_path, create=create)
    if found is None or found.st_uid == os.geteuid():
        return
    owner = owner_of(found)
    if not is_root():
        reason = f"belongs to {owner}, and this process acts as user {os.geteuid()}"
        raise QueueError(queue_path, f"{reason}; restart it")
    _import_what_comes_late()
    try:
        _become(owner)
    except OSError as error:
        reason = f"cannot act as its owner, {owner}: {error.strerror}; run as that user"
        raise QueueError(queue_path, reason) from error
    if _is_replaced(path, found):
        raise QueueError(queue_path, "was replaced by another folder just now")
    print(f"postcommit: acting as {owner}, who owns {queue_path!r}", file=sys.stderr)


def _status(queue_path: str, *, create: bool) -> tuple[str, os.stat_result | None]:
    """Return the path and status of the queue, or of the folder to create it in."""
    paths = [queue_path]
    if create:
        paths.append(os.path.dirname(os.path.abspath(queue_path)))
    for path in paths:
        with suppress(OSError, ValueError):  # the command says better what is wrong
            return path, os.stat(path)
    return queue_path, None


def _is_replaced(path: str, found: os.stat_result) -> bool:
    """Return whether `path` leads to another folder than that of `found`."""
    with suppress(OSError):  # the command says better what is wrong
        return not os.path.samestat(os.stat(path), found)
    return False


def _import_what_comes_late() -> None:
    """Import the modules that Python would otherwise import when it first needs them.

    The interpreter may be in a folder that only root can read, such as ``/root``. For
    example, the first look-up of a host name imports an encoding.
    """
    for package in _LATE:
        folder = import_module(package).__path__
        for found in pkgutil.iter_modules(folder, f"{package}."):
            if not found.name.endswith(".__main__"):
                with suppress(ImportError):  # some are for other systems
                    import_module(found.name)


def _become(owner: Owner) -> None:
    # The user last: only root may change groups.
    os.setgroups(owner.groups)
    os.setegid(owner.gid)
    os.seteuid(owner.uid)


@contextmanager
def restored() -> Iterator[None]:
    """At the end of the body, be the user again that the process was before."""
    user, group, groups = os.geteuid(), os.getegid(), os.getgroups()
    try:
        yield
    finally:
        if (os.geteuid(), os.getegid(), os.getgroups()) != (user, group, groups):
            os.seteuid(user)
            os.setegid(group)
            os.setgroups(groups)
            # The owner may have seen nothing in a folder that has modules.
            invalidate_caches()


def advice(path: str) -> str:
    """Say what to do if `path`, a queue or a file of it, may not be used.

    For the owner of the queue, the advice is how to find the files of other users.
    """
    queue = _queue_of(path)
    if queue is not None and os.stat(queue).st_uid == os.geteuid():
        told = shlex.quote(queue)
        return f"'postcommit check {told}' names what belongs to somebody else"
    return "run as the user that owns the queue"


def _queue_of(path: str) -> str | None:
    """Return the Maildir that `path` is, or is in, if it can be seen."""
    folder = os.path.abspath(path)
    while True:
        # The folder of the dead letters is a Maildir in the queue, as is each room.
        if os.path.basename(folder) not in SUBFOLDERS and all(
            os.path.isdir(f"{folder}/{name}") for name in FOLDERS
        ):
            return folder
        parent = os.path.dirname(folder)
        if parent == folder:
            return None
        folder = parent
