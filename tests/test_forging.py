"""No text from outside forges a line of a log, or is obeyed by a terminal."""
from __future__ import annotations

import ast
import io
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postcommit._cli import logs
from postcommit._cli import main as cli
from postcommit._log import Log
from postcommit._log import one_line
from postcommit._log import printable
from postcommit._mail.report import DeliveryReport
from postcommit._mail.report import Reply
from postcommit._maildir.item import EntryState
from postcommit._maildir.mending import MaildirOperators
from postcommit._maildir.store import Store
from postcommit._processor import QueueProcessor
from postcommit._transaction.event import log_report
from postcommit.errors import RelayError
from postcommit.interfaces import Status
from postcommit.testing import RecordingMailer
from tests.support.queues import bury
from tests.support.queues import leave_in_doubt
from tests.support.queues import write
from tests.support.service import logging_restored
from tests.support.terminal import on_terminal


SOURCE = Path(__file__).parent.parent / "src" / "postcommit"

# A line that looks like one of ours, ESC, a bidi override, NEL, C1, a lone surrogate.
FORGED = "x\n2026-11-23T12:00:00.000+00:00 ERROR postcommit: forged"
EVIL = [FORGED, "\x1b[2J\x1b]0;x\x07", "\u202egnp.exe", "a\x85b\u2028c", "\x9b2J"]
EVIL.append("\udcff")


def is_clean(text: str) -> bool:
    """Tell whether each line is printable, and none is forged."""
    lines = text.split("\n")
    return all(map(str.isprintable, lines)) and not any(
        line.startswith("2026-11-23T12:00:00.000") for line in lines
    )


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    with logging_restored():
        yield


@given(st.text())
def test_printable_is_one_line_and_keeps_what_can_be_printed(text: str) -> None:
    told = printable(text)
    assert told.isprintable()
    assert told.encode() or not text
    assert printable(told) == told
    assert (told == text) == text.isprintable()
    assert len(printable(text, "?")) == len(text)
    assert one_line(text, 10).isprintable()
    assert len(one_line(text, 10)) <= 13


@given(st.lists(st.text() | st.integers() | st.floats() | st.binary()), st.text())
def test_arguments_of_our_logs_are_one_line(arguments: list[Any], text: str) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logger = logging.getLogger("postcommit.test_forging")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        log = Log(logger.name)
        log.error("%s %r" * len(arguments), *(a for a in arguments for _ in "12"))
        log.error("%s %r", ValueError(text), OSError(1, text, text))
    finally:
        logger.removeHandler(handler)
    assert stream.getvalue().count("\n") == 2
    assert all(map(str.isprintable, stream.getvalue().split("\n")))


def test_numbers_stay_numbers(caplog: pytest.LogCaptureFixture) -> None:
    Log("postcommit.test_forging").error("%d of %.1f, %5s", 3, 4.5, "x")
    assert caplog.messages == ["3 of 4.5,     x"]
    assert caplog.records[0].args == (3, 4.5, "x")


def loggers() -> Iterator[tuple[str, str]]:
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            name, _, value = ast.unparse(node).partition(" = ")
            if name in ("log", "log: logging.Logger"):
                yield str(path.relative_to(SOURCE)), value


def test_every_logger_that_gets_text_from_outside_is_ours() -> None:
    """The service has our own formatter; those for Pyramid and Zope no arguments."""
    plain = [name for name, value in loggers() if not value.startswith("Log(")]
    service = ["_cli/receive.py", "_cli/run.py", "_cli/service.py"]
    assert sorted(plain) == [*service, "mailhost/__init__.py", "pyramid.py"]


# The log of the service


