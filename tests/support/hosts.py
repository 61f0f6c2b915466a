"""Host names of our own, without a faked resolver.

A thread gets its own mount namespace (unshare(2)), in which another file lies over
``/etc/hosts``. What it calls looks names up there. The rest of the process, and of the
host, sees nothing of it.
"""
from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000


class Hosts:
    """A context manager: a thread with an ``/etc/hosts`` of its own.

    `folder` is for the file. Raises OSError where that is not permitted.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "hosts"
        self._path.touch()

    def __enter__(self) -> Hosts:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hosts")
        self.run(self._separate)
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown()

    def name(self, name: str, *addresses: str) -> None:
        """Let these be the addresses of `name`, and let there be no other name."""
        self._path.write_text("".join(f"{address} {name}\n" for address in addresses))

    def run(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call `function` in the thread, and return what it returns."""
        return self._thread.submit(function, *arguments, **options).result(120)

    def _separate(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        path = str(self._path).encode()
        mounts = [
            (b"none", b"/", _MS_REC | _MS_PRIVATE),
            (path, b"/etc/hosts", _MS_BIND),
        ]
        done = libc.unshare(_CLONE_NEWNS)
        for source, target, flags in mounts:
            done = done or libc.mount(source, target, None, flags, None)
        if done:
            code = ctypes.get_errno()
            # In a chroot, the root folder may be no mount point, and nothing would keep
            # the file from the rest of the host.
            code = errno.EPERM if code == errno.EINVAL else code
            raise OSError(code, os.strerror(code))
