"""Messages: to bytes, with what is added, removed and refused."""
from __future__ import annotations

import re
from collections.abc import Callable
from email import message_from_bytes
from email import message_from_string
from email import policy
from email.message import EmailMessage
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import Policy
from email.utils import parsedate_to_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from postcommit._mail.message import Composed
from postcommit._mail.message import compose
from postcommit._mail.message import message_id_of
from postcommit._mail.message import to_crlf
from postcommit.errors import AddressError
from postcommit.errors import MessageError
from postcommit.errors import MessageTypeError
from postcommit.interfaces import Sendable


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
        (b"A: b\rC: d\r\rText.\r", b"A: b\nC: d\n\nText.\r"),
        (b"A: b\rC: d\r\n\nText.", b"A: b\r\nC: d\r\n\r\nText."),
        (b"From ann Mon Nov 23 12:00:00 2026\nA: b\n\nText.", b"A: b\n\nText."),
        (b"From us at 10:30\nA: b\n\nText.", b"\nFrom us at 10:30\nA: b\n\nText."),
        (b"From Mon Mon 10:30 on\nText.", b"\nFrom Mon Mon 10:30 on\nText."),
        (b"A: b\n folded\n\tagain\n\nText.", b"A: b\n folded\n\tagain\n\nText."),
        (b"A: \1\xff\n\n\1\xff", b"A: \1\xff\n\n\1\xff"),
    ],
)
def test_odd_messages_lose_nothing(message: bytes, kept: bytes) -> None:
    whole = bytes(sent(message))
    message_id, date, rest = whole.split(b"\n", 2)
    assert message_id.startswith(b"Message-Id: <")
    assert date.startswith(b"Date: ")
    assert rest == kept


def test_a_long_line_like_that_of_a_mailbox_file_takes_no_longer_than_others() -> None:
    """A square of its length would be half an hour."""
    line = b"From ann Mon " + b"1:23 " * 400_000
    composed = sent(line + b"\nText.")
    assert bytes(composed.body) == line + b"\nText."


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_whose_text_is_kept(data: bytes) -> None:
    try:
        composed = sent(data)
    except MessageError:
        assert b"message-id" in data.lower() or b"\0" in data
        return
    whole = bytes(composed)
    assert message_id_of(whole) == composed.message_id
    lines = set(re.split(rb"[\r\n]+", whole))
    for line in re.split(rb"[\r\n]+", data):
        dropped = (b"bcc", b"resent-bcc")
        assert not line or line in lines or line.lower().startswith(dropped)


FIELDS = st.sampled_from(
    [b"A: b", b"Bcc: c@x.org", b" folded", b"Message-Id: <1@x.org>", b"no field", b""]
)
ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.tuples(FIELDS, ENDS)))
def test_no_line_end_hides_a_field_that_shows_on_the_wire(
    lines: list[tuple[bytes, bytes]],
) -> None:
    try:
        composed = sent(b"".join(map(b"".join, lines)))
    except MessageError:
        return
    header, blank, _ = to_crlf(bytes(composed)).partition(b"\r\n\r\n")
    assert to_crlf(composed.header) == header + blank
    names = [line.partition(b":")[0] for line in header.split(b"\r\n")]
    assert b"Bcc" not in names
    assert names.count(b"Message-Id") == names.count(b"Date") == 1


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


def test_an_object_without_a_boundary_is_sent_with_one_and_stays_without() -> None:
    inner = MIMEMultipart("alternative")
    inner.attach(MIMEText("From the start\n"))
    outer = MIMEMultipart()
    outer.attach(inner)
    before = [part.items() for part in outer.walk()]
    text = bytes(sent(outer))
    assert text.count(b"boundary=") == 2
    assert b"\nFrom the start\n" in text
    assert [part.items() for part in outer.walk()] == before


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


def test_a_large_thing_of_another_type_does_not_fill_the_log() -> None:
    with pytest.raises(MessageTypeError, match="bytearray") as caught:
        sent(bytearray(10**6))  # type: ignore[arg-type]
    assert len(str(caught.value)) < 2000


def test_half_a_character_is_refused() -> None:
    with pytest.raises(MessageError, match="not text"):
        sent("\ud800")


@pytest.mark.parametrize(
    "message", [b"A: b\n\nx\0y", "A: b\n\nx\0y", "A: \0b\n\n", "x".encode("utf-16")]
)
def test_a_nul_character_is_refused_and_the_error_says_where(
    message: bytes | str,
) -> None:
    with pytest.raises(MessageError, match=r"NUL character at byte [0-9]+.*base64"):
        sent(message)


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
        "Message-Id: \x0b<a@x>",
        "Message-Id: <a\x9b@x>",
        "Message-Id: <a\u202e@x>",
        "Message-Id: <a@x>\nmessage-id: <b@x>",
    ],
)
def test_a_malformed_message_id_is_refused(header: str) -> None:
    with pytest.raises(ValueError, match="Message-Id"):
        sent(f"{header}\n\n")


def test_a_message_id_that_is_no_utf_8_is_refused() -> None:
    with pytest.raises(MessageError, match=r"malformed Message-Id .*xff"):
        sent(b"Message-Id: <a\xff@x>\n\n")
    assert message_id_of(b"Message-Id: <a\xff@x>\n\n") == ""


def test_the_name_of_a_field_in_another_is_none() -> None:
    subject = b"Subject: Of Message-Id: <a@x>, Date: and Bcc: b@x\n"
    composed = sent(subject + b"\n")
    assert composed.message_id != "a@x"
    assert composed.header.endswith(subject + b"\n")
    assert composed.header.count(b"\nDate: ") == 1


def test_a_folded_message_id_is_understood() -> None:
    assert sent("Message-Id:\r\n <a@x>\r\n\r\n").message_id == "a@x"


