"""``postcommit retry``: what is deferred, or a dead letter, is tried again now."""
from __future__ import annotations

import argparse

from postcommit.commands import arguments as args
from postcommit.commands import mend
from postcommit.queue.item import State


def arguments(parser: argparse.ArgumentParser) -> None:
    args.queue(parser)
    args.ids(parser, "+", "every entry that the options below choose")
    args.choice(parser, "deferred", "failed", default="what is deferred")


def run(options: argparse.Namespace) -> int:
    """Make the entries due; 1 if some were left."""
    admin = args.admin(options)
    chosen = args.selected(admin, options, State.DEFERRED)
    with admin.changes():
        return mend.each(chosen, admin.retry, "to be tried")
