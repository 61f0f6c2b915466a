"""Maildir folders (https://cr.yp.to/proto/maildir.html), made durable.

A message is written in ``tmp``, and renamed into ``new`` when it is complete, so no
reader ever sees half of a message. The original format leaves durability to the
operating system. Here, a message is on the disk before its name is, and its name is on
the disk when `commit` returns.
"""
from __future__ import annotations

import fcntl
import itertools
import os
import socket
import stat
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from contextlib import closing
from contextlib import suppress
from dataclasses import dataclass

from zope.interface import implementer
from zope.interface import provider

from postcommit._maildir.files import CREATE
from postcommit._maildir.files import ONE_WRITE
from postcommit._maildir.files import OpenFile
from postcommit._maildir.files import explained
from postcommit._maildir.files import give_to_owner
from postcommit._maildir.files import remove
from postcommit._maildir.files import rename
from postcommit._maildir.files import sync
from postcommit._maildir.files import unable
from postcommit._maildir.files import write
from postcommit.errors import MaildirError
from postcommit.errors import NotAMaildirError
from postcommit.errors import QueueError
from postcommit.errors import is_url
from postcommit.interfaces import IMaildir
from postcommit.interfaces import IMaildirFactory
from postcommit.interfaces import IMaildirMessageWriter


FOLDERS = ("tmp", "new", "cur")

# Number of names that are read, and sorted, at a time: a folder of a million
# messages costs no more memory than one of a few thousand.
_PART = 2000

# Flags of a file without a name. On a system without O_TMPFILE, to open a folder with
# the rest fails.
_NAMELESS = getattr(os, "O_TMPFILE", 0) | os.O_WRONLY

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

_counter = itertools.count(1)

# The name of this machine, as a part of a file name. It is cut, because the name of a
# prepared file has it twice, and must not be longer than 255 bytes.
_HOST = socket.gethostname().replace("/", "\\057").replace(":", "\\072")[:40]

# Resolution of a folder's time of change, in seconds, with a margin. A folder that
# changed more recently may change again without a new time.
_COARSENESS = 3.0

# A file that is there for a moment, to learn what a file system can do.
PROBE = ".probe"

_NEEDED = "which a queue needs; put the queue on another one, such as ext4"


def unique_name(seconds: float | None = None) -> str:
    """Return a name for a new message: ``<s>.M<µs>P<pid>Q<count>R<random>.<host>``.

    Names sort by time, `seconds` since the epoch, now by default. All but the random
    bits can be equal in two containers, or in two copies of a virtual machine.
    """
    microseconds = time.time_ns() // 1000 if seconds is None else int(seconds * 1e6)
    digits = f"{microseconds:016}"
    unique = f"P{os.getpid()}Q{next(_counter)}R{os.urandom(8).hex()}"
    return f"{digits[:-6]}.M{digits[-6:]}{unique}.{_HOST}"


def another_name(path: str) -> str:
    """Return a path for a file whose own `path` is taken, in the same folder."""
    return f"{path}.R{os.urandom(8).hex()}"


def check_path(path: str) -> None:
    """Raise a `QueueError` if there can be no Maildir at `path`. Creates nothing."""
    with explained(path, "open the Maildir", MaildirError):
        exists = _check_folders(path)
    parent = os.path.dirname(os.path.abspath(path))
    if not exists and not os.path.isdir(parent):
        raise QueueError(path, f"there is no folder {parent!r} to create it in")


