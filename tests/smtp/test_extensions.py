"""SIZE, 8BITMIME, SMTPUTF8: used where offered, done without where not."""
from __future__ import annotations

import re
from email import message_from_bytes
from email.header import decode_header
from email.header import make_header
from email.message import EmailMessage
from email.policy import SMTP

import pytest

from postcommit._maildir.store import Store
from postcommit._processor import QueueProcessor
from postcommit._smtp.dialogue import envid
from postcommit.interfaces import Tally
from tests.smtp.messages import MESSAGE
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import told


UMLAUT = "M\u00fcller"
LOCAL = f"{UMLAUT}@example.org"
DOMAIN = "b@b\u00fccher.example"
ACE = "b@xn--bcher-kva.example"


def mails(relay):
    return [command for command in relay.commands if command.startswith("MAIL")]


# SIZE


def test_size_is_told(relay, connect):
    message = MESSAGE + b".dot\r\n"
    connect(relay).send(SENDER, B, message)
    assert relay.messages[0].parameters == {"SIZE": str(len(message))}


@pytest.mark.parametrize("ends", [b"", b"\r", b"\n"])
@pytest.mark.parametrize("text", [b"x", "\u00fc".encode()])
@pytest.mark.parametrize("without", [[], ["8BITMIME"]])
def test_size_counts_the_last_line_end(start, connect, ends, text, without):
    """A message without one gets it, and it is sent as any other."""
    relay = start(without=without)
    assert told(connect(relay).send(SENDER, B, MESSAGE + text + ends)) == ["sent"]
    [received] = relay.messages
    assert received.data.endswith(b"\r\n")
    assert received.parameters["SIZE"] == str(len(received.data))


def test_too_large_by_the_last_line_end(start, connect):
    message = MESSAGE + b"x"
    relay = start(extensions=[f"SIZE {len(message) + 1}"])
    report = connect(relay).send(SENDER, B, message)
    assert told(report) == ["rejected"]
    assert f"has {len(message) + 2} bytes" in str(report.rejected[0].reply)


@pytest.mark.parametrize(
    "offer",
    [
        "SIZE",
        "SIZE 0",
        "SIZE what",
        "SIZE 70",
        # RFC 1870, 4: at most 20 digits, and only those of ASCII. Python's int() raises
        # ValueError for more than 4,300.
        "SIZE " + "9" * 21,
        "SIZE " + "9" * 5000,
        "SIZE " + "0" * 5000 + "1",
        "SIZE \N{ARABIC-INDIC DIGIT FIVE}",
        "SIZE \N{SUPERSCRIPT TWO}",
        "SIZE -1",
        "SIZE 1 1",
    ],
    ids=lambda offer: offer[:12].encode("ascii", "replace").decode(),
)
def test_no_limit_or_enough(start, connect, offer):
    relay = start(extensions=[offer])
    assert told(connect(relay).send(SENDER, B, MESSAGE)) == ["sent"]


def test_too_large(start, connect):
    relay = start(extensions=["SIZE 50", "PIPELINING"])
    report = connect(relay).send(SENDER, [B, SENDER], MESSAGE)
    assert told(report) == ["rejected", "rejected"]
    assert str(report.rejected[0].reply).startswith("5.3.4 The message has ")
    assert mails(relay) == []


def test_too_large_among_others(start, connect):
    relay = start(extensions=["SIZE 100", "PIPELINING"])
    big = MESSAGE + b"x" * 100
    batch = [(SENDER, [B], data) for data in (big, MESSAGE, big, MESSAGE, big)]
    results = [told(report) for report in connect(relay).send_all(batch)]
    sizes = [["rejected"], ["sent"], ["rejected"], ["sent"], ["rejected"]]
    assert results == sizes
    assert len(mails(relay)) == 2


# DSN


def test_no_notifications_by_default(start, connect):
    relay = start(extensions=["DSN", "SIZE"])
    connect(relay).send(SENDER, B, MESSAGE)
    assert set(relay.messages[0].parameters) == {"SIZE"}


