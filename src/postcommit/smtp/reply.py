"""Replies on the wire (RFC 5321, 4.2) as `Reply` objects: pure functions."""
from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from postcommit.errors import RelayError
from postcommit.log import printable
from postcommit.report import Reply


# RFC 5321, 4.5.3.1.5, allows 512 for a line. Nobody needs more than this for
# all lines of a reply, and a relay shall not fill our memory.
MAX_REPLY = 1 << 16

# What stands for a character that could disturb the terminal that shows the log.
_INSTEAD = "\N{REPLACEMENT CHARACTER}"

# Lines of up to so many bytes are remembered when they were parsed.
_SHORT = 128

_LINE = re.compile(rb"([2-5][0-9][0-9])(?:([ -])([^\r\n]*))?\r?\n\Z")
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: +|\Z)")


def take(data: bytes, start: int) -> tuple[Reply, int] | None:
    """Return the reply that begins at `start`, and where it ends.

    None where it is not complete yet. Raises `RelayError` for what is no reply
    or will never end.
    """
    end = data.find(b"\n", start) + 1
    if end and end - start <= _SHORT and data[start + 3 : start + 4] != b"-":
        return _parse_short(data[start:end]), end
    return _take_long(data, start)


def take_all(data: bytes, start: int) -> Sequence[Reply]:
    """Return the replies from `start` on, where each is one short line.

    Nothing for whatever else has come; then `take` sees to one after the other.
    """
    rest = data[start:]
    return _parse_lines(rest) if len(rest) <= 4 * _SHORT else ()


def _take_long(data: bytes, start: int) -> tuple[Reply, int] | None:
    end = start
    while True:
        line = end
        end = data.find(b"\n", line) + 1
        if (end or len(data)) - start > MAX_REPLY:
            raise RelayError(f"the relay's reply is longer than {MAX_REPLY} bytes")
        if not end:
            return None
        if data[line + 3 : line + 4] != b"-":
            return parse(data[start:end]), end


def parse(data: bytes) -> Reply:
    """Return the complete reply `data`, line ends included, as an object.

    Raises `RelayError` where it is none.
    """
    codes = set()
    texts = []
    for line in data.splitlines(keepends=True) if data.count(b"\n") > 1 else [data]:
        found = _LINE.match(line)
        if found is None:
            shown = line[:80].decode("ascii", "backslashreplace").strip()
            raise RelayError(f"the relay's reply is not SMTP: {shown!r}")
        codes.add(found[1])
        text = (found[3] or b"").decode("utf-8", "replace")
        texts.append(printable(text.replace("\t", " "), _INSTEAD))
    if len(codes) > 1:
        raise RelayError(f"the relay's reply has several codes: {sorted(codes)}")
    return _reply(int(codes.pop()), texts)


# Most replies are the same all over again, and so are those to most envelopes.
_parse_short = lru_cache(256)(parse)


@lru_cache(64)
def _parse_lines(data: bytes) -> Sequence[Reply]:
    lines = data.splitlines(keepends=True)
    if any(line[3:4] == b"-" for line in lines):
        return ()
    try:
        return tuple(map(parse, lines))
    except RelayError:
        return ()


def _reply(code: int, texts: list[str]) -> Reply:
    found = _ENHANCED.match(texts[0])
    if found is None or found[1][0] != str(code)[0]:
        return Reply(code, "", "\n".join(texts))
    prefix = found[0]
    return Reply(
        code,
        found[1],
        "\n".join(
            # RFC 2034, 4: the enhanced code is repeated on each line.
            text[len(prefix) :] if text.startswith(prefix) else text
            for text in texts
        ),
    )


def extensions_of(reply: Reply) -> dict[str, str]:
    """Return what a reply to EHLO offers: keywords, upper case, to parameters."""
    offered: dict[str, str] = {}
    for line in reply.text.split("\n")[1:]:
        # Some old servers have AUTH=LOGIN instead of AUTH LOGIN.
        word, _, parameters = line.replace("AUTH=", "AUTH ").partition(" ")
        keyword = word.upper()
        offered[keyword] = f"{offered.get(keyword, '')} {parameters}".strip()
    return offered
