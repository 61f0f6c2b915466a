"""Message objects as bytes: as the standard library has them, but in less memory."""
from __future__ import annotations

import copy
import os
import tracemalloc
from collections.abc import Callable
from email import encoders
from email import message_from_bytes
from email import policy
from email.generator import BytesGenerator
from email.message import EmailMessage
from email.message import Message
from email.mime.base import MIMEBase
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import Policy
from io import BytesIO
from typing import Any

import pytest

from postcommit._mail.message import flattened


DATA = os.urandom(150_000)

LINES = "".join(f"Line {number} of a long text\n" for number in range(5000))


def generated(message: Message, policy: Policy) -> bytes:
    written = BytesIO()
    BytesGenerator(written, mangle_from_=False, policy=policy).flatten(message)
    return written.getvalue()


def attached(data: bytes = DATA) -> EmailMessage:
    message = EmailMessage()
    message["Subject"] = "Two files"
    message.set_content("From the start\n")
    for name in ("one", "two"):
        message.add_attachment(
            data, maintype="application", subtype="octet-stream", filename=name
        )
    return message


def mime() -> MIMEMultipart:
    message = MIMEMultipart("signed")
    part = MIMEBase("application", "octet-stream")
    part.set_payload(DATA)
    encoders.encode_base64(part)
    message.attach(MIMEText("Short"))
    message.attach(part)
    message.attach(part)
    return message


def forwarded() -> MIMEMultipart:
    message = MIMEMultipart()
    message.attach(MIMEMessage(attached()))
    message.attach(MIMEText(LINES))
    message.attach(MIMEText(LINES.replace("of", "öf"), _charset="utf-8"))
    return message


def simple(kind: str, text: str) -> Message:
    message = Message()
    message["Content-Type"] = kind
    message.set_payload(text)
    return message


def parsed(text: str) -> Message:
    head = b'Content-Type: text/plain; charset="latin-1"\nSubject: x\n\n'
    return message_from_bytes(head + text.encode("latin-1"))


class Lazy(Message):
    """Makes its text when it is asked."""

    def get_payload(self, *args: Any, **options: Any) -> Any:
        return "Lazy.\n"


def lazy() -> Message:
    message = MIMEMultipart()
    part = Lazy()
    part.set_payload(LINES)
    message.attach(part)
    message.attach(MIMEText(LINES, _charset="us-ascii"))
    return message


def bounced() -> Message:
    blocks = [simple("text/plain", text) for text in ("Short\n", LINES, LINES.strip())]
    status = MIMEBase("message", "delivery-status")
    status.set_payload(blocks)
    message = MIMEMultipart("report")
    message.attach(status)
    return message


MESSAGES: dict[str, Callable[[], Message]] = {
    "attachments": attached,
    "signed": mime,
    "forwarded": forwarded,
    "text": lambda: simple("text/plain", LINES),
    "no last line end": lambda: simple("text/plain", LINES.strip()),
    "no line end": lambda: simple("text/plain", "x" * 100_000),
    "crlf": lambda: simple("text/csv", LINES.replace("\n", "\r\n")),
    "a mixture": lambda: simple("text/plain", LINES.replace("0\n", "0\r\r\n\r")),
    "cr": lambda: simple("text/plain", LINES.replace("\n", "\r")),
    "multipart as text": lambda: simple("multipart/mixed", LINES),
    "message as text": lambda: simple("message/rfc822", LINES.replace("\n", "\r\n")),
    "eight bits": lambda: parsed(LINES.replace("of", "öf")),
    "nothing": Message,
    "bounced": bounced,
    "lazy": lazy,
}


@pytest.mark.parametrize("of", [policy.compat32, policy.SMTP, policy.default])
@pytest.mark.parametrize("name", MESSAGES)
def test_the_bytes_are_those_of_the_generator(name: str, of: Policy) -> None:
    message = MESSAGES[name]()
    for number, part in enumerate(message.walk()):
        if part.get_content_maintype() == "multipart":
            part.set_boundary(f"=={number}==")
    wanted = generated(copy.deepcopy(message), of)
    assert flattened(message, of) == wanted
    assert generated(message, of) == wanted, "it is not what it was"


def test_an_object_stays_as_it_is() -> None:
    message = forwarded()
    before = [(part, part.items(), part.get_payload()) for part in message.walk()]
    whole = message_from_bytes(flattened(message, policy.compat32))
    assert [(p, p.items(), p.get_payload()) for p in message.walk()] == before
    assert whole.get_boundary() is not None
    assert message.get_boundary() is None


@pytest.mark.parametrize("of", [policy.compat32, policy.SMTP])
def test_a_large_one_is_held_once(of: Policy) -> None:
    message = attached(bytes(4_000_000))
    size = len(flattened(message, of))
    tracemalloc.start()
    try:
        whole = flattened(message, of)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(whole) == size > 10_000_000
    assert peak < 1.1 * size
