"""``postcommit demo``: tells the story, checks it, and leaves nothing behind."""
from __future__ import annotations

import functools
import inspect
import io
import logging
import os
import pty
import re
import signal
import smtplib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import zope.event

from postcommit._cli.demo import story
from postcommit._cli.demo.stage import LOGGERS
from postcommit._cli.demo.stage import Events
from postcommit._cli.demo.stage import TimelineLog
from postcommit._cli.demo.timeline import Timeline
from postcommit._cli.main import main
from postcommit.testing.relay import EmbeddedRelay


DEMO = [
    sys.executable,
    "-c",
    "import sys; from postcommit._cli.main import main; sys.exit(main(['demo']))",
]
LIMIT = 15.0


class Lenient(EmbeddedRelay):
    """Refuses nobody, whatever it is told."""

    def refuse(self, recipient, reply, *, times):
        pass


class Confused(EmbeddedRelay):
    """Fails at every message."""

    async def handle_DATA(self, server, session, envelope):
        raise LookupError("where was I?")


class Gone(EmbeddedRelay):
    """Goes away, and never comes back."""

    def up(self):
        if not self.port:
            super().up()


def play(make_relay=EmbeddedRelay, seconds=story.SECONDS):
    """Return how the story ends, and its text."""
    stream = io.StringIO()
    ended = story.tell(stream, make_relay, seconds)
    return ended, stream.getvalue()


def environment(folder, **more):
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    return {**kept, "TMPDIR": str(folder), "TERM": "xterm", **more}


def wait_for(condition):
    until = time.monotonic() + 5
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


