"""The connections of mailers: which address they go to, and who uses them when."""
from __future__ import annotations

import math
import ssl
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from typing import NamedTuple
from weakref import WeakKeyDictionary
from weakref import WeakSet
from weakref import WeakValueDictionary

from postcommit import _forks as forks
from postcommit._log import Log
from postcommit._smtp.connection import Address
from postcommit._smtp.connection import Connection
from postcommit._smtp.connection import Phase
from postcommit._smtp.connection import Relay
from postcommit._smtp.connection import addresses_of
from postcommit._smtp.connection import connect
from postcommit.errors import RelayError
from postcommit.errors import TooManyConnections


log = Log("postcommit.smtp.pool")

# Seconds for which an address that failed is tried last, and the address that answered
# is tried first. Then the order is that of the name service again. And the seconds
# without pipelining after a stray reply.
_REMEMBERED = 600.0

# Maximum seconds to wait for other threads that connect at the same time, before a
# refusal is taken for that of the only connection.
_PATIENCE = 5.0

# Seconds for which a relay may still count a connection that was closed, and seconds
# between two attempts in that time.
_LINGERING = 1.0
_MOMENT = 0.05

# The pools in use, by their settings. The keys have passwords, and each key leaves
# together with its pool.
_pools: WeakValueDictionary[tuple[object, ...], Pool] = WeakValueDictionary()


class _Sharing:
    """The lock around a look into `_pools`."""

    def __init__(self) -> None:
        self._renew()
        forks.register(self, _Sharing._renew)

    def _renew(self) -> None:
        # In a forked child, a thread that does not exist there may have held it.
        self.lock = threading.RLock()


_sharing = _Sharing()


class Failure(NamedTuple):
    """An address that could not be used: why, and how far the connection had come.

    `phase` is None without a connection.
    """

    address: Address
    error: RelayError
    phase: Phase | None

    @property
    def is_login_refused(self) -> bool:
        """Whether the credentials are wrong. They are wrong at each address."""
        reply = self.error.reply
        return self.phase is Phase.LOGIN and reply is not None and reply.code >= 500

    @property
    def is_one_too_many(self) -> bool:
        """Whether the relay may have refused this because of the number of others."""
        reply, cause = self.error.reply, self.error.__cause__
        if reply is None:
            is_early = self.phase in (None, Phase.GREETING)
            closed = (ConnectionError, ssl.SSLEOFError)
            return is_early and isinstance(cause, closed)
        if self.is_login_refused or reply.code < 400:
            return False
        text = reply.text.lower()
        if "too many" in text or "concurrent" in text:
            return True
        # 4.3.2 says that the relay shuts down (RFC 3463, 3.4). In place of a greeting,
        # relays have all sorts of replies to one connection more.
        is_shutdown = reply.code == 421 and reply.enhanced == "4.3.2"
        return not is_shutdown and (reply.code == 421 or self.phase is Phase.GREETING)


def all_failed(
    relay: Relay, failures: Sequence[Failure], kind: type[RelayError] = RelayError
) -> RelayError:
    """Return the error for a relay of which no address can be used.

    Its text has the reason of each address. Its reply is the last that was received.
    """
    last = failures[-1]
    if len(failures) == 1 or last.is_login_refused:
        return kind(last.error.reason, last.error.reply)
    reasons: dict[str, list[str]] = {}
    for address, error, _ in failures:
        reason = error.reason
        for lead in (f"no connection to {relay}: ", f"{relay}: ", f"{relay} "):
            reason = reason.removeprefix(lead)
        reasons.setdefault(reason, []).append(str(address))
    text = "; ".join(f"{', '.join(of)}: {reason}" for reason, of in reasons.items())
    replies = [error.reply for _, error, _ in failures if error.reply is not None]
    reply = replies[-1] if replies else None
    return kind(f"no connection to {relay}: {text}", reply)


