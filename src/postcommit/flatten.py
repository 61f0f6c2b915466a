"""From a message object to bytes, in little more memory than the bytes take.

The generator of the standard library keeps what it has written of each part, and
splits a part's text into a list of lines: a large attachment takes several times
its size. So it gets a copy of the object in which a placeholder stands for each
large text, and the texts are put into what it has written.
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


# From so many characters on, a text is large; so much is encoded at a time.
_LARGE = 1 << 16


def flattened(message: Message, policy: Policy) -> bytes:
    """Return `message` as bytes, as its generator would; it is not changed.

    Raises what the generator raises, where parts of the object contradict each
    other.
    """
    large: dict[bytes, str] = {}
    outline = _generated(_outline(message, large), policy)
    whole = _filled_in(outline, large, policy.linesep) if large else outline
    if whole is None:
        # A class of its own that makes its text when it is asked.
        whole = _generated(_outline(message, None), policy)
    return whole


def _outline(part: Message, large: dict[bytes, str] | None) -> Message:
    """Return a copy of `part`, with placeholders for the texts put into `large`.

    Where there is no boundary, the generator sets one, hence always a copy.
    """
    made = copy.copy(part)
    # Not `get_payload`, which encodes all of a text to see whether it can be, or
    # returns another one.
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
        # These the generator writes as they are, with the line ends they have.
        and part.get_content_maintype() not in ("message", "multipart")
    )


def _generated(message: Message, policy: Policy) -> bytes:
    written = BytesIO()
    BytesGenerator(written, mangle_from_=False, policy=policy).flatten(message)
    return written.getvalue()


def _filled_in(outline: bytes, large: dict[bytes, str], linesep: str) -> bytes | None:
    """Return `outline` with the large texts; None where one has no place in it."""
    written = BytesIO()
    # As long as it can become, for else it would be moved as it grows.
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
