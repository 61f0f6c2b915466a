"""The queue of a command, and the ids and options that choose its entries."""
from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from collections.abc import Iterator

from postcommit._cli.output import Meter
from postcommit._cli.output import printable
from postcommit._cli.owner import act_as_owner
from postcommit._config.database import parse_database_url
from postcommit._kinds.operators import open_operators
from postcommit._mail.message import bare_id
from postcommit._maildir.item import EntryState
from postcommit._maildir.item import IOperators
from postcommit._maildir.item import Item
from postcommit._maildir.item import Step
from postcommit._maildir.item import no_step
from postcommit._queue.selection import Selection
from postcommit._queue.values import moment
from postcommit._queue.values import seconds_of
from postcommit.errors import ItemError
from postcommit.errors import OptionError
from postcommit.errors import shown
from postcommit.interfaces import is_database_url


ALL = "ALL"
STDIN = "-"

# The title of the first column of 'list'.
ID_TITLE = "ID"

Parser = argparse.ArgumentParser


def queue_argument(parser: Parser) -> None:
    """Add the place of a queue to the arguments."""
    text = "folder of the queue, or its URL, such as postgresql://host/db"
    parser.add_argument("queue", metavar="QUEUE", type=place, help=text)


def place(text: str) -> str:
    """Return `text`, a path or a URL that may work."""
    if is_database_url(text):
        try:
            parse_database_url(text)
        except OptionError as error:
            reason = f"{shown(error.value)}: {error.reason}"
            raise argparse.ArgumentTypeError(reason) from None
    return text


def operators(options: argparse.Namespace) -> IOperators:
    """Return the queue of `options`. As root, act as its owner from now on.

    Raises `QueueError` for a path that is not a queue.
    """
    if not is_database_url(options.queue):
        act_as_owner(options.queue)
    return open_operators(options.queue, adopt=vars(options).get("adopt", False))


def line(item: Item) -> str:
    """Return a line for an entry in doubt: id, name, and when it was written."""
    text = f"{item.id}  {printable(item.name)}"
    return text if item.accepted is None else f"{text}  written {moment(item.accepted)}"


def seconds(text: str) -> float:
    """Return the seconds of a duration, see `seconds_of`, for argparse."""
    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


# Chosen by options


def choice(parser: Parser, *states: EntryState, default: str) -> None:
    """Add options that choose entries of `states`. The help shows `default`."""
    group = parser.add_argument_group("which entries", f"By default {default}.")
    exclusive = group.add_mutually_exclusive_group()
    for state in states:
        exclusive.add_argument(
            f"--{state.key.replace('_', '-')}",
            dest="state",
            action="store_const",
            const=state,
            help=f"only {state.about}",
        )
    text = "only for this recipient: an address, @domain, or a pattern with *"
    group.add_argument("--to", metavar="ADDRESS", help=text)
    text = "only from this sender, likewise"
    group.add_argument("--from", dest="sender", metavar="ADDRESS", help=text)
    text = "only the entries of this message, as send() returned its id"
    group.add_argument("--message-id", metavar="ID", type=_message_id, help=text)
    for name, how in (("older", "more"), ("newer", "less")):
        text = f"only {how} than so long ago: 90 (seconds), 15m, 2h, 3d"
        group.add_argument(f"--{name}", metavar="AGE", type=seconds, help=text)


def _message_id(text: str) -> str:
    bare = bare_id(text)
    if not bare:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a message id")
    return bare


def chosen(options: argparse.Namespace, *default: EntryState) -> Selection:
    """Return the entries that the arguments of `choice` mean."""
    return Selection(
        (options.state,) if options.state else default,
        recipient=options.to or "",
        sender=options.sender or "",
        message_id=options.message_id or "",
        older=options.older,
        newer=options.newer,
    )


def meter(queue: IOperators, wanted: Selection, done: str) -> Meter:
    """Return a meter that shows the progress of a search for `wanted`."""
    return Meter(lambda: sum(1 for _ in queue.items(wanted.states)), done, sys.stderr)


# Chosen by ids


def ids_argument(parser: Parser, nargs: str, every: str) -> None:
    """Add ids to the arguments. `every` is the meaning of ``ALL``."""
    parser.add_argument(
        "ids",
        metavar="ID",
        nargs=nargs,
        default=[ALL],
        help="an id or the beginning of one, or a message id; - reads them from"
        f" standard input, as 'postcommit list' prints them; {ALL} means {every}",
    )


def given_ids(options: argparse.Namespace) -> list[str] | None:
    """Return the ids, also those of standard input, or None for ``ALL``.

    Raises `ItemError` if ids and ``ALL`` are mixed or misspelt, or if ids are missing.
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
    """Yield the ids in the output of ``list``, a table or JSON."""
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
    queue: IOperators,
    options: argparse.Namespace,
    *default: EntryState,
    step: Step = no_step,
) -> Iterator[Item]:
    """Yield the entries that the arguments mean, but none that is in doubt.

    The arguments are those of `ids_argument` and `choice`. `step` is as in
    `Selection.items`. Raises `ItemError` for an id without an entry, before it yields
    anything.
    """
    given = given_ids(options)
    if given is None:
        return chosen(options, *default).items(queue, step)
    if chosen(options) != Selection(states=()):
        reason = f"is an id, so no option may choose entries; only {ALL} takes them"
        raise ItemError(given[0], reason)
    items = queue.find(given)
    for item in items:
        if item.state is EntryState.IN_DOUBT:
            raise ItemError(item.id, "is in doubt; use 'postcommit recover'")
    return iter(items)
