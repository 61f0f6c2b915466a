"""The connections of a mailer: used by one message after the other."""
from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable

from postcommit.smtp.session import Session


class Pool:
    """Sessions that `opener` makes, kept for `idle_timeout` seconds.

    A session has its share after `messages` messages, and is then closed.
    Threads may share a pool; each has a session for itself while it uses it. A
    child process starts with an empty pool: the connections are its parent's.
    """

    def __init__(
        self,
        opener: Callable[[], Session],
        *,
        messages: int,
        idle_timeout: float,
        pipelining: bool,
    ) -> None:
        self.pipelining = pipelining
        self._opener = opener
        self._messages = messages
        self._idle_timeout = idle_timeout
        self._begin()
        _pools.add(self)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._idle: deque[tuple[float, Session]] = deque()
        self._busy: set[Session] = set()
        self._sweeper: threading.Thread | None = None

    # Lending

    def checkout(self, *, fresh: bool = False) -> Session:
        """Return a session, one that was never used if `fresh`.

        Raises `RelayError` where the relay cannot be reached.
        """
        session = None if fresh else self._reuse()
        if session is None:
            session = self._opener()
            with self._changed:
                self._busy.add(session)
        # It may have been switched off since the session was opened.
        session.pipelining &= self.pipelining
        return session

    def _reuse(self) -> Session | None:
        while True:
            with self._changed:
                if not self._idle:
                    return None
                since, session = self._idle.pop()
                self._busy.add(session)
            overdue = time.monotonic() - since >= self._idle_timeout
            if not overdue and session.is_quiet:
                return session
            self.discard(session)

    def is_full(self, session: Session) -> bool:
        """Whether `session` has had its share of messages."""
        return session.messages >= self._messages

    def checkin(self, session: Session) -> None:
        """Take back a session between two messages."""
        with self._changed:
            closed = session not in self._busy  # by close(), meanwhile
            self._busy.discard(session)
            keep = not closed and not self.is_full(session) and self._idle_timeout > 0
            if keep:
                self._idle.append((time.monotonic(), session))
                if self._sweeper is None:
                    self._sweeper = self._start_sweeper()
        if not keep:
            session.quit()

    def discard(self, session: Session) -> None:
        """Take back a session that is of no use any more."""
        with self._changed:
            self._busy.discard(session)
        session.close()

    # Closing

    def close(self) -> None:
        """Close the idle sessions now, the others when they are taken back."""
        with self._changed:
            idle = [session for _, session in self._idle]
            self._idle.clear()
            self._busy.clear()
            self._changed.notify()
        for session in idle:
            session.quit()

    def _start_sweeper(self) -> threading.Thread | None:
        sweeper = threading.Thread(target=self._sweep, daemon=True)
        try:
            sweeper.start()
        except RuntimeError:
            # No thread to be had, as when the interpreter exits. The message was
            # sent all the same, and `_reuse` looks at the age as well.
            return None
        return sweeper

    def _sweep(self) -> None:
        """Close sessions whose time is over, until there are none (a thread)."""
        changed = self._changed  # after a `forget`, there is another one
        while True:
            with changed:
                if not self._idle:
                    self._sweeper = None
                    return
                since, session = self._idle[0]
                wait = since + self._idle_timeout - time.monotonic()
                if wait > 0:
                    changed.wait(wait)
                    continue
                self._idle.popleft()
            session.quit()

    def forget(self) -> None:
        """Let go of all sessions, in a child process.

        Closing them here says nothing on the wire, and leaves them to the
        parent. The lock may have been held by a thread that is not here.
        """
        sessions = [*(session for _, session in self._idle), *self._busy]
        self._begin()
        for session in sessions:
            session.close()


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_all() -> None:
    for pool in list(_pools):
        pool.forget()


os.register_at_fork(after_in_child=_forget_all)
