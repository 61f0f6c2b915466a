"""`SendmailMailer`, with programs that are scripts."""
from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from zope.interface.verify import verifyClass
from zope.interface.verify import verifyObject

from postcommit._mail.message import compose
from postcommit._mailers.foreign import pipeline_of
from postcommit._mailers.sendmail import SendmailMailer
from postcommit.errors import AddressError
from postcommit.errors import OptionError
from postcommit.errors import RelayError
from postcommit.interfaces import IMailSentEvent
from postcommit.interfaces import ISendmailMailer
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import C
from tests.smtp.messages import told


@pytest.fixture
def sendmail(tmp_path):
    """Make a mailer whose program does `body` after it has written down all."""

    def make(body: str = "", **options) -> SendmailMailer:
        command = tmp_path / "sendmail"
        command.write_text(
            f"#!{sys.executable} -IS\n"
            "import os, sys, signal\n"
            f"os.chdir({str(tmp_path)!r})\n"
            "open('arguments', 'wb').write(b'\\0'.join(map(os.fsencode, sys.argv)))\n"
            "open('message', 'wb').write(sys.stdin.buffer.read())\n"
            f"{body}\n"
        )
        command.chmod(0o700)
        events = []
        mailer = SendmailMailer(str(command), notify=events.append, **options)
        mailer.events = events
        return mailer

    return make


def test_keeps_the_contract():
    verifyClass(ISendmailMailer, SendmailMailer)
    verifyObject(ISendmailMailer, SendmailMailer())
    assert repr(SendmailMailer()) == "<SendmailMailer /usr/sbin/sendmail>"


@pytest.mark.parametrize("options", [{"command": ""}, {"timeout": 0}])
def test_options_that_can_never_work(options):
    with pytest.raises(OptionError):
        SendmailMailer(**options)


def test_sends(sendmail, tmp_path):
    mailer = sendmail()
    report = mailer.send(SENDER, [B, C], MESSAGE + b".\r\nx\r")
    assert told(report) == ["sent", "sent"]
    assert report.message_id == "1@example.org"
    _, *arguments = (tmp_path / "arguments").read_text().split("\0")
    assert arguments == ["-i", "-f", SENDER, "--", B, C]
    expected = MESSAGE.replace(b"\r\n", b"\n") + b".\nx\n"
    assert (tmp_path / "message").read_bytes() == expected
    [event] = mailer.events
    assert IMailSentEvent.providedBy(event)


@pytest.mark.parametrize(
    ("sender", "recipient", "expected"),
    [
        ("", B, ["<>", "--", B]),
        ("-oQ/tmp@example.org", "-x@example.org", None),
        ("a@b\u00fccher.example", B, ["a@xn--bcher-kva.example", "--", B]),
        (SENDER, "\u00fc@example.org", None),
    ],
)
def test_addresses(sendmail, tmp_path, sender, recipient, expected):
    assert told(sendmail().send(sender, recipient, MESSAGE)) == ["sent"]
    arguments = (tmp_path / "arguments").read_bytes().decode().split("\0")
    assert arguments[3:] == (expected or [sender, "--", recipient])


def test_addresses_that_can_never_work(sendmail, tmp_path):
    with pytest.raises(AddressError):
        sendmail().send(SENDER, "b\n@example.org", MESSAGE)
    assert not (tmp_path / "arguments").exists()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (os.EX_TEMPFAIL, "deferred"),
        (os.EX_UNAVAILABLE, "deferred"),
        (os.EX_SOFTWARE, "deferred"),
        (os.EX_USAGE, "deferred"),
        (1, "deferred"),
        (os.EX_NOUSER, "rejected"),
        (os.EX_NOHOST, "rejected"),
        (os.EX_DATAERR, "rejected"),
    ],
)
def test_exit_codes(sendmail, code, status):
    mailer = sendmail(f"sys.exit(print('why', file=sys.stderr) or {code})")
    report = mailer.send(SENDER, [B, C], MESSAGE)
    assert told(report) == [status, status]
    assert f"exited with {code}: why" in str(report.outcomes[0].reply)