@pytest.fixture
def nothing_left(tmp_path, monkeypatch):
    """Whatever the test does leaves no file, thread, socket, or subscriber."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loggers = [logging.getLogger(name) for name in LOGGERS]

    def state():
        return (
            os.listdir(tmp_path),
            list(zope.event.subscribers),
            [(log.level, log.propagate, log.handlers[:]) for log in loggers],
        )

    before = state()
    threads, files = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    yield
    wait_for(lambda: state() == before)
    # What other tests have left may well end meanwhile.
    wait_for(lambda: threads >= set(threading.enumerate()))
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= files)


# The story


@pytest.mark.usefixtures("nothing_left")
def test_the_story_ends_well():
    ended, text = play()
    assert ended
    assert "All 16 expectations were met" in text
    assert "FAILED" not in text
    for told in [
        "takes 'Your teapot' for ann@example.org",
        "MailSentEvent for ann@example.org",
        "abort: the samovar is sold out",
        "MailRejectedEvent for bob@example.org: 550 5.1.1 No such user",
        "MailDeferredEvent for carol@example.org: 450 4.2.0 Greylisted",
        "the queue pauses: ",
        "the queue goes on",
        "The queue: empty",
        "  bob@example.org  550 5.1.1 No such user",
    ]:
        assert told in text


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize(
    ("make_relay", "seconds", "told"),
    [
        (Lenient, 1, "Bob's is a dead letter: expected [('bob@example.org', '550"),
        (Confused, 1, "the mail has arrived: expected [('Your teapot', 'ann@example."),
        (Gone, 3, "the queue goes on by itself: expected [('Your cup', 'ann@exampl"),
    ],
)
def test_a_story_that_goes_wrong_says_where(make_relay, seconds, told):
    ended, text = play(make_relay, seconds)
    assert not ended
    assert "expectations failed" in text
    joined = " ".join(text.split())
    assert f"FAILED {told}" in joined
    assert ", saw [" in joined


def test_an_error_of_the_relay_is_told():
    _, text = play(Confused, seconds=0.5)
    assert "where was I?" in text
    assert "Traceback" not in text


# The command


def test_status_0_when_all_went_well(monkeypatch, capsys):
    monkeypatch.setattr(story, "tell", lambda stream: print("told", file=stream) or 1)
    assert main(["demo"]) == 0
    assert capsys.readouterr() == ("told\n", "")


def test_status_1_when_something_went_wrong(monkeypatch, capsys):
    broken = functools.partial(story.tell, make_relay=Lenient, seconds=0.5)
    monkeypatch.setattr(story, "tell", broken)
    assert main(["demo"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_without_aiosmtpd(monkeypatch, capsys):
    for name in list(sys.modules):
        if (
            name.startswith(("postcommit._cli.demo.", "postcommit.testing.relay"))
            or name.partition(".")[0] == "aiosmtpd"
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiosmtpd", None)
    assert main(["demo"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    told = "aiosmtpd is missing; install it: pip install 'postcommit[demo]'"
    assert err == f"postcommit: {told}\n"


def test_another_module_that_is_missing_is_not_taken_for_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "postcommit._cli.demo.story", None)
    assert main(["demo"]) == 2
    assert "postcommit._cli.demo.story" in capsys.readouterr().err


def begun(folder):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(DEMO, env=environment(folder), **pipes)


def into_a_pipe(folder):
    """Return the exit status, and what it prints."""
    with begun(folder) as process:
        out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, err


def on_a_terminal(folder, **more):
    """Return the exit status, and what the terminal shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(DEMO, stdout=theirs, env=environment(folder, **more)) as p:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # how a terminal ends
        status = p.wait(LIMIT)
    os.close(ours)
    return status, shown


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The results of three plays, which wait side by side."""
    folders = [tmp_path_factory.mktemp("demo") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        pipe = pool.submit(into_a_pipe, folders[0])
        plain = pool.submit(on_a_terminal, folders[1])
        uncoloured = pool.submit(on_a_terminal, folders[2], NO_COLOR="1")
    return folders, pipe.result(), plain.result(), uncoloured.result()


def test_in_a_process(played):
    folders, (status, out, err), *_ = played
    assert (status, err) == (0, "")
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert [os.listdir(folder) for folder in folders] == [[], [], []]


@pytest.mark.parametrize("chapter", ["1.", "3.", "4."])
def test_interrupted(chapter, tmp_path):
    with begun(tmp_path) as process:
        for line in process.stdout:
            if line.startswith(chapter):
                break
        assert os.listdir(tmp_path) != []
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LIMIT)
    assert (process.returncode, err) == (130, "postcommit: interrupted\n")
    assert os.listdir(tmp_path) == []


def test_a_reader_that_goes_away(tmp_path):
    with begun(tmp_path) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
        assert (process.wait(LIMIT), err) == (1, "")
    assert os.listdir(tmp_path) == []


def test_colours_are_for_terminals_whose_user_wants_them(played):
    *_, plain, uncoloured = played
    assert (plain[0], uncoloured[0]) == (0, 0)
    assert b"\x1b[" in plain[1]
    assert b"All 16 expectations were met" in uncoloured[1]
    assert b"\x1b[" not in uncoloured[1]


def test_one_that_waits_in_vain_ends_in_time():
    default = inspect.signature(story.tell).parameters["seconds"].default
    assert default < LIMIT
    # The time is for all together that is waited for.
    timeline = Timeline(io.StringIO(), seconds=0.5)
    for _ in range(100):
        timeline.wait_until(lambda: False)
    assert 0.5 <= timeline.elapsed < LIMIT


# The parts


def test_a_relay_that_cannot_listen_leaves_no_thread():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        relay = EmbeddedRelay(print)
        relay.port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            relay.__enter__()
    assert not relay._thread.is_alive()


def test_other_events_are_none_of_ours():
    told = []
    events = Events(told.append)
    events(object())
    assert (told, events.seen) == ([], [])


@pytest.mark.parametrize(
    ("name", "level", "told"),
    [
        ("postcommit.event", logging.ERROR, ""),
        ("postcommit.drain.runner", logging.INFO, ""),
        ("postcommit.drain.runner", logging.ERROR, "log      something is wrong"),
    ],
)
def test_the_log_is_told_where_events_do_not(name, level, told):
    stream = io.StringIO()
    handler = TimelineLog(Timeline(stream, seconds=1))
    record = logging.LogRecord(name, level, "", 0, "something is wrong", (), None)
    handler.emit(record)
    assert stream.getvalue().partition(" s  ")[2].strip() == told


def test_the_thread_of_the_timeline_prints_for_all():
    stream = io.StringIO()
    timeline = Timeline(stream, seconds=1)
    thread = threading.Thread(target=timeline.note, args=("relay", "is there"))
    thread.start()
    thread.join()
    assert stream.getvalue() == ""
    timeline.wait_until(lambda: True)
    assert re.fullmatch(r" +\d+\.\d\d s  relay    is there\n", stream.getvalue())


def test_a_note_without_words_is_a_line():
    stream = io.StringIO()
    Timeline(stream, seconds=1).note("relay", "")
    assert re.fullmatch(r" +\d+\.\d\d s  relay\s+", stream.getvalue())


def test_the_relay_alone_keeps_no_archive():
    with EmbeddedRelay(lambda line: None) as relay:
        with smtplib.SMTP(relay.host, relay.port) as connection:
            connection.sendmail("s@x.org", ["a@x.org"], "Subject: Alone\n\ntext\n")
        assert [letter.subject for letter in relay.mailbox] == ["Alone"]
