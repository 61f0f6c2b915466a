"""``postcommit delete``: removes entries, so that they are never sent."""
from __future__ import annotations

import argparse
import sys

from postcommit.commands import arguments as args
from postcommit.commands import mend
from postcommit.commands.meter import Meter
from postcommit.commands.output import entries
from postcommit.errors import ItemError
from postcommit.queue.item import State


def arguments(parser: argparse.ArgumentParser) -> None:
    told = "ask nothing; without a terminal ALL needs it"
    parser.add_argument("--yes", action="store_true", help=told)
    mend.arguments(parser)
    args.queue(parser)
    args.adopt(parser)
    args.ids(parser, "+", "every entry that the options below choose")
    states = ("waiting", "deferred", "failed")
    args.choice(parser, *states, default="what waits or is deferred")


def run(options: argparse.Namespace) -> int:
    """Remove the entries; 1 if some were skipped, or the answer was no."""
    admin = args.admin(options)
    states = (State.WAITING, State.DEFERRED)
    wanted = args.chosen(options, *states)
    with args.meter(admin, wanted, "deleted") as meter:
        chosen = args.selected(admin, options, *states, step=meter.step)
        if not options.yes:
            # Just the entries that the question is about, not those that come later.
            counted = list(chosen)
            meter.wipe()
            if not _is_meant(len(counted), options):
                print("nothing deleted", file=sys.stderr)
                return 1
            meter = Meter(lambda: len(counted), "deleted", sys.stderr)
            chosen = args.counted(counted, meter.step)
        verbose = options.verbose
        with admin.changes():
            return mend.each(chosen, admin.delete, "deleted", meter, verbose=verbose)


def _is_meant(count: int, options: argparse.Namespace) -> bool:
    if sys.stdin.isatty():
        question = f"Delete {entries(count)} permanently? [y/N] "
        print(question, end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    if args.ALL in options.ids:
        raise ItemError(args.ALL, "needs --yes where nobody can be asked")
    return True
