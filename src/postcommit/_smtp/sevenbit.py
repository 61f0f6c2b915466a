"""Messages of 8 bits for relays that take only 7 (RFC 6152, 3).

A message is divided into its header, its body and its parts. Fields and parts with
ASCII characters only stay as they are, byte for byte, so that a signature over such a
part is still valid.
"""
from __future__ import annotations

import codecs
import re
import secrets
from base64 import encodebytes

from postcommit._mail.field import ascii_field
from postcommit._mail.parameter import raw_parameter
from postcommit._mail.parameter import with_parameter
from postcommit.errors import MessageError


# Maximum number of entities inside each other.
_MAX_DEPTH = 100

# Lines that most readers take for the header. The first one can be the separator line
# of a mailbox file. A line that begins with white space can come before any field.
_HEADER = re.compile(
    rb"(?:From [^\n]*(?:\n|\Z))?+(?:(?:[!-9;-~]*+[ \t]*+:|[ \t])[^\n]*(?:\n|\Z))*+"
)
_FIELD = re.compile(rb"[^\n]+(?:\n|\Z)(?:[ \t][^\n]*(?:\n|\Z))*+")
_NAME = re.compile(rb"[!-9;-~]*[ \t]*")
_BLANK = re.compile(rb"((?:\r\n){2,})")
_TYPE = re.compile(r"[ \t]*([^ \t/;()]+)[ \t]*/[ \t]*([^ \t/;()]+)")
_WORD = re.compile(r"[^ \t;(]*")

# Table with an asterisk for each byte that is not ASCII. A boundary cannot have an
# asterisk (RFC 2046, 5.1.1), therefore the result cannot be a delimiter.
_MASK = bytes(range(128)) + b"*" * 128

_CHARSET = re.compile(rb"charset[ \t]*=[ \t]*[\"']?([\w.:-]{1,40})", re.IGNORECASE)
_WITH_ASCII = re.compile(
    r"utf-8|iso8859|cp\d|koi8|euc|gb|big5|shift_jis|mac|tis|kz|johab"
)
_ASCII_SAMPLE = b"az AZ 09 <@>:;\r\n"
_NOT_IN_LATIN_1 = re.compile(rb"[\x80-\x9f]")

# Encodings of a body that is not encoded.
_IDENTITY = ("", "7bit", "8bit", "binary")

# Encodings that readers decode, and that use ASCII characters only.
_ALL_ASCII = ("base64", "x-uuencode", "uuencode", "x-uue", "uue")

# Quoted-printable (RFC 2045, 6.7).
_UNPRINTABLE = re.compile(rb"[^\t\r\n -<>-~]+|[ \t](?=\r\n|\Z)")
_EIGHT_BITS = re.compile(rb"[\x80-\xff]+")
_MAX_LINE = 76
# Place of a soft line break. Two hyphens inside a line can be those of a delimiter.
# They must not come to the beginning of a line, so that a hyphen there is encoded.
_BREAK = re.compile(rb"([^\n]{70,72}(?<!=)(?<!=[^\n]))(-?)(?=[^\n]{2})")


def to_seven_bits(message: bytes) -> bytes:
    """Return `message`, whose line ends are CRLF, with ASCII characters only.

    Text becomes quoted-printable, other content base64, and header fields get
    encoded words (RFC 2047), parameters (RFC 2231) and A-labels (RFC 5891). The
    meaning stays the same, but a signature over the message is no longer valid.
    Raises `MessageError` for a message that cannot be re-encoded.
    """
    return _entity(message, _Decoder(message), 0, is_message=True)


def _entity(
    data: bytes,
    decode: _Decoder,
    depth: int,
    *,
    is_message: bool = False,
    default: str = "text/plain",
) -> bytes:
    """Return a message or a part; `default` is its type if it names none."""
    if data.isascii():
        return data
    if depth > _MAX_DEPTH:
        raise MessageError(f"its parts are more than {_MAX_DEPTH} deep in each other")
    entity = _Entity(data, default)
    if not entity.body.isascii():
        _encode_body(entity, decode, depth)
        if is_message and not entity.value("MIME-Version"):
            entity.set("MIME-Version", "1.0")
    entity.fields = [_ascii(field, decode) for field in entity.fields]
    return bytes(entity)


