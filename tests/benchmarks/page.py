"""How long the pages of a large queue take, and how much memory their process needs.

``python -m tests.benchmarks.page [ENTRIES]`` fills a queue in a temporary folder,
serves it with ``postcommit web``, and prints a line for each page. A page has to open
in less than a second, and the process may need 60 MiB, with 200,000 entries.
"""
from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from postcommit import MailQueue
from postcommit._maildir.store import Store


ENTRIES = 200_000

_COMMAND = "import sys; from postcommit._cli.main import main; sys.exit(main())"

_ENTRY = """\
X-Zope-From: shop@example.org
X-Zope-To: user{number}@example.org
Message-Id: <{number}@example.org>
From: shop@example.org
Subject: Your order {number}

Thank you.
"""


class Measured(NamedTuple):
    """The seconds until a page was there, the second time, and its bytes."""

    name: str
    seconds: float
    length: int


def fill(path: str, count: int) -> None:
    """Write `count` entries, of which a quarter is deferred, without syncing them."""
    Store(path)
    for number in range(count):
        folder, flags = ("cur", ":2,") if number % 4 == 3 else ("new", "")
        name = f"{1700000000 + number}.M{number}P1Q1.web{flags}"
        with open(f"{path}/{folder}/{name}", "w") as file:
            file.write(_ENTRY.format(number=number))


@contextmanager
def serving(path: str) -> Iterator[tuple[int, int, str]]:
    """Serve the queue at `path`. Yield process id, port, and the query of the URL."""
    command = [sys.executable, "-c", _COMMAND, "web", path, "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            found = re.search(r":(\d+)/(\?\S+)", process.stdout.readline())
            assert found is not None
            yield process.pid, int(found[1]), found[2]
        finally:
            process.send_signal(signal.SIGINT)


def measure(path: str) -> tuple[list[Measured], float]:
    """Return the pages, and the largest memory of the process in MiB."""
    id = next(MailQueue(path).list()).id
    pages = {
        "overview": "/",
        "first page of the list": "/queue/queue",
        "deferred entries": "/queue/queue?state=deferred",
        "one entry": f"/queue/queue/{id}",
        "page of a search": "/queue/queue?search=nothing",
    }
    with serving(path) as (process, port, query):
        first = _get(port, f"/{query}", "")[0]
        cookie = str(first.headers["Set-Cookie"]).partition(";")[0]
        measured = []
        for name, url in pages.items():
            _get(port, url, cookie)  # the templates are compiled now
            begin = time.perf_counter()
            answer, body = _get(port, url, cookie)
            assert answer.status == 200
            measured.append(Measured(name, time.perf_counter() - begin, len(body)))
        with open(f"/proc/{process}/status") as file:
            peak = re.search(r"VmHWM:\s+(\d+) kB", file.read())
        assert peak is not None
        return measured, int(peak[1]) / 1024


def _get(
    port: int, url: str, cookie: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", url, headers={"Cookie": cookie})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def main(count: int = ENTRIES) -> None:
    """Print the measurements."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "queue")
        fill(path, count)
        measured, mebibytes = measure(path)
    for page in measured:
        print(f"{page.name:<24} {page.seconds:6.3f} s  {page.length:>8} bytes")
    print(f"{'memory at most':<24} {mebibytes:6.1f} MiB, {count} entries")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