def test_notifications_are_not_offered(relay, connect):
    connect(relay, dsn=True).send(SENDER, B, MESSAGE)
    assert set(relay.messages[0].parameters) == {"SIZE"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("1@example.org", "1@example.org"),
        ("a+b=c@example.org", "a+2Bb+3Dc@example.org"),
        ("x" * 120 + "@example.org", "x" * 100),
        ("x" * 98 + "=" * 9, "x" * 98),
        ("x" * 97 + "=" * 9, "x" * 97 + "+3D"),
    ],
)
def test_notifications(start, connect, name, expected):
    """RFC 3461, 4.3 and 4.4: ENVID is xtext, and has at most 100 characters."""
    relay = start(extensions=["DSN"])
    message = MESSAGE.replace(b"1@example.org", name.encode())
    assert told(connect(relay, dsn=True).send(SENDER, B, message)) == ["sent"]
    assert relay.messages[0].parameters == {"RET": "HDRS", "ENVID": expected}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", ""),
        ("a b\tc", " ENVID=a+20b+09c"),
        ("\u00fc\r\n\x7f@x", " ENVID=?+0D+0A+7F@x"),
        ("".join(map(chr, range(33, 127))), None),
    ],
)
def test_envid(name, expected):
    made = envid(name)
    if expected is not None:
        assert made == expected
    value = made.removeprefix(" ENVID=")
    assert re.fullmatch(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*", value)
    decoded = re.sub(r"\+(..)", lambda found: chr(int(found[1], 16)), value)
    assert decoded == name.encode("ascii", "replace").decode()


# 8BITMIME


def test_eight_bits(relay, connect):
    message = MESSAGE + UMLAUT.encode() + b"\r\n"
    connect(relay).send(SENDER, B, message)
    assert relay.messages[0].parameters["BODY"] == "8BITMIME"
    assert relay.messages[0].data == message


def test_the_offer_of_the_relay(start, connect):
    relay = start()
    offer = ["250-size 10", "250-AUTH=LOGIN", "250-AUTH PLAIN", "250 8BITMIME"]
    relay.reply("EHLO", ["250-relay.example", *offer])
    pool = connect(relay)._pool
    connection = pool.checkout()
    found = {"SIZE": "10", "AUTH": "LOGIN PLAIN", "8BITMIME": ""}
    assert connection.extensions == found
    pool.discard(connection)


def test_no_extensions_at_all(start, connect):
    relay = start(extensions=[])
    assert told(connect(relay).send(SENDER, B, MESSAGE)) == ["sent"]
    assert relay.messages[0].parameters == {}


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_text_in_seven_bits(start, connect, charset):
    relay = start(without=["8BITMIME"])
    message = (
        f"Message-Id: <1@x>\r\nSubject: {UMLAUT} \u00e0 la carte\r\nTo: x\r\n"
        f"MIME-Version: 1.0\r\nContent-Type: text/plain; charset={charset}\r\n"
        f"Content-Transfer-Encoding: 8bit\r\n\r\n{UMLAUT}\r\n.\r\nend\r\n"
    ).encode(charset)
    assert told(connect(relay).send(SENDER, B, message)) == ["sent"]
    [received] = relay.messages
    assert received.data.isascii()
    parsed = message_from_bytes(received.data, policy=SMTP)
    assert parsed["Subject"] == f"{UMLAUT} \u00e0 la carte"
    assert parsed.get_content().splitlines() == [UMLAUT, ".", "end"]


def test_text_without_a_label(start, connect):
    relay = start(without=["8BITMIME"])
    message = MESSAGE + UMLAUT.encode() + b"\r\n"
    assert told(connect(relay).send(SENDER, B, message)) == ["sent"]
    parsed = message_from_bytes(relay.messages[0].data, policy=SMTP)
    assert parsed["MIME-Version"] == "1.0"
    assert parsed.get_content().splitlines() == ["Hello", UMLAUT]


def test_parts_in_seven_bits(start, connect):
    relay = start(without=["8BITMIME"])
    inner = EmailMessage()
    inner["Subject"] = UMLAUT
    inner.set_content(UMLAUT, cte="8bit")
    outer = EmailMessage()
    outer["Message-Id"] = "<1@example.org>"
    outer.set_content(UMLAUT, cte="8bit")
    outer.add_alternative(f"<p>{UMLAUT}</p>", subtype="html", cte="8bit")
    outer.add_attachment(inner)
    outer.add_attachment(b"\xff\x00\xfe", "application", "x-y", filename="x")
    data = outer.as_bytes(policy=SMTP.clone(cte_type="8bit"))
    version = b"MIME-Version: 1.0\r\n"
    label = b"Content-Transfer-Encoding: 8bit\r\n"
    data = data.replace(version, version + label, 1)
    assert not data.isascii()
    assert told(connect(relay).send(SENDER, B, data)) == ["sent"]
    received = relay.messages[0].data
    assert received.isascii()
    parsed = message_from_bytes(received, policy=SMTP)
    leaves = [part for part in parsed.walk() if not part.is_multipart()]
    *texts, binary = [part.get_content() for part in leaves]
    assert [t.strip() for t in texts] == [UMLAUT, f"<p>{UMLAUT}</p>", UMLAUT]
    assert binary == b"\xff\x00\xfe"
    assert parsed["Content-Transfer-Encoding"] == "7bit"


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("parameter", ["", "; boundary=b", "; boundary="])
def test_a_multipart_without_parts(start, connect, pipelining, parameter):
    """Its end is seen, and the next message is no part of it."""
    relay = start(without=["8BITMIME"])
    text = "\r\n".join([UMLAUT, ".", "MAIL FROM:<evil@x>", "--c--", "x"])
    message = (
        f"Message-Id: <1@x>\r\nContent-Type: multipart/mixed{parameter}\r\n\r\n{text}"
    ).encode()
    mailer = connect(relay, pipelining=pipelining)
    batch = [(SENDER, [B], data) for data in (message, MESSAGE)]
    assert [told(report) for report in mailer.send_all(batch)] == [["sent"]] * 2
    received, other = (message.data for message in relay.messages)
    assert other == MESSAGE
    parsed = message_from_bytes(received, policy=SMTP)
    assert parsed.get_content_type() == "multipart/mixed"
    assert parsed.get_payload(decode=True) == text.encode() + b"\r\n"


def test_binary_in_seven_bits(start, connect):
    relay = start(without=["8BITMIME"])
    message = (
        b"Message-Id: <1@x>\r\nContent-Type: application/x-y\r\n"
        b"Content-Transfer-Encoding: 8bit\r\n\r\n\xff\xfe\r\n"
    )
    assert told(connect(relay).send(SENDER, B, message)) == ["sent"]
    parsed = message_from_bytes(relay.messages[0].data, policy=SMTP)
    assert parsed.get_content() == b"\xff\xfe\r\n"


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        (f"To: {UMLAUT} <b@example.org>, c@example.org", None),
        (f'To: "{UMLAUT}, B." <b@example.org>', f"To: {UMLAUT}, B. <b@example.org>"),
        (f"Subject: a {UMLAUT} {UMLAUT} b", None),
        (f"Subject: a {UMLAUT}\N{NO-BREAK SPACE}: b", None),
        (f"Subject: {'x' * 60} {(UMLAUT + ' ') * 20}b", None),
        (f"X-Latin: {UMLAUT}", None),
    ],
)
@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_header_in_seven_bits(start, connect, field, expected, charset):
    relay = start(without=["8BITMIME"])
    rest = "Message-Id: <1@x>\r\nX: y\r\nX: z\r\n\r\nx\r\n"
    message = f"{field}\r\n{rest}".encode(charset)
    assert told(connect(relay).send(SENDER, B, message)) == ["sent"]
    data = relay.messages[0].data
    assert data.isascii()
    parsed = message_from_bytes(data)
    name, _, value = (expected or field).partition(": ")
    assert str(make_header(decode_header(parsed[name]))) == value
    assert parsed.get_all("X") == ["y", "z"]
    assert all(len(line) < 200 for line in data.splitlines())


