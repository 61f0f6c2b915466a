"""``postcommit check``: is a queue sound, and what is to be done?"""
from __future__ import annotations

import argparse
import time

from postcommit.commands import arguments as args
from postcommit.commands.output import print_json
from postcommit.commands.output import printable
from postcommit.queue.check import check


def arguments(parser: argparse.ArgumentParser) -> None:
    args.queue(parser)
    told = "print a JSON object for each finding, one a line"
    parser.add_argument("--json", action="store_true", help=told)


def run(options: argparse.Namespace) -> int:
    """Print what is wrong; 1 if anything is."""
    admin = args.admin(options)
    is_sound = True
    for finding in check(admin.store, time.time()):
        is_sound = False
        if options.json:
            print_json(vars(finding))
        else:
            told = f"{finding.path}: {finding.problem}; {finding.advice}"
            print(printable(told))
    if is_sound and not options.json:
        print("the queue is sound")
    return 0 if is_sound else 1
