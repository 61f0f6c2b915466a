"""The contestants of the drain, each in a process of its own.

Each of them sends all that is in a folder, one message in a file, and tells what it
took. ``python -m tests.benchmarks.drainers KIND OPTIONS``, see
``tests.benchmarks.drain``.
"""
from __future__ import annotations

import argparse
import os
import smtplib
import socket
import ssl
import threading
from contextlib import closing
from typing import BinaryIO

from tests.benchmarks.measured import measured


def postcommit(options: argparse.Namespace) -> None:
    from postcommit import QueueProcessor
    from postcommit import SMTPMailer

    tls = {"tls": options.tls, "cafile": options.cafile} if options.cafile else {}
    mailer = SMTPMailer("127.0.0.1", options.port, **tls)
    processor = QueueProcessor(options.queue, mailer, workers=options.workers)
    with measured(options.count):
        tally = processor.flush()
    assert tally.sent == options.count, tally


def zope(options: argparse.Namespace) -> None:
    from zope.sendmail.mailer import SMTPMailer
    from zope.sendmail.queue import QueueProcessorThread

    implicit = options.tls == "implicit"
    thread = QueueProcessorThread()
    thread.setMailer(SMTPMailer("127.0.0.1", options.port, implicit_tls=implicit))
    thread.setQueuePath(options.queue)
    with measured(options.count):
        thread.run(forever=False)


def repoze(options: argparse.Namespace) -> None:
    from repoze.sendmail.mailer import SMTPMailer
    from repoze.sendmail.queue import QueueProcessor

    mailer = SMTPMailer("127.0.0.1", options.port, ssl=options.tls == "implicit")
    processor = QueueProcessor(mailer, options.queue)
    with measured(options.count):
        processor.send_messages()


def library(options: argparse.Namespace) -> None:
    """What one would write with smtplib: one connection, no claim, no report."""
    with measured(options.count), _connection(options) as connection:
        for path in _files(options.queue):
            fromaddr, toaddr, message = _entry(path)
            connection.sendmail(fromaddr.decode(), [toaddr.decode()], message)
            os.unlink(path)


def _connection(options: argparse.Namespace) -> smtplib.SMTP:
    context = ssl.create_default_context(cafile=options.cafile or None)
    if options.tls == "implicit":
        return smtplib.SMTP_SSL("127.0.0.1", options.port, context=context)
    connection = smtplib.SMTP("127.0.0.1", options.port)
    if options.tls == "starttls":
        connection.starttls(context=context)
    return connection


def raw(options: argparse.Namespace) -> None:
    """The least that Python can do: read, write, count the replies, unlink.

    Pipelined, the envelope of a message with the end of the one before it.
    """
    files = _files(options.queue)
    shares = [files[n :: options.workers] for n in range(options.workers)]
    threads = [
        threading.Thread(target=_pour, args=(share, options)) for share in shares
    ]
    with measured(options.count):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _pour(files: list[str], options: argparse.Namespace) -> None:
    with closing(_connection(options)) as connection:  # and no QUIT
        connection.ehlo()
        assert connection.sock is not None
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        replies = connection.sock.makefile("rb")
        before, expected = b"", b"223"
        for path in files:
            fromaddr, toaddr, message = _entry(path)
            envelope = b"MAIL FROM:<%s>\r\nRCPT TO:<%s>\r\nDATA\r\n"
            connection.sock.sendall(before + envelope % (fromaddr, toaddr))
            _expect(replies, expected)
            content = message.replace(b"\n", b"\r\n")
            before, expected = content + b"\r\n.\r\n", b"2223"
        connection.sock.sendall(before)
        _expect(replies, b"2")
    for path in files:
        os.unlink(path)


def _expect(replies: BinaryIO, digits: bytes) -> None:
    """Read replies of one line each; their first digits are `digits`."""
    for digit in digits:
        line = replies.readline()
        assert line[:1] == bytes([digit]), line


def _files(queue: str) -> list[str]:
    new = os.path.join(queue, "new")
    return [os.path.join(new, name) for name in sorted(os.listdir(new))]


def _entry(path: str) -> list[bytes]:
    """Sender, recipient and message, of an entry as `fill` writes it."""
    with open(path, "rb") as file:
        first, second, message = file.read().split(b"\n", 2)
    return [first.split()[1], second.split()[1], message]


def source(options: argparse.Namespace) -> None:
    """Postfix's generator: it reads no file, and sends one message many times."""
    import subprocess

    from tests.benchmarks.relays import program

    command = [program("smtp-source"), "-d", "-s", str(options.workers)]
    command += ["-m", str(options.count), "-l", str(options.size)]
    command.append(f"127.0.0.1:{options.port}")
    with measured(options.count, by_child=True):
        subprocess.run(command, check=True)


KINDS = {
    one.__name__: one for one in (postcommit, zope, repoze, library, raw, source)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--queue", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--tls", default="none")
    parser.add_argument("--cafile", default="")
    options = parser.parse_args()
    KINDS[options.kind](options)
    left = os.listdir(os.path.join(options.queue, "new"))
    assert not left, f"{len(left)} entries were not sent"


if __name__ == "__main__":
    main()