@dataclass
class Addresses:
    """The addresses of `relay`, and which of them can be used. Threads may share it.

    The address that answered is tried first, and an address that failed is tried last.
    So an address that swallows everything costs its time-out once.
    """

    _relay: Relay
    _answered: tuple[Address | None, float] = None, -math.inf
    _failed: dict[Address, float] = field(default_factory=dict)

    def connect(
        self,
        failures: list[Failure],
        is_in_use: Callable[[Address], bool] = lambda address: False,
    ) -> Connection | None:
        """Return a connection that is ready for the first message.

        All that comes before a message belongs to the address, so that the next one is
        tried (RFC 5321, 5.1), except for a refused login. None if none is left. Adds to
        `failures`. Raises `RelayError` without an address.

        An address that refuses one connection too many is not one that failed.
        `is_in_use` says whether others go to it.
        """
        is_spared = False
        addresses = addresses_of(self._relay)
        if len(addresses) > 1 or self._failed:
            addresses = self._in_order(addresses)
        for address in addresses:
            connection = None
            try:
                connection = connect(self._relay, address)
                connection.greet()
            except RelayError as error:
                phase = connection.phase if connection is not None else None
                failures.append(Failure(address, error, phase))
                if failures[-1].is_login_refused:
                    break
                if failures[-1].is_one_too_many and is_in_use(address):
                    is_spared = True
                    continue
                if len(addresses) > 1 and address not in self._failed:
                    text = "address %s: %s; it is tried last for %g minutes"
                    log.info(text, address, error, _REMEMBERED / 60)
                self.failed(address)
            else:
                if not is_spared:
                    self._answered = address, time.monotonic()
                self._failed.pop(address, None)
                return connection
            finally:
                if connection is not None and connection.phase is not Phase.READY:
                    connection.close()
        return None

    def _in_order(self, found: list[Address]) -> list[Address]:
        """Return the addresses that were found in the order to try them."""
        # Without those that the name no longer has, or that failed long ago.
        recently, never = time.monotonic() - _REMEMBERED, -math.inf
        when = {address: self._failed.get(address, never) for address in found}
        self._failed = {address: at for address, at in when.items() if at > recently}
        last, at = self._answered
        first = last if at > recently else None
        failed = dict(self._failed)
        return sorted(found, key=lambda a: (failed.get(a, never), a != first))

    def failed(self, address: Address) -> None:
        """Try `address` last for some minutes."""
        self._failed[address] = time.monotonic()


def shared(
    relay: Relay, *, messages: int, idle_timeout: float, pipelining: bool
) -> Pool:
    """Return the pool with these settings: one for all that need it in this process.

    It lives as long as it is used. Credentials are settings, too: a connection that is
    logged in is only lent to mailers with the same credentials.
    """
    key: tuple[object, ...] = relay, messages, idle_timeout, pipelining
    made = Pool(
        relay, messages=messages, idle_timeout=idle_timeout, pipelining=pipelining
    )
    try:
        with _sharing.lock:
            return _pools.setdefault(key, made)
    except Exception:  # of a token function that cannot be hashed or compared
        return made


