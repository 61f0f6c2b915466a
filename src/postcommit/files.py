"""Files and folders: written in few calls, durable, with errors that name them.

And pipes, in which nobody waits.
"""
from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from types import TracebackType
from typing import BinaryIO

from postcommit.errors import QueueError


CREATE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC

# Pieces up to so many bytes in all are written in one call.
ONE_WRITE = 1 << 16


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
    return open(os.open(path, CREATE, 0o600), "wb")


def open_pipe() -> tuple[int, int]:
    """Return the reading and the writing end of a pipe that never blocks."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer


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
