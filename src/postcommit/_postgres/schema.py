"""The schema of a queue: created and upgraded by one command, and checked at start."""
from __future__ import annotations

from importlib.resources import files
from typing import NamedTuple

import psycopg

from postcommit._config.database import DatabaseURL
from postcommit._mail.row import VERSION
from postcommit._mail.row import check_version
from postcommit._postgres import listening
from postcommit._postgres.connections import Connection
from postcommit._postgres.connections import Connections
from postcommit.errors import QueueError


# The rights that each part of the work needs, by table.
Rights = dict[str, tuple[str, ...]]
SENDER: Rights = {"entry": ("INSERT",), "removed": ("SELECT",)}
PROCESSOR: Rights = {
    "entry": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "process": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "pace": ("SELECT", "UPDATE"),
    "stopped": ("SELECT",),
    "removed": ("SELECT", "DELETE"),
}
READER: Rights = {
    "entry": ("SELECT",),
    "process": ("SELECT",),
    "batch": ("SELECT",),
    "stopped": ("SELECT",),
}

_NEEDS_UTF8 = "has the encoding {}; create a database with the encoding UTF8"

_VERSION = """
select number, current_setting('default_transaction_isolation')
from {schema}.version"""

# A lock that ends with the transaction. The number means nothing.
_ONE_AT_A_TIME = b"select pg_advisory_xact_lock(7035620170114)"

# What fails if there are tables with the names of ours.
_OF_ANOTHER = (psycopg.errors.DuplicateTable, psycopg.errors.UndefinedColumn)

_RIGHT = "select has_table_privilege(%(table)s, %(right)s)"


class Migration(NamedTuple):
    """The version of the tables before, or 0 without tables, and their version now."""

    before: int
    now: int


def migrate(url: DatabaseURL, *, notify: bool | None = None) -> Migration:
    """Create the tables of a queue in one transaction, or upgrade them.

    `notify` is whether the database wakes waiting processors by NOTIFY. None leaves
    this as it is, and a new queue does not notify. Raises `QueueError` for a newer
    version, and for a database that is not UTF-8.
    """
    connections = Connections(url)
    try:
        with connections.transaction("create the tables") as connection:
            # Several containers that start together may do this at once.
            connection.execute(_ONE_AT_A_TIME)
            done = _migrate(connection, connections, url)
            if notify is not None:
                change = listening.ON if notify else listening.OFF
                connection.execute(connections.sql(change))
            return done
    except QueueError as error:
        if isinstance(error.__cause__, _OF_ANOTHER):
            raise _not_ours(url) from error
        raise
    finally:
        connections.close()


def _migrate(
    connection: Connection, connections: Connections, url: DatabaseURL
) -> Migration:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        raise QueueError(url.name, _NEEDS_UTF8.format(encoding))
    if not _has(connection, "to_regclass", f"{url.quoted}.version"):
        # It may have been created for a role that may not do that itself.
        if not _has(connection, "to_regnamespace", url.quoted):
            connection.execute(connections.sql("create schema {schema}"))
        text = files("postcommit._postgres").joinpath("schema.sql").read_text("utf-8")
        connection.execute(connections.sql(text))
        return Migration(0, VERSION)
    connection.execute(connections.sql("lock table {schema}.version"))
    found = connection.execute(connections.sql("select number from {schema}.version"))
    before = (found.fetchone() or (0,))[0]
    check_version(url.name, before, url.name)
    return Migration(before, VERSION)


def _has(connection: Connection, function: str, name: str) -> bool:
    """Return whether there is a table or schema called `name`."""
    query = f"select {function}(%(name)s) is not null".encode()
    [found] = connection.execute(query, {"name": name})
    return bool(found[0])


def check(connections: Connections, url: DatabaseURL, rights: Rights) -> None:
    """Check that the queue is there, and that this role has these `rights`.

    Raises `QueueError`, which names the command to run or the right to grant.
    """
    try:
        found = connections.rows(_VERSION, doing="open the queue")
    except QueueError as error:
        if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
            reason = f"the role lacks rights: grant usage on schema {url.quoted}, and"
            reason += f" select on table {url.quoted}.version"
            raise QueueError(url.name, reason) from error
        if isinstance(
            error.__cause__,
            psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName,
        ):
            reason = f"has no tables of a queue in the schema {url.schema}; run"
            reason += f" 'postcommit migrate {url.name}' as a role that may create them"
            raise QueueError(url.name, reason) from error
        if isinstance(error.__cause__, _OF_ANOTHER):
            raise _not_ours(url) from error
        raise
    number, isolation = found[0] if found else (0, "")
    check_version(url.name, number, url.name)
    connections.begins = isolation != "read committed"
    for table, names in rights.items():
        for right in names:
            values = {"table": f"{url.quoted}.{table}", "right": right}
            if connections.rows(_RIGHT, values, doing="check the rights") != [(True,)]:
                reason = f"the role lacks a right: grant {right.lower()} on table"
                raise QueueError(url.name, f"{reason} {values['table']}")


def _not_ours(url: DatabaseURL) -> QueueError:
    reason = f"has tables of another program in the schema {url.schema}; choose a"
    return QueueError(url.name, f"{reason} schema for the queue by postcommit_schema")
