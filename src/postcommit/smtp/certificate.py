"""What a certificate says, also one that nobody can trust (RFC 5280, 4.1).

The standard library tells of those only that it has verified; but of the others
one wants to know why.
"""
from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from datetime import datetime


# Tags of DER (X.690).
_BMP_STRING = 0x1E
_GENERALIZED_TIME = 0x18
_VERSION = 0xA0
_EXTENSIONS = 0xA3
_DNS_NAME = 0x82
_IP_ADDRESS = 0x87

_SUBJECT_ALT_NAME = b"\x55\x1d\x11"

_ATTRIBUTES = {
    b"\x55\x04\x03": "CN",
    b"\x55\x04\x06": "C",
    b"\x55\x04\x07": "L",
    b"\x55\x04\x08": "ST",
    b"\x55\x04\x0a": "O",
    b"\x55\x04\x0b": "OU",
}


@dataclass(frozen=True)
class Certificate:
    """Subject, issuer («O=Example, CN=mx.example.org»), expiry, names of the host."""

    subject: str
    issuer: str
    expires: datetime
    names: tuple[str, ...]


def parse(der: bytes) -> Certificate:
    """Return what the certificate `der` says. Raises ValueError if it is none."""
    try:
        return _parse(der)
    except (IndexError, StopIteration, ValueError) as error:
        raise ValueError(f"no certificate: {error}") from error


def _parse(der: bytes) -> Certificate:
    [certificate] = _values(der)
    to_be_signed = next(_values(certificate))
    fields = list(_elements(to_be_signed))
    if fields[0][0] == _VERSION:
        fields.pop(0)
    # Serial number, algorithm, issuer, validity, subject, key; then what is optional.
    issuer, validity, subject = (value for _, value in fields[2:5])
    _, (tag, until) = _elements(validity)
    extensions = [value for tag, value in fields[6:] if tag == _EXTENSIONS]
    names = tuple(name for value in extensions for name in _host_names(value))
    return Certificate(_name(subject), _name(issuer), _time(tag, until), names)


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and value of each element in `data`."""
    position = 0
    while position < len(data):
        tag, length = data[position], data[position + 1]
        position += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[position : position + count], "big")
            position += count
        value = data[position : position + length]
        if len(value) < length:
            raise ValueError("it is cut off")
        yield tag, value
        position += length


def _values(data: bytes) -> Iterator[bytes]:
    return (value for _, value in _elements(data))


def _name(data: bytes) -> str:
    parts = []
    for names in _values(data):
        for attribute in _values(names):
            (_, kind), (tag, value) = _elements(attribute)
            encoding = "utf-16-be" if tag == _BMP_STRING else "utf-8"
            text = value.decode(encoding, "replace")
            parts.append(f"{_ATTRIBUTES.get(kind, kind.hex())}={text}")
    return ", ".join(parts)


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag != _GENERALIZED_TIME:
        # Two digits for the year (RFC 5280, 4.1.2.5.1).
        text = ("20" if text[:2] < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _host_names(data: bytes) -> Iterator[str]:
    [extensions] = _values(data)
    for extension in _values(extensions):
        kind, *_, value = _values(extension)
        if kind == _SUBJECT_ALT_NAME:
            [names] = _values(value)
            for tag, name in _elements(names):
                if tag == _DNS_NAME:
                    yield name.decode("ascii", "replace")
                elif tag == _IP_ADDRESS:
                    yield str(ipaddress.ip_address(name))
