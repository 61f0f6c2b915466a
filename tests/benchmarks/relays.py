"""The relays that benchmarks send to, and the ways there.

Postfix's smtp-sink takes everything and keeps nothing; stunnel puts TLS before it,
`tests.support.proxy` a round trip.
"""
from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import free_port


SBIN = "/usr/sbin:/usr/local/sbin:/usr/bin"


@dataclass(frozen=True)
class Way:
    """Where to connect to; `tls` is none, starttls or implicit."""

    port: int
    tls: str = "none"
    cafile: str = ""


def program(name: str) -> str:
    """The path of one of Debian's programs, or an error that says what to do."""
    found = shutil.which(name, path=SBIN)
    if not found:
        raise SystemExit(f"{name} is missing: apt-get install postfix stunnel4")
    return found


@contextmanager
def sink() -> Iterator[int]:
    """Run smtp-sink on a free port."""
    port = free_port()
    command = [program("smtp-sink"), "-u", "nobody", f"127.0.0.1:{port}", "1000"]
    with _running(command, port):
        yield port


def certify(folder: Path) -> tuple[str, str]:
    """Two files in `folder`: the authority, and a certificate with its key."""
    # Not needed, nor in the memory of, what runs without TLS.
    import trustme

    authority = trustme.CA()
    cafile, certificate = folder / "ca.pem", folder / "relay.pem"
    authority.cert_pem.write_to_path(str(cafile))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(certificate))
    return str(cafile), str(certificate)


@contextmanager
def stunnel(folder: Path, port: int, certificate: str) -> Iterator[int]:
    """Run stunnel before `port`."""
    listening = free_port()
    configuration = folder / "stunnel.conf"
    configuration.write_text(
        f"foreground = yes\npid =\n[smtps]\naccept = 127.0.0.1:{listening}\n"
        f"connect = 127.0.0.1:{port}\ncert = {certificate}\nTIMEOUTclose = 0\n"
    )
    with _running([program("stunnel"), str(configuration)], listening):
        yield listening


@contextmanager
def starttls(port: int, certificate: str) -> Iterator[int]:
    """Run a front that offers STARTTLS before `port`."""
    listening = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.starttls"]
    with _running([*command, str(listening), str(port), certificate], listening):
        yield listening


@contextmanager
def way(folder: Path, *, tls: str = "none", delay: float = 0) -> Iterator[Way]:
    """The way to a new sink; `delay` is the round trip in milliseconds."""
    with ExitStack() as stack:
        port, cafile = stack.enter_context(sink()), ""
        if tls != "none":
            folder = folder.absolute()
            cafile, certificate = certify(folder)
            if tls == "starttls":
                port = stack.enter_context(starttls(port, certificate))
            else:
                port = stack.enter_context(stunnel(folder, port, certificate))
        if delay:
            from tests.support.proxy import DelayingProxy

            port = stack.enter_context(DelayingProxy(port, delay / 1000)).port
        yield Way(port, tls, cafile)


@contextmanager
def _running(command: list[str], port: int) -> Iterator[None]:
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port, process)
            yield
        finally:
            process.terminate()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.01)
