"""A row is removed while its worker sends the next message."""
from __future__ import annotations

import os
import signal
import warnings
from typing import Any

import psycopg
import pytest
from tests.contract.steps import accept
from tests.contract.steps import consume
from tests.contract.steps import ids
from tests.contract.steps import take_all
from tests.support.postgres import cluster
from tests.support.postgres import why_not
from tests.support.postgresplace import PostgresPlace
from tests.support.proxy import LossyProxy
from tests.support.service import eventually

from postcommit._drain.contract import Settled
from postcommit._drain.contract import Settlement
from postcommit._postgres.queue import PostgresQueue
from postcommit.errors import QueueError


pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

_BACKENDS = """
select count(*) from pg_stat_activity where query like 'delete from "{0}".%%'"""


def taken(queue: PostgresQueue, count: int) -> tuple[Any, list[Any]]:
    """Return a consumer, and the claims of `count` new entries."""
    for _ in range(count):
        accept(queue)
    consumer = consume(queue)
    return consumer, take_all(consumer)


def test_the_server_works_while_the_worker_goes_on(postgres: PostgresPlace) -> None:
    consumer, claims = taken(postgres.make(), 3)
    assert all(consumer.begin_removal(claim) for claim in claims)
    eventually(lambda: postgres.look().queued == [])  # nobody has asked for the answer
    for claim in claims:
        assert consumer.settle(claim, Settlement()) is Settled.DONE
    assert consumer._held == {}
    consumer.close()


def test_connections_are_used_again(postgres: PostgresPlace) -> None:
    consumer, claims = taken(postgres.make(), 5)
    for claim in claims:
        assert consumer.begin_removal(claim)
        assert consumer.settle(claim, Settlement()) is Settled.DONE
    found = postgres.execute(_BACKENDS.format(postgres.schema), ())
    assert found.fetchone() == (1,)
    consumer.close()


def test_the_reply_is_lost(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    consumer, [claim] = taken(PostgresQueue(url), 1)
    proxy.lose_reply_to(b"delete from")
    assert consumer.begin_removal(claim)
    eventually(lambda: proxy.losses == 1)
    assert consumer.settle(claim, Settlement()) is Settled.DONE
    assert postgres.look().queued == []
    consumer.close()


def test_the_reply_is_lost_and_the_database_is_away(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    consumer, [claim] = taken(PostgresQueue(url), 1)
    proxy.lose_reply_to(b"delete from", and_go=True)
    assert consumer.begin_removal(claim)
    eventually(lambda: proxy.losses == 1)
    with pytest.raises(QueueError):
        consumer.settle(claim, Settlement())
    proxy.is_away = False
    assert consumer.settle(claim, Settlement()) is Settled.DONE
    consumer.close()


def test_the_database_is_away_before(
    postgres: PostgresPlace, proxy: LossyProxy, url: str
) -> None:
    consumer, [claim] = taken(PostgresQueue(url), 1)
    proxy.go_away()
    assert not consumer.begin_removal(claim)
    with pytest.raises(QueueError):
        consumer.settle(claim, Settlement())
    proxy.is_away = False
    assert consumer.settle(claim, Settlement()) is Settled.DONE
    assert postgres.look().queued == []
    consumer.close()


def test_the_server_refuses_it(postgres: PostgresPlace) -> None:
    consumer, [claim] = taken(postgres.make(), 1)
    refusing = "begin raise exception 'no'; end"
    postgres.execute(
        "create function {schema}.refuse() returns trigger language plpgsql"
        f" as $$ {refusing} $$; create trigger no before delete on"
        " {schema}.entry execute function {schema}.refuse()"
    )
    assert consumer.begin_removal(claim)
    with pytest.raises(QueueError, match="cannot settle the entry: no"):
        consumer.settle(claim, Settlement())
    postgres.execute("drop function {schema}.refuse cascade")
    assert consumer.settle(claim, Settlement()) is Settled.DONE
    consumer.close()


def test_somebody_else_was_quicker(postgres: PostgresPlace) -> None:
    consumer, [gone, lost] = taken(postgres.make(), 2)
    postgres.execute("delete from {schema}.entry where id = %s", (gone.key,))
    postgres.execute("update {schema}.entry set holder = null")
    assert consumer.begin_removal(gone)
    assert consumer.begin_removal(lost)
    assert consumer.settle(gone, Settlement()) is Settled.REMOVED
    assert consumer.settle(lost, Settlement()) is Settled.TAKEN
    assert len(postgres.look().queued) == 1
    consumer.close()


def test_a_role_with_another_isolation_waits(postgres: PostgresPlace) -> None:
    queue = postgres.make()
    consumer, [claim] = taken(queue, 1)
    queue.connections.begins = True
    assert not consumer.begin_removal(claim)
    assert consumer.settle(claim, Settlement()) is Settled.DONE
    consumer.close()


def test_a_processor_that_is_killed_has_removed_what_it_began(
    postgres: PostgresPlace,
) -> None:
    """The server executes what it has got, so the entry is not sent twice."""
    warnings.simplefilter("ignore", DeprecationWarning)  # the lease has a thread
    child = os.fork()
    if not child:
        try:
            consumer, claims = taken(postgres.make(), 3)
            if all(consumer.begin_removal(claim) for claim in claims):
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    eventually(lambda: postgres.look().queued == [])


def test_a_lock_keeps_only_the_answer_waiting(postgres: PostgresPlace) -> None:
    consumer, [claim] = taken(postgres.make(), 1)
    with psycopg.connect(cluster().conninfo) as other:
        lock = f"select from {postgres.schema}.entry for update"
        other.execute(lock.encode())
        assert consumer.begin_removal(claim)  # and returns
        assert len(postgres.look().queued) == 1
    assert consumer.settle(claim, Settlement()) is Settled.DONE
    consumer.close()


# Looks for new entries only


def test_deferred_entries_have_their_turn_between_new_ones(
    postgres: PostgresPlace,
) -> None:
    """As soon as a look finds fewer new entries than it may."""
    queue = postgres.make()
    names = [accept(queue) for _ in range(6)]
    deferred = "update {schema}.entry set deferred = true where message_id = any(%s)"
    postgres.execute(deferred, (names[:2],))
    consumer = consume(queue)
    looks = [consumer.take(2) for _ in range(2)]
    names.append(accept(queue))
    looks += [consumer.take(2) for _ in range(3)]
    for claim in (claim for look in looks for claim in look):
        claim.read()
    found = [ids(look) for look in looks]
    assert found == [names[2:4], names[4:6], [names[6]], names[:2], []]
    consumer.close()


def test_a_look_that_finds_no_new_entry_finds_the_others(
    postgres: PostgresPlace,
) -> None:
    queue = postgres.make()
    names = [accept(queue) for _ in range(3)]
    deferred = "update {schema}.entry set deferred = true where message_id = %s"
    postgres.execute(deferred, (names[2],))
    consumer = consume(queue)
    assert len(consumer.take(2)) == 2
    [claim] = consumer.take(2)
    claim.read()
    assert ids([claim]) == [names[2]]
    consumer.close()
