"""How a commit wakes the processor, in this process or another one.

A named pipe in the queue's folder: whoever accepts an entry writes a byte into
it, and a processor sleeps until there is one. Where nobody reads, or where the
file system has no pipes, nothing happens: the polling interval is the fallback.
"""
from __future__ import annotations

import logging
import os
import select
import stat
import threading


log = logging.getLogger(__name__)

_NAME = ".wakeup"


def ring(queue_path: str) -> None:
    """Wake a processor of the queue, if there is one. Never raises."""
    try:
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
        pipe = os.open(f"{queue_path}/{_NAME}", flags)
    except OSError:
        return  # no pipe, or nobody listens
    try:
        if stat.S_ISFIFO(os.fstat(pipe).st_mode):
            os.write(pipe, b"!")
    except OSError:
        pass  # full, so it wakes anyway; or the reader has just gone
    finally:
        os.close(pipe)


class Bell:
    """The sleeping side, to be used by one thread.

    `ring` may be called by any thread, and wakes just this bell.
    """

    def __init__(self, queue_path: str) -> None:
        self._path = f"{queue_path}/{_NAME}"
        self._inside = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._outside = self._open()
        self._closed = False
        self._lock = threading.RLock()  # a signal handler may ring

    def _open(self) -> list[int]:
        try:
            try:
                os.mkfifo(self._path, 0o600)
            except FileExistsError:
                if not stat.S_ISFIFO(os.stat(self._path).st_mode):
                    raise
            # Also to write: a pipe that somebody could write into never comes
            # to its end, which would wake us for ever.
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
            return [os.open(self._path, flags)]
        except OSError as error:
            log.warning("%s: commits wake nobody, only polling: %s", self._path, error)
            return []

    def close(self) -> None:
        """Ringing is in vain from now on."""
        with self._lock:
            self._closed = True
            for descriptor in (*self._inside, *self._outside):
                os.close(descriptor)

    def ring(self) -> None:
        """Wake the thread that waits, or will."""
        with self._lock:
            if self._closed:
                return
            try:
                os.write(self._inside[1], b"!")
            except BlockingIOError:
                pass  # full: it was rung often enough

    def wait(self, timeout: float) -> None:
        """Sleep until somebody rings, `timeout` seconds at most."""
        readers = [self._inside[0], *self._outside]
        poll = select.poll()
        for reader in readers:
            poll.register(reader, select.POLLIN)
        for reader, _ in poll.poll(max(0.0, timeout) * 1000):
            try:
                os.read(reader, 65536)
            except BlockingIOError:
                pass  # another processor of this queue has read it
