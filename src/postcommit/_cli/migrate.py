"""``postcommit migrate``: creates the tables of a queue, or upgrades them."""
from __future__ import annotations

import argparse

from postcommit._config.database import parse_database_url


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "URL of the queue, such as postgresql://host/db; its role must be able to"
    text += " create a schema, or be the owner of one that is empty"
    parser.add_argument("url", metavar="URL", help=text)


def run(options: argparse.Namespace) -> int:
    """Create or upgrade the tables, and print what was done."""
    url = parse_database_url(options.url, "URL")
    from postcommit._postgres.schema import migrate

    done = migrate(url)
    if done.before == done.now:
        print(f"nothing to do: the schema {url.schema} has version {done.now}")
    else:
        print(f"created the schema {url.schema}, version {done.now}")
    return 0
