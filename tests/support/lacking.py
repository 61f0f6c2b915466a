"""A file system that lacks what others have: colons in names, locks, pipes, links.

It shows a folder through FUSE and refuses what it is told to. It takes root,
``/dev/fuse``, mfusepy, and the Debian package ``fuse3``.
"""
from __future__ import annotations

import ctypes.util
import errno
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


def _why_not() -> str:
    if os.geteuid() != 0:
        return "only root may mount a file system"
    if not os.path.exists("/dev/fuse"):
        return "needs /dev/fuse"
    if not ctypes.util.find_library("fuse3"):
        return "needs the Debian package fuse3"
    if not importlib.util.find_spec("mfusepy"):
        return "needs mfusepy"
    return ""


needs_fuse = pytest.mark.skipif(bool(_why_not()), reason=_why_not() or "is there")

#: Colons in names, or streams in place of them; ``flock``; named pipes; hard links.
LACKS = ("colons", "streams", "locks", "pipes", "links")


@contextmanager
def lacking(*what: str) -> Iterator[Path]:
    """A folder on a file system that lacks `what`, of `LACKS`; then all is gone."""
    assert set(what) <= set(LACKS)
    with tempfile.TemporaryDirectory(prefix="lacking-") as made:
        real, shown = Path(made, "real"), Path(made, "shown")
        real.mkdir()
        shown.mkdir()
        command = [sys.executable, "-m", "tests.support.lacking"]
        with tempfile.TemporaryFile() as said:
            server = subprocess.Popen(
                [*command, str(real), str(shown), *what], stderr=said, stdout=said
            )
            try:
                end = time.monotonic() + 60
                while not os.path.ismount(shown):
                    if server.poll() is not None or time.monotonic() > end:
                        said.seek(0)
                        raise RuntimeError(f"no FUSE: {said.read().decode()}")
                    time.sleep(0.01)
                yield shown
            finally:
                if os.path.ismount(shown):
                    subprocess.run(["umount", "-l", str(shown)], check=True)
                server.wait(60)


def serve(real: str, shown: str, lacks: set[str]) -> None:
    """Show the folder `real` as `shown`, until that is unmounted."""
    import mfusepy

    def refuse(number: int) -> Any:
        raise mfusepy.FuseOSError(number)

    class Folder(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def _path(self, path: str, *, is_new: bool = False) -> str:
            if is_new and ":" in path and "colons" in lacks:
                refuse(errno.EINVAL)
            if "streams" in lacks and ":" in path:
                # As SMB does it: a stream of the file before the colon.
                path = path.partition(":")[0]
            return real + path

        def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
            found = os.lstat(self._path(path))
            names = ("mode", "nlink", "uid", "gid", "size", "ino")
            told = {f"st_{name}": getattr(found, f"st_{name}") for name in names}
            for name in ("atime", "mtime", "ctime"):
                told[f"st_{name}"] = getattr(found, f"st_{name}_ns")
            return told

        def readdir(self, path: str, fh: Any) -> list[str]:
            return [".", "..", *os.listdir(self._path(path))]

        def mkdir(self, path: str, mode: int) -> int:
            os.mkdir(self._path(path, is_new=True), mode)
            return 0

        def rmdir(self, path: str) -> int:
            os.rmdir(self._path(path))
            return 0

        def mknod(self, path: str, mode: int, dev: int) -> int:
            if "pipes" in lacks:
                refuse(errno.EPERM)
            os.mknod(self._path(path, is_new=True), mode, dev)
            return 0

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            flags = os.O_RDWR | os.O_CREAT
            return os.open(self._path(path, is_new=True), flags, mode)

        def open(self, path: str, flags: int) -> int:
            return os.open(self._path(path), flags & ~os.O_NOFOLLOW)

        def read(self, path: str, size: int, offset: int, fh: Any) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: Any) -> int:
            return os.pwrite(fh, data, offset)

        def fsync(self, path: str, datasync: bool, fh: Any) -> int:
            return 0

        def fsyncdir(self, path: str, datasync: bool, fh: Any) -> int:
            return 0

        def release(self, path: str, fh: Any) -> int:
            os.close(fh)
            return 0

        def unlink(self, path: str) -> int:
            os.unlink(self._path(path))
            return 0

        def rename(self, old: str, new: str, flags: int = 0) -> int:
            if flags:
                refuse(errno.EINVAL)
            os.rename(self._path(old), self._path(new, is_new=True))
            return 0

        def link(self, target: str, source: str) -> int:
            if "links" in lacks:
                refuse(errno.EPERM)
            os.link(self._path(source), self._path(target, is_new=True))
            return 0

        def utimens(self, path: str, times: Any = None) -> int:
            os.utime(self._path(path), ns=times)
            return 0

        def chmod(self, path: str, mode: int) -> int:
            os.chmod(self._path(path), mode)
            return 0

        def chown(self, path: str, uid: int, gid: int) -> int:
            os.chown(self._path(path), uid, gid)
            return 0

        def truncate(self, path: str, length: int, fh: Any = None) -> int:
            os.truncate(self._path(path), length)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            told = os.statvfs(real)
            names = ("bavail", "bfree", "blocks", "bsize", "favail", "ffree", "files")
            return {f"f_{name}": getattr(told, f"f_{name}") for name in names}

    class WithoutLocks(Folder):
        def flock(self, path: str, fh: Any, op: int) -> int:
            raise mfusepy.FuseOSError(errno.ENOLCK)

    made = WithoutLocks() if "locks" in lacks else Folder()
    mfusepy.FUSE(made, shown, foreground=True, fsname="lacking", nothreads=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], set(sys.argv[3:]))