@pytest.mark.parametrize(
    ("data", "message_id"),
    [
        (WHOLE, "1@example.org"),
        (b"A: b\r\nmessage-id : <a@x>\r\n\r\n", "a@x"),
        (b"A: b\r\nMessage-ID:\t<a@x> \r\n\r\n", "a@x"),
        (b"A: b\n c: d\nMessage-Id: <a@x>\n\n", "a@x"),
        (b"Message-Id-Of: <b@x>\nMessage-Id: <a@x>\n\n", "a@x"),
        (b"Message-Id: <a@x>\nMessage-Id: <b@x>\n\n", "a@x"),
        (b"Message-Id: <a@x>", "a@x"),
        (b"Message-Id: <a@x>\n b\n\n", ""),
        (b"Message-Id : nonsense\nMessage-Id: <a@x>\n\n", ""),
        (b"A: b\n\nMessage-Id: <a@x>\n", ""),
        (b"A: b\r\n\r\nMessage-Id: <a@x>\r\n", ""),
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
        'Cc: "The, rest": fay@x.org (the (very) last);\n'
        "Resent-To: gus@x.org\n"
        "\n"
    )
    assert compose("a@x.org", None, header).recipients == (
        "ann@x.org",
        "bob@x.org",
        "carol@x.org",
        "dave@x.org",
        "fay@x.org",
        "eve@[IPv6:::1]",
    )


def test_a_name_in_another_encoding_does_no_harm_but_an_address_is_refused() -> None:
    name = b"From: J\xf6rg <joerg@x.org>\nTo: =?x?b?_?= <b@x.org>\n\n"
    composed = compose(None, None, name)
    assert (composed.sender, *composed.recipients) == ("joerg@x.org", "b@x.org")
    assert composed.header.endswith(name)
    with pytest.raises(AddressError, match="lost in decoding"):
        compose(None, "b@x.org", b"From: j\xf6rg@x.org\n\n")


def test_what_the_older_message_class_encodes_as_a_whole_is_understood() -> None:
    message = Message()
    message["From"] = "Jörg <joerg@x.org>"
    message["To"] = "Bö, the first <b@x.org>, " + ", ".join(
        f"Cö <c{number}@x.org>" for number in range(9)
    )
    message.set_payload("x")
    with pytest.raises(AddressError):
        compose(None, None, message)  # an unquoted comma
    message.replace_header("To", '"Bö, the first" <b@x.org>, Cö <c@x.org>')
    composed = compose(None, None, message)
    assert composed.sender == "joerg@x.org"
    assert composed.recipients == ("b@x.org", "c@x.org")


@pytest.mark.parametrize("odd", ["=?x?b?YUB4?=", "=?utf-8?b?a?=", "=?utf-8?q?a=0A@x?="])
def test_an_address_that_cannot_be_decoded_is_refused(odd: str) -> None:
    with pytest.raises(AddressError):
        compose("a@x.org", None, f"To: {odd}\n\n")


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


@pytest.mark.parametrize("space", ["\t", "\n\t", "\r\n\t", " \t ", "\n \t"])
@pytest.mark.parametrize("form", [str, str.encode, message_from_string])
def test_a_tab_is_white_space(form: Callable[[str], Sendable], space: str) -> None:
    to = f"Ann{space}<ann@x.org>,{space}bob@x.org"
    text = f"From: Joe{space}<joe@x.org>\nTo: {to}\n\n"
    composed = compose(None, None, form(text))
    assert composed.sender == "joe@x.org"
    assert composed.recipients == ("ann@x.org", "bob@x.org")


@pytest.mark.parametrize("form", [str, str.encode, message_from_string])
@pytest.mark.parametrize(
    "to", ["ann@x.org: bob@x.org", "ann@x.org:\n bob@x.org;", "Ann <a@x.org>: b@x.org"]
)
def test_an_address_before_a_colon_is_refused(
    form: Callable[[str], Sendable], to: str
) -> None:
    with pytest.raises(AddressError, match="colon"):
        compose("a@x.org", None, form(f"To: {to}\n\n"))


@pytest.mark.parametrize(
    "to", ["a@x.org: b@x.org", "a@x.org b@x.org", "A <a@x.org> b@x"]
)
def test_an_object_whose_recipients_the_standard_library_drops_is_refused(
    to: str,
) -> None:
    message = EmailMessage()
    message["To"] = to
    with pytest.raises(AddressError, match=r"stands before a colon|has a space"):
        compose("a@x.org", None, message)


def test_a_long_value_of_an_object_does_not_become_encoded_words() -> None:
    message = EmailMessage()
    values = {
        "Subject": "x" * 200,
        "In-Reply-To": f"<{'y' * 90}@example.org>",
        "List-Unsubscribe": f"<https://example.org/{'z' * 200}>",
        "DKIM-Signature": f"v=1; b={'a' * 300}",
    }
    for name, value in values.items():
        message[name] = value
    header = sent(message).header.decode()
    for name, value in values.items():
        assert f"\n{name}: {value}\n" in header


@pytest.mark.parametrize("of", [policy.default, policy.compat32, policy.SMTP])
@given(text=st.text(st.sampled_from("ab äöß€🫖,:;@()<>=?_\"\\"), max_size=200))
def test_a_subject_means_the_same_on_the_wire(of: Policy, text: str) -> None:
    message = Message(policy=of)
    message["Subject"] = text
    read = message_from_bytes(bytes(sent(message)), policy=policy.default)
    assert read["Subject"].split() == text.split()
    assert max(map(len, sent(message).header.splitlines())) < 998


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


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_message_without_a_header_has_no_message_id(end: bytes) -> None:
    assert message_id_of(end + b"Message-Id: <1@example.org>" + end) == ""
