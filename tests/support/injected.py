"""Children in which the kernel refuses a call: ``strace`` injects the error.

`Injector` forks a child for each scenario, which waits until strace is attached;
so strace counts the calls of the scenario from one on, in each thread, and the same
call has the same number each time.
"""
from __future__ import annotations

import ctypes
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from typing import NoReturn

from tests.support.children import Nursery
from tests.support.children import check
from tests.support.children import live


# What touches a queue; some machines have no such call, hence the question mark.
TRACED = (
    "openat,close,write,fsync,?rename,renameat,?renameat2,linkat,?unlink,unlinkat,"
    "fadvise64,?mkdir,mkdirat,?mknod,mknodat,utimensat,?newfstatat,?fstat,statx,getdents64,flock,"
    "pread64,faccessat,?faccessat2,?access"
)

_LINE = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)

# Who takes longer hangs, and is killed.
_SECONDS = 60


@dataclass(frozen=True)
class Traced:
    """A call that a thread made; `number` counts those of its name."""

    name: str
    number: int
    text: str

    @property
    def is_injected(self) -> bool:
        return self.text.endswith("(INJECTED)")


@dataclass(frozen=True)
class Fate:
    """What a child told, and the calls that strace saw."""

    ledger: list[list[str]]
    calls: list[Traced]

    def told(self, word: str) -> list[list[str]]:
        return [words for first, *words in self.ledger if first == word]


class Child:
    """A child that runs under strace, until `end`."""

    def __init__(self, nursery: Injector, strace: Any, output: Path) -> None:
        self._nursery = nursery
        self._strace = strace
        self._output = output
        self.ledger: list[list[str]] | None = None

    def calls(self) -> list[Traced]:
        return list(_calls(self._output.read_text()))

    def wait_for(self, condition: Callable[[list[Traced]], object]) -> None:
        until = time.monotonic() + _SECONDS / 2
        while not condition(self.calls()):
            assert time.monotonic() < until, self.calls()[-30:]
            time.sleep(0.01)

    def heal(self) -> None:
        """Let every call succeed from now on."""
        self._strace.terminate()
        self._strace.wait(_SECONDS)

    def end(self) -> Fate:
        """Wait until the scenario is over."""
        self.ledger = self._nursery.answer()
        self._strace.wait(_SECONDS)
        check(self.ledger)
        return Fate(self.ledger, self.calls())


class Injector(Nursery):
    """A nursery; `run` runs a scenario of ``tests.support.troubled``."""

    def __init__(self, scratch: Path) -> None:
        self._output = scratch / "injected"

    def run(
        self, scenario: str, *, inject: str = "", paths: Any = (), **arguments: Any
    ) -> Fate:
        """Run `scenario` with an injection as strace has it, `paths` only if given."""
        with self.running(scenario, inject=inject, paths=paths, **arguments) as child:
            return child.end()

    @contextmanager
    def running(
        self, scenario: str, *, inject: str = "", paths: Any = (), **arguments: Any
    ) -> Iterator[Child]:
        self._output.write_text("")
        self.say([scenario, arguments])
        command = ["strace", "-f", "-y", "-e", f"trace={TRACED}", "-e", "signal=none"]
        command += ["-o", str(self._output), "-p", str(self.answer())]
        for path in paths:
            command += ["-P", str(path)]
        if inject:
            command += ["-e", f"inject={inject}"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
            assert strace.stderr is not None
            said = strace.stderr.readline()
            while "attached" not in said:
                assert "Requested path" in said, said
                said = strace.stderr.readline()
            self.say("go")
            child = Child(self, strace, self._output)
            try:
                yield child
            finally:
                strace.terminate()
                if child.ledger is None:
                    self.answer()


def _calls(text: str) -> Iterator[Traced]:
    made: Counter[tuple[str, str]] = Counter()
    begun: dict[str, Traced] = {}
    for line in text.splitlines():
        if resumed := _RESUMED.match(line):
            call = begun.pop(resumed[1])
            yield replace(call, text=call.text + resumed[2])
        elif found := _LINE.match(line):
            thread, name, rest = found.groups()
            made[thread, name] += 1
            call = Traced(name, made[thread, name], rest)
            if rest.endswith("<unfinished ...>"):
                begun[thread] = call
            else:
                yield call


# In the nursery


class _Telling(logging.Handler):
    """Tells what is logged, from the level of warnings on."""

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell("logged", record.levelname, record.getMessage())


def main() -> None:
    from tests.support import troubled

    while line := sys.stdin.readline():
        name, arguments = json.loads(line)
        # Not pipes: to write into one is a call that may be refused.
        ours, theirs = socket.socketpair()
        child = os.fork()
        if not child:
            ours.close()
            _be_a_child(getattr(troubled, name), theirs, arguments)
        theirs.close()
        # Until it is ready, a call that fails would be one of the harness.
        ours.recv(1)
        print(child, flush=True)
        sys.stdin.readline()
        ours.send(b"!")
        with ours, ours.makefile("rb") as told:
            ledger = [json.loads(line) for line in told]
        os.waitpid(child, 0)
        print(json.dumps(ledger), flush=True)


def _be_a_child(
    scenario: Callable[..., None], parent: socket.socket, arguments: Any
) -> NoReturn:
    def tell(*words: str) -> None:
        parent.sendall(json.dumps(words).encode() + b"\n")

    logging.lastResort = None
    # Where a process may be traced by its ancestors only: by anybody.
    ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
    logging.getLogger("postcommit").addHandler(_Telling(tell))
    parent.sendall(b"!")
    parent.recv(1)
    signal.alarm(int(_SECONDS))
    live(partial(scenario, tell, **arguments), tell)


if __name__ == "__main__":
    main()
