"""``postcommit retry``: what is deferred, or a dead letter, is tried again now."""
from __future__ import annotations

import argparse

from postcommit.commands import arguments as args
from postcommit.commands import mend
from postcommit.queue.item import State


def arguments(parser: argparse.ArgumentParser) -> None:
    args.queue(parser)
    mend.arguments(parser)
    args.adopt(parser)
    args.ids(parser, "+", "every entry that the options below choose")
    args.choice(parser, "deferred", "failed", default="what is deferred")


def run(options: argparse.Namespace) -> int:
    """Make the entries due; 1 if some were skipped."""
    admin = args.admin(options)
    wanted = args.chosen(options, State.DEFERRED)
    verbose = options.verbose
    with args.meter(admin, wanted, "retried") as meter:
        chosen = args.selected(admin, options, State.DEFERRED, step=meter.step)
        with admin.changes():
            done = "will be retried"
            return mend.each(chosen, admin.retry, done, meter, verbose=verbose)