class _Entity:
    """A message or a part of one, divided into its fields and its body."""

    def __init__(self, data: bytes, default: str) -> None:
        found = _HEADER.match(data)
        end = found.end() if found else 0
        self.fields: list[bytes] = _FIELD.findall(data[:end])
        self.has_blank_line = data.startswith(b"\r\n", end)
        self.body = data[end + 2 * self.has_blank_line :]
        content_type = _TYPE.match(self.value("Content-Type") or default)
        self.has_type = content_type is not None
        self.maintype, self.subtype = (
            (content_type[1].lower(), content_type[2].lower())
            if content_type
            else ("text", "plain")
        )
        encoding = _WORD.match(self.value("Content-Transfer-Encoding").strip())
        self.encoding = encoding[0].lower() if encoding else ""

    def value(self, name: str) -> str:
        """Return the value of the first field `name`, or ``''`` without one.

        It is unfolded, and bytes that are not ASCII are surrogates (PEP 383).
        """
        for field in self.fields:
            if _name(field) == name.lower():
                value = field.partition(b":")[2].replace(b"\r\n", b"")
                return value.decode("ascii", "surrogateescape")
        return ""

    def set(self, name: str, value: str) -> None:
        """Replace all fields `name` by one, in the place of the first."""
        field = f"{name}: {value}\r\n".encode("ascii", "surrogateescape")
        fields: list[bytes] = []
        is_set = False
        for one in self.fields:
            if _name(one) != name.lower():
                fields.append(one)
            elif not is_set:
                fields.append(field)
                is_set = True
        self.fields = fields if is_set else [*fields, field]

    def relabel(self, body: bytes, encoding: str) -> None:
        """Replace the body and its Content-Transfer-Encoding."""
        self.set("Content-Transfer-Encoding", encoding)
        self.refill(body)

    def refill(self, body: bytes) -> None:
        """Replace the body. A blank line keeps its first line out of the header."""
        self.body = body
        self.has_blank_line = True

    def __bytes__(self) -> bytes:
        blank = b"\r\n" if self.has_blank_line else b""
        return b"".join((*self.fields, blank, self.body))


def _name(field: bytes) -> str:
    return field.partition(b":")[0].strip().decode("ascii", "replace").lower()


def _ascii(field: bytes, decode: _Decoder) -> bytes:
    """Return a field, or a line in the place of one, with ASCII characters only."""
    if field.isascii():
        return field
    name, colon, value = field.partition(b":")
    if not colon or not _NAME.fullmatch(name):
        return field.translate(_MASK)
    made = ascii_field(name.decode("ascii"), value, decode)
    return made if field.endswith(b"\n") else made.removesuffix(b"\r\n")


class _Decoder:
    """Makes text of the bytes in the fields of one message.

    They are read as UTF-8, otherwise in the charset that the message names for its
    text, otherwise as Windows-1252 or ISO-8859-1.
    """

    def __init__(self, message: bytes) -> None:
        self._message = message
        self._declared = ""

    def __call__(self, data: bytes) -> str:
        return data.decode(self.charset(data))

    def charset(self, data: bytes) -> str:
        """Return the charset that `data` is probably in."""
        if not self._declared:
            self._declared = self._first_declared()
        for charset in ("utf-8", self._declared, "windows-1252"):
            if charset != "windows-1252" or _NOT_IN_LATIN_1.search(data):
                try:
                    data.decode(charset)
                    return charset
                except UnicodeDecodeError:
                    pass
        return "iso-8859-1"

    def _first_declared(self) -> str:
        """Return the first charset in the message that has ASCII and more."""
        for found in _CHARSET.finditer(self._message):
            charset = found[1].decode("ascii")
            try:
                usable = _WITH_ASCII.match(codecs.lookup(charset).name)
                if usable and _ASCII_SAMPLE.decode(charset) == _ASCII_SAMPLE.decode():
                    return charset
            except (LookupError, UnicodeError):
                pass
        return "utf-8"


# The body


def _encode_body(entity: _Entity, decode: _Decoder, depth: int) -> None:
    body: bytes | None = None
    if entity.maintype == "multipart":
        body = _parts(entity, decode, depth)
    elif entity.maintype == "message" and entity.encoding in _IDENTITY:
        body = _nested(entity, decode, depth)
    if body is None:
        _encode_leaf(entity, decode)
    elif entity.encoding in ("8bit", "binary"):
        entity.relabel(body, "7bit")
    else:
        entity.refill(body)


