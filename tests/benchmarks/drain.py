"""Drains a queue on disk into Postfix's smtp-sink.

Beside zope.sendmail, and beside smtp-source, which has no queue and is the
limit. ``python -m tests.benchmarks.drain [--count N] [--delay MS] [--rounds N]``
"""
from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import compare
from tests.benchmarks.harness import measured
from tests.support.proxy import DelayingProxy


_LINE = b"All work and no play makes a dull message, but a long one. 0123456789\r\n"


def fill(queue: Path, count: int, size: int) -> None:
    """Write `count` entries into a new queue, without syncs."""
    shutil.rmtree(queue, ignore_errors=True)
    for name in ("tmp", "new", "cur"):
        (queue / name).mkdir(parents=True)
    body = (_LINE * (size // len(_LINE) + 1))[:size]
    now = int(time.time())
    for n in range(count):
        head = (
            "X-Zope-From: sender@example.org\nX-Zope-To: recipient@example.org\n"
            f"Message-Id: <{n}@x.org>\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
            f"Subject: number {n}\r\n\r\n"
        )
        name = f"{now}.M{n:06d}P1Q{n}.bench"
        (queue / "new" / name).write_bytes(head.encode() + body)


@contextmanager
def sink() -> Iterator[int]:
    """Run smtp-sink on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    program = shutil.which("smtp-sink", path="/usr/sbin:/usr/bin") or "smtp-sink"
    command = [program, "-u", "nobody", f"127.0.0.1:{port}", "1000"]
    with subprocess.Popen(command) as process:
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    until = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > until:
                raise


# The contestants, each in a process of its own


def postcommit(queue: str, port: int, count: int, workers: int) -> None:
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    processor = QueueProcessor(queue, SMTPMailer("127.0.0.1", port), workers=workers)
    with measured(count):
        tally = processor.flush()
    assert tally == (count, 0, 0), tally


def zope(queue: str, port: int, count: int, workers: int) -> None:
    from zope.sendmail.mailer import SMTPMailer
    from zope.sendmail.queue import QueueProcessorThread

    thread = QueueProcessorThread()
    thread.setMailer(SMTPMailer("127.0.0.1", port))
    thread.setQueuePath(queue)
    with measured(count):
        thread.run(forever=False)
    assert not any((Path(queue) / "new").iterdir())


def source(queue: str, port: int, count: int, workers: int) -> None:
    program = shutil.which("smtp-source", path="/usr/sbin:/usr/bin") or "smtp-source"
    many = ["-s", str(workers), "-m", str(count), "-l", "4096", "-d"]
    with measured(count):
        subprocess.run([program, *many, f"127.0.0.1:{port}"], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--delay", type=float, default=0.0, help="round trip in ms")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--queue", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        contestant = {"postcommit": postcommit, "zope": zope, "source": source}
        run = contestant[options.contestant]
        run(options.queue, options.port, options.count, options.workers[0])
        return
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir="."))
        port = stack.enter_context(sink())
        if options.delay:
            proxy = stack.enter_context(DelayingProxy(port, options.delay / 1000))
            port = proxy.port
        queue = Path(folder) / "queue"

        def contestant_of(name: str, kind: str, workers: int) -> Contestant:
            def prepare() -> list[str]:
                if kind != "source":
                    fill(queue, options.count, options.size)
                return [
                    *(sys.executable, "-m", "tests.benchmarks.drain"),
                    *("--contestant", kind, "--queue", str(queue)),
                    *("--port", str(port), "--count", str(options.count)),
                    *("--workers", str(workers)),
                ]

            return Contestant(name, prepare)

        contestants = [contestant_of("zope.sendmail", "zope", 1)]
        contestants += [
            contestant_of(f"postcommit, {n} workers", "postcommit", n)
            for n in options.workers
        ]
        contestants.append(contestant_of("smtp-source -d, 1 session", "source", 1))
        compare(contestants, options.rounds)


if __name__ == "__main__":
    main()