class Pool:
    """Connections to `relay`, kept for `idle_timeout` seconds while they are idle.

    A connection is closed after `messages` messages. Threads may share a pool. A
    connection is lent to one thread at a time. A child process starts with an empty
    pool, because the connections belong to its parent. Idle connections are closed
    when the pool is not referred to any more.
    """

    def __init__(
        self, relay: Relay, *, messages: int, idle_timeout: float, pipelining: bool
    ) -> None:
        self.relay = relay
        self.messages = messages
        self._pipelining = pipelining
        self._out_of_step = -math.inf  # the time of the last stray reply
        self._addresses = Addresses(relay)
        self._idle_timeout = idle_timeout
        self._begin()
        forks.register(self, Pool._forget)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._idle: deque[tuple[float, Connection]] = deque()
        # Whether to keep a connection that is lent, when it comes back. Weak, so that a
        # thread that is interrupted leaves nothing behind.
        self._busy: WeakKeyDictionary[Connection, bool] = WeakKeyDictionary()
        self._opening = 0
        # The threads in `wait`, and the connections that came back for one of them.
        self._waiting = self._returned = 0
        self._closed = -math.inf  # the time when a connection was closed that worked
        self._sweeper: threading.Thread | None = None
        self._last_rites = weakref.finalize(self, _abandon, self._changed, self._idle)
        # At exit, a daemon thread may hold the lock, and is never continued.
        self._last_rites.atexit = False

    @property
    def pipelining(self) -> bool:
        """Whether to use pipelining: not for some minutes after it is set to False."""
        return self._pipelining and time.monotonic() - self._out_of_step >= _REMEMBERED

    @pipelining.setter
    def pipelining(self, is_possible: bool) -> None:
        self._out_of_step = -math.inf if is_possible else time.monotonic()

    def checkout(self, *, fresh: bool = False) -> Connection:
        """Return a connection. With `fresh`, it was never used.

        The connection that was used last is used next, so that the others grow old.
        Raises `RelayError` if no address of the relay can be used, and its subclass
        `TooManyConnections` if that is because of other connections of this pool.
        """
        connection = None
        while connection is None and not fresh:
            with self._changed:
                if not self._idle:
                    break
                since, connection = self._idle.pop()
                self._busy[connection] = True
            is_good = False
            try:
                is_overdue = time.monotonic() - since >= self._idle_timeout
                is_good = not is_overdue and connection.is_quiet
            finally:
                if not is_good:
                    self.discard(connection)
                    connection = None
        if connection is None:
            connection = self._open()
        # It may have been switched off since the connection was opened.
        if connection.pipelining:
            connection.pipelining = self.pipelining
        connection.borrower = threading.get_ident()
        return connection

    def wait(self, deadline: float) -> bool:
        """Wait until `deadline` for a connection that is lent to another thread.

        Return whether it is worth trying to get one. Each connection that comes back
        wakes one thread, so that the others do not run into the relay's limit again.
        A thread does not wait for its own connections: for example, a subscriber may
        send a message while the processor that calls it has one.
        """
        with self._changed:
            if self._idle:
                return True
            self._waiting += 1
            try:
                seconds = deadline - time.monotonic()
                self._changed.wait_for(self._is_worth_trying, seconds)
                if self._returned:
                    self._returned -= 1
                    return True
                if self._busy or self._opening or seconds <= 0:
                    return False
                self._changed.wait(min(_MOMENT, seconds))  # all of the others are gone
                return True
            finally:
                self._waiting -= 1
                if not self._waiting:
                    self._returned = 0

    def _is_worth_trying(self) -> bool:
        """Return whether a connection has come back, or none can come back."""
        me = threading.get_ident()
        others = any(connection.borrower != me for connection in list(self._busy))
        return self._returned > 0 or not (others or self._opening)

    def _came_back(self) -> None:
        """Wake a thread that waits for a connection, if it still does."""
        with self._changed:
            self._returned += self._waiting > 0
            self._changed.notify_all()

    def _open(self) -> Connection:
        """Return a new connection, which counts as busy."""
        with self._changed:
            self._opening += 1
            # Weak, because the traceback of an error keeps it.
            others = WeakSet([*self._busy, *(idle for _, idle in self._idle)])
        failures: list[Failure] = []
        try:
            connection = self._addresses.connect(
                failures, lambda address: self._has_others(others, address)
            )
            if connection is not None:
                with self._changed:
                    self._busy[connection] = True
                return connection
        finally:
            with self._changed:
                self._opening -= 1
                self._changed.notify_all()
        kind = RelayError
        if any(failure.is_one_too_many for failure in failures):
            is_crowded = self._has_others(others) or self._is_lingering()
            if not is_crowded:
                # Another thread may be getting the last connection that is permitted.
                with self._changed:
                    self._changed.wait_for(self._is_clear, _PATIENCE)
                is_crowded = self._has_others(others)
            if is_crowded:
                kind = TooManyConnections
        last = failures[-1].error
        failure = all_failed(self.relay, failures, kind)
        failure.is_lack = last.is_lack
        raise failure from last

    def _has_others(
        self, known: WeakSet[Connection], address: Address | None = None
    ) -> bool:
        """Return whether the relay works on connections besides a new one.

        `known` are those of the time before, `address` that of the relay. After a
        restart of the relay, all of them are lost, and threads that read nothing at the
        moment have not noticed it.
        """
        with self._changed:
            others = {*known, *self._busy, *(idle for _, idle in self._idle)}
        return any(
            address in (None, other.address)
            and not (other.is_lost or other.is_hung_up)
            for other in others
        )

    def _is_lingering(self) -> bool:
        """Return whether the relay may still count a connection that was closed."""
        return time.monotonic() - self._closed < _LINGERING

    def _is_clear(self) -> bool:
        """Return whether other threads have connections, or do not get any."""
        return bool(self._idle) or len(self._busy) > 0 or not self._opening

    def checkin(self, connection: Connection, *, keep: bool = True) -> None:
        """Take back a connection between two messages. Without `keep`, close it."""
        sweeper = None
        with self._changed:
            is_used_up = not keep or connection.messages >= self.messages
            was_kept = self._busy.pop(connection, False)  # otherwise close() was called
            keep = was_kept and not is_used_up and self._idle_timeout > 0
            if not keep:
                self._closed = time.monotonic()  # about now
            else:
                connection.is_proven = True
                self._idle.append((time.monotonic(), connection))
                if self._sweeper is None:
                    self._sweeper = sweeper = threading.Thread(
                        target=_sweep,
                        name="postcommit-smtp-idle",
                        args=(weakref.ref(self), self._changed, self._idle),
                        daemon=True,
                    )
        if sweeper is not None:
            try:
                sweeper.start()
            except RuntimeError:
                # No thread to be had, as when the interpreter exits. The message was
                # sent, and `checkout` looks at the age as well.
                self._sweeper = None
        if not keep:
            connection.quit()
            self._closed = time.monotonic()
        if self._waiting:
            self._came_back()

    def discard(self, connection: Connection, *, is_lost: bool = True) -> None:
        """Take back a connection that cannot be used any more.

        If it is lost, and was so from its first message on, the next connection goes to
        another address of the relay.
        """
        connection.is_lost = is_lost
        with self._changed:
            self._busy.pop(connection, None)
        is_new = connection.messages <= 1 and not connection.is_proven
        if is_lost and is_new and connection.address is not None:
            self._addresses.failed(connection.address)
        connection.close()
        if self._waiting:
            self._came_back()

    def close(self) -> None:
        """Close the idle connections now, the others when they are taken back."""
        with self._changed:
            idle = [connection for _, connection in self._idle]
            self._idle.clear()
            self._busy.update(dict.fromkeys(self._busy, False))
            self._changed.notify_all()
        for connection in idle:
            connection.quit()

    def _forget(self) -> None:
        """Forget all connections, in a child process.

        Closing them here says nothing on the wire, and leaves them to the parent. The
        lock may have been held by a thread that does not exist here.
        """
        connections = [*(connection for _, connection in self._idle), *self._busy]
        self._last_rites.detach()  # they would wait for the lock of the parent
        self._begin()
        for connection in connections:
            connection.close()


def _sweep(
    owner: Callable[[], Pool | None],
    changed: threading.Condition,
    idle: deque[tuple[float, Connection]],
) -> None:
    """Close connections that were idle for long, until none is left (a thread).

    It refers to the pool weakly, and waits without it.
    """
    while True:
        with changed:
            pool = owner()
            if pool is None or pool._changed is not changed:
                return  # `_abandon` has closed all, or they belong to a parent
            if not idle:
                pool._sweeper = None
                return
            wait = idle[0][0] + pool._idle_timeout - time.monotonic()
            del pool  # If this was the last reference, `_abandon` has emptied `idle`.
            if not idle:
                continue
            if wait > 0:
                changed.wait(wait)
                continue
            _, connection = idle.popleft()
        connection.quit()


def _abandon(
    changed: threading.Condition, idle: deque[tuple[float, Connection]]
) -> None:
    """Close all connections of a pool that is gone.

    The garbage collector may call this in any thread, so it does not wait.
    """
    with changed:
        connections = [connection for _, connection in idle]
        idle.clear()
        changed.notify_all()
    for connection in connections:
        connection.quit(in_haste=True)
