"""Replies on the wire (RFC 5321, 4.2) as `Reply` objects: pure functions.

A reply is read leniently, because a strict reader would send a message again that the
relay has already taken. Three digits that no digit follows are a code, whatever comes
then: ``250ok``, a tab, two carriage returns, bytes that are not ASCII. A line ends with
LF, and any CRs before it belong to the line end. Postfix reads replies in the same way,
except that it skips a line whose code is not followed by a space, a hyphen or the line
end.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from postcommit.errors import RelayError
from postcommit.log import printable
from postcommit.report import Reply


# Maximum bytes of all lines of a reply. RFC 5321, 4.5.3.1.5 allows 512 for each line. A
# relay shall not fill our memory.
MAX_REPLY = 1 << 16

# Replaces a character that could act on the terminal that shows the log.
_INSTEAD = "\N{REPLACEMENT CHARACTER}"

# Maximum bytes of a reply of one line that is cached when it was parsed.
_SHORT = 128

_CODE = re.compile(rb"([2-5][0-9][0-9])(?![0-9])[ \t-]?")
_LAST = re.compile(rb"[2-5][0-9][0-9](?![0-9-])")
_ENHANCED = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: +|\Z)")


def take(data: bytes, start: int) -> tuple[Reply, int] | None:
    """Return the reply that begins at `start`, and where it ends.

    None if it is not complete yet. Raises `RelayError` if its first line has no code,
    or if it is longer than `MAX_REPLY`.
    """
    end = data.find(b"\n", start) + 1
    if end and end - start <= _SHORT and data[start + 3 : start + 4] != b"-":
        return _parse_short(data[start:end]), end
    return _take_long(data, start)


def take_all(data: bytes, start: int) -> Sequence[Reply]:
    """Return the replies from `start` on, if each is one short line, otherwise none.

    `take` then reads one after the other.
    """
    rest = data[start:]
    return _parse_lines(rest) if len(rest) <= 4 * _SHORT else ()


def begun(data: bytes, start: int) -> Reply | None:
    """Return what there is of the reply at `start`, which has no end.

    None if it has no code yet.
    """
    try:
        return parse(data[start : start + MAX_REPLY])
    except RelayError:
        return None


def _take_long(data: bytes, start: int) -> tuple[Reply, int] | None:
    end = start
    while True:
        line = end
        end = data.find(b"\n", line) + 1
        if (end or len(data)) - start > MAX_REPLY:
            raise RelayError(f"the relay's reply is longer than {MAX_REPLY} bytes")
        if not end:
            return None
        if line == start:
            _code(data[line:end])
        if _LAST.match(data, line):
            return parse(data[start:end]), end


def parse(data: bytes) -> Reply:
    """Return the reply `data` as an object.

    If its lines have several codes, the last one counts (RFC 5321, 4.2.1). A line
    without a code that is not the first is text. Raises `RelayError` if the first line
    has no code.
    """
    lines = data.removesuffix(b"\n").split(b"\n")
    code = _code(lines[0])
    texts = []
    for line in lines:
        found = _CODE.match(line)
        if found is not None:
            code = int(found[1])
            line = line[found.end() :]
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        texts.append(printable(text.replace("\t", " "), _INSTEAD))
    return _reply(code, texts)


def _code(line: bytes) -> int:
    found = _CODE.match(line)
    if found is None:
        shown = line[:80].decode("ascii", "backslashreplace").strip()
        raise RelayError(f"the relay's reply is not SMTP: {shown!r}")
    return int(found[1])


# Most replies to an envelope are the same for every message.
_parse_short = lru_cache(256)(parse)


@lru_cache(64)
def _parse_lines(data: bytes) -> Sequence[Reply]:
    lines = data.split(b"\n")
    if lines.pop() or any(line[3:4] == b"-" for line in lines):
        return ()
    try:
        return tuple(map(parse, lines))
    except RelayError:
        return ()


def _reply(code: int, texts: list[str]) -> Reply:
    enhanced = ""
    for text in texts:
        found = _ENHANCED.match(text)
        if found is not None and found[1][0] == str(code)[0]:
            enhanced, prefix = found[1], found[0]
            # RFC 2034, 4: the enhanced code is repeated on each line.
            texts = [text.removeprefix(prefix) for text in texts]
            break
    return Reply(code, enhanced, "\n".join(texts))


def extensions_of(reply: Reply) -> dict[str, str]:
    """Return what a reply to EHLO offers: keywords, upper case, to parameters."""
    offered: dict[str, str] = {}
    for line in reply.text.split("\n")[1:]:
        # Some old servers have AUTH=LOGIN instead of AUTH LOGIN.
        word, _, parameters = line.replace("AUTH=", "AUTH ").partition(" ")
        keyword = word.upper()
        offered[keyword] = f"{offered.get(keyword, '')} {parameters}".strip()
    return offered
