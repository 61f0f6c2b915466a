"""Children that are really killed, hundreds of them a minute.

`Zygote` forks a child for each scenario. In the child, each of the calls by which
postcommit touches a queue is counted, and at a given one the child kills itself,
before the call is made; or the parent kills it at any moment. What it did until
then it wrote line by line into a pipe, the *ledger*.
"""
from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from typing import NoReturn

from postcommit._maildir import files
from tests.support.children import Nursery
from tests.support.children import check
from tests.support.children import live


# By these, postcommit touches a queue. (What a file object has buffered is written
# when it is flushed, that is before the fsync.)
COUNTED = (
    (os, "open"),
    (os, "close"),
    (os, "write"),
    (os, "pread"),
    (os, "posix_fadvise"),
    (os, "fsync"),
    (os, "rename"),
    (files, "_renameat2"),
    (os, "link"),
    (os, "unlink"),
    (os, "utime"),
    (os, "stat"),
    (os, "lstat"),
    (os, "fstat"),
    (os, "access"),
    (os, "mkdir"),
    (os, "mkfifo"),
    (os, "listdir"),
    (os, "scandir"),
    (fcntl, "flock"),
)


@dataclass(frozen=True)
class Fate:
    """What became of a child: its ledger, the calls that it made if it lived."""

    ledger: list[list[str]]
    killed: bool
    calls: int


class Zygote(Nursery):
    """A nursery; `run` runs a scenario of ``tests.support.scenarios``."""

    def run(
        self,
        scenario: str,
        *,
        kill_at: int | None = None,
        kill_after: float | None = None,
        **arguments: Any,
    ) -> Fate:
        """Run `scenario`, killed at a call, or after so many seconds, or not."""
        self.say([scenario, kill_at, kill_after, arguments])
        fate = Fate(**self.answer())
        check(fate.ledger)
        return fate


# In the nursery


def main() -> None:
    from tests.support import scenarios

    for line in sys.stdin:
        name, kill_at, kill_after, arguments = json.loads(line)
        scenario = getattr(scenarios, name)
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _be_a_child(scenario, writer, kill_at, arguments)
        os.close(writer)
        print(json.dumps(_watch(child, reader, kill_after)), flush=True)


def _be_a_child(
    scenario: Callable[..., None], writer: int, kill_at: int | None, arguments: Any
) -> NoReturn:
    write = os.write

    def tell(*words: str) -> None:
        write(writer, json.dumps(words).encode() + b"\n")

    def counting() -> None:
        count = _count_calls(kill_at)
        scenario(tell, **arguments)
        tell("calls", str(count()))

    live(counting, tell)


def _count_calls(kill_at: int | None) -> Callable[[], int]:
    made = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            made += 1
            if made == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for module, name in COUNTED:
        setattr(module, name, counted(getattr(module, name)))
    return lambda: made


def _watch(child: int, reader: int, kill_after: float | None) -> dict[str, Any]:
    """Collect the ledger until the child is gone; kill it in time."""
    told = b""
    with open(reader, "rb", buffering=0) as pipe:
        if kill_after is not None:
            # The pipe comes to its end with the child: then nothing is left to
            # wait for.
            until = time.monotonic() + kill_after
            while select.select([pipe], [], [], max(0, until - time.monotonic()))[0]:
                more = pipe.read(65536)
                if not more:
                    break
                told += more
            os.kill(child, signal.SIGKILL)
        while more := pipe.read(65536):
            told += more
    _, status = os.waitpid(child, 0)
    ledger = [json.loads(line) for line in told.splitlines()]
    calls = [int(words[1]) for words in ledger if words[0] == "calls"]
    return {
        "ledger": [words for words in ledger if words[0] != "calls"],
        "killed": os.WIFSIGNALED(status),
        "calls": calls[0] if calls else 0,
    }


if __name__ == "__main__":
    main()
