"""Finds what is wrong with a queue in PostgreSQL, with advice for each problem."""
from __future__ import annotations

from collections.abc import Iterator

from postcommit._config.database import DatabaseURL
from postcommit._log import Log
from postcommit._maildir.item import Finding
from postcommit._postgres import schema
from postcommit._postgres.connections import Connections
from postcommit._postgres.lease import LEASE_SECONDS
from postcommit.errors import QueueError


log = Log("postcommit.postgres.checking")

# From these numbers on there is a finding: of dead rows, of seconds of a transaction,
# of bytes that a standby is behind.
_MANY_DEAD = 100_000
_LONG = 600.0
_BEHIND = 64 << 20

# Maximum number of seconds that a deferred entry is due ahead.
_AHEAD = 86400.0

_DEAD_ROWS = """
select n_dead_tup from pg_stat_user_tables
where relid = '{schema}.entry'::regclass and n_dead_tup > %(many)s"""

# Whether the role sees the transactions of other roles, and how far standbys are
# behind. Otherwise these columns are NULL, without an error.
_SEES = """
select pg_has_role('pg_read_all_stats', 'usage'), quote_ident(current_user)"""

_TRANSACTIONS = """
select pid, coalesce(usename, ''), extract(epoch from now() - xact_start)::float8
from pg_stat_activity
where datname = current_database() and backend_xmin is not null
    and pid <> pg_backend_pid()
    and xact_start < now() - %(long)s::float8 * interval '1 s'
order by xact_start"""

_SILENT = """
select host, pid, extract(epoch from clock_timestamp() - beat)::float8
from {schema}.process
where beat < clock_timestamp() - %(lease)s::float8 * interval '1 s'"""

_STANDBYS = """
select application_name, pg_wal_lsn_diff(sent_lsn, replay_lsn)::float8
from pg_stat_replication
where pg_wal_lsn_diff(sent_lsn, replay_lsn) > %(behind)s"""

_PROBLEMS = """
select left(replace(id::text, '-', ''), 12), problem from {schema}.entry
where state = 'failed' and problem <> '' order by due"""

_FAR = """
select left(replace(id::text, '-', ''), 12) from {schema}.entry
where state = 'queued' and deferred
    and due > clock_timestamp() + %(ahead)s::float8 * interval '1 s' order by due"""

# Settings with which the server acknowledges a commit that it may lose.
_UNSAFE = {
    "fsync": "a crash of its machine may destroy the database",
    "synchronous_commit": "a crash loses the last mails, or sends them twice",
    "full_page_writes": "a crash of its machine may destroy the database",
}


def check(connections: Connections, url: DatabaseURL) -> Iterator[Finding]:
    """Yield what is wrong, and log what the role cannot see. See `IOperators`."""
    try:
        schema.check(connections, url, schema.PROCESSOR)
    except QueueError as error:
        problem = f"cannot be drained by this role: {error.reason}"
        yield Finding(url.name, problem, "grant what is missing, if it is to drain")
    _log_what_is_hidden(connections, url)
    yield from _server(connections, url)
    yield from _rows(connections, url)


def _log_what_is_hidden(connections: Connections, url: DatabaseURL) -> None:
    [(sees, role)] = connections.rows(_SEES, doing="check the queue")
    if not sees:
        text = "%s: long transactions of other roles, and standbys that are behind,"
        text += " cannot be seen; 'grant pg_read_all_stats to %s', in psql"
        log.warning(text, url.name, role)


def _server(connections: Connections, url: DatabaseURL) -> Iterator[Finding]:
    def rows(statement: str, **values: float) -> list[tuple[object, ...]]:
        return connections.rows(statement, values, doing="check the queue")

    for setting, consequence in _UNSAFE.items():
        if rows(f"select current_setting('{setting}')") == [("off",)]:
            problem = f"is on a server with {setting} = off: {consequence}"
            yield Finding(url.name, problem, f"set {setting} = on in postgresql.conf")
    for (count,) in rows(_DEAD_ROWS, many=_MANY_DEAD):
        problem = f"has {count} dead rows, so looking for entries is slow"
        yield Finding(url.name, problem, f"'VACUUM {url.quoted}.entry', in psql")
    for pid, user, seconds in rows(_TRANSACTIONS, long=_LONG):
        problem = f"has a transaction of {user} that is open for {seconds:.0f} s, so"
        problem += " removed entries keep their space"
        yield Finding(url.name, problem, f"'select pg_terminate_backend({pid})'")
    for name, behind in rows(_STANDBYS, behind=_BEHIND):
        problem = f"has a standby, {name}, that is {behind:.0f} bytes behind"
        yield Finding(url.name, problem, "a fail-over to it now would lose mail")
    for host, pid, seconds in rows(_SILENT, lease=LEASE_SECONDS):
        problem = f"has a processor, {pid} on {host}, silent for {seconds:.0f} s"
        yield Finding(url.name, problem, "start a processor: it frees what that held")


def _rows(connections: Connections, url: DatabaseURL) -> Iterator[Finding]:
    doing = "check the queue"
    for id, problem in connections.rows(_PROBLEMS, {}, doing=doing):
        advice = f"'postcommit show --raw {url.name} {id}', then delete it"
        yield Finding(f"{url.name}#{id}", f"is no entry: {problem}", advice)
    for (id,) in connections.rows(_FAR, {"ahead": _AHEAD}, doing=doing):
        advice = f"'postcommit retry {url.name} {id}'"
        yield Finding(f"{url.name}#{id}", "is due more than a day from now", advice)
