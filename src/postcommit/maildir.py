"""Maildir folders (https://cr.yp.to/proto/maildir.html), made durable.

A message is written in ``tmp``, and renamed into ``new`` when it is complete;
so nobody ever sees half of one. What the original format leaves to the
operating system is done here: a message is on the disk before its name is,
and its name is on the disk when `commit` returns.
"""
from __future__ import annotations

import io
import itertools
import os
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import BinaryIO

from zope.interface import implementer
from zope.interface import provider

from postcommit.errors import NotAMaildirError
from postcommit.errors import QueueError
from postcommit.interfaces import IMaildir
from postcommit.interfaces import IMaildirFactory
from postcommit.interfaces import IMaildirMessageWriter


FOLDERS = ("tmp", "new", "cur")

# How many names are read, and sorted, at a time: a folder of a million
# messages costs no more memory than one of a few thousand.
_CHUNK = 2000

# Pieces up to so many bytes in all are written in one call.
_ONE_WRITE = 1 << 16

_CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC

_counter = itertools.count(1)


def unique_name(seconds: float | None = None) -> str:
    """Return a name for a new message: ``<s>.M<µs>P<pid>Q<count>.<host>``.

    Names sort by time, `seconds` since the epoch, now by default.
    """
    microseconds = time.time_ns() // 1000 if seconds is None else int(seconds * 1e6)
    host = socket.gethostname().replace("/", "\\057").replace(":", "\\072")
    return (
        f"{microseconds // 1_000_000:010d}.M{microseconds % 1_000_000:06d}"
        f"P{os.getpid()}Q{next(_counter)}.{host}"
    )


class explained:
    """Turns an OSError of its body into a `QueueError` that names `path`."""

    def __init__(self, path: str, doing: str) -> None:
        self._path = path
        self._doing = doing

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, QueueError):
            raise unable(self._path, self._doing, error) from error


def unable(path: str, doing: str, error: OSError) -> QueueError:
    """Return `error` as a `QueueError` that names `path`."""
    return QueueError(path, f"cannot {doing}: {error.strerror or error}", error)


def sync(path: str) -> None:
    """Have the file or folder at `path` written to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: str) -> None:
    """Remove the file `path`, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def create_file(path: str) -> BinaryIO:
    """Create the file `path`, readable by its owner only, to write to it."""
    return open(os.open(path, _CREATE, 0o600), "wb")


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
        with explained(self.path, "open the Maildir"):
            exists = _exists(self.path)
        if create and not exists:
            with explained(self.path, "create the Maildir"):
                _create(self.path)
        with explained(self.path, "open the Maildir"):
            if not stat.S_ISDIR(os.stat(self.path).st_mode):
                reason = "is no folder, so no Maildir; name another"
                raise NotAMaildirError(self.path, reason)
            present = os.listdir(self.path)
        missing = [name for name in FOLDERS if name not in present]
        if missing:
            raise NotAMaildirError(
                self.path,
                f"is no Maildir, it has no {' and no '.join(missing)};"
                " name another folder, or one that does not exist",
            )

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

    def add(self, lines: Iterable[bytes | memoryview]) -> MaildirMessage:
        """Write a whole message, to be committed or aborted.

        Raises `QueueError` where it cannot be written; then nothing is left.
        """
        message = MaildirMessage(self, unique_name())
        with explained(message.path, "write"):
            descriptor = os.open(message.path, _CREATE, 0o600)
            try:
                try:
                    message.checksum = _write(descriptor, lines)
                finally:
                    os.close(descriptor)  # which tells of errors, too
            except BaseException:
                message.abort()
                raise
        return message


class MaildirMessage:
    """A message that is complete, but no part of the Maildir yet.

    `name` is the file's name, `path` where it is, `target` where it belongs,
    `checksum` the CRC-32 of what was written.
    """

    def __init__(self, maildir: Maildir, name: str) -> None:
        self.name = name
        self.path = f"{maildir.folder('tmp')}/{name}"
        self.target = f"{maildir.folder('new')}/{name}"
        self.checksum = 0
        self._aborted = False

    def move(self, path: str) -> None:
        """Rename the file to `path`; at `target` it is committed."""
        os.rename(self.path, path)
        self.path = path

    def commit(self) -> None:
        if self._aborted:
            raise ValueError(f"{self.path}: was aborted, cannot be committed")
        if self.path == self.target:
            return
        with explained(self.path, "move the message into the Maildir"):
            sync(self.path)
            self.move(self.target)
            sync(os.path.dirname(self.target))

    def abort(self) -> None:
        if self._aborted or self.path == self.target:
            return
        self._aborted = True
        with explained(self.path, "remove the file"):
            remove(self.path)


@implementer(IMaildirMessageWriter)
class MaildirMessageWriter(MaildirMessage):
    """See `IMaildirMessageWriter`; not buffered, each call is a system call."""

    def __init__(self, maildir: Maildir, name: str) -> None:
        super().__init__(maildir, name)
        with explained(self.path, "create the file"):
            self._file = io.FileIO(os.open(self.path, _CREATE, 0o600), "wb")

    def write(self, data: bytes | memoryview | str) -> None:
        self.writelines((data,))

    def writelines(self, lines: Iterable[bytes | memoryview | str]) -> None:
        encoded = (line.encode() if isinstance(line, str) else line for line in lines)
        with explained(self.path, "write"):
            self.checksum = _write(self._file.fileno(), encoded, self.checksum)

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


def _write(
    descriptor: int, lines: Iterable[bytes | memoryview], checksum: int = 0
) -> int:
    """Write all of `lines`, in few calls, and return the checksum with them."""
    pieces = list(lines)
    if sum(map(len, pieces)) <= _ONE_WRITE:
        pieces = [b"".join(pieces)]
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    return checksum


def _exists(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise NotAMaildirError(path, f"can be no path: {error}") from error
    return True


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
