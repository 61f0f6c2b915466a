"""Drains a queue on disk into Postfix's smtp-sink.

Beside zope.sendmail and repoze.sendmail, beside a loop with smtplib, and beside two
limits: smtp-source, which reads no file, and the least that Python can do. With a
round trip or TLS too: ``python -m tests.benchmarks.drain --help``.
"""
from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.harness import LIMIT
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.harness import versions
from tests.benchmarks.relays import Way
from tests.benchmarks.relays import sink
from tests.benchmarks.relays import way


__all__ = ["fill", "sink"]

KIB = 1024

# The line ends are those that the email package writes.
_LINE = b"All work and no play makes a dull message, but a long one. 0123456789\n"

_ENVELOPES = {
    "zope": "X-Zope-From: {0}\nX-Zope-To: {1}\n",
    "repoze": "X-Actually-From: {0}\nX-Actually-To: {1}\n",
}
_ENVELOPES["both"] = _ENVELOPES["zope"] + _ENVELOPES["repoze"]


def fill(queue: Path, count: int, size: int, envelope: str = "zope") -> None:
    """Write `count` entries into a new queue, without syncs."""
    shutil.rmtree(queue, ignore_errors=True)
    for name in ("tmp", "new", "cur"):
        (queue / name).mkdir(parents=True)
    body = (_LINE * (size // len(_LINE) + 1))[:size]
    lines = _ENVELOPES[envelope].format("sender@example.org", "recipient@example.org")
    now = int(time.time())
    for n in range(count):
        head = (
            f"{lines}Message-Id: <{n}@x.org>\n"
            "Date: Mon, 23 Nov 2026 12:00:00 +0000\n"
            f"Subject: number {n}\n\n"
        )
        name = f"{now}.M{n:06d}P1Q{n}.bench"
        (queue / "new" / name).write_bytes(head.encode() + body)


@dataclass(frozen=True)
class Setting:
    """One comparison: messages of `size` bytes on a way that is `tls` and `delay`.

    `count` is how many messages each worker of ours gets, `few` how many those
    get that wait for each reply.
    """

    size: int
    tls: str
    delay: float
    count: int
    few: int

    def case(self) -> dict[str, float | str]:
        found: dict[str, float | str] = {"size": self.size}
        if self.tls != "none":
            found["tls"] = self.tls
        if self.delay:
            found["round trip"] = self.delay
        return found


def setting(options: argparse.Namespace, size: int, tls: str, delay: float) -> Setting:
    """How much work is enough: about a second or two for each contestant."""
    if options.quick:
        count, few = 8, 2
    elif delay:
        count, few = 60, max(10, int(1000 / delay))
    else:
        count = max(60, min(2000, 60_000_000 // size))
        few = count // (5 if tls != "none" else 1)
    return Setting(size, tls, delay, options.count or count, options.count or few)


def contestants(
    options: argparse.Namespace, setting: Setting, queue: Path, way: Way
) -> list[Contestant]:
    def contestant(
        name: str, kind: str, what: str, workers: int = 1, count: int = setting.few
    ) -> Contestant:
        def prepare() -> list[str]:
            fill(
                queue,
                0 if kind == "source" else count,
                setting.size,
                "repoze" if kind == "repoze" else "zope",
            )
            return [
                *(sys.executable, "-m", "tests.benchmarks.drainers", kind),
                *("--queue", str(queue), "--port", str(way.port)),
                *("--count", str(count), "--size", str(setting.size)),
                *("--workers", str(workers), "--tls", way.tls),
                *("--cafile", way.cafile),
            ]

        return Contestant(name, prepare, what, setting.case() | {"workers": workers})

    # With a round trip, a worker more has to bring more.
    times = options.workers if setting.delay else [1] * len(options.workers)
    many = [setting.count * n for n in times]
    found = [
        contestant("postcommit", "postcommit", OURS, workers, count)
        for workers, count in zip(options.workers, many, strict=True)
    ]
    found.append(contestant("zope.sendmail", "zope", PEER))
    found.append(contestant("repoze.sendmail", "repoze", PEER))
    found.append(contestant("smtplib, one connection", "library", PEER))
    for workers, count in zip(options.workers, many, strict=True):
        if workers == 1 or setting.delay:
            found.append(contestant("raw sockets", "raw", LIMIT, workers, count))
        if setting.tls == "none":
            count = count if not setting.delay else setting.few * workers
            found.append(contestant("smtp-source -d", "source", LIMIT, workers, count))
    return found


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__)
    made.add_argument("--run", default="drain", help="the name of the results")
    made.add_argument("--count", type=int, help="messages; default: enough")
    made.add_argument("--size", type=int, nargs="+", default=[4 * KIB])
    made.add_argument("--delay", type=float, nargs="+", default=[0], help="in ms")
    tls = ["none", "starttls", "implicit"]
    made.add_argument("--tls", nargs="+", default=["none"], choices=tls)
    made.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16])
    return made


def run(options: argparse.Namespace) -> list[Result]:
    """Each combination of size, TLS and round trip, one after another."""
    results: list[Result] = []
    rounds = 1 if options.quick else options.rounds
    for size in options.size:
        for tls in options.tls:
            for delay in options.delay:
                with (
                    tempfile.TemporaryDirectory(
                        prefix="bench-", dir=options.folder
                    ) as folder,
                    way(Path(folder), tls=tls, delay=delay) as there,
                ):
                    found = setting(options, size, tls, delay)
                    queue = Path(folder) / "queue"
                    racing = contestants(options, found, queue, there)
                    racing = versions(racing, options.against)
                    results += interleave(options.run, racing, rounds)
    return results


if __name__ == "__main__":
    program(parser(), run)
