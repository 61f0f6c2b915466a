"""Messages: to bytes, with what is added, removed and refused."""
from __future__ import annotations

import re
from email import message_from_bytes
from email import policy
from email.message import EmailMessage
from email.message import Message
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postcommit.errors import AddressError
from postcommit.errors import MessageError
from postcommit.errors import MessageTypeError
from postcommit.interfaces import Sendable
from postcommit.message import Composed
from postcommit.message import compose
from postcommit.message import message_id_of
from postcommit.message import to_crlf


WHOLE = (
    b"Message-Id: <1@example.org>\n"
    b"Date: Mon, 23 Nov 2026 12:00:00 +0000\n"
    b"Subject: x\n"
    b"\n"
    b"Text.\n"
)


def sent(message: Sendable) -> Composed:
    return compose("ann@example.org", "bob@example.org", message)


# Kept, added, removed


def test_a_complete_message_is_kept_byte_for_byte_and_its_body_is_not_copied() -> None:
    composed = sent(WHOLE)
    assert bytes(composed) == WHOLE
    assert composed.message_id == "1@example.org"
    assert composed.sender == "ann@example.org"
    assert composed.recipients == ("bob@example.org",)
    assert composed.body.obj is WHOLE


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_is_missing_is_added_with_the_line_ends_of_the_header(end: str) -> None:
    composed = sent(f"Subject: x{end}{end}Text.")
    lines = bytes(composed).decode().split(end)
    assert re.fullmatch(r"Message-Id: <\d+\.[0-9a-f]{16}@example\.org>", lines[0])
    assert lines[0] == f"Message-Id: <{composed.message_id}>"
    assert parsedate_to_datetime(lines[1].partition(": ")[2]).tzinfo is not None
    assert lines[2:] == ["Subject: x", "", "Text."]


def test_message_ids_are_unique() -> None:
    assert len({sent("x: y\n\n").message_id for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("sender", "header", "domain"),
    [
        ("ann@bücher.example", "", "xn--bcher-kva.example"),
        ("", "From: Ann <ann@from.example>\n", "from.example"),
        ("ann@[127.0.0.1]", "From: ann@from.example\n", "from.example"),
        ("", "From: nonsense\n", "localhost.localdomain"),
        ("", "", "localhost.localdomain"),
    ],
)
def test_the_domain_of_a_new_message_id(sender: str, header: str, domain: str) -> None:
    composed = compose(sender, "bob@example.org", f"{header}\n")
    assert composed.message_id.partition("@")[2] == domain


@pytest.mark.parametrize("field", ["Bcc: c@x.org", "bcc : c@x.org,\n\td@x.org"])
@pytest.mark.parametrize("name", ["", "Resent-"])
def test_bcc_is_removed_wherever_it_stands(field: str, name: str) -> None:
    for header in (f"{name}{field}\nA: b\n", f"A: b\n{name}{field}\n"):
        composed = sent(header + "\nBcc: in the body\n")
        assert composed.header.endswith(b"\nA: b\n\n")
        assert bytes(composed.body) == b"Bcc: in the body\n"


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        (b"", b"\n"),
        (b"\n", b"\n"),
        (b"Text.", b"\nText."),
        (b"No field: x\nbut text\n\nText.", b"\nNo field: x\nbut text\n\nText."),
        (b"\r\nText.", b"\r\nText."),
        (b"A: b", b"A: b\n\n"),
        (b"A: b\r\nC: d", b"A: b\r\nC: d\r\n\r\n"),
        (b"A: b\rC: d\r\rText.\r", b"A: b\nC: d\n\nText.\n"),
        (b"From ann Mon Nov 23 12:00:00 2026\nA: b\n\nText.", b"A: b\n\nText."),
        (b"A: b\n folded\n\tagain\n\nText.", b"A: b\n folded\n\tagain\n\nText."),
        (b"A: \0\xff\n\n\0\xff", b"A: \0\xff\n\n\0\xff"),
    ],
)
def test_odd_messages_lose_nothing(message: bytes, kept: bytes) -> None:
    whole = bytes(sent(message))
    message_id, date, rest = whole.split(b"\n", 2)
    assert message_id.startswith(b"Message-Id: <")
    assert date.startswith(b"Date: ")
    assert rest == kept


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_whose_text_is_kept(data: bytes) -> None:
    try:
        composed = sent(data)
    except MessageError:
        assert b"message-id" in data.lower()
        return
    whole = bytes(composed)
    assert message_id_of(whole) == composed.message_id
    lines = set(re.split(rb"[\r\n]+", whole))
    for line in re.split(rb"[\r\n]+", data):
        dropped = (b"bcc", b"resent-bcc", b"from ", b">from ")
        assert not line or line in lines or line.lower().startswith(dropped)


# What may be sent


def test_text_is_sent_as_utf_8() -> None:
    assert bytes(sent("A: b\n\nWörter")).endswith("\n\nWörter".encode())