@provider(IMaildirFactory)
@implementer(IMaildir)
class Maildir:
    """A Maildir folder. See `IMaildir`, and `IMaildirFactory` for the arguments."""

    tmp: str
    new: str
    cur: str
    #: Whether root works for somebody else, to whom each new file is given.
    is_foreign: bool
    #: Another one if the folder was replaced.
    identity: tuple[str, int, int]

    # Whether a file can get its name later. None: it was not tried.
    _names_later: bool | None = None

    def __init__(self, dirname: str, create: bool = False) -> None:
        self.path: str = os.fsdecode(dirname)
        with explained(self.path, "open the Maildir", MaildirError):
            exists = _check_folders(self.path)
            if not os.path.isabs(self.path):
                # Should the process change its folder, this folder is still meant.
                self.path = os.path.join(os.getcwd(), self.path)
        self.is_new: bool = create and not exists
        if self.is_new:
            with explained(self.path, "create the Maildir", MaildirError):
                create_maildir(self.path)
        with explained(self.path, "open the Maildir", MaildirError):
            if self.is_new:
                _check_folders(self.path)  # another process may have been faster
            # Asked once, because a call for each message would take 3 % of a commit.
            self.tmp, self.new, self.cur = (f"{self.path}/{name}" for name in FOLDERS)
            tmp = os.stat(self.tmp)
            self.is_foreign = os.geteuid() == 0 != tmp.st_uid
            self.identity = self.path, tmp.st_dev, tmp.st_ino

    def __iter__(self) -> Iterator[str]:
        """Iterate over the path names of the messages, new ones first."""
        yield from self.paths("new")
        yield from self.paths("cur")

    def folder(self, name: str) -> str:
        """Return the path of ``tmp``, ``new`` or ``cur``."""
        return f"{self.path}/{name}"

    def paths(self, name: str) -> Iterator[str]:
        """Iterate over the files of a folder, without those that begin with a dot.

        In the order of their names, as far as a few thousand at a time can be.
        """
        for part in self.parts(name):
            yield from part

    def parts(self, name: str) -> Iterator[list[str]]:
        """Iterate over the same files, as lists of a few thousand in their order."""
        folder = f"{self.path}/{name}"
        with os.scandir(folder) as entries:
            names = (e.name for e in entries if not e.name.startswith("."))
            paths = (f"{folder}/{name}" for name in names)
            while part := sorted(itertools.islice(paths, _PART)):
                yield part

    def newMessage(self) -> MaildirMessageWriter:
        """Create a file in ``tmp`` and return its writer."""
        return MaildirMessageWriter(self, unique_name())

    def add(
        self,
        lines: Sequence[bytes | memoryview],
        *,
        nameless: bool = False,
        name: str = "",
        folder: str = "new",
    ) -> Staged:
        """Write a whole message, to be committed or aborted.

        It goes to `folder`, which is below the path, under `name` or a new name.
        With `nameless` its file gets its name when it is moved, if the file system can
        do that (``O_TMPFILE``). That costs an open file, but the file system has less
        to do, and nothing is left if the process dies.
        Raises `QueueError` if it cannot be written. Then nothing is left.
        """
        if nameless and self._names_later is None:
            self._names_later = try_out(self.tmp)[1]
        is_nameless = nameless and self._names_later
        message = Staged(self, name or unique_name(), folder)
        try:
            where = (self.tmp, _NAMELESS) if is_nameless else (message.path, CREATE)
            message._file = file = OpenFile(*where)
            try:
                if self.is_foreign:
                    give_to_owner(file.descriptor, self.tmp)
                message.checksum = write(file.descriptor, lines)
                if not is_nameless:
                    file.close()  # it may fail, too
                    message._file = None
            except BaseException:
                message.abort()
                raise
        except OSError as error:
            raise unable(message.path, "write", error) from error
        # The disk begins while we go on, so there is less to wait for. Not with all of
        # a large file: what has reached the disk by then is dropped from memory, and a
        # processor wants it soon.
        if is_nameless:
            with suppress(OSError):  # it is but advice
                os.posix_fadvise(file.descriptor, 0, ONE_WRITE, os.POSIX_FADV_DONTNEED)
        return message


@dataclass
class Watch:
    """The changes of the folder at `path`, as one reader has seen them."""

    path: str
    _seen: tuple[float, int] | None = None

    def has_changed(self) -> bool:
        """Return whether the folder has changed since the last call.

        True at the first call. It costs one ``stat`` call. Raises OSError.
        """
        found = os.stat(self.path)
        state = found.st_mtime, found.st_ino  # another if the folder was replaced
        if state == self._seen:
            return False
        is_settled = time.time() - found.st_mtime > _COARSENESS
        self._seen = state if is_settled else None
        return True

    def forget(self) -> None:
        """Make the next call return True."""
        self._seen = None


