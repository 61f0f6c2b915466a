"""``postcommit show``: all about one entry: envelope, history and header."""
from __future__ import annotations

import argparse
import re
import shutil
import sys
import time
from collections.abc import Iterator
from email.errors import HeaderParseError
from email.header import decode_header
from email.header import make_header

from postcommit.commands import arguments as args
from postcommit.commands.list import as_object
from postcommit.commands.output import duration
from postcommit.commands.output import moment
from postcommit.commands.output import print_json
from postcommit.commands.output import printable
from postcommit.commands.output import size
from postcommit.errors import ItemError
from postcommit.files import explained
from postcommit.queue.item import Details
from postcommit.queue.item import Item
from postcommit.queue.item import State
from postcommit.queue.item import open_file


# Between a line and the one that continues it (RFC 5322, 2.2.3).
_FOLD = re.compile(r"\r?\n[ \t]+")

_BLANK_LINE = re.compile(rb"^\r?\n", re.MULTILINE)

_ADVICE = {
    State.WAITING: "a processor tries it next; 'postcommit flush' does so now",
    State.DEFERRED: "'postcommit retry' makes it due now",
    State.FAILED: "'postcommit retry' sends it, 'postcommit delete' removes it",
    State.IN_DOUBT: "'postcommit recover' sends or drops it",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    args.queue(parser)
    told = "its id or the beginning of it, as 'postcommit list' shows it; or the"
    told += " message id that send() returned, for every entry of that message"
    parser.add_argument("id", metavar="ID", help=told)
    form = parser.add_mutually_exclusive_group()
    told = "write the file as it is, envelope and message"
    form.add_argument("--raw", action="store_true", help=told)
    told = "print a JSON object for each entry, one a line"
    form.add_argument("--json", action="store_true", help=told)


def run(options: argparse.Namespace) -> int:
    """Print the entry, or each of a message. Raises `ItemError` if it is gone."""
    admin = args.admin(options)
    items = admin.find([options.id])
    if options.raw:
        if len(items) > 1:
            told = ", ".join(item.id for item in items)
            raise ItemError(options.id, f"has {len(items)} entries, give one: {told}")
        _copy(items[0])
        return 0
    for number, item in enumerate(items):
        read = admin.details(item)
        if read is None:
            raise _gone(item)
        if options.json:
            print_json({**as_object(read), "header": _header(read)})
        else:
            if number:
                print()
            _print(read)
    return 0


def _print(read: Details) -> None:
    for title, told in _lines(read, time.time()):
        print(f"{title:<11} {printable(told)}".rstrip())
    print()
    for line in _fields(_header(read)):
        print(printable(line))


def _fields(header: str) -> Iterator[str]:
    """Yield the fields of a header as people read them: unfolded and decoded."""
    # Only these line ends: a message may have others, which would look like a field.
    for field in filter(None, re.split("\r?\n", _FOLD.sub(" ", header))):
        name, colon, value = field.partition(":")
        yield f"{name}{colon}{_decoded(value)}"


def _decoded(value: str) -> str:
    """Decode the encoded words in a field (RFC 2047); as it is if that fails."""
    if "=?" not in value:
        return value
    try:
        return " " + str(make_header(decode_header(value))).strip()
    except (HeaderParseError, LookupError, ValueError):
        return value


def _copy(item: Item) -> None:
    sys.stdout.flush()
    with explained(item.path, "read the entry"):
        try:
            file = open_file(item)
        except FileNotFoundError as error:
            raise _gone(item) from error
    with file:
        shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _gone(item: Item) -> ItemError:
    return ItemError(item.id, "is gone: it was sent, or deleted, just now")


def _lines(read: Details, now: float) -> Iterator[tuple[str, str]]:
    item = read.item
    yield "id", item.id
    yield "state", f"{item.state.value}; {_ADVICE[item.state]}"
    yield "file", item.path
    yield "size", size(read.size)
    if item.accepted is not None:
        yield "accepted", _ago(item.accepted, now)
    if read.due is not None:
        wait = "now" if read.due <= now else f"in {duration(read.due - now)}"
        yield "due", f"{moment(read.due)}, {wait}"
    if item.state is State.FAILED:
        yield "given up", _ago(read.changed, now)
    if read.problem:
        yield "problem", read.problem
        return
    yield "attempts", str(read.attempts)
    yield "last reply", read.last_reply or "-"
    if read.message_id:
        yield "message id", read.message_id
    yield "from", read.sender or "<>"
    for number, recipient in enumerate(read.recipients):
        yield "" if number else "to", recipient


def _ago(then: float, now: float) -> str:
    return f"{moment(then)}, {duration(now - then)} ago"


def _header(read: Details) -> str:
    """Return the header of the message, as far as it was read."""
    blank = _BLANK_LINE.search(read.head)
    header = read.head[: blank.start()] if blank else read.head
    return header.decode("utf-8", "backslashreplace")
