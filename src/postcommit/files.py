"""Files and folders: written in few calls, durable, with errors that name them."""
from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from importlib import import_module
from types import TracebackType
from typing import Any
from typing import BinaryIO

from postcommit.errors import QueueError


CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC

# Pieces up to so many bytes in all are written in one call.
ONE_WRITE = 1 << 16

# Of <linux/stat.h> and <fcntl.h>.
_STATX_BTIME = 0x800
_AT_FDCWD = -100


def optional(name: str) -> Any:
    """Return the module `name`, None if this Python does not have it."""
    try:
        return import_module(name)
    except ImportError:
        return None


# Imported now: a child that is forked during a later import would wait for it for ever.
_ctypes = optional("ctypes")


class explained:
    """Turns an OSError of its body into a `QueueError` that names `path`.

    `kind` is the class of the error.
    """

    def __init__(
        self, path: str, doing: str, kind: type[QueueError] = QueueError
    ) -> None:
        self._path = path
        self._doing = doing
        self._kind = kind

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError) and not isinstance(error, QueueError):
            raise unable(self._path, self._doing, error, self._kind) from error


def unable(
    path: str, doing: str, error: OSError, kind: type[QueueError] = QueueError
) -> QueueError:
    """Return `error` as a `QueueError` of this `kind` that names `path`."""
    return kind(path, f"cannot {doing}: {error.strerror or error}", error)


def sync(path: str) -> None:
    """Have the folder at `path` written to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def birth_time(path: str) -> float | None:
    """Return when the file or folder at `path` was created, by ``statx(2)``.

    In seconds since the epoch. None if the system, the file system, or a Python whose
    ctypes is missing or forbidden does not say it.
    """
    if _ctypes is None:
        return None
    try:
        statx = getattr(_ctypes.CDLL(None), "statx", None)
    except (OSError, MemoryError):
        return None
    answer = _ctypes.create_string_buffer(256)
    where = (_AT_FDCWD, os.fsencode(path), 0, _STATX_BTIME)
    if statx is None or statx(*where, answer):
        return None
    [mask] = struct.unpack_from("=I", answer, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", answer, 80)
    return seconds + nanoseconds / 1e9 if mask & _STATX_BTIME else None


def remove(path: str) -> None:
    """Remove the file `path`, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def create_file(path: str) -> BinaryIO:
    """Create the file `path`, readable by its owner only, to write to it."""
    return open(os.open(path, CREATE, 0o600), "wb")


def write(
    descriptor: int, pieces: Sequence[bytes | memoryview], checksum: int = 0
) -> int:
    """Write all of `pieces`, in few calls, and return the checksum with them."""
    if sum(map(len, pieces)) <= ONE_WRITE:
        pieces = (b"".join(pieces),)
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
        written = os.write(descriptor, piece)
        while written < len(piece):
            written += os.write(descriptor, memoryview(piece)[written:])
    return checksum


def begin_to_write_back(descriptor: int) -> None:
    """Have the disk begin while we go on: then there is less to wait for."""
    try:
        # Not with all of a large file: what has reached the disk by then is
        # dropped from memory, and a processor wants it soon.
        os.posix_fadvise(descriptor, 0, ONE_WRITE, os.POSIX_FADV_DONTNEED)
    except OSError:
        pass  # it was but advice