class Staged:
    """A message that is complete, but not a part of the Maildir yet.

    `name` is the file's name, `path` where it is or will be first, `target` where
    it belongs, in `folder`, `checksum` the CRC-32 of its content. `head` is the
    beginning of the message, if it is known.
    """

    head: bytes | memoryview = b""

    # Open while it is written, and as long as the file is nameless.
    _file: OpenFile | None = None
    _aborted = False
    # Path where the file may be already: an interrupt comes after the call is done.
    _moving_to = ""
    _has_other_target = False

    def __init__(self, maildir: Maildir, name: str, folder: str = "new") -> None:
        self.name = name
        self._maildir = maildir
        self.path: str = f"{maildir.tmp}/{name}"
        self.folder: str = f"{maildir.path}/{folder}"
        self.target: str = f"{self.folder}/{name}"
        self.checksum: int = 0

    def sync(self) -> None:
        """Have its content on the disk."""
        # By an open file that the children of a fork close. It closes itself.
        file = self._file or OpenFile(self.path, os.O_RDONLY)
        os.fsync(file.descriptor)

    def give_name(self) -> None:
        """Give the file its name in ``tmp``, if it is still without."""
        if self._file is not None:
            self.move(self.path)

    def move(self, path: str) -> None:
        """Rename the file to `path`. At `target` it is committed.

        No file is ever replaced. If `target` is taken, it becomes another name, once.
        Raises OSError, such as FileExistsError for any other `path` that is taken.
        """
        self._moving_to = path
        try:
            if self._file is not None:
                # Only with a descriptor does Python follow the link. Any will do.
                named = f"/proc/self/fd/{self._file.descriptor}"
                os.link(named, path, src_dir_fd=self._file.descriptor)
            else:
                rename(self.path, path)
        except FileExistsError:
            self._moving_to = ""  # that file is not ours
            if path != self.target or self._has_other_target:
                raise
            self._has_other_target = True
            self.target = another_name(path)
            self.move(self.target)
            return
        except FileNotFoundError:
            # NFS repeats a rename whose answer was lost, and by then it is done.
            if self._file is not None or not os.path.lexists(path):
                raise
        self.path = path
        self._file = None  # it closes itself; should that fail, all is synced

    def commit(self) -> None:
        if self._aborted:
            raise ValueError(f"{self.path}: was aborted, cannot be committed")
        with explained(self.path, "move the message into the Maildir"):
            if self.path != self.target:
                self.sync()
                self.move(self.target)
            # Also in a second call: this may be what failed in the first.
            sync(self.folder)

    def abort(self) -> None:
        """Remove the file, unless it is committed. May be called again."""
        if self._file is not None:
            with suppress(OSError):  # it is not wanted
                self._file.close()
            self._file = None
        if self.path == self.target:
            return
        self._aborted = True
        with explained(self.path, "remove the file"):
            for path in {self.path, self._moving_to or self.path} - {self.target}:
                remove(path)


@implementer(IMaildirMessageWriter)
class MaildirMessageWriter(Staged):
    """Writes one message into a Maildir, see `IMaildirMessageWriter`.

    It is without a buffer: each call is a system call.
    """

    def __init__(self, maildir: Maildir, name: str) -> None:
        super().__init__(maildir, name)
        with explained(self.path, "create the file"):
            self._open = OpenFile(self.path, CREATE)
            if maildir.is_foreign:
                give_to_owner(self._open.descriptor, maildir.tmp)

    def write(self, data: bytes | memoryview | str) -> None:
        """Write bytes, or a str as UTF-8."""
        self.writelines((data,))

    def writelines(self, lines: Iterable[bytes | memoryview | str]) -> None:
        encoded = [line.encode() if isinstance(line, str) else line for line in lines]
        if self._open.descriptor == -1:
            raise ValueError(f"{self.path}: is closed, cannot be written to")
        with explained(self.path, "write"):
            self.checksum: int = write(self._open.descriptor, encoded, self.checksum)

    def close(self) -> None:
        with explained(self.path, "write"):
            self._open.close()

    def commit(self) -> None:
        self.close()
        super().commit()

    def abort(self) -> None:
        with suppress(OSError):  # what could not be written is not wanted any more
            self._open.close()
        super().abort()


