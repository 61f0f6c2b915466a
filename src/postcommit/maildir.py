"""Maildir folders (https://cr.yp.to/proto/maildir.html), made durable.

A message is written in ``tmp``, and renamed into ``new`` when it is complete;
so nobody ever sees half of one. What the original format leaves to the
operating system is done here: a message is on the disk before its name is,
and its name is on the disk when `commit` returns.
"""
from __future__ import annotations

import functools
import itertools
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import suppress

from zope.interface import implementer
from zope.interface import provider

from postcommit.errors import MaildirError
from postcommit.errors import NotAMaildirError
from postcommit.errors import QueueError
from postcommit.errors import is_url
from postcommit.files import CREATE
from postcommit.files import begin_to_write_back
from postcommit.files import explained
from postcommit.files import remove
from postcommit.files import sync
from postcommit.files import unable
from postcommit.files import write
from postcommit.interfaces import IMaildir
from postcommit.interfaces import IMaildirFactory
from postcommit.interfaces import IMaildirMessageWriter
from postcommit.openfile import OpenFile


FOLDERS = ("tmp", "new", "cur")

# How many names are read, and sorted, at a time: a folder of a million
# messages costs no more memory than one of a few thousand.
_CHUNK = 2000

# Without the first, where there is no such thing, a folder cannot be opened.
_NAMELESS = getattr(os, "O_TMPFILE", 0) | os.O_WRONLY

_counter = itertools.count(1)


def unique_name(seconds: float | None = None) -> str:
    """Return a name for a new message: ``<s>.M<µs>P<pid>Q<count>.<host>``.

    Names sort by time, `seconds` since the epoch, now by default.
    """
    microseconds = time.time_ns() // 1000 if seconds is None else int(seconds * 1e6)
    whole, rest = divmod(microseconds, 1_000_000)
    return f"{whole:010d}.M{rest:06d}P{os.getpid()}Q{next(_counter)}.{_host()}"


@functools.cache
def _host() -> str:
    return socket.gethostname().replace("/", "\\057").replace(":", "\\072")


def check_path(path: str) -> None:
    """Raise a `QueueError` if there can be no Maildir at `path`. Creates nothing."""
    with explained(path, "open the Maildir"):
        exists = _exists(path)
    if exists:
        Maildir(path)
    elif not os.path.isdir(os.path.dirname(os.path.abspath(path))):
        raise QueueError(path, "there is no folder to create it in")


@provider(IMaildirFactory)
@implementer(IMaildir)
class Maildir:
    """See `IMaildir`, and `IMaildirFactory` for the arguments."""

    def __init__(self, dirname: str, create: bool = False) -> None:
        self.path = os.fsdecode(dirname)
        self._knows_nameless: bool | None = None  # not tried yet
        with explained(self.path, "open the Maildir", MaildirError):
            exists = _exists(self.path)
            if not os.path.isabs(self.path):
                # Should the process change its folder, this one is still meant.
                self.path = os.path.join(os.getcwd(), self.path)
        if create and not exists:
            with explained(self.path, "create the Maildir", MaildirError):
                _create(self.path)
        with explained(self.path, "open the Maildir", MaildirError):
            _check_folders(self.path)

    def __iter__(self) -> Iterator[str]:
        yield from self.paths("new")
        yield from self.paths("cur")

    def folder(self, name: str) -> str:
        """Return the path of ``tmp``, ``new`` or ``cur``."""
        return f"{self.path}/{name}"

    def paths(self, name: str) -> Iterator[str]:
        """Iterate over the files of a folder, without those that begin with a dot.

        In the order of their names, as far as a few thousand at a time can be.
        """
        folder = self.folder(name)
        with os.scandir(folder) as entries:
            names = (e.name for e in entries if not e.name.startswith("."))
            while chunk := sorted(itertools.islice(names, _CHUNK)):
                for found in chunk:
                    yield f"{folder}/{found}"

    def newMessage(self) -> MaildirMessageWriter:
        return MaildirMessageWriter(self, unique_name())

    def add(
        self, lines: Sequence[bytes | memoryview], *, nameless: bool = False
    ) -> MaildirMessage:
        """Write a whole message, to be committed or aborted.

        With `nameless` it is a `NamelessMessage`, where the file system has them.
        Raises `QueueError` where it cannot be written; then nothing is left.
        """
        if nameless and self._knows_nameless is None:
            self._knows_nameless = self._can_name_later()
        made = NamelessMessage if nameless and self._knows_nameless else MaildirMessage
        message = made(self, unique_name())
        try:
            message.fill(lines)
        except OSError as error:
            raise unable(message.path, "write", error) from error
        return message

    def _can_name_later(self) -> bool:
        """Try whether a file can get its name later on this file system."""
        message = NamelessMessage(self, unique_name())
        try:
            message.fill(())
            message.reveal()
            message.abort()
        except OSError:
            return False
        return True


