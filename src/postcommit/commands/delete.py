"""``postcommit delete``: entries are removed, and nobody gets them."""
from __future__ import annotations

import argparse
import sys

from postcommit.commands import arguments as args
from postcommit.commands import mend
from postcommit.errors import ItemError
from postcommit.queue.item import State


def arguments(parser: argparse.ArgumentParser) -> None:
    told = "ask nothing; without a terminal ALL needs it"
    parser.add_argument("--yes", action="store_true", help=told)
    args.queue(parser)
    args.ids(parser, "+", "every entry that the options below choose")
    states = ("waiting", "deferred", "failed")
    args.choice(parser, *states, default="what waits or is deferred")


def run(options: argparse.Namespace) -> int:
    """Remove the entries; 1 if some were left, or the answer was no."""
    admin = args.admin(options)
    chosen = args.selected(admin, options, State.WAITING, State.DEFERRED)
    with admin.changes():
        if not options.yes:
            # Just those that the question is about, not what comes meanwhile.
            counted = list(chosen)
            if not _is_meant(len(counted), options):
                print("nothing is deleted", file=sys.stderr)
                return 1
            chosen = iter(counted)
        return mend.each(chosen, admin.delete, "deleted")


def _is_meant(count: int, options: argparse.Namespace) -> bool:
    if sys.stdin.isatty():
        print(f"Delete {count} for good? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    if args.ALL in options.ids:
        raise ItemError(args.ALL, "needs --yes where nobody can be asked")
    return True