def _check_folders(path: str) -> bool:
    """Return whether a Maildir is at `path`, or False if nothing is.

    Raises `NotAMaildirError` for anything else. The folder itself may be a symbolic
    link. Those in it may not: the files behind such a link belong to somebody else, who
    does not expect them to be removed.
    """
    if "://" in path and is_url(path):
        raise NotAMaildirError(path, "is a URL; name a folder")
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    except ValueError as error:
        raise NotAMaildirError(path, f"can be no path: {error}") from error
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
    return True


def try_out(folder: str) -> tuple[str, bool]:
    """Return what the file system of `folder` lacks, and if files get names later.

    Without a colon in names, or locks, mail would be accepted, and the first deferral
    or claim would stop the queue. '' for nothing, or if it cannot be tried: the disk is
    full, or this user may not write there. The file for it is removed. If this process
    is killed, the next removes it.
    """
    plain = f"{folder}/{PROBE}"
    path = f"{plain}:2,"  # as in `cur`
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    without_colons = f"is on a file system without ':' in file names, {_NEEDED}"
    names_later = False
    try:
        with suppress(FileNotFoundError):
            os.unlink(plain)
        with suppress(OSError), closing(OpenFile(folder, _NAMELESS)) as file:
            named = f"/proc/self/fd/{file.descriptor}"
            with suppress(FileExistsError):  # another process tries it at this moment
                os.link(named, path, src_dir_fd=file.descriptor)
            names_later = True
        with closing(OpenFile(path, flags)) as file:
            # Over SMB, this may be a stream of the file before the colon.
            if os.path.lexists(plain):
                return without_colons, False
            try:
                fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            except OSError as error:
                lacks = f"without file locks (flock: {error.strerror})"
                return f"is on a file system {lacks}, {_NEEDED}", False
    except OSError:
        # The colon is the reason if it fails only with a colon.
        if not os.path.lexists(path) and _is_refused(plain, path, flags):
            return without_colons, False
    finally:
        for name in (path, plain):
            with suppress(OSError):
                os.unlink(name)
    return "", names_later


def _is_refused(plain: str, path: str, flags: int) -> bool:
    """Return whether a file can be created as `plain`, but not be renamed to `path`."""
    try:
        OpenFile(plain, flags).close()
    except OSError:
        return False
    try:
        os.rename(plain, path)
    except OSError:
        return True
    return False


def not_a_folder(path: str, name: str, *, is_link: bool) -> NotAMaildirError:
    """Return the error for a file or a link in place of the folder `name`."""
    kind = "a symbolic link" if is_link else "a file"
    reason = f"{name} is {kind}; a Maildir needs the folder itself there"
    return NotAMaildirError(path, reason)


def create_maildir(path: str, *, owner_of: str = "") -> None:
    """Create a Maildir that is complete from the moment that it is there.

    If root creates it, it belongs to the owner of the folder `owner_of`, if that is
    given. Raises OSError.
    """
    parent = os.path.dirname(os.path.abspath(path))
    building = f"{parent}/.maildir-{os.urandom(8).hex()}"
    os.mkdir(building, 0o700)
    try:
        for name in FOLDERS:
            os.mkdir(f"{building}/{name}", 0o700)
        lacks, _ = try_out(os.path.join(building, "tmp"))
        if lacks:
            raise MaildirError(path, lacks)
        if owner_of:
            _give_to_owner(building, owner_of)
        sync(building)
        os.rename(building, path)
    except OSError:
        for name in (*FOLDERS, ""):
            with suppress(FileNotFoundError):
                os.rmdir(f"{building}/{name}")
        if not os.path.isdir(path):
            raise
        # Otherwise another process was faster: rename(2) replaces no folder
        # that has something in it.
    sync(parent)


def _give_to_owner(path: str, owner_of: str) -> None:
    """Give a new Maildir to the owner of the folder `owner_of`, without its files.

    By its descriptor, because this owner may put a link in its place in the meantime.
    """
    with closing(OpenFile(path, _FOLDER)) as folder:
        for name in FOLDERS:
            part = os.open(name, _FOLDER | os.O_CLOEXEC, dir_fd=folder.descriptor)
            try:
                give_to_owner(part, owner_of)
            finally:
                os.close(part)
        give_to_owner(folder.descriptor, owner_of)
