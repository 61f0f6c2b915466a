"""What a reviewer found: names, partial lists, line breaks, and mail sent again."""
from __future__ import annotations

from email import message_from_bytes
from email import message_from_string
from email import policy
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import pytest

from postcommit._mail.message import compose
from postcommit._smtp.sevenbit import to_seven_bits
from postcommit.errors import AddressError
from postcommit.errors import MessageError


EVE = "eve@evil.example"


def old(to: Any, subject: Any = "x") -> Message:
    message = MIMEText("x")
    message["From"] = "s@x.org"
    message["To"] = to
    message["Subject"] = subject
    return message


def new(to: Any) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "s@x.org"
    message["To"] = to
    return message


def read(message: Message, name: str = "To") -> str:
    composed = bytes(compose(None, ["q@x.org"], message))
    value = message_from_bytes(composed, policy=policy.default)[name]
    return str(value)


@pytest.mark.parametrize("name", [f"{EVE}, Ann", f"{EVE}, Änn"])
def test_a_name_in_a_header_of_several_pieces_is_a_name(name: str) -> None:
    header = Header(name, "utf-8")
    header.append("<ann@x.org>", "us-ascii")
    assert compose(None, None, old(header)).recipients == ("ann@x.org",)
    assert read(old(header)) == f'"{name}" <ann@x.org>'


def addresses(data: bytes) -> list[str]:
    value = message_from_bytes(data, policy=policy.default)["To"]
    return [one.addr_spec for one in value.addresses]


@pytest.mark.parametrize(
    "name",
    [f"{EVE}, =?utf-8?q?x?= ä", f"=?utf-8?q?,{EVE},ä?=", f"ä =?utf-8?q?,{EVE},?="],
)
def test_a_name_with_an_encoded_word_stays_quoted(name: str) -> None:
    to = f'"{name}" <a@x.org>'
    for message in old(to), new([Address(name, addr_spec="a@x.org")]):
        assert addresses(bytes(compose(None, None, message))) == ["a@x.org"]
    assert addresses(to_seven_bits(f"To: {to}\r\n".encode())) == ["a@x.org"]


@pytest.mark.parametrize(
    "to",
    [
        "=?us-ascii?q?eve=40evil.example=2C?= Ann <ann@x.org>",
        "=?us-ascii?q?eve=40evil.example=2C?=: ann@x.org;",
    ],
)
def test_what_an_encoded_word_means_is_quoted(to: str) -> None:
    composed = bytes(compose(None, None, new(to)))
    value = message_from_bytes(composed, policy=policy.default)["To"]
    assert [one.addr_spec for one in value.addresses] == ["ann@x.org"]


def test_names_that_swallow_a_recipient_are_refused() -> None:
    to = '"=?utf-8?q?x" <u0@x.org>, "?=" <u1@x.org>'
    with pytest.raises(AddressError, match="pass Address objects"):
        compose(None, None, new(to))
    to = '"=?utf-8?q?Ann Miller?=" <a@x.org>'
    assert compose(None, None, new(to)).recipients == ("a@x.org",)


@pytest.mark.parametrize(
    "to",
    [
        "Ann [EU] <a@x.org>",
        "a@x.org <a@x.org>",
        "Änn [EU] <a@x.org>",
        "Ö @ h <a@x.org>",
    ],
)
def test_what_the_standard_library_drops_is_kept(to: str) -> None:
    assert compose(None, None, new(to)).recipients == ("a@x.org",)
    assert b"<a@x.org>" in compose(None, ["q@x.org"], new(to)).header
    assert compose(None, None, new("a@x.org; b@x.org")).recipients == (
        "a@x.org",
        "b@x.org",
    )


def test_a_comment_is_a_comment() -> None:
    field = compose(None, None, new("a@x.org (Änn), b@x.org (Bob)")).header
    assert b"To: a@x.org (=?utf-8?q?=C3=84nn?=), b@x.org (Bob)\n" in field


@pytest.mark.parametrize("fold", ["\n ", "\r\n ", "\n\t"])
def test_a_fold_is_not_part_of_a_text(fold: str) -> None:
    text = f"From: s@x.org\nTo: Änn{fold}<a@x.org>\nSubject: ä{fold}ü\n\nx\n"
    message = message_from_string(text)
    assert read(message) == "Änn <a@x.org>"
    assert read(message, "Subject").split() == ["ä", "ü"]
    assert "\n" not in read(message, "Subject")
    with pytest.raises(MessageError, match="'Subject' has a line break"):
        compose(None, None, old("a@x.org", f"ä\nBcc: {EVE}"))


@pytest.mark.parametrize("text", ["Müller, Ann <a@x.org>", "a\\b <a@x.org>"])
def test_the_remedy_for_a_name_without_quotation_marks(text: str) -> None:
    with pytest.raises(AddressError, match=r"marks; email\.utils\.formataddr"):
        compose("s@x.org", text, b"x")
    with pytest.raises(AddressError, match="pass a list"):
        compose("s@x.org", "A <a@x.org>, B <b@x.org>", b"x")


def test_a_long_word_is_folded() -> None:
    composed = compose(None, None, old("a@x.org", "b" * 2000))
    assert max(map(len, composed.header.splitlines())) < 998
    assert read(old("a@x.org", "b" * 2000), "Subject") == "b" * 2000


def test_a_list_is_no_header_value() -> None:
    with pytest.raises(MessageError, match="'To' is of type list, not text; pass"):
        compose(None, None, old(["a@x.org"]))


RESENT = (
    b"Resent-Date: Mon, 1 Jan 2024 00:00:00 +0000\nResent-From: r@x.org\n"
    b"Resent-To: new@x.org\nResent-Bcc: hidden@x.org\n"
)
FIRST = b"From: s@x.org\nTo: old@x.org\n\nx\n"


@pytest.mark.parametrize("of", [bytes, message_from_bytes])
def test_a_message_that_is_sent_again(of: Any) -> None:
    composed = compose(None, None, of(RESENT + FIRST))
    assert composed.sender == "r@x.org"
    assert composed.recipients == ("new@x.org", "hidden@x.org")
    assert b"hidden" not in composed.header
    assert compose(None, ["q@x.org"], of(RESENT + FIRST)).recipients == ("q@x.org",)
    with pytest.raises(AddressError, match="2 Resent-Date fields; pass fromaddr and"):
        compose(None, None, of(RESENT + RESENT + FIRST))
    assert compose("s@x.org", "q@x.org", of(RESENT * 2 + FIRST)).sender == "s@x.org"
    with pytest.raises(AddressError, match="no address in Resent-To, Resent-Cc or"):
        compose(None, None, of(RESENT[:44] + b"Resent-From: r@x.org\n" + FIRST))


def test_text_that_looks_like_an_encoded_word_is_encoded() -> None:
    text = "=?utf-8?q?ä?="
    assert b"=?utf-8?b?" in compose(None, None, old("a@x.org", text)).header
    assert to_seven_bits(f"Subject: {text}\r\n".encode()).isascii()


def test_a_new_part_in_an_older_message_keeps_its_file_name() -> None:
    part = EmailMessage()
    part.set_content(b"x", maintype="application", subtype="pdf", filename="ä ö.pdf")
    message = MIMEMultipart()
    message["To"] = message["From"] = "a@x.org"
    message.attach(part)
    data = bytes(compose(None, None, message))
    assert b"Content-Disposition: attachment; filename*=utf-8''%C3%A4%20" in data
