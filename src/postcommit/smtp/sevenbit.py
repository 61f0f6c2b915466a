"""Messages of 8 bits for relays that take only 7 (RFC 6152, 3)."""
from __future__ import annotations

import re
from base64 import encodebytes
from binascii import b2a_qp
from email.generator import BytesGenerator
from email.header import Header
from email.message import Message
from email.parser import BytesParser
from email.policy import Compat32
from io import BytesIO


class _AsItIs(Compat32):
    """Header fields are written as they are: their lines are long enough."""

    def fold_binary(self, name: str, value: str) -> bytes:
        # To the usual folding, VT, FF and the like are line ends, but a mail has
        # no others than CRLF.
        field = f"{name}: {value}{self.linesep}"
        return field.encode("ascii", "surrogateescape")


_POLICY = _AsItIs(linesep="\r\n")

_WORD = r'[^\s<>,;"]*[^\x00-\x7f\s][^\s<>,;"]*'

# A quoted string, or words in a row, with a character that is not ASCII; the
# local part of an address is not meant.
_FOREIGN = re.compile(
    rf'"[^"]*[^\x00-\x7f"][^"]*"(?!@)|(?!\S*@){_WORD}(?:\s+(?!\S*@){_WORD})*',
    re.ASCII,  # to a mail, the spaces of Unicode are letters as others
)


def to_seven_bits(message: bytes) -> bytes:
    """Return `message`, whose line ends are CRLF, with ASCII characters only.

    Text becomes quoted-printable, other content base64, and header fields get
    encoded words (RFC 2047). That says the same, though a signature over it no
    longer fits. What cannot be re-encoded is left as it is. Raises whatever the
    standard library's parser stumbles with.
    """
    parsed = BytesParser(policy=_POLICY).parsebytes(message)
    for part in parsed.walk():
        _encode_header(part)
        if part.is_multipart():
            _relabel(part, "7bit")
        else:
            _encode_body(part)
    if "MIME-Version" not in parsed:
        parsed["MIME-Version"] = "1.0"
    buffer = BytesIO()
    BytesGenerator(buffer, mangle_from_=False, policy=_POLICY).flatten(parsed)
    return buffer.getvalue()


def _encode_header(part: Message) -> None:
    fields = list(part.raw_items())
    for name in {name for name, _ in fields}:
        del part[name]
    for name, value in fields:
        part.set_raw(name, _ascii_field(name, value))


def _ascii_field(name: str, value: str) -> str:
    raw = value.encode("ascii", "surrogateescape")
    if raw.isascii():
        return value
    encode = _parameter if name.lower().startswith("content-") else _words
    encoded = _FOREIGN.sub(encode, raw.decode(_charset(raw)))
    return encoded if encoded.isascii() else value


def _words(found: re.Match[str]) -> str:
    return Header(found[0].strip('"'), "utf-8").encode(linesep="\r\n")


def _parameter(found: re.Match[str]) -> str:
    # A form that no RFC allows, but which everybody reads.
    return f'"{_words(found)}"'


def _encode_body(part: Message) -> None:
    if _encoding(part) not in ("", "7bit", "8bit", "binary"):
        return
    body = part.get_payload(decode=True)
    if not isinstance(body, bytes) or body.isascii():
        return
    if part.get_content_maintype() == "text":
        if part.get_param("charset") is None:
            part.set_param("charset", _charset(body))
        _relabel(part, "quoted-printable")
        encoded = b2a_qp(body)
    else:
        _relabel(part, "base64")
        encoded = encodebytes(body)
    part.set_payload(encoded.decode("ascii"))


def _relabel(part: Message, encoding: str) -> None:
    """Say that the body of `part` is in `encoding`, if it says anything yet.

    A container says nothing unless it has 8 bits.
    """
    if part.is_multipart() and _encoding(part) not in ("8bit", "binary"):
        return
    del part["Content-Transfer-Encoding"]
    part["Content-Transfer-Encoding"] = encoding


def _encoding(part: Message) -> str:
    return str(part.get("Content-Transfer-Encoding", "")).strip().lower()


def _charset(data: bytes) -> str:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "iso-8859-1"
    return "utf-8"
