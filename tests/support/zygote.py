"""Children that are really killed, hundreds of them a minute.

`Zygote` starts one process, which has imported everything and runs no thread.
For each scenario it forks a child. In the child, each of the calls by which
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
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


# By these, postcommit touches a queue; data is written when a file is closed.
COUNTED = (
    (os, "open"),
    (os, "close"),
    (os, "fsync"),
    (os, "rename"),
    (os, "unlink"),
    (os, "utime"),
    (os, "stat"),
    (os, "fstat"),
    (os, "scandir"),
    (fcntl, "flock"),
)


@dataclass(frozen=True)
class Fate:
    """What became of a child: its ledger, the calls that it made if it lived."""

    ledger: list[list[str]]
    killed: bool
    calls: int


class Zygote:
    """A context manager; `run` runs a scenario of ``tests.support.scenarios``."""

    def __enter__(self) -> Zygote:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def run(
        self,
        scenario: str,
        *,
        kill_at: int | None = None,
        kill_after: float | None = None,
        **arguments: Any,
    ) -> Fate:
        """Run `scenario`, killed at a call, or after so many seconds, or not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = [scenario, kill_at, kill_after, arguments]
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the zygote is dead"
        fate = Fate(**json.loads(answer))
        failed = [line for line in fate.ledger if line[0] == "failed"]
        assert not failed, failed
        return fate


# In the zygote


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
) -> None:
    write = os.write

    def tell(*words: str) -> None:
        write(writer, json.dumps(words).encode() + b"\n")

    count = _count_calls(kill_at)
    try:
        scenario(tell, **arguments)
        tell("calls", str(count()))
    except BaseException as error:
        tell("failed", repr(error))
    finally:
        os._exit(0)


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
