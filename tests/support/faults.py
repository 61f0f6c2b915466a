"""Real faults: permissions that bind, and disks that are full."""
from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import threading
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gevent
from gevent.monkey import get_original
from gevent.monkey import is_module_patched


_SYS_CAPSET = {"x86_64": 126, "aarch64": 91}
_VERSION_3 = 0x20080522


def without_privileges(function: Callable[[], None]) -> None:
    """Call `function` in a thread to which permissions apply, also for root.

    Capabilities belong to threads. This thread gives up its own, and ends. It is a
    thread of the system also under gevent, because a greenlet would give up those of
    the whole suite.
    """
    raised: list[BaseException | None] = []

    def run() -> None:
        outcome = None
        try:
            if os.geteuid() == 0:
                _drop_capabilities()
            function()
        except BaseException as error:
            outcome = error
        if is_patched:
            # What gevent has made for this thread: a loop with open files, a dummy.
            gevent.get_hub().destroy(destroy_loop=True)
            threading._active.pop(threading.get_ident(), None)  # type: ignore[attr-defined]
        raised.append(outcome)

    is_patched = is_module_patched("threading")
    if is_patched:
        get_original("_thread", "start_new_thread")(run, ())
        while not raised:
            time.sleep(0.001)
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    if raised[0] is not None:
        raise raised[0]


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_CAPSET[os.uname().machine]
    if libc.syscall(number, header, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def begin_no_threads() -> None:
    """Let this process begin no more threads, for good."""
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if os.geteuid() == 0:
        # The limit does not bind root; but to whom files are open is told by
        # the effective user, which stays.
        os.setresuid(65534, -1, -1)
        _drop_capabilities()


@contextmanager
def full_disk(folder: Path, kilobytes: int = 64) -> Iterator[Path]:
    """Yield a new folder into which no more than so much can be written.

    A tiny file system of its own where we may mount one, and otherwise a limit
    on the size of files: then the error is EFBIG, not ENOSPC.
    """
    disk = folder / "disk"
    disk.mkdir()
    options = f"size={kilobytes}k,mode=0700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield disk
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    else:
        with small_files(kilobytes * 1024):
            yield disk


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file of this process become larger than `size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
