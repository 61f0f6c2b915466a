"""What several commands take: a queue, ids, a choice of entries, options."""
from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from zope.schema import Bool
from zope.schema import Choice
from zope.schema import Password

from postcommit.commands.owner import act_as_owner
from postcommit.errors import ItemError
from postcommit.errors import OptionError
from postcommit.queue.admin import Admin
from postcommit.queue.item import Details
from postcommit.queue.item import Item
from postcommit.queue.item import State
from postcommit.settings import fields_of
from postcommit.settings import option


ALL = "ALL"
STDIN = "-"

# What 'list' has above its first column.
ID_TITLE = "ID"

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

Parser = argparse.ArgumentParser


def queue(parser: Parser) -> None:
    """Have `parser` take the folder of a queue."""
    parser.add_argument("queue", metavar="QUEUE", help="folder of the queue")


def admin(options: argparse.Namespace) -> Admin:
    """Return the queue of `options`. As root, act as its owner from now on.

    Raises `QueueError` for a path that is not a queue.
    """
    act_as_owner(options.queue)
    return Admin(options.queue)


def seconds(text: str) -> float:
    """Return what a duration like ``90``, ``15m``, ``2h`` or ``3d`` means."""
    match = _DURATION.fullmatch(text)
    if match is None:
        reason = f"{text!r}: must be a duration such as 90, 15m, 2h or 3d"
        raise argparse.ArgumentTypeError(reason)
    return float(match[1]) * _SECONDS[match[2]]


# Which entries


@dataclass(frozen=True)
class Wanted:
    """Which entries: their states, and what else must be true of them."""

    states: tuple[State, ...]
    recipient: str | None
    sender: str | None
    older: float | None
    newer: float | None

    @property
    def needs_details(self) -> bool:
        return self.recipient is not None or self.sender is not None

    def has_age(self, item: Item) -> bool:
        """Tell whether the age of `item` is in range."""
        age = time.time() - (item.accepted or 0.0)
        return (self.older is None or age > self.older) and (
            self.newer is None or age < self.newer
        )

    def has_addresses(self, details: Details) -> bool:
        """Tell whether the envelope is as wanted."""
        return (self.sender is None or _like(details.sender, self.sender)) and (
            self.recipient is None
            or any(_like(address, self.recipient) for address in details.recipients)
        )


def _like(address: str, wanted: str) -> bool:
    """Tell whether `address` is the `wanted` one, or of its domain, or matches."""
    address, wanted = address.lower(), wanted.lower()
    if wanted.startswith("@"):
        wanted = f"*{wanted}"
    return fnmatchcase(address, wanted)


_STATES = {
    "waiting": State.WAITING,
    "deferred": State.DEFERRED,
    "failed": State.FAILED,
    "in-doubt": State.IN_DOUBT,
}
_STATES_TOLD = {
    "waiting": "those that were never tried",
    "deferred": "those that are tried again",
    "failed": "dead letters",
    "in-doubt": "what a crash has left between vote and finish",
}


def choice(parser: Parser, *states: str, default: str) -> None:
    """Have `parser` take which entries; without, `default` says which."""
    group = parser.add_argument_group("which entries", f"By default {default}.")
    exclusive = group.add_mutually_exclusive_group()
    for name in states:
        exclusive.add_argument(
            f"--{name}",
            dest="state",
            action="store_const",
            const=name,
            help=f"only {_STATES_TOLD[name]}",
        )
    told = "only for this recipient: an address, @domain, or a pattern with *"
    group.add_argument("--to", metavar="ADDRESS", help=told)
    told = "only from this sender, likewise"
    group.add_argument("--from", dest="sender", metavar="ADDRESS", help=told)
    for name, told in (("older", "more"), ("newer", "less")):
        text = f"only {told} than so long ago: 90 (seconds), 15m, 2h, 3d"
        group.add_argument(f"--{name}", metavar="AGE", type=seconds, help=text)