@pytest.mark.parametrize("code", [os.EX_CONFIG, os.EX_NOPERM, os.EX_OSFILE])
def test_a_broken_mail_system(sendmail, code):
    report = sendmail(f"sys.exit({code})").send(SENDER, B, MESSAGE)
    assert isinstance(report.relay_failure, RelayError)
    assert f"exited with {code}" in str(report.relay_failure)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed(sendmail, number):
    report = sendmail(f"os.kill(0, {int(number)})").send(SENDER, B, MESSAGE)
    assert told(report) == ["uncertain"]
    assert number.name in str(report.uncertain[0].reply)


def test_killed_by_a_signal_without_a_name(sendmail):
    number = signal.SIGRTMIN + 1
    report = sendmail(f"os.kill(0, {number})").send(SENDER, B, MESSAGE)
    assert told(report) == ["uncertain"]
    assert f"killed by signal {number}" in str(report.uncertain[0].reply)


def test_no_such_program(tmp_path):
    mailer = SendmailMailer(str(tmp_path / "missing"), notify=[].append)
    report = mailer.send(SENDER, B, MESSAGE)
    assert "missing cannot be run" in str(report.relay_failure)


def test_no_program(tmp_path):
    mailer = SendmailMailer(str(tmp_path), notify=[].append)
    assert told(mailer.send(SENDER, B, MESSAGE)) == "relay"


MANY = [f"{number}@example.org" for number in range(7)]

# The body of a program that notes the recipients of each call, and fails at the second.
NOTE = """
with open('calls', 'a') as calls:
    print(*sys.argv[5:], file=calls)
if len(open('calls').readlines()) == 2:
    {}
"""


def calls(tmp_path):
    return [line.split() for line in (tmp_path / "calls").read_text().splitlines()]


def test_one_call_for_some_recipients(sendmail, tmp_path):
    mailer = sendmail(NOTE.format("pass"), recipients_per_transaction=3)
    report = mailer.send(SENDER, MANY, MESSAGE)
    assert told(report) == ["sent"] * 7
    assert calls(tmp_path) == [MANY[:3], MANY[3:6], MANY[6:]]
    [event] = mailer.events
    assert event.recipients == tuple(MANY)


def test_each_call_has_its_own_outcome(sendmail, tmp_path):
    mailer = sendmail(NOTE.format("sys.exit(67)"), recipients_per_transaction=3)
    report = mailer.send(SENDER, MANY, MESSAGE)
    assert told(report) == ["sent"] * 3 + ["rejected"] * 3 + ["sent"]


def test_killed_in_the_second_call(sendmail, tmp_path):
    body = NOTE.format("os.kill(0, signal.SIGKILL)")
    report = sendmail(body, recipients_per_transaction=3).send(SENDER, MANY, MESSAGE)
    assert told(report) == ["sent"] * 3 + ["uncertain"] * 3 + ["sent"]


def test_the_mail_system_breaks_at_the_second_call(sendmail, tmp_path):
    """The outcomes of the first call stay. The others are undecided."""
    body = NOTE.format("sys.exit(78)")
    report = sendmail(body, recipients_per_transaction=3).send(SENDER, MANY, MESSAGE)
    assert [outcome.recipient for outcome in report.sent] == MANY[:3]
    assert len(report.outcomes) == 3
    assert "exited with 78" in str(report.relay_failure)
    assert report.undecided == tuple(MANY[3:])
    assert calls(tmp_path) == [MANY[:3], MANY[3:6]]


def test_after_a_call_that_took_too_long_the_others_are_deferred(sendmail, tmp_path):
    body = NOTE.format("signal.pause()")
    mailer = sendmail(body, recipients_per_transaction=3, timeout=2)
    report = mailer.send(SENDER, MANY, MESSAGE)
    assert told(report) == ["sent"] * 3 + ["uncertain"] * 3 + ["deferred"]
    assert "Not tried, because" in report.deferred[0].reply.text
    assert calls(tmp_path) == [MANY[:3], MANY[3:6]]