@pytest.mark.parametrize("text", EVIL)
def test_the_text_log(text: str, capsys: Any) -> None:
    logs.set_up("debug", "text")
    recipient = f"{text}@x.org"
    reply = Reply(550, "5.1.1", text)
    log_report(DeliveryReport.alike(text, [recipient], Status.REJECTED, reply))
    failure = RelayError(text)
    log_report(DeliveryReport(text, (recipient,), relay_failure=failure))
    library = logging.getLogger("another.library")
    library.error("%s", text)
    library.error(text)
    try:
        raise ValueError(text) from KeyError(text)
    except ValueError:
        library.exception("it failed: %s", text, stack_info=True)
        Log("postcommit.x").exception("it failed: %s", text)
    err = capsys.readouterr().err
    assert is_clean(err)
    heads = [line for line in err.splitlines() if not line.startswith("  ")]
    assert all(re.match(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00 [A-Z]+ \w", h) for h in heads)
    assert len(heads) == 6


# What commands print


@pytest.fixture(params=[text.replace("/", "|") for text in EVIL])
def queue(request: Any, tmp_path: Path) -> str:
    """A queue in which the text is wherever it can be."""
    text = request.param
    raw = text.encode("utf-8", "surrogateescape")
    store = Store(str(tmp_path / f"queue {text}".replace("\n", "")))
    subject = b"Subject: " + raw.replace(b"\n", b" ") + b"\n\nText.\n"
    envelope = b"X-Zope-From: s@x.org\nX-Zope-To: a@x.org\n"
    history = b"X-Zope-Attempts: 1\nX-Zope-Reply: " + raw.replace(b"\n", b" ") + b"\n"
    write(store, f"new/1700000000.M1P1Q1.{text}", envelope + subject)
    write(store, f"new/1700000000.M2P1Q1.{text}", raw)
    data = envelope + history + subject
    later = write(store, f"cur/1700000000.M3P1Q1.{text}:2,", data)
    os.utime(later, (time.time() + 9e9,) * 2)
    bury(store)
    write(store, f".Failed/new/1700000000.M4.{text}", b"X-Zope-Unreadable: " + raw)
    write(store, f"new/.rejected-1700000000.M5.{text}", envelope + subject)
    [name] = leave_in_doubt(store, 1)
    path = next(store.in_doubt())
    os.rename(path, path.replace(name, f"1700000000.M6.{text}"))
    os.utime(write(store, f"tmp/1700000000.M7.{text}", raw), (1e9, 1e9))
    return store.path


LOOKING = [
    *(["status", *form] for form in ([], ["--json"], ["--prometheus"])),
    *(["list", *form] for form in ([], ["--json"], ["--failed"], ["--in-doubt"])),
    *(["check", *form] for form in ([], ["--json"])),
]


def test_commands_on_a_pipe(queue: str, capsys: Any) -> None:
    for words in LOOKING:
        assert cli.main([*words, queue]) in (0, 1)
    for item in MaildirOperators(queue).items(EntryState):
        for form in ([], ["--json"]):
            assert cli.main(["show", *form, queue, item.id]) == 0
    for words in (
        ["show", queue, "no\x1b[2J"],
        ["retry", queue, "no\nsuch\u202e"],
        ["retry", f"{queue}\x1b\nx", "ALL"],
        ["retry", queue, "ALL"],
        ["recover", queue, "--send"],
        ["delete", queue, "ALL", "--failed", "--yes"],
        ["delete", queue, "ALL", "--yes"],
    ):
        assert cli.main(words) in (0, 1, 2)
    out, err = capsys.readouterr()
    assert is_clean(out)
    assert is_clean(err)


@pytest.mark.parametrize("debug", [[], ["--debug"]])
def test_errors_of_commands(debug: list[str], queue: str, capsys: Any) -> None:
    for words in (
        ["list", f"{queue}\n{FORGED}"],
        ["flush", queue, "--config", f"{queue}.ini"],
        ["status", f"{queue}\x1b"],
    ):
        assert cli.main([*debug, *words]) == 2
    for words in (["list", queue, FORGED], ["list", queue, f"--{FORGED}"]):
        with pytest.raises(SystemExit):
            cli.main([*debug, *words])
    out, err = capsys.readouterr()
    assert is_clean(out + err)
    if not debug:
        assert err.count("\n") == 5


def test_what_a_processor_logs(queue: str, capsys: Any) -> None:
    logs.set_up("debug", "text")
    QueueProcessor(queue, RecordingMailer()).flush()
    err = capsys.readouterr().err
    assert "now a dead letter" in err
    assert is_clean(err)


def test_commands_on_a_terminal(queue: str) -> None:
    for words in (["list"], ["status"], ["check"]):
        _, printed = on_terminal(*words, queue)
        # Our own colours are all that a terminal obeys.
        plain = re.sub(r"\x1b\[\d+m", "", printed).replace("\r\n", "\n")
        assert is_clean(plain)
