"""On the wire: CRLF, stuffed dots, and no way to smuggle a second message."""
from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import HealthCheck
from hypothesis import example
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies

from postcommit._smtp.connection import _BLOCK
from postcommit._smtp.dialogue import END_OF_DATA
from postcommit._smtp.dialogue import Account
from postcommit._smtp.dialogue import complete
from postcommit._smtp.mailer import SMTPMailer
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import told
from tests.support.mailers import Taken
from tests.support.mailers import send_all
from tests.support.smtpd import LENIENT_END
from tests.support.smtpd import ScriptedRelay


HEADER = b"Message-Id: <1@example.org>\r\nDate: x\r\n\r\n"

# All there is of line ends and dots: up to five of them in a row.
PIECES = [b"\r", b"\n", b"."]
SEQUENCES = [
    b"".join(pieces)
    for length in range(1, 6)
    for pieces in itertools.product(PIECES, repeat=length)
]


def expected(message):
    """What has to arrive: every line ended by CRLF, nothing else changed."""
    data = re.sub(rb"\r\n|\r|\n", b"\r\n", message)
    return data if data.endswith(b"\r\n") else data + b"\r\n"


@pytest.fixture(scope="module", params=["strict", "lenient"])
def wired(request):
    options = {"end_of_data": LENIENT_END} if request.param == "lenient" else {}
    with ScriptedRelay(**options) as relay:
        mailer = SMTPMailer("127.0.0.1", relay.port, timeout=60)
        yield relay, mailer
        mailer.close()
        assert relay.violations == []


def stuffed(message):
    account = Account(Taken(SENDER, (B,), message))
    account.fit({"8BITMIME": ""})
    return account.stuffed + END_OF_DATA


def deliver(wired, messages):
    relay, mailer = wired
    relay.messages.clear()
    batch = [(SENDER, [B], message) for message in messages]
    reports = [told(report) for report in send_all(mailer, batch)]
    assert reports == [["sent"]] * len(messages)
    return [message.data for message in relay.messages]


def test_every_sequence_in_the_middle(wired):
    messages = [HEADER + b"x" + s + b"MAIL FROM:<evil@x>\r\n" for s in SEQUENCES]
    assert deliver(wired, messages) == [expected(m) for m in messages]


def test_every_sequence_at_the_end(wired):
    messages = [HEADER + b"x" + s for s in SEQUENCES]
    assert deliver(wired, messages) == [expected(m) for m in messages]


def test_every_sequence_at_the_beginning(wired):
    messages = [s + b"x\r\n" for s in SEQUENCES]
    assert deliver(wired, messages) == [expected(m) for m in messages]


@pytest.mark.parametrize("block", [_BLOCK, 1 << 17])
@pytest.mark.parametrize(
    "sequence", [b"\n.\r\n", b"\r\n.\n", b"\r.\r\n", b"\r\n.\r", b"\r\n.\r\n", b"\r.\r"]
)
def test_at_the_edges_of_the_send_buffer(wired, block, sequence):
    messages = [
        HEADER
        + b"x" * (block + offset - len(HEADER))
        + sequence
        + b"MAIL FROM:<evil@x>\r\n"
        for offset in range(-len(sequence) - 2, 3)
    ]
    assert deliver(wired, messages) == [expected(m) for m in messages]


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)
@given(
    strategies.lists(
        strategies.one_of(
            strategies.binary(max_size=40),
            strategies.lists(strategies.sampled_from([*PIECES, b"x"])).map(b"".join),
        ),
        min_size=1,
        max_size=5,
    )
)
@example([b""])
@example([b"."])
@example([b"\r\n.\r\n", b"."])
def test_arbitrary_bytes(wired, bodies):
    messages = [HEADER + body for body in bodies]
    assert deliver(wired, messages) == [expected(m) for m in messages]


@given(
    strategies.one_of(
        strategies.binary(max_size=40),
        strategies.lists(strategies.sampled_from([*PIECES, b"x"])).map(b"".join),
    )
)
@example(b"x\n.\r\n")
def test_stuffed(message):
    """Whatever made the message, each line ends with CRLF, and it ends only once."""
    wire = stuffed(complete(message))
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", wire)
    assert wire.endswith(b".\r\n")
    # there is one end of data: the last one
    assert (b"\r\n" + wire).find(b"\r\n.\r\n") == len(wire) - 3
    lines = wire[:-3].split(b"\r\n")
    plain = b"\r\n".join(line.removeprefix(b".") for line in lines)
    assert plain == complete(message) == (expected(message) if message else b"")


def test_an_empty_message_is_a_lone_dot():
    assert stuffed(b"") == b".\r\n"


def test_a_re_encoder_that_makes_other_line_ends(wired, monkeypatch):
    """What it returns goes the same way to the wire as any other message."""
    relay, _ = wired
    made = HEADER + b"x\n.\nMAIL FROM:<evil@x>\r.\ry"
    monkeypatch.setattr("postcommit._smtp.dialogue.to_seven_bits", lambda message: made)
    monkeypatch.setattr(relay, "extensions", ["SIZE", "PIPELINING"])
    # Mailers with equal options share their connections.
    with_another_session = SMTPMailer("127.0.0.1", relay.port, timeout=6)
    relay.messages.clear()
    report = with_another_session.send(SENDER, B, HEADER + b"\xff")
    with_another_session.close()
    assert told(report) == ["sent"]
    [message] = relay.messages
    assert message.data == expected(made)
    assert message.parameters == {"SIZE": str(len(expected(made)))}
