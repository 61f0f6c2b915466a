"""``postcommit recover``: what a crash has left in doubt is sent, or dropped."""
from __future__ import annotations

import argparse

from postcommit.commands import arguments as args
from postcommit.commands.output import entries
from postcommit.commands.output import moment
from postcommit.commands.output import printable
from postcommit.errors import ItemError
from postcommit.queue.item import Item
from postcommit.queue.item import State


def arguments(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--send", action="store_true", help="the transactions did commit: send them"
    )
    choice.add_argument(
        "--drop", action="store_true", help="they did not commit: remove them"
    )
    args.queue(parser)
    args.adopt(parser)
    args.ids(parser, "*", "all that is in doubt; with --send, so does no id")
    parser.set_defaults(ids=[])


def run(options: argparse.Namespace) -> int:
    """Send or drop what is in doubt, and say so for each."""
    if not options.ids:
        if options.drop:
            needed = f"needs ids, or {args.ALL} for all that is in doubt"
            raise ItemError("--drop", needed)
        options.ids = [args.ALL]
    admin = args.admin(options)
    ids = args.given_ids(options)
    if ids is None:
        items = list(admin.items(State.IN_DOUBT))
    else:
        items = admin.find(ids)
        for item in items:
            if item.state is not State.IN_DOUBT:
                raise ItemError(item.id, f"is not in doubt but {item.state.value}")
    done = "accepted" if options.send else "removed"
    count = 0
    if not items:
        print("nothing is in doubt")
    with admin.changes():
        for item in admin.recover(items, send=options.send):
            print(f"{done}  {_shown(item)}")
            count += 1
    if count < len(items):
        skipped = entries(len(items) - count)
        print(f"{skipped} skipped: another command is recovering them now")
        return 1
    return 0


def _shown(item: Item) -> str:
    shown = f"{item.id}  {printable(item.name)}"
    if item.accepted is not None:
        shown += f"  written {moment(item.accepted)}"
    return shown