def test_file_name_in_seven_bits(start, connect):
    relay = start(without=["8BITMIME"])
    message = (
        f"Message-Id: <1@x>\r\nContent-Type: text/plain; name=\"{UMLAUT}.txt\""
        "\r\n\r\nx\r\n"
    ).encode()
    assert told(connect(relay).send(SENDER, B, message)) == ["sent"]
    parsed = message_from_bytes(relay.messages[0].data, policy=SMTP)
    assert parsed.get_filename() == f"{UMLAUT}.txt"


@pytest.mark.parametrize(
    "message",
    [
        f"Message-Id: <1@x>\r\nFrom: {LOCAL}\r\n\r\nx\r\n",
        f"Message-Id: <1@x>\r\nContent-Transfer-Encoding: base64\r\n\r\n{UMLAUT}\r\n",
    ],
)
def test_what_cannot_be_said_in_seven_bits(start, connect, message):
    relay = start(without=["8BITMIME"])
    report = connect(relay).send(SENDER, B, message.encode())
    assert told(report) == ["rejected"]
    assert "needs 8BITMIME" in str(report.rejected[0].reply)
    assert mails(relay) == []


@pytest.mark.parametrize("mark", ["\v", "\f", "\x1c", "\x1d", "\x1e", "\x00"])
@pytest.mark.parametrize("word", ["Re:", "for"])
def test_a_header_of_seven_bits_stays_as_it_is(start, connect, mark, word):
    """Some characters end a line for Python, but none for a mail."""
    relay = start(without=["8BITMIME"])
    field = f"Subject: Invoice{mark}{word} you,\r\n\tand  others \r\n".encode()
    message = b"Message-Id: <1@x>\r\n" + field + f"\r\n{UMLAUT}\r\n".encode()
    [report] = connect(relay).send_all([(SENDER, [B], message)])
    assert told(report) == ["sent"]
    assert field in relay.messages[0].data
    assert message_from_bytes(relay.messages[0].data).get_payload() == "M=C3=BCller\r\n"