def chosen(options: argparse.Namespace, *default: State) -> Wanted:
    """Return what the arguments of `choice` say."""
    states = (_STATES[options.state],) if options.state else default
    return Wanted(states, options.to, options.sender, options.older, options.newer)


def matching(admin: Admin, wanted: Wanted) -> Iterator[Item]:
    """Yield the items that are `wanted`, as they are found."""
    for item in admin.items(*wanted.states):
        if not wanted.has_age(item):
            continue
        if wanted.needs_details:
            read = admin.details(item)
            if read is None or not wanted.has_addresses(read):
                continue
        yield item


def ids(parser: Parser, nargs: str, every: str) -> None:
    """Have `parser` take ids; `every` is what ``ALL`` means."""
    parser.add_argument(
        "ids",
        metavar="ID",
        nargs=nargs,
        default=[ALL],
        help="an id, or the beginning of one; - reads them from standard input, as"
        f" 'postcommit list' prints them; {ALL} means {every}",
    )


def given_ids(options: argparse.Namespace) -> list[str] | None:
    """Return the ids, those of standard input too; None for all of them.

    Raises `ItemError` where ids and ``ALL`` are mixed up or misspelt, or there is none.
    """
    found: list[str] = []
    for given in options.ids:
        if given == STDIN:
            found += _ids_in(sys.stdin)
        else:
            found.append(given)
    if not found:
        raise ItemError(STDIN, "there is no id on standard input, so nothing to do")
    if ALL not in found:
        for given in found:
            if given.upper() == ALL:
                raise ItemError(given, f"has to be in capitals: {ALL}")
        return found
    if len(found) > 1:
        raise ItemError(ALL, "means every entry, give no other id with it")
    return None


def _ids_in(lines: Iterable[str]) -> Iterator[str]:
    """Yield the ids in what ``list`` prints, as a table or as JSON."""
    for line in lines:
        word = line.partition(" ")[0].strip()
        if line.startswith("{"):
            yield _id_in(line)
        elif word not in ("", ID_TITLE):
            yield word


def _id_in(line: str) -> str:
    try:
        return str(json.loads(line)["id"])
    except (ValueError, KeyError) as error:
        reason = "is no line of JSON with an id, as 'postcommit list --json' prints it"
        raise ItemError(line.strip(), reason) from error


def selected(
    admin: Admin, options: argparse.Namespace, *default: State
) -> Iterator[Item]:
    """Yield what the arguments of `ids` and `choice` mean, nothing in doubt.

    Raises `ItemError`, before it yields anything, for an id that means nothing.
    """
    given = given_ids(options)
    if given is None:
        return matching(admin, chosen(options, *default))
    if any((options.state, options.to, options.sender, options.older, options.newer)):
        reason = f"give ids, or {ALL} and which entries, but not both"
        raise ItemError(given[0], reason)
    found = admin.find(given)
    for item in found:
        if item.state is State.IN_DOUBT:
            raise ItemError(item.id, "is in doubt; use 'postcommit recover'")
    return iter(found)


# Options of the schemas


def options_of(parser: Parser, title: str, schema: Any, *without: str) -> None:
    """Have `parser` take what `schema` has, but what no command line may have."""
    group = parser.add_argument_group(title)
    for name, field in fields_of(schema).items():
        if name in without or isinstance(field, Password):
            continue
        kind: dict[str, Any] = {"metavar": _metavar(field), "type": _type(schema, name)}
        if isinstance(field, Bool):
            kind = {"action": argparse.BooleanOptionalAction}
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            default=None,
            help=_help(field).replace("%", "%%"),
            **kind,
        )


def _type(schema: Any, name: str) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return option(schema, name, text)
        except OptionError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error.reason}") from error

    return convert


def _metavar(field: Any) -> str:
    if isinstance(field, Choice):
        return "|".join(term.value for term in field.vocabulary)
    return "TEXT" if field.default is None or isinstance(field.default, str) else "N"


def _help(field: Any) -> str:
    told = str(field.description).rstrip(".")
    told = told[:1].lower() + told[1:] if told[1:2].islower() else told
    return told if field.default is None else f"{told} (default: {field.default})"
