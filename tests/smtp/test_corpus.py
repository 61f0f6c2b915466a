"""Message files arrive byte for byte, or by meaning where the relay takes 7 bits.

Those in ``tests/corpus`` are named after what they show and after their charset; and
there are those of the standard library's own tests.
"""
from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from email import message_from_bytes
from email import message_from_string
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

from postcommit._mail.address import on_the_wire
from postcommit._smtp.dialogue import complete
from postcommit._smtp.mailer import SMTPMailer
from postcommit._smtp.sevenbit import to_seven_bits
from postcommit.errors import MessageError
from tests.mail.test_field import check_lines
from tests.smtp.messages import SENDER
from tests.smtp.messages import B
from tests.smtp.messages import told
from tests.support.mailers import send_all
from tests.support.smtpd import well_treated


OURS = sorted((Path(__file__).parent.parent / "corpus").glob("*.eml"))


def of_the_standard_library() -> list[Path]:
    """Return the message files of the standard library's tests, if there are any."""
    try:
        found = importlib.util.find_spec("test.test_email")
    except ModuleNotFoundError:
        return []
    if found is None or found.origin is None:
        return []
    return sorted((Path(found.origin).parent / "data").glob("msg_*.txt"))


THEIRS = of_the_standard_library()


def charset_of(path: Path) -> str:
    return path.suffixes[-2][1:] if path.suffix == ".eml" else "utf-8"


def in_eight_bits(message: bytes) -> bytes:
    """Return a message of 7 bits with other letters in its Subject, names and text."""
    header, blank, body = message.partition(b"\n\n")
    header = re.sub(rb"(?m)^(Subject: .*)$", "\\1 für alle".encode(), header)
    name = rb'(?m)^((?:To|From|Cc): "?)([A-Z][a-z]+ )'
    header = re.sub(name, "\\1Ä\\2".encode(), header)
    line = rb"(?m)^([A-Za-z][^:=\n]* [^:=\n]*)$"
    return header + blank + re.sub(line, "\\1 für alle".encode(), body)


def messages() -> Iterator[Any]:
    for path in (*OURS, *THEIRS):
        data = path.read_bytes()
        yield pytest.param(data, charset_of(path), id=path.stem)
        if path in THEIRS:
            yield pytest.param(in_eight_bits(data), "utf-8", id=f"{path.stem}-8bit")


MESSAGES = list(messages())


@pytest.fixture(scope="module")
def relays() -> Iterator[Any]:
    """Have two relays, of 8 and of 7 bits, with mailers for them."""
    with well_treated() as start:
        made = []
        for without in ([], ["8BITMIME"]):
            relay = start(without=without)
            mailer = SMTPMailer("127.0.0.1", relay.port, timeout=60)
            made.append((relay, mailer))
        yield made
        for _, mailer in made:
            mailer.close()


def received(pair: Any, message: bytes) -> bytes:
    """Return `message` as the relay got it from a queue's processor."""
    relay, mailer = pair
    relay.messages.clear()
    [report] = send_all(mailer, [(SENDER, [B], message)])
    assert told(report) == ["sent"]
    [arrived] = relay.messages
    data: bytes = arrived.data
    assert arrived.parameters["SIZE"] == str(len(data))
    return data


# What a message means


def text_of(value: str) -> str:
    return " ".join(value.split())


def name_of(value: str) -> str:
    # Some versions of the standard library show a space between two encoded words.
    return "".join(value.split())


def meaning_of_field(value: Any) -> object:
    if hasattr(value, "addresses"):
        groups = [
            (name_of(group.display_name or ""), len(group.addresses))
            for group in value.groups
        ]
        mailboxes = [
            (name_of(one.display_name), on_the_wire(one.addr_spec))
            for one in value.addresses
        ]
        return groups, mailboxes
    if hasattr(value, "params"):
        described = ("charset", "boundary")
        params = {k: v for k, v in value.params.items() if k not in described}
        kind = getattr(value, "content_type", None)
        return kind or value.content_disposition, params
    return text_of(value)


ENCODING = ("content-transfer-encoding", "mime-version", "content-type")


def fields_of(part: Any) -> list[tuple[str, object]]:
    return sorted(
        (
            (name.lower(), meaning_of_field(value))
            for name, value in part.items()
            if name.lower() not in ENCODING
        ),
        key=lambda field: field[0],
    )


def meaning_of_fields(message: Any) -> list[object]:
    return [
        (fields_of(part), part.get_content_type(), part.get_filename())
        for part in message.walk()
    ]


def meaning_of_bodies(message: Any) -> list[object]:
    return [
        part.get_payload(decode=True).rstrip()
        for part in message.walk()
        if not part.is_multipart()
    ]


def check_meaning(before: bytes, after: bytes, charset: str) -> None:
    read = message_from_bytes(after, policy=default)
    original = message_from_bytes(before, policy=default)
    assert meaning_of_bodies(read) == meaning_of_bodies(original)
    # The standard library decodes no fields of 8 bits, hence it gets them decoded.
    text = message_from_string(before.decode(charset, "replace"), policy=default)
    assert meaning_of_fields(read) == meaning_of_fields(text)


# The tests


def test_there_are_many_messages():
    assert len(OURS) > 40
    assert sum(not path.read_bytes().isascii() for path in OURS) > 40


def test_there_are_messages_of_the_standard_library():
    if not THEIRS:
        pytest.skip("this Python has no test package")
    assert len(THEIRS) > 40


@pytest.mark.parametrize(("message", "charset"), MESSAGES)
def test_byte_for_byte(relays, message, charset):
    assert received(relays[0], message) == complete(message)


@pytest.mark.parametrize(("message", "charset"), MESSAGES)
def test_by_meaning(relays, message, charset):
    data = received(relays[1], message)
    if message.isascii():
        assert data == complete(message)
        return
    check_lines(data)
    check_meaning(complete(message), data, charset)


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.stem)
def test_as_an_application_sends_it(relays, path):
    """What is missing in the header is added; the line of a mailbox file is dropped."""
    message = path.read_bytes()
    relay, mailer = relays[0]
    relay.messages.clear()
    if b"\0" in message:
        with pytest.raises(MessageError, match="NUL"):
            mailer.send(SENDER, B, message)
        return
    assert told(mailer.send(SENDER, B, message)) == ["sent"]
    [arrived] = relay.messages
    expected = lines_of(complete(re.sub(rb"\AFrom [^\n]*\n", b"", message)))
    assert lines_of(arrived.data)[-len(expected) :] == expected


def lines_of(message: bytes) -> list[bytes]:
    """Without blank ones: there is one behind the header, also where there was none."""
    return [line for line in message.split(b"\r\n") if line]


@pytest.mark.parametrize(
    ("name", "unchanged"),
    [
        ("pgp-signed", rb"\r\n--signed\r\n.*"),
        ("dkim-signed", rb"\ADKIM-Signature:.*?\r\n(?=Received:)"),
        ("mailman-footer", rb"Content-Type: text/plain.*?base64.*?\r\n--"),
    ],
)
def test_what_has_seven_bits_stays_as_it_is(name, unchanged):
    [path] = [path for path in OURS if path.stem.startswith(name)]
    message = complete(path.read_bytes())
    found = re.search(unchanged, message, re.DOTALL)
    assert found is not None
    assert found[0] in to_seven_bits(message)
