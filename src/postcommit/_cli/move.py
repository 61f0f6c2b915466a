"""``postcommit move``: moves the entries of a queue between a folder and a database.

Each entry is claimed, kept in the other queue, and then removed. The command may be
interrupted, and run again. If it is killed before the removal, the entry is in both
queues. If a processor of either queue sends it before the next run, it is sent twice.
"""
from __future__ import annotations

import argparse

from postcommit._cli import selection
from postcommit._cli.owner import act_as_owner
from postcommit._kinds.operators import open_moving
from postcommit._kinds.operators import open_operators
from postcommit._maildir.item import EntryState
from postcommit._queue.values import entries
from postcommit.errors import OptionError
from postcommit.interfaces import is_database_url


# Those in doubt belong to a transaction that only `recover` can decide.
_STATES = [state for state in EntryState if state is not EntryState.IN_DOUBT]


def arguments(parser: argparse.ArgumentParser) -> None:
    selection.queue_argument(parser)
    text = "where to: a folder, which is created if it is missing, or a URL"
    parser.add_argument("target", metavar="TARGET", type=selection.place, help=text)


def run(options: argparse.Namespace) -> int:
    """Move what can be moved. Return 1 if something is left."""
    source, target = options.queue, options.target
    is_url = [bool(is_database_url(place)) for place in (source, target)]
    if is_url[0] == is_url[1]:
        reason = "must be a folder if QUEUE is a URL, and a URL if it is a folder"
        raise OptionError("TARGET", target, reason)
    act_as_owner(source if is_url[1] else target, create=not is_url[1])
    queue, here = open_operators(source), open_moving(source)
    there = open_moving(target)
    count = left = 0
    with queue.changes():
        for item in queue.items(_STATES):
            with here.leaving(item) as moving:
                if moving is None:
                    left += 1
                else:
                    there.arrive(moving)
                    count += 1
    doubts = sum(1 for _ in queue.items([EntryState.IN_DOUBT]))
    print(f"{entries(count)} moved")
    if left:
        print(f"{entries(left)} left: being sent, or not an entry")
    if doubts:
        print(f"{doubts} in doubt left; 'postcommit recover' sends or drops them")
    return 1 if left or doubts else 0