class MaildirMessage:
    """A message that is complete, but no part of the Maildir yet.

    `name` is the file's name, `path` where it is or will be first, `target` where
    it belongs, `checksum` the CRC-32 of what was written.
    """

    def __init__(self, maildir: Maildir, name: str) -> None:
        self.name = name
        self._folder = maildir.folder("tmp")
        self.path = f"{self._folder}/{name}"
        self.target = f"{maildir.folder('new')}/{name}"
        self.checksum = 0
        self._aborted = False
        # Where the file may be already: an interrupt comes when a call is done.
        self._moving_to = ""

    def fill(self, lines: Sequence[bytes | memoryview]) -> None:
        """Write all of it, in few calls; if that fails, nothing is left."""
        file = OpenFile(self.path, CREATE)
        try:
            with file:  # to close it may fail, too
                self.checksum = write(file.descriptor, lines)
        except BaseException:
            self.abort()
            raise

    def sync(self) -> None:
        """Have what was written on the disk."""
        with OpenFile(self.path, os.O_RDONLY) as file:
            os.fsync(file.descriptor)

    def reveal(self) -> None:
        """Give the file its name in ``tmp``, if it has none yet."""

    def move(self, path: str) -> None:
        """Rename the file to `path`; at `target` it is committed."""
        self._moving_to = path
        try:
            os.rename(self.path, path)
        except FileNotFoundError:
            # NFS asks again where an answer was lost, and by then it has its name.
            if not os.path.lexists(path):
                raise
        self.path = path

    def commit(self) -> None:
        if self._aborted:
            raise ValueError(f"{self.path}: was aborted, cannot be committed")
        with explained(self.path, "move the message into the Maildir"):
            if self.path != self.target:
                self.sync()
                self.move(self.target)
            # Also if it comes again: what failed before may have been this.
            sync(os.path.dirname(self.target))

    def abort(self) -> None:
        if self.path == self.target:
            return
        self._aborted = True
        with explained(self.path, "remove the file"):
            for path in {self.path, self._moving_to or self.path} - {self.target}:
                remove(path)


class NamelessMessage(MaildirMessage):
    """One whose file has no name until it is revealed, or moved (``O_TMPFILE``).

    A file system has less to do for it, and nothing is left if the process dies.
    Until it has a name it costs an open file. To name it takes ``/proc``.
    """

    _file: OpenFile | None = None

    @property
    def _descriptor(self) -> int:
        return -1 if self._file is None else self._file.descriptor

    def fill(self, lines: Sequence[bytes | memoryview]) -> None:
        self._file = OpenFile(self._folder, _NAMELESS)
        try:
            self.checksum = write(self._descriptor, lines)
        except BaseException:
            self.abort()
            raise
        begin_to_write_back(self._descriptor)

    def sync(self) -> None:
        if self._descriptor == -1:
            super().sync()
        else:
            os.fsync(self._descriptor)

    def reveal(self) -> None:
        if self._descriptor != -1:
            self.move(self.path)

    def move(self, path: str) -> None:
        if self._descriptor == -1:
            super().move(path)
        else:
            self._moving_to = path
            # Only with a descriptor does Python follow the link; any will do.
            open_file = f"/proc/self/fd/{self._descriptor}"
            os.link(open_file, path, src_dir_fd=self._descriptor)
            self.path = path
            self._close()

    def abort(self) -> None:
        if self._descriptor == -1 or self._moving_to:
            super().abort()
        self._aborted = self.path != self.target
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # all that matters is synced, or not wanted
                self._file.close()


@implementer(IMaildirMessageWriter)
class MaildirMessageWriter(MaildirMessage):
    """See `IMaildirMessageWriter`; not buffered, each call is a system call."""

    def __init__(self, maildir: Maildir, name: str) -> None:
        super().__init__(maildir, name)
        with explained(self.path, "create the file"):
            self._file = OpenFile(self.path, CREATE)

    def write(self, data: bytes | memoryview | str) -> None:
        self.writelines((data,))

    def writelines(self, lines: Iterable[bytes | memoryview | str]) -> None:
        encoded = [line.encode() if isinstance(line, str) else line for line in lines]
        if self._file.descriptor == -1:
            raise ValueError(f"{self.path}: is closed, cannot be written to")
        with explained(self.path, "write"):
            self.checksum = write(self._file.descriptor, encoded, self.checksum)

    def close(self) -> None:
        with explained(self.path, "write"):
            self._file.close()

    def commit(self) -> None:
        self.close()
        super().commit()

    def abort(self) -> None:
        with suppress(OSError):  # what could not be written is not wanted any more
            self._file.close()
        super().abort()


def _exists(path: str) -> bool:
    if is_url(path):
        raise NotAMaildirError(path, "is a URL; name a folder")
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise NotAMaildirError(path, f"can be no path: {error}") from error
    return True


def _check_folders(path: str) -> None:
    """Raise `NotAMaildirError` unless the folder `path` has all that it needs.

    The folder itself may be a symbolic link. Those in it may not: the files behind
    such a link belong to somebody else, who does not expect them to be removed.
    """
    if not stat.S_ISDIR(os.stat(path).st_mode):
        raise NotAMaildirError(path, "is no folder, so no Maildir; name another")
    # Their kinds are known with their names, without another system call.
    with os.scandir(path) as found:
        present = {entry.name: entry for entry in found if entry.name in FOLDERS}
    missing = [name for name in FOLDERS if name not in present]
    if missing:
        raise NotAMaildirError(
            path,
            f"is no Maildir, it has no {' and no '.join(missing)};"
            " name another folder, or one that does not exist",
        )
    for name, entry in present.items():
        if not entry.is_dir(follow_symlinks=False):
            raise not_a_folder(path, name, is_link=entry.is_symlink())


def not_a_folder(path: str, name: str, *, is_link: bool) -> NotAMaildirError:
    """Return the error for a file or a link in place of the folder `name`."""
    kind = "a symbolic link" if is_link else "a file"
    reason = f"{name} is {kind}; a Maildir needs the folder itself there"
    return NotAMaildirError(path, reason)


def _create(path: str) -> None:
    """Create a Maildir that is complete from the moment that it is there."""
    parent = os.path.dirname(os.path.abspath(path))
    building = tempfile.mkdtemp(prefix=".maildir-", dir=parent)
    try:
        for name in FOLDERS:
            os.mkdir(f"{building}/{name}", 0o700)
        sync(building)
        os.rename(building, path)
    except OSError:
        shutil.rmtree(building)
        if not os.path.isdir(path):
            raise
        # Otherwise another process was faster: rename(2) replaces no folder
        # that has something in it.
    sync(parent)
