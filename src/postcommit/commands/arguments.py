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
from zope.schema import Float
from zope.schema import Int
from zope.schema import Password

from postcommit.commands.meter import Meter
from postcommit.commands.owner import act_as_owner
from postcommit.errors import ItemError
from postcommit.errors import OptionError
from postcommit.errors import shown
from postcommit.options import fields_of
from postcommit.options import parsed
from postcommit.queue.admin import Admin
from postcommit.queue.item import Details
from postcommit.queue.item import Item
from postcommit.queue.item import State
from postcommit.queue.search import bare_id
from postcommit.queue.search import with_addresses
from postcommit.queue.search import with_message_ids


ALL = "ALL"
STDIN = "-"

# What 'list' has above its first column.
ID_TITLE = "ID"

_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}

Parser = argparse.ArgumentParser

# Called once for each entry that was looked at.
Step = Callable[[], None]


def _no_step() -> None:
    """Nobody wants to see how far a search is."""


def queue(parser: Parser) -> None:
    """Have `parser` take the folder of a queue."""
    parser.add_argument("queue", metavar="QUEUE", help="folder of the queue")


def admin(options: argparse.Namespace) -> Admin:
    """Return the queue of `options`. As root, act as its owner from now on.

    Raises `QueueError` for a path that is not a queue.
    """
    act_as_owner(options.queue)
    return Admin(options.queue, adopt=vars(options).get("adopt", False))


def adopt(parser: Parser) -> None:
    """Have `parser` take whether a folder that may be a mailbox is a queue."""
    told = "take the folder for a queue, even if it looks like a person's mailbox"
    parser.add_argument("--adopt", action="store_true", help=told)


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
    recipient: str | None = None
    sender: str | None = None
    message_id: str | None = None
    older: float | None = None
    newer: float | None = None

    @property
    def addresses(self) -> list[str]:
        """The patterns of addresses, of which each has to match one."""
        return [pattern for pattern in (self.recipient, self.sender) if pattern]

    @property
    def needs_details(self) -> bool:
        """Whether only the file of an entry tells if it is meant."""
        return bool(self.addresses or self.message_id)

    def has_age(self, item: Item) -> bool:
        """Tell whether the age of `item` is in range."""
        if self.older is None and self.newer is None:
            return True
        age = time.time() - (item.accepted or 0.0)
        return (self.older is None or age > self.older) and (
            self.newer is None or age < self.newer
        )

    def has_addresses(self, details: Details) -> bool:
        """Tell whether the envelope is as wanted."""
        return (not self.sender or _like(details.sender, self.sender)) and (
            not self.recipient
            or any(_like(address, self.recipient) for address in details.recipients)
        )


def _like(address: str, wanted: str) -> bool:
    """Tell whether `address` is the `wanted` one, or of its domain, or matches."""
    address, wanted = address.lower(), wanted.lower()
    if wanted.startswith("@"):
        wanted = f"*{wanted}"
    # In a domain such as [192.0.2.1], the brackets are not those of a pattern.
    return address == wanted or fnmatchcase(address, wanted)


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
    told = "only the entries of this message, as send() returned its id"
    group.add_argument("--message-id", metavar="ID", type=_message_id, help=told)
    for name, told in (("older", "more"), ("newer", "less")):
        text = f"only {told} than so long ago: 90 (seconds), 15m, 2h, 3d"
        group.add_argument(f"--{name}", metavar="AGE", type=seconds, help=text)


def chosen(options: argparse.Namespace, *default: State) -> Wanted:
    """Return what the arguments of `choice` say."""
    states = (_STATES[options.state],) if options.state else default
    return Wanted(
        states,
        options.to,
        options.sender,
        options.message_id,
        options.older,
        options.newer,
    )


def _message_id(text: str) -> str:
    bare = bare_id(text)
    if not bare:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a message id")
    return bare


def found(admin: Admin, wanted: Wanted, step: Step = _no_step) -> Iterator[Details]:
    """Yield what the files of the entries say that are `wanted`, as they are found.

    `step` is called once for each entry that was looked at.
    """
    candidates = filter(wanted.has_age, counted(admin.items(*wanted.states), step))
    if wanted.message_id:
        reads = with_message_ids(candidates, [wanted.message_id])
    else:
        reads = with_addresses(candidates, wanted.addresses)
    for read in reads:
        if read is not None and wanted.has_addresses(read):
            yield read


def matching(admin: Admin, wanted: Wanted, step: Step = _no_step) -> Iterator[Item]:
    """Yield the items that are `wanted`, as they are found; `step` is as in `found`."""
    if wanted.needs_details:
        yield from (read.item for read in found(admin, wanted, step))
    else:
        items = counted(admin.items(*wanted.states), step)
        yield from filter(wanted.has_age, items)


def meter(admin: Admin, wanted: Wanted, done: str) -> Meter:
    """Return what shows on a terminal how far a search for `wanted` is."""
    return Meter(lambda: sum(1 for _ in admin.items(*wanted.states)), done, sys.stderr)


def counted(items: Iterable[Item], step: Step) -> Iterator[Item]:
    """Yield `items`, and call `step` before each."""
    for item in items:
        step()
        yield item


def ids(parser: Parser, nargs: str, every: str) -> None:
    """Have `parser` take ids; `every` is what ``ALL`` means."""
    parser.add_argument(
        "ids",
        metavar="ID",
        nargs=nargs,
        default=[ALL],
        help="an id or the beginning of one, or a message id; - reads them from"
        f" standard input, as 'postcommit list' prints them; {ALL} means {every}",
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
        raise ItemError(STDIN, "finds no id on standard input, so nothing is done")
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
    admin: Admin,
    options: argparse.Namespace,
    *default: State,
    step: Step = _no_step,
) -> Iterator[Item]:
    """Yield what the arguments of `ids` and `choice` mean, nothing in doubt.

    `step` is as in `found`. Raises `ItemError`, before it yields anything, for an id
    that means nothing.
    """
    given = given_ids(options)
    if given is None:
        return matching(admin, chosen(options, *default), step)
    wanted = chosen(options)
    if wanted != Wanted(states=()):
        reason = f"is an id, so no option may choose entries; only {ALL} takes them"
        raise ItemError(given[0], reason)
    items = admin.find(given)
    for item in items:
        if item.state is State.IN_DOUBT:
            raise ItemError(item.id, "is in doubt; use 'postcommit recover'")
    return iter(items)


# Options of the schemas


def options_of(parser: Parser, title: str, schema: Any, *without: str) -> None:
    """Have `parser` take what `schema` has, but what no command line may have."""
    group = parser.add_argument_group(title)
    for name, field in fields_of(schema).items():
        if name in without or isinstance(field, Password):
            continue
        convert = _type(schema, field.__name__)
        kind: dict[str, Any] = {"metavar": _metavar(field), "type": convert}
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
            return parsed(schema, name, text)
        except OptionError as error:
            reason = f"{shown(error.value)}: {error.reason}"
        raise argparse.ArgumentTypeError(reason)

    return convert


def _metavar(field: Any) -> str:
    if isinstance(field, Choice):
        return "|".join(term.value for term in field.vocabulary)
    return "N" if isinstance(field, Int | Float) else "TEXT"


def _help(field: Any) -> str:
    told = str(field.description).rstrip(".")
    told = told[:1].lower() + told[1:] if told[1:2].islower() else told
    return f"{told} (default: {_shown(field.default)})"


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, float):
        return f"{default:.10g}"
    return "none" if default is None else str(default)
