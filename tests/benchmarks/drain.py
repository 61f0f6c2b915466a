"""Drains a queue on disk into Postfix's smtp-sink.

Beside zope.sendmail, and beside smtp-source, which has no queue and is the
limit. ``python -m tests.benchmarks.drain --help`` has the options.
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

import trustme

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


@contextmanager
def stunnel(folder: Path, port: int) -> Iterator[int]:
    """Run stunnel before `port`; the certificate is ``ca.pem`` in `folder`."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    certificate = authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem
    certificate.write_to_path(str(folder / "stunnel.pem"))
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        listening = reserved.getsockname()[1]
    (folder / "stunnel.conf").write_text(
        f"foreground = yes\npid =\n[smtps]\naccept = 127.0.0.1:{listening}\n"
        f"connect = 127.0.0.1:{port}\ncert = {folder / 'stunnel.pem'}\n"
        "TIMEOUTclose = 0\n"
    )
    command = ["stunnel", str(folder / "stunnel.conf")]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(listening)
            yield listening
        finally:
            process.terminate()


# The contestants, each in a process of its own


def postcommit(options: argparse.Namespace) -> None:
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    [workers] = options.workers
    tls = {"tls": "implicit", "cafile": options.cafile} if options.cafile else {}
    mailer = SMTPMailer("127.0.0.1", options.port, **tls)
    processor = QueueProcessor(options.queue, mailer, workers=workers)
    with measured(options.count):
        tally = processor.flush()
    assert tally == (options.count, 0, 0), tally


def zope(options: argparse.Namespace) -> None:
    from zope.sendmail.mailer import SMTPMailer
    from zope.sendmail.queue import QueueProcessorThread

    tls = bool(options.cafile)
    thread = QueueProcessorThread()
    thread.setMailer(SMTPMailer("127.0.0.1", options.port, implicit_tls=tls))
    thread.setQueuePath(options.queue)
    with measured(options.count):
        thread.run(forever=False)
    assert not any((Path(options.queue) / "new").iterdir())


def source(options: argparse.Namespace) -> None:
    program = shutil.which("smtp-source", path="/usr/sbin:/usr/bin") or "smtp-source"
    command = [program, "-d", "-s", "1", "-m", str(options.count)]
    command += ["-l", str(options.size), f"127.0.0.1:{options.port}"]
    with measured(options.count):
        subprocess.run(command, check=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--count", type=int, default=2000)
    made.add_argument("--size", type=int, default=4096)
    made.add_argument("--delay", type=float, default=0.0, help="round trip in ms")
    made.add_argument("--tls", action="store_true", help="implicit TLS, by stunnel")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--workers", type=int, nargs="*", default=[1, 4])
    for hidden in ("--contestant", "--queue", "--cafile"):
        made.add_argument(hidden, help=argparse.SUPPRESS)
    made.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return made


def contestants(
    options: argparse.Namespace, queue: Path, port: int, cafile: str
) -> list[Contestant]:
    def contestant(name: str, kind: str, workers: int) -> Contestant:
        def prepare() -> list[str]:
            if kind != "source":
                fill(queue, options.count, options.size)
            return [
                *(sys.executable, "-m", "tests.benchmarks.drain"),
                *("--contestant", kind, "--queue", str(queue)),
                *("--port", str(port), "--count", str(options.count)),
                *("--size", str(options.size), "--workers", str(workers)),
                *("--cafile", cafile),
            ]

        return Contestant(name, prepare)

    found = [contestant("zope.sendmail", "zope", 1)]
    found += [
        contestant(f"postcommit, {n} workers", "postcommit", n)
        for n in options.workers
    ]
    if not options.tls:  # it does not speak TLS
        found.append(contestant("smtp-source -d, 1 session", "source", 1))
    return found


def main() -> None:
    options = parser().parse_args()
    if options.contestant:
        runs = {"postcommit": postcommit, "zope": zope, "source": source}
        runs[options.contestant](options)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=".")))
        port, cafile = stack.enter_context(sink()), ""
        if options.tls:
            port = stack.enter_context(stunnel(folder.absolute(), port))
            cafile = str(folder / "ca.pem")
        if options.delay:
            proxy = stack.enter_context(DelayingProxy(port, options.delay / 1000))
            port = proxy.port
        compare(contestants(options, folder / "queue", port, cafile), options.rounds)


if __name__ == "__main__":
    main()
