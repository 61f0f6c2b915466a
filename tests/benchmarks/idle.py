"""What a processor costs that has nothing to do: processor time and wake-ups.

All contestants are idle at the same time, each in a process of its own: they hardly
disturb each other, and what else the machine does meets all of them. The kernel's
account of each process is read from outside, so that nothing wakes a process only to
be measured. In the end each gets a mail and has to send it: it was idle, not dead.

repoze.sendmail has no processor that runs by itself: cron starts it.
``python -m tests.benchmarks.idle --help``.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.drain import fill
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import program
from tests.benchmarks.idlers import KINDS
from tests.benchmarks.idlers import Kind
from tests.benchmarks.idlers import zope
from tests.benchmarks.measured import peak_memory
from tests.benchmarks.measured import status
from tests.benchmarks.relays import sink
from tests.benchmarks.scale import defer


# How many entries wait for another day in the queue of some.
DEFERRED = 10_000

# zope.sendmail's own would be long for a test.
_QUICK_POLLING = 0.1

# A process that takes more of a half second than this has not yet begun to idle.
_BUSY_SECONDS = 0.02


# The kernel's account


@dataclass(frozen=True)
class Account:
    """What the threads that a process has now used up since they began.

    A wake-up is counted when the thread goes back to sleep: a voluntary context
    switch.
    """

    seconds: float
    wake_ups: int

    def __sub__(self, other: Account) -> Account:
        return Account(self.seconds - other.seconds, self.wake_ups - other.wake_ups)


def account(pid: int) -> Account:
    """Read it; the process does not notice."""
    nanoseconds, wake_ups = 0, 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        nanoseconds += int((thread / "schedstat").read_text().split()[0])
        wake_ups += status(thread, "voluntary_ctxt_switches")
    return Account(nanoseconds / 1e9, wake_ups)


class Idler:
    """One of the processes, begun and waited for from outside."""

    def __init__(self, kind: Kind, queue: Path, command: Sequence[str]) -> None:
        self.kind = kind
        self._queue = queue
        self._deferred = len(os.listdir(queue / "cur"))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Idler:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.__exit__(None, None, None)

    def wait_until_begun(self) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "idle\n":
            raise SystemExit(f"{self.kind.name} did not begin")

    def account(self) -> Account:
        return account(self._process.pid)

    def peak_memory(self) -> float:
        """In MiB."""
        return peak_memory(Path(f"/proc/{self._process.pid}"))

    def end(self) -> None:
        """Let it send its mail and end; see that it did, and touched nothing else."""
        self._process.communicate("end\n")
        if code := self._process.returncode:
            raise SystemExit(f"{self.kind.name} ended with {code}")
        for folder, expected in (("new", 0), ("cur", self._deferred)):
            left = len(os.listdir(self._queue / folder))
            if left != expected:
                raise SystemExit(f"{self.kind.name} left {left} in {folder}")


# The program


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__)
    made.add_argument("--seconds", type=float, default=30, help="how long in a round")
    made.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    made.add_argument("--port", type=int, help=argparse.SUPPRESS)
    made.add_argument("--polling", type=float, help=argparse.SUPPRESS)
    return made


def run(options: argparse.Namespace) -> list[Result]:
    rounds = 1 if options.quick else options.rounds
    told: dict[tuple[str, str, str], list[float]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder,
        sink() as port,
    ):
        queues = {name: Path(folder) / name for name in options.kinds}
        for name, queue in queues.items():
            deferred = 20 if options.quick else DEFERRED
            fill(queue, deferred if KINDS[name].deferred else 0, 200)
        for number in range(1, rounds + 1):
            for queue in queues.values():
                defer(queue)
            os.sync()  # or the disk would write it while they are measured
            for name, figures in _round(queues, port, options).items():
                for figure, (unit, value) in figures.items():
                    told.setdefault((name, figure, unit), []).append(value)
            print(f"idle: round {number} of {rounds}", file=sys.stderr)
    return [
        Result("idle", KINDS[name].name, figure, unit, values, KINDS[name].what)
        for (name, figure, unit), values in told.items()
    ]


def _round(
    queues: dict[str, Path], port: int, options: argparse.Namespace
) -> dict[str, dict[str, tuple[str, float]]]:
    """Let all of them be idle for a while; the figures of each."""
    seconds = 0.2 if options.quick else options.seconds
    with ExitStack() as stack:
        idlers = {}
        for name, queue in queues.items():
            command = _command(name, queue, port, options.quick)
            idler = Idler(KINDS[name], queue, command)
            idlers[name] = stack.enter_context(idler)
        for idler in idlers.values():
            idler.wait_until_begun()
        _wait_until_calm(list(idlers.values()))
        begin = time.perf_counter()
        before = {name: idler.account() for name, idler in idlers.items()}
        time.sleep(seconds)
        used = {n: idler.account() - before[n] for n, idler in idlers.items()}
        hours = (time.perf_counter() - begin) / 3600
        found: dict[str, dict[str, tuple[str, float]]] = {}
        for name, idler in idlers.items():
            found[name] = {
                "processor": ("ms per hour", 1000 * used[name].seconds / hours),
                "wake-ups": ("per hour", used[name].wake_ups / hours),
                "peak memory": ("MiB", idler.peak_memory()),
            }
            idler.end()
    return found


def _command(name: str, queue: Path, port: int, quick: bool) -> list[str]:
    kind = KINDS[name]
    polling = kind.polling
    if quick and kind.work is zope:
        polling = _QUICK_POLLING
    command = [sys.executable, "-m", "tests.benchmarks.idle", "--contestant", name]
    command += ["--folder", str(queue), "--port", str(port)]
    return command if polling is None else [*command, "--polling", str(polling)]


def _wait_until_calm(idlers: Sequence[Idler]) -> None:
    """Wait until what they do to begin is done."""
    until = time.monotonic() + 60
    busy = ["all of them"]
    while busy:
        if time.monotonic() > until:
            raise SystemExit(f"not idle: {', '.join(busy)}")
        before = [idler.account() for idler in idlers]
        time.sleep(0.5)
        busy = [
            idler.kind.name
            for idler, then in zip(idlers, before, strict=True)
            if (idler.account() - then).seconds > _BUSY_SECONDS
        ]


def contest(options: argparse.Namespace) -> None:
    kind = KINDS[options.contestant]
    with kind.work(options.folder, options.port, options.polling) as prove:
        print("idle", flush=True)
        sys.stdin.readline()
        prove()


if __name__ == "__main__":
    program(parser(), run, contest)