def _parts(entity: _Entity, decode: _Decoder, depth: int) -> bytes | None:
    """Return the body of a multipart, or None if it lacks parts."""
    content_type = entity.value("Content-Type")
    boundary = raw_parameter(content_type, "boundary").rstrip()
    line = rb"^--%b(--)?[ \t]*(?:\r\n|\Z)" % re.escape(boundary)
    delimiters = list(re.finditer(line, entity.body, re.MULTILINE)) if boundary else []
    ends = [n for n, found in enumerate(delimiters) if found[1]]
    delimiters = delimiters[: ends[0] + 1] if ends else delimiters
    if not delimiters or delimiters[0][1]:
        return None
    new = boundary
    if not boundary.isascii():
        new = b"=_" + secrets.token_hex(16).encode()
        entity.set("Content-Type", with_parameter(content_type, "boundary", new))
    default = "message/rfc822" if entity.subtype == "digest" else "text/plain"
    pieces = [entity.body[: delimiters[0].start()].translate(_MASK)]
    nexts = [*(found.start() for found in delimiters[1:]), len(entity.body)]
    for found, end in zip(delimiters, nexts, strict=True):
        pieces += [b"--", new, found[0][2 + len(boundary) :]]
        piece = entity.body[found.end() : end]
        if found[1]:
            pieces.append(piece.translate(_MASK))
            continue
        # The last line end belongs to the delimiter.
        part = piece.removesuffix(b"\r\n")
        pieces.append(_entity(part, decode, depth + 1, default=default))
        pieces.append(piece[len(part) :])
    return b"".join(pieces)


def _nested(entity: _Entity, decode: _Decoder, depth: int) -> bytes:
    """Return the body of a message/*, which is another message or a list of fields."""
    if entity.subtype == "partial":
        # RFC 2046, 5.2.2: it must not be encoded. Its header is in the first fragment.
        raise MessageError("a fragment (message/partial) cannot be re-encoded")
    if entity.subtype == "delivery-status":
        return b"".join(
            _ascii(field, decode)
            for block in _BLANK.split(entity.body)
            for field in (_FIELD.findall(block) if block.strip() else [block])
        )
    return _entity(entity.body, _Decoder(entity.body), depth + 1, is_message=True)


def _encode_leaf(entity: _Entity, decode: _Decoder) -> None:
    """Encode a body without parts.

    Most readers ignore an unknown encoding, and so does this function.
    """
    body = entity.body
    if entity.encoding == "quoted-printable":
        entity.refill(_broken(_EIGHT_BITS.sub(_quoted, body)))
    elif entity.encoding in _ALL_ASCII:
        raise MessageError(f"a body in {entity.encoding} has characters of 8 bits")
    elif entity.maintype in ("text", "multipart"):
        _add_charset(entity, decode)
        quoted = _UNPRINTABLE.sub(_quoted, body)
        entity.relabel(_broken(quoted), "quoted-printable")
    else:
        encoded = encodebytes(body).replace(b"\n", b"\r\n").removesuffix(b"\r\n")
        entity.relabel(encoded, "base64")


def _add_charset(entity: _Entity, decode: _Decoder) -> None:
    content_type = entity.value("Content-Type") or "text/plain"
    if entity.maintype != "text" or not entity.has_type:
        return
    if not raw_parameter(content_type, "charset"):
        charset = decode.charset(entity.body).encode()
        entity.set("Content-Type", with_parameter(content_type, "charset", charset))


def _quoted(found: re.Match[bytes]) -> bytes:
    return b"=" + found[0].hex("=").upper().encode()


def _broken(quoted: bytes) -> bytes:
    """Return quoted-printable text with soft line breaks."""
    lines = quoted.split(b"\r\n")
    return b"\r\n".join(
        [line if len(line) <= _MAX_LINE else _BREAK.sub(_soft, line) for line in lines]
    )


def _soft(found: re.Match[bytes]) -> bytes:
    return found[1] + b"=\r\n" + (b"=2D" if found[2] else b"")
