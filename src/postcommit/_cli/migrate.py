"""``postcommit migrate``: creates the tables of a queue, or upgrades them."""
from __future__ import annotations

import argparse

from postcommit._config.database import parse_database_url


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "URL of the queue, such as postgresql://host/db; its role must be able to"
    text += " create a schema, or be the owner of one that is empty"
    parser.add_argument("url", metavar="URL", help=text)
    parser.add_argument(
        "--notify",
        action=argparse.BooleanOptionalAction,
        help="wake waiting processors by NOTIFY, for which commits wait for each other"
        " (default: as it is; a new queue does not notify)",
    )


def run(options: argparse.Namespace) -> int:
    """Create or upgrade the tables, and print what was done."""
    url = parse_database_url(options.url, "URL")
    from postcommit._postgres.schema import migrate

    done = migrate(url, notify=options.notify)
    if done.before == done.now and options.notify is not None:
        changed = "notifies" if options.notify else "does not notify"
        print(f"the schema {url.schema} {changed} its processors")
    elif done.before == done.now:
        print(f"nothing to do: the schema {url.schema} has version {done.now}")
    else:
        print(f"created the schema {url.schema}, version {done.now}")
    return 0
