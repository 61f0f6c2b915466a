"""What a scripted relay does instead of the usual, and when."""
from __future__ import annotations

import threading
from collections.abc import Callable
from collections.abc import Iterable
from dataclasses import dataclass
from dataclasses import field
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from tests.support.dialogue import Dialogue


_SESSION = ("CONNECT", "EHLO", "HELO", "STARTTLS", "AUTH", "RSET", "NOOP", "QUIT")
STAGES = frozenset((*_SESSION, "MAIL", "RCPT", "DATA", "END"))

# What is said instead of `usual`; returns the code that was said.
Act = Callable[["Dialogue", str], int]


class Hangup(Exception):
    """This connection is over."""


def lines(reply: str | bytes | Iterable[str]) -> bytes:
    """Return the bytes of a reply: one line, several, or raw bytes as they are."""
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, str):
        reply = [reply]
    return b"".join(line.encode("utf-8") + b"\r\n" for line in reply)


class Hold:
    """The relay waits at a stage: `reached` is set there, `release` lets it go on."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._released = threading.Event()

    def release(self) -> None:
        self._released.set()

    def wait(self) -> None:
        self.reached.set()
        self._released.wait()


@dataclass
class Rule:
    """At `stage` (and for `address`) do `act`, so many `times` (None: always)."""

    stage: str
    act: Act
    address: str | None = None
    times: int | None = None

    def fits(self, stage: str, address: str | None) -> bool:
        return self.stage == stage and self.address in (None, address)


@dataclass
class Script:
    """The rules; the first that fits is taken."""

    rules: list[Rule] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self, stage: str, act: Act, address: str | None, times: int | None
    ) -> None:
        if stage not in STAGES:
            raise ValueError(f"{stage!r} is none of {sorted(STAGES)}")
        with self.lock:
            self.rules.append(Rule(stage, act, address, times))

    def take(self, stage: str, address: str | None) -> Act | None:
        with self.lock:
            for rule in self.rules:
                if rule.fits(stage, address):
                    if rule.times is not None:
                        rule.times -= 1
                        if not rule.times:
                            self.rules.remove(rule)
                    return rule.act
        return None

    def clear(self) -> None:
        with self.lock:
            self.rules.clear()