@pytest.mark.parametrize("kind", [Message, EmailMessage])
def test_a_message_object_is_sent_and_stays_as_it_is(kind: type[Message]) -> None:
    message = kind()
    message["From"] = "ann@example.org"
    message["To"] = "Bob <bob@example.org>"
    message["Bcc"] = "carol@example.org"
    message.set_payload("From the start\n")
    before = message.items()
    composed = compose(None, None, message)
    assert composed.sender == "ann@example.org"
    assert composed.recipients == ("bob@example.org", "carol@example.org")
    assert b"Bcc" not in bytes(composed)
    assert bytes(composed.body) == b"From the start\n"
    assert message.items() == before


def test_an_address_that_is_not_ascii_goes_into_the_header_as_it_is() -> None:
    message = EmailMessage()
    message["From"] = "jörg@example.org"
    message.set_content("x\n")
    composed = compose(None, "bob@example.org", message)
    assert composed.sender == "jörg@example.org"
    assert "From: jörg@example.org\n".encode() in composed.header


def test_eight_bit_content_is_kept() -> None:
    message = message_from_bytes(b"A: b\n\n\xff\xfe\n", policy=policy.SMTP)
    assert bytes(sent(message)).endswith(b"\n\xff\xfe\r\n")


def test_an_object_that_cannot_be_made_bytes_is_an_error() -> None:
    message = Message()
    message.set_payload(object())  # type: ignore[arg-type]
    with pytest.raises(MessageError, match="cannot be made bytes"):
        sent(message)


@pytest.mark.parametrize("bad", [None, 3, ["A: b"], bytearray(b"A: b\n")])
def test_anything_else_is_a_type_error_that_names_it(bad: object) -> None:
    with pytest.raises(MessageTypeError, match=type(bad).__name__) as caught:
        sent(bad)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ValueError)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(MessageError, match="no text"):
        sent("\ud800")


# Message-Id


@pytest.mark.parametrize(
    "header",
    [
        "Message-Id: no brackets@x",
        "Message-Id: <two words@x>",
        "Message-Id: <a@x> <b@x>",
        "Message-Id: <a@x> (comment)",
        "Message-Id: <>",
        "Message-Id:",
        "Message-Id: <a\x01@x>",
        "Message-Id: <a@x>\nmessage-id: <b@x>",
    ],
)
def test_a_malformed_message_id_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="Message-Id"):
        sent(f"{header}\n\n")


def test_a_folded_message_id_is_understood() -> None:
    assert sent("Message-Id:\r\n <a@x>\r\n\r\n").message_id == "a@x"


@pytest.mark.parametrize(
    ("data", "message_id"),
    [
        (WHOLE, "1@example.org"),
        (b"A: b\r\nmessage-id : <a@x>\r\n\r\n", "a@x"),
        (b"A: b\n\nMessage-Id: <a@x>\n", ""),
        (b"Message-Id: nonsense\n\n", ""),
        (b"", ""),
        (b"\xff\0", ""),
    ],
)
def test_the_message_id_of_anything(data: bytes, message_id: str) -> None:
    assert message_id_of(data) == message_id


# The envelope out of the header


def test_sender_is_asked_before_from() -> None:
    header = "From: a@x.org, b@x.org\nSender: c@x.org\nTo: d@x.org\n\n"
    assert compose(None, None, header).sender == "c@x.org"


def test_all_of_to_cc_and_bcc_are_recipients_also_in_groups() -> None:
    header = (
        'To: Friends: "Ex, Ann" <ann@x.org>, bob@x.org;, carol@x.org (a, comment)\n'
        "Cc: undisclosed-recipients:;\n"
        "To: =?utf-8?q?d=C3=B6?=\n <dave@x.org>\n"
        "bcc: ann@x.org, eve@[IPv6:::1]\n"
        "\n"
    )
    assert compose("a@x.org", None, header).recipients == (
        "ann@x.org",
        "bob@x.org",
        "carol@x.org",
        "dave@x.org",
        "eve@[IPv6:::1]",
    )


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("To: b@x.org\n", "pass fromaddr"),
        ("From: a@x.org, b@x.org\nTo: b@x.org\n", "pass fromaddr"),
        ("From: a@x.org\n", "pass toaddrs"),
        ("From: a@x.org\nTo: undisclosed-recipients:;\n", "pass toaddrs"),
        ("From: a@x.org\nTo: nonsense\n", "'nonsense'"),
    ],
)
def test_a_header_without_an_envelope_is_refused(header: str, reason: str) -> None:
    with pytest.raises(AddressError, match=reason):
        compose(None, None, f"{header}\n")


# Line ends


@given(st.binary() | st.from_regex(rb"[\r\n.a]{0,40}", fullmatch=True))
def test_line_ends_become_crlf_and_nothing_else_changes(data: bytes) -> None:
    result = to_crlf(data)
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", result)
    assert to_crlf(result) == result
    assert re.split(rb"\r\n|\r|\n", data) == result.split(b"\r\n")


def test_what_is_clean_already_is_not_copied() -> None:
    clean = b"a\r\nb\r\n"
    assert to_crlf(clean) is clean