@pytest.mark.parametrize("mark", ["\v", "\f", "\x1c"])
def test_a_mark_beside_what_gets_encoded(start, connect, mark):
    relay = start(without=["8BITMIME"])
    message = f"Message-Id: <1@x>\r\nSubject: {UMLAUT}{mark}Re: x\r\n\r\nx\r\n"
    assert told(connect(relay).send(SENDER, B, message.encode())) == ["sent"]
    parsed = message_from_bytes(relay.messages[0].data)
    subject = str(make_header(decode_header(parsed["Subject"])))
    assert subject.split() == [UMLAUT, "Re:", "x"]
    assert parsed.get_payload() == "x\r\n"


# More parts inside each other than any message has.
NESTED = (
    b"Message-Id: <0@x>\r\n"
    + b"Content-Type: message/rfc822\r\n\r\n" * 2000
    + b"M\xc3\xbcller\r\n"
)


def test_a_message_that_cannot_be_re_encoded_does_not_stop_the_others(start, connect):
    relay = start(without=["8BITMIME"])
    batch = [(SENDER, [B], data) for data in (MESSAGE, NESTED, MESSAGE, MESSAGE)]
    reports = list(connect(relay).send_all(batch))
    results = [told(report) for report in reports]
    assert results == [["sent"], ["rejected"], ["sent"], ["sent"]]
    reply = str(reports[1].rejected[0].reply)
    assert reply.startswith("5.6.3 The message needs 8BITMIME, the relay lacks it, and")
    assert "MessageError: its parts are more than 100 deep" in reply
    assert len(relay.messages) == 3


