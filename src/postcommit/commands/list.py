"""``postcommit list``: the entries of a queue, one a line."""
from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from postcommit.commands import arguments as args
from postcommit.commands.output import EXTRA
from postcommit.commands.output import Column
from postcommit.commands.output import Table
from postcommit.commands.output import addresses
from postcommit.commands.output import duration
from postcommit.commands.output import is_terminal
from postcommit.commands.output import print_json
from postcommit.commands.output import size
from postcommit.commands.output import timestamp
from postcommit.queue.item import Details
from postcommit.queue.item import State


_COLUMNS = (
    Column(args.ID_TITLE, 12, rank=0),
    Column("AGE", 6, rank=4, right=True),
    Column("NEXT", 6, rank=2, right=True),
    Column("TRIES", 5, rank=5, right=True),
    Column("SIZE", 5, rank=EXTRA + 1, right=True),
    Column("FROM", 16, rank=EXTRA),
    Column("TO", 18, rank=1),
    Column("LAST REPLY", 20, rank=3, may_be_cut=True),
)

_COLOURS = {State.FAILED: "red", State.IN_DOUBT: "yellow"}


def arguments(parser: argparse.ArgumentParser) -> None:
    args.queue(parser)
    told = "print a JSON object for each entry, one a line"
    parser.add_argument("--json", action="store_true", help=told)
    told = "show every column whole, also where the terminal is not as wide"
    parser.add_argument("--wide", action="store_true", help=told)
    states = ("waiting", "deferred", "failed", "in-doubt")
    args.choice(parser, *states, default="all but dead letters")


def run(options: argparse.Namespace) -> int:
    """Print the entries as they are found."""
    admin = args.admin(options)
    wanted = args.chosen(options, State.WAITING, State.DEFERRED, State.IN_DOUBT)
    with args.meter(admin, wanted, "found") as meter, Table(
        _COLUMNS, sys.stdout, wide=options.wide, before=meter.wipe
    ) as table:

        def step() -> None:
            meter.step()
            table.look()

        for read in args.found(admin, wanted, step):
            meter.hit()
            if options.json:
                meter.wipe()
                print_json(as_object(read))
            else:
                table.row(_row(read, time.time()), _COLOURS.get(read.item.state, ""))
    if not meter.hits and is_terminal(sys.stdout):
        hint = "" if State.FAILED in wanted.states else "; --failed lists dead letters"
        print(f"no entry found{hint}", file=sys.stderr)
    return 0


def _row(read: Details, now: float) -> list[str]:
    item = read.item
    accepted = read.changed if item.accepted is None else item.accepted
    return [
        item.id,
        duration(now - accepted),
        _next(read, now),
        str(read.attempts),
        size(read.size),
        read.sender or "<>",
        addresses(read.recipients),
        read.last_reply or read.problem,
    ]


def _next(read: Details, now: float) -> str:
    if read.due is None:
        return "in doubt" if read.item.state is State.IN_DOUBT else "never"
    return "now" if read.due <= now else duration(read.due - now)


def as_object(read: Details) -> dict[str, Any]:
    """Return what JSON has of an entry; what is not known is null."""
    item = read.item
    return {
        "id": item.id,
        "state": item.state.value.replace(" ", "_"),
        "name": item.name,
        "path": item.path,
        "message_id": read.message_id or None,
        "accepted": timestamp(item.accepted),
        "due": timestamp(read.due),
        "attempts": read.attempts,
        "sender": None if read.problem else read.sender,
        "recipients": list(read.recipients),
        "size": read.size,
        "last_reply": read.last_reply or None,
        "problem": read.problem or None,
    }
