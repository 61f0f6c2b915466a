"""A relay that is slow, silent or verbose has its time, and no more."""
from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait

import pytest

from postcommit._mail.report import Stage
from postcommit._smtp.connection import TIMEOUT_OF
from postcommit._smtp.connection import Connection
from postcommit._smtp.connection import Timeouts
from postcommit._smtp.mailer import SMTPMailer
from postcommit.interfaces import ISMTPMailer
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import message
from tests.smtp.messages import side_by_side
from tests.smtp.messages import told


STAGES = [
    ("CONNECT", "relay"),
    ("EHLO", "relay"),
    ("MAIL", "relay"),
    ("RCPT", "relay"),
    ("DATA", "relay"),
    # Here the code is enough, because the relay would get the message again.
    ("END", ["sent"]),
]


@pytest.mark.parametrize("trickle", [b"250 " + b"x" * 10_000, b"250-x\r\n"])
def test_a_byte_at_a_time(start, connect, trickle):
    def read(stage, expected):
        relay = start()
        relay.trickle(stage, trickle, every=0.005)
        mailer = connect(relay, timeout=1)
        return stage, told(mailer.send(SENDER, B, MESSAGE))

    begin = time.monotonic()
    assert side_by_side(read, STAGES) == STAGES
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(("stage", "expected"), STAGES)
@pytest.mark.parametrize("end", [b"\r\n", b""])
@pytest.mark.parametrize("piece", [b"x", b"250-x\r\n"])
def test_a_reply_of_a_megabyte(relay, connect, stage, expected, end, piece):
    flood = b"250-" + piece * ((1 << 20) // len(piece)) + end
    relay.reply(stage, flood)
    mailer = connect(relay)
    begin = time.monotonic()
    report = mailer.send(SENDER, B, MESSAGE)
    assert told(report) == expected
    assert time.monotonic() - begin < 10


def test_a_reply_without_an_end_is_not_read_to_its_end(relay, connect):
    sent = []

    def flood(dialogue, usual):
        dialogue.socket.sendall(b"250 ")
        while True:
            dialogue.socket.sendall(b"x" * (1 << 16))
            sent.append(1 << 16)

    relay.on("MAIL", flood)
    assert told(connect(relay).send(SENDER, B, MESSAGE)) == "relay"
    relay.wait_until(lambda: not relay.open)
    assert sum(sent) < 32 << 20  # what the buffers of both sockets hold


def test_the_final_reply_may_take_longer(relay, connect):
    """What is cut off there is sent again, so `timeout` leaves it alone."""
    mailer = connect(relay, timeout=0.3, final_timeout=10)

    def filter_it(dialogue, usual):
        relay.stopping.wait(0.6)
        return dialogue.say(b"250 2.0.0 Taken\r\n")

    relay.on("END", filter_it)
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["sent"]


def test_the_final_reply_has_its_own_time(relay, connect):
    hold = relay.hold("END")
    mailer = connect(relay, timeout=10, final_timeout=0.2)
    begin = time.monotonic()
    assert told(mailer.send(SENDER, B, MESSAGE)) == ["uncertain"]
    assert time.monotonic() - begin < 5
    hold.release()


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_the_time_for_the_final_reply_is_an_option(timeout):
    timeouts = SMTPMailer(timeout=timeout, final_timeout=7.0).relay.timeouts
    assert timeouts.end == 7.0


def test_as_the_rfc_has_them():
    timeouts = SMTPMailer().relay.timeouts
    assert timeouts.greeting == timeouts.command == 300
    assert (timeouts.data, timeouts.block, timeouts.end) == (120, 180, 600)
    assert timeouts.connect == ISMTPMailer["connect_timeout"].default


@pytest.mark.parametrize(("timeout", "leave"), [(0.5, 0.5), (20.0, 1.0)])
def test_one_for_all(timeout, leave):
    timeouts = SMTPMailer(connect_timeout=7.0, timeout=timeout).relay.timeouts
    assert timeouts == Timeouts(7.0, *[timeout] * 4, 600.0, leave)


def test_each_stage_has_its_own():
    timeouts = SMTPMailer().relay.timeouts
    seconds = {stage: getattr(timeouts, name) for stage, name in TIMEOUT_OF.items()}
    assert set(seconds) == set(Stage)
    assert seconds[Stage.END] == 600
    assert seconds[Stage.DATA] == 120


def test_a_small_message_has_its_own_time_not_that_of_the_last_reply():
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    connection = Connection(ours, SMTPMailer(timeout=0.1, final_timeout=0.1).relay)
    with pytest.raises(TimeoutError):
        connection.read(Stage.END)
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        written = pool.submit(connection.write, b"x" * 50_000, 60)
        # Nobody reads until the shorter time is over.
        assert not wait([written], 0.5).done
        data = b""
        while len(data) < 50_000:
            data += theirs.recv(1 << 16)
        written.result(60)
    assert connection.sent == 50_000


def test_a_large_message_to_a_slow_reader(start, connect):
    """It takes longer than the time-out, which is for a part of the message."""
    relay = start(without=["SIZE"])

    def read_slowly(dialogue, usual):
        dialogue.say(b"354 Go on\r\n")
        dialogue.flush()
        read = dialogue.socket.recv
        end = b""
        while end != b"\r\n.\r\n":
            relay.stopping.wait(0.03)
            end = (end + read(1 << 17))[-5:]
        dialogue.say(b"250 2.0.0 Taken\r\n")
        return 250

    relay.on("DATA", read_slowly)
    big = message(1) + (b"x" * 70 + b"\r\n") * 180_000
    assert told(connect(relay, timeout=2).send(SENDER, B, big)) == ["sent"]


def test_no_time_is_left_for_a_reply(relay, connect):
    """As after a part of a reply that came at the last moment."""
    pool = connect(relay)._pool
    connection = pool.checkout()
    with pytest.raises(TimeoutError, match="timed out"):
        connection.read(timeout=0)
    pool.discard(connection)
    relay.wait_until(lambda: not relay.open)