def test_too_little_memory_for_seven_bits(start, connect, monkeypatch):
    """Another time there may be more of it."""

    def encode(message):
        raise MemoryError

    monkeypatch.setattr("postcommit._smtp.dialogue.to_seven_bits", encode)
    relay = start(without=["8BITMIME"])
    batch = [(SENDER, [B], data) for data in (MESSAGE, MESSAGE + b"\xff", MESSAGE)]
    reports = list(connect(relay).send_all(batch))
    assert [told(report) for report in reports] == [["sent"], ["deferred"], ["sent"]]
    assert str(reports[1].deferred[0].reply).startswith("4.3.0 ")


def test_a_queue_goes_on_behind_what_cannot_be_said(start, connect, tmp_path):
    relay = start(without=["8BITMIME"])
    store = Store(str(tmp_path / "queue"))
    for data in (NESTED, MESSAGE, MESSAGE):
        store.stage(SENDER, (B,), [data]).commit()
    processor = QueueProcessor(store.path, connect(relay), workers=1)
    assert processor.flush() == Tally(2, 0, 1)
    assert len(relay.messages) == 2
    assert len(list(store.maildir.paths(".Failed/new"))) == 1
    assert list(store.maildir.paths("new")) == []


# SMTPUTF8 and IDNA


def test_domains_go_out_in_ascii(start, connect):
    relay = start(without=["SMTPUTF8"])
    assert told(connect(relay).send(DOMAIN, DOMAIN, MESSAGE)) == ["sent"]
    assert (relay.messages[0].sender, relay.messages[0].recipients) == (ACE, (ACE,))


@pytest.mark.parametrize(("sender", "to"), [(LOCAL, B), (SENDER, LOCAL), ("", LOCAL)])
def test_smtputf8(relay, connect, sender, to):
    assert told(connect(relay).send(sender, to, MESSAGE)) == ["sent"]
    [received] = relay.messages
    assert "SMTPUTF8" in received.parameters
    assert (received.sender, received.recipients) == (sender, (to,))


def test_not_without_need(relay, connect):
    message = MESSAGE.replace(b"Subject: x", f"Subject: {UMLAUT}".encode())
    assert told(connect(relay).send(SENDER, [B, DOMAIN], message)) == ["sent"] * 2
    assert "SMTPUTF8" not in relay.messages[0].parameters


def test_a_recipient_that_needs_it(start, connect):
    relay = start(without=["SMTPUTF8"])
    report = connect(relay).send(SENDER, [LOCAL, B], MESSAGE)
    assert told(report) == ["rejected", "sent"]
    assert report.rejected[0].reply.enhanced == "5.6.7"
    assert [m.recipients for m in relay.messages] == [(B,)]


def test_only_recipients_that_need_it(start, connect):
    relay = start(without=["SMTPUTF8"])
    assert told(connect(relay).send(SENDER, LOCAL, MESSAGE)) == ["rejected"]
    assert mails(relay) == []


def test_a_sender_that_needs_it(start, connect):
    relay = start(without=["SMTPUTF8"])
    assert told(connect(relay).send(LOCAL, [B, LOCAL], MESSAGE)) == ["rejected"] * 2
    assert mails(relay) == []


def test_a_refusal_of_ours_does_not_hide_trouble_of_the_relay(start, connect):
    relay = start(without=["SMTPUTF8"])
    relay.reply("MAIL", "421 4.3.2 Bye")
    assert told(connect(relay).send(SENDER, [LOCAL, B], MESSAGE)) == "relay"


def test_a_domain_that_cannot_be_encoded(relay, connect):
    """The queue may have been filled by another library."""
    bad = "b@" + "\u00fc" * 100 + ".example"
    batch = [(SENDER, [bad, B], MESSAGE), (bad, [B], MESSAGE)]
    results = [told(report) for report in connect(relay).send_all(batch)]
    assert results == [["rejected", "sent"], ["rejected"]]
