"""Replies: bytes to objects."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies

from postcommit._mail.report import Reply
from postcommit._smtp.connection import MAX_REPLY
from postcommit._smtp.connection import begun
from postcommit._smtp.connection import parse
from postcommit._smtp.connection import take
from postcommit.errors import RelayError


@pytest.mark.parametrize(
    ("data", "reply"),
    [
        (b"250 2.1.0 Ok\r\n", Reply(250, "2.1.0", "Ok")),
        (b"250 Ok\r\n", Reply(250, "", "Ok")),
        (b"250\r\n", Reply(250)),
        (b"250 \r\n", Reply(250)),
        (b"250 Ok\n", Reply(250, "", "Ok")),
        (b"250 2.1.0\r\n", Reply(250, "2.1.0", "")),
        (b"250-a\r\n250 b\r\n", Reply(250, "", "a\nb")),
        (b"250-a\n250 b\n", Reply(250, "", "a\nb")),
        (b"250-\r\n250\r\n", Reply(250, "", "\n")),
        (b"550-5.1.1 a\r\n550 5.1.1 b\r\n", Reply(550, "5.1.1", "a\nb")),
        (b"550-5.1.1 a\r\n550 b\r\n", Reply(550, "5.1.1", "a\nb")),
        (b"550 4.1.1 a\r\n", Reply(550, "", "4.1.1 a")),
        (b"550 5.1.1111 a\r\n", Reply(550, "", "5.1.1111 a")),
        (b"550 5.1.1a\r\n", Reply(550, "", "5.1.1a")),
        ("250 \u00fc\r\n".encode(), Reply(250, "", "\u00fc")),
        (b"250 \xff\r\n", Reply(250, "", "\ufffd")),
        (b"250 a\tb\x1b[2J\r\n", Reply(250, "", "a b\ufffd[2J")),
        # What is not quite a reply:
        (b"250 queued\r\r\n", Reply(250, "", "queued")),
        (b"250 2.0.0\r\r\n", Reply(250, "2.0.0", "")),
        (b"250\r\r\r\n", Reply(250)),
        (b"250ok\r\n", Reply(250, "", "ok")),
        (b"250\tok\r\n", Reply(250, "", "ok")),
        (b"250\t\r\n", Reply(250)),
        (b"250_ok\r\n", Reply(250, "", "_ok")),
        (b"250\0\r\n", Reply(250, "", "\ufffd")),
        (b"250 a\0b\r\n", Reply(250, "", "a\ufffdb")),
        (b"250 a\rb\r\n", Reply(250, "", "a\ufffdb")),
        (b"250\xa0ok\r\n", Reply(250, "", "\ufffdok")),
        (b"250 " + b"x" * 5000 + b"\r\n", Reply(250, "", "x" * 5000)),
        (b"250-a\r\r\n250\tb\r\n", Reply(250, "", "a\nb")),
        (b"250-a\r\n250_b\r\n", Reply(250, "", "a\n_b")),
        # Several codes: the last one counts, and all texts are kept.
        (b"250-a\r\n251 b\r\n", Reply(251, "", "a\nb")),
        (b"250-a\r\n550 b\r\n", Reply(550, "", "a\nb")),
        (b"550-a\r\n250 b\r\n", Reply(250, "", "a\nb")),
        (
            b"250-2.0.0 a\r\n550 5.7.1 b\r\n",
            Reply(550, "5.7.1", "2.0.0 a\nb"),
        ),
        (b"220-mx ESMTP\r\n521 5.3.2 No\r\n", Reply(521, "5.3.2", "mx ESMTP\nNo")),
        (
            b"550-5.1.1 a\r\n550-5.7.1 b\r\n554 5.7.9 c\r\n",
            Reply(554, "5.7.9", "5.1.1 a\n5.7.1 b\nc"),
        ),
        (b"550-5.1.1 a\r\n554 b\r\n", Reply(554, "5.1.1", "a\nb")),
        # A line without a code in the middle of a reply is text.
        (b"250-a\r\nb\r\n250 c\r\n", Reply(250, "", "a\nb\nc")),
        (b"250-a\r\n\r\n2500 b\r\n250 c\r\n", Reply(250, "", "a\n\n2500 b\nc")),
    ],
)
def test_replies(data, reply):
    assert parse(data) == reply
    assert take(b"xx" + data + b"250", 2) == (reply, 2 + len(data))
    for end in range(len(data)):
        assert take(data[:end], 0) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"25\r\n",
        b"2500 x\r\n",
        b"150 x\r\n",
        b"650 x\r\n",
        b" 250 x\r\n",
        b"\0250 x\r\n",
        b"\xb2\xb50 x\r\n",
        b"hello\r\n",
        b"hello\r\n250 x\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
    ],
)
def test_no_replies(data):
    with pytest.raises(RelayError) as caught:
        take(data, 0)
    assert caught.value.reply is None


@pytest.mark.parametrize("more", [b"", b"\r\n", b"\r\n250-"])
def test_too_long(more):
    with pytest.raises(RelayError, match="longer than"):
        take(b"250 " + b"x" * MAX_REPLY + more, 0)


def test_not_too_long():
    assert take(b"250 " + b"x" * (MAX_REPLY - 4), 0) is None


@given(strategies.binary(max_size=60))
def test_anything(data):
    try:
        taken = take(data, 0)
    except RelayError:
        return
    assert taken is None or 200 <= taken[0].code <= 599


ANYTHING = strategies.binary(max_size=60).map(lambda data: data.replace(b"\n", b""))


@given(
    strategies.integers(200, 599),
    ANYTHING.filter(lambda text: not text[:1].isdigit() and text[:1] != b"-"),
)
def test_three_digits_that_no_digit_follows_are_a_code(code, text):
    line = b"%d%s\n" % (code, text)
    taken = take(line, 0)
    assert taken is not None
    assert (taken[0].code, taken[1]) == (code, len(line))
    assert taken[0].text.isprintable()


@given(ANYTHING, ANYTHING, strategies.integers(0, 150))
def test_a_code_that_has_begun(first, second, end):
    """Where a reply breaks off, the last code that came in is that of the reply."""
    whole = b"250-" + first + b"\n450 " + second
    reply = begun(b"xx" + whole[:end], 2)
    if end < 3:
        assert reply is None
    else:
        assert reply is not None
        assert reply.code == (450 if end >= len(first) + 8 else 250)


def test_nothing_has_begun():
    assert begun(b"250 ok\r\n", 8) is None
    assert begun(b"hello", 0) is None
    assert begun(b"25", 0) is None
    assert begun(b"2500", 0) is None
    assert begun(b"250 " + b"x" * 2 * MAX_REPLY, 0) is not None


LINES = (
    b"250 Ok\r\n",
    b"354 Go\n",
    b"250 Ok",
    b"250-Ok\r\n",
    b"25 Ok\r\n",
    b"x550 a\r\n",
    b"421 " + 600 * b"x" + b"\r\n",
)
