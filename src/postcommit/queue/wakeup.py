"""How a commit wakes the processor, in this process or another one.

A named pipe in the queue's folder: whoever accepts an entry writes a byte into
it, and a processor sleeps until there is one. Where nobody reads, or where the
file system has no pipes, nothing happens: the polling interval is the fallback.

The same pipe tells whether a processor lives: then somebody has it open to read,
and its access time is the last sign of life. (Not its time of modification: that
is of those who ring.)
"""
from __future__ import annotations

import errno
import math
import os
import select
import stat
import threading
import time

from postcommit.log import Log
from postcommit.openfile import OpenFile
from postcommit.openfile import open_pipe


log = Log(__name__)

WAKEUP = ".wakeup"

# A processor gives a sign of life so often, in seconds, as long as it does not
# hang.
BEAT_SECONDS = 10.0

_LEAST_SECONDS = 1.0


def ring(queue_path: str) -> None:
    """Wake a processor of the queue, if there is one. Never raises."""
    path = f"{queue_path}/{WAKEUP}"
    if not os.access(path, os.F_OK):
        return  # as often as not; the look costs less than a failure
    try:
        with OpenFile(path, os.O_WRONLY | os.O_NONBLOCK) as pipe:
            if stat.S_ISFIFO(os.fstat(pipe.descriptor).st_mode):
                os.write(pipe.descriptor, b"!")
    except OSError:
        # No pipe, or nobody listens, or the reader has just gone; or it is
        # full, so it wakes anyway.
        return


def heartbeat(queue_path: str) -> float | None:
    """Return when a living processor of the queue gave its last sign of life.

    In seconds since the epoch; None where no processor lives. Raises OSError
    where that cannot be found out.
    """
    path = f"{queue_path}/{WAKEUP}"
    try:
        found = os.stat(path)
        if not stat.S_ISFIFO(found.st_mode):
            return None
        OpenFile(path, os.O_WRONLY | os.O_NONBLOCK).close()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return None
        raise
    return found.st_atime


class Bell:
    """The sleeping side, to be used by one thread.

    `ring` may be called by any thread, and wakes just this bell.
    """

    def __init__(self, queue_path: str) -> None:
        self._path = f"{queue_path}/{WAKEUP}"
        self._inside = open_pipe()
        self._outside = self._open()
        self._lock = threading.RLock()  # a signal handler may ring
        self._last_beat = -math.inf
        self._trouble = ""
        self.beat()

    def _open(self) -> list[OpenFile]:
        try:
            try:
                os.mkfifo(self._path, 0o600)
            except FileExistsError:
                if not stat.S_ISFIFO(os.stat(self._path).st_mode):
                    raise
            # Also to write: a pipe that somebody could write into never comes
            # to its end, which would wake us for ever.
            return [OpenFile(self._path, os.O_RDWR | os.O_NONBLOCK)]
        except OSError as error:
            log.warning("%s: commits wake nobody, only polling: %s", self._path, error)
            return []

    def close(self) -> None:
        """Ringing is in vain from now on."""
        if self._is_closed():
            return
        with self._lock:
            for end in (*self._inside, *self._outside):
                try:
                    end.close()
                except OSError as error:
                    log.warning("%s: cannot be closed: %s", self._path, error)

    def _is_closed(self) -> bool:
        """Whether it is closed, or this is a child of the process that opened it.

        To be asked without the lock: a thread that had it does not exist in a child.
        """
        return self._inside[1].descriptor == -1

    def ring(self) -> None:
        """Wake the thread that waits, or will."""
        if self._is_closed():
            return
        with self._lock:
            try:
                os.write(self._inside[1].descriptor, b"!")
            except OSError:
                pass  # full, it was rung often enough; or closed a moment ago

    def beat(self) -> None:
        """Give a sign of life; each second is often enough."""
        now = time.monotonic()
        if now - self._last_beat >= _LEAST_SECONDS:
            self._last_beat = now
            for pipe in self._outside:
                try:
                    os.utime(pipe.descriptor)
                    self._trouble = ""
                except OSError as error:
                    if self._trouble != str(error):
                        self._trouble = str(error)
                        log.warning("%s: no sign of life: %s", self._path, error)

    @property
    def last_beat(self) -> float:
        """When it last gave a sign of life, a time of `time.monotonic`."""
        return self._last_beat

    def wait(self, timeout: float) -> None:
        """Sleep until somebody rings, `timeout` seconds at most."""
        deadline = time.monotonic() + max(0.0, timeout)
        poll = select.poll()
        for reader in (self._inside[0], *self._outside):
            poll.register(reader.descriptor, select.POLLIN)
        while True:
            left = max(0.0, deadline - time.monotonic())
            rung = poll.poll(min(left, BEAT_SECONDS) * 1000)
            self.beat()
            if rung or not left:
                break
        for descriptor, _ in rung:
            try:
                os.read(descriptor, 65536)
            except BlockingIOError:
                pass  # another processor of this queue has read it
