"""The page about operating, played: each command of it, on one queue, in order.

The clock of the queue stands still, so that what is printed can be compared to the
letter.
"""
from __future__ import annotations

import io
import json
import os
import shlex
import time
from collections.abc import Iterator
from getpass import getuser
from pathlib import Path

import pytest
from tests.functional.test_pages import blocks
from tests.support.queues import write

from postcommit._cli.main import main
from postcommit._maildir.presence import PauseNote
from postcommit._maildir.presence import Wakeup
from postcommit._maildir.store import Store


QUEUE, PAUSED = "/var/spool/shop", "/var/spool/news"
NOW = 1795459800

GREYLISTED = b"X-Zope-Attempts: 3\nX-Zope-Reply: 450 4.2.0 Greylisted\n"
NO_USER = b"X-Zope-Attempts: 1\nX-Zope-Reply: 550 5.1.1 No such user\n"


def entry(recipients: str, subject: str, history: bytes = b"") -> bytes:
    envelope = f"X-Zope-From: shop@example.org\nX-Zope-To: {recipients}\n".encode()
    first = recipients.partition("@")[0]
    message = f"Message-Id: <11.{first}@shop>\nSubject: {subject}\n\nText.\n"
    return envelope + history + message.encode()


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A queue in the state that the page begins with, and a processor that lives."""
    monkeypatch.setattr(time, "time", lambda: NOW + 0.25)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        store = Store(str(tmp_path / "queue"))
        fill(store)
        wakeup = Wakeup(store.path)
        try:
            os.utime(f"{store.path}/.wakeup", (NOW - 4, NOW - 4))
            yield store.path
        finally:
            wakeup.close()
    time.tzset()


@pytest.fixture
def paused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A queue whose relay refuses the login; its processor is running."""
    store = Store(str(tmp_path / "paused"))
    for number in range(12):
        write(store, f"new/{NOW - 1860}.M{number:06d}P8697Q{number}.web1")
    wakeup, board = Wakeup(store.path), PauseNote(store.path)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: NOW - 1800)
            board.post("535 5.7.8 Error: authentication failed", 1930.25)
        os.utime(f"{store.path}/.wakeup", (NOW - 4, NOW - 4))
        yield store.path
    finally:
        board.clear()
        wakeup.close()


def fill(store: Store) -> None:
    name = f"{NOW - 2}.M500000P8697Q19.web1"
    write(store, f"new/{name}", entry("ann@example.org", "Your order"))
    for number, (age, due, to) in enumerate(
        ((7500, 1300, "bob@example.net, eve@example.net"), (300, 40, "dan@example.net"))
    ):
        name = f"{NOW - age}.M12500{number}P8697Q{number + 3}.web1"
        data = entry(to, "Your teapot", GREYLISTED)
        os.utime(write(store, f"cur/{name}:2,", data), (NOW + due, NOW + due))
    for folder in ("tmp", "new", "cur"):
        os.makedirs(f"{store.path}/.Failed/{folder}", 0o700)
    os.chmod(f"{store.path}/.Failed", 0o700)
    name = f"{NOW - 90000}.M770044P8012Q1.web1.R1"
    dead = write(
        store, f".Failed/new/{name}", entry("bbo@example.net", "Welcome", NO_USER)
    )
    os.utime(dead, (NOW - 89999, NOW - 89999))
    batch = store.batch()
    staged = store.stage(
        "shop@example.org",
        ("ann@example.org",),
        [b"Message-Id: <1@shop>\nSubject: Your order\n\nText.\n"],
    )
    batch.prepare([staged])
    batch._leader.release()  # type: ignore[attr-defined]
    path = next(store.in_doubt())
    os.rename(path, path.replace(staged.name, f"{NOW - 620}.M300301P8500Q7.web1"))


def sessions() -> list[tuple[str, str]]:
    """Return each command of the page, and what it prints."""
    found: list[tuple[str, str]] = []
    for block in blocks("operating.rst", "code-block:: console"):
        for session in block.strip("\n").split("$ ")[1:]:
            line, _, printed = session.partition("\n")
            found.append((line, printed))
    return found


def run(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a line of the shell's: commands, one after the other."""
    printed = ""
    with pytest.MonkeyPatch.context() as patch:
        for part in line.split(" | "):
            name, *arguments = shlex.split(part)
            assert name == "postcommit"
            patch.setattr("sys.stdin", io.StringIO(printed))
            main(arguments)
            said = capsys.readouterr()
            printed = said.out
    return said.out + said.err


def test_the_page_operating(
    queue: str, paused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    played = sessions()
    assert {line.split()[1] for line, _ in played} == {
        "status",
        "list",
        "show",
        "retry",
        "delete",
        "recover",
        "check",
        "hold",
        "release",
        "pause",
        "resume",
    }
    for line, printed in played:
        line = line.replace(QUEUE, queue).replace(PAUSED, paused)
        said = run(line, capsys).replace(queue, QUEUE)
        said = said.replace(f"by hand by {getuser()}:", "by hand by ann:")
        assert said.rstrip("\n") == printed.rstrip("\n"), line


def test_every_metric_and_key_is_on_the_page(
    paused: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2].joinpath("docs", "operating.rst").read_text()
    main(["status", "--prometheus", paused])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    main(["status", "--json", paused])
    main(["list", "--json", paused])
    for line in capsys.readouterr().out.splitlines()[:2]:
        told = json.loads(line)
        names += [*told, *(told.get("paused") or ())]
    assert len(names) > 20
    assert [name for name in names if f"``{name}``" not in page] == []
