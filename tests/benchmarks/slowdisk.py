"""A disk that takes its time to flush: a real ext4 on it, with its real journal.

The disk is a file in memory, shown by a FUSE file system that answers each ``fsync``
only after a while, and nothing else late; ext4 is mounted on it by a loop device. So
what the kernel writes together, when several threads sync at once, it writes together
here. It takes root, ``/dev/fuse``, mfusepy, and the Debian packages ``fuse3`` and
``e2fsprogs``; `why_not` tells what is missing.
"""
from __future__ import annotations

import ctypes.util
import errno
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


_BYTES = 1 << 30

# Where the disk is kept, whose own speed must not count.
_MEMORY = "/dev/shm"

_DISK = "disk"


def why_not() -> str:
    """Return what is missing for such a disk, ``''`` if nothing is."""
    if os.geteuid() != 0:
        return "only root may mount a slow disk"
    for path in ("/dev/fuse", "/dev/loop-control", _MEMORY):
        if not os.path.exists(path):
            return f"a slow disk needs {path}"
    if not shutil.which("mkfs.ext4"):
        return "a slow disk needs mkfs.ext4, of the Debian package e2fsprogs"
    if not ctypes.util.find_library("fuse3"):
        return "a slow disk needs the Debian package fuse3"
    if not importlib.util.find_spec("mfusepy"):
        return "a slow disk needs mfusepy"
    return ""


@contextmanager
def slow_disk(seconds: float) -> Iterator[Path]:
    """A folder on a new disk, whose flushes take so long each; then all is gone."""
    with tempfile.TemporaryDirectory(prefix="slow-", dir=_MEMORY) as made:
        image, shown, folder = (Path(made) / name for name in ("image", "fuse", "ext4"))
        with image.open("wb") as file:
            file.truncate(_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-E", "nodiscard", image], check=True)
        shown.mkdir()
        folder.mkdir()
        with _showing(image, seconds, shown):
            _mount("-o", "loop", str(shown / _DISK), str(folder))
            try:
                yield folder
            finally:
                subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def _showing(image: Path, seconds: float, shown: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "tests.benchmarks.slowdisk"]
    with tempfile.TemporaryFile() as said:
        server = subprocess.Popen(
            [*command, str(image), str(seconds), str(shown)], stderr=said, stdout=said
        )
        try:
            end = time.monotonic() + 60
            while not os.path.ismount(shown):
                if server.poll() is not None or time.monotonic() > end:
                    said.seek(0)
                    raise SystemExit(f"no slow disk: {said.read().decode()}")
                time.sleep(0.01)
            yield
        finally:
            if os.path.ismount(shown):
                subprocess.run(["umount", str(shown)], check=True)
            server.wait(60)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def serve(image: str, seconds: float, shown: str) -> None:
    """Show the file `image` as ``disk`` in `shown`, until that is unmounted."""
    import mfusepy

    class Disk(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def __init__(self) -> None:
            self._file = os.open(image, os.O_RDWR | os.O_CLOEXEC)

        def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path == f"/{_DISK}":
                mode = stat.S_IFREG | 0o600
                return {"st_mode": mode, "st_nlink": 1, "st_size": _BYTES}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def readdir(self, path: str, fh: Any) -> list[str]:
            return [".", "..", _DISK]

        def open(self, path: str, flags: int) -> int:
            return 0

        def read(self, path: str, size: int, offset: int, fh: Any) -> bytes:
            return os.pread(self._file, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: Any) -> int:
            return os.pwrite(self._file, data, offset)

        def fsync(self, path: str, datasync: bool, fh: Any) -> int:
            time.sleep(seconds)
            return 0

    mfusepy.FUSE(Disk(), shown, foreground=True, fsname="slow")


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]), sys.argv[3])
