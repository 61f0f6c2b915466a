"""The commands for an operator: ``status`` and ``recover``."""
from __future__ import annotations

import argparse
from datetime import datetime

from postcommit.queue.admin import Admin
from postcommit.queue.admin import Doubt


def queue_argument(parser: argparse.ArgumentParser) -> None:
    """Have `parser` take the folder of a queue."""
    parser.add_argument("queue", metavar="QUEUE", help="folder of the queue")


def status(options: argparse.Namespace) -> int:
    """Print how many entries are in which state, and each that is in doubt.

    Returns 1 if something is in doubt.
    """
    admin = Admin(options.queue)
    counts = admin.counts()
    print(f"{counts.waiting:>8}  waiting, never tried")
    print(f"{counts.deferred:>8}  deferred")
    print(f"{counts.failed:>8}  dead letters")
    print(f"{counts.in_doubt:>8}  in doubt")
    for doubt in admin.in_doubt():
        print(f"          {_shown(doubt)}")
    return 1 if counts.in_doubt else 0


def recover_arguments(parser: argparse.ArgumentParser) -> None:
    """Have `parser` take what `recover` needs."""
    queue_argument(parser)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--send", action="store_true", help="the transactions did commit: send them"
    )
    choice.add_argument(
        "--drop", action="store_true", help="they did not commit: remove them"
    )


def recover(options: argparse.Namespace) -> int:
    """Send or drop all that is in doubt, and say so for each."""
    admin = Admin(options.queue)
    done = "accepted" if options.send else "removed"
    for doubt in list(admin.in_doubt()):
        if options.send:
            admin.send(doubt)
        else:
            admin.drop(doubt)
        print(f"{done}  {_shown(doubt)}")
    return 0


def _shown(doubt: Doubt) -> str:
    if doubt.accepted is None:
        return doubt.name
    sent = datetime.fromtimestamp(doubt.accepted).astimezone()
    return f"{doubt.name}  sent {sent:%Y-%m-%d %H:%M:%S %z}"