def test_an_interrupt_in_the_second_call_loses_no_outcome(sendmail, tmp_path):
    """Otherwise the recipients of the first call would get the message again."""

    class Interrupt(BaseException):
        pass

    def interrupt(number, frame):
        raise Interrupt

    body = NOTE.format("os.kill(os.getppid(), signal.SIGUSR1)\n    signal.pause()")
    mailer = sendmail(body, recipients_per_transaction=3)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        pipeline = pipeline_of(mailer)
        with pytest.raises(Interrupt), pipeline:
            pipeline.offer(compose(SENDER, MANY, MESSAGE), key=1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    [(key, report)] = pipeline.completed()
    assert key == 1
    assert told(report) == ["sent"] * 3 + ["uncertain"] * 3 + ["deferred"]
    assert calls(tmp_path) == [MANY[:3], MANY[3:6]]


def test_after_an_interrupt_in_the_first_call_it_may_have_been_sent(sendmail):
    class Interrupt(BaseException):
        pass

    def interrupt(number, frame):
        raise Interrupt

    body = "import os, signal\nos.kill(os.getppid(), signal.SIGUSR1)\nsignal.pause()"
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        pipeline = pipeline_of(sendmail(body, recipients_per_transaction=3))
        with pytest.raises(Interrupt), pipeline:
            pipeline.offer(compose(SENDER, MANY, MESSAGE), key=1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    [(_, report)] = pipeline.completed()
    assert told(report) == ["uncertain"] * 3 + ["deferred"] * 4


def test_more_recipients_than_fit_into_a_command_line(sendmail, tmp_path):
    domain = ".".join(["x" * 60] * 3)
    recipients = [f"{'x' * 50}{i}@{domain}" for i in range(12_000)]
    mailer = sendmail(NOTE.format("pass"), recipients_per_transaction=20_000)
    report = mailer.send(SENDER, recipients, MESSAGE)
    assert set(told(report)) == {"sent"}
    made = calls(tmp_path)
    assert 1 < len(made) < 10
    assert [recipient for call in made for recipient in call] == recipients


def test_an_environment_that_leaves_no_room(sendmail, monkeypatch):
    """No number of recipients can help, and none of them is at fault."""
    for number in range(30):
        monkeypatch.setenv(f"LARGE{number}", "x" * 100_000)
    report = sendmail().send(SENDER, MANY[:2], MESSAGE)
    assert "Argument list too long" in str(report.relay_failure)
    assert report.outcomes == ()


def test_takes_too_long(sendmail, tmp_path):
    """It is killed, and its children with it."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    body = (
        "fifo = os.open('fifo', os.O_WRONLY)\nos.fork()\n"
        "os.write(fifo, b'x')\nsignal.pause()"
    )
    report = sendmail(body, timeout=2).send(SENDER, B, MESSAGE)
    assert told(report) == ["uncertain"]
    assert "took longer than 2 s" in str(report.uncertain[0].reply)
    os.set_blocking(reader, True)
    with open(reader, "rb") as fifo:
        # its end comes when nobody is left who could write
        assert fifo.read() == b"xx"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_program_that_becomes_another_user_is_not_waited_for():
    """As Exim, which is setuid root. It cannot be killed, and may send the message."""
    # Not below `tmp_path`, which only root may enter.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        become = shutil.copy(shutil.which("setpriv"), folder)
        os.chmod(become, 0o4755)
        pid = Path(folder, "pid")
        pid.touch()
        pid.chmod(0o666)
        command = Path(folder, "sendmail")
        command.write_text(
            f"#!/bin/sh\ncat >/dev/null\necho $$ >{pid}\n"
            f"exec {become} --reuid=0 --clear-groups sleep 1000\n"
        )
        command.chmod(0o755)
        # Long enough for the program to become root on a slow machine.
        mailer = SendmailMailer(str(command), timeout=3)
        try:
            said = _as_nobody(lambda: told(mailer.send(SENDER, B, MESSAGE)))
        finally:
            # On a very slow machine, it was killed before it became root.
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGKILL)
    assert said == ["uncertain"]


def _as_nobody(function):
    """Return what `function` returns in a child that runs as nobody."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writer, json.dumps(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return json.loads(said)


def test_does_not_read(sendmail):
    """The message is larger than a pipe holds."""
    mailer = sendmail(timeout=0.5)
    command = Path(mailer.command)
    command.write_text(f"#!{sys.executable} -IS\nimport signal\nsignal.pause()\n")
    report = mailer.send(SENDER, B, MESSAGE + b"x\r\n" * 100_000)
    assert told(report) == ["uncertain"]


def test_leaves_a_child_behind(sendmail):
    """That is not waited for; delivery in the background does so."""
    body = "if not os.fork():\n    signal.alarm(30)\n    signal.pause()"
    assert told(sendmail(body, timeout=20).send(SENDER, B, MESSAGE)) == ["sent"]
