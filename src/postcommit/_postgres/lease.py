"""The lease of one drain: as long as it is renewed, nobody else gets its claims.

A drain is a row of the table ``process``, to which its claims refer. A thread with a
connection of its own renews the row. Any other drain deletes a row that was not renewed
for the length of the lease, and that frees the claims.

The feeder cannot renew it, because it may wait long for the relay. Nor may the workers'
connections be used: all of them may be busy.
"""
from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable

from postcommit._log import Log
from postcommit._postgres.connections import Connections
from postcommit.errors import QueueError


log = Log("postcommit.postgres.lease")

# Default length of a lease in seconds. It is renewed six times in this time.
LEASE_SECONDS = 60.0
_RENEWALS = 6

# Share of a lease after which it is not sure any more. The rest is for the difference
# between two clocks after a fail-over, and for what is on the wire.
_SURE = 0.75

# Maximum number of seconds between two attempts to renew a lease that is not sure.
_SOON = 1.0

# Maximum number of seconds for which `close` waits for a renewal.
_PATIENCE = 5.0

# A clock that goes on while the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_REGISTER = """
insert into {schema}.process (id, host, pid) values (%(me)s, %(host)s, %(pid)s)
returning extract(epoch from clock_timestamp())::float8"""

_RENEW = """
update {schema}.process
set beat = clock_timestamp(),
    alive = clock_timestamp() - %(silent)s::float8 * interval '1 s'
where id = %(me)s
returning extract(epoch from clock_timestamp())::float8"""

_FREE_THE_DEAD = """
delete from {schema}.process
where beat < clock_timestamp() - %(seconds)s::float8 * interval '1 s' and id <> %(me)s
returning host, pid"""

# No sender repeats its INSERT after a minute.
_FORGET = """
delete from {schema}.removed where at < clock_timestamp() - interval '1 minute'"""


class Lease:
    """The lease of one drain. `seconds` is its length.

    `on_beat` is called after each renewal, in the thread of the lease. `last_sign` is
    when the feeder last gave a sign of life, in `time.monotonic`. Raises `QueueError`
    if the drain cannot be registered.
    """

    def __init__(
        self, connections: Connections, seconds: float, on_beat: Callable[[], None]
    ) -> None:
        self._connections = connections
        self._seconds = seconds
        self._on_beat = on_beat
        self._process = os.getpid()
        self._is_failing = False
        self._over = False
        self._wanted = threading.Event()
        self._renewing = threading.Lock()
        self.last_sign = time.monotonic()
        #: The difference between the server's clock and ours, in seconds.
        self.offset = 0.0
        self._register()
        self._free_the_dead()
        self._thread = threading.Thread(
            target=self._keep, name="postcommit-lease", daemon=True
        )
        self._thread.start()

    def _register(self) -> None:
        #: The row of this drain. Another one, if others took it for dead.
        self.id = uuid.uuid4()
        values = {"me": self.id, "host": socket.gethostname(), "pid": os.getpid()}
        began = time.clock_gettime(_CLOCK)
        [(now,)] = self._connections.rows(
            _REGISTER, values, doing="register the processor"
        )
        self.offset = now - time.time()
        self._sure_until = began + _SURE * self._seconds

    @property
    def is_sure(self) -> bool:
        """Whether no other drain can have taken this one for dead."""
        return time.clock_gettime(_CLOCK) < self._sure_until

    def renew_soon(self) -> None:
        """Have the lease renewed now. Does not wait."""
        self._wanted.set()

    def _keep(self) -> None:
        while not self._over:
            beat = self._seconds / _RENEWALS * random.uniform(0.8, 1)  # noqa: S311
            self._wanted.wait(beat if self.is_sure else min(beat, _SOON))
            self._wanted.clear()
            try:
                self.renew()
            except QueueError as error:
                if not self._is_failing:
                    self._is_failing = True
                    log.warning("the lease is not renewed: %s", error)
            except Exception:  # this thread must live
                log.exception("%s: the lease is not renewed", self._connections.name)

    def renew(self) -> None:
        """Renew the lease, and end those of the dead. Raises `QueueError`."""
        with self._renewing:
            if self._over:
                return
            began = time.clock_gettime(_CLOCK)  # it begins before this at the latest
            silent = max(0.0, time.monotonic() - self.last_sign)
            found = self._connections.rows(
                _RENEW, {"me": self.id, "silent": silent}, doing="renew the lease"
            )
            if found:
                self.offset = found[0][0] - time.time()
                self._sure_until = began + _SURE * self._seconds
            else:
                log.critical(
                    "%s: this process stood still, or was cut off, and lost its claims",
                    self._connections.name,
                )
                self._register()
            self._free_the_dead()
            self._connections.count(_FORGET, doing="forget what was removed")
        self._is_failing = False
        self._on_beat()

    def _free_the_dead(self) -> None:
        values = {"me": self.id, "seconds": self._seconds}
        doing = "free the claims of dead processors"
        for host, pid in self._connections.rows(_FREE_THE_DEAD, values, doing=doing):
            log.warning(
                "%s: the processor %d on %s is dead or cut off; its claims are free",
                self._connections.name,
                pid,
                host,
            )

    def close(self) -> None:
        """End the lease, and with it all claims. Never raises."""
        if self._over or os.getpid() != self._process:
            return
        # A renewal after the end of the row would register the drain again.
        is_ours = self._renewing.acquire(timeout=_PATIENCE)
        try:
            self._over = True
            self._wanted.set()
            statement = "delete from {schema}.process where id = %(me)s"
            self._connections.count(statement, {"me": self.id}, doing="end the lease")
        except QueueError as error:
            log.warning("claims stay until the lease ends: %s", error)
        finally:
            if is_ours:
                self._renewing.release()
                self._thread.join(_PATIENCE)
            self._connections.close()
