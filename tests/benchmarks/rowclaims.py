"""Claims and removes rows in PostgreSQL, with two designs of a claim.

A claim is the column ``holder`` of an entry, as in a queue, or a row of a table of its
own. Both do the same work with the same index of what is due: claim eight entries in a
statement, read them, and remove each by a statement of its own. No mail is sent.
``python -m tests.benchmarks.rowclaims --help``.
"""
from __future__ import annotations

import argparse
import sys
import uuid
from typing import Any

import psycopg

from postcommit._config.database import parse_database_url
from tests.benchmarks.databases import Account
from tests.benchmarks.databases import fill
from tests.benchmarks.databases import server
from tests.benchmarks.harness import OURS
from tests.benchmarks.harness import PEER
from tests.benchmarks.harness import Contestant
from tests.benchmarks.harness import Result
from tests.benchmarks.harness import common_options
from tests.benchmarks.harness import interleave
from tests.benchmarks.harness import program
from tests.benchmarks.measured import measured
from tests.benchmarks.rowdrainers import in_processes
from tests.benchmarks.section import Section
from tests.support.postgres import Cluster


COLUMN, TABLE = "a column", "a table"

# Maximum number of rows that are claimed at once, as postcommit does.
_MOST = 8

# The same tables as in a queue, without the column and its index.
_TABLE = """
drop index {schema}.entry_due, {schema}.entry_holder;
alter table {schema}.entry drop column holder;
create index entry_due on {schema}.entry (rank, due) where state = 'queued';
create table {schema}.claim (
    entry uuid primary key,
    holder uuid not null references {schema}.process on delete cascade
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
create index claim_holder on {schema}.claim (holder)"""

_TAKE = {
    COLUMN: """with due as materialized (
    select id from {schema}.entry
    where state = 'queued' and holder is null and rank = 0
    order by due limit %(most)s for update skip locked)
update {schema}.entry e set holder = %(me)s from due where e.id = due.id
returning e.id, e.sender, e.recipients, e.message""",
    # Two that see the same row as free: the key of the table lets one of them have it.
    TABLE: """with due as materialized (
    select id from {schema}.entry e
    where state = 'queued' and rank = 0
        and not exists (select from {schema}.claim c where c.entry = e.id)
    order by due limit %(most)s for update skip locked),
mine as (insert into {schema}.claim select id, %(me)s from due
    on conflict do nothing returning entry)
select e.id, e.sender, e.recipients, e.message
from mine join {schema}.entry e on e.id = mine.entry""",
}

_REMOVE = {
    COLUMN: "delete from {schema}.entry where id = %(id)s and holder = %(me)s",
    # The entry first: one who takes locks an entry, and then waits for its claim.
    TABLE: """with gone as (delete from {schema}.entry e using {schema}.claim c
    where e.id = %(id)s and c.entry = e.id and c.holder = %(me)s returning e.id)
delete from {schema}.claim c using gone where c.entry = gone.id""",
}

_REGISTER = "insert into {schema}.process (id, host, pid) values (%(me)s, '', 0)"

SECTION = Section(
    title="Would a table of claims leave fewer dead rows?",
    limits="""
It leaves as many dead rows, but half of them are small, because a claim does not
write a new version of an entry. What it saves in the log it spends on a second table
with two indexes.""",
    text="""
Rows of 4 KB are claimed and removed, with a claim as a column of the entry, or as a row
of a table of its own. All else is the same, and no mail is sent. *dead rows* counts all
tables, and *dead entries* only those of the wide table.""",
    ours=COLUMN,
    peer=TABLE,
    typical={"processes": 1},
    across="processes",
    plots=("rowclaims",),
)


class _Claims:
    """One process that claims and removes."""

    def __init__(self, queue: str, design: str) -> None:
        url = parse_database_url(queue)
        self._design = design
        self._schema = url.schema
        self._connection = psycopg.connect(
            url.conninfo, autocommit=True, prepare_threshold=None
        )
        self._me = uuid.uuid4()
        self._execute(_REGISTER)

    def _execute(self, statement: str, **values: Any) -> Any:
        text = statement.replace("{schema}", self._schema).encode()
        return self._connection.execute(text, {"me": self._me, **values}, binary=True)

    def work(self) -> None:
        take, remove = _TAKE[self._design], _REMOVE[self._design]
        while rows := self._execute(take, most=_MOST).fetchall():
            for id, *_ in rows:
                assert self._execute(remove, id=id).rowcount == 1
        self._connection.close()


def contest(options: argparse.Namespace) -> None:
    account = Account(options.queue, options.count)
    begin = in_processes(
        lambda: _Claims(options.queue, options.contestant).work, options.processes[0]
    )
    with measured(options.count, by_child=True, also=account.figures):
        begin()


def parser() -> argparse.ArgumentParser:
    made = common_options(__doc__, rounds=5)
    made.add_argument("--count", type=int, default=4000, help="rows")
    made.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    made.add_argument("--queue", help=argparse.SUPPRESS)
    return made


def run(options: argparse.Namespace) -> list[Result]:
    """Each number of processes, one after another."""
    results: list[Result] = []
    with server() as cluster:
        queues = {COLUMN: cluster.new_queue(), TABLE: cluster.new_queue()}
        schema = parse_database_url(queues[TABLE]).schema
        with cluster.connect() as connection:
            connection.execute(_TABLE.replace("{schema}", schema).encode())
        for processes in options.processes:
            racing = [
                _contestant(design, cluster, queue, options, processes)
                for design, queue in queues.items()
            ]
            rounds = 1 if options.quick else options.rounds
            results += interleave("rowclaims", racing, rounds)
    return results


def _contestant(
    design: str,
    cluster: Cluster,
    queue: str,
    options: argparse.Namespace,
    processes: int,
) -> Contestant:
    count = 2 * processes if options.quick else options.count

    def prepare() -> list[str]:
        fill(cluster, queue, count)
        command = [sys.executable, "-m", "tests.benchmarks.rowclaims"]
        command += ["--contestant", design, "--queue", queue, "--count", str(count)]
        return [*command, "--processes", str(processes)]

    what = OURS if design == COLUMN else PEER
    return Contestant(design, prepare, what, {"processes": processes})


if __name__ == "__main__":
    program(parser(), run, contest)
